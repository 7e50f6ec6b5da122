"""Circles, squares and triangles that overlap on a mottled ground, drawn by this file: masks for small tests.

Shapes and ground have any colour and a pattern of their own, so that what tells a shape's class is its outline.
With `binary` there are two classes, background and shape. A picture depends on (seed, split, its number, height,
width) alone: asking for more pictures keeps the first ones. It is read from no folder: leave --data out. Licence:
that of this project.
"""

from __future__ import annotations

import math

import numpy as np

from trainers.datasets import Item, Source
from trainers.datasets._drawn import Canvas, Dice, Material, Tiles, develop, generators, splits
from trainers.decode import Pixels

CLASSES = ["background", "circle", "square", "triangle"]
COLOURS = [(40, 40, 40), (230, 90, 60), (70, 160, 220), (240, 200, 70)]
SMALLEST = 16
DRAWING = 1
"""Goes up when the same arguments draw other pictures: prepared ones are then not taken for these."""


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
    if data is not None:
        raise ValueError(f"the data set shapes is drawn, not read from a folder; leave --data {data} out")
    classes = ["background", "shape"] if binary else CLASSES
    args = {"binary": binary, "drawing": DRAWING}
    counts = {"train": train, "val": val, "test": test}
    items = splits(counts, height=height, width=width, seed=seed, smallest=SMALLEST, args=args)
    return Source(classes=classes, channels=3, splits=items, target="masks", colours=COLOURS[: len(classes)])


def read(item: Item) -> list[tuple[Pixels, Pixels]]:
    pictures = [_draw(rng, item.args["height"], item.args["width"]) for rng in generators(item)]
    if item.args["binary"]:
        return [(image, (mask > 0).astype(np.uint8)) for image, mask in pictures]
    return pictures


def _draw(rng: np.random.RandomState, height: int, width: int) -> tuple[Pixels, Pixels]:
    """A picture and its mask of four classes: two to five shapes, the last one before the others."""
    dice, canvas = Dice(rng), Canvas(height, width)
    ground = Material(dice.colour(), None, dice(0, 0.2), dice(0.1, 0.4), stains=dice(0.1, 0.5))
    canvas.piece(0, ground, (1.0, 0.0, 0.0))
    for _ in range(2 + dice.below(4)):
        label = 1 + dice.below(3)
        number = canvas.piece(label, _pattern(dice), _turn(dice))
        radius = dice(0.12, 0.26) * min(canvas.height, canvas.width)
        x, y = dice(0.1, 0.9) * canvas.width, dice(0.1, 0.9) * canvas.height
        if label == 1:
            canvas.ellipse(number, x, y, radius, radius)
        else:
            corners = 4 if label == 2 else 3
            start = dice(0, 2 * math.pi)
            turns = [start + 2 * math.pi * corner / corners for corner in range(corners)]
            reach = radius * (1.2 if label == 2 else 1.45)
            canvas.polygon(number, [(x + reach * math.cos(turn), y + reach * math.sin(turn)) for turn in turns])
    numbers = canvas.numbers()
    cos, sin, _ = np.moveaxis(canvas.surfaces()[numbers], 2, 0)
    down, across = np.mgrid[: canvas.height, : canvas.width].astype(np.float32)
    u, v = across * cos + down * sin, down * cos - across * sin
    colours = canvas.colours(rng, numbers, u, v, np.ones_like(u))
    image, mask = canvas.shrunk(colours, numbers)
    return develop(rng, image, blur=dice(0, 0.3), grain=dice(0.01, 0.06)), mask


def _turn(dice: Dice) -> tuple[float, float, float]:
    angle = dice(0, 2 * math.pi)
    return math.cos(angle), math.sin(angle), 0.0


def _pattern(dice: Dice) -> Material:
    """Plain, striped or checked, in any two colours."""
    kind, colour = dice.below(3), dice.colour()
    if kind == 0:
        return Material(colour, stains=dice(0, 0.2))
    period = dice(6, 18)
    share = (dice(0.4, 0.6), 1.0 if kind == 1 else dice(0.4, 0.7))
    return Material(colour, Tiles((period, period), share, dice.colour(), (dice(), dice())))
