"""What a data set module gives, checked where it comes in: a listing, and pictures with their targets.

A module of the user's own may return anything: what does not fit is one message with the file, the function, the item,
what was returned and what is expected. What may pass for it (a Path, classes that are numbers) is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from trainers import own_code
from trainers.data.resize import Pixels
from trainers.data.targets import Target, kind
from trainers.datasets import BadImage, Item, Source
from trainers.formatting import locate_error, printable
from trainers.registry import load

Sample = tuple[Pixels, object]
"""A picture, uint8 (height, width, channels), and its target."""
PAIRS = "a list of (image, target)"
SOURCE = "a Source (from trainers.datasets import Source)"


def list_files(dataset: str, data: str | None, args: Mapping[str, object]) -> Source:
    """What `source` of a data set returns. Raises ValueError, of its own or for what it returns."""
    _function(dataset, "read")  # missed now, not when the first picture is read
    source = functools.partial(_function(dataset, "source"), data, **args)
    return _check_source(f"{dataset}: source()", _call(source, dataset, "source()"))


def list_scored(dataset: str, data: str | None, known: Sequence[str], args: Mapping[str, object]) -> Source | None:
    """What `scored` of a data set returns; None where it has none. Raises ValueError as `list_files` does."""
    if not hasattr(load("datasets", dataset), "scored"):
        return None
    scored = functools.partial(_function(dataset, "scored"), data, known, **args)
    return _check_source(f"{dataset}: scored()", _call(scored, dataset, "scored()"))


def reader(dataset: str, channels: int) -> Callable[[Item], list[Sample]]:
    """`read` of a data set, whose results are checked.

    Args:
        dataset: Its name, or the user's own file.
        channels: Of its pictures.

    Returns:
        A function that raises BadImage for an item that cannot be read, and ValueError where `read` returns what no
        picture is.
    """
    function = _function(dataset, "read")

    def read(item: Item) -> list[Sample]:
        what = f"read() of the item {item.name!r}"
        found = _call(lambda: function(item), dataset, what)
        return _check_samples(f"{dataset}: {what}", item, found, channels)

    return read


def _function(dataset: str, name: str) -> Callable[..., object]:
    function: object = getattr(load("datasets", dataset), name, None)
    if not callable(function):
        wanted = (
            f"read(item), which returns {PAIRS}" if name == "read" else f"source(data, ...), which returns {SOURCE}"
        )
        raise ValueError(f"{dataset} has no function {wanted}")
    return function


def _call(function: Callable[[], object], dataset: str, what: str) -> object:
    """What the function returns; whatever the user's own raises is a ValueError with the line."""
    try:
        return function()
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        if not own_code.is_file(dataset):
            raise
        inside = traceback.extract_tb(error.__traceback__)[-1].filename != __file__  # else its arguments do not fit
        told = locate_error(error) if inside else f"{type(error).__name__}: {error}"
        raise ValueError(f"{dataset}: {what} failed: {printable(told)}") from None


# ---- the listing ----


def _check_source(where: str, source: object) -> Source:
    if not isinstance(source, Source):
        raise ValueError(f"{where} returned {_describe(source)}; expected is {SOURCE}")
    if not isinstance(source.classes, Sequence) or isinstance(source.classes, str) or not source.classes:
        raise ValueError(f"{where}: classes is {_describe(source.classes)}; expected is a list of names")
    classes = [name if isinstance(name, str) else str(name) for name in source.classes]
    twice, _ = Counter(classes).most_common(1)[0]
    if len(set(classes)) < len(classes):
        raise ValueError(f"{where}: the class {twice!r} is listed twice; classes have names of their own")
    if isinstance(source.channels, bool) or not isinstance(source.channels, int) or source.channels < 1:
        raise ValueError(f"{where}: channels is {_describe(source.channels)}; expected is 1 (grey) or 3 (RGB)")
    if not isinstance(source.splits, Mapping):
        raise ValueError(
            f"{where}: splits is {_describe(source.splits)}; expected is a mapping of train, val and, where there is "
            "one, test to lists of Item"
        )
    target = kind(source.target)
    splits = {split: _check_items(where, split, items, target, len(classes)) for split, items in source.splits.items()}
    if isinstance(source.warnings, str):
        source = dataclasses.replace(source, warnings=[source.warnings])
    return dataclasses.replace(source, classes=[*map(printable, classes)], splits=splits)


def _check_items(where: str, split: object, items: object, target: Target, classes: int) -> list[Item]:
    """The items of a split; `classes`: how many there are."""
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise ValueError(f"{where}: the split {split!r} is {_describe(items)}; expected is a list of Item")
    checked = []
    for number, item in enumerate(items):
        if not isinstance(item, Item):
            raise ValueError(
                f"{where}: entry {number} of the split {split!r} is {_describe(item)}; expected is an Item "
                "(from trainers.datasets import Item)"
            )
        here = f"{where}: the item {item.name!r} of the split {split!r}"
        if not isinstance(item.name, str):
            raise ValueError(f"{here} has a name that is {_describe(item.name)}; expected is text")
        paths: dict[str, object] = {"path": item.path, "mask_path": item.mask_path}
        for field, value in paths.items():
            if value is not None and not isinstance(value, str | Path):
                raise ValueError(f"{here} has a {field} that is {_describe(value)}; expected is text, or None")
        if any(isinstance(value, Path) for value in paths.values()):
            path, mask_path = (None if value is None else str(value) for value in paths.values())
            item = dataclasses.replace(item, path=path, mask_path=mask_path)
        _check_targets(here, item.targets, target, classes)
        if not isinstance(item.args, Mapping):
            raise ValueError(f"{here} has args that are {_describe(item.args)}; expected is a mapping of plain values")
        checked.append(item)
    return checked


def _check_targets(here: str, targets: object, kind: Target, classes: int) -> None:
    if isinstance(targets, str) or not isinstance(targets, Sequence | np.ndarray) or not len(targets):
        raise ValueError(
            f"{here} has targets that are {_describe(targets)}; expected is a list with one for each sample that "
            "read() returns: the number of its class, MASK or BOXES"
        )
    for target in targets:
        try:
            fits = kind.may_be(target, classes)
        except TypeError:
            raise ValueError(
                f"{here} has a target that is {_describe(target)}; expected is {kind.expects(classes)}"
            ) from None
        if not fits:
            raise ValueError(f"{here} has the target {target}; expected is {kind.expects(classes)}")


# ---- pictures ----


def _check_samples(where: str, item: Item, found: object, channels: int) -> list[Sample]:
    try:
        samples = list(found)  # type: ignore[call-overload]  # of a generator too
    except TypeError:
        raise ValueError(f"{where} returned {_describe(found)}; expected is {PAIRS}") from None
    for number, sample in enumerate(samples):
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(
                f"{where} returned {_describe(found)}, whose entry {number} is {_describe(sample)}; expected is {PAIRS}"
            )
        image = sample[0]
        fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.size
        if not fits or image.shape[2] != channels:
            raise ValueError(
                f"{where} returned an image that is {_describe(image)} (sample {number}); expected is an array of "
                f"uint8, height x width x {channels}, as source() said channels={channels}"
            )
    if len(samples) != len(item.targets):
        raise ValueError(
            f"{where} returned {len(samples)} samples; expected are {len(item.targets)}, as many as the item has "
            "targets"
        )
    return [(image, target) for image, target in samples]


def _describe(value: object) -> str:
    """A value of any type, for messages."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape:
        return f"{_a(type(value).__name__)} of {dtype}, {' x '.join(map(str, shape))}"
    if isinstance(value, list | tuple):
        inner = ", ".join(type(each).__name__ for each in value[:4]) + ", ..." * (len(value) > 4)
        return f"{_a(type(value).__name__)} of {len(value)}{f' ({inner})' if inner else ''}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return _a(type(value).__name__)


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
