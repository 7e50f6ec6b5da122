"""One class for each image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from trainers.confusion import DENSE_CLASSES, Confusion
from trainers.ratios import divide
from trainers.tasks import losses
from trainers.tasks.base import Counts, Floats, Ints, Scores, precise
from trainers.tasks.class_weights import weight_of_labels
from trainers.upload import upload

TARGET = "labels"


def outputs(classes: int) -> int:
    """A logit for each class."""
    return classes


def make(
    classes: int,
    class_weights: Tensor | None = None,
    *,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
) -> Classify:
    """The task for so many classes. Raises ValueError."""
    return Classify(classes, class_weights, loss=loss, label_smoothing=label_smoothing, focal_gamma=focal_gamma)


class Classify:
    """One class per image: its loss; accuracy, top-5, balanced accuracy, precision, recall, F1."""

    metric = "accuracy"
    errors = ()
    shown = 0
    every_probability = False

    def __init__(
        self,
        classes: int,
        class_weights: Tensor | None = None,
        *,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
    ) -> None:
        """
        Args:
            classes: their number.
            class_weights: float64 (classes,) or None.
            loss: "cross_entropy", "bce" or "focal", or a sum such as "focal+bce"; see `losses`.
            label_smoothing: of cross_entropy and bce, in [0, 1).
            focal_gamma: of focal, 0 or more.

        Raises:
            ValueError: a value is not allowed.
        """
        self.parameters = losses.Parameters(label_smoothing=label_smoothing, focal_gamma=focal_gamma)
        self.names = losses.read(loss, losses.OF_PIXELS, self.parameters)
        self.classes, self.class_weights = classes, class_weights

    def weight(self, target: Tensor) -> Tensor | None:
        """The sum of the class weights, float64 (1,); None without class weights. `target`: int64 (N,)."""
        return weight_of_labels(self.class_weights, target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum of the losses of the pictures, (1,), in fp32 or better; they are added up, as they have one divisor.
        `output`: logits (N, classes); `target`: int64 (N,)."""
        logits = precise(output)
        weights = None if self.class_weights is None else upload(self.class_weights, logits.device, logits.dtype)
        return torch.stack([self._sum(name, logits, target, weights) for name in self.names]).sum()[None]

    def _sum(self, name: str, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        smoothing = self.parameters.label_smoothing
        if name == "cross_entropy":
            return functional.cross_entropy(logits, target, weights, reduction="sum", label_smoothing=smoothing)
        if name == "bce":
            each = losses.one_against_rest(logits, target, smoothing)
        else:
            plain = functional.cross_entropy(logits, target, reduction="none")
            each = losses.focal(plain, self.parameters.focal_gamma)
        return (each if weights is None else each * weights[target]).sum()

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The class of the largest logit, int64 (N,); `size` is not used."""
        return output.argmax(1)

    def probabilities(self, output: Tensor) -> Tensor:
        """The softmax of the logits, (N, classes); where each class was learned against the rest alone, their sigmoids,
        divided by the sum of these."""
        logits = precise(output)
        return (functional.logsigmoid(logits) if self.names == ("bce",) else logits).softmax(1)

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """Those of `count_labels`, and `top5`: int64, 0-d."""
        found = count_labels(target, output.argmax(1), self.classes)
        best = output.topk(min(5, self.classes), dim=1).indices
        return found._replace(total={**found.total, "top5": (best == target[:, None]).sum()})

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """None: images are not ranked."""
        return None

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """accuracy, top5_accuracy, balanced_accuracy (mean recall of the classes that occur), and the means over
        classes of precision, recall and F1 with, under `per_class`, their lists. A ratio of 0 to 0 counts as 0."""
        confusion = Confusion.of(counts, self.classes)
        total = confusion.images.sum()
        recall, precision, f1 = ratios_of_classes(confusion)
        return {
            "accuracy": float(confusion.right.sum() / total),
            "top5_accuracy": float(counts["top5"] / total),
            "balanced_accuracy": float(recall[confusion.trues > 0].mean()),
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f1": float(f1.mean()),
            "per_class": {"precision": precision.tolist(), "recall": recall.tolist(), "f1": f1.tolist()},
        }


def count_labels(true: Tensor, predicted: Tensor, classes: int) -> Counts:
    """Which class was taken for which, as `Confusion.of` takes it.

    Args:
        true: int64 (N,).
        predicted: int64 (N,).
        classes: their number.

    Returns:
        total: `confusion`, int64 (classes, classes), rows are true classes; where that would be many, per_image:
        `pairs`, int32 (N, 2), the true and the predicted class.
    """
    if classes > DENSE_CLASSES:
        return Counts({}, {"pairs": torch.stack([true, predicted], 1).int()})
    cells = torch.bincount(true * classes + predicted, minlength=classes**2)
    return Counts({"confusion": cells.view(classes, classes)}, {})


def ratios_of_classes(confusion: Confusion) -> tuple[Floats, Floats, Floats]:
    """Recall, precision and F1 of each class, (classes,) each; 0 / 0 counts as 0."""
    right, true, predicted = confusion.right, confusion.trues, confusion.predictions
    return divide(right, true), divide(right, predicted), divide(2 * right, true + predicted)
