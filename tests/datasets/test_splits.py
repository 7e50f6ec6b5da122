"""What is a split and what is a class, in folders as people have them; what is asked, and what is said."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainers.data.source import scan_files
from trainers.datasets import Source, image_folder, texture_crops
from trainers.datasets._splits import split_names
from trainers.recipe import Recipe


def folder(root: Path, *places: str, each: int = 20) -> Path:
    """Files that look like pictures, `each` in each place; `place:3` has three."""
    for place in places:
        where, _, count = place.partition(":")
        (root / where).mkdir(parents=True, exist_ok=True)
        for number in range(int(count or each)):
            (root / where / f"{number:03}.jpg").write_bytes(b"-")
    return root


def found(source: Source) -> dict[str, int]:
    return {split: len(items) for split, items in source.splits.items()}


def counts(source: Source, split: str) -> dict[str, int]:
    """Class -> its pictures in a split."""
    return dict(Counter(source.classes[item.targets[0]] for item in source.splits[split]))


def said(source: Source) -> str:
    return "\n".join(source.warnings)


# ---- names of splits ----


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("training_set test_set", "train test"),
        ("Train_Set Validation-Set TestSet", "train val test"),
        ("train2017 val2017 test2017", "train val test"),
        ("train dev eval", "train val test"),
        ("train valid holdout", "train val test"),
        ("trainset devset testset", "train val test"),
        ("seg_train seg_test seg_pred", "train test -"),
        ("asl_alphabet_train asl_alphabet_test", "train test"),
        ("ILSVRC2012_img_train ILSVRC2012_img_val", "train val"),
        ("Final_Training Final_Test", "train test"),
        ("train_images val_images", "train val"),
        ("01_train 02_val 03_test", "train val test"),
        ("train(1) val(1)", "train val"),
        ("TrainData TestData", "train test"),
        ("TRAIN TEST", "train test"),
        ("trainval test", "train test"),
        ("train station tramway", "train - -"),
        ("test_tube beaker", "- -"),
        ("contest protest latest", "- - -"),
        ("terrain strain", "- -"),
        ("retrained trainer", "- -"),
        ("evaluation_form invoice", "- -"),
    ],
)
def test_names_of_splits(names: str, splits: str) -> None:
    by_name = split_names(names.split())
    assert [by_name.get(name, "-") for name in names.split()] == splits.split()


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("training_set", "test_set", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("train2017", "val2017", "val"),
        ("train", "dev", "val"),
        ("training/training", "validation/validation", "val"),
        ("faces_train", "faces_eval", "test"),
        ("Train_Set", "Holdout_Set", "test"),
    ],
)
def test_folders_of_splits_are_used_and_it_is_said(tmp_path: Path, train: str, other: str, split: str) -> None:
    folder(tmp_path, f"{train}/a", f"{train}/b", f"{other}/a:4", f"{other}/b:5")
    source = image_folder.source(str(tmp_path))
    assert source.classes == ["a", "b"]
    assert counts(source, split) == {"a": 4, "b": 5}
    assert sum(found(source).values()) == 49
    plain = {train, other} <= {"training/training", "validation/validation"}
    assert (f"{split}={other.split('/')[0]}" in said(source)) is not plain


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (["train/a", "train/b", "train_2/a", "train_2/b"], "two folders for train, train and train_2; keep one"),
        (["train/a", "train/b", "val/a", "dev/a"], "two folders for val, dev and val; keep one of them, or say which"),
        (["train/a", "train (1)/a", "train/b"], r"'train,train \(1\)' for all"),
        (
            ["train/a", "train/b", "eval/a", "test/a", "holdout/b"],
            "holds 3 folders for test, eval and holdout and test",
        ),
        (["test_set/a", "test_set/b", "val_set/a"], "no train split, only test_set, val_set"),
        (
            ["val/a", "test/a", "train_aug/a", "train_aug/b"],
            "if that is train_aug, give --dataset-args train=train_aug",
        ),
        (["training_set:9", "test_set:3"], "training_set holds 9 pictures and no class folders"),
        (["part1/a", "part1/b", "part2/a", "part2/b"], r"holds part1, part2, each with the folders a, b: are these"),
        (["fold_1/a", "fold_1/b", "fold_2/a", "fold_2/b"], "train=fold_1,fold_2 takes them together"),
        (["a", "b", "part1/a", "part1/b"], "part1 holds folders of these names too: class folders lie in one place"),
        (["cat", "dog", "old/dog"], "old holds a folder of that name too"),
        (
            ["fold1/train/a", "fold1/train/b", "fold1/val/a", "fold2/train/a", "fold2/train/b", "fold2/val/a"],
            r"train=fold1/train,fold2/train val=fold1/val,fold2/val takes them together",
        ),
        (
            ["train/a", "train/b", "train/old/a", "train/old/b"],
            "train=train,train/old takes both places, train=train makes",
        ),
        (
            ["mnist_png/training/0", "mnist_png/testing/0"],
            "one class folder only, 'mnist_png'.* holds the folders testing, training: is it that?",
        ),
        (["images/a", "images/b", "meta:0"], "meta holds no pictures .*images holds the folders a, b: is it that?"),
        (["train/a", "train/b", "val/images"], "If it holds pictures of all classes, put them into class folders"),
        (
            ["cats_train", "dogs_train", "cats_test", "dogs_test"],
            "two folders for test, .* for all .each holds <class>",
        ),
        (["cat/train", "cat/test", "dog"], "the class folders cat in .* hold train and other splits, dog not"),
    ],
)
def test_where_two_readings_are_possible_the_user_is_asked(tmp_path: Path, places: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        image_folder.source(str(folder(tmp_path, *places)))


def test_the_user_says_which_folders_are_the_splits(tmp_path: Path) -> None:
    folder(tmp_path, *(f"{place}/{name}" for place in ("part1", "part2", "old", "check") for name in "ab"), each=5)
    source = image_folder.source(str(tmp_path), train=["part1", "part2"], val="check")
    assert found(source) == {"train": 20, "val": 10}
    assert {item.name.split("/")[0] for item in source.splits["train"]} == {"part1", "part2"}
    assert "old with 10 pictures is left out, though it holds the class folders a, b" in said(source)
    photos = texture_crops.source(str(tmp_path), train="part1", val="part2", test="check", crops_per_photo=1)
    assert found(photos) == {"train": 10, "val": 10, "test": 10}
    with pytest.raises(ValueError, match=r"val=chek is no folder in .*, which holds check, old, part1, part2; give"):
        image_folder.source(str(tmp_path), train="part1", val="chek")
    with pytest.raises(ValueError, match=r"train=\.\./part1 is no folder in"):
        image_folder.source(str(tmp_path), train="../part1")
    with pytest.raises(ValueError, match="holds no train split, only check"):
        image_folder.source(str(tmp_path), val="check")


def test_the_data_folder_itself_may_be_named(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b", "part1/a:10", "part1/b:10")
    both = image_folder.source(str(tmp_path), train=[".", "part1"])
    assert (both.classes, sum(found(both).values())) == (["a", "b"], 60)
    own = image_folder.source(str(tmp_path), train=".")
    assert (own.classes, sum(found(own).values())) == (["a", "b", "part1"], 60)
    assert found(own).keys() == {"train", "val", "test"}
    checked = image_folder.source(str(tmp_path), train=".", val="part1")
    assert (checked.classes, found(checked)) == (["a", "b"], {"train": 40, "val": 20})
    assert not checked.warnings


@pytest.mark.parametrize(
    "names",
    [("steam", "train", "tram"), ("test_tube", "beaker"), ("dev", "ops"), ("holdout", "b", "c"), ("set1", "set2")],
)
def test_classes_may_be_called_like_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = image_folder.source(str(folder(tmp_path, *names)))
    assert source.classes == sorted(names)
    assert found(source).keys() == {"train", "val", "test"}


def test_classes_with_folders_of_equal_names_below_are_said(tmp_path: Path) -> None:
    folder(tmp_path, *(f"{name}/{year}" for name in ("cat", "dog") for year in (2023, 2024)))
    source = image_folder.source(str(tmp_path))
    assert source.classes == ["cat", "dog"]
    assert "each holds the folders 2023, 2024, which count for nothing" in said(source)
    assert not image_folder.source(str(folder(tmp_path / "x", "a/images", "b/images"))).warnings


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (
            ["amazon/images/bike", "amazon/images/mug", "dslr/images/bike", "dslr/images/mug"],
            "train=amazon/images,dslr/im",
        ),
        (
            ["cat/train/2023", "cat/train/2024", "cat/val", "dog/train/2023", "dog/train/2024", "dog/val"],
            "train=cat/train,",
        ),
        (["data/a", "data/b", "figures"], "data in .* is taken as a class. .*data holds the folders a, b: is it that?"),
        (["box_train", "box_test", "query"], "taken as classes, box_test, box_train too; where these are splits, give"),
    ],
)
def test_another_reading_of_class_folders_is_said(tmp_path: Path, places: list[str], words: str) -> None:
    assert re.search(words, said(image_folder.source(str(folder(tmp_path, *places)))))


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "Val"), ("train_set", "test_set")])
def test_splits_below_the_class_folders_are_splits(tmp_path: Path, train: str, test: str) -> None:
    folder(tmp_path, f"cat/{train}", f"cat/{test}/extra:5", f"dog/{train}/deep", f"dog/{test}:5", "dog/extra:3")
    source = image_folder.source(str(tmp_path))
    assert source.classes == ["cat", "dog"]
    split = "val" if test == "Val" else "test"
    assert counts(source, split) == {"cat": 5, "dog": 5}
    assert sum(found(source).values()) == 50
    assert "left out 3 pictures outside these" in said(source)
    assert sum(found(image_folder.source(str(tmp_path), train=".")).values()) == 53


# ---- what is left out, and said ----


@pytest.mark.parametrize("place", ["test:7", "test/test:7", "test/unknown:7", "test_set:7", "seg_test/seg_test:7"])
def test_test_folders_without_classes_are_left_out(tmp_path: Path, place: str) -> None:
    train = "seg_train" if place.startswith("seg") else "train"
    source = image_folder.source(str(folder(tmp_path, f"{train}/a", f"{train}/b", place)))
    assert found(source) == {"train": 36, "val": 4}
    assert "holds 7 pictures without class folders" in said(source)


@pytest.mark.parametrize("other", ["seg_pred/seg_pred", "unlabeled", "extra/a", "images_more/deep/er"])
def test_folders_beside_the_splits_are_left_out_and_said(tmp_path: Path, other: str) -> None:
    source = image_folder.source(str(folder(tmp_path, "train/a", "train/b", "val/a", f"{other}:6")))
    assert found(source) == {"train": 40, "val": 20}
    assert f"{other.split('/')[0]} with 6 pictures is left out" in said(source)


def test_folders_beside_the_splits_without_pictures_need_no_word(tmp_path: Path) -> None:
    folder(tmp_path, "train/a", "train/b", "val/a", "val/b", "models:0")
    (tmp_path / "models/x.pt").write_bytes(b"-")
    assert not image_folder.source(str(tmp_path)).warnings


@pytest.mark.parametrize("name", ["training", "train_2", "dev", "eval"])
def test_folders_called_like_splits_that_hold_no_pictures_are_none(tmp_path: Path, name: str) -> None:
    files(folder(tmp_path, "train/a", "train/b", "test/a", "test/b"), f"{name}/logs/x.txt")
    source = image_folder.source(str(tmp_path))
    assert (found(source), source.warnings) == ({"train": 36, "val": 4, "test": 40}, [])


@pytest.mark.parametrize("place", ["test:0", "test/a:0"])
def test_a_test_split_without_pictures_is_left_out(tmp_path: Path, place: str) -> None:
    source = image_folder.source(str(folder(tmp_path, "train/a", "train/b", "val/a", "val/b", place, ".:2")))
    assert found(source).keys() == {"train", "val"}
    assert "test holds no pictures: it is left out" in said(source)
    assert "2 pictures beside the splits" in said(source)


@pytest.mark.parametrize(
    ("other", "words"),
    [("train.zip", "unpack train.zip first"), ("labels.csv", r"lists of labels, such as labels.csv, are not read")],
)
def test_where_class_folders_are_missing_archives_and_tables_are_named(tmp_path: Path, other: str, words: str) -> None:
    files(folder(tmp_path, "train", "test"), other)
    with pytest.raises(ValueError, match=f"train holds 20 pictures and no class folders; .*{words}"):
        image_folder.source(str(tmp_path))


def test_what_cannot_be_read_hides_no_other_error(tmp_path: Path) -> None:
    folder(tmp_path, "train", "val")
    (tmp_path / "extra").symlink_to("/nowhere")
    with pytest.raises(ValueError, match="train holds 20 pictures and no class folders"):
        image_folder.source(str(tmp_path))


def test_runs_among_the_pictures_are_passed_over(tmp_path: Path) -> None:
    for run in ("a/x", "runs/y"):
        files(folder(tmp_path, "a", "b", f"{run}/figures"), f"{run}/run.json", f"{run}/metrics.jsonl")
    source = image_folder.source(str(tmp_path))
    assert (source.classes, sum(found(source).values())) == (["a", "b"], 40)
    assert "or of runs, are left out: a/x, runs/y" in said(source)


def test_loose_pictures_and_files_that_are_not_read_are_said(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b", ".:2")
    for name in ("1.svg", "2.svg", "3.CR2", "notes.txt", "labels.csv"):
        (tmp_path / "a" / name).write_bytes(b"-")
    words = said(image_folder.source(str(tmp_path)))
    assert "2 pictures beside the class folders" in words
    assert "3 files are left out, as files of such endings are not read: 2 .svg, such as a/1.svg; 1 .cr2" in words
    assert "txt" not in words


def test_classes_that_a_split_lacks(tmp_path: Path) -> None:
    folder(tmp_path, "train/a", "train/b", "train/c", "val/a", "val/b", "test/c:2", "test/a:0")
    words = said(image_folder.source(str(tmp_path)))
    assert "val holds no pictures of 1 of 3 classes: c" in words
    assert "test holds no pictures of 2 of 3 classes: a, b" in words
    folder(tmp_path, "val/d", "val/e")
    with pytest.raises(ValueError, match="val holds classes that train lacks: d, e; train has a, b, c"):
        image_folder.source(str(tmp_path))


def test_a_single_folder_called_like_a_split_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds one class folder only, 'train'"):
        image_folder.source(str(folder(tmp_path, "train")))


def test_a_test_folder_of_a_misspelled_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test holds classes that train lacks: CAT .CAT is cat but for its spelling"):
        image_folder.source(str(folder(tmp_path, "train/cat", "train/dog", "test/CAT")))


def test_what_is_left_out_need_not_be_sound(tmp_path: Path) -> None:
    folder(tmp_path, "train/a", "train/b", "old/a")
    (tmp_path / "old/again").symlink_to(".")
    assert "old is left out" in said(image_folder.source(str(tmp_path)))


@pytest.mark.parametrize("names", [("-1", "1"), ("C", "C++"), ("0.5", "05"), ("n01", "n1")])
def test_names_that_differ_in_more_than_spelling_need_no_word(tmp_path: Path, names: tuple[str, str]) -> None:
    assert not image_folder.source(str(folder(tmp_path, *names))).warnings


def test_all_empty_class_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class folder .*/b holds no pictures \(it holds nothing\), as do d, e; add"):
        image_folder.source(str(folder(tmp_path, "a", "b:0", "c", "d:0", "e:0")))


def test_a_single_folder_says_what_lies_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one class folder only, 'photos'.*photos holds the folders a, b: is it"):
        image_folder.source(str(folder(tmp_path, "photos/a", "photos/b")))


# ---- forms of a name ----


NAMES = ["café", "Ångström", "한국", "ひばり", "Việt Nam"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_one_class_in_whatever_form_a_system_writes_it(tmp_path: Path, name: str) -> None:
    nfc, nfd = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    if nfc == nfd:
        pytest.skip("has one form")
    folder(tmp_path, "train/bar", f"train/{nfc}", "val/bar", f"val/{nfd}:3")
    source = image_folder.source(str(tmp_path))
    assert source.classes == sorted(["bar", nfc])
    assert counts(source, "val") == {"bar": 20, nfc: 3}
    assert not source.warnings


def test_two_forms_in_one_split_are_one_class_and_said(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "zoë") for form in ("NFC", "NFD"))
    source = image_folder.source(str(folder(tmp_path, nfd, "bar", f"{nfc}:5")))
    assert source.classes == ["bar", nfc]
    assert sum(found(source).values()) == 45
    assert "two Unicode forms" in said(source)


def test_the_order_of_pictures_does_not_depend_on_the_form(tmp_path: Path) -> None:
    orders = []
    for form in ("NFC", "NFD"):
        root = folder(tmp_path / form, "b")
        for name in ("caf\u00e9.jpg", "cafz.jpg", "cafe.jpg"):
            folder(root, "a:0")
            (root / "a" / unicodedata.normalize(form, name)).write_bytes(b"-")
        items = image_folder.source(str(root), val_share=0.3).splits["train"]
        orders.append([unicodedata.normalize("NFC", item.name) for item in items])
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("red fox", "red_fox"),
        ("n1 ", "n1"),
        ("red-fox", "Red Fox"),
        ("a\u200bb", "ab"),
        ("\uff43at", "cat"),
    ],
)
def test_names_that_look_alike(tmp_path: Path, one: str, other: str) -> None:
    source = image_folder.source(str(folder(tmp_path / "whole", one, other, "dog")))
    assert len(source.classes) == 3
    assert "look alike and are two classes" in said(source)
    with pytest.raises(ValueError, match=f"train lacks: {other} .*is {one} but for its spelling"):
        image_folder.source(str(folder(tmp_path / "split", f"train/{one}", "train/dog", f"val/{other}")))


@pytest.mark.parametrize("copy", ["cat (1)", "cat - Copy", "cat copy 2", "Cat (copy)"])
def test_copies_of_a_folder_are_said(tmp_path: Path, copy: str) -> None:
    words = said(image_folder.source(str(folder(tmp_path, "cat", copy, "dog"))))
    assert "cat' and '" in words.lower() or f"'{copy}' and 'cat'" in words
    assert "look alike" in words


LEVELS = ["1 2 10", "grade_9 grade_10", "-2 -1 0", "0.5 2 10.5"]


@pytest.mark.parametrize("levels", [*LEVELS, "01 02 10", "bad fair good", "1_loose 2_fair 3_dense", "low mid"])
def test_levels_that_sort_otherwise_by_numbers_are_refused(tmp_path: Path, levels: str) -> None:
    folder(tmp_path, *levels.split())
    learned: Any = {"model": "linear_cnn", "epochs": 1, "batch_size": 4, "lr": 0.01}
    recipe = Recipe(dataset="image_folder", task="ordinal", image_size=(8, 8), **learned)
    if levels not in LEVELS:
        assert list(scan_files(recipe, str(tmp_path)).classes) == levels.split()
        return
    with pytest.raises(ValueError, match=f"by numbers it is {', '.join(levels.split())}. Rename the class folders"):
        scan_files(recipe, str(tmp_path))
    assert len(scan_files(dataclasses.replace(recipe, task="classify"), str(tmp_path)).classes) == len(levels.split())


# ---- boxes and masks ----


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"-")


@pytest.mark.parametrize(
    ("places", "others", "form"),
    [
        (["train2017", "val2017"], ["annotations/instances_train2017.json"], "COCO"),
        (["images/train2017", "images/val2017"], ["annotations/instances_val2017.json"], "COCO"),
        (["train", "valid"], ["train/_annotations.coco.json", "valid/_annotations.coco.json"], "COCO"),
        (["images/train", "images/val"], ["labels/train/000.txt", "data.yaml"], "YOLO"),
        (["train/images", "valid/images"], ["train/labels/000.txt", "valid/labels/000.txt", "data.yaml"], "YOLO"),
        (["images"], ["labels/000.txt", "classes.txt"], "YOLO"),
        (["train", "test"], ["train/000.txt", "train/001.txt"], "YOLO"),
        (["JPEGImages"], ["Annotations/000.xml", "ImageSets/Main/train.txt"], "Pascal VOC"),
        (["train", "val"], ["train/000.xml"], "Pascal VOC"),
        (
            ["VOC2007/JPEGImages", "VOC2012/JPEGImages"],
            ["VOC2007/Annotations/0.xml", "VOC2012/Annotations/0.xml"],
            "Pascal VOC",
        ),
        (["train", "val"], ["train/004.json"], "LabelMe"),
        (["."], ["instances_default.json"], "COCO"),
        (["training/image_2", "testing/image_2"], ["training/label_2/000.txt"], "YOLO"),
    ],
)
def test_detection_data_is_told_from_classes(tmp_path: Path, places: list[str], others: list[str], form: str) -> None:
    files(folder(tmp_path, *places), *others)
    then = (
        "not read: export it" if form == "LabelMe" else "trained with --dataset (coco|yolo|voc), and a recipe such as"
    )
    with pytest.raises(ValueError, match=f"looks like detection data in the form of {form} .*{then}"):
        image_folder.source(str(tmp_path))


@pytest.mark.parametrize(
    "places",
    [
        ["images", "masks"],
        ["JPEGImages", "SegmentationClass"],
        ["train/img", "train/gt"],
        ["images", "masks", "overlays"],
        ["leftImg8bit/train/ulm", "leftImg8bit/val/bonn", "gtFine/train/ulm", "gtFine/val/bonn"],
        ["img_dir/train", "img_dir/val", "ann_dir/train", "ann_dir/val"],
        ["original_images", "label_images_semantic"],
        ["ISIC_Train", "ISIC_Train_GT"],
    ],
)
def test_masks_are_told_from_classes(tmp_path: Path, places: list[str]) -> None:
    with pytest.raises(ValueError, match=r"are no classes.*looks like pictures and their masks.*mask_folder"):
        image_folder.source(str(folder(tmp_path, *places)))


@pytest.mark.parametrize(
    "names",
    [("mask", "nomask"), ("with_mask", "without_mask"), ("images", "photos"), ("label", "bottle"), ("gt", "golf")],
)
def test_classes_called_like_masks_are_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    source = image_folder.source(str(folder(tmp_path, *names)))
    assert (source.classes, source.warnings) == (sorted(names), [])


def test_masks_beside_the_pictures_of_a_class_are_left_out_and_said(tmp_path: Path) -> None:
    folder(tmp_path, "covid/images", "covid/masks", "normal/images", "normal/masks")
    files(
        tmp_path, *(f"benign/b ({n}){end}.png" for n in range(20) for end in ("", "_mask")), "benign/b (1)_mask_1.png"
    )
    source = image_folder.source(str(tmp_path), test_share=0)
    assert counts(source, "train") == {"benign": 18, "covid": 18, "normal": 18}
    assert "61 files in class folders are left out, as they are masks of pictures beside them" in said(source)
    files(tmp_path, "covid/images/001_mask.jpg")  # one alone is no mask
    assert sum(found(image_folder.source(str(tmp_path), test_share=0)).values()) == 61


def test_companions_of_pictures_in_class_folders_are_no_reason_to_refuse(tmp_path: Path) -> None:
    files(folder(tmp_path, "train/a", "train/b", "val/a"), "train/a/000.xml", "train/a/001.txt", "annotations/x.json")
    source: Any = image_folder.source(str(tmp_path))
    assert found(source) == {"train": 40, "val": 20}
