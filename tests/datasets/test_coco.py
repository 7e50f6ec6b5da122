"""Boxes in the form of COCO: every layout is read as pycocotools reads its files, and every mistake has its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.boxed import (
    HEIGHT,
    WIDTH,
    annotation,
    categories,
    coco_file,
    coco_one,
    counts,
    draw,
    image,
    load,
    pixels,
    said,
    write,
)

from trainers import notices
from trainers.datasets import CROWD, DIFFICULT, PLAIN, BadImage, Source, coco


def published(root: Path) -> dict[str, Path]:
    files = {}
    for split, count in (("train2017", 5), ("val2017", 3), ("test2017", 2)):
        names = [f"{split}_{number:012}.jpg" for number in range(count)]
        draw(*(root / split / name for name in names))
        if split != "test2017":
            files[split[:-4]] = coco_file(root / f"annotations/instances_{split}.json", names)
            write(root / f"annotations/captions_{split}.json", '{"images": [], "annotations": []}')
            coco_file(root / f"annotations/person_keypoints_{split}.json", names)
    return files


def nested(root: Path) -> dict[str, Path]:
    for split in ("train2017", "val2017"):
        draw(*(root / f"images/{split}/{number}.jpg" for number in range(3)))  # the same names in both
    at = root / "annotations"
    return {
        split: coco_file(at / f"instances_{split}2017.json", ["0.jpg", "1.jpg", "2.jpg"]) for split in ("train", "val")
    }


def roboflow(root: Path) -> dict[str, Path]:
    files = {}
    of = [{"id": 0, "name": "pets", "supercategory": "none"}, *categories("cat", "dog")]
    of[1]["supercategory"] = of[2]["supercategory"] = "pets"
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        draw(*(root / name / f"a_jpg.rf.{number}.jpg" for number in range(3)))
        names = [f"a_jpg.rf.{number}.jpg" for number in range(3)]
        files[split] = coco_file(root / name / "_annotations.coco.json", names, categories=of)
    write(root / "README.roboflow.txt", "-")
    return files


def cvat(root: Path) -> dict[str, Path]:
    files = {}
    for split in ("train", "val"):
        draw(*(root / f"images/{split}/{number}.png" for number in range(3)))
        names = [f"{number}.png" for number in range(3)]
        files[split] = coco_file(root / f"annotations/instances_{split}.json", names)
    return files


def one_file(root: Path) -> dict[str, Path]:
    draw(*(root / f"images/ab-{number}.jpg" for number in range(10)))
    return {"": coco_file(root / "result.json", [f"images\\ab-{number}.jpg" for number in range(10)])}


def fiftyone(root: Path) -> dict[str, Path]:
    draw(*(root / f"data/{number}.jpg" for number in range(10)))
    return {"": coco_file(root / "labels.json", [f"/elsewhere/pictures/data/{number}.jpg" for number in range(10)])}


@pytest.mark.parametrize("layout", [published, nested, roboflow, cvat, one_file, fiftyone])
def test_layouts_hold_what_pycocotools_counts(layout: Callable[[Path], dict[str, Path]], tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    files = layout(tmp_path)
    source = coco.source(str(tmp_path))
    assert list(source.classes) == ["cat", "dog"]
    theirs = {split: COCO(str(path)) for split, path in files.items()}
    if "" in files:
        items = [item for each in source.splits.values() for item in each]
        assert {split: len(each) for split, each in source.splits.items()} == {"train": 8, "val": 2}
        splits = {"": items}
    else:
        splits = {split: list(items) for split, items in source.splits.items()}
    assert splits.keys() == theirs.keys()
    for split, of in theirs.items():
        assert len(splits[split]) == len(of.imgs)
        for item in splits[split]:
            expected = of.loadAnns(of.getAnnIds(imgIds=item.args["image_id"]))
            found = load(coco, item)
            boxes = [[x, y, x + width, y + height] for x, y, width, height in (each["bbox"] for each in expected)]
            assert pixels(found) == boxes
            assert found.areas.tolist() == [each["area"] for each in expected]
            names = [of.cats[each["category_id"]]["name"] for each in expected]
            assert [source.classes[number] for number in found.classes] == names
            assert (
                Path(str(item.path)).name
                == of.imgs[item.args["image_id"]]["file_name"].replace("\\", "/").split("/")[-1]
            )
            assert not split or split in Path(str(item.path)).parent.name.replace("valid", "val")


def test_pictures_of_equal_names_are_those_of_the_files_split(tmp_path: Path) -> None:
    nested(tmp_path)
    source = coco.source(str(tmp_path))
    assert {Path(item.name).parts[1] for item in source.splits["val"]} == {"val2017"}


def test_files_of_other_kinds_and_pictures_that_are_not_listed_are_told(tmp_path: Path) -> None:
    published(tmp_path)
    text = said(coco.source(str(tmp_path)))
    assert "annotations of other kinds are left out: annotations/person_keypoints_train2017.json" in text
    assert "2 pictures that stand in no file of annotations" in text


def test_the_parent_of_all_classes_is_none(tmp_path: Path) -> None:
    roboflow(tmp_path)
    assert "pets is taken for no class" in said(coco.source(str(tmp_path)))


def test_a_file_is_a_data_set(tmp_path: Path) -> None:
    draw(*(tmp_path / f"images/{number}.jpg" for number in range(5)))
    path = coco_file(tmp_path / "annotations/instances_default.json", [f"{number}.jpg" for number in range(5)])
    assert sum(boxes for _, boxes in counts(coco.source(str(path))).values()) == 8


def test_an_unlabelled_test_file_is_left_out(tmp_path: Path) -> None:
    cvat(tmp_path)
    draw(tmp_path / "images/test/0.png")
    coco_file(tmp_path / "annotations/image_info_test.json", ["0.png"], annotations=[])
    coco_file(tmp_path / "annotations/instances_test.json", ["0.png"], annotations=[])
    source = coco.source(str(tmp_path))
    assert set(source.splits) == {"train", "val"}
    assert "instances_test.json holds no annotations and is left out as a test split" in said(source)


def test_splits_may_be_named(tmp_path: Path) -> None:
    draw(*(tmp_path / f"images/{number}.jpg" for number in range(4)))
    coco_file(tmp_path / "one.json", ["0.jpg", "1.jpg"])
    coco_file(tmp_path / "two.json", ["2.jpg", "3.jpg"])
    with pytest.raises(ValueError, match=r"holds 2 files of annotations, one.json, two.json; .*train=one.json"):
        coco.source(str(tmp_path))
    assert counts(coco.source(str(tmp_path), train="one.json", val="two.json")) == {"train": (2, 2), "val": (2, 2)}
    with pytest.raises(ValueError, match=r"val=three.json is none of the files of annotations .*: one.json, two.json"):
        coco.source(str(tmp_path), val="three.json")


def test_ids_of_categories_may_have_gaps_and_start_anywhere(tmp_path: Path) -> None:
    of = [{"id": 90, "name": "zebra"}, {"id": 0, "name": "ant"}, {"id": 7, "name": "bee"}]
    draw(*(tmp_path / f"images/{number}.jpg" for number in range(2)))
    annotations = [annotation((1, 1, 5, 5), 1, 90), annotation((1, 1, 5, 5), 2, 0, image_id=1)]
    coco_file(tmp_path / "a.json", ["0.jpg", "1.jpg"], categories=of, annotations=annotations)
    source = coco.source(str(tmp_path), val_share=0.5)
    assert list(source.classes) == ["ant", "bee", "zebra"]
    assert {item.args["image_id"]: item.args["classes"] for each in source.splits.values() for item in each} == {
        0: [2],
        1: [0],
    }
    assert "train split has the classes" in said(source)


def test_classes_of_other_splits_are_matched_by_name(tmp_path: Path) -> None:
    coco_one(tmp_path)
    val = {"images": [image("2.jpg")], "annotations": [annotation((1, 1, 5, 5), category=5)]}
    coco_file(tmp_path / "val.json", [], categories=categories("dog", "cat", first=5), **val)
    source = coco.source(str(tmp_path))
    assert [source.classes[number] for item in source.splits["val"] for number in item.args["classes"]] == ["dog"]
    coco_file(tmp_path / "val.json", [], categories=categories("Dog", first=5), **val)
    with pytest.raises(
        ValueError, match=r"val.json has annotations of categories that train lacks: Dog; train has cat"
    ):
        coco.source(str(tmp_path))


def test_pictures_without_annotations_are_background(tmp_path: Path) -> None:
    source = coco.source(str(coco_one(tmp_path)))
    bare = next(item for item in source.splits["train"] if item.name.endswith("0.jpg"))
    assert load(coco, bare).corners.shape == (0, 4)


def test_kinds_and_areas(tmp_path: Path) -> None:
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 6, HEIGHT * WIDTH - 6]}
    source = coco.source(
        str(
            coco_one(
                tmp_path,
                annotation((1, 1, 5, 5), 1, iscrowd=1, segmentation=crowd, area=6),
                annotation((2, 1, 5, 5), 2, ignore=1, area=7.25),
                annotation((3, 1, 5, 4), 3),
            )
        )
    )
    found = load(coco, source.splits["train"][0])
    assert found.kinds.tolist() == [CROWD, DIFFICULT, PLAIN]
    assert found.areas.tolist() == [6, 7.25, 20]


def test_boxes_are_made_of_polygons_where_they_are_missing(tmp_path: Path) -> None:
    polygons = [[1, 2, 6, 2, 6, 9], [3, 1, 4, 1, 4, 2]]
    source = coco.source(str(coco_one(tmp_path, annotation([], 1, segmentation=polygons))))
    assert pixels(load(coco, source.splits["train"][0])) == [[1, 1, 6, 9]]


def test_what_is_put_right_is_counted_and_said(tmp_path: Path) -> None:
    boxes = [(1, 1, 0, 5), (30, 20, 20, 5), (35, 20, 5.4, 10.6), (5, 5, 5, 5), (5, 5, 5, 5), (1, 1, 0.3, 0.3)]
    source = coco.source(str(coco_one(tmp_path, *(annotation(box, number) for number, box in enumerate(boxes)))))
    found = load(coco, source.splits["train"][0])
    assert pixels(found) == [[30, 20, 40, 25], [35, 20, 40, 30], [5, 5, 10, 10], [5, 5, 10, 10], [1, 1, 1.3, 1.3]]
    text = said(source)
    assert "1 box is without width or height, such as train.json, annotation 0: it is left out" in text
    assert "1 box is beyond the picture by more than a pixel, such as train.json, annotation 1: it is cut off" in text
    assert "1 box is written twice, such as in images/0.jpg: it is counted twice" in text


def test_annotations_of_no_picture_are_left_out(tmp_path: Path) -> None:
    source = coco.source(str(coco_one(tmp_path, annotation((1, 1, 5, 5), 77, image_id=12))))
    assert "1 annotations in train.json, such as 77, belong to none of its images" in said(source)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"bbox": [1, 1, -5, 5]}, r"train.json, annotation 1: its bbox \(1, 1, -5, 5\) has a negative width"),
    ({"bbox": [1, 1, 5]}, r"train.json, annotation 1: its bbox is \[1, 1, 5\]; it must be four numbers"),
    ({"bbox": ["1", 1, 5, 5]}, r'train.json, annotation 1: its bbox is \["1", 1, 5, 5\]; it must be four numbers'),
    ({"bbox": [1, 1, float("nan"), 5]}, r"annotation 1: the box \(1, 1, nan, 6\) has a side that is no number"),
    (
        {"bbox": [50, 1, 5, 5]},
        r"annotation 1: the box \(50, 1, 55, 6\) lies outside the 40x30 pixels of images/0.jpg",
    ),
    ({"bbox": None}, r"annotation 1: it has neither a bbox nor an outline; add bbox"),
    (
        {"category_id": 9},
        r"annotation 1: there is no category 9; add it to categories, or correct it \(there are 1",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_refused_with_their_annotation(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    coco_one(tmp_path, {**annotation((1, 1, 5, 5)), **change})
    with pytest.raises(ValueError, match=message):
        coco.source(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": [image("0.jpg"), image("9.jpg", 1)]},
            r"train.json, image 1: there is no picture 9.jpg below .*; a",
        ),
        ({"images": [image("0.jpg"), image("1.jpg", 0)]}, r"train.json, image 0: two images have this id; give each"),
        ({"images": [image("0.jpg"), image("0.jpg", 1)]}, r"images/0.jpg stands twice in train, as the images 0 and 1"),
        ({"images": [{"id": 0}]}, r"train.json, image 0: it has no file_name; add it"),
        ({"categories": categories("cat", "cat")}, r"train.json, categories, holds the class cat twice; give each"),
        ({"categories": [*categories("cat"), *categories("dog")]}, r"train.json holds two categories of the id 1"),
        ({"categories": {"a": 1}}, r"train.json is no file of COCO: categories is no list"),
        ({"annotations": []}, r"the train split of .* holds 2 pictures without a single box; add some"),
    ],
)
def test_mistakes_of_a_file_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        coco.source(str(coco_one(tmp_path, **changes)))


def test_many_mistakes_are_one_message(tmp_path: Path) -> None:
    wrong = [annotation((1, 1, -5, 5), number) for number in range(9)]
    with pytest.raises(ValueError, match=r"annotation 0: .*annotation 2: .*There are 6 more such mistakes"):
        coco.source(str(coco_one(tmp_path, *wrong)))


def test_a_file_that_was_cut_off_is_named_with_its_line(tmp_path: Path) -> None:
    coco_one(tmp_path)
    write(tmp_path / "train.json", '{"images": [],', '"categories": [')
    with pytest.raises(ValueError, match=r"train.json, line 3, column 1: it is no JSON .*was it cut off"):
        coco.source(str(tmp_path))


def test_byte_order_marks_are_read(tmp_path: Path) -> None:
    path = coco_one(tmp_path) / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert counts(coco.source(str(tmp_path)))["train"] == (2, 1)


@pytest.mark.parametrize(
    ("boxes", "what"),
    [
        (
            [(20, 15, 38, 28), (1, 1, 20, 20), (30, 5, 39, 29)],
            "look like left, top, right, bottom; COCO's are left,",
        ),
        ([(0.1, 0.1, 0.5, 0.5), (0.2, 0.2, 0.9, 0.5)], "look like shares of their pictures"),
    ],
)
def test_boxes_of_other_conventions_are_refused(boxes: list[tuple[float, ...]], what: str, tmp_path: Path) -> None:
    annotations = [annotation(box, number) for number, box in enumerate(boxes)]
    coco_one(tmp_path, annotations=annotations)
    with pytest.raises(ValueError, match=f"the boxes in train.json {what}.*such as that of the annotation 0"):
        coco.source(str(tmp_path))


def test_folders_of_other_data_are_told(tmp_path: Path) -> None:
    draw(tmp_path / "images/0.jpg")
    with pytest.raises(ValueError, match="holds no annotations of COCO: no JSON file; give --data a folder that holds"):
        coco.source(str(tmp_path))
    write(tmp_path / "labels/0.txt", "0 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match=r"in the form of YOLO .*--dataset yolo"):
        coco.source(str(tmp_path))


# ---- sizes and orientations ----


def read_with(
    folder: Path, orientation: int, stated: tuple[int, int] | None, **args: Any
) -> tuple[list[float], list[str]]:
    """The box (2, 3, 10, 8) of a picture stored as 40 x 30 with an EXIF orientation; and what is noticed."""
    size = {} if stated is None else {"width": stated[0], "height": stated[1]}
    bare = {"width": 0, "height": 0} if stated is None else size
    coco_one(folder, annotation((2, 3, 10, 8)), images=[image("0.jpg", **bare), image("1.jpg", 1)])
    draw(folder / "images/0.jpg", orientation=orientation)
    source: Source = coco.source(str(folder), **args)
    with notices.collected() as noticed:
        (box,) = pixels(load(coco, source.splits["train"][0]))
    return box, sorted(noticed)


def test_boxes_of_the_upright_picture_stay(tmp_path: Path) -> None:
    assert read_with(tmp_path, 6, (HEIGHT, WIDTH)) == ([2, 3, 12, 11], [])


def test_boxes_of_the_stored_picture_are_turned_as_it_is(tmp_path: Path) -> None:
    # by 90 degrees clockwise: the stored left is the upright top, the stored bottom the upright left
    assert read_with(tmp_path, 6, (WIDTH, HEIGHT)) == ([HEIGHT - 11, 2, HEIGHT - 3, 12], ["boxes turned"])
    assert read_with(tmp_path, 8, (WIDTH, HEIGHT)) == ([3, WIDTH - 12, 11, WIDTH - 2], ["boxes turned"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_boxes_are_where_the_turned_pixels_are(orientation: int, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from trainers.decode import decode

    pixels_ = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels_[3:11, 2:12] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    coco_one(tmp_path, annotation((2, 3, 10, 8)), images=[image("0.png"), image("1.jpg", 1)])
    Image.fromarray(pixels_).save(tmp_path / "images/0.png", exif=exif)
    source = coco.source(str(tmp_path), box_orientation="stored")
    item = next(item for item in source.splits["train"] if item.name.endswith("0.png"))
    rows, columns = np.nonzero(decode(str(item.path), 1)[:, :, 0])
    assert pixels(load(coco, item)) == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]


def test_what_sizes_do_not_tell_is_said(tmp_path: Path) -> None:
    assert read_with(tmp_path, 3, (WIDTH, HEIGHT)) == ([2, 3, 12, 11], ["boxes unsure"])
    assert read_with(tmp_path, 6, None) == ([2, 3, 12, 11], ["boxes unsure"])
    assert read_with(tmp_path, 3, (WIDTH, HEIGHT), box_orientation="upright") == ([2, 3, 12, 11], [])
    turned = [WIDTH - 12, HEIGHT - 11, WIDTH - 2, HEIGHT - 3]
    assert read_with(tmp_path, 3, (WIDTH, HEIGHT), box_orientation="stored") == (turned, [])


def test_pictures_that_were_shrunk_keep_their_boxes(tmp_path: Path) -> None:
    coco_one(
        tmp_path, annotation((4, 6, 20, 16), area=90), images=[image("0.jpg", width=80, height=60), image("1.jpg", 1)]
    )
    item = coco.source(str(tmp_path)).splits["train"][0]
    with notices.collected() as noticed:
        found = load(coco, item)
    assert (pixels(found), found.areas.tolist(), sorted(noticed)) == ([[2, 3, 12, 11]], [22.5], ["boxes resized"])


def test_sizes_of_another_picture_are_refused(tmp_path: Path) -> None:
    coco_one(tmp_path, annotation((4, 6, 20, 16)), images=[image("0.jpg", width=80, height=33), image("1.jpg", 1)])
    item = coco.source(str(tmp_path)).splits["train"][0]
    with pytest.raises(BadImage, match=r"0.jpg has 40x30 pixels, and its labels are for 80x33: .*correct the size"):
        load(coco, item)


def test_shrinking_while_decoding_changes_no_box(tmp_path: Path) -> None:
    coco_one(
        tmp_path, annotation((40, 60, 200, 160)), images=[image("0.jpg", width=400, height=300), image("1.jpg", 1)]
    )
    draw(tmp_path / "images/0.jpg", size=(400, 300))
    item = coco.source(str(tmp_path)).splits["train"][0]
    assert pixels(load(coco, item, min_size=[20, 20])) == [[40, 60, 240, 220]]


# ---- scored ----


def test_other_data_is_scored_as_it_is(tmp_path: Path) -> None:
    draw(*(tmp_path / f"images/{number}.jpg" for number in range(3)))
    coco_file(tmp_path / "instances_test.json", ["0.jpg", "1.jpg", "2.jpg"], ("dog", "cow", "cat"))
    source = coco.scored(str(tmp_path), ["cat", "cow", "dog"], channels=3)
    assert counts(source) == {"test": (3, 4)}
    assert [source.classes[number] for item in source.splits["test"] for number in item.args["classes"]] == [
        "dog",
        "cow",
        "cat",
        "dog",
    ]
    path = coco_file(tmp_path / "instances_test.json", ["0.jpg", "1.jpg"])
    assert counts(coco.scored(str(path), ["cat", "dog"])) == {"all": (2, 2)}


def test_items_are_plain_data(tmp_path: Path) -> None:
    source = coco.source(str(coco_one(tmp_path)))
    assert json.loads(json.dumps(source.splits["train"][1].args)) == source.splits["train"][1].args
