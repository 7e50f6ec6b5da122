"""Letters on figures: from the fonts of this machine where matplotlib's own lacks them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry

OWN = "DejaVu Sans"
"""It comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more, but nothing of East or South Asia."""
BOX = "\N{WHITE SQUARE}"
"""In place of a letter that no font here has."""
_ALL_BOXES = re.compile(r"last ?resort|adobe blank|fallback", re.IGNORECASE)
"""Fonts that have a box for every letter."""


def write(figure: Figure) -> None:
    """Give each text of a figure fonts that have its letters."""
    from matplotlib.text import Text

    for each in figure.findobj(Text):
        if not each.get_text().isascii():
            text, families = written(each.get_text())
            each.set(text=text, fontfamily=families)


def written(text: str) -> tuple[str, list[str]]:
    """The text as it can be written here, and the fonts to measure and draw it by."""
    families, lacking = _fonts(_others([text]))
    return "".join(BOX if letter in lacking else letter for letter in text), [OWN, *families]


def legible(classes: Sequence[str]) -> list[str]:
    """The names of classes; "class 3" for one that no font here can write."""
    _, lacking = _fonts(_others(classes))
    return [f"class {number}" if lacking & set(name) else name for number, name in enumerate(classes)]


def _others(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(letter for text in texts if not text.isascii() for letter in text if not letter.isascii())


@functools.cache
def _fonts(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Families that have the letters which matplotlib's own lacks, and the letters that none has."""
    from matplotlib.ft2font import FT2Font

    def without(left: set[str], path: str) -> set[str]:
        font = FT2Font(path)
        return {letter for letter in left if not font.get_char_index(ord(letter))}

    families, left = list[str](), set(letters)
    for entry in _installed() if left else ():
        try:
            after = without(left, entry.fname)
        except (OSError, RuntimeError):  # removed since matplotlib listed it, or broken
            continue
        if after < left:
            left = after
            families += [entry.name] if entry.name != OWN else []
        if not left:
            break
    return families, frozenset(left)


def _installed() -> list[FontEntry]:
    """The own one first, then upright ones of common weight."""
    from matplotlib.font_manager import fontManager

    def order(entry: FontEntry) -> tuple[bool, bool, bool, str]:
        regular = str(entry.weight) in ("400", "normal", "regular")
        return entry.name != OWN, entry.style != "normal", not regular, entry.name

    return sorted((entry for entry in fontManager.ttflist if not _ALL_BOXES.search(entry.name)), key=order)
