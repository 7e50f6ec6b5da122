"""One number or several for each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainers.data.targets.base import ONE, Array, Most, Occurrence, Shared, Size, TargetFacts
from trainers.datasets import BadImage, Item

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


class Numbers(Shared):
    """A number for each picture, or several: float64 (columns,), any finite ones; stacked (N, columns). What are
    classes elsewhere are the columns here."""

    name = "numbers"
    holds = "numbers, no classes"
    legacy_masks = False
    names_rows = False
    one_class = False
    weighted = False
    output = "(batch, classes): number = output * target_std + target_mean, of each column"
    blank = "no picture of the {split} split has a number"
    fewest = 1

    def expects(self, classes: int) -> str:
        return "a finite number" if classes == 1 else f"a list of {classes} finite numbers"

    def may_be(self, target: object, classes: int) -> bool:
        row = _row(target)
        return len(row) == classes and bool(np.isfinite(row).all())

    def check(self, name: str, image: Array, target: object, classes: int) -> Array:
        row = _row(target)
        if len(row) != classes or not np.isfinite(row).all():
            raise BadImage(f"{name}: its target is {target!r:.50}; it must be {self.expects(classes)}")
        return row

    def renumber(self, target: Array, numbers: Sequence[int], classes: int) -> Array:
        row = np.zeros(classes)
        row[list(numbers)] = target
        return row

    def resize(self, target: Array, size: Size, how: str) -> Array:
        return target

    def stack(self, targets: Sequence[Array]) -> Array:
        return np.stack(targets) if targets else np.empty((0, 0))

    def stored_bytes(self, size: Size) -> int:
        return 0

    def identify(self, targets: Array) -> list[str]:
        """All digits, as in "0x1.8p+1,0x0.0p+0"."""
        return [",".join(float(number).hex() for number in row) for row in targets]

    def to_column(self, targets: Array) -> pa.Array:
        import pyarrow as pa

        return pa.FixedShapeTensorArray.from_numpy_ndarray(targets)

    def from_columns(self, columns: Sequence[pa.Array]) -> list[Array]:
        return [np.concatenate([column.to_numpy_ndarray() for column in columns])]

    def listed(self, items: Sequence[Item], classes: int) -> Array:
        rows = [self.check(item.name, np.empty(0), target, classes) for item in items for target in item.targets]
        return np.stack(rows) if rows else np.empty((0, classes))

    def occurring(self, targets: Array) -> list[int]:
        return list(range(targets.shape[1]))

    def count(self, targets: Array, classes: int) -> Occurrence:
        return {"counts": [len(targets)] * classes}

    def check_counts(self, counts: Sequence[int], split: str, dataset: str) -> None:
        pass  # every picture has a number

    def format_counts(self, counts: Sequence[int]) -> list[str]:
        return [f"of {count:,}" for count in counts]

    def facts(self, identified: Sequence[int | str], classes: int) -> TargetFacts:
        """`target_mean` and `target_std` of the training pictures, the same however these were cut; a deviation of 0
        is 1."""
        table = [[float.fromhex(number) for number in str(row).split(",")] for row in identified]
        columns = list(zip(*table, strict=True)) or [(0.0,)] * classes
        means = [math.fsum(column) / len(column) for column in columns]
        variances = [
            math.fsum((number - mean) ** 2 for number in column) / len(column)
            for column, mean in zip(columns, means, strict=True)
        ]
        return {"target_mean": means, "target_std": [math.sqrt(variance) or 1.0 for variance in variances]}

    def describe(self, facts: TargetFacts, classes: Sequence[str]) -> list[str]:
        numbers = zip(classes, facts["target_mean"], facts["target_std"], strict=True)
        return [f"{name}: mean {mean:.6g}, deviation {std:.6g} of the training pictures" for name, mean, std in numbers]

    def maps(self, targets: Tensor) -> None:
        return None

    def finish(self, targets: Tensor, maps: Tensor | None) -> Tensor:
        return targets

    def dummy(self, rows: int, size: Size, classes: int, most: Most = ONE) -> Array:
        return np.broadcast_to(np.zeros(()), (rows, classes))


def _row(target: object) -> Array:
    """Numbers as float64 (columns,). Raises TypeError."""
    given = target if isinstance(target, Sequence | np.ndarray) and not isinstance(target, str) else [target]
    numbers = np.ravel(np.asarray(given)) if isinstance(given, np.ndarray) else list(given)
    if any(isinstance(number, bool | str) or not isinstance(number, int | float | np.number) for number in numbers):
        raise TypeError(f"the target is {target!r:.50}; it must be a number, or a list of numbers")
    return np.array([float(number) for number in numbers])
