"""What several data set modules need: folders with clear errors, class folders, splits, decoding, downloads.

A data set's name is its module's name, so a module whose name starts with `_` is none.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainers.datasets import Args, Item, Source, split_by_share

if TYPE_CHECKING:
    pass
from trainers.decode import SUFFIXES

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Name of a folder, in lower case -> the split it holds."""


def absolute(data: str | None, holds: str) -> str:
    """`data` as an absolute path: workers run in other folders. `holds` is named in the error."""
    if not data:
        raise ValueError(f"this data set needs --data PATH: a folder that holds {holds}")
    return os.path.abspath(os.path.expanduser(data))


def existing_folder(data: str | None, holds: str) -> str:
    """The absolute path of `data`. Raises ValueError where it is missing, no folder, unreadable or empty."""
    path = absolute(data, holds)
    if not os.path.exists(path):
        parent = path
        while not os.path.exists(parent):
            parent = os.path.dirname(parent)
        raise ValueError(
            f"the data folder {path} does not exist (of its path, {parent} does); "
            f"give --data a folder that holds {holds}"
        )
    if not os.path.isdir(path):
        raise ValueError(f"{path} is a file, not a folder; give --data a folder that holds {holds}")
    try:
        names = os.listdir(path)
    except OSError as error:
        raise ValueError(f"the data folder {path} cannot be read: {error.strerror}") from None
    if all(name.startswith(".") for name in names):
        raise ValueError(f"the data folder {path} is empty; give --data a folder that holds {holds}")
    return path


def changed_ns(path: str) -> int:
    """When a file was changed, for the key of a cache. Raises ValueError where this host does not see it."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read on the host {socket.gethostname()}: {error.strerror}; keep the data "
            "where every host sees it under this path"
        ) from None


def download(name: str, folder: str) -> None:
    """Let torchvision fetch its data set `name` into `folder`. Raises ValueError where it cannot."""
    try:
        from torchvision import datasets

        os.makedirs(folder, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to results
            getattr(datasets, name)(folder, download=True)
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{name} could not be downloaded to {folder}: {' '.join(str(error).split())}; where the network "
            "does not allow it, copy the files there by hand and leave download=true out"
        ) from None


# ---- splits ----


def assign_splits(
    labels: Sequence[int], *, val_share: float, test_share: float = 0.0, seed: int, what: str
) -> dict[str, list[int]]:
    """Assign positions to "train", "val" and, where its share is not 0, "test": stratified, none left empty.

    Args:
        labels: The class of each position.
        val_share: Share of all positions, above 0.
        test_share: Likewise; 0: there is no such split.
        seed: 0 to 2**32 - 1.
        what: Names the files in errors.

    Returns:
        Split name -> sorted positions.

    Raises:
        ValueError: Shares or seed are out of range, or a split is empty.
    """
    if not (val_share > 0 and test_share >= 0 and val_share + test_share < 1):
        raise ValueError(
            f"val_share={val_share} and test_share={test_share} leave no train or no val split; val_share "
            "must be above 0 (the best epoch is chosen on it), test_share 0 or more, their sum below 1"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"split_seed={seed} is out of range; give a number from 0 to {2**32 - 1}")
    shares = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
    shares = {name: share for name, share in shares.items() if share > 0}
    assigned = split_by_share(labels, shares, seed)
    for name, positions in assigned.items():
        if not positions:
            raise ValueError(
                f"{what}: {len(labels)} samples in {len(set(labels))} classes are too few for a "
                f"{name} split of {shares[name]:g} of each class; add samples or raise {name}_share"
            )
    return assigned


def row_items(
    rows: Sequence[int],
    labels: Sequence[int],
    *,
    size: int,
    path: str | None,
    name: str,
    args: Args | None = None,
) -> list[Item]:
    """Items for some rows of a file that holds many.

    Args:
        rows: The rows that are taken, in this order.
        labels: The class of each row of the file.
        size: Most samples of an item.
        path: The file; None: the data set reads none.
        name: Items are named `name/00000`, by the number of their first sample.
        args: For `read`, of every item; each gets its "rows" too.
    """
    items = []
    for start in range(0, len(rows), size):
        part = [int(row) for row in rows[start : start + size]]
        targets = [int(labels[row]) for row in part]
        args_of_part = {**(args or {}), "rows": part}
        items.append(Item(path=path, name=f"{name}/{start:05d}", targets=targets, args=args_of_part))
    return items


# ---- folders of pictures ----


def picture_source(
    root: str,
    *,
    channels: int,
    val_share: float,
    test_share: float,
    split_seed: int,
    samples: int = 1,
    args: Args,
) -> Source:
    """One item a picture, from class folders with or without split folders above them.

    Args:
        root: The folder.
        channels: 3 (colour) or 1 (grey).
        val_share: Share of the pictures that becomes val, where there are no split folders; share of train, where
            there is "train" but no "val".
        test_share: Share that becomes test, where there are no split folders.
        split_seed: Of the random assignment.
        samples: Samples of an item.
        args: For `read`, of every item.

    Raises:
        ValueError: The folder has another layout, or a value is not allowed.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} is not offered; use 3 (colour) or 1 (grey)")
    folders = split_folders(root) or {"train": ""}
    pictures = {split: _class_pictures(root, folder) for split, folder in folders.items()}
    _check_classes(root, folders, pictures)
    classes = list(pictures["train"])
    splits = {split: _items(root, classes, pictures[split], samples, args) for split in folders}
    if "val" not in splits:
        pool = splits.pop("train")
        assigned = assign_splits(
            [item.targets[0] for item in pool],
            val_share=val_share,
            test_share=test_share if folders["train"] == "" else 0.0,
            seed=split_seed,
            what=root,
        )
        splits |= {split: [pool[position] for position in positions] for split, positions in assigned.items()}
    return Source(classes=classes, channels=channels, splits=splits)


def split_folders(root: str, holds: str = "<class>/*") -> dict[str, str]:
    """The folders of the splits.

    Args:
        root: The folder of the data set.
        holds: What lies in the folder of a split, for errors.

    Returns:
        Split name -> the folder that holds it; empty where `root` holds the class folders themselves.
    """
    named = [name for name in list_folder(root)[0] if name.lower() in SPLITS]
    # a class may be called "train" (the vehicle): then it stands alone and holds pictures, not folders
    if len(named) < 2 and not any(list_folder(os.path.join(root, name))[0] for name in named):
        return {}
    folders: dict[str, str] = {}
    for name in named:
        split = SPLITS[name.lower()]
        if split in folders:
            raise ValueError(f"{root} holds two folders for {split}, {folders[split]} and {name}; keep one of them")
        folders[split] = name
    if "train" not in folders:
        raise ValueError(f"{root} holds no train split, only {', '.join(named)}; add train/{holds}")
    return folders


def _class_pictures(root: str, folder: str) -> dict[str, list[str]]:
    """Class -> its pictures, as paths below `root`; both sorted."""
    where = os.path.join(root, folder) if folder else root
    classes, loose = list_folder(where)
    if not classes:
        raise ValueError(
            f"{where} holds {len(loose)} pictures and no class folders; put the pictures of each class in a "
            "folder named after it, <class>/*"
        )
    return {name: sorted(pictures_below(root, f"{folder}/{name}" if folder else name)) for name in classes}


def _check_classes(root: str, folders: Mapping[str, str], pictures: Mapping[str, dict[str, list[str]]]) -> None:
    where = {split: os.path.join(root, folder).rstrip("/") for split, folder in folders.items()}
    for name, found in pictures["train"].items():
        if not found:
            others = sorted(os.listdir(f"{where['train']}/{name}"))[:3]
            raise ValueError(
                f"the class folder {where['train']}/{name} holds no pictures "
                f"(it holds {', '.join(others) or 'nothing'}); add some "
                f"({' '.join(ending[1:] for ending in SUFFIXES)}) or remove the folder"
            )
    classes = list(pictures["train"])
    if len(classes) == 1:
        raise ValueError(
            f"{where['train']} holds one class folder only, {classes[0]!r}; training "
            "needs two or more. Is this the folder in which the class folders, or train/ val/ test/, lie?"
        )
    for split, by_class in pictures.items():
        unknown = [name for name, found in by_class.items() if found and name not in classes]
        if unknown:
            raise ValueError(
                f"{where[split]} holds classes that train lacks: {', '.join(unknown)}; "
                f"train has {shortened(classes)}. Rename or remove them, or add them to train"
            )
        if not any(by_class.values()):
            raise ValueError(f"{where[split]} holds no pictures; add some or remove the folder")


def shortened(names: Sequence[str], most: int = 10) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _items(
    root: str,
    classes: Sequence[str],
    pictures: Mapping[str, list[str]],
    samples: int,
    args: Args,
) -> list[Item]:
    items = []
    for label, class_name in enumerate(classes):
        targets = [label] * samples
        for name in pictures.get(class_name, []):
            items.append(Item(path=f"{root}/{name}", name=name, targets=targets, args=args))
    return items


def pictures_below(root: str, folder: str, above: tuple[str, ...] = ()) -> list[str]:
    """The pictures in `folder` and in all folders below it, as paths below `root`."""
    where = os.path.realpath(os.path.join(root, folder))
    if where in above:
        raise ValueError(f"{os.path.join(root, folder)} is a link to a folder above it; remove the link")
    folders, pictures = list_folder(where)
    found = [f"{folder}/{name}" for name in pictures]
    for name in folders:
        found += pictures_below(root, f"{folder}/{name}", (*above, where))
    return found


def list_folder(folder: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the pictures directly in `folder`, sorted, without hidden ones."""
    folders, pictures = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():  # known from the listing: costs no call per file
                    folders.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES):
                    pictures.append(entry.name)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from None
    return sorted(folders), sorted(pictures)
