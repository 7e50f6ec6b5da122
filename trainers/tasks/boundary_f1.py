"""The BF score: how well the contours of predicted masks lie on the true ones.

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013: of each
image and class, the share of predicted boundary pixels that lie near a true one (precision), the share of true ones
that lie near a predicted one (recall), and F1 of both. Everything here is integers until the last division.

Edge pixels are looked up one by one, at every offset within reach: at the default tolerance and 11 to 24 classes that
takes 1.1 to 1.4 times as long as sets of eight classes in the bits of a byte did, 3 to 35 ms for a picture of 256x256
to 512x1024 on one CPU thread, where a forward pass takes 70 to 540. Time grows with the square of the tolerance.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from trainers.datasets import IGNORED
from trainers.ratios import divide


def match(labels: Tensor, target: Tensor, classes: int, tolerance: float) -> Tensor:
    """Count boundary pixels of each image and class, and how many of them have one of the other side within reach.

    A boundary pixel is one with a 4-neighbour of another class. Pixels that the truth ignores belong to neither side
    and are no neighbours. Distances are Euclidean, between pixel centres, and exact.

    Args:
        labels: Predicted classes, uint8 (N, H, W).
        target: True classes or IGNORED, int64 (N, H, W), on the same device.
        classes: Number of classes.
        tolerance: The reach, as a share of the image's diagonal.

    Returns:
        int32 (N, classes, 4): predicted boundary pixels; those of them within reach of a true boundary pixel of the
        same class; true boundary pixels; those of them within reach of a predicted one.
    """
    height, width = target.shape[1:]
    truth = target.to(torch.uint8)
    predicted = torch.where(truth == IGNORED, truth, labels)
    sides = _edges(predicted), _edges(truth)
    square = math.floor(tolerance**2 * (height**2 + width**2) + 1e-9)  # of the reach, which is all that integers need
    high = min(math.isqrt(square), height - 1)
    reach = [min(math.isqrt(square - dy**2), width - 1) for dy in range(high + 1)]
    columns = []
    for own, other in (sides, sides[::-1]):
        columns += [_tally(own, classes), _tally(_near(own, other, reach), classes)]
    return torch.stack(columns, dim=2).int()


def f1(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Compute the F1 of each class.

    Args:
        counts: Of `match`, (N, classes, 4).

    Returns:
        (classes,): means over the images whose truth has a boundary of the class, where no match counts as 0; NaN
        where no image has.
    """
    predicted, predicted_near, true, true_near = np.moveaxis(counts, -1, 0)
    precision, recall = divide(predicted_near, predicted), divide(true_near, true)
    there = true > 0
    scores = divide(2 * precision * recall, precision + recall) * there
    return divide(scores.sum(0), there.sum(0), np.nan)


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


def _tally(edges: Tensor, classes: int) -> Tensor:
    """How often each class occurs in each image, (n, classes)."""
    number = torch.arange(len(edges), dtype=torch.int32, device=edges.device)[:, None, None] * (IGNORED + 1) + edges
    return torch.bincount(number.flatten(), minlength=len(edges) * (IGNORED + 1)).view(len(edges), -1)[:, :classes]


def _near(own: Tensor, other: Tensor, reach: list[int]) -> Tensor:
    """Those of the edges `own` whose class occurs in `other` within reach, IGNORED elsewhere; uint8 (N, H, W).

    `reach[dy]`: how far to the left and right, dy rows above or below.
    """
    high, wide = len(reach) - 1, reach[0]
    around = (wide, wide, high, high)
    row = own.shape[2] + 2 * wide
    there = functional.pad(other, around, value=IGNORED).flatten()
    place = functional.pad(own, around, value=IGNORED).flatten().ne(IGNORED).nonzero()[:, 0]
    edges = own != IGNORED
    number = own[edges]
    found = torch.zeros_like(number, dtype=torch.bool)
    for dy in range(-high, high + 1):
        for dx in range(-reach[abs(dy)], reach[abs(dy)] + 1):
            found |= there.index_select(0, place + (dy * row + dx)) == number
    near = torch.full_like(own, IGNORED)
    near[edges] = torch.where(found, number, IGNORED)
    return near
