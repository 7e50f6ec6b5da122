"""Tiny pictures with boxes, in the forms that people have them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainers.datasets import BOXES, Item, Objects, Source

WIDTH, HEIGHT = 40, 30
ORIENTATION = 0x0112
BOX = "0 0.5 0.5 0.25 0.2"
"""A line of YOLO's: pixels 15 to 25 across and 12 to 18 down."""


def draw(*paths: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1) -> None:
    """Pictures of some width and height, as stored."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(str(path))).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def annotation(box: Sequence[float], number: int = 1, category: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 0, "category_id": category, "bbox": list(box), "iscrowd": 0, **more}


def image(name: str, number: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}


def categories(*names: str, first: int = 1) -> list[dict[str, Any]]:
    return [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(names, first)]


def coco_file(path: Path, names: Sequence[str], classes: Sequence[str] = ("cat", "dog"), **changes: Any) -> Path:
    """A file with two objects in every picture, and in the last one none; classes in turn."""
    content: dict[str, Any] = {
        "images": [image(name, number) for number, name in enumerate(names)],
        "annotations": [
            annotation((2, 3, 10, 8), number, 1 + number % len(classes), image_id=number // 2, area=50.5)
            for number in range(2 * len(names) - 2)
        ],
        "categories": categories(*classes),
    }
    return write(path, json.dumps({**content, **changes}))


def coco_one(folder: Path, *annotations: Mapping[str, Any], **changes: Any) -> Path:
    """A data set of 3 pictures: one with these annotations, one with a plain one, and one that is val."""
    draw(*(folder / f"images/{number}.jpg" for number in range(3)))
    pictures = [image("0.jpg"), image("1.jpg", 1)]
    plain = annotation((1, 1, 5, 5), 900, image_id=1)
    content = {"images": pictures, "annotations": [*annotations, plain], "categories": categories("cat", "dog")}
    coco_file(folder / "train.json", [], **{**content, **changes})
    val = {"images": [image("2.jpg")], "annotations": [annotation((1, 1, 5, 5))]}
    coco_file(folder / "val.json", [], **val)
    return folder


def xml(path: Path, *boxes: Sequence[Any], size: tuple[int, int] | None = (WIDTH, HEIGHT), filename: str = "") -> Path:
    """An annotation of VOC's; of each box name, left, top, right, bottom, and, where it is, difficult."""
    sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    lines = [f"<annotation><filename>{filename}</filename>{sizes}"]
    for name, left, top, right, bottom, *difficult in boxes:
        lines.append(f"<object><name>{name}</name><difficult>{difficult[0] if difficult else 0}</difficult>")
        sides = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        lines.append(f"<bndbox>{sides}</bndbox></object>")
    return write(path, *lines, "</annotation>")


def counts(source: Source) -> dict[str, tuple[int, int]]:
    """Split -> pictures and boxes."""
    return {
        split: (len(items), sum(len(item.args["classes"]) for item in items)) for split, items in source.splits.items()
    }


def load(module: Any, item: Item, **args: Any) -> Objects:
    """What a data set reads, through JSON as workers do it, checked as the contract has it."""
    item = Item(**json.loads(json.dumps(asdict(replace(item, args={**item.args, **args})))))
    ((picture, objects),) = module.read(item)
    assert list(item.targets) == [BOXES]
    assert picture.dtype == np.uint8
    assert isinstance(objects, Objects)
    assert objects.corners.shape == (len(objects.classes), 4)
    assert len(objects.classes) == len(objects.kinds) == len(objects.areas)
    assert ((objects.corners >= 0) & (objects.corners <= 1)).all()
    return objects


def pixels(objects: Objects) -> list[list[float]]:
    """Corners in pixels of the upright picture."""
    assert objects.size is not None
    found: list[list[float]] = np.round(objects.corners * (objects.size[::-1] * 2), 6).tolist()
    return found


def said(source: Source) -> str:
    return "; ".join(source.warnings)
