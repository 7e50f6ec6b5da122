"""Changes of the pictures' values by a factor for each sample: torchvision's ColorJitter in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainers.augmentations._registry import Effect, View, augmentation, number, uniform

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    F64 = npt.NDArray[np.float64]

ColourChange = Callable[["Tensor", "Tensor"], "Tensor"]
"""Returns pictures (N, C, H, W) changed by factors (N, 1, 1, 1)."""


def _colour(
    takes: str, most: float, column: int, middle: float = 1.0, rgb: bool = False
) -> Callable[[ColourChange], ColourChange]:
    """By a factor that is uniform in [middle - value, middle + value]. `rgb`: it needs 3 channels; grey pictures stay
    as they are."""

    def register(function: ColourChange) -> ColourChange:
        def change(view: View, value: float, draws: F64) -> None:
            if rgb and view.channels not in (1, 3):
                raise ValueError(
                    f"{function.__name__} needs images of 3 channels (1 is left as it is), got {view.channels}: take "
                    "it out of `augment`"
                )
            if not rgb or view.channels == 3:
                factors = uniform(middle - value, middle + value, draws[:, 0])
                view.effects.append(Effect(function, (factors[:, None, None, None],)))

        change.__name__ = function.__name__
        augmentation(takes, number(most), columns=(column,))(change)
        return function

    return register


_STRENGTH = "strength d, at most 1: factor in [1-d, 1+d]"


@_colour(_STRENGTH, 1, column=8)
def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplied by the factor."""
    return images * factor


@_colour(_STRENGTH, 1, column=9)
def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with the mean of the grey picture."""
    # Rows first: in one go, a single image may be summed in another order than a batch.
    return blend(images, grey(images).mean(-1, keepdim=True).mean((-2, -3), keepdim=True), factor)


@_colour(_STRENGTH, 1, column=10, rgb=True)
def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with the grey picture."""
    return blend(images, grey(images), factor)


@_colour("shift in [-d, d] of the colour circle, d at most 0.5", 0.5, column=11, middle=0.0, rgb=True)
def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Colours turned by up to this share of the circle, in both directions."""
    import torch

    red, green, blue = images.chunk(3, dim=1)
    # Pairwise: a reduction over three channels takes several times as long.
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    divisor = chroma.masked_fill(chroma == 0, 1)  # grey stays grey: its chroma is 0 whatever the hue
    angle = torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    angle = torch.where(high == red, (green - blue) / divisor, angle) + 6 * shift
    result = []
    for start in (5, 3, 1):  # https://en.wikipedia.org/wiki/HSL_and_HSV, "HSV to RGB alternative"
        k = (angle + start).remainder(6)
        result.append(high - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(result, dim=1)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return images * factor + other * (1 - factor)


def grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) of three channels, by torchvision's weights; other images as they are."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.chunk(3, dim=1)
    return red * 0.2989 + green * 0.587 + blue * 0.114
