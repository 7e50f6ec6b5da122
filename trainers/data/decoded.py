"""Pictures decoded by threads of this process while they are scored: nothing is kept on a disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trainers import limits, notices
from trainers.data import targets
from trainers.data.batches import Batch
from trainers.data.decoder import Decoder, Sample
from trainers.data.meta import report_bad
from trainers.data.sampler import Pass
from trainers.data.targets import Array
from trainers.datasets import Item, Source
from trainers.formatting import shortened
from trainers.messages import Meta
from trainers.recipe import Recipe


class Decoded:
    """One split of a data set."""

    def __init__(self, recipe: Recipe, source: Source, split: str, meta: Meta) -> None:
        """
        Args:
            recipe, source: what is decoded.
            split: the only one that there are batches of.
            meta: of the run that is scored; its rows become those of the split.
        """
        self.target = targets.kind(source.target)
        self._decoder = Decoder(recipe, self.target, source.channels, len(source.classes), source.numbers)
        self._items = source.splits[split]
        self.skipped: list[str] = []
        """Pictures that cannot be decoded and are left out."""
        if recipe.on_bad_image == "skip":  # which ones, and so how many rows there are, shows by decoding alone
            self.skipped = [item.name for item, read in self._read(self._items) if isinstance(read, str)]
            self._items = [item for item in self._items if item.name not in self.skipped]
        counts = [len(item.targets) for item in self._items]
        self._owner = np.repeat(np.arange(len(counts)), counts)
        self._within = np.concatenate([np.arange(count) for count in counts]) if counts else self._owner
        self.meta: Meta = {**meta, "rows": {split: len(self._owner)}}
        self.meta["names"] = {split: [name for item in self._items for name in item.names]}

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        kept: dict[int, list[Sample]] = {}
        for of in passes:
            wanted = self._owner[of.ids].tolist()
            new = [number for number in dict.fromkeys(wanted) if number not in kept]
            read = [
                (number, *found) for number, found in zip(new, self._read([self._items[n] for n in new]), strict=True)
            ]
            bad = [(item.name, found) for _, item, found in read if isinstance(found, str)]
            if bad:
                raise ValueError(report_bad([{"name": name, "why": why} for name, why in bad]))
            kept |= {number: found for number, _, found in read if not isinstance(found, str)}
            kept = {number: kept[number] for number in dict.fromkeys(wanted)}  # an item may hold many
            samples = [kept[number][index] for number, index in zip(wanted, self._within[of.ids].tolist(), strict=True)]
            images, found = zip(*samples, strict=True)
            yield Batch(of, np.stack(images), self.target.stack(found))

    def labels(self, split: str) -> Array:
        known = self.target.listed(self._items, self._decoder.classes)
        assert known is not None
        return known

    def take_warnings(self) -> list[str]:
        """What was noticed of the pictures, for people."""
        left = [f"{len(self.skipped)} pictures cannot be decoded and are left out: {shortened(self.skipped)}"]
        return [*left[: len(self.skipped)], *notices.describe(self._decoder.take_notices())]

    def _read(self, items: Sequence[Item]) -> Iterator[tuple[Item, list[Sample] | str]]:
        with ThreadPoolExecutor(limits.cpus()) as threads:
            yield from zip(items, threads.map(self._decoder.try_read, items), strict=True)
