"""The prepared sets that lie on this host: what each was made of, who uses it, and which are of no use any more."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from trainers.data.source import cache_key, scan_files
from trainers.datasets import Source
from trainers.formatting import format_size
from trainers.messages import Meta
from trainers.recipe import Recipe
from trainers.run_facts import Json
from trainers.storage.store import explain

META, MEASURED = "meta.json", "measured.json"
FOLDER = re.compile(r".+-\d+x\d+-[0-9a-f]{16}")
"""Names of prepared sets: nothing else in the folder is touched."""
UNFINISHED_SECONDS = 3600.0
"""A set that is not finished, and where nothing was written for so long, is what a command that was killed left."""
LOCKLESS_SECONDS = 86400.0
"""On a disk without locks, a set counts as used for so long after it was opened."""
_OF_RECIPE = ("dataset", "dataset_args", "task", "resize", "on_bad_image")

State = Literal["current", "outdated", "unfinished", "measured", "unknown"]


@dataclass(frozen=True)
class PreparedSet:
    """A folder of shards."""

    folder: Path
    state: State
    """current: of its files as they are now; outdated: they have changed, or this version prepares them otherwise;
    unfinished; measured: numbers alone, of data that is streamed; unknown: see `why`."""
    why: str
    """Of an unknown state, for people."""
    data: str | None
    """Where the raw files lie."""
    pictures: int
    bytes: int
    used: float
    """When it was last opened, by time.time()."""
    in_use: bool
    fingerprint: str | None


class Held:
    """A prepared set that this process uses: it is not removed until this is closed, or goes."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: Of the set. On a disk without locks nothing is held.
        """
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(folder, os.O_RDONLY)
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # it may be another user's
            os.utime(folder / META)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def hold(folder: str | None) -> Held | None:
    """Hold a set, for as long as the result lives; None: there is none, the data is streamed."""
    return None if folder is None else Held(Path(folder))


def origin(recipe: Recipe, source: Source) -> Json:
    """What a set is made of, for its meta.json: enough to list its raw files again."""
    plain = recipe.to_json()
    return {**{name: plain[name] for name in _OF_RECIPE}, "size": list(recipe.storage_size), "data": source.data}


def list_sets(cache: Path) -> list[PreparedSet]:
    """The sets in a folder; of each the raw files are listed, to see whether it is still of them."""
    return [_describe(folder) for folder in _folders(cache) if folder.exists()]


def superseded(folder: Path) -> list[Path]:
    """The other sets that were made of the same files as this one, when these were others."""
    own = _read_meta(folder).get("origin")
    if own is None:
        return []
    beside = [other for other in _folders(folder.parent) if other != folder and _stem(other) == _stem(folder)]
    return [other for other in beside if _read_meta(other).get("origin") == own]


def note_superseded(folder: Path) -> str | None:
    """What people are told of the sets that `folder` makes useless, if there are any."""
    old = superseded(folder)
    if not old:
        return None
    return (
        f"{format_size(sum(map(size_of, old)))} of pictures prepared from earlier states of these files lie in "
        f"{folder.parent}; to remove them: python -m trainers cache clean"
    )


def clean(
    cache: Path, *, everything: bool = False, show: bool = False, warn: Callable[[str], None] = lambda text: None
) -> list[PreparedSet]:
    """Remove the sets that are of no use: outdated ones, and what commands that were killed have left.

    What a running command uses is never removed.

    Args:
        cache: Their folder.
        everything: Whether to remove all others too: they would be prepared again.
        show: Whether to remove nothing.
        warn: Gets which sets cannot be removed, as they are another user's, and why.

    Returns:
        What was removed.
    """
    of_no_use = [each for each in list_sets(cache) if everything or each.state in ("outdated", "unfinished")]
    removed = []
    for each in of_no_use:
        try:
            if not each.in_use and (show or _remove(each.folder)):
                removed.append(each)
        except OSError as error:
            warn(f"{each.folder} cannot be removed: {explain(error)}")
    return removed


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())
    return 0


def _folders(cache: Path) -> Iterator[Path]:
    if cache.is_dir():
        yield from sorted(path for path in cache.iterdir() if FOLDER.fullmatch(path.name) and path.is_dir())


def _stem(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _read_meta(folder: Path) -> Meta | dict[str, None]:
    for name in (META, MEASURED):
        with contextlib.suppress(OSError, ValueError):
            found: Meta = json.loads((folder / name).read_text())
            return found
    return {}


def _describe(folder: Path) -> PreparedSet:
    try:
        return _look_into(folder)
    except OSError as error:  # it is closed to this user, or was removed just now
        return PreparedSet(folder, "unknown", explain(error), None, 0, 0, _changed(folder), False, None)


def _changed(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _look_into(folder: Path) -> PreparedSet:
    meta = _read_meta(folder)
    state, why = _state(folder, meta)
    written = [path.stat().st_mtime for path in (folder, *folder.iterdir()) if path.exists()]
    used = (folder / META).stat().st_mtime if (folder / META).exists() else max(written)
    at_work = state == "unfinished" and time.time() - max(written) < UNFINISHED_SECONDS
    return PreparedSet(
        folder=folder,
        state=state,
        why=why,
        data=(meta.get("origin") or {}).get("data") or meta.get("dataset"),
        pictures=sum((meta.get("rows") or {}).values()),
        bytes=size_of(folder),
        used=used,
        in_use=at_work or _is_in_use(folder, used),
        fingerprint=meta.get("fingerprint"),
    )


def _state(folder: Path, meta: Meta | dict[str, None]) -> tuple[State, str]:
    if not (folder / META).exists():
        return ("measured", "") if (folder / MEASURED).exists() else ("unfinished", "")
    made_of = meta.get("origin")
    if made_of is None:
        return "unknown", "an earlier version prepared it"
    try:
        of_recipe = {name: made_of[name] for name in _OF_RECIPE}
        recipe = Recipe(**of_recipe, image_size=made_of["size"], model="linear_cnn", epochs=1, batch_size=1, lr=1)
        return ("current" if cache_key(recipe, scan_files(recipe, made_of["data"])) == folder.name else "outdated"), ""
    except OSError as error:
        return "unknown", explain(error)
    except Exception as error:  # of a data set of the user's own, too
        return "unknown", str(error)


def _is_in_use(folder: Path, used: float) -> bool:
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return time.time() - used < LOCKLESS_SECONDS
    finally:
        os.close(file)
    return False


def _remove(folder: Path) -> bool:
    """Whether it was removed: a command may have opened it just now."""
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        (folder / META).unlink(missing_ok=True)  # first: from here on it counts as empty
        shutil.rmtree(folder)
        folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)
        return True
    finally:
        os.close(file)
