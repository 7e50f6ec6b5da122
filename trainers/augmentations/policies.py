"""Operations drawn from a list for each picture: RandAugment and TrivialAugment.

Their lists, and how strong an operation is at most, are those of the papers, as torchvision has them, but for the order
and for what follows:

- The operations that move pixels join the one mapping of `data/augment.py`, bilinear, and what they lay open is filled
  as `fill` says (black, unless it is given). Those that change values come after, in the order drawn.
- `color` changes pictures of three channels alone.

Pictures are in [0, 1]; what a paper says in steps of 8 bits is meant in 255ths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trainers.augmentations._registry import Effect, View, augmentation, is_flag, pair_of, whole
from trainers.augmentations.colours import blend, brightness, contrast, saturation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    F64 = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

BINS = 31
"""Strengths of an operation, from none to its most."""
MOST_OPERATIONS = 4
OF_RAND = 2
"""Operations of RandAugment where none are given: N of the paper's table 4."""


class Drawn(NamedTuple):
    """An operation for each sample."""

    which: Ints
    """Number in OPERATIONS, (N,)."""
    level: F64
    """Of its most, in [0, 1], (N,)."""
    sign: F64
    """1 or -1, (N,)."""


@augmentation(
    f"a strength, 0 to {BINS - 1}, such as 9, of {OF_RAND} operations; or [operations, strength], up to "
    f"{MOST_OPERATIONS} operations, written as 3,9 on the command line",
    lambda value: whole(BINS - 1)(value) or pair_of(whole(MOST_OPERATIONS), whole(BINS - 1))(value),
    columns=tuple(range(32, 32 + 2 * MOST_OPERATIONS)),
    excludes=("trivial_augment",),
)
def rand_augment(view: View, value: int | tuple[int, int], draws: F64) -> None:
    """So many operations of equal strength: Cubuk, Zoph, Shlens and Le 2020 (magnitude of 9 in their ResNet-50)."""
    import numpy as np

    operations, strength = (OF_RAND, value) if isinstance(value, int) else value
    level = np.full(len(draws), strength / (BINS - 1))
    if operations:
        _apply(view, [_draw(draws[:, 2 * i], level, draws[:, 2 * i + 1]) for i in range(operations)], wide=False)


@augmentation("true", is_flag, columns=(40, 41, 42), excludes=("rand_augment",))
def trivial_augment(view: View, _on: bool, draws: F64) -> None:
    """One operation of a random strength: Müller and Hutter 2021, TrivialAugment (wide), algorithm 1 and table 1."""
    import numpy as np

    level = np.floor(draws[:, 1] * BINS) / (BINS - 1)
    _apply(view, [_draw(draws[:, 0], level, draws[:, 2])], wide=True)


# Operations that move pixels: the matrices (n, 2, 3) of `View.warp`, by amounts (n,)


def _matrices(amount: F64) -> F64:
    """Those that change nothing."""
    import numpy as np

    return np.tile(np.eye(2, 3), (len(amount), 1, 1))


def _shear_x(amount: F64, _size: tuple[int, int]) -> F64:
    """About the top left corner, as in the papers."""
    matrices = _matrices(amount)
    matrices[:, 0, 1] = amount
    return matrices


def _shear_y(amount: F64, _size: tuple[int, int]) -> F64:
    matrices = _matrices(amount)
    matrices[:, 1, 0] = amount
    return matrices


def _translate_x(amount: F64, _size: tuple[int, int]) -> F64:
    """To the right, by whole pixels."""
    import numpy as np

    matrices = _matrices(amount)
    matrices[:, 0, 2] = -np.trunc(amount.round(6))
    return matrices


def _translate_y(amount: F64, _size: tuple[int, int]) -> F64:
    """Down, by whole pixels."""
    import numpy as np

    matrices = _matrices(amount)
    matrices[:, 1, 2] = -np.trunc(amount.round(6))
    return matrices


def _rotate(amount: F64, size: tuple[int, int]) -> F64:
    """To the left, by degrees, about the middle."""
    import numpy as np

    cos, sin = np.cos(np.radians(amount)), np.sin(np.radians(amount))
    middle_x, middle_y = size[1] / 2, size[0] / 2
    rows = [
        [cos, -sin, middle_x - cos * middle_x + sin * middle_y],
        [sin, cos, middle_y - sin * middle_x - cos * middle_y],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=1)


# Operations that change values: pictures (n, C, H, W) in [0, 1], in any order; amounts (n, 1, 1, 1)


def _brightness(images: Tensor, amount: Tensor) -> Tensor:
    return brightness(images, 1 + amount)


def _color(images: Tensor, amount: Tensor) -> Tensor:
    return saturation(images, 1 + amount) if images.shape[1] == 3 else images


def _contrast(images: Tensor, amount: Tensor) -> Tensor:
    return contrast(images, 1 + amount)


def _sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Blended with the mean of 3x3 pixels, of which the middle counts five times. The border stays as it is."""
    if min(images.shape[2:]) <= 2:
        return images
    middle = images[:, :, 1:-1, 1:-1]
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * middle) / 13
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = blend(middle, smooth, 1 + amount)
    return result


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only so many of the 8 bits are kept."""
    step = 2 ** (8 - bits)
    return ((images * 255 + _ROUNDING) / step).floor() * step / 255


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """What is as bright as the threshold, or brighter, is inverted."""
    return images.where(images < threshold - _ROUNDING / 255, 1 - images)


def _autocontrast(images: Tensor, _amount: Tensor) -> Tensor:
    """Each channel spread over [0, 1]."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    spread = high - low
    even = spread == 0
    return (images - low.masked_fill(even, 0)) / spread.masked_fill(even, 1)


def _equalize(images: Tensor, _amount: Tensor) -> Tensor:
    """Each channel's values spread so that all of 256 occur about equally often, by Pillow's integers."""
    import torch

    count, channels, height, width = images.shape
    levels = (images * 255).round().long().clamp(0, 255).flatten(2)
    histogram = torch.zeros(count, channels, 256, dtype=torch.long, device=images.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    total = histogram.cumsum(2)
    brightest = histogram.gather(2, total.argmax(2, keepdim=True))  # pixels of the largest value
    step = (height * width - brightest) // 255
    table = ((total - histogram + step // 2) // step.clamp(min=1)).clamp(0, 255)
    result = table.gather(2, levels).view_as(images) / 255
    return torch.where((step > 0)[..., None], result.to(images.dtype), images)


_ROUNDING = 1e-3
"""255ths by which a value may have been rounded."""
Warp = Callable[["F64", tuple[int, int]], "F64"]


@dataclass(frozen=True)
class Operation:
    """What may be drawn."""

    name: str
    usual: float = 0.0
    """Its most in RandAugment."""
    wide: float = 0.0
    """Its most in TrivialAugment."""
    signed: bool = False
    """Whether it goes either way."""
    warp: Warp | None = None
    change: Callable[[Tensor, Tensor], Tensor] | None = None

    def amount(self, drawn: Drawn, size: tuple[int, int], wide: bool) -> F64:
        """Of each sample, (n,)."""
        import numpy as np

        most = self.wide if wide else self.usual
        if self.name.startswith("translate") and not wide:  # a share of the picture
            most *= size[1] if self.name.endswith("x") else size[0]
        amount = drawn.level * most
        if self.name == "posterize":
            return np.asarray(8 - np.rint(amount))
        if self.name == "solarize":
            return np.asarray(1 - amount)
        return amount * drawn.sign if self.signed else amount


OPERATIONS = (
    Operation("identity"),
    Operation("shear_x", 0.3, 0.99, True, warp=_shear_x),
    Operation("shear_y", 0.3, 0.99, True, warp=_shear_y),
    Operation("translate_x", 150 / 331, 32, True, warp=_translate_x),
    Operation("translate_y", 150 / 331, 32, True, warp=_translate_y),
    Operation("rotate", 30, 135, True, warp=_rotate),
    Operation("brightness", 0.9, 0.99, True, change=_brightness),
    Operation("color", 0.9, 0.99, True, change=_color),
    Operation("contrast", 0.9, 0.99, True, change=_contrast),
    Operation("sharpness", 0.9, 0.99, True, change=_sharpness),
    Operation("posterize", 4, 6, change=_posterize),
    Operation("solarize", 1, 1, change=_solarize),
    Operation("autocontrast", change=_autocontrast),
    Operation("equalize", change=_equalize),
)
"""In torchvision's order. Never reorder them: recorded runs would train on other pictures."""


def _draw(operation: F64, level: F64, sign: F64) -> Drawn:
    import numpy as np

    return Drawn(np.floor(operation * len(OPERATIONS)).astype(np.int64), level, np.where(sign < 0.5, -1.0, 1.0))


def _apply(view: View, rounds: list[Drawn], wide: bool) -> None:
    """What was drawn, as part of the mapping or as effects."""
    import numpy as np

    # All samples go the same way, moved or not: none depends on its batch
    view.warp, view.bilinear = _matrices(rounds[0].sign), True
    for drawn in rounds:
        for number, operation in enumerate(OPERATIONS):
            rows = np.flatnonzero(drawn.which == number)
            if not len(rows):
                continue
            own = Drawn(drawn.which[rows], drawn.level[rows], drawn.sign[rows])
            amount = operation.amount(own, view.size, wide)
            if operation.change is not None:
                view.effects.append(Effect(operation.change, (amount[:, None, None, None],), rows))
            if operation.warp is not None:
                # What comes later is nearer to the output
                matrices = operation.warp(amount, view.size)
                before = view.warp[rows]
                view.warp[rows] = before[:, :, :2] @ matrices
                view.warp[rows, :, 2] += before[:, :, 2]
