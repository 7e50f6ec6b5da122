"""CIFAR-10: 60,000 colour photographs of 32x32 pixels in ten classes.

Source: A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html (no licence stated). Any one of these forms, the first that is
found; the first two also in data/ itself, the archives are read without unpacking them to disk:

    data/cifar-10-batches-py/data_batch_1 ... data_batch_5, test_batch
    data/cifar-10-batches-bin/data_batch_1.bin ... data_batch_5.bin, test_batch.bin
    data/cifar-10-python.tar.gz or data/cifar-10-binary.tar.gz
    data/train/<class>/*.png, data/test/<class>/*.png      (any kind of picture)

There is no validation split: `val_share` of train, seeded and stratified, is val.
Picture folders may bring their own.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trainers.datasets import Item, Source
from trainers.datasets._class_folders import picture_source
from trainers.datasets._files import absolute, assign_splits, changed_ns, download, existing_folder, row_items
from trainers.decode import decode
from trainers.pixels import Pixels

HOLDS = "CIFAR-10 (cifar-10-batches-py, cifar-10-batches-bin, one of the .tar.gz, or train/<class>/*.png)"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
SAMPLES_PER_ITEM = 2000

fetch = download  # `download` is an argument of source


def source(data: str | None, *, download: bool = False, val_share: float = 0.1, split_seed: int = 0) -> Source:
    """List the published files, or pictures in class folders.

    Args:
        data: the folder that holds one of the forms above.
        download: whether to fetch the files that are missing.
        val_share: share of train that becomes val.
        split_seed: of the random assignment.

    Raises:
        ValueError: files are missing or damaged, or a value is not allowed.
    """
    if download and not _find(absolute(data, HOLDS)):
        fetch("CIFAR10", absolute(data, HOLDS))
    folder = existing_folder(data, HOLDS)
    batches = _find(folder)
    if not batches:
        return _picture_folders(folder, val_share, split_seed)
    labels = _labels(batches)
    train = [label for name in TRAIN for label in labels[name]]
    assigned = assign_splits(train, val_share=val_share, seed=split_seed, what=folder)
    splits: dict[str, list[Item]] = {split: [] for split in (*assigned, "test")}
    start = 0
    for name in TRAIN:
        stop = start + len(labels[name])
        for split, positions in assigned.items():
            rows = [position - start for position in positions if start <= position < stop]
            splits[split] += _items(batches[name], name, split, rows, labels[name])
        start = stop
    splits["test"] = _items(batches[TEST], TEST, "test", range(len(labels[TEST])), labels[TEST])
    return Source(classes=CLASSES, channels=3, splits=splits)


def read(item: Item) -> list[tuple[Pixels, int]]:
    assert item.path is not None
    if "batch" not in item.args:
        return [(decode(item.path, 3, item.args.get("min_size")), item.targets[0])]
    pixels = _pixels(item.path, item.args["batch"], changed_ns(item.path))
    return [(pixels[row], target) for row, target in zip(item.args["rows"], item.targets, strict=True)]


def _items(path: str, batch: str, split: str, rows: Sequence[int], labels: Sequence[int]) -> list[Item]:
    name = f"{split}/{batch}"
    return row_items(rows, labels, size=SAMPLES_PER_ITEM, path=path, name=name, args={"batch": batch})


def _picture_folders(folder: str, val_share: float, split_seed: int) -> Source:
    if not os.path.isdir(os.path.join(folder, "train")):
        held = ", ".join(sorted(os.listdir(folder))[:5])
        raise ValueError(
            f"{folder} holds none of CIFAR-10's forms (it holds {held}); give --data a folder that holds "
            f"{HOLDS}, or have it downloaded with --dataset-args download=true"
        )
    found = picture_source(folder, channels=3, val_share=val_share, test_share=0.0, split_seed=split_seed, args={})
    if tuple(found.classes) != CLASSES:
        raise ValueError(
            f"the class folders in {folder} are {', '.join(found.classes[:12])}; CIFAR-10's are "
            f"{', '.join(CLASSES)}. For pictures of other classes use the data set image_folder"
        )
    return found


# ---- batches: files of 10,000 pictures ----


def _find(folder: str) -> dict[str, str]:
    """Batch -> the file, or the archive, that holds it; empty where there is none."""
    for form, ending in (("cifar-10-batches-py", ""), ("cifar-10-batches-bin", ".bin")):
        for place in (folder, os.path.join(folder, form)):
            found = {name: os.path.join(place, name + ending) for name in (*TRAIN, TEST)}
            missing = [os.path.basename(path) for path in found.values() if not os.path.isfile(path)]
            if not missing:
                return found
            if len(missing) < len(found):
                raise ValueError(f"{place} lacks {', '.join(missing)}; copy them there, or fetch the set again")
    for archive in ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"):
        path = os.path.join(folder, archive)
        if os.path.isfile(path):
            return dict.fromkeys((*TRAIN, TEST), path)
    return {}


def _labels(batches: dict[str, str]) -> dict[str, list[int]]:
    """Batch -> its labels."""
    archive = batches[TEST]
    if archive.endswith(".tar.gz"):
        return {name: _parse(raw, archive)[1] for name, raw in _members(archive, (*TRAIN, TEST)).items()}
    return {name: _parse(_raw(path, name), path)[1] for name, path in batches.items()}


@lru_cache(maxsize=6)  # the whole set: 184 MB
def _pixels(path: str, batch: str, mtime_ns: int) -> Pixels:  # noqa: ARG001
    """All pictures of a batch, (n, 32, 32, 3). `mtime_ns` is there for the cache alone."""
    planes, _ = _parse(_raw(path, batch), path)
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _raw(path: str, batch: str) -> bytes:
    return _members(path, (batch,))[batch] if path.endswith(".tar.gz") else Path(path).read_bytes()


def _members(path: str, batches: Sequence[str]) -> dict[str, bytes]:
    """Batch -> its bytes, in one pass over the archive: nothing is unpacked to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                batch = os.path.basename(member.name).removesuffix(".bin")
                stream = archive.extractfile(member) if member.isfile() and batch in batches else None
                if stream is not None:
                    found[batch] = stream.read()
                if len(found) == len(batches):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}; fetch it again") from None
    missing = [batch for batch in batches if batch not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; fetch it again")
    return found


def _parse(raw: bytes, path: str) -> tuple[Pixels, list[int]]:
    """Pixels (n, 3072), plane after plane, and labels."""
    if path.endswith((".bin", "-binary.tar.gz")):
        if not raw or len(raw) % 3073:
            raise ValueError(f"{path} is damaged: {len(raw)} bytes are no multiple of 3,073; fetch it again")
        records = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
        batch: dict[str, Any] = {"data": records[:, 1:], "labels": records[:, 0].tolist()}
    else:
        batch = _unpickle(raw, path)
    pixels, labels = batch.get("data"), batch.get("labels")
    if (
        not isinstance(pixels, np.ndarray)
        or not isinstance(labels, list)
        or pixels.dtype != np.uint8
        or pixels.shape != (len(labels), 3072)
    ):
        raise ValueError(f"{path} does not hold a batch of CIFAR-10: rows of 3,072 bytes and their labels")
    if not all(isinstance(label, int) and 0 <= label <= 9 for label in labels):
        raise ValueError(f"{path} holds labels other than 0 to 9; is it CIFAR-100?")
    return pixels, labels


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_HARMLESS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # the name before NumPy 2
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""All that a batch needs. A pickle may name any function to be called, so nothing else is looked up."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file does")
        return _HARMLESS[module, name]


def _unpickle(raw: bytes, path: str) -> dict[str, Any]:
    try:
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path} is damaged or no batch of CIFAR-10: {error}; fetch it again") from None
    if not isinstance(batch, dict):
        raise ValueError(f"{path} does not hold a batch of CIFAR-10 but a {type(batch).__name__}; fetch it again")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in batch.items()}
