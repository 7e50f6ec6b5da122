"""Pictures and masks of any size to the stored one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.datasets import IGNORED

Pixels = npt.NDArray[np.uint8]


class Fit(NamedTuple):
    """Which part of a picture becomes which part of another, in pixels; x before y."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom of what is seen of the picture."""
    inner: tuple[int, int]
    """Width and height that it becomes."""
    at: tuple[int, int]
    """Left and top of where it lies."""


def fit(own: tuple[int, int], size: tuple[int, int], how: str) -> Fit:
    """How a picture of height and width `own` is brought to `size`; `how`: see Recipe.resize."""
    (height, width), (target_height, target_width) = own, size
    box, inner, at = (0.0, 0.0, float(width), float(height)), (target_width, target_height), (0, 0)
    if how == "crop":
        scale = min(width / target_width, height / target_height)
        margins = (width - target_width * scale) / 2, (height - target_height * scale) / 2
        left, top = (max(0.0, margin) for margin in margins)  # rounded, that of the tight side may be below zero
        box = (left, top, width - left, height - top)
    elif how == "pad":
        scale = max(width / target_width, height / target_height)
        inner = (max(1, round(width / scale)), max(1, round(height / scale)))
        at = ((target_width - inner[0]) // 2, (target_height - inner[1]) // 2)
    return Fit(box, inner, at)


def shrink(image: Pixels, size: tuple[int, int], how: str, *, mask: bool = False) -> Pixels:
    """Bring a picture to another size, with antialiasing.

    Args:
        image: uint8 (H, W, C).
        size: height and width of the result.
        how: "crop", "stretch" or "pad"; see Recipe.resize.
        mask: whether `image` is a mask, (H, W, 1). It keeps its class numbers: each pixel is the nearest one, and
            padding is IGNORED.

    Returns:
        uint8 (*size, C).
    """
    from PIL import Image

    if image.shape[:2] == size:
        return image
    place = fit((image.shape[0], image.shape[1]), size, how)
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    between = Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR
    resized = np.asarray(picture.resize(place.inner, between, box=place.box))
    resized = resized.reshape(place.inner[1], place.inner[0], image.shape[2])
    if how != "pad":
        return resized
    canvas = np.full((*size, image.shape[2]), IGNORED if mask else 0, np.uint8)
    left, top = place.at
    canvas[top : top + place.inner[1], left : left + place.inner[0]] = resized
    return canvas
