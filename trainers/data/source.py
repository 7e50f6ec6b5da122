"""The raw files of a data set before they are decoded: listed, checked, and the key of their cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from trainers.data import contract, targets
from trainers.datasets import Item, Source
from trainers.decode import revision
from trainers.formatting import composed, format_size, shortened
from trainers.recipe import Recipe
from trainers.registry import constant, identify
from trainers.storage.store import CACHE, Store


def cache_folder(storage: Store) -> Path:
    """Where prepared pictures lie on this host: `$TRAINYARD_CACHE`, else `<storage>/cache`, else a folder at home."""
    from trainers.data import shard_transfer

    if storage.local is None or os.environ.get("TRAINYARD_CACHE"):
        return shard_transfer.home()
    return storage.local / CACHE


def published(storage: Store) -> Store | None:
    """Where prepared pictures lie for all hosts; None where that is the cache folder itself."""
    return storage / CACHE if storage.local is None else None


LEARNED = ("train", "val")
"""Splits that training needs: weights and the best epoch come from them."""
FORMAT = 2
"""Of `meta.json` and the shards; another one is prepared again."""
ASKED_FIRST = 32
"""Files of which the system is asked one after another."""
SLOW_SECONDS = 1e-4
"""Where it takes longer to answer of a file, many are asked for at once."""
ASKED_AT_ONCE, OF_A_THREAD = 32, 16
"""Threads that then ask, and files that one is given at a time."""
Answer = TypeVar("Answer")


def scan_files(recipe: Recipe, data: str | None) -> Source:
    """List the raw files. Raises ValueError for a missing path, an empty folder, a single class..."""
    source = contract.list_files(recipe.dataset, data, recipe.dataset_args)
    if len(source.classes) < targets.kind(source.target).fewest:
        raise ValueError(f"there must be two classes or more; {data or recipe.dataset} has {source.classes}")
    targets.check_task(recipe.task, source, recipe.dataset)
    if constant("tasks", recipe.task, "ORDERED", False):
        _check_order(data or recipe.dataset, source.classes)
    for split in LEARNED:
        if not source.rows.get(split):
            held = ", ".join(f"{name} {len(items)}" for name, items in source.splits.items()) or "none"
            raise ValueError(
                f"{data or recipe.dataset} has no pictures for the {split} split; add some (its splits are {held})"
            )
    return dataclasses.replace(source, data=data)


def _check_order(what: str, classes: Sequence[str]) -> None:
    """Raises ValueError where levels are sorted as text is, 1 10 2: an order of one's own is taken as it is."""
    try:
        natural = sorted(classes, key=float)
    except ValueError:
        natural = sorted(classes, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(20), name))
    if list(classes) == sorted(classes) != natural:
        raise ValueError(
            f"the levels of {what} would be in the order {shortened(classes)}, as names are sorted by letters; by "
            f"numbers it is {shortened(natural)}. Rename the class folders so that both agree, as in 01, 02, ... 10"
        )


def cache_key(recipe: Recipe, source: Source) -> str:
    """Changes with anything that the shards depend on: arguments, size, and each file's path, size and time."""
    digest = hashlib.sha256()
    data_set = identify("datasets", recipe.dataset)
    of_recipe = [data_set, recipe.dataset_args, recipe.storage_size, recipe.resize, recipe.on_bad_image]
    wanted = [*of_recipe, source.classes, source.colours, *filter(None, [source.class_ids]), FORMAT]
    digest.update(json.dumps(wanted, sort_keys=True, default=list).encode())
    stamps = _ask(_stamp, (item for items in source.splits.values() for item in items))
    for split, items in source.splits.items():
        for item in items:
            stamp = " ".join(f"{path} {stamps[path]}{revision(path)}" for path in raw_files(item))
            line = f"{split} {item.name} {stamp} {list(item.targets)} {item.args}\n"
            digest.update(line.encode(errors="surrogateescape"))  # names need not be UTF-8
    name = data_set.rpartition(" ")[0] or data_set
    height, width = recipe.storage_size
    return f"{name}-{height}x{width}-{digest.hexdigest()[:16]}"


def _stamp(path: str) -> str:
    """Size and time of change; of a link that leads nowhere nothing, until it leads somewhere."""
    try:
        stat = os.stat(path)
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def size_of(items: Iterable[Item]) -> int:
    """Bytes of the raw files, without those that are not there."""
    return sum(_ask(_size, items).values())


def _size(path: str) -> int:
    """Bytes; 0 where it is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _ask(question: Callable[[str], Answer], items: Iterable[Item]) -> dict[str, Answer]:
    """What the file system answers of each raw file, each asked for once.

    Over a network an answer takes half a millisecond or more, and many are given in that time. From memory it takes a
    microsecond, less than handing the question to a thread: so the first files show what is faster.
    """
    paths = list({path: None for item in items for path in raw_files(item)})
    begun = time.perf_counter()
    found = [question(path) for path in paths[:ASKED_FIRST]]
    if time.perf_counter() - begun < ASKED_FIRST * SLOW_SECONDS:
        found += map(question, paths[ASKED_FIRST:])
    else:
        blocks = [paths[start : start + OF_A_THREAD] for start in range(ASKED_FIRST, len(paths), OF_A_THREAD)]
        with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
            for answers in threads.map(lambda block: [*map(question, block)], blocks):
                found += answers
    return dict(zip(paths, found, strict=True))


def list_digest(source: Source) -> str:
    """Of the names, splits and classes of the pictures that are learned from, in their order: a data set that was
    moved, perhaps to a system that writes accents otherwise, whose files were touched, or that got another test split,
    is the same."""
    digest = hashlib.sha256(json.dumps(list(source.classes)).encode())
    for split in LEARNED:
        for item in source.splits[split]:
            name = composed(item.name)
            digest.update(f"{split} {name} {list(item.targets)}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def raw_files(item: Item) -> list[str]:
    return [path for path in (item.path, item.mask_path) if path is not None]


def bytes_needed(recipe: Recipe, source: Source) -> int:
    """Size of the shards, in bytes."""
    return sum(source.rows.values()) * row_bytes(recipe, source)


def row_bytes(recipe: Recipe, source: Source) -> int:
    height, width = recipe.storage_size
    return height * width * source.channels + targets.kind(source.target).stored_bytes(recipe.storage_size)


def choose_mode(mode: str, recipe: Recipe, source: Source, cache: Path, ray: bool) -> str:
    """Whether pictures are prepared on disk or decoded while training: "auto" resolved.

    Args:
        mode: "auto", "cache" or "stream". "auto" streams what would fill more than 9/10 of the free disk.
        recipe: with the stored size.
        source: the data set's listing.
        cache: folder of all prepared data sets on this host.
        ray: whether the run has Ray, which streaming needs.

    Returns:
        "cache" or "stream".

    Raises:
        ValueError: the disk is too small, and there is no Ray, or what is streamed cannot be changed as it should.
    """
    mosaic = recipe.augment.get("mosaic")
    if mode == "stream" and mosaic:
        raise ValueError(
            "augment mosaic reads four prepared pictures for each that is shown, and data_mode=stream would decode "
            "four; leave one of them out"
        )
    if mode != "auto":
        return mode
    home = next(path for path in (cache, *cache.parents) if os.path.exists(path))  # those closed to us are none
    needed, free = bytes_needed(recipe, source), shutil.disk_usage(home).free
    if needed <= 0.9 * free or os.path.exists(cache / cache_key(recipe, source) / "meta.json"):
        return "cache"
    if not ray or mosaic:
        instead = "leave augment mosaic out" if mosaic else "give --workers 1 or more to stream them"
        raise ValueError(
            f"the prepared pictures need {format_size(needed)} and {home} has {format_size(free)} free; "
            f"set TRAINYARD_CACHE to a larger disk, or {instead}"
        )
    return "stream"
