"""Circles, squares and triangles that overlap on a mottled ground, drawn by this file: masks without a download.

Shapes and ground have any colour and a pattern of their own, so that what gives a shape's class away is its outline.
With `binary` there are two classes, background and shape. A picture depends on (seed, split, its number, height,
width) alone: asking for more pictures keeps the first ones. It is read from no folder: leave --data out. Licence:
that of this project.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
import numpy.typing as npt

from trainers.datasets import MASK, Item, Source
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

F32 = npt.NDArray[np.float32]


def source(
    data: str | None,
    *,
    train: int = 200,
    val: int = 50,
    test: int = 50,
    height: int = 64,
    width: int = 64,
    binary: bool = False,
    seed: int = 0,
) -> Source:
    """Count out the pictures; `read` draws them.

    Args:
        data: None: there is no folder.
        train: number of pictures of that split.
        val: number of pictures of that split.
        test: number of pictures of that split; 0: there is none.
        height: of a picture, in pixels.
        width: of a picture, in pixels.
        binary: whether there are two classes, background and shape.
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
    if not (SMALLEST <= height <= 4096 and SMALLEST <= width <= 4096):
        raise ValueError(f"height={height} and width={width} must both be from {SMALLEST} to 4096 pixels")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} is out of range; give a number from 0 to {2**32 - 1}")
    size = {"height": height, "width": width, "seed": seed, "binary": binary, "drawing": DRAWING}
    splits = {
        split: [
            Item(
                path=None,
                name=f"{split}/{first:05d}",
                targets=[MASK] * min(SAMPLES_PER_ITEM, count - first),
                args={"split": split, "first": first, **size},
            )
            for first in range(0, count, SAMPLES_PER_ITEM)
        ]
        for split, count in counts.items()
        if count
    }
    classes = ["background", "shape"] if binary else CLASSES
    return Source(classes=classes, channels=3, splits=splits, target="masks", colours=COLOURS[: len(classes)])


def read(item: Item) -> list[tuple[Pixels, Pixels]]:
    seed, split, first = item.args["seed"], SPLITS.index(item.args["split"]), item.args["first"]
    drawn = []
    for number in range(len(item.targets)):
        rng = np.random.RandomState([seed, split, first + number])  # frozen by NEP 19
        image, mask = _draw(rng, item.args["height"], item.args["width"])
        drawn.append((image, (mask > 0).astype(np.uint8) if item.args["binary"] else mask))
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
    image += rng.uniform(0.01, 0.06) * rng.uniform(-1, 1, image.shape).astype(np.float32)  # the sensor's noise
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), mask


def _outline(rng: np.random.RandomState, label: int, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """Which pixels a shape of this class covers, (rows, columns)."""
    from PIL import Image, ImageDraw

    radius = rng.uniform(0.12, 0.26) * min(rows, columns)
    x, y, start = rng.uniform(0.1, 0.9) * columns, rng.uniform(0.1, 0.9) * rows, rng.uniform(0, 2 * math.pi)
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
