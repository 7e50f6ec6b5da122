"""Handwritten-like digits of MNIST's size, drawn by this file: sweeps and benchmarks with no download.

Each digit is a few strokes, bent, turned, sheared, shifted and drawn with a pen of some width, then made noisy. A
picture depends on (seed, split, its number) alone. It is read from no folder: leave --data out. Licence: that of this
project.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trainers.datasets import Item, Source
from trainers.pixels import Pixels

SIDE = 28
SAMPLES_PER_ITEM = 500
DRAWING = 1
"""Goes up when the same arguments draw other pictures: prepared ones are then not taken for these."""
Line = list[tuple[float, float]]


def _arc(x: float, y: float, across: float, down: float, start: float, stop: float) -> Line:
    """Points on an ellipse; angles in degrees, clockwise from the right, as y points down."""
    angles = [math.radians(start + (stop - start) * n / 10) for n in range(11)]
    return [(x + across * math.cos(angle), y + down * math.sin(angle)) for angle in angles]


STROKES: list[list[Line]] = [
    [_arc(0.5, 0.5, 0.22, 0.34, 0, 360)],
    [[(0.36, 0.28), (0.52, 0.16), (0.52, 0.84)]],
    [[*_arc(0.5, 0.34, 0.2, 0.18, 190, 380), (0.3, 0.84), (0.72, 0.84)]],
    [_arc(0.47, 0.33, 0.2, 0.17, 200, 440), _arc(0.47, 0.67, 0.22, 0.18, -80, 160)],
    [[(0.58, 0.14), (0.28, 0.6), (0.76, 0.6)], [(0.6, 0.4), (0.6, 0.86)]],
    [[(0.7, 0.16), (0.36, 0.16), (0.34, 0.46)], _arc(0.48, 0.63, 0.21, 0.21, 230, 500)],
    [[(0.62, 0.14), (0.4, 0.34), (0.31, 0.6)], _arc(0.5, 0.66, 0.19, 0.19, 0, 360)],
    [[(0.28, 0.17), (0.72, 0.17), (0.44, 0.86)]],
    [_arc(0.5, 0.32, 0.17, 0.16, 0, 360), _arc(0.5, 0.67, 0.21, 0.19, 0, 360)],
    [_arc(0.5, 0.34, 0.19, 0.19, 0, 360), [(0.69, 0.34), (0.66, 0.6), (0.52, 0.86)]],
]
"""Of each digit, in a square of side 1."""


def source(data: str | None, *, train: int = 10_000, val: int = 2_000, seed: int = 0) -> Source:
    """Count out the pictures; `read` draws them.

    Args:
        data: None: there is no folder.
        train: number of pictures of that split.
        val: number of pictures of that split.
        seed: 0 to 2**32 - 1.

    Raises:
        ValueError: a value is not allowed.
    """
    if data is not None:
        raise ValueError(f"the data set strokes is drawn, not read from a folder; leave --data {data} out")
    for name, count in (("train", train), ("val", val)):
        if not 10 <= count <= 1_000_000:
            raise ValueError(f"{name}={count} pictures is not allowed; give 10 to 1,000,000")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} is out of range; give a number from 0 to {2**32 - 1}")
    splits = {
        split: [
            Item(
                path=None,
                name=f"{split}/{first:06d}",
                targets=[number % 10 for number in range(first, min(first + SAMPLES_PER_ITEM, count))],
                args={"split": split, "first": first, "seed": seed, "drawing": DRAWING},
            )
            for first in range(0, count, SAMPLES_PER_ITEM)
        ]
        for split, count in (("train", train), ("val", val))
    }
    return Source(classes=[str(digit) for digit in range(10)], channels=1, splits=splits)


def read(item: Item) -> list[tuple[Pixels, int]]:
    place = ("train", "val").index(item.args["split"])
    drawn = []
    for number, digit in enumerate(item.targets):
        rng = np.random.RandomState([item.args["seed"], place, item.args["first"] + number])  # frozen by NEP 19
        drawn.append((_draw(rng, digit), digit))
    return drawn


def _draw(rng: np.random.RandomState, digit: int) -> Pixels:
    """(28, 28, 1): light strokes on a dark ground."""
    angle, shear = rng.uniform(-0.3, 0.3), rng.uniform(-0.35, 0.35)
    zoom = SIDE * rng.uniform(0.65, 1.0, 2)
    shift = SIDE / 2 + rng.uniform(-3, 3, 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1.0, shear], [0.0, 1.0]]) * zoom
    bend = rng.uniform(-0.05, 0.05, (2, 2))
    nearest = np.full((SIDE, SIDE), np.inf)
    for stroke in STROKES[digit]:
        points = np.array(stroke) - 0.5
        points = points + np.sin(points[:, ::-1] * 2 * math.pi) @ bend + rng.normal(0, 0.01, points.shape)
        nearest = np.minimum(nearest, _distance(points @ matrix.T + shift))
    pen = rng.uniform(0.7, 1.9)
    ink = np.clip(pen + 0.5 - nearest, 0, 1) * rng.uniform(0.5, 1.0)
    noisy = ink + rng.normal(0, rng.uniform(0.05, 0.25), ink.shape)
    return np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)[:, :, None]


def _distance(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pixels from the centre of each pixel (28, 28) to a line through `points` (N, 2), of x and y."""
    start, along = points[:-1], np.diff(points, axis=0)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    off = np.stack([x, y], -1)[:, :, None] - start
    share = np.clip((off * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9), 0, 1)
    found: npt.NDArray[np.float64] = np.hypot(*np.moveaxis(off - share[..., None] * along, -1, 0)).min(-1)
    return found
