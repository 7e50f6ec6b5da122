"""Examples for people: a line of text above pictures side by side, in one block or two, and a legend at the foot.

What the pictures show is the caller's matter. Lengths are in inches, from the top. matplotlib is imported where used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.runs import lettering

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

Image = npt.NDArray[np.uint8]

MARGIN, GAP, BETWEEN, APART = 0.15, 0.08, 0.16, 0.5
LINE = 0.28
"""A line of text."""
VERDICT = 2.5
"""What is said of a picture, right of its name."""
TALL = 6
"""More rows than this stand in two blocks side by side."""
SHADES = {"best": "#00704F", "worst": "#B3001E"}
MOST_PIXELS = 900
"""A side, of what is drawn: that takes as long as there are pixels."""


class Example(NamedTuple):
    """A row: one picture, shown in several ways."""

    name: str
    verdict: str
    """What is said of it; "" where nothing is."""
    kind: str
    """"best", "worst" or ""."""
    shape: tuple[int, int]
    """Height and width, in pixels."""
    views: Sequence[Callable[[Axes, float], None]]
    """Each draws a column, into axes of the picture's shape; the number is by how much text is enlarged."""


class Meanings(NamedTuple):
    """What a legend says."""

    handles: Sequence[Artist]
    texts: Sequence[str]
    note: str | None = None
    """Its heading."""


def draw_examples(
    examples: Sequence[Example], columns: Sequence[str], title: str, meanings: Meanings, side: float
) -> Figure:
    """The examples, in two blocks where there are more than TALL, so that the figure fits a slide.

    Args:
        examples: at least one.
        columns: what each view is called.
        title: one line or more.
        meanings: for the legend.
        side: the longer one of a picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    half = len(examples) if len(examples) <= TALL else math.ceil(len(examples) / 2)
    blocks = [examples[start : start + half] for start in range(0, len(examples), half)]
    big = 1.0 if len(blocks) == 1 else 1.35  # text: on a screen, two blocks are shown smaller
    line = big * LINE
    column = max(1.9, *(_size(each.shape, side)[0] for each in examples))
    step = len(columns) * column + (len(columns) - 1) * GAP + APART
    width = len(blocks) * step - APART + 2 * MARGIN
    figure = Figure(figsize=(width, 1))
    renderer = FigureCanvasAgg(figure).get_renderer()
    legend = _add_legend(figure, renderer, meanings, fontsize=11 * big)
    below = legend.get_window_extent(renderer).height / figure.dpi + MARGIN + 0.1
    lines = title.splitlines()
    head = MARGIN + line * (len(lines) + 1) + 0.1
    tallest = max(sum(_size(each.shape, side)[1] + line + BETWEEN for each in block) for block in blocks)
    height = head + tallest + below
    figure.set_figheight(height)
    # By its top, so that it lies on no picture whatever its height is in the end: text is measured at another size.
    legend.set_loc("upper left")
    legend.set_bbox_to_anchor((MARGIN / width, (below - 0.1) / height), figure.transFigure)

    def write(x: float, top: float, text: str, room: float, **style: Any) -> None:
        style["fontsize"] *= big
        text, families = lettering.written(text)
        text = _shorten(text, renderer, room * figure.dpi, families, **style)
        style = {"ha": "left", "va": "center", "parse_math": False, "fontfamily": families, **style}
        figure.text(x / width, 1 - (top + line / 2) / height, text, **style)

    for number, text in enumerate(lines):
        write(MARGIN, MARGIN + number * line, text, width - 2 * MARGIN, fontsize=12 if number else 15)
    for number, block in enumerate(blocks):
        left, top = MARGIN + number * step, head
        for place, text in enumerate(columns):
            middle = left + place * (column + GAP) + column / 2
            write(middle, head - line - 0.02, text, column, fontsize=12, ha="center")
        for each in block:
            verdict, style = _verdict(each)
            write(left, top, each.name, step - APART - big * VERDICT, fontsize=11)
            write(left + step - APART, top, verdict, big * VERDICT, fontsize=11, ha="right", **style)
            top += line
            wide, tall = _size(each.shape, side)
            for place, view in enumerate(each.views):
                start = left + place * (column + GAP) + (column - wide) / 2
                axes = figure.add_axes((start / width, 1 - (top + tall) / height, wide / width, tall / height))
                view(axes, big)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set(color="#999999", linewidth=0.5)
            top += tall + BETWEEN
    return figure


def show(axes: Axes, picture: Image) -> None:
    """A picture, uint8 (height, width, 1 or 3), in axes of its shape, whose unit is one of its pixels."""
    from PIL import Image as Pillow

    shown, (height, width) = np.broadcast_to(picture, (*picture.shape[:2], 3)), picture.shape[:2]
    if max(height, width) > MOST_PIXELS:
        pillow = Pillow.fromarray(np.ascontiguousarray(shown))
        pillow.thumbnail((MOST_PIXELS, MOST_PIXELS), Pillow.Resampling.BOX)
        shown = np.asarray(pillow)
    between = "nearest" if max(shown.shape) < 300 else "antialiased"
    axes.imshow(shown, interpolation=between, aspect="auto", extent=(0, width, height, 0))


def _size(shape: tuple[int, int], side: float) -> tuple[float, float]:
    """Width and height of its pictures in the figure."""
    height, width = shape
    scale = side / max(height, width)
    return max(0.15, scale * width), max(0.15, scale * height)


def _verdict(example: Example) -> tuple[str, dict[str, str]]:
    """What is said of a row's prediction, and in which style."""
    kind, verdict = example.kind, example.verdict
    verdict = f"{kind}:  {verdict}" if kind and verdict else kind or verdict
    return verdict, {"color": SHADES.get(kind, "black"), "fontweight": "bold" if kind else "normal"}


def _add_legend(figure: Figure, renderer: RendererAgg, meanings: Meanings, fontsize: float) -> Legend:
    """The legend at the foot, in as many columns as fit."""
    room = figure.bbox.width - 2 * MARGIN * figure.dpi
    for columns in range(min(12, len(meanings.texts)), 0, -1):
        legend = add_legend(figure, meanings, columns, fontsize=fontsize, title_fontsize=fontsize)
        if columns == 1 or legend.get_window_extent(renderer).width <= room:
            break
        legend.remove()
    return legend


def add_legend(figure: Figure, meanings: Meanings, columns: int, **style: Any) -> Legend:
    """A handle and a text for each; its place is left to the caller."""
    style |= {"loc": "lower left", "frameon": False, "borderaxespad": 0, "borderpad": 0, "title": meanings.note}
    style = {"handlelength": 1.2, "columnspacing": 1.4, "alignment": "left", "ncols": columns, **style}
    legend = figure.legend(list(meanings.handles), ["x"] * len(meanings.handles), **style)
    for text, said in zip(legend.get_texts(), meanings.texts, strict=True):
        text.set(text=said, parse_math=False)  # not before: a label that begins with "_" would be left out
    lettering.write(figure)
    return legend


def _shorten(text: str, renderer: RendererAgg, room: float, families: list[str], **style: Any) -> str:
    """The text, without its middle where it would need more than `room` pixels."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=families, size=style["fontsize"], weight=style.get("fontweight", "normal"))

    def fits(said: str) -> bool:
        width, _, _ = renderer.get_text_width_height_descent(said, font, ismath=False)
        return float(width) <= room

    kept = len(text)
    said = text
    while not fits(said) and kept > 2:
        kept -= 1 + kept // 40
        said = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return said
