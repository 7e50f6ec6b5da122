"""The files of a run folder, read; and the names of runs."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import time
from collections.abc import Iterable
from datetime import datetime
from typing import cast

from trainers.messages import Line
from trainers.run_facts import RunFacts
from trainers.storage.store import CACHE, Store


def run_name(recipe: str, rest: str) -> str:
    """What a run of a recipe is called; of a recipe in a file of the user's own too."""
    return f"{recipe.replace('.py:', '-').split('/')[-1]}-{rest}"


def now() -> str:
    """Date and time, as they stand in the names of runs."""
    return f"{datetime.now():%Y%m%d-%H%M%S}"


def new_run_name(storage: Store, name: str) -> str:
    """A name for a run of a recipe that no other run in `storage` has."""
    stem = run_name(name, now())
    others = (f"{stem}-{number}" for number in itertools.count(2))
    return next(run for run in (stem, *itertools.islice(others, 99)) if not (storage / run).names())


def check_run_name(run: str) -> str:
    """The name, if a run may be called so. Raises ValueError."""
    parts = run.split("/")
    if run == CACHE or not all(re.fullmatch(r"\w[^?*:\\]*", part) for part in parts):
        raise ValueError(f"--run {run} cannot be the name of a run; give letters, digits, '-', '_' and '.'")
    return run


SEEN_SECONDS = 5.0
"""The time after which every host sees what one wrote: network file systems remember what was not there."""


def sees(folder: Store, file: str, start_id: str) -> bool:
    """Whether this host sees what the driver wrote when it started.

    Args:
        folder: Of the run or the sweep.
        file: JSON with a "start_id".
        start_id: Of this start.

    Raises:
        OSError: The file cannot be read; the message names the host.
    """
    until = time.monotonic() + SEEN_SECONDS
    while True:
        try:
            found = folder.read_json(file)
        except (OSError, ValueError) as error:
            raise OSError(f"{socket.gethostname()} cannot read {folder.address}/{file}: {error}") from None
        if isinstance(found, dict) and found.get("start_id") == start_id:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.5)


def not_shared(folder: Store, hosts: Iterable[str]) -> str:
    """What is wrong where hosts do not see a run's folder, and what to do."""
    return (
        f"the storage is not shared: {', '.join(sorted(set(hosts)))} cannot see {folder.address} as the driver wrote "
        "it; mount the same disk there on every host, or give --storage an s3:// address"
    )


def read_run(folder: Store) -> RunFacts | None:
    """What run.json holds, or None where there is none; those of older versions may lack keys.

    Raises:
        ValueError: It is not that of a run.
    """
    try:
        found = folder.read_json("run.json")
    except NotADirectoryError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; fix it, or remove the run's folder") from None
    if found is None:
        return None
    if not (isinstance(found, dict) and {"status", "recipe", "scale"} <= found.keys()):
        raise ValueError(f"{folder.address}/run.json is not that of a run; fix it, or remove the run's folder")
    return cast(RunFacts, found)


def find_run(storage: Store, run: str) -> Store:
    """The folder of a run, by its name in a storage, as in "sweep/trial-3", or by its path."""
    is_name = "/" not in run or (not run.startswith((".", "~", "/")) and "://" not in run)
    below = storage / run if is_name else Store(run)
    return Store(run) if "/" in run and read_run(below) is None else below


def read_history(folder: Store) -> list[Line]:
    """The lines of a run's metrics.jsonl. Raises OSError where there is no such file."""
    return [json.loads(line) for line in folder.read("metrics.jsonl").splitlines()]


def count_epochs(folder: Store) -> int:
    """Epochs that a run has had, by its metrics.jsonl; 0 where there is none."""
    try:
        return len(folder.read("metrics.jsonl").splitlines())
    except FileNotFoundError:
        return 0


def runs_by_data(storage: Store) -> dict[str, list[str]]:
    """Fingerprint of the data -> the runs that were trained on it, those within folders of runs too."""
    found: dict[str, list[str]] = {}
    for name in run_names(storage):
        run = _read_or_none(storage / name)
        folder = storage / name
        found_here = {name: run} if run else {f"{name}/{each}": _read_or_none(folder / each) for each in folder.names()}
        for each, facts in found_here.items():
            if facts and (data := facts.get("dataset", {}).get("fingerprint")):
                found.setdefault(data, []).append(each)
    return found


def _read_or_none(folder: Store) -> RunFacts | None:
    with contextlib.suppress(ValueError, OSError):
        return read_run(folder)
    return None


def run_names(storage: Store) -> list[str]:
    """The names of the runs, and folders of runs, in a storage."""
    return [name for name in storage.names() if name != CACHE and not name.startswith(".")]
