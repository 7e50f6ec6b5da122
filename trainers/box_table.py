"""The objects of a picture as rows of a table, those of a batch as tables that are padded to the longest.

Columns: left, top, right, bottom in pixels of the picture as it is stored, and once it was augmented of that which the
model sees; class, PAD in rows that only pad; kind, as `trainers.datasets` numbers them; area in pixels of the original
picture; scale: pixels of the original that one pixel of this picture stands for, the same in all rows, padding too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

LEFT, TOP, RIGHT, BOTTOM, CLASS, KIND, AREA, SCALE = range(8)
COLUMNS = 8
PAD = -1
"""Class of rows that hold no object."""
T = TypeVar("T", npt.NDArray[Any], "Tensor")


def corners(table: T) -> T:
    """Left, top, right, bottom, (..., M, 4), of a table (..., M, COLUMNS)."""
    found: T = table[..., LEFT : BOTTOM + 1]
    return found


def classes(table: T) -> T:
    """The numbers of the classes, (..., M), of the table's own type; PAD in rows that only pad."""
    found: T = table[..., CLASS]
    return found


def kinds(table: T) -> T:
    """PLAIN, CROWD or DIFFICULT of `trainers.datasets`, (..., M), of the table's own type."""
    found: T = table[..., KIND]
    return found


def areas(table: T) -> T:
    """In pixels of the original picture, (..., M)."""
    found: T = table[..., AREA]
    return found


def scales(table: T) -> T:
    """Pixels of the original picture that a pixel of this one stands for, (...)."""
    found: T = table[..., 0, SCALE]
    return found
