"""Pictures pasted side by side."""

from __future__ import annotations

import numpy as np

from trainers.arrays import Array


def paste(tiles: Array, corners: Array, shown: Array) -> Array:
    """Pictures of twice the height and width, black where no tile lies.

    Args:
        tiles: (places, N, height, width, channels).
        corners: top and left of each, in pixels, int64 (places, 2, N); what lies beyond the picture is cut off.
        shown: whether it is there, (places, N).

    Returns:
        (N, 2 height, 2 width, channels).
    """
    _, count, height, width, channels = tiles.shape
    made = np.zeros((count, 2 * height, 2 * width, channels), tiles.dtype)
    for place, row in np.argwhere(shown).tolist():
        top, left = corners[place, :, row].tolist()
        seen = made[row, max(0, top) : top + height, max(0, left) : left + width]
        first_row, first_column = max(0, -top), max(0, -left)
        seen[:] = tiles[place, row, first_row : first_row + len(seen), first_column : first_column + seen.shape[1]]
    return made
