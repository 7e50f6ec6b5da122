"""Which pictures `predict` is given: files, and folders that are searched through, but for what it wrote there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from trainers.endings import SUFFIXES, left_out
from trainers.formatting import check_is_path, printable
from trainers.listing import list_folder
from trainers.run_facts import Json
from trainers.storage.store import Store

FACTS, TABLE, PARTS = "predictions.json", "predictions.csv", "predictions.parts"
FOLDERS = ("masks", "colours", "overlays", "labels")
FILES = ("legend.png", "predictions.png")
"""What `predict` writes into a folder, besides the table."""


@dataclass
class Found:
    """The pictures that are to be predicted."""

    files: list[str] = field(default_factory=list)
    """As they were given, or below a folder as that was given; each once."""
    own: list[str] = field(default_factory=list)
    """Folders that hold predictions, which were passed over."""
    others: list[str] = field(default_factory=list)
    """Files in folders that are no pictures by their endings."""
    folders: set[str] = field(default_factory=set)
    """Real paths of those that were searched through."""


def find_pictures(paths: Sequence[str]) -> Found:
    """List the pictures.

    A file is taken whatever it is called. Of a folder, and of those below it and those that links lead to, pictures by
    their ending: hidden ones and thumbnails are passed over, as in training, and so is what `predict` has written.

    Raises:
        ValueError: There is no such file or folder, or no picture at all.
    """
    found, given = Found(), dict[str, None]()
    for path in paths:
        if os.path.isfile(path):
            given[path] = None
        elif os.path.isdir(path):
            given.update(dict.fromkeys(_below(path, found)))
        else:
            check_is_path("path", path)
            raise ValueError(f"there is no file or folder {printable(path)}")
    absolute: dict[str, str] = {}
    for path in given:
        absolute.setdefault(os.path.abspath(path), path)
    found.files = list(absolute.values())
    if not found.files:
        besides = f", besides the predictions in {', '.join(map(printable, found.own))}" if found.own else ""
        where = ", ".join(map(printable, paths))
        unread = f". {unread}" if (unread := left_out(found.others)) else ""
        raise ValueError(f"no pictures in {where}{besides}; endings looked for: {', '.join(SUFFIXES)}{unread}")
    return found


def _below(folder: str, found: Found) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in found.folders:  # a link in a circle, or to what is listed already
        return
    found.folders.add(real)
    folders, pictures, others = list_folder(folder)
    if is_output(folder):
        if {*folders, *pictures}.intersection(FOLDERS + FILES):
            found.own.append(folder)
        folders = [name for name in folders if name not in FOLDERS]
        pictures = [name for name in pictures if name not in FILES]
    else:
        found.others += [os.path.join(folder, name) for name in others]
    yield from (os.path.join(folder, name) for name in pictures)
    for name in folders:
        yield from _below(os.path.join(folder, name), found)


def is_output(folder: str | Path) -> bool:
    """Whether `predict` has written into a folder; older versions left no facts there."""
    if os.path.isfile(os.path.join(folder, FACTS)):
        with contextlib.suppress(ValueError, OSError):
            return is_facts(Store(folder).read_json(FACTS))
    return all(os.path.isfile(os.path.join(folder, name)) for name in (TABLE, FILES[0]))


def is_facts(value: object) -> TypeGuard[Json]:
    """Whether a predictions.json says what `predict` writes there."""
    return isinstance(value, dict) and {"run", "folder", "start_id"} <= value.keys()


def check_output(out: Store, found: Found, *, drawn: str, folders: Sequence[str]) -> None:
    """Refuse to write over files of the user's own, or pictures among those that are predicted.

    Args:
        out: The folder to write into.
        found: The pictures.
        drawn: The file that is drawn.
        folders: Those that files of each picture are written to.

    Raises:
        ValueError: The folder, or one in it that would be written, holds other files.
    """
    try:
        names = set(out.names())
    except OSError:  # it is a file: whoever writes there will say so
        return
    if FACTS in names or {TABLE, FILES[0]} <= names:  # what is in them is checked when it is read
        return
    foreign = [drawn] if drawn in names else [TABLE] if TABLE in names and not _is_table(out) else []
    if foreign:
        raise ValueError(
            f"--out {out.address} holds a file {foreign[0]} that predict did not write; give --out a folder of its own"
        )
    if out.local is None or os.path.realpath(out.local) not in found.folders:
        return
    for name in folders:
        if (out / name).names():
            raise ValueError(
                f"--out {out.address} is among the pictures, and its folder {name}/ holds files that predict did not "
                "write; give --out a folder of its own"
            )


def _is_table(out: Store) -> bool:
    """Whether the table is one of `predict`, of an older version perhaps."""
    try:
        return out.read(TABLE)[:5] in (b"path,", b"")
    except OSError:  # whoever writes it will say what is wrong
        return True
