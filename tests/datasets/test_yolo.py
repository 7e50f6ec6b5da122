"""Boxes in the form of YOLO: layouts are read as a plain parser reads them, and every mistake has its file and line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.boxed import BOX, HEIGHT, WIDTH, counts, draw, load, pixels, said, write

from trainers import notices
from trainers.datasets import Source, object_folder, yolo

YAML = ("train: images/train", "val: images/val", "names: [cat, dog]")


def labelled(pictures: Path, labels: Path, count: int = 3, ending: str = ".jpg") -> dict[Path, Path]:
    """Pictures and their labels: none, one, two... objects, and an empty file for the first."""
    found = {}
    for number in range(count):
        picture = pictures / f"{number}{ending}"
        draw(picture)
        found[picture] = write(
            labels / f"{number}.txt", *(f"{each % 2} 0.5 0.5 0.{each + 1} 0.2" for each in range(number))
        )
    return found


def coco128(root: Path) -> dict[str, dict[Path, Path]]:
    found = labelled(root / "images/train2017", root / "labels/train2017", 4)
    lines = ["path: ../datasets/coco128", "train: images/train2017", "val: images/train2017", "test:  # optional"]
    write(root / "coco128.yaml", *lines, "names:", "  0: person", "  1: no", "download: https://example.org/x.zip")
    return {"train": found, "val": found}


def roboflow(root: Path) -> dict[str, dict[Path, Path]]:
    lines = ["train: ../train/images", "val: ../valid/images", "test: ../test/images", "", "nc: 2", "names: ['a', 'b']"]
    write(root / "data.yaml", *lines, "roboflow:", "  version: 3")
    write(root / "README.roboflow.txt", "-")
    splits = {"train": "train", "val": "valid", "test": "test"}
    return {split: labelled(root / f"{name}/images", root / f"{name}/labels") for split, name in splits.items()}


def without_yaml(root: Path) -> dict[str, dict[Path, Path]]:
    found = roboflow(root)
    (root / "data.yaml").unlink()
    return found


def ultralytics(root: Path) -> dict[str, dict[Path, Path]]:
    write(root / "data.yaml", *YAML)
    return {split: labelled(root / f"images/{split}", root / f"labels/{split}") for split in ("train", "val")}


def from_elsewhere(root: Path) -> dict[str, dict[Path, Path]]:
    found = ultralytics(root)
    lines = ["path: /content/datasets/pets", "train: images/train", "val: images/val", "test: images/test"]
    write(root / "data.yaml", *lines, "names: {0: cat, 1: dog}")
    return found


def absolute_from_elsewhere(root: Path) -> dict[str, dict[Path, Path]]:
    found = ultralytics(root)
    lines = [r"train: C:\me\pets\images\train", r"val: C:\me\pets\images\val", "nc: 2", "names:", "- cat", "- dog"]
    write(root / "data.yaml", *lines, end="\r\n")
    return found


def several_folders(root: Path) -> dict[str, dict[Path, Path]]:
    parts = [labelled(root / f"images/{part}", root / f"labels/{part}") for part in ("a", "b", "c")]
    write(root / "data.yaml", "train: [images/a, images/b]", "val: images/c", "names: [cat, dog]")
    return {"train": {**parts[0], **parts[1]}, "val": parts[2]}


def list_files(root: Path) -> dict[str, dict[Path, Path]]:
    parts = {split: labelled(root / f"images/{split}", root / f"labels/{split}") for split in ("train", "val")}
    for split, pictures in parts.items():
        write(root / f"{split}.txt", *(f"./images/{split}/{picture.name}" for picture in pictures), "")
    write(root / "data.yaml", "train: train.txt", "val: val.txt", "names: [cat, dog]")
    return parts


def darknet(root: Path) -> dict[str, dict[Path, Path]]:
    parts = {split: labelled(root / f"obj_{split}_data", root / f"obj_{split}_data") for split in ("train", "valid")}
    for split, pictures in parts.items():
        write(root / f"{split}.txt", *(f"data/obj_{split}_data/{picture.name}" for picture in pictures))
    lines = ["classes = 2", "train = data/train.txt", "valid = data/valid.txt", "names = data/obj.names"]
    write(root / "obj.data", *lines, "backup = backup/")
    write(root / "obj.names", "cat", "dog")
    return {"train": parts["train"], "val": parts["valid"]}


def darknet_around_its_data(root: Path) -> dict[str, dict[Path, Path]]:
    """As CVAT and Darknet's own guide have it: the only folder is not the data set."""
    found = {split: labelled(root / f"data/obj/{split}", root / f"data/obj/{split}") for split in ("train", "val")}
    for split, pictures in found.items():
        write(root / f"data/{split}.txt", *(f"data/obj/{split}/{picture.name}" for picture in pictures))
    write(root / "data/obj.data", "classes = 2", "train = data/train.txt", "valid = data/val.txt", "names = obj.names")
    write(root / "data/obj.names", "cat", "dog")
    return found


def names_beside_the_only_folder(root: Path) -> dict[str, dict[Path, Path]]:
    write(root / "classes.txt", "cat", "dog")
    at = root / "field 1"
    return {split: labelled(at / f"{split}/images", at / f"{split}/labels") for split in ("train", "val")}


def upper_case(root: Path) -> dict[str, dict[Path, Path]]:
    found = ultralytics(root)
    for pictures in found.values():
        for picture, text in list(pictures.items()):
            del pictures[picture]
            pictures[picture.rename(picture.with_suffix(".JPG"))] = text.rename(text.with_suffix(".TXT"))
    return found


def below_another_folder_images(root: Path) -> dict[str, dict[Path, Path]]:
    at = root / "images/project"
    write(root / "data.yaml", "path: images/project", *YAML)
    labelled(root / "decoy", root / "labels/project/images/train")  # where a swap of the first "images" leads
    return {split: labelled(at / f"images/{split}", at / f"labels/{split}") for split in ("train", "val")}


def linked(root: Path) -> dict[str, dict[Path, Path]]:
    found = ultralytics(root)
    (root / "images").rename(root.parent / f"{root.name} elsewhere")
    (root / "images").symlink_to(root.parent / f"{root.name} elsewhere")
    return found


def unpacked_into_a_folder(root: Path) -> dict[str, dict[Path, Path]]:
    write(root / "about.txt", "-")
    return roboflow(root / "Pets.v1i.yolov8")


def of_other_names(root: Path) -> dict[str, dict[Path, Path]]:
    write(root / "annotations/classes.txt", "cat", "dog")
    return {split: labelled(root / f"imgs/{split}", root / f"annotations/{split}") for split in ("train", "val")}


LAYOUTS = [
    unpacked_into_a_folder,
    of_other_names,
    coco128,
    roboflow,
    without_yaml,
    ultralytics,
    from_elsewhere,
    absolute_from_elsewhere,
    several_folders,
    list_files,
    darknet,
    darknet_around_its_data,
    names_beside_the_only_folder,
    upper_case,
    below_another_folder_images,
    linked,
]


def parse(text: Path) -> list[tuple[int, list[float]]]:
    """Class and corners in pixels, as plainly as can be."""
    found = []
    for line in text.read_text().splitlines():
        number, x, y, width, height = map(float, line.split())
        left, top = (x - width / 2) * WIDTH, (y - height / 2) * HEIGHT
        corners = [left, top, left + width * WIDTH, top + height * HEIGHT]
        found.append((int(number), [round(side, 6) for side in corners]))
    return found


def held(source: Source) -> dict[str, dict[str, list[tuple[int, list[float]]]]]:
    return {
        split: {
            str(item.path): list(zip((of := load(yolo, item)).classes.tolist(), pixels(of), strict=True))
            for item in items
        }
        for split, items in source.splits.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_what_a_plain_parser_finds(layout: Callable[[Path], Any], tmp_path: Path) -> None:
    expected = layout(tmp_path / "set")
    source = yolo.source(str(tmp_path / "set"))
    assert held(source) == {
        split: {str(picture): parse(text) for picture, text in of.items()} for split, of in expected.items()
    }
    assert len(source.classes) == 2


def test_a_set_without_splits_is_split_by_share(tmp_path: Path) -> None:
    for folder in ("images", "."):
        root = tmp_path / folder.strip(".") / "set"
        labelled(root / folder, root / folder.replace("images", "labels"), 10)
        write(root / "classes.txt", "\ufeffcat", "dog", end="\r\n")
        source = yolo.source(str(root), test_share=0.1)
        assert {split: len(items) for split, items in source.splits.items()} == {"train": 7, "val": 2, "test": 1}
        assert sum(boxes for _, boxes in counts(source).values()) == 45
        assert list(source.classes) == ["cat", "dog"]
        assert counts(yolo.source(str(root), test_share=0.1)) == counts(source)


def test_words_of_yaml_are_names(tmp_path: Path) -> None:
    coco128(tmp_path)
    assert list(yolo.source(str(tmp_path)).classes) == ["person", "no"]
    assert list(yolo.source(str(tmp_path / "coco128.yaml")).classes) == ["person", "no"]


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    coco128(tmp_path)
    text = said(yolo.source(str(tmp_path)))
    assert "coco128.yaml lead elsewhere; they are taken to be those in" in text
    assert "4 of 4 pictures of val are pictures of train too" in text


def test_a_split_without_a_val_gives_a_share(tmp_path: Path) -> None:
    labelled(tmp_path / "images/train", tmp_path / "labels/train", 10)
    write(tmp_path / "data.yaml", "train: images/train", "names: [cat, dog]")
    assert {split: len(items) for split, items in yolo.source(str(tmp_path)).splits.items()} == {"train": 8, "val": 2}


def test_test_splits_without_labels_or_pictures_are_left_out(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    draw(tmp_path / "images/test/0.jpg")
    write(tmp_path / "data.yaml", *YAML, "test: images/test")
    source = yolo.source(str(tmp_path))
    assert set(source.splits) == {"train", "val"}
    assert "none of 1 pictures of test has a file of labels: it is left out as a test split" in said(source)
    write(tmp_path / "data.yaml", *YAML, "test: images/lost")
    assert "data.yaml: test: images/lost is not there, and is left out" in said(yolo.source(str(tmp_path)))


def lines(root: Path, *text: str, names: str = "names: [cat, dog]", more: str = "") -> Source:
    """A set whose first picture has these lines."""
    ultralytics(root)
    write(root / "data.yaml", *YAML[:2], names, more)
    write(root / "labels/train/0.txt", *text)
    return yolo.source(str(root))


def first(source: Source) -> tuple[list[int], list[list[float]]]:
    item = next(item for item in source.splits["train"] if item.name == "images/train/0.jpg")
    found = load(yolo, item)
    return found.classes.tolist(), pixels(found)


@pytest.mark.parametrize(
    ("text", "classes", "boxes"),
    [
        ([BOX], [0], [[15, 12, 25, 18]]),
        (["\ufeff1.0\t0.5  0.5 0.25 0.2\r", "", "  "], [1], [[15, 12, 25, 18]]),
        (["1 0.25 0.5 0.5 0.1 0.75 0.2"], [1], [[10, 3, 30, 15]]),
        ([BOX, "1 0.1 0.1 0.2 0.2 0.3 0.4 0.1 0.5"], [0, 1], [[15, 12, 25, 18], [4, 3, 12, 15]]),
        (["0 0.05 0.5 0.2 0.2"], [0], [[0, 12, 6, 18]]),  # reaches beyond, as all do that are cut off
        (["0 1.01 0.5 0.2 0.2"], [0], [[36.4, 12, 40, 18]]),  # less than a pixel
        (["0 0.5 0.5 0.01 0.01"], [0], [[19.8, 14.85, 20.2, 15.15]]),
        ([BOX, BOX, "1 0.5 0.5 0.25 0.2"], [0, 1], [[15, 12, 25, 18]] * 2),
        (["0 0.5 0.5 0 0.2"], [], []),
    ],
)
def test_lines_are_read(text: list[str], classes: list[int], boxes: list[list[float]], tmp_path: Path) -> None:
    assert first(lines(tmp_path, *text)) == (classes, boxes)


def test_what_is_put_right_is_said(tmp_path: Path) -> None:
    text = said(lines(tmp_path, BOX, BOX, "0 0.05 0.5 0.2 0.2", "0 0.5 0.5 0 0.2"))
    assert "1 box is written twice, such as in labels/train/0.txt: it is taken once" in text
    assert "beyond the picture by more than a pixel, such as labels/train/0.txt, line 3: it is cut off there" in text
    assert "1 box is without width or height, such as labels/train/0.txt, line 4: it is left out" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "0 1.2 0.5 0.2 0.2",
            r"the numbers \(1.2, 0.5, 0.2, 0.2\) reach beyond the picture; x, y, width and height are",
        ),
        ("0 0.5 -0.2 0.2 0.2", r"the numbers \(0.5, -0.2, 0.2, 0.2\) reach beyond the picture"),
        ("0 20 15 10 6", r"the numbers \(20, 15, 10, 6\) look like pixels; .* 0 to 1: correct or remove the line"),
        ("0 0.5 0.5 -0.2 0.2", r"has a negative width or height; correct or remove it"),
        (
            "2 0.5 0.5 0.2 0.2",
            r"the class 2 has no name, as there are 2, 0 to 1 \(cat, dog\); correct the line, or add",
        ),
        ("-1 0.5 0.5 0.2 0.2", r"the class is -1; it must be a whole number"),
        ("0.5 0.5 0.5 0.2 0.2", r"the class is 0.5; it must be a whole number"),
        ("cat 0.5 0.5 0.2 0.2", r"'cat' is no number; a line is: class x y width height"),
        ("0,0.5,0.5,0.2,0.2", r"is no number \(separate numbers by spaces\)"),
        ("0 nan 0.5 0.2 0.2", r"holds a number that is none; correct or remove the line"),
        ("0 0.5 0.5 0.2", r"it has 4 numbers; a box has five, class x y width height, a polygon"),
        ("0 0.5 0.5 0.2 0.2 0.9", r"it has 6 numbers; is the last a confidence\? Labels have five"),
        (
            "0 0.5 0.5 0.2 0.2" + " 0.5 0.5 2" * 17,
            r"it has 56 numbers; .*or keypoints, which are not trained: keep the f",
        ),
        ("0 0.3 0.3 0.1", r"labels/train/0.txt, line 2: it has 4 numbers"),
    ],
)
def test_mistakes_are_refused_with_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"labels/train/0.txt, line 2: .*{message.rpartition('line 2: ')[2]}"):
        lines(tmp_path, BOX, line)


def test_keypoints_are_known_by_their_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0.txt, line 1: it has 13 numbers, a box and keypoints as kpt_shape says"):
        lines(tmp_path, "0 0.5 0.5 0.2 0.2" + " 0.5 0.5" * 4, more="kpt_shape: [4, 2]")


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        ("names: [cat, dog]", "nc: 3", r"data.yaml: nc is 3, and names lists 2, cat, dog; correct one of them"),
        ("names: {0: cat, 2: dog}", "", r"data.yaml, line 3: names has 2 classes, and none of the number 1"),
        ("names: {0: cat, 0: dog}", "", r"data.yaml, line 3: the class 0 has two names"),
        ("names: [cat, cat]", "", r"data.yaml, line 3 holds the class cat twice; give each class a name of its own"),
        ("names: cat", "", r"data.yaml, line 3: names must be a list of names, or numbers with names"),
        ("names: [cat, dog]", "nc: two", r"data.yaml, line 4: nc is 'two'; it must be a number"),
        ("names: [cat, dog", "", r"data.yaml, line \d: it is no YAML"),
    ],
)
def test_mistakes_of_data_yaml_are_refused(names: str, more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        lines(tmp_path, BOX, names=names, more=more)


def test_paths_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    write(tmp_path / "data.yaml", "train: images/train", "val: images/lost", "names: [cat, dog]")
    with pytest.raises(
        ValueError, match=r"val: images/lost is not there \(.*images/lost\); correct it.* or remove that line"
    ):
        yolo.source(str(tmp_path))
    write(tmp_path / "data.yaml", "train: train.txt", "val: images/val", "names: [cat, dog]")
    write(tmp_path / "train.txt", "images/train/0.jpg", "images/train/9.jpg")
    with pytest.raises(
        ValueError, match=r"train.txt, line 2: there is no picture images/train/9.jpg; correct the list"
    ):
        yolo.source(str(tmp_path))
    write(tmp_path / "data.yaml", "train: /x/images", "val: /y/images", "names: [cat, dog]")
    with pytest.raises(ValueError, match=r"train and val are both taken to be .*images; correct their paths"):
        yolo.source(str(tmp_path))


def test_a_split_without_any_labels_is_refused(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    os.rename(tmp_path / "labels/train", tmp_path / "labels/training")
    with pytest.raises(
        ValueError, match=r"none of 3 pictures of train .* such as .*labels/train/0.txt for images/train"
    ):
        yolo.source(str(tmp_path))


def test_labels_without_a_picture_are_told(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    write(tmp_path / "labels/train/9.txt", BOX)
    write(tmp_path / "labels/classes.txt", "cat", "dog")
    assert "1 files of labels have no picture and are left out: labels/train/9.txt" in said(yolo.source(str(tmp_path)))


def test_pictures_without_labels_are_background_and_told(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    draw(tmp_path / "images/train/9.jpg")
    source = yolo.source(str(tmp_path))
    assert "1 of 4 pictures of train have no file of labels, such as images/train/9.jpg" in said(source)
    assert counts(source)["train"] == (4, 3)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    draw(tmp_path / "images/train/1.png")
    with pytest.raises(
        ValueError, match=r"labels/train/1.txt may be the labels of images/train/1.jpg or of images/tra"
    ):
        yolo.source(str(tmp_path))


def test_names_that_files_give_differently_are_refused(tmp_path: Path) -> None:
    without_yaml(tmp_path)
    write(tmp_path / "train/_darknet.labels", "cat", "dog")
    write(tmp_path / "valid/_darknet.labels", "dog", "cat")
    with pytest.raises(ValueError, match=r"valid/_darknet.labels name other classes, .*give --dataset-args classes="):
        yolo.source(str(tmp_path))
    assert list(yolo.source(str(tmp_path), classes=["a", "b"]).classes) == ["a", "b"]


def test_classes_without_names_are_numbered_and_told(tmp_path: Path) -> None:
    without_yaml(tmp_path)
    source = yolo.source(str(tmp_path))
    assert list(source.classes) == ["class0", "class1"]
    assert "no file names the classes" in said(source)


def test_folders_of_splits_may_be_named(tmp_path: Path) -> None:
    for part in ("one", "two"):
        labelled(tmp_path / f"images/{part}", tmp_path / f"labels/{part}")
    source = yolo.source(str(tmp_path), train="images/one", val="images/two")
    assert {split: {item.name.split("/")[1] for item in items} for split, items in source.splits.items()} == {
        "train": {"one"},
        "val": {"two"},
    }


def test_names_with_accents_belong_together_in_either_form(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    draw(tmp_path / "images/train/caf\u00e9.jpg")
    write(tmp_path / "labels/train/cafe\u0301.txt", BOX)
    assert counts(yolo.source(str(tmp_path)))["train"] == (4, 4)


def test_labels_of_other_forms_are_refused_with_their_line(tmp_path: Path) -> None:
    for form, line in (("kitti", "Car 0.00 0 -1.58 587.01 173.33"), ("visdrone", "684,8,273,116,0,0,0,0")):
        draw(tmp_path / form / "images/0.jpg")
        write(tmp_path / form / "annotations/0.txt", line)
        with pytest.raises(
            ValueError, match=r"annotations/0.txt, line 1: '.*' is no number.* a line is: class x y width"
        ):
            object_folder.source(str(tmp_path / form))


def test_orientations_are_said(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    write(tmp_path / "labels/train/0.txt", "0 0.25 0.5 0.5 0.2")
    draw(tmp_path / "images/train/0.jpg", orientation=6)
    for args, box, kinds in (
        ({}, [0, 16, 15, 24], ["boxes unsure"]),
        ({"box_orientation": "stored"}, [12, 0, 18, 20], []),
    ):
        source = yolo.source(str(tmp_path), **args)
        with notices.collected() as noticed:
            assert (first(source)[1], sorted(noticed)) == ([box], kinds)


def test_areas_are_in_pixels_of_the_picture(tmp_path: Path) -> None:
    item = lines(tmp_path, BOX).splits["train"][0]
    assert load(yolo, item).areas.tolist() == pytest.approx([60])
    assert load(yolo, item, min_size=[4, 4]).areas.tolist() == pytest.approx([60])


def test_other_data_is_scored_by_the_runs_names(tmp_path: Path) -> None:
    labelled(tmp_path / "images", tmp_path / "labels")
    source = yolo.scored(str(tmp_path), ["cat", "dog"], channels=3)
    assert counts(source) == {"all": (3, 3)}
    assert [source.classes[number] for item in source.splits["all"] for number in item.args["classes"]] == [
        "cat",
        "cat",
        "dog",
    ]
