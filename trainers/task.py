"""What is learned: the loss, the counts that are gathered from the workers, and the scores made of them.

A task never sees workers, epochs or files. The loop adds up what `loss`, `weight` and `counts` return, over
micro-batches and over workers, and divides once: results do not depend on how the rows were dealt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Counts = dict[str, Tensor]
Scores = dict[str, Any]


class Task(Protocol):
    """What the loop asks of a task."""

    metric: str
    """The score that decides which epoch is best; larger is better."""

    def weight(self, target: Tensor) -> Tensor | None:
        """The divisor that belongs to `loss`, 0-d, such as the sum of class weights. None: the number of images."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum of the losses of a micro-batch, as a 0-d tensor."""
        ...

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """Integer tensors of a fixed shape, to be added up."""
        ...

    def scores(self, counts: Mapping[str, npt.NDArray[np.int64]]) -> Scores:
        """Scores by bare name, from counts that were added up."""
        ...


class Classify:
    """One class per image: cross-entropy; accuracy, top-5, balanced accuracy, precision, recall, F1."""

    metric = "accuracy"

    def __init__(self, classes: int, class_weights: Tensor | None = None, *, label_smoothing: float = 0.0) -> None:
        """Parameters: `classes`; `class_weights`, float (classes,) or None; `label_smoothing` in [0, 1)
        (Szegedy et al. 2016, section 7). Raises ValueError."""
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is not allowed; give 0 up to, not including, 1")
        self.classes, self.class_weights, self.label_smoothing = classes, class_weights, label_smoothing

    def weight(self, target: Tensor) -> Tensor | None:
        """The sum of the class weights, float64, 0-d; None without class weights. `target`: int64 (N,)."""
        if self.class_weights is None:
            return None
        return self.class_weights.to(target.device, torch.float64)[target].sum()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum of cross-entropies, 0-d, in fp32 or better. `output`: logits (N, classes); `target`: int64 (N,)."""
        logits = output if output.dtype == torch.float64 else output.float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype)
        return functional.cross_entropy(logits, target, weights, reduction="sum", label_smoothing=self.label_smoothing)

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """`confusion`: int64 (classes, classes), rows are true classes; `top5`: int64, 0-d."""
        flat = target * self.classes + output.argmax(1)
        confusion = torch.bincount(flat, minlength=self.classes**2).view(self.classes, self.classes)
        best = output.topk(min(5, self.classes), dim=1).indices
        return {"confusion": confusion, "top5": (best == target[:, None]).sum()}

    def scores(self, counts: Mapping[str, npt.NDArray[np.int64]]) -> Scores:
        """accuracy, top5_accuracy, balanced_accuracy (mean recall of the classes that occur), and the means over
        classes of precision, recall and F1 with, under `per_class`, their lists. A ratio of 0 to 0 counts as 0."""
        confusion = counts["confusion"]
        total, right = confusion.sum(), np.diag(confusion)
        true, predicted = confusion.sum(1), confusion.sum(0)
        recall, precision = _ratio(right, true), _ratio(right, predicted)
        f1 = _ratio(2 * right, true + predicted)
        return {
            "accuracy": float(right.sum() / total),
            "top5_accuracy": float(counts["top5"] / total),
            "balanced_accuracy": float(recall[true > 0].mean()),
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f1": float(f1.mean()),
            "per_class": {"precision": precision.tolist(), "recall": recall.tolist(), "f1": f1.tolist()},
        }


def make(name: str, args: Mapping[str, Any], classes: int, class_weights: Tensor | None) -> Task:
    """The task called `name`. Raises ValueError for arguments that it does not have."""
    assert name == "classify"  # the only one so far; Recipe checks the name
    try:
        return Classify(classes, class_weights, **args)
    except TypeError as error:
        raise ValueError(f"task {name!r}: {error}; allowed is label_smoothing") from None


def weigh_classes(kind: str, frequencies: Sequence[int]) -> Tensor | None:
    """Loss weights, float64 (classes,), from how often each class occurs in training; None for kind "none".

    "inverse": total / (classes * frequency), as scikit-learn's "balanced" (King and Zeng 2001);
    "median": median of the shares / share (Eigen and Fergus 2015, section 6.3.2). Absent classes get 0.
    """
    if kind == "none":
        return None
    share = torch.tensor(frequencies, dtype=torch.float64) / sum(frequencies)
    present = share[share > 0]
    numerator = 1 / len(share) if kind == "inverse" else float(torch.quantile(present, 0.5))
    return torch.where(share > 0, numerator / share.clamp(min=1e-300), 0.0)


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
