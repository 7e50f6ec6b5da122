"""What an augmentation is, and which there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from trainers.formatting import nearest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    F64 = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

TRIES = 10
"""Boxes drawn of random area and aspect, of which the first that fits is taken."""


@dataclass(frozen=True)
class Effect:
    """A change of the values of some pictures."""

    change: Callable[..., Tensor]
    """Returns pictures (n, C, H, W), in any order, changed by `numbers` as tensors."""
    numbers: tuple[F64 | Ints, ...] = ()
    """Arrays (n, ...), a row for each picture; floats become those of the pictures."""
    rows: Ints | None = None
    """Which pictures of the batch, (n,). None: all."""


@dataclass(frozen=True)
class Elastic:
    """Positions moved at random, smoothly: Simard, Steinkraus and Platt 2003, section 2."""

    strength: float
    """alpha: factor of the smoothed numbers of [-1, 1), in pixels."""
    smoothness: float
    """sigma of the Gaussian that smooths them, in pixels."""
    seeds: Ints
    """(N,)."""


@dataclass(frozen=True)
class Erased:
    """Boxes of random values: Zhong, Zheng, Kang, Li and Yang 2020, algorithm 1."""

    rows: Ints
    """Which pictures of the batch, (n,)."""
    boxes: Ints
    """Top, left, bottom and right, (n, 4), in pixels of the output."""
    seeds: Ints
    """(n,)."""


@dataclass
class View:
    """Where the output's pixels come from, and what becomes of their values, for N samples; arrays are (N,), and
    numbers hold for all samples."""

    stored: tuple[int, int]
    """Height and width of the stored pictures."""
    size: tuple[int, int]
    """Height and width of the output."""
    channels: int
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
    warp: F64 | None = None
    """(N, 2, 3): the output's (x, y, 1) shows this place of what all the above gives, in pixels of the output."""
    elastic: Elastic | None = None
    erased: Erased | None = None
    fill: str = "zeros"
    """What lies outside the stored picture: zeros, edge or reflect."""
    bilinear: bool = False
    """Whether pixels may lie between stored ones; else they are copied exactly."""
    effects: list[Effect] = field(default_factory=list)
    """In the order in which they are applied."""


Change = Callable[[View, Any, "F64"], None]
"""Changes a view, by the setting's value, which `allows` has accepted, and the samples' random numbers (N, columns)."""


@dataclass(frozen=True)
class Augmentation:
    """A change of each picture by itself."""

    takes: str
    allows: Callable[[object], bool]
    columns: tuple[int, ...]
    excludes: tuple[str, ...]
    change: Change


class Mixed(NamedTuple):
    """How the pictures of a micro-batch are mixed."""

    share: float
    """Of each picture in what is shown; its partner has the rest."""
    box: tuple[int, int, int, int] | None = None
    """Top, left, bottom and right of where the partner is shown, in pixels; None: both are, everywhere."""


@dataclass(frozen=True)
class Mixing:
    """Two pictures in one."""

    takes: str
    allows: Callable[[object], bool]
    excludes: tuple[str, ...]
    draw: Callable[[float, Sequence[float], tuple[int, int]], Mixed]
    """Mixes by the setting's value, MIXING_DRAWS random numbers of the micro-batch, and height and width."""


@dataclass(frozen=True)
class Tiling:
    """Several stored pictures as one, which is then changed as any is: data/mosaic.py."""

    takes: str
    allows: Callable[[object], bool]
    excludes: tuple[str, ...]


MIXING_DRAWS = 4
AUGMENTATIONS: dict[str, Augmentation | Mixing | Tiling] = {}
"""Filled by the decorators below."""


def check(settings: Mapping[str, object]) -> None:
    """Raises ValueError, with what is allowed, for unknown augmentations and for values that they do not take; 0 and
    False turn any off."""
    for name, value in settings.items():
        if name not in AUGMENTATIONS:
            raise ValueError(f"there is no augmentation called {name!r}{nearest(name, AUGMENTATIONS)}")
        augmentation = AUGMENTATIONS[name]
        off = isinstance(value, int | float) and not value
        if not off and not augmentation.allows(value):
            raise ValueError(f"augment {name}={value} is not allowed; augment {name} takes {augmentation.takes}")
    for name in settings:
        others = [other for other in AUGMENTATIONS[name].excludes if settings.get(other)]
        if settings[name] and others:
            raise ValueError(f"augment: {name} excludes {' and '.join(others)}; leave one of them out")


def columns_of(settings: Mapping[str, object]) -> int:
    """How many random numbers of each sample are needed: column numbers are below this."""
    on = (AUGMENTATIONS[name] for name, value in settings.items() if value)
    return 1 + max((column for each in on if isinstance(each, Augmentation) for column in each.columns), default=0)


def mixing_of(settings: Mapping[str, object]) -> list[str]:
    """The names of what mixes pictures and is on, in an order of their own."""
    return [name for name, each in AUGMENTATIONS.items() if isinstance(each, Mixing) and settings.get(name)]


# Decorators


def augmentation(
    takes: str,
    allows: Callable[[object], bool],
    columns: tuple[int, ...] = (),
    excludes: tuple[str, ...] = (),
) -> Callable[[Change], Change]:
    """Register a change of each picture by itself, under its name."""

    def register(change: Change) -> Change:
        AUGMENTATIONS[change.__name__] = Augmentation(takes, allows, columns, excludes, change)
        return change

    return register


# What settings allow


def number(most: float) -> Callable[[object], bool]:
    """From 0 to `most`."""
    return lambda value: is_number(value) and 0 <= value <= most


def whole(most: int) -> Callable[[object], bool]:
    """A whole number from 0 to `most`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def pair_of(first: Callable[[object], bool], second: Callable[[object], bool]) -> Callable[[object], bool]:
    """Two values in a list."""
    return lambda value: isinstance(value, list | tuple) and len(value) == 2 and first(value[0]) and second(value[1])


def ascending(most: float) -> Callable[[object], bool]:
    """Two numbers above 0, the first not above the second."""

    def allows(value: object) -> bool:
        if not (isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))):
            return False
        return bool(0 < value[0] <= value[1] <= most)

    return allows


def is_flag(value: object) -> bool:
    """True or false."""
    return isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """A finite number, and no flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


# Random numbers


def uniform(low: float, high: float, draws: F64) -> F64:
    """Random numbers of [0, 1), spread over [low, high)."""
    return low + (high - low) * draws


def seeds(draws: F64) -> Ints:
    """Random numbers of [0, 1) as seeds of further ones: all of their 53 bits."""
    import numpy as np

    return (draws * 2.0**53).astype(np.int64)
