"""Foreground or background for each pixel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from trainers.tasks import losses
from trainers.tasks.base import Ints, Scores
from trainers.tasks.segment import Segment
from trainers.upload import upload

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
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    focal_alpha: float | None = None,
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
    stride: int = 1,
    boundary_tolerance: float = 0.0075,
) -> SegmentBinary:
    """The task.

    Args:
        classes: Number of classes.
        class_weights: float64 (classes,) or None.
        loss: See `Segment`; bce is the cross-entropy.
        label_smoothing, focal_gamma, focal_alpha, tversky_alpha, tversky_beta: See `losses.Parameters`.
        stride: See `Segment`.
        boundary_tolerance: See `Segment`.

    Raises:
        ValueError: A value is not allowed, or values exclude each other.
    """
    outputs(classes)
    parameters = losses.Parameters(label_smoothing, focal_gamma, focal_alpha, tversky_alpha, tversky_beta)
    return SegmentBinary(
        classes,
        class_weights,
        loss=loss,
        parameters=parameters,
        stride=stride,
        boundary_tolerance=boundary_tolerance,
    )


class SegmentBinary(Segment):
    """Background (0) and foreground (1), from one logit per pixel: `output` is (N, 1, h, w)."""

    metric = "iou"
    weighted_losses = losses.OF_PIXELS

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

    def _loss_of_pixels(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted losses, (N, h, w); 0 where ignored."""
        weights = upload(self._weight_of_label, logits.device, logits.dtype)[target]
        truth = (target == 1).to(logits.dtype)
        if name != "focal":
            truth = losses.smoothed(truth, self.parameters.label_smoothing, CLASSES)
            return functional.binary_cross_entropy_with_logits(logits[:, 0], truth, weights, reduction="none")
        plain = functional.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")
        if (alpha := self.parameters.focal_alpha) is not None:
            weights = weights * (alpha * truth + (1 - alpha) * (1 - truth))
        return losses.focal(plain, self.parameters.focal_gamma) * weights

    def _loss_of_images(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses of the foregrounds, added up, (N,)."""
        truth, probabilities = target[:, None] == 1, logits.sigmoid()
        each = {
            "dice": lambda: losses.dice(probabilities, truth, target),
            "tversky": lambda: losses.tversky(probabilities, truth, target, self.parameters),
            "lovasz": lambda: losses.lovasz(torch.where(truth, 1 - logits, 1 + logits), truth, target),
        }
        return torch.stack([each[name]()[:, 0] for name in self.of_images]).sum(0)

    def _decide(self, logits: Tensor) -> Tensor:
        return (logits[:, 0] > 0).to(torch.uint8)
