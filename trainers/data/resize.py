"""Pictures and masks of any size to the stored one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainers.datasets import IGNORED

Pixels = npt.NDArray[np.uint8]


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
