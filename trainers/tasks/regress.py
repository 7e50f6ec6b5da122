"""A number for each picture, such as a moisture, an age or a count; or several.

The model gives them in deviations from the mean of the training pictures, as run.json has it (`target_facts`): so a
learning rate serves any unit. Predictions and scores are in the data's own unit. Scores are made of an integer table
with a row for each picture, the bits of what was predicted and of what is true in fp64: equal in any order and on any
number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainers.image_tables import Compared, compare, read_values
from trainers.tasks.base import Counts, Floats, Ints, Scores, precise
from trainers.upload import upload

TARGET = "numbers"


def outputs(classes: int) -> int:
    """A number for each column."""
    return classes


def make(
    classes: int,
    class_weights: Tensor | None = None,
    *,
    loss: Literal["mse", "l1", "huber"] = "mse",
    delta: float = 1.0,
    target_mean: Sequence[float] | None = None,
    target_std: Sequence[float] | None = None,
) -> Regress:
    """The task for so many columns of numbers.

    Args:
        classes: columns.
        class_weights: None; there are no classes.
        loss: squared errors, absolute ones, or Huber's.
        delta: of "huber": the error, in deviations, from which on it is linear (Huber 1964).
        target_mean, target_std: of each column of the training pictures; None: 0 and 1.

    Raises:
        ValueError: a value is not allowed.
    """
    if class_weights is not None:
        raise ValueError("class weights are for classes, and this task learns numbers; leave them out")
    if not delta > 0:
        raise ValueError(f"delta={delta} is not allowed; give a number above 0")
    return Regress(target_mean or [0.0] * classes, target_std or [1.0] * classes, loss, delta)


class Regress:
    """`output` is (N, columns), in deviations from the mean; `target` float64 (N, columns), in its own unit."""

    metric = "r2"
    errors = ("mae", "rmse")
    shown = 0

    def __init__(self, mean: Sequence[float], std: Sequence[float], loss: str = "mse", delta: float = 1.0) -> None:
        """
        Args:
            mean, std: of each column, what an output of 0 means and what 1 adds to it.
            loss: "mse", "l1" or "huber".
            delta: of "huber".
        """
        self.kind, self.delta = loss, delta
        self.mean, self.std = (torch.tensor(each, dtype=torch.float64) for each in (mean, std))

    def weight(self, target: Tensor) -> Tensor | None:
        """None: divided by the number of images."""
        return None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum over images of the means over columns of their losses, (1,), of errors in deviations."""
        found = precise(output)
        wanted = ((target - upload(self.mean, target.device)) / upload(self.std, target.device)).to(found.dtype)
        if self.kind == "huber":
            total = functional.huber_loss(found, wanted, reduction="sum", delta=self.delta)
        else:
            measure = functional.mse_loss if self.kind == "mse" else functional.l1_loss
            total = measure(found, wanted, reduction="sum")
        return total[None] / len(self.mean)

    def labels(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The numbers in their own unit, float64 (N, columns); `size` is not used."""
        return output.double() * upload(self.std, output.device) + upload(self.mean, output.device)

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        """per_image: `values`, int64 (N, columns, 2), the bits of fp64 of the predicted and of the true number."""
        both = torch.stack([self.labels(output, (1, 1)), target.double()], 2)
        return Counts({}, {"values": both.view(torch.int64)})

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """None: images are not ranked."""
        return None

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """All from the table of values; means over the columns and, under `per_class`, a list for these.

        mae, rmse: mean absolute error, and root of the mean squared error, in the data's own unit
        r2: coefficient of determination, 1 - squared errors / squared distances from the mean of the split; where all
            true numbers are equal 1 if all are met, else 0, as scikit-learn has it
        spearman: correlation of the ranks, equal numbers sharing their mean rank; 0 where one side is constant
        """
        predicted, true = read_values(counts)
        each = [compare(*pair)._asdict() for pair in zip(predicted.T, true.T, strict=True)]
        lists = {name: [float(of[name]) for of in each] for name in Compared._fields}
        return {**{name: float(np.mean(values)) for name, values in lists.items()}, "per_class": lists}
