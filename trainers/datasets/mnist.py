"""MNIST: 70,000 handwritten digits of 28x28 grey pixels.

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-Based Learning Applied to Document Recognition,
Proc. IEEE 86(11), 1998; http://yann.lecun.com/exdb/mnist (no licence stated). FashionMNIST and KMNIST have
the same form.

    data/                               or data/MNIST/raw/, as torchvision leaves it (download=True)
      train-images-idx3-ubyte           60,000; also train-images.idx3-ubyte, and each with .gz
      train-labels-idx1-ubyte
      t10k-images-idx3-ubyte            10,000: the test split
      t10k-labels-idx1-ubyte

There is no validation split: `val_share` of train, seeded and stratified, is val.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO

import numpy as np

from trainers.datasets import Item, Source
from trainers.datasets._files import absolute, assign_splits, changed_ns, download, existing_folder, row_items
from trainers.pixels import Pixels

HOLDS = "MNIST's idx files (train-images-idx3-ubyte, ...; .gz will do)"
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SAMPLES_PER_ITEM = 2000
"""Many to a read, as an item's decoding starts with unpacking its whole file (once a process)."""

fetch = download  # `download` is an argument of source


def source(data: str | None, *, download: bool = False, val_share: float = 0.1, split_seed: int = 0) -> Source:
    """List the four published files.

    Args:
        data: the folder.
        download: whether to fetch the files that are missing.
        val_share: share of train that becomes val.
        split_seed: of the random assignment.

    Raises:
        ValueError: files are missing or damaged, or a value is not allowed.
    """
    if download and len(_find(absolute(data, HOLDS))) < 4:
        fetch("MNIST", absolute(data, HOLDS))
    folder = existing_folder(data, HOLDS)
    found = _find(folder)
    missing = [name for names in FILES.values() for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)} (looked there and in MNIST/raw, also for names with .idx "
            "and .gz); copy the files there, or have them downloaded with --dataset-args download=true"
        )
    labels = {split: _labels(found[name]) for split, (_, name) in FILES.items()}
    for split, (images, _) in FILES.items():
        _check_count(found[images], len(labels[split]))
    rows = assign_splits(labels["train"], val_share=val_share, seed=split_seed, what=folder)
    rows["test"] = list(range(len(labels["test"])))
    splits = {}
    for split, positions in rows.items():
        part = "test" if split == "test" else "train"
        path = found[FILES[part][0]]
        splits[split] = row_items(positions, labels[part], size=SAMPLES_PER_ITEM, path=path, name=split)
    return Source(classes=[str(digit) for digit in range(10)], channels=1, splits=splits)


def read(item: Item) -> list[tuple[Pixels, int]]:
    assert item.path is not None
    images = _images(item.path, changed_ns(item.path))
    return [(images[row], target) for row, target in zip(item.args["rows"], item.targets, strict=True)]


def _find(folder: str) -> dict[str, str]:
    """Name of a file as in FILES -> its path, for those that are there."""
    found: dict[str, str] = {}
    for name in (name for names in FILES.values() for name in names):
        for place in (folder, os.path.join(folder, "MNIST", "raw")):
            for variant in (name, name.replace("-idx", ".idx")):
                for path in (os.path.join(place, variant), os.path.join(place, variant + ".gz")):
                    if os.path.isfile(path):
                        found.setdefault(name, path)
    return found


def _labels(path: str) -> list[int]:
    with _opened(path) as stream:
        count = _header(stream, path, dimensions=1)
        labels = np.frombuffer(stream.read(), np.uint8)
    _check_length(path, len(labels), count)
    if count and labels.max() > 9:
        raise ValueError(f"{path} holds the label {labels.max()}; MNIST's labels are 0 to 9. Is it another data set?")
    return [int(label) for label in labels]


def _check_count(path: str, labels: int) -> None:
    with _opened(path) as stream:
        images = _header(stream, path, dimensions=3)
    if images != labels:
        raise ValueError(f"{path} holds {images} images, but there are {labels} labels; are they of the same set?")


@lru_cache(maxsize=2)
def _images(path: str, mtime_ns: int) -> Pixels:  # noqa: ARG001
    """All images of a file, (n, 28, 28, 1). `mtime_ns` is there for the cache alone."""
    with _opened(path) as stream:
        count = _header(stream, path, dimensions=3)
        pixels = np.frombuffer(stream.read(), np.uint8)
    _check_length(path, len(pixels), count * 28 * 28)
    return pixels.reshape(count, 28, 28, 1)


def _header(stream: IO[bytes], path: str, dimensions: int) -> int:
    """Read an idx header: magic number, number of records, size of each. Returns the number of records."""
    magic, count, *size = struct.unpack(f">{1 + dimensions}I", stream.read(4 + 4 * dimensions))
    if magic != 0x0800 + dimensions:
        raise ValueError(
            f"{path} is no idx file of {'labels' if dimensions == 1 else 'images'}: it starts with "
            f"{magic:#010x}, not {0x0800 + dimensions:#010x}; fetch it again"
        )
    if size not in ([], [28, 28]):
        raise ValueError(f"{path} holds images of {size[0]}x{size[1]} pixels; MNIST's have 28x28")
    return int(count)


def _check_length(path: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(
            f"{path} is damaged: {found} bytes follow its header, which announces {expected}; fetch it again"
        )


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The file, unpacked where it is gzip (by its first bytes: some browsers unpack and keep the name)."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        stream: IO[bytes]
        with gzip.open(path) if packed else open(path, "rb") as stream:  # type: ignore[assignment]
            yield stream
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}; fetch it again") from None
