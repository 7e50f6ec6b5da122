"""Prepared pictures as files: a folder of shards on this host, and how a host that does not see it gets a copy, once.

A set is whole when its `meta.json` is there, which is written last, and names the size and hash of every shard.
Where the storage is an object store, the driver publishes the set there; else a host that does not see the driver's
folder gets the shards from a process on the driver's host, by Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainers.messages import DataSpec
from trainers.storage.store import Store, absolute, explain, home_folder

META = "meta.json"
THREADS = 4
"""Shards that are copied at once."""
TRIES = 3
"""How often a shard is copied whose hash is wrong on arrival."""


class Damaged(OSError):
    """A set that cannot be copied, however often it is tried."""


def home() -> Path:
    """Where this host keeps copies: `$TRAINYARD_CACHE`, else `~/.cache/trainyard`. Raises ValueError."""
    given = os.environ.get("TRAINYARD_CACHE")
    if given:
        return absolute(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else home_folder("set TRAINYARD_CACHE to a folder for it") / ".cache") / "trainyard"


def local(where: DataSpec) -> Path:
    """The folder of a prepared set as this host sees it; the first process of a host that needs it copies it there.

    Others wait for the one that copies; what is damaged is copied again.

    Args:
        where: where the set lies on the driver's host, and where else it can be read.

    Raises:
        ValueError: there is nothing to copy from.
        OSError: it cannot be copied.
    """
    assert where["folder"] is not None, "pictures that are streamed lie in no folder"
    folder = Path(where["folder"])
    if find_damage(folder) is None:
        return folder
    own = home() / folder.name
    copy_set(_reader(where), own)
    return own


def find_damage(folder: Path) -> str | None:
    """What is wrong with a set, as far as shows without reading it all."""
    import pyarrow as pa

    try:
        meta = json.loads((folder / META).read_text())
        for name, (size, _) in meta["files"].items():
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} has {found:,} of {size:,} bytes"
            pa.ipc.open_file(pa.memory_map(str(folder / name)))  # reads the end of the file
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def publish(folder: Path, store: Store) -> None:
    """Upload a set, unless it is there. Raises OSError."""
    names = set(store.names())
    with contextlib.suppress(Damaged):
        if META in names and names.issuperset(_files(store.read(META))):
            return
    meta = json.loads((folder / META).read_text())
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda name: store.write(name, (folder / name).read_bytes()), meta["files"]))
    store.write(META, (folder / META).read_bytes())


def copy_set(read: Callable[[str], bytes], folder: Path) -> None:
    """Copy a set to `folder`, one process of this host at a time, and only what is not there.

    Args:
        read: gives the content of a file of the set, by name.
        folder: of the copy.

    Raises:
        Damaged: a file is missing or wrong where it is read from.
        OSError: the disk is full, or what is read from does not answer.
    """
    store = Store(folder)

    def copy(name: str, size: int, wanted: str) -> None:
        file = folder / name
        for _ in range(TRIES):
            if file.exists() and file.stat().st_size == size and digest(file) == wanted:
                return
            try:
                store.write(name, read(name))
            except FileNotFoundError:
                raise Damaged(f"{name} is not there") from None
        raise Damaged(f"{name} is damaged where it is copied from")

    try:
        with _alone(folder):
            if find_damage(folder) is None:  # another process was faster
                return
            (folder / META).unlink(missing_ok=True)
            content = read(META)
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(lambda entry: copy(entry[0], *entry[1]), _files(content).items()))
            store.write(META, content)
    except Damaged:
        raise
    except OSError as error:
        raise OSError(
            f"the prepared pictures cannot be copied to {folder} on {socket.gethostname()}: {explain(error)}; "
            "make room there, or set TRAINYARD_CACHE to another disk"
        ) from None


def _files(meta: bytes) -> dict[str, tuple[int, str]]:
    """Size and hash of each shard."""
    try:
        found: dict[str, tuple[int, str]] = json.loads(meta)["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{META} is broken: {error}") from None
    return found


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this host at a time; the lock goes with the process. Where there are no locks all may copy."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reader(where: DataSpec) -> Callable[[str], bytes]:
    folder, published, node = where["folder"], where.get("published"), where.get("node")
    if published is not None:
        return Store(published).read
    if node is None:
        raise ValueError(f"{socket.gethostname()} does not see the prepared pictures in {folder}")
    return lambda name: _read_there(node, f"{folder}/{name}")


def _read_there(node: str, path: str) -> bytes:
    """A file of another host, read by a task there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    task: Any = ray.remote(_read_here)
    try:
        return bytes(ray.get(task.options(num_cpus=0, scheduling_strategy=there).remote(path)))
    except ray.exceptions.RayError as error:
        raise OSError(f"{path} cannot be read on the driver's host: {str(error).splitlines()[-1]}") from None


def _read_here(path: str) -> bytes:
    return Path(path).read_bytes()
