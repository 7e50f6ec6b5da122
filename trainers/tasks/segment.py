"""One class for each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainers.datasets import IGNORED
from trainers.ratios import divide, iou
from trainers.tasks import boundary_f1, losses
from trainers.tasks.base import Counts, Floats, Ints, Scores, precise
from trainers.upload import upload

TARGET = "masks"
SUM = "sum"
"""Another name of cross_entropy+dice."""
_RESIZED_AT_ONCE = 2**26
"""Logits that `Segment.labels` resizes at a time: 256 MiB in fp32."""


def outputs(classes: int) -> int:
    """A channel of logits for each class. Raises ValueError where a mask cannot hold so many."""
    if classes > IGNORED:
        raise ValueError(f"task 'segment' knows at most {IGNORED} classes; the data has {classes}")
    return classes


def make(
    classes: int,
    class_weights: Tensor | None = None,
    *,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
    stride: int = 1,
    boundary_tolerance: float = 0.0075,
) -> Segment:
    """The task.

    Args:
        classes: Number of classes, at most 255.
        class_weights: float64 (classes,) or None.
        loss: See `Segment`.
        label_smoothing, focal_gamma, tversky_alpha, tversky_beta: See `losses.Parameters`.
        stride: See `Segment`.
        boundary_tolerance: See `Segment`.

    Raises:
        ValueError: A value is not allowed, or values exclude each other.
    """
    outputs(classes)
    parameters = losses.Parameters(
        label_smoothing=label_smoothing,
        focal_gamma=focal_gamma,
        tversky_alpha=tversky_alpha,
        tversky_beta=tversky_beta,
    )
    return Segment(
        classes,
        class_weights,
        loss=loss,
        parameters=parameters,
        stride=stride,
        boundary_tolerance=boundary_tolerance,
    )


class Segment:
    """One class per pixel. `target` is int64 (N, H, W), class numbers or IGNORED; `output` is logits
    (N, classes, h, w), where h and w are H and W divided by `stride`, rounded up.

    The loss is measured at the model's size, against the mask shrunk to it; scores at the mask's own size.
    """

    metric = "miou"
    errors = ()
    shown = 4
    weighted_losses: tuple[str, ...] = (*losses.OF_PIXELS, "tversky", "lovasz")
    """Those that class weights enter."""

    def __init__(
        self,
        classes: int,
        class_weights: Tensor | None = None,
        *,
        loss: str = "cross_entropy",
        parameters: losses.Parameters = losses.DEFAULTS,
        stride: int = 1,
        boundary_tolerance: float = 0.0075,
    ) -> None:
        """
        Args:
            classes: their number, at most 255.
            class_weights: float64 (classes,) or None.
            loss: "cross_entropy", "bce", "focal", "dice", "tversky", "lovasz", or a sum such as "focal+dice"; see
                `losses`. "sum" is another name of "cross_entropy+dice".
            parameters: of the losses.
            stride: of the model; 8 where it predicts at an eighth of the image's height and width.
            boundary_tolerance: distance at which boundaries still match, as a share of the image's diagonal; 0: the
                boundary F1 is not computed.

        Raises:
            ValueError: a value is not allowed, or values exclude each other.
        """
        names = losses.read("cross_entropy+dice" if loss == SUM else loss, losses.ALL, parameters)
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f"stride={stride!r} is not allowed; give a whole number, 1 or more")
        if not 0 <= boundary_tolerance <= 1:
            raise ValueError(f"boundary_tolerance={boundary_tolerance} is not allowed; give a share from 0 to 1")
        if class_weights is not None and not set(names) & set(self.weighted_losses):
            raise ValueError(
                f"loss={loss!r} knows no class weights; give class weights 'none', or a sum such as "
                f"cross_entropy+{loss}"
            )
        self.classes, self.class_weights, self.parameters = classes, class_weights, parameters
        self.stride, self.boundary_tolerance = stride, boundary_tolerance
        self.of_pixels = [name for name in names if name in losses.OF_PIXELS]
        self.of_images = [name for name in names if name in losses.OF_IMAGES]
        self._weight_of_label = torch.zeros(IGNORED + 1, dtype=torch.float64)  # by what a mask may hold
        self._weight_of_label[:classes] = 1.0 if class_weights is None else class_weights

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.classes

    def weight(self, target: Tensor) -> Tensor:
        """The divisors, float64 (terms,): of the pixels' losses the sum of the class weights of the labelled ones
        (their number, without weights), of the images' the number of those with any labelled pixel."""
        target = self._shrink(target)
        terms = []
        if self.of_pixels:
            terms.append(upload(self._weight_of_label, target.device)[target].sum())
        if self.of_images:
            terms.append((target != IGNORED).flatten(1).any(1).sum(dtype=torch.float64))
        return torch.stack(terms)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sums of the losses of the labelled pixels and of those of the images, float64 (terms,), of losses in fp32 or
        better. Raises ValueError where the output's shape does not fit."""
        logits, shrunk = precise(output), self._shrink(target)
        self._check(logits, target, shrunk)
        terms = []
        if self.of_pixels:
            each = [self._loss_of_pixels(name, logits, shrunk).sum((1, 2)).double().sum() for name in self.of_pixels]
            terms.append(torch.stack(each).sum())
        if self.of_images:
            terms.append(self._loss_of_images(logits, shrunk).double().sum())
        return torch.stack(terms)

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The class of the largest logit, uint8 (N, *size); logits of another size are resized bilinearly."""
        if output.shape[2:] == size:
            return self._decide(output)
        rows = max(1, _RESIZED_AT_ONCE // (output.shape[1] * math.prod(size)))
        parts = [functional.interpolate(precise(part), size, mode="bilinear") for part in output.split(rows)]
        return torch.cat([self._decide(part) for part in parts])

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """Those of `count`, for the model's output."""
        size = (target.shape[1], target.shape[2])
        return self.count(self.labels(output, size), target)

    def count(self, labels: Tensor, target: Tensor) -> Counts:
        """Counts at the labelled pixels.

        Args:
            labels: Predicted classes, uint8 (N, H, W).
            target: int64 (N, H, W), class numbers or IGNORED.

        Returns:
            total: `confusion`, int64 (classes, classes), rows are true classes. per_image: `overlap`, int32
            (N, classes, 2), intersection and union of each class; `boundary`, int32 (N, classes, 4), see
            `boundary_f1.match`, unless the tolerance is 0.
        """
        classes, images = self.classes, len(target)
        cell = target.clamp(max=classes).int()  # ignored pixels get a row of their own, which is dropped
        cell += torch.arange(0, images * (classes + 1), classes + 1, device=cell.device).view(-1, 1, 1)
        cell *= classes
        cell += labels
        flat = torch.bincount(cell.flatten(), minlength=images * (classes + 1) * classes)
        confusion = flat.view(images, classes + 1, classes)[:, :classes]
        both = confusion.diagonal(dim1=1, dim2=2)
        overlap = torch.stack([both, confusion.sum(1) + confusion.sum(2) - both], 2).int()
        per_image = {"overlap": overlap}
        if self.boundary_tolerance:
            per_image["boundary"] = boundary_f1.match(labels, target, classes, self.boundary_tolerance)
        return Counts({"confusion": confusion.sum(0)}, per_image)

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """Mean IoU of each image over the classes in its truth or prediction; NaN without a labelled pixel."""
        both, either = counts["overlap"][..., 0], counts["overlap"][..., 1]
        return divide(divide(both, either).sum(1), (either > 0).sum(1), np.nan)

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """Scores of all labelled pixels of the split together, and of boundaries. A ratio of 0 to 0 counts as 0.

        accuracy: share of the pixels that are right
        class_accuracy: mean of the classes' accuracies (recalls), over the classes that occur in the truth
        miou, dice: means over the classes that occur in truth or prediction; f1 is another name of dice: of pixels
            both are 2 TP / (2 TP + FP + FN)
        fw_iou: mean of the classes' IoU, weighted with their share of the true pixels
        boundary_f1: mean over classes of the mean over images, see `boundary_f1.f1`
        per_class: lists of iou, accuracy, precision, recall (the same as accuracy), dice, f1, boundary_f1; None for
            a class that does not occur, see above
        """
        confusion = counts["confusion"].astype(np.int64)
        both, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        either = true + predicted - both
        ious, dice = iou(confusion), divide(2 * both, true + predicted, np.nan)
        recall = divide(both, true, np.nan)
        precision = np.where(either > 0, divide(both, predicted), np.nan)
        lists = {"iou": ious, "accuracy": recall, "precision": precision, "recall": recall, "dice": dice, "f1": dice}
        scores: Scores = {
            "accuracy": float(divide(both.sum(), true.sum())),
            "class_accuracy": _mean(recall),
            "miou": _mean(ious),
            "fw_iou": float(divide(np.nansum(true * ious), true.sum())),
            "dice": _mean(dice),
            "f1": _mean(dice),
        }
        if "boundary" in counts:
            lists["boundary_f1"] = boundary_f1.f1(counts["boundary"])
            scores["boundary_f1"] = _mean(lists["boundary_f1"])
        listed = {k: [None if math.isnan(x) else x for x in values.tolist()] for k, values in lists.items()}
        return {**scores, "per_class": listed}

    def _shrink(self, target: Tensor) -> Tensor:
        """The mask at the model's size: nearest neighbour, of pixel centres."""
        if self.stride == 1:
            return target
        height, width = (
            (torch.arange(0, size, self.stride, device=target.device) + self.stride // 2).clamp(max=size - 1)
            for size in target.shape[1:]
        )
        return target[:, height[:, None], width]

    def _check(self, logits: Tensor, target: Tensor, shrunk: Tensor) -> None:
        size, wanted = tuple(logits.shape[2:]), tuple(shrunk.shape[1:])
        if logits.shape[1] != self.channels:
            raise ValueError(f"the model's output has {logits.shape[1]} channels; this task needs {self.channels}")
        if size == wanted:
            return
        height, width = target.shape[1:]
        strides = (s for s in range(1, max(height, width) + 1) if (-(-height // s), -(-width // s)) == size)
        stride = next(strides, None)
        raise ValueError(
            f"the model's output is {size[0]}x{size[1]} (height x width) for masks of {height}x{width}, which "
            f"stride={self.stride} of task_args makes {wanted[0]}x{wanted[1]}; "
            + (f"give stride={stride}" if stride else "no stride fits: change the model or image_size")
        )

    def _loss_of_pixels(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted losses, (N, h, w); 0 where ignored."""
        smoothing = self.parameters.label_smoothing
        if name == "cross_entropy":
            weights = None if self.class_weights is None else upload(self.class_weights, logits.device, logits.dtype)
            return functional.cross_entropy(
                logits, target, weights, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
            )
        if name == "bce":
            each = losses.one_against_rest(logits, target, smoothing)
        else:
            plain = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
            each = losses.focal(plain, self.parameters.focal_gamma)
        return each * upload(self._weight_of_label, logits.device, logits.dtype)[target]

    def _loss_of_images(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses of the images, added up, (N,): of each loss the mean over the classes that occur in the image, but for
        Dice a weighted one; 0 where all is ignored."""
        number = torch.arange(self.classes, device=target.device)[:, None, None]
        truth = target[:, None] == number  # (N, classes, h, w)
        probabilities = logits.softmax(1)
        present = truth.flatten(2).any(2)
        terms = []
        for name in self.of_images:
            weights: Tensor = present
            if name == "dice":
                each = losses.dice(probabilities, truth, target)
            elif name == "tversky":
                each = losses.tversky(probabilities, truth, target, self.parameters)
            else:
                each = losses.lovasz(torch.where(truth, 1 - probabilities, probabilities), truth, target)
            if name in self.weighted_losses and self.class_weights is not None:
                weights = present * upload(self.class_weights, logits.device, logits.dtype)
            total = weights.sum(1)
            terms.append((each * weights).sum(1) / torch.where(total > 0, total, 1))
        return torch.stack(terms).sum(0)

    def _decide(self, logits: Tensor) -> Tensor:
        return logits.argmax(1).to(torch.uint8)


def _mean(values: Floats) -> float:
    """Over those that are not NaN; 0 where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
