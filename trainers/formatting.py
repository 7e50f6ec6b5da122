"""Sizes, names and errors, as people read and write them."""

from __future__ import annotations

import difflib
import math
import re
import traceback
import typing
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
MOST_NAMES = 50
"""Names that an error message lists."""


def parse_size(text: str) -> int:
    """Read a number of bytes.

    Args:
        text: A number and a unit, as in "10.76GiB", "32 GB" or "900MiB"; without a unit, bytes.

    Raises:
        ValueError: It is no size, or 0.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([KMGT]?I?B)?", text.strip().upper())
    size = int(float(found[1]) * UNITS.get(found[2] or "B", 0)) if found else 0
    if not size:
        raise ValueError(f"{text!r} is not a size of memory; give a number above 0 and a unit, as in 10.76GiB or 900MB")
    return size


def format_size(size: int) -> str:
    """Format a number of bytes: 10.76 GiB, 512 MiB."""
    unit, name = next(((2**n, u) for n, u in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if size >= 2**n), (1, "bytes"))
    shown = f"{size / unit:.2f}" if unit == 2**30 else f"{size / unit:.0f}"
    return f"{shown} {name}"


def format_duration(seconds: float) -> str:
    """A time for people: 4.2 s, 3:05 (minutes:seconds), 1:02:05 (with hours)."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are no UTF-8 become \\xdf and the like."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def composed(name: str) -> str:
    """A name with its accents in one form, however a system writes them: "e" and an accent become "é"."""
    return unicodedata.normalize("NFC", name)


def shortened(names: typing.Sequence[str], most: int = 10) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def abbreviated(name: str, most: int) -> str:
    """A name of at most so many letters, without its middle: names that begin alike differ at their ends."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[len(name) - (most - most // 2 - 1) :]}"


def abbreviations(names: typing.Sequence[str], most: int) -> list[str]:
    """Names of at most so many letters each: without their middles, or ends, or beginnings, as more of them differ."""
    cut = [
        [abbreviated(name, most) for name in names],
        [name if len(name) <= most else f"{name[: most - 1]}…" for name in names],
        [name if len(name) <= most else f"…{name[1 - most :]}" for name in names],
    ]
    return max(cut, key=lambda each: len(set(each)))


def nearest(word: str, allowed: typing.Iterable[str]) -> str:
    """The end of an error message: `; did you mean lr?`, and the list of what is allowed."""
    names = list(allowed)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    guess = f"; did you mean {' or '.join(close)}?" if close else ""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{guess} (allowed: {', '.join(names[:MOST_NAMES]) or 'none'}{more})"


def check_is_path(name: str, text: str | None) -> None:
    """Refuse what would become a strange local path: Path("s3://photos") is a folder called "s3:".

    Args:
        name: What the user calls it, such as a flag.
        text: What was given; None: nothing.

    Raises:
        ValueError: It is the address of an object store, a server...
    """
    found = re.match(r"([a-z][a-z0-9+.-]+)://(.*)", text or "", re.IGNORECASE | re.DOTALL)  # C://photos is a path
    if found is not None:
        what = f"{name}={text} is an address, where a file or folder is needed"
        if found[1].lower() == "file":
            path = unquote(found[2].removeprefix("localhost/").lstrip("/"))
            raise ValueError(f"{what}; give its path, /{path}")
        raise ValueError(
            f"{what}: object stores and servers are not read or written there (--storage and the --out of predict take "
            "an address); copy the files to a disk that every host sees, or mount them, and give that path"
        )


def locate_error(error: Exception) -> str:
    """Describe an error in a user's file, with the line that it was raised in."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    frame = [frame for frame in frames if "site-packages" not in frame.filename][-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"


def plain(value: typing.Any) -> typing.Any:
    """A value as JSON can hold it: NumPy's numbers and arrays become Python's, and what is not finite None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
