"""The class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainers.data.resize import shrink
from trainers.data.targets.base import (
    ONE,
    Array,
    Most,
    Occurrence,
    Shared,
    Size,
    TargetFacts,
    class_number,
    hash_pixels,
)
from trainers.datasets import IGNORED, BadImage, Item

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


class Masks(Shared):
    """The class of each pixel, or IGNORED: uint8 (height, width); stacked (N, height, width)."""

    name = "masks"
    holds = "masks"
    legacy_masks = True
    names_rows = True
    one_class = False
    weighted = True
    output = ""
    blank = "the masks of the {split} split hold nothing but ignored pixels"
    fewest = 2

    def expects(self, classes: int) -> str:
        return "MASK"

    def may_be(self, target: object, classes: int) -> bool:
        class_number(target)
        return True

    def check(self, name: str, image: Array, target: object, classes: int) -> Array:
        wanted = f"{image.shape[0]}x{image.shape[1]} of uint8"
        if not isinstance(target, np.ndarray):
            raise TypeError(f"the mask is {type(target).__name__}; it must be an array, {wanted}, as the picture is")
        if target.dtype != np.uint8:
            raise TypeError(f"the mask is an array of {target.dtype}; it must be {wanted}, as the picture is")
        if target.shape != image.shape[:2]:
            found = f"{'x'.join(map(str, target.shape))} of {target.dtype}"
            raise BadImage(f"{name}: the mask is {found}; it must be {wanted}, as the picture is")
        wrong = np.flatnonzero(np.bincount(target.reshape(-1), minlength=256)[classes:IGNORED])
        if len(wrong):
            ids = ", ".join(str(number + classes) for number in wrong[:8])
            raise BadImage(f"{name}: the mask holds {ids}; allowed are 0 to {classes - 1}, and {IGNORED} for no class")
        return target

    def renumber(self, target: Array, numbers: Sequence[int], classes: int) -> Array:
        table = np.full(256, IGNORED, np.uint8)
        table[: len(numbers)] = numbers
        return table[target]

    def resize(self, target: Array, size: Size, how: str) -> Array:
        return shrink(target[:, :, None], size, how, mask=True)[:, :, 0]

    def stack(self, targets: Sequence[Array]) -> Array:
        return np.stack(targets) if targets else np.empty((0, 0, 0), np.uint8)

    def stored_bytes(self, size: Size) -> int:
        return size[0] * size[1]

    def identify(self, targets: Array) -> list[str]:
        return [hash_pixels(mask) for mask in targets]

    def to_column(self, targets: Array) -> pa.Array:
        import pyarrow as pa

        return pa.FixedShapeTensorArray.from_numpy_ndarray(targets)

    def from_columns(self, columns: Sequence[pa.Array]) -> list[Array]:
        return [column.to_numpy_ndarray() for column in columns]

    def listed(self, items: Sequence[Item], classes: int) -> None:
        return None

    def occurring(self, targets: Array) -> list[int]:
        raise AssertionError("which classes occur in masks shows when they are read")

    def count(self, targets: Array, classes: int) -> Occurrence:
        counts, areas = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
        for mask in targets:
            found = np.bincount(mask.reshape(-1), minlength=256)[:classes]
            counts += found
            areas += np.where(found > 0, found.sum(), 0)
        return {"counts": counts.tolist(), "areas": areas.tolist()}

    def check_counts(self, counts: Sequence[int], split: str, dataset: str) -> None:
        if not sum(counts):
            raise ValueError(
                f"the masks of the {split} split of {dataset} hold nothing but ignored pixels ({IGNORED}): "
                "there is nothing to learn or to score; annotate some, or leave the split out"
            )

    def format_counts(self, counts: Sequence[int]) -> list[str]:
        return [f"{count / max(1, sum(counts)):.1%}" for count in counts]

    def facts(self, identified: Sequence[int | str], classes: int) -> TargetFacts:
        return {}

    def describe(self, facts: TargetFacts, classes: Sequence[str]) -> list[str]:
        return []

    def maps(self, targets: Tensor) -> Tensor:
        return targets

    def finish(self, targets: Tensor, maps: Tensor | None) -> Tensor:
        assert maps is not None
        return maps.long()

    def shown(self, target: Tensor, every: int) -> Array:
        return target[::every, ::every].cpu().numpy().astype(np.uint8)

    def dummy(self, rows: int, size: Size, classes: int, most: Most = ONE) -> Array:
        return np.broadcast_to(np.zeros((), np.uint8), (rows, *size))
