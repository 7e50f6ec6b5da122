"""Masks of objects: as COCO's own tools have them, from polygons and run lengths, and every mistake has its place."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.boxed import HEIGHT, WIDTH, annotation, coco_one, draw, load, pixels, said, write
from PIL import Image, ImageOps
from pycocotools import mask as theirs
from pycocotools.coco import COCO

from trainers.box_table import KIND
from trainers.data import targets
from trainers.datasets import CROWD, PLAIN, Item, Objects, Source, coco, object_folder, voc, yolo
from trainers.instances import LAYERS, masks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools with NumPy 2
SQUARE = [10, 5, 22, 5, 22, 20, 10, 20]
TRIANGLE = [14.3, 8.1, 33.7, 11.9, 19.05, 27.3]


def runs(mask: npt.NDArray[Any], *, compressed: bool = False) -> dict[str, Any]:
    packed = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": packed["size"], "counts": packed["counts"].decode()}
    flat = mask.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0, append=flat.size).tolist()}


def blot() -> npt.NDArray[Any]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    inside: npt.NDArray[Any] = ((x - 20) ** 2 + (y - 14) ** 2 < 90) & ((x + y) % 5 > 0)
    return inside


def around(mask: npt.NDArray[Any]) -> list[int]:
    down, across = np.nonzero(mask)
    return [across.min(), down.min(), np.ptp(across) + 1, np.ptp(down) + 1]


def overlapping() -> list[dict[str, Any]]:
    left, top, width, height = map(int, around(blot()))
    box = (left, top, width, height)
    return [
        annotation((10, 5, 12, 15), 7, segmentation=[SQUARE], area=180),
        annotation((14.3, 8.1, 19.4, 19.2), 8, 2, segmentation=[TRIANGLE], area=150.5),
        annotation((1, 1, 38, 27), 9, segmentation=[[1, 1, 9, 1, 9, 9], [30, 20, 39, 20, 39, 28, 30, 28]]),
        annotation(box, 10, 2, segmentation=runs(blot()), iscrowd=1),
        annotation(box, 11, segmentation=runs(blot(), compressed=True), iscrowd=1),
        {key: value for key, value in annotation((0, 0, 1, 1), 12, segmentation=runs(blot())).items() if key != "bbox"},
    ]


def stored(item: Item, objects: Objects, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    kind = targets.kind("instances")
    checked = kind.check(item.name, np.zeros((*size, 3), np.uint8), objects, 9)
    return kind.stack([kind.resize(checked, size, "pad")])


def one(source: Source) -> Item:
    return next(item for item in source.splits["train"] if item.name.endswith("0.jpg"))


def test_masks_areas_and_crowds_are_those_of_cocos_own_tools(tmp_path: Path) -> None:
    with_polygons(tmp_path, *overlapping())
    source = coco.source(str(tmp_path), masks=True, layers=6)
    assert source.target == "instances"
    item = one(source)
    objects = load(coco, item)
    made = stored(item, objects)
    reference = COCO(str(tmp_path / "train.json"))
    annotations = reference.loadAnns(reference.getAnnIds(imgIds=0))
    expected = np.stack([reference.annToMask(each) for each in annotations])
    assert len(expected) == 6
    np.testing.assert_array_equal(masks(made)[0], expected)
    assert made.table[0, :, KIND].tolist() == [CROWD if each["iscrowd"] else PLAIN for each in annotations]
    assert objects.areas.tolist()[:2] == [180, 150.5]
    np.testing.assert_allclose(objects.areas[2:], [32 + 72, *[blot().sum()] * 3])  # where none is written
    left, top, width, height = around(blot())
    assert pixels(objects)[5] == [left, top, left + width, top + height]
    usual = one(coco.source(str(tmp_path), masks=True))
    assert 4 == stored(usual, load(coco, usual)).layers.shape[1] < made.layers.shape[1]


def test_without_masks_the_listing_is_as_it_was(tmp_path: Path) -> None:
    coco_one(tmp_path, annotation((10, 5, 12, 15), segmentation=[SQUARE]))
    source = coco.source(str(tmp_path))
    assert source.target == "boxes"
    assert {"outlines", "layers"}.isdisjoint(one(source).args)
    assert load(coco, one(source)).outlines is None


BOX = (10, 5, 12, 15)
MISTAKES: list[tuple[Any, str]] = [
    (None, r"annotation 7: it has no segmentation, and masks=true needs one for each; add it, or leave masks out"),
    ([], "annotation 7: it has no segmentation"),
    (SQUARE, r"annotation 7: its segmentation is \[10, 5, .*; it must be polygons, \[\[x, y,"),
    ([[10, 5, 22, 5]], "annotation 7: its polygons have fewer than three points"),
    ([[*SQUARE, 4]], "annotation 7: a polygon of its segmentation has 9 numbers, of x and y"),
    ([[*SQUARE, 4, "x"]], "annotation 7: a polygon of its segmentation has 'x', which is no number"),
    (
        [[30, 22, 39, 22, 39, 29]],
        r"annotation 7: its polygons, \(30, 22, 39, 29\), lie outside its box, \(10, 5",
    ),
    ({"size": [9, 9], "counts": [80, 1]}, "its run lengths are of 9x9 pixels, and the picture has 40x30"),
    ({"size": [30, 40], "counts": [80]}, "run lengths of its segmentation are none: they do not fill 30 x 40"),
    ({"size": [30, 40]}, "run lengths of its segmentation are none: 'counts' is missing"),
    ({"size": [30, 40], "counts": [1200]}, "annotation 7: its segmentation has no pixel"),
]


@pytest.mark.parametrize(("outline", "words"), MISTAKES, ids=[words[:40] for _, words in MISTAKES])
def test_an_object_without_a_mask_is_refused_with_its_annotation(outline: Any, words: str, tmp_path: Path) -> None:
    coco_one(tmp_path, annotation(BOX, 7, segmentation=outline))
    with pytest.raises(ValueError, match=rf"train\.json, .*{words}"):
        coco.source(str(tmp_path), masks=True)
    assert coco.source(str(tmp_path)).target == "boxes"


def with_polygons(folder: Path, *annotations: dict[str, Any]) -> Path:
    """A set as `coco_one` has it, whose other objects have polygons."""
    coco_one(folder, *annotations)
    for name in ("train.json", "val.json"):
        content = json.loads((folder / name).read_text())
        for each in content["annotations"]:
            each.setdefault("segmentation", [[1, 1, 6, 1, 6, 6, 1, 6]])
        (folder / name).write_text(json.dumps(content))
    return folder


def test_what_is_odd_is_said_and_counted(tmp_path: Path) -> None:
    thin = annotation(BOX, 7, segmentation=[SQUARE, [1, 1, 2, 2]])
    loose = annotation((2, 2, 10, 5), 8, segmentation=[SQUARE])
    source = coco.source(str(with_polygons(tmp_path, thin, loose)), masks=True)
    told = said(source)
    assert "1 box is outlined in part by polygons of fewer than three points, such as train.json, annotation 7" in told
    assert "1 box is drawn elsewhere than the polygons, such as train.json, annotation 8" in told
    assert len(load(coco, one(source)).outlines or []) == 2


def test_more_masks_than_a_picture_can_have_are_refused(tmp_path: Path) -> None:
    many = [annotation((1, 1, 5 + number / 100, 5), number) for number in range(256)]
    with_polygons(tmp_path, *many)
    with pytest.raises(ValueError, match=r"0\.jpg has 256 objects, and 255 at most can have masks; cut it into parts"):
        coco.source(str(tmp_path), masks=True)
    assert coco.source(str(tmp_path)).target == "boxes"


@pytest.mark.parametrize("layers", [0, 7])
def test_layers_that_are_not_offered_are_refused(layers: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"layers={layers} is not offered; .* take 1 to 6"):
        coco.source(str(tmp_path), masks=True, layers=layers)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["polygons", "run lengths"])
def test_masks_of_a_picture_as_stored_are_turned_as_it_is(form: str, orientation: int, tmp_path: Path) -> None:
    mask = blot() if form == "run lengths" else theirs.decode(theirs.frPyObjects([SQUARE], HEIGHT, WIDTH))[:, :, 0]
    left, top, width, height = map(int, around(mask))
    segmentation = runs(mask) if form == "run lengths" else [SQUARE]
    with_polygons(tmp_path, annotation((left, top, width, height), segmentation=segmentation))
    draw(tmp_path / "images/0.jpg", orientation=orientation)
    item = one(coco.source(str(tmp_path), masks=True, box_orientation="stored"))
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(picture)) > 0
    made = masks(stored(item, load(coco, item), expected.shape))[0, 0]
    np.testing.assert_array_equal(made, expected)


def test_run_lengths_of_a_picture_that_is_read_smaller_are_of_its_size(tmp_path: Path) -> None:
    big = np.kron(blot(), np.ones((8, 8), bool))
    left, top, width, height = map(int, around(big))
    with_polygons(tmp_path, annotation((left, top, width, height), segmentation=runs(big)))
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"][0] |= {"width": 8 * WIDTH, "height": 8 * HEIGHT}
    (tmp_path / "train.json").write_text(json.dumps(content))
    draw(tmp_path / "images/0.jpg", size=(8 * WIDTH, 8 * HEIGHT))
    item = one(coco.source(str(tmp_path), masks=True))
    item = Item(path=item.path, name=item.name, targets=item.targets, args={**item.args, "min_size": (HEIGHT, WIDTH)})
    ((image, objects),) = coco.read(item)
    times = image.shape[0] // HEIGHT  # the decoder stops at twice what is asked for, or more
    assert image.shape[:2] == (times * HEIGHT, times * WIDTH)
    assert times < 8
    assert objects.outlines is not None
    np.testing.assert_array_equal(objects.outlines[0], np.kron(blot(), np.ones((times, times), bool)))
    assert objects.areas.tolist() == [big.sum()]


# ---- YOLO, VOC, folders ----

POLYGON = "0 0.25 0.2 0.75 0.2 0.75 0.8 0.25 0.8"
THIN = "1 0.1 0.1 0.9 0.1 0.5 0.5"


def yolo_one(root: Path, *lines: str) -> Path:
    for split in ("train", "val"):
        draw(root / f"images/{split}/0.jpg")
        write(root / f"labels/{split}/0.txt", *(lines if split == "train" else [POLYGON]))
    write(root / "data.yaml", "train: images/train", "val: images/val", "names: [cat, dog]")
    return root


def test_lines_of_polygons_are_masks(tmp_path: Path) -> None:
    source = yolo.source(str(yolo_one(tmp_path, POLYGON, THIN, POLYGON)), masks=True)
    assert source.target == "instances"
    assert "written twice" in said(source)
    (item,) = source.splits["train"]
    objects = load(yolo, item)
    drawn = [[10, 6, 30, 6, 30, 24, 10, 24], [4, 3, 36, 3, 20, 15]]
    expected = [theirs.decode(theirs.frPyObjects([each], HEIGHT, WIDTH))[:, :, 0] for each in drawn]
    np.testing.assert_array_equal(masks(stored(item, objects))[0], expected)
    np.testing.assert_allclose(objects.areas, [360, 192])


def test_a_line_that_is_a_box_is_refused_where_masks_are_wanted(tmp_path: Path) -> None:
    yolo_one(tmp_path, POLYGON, "0 0.5 0.5 0.25 0.2")
    with pytest.raises(ValueError, match=r"labels/train/0\.txt, line 2: it is a box, and masks=true needs a polygon"):
        yolo.source(str(tmp_path), masks=True)
    assert yolo.source(str(tmp_path)).target == "boxes"


def test_a_folder_of_any_form_passes_it_on_and_voc_has_none(tmp_path: Path) -> None:
    source = object_folder.source(str(yolo_one(tmp_path / "yolo", POLYGON)), masks=True, layers=2)
    assert source.target == "instances"
    assert load(object_folder, source.splits["train"][0]).layers == 2
    scored = object_folder.scored(str(tmp_path / "yolo"), ["cat", "dog"], masks=True, layers=2)
    assert (scored.target, load(object_folder, scored.splits["train"][0]).layers) == ("instances", 2)
    assert object_folder.source(str(tmp_path / "yolo")).target == "boxes"
    with pytest.raises(ValueError, match=r"masks=true: .* Pascal VOC's XML has boxes alone; convert the data set"):
        voc.source(str(tmp_path), masks=True)


@pytest.mark.parametrize("module", [coco, object_folder, voc, yolo])
def test_files_have_as_many_layers_as_objects_of_ones_own(module: ModuleType) -> None:
    assert inspect.signature(module.source).parameters["layers"].default == LAYERS
