"""Pictures decoded while training, by Ray Data, for sets that the local disk cannot hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypedDict

import numpy as np

from trainers.data import targets
from trainers.data.batches import Batch
from trainers.data.decoder import Decoder
from trainers.data.ray_map import ray_map
from trainers.data.sampler import Pass
from trainers.data.targets import Array
from trainers.datasets import Item, Source
from trainers.instances import Targets, each, parts, together
from trainers.messages import Meta
from trainers.recipe import Recipe


class Streamed:
    """Pictures decoded on the way by Ray Data: each rank makes a Ray data set of its own passes, in their order."""

    def __init__(self, recipe: Recipe, source: Source, meta: Meta) -> None:
        """
        Args:
            recipe, source: what is decoded.
            meta: what `prepare.measure` found; pictures that it skipped are left out here, too.
        """
        self.recipe, self.source, self.meta = recipe, source, meta
        self._rows: dict[str, tuple[list[str], Array, Array]] = {}

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        items, owner, within = self._split(split)
        recipe, listed = json.dumps(self.recipe.to_json()), list(passes)
        source = self.source
        tasks: list[_PassTask] = []
        for of in listed:
            wanted, which = np.unique(owner[of.ids], return_inverse=True)
            places = np.stack([which, within[of.ids]], 1).tolist()
            plain = f"[{','.join(items[index] for index in wanted)}]"
            tasks.append(
                {
                    "recipe": recipe,
                    "target": source.target,
                    "channels": source.channels,
                    "classes": len(source.classes),
                    "items": plain,
                    "places": json.dumps(places),
                }
            )
        for of, row in zip(listed, ray_map(tasks, _decode_task), strict=True):
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

    def _split(self, split: str) -> tuple[list[str], Array, Array]:
        """(items as JSON, the item of each row, the number of each row within its item)."""
        if split not in self._rows:
            items = self._items(split)
            counts = [len(item.targets) for item in items]
            if sum(counts) != self.meta["rows"][split]:
                raise ValueError(
                    f"the {split} split of {self.recipe.dataset} has {sum(counts)} pictures on this host, and had "
                    f"{self.meta['rows'][split]} when they were measured: give all hosts the same --data"
                )
            within = np.concatenate([np.arange(count) for count in counts])
            plain = [json.dumps(dataclasses.asdict(item)) for item in items]
            self._rows[split] = (plain, np.repeat(np.arange(len(items)), counts), within)
        return self._rows[split]


class _PassTask(TypedDict):
    """A pass to decode: plain columns, as Ray Data takes them."""

    recipe: str
    target: str
    channels: int
    classes: int
    items: str
    places: str
    """Of each row, as JSON: the number of its item, and its own within the item."""


def _decode_task(row: _PassTask) -> dict[str, Any]:
    """One pass of one rank, as a task of Ray Data: plain columns, of which "targets0", ... are those of its targets."""
    target = targets.kind(row["target"])
    decoder = Decoder(Recipe.from_json(json.loads(row["recipe"])), target, row["channels"], row["classes"])
    try:
        read = [decoder.try_read(Item(**plain)) for plain in json.loads(row["items"])]
    except ValueError as error:
        read = [str(error)]
    for outcome in read:
        if isinstance(outcome, str):  # as data: Ray would wrap an exception in pages of its own
            nothing = each(lambda part: np.zeros(1, part.dtype), target.stack([]))
            return _done(np.zeros((1, 1, 1, 1), np.uint8), nothing, outcome)
    samples = [read[item][index] for item, index in json.loads(row["places"])]
    images, found = zip(*samples, strict=True)
    return _done(np.stack(images), target.stack(found), "")


def _done(images: Array, stacked: Targets, error: str) -> dict[str, Any]:
    arrays = parts(stacked)
    columns = {f"targets{number}": array for number, array in enumerate(arrays)}
    return {"error": error, "images": images, "parts": len(arrays), **columns}
