"""Any number of classes for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainers.data.targets.base import ONE, Array, Most, Occurrence, Shared, Size, TargetFacts, class_number
from trainers.datasets import BadImage, Item

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


class LabelSets(Shared):
    """The classes of each picture, none, one or several: uint8 (classes,), 1 where it is of the class; stacked
    (N, classes)."""

    name = "label_sets"
    holds = "sets of labels"
    legacy_masks = False
    names_rows = False
    one_class = False
    weighted = True
    output = "logits (batch, classes): 1 / (1 + exp(-logit)) is the probability of each label"
    blank = "no picture of the {split} split has a label"
    fewest = 1

    def expects(self, classes: int) -> str:
        return f"a list of numbers of classes, 0 to {classes - 1}"

    def may_be(self, target: object, classes: int) -> bool:
        return all(0 <= number < classes for number in _numbers(target))

    def check(self, name: str, image: Array, target: object, classes: int) -> Array:
        numbers = _numbers(target)
        if wrong := [number for number in numbers if not 0 <= number < classes]:
            raise BadImage(f"{name}: one of its classes is number {wrong[0]}; allowed are 0 to {classes - 1}")
        row = np.zeros(classes, np.uint8)
        row[numbers] = 1
        return row

    def renumber(self, target: Array, numbers: Sequence[int], classes: int) -> Array:
        row = np.zeros(classes, np.uint8)
        row[np.asarray(numbers)[target > 0]] = 1
        return row

    def resize(self, target: Array, size: Size, how: str) -> Array:
        return target

    def stack(self, targets: Sequence[Array]) -> Array:
        return np.stack(targets) if targets else np.empty((0, 0), np.uint8)

    def stored_bytes(self, size: Size) -> int:
        return 0

    def identify(self, targets: Array) -> list[str]:
        """The numbers of the classes, as in "0,3"."""
        return [",".join(map(str, np.flatnonzero(row))) for row in targets]

    def to_column(self, targets: Array) -> pa.Array:
        import pyarrow as pa

        return pa.FixedShapeTensorArray.from_numpy_ndarray(targets)

    def from_columns(self, columns: Sequence[pa.Array]) -> list[Array]:
        return [np.concatenate([column.to_numpy_ndarray() for column in columns])]

    def listed(self, items: Sequence[Item], classes: int) -> Array:
        rows = [self.check(item.name, np.empty(0), target, classes) for item in items for target in item.targets]
        return np.stack(rows) if rows else np.empty((0, classes), np.uint8)

    def occurring(self, targets: Array) -> list[int]:
        return [int(number) for number in np.flatnonzero(targets.any(0))]

    def count(self, targets: Array, classes: int) -> Occurrence:
        return {"counts": targets.sum(0, dtype=np.int64).tolist() if len(targets) else [0] * classes}

    def check_counts(self, counts: Sequence[int], split: str, dataset: str) -> None:
        if not sum(counts):
            raise ValueError(
                f"no picture of the {split} split of {dataset} has a label: there is nothing to learn or to score; "
                "label some, or take other splits"
            )

    def format_counts(self, counts: Sequence[int]) -> list[str]:
        return [f"{count:,}" for count in counts]

    def facts(self, identified: Sequence[int | str], classes: int) -> TargetFacts:
        """`target_shares`: of the training pictures, the share that is of each class."""
        counts = np.zeros(classes, np.int64)
        for numbers in identified:
            counts[[int(number) for number in str(numbers).split(",") if number]] += 1
        return {"target_shares": (counts / max(1, len(identified))).tolist()}

    def describe(self, facts: TargetFacts, classes: Sequence[str]) -> list[str]:
        return []

    def maps(self, targets: Tensor) -> None:
        return None

    def finish(self, targets: Tensor, maps: Tensor | None) -> Tensor:
        return targets.long()

    def dummy(self, rows: int, size: Size, classes: int, most: Most = ONE) -> Array:
        return np.broadcast_to(np.zeros((), np.uint8), (rows, classes))


def _numbers(target: object) -> list[int]:
    """Numbers of classes, from a list of them, or from an array of bool, one for each class. Raises TypeError."""
    if isinstance(target, np.ndarray) and target.dtype == bool and target.ndim == 1:
        return [int(number) for number in np.flatnonzero(target)]
    if isinstance(target, str) or not isinstance(target, Sequence | set | frozenset | np.ndarray):
        raise TypeError(f"the target is {target!r:.50}; it must be a list of the numbers of its classes")
    return [class_number(number) for number in target]
