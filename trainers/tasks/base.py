"""What is learned: the loss, the counts that are gathered from the workers, and the scores made of them.

A task never sees workers, epochs or files. The loop adds up what `loss`, `weight` and `counts` return, over
micro-batches and over workers, and divides once: results do not depend on how the rows were dealt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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


def precise(output: Tensor) -> Tensor:
    """In fp32 or better."""
    return output if output.dtype == torch.float64 else output.float()
