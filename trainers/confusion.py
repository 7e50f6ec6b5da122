"""Which class was taken for which, of any number of classes: never a dense matrix where there are many.

A matrix of 10,000 classes takes 800 MB; what is not 0 in it, at most a cell for each picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np

from trainers.arrays import Ints

DENSE_CLASSES = 256
"""Most classes whose pictures are counted in a matrix: more are kept as pairs, 8 bytes for each picture."""
DRAWN_CLASSES = 31
"""Classes that are drawn where there are more than DENSE_CLASSES; the others are one more."""


class Confusion(NamedTuple):
    """The cells of a confusion matrix that are not 0."""

    classes: int
    """Rows and columns of the matrix."""
    true: Ints
    """Of each cell."""
    predicted: Ints
    images: Ints
    """How many there are in each cell."""

    @classmethod
    def of(cls, counts: Mapping[str, Ints], classes: int) -> Self:
        """From what the workers counted.

        Args:
            counts: `confusion`, (classes, classes), rows are true classes; or `pairs`, (N, 2), the true and the
                predicted class of each image.
            classes: their number.
        """
        if "confusion" in counts:
            matrix = counts["confusion"]
            true, predicted = np.nonzero(matrix)
            return cls(classes, true, predicted, matrix[true, predicted].astype(np.int64))
        pairs = counts["pairs"].astype(np.int64)
        cells, images = np.unique(pairs[:, 0] * classes + pairs[:, 1], return_counts=True)
        return cls(classes, cells // classes, cells % classes, images)

    @property
    def right(self) -> Ints:
        """Of each class, how many are predicted as what they are."""
        hit = self.true == self.predicted
        return self._per_class(self.true[hit], self.images[hit])

    @property
    def trues(self) -> Ints:
        """How many there are of each class."""
        return self._per_class(self.true, self.images)

    @property
    def predictions(self) -> Ints:
        """How many are predicted as each class."""
        return self._per_class(self.predicted, self.images)

    def matrix(self) -> Ints:
        """Dense, (classes, classes), rows are true classes."""
        dense = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(dense, (self.true, self.predicted), self.images)
        return dense

    def merge_all_but(self, kept: Ints) -> Self:
        """With these classes, in this order, and one more for all others."""
        number = np.full(self.classes, len(kept))
        number[kept] = np.arange(len(kept))
        return self._replace(classes=len(kept) + 1, true=number[self.true], predicted=number[self.predicted])

    def _per_class(self, of: Ints, images: Ints) -> Ints:
        total = np.zeros(self.classes, np.int64)
        np.add.at(total, of, images)
        return total


class Drawn(NamedTuple):
    """A confusion matrix that people can read."""

    matrix: Ints
    classes: list[int] | None = None
    """Those of the rows, but for the last row, which is all others; None: each class has a row."""
    confidence: float | None = None
    """Of detections: the least score of those that are counted; one more row and column, the last, is background."""


def to_draw(counts: Mapping[str, Ints]) -> Drawn | None:
    """The matrix of a split's counts; of many classes, those with the most errors. None: classes are not confused."""
    if "confusion" in counts and len(counts["confusion"]) <= DENSE_CLASSES:
        return Drawn(counts["confusion"])
    if not counts.keys() & {"confusion", "pairs"}:
        return None
    classes = len(counts["confusion"]) if "confusion" in counts else int(counts["pairs"].max(initial=0)) + 1
    whole = Confusion.of(counts, classes)
    errors = whole.trues + whole.predictions - 2 * whole.right
    kept = np.argsort(-errors, kind="stable")[:DRAWN_CLASSES]
    return Drawn(whole.merge_all_but(kept).matrix(), kept.tolist())
