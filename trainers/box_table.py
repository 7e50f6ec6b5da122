"""The columns of a table of objects: what is stored, batched, learned from and matched, of NumPy and torch alike.

A row is an object, or padding, whose class is PAD and whose scale is that of its picture; pictures have one at least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from trainers.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

LEFT, TOP, RIGHT, BOTTOM, CLASS, KIND, AREA, SCALE = range(8)
"""Sides in pixels of the picture as it lies beside the table; the number of the class, or PAD; the kind
(PLAIN, ...); area in pixels of the original picture; of these, how many a pixel of the picture stands for."""
COLUMNS = 8
PLAIN, CROWD, DIFFICULT = 0, 1, 2
"""Kinds of objects. Crowd (many of a class in one box) and difficult: what finds them is neither right nor wrong, and
their places give no class loss."""
PAD = -1
"""Class of rows that hold no object."""

T = TypeVar("T", Array, "Tensor")
"""Tables, (..., M, COLUMNS)."""


def corners(table: T) -> T:
    """Left, top, right, bottom, (..., M, 4)."""
    found: T = table[..., LEFT : BOTTOM + 1]
    return found


def classes(table: T) -> T:
    """(..., M), floats as all columns are."""
    found: T = table[..., CLASS]
    return found


def kinds(table: T) -> T:
    """(..., M)."""
    found: T = table[..., KIND]
    return found


def areas(table: T) -> T:
    """(..., M)."""
    found: T = table[..., AREA]
    return found


def scales(table: T) -> T:
    """Of each picture, (...)."""
    found: T = table[..., 0, SCALE]
    return found


def are_objects(table: T) -> T:
    """Which rows are objects, of any kind, and not padding: bool (..., M)."""
    found: T = table[..., CLASS] != PAD
    return found


def are_plain(table: T) -> T:
    """Which rows are objects that are to be found: bool (..., M)."""
    found: T = (table[..., CLASS] != PAD) & (table[..., KIND] == PLAIN)
    return found


def padding(scale: float) -> npt.NDArray[np.float64]:
    """The table of a picture without objects, (1, COLUMNS)."""
    row = np.zeros((1, COLUMNS))
    row[:, CLASS], row[:, SCALE] = PAD, scale
    return row
