"""One process at a time owns a run, a sweep, or a folder of predictions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from trainers.progress import Progress
from trainers.storage.store import FIRST_PATIENCE, Store, explain

FILE = ".lock"
BEAT_SECONDS = 5.0
"""An object store knows no locks: the owner writes a new number so often."""
WATCHED_SECONDS = 16.0
"""An owner whose number has not changed for so long is gone. No clock is compared with another's."""
LOOK_SECONDS = 1.0
"""It is looked at so often meanwhile."""


class Busy(ValueError):
    """Another process trains this run."""

    def __init__(self, run: str, owner: str) -> None:
        super().__init__(
            f"the run {run} is being trained already, by {owner or 'another process'}; "
            "wait for it, or give another --run"
        )


@contextlib.contextmanager
def lock(
    folder: Store, progress: Progress, stop: threading.Event, instead: str = "give another --run"
) -> Iterator[None]:
    """Own a folder that one process at a time writes: of a run, of a sweep, of predictions.

    On a file system the lock goes with the process, however that ends. In an object store, and on a file system that
    knows no locks, it is a file that the owner renews: what a killed one left is watched for WATCHED_SECONDS, unless
    that process ran on this machine. Two that start within the same second may both begin: the first to have written
    learns of it, `stop` is set, and it ends. Its checkpoints do not count, since each start has a number of its own.

    Args:
        folder: The folder.
        progress: Where waiting is shown.
        stop: Set where another process turns out to own the folder too.
        instead: What to do where it cannot be written.

    Raises:
        Busy: Another process owns the folder.
        ValueError: The folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            if folder.local is None:
                raise _NoLocks
            stack.enter_context(_on_disk(folder, folder.local, instead))
        except _NoLocks:
            stack.enter_context(_in_store(folder, progress, stop))
        yield


class _NoLocks(Exception):
    """There are none where the folder lies."""


@contextlib.contextmanager
def _on_disk(folder: Store, local: Path, instead: str) -> Iterator[None]:
    fresh = not local.exists()
    path = local / FILE
    try:
        local.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise ValueError(f"the folder {folder.address} cannot be written: {explain(error)}; {instead}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Busy(folder.name, file.read().strip()) from None
        except OSError:  # some FUSE mounts, some of Lustre
            raise _NoLocks from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if fresh:  # a refused command leaves nothing behind
                with contextlib.suppress(OSError):
                    local.rmdir()


@contextlib.contextmanager
def _in_store(folder: Store, progress: Progress, stop: threading.Event) -> Iterator[None]:
    _refuse_living(folder, progress)
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    mine = {"owner": owner, "machine": _machine(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    over, lost = threading.Event(), threading.Event()

    def beat() -> None:
        number = 1
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, ValueError):  # a store that does not answer: nobody else gets in either
                other = folder.read_json(FILE) or mine
                if other["token"] != mine["token"]:
                    lost.set()
                    progress.warning(f"{other['owner']} trains the run {folder.name} too; this process ends")
                    stop.set()
                    return
                folder.write_json(FILE, {**mine, "beat": number}, patience=BEAT_SECONDS)
                number += 1

    folder.write_json(FILE, {**mine, "beat": 0})
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if not lost.is_set():
            with contextlib.suppress(OSError):
                folder.delete(FILE, FIRST_PATIENCE)
                if not folder.names():
                    folder.parent.delete(folder.name, FIRST_PATIENCE)


def _refuse_living(folder: Store, progress: Progress) -> None:
    first = _read(folder)
    if first is None or (first.get("machine") == _machine() and not Path(f"/proc/{first.get('pid')}").exists()):
        return
    begun = time.monotonic()
    with progress.waiting(f"seeing whether {first.get('owner')} still trains the run {folder.name}"):
        while time.monotonic() - begun < WATCHED_SECONDS:
            time.sleep(LOOK_SECONDS)
            now = _read(folder)
            if now is None:
                return
            if now != first:
                raise Busy(folder.name, str(now.get("owner", "")))


def _read(folder: Store) -> dict[str, object] | None:
    try:
        found = folder.read_json(FILE)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _machine() -> str:
    """This machine since it was started, and its processes' numbering; a random text where it is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return uuid.uuid4().hex
