"""Two pictures in one. A picture's partner is another of its micro-batch, and all of that are mixed alike.

Where both are on, each micro-batch is mixed in one of the two ways, with equal chances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from trainers.augmentations._registry import AUGMENTATIONS, Mixed, Mixing, mixing_of, number

Draw = Callable[[float, Sequence[float], tuple[int, int]], Mixed]


def _mixing(takes: str) -> Callable[[Draw], Draw]:
    def register(draw: Draw) -> Draw:
        AUGMENTATIONS[draw.__name__] = Mixing(takes, number(math.inf), (), draw)
        return draw

    return register


@_mixing("alpha of the Beta(alpha, alpha) distribution of the shares, such as 0.2; 1: all shares are as likely")
def mixup(alpha: float, draws: Sequence[float], _size: tuple[int, int]) -> Mixed:
    """Added up by shares: Zhang, Cisse, Dauphin and Lopez-Paz 2018, section 2."""
    return Mixed(symmetric_beta(alpha, draws[0], draws[1]))


@_mixing("alpha of the Beta(alpha, alpha) distribution of the shares of the area, such as 1, the paper's")
def cutmix(alpha: float, draws: Sequence[float], size: tuple[int, int]) -> Mixed:
    """A box of the partner pasted in: Yun, Han, Oh, Chun, Choe and Yoo 2019, section 3.1 and appendix A.

    Its middle is anywhere in the picture; what lies outside is cut off, and the share is that of the pixels.
    """
    height, width = size
    ratio = math.sqrt(1 - symmetric_beta(alpha, draws[0], draws[1]))
    (top, bottom), (left, right) = (
        _interval(math.floor(draw * length), math.floor(ratio * length / 2), length)
        for draw, length in ((draws[2], height), (draws[3], width))
    )
    return Mixed(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def _interval(middle: int, half: int, length: int) -> tuple[int, int]:
    return max(middle - half, 0), min(middle + half, length)


def symmetric_beta(alpha: float, first: float, second: float) -> float:
    """A number of Beta(alpha, alpha), from two of [0, 1).

    With t of Student's distribution of 2 alpha degrees, (1 + t / sqrt(2 alpha + t^2)) / 2 is one; and t is
    sqrt(2 alpha (first^(-1 / alpha) - 1)) cos(2 pi second): Bailey 1994, "Polar generation of random variates with the
    t-distribution", Mathematics of Computation 62.
    """
    power, cosine = first ** (1 / alpha), math.cos(2 * math.pi * second)
    return 0.5 + 0.5 * cosine * math.sqrt((1 - power) / (power + cosine**2 * (1 - power)))


def note(settings: Mapping[str, object], micro_batch_size: int | None) -> str:
    """What people should know of mixing that does nothing; "": nothing."""
    names = mixing_of(settings)
    if not names or micro_batch_size != 1:
        return ""
    given = " and ".join(f"{name}={settings[name]}" for name in names)
    return (
        f"augment {given} mixes the pictures of a micro-batch, and one of micro_batch_size=1 has no other: nothing is "
        "mixed; give --micro-batch-size 2 or more"
    )
