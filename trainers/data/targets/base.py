"""What the way from a raw file to the model asks of a kind of target, and what kinds share."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, Protocol, TypedDict

import numpy as np

from trainers.arrays import Array as Array
from trainers.datasets import IGNORED, Item
from trainers.instances import Targets

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from trainers.augmentations import Erased
    from trainers.messages import Facts
    from trainers.run_facts import DatasetFacts

Size = tuple[int, int]
"""Height and width, in pixels."""
TargetFacts = Mapping[str, Sequence[float]]
"""What is known of the training targets -> a number for each class, for tasks whose make() takes it by that name."""


class Occurrence(TypedDict):
    """How often each class occurs."""

    counts: list[int]
    """Pictures, or pixels, of each class."""
    areas: NotRequired[list[int]]
    """Of masks: labelled pixels of the pictures in which each class occurs."""
    most_objects: NotRequired[int]
    """Of objects: those of the picture that has most."""
    layers: NotRequired[int]
    """Of masks of objects: the layers of the picture that has most."""


class Most(NamedTuple):
    """What of a set's pictures differs in number, of the training picture that has most."""

    objects: int = 1
    layers: int = 1

    @classmethod
    def of(cls, meta: Facts | DatasetFacts) -> Most:
        """By what meta.json says, or run.json of its data."""
        return cls(meta.get("most_objects", 1), meta.get("layers", 1))


ONE = Most()


class Target(Protocol):
    """What the way from a raw file to the model asks of a kind of target."""

    name: str
    """As `Source.target` and a task's TARGET give it."""
    holds: str
    """What a data set of this kind has, in words."""
    legacy_masks: bool
    """`masks` of meta.json and run.json: what versions read that do not know `target`."""
    names_rows: bool
    """Whether meta.json keeps the name of each row: where rows are drawn for people."""
    one_class: bool
    """Whether a row has one class, so that equal pictures of two classes contradict each other."""

    weighted: bool
    """Whether losses can have weights of classes."""
    output: str
    """What a number that a model gives means to tasks of ours, where that goes for all of them; "": it does not."""
    blank: str
    """What is wrong where no class occurs in a {split} split, in words."""
    fewest: int
    """Classes that there must be."""
    outside: int
    """What their maps become where nothing of the picture is seen."""

    # Decoding

    def expects(self, classes: int) -> str:
        """What stands in an item's `targets` for a sample, in words."""
        ...

    def may_be(self, target: object, classes: int) -> bool:
        """Whether this may stand there. Raises TypeError where it is no target at all."""
        ...

    def check(self, name: str, image: Array, target: object, classes: int) -> Any:
        """What `read` of a data set returned beside `image`, as it is stored.

        Args:
            name: the picture's, for messages.
            image: uint8 (height, width, channels).
            target: what belongs to it.
            classes: how many there are.

        Raises:
            BadImage: it does not fit the picture or the classes.
            TypeError: it is no target at all.
        """
        ...

    def renumber(self, target: Any, numbers: Sequence[int], classes: int) -> Any:
        """A checked target with other numbers of the classes, of which there are then `classes`: `numbers[old]` is the
        new one."""
        ...

    def resize(self, target: Any, size: Size, how: str) -> Any:
        """A checked target as it goes with the picture that `shrink` brings to `size`; `how`: see Recipe.resize."""
        ...

    def stack(self, targets: Sequence[Any]) -> Targets:
        """Resized targets of some rows, none at all too, as one array (rows, ...), or several."""
        ...

    # Storing

    def stored_bytes(self, size: Size) -> int:
        """Bytes of a row in a shard beside its picture, as shards are cut by them: a few are not counted."""
        ...

    def identify(self, targets: Targets) -> list[int] | list[str]:
        """What identifies the targets of rows: equal where they are equal."""
        ...

    def to_column(self, targets: Targets) -> pa.Array | Array:
        """The column `target` of a shard."""
        ...

    def from_columns(self, columns: Sequence[pa.Array]) -> list[Array]:
        """The columns of all shards of a split, for `gather`."""
        ...

    def gather(self, columns: Sequence[Array], first_rows: Array, ids: Array) -> Targets:
        """Stacked targets of some rows.

        Args:
            columns: what `from_columns` gives.
            first_rows: the number of each shard's first row.
            ids: the rows wanted, in that order.
        """
        ...

    # Augmenting

    def refuse(self, settings: Mapping[str, object]) -> None:
        """Raises ValueError where a recipe's `augment` asks for what these targets cannot follow."""
        ...

    def doubts(self, settings: Mapping[str, object]) -> list[str]:
        """What a person should know of how these targets follow a recipe's `augment`."""
        ...

    def tile(self, targets: Targets, corners: Array, shown: Array) -> Targets:
        """Stacked targets of mosaics, (N, ...), of kinds that do not refuse them.

        Args:
            targets: of the pictures at their places, (places, N, ...).
            corners: top and left of each, in pixels, (places, 2, N).
            shown: whether it is there, (places, N).
        """
        ...

    def move(self, targets: Targets, mapping: Array, stored: Size, size: Size, erased: Erased | None = None) -> Targets:
        """Stacked targets as they go with pictures that were changed; those that lie still, or are `maps`, themselves.

        Args:
            targets: of N pictures.
            mapping: float64 (N, 6); see `augment.Augmented`.
            stored: size of the pictures before.
            size: of the changed pictures.
            erased: boxes of them.
        """
        ...

    # Counting

    def listed(self, items: Sequence[Item], classes: int) -> Array | None:
        """The targets of all rows where the listing of the files says them; None: they must be read."""
        ...

    def occurring(self, targets: Array) -> list[int]:
        """The classes that occur in listed targets."""
        ...

    def count(self, targets: Targets, classes: int) -> Occurrence:
        """How often each class occurs in stacked targets."""
        ...

    def check_counts(self, counts: Sequence[int], split: str, dataset: str) -> None:
        """Raises ValueError where the rows of a split hold nothing to learn from."""
        ...

    def format_counts(self, counts: Sequence[int]) -> list[str]:
        """How often each class occurs, for people."""
        ...

    def facts(self, identified: Sequence[int | str], classes: int) -> TargetFacts:
        """What a task may want to know of the training targets before it is made.

        Args:
            identified: what `identify` gives of each row.
            classes: how many there are.
        """
        ...

    def describe(self, facts: TargetFacts, classes: Sequence[str]) -> list[str]:
        """What people should know of these facts, in lines."""
        ...

    # To the model

    def maps(self, targets: Targets) -> Tensor | None:
        """What of a batch's targets lies pixel by pixel over the pictures, and moves as they do, (N, H, W) or
        (N, L, H, W)."""
        ...

    def finish(self, targets: Targets, maps: Tensor | None) -> Targets:
        """A batch's targets as the task takes them, from stored ones and their maps, moved: int64, or float64."""
        ...

    def shown(self, target: Targets, every: int) -> Targets:
        """What people are shown of the target of a picture, or of what a task's `labels` makes of it; of the picture
        itself they see one of `every` rows and columns."""
        ...

    def dummy(self, rows: int, size: Size, classes: int, most: Most = ONE) -> Targets:
        """Stacked targets that take no memory, for models that are tried or traced."""
        ...


class Shared:
    """What most kinds do alike: their targets are arrays of one shape, which lie still or are maps."""

    outside = IGNORED

    def gather(self, columns: Sequence[Array], first_rows: Array, ids: Array) -> Targets:
        return gather(columns, first_rows, ids)

    def refuse(self, settings: Mapping[str, object]) -> None:
        if settings.get("mosaic"):
            raise ValueError("augment mosaic is for boxes of objects; leave it out")

    def tile(self, targets: Targets, corners: Array, shown: Array) -> Targets:
        raise AssertionError("they refuse mosaics")

    def doubts(self, settings: Mapping[str, object]) -> list[str]:
        return []

    def move(self, targets: Targets, mapping: Array, stored: Size, size: Size, erased: Erased | None = None) -> Targets:
        return targets

    def shown(self, target: Targets, every: int) -> Targets:
        return target.cpu().numpy()


def gather(shards: Sequence[Array], first_rows: Array, ids: Array) -> Array:
    """Rows of a column that lies in several arrays.

    Args:
        shards: the parts, (rows, ...) each.
        first_rows: the number of each part's first row.
        ids: the rows wanted, in that order.
    """
    if len(shards) == 1:
        return np.take(shards[0], ids, axis=0)
    rows = np.empty((len(ids), *shards[0].shape[1:]), shards[0].dtype)
    numbers = np.searchsorted(first_rows, ids, side="right") - 1
    for index, (number, row) in enumerate(zip(numbers.tolist(), ids.tolist(), strict=True)):
        rows[index] = shards[number][row - first_rows[number]]
    return rows


def class_number(target: object) -> int:
    """An integer of any kind, of NumPy too, or a whole number. Raises TypeError."""
    try:
        return operator.index(target)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(target, float) and target.is_integer():
            return int(target)
        raise TypeError(f"the target is {target!r:.50}; it must be the number of a class") from None


def hash_pixels(pixels: Array) -> str:
    """A digest of a picture or mask."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=12).hexdigest()
