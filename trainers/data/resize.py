"""Items of a data set to pictures and targets of the stored size."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from trainers.data.batches import Array
from trainers.datasets import IGNORED, MASK, BadImage, Item
from trainers.recipe import Recipe
from trainers.registry import load


class Decoder:
    """Items of a recipe's data set, as pictures of the recipe's stored size."""

    def __init__(self, recipe: Recipe, channels: int, classes: int) -> None:
        self.read_item = load("datasets", recipe.dataset).read
        self.size, self.resize = recipe.storage_size, recipe.resize
        self.channels, self.classes = channels, classes

    def read(self, item: Item) -> list[tuple[Array, Any]]:
        """(uint8 (height, width, channels), class number or uint8 (height, width)) for each sample. Raises BadImage."""
        hinted = dataclasses.replace(item, args={**item.args, "min_size": self.size})
        return [
            (shrink(image, self.size, self.resize), self._shrink(self._check(item, image, target)))
            for image, target in self.read_item(hinted)
        ]

    def read_raw(self, item: Item) -> list[tuple[Array, Any]]:
        """As `read`, but at the picture's own size."""
        return [(image, self._check(item, image, target)) for image, target in self.read_item(item)]

    def _shrink(self, target: Any) -> Any:
        if isinstance(target, int):
            return target
        return shrink(target[:, :, None], self.size, self.resize, mask=True)[:, :, 0]

    def _check(self, item: Item, image: Array, target: Any) -> Any:
        if item.targets[0] != MASK:
            return int(target)
        if target.shape != image.shape[:2] or target.dtype != np.uint8:
            shape, dtype = "x".join(map(str, target.shape)), target.dtype
            wanted = f"{image.shape[0]}x{image.shape[1]} of uint8"
            raise BadImage(f"{item.name}: the mask is {shape} of {dtype}; it must be {wanted}, as the picture is")
        wrong = np.flatnonzero(np.bincount(target.reshape(-1), minlength=256)[self.classes : IGNORED])
        if len(wrong):
            ids = ", ".join(str(number + self.classes) for number in wrong[:8])
            raise BadImage(
                f"{item.name}: the mask holds {ids}; allowed are 0 to {self.classes - 1}, and {IGNORED} for no class"
            )
        return target

    def try_read(self, item: Item) -> list[tuple[Array, Any]] | str:
        """`read`, or the reason why it cannot be done."""
        try:
            return self.read(item)
        except BadImage as error:
            return str(error)


def shrink(image: Array, size: tuple[int, int], how: str, *, mask: bool = False) -> Array:
    """Bring a picture to `size`, with antialiasing: uint8 (H, W, C) -> uint8 (*size, C). `how`: see Recipe.resize.

    A mask, (H, W, 1), keeps its class numbers: each pixel is the nearest one, and padding is IGNORED.
    """
    from PIL import Image

    (height, width), (target_height, target_width) = image.shape[:2], size
    if (height, width) == size:
        return image
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    box = (0.0, 0.0, float(width), float(height))
    inner = (target_width, target_height)
    if how == "crop":
        scale = min(width / target_width, height / target_height)
        left, top = (width - target_width * scale) / 2, (height - target_height * scale) / 2
        box = (left, top, width - left, height - top)
    elif how == "pad":
        scale = max(width / target_width, height / target_height)
        inner = (max(1, round(width / scale)), max(1, round(height / scale)))
    between = Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR
    resized = np.asarray(picture.resize(inner, between, box=box))
    resized = resized.reshape(inner[1], inner[0], image.shape[2])
    if how != "pad":
        return resized
    canvas = np.full((*size, image.shape[2]), IGNORED if mask else 0, np.uint8)
    top, left = (target_height - inner[1]) // 2, (target_width - inner[0]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = resized
    return canvas
