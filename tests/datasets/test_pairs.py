"""Which picture and which mask belong together, and where the splits of both lie."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.datasets import Source, mask_folder

MASK = np.arange(48, dtype=np.uint8).reshape(6, 8) % 2


def files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(MASK if "mask" in name else np.full((6, 8, 3), 90, np.uint8)).save(path)
    return root


def pairs(root: Path, picture: str, mask: str, cores: list[str]) -> Path:
    """images/ and masks/, of which each name is a pattern with a core in it."""
    return files(
        root,
        *(f"images/{picture.format(core)}.jpg" for core in cores),
        *(f"masks/{mask.format(core)}.png" for core in cores),
    )


def matched(source: Source) -> dict[str, str]:
    """Stem of the picture -> that of its mask."""
    return {Path(item.path or "").stem: Path(item.mask_path or "").stem for of in source.splits.values() for item in of}


def said(source: Source) -> str:
    return "\n".join(source.warnings)


NUMBERS = ["1", "2", "3", "9", "10", "11", "12", "21", "100", "101"]


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("{}_image", "{}_label"),
        ("img_{}", "mask_{}"),
        ("img{}", "mask{}"),
        ("{}_leftImg8bit", "{}_gtFine_labelIds"),
        ("{}", "{}_segmentation"),
        ("{}_sat", "{}_mask"),
        ("IMG-{}", "IMG-{}-seg"),
        ("scan {}", "scan {} (mask)"),
        ("{}", "gt_{}"),
        ("case_{}_0000", "case_{}"),
    ],
)
@pytest.mark.parametrize("cores", [NUMBERS, ["aachen_07", "bonn_1", "ulm_33", "x_8", "y_9"]])
def test_names_that_all_differ_in_the_same_way_are_matched_and_said(
    tmp_path: Path, picture: str, mask: str, cores: list[str]
) -> None:
    if picture == "img{}" and cores != NUMBERS:
        pytest.skip("where words run together, nobody can tell")
    source = mask_folder.source(str(pairs(tmp_path, picture, mask, cores)), classes=2)
    assert matched(source) == {picture.format(core): mask.format(core) for core in cores}
    if (picture, mask) != ("{}", "{}_mask"):
        assert "is taken to be" in said(source)


@pytest.mark.parametrize("mask", ["{}", "{}_mask"])
def test_the_usual_names_need_no_word(tmp_path: Path, mask: str) -> None:
    source = mask_folder.source(str(pairs(tmp_path, "{}", mask, NUMBERS)), classes=2)
    assert matched(source) == {core: mask.format(core) for core in NUMBERS}
    assert not source.warnings


def test_of_several_masks_for_each_picture_the_user_says_which(tmp_path: Path) -> None:
    root = pairs(tmp_path, "{}_leftImg8bit", "{}_gtFine_labelIds", NUMBERS)
    files(root, *(f"masks/{core}_gtFine_color.png" for core in NUMBERS))
    ask = r"2 masks for each picture .* mask_pattern={name}_gtFine_color or .*mask_pattern={name}_gtFine_labelIds"
    with pytest.raises(ValueError, match=ask):
        mask_folder.source(str(root), classes=2)
    patterns = {"picture_pattern": "{name}_leftImg8bit", "mask_pattern": "{name}_gtFine_labelIds.png"}
    source = mask_folder.source(str(root), classes=2, **patterns)
    assert matched(source) == {f"{core}_leftImg8bit": f"{core}_gtFine_labelIds" for core in NUMBERS}
    assert not source.warnings


def test_masks_that_are_left_over_are_named_with_the_pattern_that_leaves_them_out(tmp_path: Path) -> None:
    files(pairs(tmp_path, "img_{}", "mask_{}", NUMBERS), "masks/mask_77.png")
    with pytest.raises(ValueError, match=r"1 masks in masks without .*: masks/mask_77\.png\. Remove them, or add the"):
        mask_folder.source(str(tmp_path), classes=2)
    (tmp_path / "masks/mask_77.png").rename(tmp_path / "masks/empty_mask.png")
    with pytest.raises(ValueError, match=r"leave them out by --dataset-args .*mask_pattern=mask_{name}"):
        mask_folder.source(str(tmp_path), classes=2)


def test_pictures_without_a_mask_are_named_as_before(tmp_path: Path) -> None:
    files(pairs(tmp_path, "img_{}", "mask_{}", NUMBERS), "images/img_77.jpg")
    with pytest.raises(ValueError, match=r"1 of 11 pictures in images without .*: images/img_77\.jpg.*mask_pattern"):
        mask_folder.source(str(tmp_path), classes=2)
    with pytest.raises(ValueError, match=r"1 of 11 pictures in images without a mask in masks: images/img_77\.jpg"):
        mask_folder.source(str(tmp_path), classes=2, picture_pattern="img_{name}", mask_pattern="mask_{name}")


@pytest.mark.parametrize("text", ["mask", "*_mask", "{name}_{name}", "gt/{name}", "{n}_mask"])
def test_patterns_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    root = pairs(tmp_path, "{}", "{}_m", NUMBERS)
    with pytest.raises(ValueError, match=r"mask_pattern=.* is not allowed; give .* as in mask_pattern={name}_mask"):
        mask_folder.source(str(root), classes=2, mask_pattern=text)


def test_patterns_hold_in_folders_below(tmp_path: Path) -> None:
    names = [f"{town}/{number}" for town in ("bonn", "ulm") for number in range(5)]
    files(
        tmp_path,
        *(f"images/{name.replace('/', '/img_')}.jpg" for name in names),
        *(f"masks/{name.replace('/', '/mask_')}.png" for name in names),
    )
    source = mask_folder.source(str(tmp_path), classes=2)
    for item in (item for of in source.splits.values() for item in of):
        assert item.mask_path == (item.path or "").replace("images", "masks").replace("img", "mask")[:-3] + "png"


@pytest.mark.parametrize("name", ["é{}", "Å{}", "한{}"])
def test_pictures_and_masks_may_be_written_in_two_unicode_forms(tmp_path: Path, name: str) -> None:
    nfc, nfd = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    source = mask_folder.source(str(pairs(tmp_path, nfc, nfd, NUMBERS)), classes=2)
    assert len(matched(source)) == len(NUMBERS)
    assert not source.warnings


# ---- splits ----


@pytest.mark.parametrize(
    ("train", "val"),
    [("training_set", "dev_set"), ("train2017", "val2017"), ("seg_train", "seg_val"), ("Train", "Dev")],
)
@pytest.mark.parametrize("form", ["{split}/images", "images/{split}"])
def test_splits_by_the_names_people_use(tmp_path: Path, train: str, val: str, form: str) -> None:
    for split, count in ((train, 6), (val, 3)):
        place = form.format(split=split)
        files(tmp_path, *(f"{place}/{number}.jpg" for number in range(count)))
        files(tmp_path, *(f"{place.replace('images', 'masks')}/{number}.png" for number in range(count)))
    source = mask_folder.source(str(tmp_path), classes=2)
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 6, "val": 3}
    assert f"train={train} val={val}" in said(source)


@pytest.mark.parametrize("form", ["{split}/images", "images/{split}"])
def test_test_pictures_without_masks_are_left_out_and_the_user_may_name_splits(tmp_path: Path, form: str) -> None:
    for split in ("one", "two", "test"):
        place = form.format(split=split)
        files(tmp_path, *(f"{place}/{number}.jpg" for number in range(5)))
        if split != "test":
            files(tmp_path, *(f"{place.replace('images', 'masks')}/{number}.png" for number in range(5)))
    source = mask_folder.source(str(tmp_path), classes=2, train="one", val="two")
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 5, "val": 5}
    assert "left out as a test split" in said(source)


def test_folders_of_splits_that_only_one_side_has_are_refused(tmp_path: Path) -> None:
    files(tmp_path, "images/train/1.jpg", "images/val/1.jpg", "masks/train/1.png", "masks/test/1.png")
    with pytest.raises(ValueError, match=r"images has the splits train, val, and .*masks test, train; give both"):
        mask_folder.source(str(tmp_path), classes=2)


@pytest.mark.parametrize("other", ["labels/0.txt", "annotations/instances.json", "Annotations/0.xml"])
def test_boxes_are_told_from_masks(tmp_path: Path, other: str) -> None:
    files(tmp_path, "images/0.jpg", "images/1.jpg")
    (tmp_path / other).parent.mkdir()
    (tmp_path / other).write_bytes(b"-")
    with pytest.raises(
        ValueError, match=r"lacks the folder masks .*looks like detection data .*trained with --dataset"
    ):
        mask_folder.source(str(tmp_path))


@pytest.mark.parametrize(("one", "other"), [("JPEGImages", "SegmentationMask"), ("images", "gt_masks")])
def test_folders_of_other_names_are_asked_for(tmp_path: Path, one: str, other: str) -> None:
    files(tmp_path, *(f"{one}/{number}.jpg" for number in NUMBERS), *(f"{other}/{number}.png" for number in NUMBERS))
    with pytest.raises(
        ValueError, match=f"pictures in {one} and masks in {other}: give these folders the names images"
    ):
        mask_folder.source(str(tmp_path), classes=2)


@pytest.mark.parametrize("form", ["{}/test", "test/{}"])
def test_a_test_split_whose_folder_of_masks_is_empty_is_left_out(tmp_path: Path, form: str) -> None:
    for number in NUMBERS:
        files(tmp_path, *(f"{form.format(name).replace('test', 'train')}/{number}.png" for name in ("images", "masks")))
    files(tmp_path, f"{form.format('images')}/1.png", f"{form.format('masks')}/.mask.png")
    source = mask_folder.source(str(tmp_path), classes=2)
    assert source.splits.keys() == {"train", "val"}
    assert "left out as a test split" in said(source)


def test_the_pattern_that_is_advised_is_understood(tmp_path: Path) -> None:
    files(pairs(tmp_path, "{}", "{}.jpg", NUMBERS), "masks/empty_mask.png")
    with pytest.raises(ValueError, match=r"leave them out by --dataset-args .*mask_pattern={name}\.jpg\.\*"):
        mask_folder.source(str(tmp_path), classes=2)
    assert len(matched(mask_folder.source(str(tmp_path), classes=2, mask_pattern="{name}.jpg.*"))) == len(NUMBERS)


def test_masks_that_lead_nowhere_wait_for_being_read(tmp_path: Path) -> None:
    pairs(tmp_path, "{}", "{}", NUMBERS)
    os.remove(tmp_path / "masks/1.png")
    (tmp_path / "masks/1.png").symlink_to("/nowhere/1.png")
    assert len(matched(mask_folder.source(str(tmp_path)))) == len(NUMBERS)


def test_what_systems_leave_beside_masks_is_passed_over(tmp_path: Path) -> None:
    pairs(tmp_path, "{}", "{}", NUMBERS)
    files(tmp_path, "masks/@eaDir/1.png/THUMB.png", "images/__MACOSX/._1.jpg", "images/.thumbnails/1.jpg")
    assert len(matched(mask_folder.source(str(tmp_path)))) == len(NUMBERS)
