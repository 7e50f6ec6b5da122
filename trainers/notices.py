"""What is noticed while files are read and a person should know of: counted by kind, and told once with an example.

`decode` and its like call `notice`; whoever reads many files collects (`collected`), adds up (`merge`) and tells
(`describe`). Notices are plain data, which travels between processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import numpy as np
import numpy.typing as npt

from trainers.messages import Notice

_COLLECTED: ContextVar[dict[str, Notice] | None] = ContextVar("notices", default=None)

DEEP, DEEP_COLOUR = "deep", "deep colour"
KINDS: Mapping[str, tuple[str, str]] = {
    "pages": ("several pages or frames", "the first is read"),
    "beyond": ("values from {low:g} to {high:g}, beyond value_range", "what is outside becomes black or white"),
    "eight": ("8 bits a channel", "value_range is for grey pictures of more bits, and not applied to them"),
    "nan": ("pixels that are no numbers", "they become black"),
    "hidden": (
        "an alpha channel that hides everything, with colours beneath it",
        "it is ignored; if the pictures are to be white there, give --dataset-args alpha=white",
    ),
    "band": (
        "a last band that the file calls alpha and that varies as a picture does (near infrared?)",
        "it is ignored; if it is transparency, give --dataset-args alpha=white",
    ),
    "tiff": (
        "a last band that is taken for transparency",
        "the picture is laid on white; if it is another band (near infrared?), give --dataset-args alpha=ignore",
    ),
    "soft": (
        "an alpha channel that is neither clear nor opaque nearly everywhere",
        "the picture is laid on white; if the channel is no transparency, give --dataset-args alpha=ignore",
    ),
    "mask turned": (
        "a mask of the size that the picture has before its EXIF orientation is applied",
        "the mask is turned as the picture is",
    ),
    "mask unsure": (
        "an EXIF orientation, of the picture or of the mask, that the mask's size does not confirm",
        "the mask is taken as drawn on the upright picture; if it was drawn on the pixels as stored, give "
        "--dataset-args mask_orientation=stored, else mask_orientation=upright",
    ),
    "boxes turned": (
        "boxes of the picture before its EXIF orientation is applied, as the size in the labels says",
        "the boxes are turned as the picture is",
    ),
    "boxes unsure": (
        "an EXIF orientation, and boxes for which no size tells whether they are of the upright picture",
        "they are taken so; if they are of the pixels as stored, give --dataset-args box_orientation=stored, else "
        "box_orientation=upright",
    ),
    "boxes resized": (
        "another size than the labels say, of the same shape",
        "the picture is taken to be shrunk or enlarged after it was labelled, and its boxes with it",
    ),
    "mask white": (
        "black and white pixels only, in a mask",
        "white, 255, is no class and ignored; if it is one, give --dataset-args threshold=127",
    ),
    "boxes cut": (
        "objects that resize=crop cuts",
        "what is left of them is learned and scored, and of less than a fifth neither; to see them whole, give "
        "--resize pad",
    ),
    "masks cut": (
        "more masks that lie over one another than layers hold",
        "where they overlap, the smaller object keeps the pixels; give --dataset-args layers=6",
    ),
    "mask deep": ("a mask of 16 bits a channel", "only the upper 8 are read; save masks with 8 bits, or in grey"),
}
"""Kind -> what was found, and what is made of it. Another kind is a sentence about one file."""
MOST_REASONS = 10
"""Sentences about one file that are told."""
_NARROW = 8
"""Levels in which no picture can be seen any more."""
_WHITE = 65535.0


@contextlib.contextmanager
def collected() -> Iterator[dict[str, Notice]]:
    """Collect what is noticed by this thread, or task, within the block."""
    found: dict[str, Notice] = {}
    token = _COLLECTED.set(found)
    try:
        yield found
    finally:
        _COLLECTED.reset(token)


def notice(kind: str, path: str, *, low: float = 0.0, high: float = 0.0) -> None:
    """Count a file of a kind; `low` and `high` are values that it holds."""
    _add(kind, {"count": 1, "example": path, "low": low, "high": high, "levels": [], "crowded": 0})


def notice_levels(
    kind: str,
    path: str,
    levels: npt.NDArray[np.int64],
    *,
    low: float,
    high: float,
    crowded: bool,
    white: float = _WHITE,
) -> None:
    """Count a file of more than 8 bits.

    Args:
        kind: DEEP or DEEP_COLOUR.
        path: The file.
        levels: Pixels of each of the 256 levels that are made of it.
        low: Least value.
        high: Greatest value.
        crowded: Whether many different values share a level.
        white: The value that becomes white.
    """
    entry: Notice = {
        "count": 1,
        "example": path,
        "low": float(low),
        "high": float(high),
        "levels": levels.tolist(),
        "crowded": int(crowded),
        "white": white,
    }
    _add(kind, entry)


def merge(into: dict[str, Notice], found: Mapping[str, Notice]) -> None:
    """Add up what was noticed of two sets of files."""
    for kind, entry in found.items():
        there = into.setdefault(kind, {**entry, "count": 0, "levels": [0] * len(entry["levels"]), "crowded": 0})
        there["count"] += entry["count"]
        there["low"], there["high"] = min(there["low"], entry["low"]), max(there["high"], entry["high"])
        there["crowded"] += entry["crowded"]
        there["levels"] = [one + other for one, other in zip(there["levels"], entry["levels"], strict=True)]


def describe(found: Mapping[str, Notice]) -> list[str]:
    """What a person should know, a line a kind."""
    lines, reasons = [], []
    for kind, entry in found.items():
        if kind in (DEEP, DEEP_COLOUR):
            lines += _describe_levels(kind, entry)
            continue
        if kind not in KINDS:
            reasons.append(kind)
            continue
        what, then = (text.format(**entry) for text in KINDS[kind])
        lines.append(f"{_files(entry)} {'have' if entry['count'] > 1 else 'has'} {what}: {then}")
    return [*lines, *reasons[:MOST_REASONS]]


def _add(kind: str, entry: Notice) -> None:
    found = _COLLECTED.get()
    if found is not None:
        merge(found, {kind: entry})


def _describe_levels(kind: str, entry: Notice) -> list[str]:
    """Where most of the 256 levels stay empty, although the files tell more values apart."""
    levels = np.array(entry["levels"])
    held = np.flatnonzero(levels)
    often = np.flatnonzero(levels > levels.sum() / 10_000)
    used, white = len(often), entry.get("white", _WHITE)
    # of colours the lower 8 bits are lost already, so that black may be anything
    narrow = held[-1] - held[0] <= _NARROW and (entry["low"] < entry["high"] or (held[-1] == 0 and kind == DEEP_COLOUR))
    if not narrow and (not entry["crowded"] or (used > 64 and held[-1] - held[0] >= 128)):
        return []
    if kind == DEEP_COLOUR:
        found = f"{_files(entry)} of 16 bits a channel fill {used} of 256 levels"
        return [f"{found}: stretch them to the whole range of 16 bits, or save them with 8 bits"]
    level = white / 255
    low, high = max(entry["low"], (often[0] - 0.5) * level), min(entry["high"], (often[-1] + 0.5) * level // 1)
    if high == entry["high"]:  # else it is that of a few stray pixels
        low, high = suggest_range(low, high)
    return [
        f"{_files(entry)} of 16 bits hold values from {entry['low']:g} to {entry['high']:g} and so fill {used} of 256 "
        f"grey levels: give --dataset-args value_range={low:g},{high:g}, or the range that matters, to tell more "
        "values apart"
    ]


def suggest_range(low: float, high: float) -> tuple[float, float]:
    """A range for values from `low` to `high`: that of so many bits where they are so many bits' numbers."""
    bits = next((bits for bits in range(8, 17) if high < 2**bits), None)
    if low >= 0 and float(high).is_integer() and bits is not None and high >= 2 ** (bits - 1) and low < high / 2:
        return 0, 2**bits - 1
    return low, high


def _files(entry: Notice) -> str:
    return f"{entry['count']:,} files, such as {entry['example']}," if entry["count"] > 1 else entry["example"]
