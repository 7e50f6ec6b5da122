"""One class for each picture, of classes with an order, such as five grades of compaction of gravel.

The order is that of the data set's classes, and class folders are sorted by name: number them, as in `1_loose`,
`2_fair`, ... `5_dense`. What is printed when the data is read lists the classes in that order.

    python -m trainers train textures.cnn --data PATH --task ordinal

A model gives classes - 1 logits; number k is that of "the class lies above level k" (Frank and Hall 2001, "A simple
approach to ordinal classification", ECML), and all are learned together by binary cross-entropies (Niu et al. 2016,
"Ordinal regression with multiple output CNN for age estimation", CVPR). Confusing neighbours costs less than
confusing the ends.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainers.confusion import Confusion
from trainers.tasks.base import Counts, Floats, Ints, Scores, precise
from trainers.tasks.class_weights import weight_of_labels
from trainers.tasks.classify import count_labels, ratios_of_classes
from trainers.upload import upload

TARGET = "labels"
ORDERED = True
"""The order of the classes is a part of what is learned."""


def outputs(classes: int) -> int:
    """A logit for each level but the highest."""
    return classes - 1


def make(classes: int, class_weights: Tensor | None = None) -> Ordinal:
    """The task for so many classes, in the data set's order."""
    return Ordinal(classes, class_weights)


class Ordinal:
    """One class per picture, of classes 0 < 1 < ... < classes - 1. `output` is logits (N, classes - 1) of "above
    level k"; `target` is int64 (N,)."""

    metric = "kappa"
    errors = ("mae",)
    shown = 0
    every_probability = True

    def __init__(self, classes: int, class_weights: Tensor | None = None) -> None:
        """
        Args:
            classes: their number, 2 or more.
            class_weights: float64 (classes,) or None; a picture's loss is multiplied by its class's.
        """
        self.classes, self.class_weights = classes, class_weights

    def weight(self, target: Tensor) -> Tensor | None:
        """The sum of the class weights, float64 (1,); None without class weights."""
        return weight_of_labels(self.class_weights, target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum over pictures of their binary cross-entropies, added up over the levels, (1,), in fp32 or better."""
        logits = precise(output)
        if logits.shape[1:] != (self.classes - 1,):
            raise ValueError(
                f"the model's output is {tuple(logits.shape[1:])} for each picture; this task needs "
                f"{self.classes - 1} logits, one for each of {self.classes} classes but the last"
            )
        above = target[:, None] > torch.arange(self.classes - 1, device=target.device)
        losses = functional.binary_cross_entropy_with_logits(logits, above.to(logits.dtype), reduction="none").sum(1)
        if self.class_weights is not None:
            losses = losses * upload(self.class_weights, logits.device, logits.dtype)[target]
        return losses.sum()[None]

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """How many levels the class lies above with a probability of more than 1/2, int64 (N,); `size` is not used.

        That is Niu et al.'s rule. The probabilities need not fall from level to level: one that is out of line moves
        the class by one level, and by no more.
        """
        return (output > 0).sum(1)

    def probabilities(self, output: Tensor) -> Tensor:
        """Of each class, (N, classes): P(above k - 1) - P(above k), 0 where that is negative, divided by their sum.

        The class of the largest one may be another than `labels` gives, which is near the middle of the distribution.
        """
        above = precise(output).sigmoid()
        edges = torch.cat([torch.ones_like(above[:, :1]), above, torch.zeros_like(above[:, :1])], 1)
        each = (edges[:, :-1] - edges[:, 1:]).clamp(min=0)  # their sum is 1 or more
        return each / each.sum(1, keepdim=True)

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """Those of `count_labels`."""
        return count_labels(target, self.labels(output, (1, 1)), self.classes)

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """None: images are not ranked."""
        return None

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """All from the confusion matrix.

        kappa: quadratically weighted (Cohen 1968): 1 - observed / expected squared distance in levels, where expected
            is what the same true and predicted classes would give by chance; 1 where neither has any distance
        mae: mean absolute distance in levels
        within_one: share of the pictures that are at most one level off
        accuracy: share of the pictures that are right
        precision, recall, f1: means over classes and, under `per_class`, their lists, as of `classify`
        """
        confusion = Confusion.of(counts, self.classes)
        images, distance = confusion.images, np.abs(confusion.true - confusion.predicted)
        total = images.sum()
        recall, precision, f1 = ratios_of_classes(confusion)
        return {
            "accuracy": float(confusion.right.sum() / total),
            "mae": float((images * distance).sum() / total),
            "within_one": float(images[distance <= 1].sum() / total),
            "kappa": _kappa(confusion),
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f1": float(f1.mean()),
            "per_class": {"precision": precision.tolist(), "recall": recall.tolist(), "f1": f1.tolist()},
        }


def _kappa(confusion: Confusion) -> float:
    """1 - observed / expected squared distance. In Python's integers up to the division: exact for any number of
    pictures.

    Over all pairs of a true and a predicted picture, (i - j)^2 adds up from sums over each side alone.
    """
    cells = zip(confusion.true.tolist(), confusion.predicted.tolist(), confusion.images.tolist(), strict=True)
    observed = sum((i - j) ** 2 * images for i, j, images in cells)
    (total, true, true_squares), (_, predicted, predicted_squares) = (
        [sum(i**power * images for i, images in enumerate(side.tolist())) for power in range(3)]
        for side in (confusion.trues, confusion.predictions)
    )
    expected = total * true_squares + total * predicted_squares - 2 * true * predicted
    return 1.0 if expected == 0 else 1.0 - observed * total / expected
