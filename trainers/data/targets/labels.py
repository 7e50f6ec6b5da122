"""The class of each picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainers.data.targets.base import ONE, Array, Most, Occurrence, Shared, Size, TargetFacts, class_number
from trainers.datasets import BadImage, Item

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


class Labels(Shared):
    """The class of each picture: an integer; stacked int64 (N,)."""

    name = "labels"
    holds = "classes of whole pictures, no masks"
    legacy_masks = False
    names_rows = False
    one_class = True
    weighted = True
    output = ""
    blank = "no picture of the {split} split has a class"
    fewest = 2

    def expects(self, classes: int) -> str:
        return f"the number of a class, 0 to {classes - 1}"

    def may_be(self, target: object, classes: int) -> bool:
        return 0 <= class_number(target) < classes

    def check(self, name: str, image: Array, target: object, classes: int) -> int:
        label = class_number(target)
        if not 0 <= label < classes:
            raise BadImage(f"{name}: its class is number {label}; allowed are 0 to {classes - 1}")
        return label

    def renumber(self, target: int, numbers: Sequence[int], classes: int) -> int:
        return numbers[target]

    def resize(self, target: int, size: Size, how: str) -> int:
        return target

    def stack(self, targets: Sequence[int]) -> Array:
        return np.asarray(targets, np.int64)

    def stored_bytes(self, size: Size) -> int:
        return 0

    def identify(self, targets: Array) -> list[int]:
        return [int(label) for label in targets]

    def to_column(self, targets: Array) -> Array:
        return targets

    def from_columns(self, columns: Sequence[pa.Array]) -> list[Array]:
        """One array: few bytes, which are gathered faster."""
        return [np.concatenate([np.from_dlpack(column) for column in columns])]

    def listed(self, items: Sequence[Item], classes: int) -> Array:
        return np.array([target for item in items for target in item.targets], np.int64)

    def occurring(self, targets: Array) -> list[int]:
        return [int(label) for label in np.unique(targets)]

    def count(self, targets: Array, classes: int) -> Occurrence:
        return {"counts": np.bincount(targets, minlength=classes).tolist()}

    def check_counts(self, counts: Sequence[int], split: str, dataset: str) -> None:
        pass  # every picture has a class

    def format_counts(self, counts: Sequence[int]) -> list[str]:
        return [f"{count:,}" for count in counts]

    def facts(self, identified: Sequence[int | str], classes: int) -> TargetFacts:
        return {}

    def describe(self, facts: TargetFacts, classes: Sequence[str]) -> list[str]:
        return []

    def maps(self, targets: Tensor) -> None:
        return None

    def finish(self, targets: Tensor, maps: Tensor | None) -> Tensor:
        return targets.long()

    def dummy(self, rows: int, size: Size, classes: int, most: Most = ONE) -> Array:
        return np.broadcast_to(np.zeros((), np.int64), (rows,))
