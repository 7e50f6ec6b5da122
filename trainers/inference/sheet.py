"""predictions.png: some of the pictures with the class that each is given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from trainers.data.resize import Pixels
from trainers.runs.figures import to_png

MOST = 24
"""Pictures on a sheet."""
COLUMNS = 6
LONGEST = 26
"""Characters of a line beside a picture."""
LINES = 5
"""Classes that are named for a picture, at most."""


class Shown(NamedTuple):
    """A picture and what is said of it."""

    picture: Pixels
    name: str
    classes: Sequence[tuple[str, str]]
    """(class, probability) of those that are listed, the first one first."""


def spread(count: int, most: int = MOST) -> list[int]:
    """Positions, at most so many, evenly over 0 ... count - 1."""
    return [index * count // min(count, most) for index in range(min(count, most))]


def draw_sheet(shown: Sequence[Shown], title: str) -> bytes:
    """A PNG file of pictures in rows.

    Args:
        shown: At most MOST are meant.
        title: Above all.
    """
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    lines = min(LINES, max(len(each.classes) for each in shown))
    figure = Figure(figsize=(max(4.0, 2.2 * columns), 0.7 + rows * (2.3 + 0.17 * lines)), layout="constrained")
    figure.suptitle(_begin(title, 15 * max(3, columns)), fontsize=12)
    for number, each in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        grey = each.picture.shape[2] == 1
        axes.imshow(each.picture[:, :, 0] if grey else each.picture, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        first, *rest = (f"{_begin(name, LONGEST - len(share) - 1)} {share}" for name, share in each.classes[:LINES])
        axes.set_title(first, fontsize=10, fontweight="bold", pad=4)
        below = "\n".join([*rest, _end(each.name, LONGEST)])
        axes.text(0.5, -0.04, below, transform=axes.transAxes, ha="center", va="top", fontsize=8, color="#595959")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a script that the font lacks is drawn as boxes
        return to_png(figure)


def _begin(text: str, most: int) -> str:
    """The beginning of a long text; `$` would start a formula."""
    return (text if len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")


def _end(text: str, most: int) -> str:
    """The end of a long name, which tells more: files are numbered there."""
    return (text if len(text) <= most else f"…{text[-most + 1 :]}").replace("$", r"\$")
