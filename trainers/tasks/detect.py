"""Objects in pictures, by boxes, with a class and a score for each: by models that predict at points, as FCOS does, or
from anchors, as RetinaNet does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainers import match_tables
from trainers.tasks import anchor_loss, average_precision, box_loss
from trainers.tasks.base import Counts, Floats, Ints, Scores, precise
from trainers.upload import upload

TARGET = "boxes"
CANDIDATES = 1000
"""Detections of a picture, the best ones, that are compared with each other; 10 of each that is kept, where these are
more."""
RADIUS, REACH = 1.5, 8.0
"""As published for FCOS."""


def outputs(classes: int) -> int:
    """A logit for each class; beside these a model predicts boxes."""
    return classes


def make(
    classes: int,
    class_weights: Tensor | None = None,
    *,
    radius: float = RADIUS,
    reach: float = REACH,
    nms: float = 0.6,
    least_score: float = 0.05,
    max_detections: int = 100,
    points: Tensor | None = None,
    anchors: Tensor | None = None,
    image_size: tuple[int, int] | None = None,
) -> Detect | DetectFromAnchors:
    """The task.

    Args:
        classes: Number of classes.
        class_weights: None: the focal loss knows none.
        radius: How far off the middle of an object points learn to find it, in strides.
        reach: How far off the sides of an object may be from the points of a map, in strides; farther off, the next
            coarser map finds it.
        nms: Of two detections of a class that overlap by a larger IoU, the surer one is kept.
        least_score: What has a lower score is no detection.
        max_detections: As many are kept of a picture, the surest.
        points: Where the model looks, (P, 3): x, y and stride in pixels; None: it has anchors.
        anchors: Of the model, (P, 4): left, top, right and bottom in pixels; None: it looks at points.
        image_size: Height and width of the pictures, in pixels.

    Raises:
        ValueError: A value is not allowed.
    """
    if class_weights is not None:
        raise ValueError("the focal loss of objects knows no class weights, as it balances classes; give 'none'")
    for name, value in (("radius", radius), ("reach", reach)):
        if not value > 0:
            raise ValueError(f"{name}={value} is not allowed; give a number of strides above 0")
    for name, value in (("nms", nms), ("least_score", least_score)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} is not allowed; give a number from 0 up to, not including, 1")
    if max_detections < 1:
        raise ValueError(f"max_detections={max_detections} is not allowed; give 1 or more")
    if image_size is not None and points is not None:
        return Detect(classes, points, image_size, radius, reach, nms, least_score, max_detections)
    if image_size is None or anchors is None:
        raise ValueError(
            "objects are found by models that say where they look, by a function points() or anchors(); give one"
        )
    if (radius, reach) != (RADIUS, REACH):
        raise ValueError(f"radius={radius} and reach={reach} are of points, and the model has anchors: leave them out")
    return DetectFromAnchors(classes, anchors, image_size, nms, least_score, max_detections)


class _Boxes(ABC):
    """What both kinds share. `target` is float64 (N, M, COLUMNS) of `box_table`, in pixels of the pictures; `output`
    (N, places, `leading` + classes) ends in the logits of the classes."""

    metric = "ap"
    errors = ()
    shown = 4
    leading: int

    def __init__(
        self,
        classes: int,
        places: int,
        image_size: tuple[int, int],
        nms: float,
        least_score: float,
        max_detections: int,
    ) -> None:
        """See `make`; `places` is the number of points or anchors."""
        self.classes, self.places, self.image_size = classes, places, image_size
        self.nms, self.least_score, self.max_detections = nms, least_score, max_detections

    @abstractmethod
    def weight(self, target: Tensor) -> Tensor:
        """Divisors of the losses, float64 (terms,)."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sums of the losses, float64 (terms,). Raises ValueError where the output's shape does not fit."""

    @abstractmethod
    def _scores(self, output: Tensor) -> Tensor:
        """Of each class at each place, (N, places, classes), from 0 to 1."""

    @abstractmethod
    def _boxes(self, numbers: Tensor, at: Tensor) -> Tensor:
        """float64 (..., D, 4), in pixels of `image_size`, from the first four numbers of the places `at` (..., D)."""

    def output_shape(self, rows: int) -> tuple[int, int, int]:
        """Of what a model returns for so many pictures."""
        return rows, self.places, self.leading + self.classes

    def stand_in(self, rows: int) -> Tensor:
        """Zeros, as a model might give for so many pictures."""
        return torch.zeros(self.output_shape(rows))

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Detections, (N, max_detections, 6), fp32 or better, the surest first: left, top, right and bottom in pixels
        of pictures of this size, score, class; rows of 0, and class -1, where there are no more."""
        return torch.stack([self._pick(each) for each in self.candidates(output, size)]).to(precise(output).dtype)

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """per_image: `matches`, int32 (N, max_detections, columns), which detections are right: see `match_tables`;
        total: `truths`, int64 (classes, 4), how many objects there are: see `average_precision`."""
        return self.count(self.labels(output, self.image_size), target)

    def count(self, labels: Tensor, target: Tensor) -> Counts:
        """`counts` of detections (N, K, 6) and tables (N, M, COLUMNS) in the same pixels, those of any picture."""
        found, tables = labels.cpu().numpy(), target.cpu().numpy()
        matches = average_precision.match(found, tables)
        truths = average_precision.count_truths(tables, self.classes)
        return Counts(
            {"truths": upload(truths, labels.device)},
            {"matches": upload(matches, labels.device)},
        )

    def candidates(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Detections before those that overlap surer ones are dropped, float64 (N, K, 6), as of `labels`, in shapes
        that do not depend on values: class -1 in rows of too low a score, or of boxes without any area. What the output
        says of a place beyond the classes stands in columns of its own behind these."""
        output = precise(output)
        every = self._scores(output).flatten(1)
        most = min(max(CANDIDATES, 10 * self.max_detections), every.shape[1])
        which = every.topk(most, dim=1).indices.sort(dim=1).values  # of equal scores the first place comes first
        scores, order = every.gather(1, which).sort(dim=1, descending=True, stable=True)
        which = which.gather(1, order)
        at, numbers = which // self.classes, which % self.classes
        said = torch.cat([output[..., :4], output[..., self.leading + self.classes :]], 2)
        said = said.gather(1, at[..., None].expand(-1, -1, said.shape[2])).double()
        boxes = self._show(self._boxes(said[..., :4], at), size)
        there = (scores > self.least_score) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        numbers = torch.where(there, numbers, -1)
        found = torch.cat([boxes, scores[..., None].double(), numbers[..., None].double(), said[..., 4:]], -1)
        if most >= self.max_detections:
            return found
        blank = _blank(found).expand(found.shape[0], self.max_detections - most, -1)
        return torch.cat([found, blank], 1)  # a small picture has fewer points

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """F1 of each picture at the confidence that is best for all; NaN without objects and detections."""
        matches = counts["matches"]
        best = match_tables.best_confidence(matches, counts["truths"][:, 0])
        return match_tables.ranking(matches, best).astype(np.float64)

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """Those of `average_precision.scores`."""
        return average_precision.scores(counts["matches"], counts["truths"], max_detections=self.max_detections)

    def _check(self, output: object, rows: int, columns: str) -> None:
        """Raises ValueError where an output has not the shape for so many pictures; `columns` says what it holds."""
        wanted = self.output_shape(rows)
        if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
            given = tuple(output.shape) if isinstance(output, Tensor) else "several tensors"
            raise ValueError(
                f"the model's output is {given}, in place of {wanted}: pictures, {columns} (prototypes are for the "
                "task detect_masks)"
            )

    def _pick(self, candidates: Tensor) -> Tensor:
        """The detections of one picture, (max_detections, ...), of its candidates (K, ...)."""
        from torchvision.ops import batched_nms  # here, because it takes seconds and other tasks do without

        found = candidates[candidates[:, 5] >= 0]
        found = found[batched_nms(found[:, :4], found[:, 4], found[:, 5], self.nms)[: self.max_detections]]
        return torch.cat([found, _blank(found).expand(self.max_detections - len(found), -1)])

    def _show(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes in pixels of `image_size`, cut at its rims, in those of a picture of another size."""
        height, width = self.image_size
        shown = boxes.new_tensor([width, height, width, height])
        return boxes.clamp(min=0).minimum(shown) * (boxes.new_tensor([size[1], size[0]] * 2) / shown)


class Detect(_Boxes):
    """By points: `output` (N, points, 5 + classes) says of each the distances to the left, top, right and bottom side
    of a box, in its strides, the logit of the centreness, and those of the classes."""

    leading = 5

    def __init__(
        self,
        classes: int,
        points: Tensor,
        image_size: tuple[int, int],
        radius: float,
        reach: float,
        nms: float,
        least_score: float,
        max_detections: int,
    ) -> None:
        """See `make`."""
        super().__init__(classes, len(points), image_size, nms, least_score, max_detections)
        self.points, self.radius = box_loss.make_points(points, reach), radius

    def weight(self, target: Tensor) -> Tensor:
        """float64 (3,), see `box_loss.divisors`."""
        return box_loss.divisors(self.find_wanted(target))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Of classes, boxes and centreness."""
        self._check(
            output, len(target), "the points that its points() gives, and 4 distances, the centreness and the classes"
        )
        return box_loss.losses(precise(output), self.find_wanted(target))

    def find_wanted(self, target: Tensor) -> box_loss.Wanted:
        """What each point should say of these tables."""
        points = box_loss.Points(*(upload(each, target.device) for each in self.points))
        return box_loss.find_wanted(points, target, self.radius)

    def _scores(self, output: Tensor) -> Tensor:
        """The root of the probability of the class times the centreness."""
        return (output[..., 5 : 5 + self.classes].sigmoid() * output[..., 4:5].sigmoid()).sqrt()

    def _boxes(self, numbers: Tensor, at: Tensor) -> Tensor:
        x, y, stride = (upload(each, at.device)[at] for each in self.points[:3])
        return torch.stack([x, y, x, y], -1) + numbers * stride[..., None] * numbers.new_tensor([-1, -1, 1, 1])


class DetectFromAnchors(_Boxes):
    """From anchors: `output` (N, anchors, 4 + classes) says of each left, top, right and bottom of a box, in pixels of
    `image_size`, and the logits of the classes."""

    leading = 4

    def __init__(
        self,
        classes: int,
        anchors: Tensor,
        image_size: tuple[int, int],
        nms: float,
        least_score: float,
        max_detections: int,
    ) -> None:
        """See `make`."""
        super().__init__(classes, len(anchors), image_size, nms, least_score, max_detections)
        self.anchors = anchors.double()

    def weight(self, target: Tensor) -> Tensor:
        """float64 (2,), see `anchor_loss.divisors`."""
        return anchor_loss.divisors(target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Of classes and boxes."""
        self._check(output, len(target), "the anchors that its anchors() gives, and 4 corners and the classes")
        return anchor_loss.losses(precise(output), anchor_loss.find_wanted(upload(self.anchors, target.device), target))

    def _scores(self, output: Tensor) -> Tensor:
        """The probability of the class."""
        return output[..., 4:].sigmoid()

    def _boxes(self, numbers: Tensor, at: Tensor) -> Tensor:
        return numbers


def _blank(found: Tensor) -> Tensor:
    """A row that is no detection, with as many columns as there are."""
    return functional.pad(found.new_tensor([0, 0, 0, 0, 0, -1]), (0, found.shape[-1] - 6))
