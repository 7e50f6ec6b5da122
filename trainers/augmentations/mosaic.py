"""Each picture with three others around a random point: one stored picture of twice the height and width.

Of it the middle is shown, and with `scale` below 1 more. The last tenth of the epochs has none. From: Bochkovskiy, Wang
and Liao 2020. It is put together where pictures are read: data/mosaic.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainers.augmentations._registry import AUGMENTATIONS, Tiling, number

REST = 10
"""One in so many epochs has none, the last ones."""

AUGMENTATIONS["mosaic"] = Tiling("a probability, 0 to 1", number(1), excludes=("crop", "pad", "resized_crop"))


def is_on(settings: Mapping[str, object], epoch: int, epochs: int) -> bool:
    """Whether an epoch, counted from 0, has mosaics, by a recipe's `augment` and the number of its epochs."""
    return bool(settings.get("mosaic")) and epoch < epochs - -(-epochs // REST)


def side(settings: Mapping[str, object]) -> int:
    """Stored pictures along a side of what is made one of them."""
    return 2 if settings.get("mosaic") else 1
