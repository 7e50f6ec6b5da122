"""How raw files become rows. One module a data set, found by its name.

A data set module offers two functions, and imports nothing of ours but the types of this file:

    source(data, **args) -> Source           list the files (fast: no decoding)
    read(item) -> list of (image, target)    decode one item; called once for each, anywhere in the cluster

It may offer a third, for scores on other data than that of training:

    scored(data, known, **args) -> Source    the folders as they are: no split is needed, none is split off; where
                                             there are no folders of splits, all is the split ALL; `known` are the
                                             run's classes

An image is uint8 (height, width, channels). A target is of the kind that the source names (data/targets): of "labels"
the number of its class; of "masks" uint8 (height, width) of the image's own size, with the class number of each pixel,
or IGNORED; of "label_sets" a list of the numbers of its classes; of "numbers" a number, or a list of them; of "boxes"
`Objects`; of "instances" `Objects` with outlines.

`data` is the folder the user named (None: the data set needs none). `args` are the recipe's `dataset_args`;
unknown names are refused before `source` is called, by its signature. Both raise ValueError for input that
a user can fix, naming the file, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.box_table import CROWD as CROWD
from trainers.box_table import DIFFICULT as DIFFICULT
from trainers.box_table import PLAIN as PLAIN
from trainers.decode import BadImage as BadImage  # a part of what data sets are written with
from trainers.formatting import printable
from trainers.instances import LAYERS
from trainers.values import Args as Args

IGNORED = 255
"""A pixel of a mask that belongs to no class: neither loss nor scores count it."""
ALL = "all"
"""The split of pictures that lie in no folder of a split, where they are scored."""
MASK = -1
"""Stands in an item's `targets` for a mask, which `read` returns."""
BOXES = -1
"""Stands in an item's `targets` for objects, which `read` returns."""


class Objects(NamedTuple):
    """What is known of the M objects of a picture, none too, however large the picture is read."""

    corners: npt.NDArray[np.float64]
    """(M, 4): left, top, right, bottom as shares, 0 to 1, of the upright picture's width and height."""
    classes: npt.NDArray[np.int64]
    """(M,)."""
    kinds: npt.NDArray[np.int64]
    """(M,): PLAIN, CROWD or DIFFICULT."""
    areas: npt.NDArray[np.float64]
    """(M,), in pixels of the original picture: of the outline where it is known, else of the box."""
    outlines: Sequence[Any] | None = None
    """Where targets are "instances", of each object uint8 (H, W), 0 or 1, of the image's size; or its polygons, each as
    x, y, x, y, ..., shares of the picture's width and height."""
    size: tuple[int, int] | None = None
    """Height and width of the original picture, upright. None: those of the image that `read` returns beside it, which
    is right where that is no smaller one (`min_size` among the item's args)."""
    layers: int = LAYERS
    """Into so many layers go masks that lie over one another, at most (`trainers.instances`): 1 to 6."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A raw file, or a part of one, and the samples it holds. Plain data: it travels as JSON."""

    path: str | None
    """The raw file; its size and time of change are part of the cache's key. None: drawn or built in."""
    name: str
    """What people are shown, unique within a data set, e.g. `cats/001.jpg`; sample i of many is `name#i`."""
    targets: Sequence[Any]
    """The target of each sample, such as the number of its class; MASK for each where targets are masks, BOXES where
    they are objects."""
    mask_path: str | None = None
    """The raw file of the mask, where there is one: part of the cache's key as `path` is."""
    args: Args = field(default_factory=dict)
    """Whatever else `read` needs."""

    def __post_init__(self) -> None:
        if isinstance(self.name, str):  # else the check of what a data set returns says so
            object.__setattr__(self, "name", printable(self.name))

    @property
    def names(self) -> list[str]:
        """What people are shown of each sample."""
        count = len(self.targets)
        return [self.name] if count == 1 else [f"{self.name}#{index}" for index in range(count)]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a data set holds, before anything is decoded."""

    classes: Sequence[str]
    """Of "numbers": what each number is called."""
    channels: int
    """1 (grey) or 3 (RGB): what `read` returns for every image."""
    splits: Mapping[str, Sequence[Item]]
    """"train", "val", and "test" where there is one. The best epoch is chosen on "val", never on "test"."""
    target: str = "labels"
    """The kind of the targets: "labels", "masks", "label_sets", "numbers", "boxes" or "instances"."""
    colours: Sequence[tuple[int, int, int]] | None = None
    """RGB of each class in pictures of masks and boxes. None: chosen for you."""
    warnings: Sequence[str] = ()
    """What a person should know of this choice of pictures."""
    class_ids: Sequence[int] | None = None
    """Of each class, its number in the files of the data, such as COCO's ids of categories; None: they have none."""
    numbers: Sequence[int] | None = None
    """Of each class as `read` numbers it, its number in `classes`; None: the same. Of data that a run is scored on."""
    data: str | None = None
    """What the user named; filled in for the data set."""
    masks: InitVar[bool] = False
    """The older way to say target="masks"; files of one's own may still use it."""

    def __post_init__(self, masks: bool) -> None:
        if masks:
            object.__setattr__(self, "target", "masks")

    @property
    def rows(self) -> dict[str, int]:
        """Split -> samples by the listing, those that cannot be decoded too."""
        return {split: sum(len(item.targets) for item in items) for split, items in self.splits.items()}


def split_by_share(labels: Sequence[int], shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Assign positions 0..n-1 to splits, stratified: each class is split by itself, by largest remainder.

    Args:
        labels: The class of each position.
        shares: Split name -> share of the whole; they sum to 1.
        seed: 0 to 2**32 - 1.

    Returns:
        Split name -> sorted positions; every position is in one split. The split named first gets at least one of
        every class; the others may get none of a small class.
    """
    assert abs(sum(shares.values()) - 1) < 1e-9, shares
    rng = np.random.RandomState(seed)  # its stream is frozen by NumPy's policy (NEP 19): splits never move
    array = np.asarray(labels)
    assigned: dict[str, list[int]] = {name: [] for name in shares}
    for label in np.unique(array):
        positions = rng.permutation(np.flatnonzero(array == label))
        exact = np.array([share * len(positions) for share in shares.values()])
        counts = np.floor(exact).astype(int)
        for index in np.argsort(counts - exact, kind="stable")[: len(positions) - counts.sum()]:
            counts[index] += 1
        if counts[0] == 0:
            counts[int(np.argmax(counts))] -= 1
            counts[0] = 1
        for name, part in zip(shares, np.split(positions, np.cumsum(counts)[:-1]), strict=True):
            assigned[name].extend(part.tolist())
    return {name: sorted(positions) for name, positions in assigned.items()}
