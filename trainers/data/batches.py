"""Prepared pictures to batches: shards read by memory map, and batches read ahead of the device."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from trainers.data import targets
from trainers.data.pages import Mapped, one_ahead
from trainers.data.prepared_sets import Held
from trainers.data.sampler import Pass
from trainers.data.targets import Array, gather
from trainers.instances import Targets
from trainers.messages import Meta
from trainers.phase import phase

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.resident import Resident


class Batch(NamedTuple):
    """What one forward pass eats."""

    of: Pass
    images: Array | Tensor
    """uint8 (N, height, width, channels); a tensor where they were gathered on the device."""
    targets: Targets
    """Stacked targets of the data set's kind: see data/targets."""


class Data(Protocol):
    """A prepared data set, or one that is decoded on the way."""

    meta: Meta

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        """The batches of one rank, in order."""
        ...

    def labels(self, split: str) -> Array:
        """The class of each row, int64 (rows,), where targets are labels."""
        ...


class NoData:
    """A `Data` of which nothing is read: steps that are traced or tried make their own batches."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        raise AssertionError("a step that is traced or tried reads no data")

    def labels(self, split: str) -> Array:
        raise AssertionError("a step that is traced or tried reads no data")


class Cached:
    """Prepared shards, read by memory map."""

    def __init__(self, folder: str | Path, meta: Meta | None = None, resident: Resident | None = None) -> None:
        """
        Args:
            folder: of the shards.
            meta: what is known of them; None: what their meta.json says.
            resident: keeps the training pictures on a device; None: the host gathers them all.
        """
        self.folder, self.resident = Path(folder), resident
        self.meta: Meta = meta or json.loads((self.folder / "meta.json").read_text())
        self.meta["target"] = targets.of_meta(self.meta).name  # older versions wrote none
        self._open: dict[str, _Split] = {}
        self._held = Held(self.folder)

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        images, columns, first_rows, mapped = self._split(split)
        target = targets.of_meta(self.meta)
        there = self.resident if self.resident and split == "train" and self.resident.holds(images) else None
        for of in one_ahead(passes, mapped if there is None else mapped[1:]):
            pictures = gather(images, first_rows, of.ids) if there is None else there.gather(of.ids)
            yield Batch(of, pictures, target.gather(columns, first_rows, of.ids))

    def labels(self, split: str) -> Array:
        return np.concatenate(self._split(split).columns)

    def _split(self, split: str) -> _Split:
        import pyarrow as pa

        if split not in self._open:
            images, stored = [], []
            for name in self.meta["shards"][split]:
                table = pa.ipc.open_file(pa.memory_map(str(self.folder / name))).read_all()
                images.append(table["image"].chunk(0).to_numpy_ndarray())
                stored.append(table["target"].chunk(0))
            first_rows = np.cumsum([0] + [len(part) for part in images[:-1]])
            maps = [column.to_numpy_ndarray() for column in stored if isinstance(column, pa.FixedShapeTensorArray)]
            mapped = [Mapped(arrays, first_rows) for arrays in (images, maps) if arrays]
            columns = targets.of_meta(self.meta).from_columns(stored)
            self._open[split] = _Split(images, columns, first_rows, mapped)
        return self._open[split]


class _Split(NamedTuple):
    """Opened shards."""

    images: list[Array]
    """Of each shard."""
    columns: list[Array]
    """Targets, in one part or more."""
    first_rows: Array
    """The number of each shard's first row."""
    mapped: list[Mapped]
    """What is read from the files: images, and maps beside them."""


AHEAD = 2
"""Batches that are made ready before they are asked for."""


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, AHEAD of them made ready by a thread: for devices that compute while the host reads."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
    left = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.1)
        return None

    def fill() -> None:
        try:
            for batch in batches:
                put(batch)
                if left.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=fill, name="read-ahead", daemon=True)
    thread.start()
    try:
        reading = phase("reading data", thread=thread)
        while True:
            with reading:
                item = ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join()
