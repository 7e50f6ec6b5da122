"""The random changes of training pictures: each is one function here, and nothing of it stands elsewhere.

A setting that is missing, None, 0 or false is off. `data/augment.py` applies those that are on to a batch, whatever
their order in a recipe: first the crop, then the flips, then rotate, scale and translate about the middle of the
output, all of it as one mapping from output to stored pixels, so that a turned crop shows what the stored picture holds
beyond the crop. Masks follow this mapping. Then the colours, in the order of this file, each clamped to [0, 1], which
is torchvision's ColorJitter in a fixed order; masks stay as they are.

To add one, decorate a function with what it takes, and give it columns of its own: a sample's random numbers are
uniform in [0, 1), a column each. Never renumber a column: recorded runs would train on other pictures.

Imports neither torch nor NumPy, so that a recipe is checked without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from trainers.formatting import nearest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    F64 = npt.NDArray[np.float64]

TRIES = 10
"""Boxes drawn for `resized_crop`, of which the first that fits is taken."""


@dataclass
class View:
    """Where the output's pixels come from, for N samples; arrays are (N,), and numbers hold for all samples."""

    stored: tuple[int, int]
    """Height and width of the stored pictures."""
    size: tuple[int, int]
    """Height and width of the output."""
    box: tuple[F64, F64, F64, F64] | None = None
    """Top, left, height and width of the stored part that is shown, in pixels. None: `size` in the middle."""
    flip_x: F64 | float = 1.0
    """-1 where mirrored."""
    flip_y: F64 | float = 1.0
    angle: F64 | float = 0.0
    """In radians."""
    zoom: F64 | float = 1.0
    down: F64 | float = 0.0
    """In pixels of the output, as `right`."""
    right: F64 | float = 0.0
    fill: str = "zeros"
    """What lies outside the stored picture: zeros, edge or reflect."""
    bilinear: bool = False
    """Whether pixels may lie between stored ones; else they are copied exactly."""


Change = Callable[[View, Any, "F64"], None]
"""Changes a view, by the setting's value, which `allows` has accepted, and the samples' random numbers (N, columns)."""


@dataclass(frozen=True)
class Geometry:
    """A change of the place that pixels come from, the same for pictures and masks."""

    takes: str
    allows: Callable[[object], bool]
    columns: tuple[int, ...]
    excludes: tuple[str, ...]
    change: Change


ColourChange = Callable[["Tensor", "Tensor"], "Tensor"]
"""Returns pictures (N, C, H, W) changed by factors (N, 1, 1, 1)."""


@dataclass(frozen=True)
class Colour:
    """A change of the pictures' values by a factor for each sample, uniform in [middle - value, middle + value]."""

    takes: str
    allows: Callable[[object], bool]
    columns: tuple[int, ...]
    excludes: tuple[str, ...]
    middle: float
    rgb: bool
    """Whether it needs 3 channels. Grey pictures stay as they are."""
    change: ColourChange


AUGMENTATIONS: dict[str, Geometry | Colour] = {}
"""Filled by the decorators below, in the order of this file."""


def check(settings: Mapping[str, object]) -> None:
    """Raises ValueError, with what is allowed, for unknown augmentations and for values that they do not take."""
    for name, value in settings.items():
        if name not in AUGMENTATIONS:
            raise ValueError(f"there is no augmentation called {name!r}{nearest(name, AUGMENTATIONS)}")
        augmentation = AUGMENTATIONS[name]
        if not augmentation.allows(value):
            raise ValueError(f"augment {name}={value} is not allowed; augment {name} takes {augmentation.takes}")
    for name in settings:
        others = [other for other in AUGMENTATIONS[name].excludes if settings.get(other)]
        if settings[name] and others:
            raise ValueError(f"augment: {name} excludes {' and '.join(others)}; leave one of them out")


def uniform(low: float, high: float, draws: F64) -> F64:
    """Random numbers of [0, 1), spread over [low, high)."""
    return low + (high - low) * draws


# What settings allow


def _number(most: float) -> Callable[[object], bool]:
    return lambda value: _is_number(value) and 0 <= value <= most


def _whole(most: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _range(most: float) -> Callable[[object], bool]:
    def allows(value: object) -> bool:
        if not (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))):
            return False
        return bool(0 < value[0] <= value[1] <= most)

    return allows


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


# Geometry


def _geometry(
    takes: str,
    allows: Callable[[object], bool],
    columns: tuple[int, ...] = (),
    excludes: tuple[str, ...] = (),
) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        AUGMENTATIONS[change.__name__] = Geometry(takes, allows, columns, excludes, change)
        return change

    return register


@_geometry("a probability, 0 to 1", _number(1), columns=(0,))
def horizontal_flip(view: View, probability: float, draws: F64) -> None:
    """Mirrored left to right."""
    import numpy as np

    view.flip_x = np.where(draws[:, 0] < probability, -1.0, 1.0)


@_geometry("a probability, 0 to 1", _number(1), columns=(1,))
def vertical_flip(view: View, probability: float, draws: F64) -> None:
    """Mirrored top to bottom."""
    import numpy as np

    view.flip_y = np.where(draws[:, 0] < probability, -1.0, 1.0)


@_geometry("degrees, either way, 0 to 180", _number(180), columns=(2,))
def rotate(view: View, degrees: float, draws: F64) -> None:
    """Turned about the middle by up to so many degrees, to the left or right."""
    import numpy as np

    view.angle, view.bilinear = np.radians(uniform(-degrees, degrees, draws[:, 0])), True


@_geometry("[smallest, largest] factor, above 0", _range(math.inf), columns=(3,))
def scale(view: View, factors: tuple[float, float], draws: F64) -> None:
    """What is shown becomes so many times as large."""
    view.zoom, view.bilinear = uniform(*factors, draws[:, 0]), True


@_geometry("a share of height and width, either way, 0 to 1", _number(1), columns=(4, 5))
def translate(view: View, share: float, draws: F64) -> None:
    """Moved up or down by up to this share of the height, left or right by that of the width, by whole pixels."""
    import numpy as np

    rows, columns = view.size
    view.down = np.rint(uniform(-share * rows, share * rows, draws[:, 0]))
    view.right = np.rint(uniform(-share * columns, share * columns, draws[:, 1]))


@_geometry("pixels around the picture before a random crop, a whole number", _whole(1_000_000), columns=(6, 7))
def pad(view: View, pixels: int, draws: F64) -> None:
    """Cut from a random place of the picture widened by so many pixels on each side."""
    view.box = _cut(view, pixels, draws)


@_geometry("true: a random place where pictures are stored larger than image_size", _is_flag, columns=(6, 7))
def crop(view: View, _on: bool, draws: F64) -> None:
    """Cut from a random place; without it, from the middle."""
    if view.box is None:  # else `pad` has cut it
        view.box = _cut(view, 0, draws)


@_geometry(
    "[smallest, largest] share of the area, above 0, at most 1",
    _range(1),
    columns=(6, 7, *range(12, 12 + 2 * TRIES)),
    excludes=("crop", "pad"),
)
def resized_crop(view: View, area: tuple[float, float], draws: F64) -> None:
    """A box of this share of the area, of aspect 3/4 to 4/3, becomes the output: torchvision's RandomResizedCrop.

    The first of TRIES boxes that fits the picture; else the largest allowed, in the middle. It is not antialiased:
    boxes of more than about twice the output's size give jagged pictures.
    """
    import numpy as np

    height, width = view.stored
    pixels = height * width * uniform(area[0], area[1], draws[:, 2 : 2 + TRIES])
    ratio = np.exp(uniform(np.log(3 / 4), np.log(4 / 3), draws[:, 2 + TRIES :]))
    heights, widths = np.rint(np.sqrt(pixels / ratio)), np.rint(np.sqrt(pixels * ratio))
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first, found = (np.arange(len(draws)), fits.argmax(axis=1)), fits.max(axis=1)

    box_height = np.where(found, heights[first], min(height, round(width * 4 / 3)))
    box_width = np.where(found, widths[first], min(width, round(height * 4 / 3)))
    spare_y, spare_x = height - box_height, width - box_width
    top = np.where(found, np.floor(draws[:, 0] * (spare_y + 1)), spare_y // 2)
    left = np.where(found, np.floor(draws[:, 1] * (spare_x + 1)), spare_x // 2)
    view.box, view.bilinear = (top, left, box_height, box_width), True


@_geometry("what lies outside: zeros, reflect or edge", lambda value: value in ("zeros", "reflect", "edge"))
def fill(view: View, kind: str, _draws: F64) -> None:
    """Outside the stored picture: black (the default, an honest "nothing here"), its mirror image or nearest pixel.

    Masks are ignored there, whatever it is: mirrored content is not an annotation.
    """
    view.fill = kind


def _cut(view: View, around: int, draws: F64) -> tuple[F64, F64, F64, F64]:
    """Boxes of the output's size at random places of a picture with `around` pixels more on each side."""
    import numpy as np

    (height, width), (rows, columns) = view.stored, view.size
    spare_y, spare_x = height + 2 * around - rows, width + 2 * around - columns
    assert min(spare_y, spare_x) >= 0, f"{height}x{width}, padded by {around}, is smaller than {rows}x{columns}"
    top, left = np.floor(draws[:, 0] * (spare_y + 1)) - around, np.floor(draws[:, 1] * (spare_x + 1)) - around
    ones = np.ones(len(draws))
    return top, left, ones * rows, ones * columns


# Colours


def _colour(
    takes: str, most: float, column: int, middle: float = 1.0, rgb: bool = False
) -> Callable[[ColourChange], ColourChange]:
    def register(change: ColourChange) -> ColourChange:
        AUGMENTATIONS[change.__name__] = Colour(takes, _number(most), (column,), (), middle, rgb, change)
        return change

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
    return _blend(images, _grey(images).mean(-1, keepdim=True).mean((-2, -3), keepdim=True), factor)


@_colour(_STRENGTH, 1, column=10, rgb=True)
def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with the grey picture."""
    return _blend(images, _grey(images), factor)


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


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return images * factor + other * (1 - factor)


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) of three channels, by torchvision's weights; other images as they are."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.chunk(3, dim=1)
    return red * 0.2989 + green * 0.587 + blue * 0.114


COLUMNS = 1 + max(column for augmentation in AUGMENTATIONS.values() for column in augmentation.columns)
"""Random numbers of each sample."""
