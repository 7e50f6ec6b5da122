"""Where pixels come from, the same for pictures and masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainers.augmentations._registry import (
    TRIES,
    Elastic,
    Erased,
    View,
    ascending,
    augmentation,
    is_flag,
    number,
    pair_of,
    seeds,
    uniform,
    whole,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]

ERASED_AREA, ERASED_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
"""Smallest and largest share of the picture, and height through width, of the paper (section 4.1)."""


@augmentation("a probability, 0 to 1", number(1), columns=(0,))
def horizontal_flip(view: View, probability: float, draws: F64) -> None:
    """Mirrored left to right."""
    import numpy as np

    view.flip_x = np.where(draws[:, 0] < probability, -1.0, 1.0)


@augmentation("a probability, 0 to 1", number(1), columns=(1,))
def vertical_flip(view: View, probability: float, draws: F64) -> None:
    """Mirrored top to bottom."""
    import numpy as np

    view.flip_y = np.where(draws[:, 0] < probability, -1.0, 1.0)


@augmentation("degrees, either way, 0 to 180", number(180), columns=(2,))
def rotate(view: View, degrees: float, draws: F64) -> None:
    """Turned about the middle by up to so many degrees, to the left or right."""
    import numpy as np

    view.angle, view.bilinear = np.radians(uniform(-degrees, degrees, draws[:, 0])), True


@augmentation("[smallest, largest] factor, above 0", ascending(math.inf), columns=(3,))
def scale(view: View, factors: tuple[float, float], draws: F64) -> None:
    """What is shown becomes so many times as large."""
    view.zoom, view.bilinear = uniform(*factors, draws[:, 0]), True


@augmentation("a share of height and width, either way, 0 to 1", number(1), columns=(4, 5))
def translate(view: View, share: float, draws: F64) -> None:
    """Moved up or down by up to this share of the height, left or right by that of the width, by whole pixels."""
    import numpy as np

    rows, columns = view.size
    view.down = np.rint(uniform(-share * rows, share * rows, draws[:, 0]))
    view.right = np.rint(uniform(-share * columns, share * columns, draws[:, 1]))


@augmentation("pixels around the picture before a random crop, a whole number", whole(1_000_000), columns=(6, 7))
def pad(view: View, pixels: int, draws: F64) -> None:
    """Cut from a random place of the picture widened by so many pixels on each side."""
    view.box = _cut(view, pixels, draws)


@augmentation("true: a random place where pictures are stored larger than image_size", is_flag, columns=(6, 7))
def crop(view: View, _on: bool, draws: F64) -> None:
    """Cut from a random place; without it, from the middle."""
    if view.box is None:  # else `pad` has cut it
        view.box = _cut(view, 0, draws)


@augmentation(
    "[smallest, largest] share of the area, above 0, at most 1",
    ascending(1),
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
    heights, widths, fits = _boxes(view.stored, area, (3 / 4, 4 / 3), draws[:, 2:])
    first, found = (np.arange(len(draws)), fits.argmax(axis=1)), fits.max(axis=1)

    box_height = np.where(found, heights[first], min(height, round(width * 4 / 3)))
    box_width = np.where(found, widths[first], min(width, round(height * 4 / 3)))
    spare_y, spare_x = height - box_height, width - box_width
    top = np.where(found, np.floor(draws[:, 0] * (spare_y + 1)), spare_y // 2)
    left = np.where(found, np.floor(draws[:, 1] * (spare_x + 1)), spare_x // 2)
    view.box, view.bilinear = (top, left, box_height, box_width), True


@augmentation("what lies outside: zeros, reflect or edge", lambda value: value in ("zeros", "reflect", "edge"))
def fill(view: View, kind: str, _draws: F64) -> None:
    """Outside the stored picture: black (the default, an honest "nothing here"), its mirror image or nearest pixel.

    Masks are ignored there, whatever it is: mirrored content is not an annotation.
    """
    view.fill = kind


@augmentation(
    "[strength, smoothness] in pixels, written as 34,4 on the command line (for 28x28; 200,10 for 128x128)",
    pair_of(number(math.inf), lambda value: number(math.inf)(value) and value != 0),
    columns=(43,),
)
def elastic(view: View, value: tuple[float, float], draws: F64) -> None:
    """Bent as rubber: each pixel moved by two smooth random fields; see `Elastic`, whose paper has [34, 4] for 29x29.

    Pixels move by about 0.16 strength / smoothness (standard deviation), in waves of a few times the smoothness. The
    border of the picture is as far as they go.
    """
    strength, smoothness = value
    if strength:
        view.elastic, view.bilinear = Elastic(strength, smoothness, seeds(draws[:, 0])), True


@augmentation("a probability, 0 to 1", number(1), columns=tuple(range(48, 52 + 2 * TRIES)))
def erase(view: View, probability: float, draws: F64) -> None:
    """A box of 2 to 40 % of the picture, of aspect 0.3 to 3.3, becomes random values, of each pixel and channel.

    Masks are ignored there: noise has no class. The first of TRIES boxes that fits; else none.
    """
    import numpy as np

    height, width = view.size
    heights, widths, fits = _boxes(view.size, ERASED_AREA, ERASED_ASPECT, draws[:, 4:])
    rows = np.flatnonzero((draws[:, 0] < probability) & fits.max(axis=1))
    first = (rows, fits[rows].argmax(axis=1))
    box_height, box_width = heights[first], widths[first]
    top = np.floor(draws[rows, 1] * (height - box_height + 1))
    left = np.floor(draws[rows, 2] * (width - box_width + 1))
    boxes = np.stack([top, left, top + box_height, left + box_width], axis=1).astype(np.int64)
    if len(rows):
        view.erased = Erased(rows, boxes, seeds(draws[rows, 3]))


def _boxes(
    within: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], draws: F64
) -> tuple[F64, F64, npt.NDArray[np.bool_]]:
    """Heights and widths of TRIES boxes for each sample, of uniform area and log-uniform aspect, and which fit.

    Args:
        within: Height and width of the picture.
        area: Smallest and largest, as shares of the picture.
        aspect: Smallest and largest width through height.
        draws: Random numbers (N, 2 TRIES).

    Returns:
        Pixels, whole numbers (N, TRIES), twice, and (N, TRIES).
    """
    import numpy as np

    height, width = within
    pixels = height * width * uniform(area[0], area[1], draws[:, :TRIES])
    ratio = np.exp(uniform(np.log(aspect[0]), np.log(aspect[1]), draws[:, TRIES:]))
    heights, widths = np.rint(np.sqrt(pixels / ratio)), np.rint(np.sqrt(pixels * ratio))
    return heights, widths, (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)


def _cut(view: View, around: int, draws: F64) -> tuple[F64, F64, F64, F64]:
    """Boxes of the output's size at random places of a picture with `around` pixels more on each side."""
    import numpy as np

    (height, width), (rows, columns) = view.stored, view.size
    spare_y, spare_x = height + 2 * around - rows, width + 2 * around - columns
    assert min(spare_y, spare_x) >= 0, f"{height}x{width}, padded by {around}, is smaller than {rows}x{columns}"
    top, left = np.floor(draws[:, 0] * (spare_y + 1)) - around, np.floor(draws[:, 1] * (spare_x + 1)) - around
    ones = np.ones(len(draws))
    return top, left, ones * rows, ones * columns
