"""Outlines of objects as pixels: COCO's polygons and run lengths, both ways, pixel for pixel as COCO's own tools.

Source of the rules: cocoapi, `common/maskApi.c` (P. Dollar and T.-Y. Lin, BSD licence).

**Run lengths** go down the columns, from left to right, and alternate: pixels outside, pixels inside, ... Compressed,
each number becomes characters of 5 bits, the lowest first, "0" and the following ones; 32 more says that another
follows, and the highest bit of the last is the sign. From the fourth number on, what is written is the difference to
the number two before.

**Polygons** are closed, in pixels whose corners are whole numbers. Vertices are rounded to fifths of a pixel, and each
side is drawn, as in a picture of five times the size, point by point along the axis that it covers more of. Wherever
the line steps from the third fifth of a column of pixels to the fourth, or back, a border lies at the height of the
upper of both points. Down a column of pixels, every border changes between outside and inside; it lies above the first
pixel whose centre is not above it. So a pixel belongs to the polygon if its centre does, but for rounding, and where a
polygon crosses itself, every second layer is outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.arrays import Array

Mask = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_FINE = 5
"""Parts of a pixel."""


class Piece(NamedTuple):
    """A mask by the part of the picture that holds it: of many objects, or large pictures, the whole would not fit."""

    top: int
    left: int
    pixels: npt.NDArray[np.bool_]
    """(rows, columns)."""

    def window(self) -> tuple[slice, slice]:
        """Where it lies in the picture."""
        rows, columns = self.pixels.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)

    def whole(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """In a picture of this size."""
        mask = np.zeros((height, width), np.bool_)
        mask[self.window()] = self.pixels
        return mask


def fill(polygons: Sequence[npt.ArrayLike], height: int, width: int) -> Mask:
    """The pixels of an object that may have several parts, each a polygon: those of any of them.

    Args:
        polygons: Of each x, y, x, y, ... in pixels; what lies outside the picture is cut off.
        height, width: Of the picture.

    Returns:
        uint8 (height, width), 0 or 1.

    Raises:
        ValueError: a polygon has no three points, or a number that is not finite.
    """
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        mask |= _fill_one(_points(polygon), height, width)
    return mask


def _points(polygon: npt.ArrayLike) -> npt.NDArray[np.float64]:
    numbers = np.asarray(polygon, np.float64).ravel()
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"a polygon has {len(numbers)} numbers; it needs x and y of three points or more")
    if not np.isfinite(numbers).all():
        raise ValueError("a polygon has a number that is not finite")
    return numbers.reshape(-1, 2)


def _fill_one(points: npt.NDArray[np.float64], height: int, width: int) -> Mask:
    """Of one polygon, (n, 2)."""
    x, y = _draw(np.trunc(_FINE * points + 0.5).astype(np.int64))
    steps = np.flatnonzero(x[1:] != x[:-1])
    left = np.where(x[steps + 1] < x[steps], x[steps + 1], x[steps + 1] - 1)
    columns, part = np.divmod(left, _FINE)
    in_middle = (part == _FINE // 2) & (columns >= 0) & (columns < width)
    upper = np.minimum(y[1:], y[:-1])[steps[in_middle]]
    rows = np.ceil(np.clip((upper + 0.5) / _FINE - 0.5, 0, height)).astype(np.int64)
    borders = np.sort(columns[in_middle] * height + rows)
    return _from_runs(np.diff(borders, prepend=0, append=height * width), height, width)


def _draw(corners: Ints) -> tuple[Ints, Ints]:
    """x and y of the points of all sides, (n, 2) in fifths of a pixel, one side after the other with both its ends."""
    start, end = corners, np.roll(corners, -1, axis=0)
    sizes = np.abs(end - start)
    flat = sizes[:, 0] >= sizes[:, 1]
    rows = np.arange(len(corners))
    along, across = np.where(flat, 0, 1), np.where(flat, 1, 0)
    length = sizes[rows, along]
    # A side is computed from the end that has the smaller number, whichever way it is walked: rounding is the same
    turned = start[rows, along] > end[rows, along]
    low, high = np.where(turned[:, None], end, start), np.where(turned[:, None], start, end)
    slope = (high - low)[rows, across] / np.maximum(length, 1)

    side = np.repeat(rows, length + 1)
    place = np.arange(len(side)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    place = np.where(turned[side], length[side] - place, place)
    here = low[side, along[side]] + place
    there = np.trunc(low[side, across[side]] + slope[side] * place + 0.5).astype(np.int64)
    return np.where(flat[side], here, there), np.where(flat[side], there, here)


def decode(rle: Mapping[str, Any]) -> Mask:
    """The pixels of run lengths.

    Args:
        rle: As in COCO's files: "size", height and width, and "counts", a list of numbers, or compressed (text).

    Returns:
        uint8 (height, width), 0 or 1.

    Raises:
        ValueError: the run lengths do not fill the picture, or are no such text.
    """
    height, width = (int(side) for side in rle["size"])
    counts = rle["counts"]
    runs = uncompress(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths of {runs.sum():,} pixels do not fill {height} x {width} = {height * width:,}")
    return _from_runs(runs, height, width)


def _from_runs(runs: Ints, height: int, width: int) -> Mask:
    inside = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(inside, runs).reshape(width, height).T)


def runs_of(mask: Array) -> list[int]:
    """Uncompressed run lengths of pixels (height, width); inside is what is not 0."""
    column_wise = (mask != 0).T.ravel()
    changes = np.flatnonzero(np.diff(column_wise, prepend=False))
    found: list[int] = np.diff(changes, prepend=0, append=column_wise.size).tolist()
    return found


def encode(mask: Array) -> dict[str, Any]:
    """Compressed run lengths of pixels (height, width), as in COCO's result files; inside is what is not 0."""
    height, width = mask.shape
    return {"size": [height, width], "counts": compress(runs_of(mask))}


def compress(runs: Sequence[int]) -> str:
    """Run lengths as text."""
    text = []
    for place, run in enumerate(runs):
        number = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            low, number = number & 31, number >> 5
            more = number != (-1 if low & 16 else 0)
            text.append(chr(48 + low + 32 * more))
    return "".join(text)


def uncompress(text: str | bytes) -> Ints:
    """Run lengths, (n,), from text.

    Raises:
        ValueError: it is no such text.
    """
    letters = np.frombuffer(text.encode("utf-8") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    if not letters.size or letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise ValueError("compressed run lengths have characters that do not belong there, or break off")
    last = letters & 32 == 0
    starts = np.append(0, np.flatnonzero(last)[:-1] + 1)
    lengths = np.diff(starts, append=len(letters))
    if lengths.max() > 12:
        raise ValueError("compressed run lengths have a number that is too large")
    place = 5 * (np.arange(len(letters)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((letters & 31) << place, starts)
    runs -= np.where(letters[last] & 16 != 0, np.int64(1) << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
