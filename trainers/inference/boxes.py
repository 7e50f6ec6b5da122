"""Boxes of a model's detections: duplicates removed in static shapes, several looks at a picture merged, mapped back.

Detections are (K, 6): left, top, right, bottom, score, class; class -1 in rows that only pad. Further columns, where
there are some, stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.data.resize import fit

Floats = npt.NDArray[np.float64]
ROUNDS = 16
"""Of `kept`: more than the longest chain of boxes of which each removes the next."""
SMALLER = 0.5
"""Intersection over the smaller of two boxes from which on they are one object, seen twice (SAHI's)."""
RIM = 1.0
"""Pixels from the rim of a window within which a box ends there."""


def kept(boxes: Tensor, classes: Tensor, threshold: float, rounds: int = ROUNDS) -> Tensor:
    """Non-maximum suppression whose shapes do not depend on values, so that it can be exported.

    Which boxes greedy suppression keeps is the fixed point of "kept, unless a kept better one of its class overlaps".
    Starting with all, each round settles one more box of every chain in which each would remove the next: the result is
    that of torchvision's `batched_nms` unless a chain is longer than `rounds`.

    Args:
        boxes: (N, K, 4), the best ones first.
        classes: (N, K), negative in rows that only pad.
        threshold: of the intersection over union, above which a box is removed.
        rounds: how many are unrolled.

    Returns:
        bool (N, K).
    """
    both, area = _intersections(boxes, boxes), _areas(boxes)
    overlap = both / (area[:, :, None] + area[:, None, :] - both)
    number = torch.arange(boxes.shape[1], device=boxes.device)
    better = number[:, None] < number[None, :]
    removes = (overlap > threshold) & (classes[:, :, None] == classes[:, None, :]) & better
    found = there = classes >= 0
    for _ in range(rounds):
        found = there & ~(removes & found[:, :, None]).any(1)
    return found


def pairs(some: Tensor, others: Tensor, threshold: float = 0.5) -> int:
    """How many detections of two models are of the same objects: the surest first, each takes of those of its class
    that are left the one that it overlaps most.

    Args:
        some, others: (K, 6) and (L, 6), the surest first, without padding.
        threshold: the least intersection over union.
    """
    mine, theirs = some[:, :4], others[:, :4]
    both = _intersections(mine, theirs)
    overlap = both / (_areas(mine)[:, None] + _areas(theirs)[None, :] - both).clamp(min=1e-12)
    overlap = overlap * (some[:, None, 5] == others[None, :, 5])
    found = 0
    for row in overlap if len(others) else ():
        best = int(row.argmax())
        if row[best] >= threshold:
            overlap[:, best] = 0
            found += 1
    return found


def _intersections(boxes: Tensor, others: Tensor) -> Tensor:
    low = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    return (high - low).clamp(min=0).prod(-1)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def merge(looks: Sequence[Floats]) -> Floats:
    """The detections of several looks at a picture: of those of one class from different looks whose intersection is
    more than SMALLER of the smaller one, the surest is kept. What one look tells apart stays apart.

    Args:
        looks: the detections of each, in pixels of the picture, without padding.

    Returns:
        The surest first.
    """
    found = np.concatenate([*looks, np.empty((0, looks[0].shape[1] if looks else 6))])
    of = np.repeat(np.arange(len(looks)), [len(look) for look in looks])
    order = np.argsort(-found[:, 4], kind="stable")
    found, of = found[order], of[order]
    area = np.prod(np.clip(found[:, 2:4] - found[:, :2], 0, None), 1)
    left = np.ones(len(found), bool)
    for number in range(len(found)):
        if not left[number]:
            continue
        low, high = (np.maximum(found[number, :2], found[:, :2]), np.minimum(found[number, 2:4], found[:, 2:4]))
        both = np.prod(np.clip(high - low, 0, None), 1)
        same = (both > SMALLER * np.minimum(area[number], area)) & (found[:, 5] == found[number, 5])
        same[: number + 1] = False
        left &= ~(same & (of != of[number]))
    return found[left]


def whole(found: Floats, window: tuple[int, int], at: tuple[int, int], own: tuple[int, int]) -> Floats:
    """Detections of a window without those that its rim cuts, where the picture goes on; in pixels of the picture.

    Args:
        found: in pixels of the window.
        window: its height and width.
        at: its top and left.
        own: height and width of the picture.
    """
    (height, width), (top, left) = window, at
    cut = (found[:, 0] <= RIM) & (left > 0) | (found[:, 1] <= RIM) & (top > 0)
    cut |= (found[:, 2] >= width - RIM) & (left + width < own[1])
    cut |= (found[:, 3] >= height - RIM) & (top + height < own[0])
    return clip(Placed((1.0, 1.0), (left, top)).to_picture(found[~cut]), own)


class Placed(NamedTuple):
    """Where the pixels of what the model sees lie in the picture itself: scale * pixel + shift, by (x, y)."""

    scale: tuple[float, float]
    shift: tuple[float, float]

    def to_picture(self, found: Floats) -> Floats:
        """Detections in pixels of what the model sees, in those of the picture."""
        result = found.astype(np.float64)
        result[:, :4] = result[:, :4] * np.array([*self.scale] * 2) + np.array([*self.shift] * 2)
        return result


def place(own: tuple[int, int], stored: tuple[int, int], size: tuple[int, int], how: str) -> Placed:
    """Where what the model sees of a picture lies in it.

    Args:
        own: height and width of the picture.
        stored: of the picture as it was brought to one size, of which the model sees the middle.
        size: of what the model sees.
        how: the picture was brought there; see Recipe.resize.
    """
    fitted = fit(own, stored, how) if own != stored else fit(own, own, "stretch")
    (left, top, right, bottom), (width, height) = fitted.box, fitted.inner
    scale = ((right - left) / width, (bottom - top) / height)
    moved = ((stored[1] - size[1]) // 2 - fitted.at[0], (stored[0] - size[0]) // 2 - fitted.at[1])
    return Placed(scale, (left + scale[0] * moved[0], top + scale[1] * moved[1]))


def back(found: Floats, own: tuple[int, int], stored: tuple[int, int], size: tuple[int, int], how: str) -> Floats:
    """Detections in pixels of what the model sees, in those of the picture itself; arguments as of `place`."""
    return clip(place(own, stored, size, how).to_picture(found), own)


def clip(found: Floats, own: tuple[int, int]) -> Floats:
    """Detections within a picture of this height and width; those without any area there go."""
    result = found.copy()
    result[:, [0, 2]] = np.clip(result[:, [0, 2]], 0, own[1])
    result[:, [1, 3]] = np.clip(result[:, [1, 3]], 0, own[0])
    kept_ones: Floats = result[(result[:, 2] > result[:, 0]) & (result[:, 3] > result[:, 1])]
    return kept_ones
