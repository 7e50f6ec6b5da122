"""Where detection models look: the points of their maps of features, in pixels of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Masked(NamedTuple):
    """What a model that predicts at points returns for N pictures, where it predicts masks too."""

    points: Tensor
    """(N, P, 5 + classes + K): distances, centreness and classes of each point, and a coefficient of each prototype."""
    prototypes: Tensor
    """(N, K, h, w), of which the sum by the coefficients of a point is the logits of its object's mask."""


def grid(image_size: tuple[int, int], strides: Sequence[int]) -> Tensor:
    """The points of all maps, one map after the other, row by row.

    Args:
        image_size: Height and width of the pictures, in pixels.
        strides: Pixels between neighbouring points of each map, which has size / stride rows, rounded up. A point lies
            in the middle of its stride x stride pixels.

    Returns:
        float64 (points, 3): x, y and stride of each point, in pixels, on the CPU.
    """
    maps = []
    with torch.device("cpu"):  # also where a model is built without memory
        for stride in strides:
            rows, columns = (torch.arange(-(-size // stride), dtype=torch.float64) for size in image_size)
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            maps.append(torch.stack([(at + 0.5).flatten() * stride for at in (x, y)], 1))
            maps[-1] = torch.cat([maps[-1], torch.full((len(maps[-1]), 1), float(stride), dtype=torch.float64)], 1)
    return torch.cat(maps)


def precise(numbers: Tensor) -> Tensor:
    """In fp32 or better."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()
