"""Tables with a row for each image, and the scores that need all of them, such as those of ranks.

They hold integers, the bits of floating numbers: each row is filled by one worker and added to zeros of the others, so
that a table is exact in any order and on any number of workers, and so is what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.arrays import Floats as Floats
from trainers.arrays import Ints as Ints

Bools = npt.NDArray[np.bool_]


def read_labels(counts: Mapping[str, Ints]) -> tuple[Floats, Bools]:
    """Logits, float32 (N, classes), and labels, bool (N, classes), of all images of a split."""
    bits = np.ascontiguousarray(counts["logits"].astype(np.int32))
    return bits.view(np.float32), counts["labels"].astype(bool)


def average_precisions(scores: Floats, true: Bools) -> list[float | None]:
    """Sum over the thresholds of (recall - recall before) * precision, for each label, without interpolation.

    As scikit-learn's `average_precision_score`: images of equal scores pass a threshold together.

    Args:
        scores: (N, classes), larger where a label is more likely.
        true: (N, classes).

    Returns:
        None where the label does not occur.
    """
    found: list[float | None] = []
    for score, label in zip(scores.T, true.T, strict=True):
        if not label.any():
            found.append(None)
            continue
        order = np.argsort(-score, kind="stable")
        score = score[order]
        ends = np.flatnonzero(np.append(score[1:] != score[:-1], True))
        hits = np.cumsum(label[order])[ends]
        found.append(float(np.sum(np.diff(hits, prepend=0) / hits[-1] * (hits / (ends + 1)))))
    return found


class Compared(NamedTuple):
    """The scores of a column of numbers; `Regress.scores` says what they are."""

    mae: float
    rmse: float
    r2: float
    spearman: float


def compare(predicted: Floats, true: Floats) -> Compared:
    """The scores of predicted and true numbers, (N,) each."""
    errors = predicted - true
    squares, spread = float((errors**2).sum()), float(((true - true.mean()) ** 2).sum())
    r2 = 1 - squares / spread if spread > 0 else float(squares == 0)
    return Compared(float(np.abs(errors).mean()), float(np.sqrt((errors**2).mean())), r2, spearman(predicted, true))


def spearman(one: Floats, other: Floats) -> float:
    """Pearson's correlation of the ranks, (N,) each; 0 where all numbers of a side are equal."""
    first, second = (ranks - ranks.mean() for ranks in (_ranks(one), _ranks(other)))
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else 0.0


def _ranks(numbers: Floats) -> Floats:
    """From 1; equal numbers share their mean rank."""
    _, which, times = np.unique(numbers, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(times) - (times - 1) / 2)[which]
    return ranks


def read_values(counts: Mapping[str, Ints]) -> tuple[Floats, Floats]:
    """What was predicted and what is true, float64 (N, columns) each, of all images of a split."""
    bits = np.ascontiguousarray(counts["values"].astype(np.int64))
    both: Floats = bits.view(np.float64)
    return both[:, :, 0], both[:, :, 1]
