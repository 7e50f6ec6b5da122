"""What a model of prototypes learns of objects' masks, after YOLACT: Bolya, Zhou, Xiao, Lee, ICCV 2019; and the masks.

A mask's logits are the sum of a picture's prototypes by the coefficients of a point. Each object is learned at one
point, the most central of those that are to find it: that follows from points and objects alone, as in `box_loss`.
Logits are those of cells of stride x stride pixels, and what is learned is the share of a cell that the object covers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainers import box_table
from trainers.instances import Instances
from trainers.tasks.box_loss import Wanted

STRIDES = (1, 2, 4, 8, 16, 32)
"""Pixels of the picture, along each side, that a number of a prototype may stand for."""


def find_central(wanted: Wanted, objects: int) -> Tensor:
    """The point at which each object is learned: of those that find it, the one with the largest centreness, of equal
    ones the first; as many as there are points where none does. int64 (N, objects)."""
    pictures, count = wanted.objects.shape
    rows = wanted.objects + 1  # 0: those that find nothing
    best = wanted.centreness.new_zeros(pictures, objects + 1).scatter_reduce(1, rows, wanted.centreness, "amax")
    number = torch.arange(count, device=rows.device).expand(pictures, -1)
    number = torch.where(wanted.found & (wanted.centreness == best.gather(1, rows)), number, count)
    first = torch.full((pictures, objects + 1), count, device=rows.device)
    return first.scatter_reduce(1, rows, number, "amin")[:, 1:]


def find_stride(image_size: tuple[int, int], size: tuple[int, int]) -> int | None:
    """Of prototypes of this height and width, which cover a picture of `image_size`; None: they cover none."""
    fits = (each for each in STRIDES if all(-(-i // each) == s for i, s in zip(image_size, size, strict=True)))
    return next(fits, None)


def share_cells(layers: Tensor, objects: int, stride: int) -> Tensor:
    """The share of each cell that each object of a picture covers.

    Args:
        layers: uint8 (L, height, width), of `instances`.
        objects: Rows of the picture's table.
        stride: Pixels along the side of a cell.

    Returns:
        float32 (objects, height / stride, width / stride), rounded up; cells at the rim are those parts of them that
        lie in the picture.
    """
    sides = [torch.arange(side, device=layers.device) // stride for side in layers.shape[1:]]
    rows, columns = (-(-side // stride) for side in layers.shape[1:])
    cells = layers.long() * (rows * columns) + (sides[0][:, None] * columns + sides[1])
    pixels = torch.zeros((objects + 1) * rows * columns, device=layers.device)
    pixels = pixels.scatter_add(0, cells.flatten(), torch.ones_like(cells.flatten(), dtype=pixels.dtype))
    down, across = (
        pixels.new_zeros(count).scatter_add(0, side, torch.ones_like(side, dtype=pixels.dtype))
        for count, side in zip((rows, columns), sides, strict=True)
    )
    return pixels.view(objects + 1, rows, columns)[1:] / (down[:, None] * across)


def cover(boxes: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """How much of a box lies in each cell, as a share of the box: float64 (M, height, width), which add up to 1.

    Args:
        boxes: float64 (M, 4), left, top, right, bottom in pixels.
        stride: Pixels along the side of a cell.
        size: Height and width, in cells.
    """
    shares = []
    for side, first in ((0, 1), (1, 0)):
        start = torch.arange(size[side], dtype=boxes.dtype, device=boxes.device) * stride
        low, high = boxes[:, first, None], boxes[:, first + 2, None]
        inside = (torch.minimum(high, start + stride) - torch.maximum(low, start)).clamp(min=0)
        shares.append(inside / (high - low).clamp(min=1e-9))
    return shares[0][:, :, None] * shares[1][:, None, :]


def loss(coefficients: Tensor, prototypes: Tensor, targets: Instances[Tensor], learned: Tensor, stride: int) -> Tensor:
    """The sum over all objects of the cross-entropies of their masks, each the mean over the object's box; float64.

    Picture by picture, in fp32 or better: M x h x w logits are alive at once, and what the way back needs of them.

    Args:
        coefficients: (N, M, K), of the point at which each object is learned.
        prototypes: (N, K, h, w).
        targets: Of the pictures.
        learned: bool (N, M), which objects count.
        stride: Of the prototypes.
    """
    sums = []
    for number, maps in enumerate(prototypes):
        boxes = box_table.corners(targets.table[number])
        weights = cover(boxes, stride, (maps.shape[1], maps.shape[2])) * learned[number, :, None, None]
        truth = share_cells(targets.layers[number], len(boxes), stride).to(maps.dtype)
        logits = make_logits(coefficients[number], maps)
        each = functional.binary_cross_entropy_with_logits(logits, truth, weights.to(maps.dtype), reduction="none")
        sums.append(each.sum((1, 2)).double().sum())
    return torch.stack(sums).sum()


def make_logits(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """Of masks (..., M, h, w), from coefficients (..., M, K) and prototypes (..., K, h, w), in the precision that these
    have: a sum of 16 products in bf16 would move the rims of objects."""
    with torch.autocast(prototypes.device.type, enabled=False):
        return torch.einsum("...mk,...khw->...mhw", coefficients, prototypes)


# ---- masks ----


def draw(logits: Tensor, boxes: Tensor, rows: Tensor, columns: Tensor, stride: float) -> Tensor:
    """Masks of a picture's objects: where the logits, enlarged, are above 0, within the objects' boxes.

    Args:
        logits: (M, h, w).
        boxes: (M, 4), left, top, right, bottom in pixels.
        rows, columns, stride: as of `enlarge`.

    Returns:
        bool (M, R, C).
    """
    left, top, right, bottom = boxes.unbind(1)
    inside = (rows >= top[:, None]) & (rows < bottom[:, None])
    inside = inside[:, :, None] & ((columns >= left[:, None]) & (columns < right[:, None]))[:, None, :]
    return (enlarge(logits, rows, columns, stride) > 0) & inside


def enlarge(logits: Tensor, rows: Tensor, columns: Tensor, stride: float) -> Tensor:
    """Logits of pixels, interpolated linearly, as `functional.interpolate` does.

    Args:
        logits: (M, h, w).
        rows: (R,), where the middles of pixels lie, from above, in pixels of what the model saw.
        columns: (C,), likewise, from the left.
        stride: Of these pixels that a number of the logits stands for, along each side.

    Returns:
        (M, R, C).
    """
    return _interpolate(_interpolate(logits, rows / stride - 0.5, 1), columns / stride - 0.5, 2)


def _interpolate(values: Tensor, places: Tensor, dimension: int) -> Tensor:
    """Linearly between the values, at places counted along a dimension of three; beyond the ends, those."""
    last = values.shape[dimension] - 1
    places = places.clamp(0, last)
    low = places.floor()
    share = (places - low).to(values.dtype)
    share = share if dimension == 2 else share[:, None]
    low = low.long()
    return torch.lerp(
        values.index_select(dimension, low), values.index_select(dimension, (low + 1).clamp(max=last)), share
    )
