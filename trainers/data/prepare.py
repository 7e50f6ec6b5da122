"""Raw files -> Arrow shards, once; and shards, or raw files, -> batches.

    prepare()   decode and shrink every picture once per (data set, its arguments, stored size, files)
    Cached      reads the shards by memory map: random order is free, all processes of a host share the pages
    Streamed    decodes while training, by Ray Data, for sets that the local disk cannot hold

A cache folder holds `meta.json` and shards: Arrow IPC files, uncompressed, with the columns `image` (uint8,
height x width x channels) and `target` (int64, or a mask: uint8, height x width). `meta.json` is written last:
without it a folder counts as empty. How shards get from host to host: shards.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trainers.data import sampler as order
from trainers.data import shard_transfer as shards
from trainers.data.sampler import Pass
from trainers.datasets import IGNORED, MASK, BadImage, Item, Source
from trainers.recipe import Recipe, load
from trainers.storage.store import Store, explain

Array = npt.NDArray[Any]
Advance = Callable[[int], None]

SHARD_BYTES = 64 * 2**20
INLINE_BYTES = 256 * 2**20
"""Raw data up to this size is prepared by threads of this process; starting Ray tasks would cost more."""
FORMAT = 2
"""Of `meta.json` and the shards; another one is prepared anew."""
SAMPLED_ITEMS = 512
"""Items from which the streamed mode estimates mean and standard deviation."""
SHOWN = 20
"""Skipped or repeated pictures that a message names."""
LISTED = 1000
"""Bad pictures that the message names that ends a run."""


class Batch(NamedTuple):
    """What one forward pass eats."""

    of: Pass
    images: Array
    """uint8 (N, height, width, channels)."""
    targets: Array
    """int64 (N,), or masks: uint8 (N, height, width)."""


class Data(Protocol):
    """A prepared data set, or one that is decoded on the way."""

    meta: Mapping[str, Any]

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        """The batches of one rank, in order."""
        ...


# Looking at the raw files ------------------------------------------------------------------------------------


def look(recipe: Recipe, data: str | None) -> Source:
    """List the raw files. Raises ValueError for a missing path, an empty folder, a single class..."""
    source: Source = load("datasets", recipe.dataset).source(data, **recipe.dataset_args)
    if len(source.classes) < 2:
        raise ValueError(f"there must be two classes or more; {data or recipe.dataset} has {source.classes}")
    if source.masks != recipe.task.startswith("segment"):
        what, task = ("masks", "segment") if source.masks else ("classes of whole pictures, no masks", "classify")
        raise ValueError(f"task={recipe.task} does not fit the data set {recipe.dataset}, which has {what}; use {task}")
    for split in ("train", "val"):
        if not sum(len(item.targets) for item in source.splits.get(split, ())):
            raise ValueError(f"{data or recipe.dataset} has no pictures for the {split} split; add some")
    return source


def cache_key(recipe: Recipe, source: Source) -> str:
    """Changes with anything that the shards depend on: arguments, size, and each file's path, size and time."""
    digest = hashlib.sha256()
    wanted: list[Any] = [recipe.dataset, recipe.dataset_args, recipe.storage_size, recipe.resize, recipe.on_bad_image]
    wanted += [source.classes, source.colours, FORMAT]
    digest.update(json.dumps(wanted, sort_keys=True, default=list).encode())
    seen: dict[str, str] = {}
    for split, items in source.splits.items():
        for item in items:
            stamps = []
            for path in _files(item):
                if path not in seen:
                    stat = os.stat(path)
                    seen[path] = f"{path} {stat.st_size} {stat.st_mtime_ns}"
                stamps.append(seen[path])
            stamp = " ".join(stamps)
            digest.update(f"{split} {item.name} {stamp} {list(item.targets)} {item.args}\n".encode())
    name = Path(recipe.dataset).stem
    height, width = recipe.storage_size
    return f"{name}-{height}x{width}-{digest.hexdigest()[:16]}"


def _files(item: Item) -> list[str]:
    return [path for path in (item.path, item.mask_path) if path is not None]


def bytes_needed(recipe: Recipe, source: Source) -> int:
    """Size of the shards, in bytes."""
    rows = sum(len(item.targets) for items in source.splits.values() for item in items)
    return rows * _row_bytes(recipe, source)


def _row_bytes(recipe: Recipe, source: Source) -> int:
    height, width = recipe.storage_size
    return height * width * (source.channels + source.masks)


def choose_mode(mode: str, recipe: Recipe, source: Source, cache: Path, ray: bool) -> str:
    """`auto` streams what would fill more than 9/10 of the free disk. Raises ValueError where that needs Ray."""
    if mode != "auto":
        return mode
    home = next(path for path in (cache, *cache.parents) if path.exists())
    needed, free = bytes_needed(recipe, source), shutil.disk_usage(home).free
    if needed <= 0.9 * free or (cache / cache_key(recipe, source) / "meta.json").exists():
        return "cache"
    if not ray:
        raise ValueError(
            f"the prepared pictures need {needed / 2**30:.1f} GiB and {home} has {free / 2**30:.1f} GiB free; "
            "set TRAINYARD_CACHE to a larger disk, or give --workers 1 or more to stream them"
        )
    return "stream"


# Preparing ---------------------------------------------------------------------------------------------------


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

    Parameters: `cache`, the folder of all prepared sets; `published`, that of an object store, from which a set is
    copied if it is there, and to which it is uploaded if it is not; `ray`, whether Ray runs and may be used; `advance`,
    told the number of pictures done; `warn`, told where what was prepared is damaged, and done again. Raises
    ValueError naming all pictures that cannot be decoded (none is published then), OSError where the disk is full.
    Killed half-way it leaves nothing that counts, and two at once do not collide: shards have names of their own
    and the first `meta.json` wins.
    """
    folder = cache / cache_key(recipe, source)
    if published is None:
        _prepare(recipe, source, folder, ray, advance, warn)
        return folder
    there = published / folder.name
    if shards.find_damage(folder) is not None and shards.META in there.names():
        try:
            shards.copy_set(there.read, folder)
            return folder
        except shards.Damaged as error:
            warn(f"the prepared pictures in {there.address} are damaged ({error}) and are prepared anew")
            there.delete(shards.META)
    _prepare(recipe, source, folder, ray, advance, warn)
    shards.publish(folder, there)
    return folder


def _prepare(
    recipe: Recipe, source: Source, folder: Path, ray: bool, advance: Advance, warn: Callable[[str], None]
) -> None:
    """`prepare`, to a folder on this host or on a disk that it shares with others."""
    if (folder / shards.META).exists():
        damage = shards.find_damage(folder)
        if damage is None:
            return
        warn(f"the prepared pictures in {folder} are damaged ({damage}) and are prepared anew")
        (folder / shards.META).unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the cache {folder.parent} cannot be written: {explain(error)}; set TRAINYARD_CACHE to another folder"
        ) from None
    token = uuid.uuid4().hex[:8]
    chunks = _chunks(recipe, source)
    try:
        done = list(_run_chunks(recipe, source, folder, token, chunks, ray, advance))
        bad = [entry for result in done for entry in result["bad"]]
        if bad and recipe.on_bad_image == "fail":
            raise ValueError(_tell_bad(bad))
        meta = _summarise(recipe, source, done, bad)
        _publish(folder, token, meta)
    except BaseException:
        for path in folder.glob(f"*-{token}-*.arrow"):
            path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def _chunks(recipe: Recipe, source: Source) -> list[tuple[str, list[Item]]]:
    """(split, items) for each shard: about SHARD_BYTES of prepared pictures."""
    row_bytes = _row_bytes(recipe, source)
    chunks: list[tuple[str, list[Item]]] = []
    for split, items in source.splits.items():
        size = SHARD_BYTES + 1
        for item in items:
            if size + len(item.targets) * row_bytes > SHARD_BYTES:
                chunks.append((split, []))
                size = 0
            chunks[-1][1].append(item)
            size += len(item.targets) * row_bytes
    return chunks


def _run_chunks(
    recipe: Recipe,
    source: Source,
    folder: Path,
    token: str,
    chunks: list[tuple[str, list[Item]]],
    ray: bool,
    advance: Advance,
) -> Iterator[dict[str, Any]]:
    paths = {path for _, items in chunks for item in items for path in _files(item)}
    if not ray or sum(os.path.getsize(path) for path in paths) <= INLINE_BYTES:
        decoder = Decoder(recipe, source.channels, len(source.classes))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            try:
                for number, (split, items) in enumerate(chunks):
                    file = folder / f"{split}-{token}-{number:05}.arrow"
                    yield _write_shard(decoder, split, items, file, advance, threads)
            except BaseException:  # an interrupt may come before the first result is waited for
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return
    tasks = [
        {
            "recipe": json.dumps(recipe.to_json()),
            "channels": source.channels,
            "classes": len(source.classes),
            "split": split,
            "items": json.dumps([dataclasses.asdict(item) for item in items]),
            "file": str(folder / f"{split}-{token}-{number:05}.arrow"),
            "mark": str(folder / f".{token}"),
        }
        for number, (split, items) in enumerate(chunks)
    ]
    mark = folder / f".{token}"
    mark.touch()
    try:
        for row in ray_map(tasks, _shard_task):
            result = json.loads(row["result"])
            if "error" in result:
                raise OSError(*result["error"])
            if row["shard"]:
                Store(folder).write(result["file"], row["shard"])
            advance(result["decoded"])
            yield result
    finally:
        mark.unlink()


def _shard_task(row: dict[str, Any]) -> dict[str, Any]:
    """One shard, as a task of Ray Data; its content, where this host does not see the driver's folder."""
    decoder = Decoder(Recipe.from_json(json.loads(row["recipe"])), row["channels"], row["classes"])
    items = [Item(**item) for item in json.loads(row["items"])]
    file, seen = Path(row["file"]), os.path.exists(row["mark"])
    with ThreadPoolExecutor(1) as threads, tempfile.TemporaryDirectory(prefix="trainyard-") as scratch:
        to = file if seen else Path(scratch) / file.name
        try:
            result = _write_shard(decoder, row["split"], items, to, lambda n: None, threads)
        except OSError as error:  # told as data: Ray would wrap an exception in pages of its own
            result = {"error": [error.errno, error.strerror, error.filename]}
        shard = to.read_bytes() if not seen and to.exists() else b""
    return {"result": json.dumps(result), "shard": shard}


def _write_shard(
    decoder: Decoder, split: str, items: Sequence[Item], file: Path, advance: Advance, threads: ThreadPoolExecutor
) -> dict[str, Any]:
    """Decode `items` to one Arrow file. Returns plain data: what the file holds, and what could not be read."""
    rows = sum(len(item.targets) for item in items)
    images = np.empty((rows, *decoder.size, decoder.channels), np.uint8)
    masks = items[0].targets[0] == MASK
    targets = np.empty((rows, *decoder.size), np.uint8) if masks else np.empty(rows, np.int64)
    names: list[str] = []
    bad: list[dict[str, str]] = []
    filled = decoded = 0
    for item, read in zip(items, threads.map(decoder.try_read, items), strict=True):
        advance(len(item.targets))
        decoded += len(item.targets)
        if isinstance(read, str):
            bad.append({"name": item.name, "why": read})
            continue
        for index, (image, target) in enumerate(read):
            images[filled], targets[filled] = image, target
            names.append(item.name if len(read) == 1 else f"{item.name}#{index}")
            filled += 1
    images, targets = images[:filled], targets[:filled]
    if filled:
        _write_arrow(file, images, targets)
    flat = images.reshape(-1, decoder.channels)
    squares = sum((part.astype(np.float64) ** 2).sum(0) for part in np.array_split(flat, max(1, filled // 256)))
    return {
        "split": split,
        "file": file.name,
        "check": [file.stat().st_size, shards.digest(file)] if filled else None,
        "rows": filled,
        "decoded": decoded,
        "bad": bad,
        "names": names,
        "targets": [_digest(targets[row]) for row in range(filled)] if masks else targets.tolist(),
        "hashes": [_digest(image) for image in images],
        **_count(targets, decoder.classes),
        "sum": flat.sum(0, dtype=np.float64).tolist(),
        "squares": np.broadcast_to(squares, (decoder.channels,)).tolist(),
    }


def _write_arrow(file: Path, images: Array, targets: Array) -> None:
    import pyarrow as pa

    column = targets if targets.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(targets)
    table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "target": column})
    try:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=len(images))
    except OSError as error:
        raise OSError(
            f"the prepared pictures cannot be written to {file.parent}: {explain(error)}; "
            "make room there, or set TRAINYARD_CACHE to another disk"
        ) from None


def _digest(pixels: Array) -> str:
    return hashlib.blake2b(pixels.tobytes(), digest_size=12).hexdigest()


def _count(targets: Array, classes: int) -> dict[str, list[int]]:
    """How often each class occurs: `counts` of pictures, or of pixels with, in `areas`, the labelled pixels of the
    pictures in which the class occurs."""
    if targets.ndim == 1:
        return {"counts": np.bincount(targets, minlength=classes).tolist()}
    counts, areas = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for mask in targets:
        found = np.bincount(mask.reshape(-1), minlength=256)[:classes]
        counts += found
        areas += np.where(found > 0, found.sum(), 0)
    return {"counts": counts.tolist(), "areas": areas.tolist()}


def _tell_bad(bad: Sequence[Mapping[str, str]]) -> str:
    lines = "\n".join(f"  {entry['name']}: {entry['why']}" for entry in bad[:LISTED])
    more = f"\n  and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
    what = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
    return f"{what} cannot be used:\n{lines}{more}\nmend or remove them, or give --on-bad-image skip"


def _summarise(recipe: Recipe, source: Source, done: Sequence[Mapping[str, Any]], bad: list[Any]) -> dict[str, Any]:
    """What `meta.json` holds."""
    train = [result for result in done if result["split"] == "train"]
    pixels = sum(result["rows"] for result in train) * recipe.storage_size[0] * recipe.storage_size[1]
    for split in ("train", "val"):
        if not any(result["rows"] for result in done if result["split"] == split):
            raise ValueError(f"no picture of the {split} split of {recipe.dataset} can be used; {_tell_bad(bad)}")
    mean = np.sum([result["sum"] for result in train], axis=0) / pixels
    variance = np.sum([result["squares"] for result in train], axis=0) / pixels - mean**2
    fingerprint = hashlib.sha256()
    for result in done:
        for content, target in zip(result["hashes"], result["targets"], strict=True):
            fingerprint.update(f"{result['split']} {content} {target}\n".encode())
    meta = {
        **_facts(recipe, source, done),
        "mean": (mean / 255).tolist(),
        "std": np.sqrt(np.maximum(variance, 1e-12) / 255**2).tolist(),
        "skipped": bad,
        "repeated": _find_repeated(done, source),
        "fingerprint": fingerprint.hexdigest(),
        "shards": {
            split: [result["file"] for result in done if result["split"] == split and result["rows"]]
            for split in source.splits
        },
        "files": {result["file"]: result["check"] for result in done if result["rows"]},
    }
    if source.masks:
        meta["names"] = {
            split: [name for result in done if result["split"] == split for name in result["names"]]
            for split in source.splits
        }
    return meta


def _facts(recipe: Recipe, source: Source, done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the data is, and how often each class occurs in the parts that were read."""
    parts = {split: [result for result in done if result["split"] == split] for split in source.splits}
    zeros = [0] * len(source.classes)
    counts = {split: np.sum([zeros, *(r["counts"] for r in some)], axis=0).tolist() for split, some in parts.items()}
    facts: dict[str, Any] = {
        "dataset": recipe.dataset,
        "classes": list(source.classes),
        "channels": source.channels,
        "masks": source.masks,
        "colours": None if source.colours is None else [list(colour) for colour in source.colours],
        "size": list(recipe.storage_size),
        "rows": {split: sum(result["rows"] for result in some) for split, some in parts.items()},
        "class_counts": counts,
    }
    if source.masks:
        facts["class_areas"] = np.sum([zeros, *(result["areas"] for result in parts["train"])], axis=0).tolist()
        for split, found in counts.items():
            if facts["rows"][split] and not sum(found):
                raise ValueError(
                    f"the masks of the {split} split of {recipe.dataset} hold nothing but ignored pixels ({IGNORED}): "
                    "there is nothing to learn or to score; annotate some, or leave the split out"
                )
    return facts


def _find_repeated(done: Sequence[Mapping[str, Any]], source: Source) -> dict[str, Any]:
    """Pictures with equal pixels in two splits or in two classes: how many, and some of their names."""
    first: dict[str, tuple[str, str, Any]] = {}
    found: dict[str, list[str]] = {"splits": []} if source.masks else {"splits": [], "classes": []}
    for result in done:
        split = result["split"]
        for content, name, target in zip(result["hashes"], result["names"], result["targets"], strict=True):
            seen_split, seen_name, seen_target = first.setdefault(content, (split, name, target))
            if seen_split != split:
                found["splits"].append(f"{seen_split}: {seen_name} = {split}: {name}")
            if seen_target != target and not source.masks:
                pair = [f"{source.classes[seen_target]}: {seen_name}", f"{source.classes[target]}: {name}"]
                found["classes"].append(" = ".join(pair))
    return {kind: {"count": len(pairs), "examples": pairs[:SHOWN]} for kind, pairs in found.items()}


def _publish(folder: Path, token: str, meta: Mapping[str, Any]) -> None:
    part = folder / f".meta-{token}.part"
    try:
        part.write_text(json.dumps(meta))
        os.link(part, folder / "meta.json")  # fails where another process was first; its shards serve as well
    except FileExistsError:
        for path in folder.glob(f"*-{token}-*.arrow"):
            path.unlink()
    else:
        for path in folder.glob("*.arrow"):
            if f"-{token}-" not in path.name:
                path.unlink()  # of a process that was killed, or that will find meta.json and use ours
    finally:
        part.unlink(missing_ok=True)


def describe(meta: Mapping[str, Any]) -> list[str]:
    """What was read, per split and class, and what is suspicious, as lines for people."""
    classes = meta["classes"]
    lines = []
    for split, counts in meta["class_counts"].items():
        unit = "{:.1%}" if meta["masks"] else "{:,}"
        of = [count / max(1, sum(counts)) for count in counts] if meta["masks"] else counts
        shown = ", ".join(f"{name} {unit.format(count)}" for name, count in list(zip(classes, of, strict=True))[:12])
        more = f", and {len(classes) - 12} more classes" if len(classes) > 12 else ""
        lines.append(f"{split}: {meta['rows'][split]:,} pictures ({shown}{more})")
    if meta["skipped"]:
        names = ", ".join(entry["name"] for entry in meta["skipped"][:SHOWN])
        more = f" and {len(meta['skipped']) - SHOWN} more" if len(meta["skipped"]) > SHOWN else ""
        skipped = f"{len(meta['skipped'])} pictures were skipped as they cannot be used: {names}{more}"
        lines.append(f"warning: {skipped}; run.json lists all")
    for kind, found in meta["repeated"].items():
        if found["count"]:
            example = found["examples"][0]
            lines.append(f"warning: {found['count']} pictures occur in two {kind}, such as {example}")
    return lines


# Decoding ----------------------------------------------------------------------------------------------------


class Decoder:
    """Items of a recipe's data set, as pictures of the recipe's stored size."""

    def __init__(self, recipe: Recipe, channels: int, classes: int) -> None:
        self.read_item = load("datasets", recipe.dataset).read
        self.size, self.resize = recipe.storage_size, recipe.resize
        self.channels, self.classes = channels, classes

    def read(self, item: Item) -> list[tuple[Array, Any]]:
        """(uint8 (height, width, channels), class number or uint8 (height, width)) for each sample. Raises BadImage."""
        hinted = dataclasses.replace(item, args={**item.args, "min_size": self.size})
        return [
            (shrink(image, self.size, self.resize), self._shrink(self._check(item, image, target)))
            for image, target in self.read_item(hinted)
        ]

    def read_raw(self, item: Item) -> list[tuple[Array, Any]]:
        """As `read`, but at the picture's own size."""
        return [(image, self._check(item, image, target)) for image, target in self.read_item(item)]

    def _shrink(self, target: Any) -> Any:
        if isinstance(target, int):
            return target
        return shrink(target[:, :, None], self.size, self.resize, mask=True)[:, :, 0]

    def _check(self, item: Item, image: Array, target: Any) -> Any:
        if item.targets[0] != MASK:
            return int(target)
        if target.shape != image.shape[:2] or target.dtype != np.uint8:
            shape, dtype = "x".join(map(str, target.shape)), target.dtype
            wanted = f"{image.shape[0]}x{image.shape[1]} of uint8"
            raise BadImage(f"{item.name}: the mask is {shape} of {dtype}; it must be {wanted}, as the picture is")
        wrong = np.flatnonzero(np.bincount(target.reshape(-1), minlength=256)[self.classes : IGNORED])
        if len(wrong):
            ids = ", ".join(str(number + self.classes) for number in wrong[:8])
            raise BadImage(
                f"{item.name}: the mask holds {ids}; allowed are 0 to {self.classes - 1}, and {IGNORED} for no class"
            )
        return target

    def try_read(self, item: Item) -> list[tuple[Array, Any]] | str:
        """`read`, or the reason why it cannot be done."""
        try:
            return self.read(item)
        except BadImage as error:
            return str(error)


def shrink(image: Array, size: tuple[int, int], how: str, *, mask: bool = False) -> Array:
    """Bring a picture to `size`, with antialiasing: uint8 (H, W, C) -> uint8 (*size, C). `how`: see Recipe.resize.

    A mask, (H, W, 1), keeps its class numbers: each pixel is the nearest one, and padding is IGNORED.
    """
    from PIL import Image

    (height, width), (target_height, target_width) = image.shape[:2], size
    if (height, width) == size:
        return image
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    box = (0.0, 0.0, float(width), float(height))
    inner = (target_width, target_height)
    if how == "crop":
        scale = min(width / target_width, height / target_height)
        left, top = (width - target_width * scale) / 2, (height - target_height * scale) / 2
        box = (left, top, width - left, height - top)
    elif how == "pad":
        scale = max(width / target_width, height / target_height)
        inner = (max(1, round(width / scale)), max(1, round(height / scale)))
    between = Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR
    resized = np.asarray(picture.resize(inner, between, box=box))
    resized = resized.reshape(inner[1], inner[0], image.shape[2])
    if how != "pad":
        return resized
    canvas = np.full((*size, image.shape[2]), IGNORED if mask else 0, np.uint8)
    top, left = (target_height - inner[1]) // 2, (target_width - inner[0]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = resized
    return canvas


# Reading -----------------------------------------------------------------------------------------------------


class Cached:
    """Prepared shards, read by memory map."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.meta: Mapping[str, Any] = json.loads((self.folder / "meta.json").read_text())
        self._open: dict[str, tuple[list[Array], list[Array], Array]] = {}

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        images, targets, first_rows = self._split(split)
        for of in passes:
            yield Batch(of, _gather(images, first_rows, of.ids), _gather(targets, first_rows, of.ids))

    def _split(self, split: str) -> tuple[list[Array], list[Array], Array]:
        """(images of each shard, targets of each shard, the number of each shard's first row)."""
        import pyarrow as pa

        if split not in self._open:
            images, targets = [], []
            for name in self.meta["shards"][split]:
                table = pa.ipc.open_file(pa.memory_map(str(self.folder / name))).read_all()
                images.append(table["image"].chunk(0).to_numpy_ndarray())
                target = table["target"].chunk(0)
                targets.append(target.to_numpy_ndarray() if self.meta["masks"] else np.from_dlpack(target))
            first_rows = np.cumsum([0] + [len(part) for part in images[:-1]])
            if not self.meta["masks"]:  # few bytes: one array of them is gathered faster
                targets = [np.concatenate(targets)]
            self._open[split] = (images, targets, first_rows)
        return self._open[split]


def _gather(shards: list[Array], first_rows: Array, ids: Array) -> Array:
    if len(shards) == 1:
        return np.take(shards[0], ids, axis=0)
    images = np.empty((len(ids), *shards[0].shape[1:]), shards[0].dtype)
    numbers = np.searchsorted(first_rows, ids, side="right") - 1
    for index, (number, row) in enumerate(zip(numbers.tolist(), ids.tolist(), strict=True)):
        images[index] = shards[number][row - first_rows[number]]
    return images


def ahead(batches: Iterator[Batch], depth: int = 2) -> Iterator[Batch]:
    """The same batches, up to `depth` of them made ready by a thread: for devices that compute while the host reads."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
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
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join()


class Streamed:
    """Pictures decoded on the way by Ray Data: each rank makes a Ray data set of its own passes, in their order."""

    def __init__(self, recipe: Recipe, source: Source, meta: Mapping[str, Any]) -> None:
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
        done.append({"split": split, "rows": rows, **_count(targets, len(source.classes))})
    return {
        **_facts(recipe, source, done),
        "mean": (sample.mean((0, 1, 2)) / 255).tolist(),
        "std": np.maximum(sample.std((0, 1, 2)) / 255, 1e-6).tolist(),
        "skipped": [],
        "repeated": {},
        "fingerprint": cache_key(recipe, source),
    }


def _sample(decoder: Decoder, items: Sequence[Item]) -> tuple[Array, Array]:
    """Images and targets of at most SAMPLED_ITEMS items, dealt at random; bad ones are passed over."""
    chosen = order.permutation(0, 0, len(items))[:SAMPLED_ITEMS]
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


def ray_map(
    rows: list[dict[str, Any]], function: Callable[[dict[str, Any]], dict[str, Any]], most: int | None = None
) -> Iterator[dict[str, Any]]:
    """`function` of each row by Ray Data: one task a row, at most `most` at once, results in the order of the rows."""
    import logging

    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        function, compute=ray.data.TaskPoolStrategy(size=most)
    )
    yield from mapped.iter_rows()
