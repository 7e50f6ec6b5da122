"""What a picture is learned by: one codec for each kind of target, found by its name.

    labels        the class of each picture
    masks         the class of each pixel
    label_sets    any number of classes for each picture
    numbers       one number or several for each picture
    boxes         the objects of each picture
    instances     the objects of each picture, with masks

A data set's `Source` names its kind, and so does a task. Whatever else handles targets (decoding, the shards, batches,
pre-processing, the traced step) asks the codec, and never which kind it is. A new kind is a class beside these that
offers what `Target` lists, and a writer of its predictions (inference/predictions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from trainers.data.targets.base import ONE as ONE
from trainers.data.targets.base import Array as Array
from trainers.data.targets.base import Most as Most
from trainers.data.targets.base import Target as Target
from trainers.data.targets.base import class_number as class_number
from trainers.data.targets.base import gather as gather
from trainers.data.targets.base import hash_pixels as hash_pixels
from trainers.data.targets.boxes import Boxes
from trainers.data.targets.instances import InstanceMasks
from trainers.data.targets.label_sets import LabelSets
from trainers.data.targets.labels import Labels
from trainers.data.targets.masks import Masks
from trainers.data.targets.numbers import Numbers
from trainers.datasets import Source
from trainers.formatting import nearest
from trainers.instances import Targets, each
from trainers.registry import constant, names

_KINDS: dict[str, Target] = {
    each.name: each for each in (Labels(), Masks(), LabelSets(), Numbers(), Boxes(), InstanceMasks())
}
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


def stand_in(
    target: Target, rows: int, size: tuple[int, int], classes: int, most: Most = ONE
) -> tuple[Targets, tuple[int, ...]]:
    """Targets for a task that is tried without data.

    Args:
        target: their kind.
        rows: how many.
        size: of the pictures.
        classes: how many there are.
        most: objects of a picture.

    Returns:
        What `finish` makes of `dummy`; and the shape of a model's output beyond rows and channels: height and width,
        or nothing.
    """
    import torch

    stored = each(lambda part: torch.from_numpy(part.copy()), target.dummy(rows, size, classes, most))
    maps = target.maps(stored)
    return target.finish(stored, maps), () if maps is None else tuple(maps.shape[-2:])
