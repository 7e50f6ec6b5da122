"""Any number of labels for each picture: cat and dog, or neither.

A logit for each label, learned by binary cross-entropies. The scores are made of two integer tables with a row for each
picture, the bits of its logits in fp32 and its labels: equal in any order and on any number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainers.image_tables import average_precisions, read_labels
from trainers.ratios import divide
from trainers.tasks.base import Counts, Floats, Ints, Scores, precise
from trainers.upload import upload

TARGET = "label_sets"


def outputs(classes: int) -> int:
    """A logit for each label."""
    return classes


def make(
    classes: int,
    class_weights: Tensor | None = None,
    *,
    pos_weight: float | str | None = None,
    threshold: float = 0.5,
    target_shares: Sequence[float] | None = None,
) -> Multilabel:
    """The task for so many labels.

    Args:
        classes: their number.
        class_weights: float64 (classes,) or None.
        pos_weight: factor of the loss where a label is there; "balanced": for each label, pictures without it by
            pictures with it; None: 1.
        threshold: probability above which a label is predicted.
        target_shares: of the training pictures, the share that has each label.

    Raises:
        ValueError: a value is not allowed.
    """
    if pos_weight == "balanced":
        shares = torch.tensor(target_shares or [0.5] * classes, dtype=torch.float64)
        factors = torch.where(shares > 0, (1 - shares) / shares.clamp(min=1e-12), 1.0)
        factors = torch.where(factors > 0, factors, 1.0)  # a label that all pictures have
    else:
        factor = 1.0 if pos_weight is None else pos_weight
        if not isinstance(factor, int | float) or not 0 < factor < np.inf:
            raise ValueError(f"pos_weight={pos_weight} is not allowed; give a number above 0, or balanced")
        factors = torch.full((classes,), float(factor), dtype=torch.float64)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold} is not allowed; give a number between 0 and 1")
    return Multilabel(classes, class_weights, factors, threshold)


class Multilabel:
    """`output` is logits (N, classes); `target` int64 (N, classes), 1 where a picture has the label, else 0."""

    metric = "map"
    errors = ()
    shown = 0

    def __init__(
        self, classes: int, class_weights: Tensor | None, pos_weight: Tensor | None = None, threshold: float = 0.5
    ) -> None:
        """
        Args:
            classes: their number.
            class_weights: float64 (classes,) or None: all alike. Only their ratios count.
            pos_weight: float64 (classes,) or None: 1.
            threshold: probability above which a label is predicted.
        """
        self.classes, self.threshold = classes, threshold
        weights = torch.ones(classes, dtype=torch.float64) if class_weights is None else class_weights
        self.weights = weights / weights.sum()
        self.pos_weight = torch.ones(classes, dtype=torch.float64) if pos_weight is None else pos_weight
        self.cut = float(np.log(threshold) - np.log1p(-threshold))
        """The logit of the threshold."""

    def weight(self, target: Tensor) -> Tensor | None:
        """None: divided by the number of images."""
        return None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum over images of the weighted means, over labels, of their binary cross-entropies, (1,)."""
        logits = precise(output)
        weights, factors = (upload(each, logits.device, logits.dtype) for each in (self.weights, self.pos_weight))
        return functional.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), weights, pos_weight=factors, reduction="sum"
        )[None]

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """1 where a label is predicted, else 0, int64 (N, classes); `size` is not used."""
        return (precise(output) > self.cut).long()

    def probabilities(self, output: Tensor) -> Tensor:
        """Of each label by itself, (N, classes)."""
        return precise(output).sigmoid()

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """per_image: `logits`, int32 (N, classes), the bits of fp32; `labels`, uint8 (N, classes)."""
        return Counts({}, {"logits": precise(output).float().view(torch.int32), "labels": target.to(torch.uint8)})

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """None: images are not ranked."""
        return None

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """All from the tables of logits and labels; a ratio of 0 to 0 counts as 0.

        map: mean of the average precisions of the labels that occur in the split; 0 where none does
        f1, precision, recall: means over all labels of those at the threshold
        f1_micro: F1 of all decisions together
        exact_match: share of the pictures whose labels are all right
        per_class: `average_precision` (None where the label does not occur), `precision`, `recall`, `f1`
        """
        logits, true = read_labels(counts)
        predicted = logits > self.cut
        right, trues, predictions = (predicted & true).sum(0), true.sum(0), predicted.sum(0)
        precision, recall = divide(right, predictions), divide(right, trues)
        f1 = divide(2 * right, trues + predictions)
        each = average_precisions(logits, true)
        known = [value for value in each if value is not None]
        return {
            "map": float(np.mean(known)) if known else 0.0,
            "f1": float(f1.mean()),
            "f1_micro": float(divide(2 * right.sum()[None], (trues + predictions).sum()[None])[0]),
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "exact_match": float((predicted == true).all(1).mean()),
            "per_class": {
                "average_precision": each,
                "precision": precision.tolist(),
                "recall": recall.tolist(),
                "f1": f1.tolist(),
            },
        }
