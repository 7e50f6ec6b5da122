"""Folders that Ray needs of this machine: for the sockets and logs of a Ray of our own, and for a home."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of a socket's path, by the system."""
LONGEST = _SOCKET - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")
"""Bytes of the path of Ray's folder, below which it has its sockets: this one has the longest name."""


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """The folder that Ray takes by itself, else one in /tmp: where that is too long for sockets, or closed to us.

    As long as the block lasts processes are started with a TMPDIR that has room for sockets, too.

    Raises:
        ValueError: There is none; or RAY_TMPDIR names one that will not do.
    """
    folder, given = _choose(), os.environ.get("TMPDIR", "")
    if len(os.fsencode(given)) > LONGEST:
        os.environ["TMPDIR"] = str(folder.parent)
    try:
        yield folder
    finally:
        if given:
            os.environ["TMPDIR"] = given


@contextlib.contextmanager
def some_home(writable: bool) -> Iterator[None]:
    """An empty home folder for a user who has none: Ray asks for it when it is imported.

    Args:
        writable: Likewise for one whose home takes no file: a Ray of our own writes its token there.
    """
    home = os.path.expanduser("~")
    if os.path.isabs(home) and not (writable and _refuses_token(Path(home))):
        yield
        return
    given = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="trainyard-home-", ignore_cleanup_errors=True) as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            if given is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = given


def _refuses_token(home: Path) -> bool:
    folder = home / ".ray"
    try:
        if (folder / "auth_token").exists():  # perhaps root's, of a command under sudo
            return not os.access(folder / "auth_token", os.R_OK)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return True
    return not os.access(folder, os.W_OK | os.X_OK)


def _choose() -> Path:
    given = os.environ.get("RAY_TMPDIR")
    usual = given or (os.environ.get("TMPDIR") if sys.platform != "darwin" else None) or "/tmp"
    homes = [given] if given else [usual, "/tmp", "/var/tmp", "/dev/shm"]
    folders = [Path(home).absolute() / name for home in homes for name in ("ray", f"ray-{os.getuid()}")]
    troubles = [_trouble(folder) for folder in folders]
    if None in troubles:
        return folders[troubles.index(None)]
    raise ValueError(
        f"Ray cannot keep its sockets in {folders[0]}: {troubles[0]}; set RAY_TMPDIR to a folder of your own whose "
        f"path has {LONGEST - len('/ray')} characters at most, or give --workers 0 to do without Ray"
    )


def _trouble(folder: Path) -> str | None:
    """Why Ray cannot use a folder; None: it can."""
    if len(os.fsencode(folder)) > LONGEST:
        return "its path is too long for them"
    place = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # those closed to us are none
    if not place.is_dir():
        return f"{place} is no folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} cannot be written by this user"
    return None
