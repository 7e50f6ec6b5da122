"""Foreground or background for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainers.tasks.base import Ints, Scores
from trainers.tasks.segment import Segment, dice_losses

TARGET = "masks"
CLASSES = 2


def outputs(classes: int) -> int:
    """One logit. Raises ValueError where there are other classes than two."""
    if classes != CLASSES:
        raise ValueError(
            f"task 'segment_binary' needs {CLASSES} classes, background and foreground; the data has {classes}: "
            "take task 'segment'"
        )
    return 1


def make(
    classes: int,
    class_weights: Tensor | None = None,
    *,
    loss: Literal["cross_entropy", "dice", "sum"] = "cross_entropy",
    stride: int = 1,
    boundary_tolerance: float = 0.0075,
) -> SegmentBinary:
    """The task.

    Args:
        classes: Number of classes.
        class_weights: float64 (classes,) or None.
        loss: See `Segment`.
        stride: See `Segment`.
        boundary_tolerance: See `Segment`.

    Raises:
        ValueError: A value is not allowed, or values exclude each other.
    """
    outputs(classes)
    return SegmentBinary(classes, class_weights, loss=loss, stride=stride, boundary_tolerance=boundary_tolerance)


class SegmentBinary(Segment):
    """Background (0) and foreground (1), from one logit per pixel: `output` is (N, 1, h, w)."""

    metric = "iou"

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return 1

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """Those of `Segment`, but dice and f1 are the foreground's, as are iou, precision and recall; 0 where there
        is none."""
        scores = super().scores(counts)
        names = ("iou", "dice", "f1", "precision", "recall")
        return {**scores, **{name: scores["per_class"][name][1] or 0.0 for name in names}}

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = self._weight_of_label.to(logits.device, logits.dtype)[target]
        truth = (target == 1).to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits[:, 0], truth, weights, reduction="none")

    def _dice(self, logits: Tensor, target: Tensor) -> Tensor:
        """Dice losses of the foregrounds, (N,)."""
        return dice_losses(logits.sigmoid(), target[:, None] == 1, target)[:, 0]

    def _decide(self, logits: Tensor) -> Tensor:
        return (logits[:, 0] > 0).to(torch.uint8)
