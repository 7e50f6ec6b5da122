"""What a detection model learns at each of its points, after FCOS: Tian, Shen, Chen, He, ICCV 2019 and TPAMI 2020.

Which object a point is to find follows from the points and the objects alone, never from what the model predicts: so
divisors are known before the first forward pass, and rounding errors move no point from one object to another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trainers import box_table
from trainers.datasets import PLAIN

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss (Lin et al. 2017, "Focal Loss for Dense Object Detection", table 1b)."""
_PAIRS_TOGETHER = 2**16
"""Points x objects of pictures that are assigned at once; one picture at least."""
_PAIRS = 2**20
"""Points x objects of a picture that are compared at once: 8 MiB for each number of a pair."""


class Points(NamedTuple):
    """Where a model looks, float64 (P,) each, in pixels."""

    x: Tensor
    y: Tensor
    stride: Tensor
    least: Tensor
    """The farthest side of a box that is found here is farther off than this, ..."""
    most: Tensor
    """... and not farther than this."""


def make_points(points: Tensor, reach: float) -> Points:
    """The points of a model, and which boxes are found at each.

    Args:
        points: (P, 3): x, y and stride, in pixels.
        reach: In strides: a box whose farthest side is farther off from a point is found at the next coarser map. 8 as
            published, where maps of strides 8, 16, ... find boxes up to 64, 128, ... pixels.
    """
    x, y, stride = points.double().unbind(1)
    strides = stride.unique()
    before = dict(zip(strides[1:].tolist(), strides[:-1].tolist(), strict=True))
    least = torch.tensor([before.get(each, 0.0) for each in stride.tolist()], dtype=torch.float64) * reach
    most = torch.where(stride == strides[-1], torch.inf, stride * reach)
    return Points(x, y, stride, least.to(stride.device), most)


class Assigned(NamedTuple):
    """What each point is to find, (N, P) each."""

    objects: Tensor
    """int64: the object's row in the table of its picture, -1: none."""
    ignored: Tensor
    """bool: in a crowd or a difficult object, and none of another: gives no loss of classes."""


def assign(points: Points, tables: Tensor, radius: float) -> Assigned:
    """Give each point the object that it is to find: the smallest of the plain ones that the point is inside of, near
    the middle of, and whose size the point's map finds; of equal ones the first.

    Args:
        points: Where the model looks.
        tables: float64 (N, M, COLUMNS) of `box_table`.
        radius: How far off the middle of a box points find it, in strides, along x and along y.
    """
    pairs = len(points.x) * tables.shape[1]
    parts = [_assign(points, part, radius) for part in tables.split(max(1, _PAIRS_TOGETHER // pairs))]
    return Assigned(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _assign(points: Points, tables: Tensor, radius: float) -> Assigned:
    pictures, count = tables.shape[0], len(points.x)
    smallest = tables.new_full((pictures, count), torch.inf)
    objects = torch.full_like(smallest, -1, dtype=torch.int64)
    ignored = torch.zeros_like(smallest, dtype=torch.bool)
    at_once = max(1, _PAIRS // count)
    for first in range(0, tables.shape[1], at_once):
        rows = tables[:, None, first : first + at_once]  # (N, 1, m, COLUMNS), to compare with points (P, 1)
        inside, near = _find_near(points, rows, radius)
        there, plain = rows[..., box_table.CLASS] != box_table.PAD, rows[..., box_table.KIND] == PLAIN
        ignored |= (inside & there & ~plain).any(2)
        corners = box_table.corners(rows)
        areas = (corners[..., 2:] - corners[..., :2]).prod(3)
        areas = torch.where(near & there & plain, areas, torch.inf)
        best = areas.argmin(2)
        area = areas.gather(2, best[..., None])[..., 0]
        smaller = area < smallest
        objects = torch.where(smaller, best + first, objects)
        smallest = torch.where(smaller, area, smallest)
    return Assigned(objects, ignored & (objects < 0))


def _find_near(points: Points, rows: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Which points lie inside of which boxes, and which of these find them, bool (N, P, m) each."""
    x, y, reach = points.x[:, None], points.y[:, None], radius * points.stride[:, None]
    left, top, right, bottom = box_table.corners(rows).unbind(3)
    to_left, to_top, to_right, to_bottom = x - left, y - top, right - x, bottom - y
    nearest = torch.minimum(torch.minimum(to_left, to_right), torch.minimum(to_top, to_bottom))
    farthest = torch.maximum(torch.maximum(to_left, to_right), torch.maximum(to_top, to_bottom))
    inside = nearest > 0
    central = ((to_left - to_right).abs() < 2 * reach) & ((to_top - to_bottom).abs() < 2 * reach)
    of_size = (farthest > points.least[:, None]) & (farthest <= points.most[:, None])
    return inside, inside & central & of_size


class Wanted(NamedTuple):
    """What each point should say, (N, P, ...)."""

    objects: Tensor
    """int64: the row of the object that is to be found, -1: none."""
    found: Tensor
    """bool: there is one."""
    classes: Tensor
    """float64: its class."""
    distances: Tensor
    """float64 (N, P, 4): to its left, top, right and bottom side in strides; 1 where there is none."""
    centreness: Tensor
    """float64: 1 in the middle of the box, towards 0 at its sides; 0 where there is none."""
    ignored: Tensor
    """bool: gives no loss of classes."""


def find_wanted(points: Points, tables: Tensor, radius: float) -> Wanted:
    """What each point should say; arguments as `assign` has them."""
    objects, ignored = assign(points, tables, radius)
    found = objects >= 0
    rows = tables.gather(1, objects.clamp(min=0)[..., None].expand(-1, -1, tables.shape[2]))
    left, top, right, bottom = box_table.corners(rows).unbind(2)
    sides = torch.stack([points.x - left, points.y - top, right - points.x, bottom - points.y], 2)
    distances = torch.where(found[..., None], sides / points.stride[:, None], 1.0)
    first, last = distances[..., :2], distances[..., 2:]
    centreness = (torch.minimum(first, last) / torch.maximum(first, last)).prod(2).sqrt() * found
    return Wanted(objects, found, box_table.classes(rows), distances, centreness, ignored)


def divisors(wanted: Wanted) -> Tensor:
    """What the sums of `losses` are divided by, float64 (3,): points that find something, where a picture in which none
    does counts as one, so that what is learned from empty pictures has a size; their centreness; these points."""
    found = wanted.found.sum(1, dtype=torch.float64)
    return torch.stack([found.clamp(min=1).sum(), wanted.centreness.sum(), found.sum()])


def losses(output: Tensor, wanted: Wanted) -> Tensor:
    """Sums over all points, float64 (3,), of losses in fp32 or better: the focal loss of the classes; of points that
    find something, 1 - GIoU of the box times the centreness, and the cross-entropy of the centreness.

    Args:
        output: (N, P, 5 + classes): distances, logit of the centreness, logits of the classes.
        wanted: What it should be.
    """
    logits, dtype = output[..., 5:], output.dtype
    numbers = torch.arange(logits.shape[2], device=output.device)
    truth = (wanted.found[..., None] & (wanted.classes[..., None] == numbers)).to(dtype)
    of_class = focal(logits, truth).sum(2) * ~wanted.ignored
    centreness = wanted.centreness.to(dtype)
    of_box = (1 - giou(output[..., :4], wanted.distances.to(dtype))) * centreness
    of_centre = functional.binary_cross_entropy_with_logits(output[..., 4], centreness, reduction="none") * wanted.found
    return torch.stack([each.sum(1).double().sum() for each in (of_class, of_box, of_centre)])


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Of each logit against 0 or 1: `alpha_t (1 - p_t)^gamma` times the cross-entropy (Lin et al. 2017, equation 5)."""
    plain = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = torch.sigmoid(logits) * (1 - 2 * truth) + truth  # 1 - p_t
    return (ALPHA * truth + (1 - ALPHA) * (1 - truth)) * wrong**GAMMA * plain


def giou(found: Tensor, true: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019) of two boxes around one point, -1 to 1.

    Args:
        found: (..., 4): distances from the point to the left, top, right and bottom side, 0 or more.
        true: (..., 4), above 0.
    """
    inner, outer = torch.minimum(found, true), torch.maximum(found, true)
    both, hull, ours, theirs = ((each[..., :2] + each[..., 2:]).prod(-1) for each in (inner, outer, found, true))
    either = ours + theirs - both
    return both / either - (hull - either) / hull
