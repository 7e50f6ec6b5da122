"""Raw files to Arrow shards: every picture decoded and shrunk once per (data set, its arguments, stored size, files).

A cache folder holds `meta.json` and shards: Arrow IPC files, uncompressed, with the columns `image` (uint8,
height x width x channels) and `target` (as its kind stores it: targets). `meta.json` is written last:
without it a folder counts as empty. How shards get from host to host: shard_transfer.py; how they are read: batches.py.
A set that is streamed is measured: decoded once in the same way, and nothing is kept but what `meta.json` would say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

import numpy as np

from trainers.data import shard_transfer, targets
from trainers.data.decoder import Decoder
from trainers.data.meta import report_bad, summarise
from trainers.data.prepared_sets import Held, origin
from trainers.data.ray_map import ray_map
from trainers.data.source import cache_key, row_bytes, size_of
from trainers.data.targets import Array, hash_pixels
from trainers.datasets import Item, Source
from trainers.limits import cpus
from trainers.messages import Meta, ShardResult
from trainers.recipe import Recipe
from trainers.run_facts import SkippedImage
from trainers.storage.store import Store, explain, rename_once

if TYPE_CHECKING:
    import pyarrow as pa

Advance = Callable[[int], None]

SHARD_BYTES = 64 * 2**20
SUMMED_AT_ONCE = 2**18
"""Values: more than a processor's cache holds would take longer."""
INLINE_BYTES = 256 * 2**20
"""Raw data up to this size is prepared by threads of this process; starting Ray tasks would cost more."""
MEASURED = "measured.json"
"""What is known of a set whose pictures are not kept: a file in the folder that its shards would lie in."""


def prepare(
    recipe: Recipe,
    source: Source,
    cache: Path,
    *,
    published: Store | None = None,
    ray: bool = False,
    advance: Advance = lambda n: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Path:
    """Decode, shrink and store every picture, unless that was done before. Returns the folder of the shards.

    Killed half-way it leaves nothing that counts, and two at once do not collide: shards have names of their own
    and the first `meta.json` wins.

    Args:
        recipe, source: what is prepared.
        cache: the folder of all prepared sets.
        published: that of an object store, from which a set is copied if it is there, and to which it is uploaded if
            it is not.
        ray: whether Ray runs and may be used.
        advance: gets the number of pictures done.
        warn: gets what was prepared and is damaged, and is prepared again.

    Raises:
        ValueError: pictures cannot be decoded: all are named, and none is published.
        OSError: the disk is full.
    """
    folder = cache / cache_key(recipe, source)
    if published is None:
        _prepare(recipe, source, folder, ray, advance, warn)
        return folder
    there = published / folder.name
    if shard_transfer.find_damage(folder) is not None and shard_transfer.META in there.names():
        try:
            shard_transfer.copy_set(there.read, folder)
            return folder
        except shard_transfer.Damaged as error:
            warn(f"the prepared pictures in {there.address} are damaged ({error}) and are prepared again")
            there.delete(shard_transfer.META)
    _prepare(recipe, source, folder, ray, advance, warn)
    shard_transfer.publish(folder, there)
    return folder


def measure(
    recipe: Recipe,
    source: Source,
    cache: Path,
    *,
    published: Store | None = None,
    ray: bool = False,
    advance: Advance = lambda n: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Meta:
    """What `prepare` would find, to the last bit, without keeping a picture: for sets that no disk holds.

    Every picture is decoded once for a data set and stored size: the result lies in the storage.

    Args:
        recipe, source, cache, published, ray, advance: as `prepare` takes them.
        warn: gets why the result cannot be kept.

    Raises:
        ValueError: as `prepare`.
    """
    place = (published or Store(cache)) / cache_key(recipe, source)
    for name in (MEASURED, shard_transfer.META):
        with contextlib.suppress(ValueError, PermissionError):  # not JSON, or closed to us: it is measured again
            if (known := place.read_json(name)) is not None:
                return cast(Meta, known)
    meta = _read_all(recipe, source, None, "", ray, advance)
    try:
        place.write_json(MEASURED, meta)
    except OSError as error:
        warn(
            f"what was measured of the pictures cannot be kept in {place.address}: {explain(error)}; the next run "
            "decodes them again"
        )
    return meta


def _prepare(
    recipe: Recipe, source: Source, folder: Path, ray: bool, advance: Advance, warn: Callable[[str], None]
) -> None:
    """`prepare`, to a folder on this host or on a disk that it shares with others."""
    if os.path.exists(folder / shard_transfer.META):  # not where the folder is closed to us, which is found below
        damage = shard_transfer.find_damage(folder)
        if damage is None:
            return
        warn(f"the prepared pictures in {folder} are damaged ({damage}) and are prepared again")
        (folder / shard_transfer.META).unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid.uuid4().hex[:8]}"  # the folder may be another user's
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"the cache {folder.parent} cannot be written: {explain(error)}; set TRAINYARD_CACHE to another folder"
        ) from None
    token = uuid.uuid4().hex[:8]
    try:
        with Held(folder):
            _publish(folder, token, _read_all(recipe, source, folder, token, ray, advance))
    except BaseException as error:
        _remove(folder.glob(f"*-{token}-*.arrow"))
        if isinstance(error, FileNotFoundError) and shard_transfer.find_damage(folder) is None:
            return  # another process was first, and has removed our shards: its own serve as well
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def _remove(files: Iterable[Path]) -> None:
    """Remove files, which another process may be removing too."""
    for path in files:
        path.unlink(missing_ok=True)


def _read_all(recipe: Recipe, source: Source, folder: Path | None, token: str, ray: bool, advance: Advance) -> Meta:
    """Decode every picture. Returns what is found.

    Args:
        recipe, source, ray, advance: as `prepare` takes them.
        folder: of the shards; None: none are written.
        token: part of the shards' names.

    Raises:
        ValueError: as `prepare`.
    """
    chunks = [
        _Chunk(split, items, None if folder is None else folder / f"{split}-{token}-{number:05}.arrow")
        for number, (split, items) in enumerate(_chunks(recipe, source))
    ]
    few = size_of(item for chunk in chunks for item in chunk.items) <= INLINE_BYTES
    run = _run_in_tasks if ray and not few else _run_in_threads
    done = list(run(recipe, source, chunks, advance))
    bad = [entry for result in done for entry in result["bad"]]
    if bad and recipe.on_bad_image == "fail":
        raise ValueError(report_bad(bad))
    return {**summarise(recipe, source, done, bad), "origin": origin(recipe, source)}


def _chunks(recipe: Recipe, source: Source) -> list[tuple[str, list[Item]]]:
    """(split, items) for each shard: about SHARD_BYTES of prepared pictures."""
    each = row_bytes(recipe, source)
    chunks: list[tuple[str, list[Item]]] = []
    for split, items in source.splits.items():
        size = SHARD_BYTES + 1
        for item in items:
            if size + len(item.targets) * each > SHARD_BYTES:
                chunks.append((split, []))
                size = 0
            chunks[-1][1].append(item)
            size += len(item.targets) * each
    return chunks


class _Chunk(NamedTuple):
    """Items that are decoded together, and the shard that they go to."""

    split: str
    items: Sequence[Item]
    file: Path | None
    """None: no picture is kept."""


def _run_in_threads(
    recipe: Recipe, source: Source, chunks: Sequence[_Chunk], advance: Advance
) -> Iterator[ShardResult]:
    decoder = Decoder(recipe, targets.kind(source.target), source.channels, len(source.classes))
    with ThreadPoolExecutor(cpus()) as threads:
        try:
            for chunk in chunks:
                yield _decode_chunk(decoder, chunk, advance, threads)
        except BaseException:  # an interrupt may come before the first result is waited for
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _run_in_tasks(recipe: Recipe, source: Source, chunks: Sequence[_Chunk], advance: Advance) -> Iterator[ShardResult]:
    """By Ray Data, on all hosts."""
    folder = None if chunks[0].file is None else chunks[0].file.parent
    mark = None if folder is None else folder / f".{uuid.uuid4().hex[:8]}"
    tasks: list[_ShardTask] = [
        {
            "recipe": json.dumps(recipe.to_json()),
            "target": source.target,
            "channels": source.channels,
            "classes": len(source.classes),
            "split": chunk.split,
            "items": json.dumps([dataclasses.asdict(item) for item in chunk.items]),
            "file": "" if chunk.file is None else str(chunk.file),
            "mark": "" if mark is None else str(mark),
        }
        for chunk in chunks
    ]
    if mark is not None:
        mark.touch()
    try:
        for row in ray_map(tasks, _shard_task):
            if row["error"]:
                words = json.loads(row["error"])
                raise OSError(*words) if len(words) > 1 else ValueError(*words)
            result: ShardResult = json.loads(row["result"])
            if row["shard"] and folder is not None:
                Store(folder).write(result["file"], row["shard"])
            advance(result["decoded"])
            yield result
    finally:
        if mark is not None:
            mark.unlink()


class _ShardTask(TypedDict):
    """A shard to make: plain columns, as Ray Data takes them."""

    recipe: str
    target: str
    channels: int
    classes: int
    split: str
    items: str
    file: str
    """"": no picture is kept."""
    mark: str
    """A file that is there where this host sees the driver's folder."""


class _ShardDone(TypedDict):
    result: str
    """A ShardResult, as JSON; "" where it failed."""
    error: str
    """Arguments of the OSError, or of the ValueError, which has one, as JSON; "": there was none."""
    shard: bytes
    """The file, where this host does not see the driver's folder."""


def _shard_task(row: _ShardTask) -> _ShardDone:
    """One shard, as a task of Ray Data; its content, where this host does not see the driver's folder."""
    recipe = Recipe.from_json(json.loads(row["recipe"]))
    decoder = Decoder(recipe, targets.kind(row["target"]), row["channels"], row["classes"])
    items = [Item(**item) for item in json.loads(row["items"])]
    file, seen = Path(row["file"]), os.path.exists(row["mark"])
    with ThreadPoolExecutor(1) as threads, tempfile.TemporaryDirectory(prefix="trainyard-") as scratch:
        to = file if seen else Path(scratch) / file.name
        chunk = _Chunk(row["split"], items, to if row["file"] else None)
        try:
            result = json.dumps(_decode_chunk(decoder, chunk, lambda n: None, threads))
        except OSError as error:  # as data: Ray would wrap an exception in pages of its own
            failure = json.dumps([error.errno, error.strerror, error.filename])
            return {"result": "", "error": failure, "shard": b""}
        except ValueError as error:
            return {"result": "", "error": json.dumps([str(error)]), "shard": b""}
        shard = to.read_bytes() if row["file"] and not seen and to.exists() else b""
    return {"result": result, "error": "", "shard": shard}


def _decode_chunk(decoder: Decoder, chunk: _Chunk, advance: Advance, threads: ThreadPoolExecutor) -> ShardResult:
    """Decode a chunk, to an Arrow file if it names one. Returns what it holds, and what could not be read."""
    rows = sum(len(item.targets) for item in chunk.items)
    images = np.empty((rows, *decoder.size, decoder.channels), np.uint8)
    found: list[object] = []
    names: list[str] = []
    bad: list[SkippedImage] = []
    decoded = 0
    for item, read in zip(chunk.items, threads.map(decoder.try_read, chunk.items), strict=True):
        advance(len(item.targets))
        decoded += len(item.targets)
        if isinstance(read, str):
            bad.append({"name": item.name, "why": read, "split": chunk.split})
            continue
        for image, target in read:
            images[len(found)] = image
            found.append(target)
        names += item.names
    filled, stacked, file = len(found), decoder.target.stack(found), chunk.file
    images = images[:filled]
    if filled and file is not None:
        _write_arrow(file, images, decoder.target.to_column(stacked))
    sums, squares = _sums(images)
    return {
        "split": chunk.split,
        "file": "" if file is None else file.name,
        "check": (file.stat().st_size, shard_transfer.digest(file)) if filled and file is not None else None,
        "rows": filled,
        "decoded": decoded,
        "bad": bad,
        "names": names,
        "targets": decoder.target.identify(stacked),
        "hashes": [hash_pixels(image) for image in images],
        **decoder.target.count(stacked, decoder.classes),
        "sum": sums,
        "squares": squares,
        "notices": decoder.take_notices(),
    }


def _sums(images: Array) -> tuple[list[float], list[float]]:
    """The values of each channel added up, and their squares: whole numbers, of which none is rounded.

    Args:
        images: uint8 (N, height, width, channels).
    """
    count, height, width, channels = images.shape
    lines = images.reshape(count * height, width * channels)
    sums, squares = np.zeros((2, width * channels), np.uint64)
    step = min(2**16, 1 + SUMMED_AT_ONCE // lines.shape[1])  # of so many squares uint32 holds the sum
    for start in range(0, len(lines), step):
        part = lines[start : start + step].astype(np.uint16)
        sums += part.sum(0, dtype=np.uint32)
        part *= part  # at most 255^2, which uint16 holds
        squares += part.sum(0, dtype=np.uint32)
    of_channels = np.stack([sums, squares]).reshape(2, width, channels).sum(1).astype(np.float64)
    return of_channels[0].tolist(), of_channels[1].tolist()


def _write_arrow(file: Path, images: Array, column: pa.Array | Array) -> None:
    import pyarrow as pa

    table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "target": column})
    try:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=len(images))
    except OSError as error:
        raise OSError(
            f"the prepared pictures cannot be written to {file.parent}: {explain(error)}; "
            "make room there, or set TRAINYARD_CACHE to another disk"
        ) from None


def _publish(folder: Path, token: str, meta: Meta) -> None:
    part = folder / f".meta-{token}.part"
    try:
        part.write_text(json.dumps(meta))
        if rename_once(part, folder / "meta.json"):  # others' are of a process that was killed, or that will use ours
            _remove(path for path in folder.glob("*.arrow") if f"-{token}-" not in path.name)
        else:  # another process was first; its shards serve as well
            _remove(folder.glob(f"*-{token}-*.arrow"))
    finally:
        part.unlink(missing_ok=True)
