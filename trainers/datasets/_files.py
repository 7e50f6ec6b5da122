"""What several data set modules need: folders with clear errors, splits by share, downloads.

A data set's name is its module's name, so a module whose name starts with `_` is none.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence

from trainers.datasets import Args, Item, split_by_share
from trainers.formatting import printable
from trainers.listing import passed_over


def check_channels(channels: int) -> None:
    """Raises ValueError for a number of channels that pictures in files are not read with."""
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} is not offered; use 3 (colour) or 1 (grey)")


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
            f"the data folder {printable(path)} does not exist (of its path, {parent} does); "
            f"give --data a folder that holds {holds}"
        )
    if not os.path.isdir(path):
        raise ValueError(f"{printable(path)} is a file, not a folder; give --data a folder that holds {holds}")
    try:
        names = os.listdir(path)
    except OSError as error:
        raise ValueError(f"the data folder {printable(path)} cannot be read: {error.strerror}") from None
    if all(map(passed_over, names)):
        raise ValueError(f"the data folder {printable(path)} is empty; give --data a folder that holds {holds}")
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


# ---- splits by share ----


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
