"""Boxes in the form of Pascal VOC: layouts are read as xml.etree reads their files, and every mistake has its line."""

from __future__ import annotations

import xml.etree.ElementTree as Et
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.boxed import coco_file, counts, draw, load, pixels, said, write, xml

from trainers.datasets import DIFFICULT, PLAIN, BadImage, Source, object_folder, voc

Found = dict[str, list[Path]]


def labelled(pictures: Path, files: Path, count: int = 3, ending: str = ".jpg") -> list[Path]:
    """Pictures and their XML files: without, with one, two... objects."""
    found = []
    for number in range(count):
        draw(pictures / f"{number:06}{ending}")
        boxes = [("cat" if each % 2 else "dog", 1 + each, 2, 11 + number, 12) for each in range(number)]
        found.append(xml(files / f"{number:06}.xml", *boxes))
    return found


def lists(root: Path, **splits: Sequence[int]) -> None:
    for split, numbers in splits.items():
        write(root / f"ImageSets/Main/{split}.txt", *(f"{number:06}" for number in numbers))
        write(root / f"ImageSets/Main/cat_{split}.txt", *(f"{number:06} -1" for number in numbers))


def devkit(root: Path) -> Found:
    at = root / "VOCdevkit/VOC2012"
    files = labelled(at / "JPEGImages", at / "Annotations", 6)
    draw(*(at / f"SegmentationClass/{number:06}.png" for number in range(6)))
    lists(at, train=[0, 1, 5], val=[2, 4], trainval=[0, 1, 2, 4, 5])
    return {"train": [files[0], files[1], files[5]], "val": [files[2], files[4]]}


def without_lists(root: Path) -> Found:
    return {"": labelled(root / "JPEGImages", root / "Annotations", 6)}


def with_a_test_list(root: Path) -> Found:
    files = labelled(root / "JPEGImages", root / "Annotations", 6)
    lists(root, train=[0, 1, 2], val=[3, 4], test=[5])
    return {"train": files[:3], "val": files[3:5], "test": files[5:]}


def test_alone(root: Path) -> Found:
    files = labelled(root / "JPEGImages", root / "Annotations", 5)
    draw(root / "JPEGImages/000009.jpg")
    lists(root, train=[0, 1, 2], val=[3, 4], test=[9])
    return {"train": files[:3], "val": files[3:5]}


def roboflow(root: Path) -> Found:
    write(root / "README.roboflow.txt", "-")
    splits = {"train": "train", "val": "valid", "test": "test"}
    return {split: labelled(root / name, root / name) for split, name in splits.items()}


def kaggle(root: Path) -> Found:
    return {"": labelled(root / "images", root / "annotations", 6, ".png")}


def pets(root: Path) -> Found:
    found = labelled(root / "images", root / "annotations/xmls", 6)
    draw(*(root / f"annotations/trimaps/{number:06}.png" for number in range(6)))
    return {"": found}


def split_on_both_sides(root: Path) -> Found:
    return {split: labelled(root / f"images/{split}", root / f"annotations/{split}") for split in ("train", "val")}


def split_above(root: Path) -> Found:
    return {split: labelled(root / f"{split}/images", root / f"{split}/annotations") for split in ("train", "val")}


def label_img(root: Path) -> Found:
    return {"": labelled(root, root, 6, ".JPG")}


def cvat(root: Path) -> Found:
    files = labelled(root / "JPEGImages", root / "Annotations", 6)
    write(root / "ImageSets/Main/default.txt", *(f"{number:06}" for number in range(6)))
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions", "cat:1,2,3::")
    return {"": files}


def unpacked_into_a_folder(root: Path) -> Found:
    return split_on_both_sides(root / "BCCD_Dataset-master")


LAYOUTS = [
    unpacked_into_a_folder,
    devkit,
    without_lists,
    with_a_test_list,
    test_alone,
    roboflow,
    kaggle,
    pets,
    split_on_both_sides,
    split_above,
    label_img,
    cvat,
]
test_alone.__test__ = False  # type: ignore[attr-defined]


def parse(path: Path) -> list[tuple[str, list[float]]]:
    found = []
    for each in Et.parse(path).getroot().iter("object"):
        left, top, right, bottom = (
            float(each.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        found.append((each.findtext("name", ""), [left - 1, top - 1, right, bottom]))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_what_a_plain_parser_finds(layout: Callable[[Path], Found], tmp_path: Path) -> None:
    expected = layout(tmp_path)
    source = voc.source(str(tmp_path))
    assert list(source.classes) == ["cat", "dog"]
    found = {split: list(items) for split, items in source.splits.items()}
    if "" in expected:
        assert {split: len(items) for split, items in found.items()} == {"train": 5, "val": 1}
        found = {"": [item for items in found.values() for item in items]}
    assert found.keys() == expected.keys()
    for split, files in expected.items():
        assert sorted(Path(item.name).stem for item in found[split]) == sorted(path.stem for path in files)
        by_stem = {path.stem: parse(path) for path in files}
        for item in found[split]:
            of = load(voc, item)
            names = [source.classes[number] for number in of.classes]
            assert list(zip(names, pixels(of), strict=True)) == by_stem[Path(item.name).stem]


def one(root: Path, *boxes: Sequence[Any], **options: Any) -> Source:
    """A set whose first picture has these boxes."""
    labelled(root / "images/train", root / "annotations/train")
    labelled(root / "images/val", root / "annotations/val")
    xml(root / "annotations/train/000000.xml", *boxes, **options)
    return voc.source(str(root))


def first(source: Source) -> Any:
    return load(voc, next(item for item in source.splits["train"] if item.name == "images/train/000000.jpg"))


def test_corners_count_from_1(tmp_path: Path) -> None:
    found = first(one(tmp_path, ("cat", 1, 1, 1, 1), ("dog", 1, 1, 40, 30, 1), ("cat", 2.5, 3.5, 7.25, 8)))
    assert pixels(found) == [[0, 0, 1, 1], [0, 0, 40, 30], [1.5, 2.5, 7.25, 8]]
    assert found.kinds.tolist() == [PLAIN, DIFFICULT, PLAIN]
    assert found.areas.tolist() == pytest.approx([1, 1200, 5.75 * 5.5])


def test_any_0_tells_that_corners_count_from_0(tmp_path: Path) -> None:
    source = one(tmp_path, ("cat", 0, 5, 10, 12), ("dog", 3, 4, 10, 12))
    assert pixels(first(source)) == [[0, 5, 10, 12], [3, 4, 10, 12]]
    assert "corners are taken to count from 0, as annotations/train/000000.xml, line 2 has (0, 5, 10, 12)" in said(
        source
    )
    source = voc.source(str(tmp_path), zero_based=False)
    assert pixels(first(source)) == [[0, 4, 10, 12], [2, 3, 10, 12]]
    assert "count from 0" not in said(source)


def test_parts_of_objects_are_no_objects(tmp_path: Path) -> None:
    one(tmp_path)
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    part = f"<part><name>head</name>{box.replace('9', '4')}</part>"
    text = f"<annotation><object>{part}<name> cat </name>{box}</object></annotation>"
    write(tmp_path / "annotations/train/000000.xml", text)
    found = first(voc.source(str(tmp_path)))
    assert pixels(found) == [[1, 1, 9, 9]]


def test_polygons_have_boxes(tmp_path: Path) -> None:
    one(tmp_path)
    points = "<polygon><x1>3</x1><y1>4</y1><x2>9</x2><y2>4</y2><x3>9</x3><y3>8</y3></polygon>"
    write(
        tmp_path / "annotations/train/000000.xml", f"<annotation><object><name>cat</name>{points}</object></annotation>"
    )
    assert pixels(first(voc.source(str(tmp_path)))) == [[2, 3, 9, 8]]


@pytest.mark.parametrize(
    ("start", "encoding"),
    [
        ('<?xml version="1.0" encoding="utf-8"?>', "utf-8-sig"),
        ('<?xml version="1.0" encoding="GB2312"?>', "gb2312"),
        ('<?xml version="1.0" encoding="utf-16"?>', "utf-16"),
        ("", "utf-8"),
    ],
)
def test_encodings_are_read(start: str, encoding: str, tmp_path: Path) -> None:
    one(tmp_path)
    path = tmp_path / "annotations/train/000000.xml"
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    text = f"{start}\r\n<annotation>\r\n<object><name>猫</name>{box}</object></annotation>"
    path.write_bytes(text.encode(encoding))
    assert "猫" in voc.source(str(tmp_path)).classes


def test_a_picture_is_that_of_the_files_name_before_that_of_filename(tmp_path: Path) -> None:
    source = one(tmp_path, ("cat", 1, 1, 5, 5), filename="000002.jpg")
    assert len(first(source).classes) == 1
    (tmp_path / "annotations/train/000000.xml").rename(tmp_path / "annotations/train/other.xml")
    xml(tmp_path / "annotations/train/other.xml", ("cat", 1, 1, 5, 5), filename="000000.jpg")
    assert len(first(voc.source(str(tmp_path))).classes) == 1


def test_pictures_without_a_file_are_left_out_and_files_without_a_picture_too(tmp_path: Path) -> None:
    one(tmp_path)
    draw(tmp_path / "images/train/000009.jpg")
    xml(tmp_path / "annotations/train/lost.xml", ("cat", 1, 1, 5, 5), filename="lost.jpg")
    write(tmp_path / "annotations/notes.xml", "<notes/>")
    source = voc.source(str(tmp_path))
    assert counts(source)["train"] == (3, 3)
    assert "1 of 4 pictures have no XML file, such as images/train/000009.jpg: they are left out" in said(source)
    assert "1 XML files have no picture and are left out: annotations/train/lost.xml" in said(source)
    assert "XML files that are no annotations are left out: annotations/notes.xml" in said(source)


AT = r"annotations/train/000000.xml, line 3: "
MISTAKES: list[tuple[Sequence[Any], str]] = [
    (("cat", 9, 1, 5, 5), AT + r"the box \(9, 1, 5, 5\) ends before it begins; correct its corners, or remove it"),
    (("cat", "x", 1, 5, 5), AT + r"xmin is 'x'; it must be a number"),
    (("cat", "", 1, 5, 5), AT + r"xmin is ''; it must be a number"),
    (
        ("cat", 60, 1, 70, 5),
        r"000000.xml, line 2: the box \(59, 0, 70, 5\) lies outside the 40x30 pixels of images/train/",
    ),
    (("cat", 1, 1, "nan", 5), r"000000.xml, line 2: the box \(0, 0, nan, 5\) has a side that is no number"),
    (("", 1, 1, 5, 5), r"000000.xml, line 2: the object has no name; add <name>"),
    (("cow", 1, 1, 5, 5), r"no such: it is one of train"),
]


@pytest.mark.parametrize(("box", "message"), MISTAKES[:-1])
def test_mistakes_are_refused_with_file_and_line(box: Sequence[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        one(tmp_path, box)


def test_classes_that_train_lacks_are_refused_with_file_and_line(tmp_path: Path) -> None:
    one(tmp_path)
    xml(tmp_path / "annotations/val/000000.xml", ("Cat", 1, 1, 5, 5))
    with pytest.raises(
        ValueError, match=r"annotations/val/000000.xml, line 2: train has no object of the class Cat, w"
    ):
        voc.source(str(tmp_path))


def test_names_that_differ_by_capitals_are_told(tmp_path: Path) -> None:
    assert "classes of their own: Cat and cat" in said(one(tmp_path, ("Cat", 1, 1, 5, 5)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ["<annotation>", "<object>", "</annotation>"],
            r"000000.xml, line 3: it is no XML: mismatched tag; correct or r",
        ),
        (["<annotation><object><name>a</name></object></annotation>"], r"line 1: the object has no <bndbox>; add one"),
        (
            ["<annotation>", "<object><name>a</name><robndbox/></object></annotation>"],
            r"line 2: the object has a turned box",
        ),
    ],
)
def test_files_of_another_form_are_refused(text: list[str], message: str, tmp_path: Path) -> None:
    one(tmp_path)
    write(tmp_path / "annotations/train/000000.xml", *text)
    with pytest.raises(ValueError, match=message):
        voc.source(str(tmp_path))


def test_shares_are_refused(tmp_path: Path) -> None:
    draw(*(tmp_path / f"{number}.jpg" for number in range(5)))
    for number in range(5):
        xml(tmp_path / f"{number}.xml", ("cat", 0.1, 0.1, 0.5, 0.5))
    with pytest.raises(
        ValueError, match=r"0.xml, line 2: the box .* as all others, is in shares of its picture; VOC's"
    ):
        voc.source(str(tmp_path))


def test_lines_of_lists_without_picture_or_file_are_refused(tmp_path: Path) -> None:
    files = with_a_test_list(tmp_path)["train"]
    files[1].unlink()
    with pytest.raises(ValueError, match=r"ImageSets/Main/train.txt, line 2: JPEGImages/000001.jpg has no XML file"):
        voc.source(str(tmp_path))
    lists(tmp_path, train=[0, 2, 77])
    with pytest.raises(ValueError, match=r"ImageSets/Main/train.txt, line 3: there is no picture 000077 below"):
        voc.source(str(tmp_path))


def test_lists_and_folders_may_be_named(tmp_path: Path) -> None:
    with_a_test_list(tmp_path)
    assert counts(voc.source(str(tmp_path), train="val", val="train")) == {"train": (2, 7), "val": (3, 3)}


def test_several_years_are_asked_about(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        labelled(tmp_path / f"{year}/JPEGImages", tmp_path / f"{year}/Annotations", 6)
    with pytest.raises(
        ValueError, match=r"holds VOC2007, VOC2012, data sets of their own; give one of them: --data .*07"
    ):
        voc.source(str(tmp_path))


def test_sizes_that_programs_did_not_know_are_those_of_the_file(tmp_path: Path) -> None:
    assert pixels(first(one(tmp_path, ("cat", 1, 1, 60, 5), size=(0, 0)))) == [[0, 0, 40, 5]]
    assert pixels(first(one(tmp_path, ("cat", 1, 1, 60, 5), size=None))) == [[0, 0, 40, 5]]


def test_sizes_of_another_picture_are_refused(tmp_path: Path) -> None:
    source = one(tmp_path, ("cat", 1, 1, 5, 5), size=(30, 40))
    with pytest.raises(BadImage, match=r"000000.jpg has 40x30 pixels, and its labels are for 30x40"):
        first(source)


def test_other_data_is_scored_as_it_is(tmp_path: Path) -> None:
    labelled(tmp_path / "set/test", tmp_path / "set/test")
    source = voc.scored(str(tmp_path / "set"), ["cat", "cow", "dog"], channels=3)
    assert (counts(source), list(source.classes)) == ({"test": (3, 3)}, ["cat", "dog"])


# ---- one folder, whatever its form ----


def test_the_form_of_a_folder_shows(tmp_path: Path) -> None:
    labelled(tmp_path / "voc/images", tmp_path / "voc/annotations", 6)
    draw(*(tmp_path / f"coco/images/{number}.jpg" for number in range(6)))
    coco_file(tmp_path / "coco/all.json", [f"{number}.jpg" for number in range(6)])
    for number in range(6):
        draw(tmp_path / f"yolo/{number}.jpg")
        write(tmp_path / f"yolo/{number}.txt", "0 0.5 0.5 0.2 0.2")
    for form in ("coco", "yolo", "voc"):
        assert object_folder.form_of(str(tmp_path / form)) == form
        source = object_folder.source(str(tmp_path / form))
        assert source.rows == {"train": 5, "val": 1}
        assert len(load(object_folder, source.splits["train"][1]).classes) > 0
        scored = object_folder.scored(str(tmp_path / form), source.classes)
        assert scored.rows == {"all": 6}
    assert object_folder.form_of(str(tmp_path / "coco/all.json")) == "coco"


def test_two_forms_are_asked_about_and_others_named(tmp_path: Path) -> None:
    labelled(tmp_path / "images/train", tmp_path / "annotations", 6)
    write(tmp_path / "labels/train/000000.txt", "0 0.5 0.5 0.2 0.2")
    with pytest.raises(
        ValueError, match=r"more than one form: yolo \(labels/train/000000.txt\) and voc .*--dataset yolo or"
    ):
        object_folder.source(str(tmp_path))
    draw(tmp_path / "other/cat/0.jpg")
    with pytest.raises(ValueError, match="holds no boxes in a form that is read; give --data a folder that holds"):
        object_folder.source(str(tmp_path / "other"))
    write(tmp_path / "other/cat/0.json", '{"shapes": []}')
    with pytest.raises(ValueError, match=r"in the form of LabelMe .*export it in the form of COCO"):
        object_folder.source(str(tmp_path / "other"))
