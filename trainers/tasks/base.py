"""The interface of a task.

A task never sees workers, epochs or files. The loop adds up what `loss`, `weight` and `counts` return, over
micro-batches and over workers, and divides once: results do not depend on how the rows were split among them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.arrays import Ints as Ints
from trainers.instances import Instances, Targets
from trainers.run_facts import Scores as Scores

Floats = npt.NDArray[np.float64]


Output = Tensor | tuple[Tensor, ...]
"""Of a model for N pictures: what its task takes, (N, ...) each."""


class Counts(NamedTuple):
    """What the scores are made of: integers only, so that sums are exact in any order."""

    total: dict[str, Tensor]
    """Tensors of a fixed shape, to be added up over micro-batches and workers."""
    per_image: dict[str, Tensor]
    """Tensors (N, ...), kept for each image."""


class Task(Protocol):
    """What the loop asks of a task. `output` is what the model returns for N images, a tensor (N, ...) or several;
    `target` what they hold."""

    metric: str
    """The score that decides which epoch is best; larger is better."""
    errors: Collection[str]
    """Scores of which less is better."""
    shown: int
    """How many validation pictures are drawn with their predictions."""

    def weight(self, target: Targets) -> Tensor | None:
        """The divisors that belong to the sums of `loss`, float64 (terms,), such as the sum of class weights.
        None: there is one term, divided by the number of images."""
        ...

    def loss(self, output: Output, target: Targets) -> Tensor:
        """The sums of the losses of a micro-batch, (terms,), in fp32 or better."""
        ...

    def labels(self, output: Output, size: tuple[int, int]) -> Targets:
        """The predicted classes: of images int64 (N,), of pixels uint8 (N, *size); or what else is to be shown."""
        ...

    def counts(self, output: Output, target: Targets) -> Counts:
        """What `scores` and `ranking` need of a micro-batch."""
        ...

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """A score for each image of `counts` (tables of `per_image`), (N,), larger is better; NaN where nothing of
        an image is scored. None: images are not ranked."""
        ...

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """Scores by bare name from the counts of a split: totals that were added up and tables of all its images."""
        ...


class ImageTask(Task, Protocol):
    """A task that learns from labels: what predictions.csv asks of it."""

    every_probability: bool
    """Whether predictions.csv lists the probability of each class, beside that of the predicted one."""

    def probabilities(self, output: Tensor) -> Tensor:
        """Of each class, fp32 or better (N, classes); each row sums to 1."""
        ...


@runtime_checkable
class CountsLabels(Protocol):
    """A task that can score masks at their own size, at which there are predicted classes only."""

    def count(self, labels: Tensor, target: Tensor) -> Counts:
        """`Task.counts` from predicted classes, uint8 (N, H, W), and masks, int64 (N, H, W)."""
        ...


@runtime_checkable
class BoxTask(Protocol):
    """A task that finds objects. Detections are (N, K, 6): left, top, right, bottom in pixels of the image, score,
    class; the surest first, class -1 in rows that only pad."""

    max_detections: int
    """K of `labels`: the most of a picture."""
    nms: float
    """Intersection over union of two boxes of a class above which the less sure one is dropped."""

    def candidates(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Detections before those that say the same are dropped, in static shapes; `size` is that of the images."""
        ...

    def count(self, labels: Tensor, target: Tensor) -> Counts:
        """`Task.counts` from detections (N, K, 6) and tables (N, M, 8), in the same pixels."""
        ...

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """As of `Task`."""
        ...


@runtime_checkable
class MaskTask(Protocol):
    """A task that finds objects and their masks: a `BoxTask`, but for what `count` takes."""

    def find(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Detections (N, K, 6) with more columns behind, which `logits` reads; `size` is that of the images."""
        ...

    def logits(self, found: Tensor, prototypes: Tensor) -> tuple[Tensor, int]:
        """Of the masks of a picture's detections, (K, h, w); and the pixels that a number of them stands for, along
        each side. `prototypes`: of the picture, in the output."""
        ...

    def count(self, labels: Instances[Tensor], target: Instances[Tensor]) -> Counts:
        """`Task.counts` from detections and a layer for each, (N, K, H, W), and objects in the same pixels."""
        ...


@runtime_checkable
class AtPoints(Protocol):
    """A task that learns from models that predict at points of the picture: modules with a function points()."""

    def stand_in(self, rows: int) -> Output:
        """Zeros, as a model might return for so many pictures. `loss` says itself what is wrong with an output."""
        ...


def precise(output: Tensor) -> Tensor:
    """In fp32 or better."""
    return output if output.dtype == torch.float64 else output.float()
