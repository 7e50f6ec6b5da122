"""Objects with a mask each: a table of them, and layers of pixels with their numbers, of NumPy and torch alike.

Masks of objects that overlap lie in different layers. So few bytes hold the masks of many objects, and none loses a
pixel to another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from trainers.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

MOST_MASKS = 255
"""Objects of a picture that can have a mask: their numbers are bytes, and 0 is none."""
MOST_LAYERS = 6
"""Layers that a picture may have."""
LAYERS = 4
"""Layers that a picture has at most where nobody says otherwise."""

Targets = Any
"""Targets of a micro-batch: one array or tensor (N, ...), or `Instances` of them, as the kind of target has them."""
T = TypeVar("T")
A = TypeVar("A", Array, "Tensor")


class Instances(NamedTuple, Generic[T]):
    """The objects of N pictures."""

    table: T
    """(N, M, COLUMNS), as of `box_table`; float64 as a task gets it."""
    layers: T
    """uint8 (N, L, height, width): in each layer the number of an object, its row + 1, or 0 where there is none."""


def masks(instances: Instances[A]) -> A:
    """The pixels of each object, bool (N, M, height, width), by static shapes; none of rows that are padding."""
    table, layers = instances
    numbers = _numbers(layers, table.shape[1])[:, None, None]
    found: A = layers[:, :1] == numbers
    for layer in range(1, layers.shape[1]):
        found = found | (layers[:, layer : layer + 1] == numbers)
    return found


def _numbers(like: A, count: int) -> A:
    """1 to `count`, int16: rows beyond MOST_MASKS equal no pixel."""
    if isinstance(like, np.ndarray):
        return np.arange(1, count + 1, dtype=np.int16)
    import torch

    return torch.arange(1, count + 1, dtype=torch.int16, device=like.device)


def each(change: Callable[[Any], Any], targets: Targets) -> Targets:
    """What becomes of targets that are one array, or several in a named tuple, by a change of each array."""
    if isinstance(targets, tuple):
        return type(targets)(*map(change, targets))
    return change(targets)


def parts(targets: Targets) -> tuple[Any, ...]:
    """The array, or each of several: all have a row for each picture."""
    return tuple(targets) if isinstance(targets, tuple) else (targets,)


def together(arrays: Sequence[Any]) -> Targets:
    """The targets of which these are the `parts`."""
    return Instances(*arrays) if len(arrays) > 1 else arrays[0]
