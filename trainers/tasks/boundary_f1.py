"""The BF score: how well the contours of predicted masks lie on the true ones.

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013: of each
image and class, the share of predicted boundary pixels that lie near a true one (precision), the share of true ones
that lie near a predicted one (recall), and F1 of both. Everything here is integers until the last division.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from trainers.datasets import IGNORED

_AT_ONCE = 2**19
"""Pixels looked at together: what a processor's cache holds."""


def match(labels: Tensor, target: Tensor, classes: int, tolerance: float) -> Tensor:
    """Boundary pixels of each image and class, and how many of them have one of the other side within reach.

    Parameters: `labels`, predicted classes, uint8 (N, H, W); `target`, true ones or IGNORED, int64 (N, H, W), on the
    same device; `tolerance`, the reach as a share of the image's diagonal.

    Returns int32 (N, classes, 4): predicted boundary pixels; those of them at most `tolerance` from a true boundary
    pixel of the same class; true boundary pixels; those of them at most `tolerance` from a predicted one. A boundary
    pixel is one with a 4-neighbour of another class. Pixels that the truth ignores belong to neither side and are no
    neighbours. Distances are Euclidean, between pixel centres, and exact.
    """
    images, height, width = target.shape
    truth = target.to(torch.uint8)
    sides = _edges(torch.where(truth == IGNORED, truth, labels)), _edges(truth)
    square = math.floor(tolerance**2 * (height**2 + width**2) + 1e-9)  # of the reach, which is all that integers need
    high = min(math.isqrt(square), height - 1)
    reach = [min(math.isqrt(square - dy**2), width - 1) for dy in range(high + 1)]
    result = torch.zeros(images, classes, 4, dtype=torch.int32, device=target.device)
    for image, row in _blocks(images, height, width, reach):
        blocks = [_cut(side, image, row, reach) for side in sides]
        inside = slice(high, high + row.stop - row.start), slice(reach[0], reach[0] + width)
        for side, (own, other) in enumerate((blocks, reversed(blocks))):
            near = torch.where(_near(own, other, classes, reach), own, IGNORED)
            for column, edges in enumerate((own, near)):
                result[image, :, 2 * side + column] += _tally(edges[:, *inside], classes)
    return result


def f1(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """F1 of each class, (classes,), from counts of `match`, (N, classes, 4): the mean over the images whose truth has
    a boundary of the class; NaN where no image has. No match counts as 0."""
    predicted, predicted_near, true, true_near = np.moveaxis(counts, -1, 0)
    precision, recall = divide(predicted_near, predicted), divide(true_near, true)
    there = true > 0
    scores = divide(2 * precision * recall, precision + recall) * there
    return divide(scores.sum(0), there.sum(0), np.nan)


def divide(part: npt.ArrayLike, whole: npt.ArrayLike, otherwise: float = 0.0) -> npt.NDArray[np.float64]:
    """part / whole; `otherwise` where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    result = np.full(part.shape, otherwise)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _edges(mask: Tensor) -> Tensor:
    """The class of each boundary pixel, IGNORED elsewhere; uint8 (N, H, W)."""
    edge = torch.zeros_like(mask, dtype=torch.bool)
    for axis in (1, 2):
        size = mask.shape[axis] - 1
        before, after = mask.narrow(axis, 0, size), mask.narrow(axis, 1, size)
        differs = (before != after) & (before != IGNORED) & (after != IGNORED)
        edge.narrow(axis, 0, size).logical_or_(differs)
        edge.narrow(axis, 1, size).logical_or_(differs)
    return torch.where(edge, mask, IGNORED)


def _blocks(images: int, height: int, width: int, reach: list[int]) -> Iterator[tuple[slice, slice]]:
    """Images and rows that are looked at together: several images, or a strip of one."""
    around, padded = 2 * len(reach), width + 2 * reach[0]
    rows = min(height, max(_AT_ONCE // padded - around, around))
    together = max(1, _AT_ONCE // (padded * (rows + around))) if rows == height else 1
    for image in range(0, images, together):
        for row in range(0, height, rows):
            yield slice(image, min(image + together, images)), slice(row, min(row + rows, height))


def _cut(edges: Tensor, image: slice, row: slice, reach: list[int]) -> Tensor:
    """Those rows of those images, with as many pixels around them as `reach` goes; IGNORED outside of the image."""
    high, height = len(reach) - 1, edges.shape[1]
    start, stop = max(0, row.start - high), min(height, row.stop + high)
    padding = (reach[0], reach[0], start - row.start + high, row.stop + high - stop)
    return functional.pad(edges[image, start:stop], padding, value=IGNORED)


def _tally(edges: Tensor, classes: int) -> Tensor:
    """How often each class occurs in each image, (n, classes)."""
    number = torch.arange(len(edges), dtype=torch.int32, device=edges.device)[:, None, None] * (IGNORED + 1) + edges
    return torch.bincount(number.flatten(), minlength=len(edges) * (IGNORED + 1)).view(len(edges), -1)[:, :classes]


def _near(own: Tensor, other: Tensor, classes: int, reach: list[int]) -> Tensor:
    """Where the class in `own` occurs in `other` within reach: dy rows above or below, at most reach[dy] pixels to
    the left or right. bool (n, height, width); what is said of the padding means nothing.

    A byte of a field says which of eight classes a pixel has. Fields are flat: the padding keeps rows apart.
    """
    width = own.shape[2]
    margin = (len(reach) - 1) * width + reach[0]
    near = torch.zeros(own.numel(), dtype=torch.bool, device=own.device)
    mine, theirs = own.flatten(), other.flatten()
    for group in range((classes + 7) // 8):
        spans = [_field(theirs, group)]  # spans[k][i]: the classes that occur in theirs[i : i + 2**k]
        while 2 ** len(spans) <= 2 * reach[0] + 1:
            last, step = spans[-1], 2 ** (len(spans) - 1)
            spans.append(last[:-step] | last[step:])
        found = torch.zeros(len(mine) - 2 * margin, dtype=torch.uint8, device=own.device)
        for dy, far in enumerate(reach):
            k = (2 * far + 1).bit_length() - 1
            for start in {row + dx for row in (-dy * width, dy * width) for dx in (-far, far + 1 - 2**k)}:
                found |= spans[k][margin + start :][: len(found)]  # two spans, which overlap, cover 2 far + 1 pixels
        near[margin : len(mine) - margin] |= (found & _field(mine, group)[margin : len(mine) - margin]) != 0
    return near.view(own.shape)


def _field(edges: Tensor, group: int) -> Tensor:
    """The bit of each class from 8 * group on, 0 for the classes of other groups."""
    return (torch.ones_like(edges) << (edges & 7)) * (edges >> 3 == group)
