"""Pictures decoded while training, by Ray Data, for sets that the local disk cannot hold."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

import numpy as np

from trainers.data import sampler, targets
from trainers.data.batches import Batch
from trainers.data.decoder import Decoder
from trainers.data.meta import Part, describe_data
from trainers.data.ray_map import ray_map
from trainers.data.sampler import Pass
from trainers.data.source import cache_key
from trainers.data.targets import Array
from trainers.datasets import Item, Source
from trainers.messages import Meta
from trainers.recipe import Recipe

SAMPLED_ITEMS = 512
"""Items from which the streamed mode estimates mean and standard deviation."""


class Streamed:
    """Pictures decoded on the way by Ray Data: each rank makes a Ray data set of its own passes, in their order."""

    def __init__(self, recipe: Recipe, source: Source, meta: Meta) -> None:
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
                raise ValueError(f"{row['error']}; streaming leaves no picture out: fix it, or use --data-mode cache")
            yield Batch(of, row["images"], row["targets"])

    def _split(self, split: str) -> tuple[list[str], Array, Array]:
        """(items as JSON, the item of each row, the number of each row within its item)."""
        if split not in self._rows:
            items = self.source.splits[split]
            counts = [len(item.targets) for item in items]
            within = np.concatenate([np.arange(count) for count in counts])
            plain = [json.dumps(dataclasses.asdict(item)) for item in items]
            self._rows[split] = (plain, np.repeat(np.arange(len(items)), counts), within)
        return self._rows[split]


def stream_meta(recipe: Recipe, source: Source) -> Meta:
    """What `prepare` would find, from the listing and a sample of the training pictures; of all splits, where the
    listing does not say the targets."""
    target = targets.kind(source.target)
    decoder = Decoder(recipe, target, source.channels, len(source.classes))
    done: list[Part] = []
    for split, items in source.splits.items():
        rows = sum(len(item.targets) for item in items)
        found = target.listed(items)
        if found is None or split == "train":
            images, sampled = _sample(decoder, items)
            found = sampled if found is None else found
        if split == "train":
            sample = images
        done.append({"split": split, "rows": rows, **target.count(found, len(source.classes))})
    return describe_data(
        recipe,
        source,
        done,
        mean=(sample.mean((0, 1, 2)) / 255).tolist(),
        std=np.maximum(sample.std((0, 1, 2)) / 255, 1e-6).tolist(),
        skipped=[],
        repeated={},
        fingerprint=cache_key(recipe, source),
    )


def _sample(decoder: Decoder, items: Sequence[Item]) -> tuple[Array, Array]:
    """Images and targets of at most SAMPLED_ITEMS items, chosen at random; bad ones are skipped."""
    chosen = sampler.permutation(0, 0, len(items))[:SAMPLED_ITEMS]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        read = list(threads.map(decoder.try_read, [items[index] for index in chosen]))
    images, found = zip(*(pair for part in read if not isinstance(part, str) for pair in part), strict=True)
    return np.stack(images), decoder.target.stack(found)


class _PassTask(TypedDict):
    """A pass to decode: plain columns, as Ray Data takes them."""

    recipe: str
    target: str
    channels: int
    classes: int
    items: str
    places: str
    """Of each row, as JSON: the number of its item, and its own within the item."""


class _PassDone(TypedDict):
    images: Array
    targets: Array
    error: str


def _decode_task(row: _PassTask) -> _PassDone:
    """One pass of one rank, as a task of Ray Data."""
    target = targets.kind(row["target"])
    decoder = Decoder(Recipe.from_json(json.loads(row["recipe"])), target, row["channels"], row["classes"])
    read = [decoder.try_read(Item(**plain)) for plain in json.loads(row["items"])]
    for outcome in read:
        if isinstance(outcome, str):  # as data: Ray would wrap an exception in pages of its own
            return {"images": np.zeros((1, 1, 1, 1), np.uint8), "targets": np.zeros(1, np.int64), "error": outcome}
    samples = [read[item][index] for item, index in json.loads(row["places"])]
    images, found = zip(*samples, strict=True)
    return {"images": np.stack(images), "targets": target.stack(found), "error": ""}
