"""Pictures decoded while training, by Ray Data, for sets that the local disk cannot hold."""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np

from trainers.data import targets
from trainers.data.batches import Batch
from trainers.data.decoder import Decoder, Sample
from trainers.data.ray_map import ray_map_all
from trainers.data.sampler import Pass
from trainers.data.source import row_bytes
from trainers.data.targets import Array, Target
from trainers.datasets import Item, Source
from trainers.instances import Targets, each, parts, together
from trainers.messages import Meta
from trainers.recipe import Recipe

TASK_PICTURES = 500
"""Most pictures of a task, unless a pass has more: Ray Data takes milliseconds of the worker's time for each task."""
TASK_BYTES = 64 * 2**20
"""The same, of pictures as they are stored."""

Columns = dict[str, Any]
"""Of a pass, as Ray Data gives them."""


class Streamed:
    """Pictures decoded on the way by Ray Data: each rank makes a Ray data set of its own passes, in their order."""

    def __init__(self, recipe: Recipe, source: Source, meta: Meta) -> None:
        """
        Args:
            recipe, source: what is decoded.
            meta: what `prepare.measure` found; pictures that it skipped are left out here, too.
        """
        self.recipe, self.source, self.meta = recipe, source, meta
        self._plain = json.dumps(recipe.to_json())
        self._rows: dict[str, _Rows] = {}

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        rows, listed = self._split(split), list(passes)
        most = min(TASK_PICTURES, TASK_BYTES // row_bytes(self.recipe, self.source))
        tasks = [self._task(rows, group) for group in _grouped(listed, most)]
        for of, row in zip(listed, ray_map_all(tasks, _decode_task), strict=True):
            if row["error"]:
                raise ValueError(f"{row['error']}; it could be read when the pictures were measured: was it changed?")
            yield Batch(of, row["images"], together([row[f"targets{part}"] for part in range(row["parts"])]))

    def labels(self, split: str) -> Array:
        known = targets.of_meta(self.meta).listed(self._items(split), len(self.source.classes))
        assert known is not None
        return known

    def _items(self, split: str) -> list[Item]:
        skipped = {bad["name"] for bad in self.meta["skipped"] if bad.get("split", split) == split}
        return [item for item in self.source.splits[split] if item.name not in skipped]

    def _split(self, split: str) -> _Rows:
        if split not in self._rows:
            rows = _Rows(self._items(split))
            if len(rows.owner) != self.meta["rows"][split]:
                raise ValueError(
                    f"the {split} split of {self.recipe.dataset} has {len(rows.owner)} pictures on this host, and had "
                    f"{self.meta['rows'][split]} when they were measured: give all hosts the same --data"
                )
            self._rows[split] = rows
        return self._rows[split]

    def _task(self, rows: _Rows, group: Sequence[Pass]) -> _Task:
        wanted, which = np.unique(rows.owner[np.concatenate([of.ids for of in group])], return_inverse=True)
        edges = np.cumsum([len(of.ids) for of in group])[:-1]
        return {
            "recipe": self._plain,
            "target": self.source.target,
            "channels": self.source.channels,
            "classes": len(self.source.classes),
            "items": json.dumps([vars(rows.items[number]) for number in wanted]),
            "passes": json.dumps(
                [
                    np.stack([items, rows.within[of.ids]], 1).tolist()
                    for items, of in zip(np.split(which, edges), group, strict=True)
                ]
            ),
        }


class _Rows:
    """The rows of a split."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        counts = np.fromiter((len(item.targets) for item in items), np.int64, len(items))
        self.owner = np.repeat(np.arange(len(items)), counts)
        """The number of each row's item, (rows,)."""
        self.within = np.arange(len(self.owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        """The number of each row within its item, (rows,)."""


def _grouped(passes: Iterable[Pass], most: int) -> Iterator[list[Pass]]:
    """Passes that are decoded together: the first one alone, as it is waited for, then twice as many pictures each
    time, up to `most`."""
    group: list[Pass] = []
    pictures, enough = 0, 1
    for of in passes:
        group.append(of)
        pictures += len(of.ids)
        if pictures >= enough:
            yield group
            group, pictures, enough = [], 0, min(most, 2 * pictures)
    if group:
        yield group


class _Task(TypedDict):
    """Passes to decode: plain columns, as Ray Data takes them."""

    recipe: str
    target: str
    channels: int
    classes: int
    items: str
    """Each once, as JSON."""
    passes: str
    """Of each row of each pass, as JSON: the number of its item, and its own within the item."""


def _decode_task(task: _Task) -> list[Columns]:
    """Each pass, as plain columns, of which "targets0", ... are those of its targets; or, for the first that has it,
    what cannot be read: Ray would wrap an exception in pages of its own."""
    target = targets.kind(task["target"])
    decoder = Decoder(Recipe.from_json(json.loads(task["recipe"])), target, task["channels"], task["classes"])
    passes = json.loads(task["passes"])
    images = [np.empty((len(places), *decoder.size, decoder.channels), np.uint8) for places in passes]
    found: list[list[object]] = [[None] * len(places) for places in passes]
    failed: dict[int, str] = {}
    rows = [(*place, number, row) for number, places in enumerate(passes) for row, place in enumerate(places)]
    of_items = itertools.groupby(sorted(rows), operator.itemgetter(0))  # an item is let go once its rows are copied
    for plain, (_, wanted) in zip(json.loads(task["items"]), of_items, strict=True):
        samples = _try_read(decoder, Item(**plain))
        for _, own, number, row in wanted:
            if isinstance(samples, str):
                failed[number] = samples
            else:
                images[number][row], found[number][row] = samples[own]
    return [
        _columns(images[number], target.stack(some), "") if number not in failed else _failure(failed[number], target)
        for number, some in enumerate(found)
    ]


def _try_read(decoder: Decoder, item: Item) -> list[Sample] | str:
    try:
        return decoder.try_read(item)
    except ValueError as error:
        return str(error)


def _failure(error: str, target: Target) -> Columns:
    nothing = each(lambda part: np.zeros((1,) * part.ndim, part.dtype), target.stack([]))
    return _columns(np.zeros((1, 1, 1, 1), np.uint8), nothing, error)


def _columns(images: Array, stacked: Targets, error: str) -> Columns:
    arrays = parts(stacked)
    columns = {f"targets{number}": array for number, array in enumerate(arrays)}
    return {"error": error, "images": images, "parts": len(arrays), **columns}
