"""What a folder holds: its pictures, the folders in it, and what is passed over.

Passed over are hidden files and folders, and those that systems and programs keep beside pictures (thumbnails, waste
baskets, what an archive of macOS brings). Links are followed, but not in circles. A link to a picture that is not there
counts as a picture: whoever reads it reports it, with all others that cannot be read.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from trainers.endings import SUFFIXES
from trainers.formatting import composed, printable

PASSED_OVER = frozenset(
    [
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot"),  # NAS
        *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
        *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),  # macOS
        *("lost+found", "lost.dir", "~snapshot", "__pycache__"),
    ]
)
"""Names of folders, in lower case. Names that start with a dot are passed over too."""


class Listing(NamedTuple):
    """The names directly in a folder, sorted."""

    folders: list[str]
    pictures: list[str]
    others: list[str]
    """Other files."""


def is_picture(name: str) -> bool:
    """Whether a file of this name is read as a picture."""
    return name.lower().endswith(SUFFIXES)


def words(name: str) -> list[str]:
    """The words and numbers of a name, in lower case: trainSet_01 is train, set and 01."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", composed(name))
    return re.findall(r"[^\W\d_]+|\d+", spaced.casefold())


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name is no part of the data."""
    return name.startswith(".") or name.lower() in PASSED_OVER


def list_folder(folder: str) -> Listing:
    """What lies directly in a folder, sorted. Raises ValueError where it cannot be read."""
    found = Listing([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if passed_over(entry.name):
                    continue
                if _is_folder(entry):
                    found.folders.append(entry.name)
                elif is_picture(entry.name):
                    found.pictures.append(entry.name)
                else:
                    found.others.append(entry.name)
    except OSError as error:
        raise ValueError(f"{printable(folder)} cannot be read: {_cause(folder, error)}") from None
    return Listing(*(sorted(names, key=_order) for names in found))


@dataclass
class Tree:
    """What lies below a folder, at any depth; paths as the folder's own was given."""

    pictures: list[str] = field(default_factory=list)
    """Sorted."""
    folders: list[str] = field(default_factory=list)
    """Paths below the folder itself."""
    others: list[str] = field(default_factory=list)
    """Files that are no pictures."""
    again: list[str] = field(default_factory=list)
    """Folders whose pictures are taken already, links to one that was listed before and thumbnails, or are a run's."""
    root: str = ""
    """The folder itself, as it was given."""

    def top(self, picture: str) -> str:
        """The folder directly in this one in which a picture lies; "" where it lies in none."""
        folder, mark, _ = picture[len(self.root) + 1 if self.root else 0 :].partition("/")
        return folder if mark else ""


def walk(root: str, folder: str) -> Tree:
    """List all that lies below `folder`, a path below `root`. Raises ValueError for a link to a folder above it."""
    tree, seen = Tree(root=folder), set[str]()

    def visit(below: str, above: tuple[str, ...]) -> None:
        path = f"{folder}/{below}".rstrip("/") if folder else below
        where = os.path.realpath(os.path.join(root, path))
        if any(f"{each}/".startswith(f"{where}/") for each in above):
            raise ValueError(f"{printable(os.path.join(root, path))} is a link to a folder above it; remove the link")
        if where in seen:
            tree.again.append(path)
            return
        seen.add(where)
        found = list_folder(os.path.join(root, path))
        start = f"{path}/" if path else ""
        tree.pictures += [f"{start}{name}" for name in found.pictures]
        tree.others += [f"{start}{name}" for name in found.others]
        for name in found.folders:
            beside = os.path.join(root, path, name)
            if _are_thumbnails(beside, found.pictures) or _is_run(beside):
                tree.again.append(f"{start}{name}")
                continue
            inner = f"{below}/{name}" if below else name
            tree.folders.append(inner)
            visit(inner, (*above, where))

    visit("", (os.path.realpath(os.path.join(root, os.path.dirname(folder))),) if folder else ())
    tree.pictures.sort(key=_order)
    return tree


def _are_thumbnails(folder: str, beside: list[str]) -> bool:
    """Whether a folder of that name holds but small copies of the pictures beside it."""
    if "thumb" not in os.path.basename(folder).lower() or not beside:
        return False
    stems = {os.path.splitext(name)[0] for name in beside}
    held = list_folder(folder)
    return not held.folders and {os.path.splitext(name)[0] for name in held.pictures} <= stems


def _is_run(folder: str) -> bool:
    """Whether a folder is that of a run, whose figures are no pictures of a data set."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in ("run.json", "metrics.jsonl"))


def _order(name: str) -> tuple[str, str]:
    """The same on every system, some of which take accents apart."""
    return composed(name), name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Known from the listing: it costs no call per file. A link without an ending that leads nowhere was a folder's."""
    try:
        if entry.is_dir():
            return True
    except OSError as error:  # a link in a circle, or to where one may not look
        return not (os.path.splitext(entry.name)[1] if error.errno == errno.ELOOP else is_picture(entry.name))
    return entry.is_symlink() and not os.path.splitext(entry.name)[1] and not os.path.exists(entry.path)


def _cause(folder: str, error: OSError) -> str:
    if os.path.islink(folder) and not os.path.exists(folder):
        return (
            f"it is a link to {printable(os.readlink(folder))}, which is not there; fetch or mount what it leads to, "
            "or remove the link"
        )
    return error.strerror or str(error)
