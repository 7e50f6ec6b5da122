"""What a picture is learned by: one codec for each kind of target, found by its name.

    labels    the class of each picture
    masks     the class of each pixel

A data set's `Source` names its kind, and so does a task. Whatever else handles targets (decoding, the shards, batches,
pre-processing, the traced step) asks the codec, and never which kind it is. A new kind is a class here that offers
what `Target` lists, and a writer of its predictions (inference/predictions.py).
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from trainers.data.resize import shrink
from trainers.datasets import IGNORED, BadImage, Item, Source
from trainers.formatting import nearest
from trainers.registry import constant, names

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

Array = npt.NDArray[Any]
Size = tuple[int, int]
"""Height and width, in pixels."""


class Occurrence(TypedDict):
    """How often each class occurs."""

    counts: list[int]
    """Pictures, or pixels, of each class."""
    areas: NotRequired[list[int]]
    """Of masks: labelled pixels of the pictures in which each class occurs."""


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

    # Decoding

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

    def renumber(self, target: Any, numbers: Sequence[int]) -> Any:
        """A checked target with other numbers of the classes: `numbers[old]` is the new one."""
        ...

    def resize(self, target: Any, size: Size, how: str) -> Any:
        """A checked target as it goes with the picture that `shrink` brings to `size`; `how`: see Recipe.resize."""
        ...

    def stack(self, targets: Sequence[Any]) -> Array:
        """Resized targets of some rows, none at all too, as one array (rows, ...)."""
        ...

    # Storing

    def stored_bytes(self, size: Size) -> int:
        """Bytes of a row in a shard beside its picture, as shards are cut by them: a few are not counted."""
        ...

    def identify(self, targets: Array) -> list[int] | list[str]:
        """What identifies the targets of rows: equal where they are equal."""
        ...

    def to_column(self, targets: Array) -> pa.Array | Array:
        """The column `target` of a shard."""
        ...

    def from_columns(self, columns: Sequence[pa.Array]) -> list[Array]:
        """The columns of all shards of a split, for `gather`."""
        ...

    # Counting

    def listed(self, items: Sequence[Item]) -> Array | None:
        """The targets of all rows where the listing of the files says them; None: they must be read."""
        ...

    def count(self, targets: Array, classes: int) -> Occurrence:
        """How often each class occurs in stacked targets."""
        ...

    def check_counts(self, counts: Sequence[int], split: str, dataset: str) -> None:
        """Raises ValueError where the rows of a split hold nothing to learn from."""
        ...

    def format_counts(self, counts: Sequence[int]) -> list[str]:
        """How often each class occurs, for people."""
        ...

    # To the model

    def maps(self, targets: Tensor) -> Tensor | None:
        """What of a batch's targets lies pixel by pixel over the pictures, and moves as they do, (N, H, W)."""
        ...

    def finish(self, targets: Tensor, maps: Tensor | None) -> Tensor:
        """A batch's targets as the task takes them, from stored ones and their maps, moved: int64."""
        ...

    def dummy(self, rows: int, size: Size) -> Array:
        """Stacked targets of class 0 that take no memory: for models that are tried or traced."""
        ...


class Labels:
    """The class of each picture: an integer; stacked int64 (N,)."""

    name = "labels"
    holds = "classes of whole pictures, no masks"
    legacy_masks = False
    names_rows = False
    one_class = True

    def check(self, name: str, image: Array, target: object, classes: int) -> int:
        label = class_number(target)
        if not 0 <= label < classes:
            raise BadImage(f"{name}: its class is number {label}; allowed are 0 to {classes - 1}")
        return label

    def renumber(self, target: int, numbers: Sequence[int]) -> int:
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

    def listed(self, items: Sequence[Item]) -> Array:
        return np.array([target for item in items for target in item.targets], np.int64)

    def count(self, targets: Array, classes: int) -> Occurrence:
        return {"counts": np.bincount(targets, minlength=classes).tolist()}

    def check_counts(self, counts: Sequence[int], split: str, dataset: str) -> None:
        pass  # every picture has a class

    def format_counts(self, counts: Sequence[int]) -> list[str]:
        return [f"{count:,}" for count in counts]

    def maps(self, targets: Tensor) -> None:
        return None

    def finish(self, targets: Tensor, maps: Tensor | None) -> Tensor:
        return targets.long()

    def dummy(self, rows: int, size: Size) -> Array:
        return np.broadcast_to(np.zeros((), np.int64), (rows,))


class Masks:
    """The class of each pixel, or IGNORED: uint8 (height, width); stacked (N, height, width)."""

    name = "masks"
    holds = "masks"
    legacy_masks = True
    names_rows = True
    one_class = False

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

    def renumber(self, target: Array, numbers: Sequence[int]) -> Array:
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

    def listed(self, items: Sequence[Item]) -> None:
        return None

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

    def maps(self, targets: Tensor) -> Tensor:
        return targets

    def finish(self, targets: Tensor, maps: Tensor | None) -> Tensor:
        assert maps is not None
        return maps.long()

    def dummy(self, rows: int, size: Size) -> Array:
        return np.broadcast_to(np.zeros((), np.uint8), (rows, *size))


def class_number(target: object) -> int:
    """An integer of any kind, of NumPy too, or a whole number. Raises TypeError."""
    try:
        return operator.index(target)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(target, float) and target.is_integer():
            return int(target)
        raise TypeError(f"the target is {target!r:.50}; it must be the number of a class") from None


_KINDS: dict[str, Target] = {target.name: target for target in (Labels(), Masks())}
T = TypeVar("T")


def kind(name: str) -> Target:
    """The codec called `name`. Raises ValueError, with the names that there are."""
    return pick(_KINDS, name)


def pick(of_kind: Mapping[str, T], name: str) -> T:
    """What belongs to the kind of target called `name`. Raises ValueError, with the names that there are."""
    if name not in of_kind:
        raise ValueError(f"there is no kind of target {name!r}{nearest(name, of_kind)}")
    return of_kind[name]


def of_meta(meta: Mapping[str, object]) -> Target:
    """The codec of a prepared data set or of a run, from what meta.json or `dataset` of run.json holds.

    Files of older versions do not name the kind: there, `masks` decides.
    """
    return kind(str(meta.get("target") or ("masks" if meta.get("masks") else "labels")))


def check_task(task: str, source: Source, dataset: str) -> None:
    """Raises ValueError where a task learns from another kind of target than the data set has."""
    has = kind(source.target)
    if constant("tasks", task, "TARGET") != has.name:
        fitting = [each for each in names("tasks") if constant("tasks", each, "TARGET") == has.name]
        raise ValueError(
            f"task={task} does not fit the data set {dataset}, which has {has.holds}; "
            f"use {' or '.join(fitting) or 'a task of your own, --task FILE.py'}"
        )


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


def hash_pixels(pixels: Array) -> str:
    """A digest of a picture or mask."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=12).hexdigest()
