"""Pictures decoded while training, by Ray Data, for sets that the local disk cannot hold."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trainers.data import sampler
from trainers.data.batches import Array, Batch
from trainers.data.meta import count_targets, describe_data
from trainers.data.ray_map import ray_map
from trainers.data.resize import Decoder
from trainers.data.sampler import Pass
from trainers.data.source import cache_key
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
        facts = {"recipe": recipe, "channels": self.source.channels, "classes": len(self.source.classes)}
        tasks = []
        for of in listed:
            wanted, which = np.unique(owner[of.ids], return_inverse=True)
            places = np.stack([which, within[of.ids]], 1).tolist()
            plain = f"[{','.join(items[index] for index in wanted)}]"
            tasks.append({**facts, "items": plain, "places": json.dumps(places)})
        for of, row in zip(listed, ray_map(tasks, _decode_task), strict=True):
            if row["error"]:
                raise ValueError(f"{row['error']}; streaming leaves no picture out: mend it, or use --data-mode cache")
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


def stream_meta(recipe: Recipe, source: Source) -> dict[str, Any]:
    """What `prepare` would find, from the listing and a sample of the training pictures (of all splits: masks)."""
    decoder = Decoder(recipe, source.channels, len(source.classes))
    done = []
    for split, items in source.splits.items():
        rows = sum(len(item.targets) for item in items)
        if source.masks or split == "train":
            images, targets = _sample(decoder, items)
        if split == "train":
            sample = images
        if not source.masks:  # all of them are known without reading
            targets = np.array([target for item in items for target in item.targets])
        done.append({"split": split, "rows": rows, **count_targets(targets, len(source.classes))})
    return {
        **describe_data(recipe, source, done),
        "mean": (sample.mean((0, 1, 2)) / 255).tolist(),
        "std": np.maximum(sample.std((0, 1, 2)) / 255, 1e-6).tolist(),
        "skipped": [],
        "repeated": {},
        "fingerprint": cache_key(recipe, source),
    }


def _sample(decoder: Decoder, items: Sequence[Item]) -> tuple[Array, Array]:
    """Images and targets of at most SAMPLED_ITEMS items, dealt at random; bad ones are passed over."""
    chosen = sampler.permutation(0, 0, len(items))[:SAMPLED_ITEMS]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        read = list(threads.map(decoder.try_read, [items[index] for index in chosen]))
    images, targets = zip(*(pair for part in read if not isinstance(part, str) for pair in part), strict=True)
    return np.stack(images), np.stack(targets)


def _decode_task(row: dict[str, Any]) -> dict[str, Any]:
    """One pass of one rank, as a task of Ray Data."""
    decoder = Decoder(Recipe.from_json(json.loads(row["recipe"])), row["channels"], row["classes"])
    read = [decoder.try_read(Item(**plain)) for plain in json.loads(row["items"])]
    for found in read:
        if isinstance(found, str):  # told as data: Ray would wrap an exception in pages of its own
            return {"images": np.zeros((1, 1, 1, 1), np.uint8), "targets": np.zeros(1, np.int64), "error": found}
    samples = [read[item][index] for item, index in json.loads(row["places"])]
    images, targets = zip(*samples, strict=True)
    return {"images": np.stack(images), "targets": np.asarray(targets), "error": ""}
