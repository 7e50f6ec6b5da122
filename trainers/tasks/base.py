"""What is learned: the loss, the counts that are gathered from the workers, and the scores made of them.

A task never sees workers, epochs or files. The loop adds up what `loss`, `weight` and `counts` return, over
micro-batches and over workers, and divides once: results do not depend on how the rows were dealt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from trainers.datasets import IGNORED
from trainers.tasks import boundary_f1 as boundary
from trainers.tasks.boundary_f1 import divide

LOSSES = ("cross_entropy", "dice", "sum")
_RESIZED_AT_ONCE = 2**26
"""Logits that `Segment.labels` resizes at a time: 256 MiB in fp32."""

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
Scores = dict[str, Any]


class Counts(NamedTuple):
    """What the scores are made of: integers only, so that sums are exact in any order."""

    total: dict[str, Tensor]
    """Tensors of a fixed shape, to be added up over micro-batches and workers."""
    per_image: dict[str, Tensor]
    """Tensors (N, ...), kept for each image."""


class Task(Protocol):
    """What the loop asks of a task. `output` is what the model returns for N images, `target` what they hold."""

    metric: str
    """The score that decides which epoch is best; larger is better."""
    shown: int
    """How many validation pictures are drawn with their predictions."""

    def weight(self, target: Tensor) -> Tensor | None:
        """The divisors that belong to the sums of `loss`, float64 (terms,), such as the sum of class weights.
        None: there is one term, divided by the number of images."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The sums of the losses of a micro-batch, (terms,), in fp32 or better."""
        ...

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The predicted classes: of images int64 (N,), of pixels uint8 (N, *size)."""
        ...

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """What `scores` and `ranking` need of a micro-batch."""
        ...

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """A score for each image of `counts` (tables of `per_image`), (N,), larger is better; NaN where nothing of
        an image is scored. None: images are not ranked."""
        ...

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """Scores by bare name from the counts of a split: totals that were added up and tables of all its images."""
        ...


class Classify:
    """One class per image: cross-entropy; accuracy, top-5, balanced accuracy, precision, recall, F1."""

    metric = "accuracy"
    shown = 0

    def __init__(self, classes: int, class_weights: Tensor | None = None, *, label_smoothing: float = 0.0) -> None:
        """Parameters: `classes`; `class_weights`, float (classes,) or None; `label_smoothing` in [0, 1)
        (Szegedy et al. 2016, section 7). Raises ValueError."""
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is not allowed; give 0 up to, not including, 1")
        self.classes, self.class_weights, self.label_smoothing = classes, class_weights, label_smoothing

    def weight(self, target: Tensor) -> Tensor | None:
        """The sum of the class weights, float64 (1,); None without class weights. `target`: int64 (N,)."""
        if self.class_weights is None:
            return None
        return self.class_weights.to(target.device, torch.float64)[target].sum()[None]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum of cross-entropies, (1,), in fp32 or better. `output`: logits (N, classes); `target`: int64 (N,)."""
        logits = _precise(output)
        weights = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype)
        smoothing = self.label_smoothing
        return functional.cross_entropy(logits, target, weights, reduction="sum", label_smoothing=smoothing)[None]

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The class of the largest logit, int64 (N,); `size` is not looked at."""
        return output.argmax(1)

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """`confusion`: int64 (classes, classes), rows are true classes; `top5`: int64, 0-d."""
        flat = target * self.classes + output.argmax(1)
        confusion = torch.bincount(flat, minlength=self.classes**2).view(self.classes, self.classes)
        best = output.topk(min(5, self.classes), dim=1).indices
        return Counts({"confusion": confusion, "top5": (best == target[:, None]).sum()}, {})

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """None: images are not ranked."""
        return None

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """accuracy, top5_accuracy, balanced_accuracy (mean recall of the classes that occur), and the means over
        classes of precision, recall and F1 with, under `per_class`, their lists. A ratio of 0 to 0 counts as 0."""
        confusion = counts["confusion"]
        total, right = confusion.sum(), np.diag(confusion)
        true, predicted = confusion.sum(1), confusion.sum(0)
        recall, precision = divide(right, true), divide(right, predicted)
        f1 = divide(2 * right, true + predicted)
        return {
            "accuracy": float(right.sum() / total),
            "top5_accuracy": float(counts["top5"] / total),
            "balanced_accuracy": float(recall[true > 0].mean()),
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f1": float(f1.mean()),
            "per_class": {"precision": precision.tolist(), "recall": recall.tolist(), "f1": f1.tolist()},
        }


class Segment:
    """One class per pixel. `target` is int64 (N, H, W), class numbers or IGNORED; `output` is logits
    (N, classes, h, w), where h and w are H and W divided by `stride`, rounded up.

    The loss is measured at the model's size, against the mask shrunk to it; scores at the mask's own size.
    """

    metric = "miou"
    shown = 4

    def __init__(
        self,
        classes: int,
        class_weights: Tensor | None = None,
        *,
        loss: str = "cross_entropy",
        stride: int = 1,
        boundary_tolerance: float = 0.0075,
    ) -> None:
        """Parameters:

        classes, class_weights: their number, at most 255; float (classes,) or None
        loss: "cross_entropy"; "dice" (Milletari, Navab and Ahmadi 2016, V-Net, section 3), which class weights do
            not enter; "sum" of both
        stride: of the model; 8 where it predicts at an eighth of the image's height and width
        boundary_tolerance: distance at which boundaries still match, as a share of the image's diagonal; 0: the
            boundary F1 is not computed

        Raises ValueError.
        """
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is not known; choose from {', '.join(LOSSES)}")
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f"stride={stride!r} is not allowed; give a whole number, 1 or more")
        if not 0 <= boundary_tolerance <= 1:
            raise ValueError(f"boundary_tolerance={boundary_tolerance} is not allowed; give a share from 0 to 1")
        if class_weights is not None and loss == "dice":
            raise ValueError("loss='dice' knows no class weights; give class weights 'none', or loss 'sum'")
        self.classes, self.class_weights = classes, class_weights
        self.loss_kind, self.stride, self.boundary_tolerance = loss, stride, boundary_tolerance
        self._weight_of_label = torch.zeros(IGNORED + 1, dtype=torch.float64)  # by what a mask may hold
        self._weight_of_label[:classes] = 1.0 if class_weights is None else class_weights

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.classes

    def weight(self, target: Tensor) -> Tensor:
        """The divisors, float64 (terms,): of cross-entropy the sum of the class weights of the labelled pixels (their
        number, without weights), of Dice the number of images with any labelled pixel."""
        target = self._shrink(target)
        terms = []
        if self.loss_kind != "dice":
            terms.append(self._weight_of_label.to(target.device)[target].sum())
        if self.loss_kind != "cross_entropy":
            terms.append((target != IGNORED).flatten(1).any(1).sum(dtype=torch.float64))
        return torch.stack(terms)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sums over the labelled pixels (cross-entropy) and over the images (Dice), float64 (terms,), of losses in
        fp32 or better. Raises ValueError where the output's shape does not fit."""
        logits, shrunk = _precise(output), self._shrink(target)
        self._check(logits, target, shrunk)
        terms = []
        if self.loss_kind != "dice":
            terms.append(self._cross_entropy(logits, shrunk).sum((1, 2)).double().sum())
        if self.loss_kind != "cross_entropy":
            terms.append(self._dice(logits, shrunk).double().sum())
        return torch.stack(terms)

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The class of the largest logit, uint8 (N, *size); logits of another size are resized bilinearly."""
        if output.shape[2:] == size:
            return self._decide(output)
        rows = max(1, _RESIZED_AT_ONCE // (output.shape[1] * math.prod(size)))
        parts = [functional.interpolate(_precise(part), size, mode="bilinear") for part in output.split(rows)]
        return torch.cat([self._decide(part) for part in parts])

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """Those of `count`, for the model's output."""
        size = (target.shape[1], target.shape[2])
        return self.count(self.labels(output, size), target)

    def count(self, labels: Tensor, target: Tensor) -> Counts:
        """Counts of predicted classes `labels`, uint8 (N, H, W), at the labelled pixels.

        total: `confusion`, int64 (classes, classes), rows are true classes. per_image: `overlap`, int32
        (N, classes, 2), intersection and union of each class; `boundary`, int32 (N, classes, 4), see
        `boundary.match`, unless the tolerance is 0.
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
            per_image["boundary"] = boundary.match(labels, target, classes, self.boundary_tolerance)
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
        boundary_f1: mean over classes of the mean over images, see `boundary.f1`
        per_class: lists of iou, accuracy, precision, recall (the same as accuracy), dice, f1, boundary_f1; None for
            a class that does not occur, see above
        """
        confusion = counts["confusion"].astype(np.int64)
        both, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        either = true + predicted - both
        iou, dice = divide(both, either, np.nan), divide(2 * both, true + predicted, np.nan)
        recall = divide(both, true, np.nan)
        precision = np.where(either > 0, divide(both, predicted), np.nan)
        lists = {"iou": iou, "accuracy": recall, "precision": precision, "recall": recall, "dice": dice, "f1": dice}
        scores: Scores = {
            "accuracy": float(divide(both.sum(), true.sum())),
            "class_accuracy": _mean(recall),
            "miou": _mean(iou),
            "fw_iou": float(divide(np.nansum(true * iou), true.sum())),
            "dice": _mean(dice),
            "f1": _mean(dice),
        }
        if "boundary" in counts:
            lists["boundary_f1"] = boundary.f1(counts["boundary"])
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

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted cross-entropies of the pixels, (N, h, w); 0 where ignored."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype)
        return functional.cross_entropy(logits, target, weights, ignore_index=IGNORED, reduction="none")

    def _dice(self, logits: Tensor, target: Tensor) -> Tensor:
        """Dice losses of the images, (N,): means over the classes that occur in them; 0 where all is ignored."""
        number = torch.arange(self.classes, device=target.device)[:, None, None]
        truth = target[:, None] == number  # (N, classes, h, w)
        losses = _dice_losses(logits.softmax(1), truth, target)
        present = truth.flatten(2).any(2)
        return (losses * present).sum(1) / present.sum(1).clamp(min=1)

    def _decide(self, logits: Tensor) -> Tensor:
        return logits.argmax(1).to(torch.uint8)


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
        return _dice_losses(logits.sigmoid(), target[:, None] == 1, target)[:, 0]

    def _decide(self, logits: Tensor) -> Tensor:
        return (logits[:, 0] > 0).to(torch.uint8)


def make(name: str, args: Mapping[str, Any], classes: int, class_weights: Tensor | None) -> Task:
    """The task called `name`. Raises ValueError for arguments that it does not have, or classes it cannot learn."""
    outputs(name, classes)
    try:
        if name == "classify":
            return Classify(classes, class_weights, **args)
        return (SegmentBinary if name == "segment_binary" else Segment)(classes, class_weights, **args)
    except TypeError as error:
        allowed = "label_smoothing" if name == "classify" else "loss, stride, boundary_tolerance"
        raise ValueError(f"task {name!r}: {error}; allowed is {allowed}") from None


def outputs(name: str, classes: int) -> int:
    """How many channels (of images: logits) the task called `name` needs of a model. Raises ValueError."""
    assert name in ("classify", "segment", "segment_binary"), name  # Recipe checks the name
    if name == "segment_binary" and classes != 2:
        raise ValueError(
            f"task 'segment_binary' needs 2 classes, background and foreground; the data has {classes}: "
            "take task 'segment'"
        )
    if name != "classify" and classes > IGNORED:
        raise ValueError(f"task {name!r} knows at most {IGNORED} classes; the data has {classes}")
    return 1 if name == "segment_binary" else classes


def weigh_classes(kind: str, counts: Sequence[int], areas: Sequence[int] | None = None) -> Tensor | None:
    """Loss weights, float64 (classes,); None for kind "none".

    Parameters: `counts`, images or labelled pixels of each class in training; `areas`, of masks: labelled pixels of
    the images in which the class occurs. With total = sum(counts) and share = count / total, the kinds are

    inverse: total / (classes * count), as scikit-learn's "balanced" (King and Zeng 2001)
    median: median of the frequencies of the classes that occur / frequency, where frequency = count / area
        (Eigen and Fergus 2015, section 6.3.2); share without `areas`
    erfnet: 1 / ln(1.02 + share) (Paszke et al. 2016, ENet, section 5.2; ERFNet uses it too)

    A class that does not occur gets 0: no training loss depends on its weight, and in the validation loss the formulas'
    infinity (50.5 of "erfnet") would drown what could be learned.
    """
    if kind == "none":
        return None
    count = torch.tensor(counts, dtype=torch.float64)
    total = count.sum()
    if kind == "inverse":
        weights = total / (len(count) * count)
    elif kind == "median":
        frequency = count / (total if areas is None else torch.tensor(areas, dtype=torch.float64))
        weights = torch.quantile(frequency[count > 0], 0.5) / frequency
    else:
        assert kind == "erfnet", kind
        weights = 1 / (1.02 + count / total).log()
    return torch.where(count > 0, weights, 0.0)


def _precise(output: Tensor) -> Tensor:
    """In fp32 or better."""
    return output if output.dtype == torch.float64 else output.float()


def _dice_losses(probabilities: Tensor, truth: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t) + 1) over the labelled pixels, (N, channels); t is 0 or 1.

    The ratio of Milletari et al., with 1 added above and below: an empty truth is best met by an empty prediction.
    """
    p = probabilities * (target != IGNORED)[:, None]
    both = torch.where(truth, p, 0).sum((2, 3))
    return 1 - (2 * both + 1) / (p.square().sum((2, 3)) + truth.sum((2, 3)) + 1)


def _mean(values: Floats) -> float:
    """Over those that are not NaN; 0 where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
