"""What a detection model learns at each of its anchors, after RetinaNet: Lin, Goyal, Girshick, He, Dollár, ICCV 2017.

Which object an anchor is to find follows from the anchors and the objects alone, as in box_loss.py. Each picture counts
alike: its losses are divided by the anchors that find something in it, as in torchvision, and then by the pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainers import box_table
from trainers.datasets import PLAIN
from trainers.tasks.box_loss import focal

FOUND, FREE = 0.5, 0.4
"""IoU with an object from which on an anchor finds it, and below which there is nothing to be found."""
_PAIRS = 2**20
"""Anchors x objects of a picture that are compared at once: 8 MiB for each number of a pair."""


class Wanted(NamedTuple):
    """What each anchor should say, (N, P, ...)."""

    found: Tensor
    """bool: there is an object to find."""
    classes: Tensor
    """float64: its class."""
    boxes: Tensor
    """float64 (N, P, 4): its corners; the anchor's where there is none."""
    ignored: Tensor
    """bool: gives no loss of classes."""


def find_wanted(anchors: Tensor, tables: Tensor) -> Wanted:
    """Give each anchor the plain object that it overlaps most, by IoU, where that is FOUND or more, or where no anchor
    overlaps the object more; of equal ones the first.

    Ignored are others, whose best IoU is FREE or more, or of which as much lies in a crowd or a difficult object.

    Args:
        anchors: float64 (P, 4).
        tables: float64 (N, M, COLUMNS) of `box_table`, in the same pixels.
    """
    return Wanted(
        *(torch.stack(each) for each in zip(*(_find_wanted(anchors, table) for table in tables), strict=True))
    )


def _find_wanted(anchors: Tensor, table: Tensor) -> Wanted:
    """Of one picture, (P, ...)."""
    most = anchors.new_zeros(len(anchors))
    objects = torch.zeros_like(most, dtype=torch.int64)
    best, covered = torch.zeros_like(most, dtype=torch.bool), torch.zeros_like(most, dtype=torch.bool)
    at_once = max(1, _PAIRS // len(anchors))
    for first in range(0, len(table), at_once):
        rows = table[first : first + at_once]
        there, plain = rows[:, box_table.CLASS] != box_table.PAD, rows[:, box_table.KIND] == PLAIN
        both, ours, theirs = _areas(anchors[:, None], box_table.corners(rows))
        overlaps = both / (ours + theirs - both) * (there & plain)
        covered |= ((both >= FREE * ours) & there & ~plain).any(1)
        best |= ((overlaps == overlaps.amax(0)) & (overlaps > 0)).any(1)
        more, which = overlaps.max(1)
        objects = torch.where(more > most, which + first, objects)
        most = torch.maximum(most, more)
    found = (most >= FOUND) | best
    boxes = torch.where(found[:, None], box_table.corners(table)[objects], anchors)
    return Wanted(found, box_table.classes(table)[objects], boxes, ~found & ((most >= FREE) | covered))


def divisors(tables: Tensor) -> Tensor:
    """What the sums of `losses` are divided by, float64 (2,): the pictures, twice."""
    return tables.new_full((2,), len(tables), dtype=torch.float64)


def losses(output: Tensor, wanted: Wanted) -> Tensor:
    """Sums over the pictures, float64 (2,), of losses in fp32 or better, per anchor that finds something: the focal
    loss of the classes; of anchors that find something, 1 - GIoU of the box.

    Args:
        output: (N, P, 4 + classes): corners of boxes, logits of the classes.
        wanted: What it should be.
    """
    logits, dtype = output[..., 4:], output.dtype
    numbers = torch.arange(logits.shape[2], device=output.device)
    truth = (wanted.found[..., None] & (wanted.classes[..., None] == numbers)).to(dtype)
    of_class = focal(logits, truth).sum(2) * ~wanted.ignored
    of_box = (1 - giou(output[..., :4], wanted.boxes.to(dtype))) * wanted.found
    count = wanted.found.sum(1).clamp(min=1)
    return torch.stack([(each.sum(1).double() / count).sum() for each in (of_class, of_box)])


def giou(found: Tensor, true: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019) of boxes (..., 4) by their corners, -1 to 1; `true` have an
    area."""
    both, ours, theirs = _areas(found, true)
    low, high = torch.minimum(found[..., :2], true[..., :2]), torch.maximum(found[..., 2:], true[..., 2:])
    either, hull = ours + theirs - both, (high - low).prod(-1)
    return both / either - (hull - either) / hull


def _areas(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of what boxes (..., 4) share, and of the ones and the others."""
    low, high = torch.maximum(ours[..., :2], theirs[..., :2]), torch.minimum(ours[..., 2:], theirs[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    return both, (ours[..., 2:] - ours[..., :2]).prod(-1), (theirs[..., 2:] - theirs[..., :2]).prod(-1)
