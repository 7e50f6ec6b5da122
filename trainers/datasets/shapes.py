"""Circles, squares and triangles that overlap on a mottled ground, drawn by this file: masks of classes, or objects
with boxes or masks, without a download.

Shapes and ground have any colour and a pattern of their own, so that what gives a shape's class away is its outline.
With `binary` there are two classes, background and shape. A picture depends on (seed, split, its number, height,
width) alone: asking for more pictures keeps the first ones. It is read from no folder: leave --data out. Licence:
that of this project.

With `objects=boxes` a picture has two to five shapes, small and large, each with the box and the area of what is seen
of it; one that is hidden but for a quarter is difficult. One picture in ten has none, one in twenty a crowd besides:
many small shapes of a class in one box. `objects=masks` is the same with the pixels that are seen of each.
"""

from __future__ import annotations

import colorsys
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainers.datasets import BOXES, CROWD, DIFFICULT, MASK, PLAIN, Item, Objects, Source
from trainers.pixels import Pixels

CLASSES = ["background", "circle", "square", "triangle"]
COLOURS = [(40, 40, 40), (230, 90, 60), (70, 160, 220), (240, 200, 70)]
SPLITS = ("train", "val", "test")
"""A picture's number counts within its split; the place here is part of its seed."""
SMALLEST = 16
SAMPLES_PER_ITEM = 16
SHARPER = 2
"""Pixels that are drawn for one that is returned, along each side."""
DRAWING = 2
"""Goes up when the same arguments draw other pictures: prepared ones are then not taken for these."""
SIZE, SIZE_OF_OBJECTS = (64, 64), (96, 128)
"""Height and width of pictures with masks of classes, and with objects, where they are not given."""
RADII, RADII_OF_OBJECTS, RADII_OF_CROWDS = (0.12, 0.26), (0.06, 0.26), (0.04, 0.06)
"""Smallest and largest radius of a shape, as a share of the shorter side."""
EMPTY, CROWDED = 0.1, 0.05
"""Shares of the pictures with objects: without a shape, and with a crowd."""
HIDDEN = 0.25
"""Share of a shape that must be seen."""
LEAST = 12
"""Pixels of a shape that must be seen."""

F32 = npt.NDArray[np.float32]


def source(
    data: str | None,
    *,
    train: int = 200,
    val: int = 50,
    test: int = 50,
    height: int | None = None,
    width: int | None = None,
    binary: bool = False,
    objects: Literal["boxes", "masks"] | None = None,
    seed: int = 0,
) -> Source:
    """Count out the pictures; `read` draws them.

    Args:
        data: None: there is no folder.
        train: number of pictures of that split.
        val: number of pictures of that split.
        test: number of pictures of that split; 0: there is none.
        height: of a picture, in pixels: 64, with objects 96.
        width: of a picture, in pixels: 64, with objects 128.
        binary: whether there are two classes, background and shape; of objects one, shape.
        objects: "boxes" or "masks": of each shape; by default there are masks of classes.
        seed: 0 to 2**32 - 1.

    Raises:
        ValueError: a value is not allowed.
    """
    if data is not None:
        raise ValueError(f"the data set shapes is drawn, not read from a folder; leave --data {data} out")
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    for name, count in counts.items():
        least = 0 if name == "test" else 1
        if not least <= count <= 1_000_000:
            raise ValueError(f"{name}={count} pictures is not allowed; give {least} to 1,000,000")
    usual = SIZE if objects is None else SIZE_OF_OBJECTS
    height, width = usual[0] if height is None else height, usual[1] if width is None else width
    if not (SMALLEST <= height <= 4096 and SMALLEST <= width <= 4096):
        raise ValueError(f"height={height} and width={width} must both be from {SMALLEST} to 4096 pixels")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} is out of range; give a number from 0 to {2**32 - 1}")
    size: dict[str, Any] = {"height": height, "width": width, "seed": seed, "binary": binary, "drawing": DRAWING}
    if objects is not None:
        size["objects"] = objects
    splits = {
        split: [
            Item(
                path=None,
                name=f"{split}/{first:05d}",
                targets=[MASK if objects is None else BOXES] * min(SAMPLES_PER_ITEM, count - first),
                args={"split": split, "first": first, **size},
            )
            for first in range(0, count, SAMPLES_PER_ITEM)
        ]
        for split, count in counts.items()
        if count
    }
    classes = ["background", "shape"] if binary else CLASSES
    colours = COLOURS[: len(classes)]
    if objects is not None:  # what is none is no class of theirs
        kind = "boxes" if objects == "boxes" else "instances"
        return Source(classes=classes[1:], channels=3, splits=splits, target=kind, colours=colours[1:])
    return Source(classes=classes, channels=3, splits=splits, target="masks", colours=colours)


def read(item: Item) -> list[tuple[Pixels, Any]]:
    seed, split, first = item.args["seed"], SPLITS.index(item.args["split"]), item.args["first"]
    height, width, binary = item.args["height"], item.args["width"], item.args["binary"]
    drawn: list[tuple[Pixels, Any]] = []
    for number in range(len(item.targets)):
        rng = np.random.RandomState([seed, split, first + number])  # frozen by NEP 19
        if "objects" in item.args:
            image, objects = _draw_objects(rng, height, width, masks=item.args["objects"] == "masks")
            drawn.append((image, objects._replace(classes=np.zeros_like(objects.classes)) if binary else objects))
        else:
            image, mask = _draw(rng, height, width)
            drawn.append((image, (mask > 0).astype(np.uint8) if binary else mask))
    return drawn


def _draw(rng: np.random.RandomState, height: int, width: int) -> tuple[Pixels, Pixels]:
    """A picture and its mask of four classes: two to five shapes, the last one before the others."""
    rows, columns = SHARPER * height, SHARPER * width
    colours = np.broadcast_to(_colour(rng), (rows, columns, 3)) * _mottle(rng, rows, columns, rng.uniform(0.2, 0.7))
    labels = np.zeros((rows, columns), np.uint8)
    for _ in range(rng.randint(2, 6)):
        label = rng.randint(1, len(CLASSES))
        inside = _outline(rng, label, rows, columns)
        colours[inside] = _pattern(rng, inside)
        labels[inside] = label
    image, mask = _shrink(colours, labels)
    return _add_noise(rng, image), mask


def _draw_objects(rng: np.random.RandomState, height: int, width: int, *, masks: bool) -> tuple[Pixels, Objects]:
    """A picture and its shapes: none, or two to five, and perhaps a crowd before them; `masks`: with those."""
    rows, columns = SHARPER * height, SHARPER * width
    colours = np.broadcast_to(_colour(rng), (rows, columns, 3)) * _mottle(rng, rows, columns, rng.uniform(0.2, 0.7))
    numbers = np.zeros((rows, columns), np.uint8)  # of the object that is seen there
    labels, kinds, whole = [0], [PLAIN], [0]
    shapes = 0 if rng.uniform() < EMPTY else rng.randint(2, 6)
    crowd = shapes > 0 and rng.uniform() < CROWDED
    for number in range(1, shapes + 1 + crowd):
        labels.append(rng.randint(1, len(CLASSES)))
        kinds.append(PLAIN if number <= shapes else CROWD)
        if number <= shapes:
            drawn = [_outline(rng, labels[-1], rows, columns, RADII_OF_OBJECTS)]
        else:
            drawn = _crowd(rng, labels[-1], rows, columns)
        for inside in drawn:
            colours[inside] = _pattern(rng, inside)
            numbers[inside] = number
        whole.append(int(np.any(drawn, axis=0)[::SHARPER, ::SHARPER].sum()))
    image, seen = _shrink(colours, numbers)
    corners, classes, final, areas, outlines = [], [], [], [], []
    for number in np.unique(seen[seen > 0]).tolist():
        down, across = np.nonzero(seen == number)
        hidden = len(down) < max(LEAST, HIDDEN * whole[number])
        corners.append(
            [across.min() / width, down.min() / height, (across.max() + 1) / width, (down.max() + 1) / height]
        )
        classes.append(labels[number] - 1)
        final.append(DIFFICULT if hidden and kinds[number] == PLAIN else kinds[number])
        areas.append(len(down))
        outlines.append((seen == number).astype(np.uint8))
    objects = Objects(
        corners=np.array(corners, np.float64).reshape(-1, 4),
        classes=np.array(classes, np.int64),
        kinds=np.array(final, np.int64),
        areas=np.array(areas, np.float64),
        outlines=outlines if masks else None,
    )
    return _add_noise(rng, image), objects


def _crowd(rng: np.random.RandomState, label: int, rows: int, columns: int) -> list[npt.NDArray[np.bool_]]:
    """Many small shapes of a class, side by side."""
    side = 0.2 * min(rows, columns)
    x, y = (rng.uniform(side, extent - side) for extent in (columns, rows))
    places = [(x + rng.uniform(-side, side), y + rng.uniform(-side, side)) for _ in range(rng.randint(8, 15))]
    return [_outline(rng, label, rows, columns, RADII_OF_CROWDS, place) for place in places]


def _add_noise(rng: np.random.RandomState, image: F32) -> Pixels:
    """The sensor's."""
    image += rng.uniform(0.01, 0.06) * rng.uniform(-1, 1, image.shape).astype(np.float32)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _outline(
    rng: np.random.RandomState,
    label: int,
    rows: int,
    columns: int,
    radii: tuple[float, float] = RADII,
    place: tuple[float, float] | None = None,
) -> npt.NDArray[np.bool_]:
    """Which pixels a shape of this class covers, (rows, columns); `place`: x and y of its middle."""
    from PIL import Image, ImageDraw

    radius = rng.uniform(*radii) * min(rows, columns)
    x, y, start = rng.uniform(0.1, 0.9) * columns, rng.uniform(0.1, 0.9) * rows, rng.uniform(0, 2 * math.pi)
    x, y = place or (x, y)
    image = Image.new("1", (columns, rows))
    if CLASSES[label] == "circle":
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    else:
        corners, reach = (4, 1.2 * radius) if CLASSES[label] == "square" else (3, 1.45 * radius)  # of a circle's area
        turns = [start + 2 * math.pi * corner / corners for corner in range(corners)]
        points = [(x + reach * math.cos(turn), y + reach * math.sin(turn)) for turn in turns]
        ImageDraw.Draw(image).polygon(points, fill=1)
    return np.asarray(image)


def _pattern(rng: np.random.RandomState, inside: npt.NDArray[np.bool_]) -> F32:
    """The colours of a shape's pixels, (pixels, 3): plain, striped or checked, in any two colours."""
    kind, angle, period, share = rng.randint(3), rng.uniform(0, 2 * math.pi), rng.uniform(6, 18), rng.uniform(0.4, 0.6)
    first, second, shift = _colour(rng), _colour(rng), rng.uniform(0, 1, 2)
    down, across = np.nonzero(inside)
    u = (across * math.cos(angle) + down * math.sin(angle)) / period + shift[0]
    v = (down * math.cos(angle) - across * math.sin(angle)) / period + shift[1]
    covered = (u % 1 < share) & ((kind == 1) | (v % 1 < share)) & (kind > 0)
    return np.where(covered[:, None], second, first)


def _colour(rng: np.random.RandomState) -> F32:
    """Red, green and blue from 0 to 1: greys, muted and vivid ones."""
    hue, saturation, value = rng.uniform(0, 1), rng.choice([0.05, 0.3, 0.7]), rng.uniform(0.1, 0.95)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def _mottle(rng: np.random.RandomState, rows: int, columns: int, strength: float) -> F32:
    """Light, (rows, columns, 1), that differs by up to `strength` between lumps of some 5 and of 24 pixels."""
    from PIL import Image

    light = np.ones((rows, columns), np.float32)
    for lump in (5, 24):
        grid = rng.uniform(-1, 1, (rows // lump + 2, columns // lump + 2)).astype(np.float32)
        light += strength / 2 * np.asarray(Image.fromarray(grid).resize((columns, rows), Image.Resampling.BILINEAR))
    return light[..., None]


def _shrink(colours: F32, labels: npt.NDArray[np.uint8]) -> tuple[F32, Pixels]:
    """Picture and mask, SHARPER times smaller.

    Of the drawn pixels that make one, the first gives the class, and those of this class the colour: no pixel is a
    mixture of two classes.
    """
    rows, columns = labels.shape[0] // SHARPER, labels.shape[1] // SHARPER
    mask = labels[::SHARPER, ::SHARPER].copy()
    drawn = (rows, SHARPER, columns, SHARPER)
    own = (labels.reshape(drawn) == mask[:, None, :, None])[..., None].astype(np.float32)
    image: F32 = (colours.reshape(*drawn, 3) * own).sum((1, 3)) / own.sum((1, 3))
    return image, mask
