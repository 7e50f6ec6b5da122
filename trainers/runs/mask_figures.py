"""Pictures of masks: coloured, laid over the picture, wrong pixels, rows of examples, PNG files. No torch, no Ray.

A picture is uint8 (height, width, 1 or 3); a mask uint8 (height, width) with the class number of each pixel or
IGNORED. Pillow and matplotlib are imported where used.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainers.datasets import IGNORED
from trainers.formatting import abbreviated
from trainers.runs import lettering
from trainers.runs.palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

WRONG = (0, 255, 255)
"""The colour of a wrong pixel: far from grey and from the colours of every data set here, for the colour-blind too, as
red and magenta are not."""

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Row = Mapping[str, Any]
"""One example: name (str), image (picture), target and labels (masks: truth and prediction); where known, score
(its IoU, or None) and kind ("best", "worst" or "")."""


def palette(classes: int) -> list[Colour]:
    """The first `classes` (at most 256, more than a mask can hold) of the fixed table of colours."""
    assert classes <= len(COLOURS), classes
    return COLOURS[:classes]


def colour(mask: Image, colours: Sequence[Sequence[int]]) -> Image:
    """The mask in its classes' colours: uint8 (height, width, 3). IGNORED is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: min(len(colours), IGNORED)] = np.asarray(colours, np.uint8).reshape(-1, 3)[:IGNORED]
    return table[mask]


def overlay(picture: Image, mask: Image, colours: Sequence[Sequence[int]], strength: float = 0.5) -> Image:
    """The picture tinted with its classes' colours; the pixels along a class's border in its very colour.

    Args:
        picture: uint8 (height, width, 1 or 3).
        mask: uint8 (height, width).
        colours: RGB of each class.
        strength: share of the colour, 0 to 1.

    Returns:
        uint8 (height, width, 3).
    """
    tint = colour(mask, colours)
    mixed = (1 - strength) * _rgb(picture) + strength * tint
    return np.where(_borders(mask)[..., None], tint, np.rint(mixed).astype(np.uint8))


def errors(picture: Image, truth: Image, prediction: Image) -> Image:
    """The picture in dull grey, its wrong pixels in WRONG, what the truth ignores in black: (height, width, 3)."""
    grey = _rgb(picture) @ np.array([0.299, 0.587, 0.114])
    dull = np.rint(55 + 0.45 * grey).astype(np.uint8)
    result = np.repeat(dull[..., None], 3, axis=2)
    result[truth != prediction] = WRONG
    result[truth == IGNORED] = 0
    return result


def save_png(array: Image, palette: Sequence[Sequence[int]] | None = None) -> bytes:
    """A PNG file: of a picture, or of a mask, whose pixels are then its class numbers.

    Args:
        array: uint8 (height, width, 1 or 3), or a mask (height, width).
        palette: RGB of each class, with which viewers show a mask; None: it is shown in grey.
    """
    from PIL import Image as Pillow

    pillow = Pillow.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    if palette is not None:
        assert array.ndim == 2, array.shape
        pillow.putpalette(colour(np.arange(256, dtype=np.uint8)[None], palette).tobytes())
    stream = io.BytesIO()
    pillow.save(stream, format="PNG")
    return stream.getvalue()


def _rgb(picture: Image) -> Image:
    return np.broadcast_to(picture, (*picture.shape[:2], 3))


def _borders(mask: Image) -> npt.NDArray[np.bool_]:
    """Which pixels have a neighbour, above, below, left or right, of another class."""
    found = np.zeros(mask.shape, bool)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= right
    found[:, :-1] |= right
    return found


# Figures: the examples, the legend alone. Lengths are in inches, from the top.

_SIDE = 3.0  # the longer side of a picture
_MARGIN, _GAP, _BETWEEN, _APART = 0.15, 0.08, 0.16, 0.5
_LINE = 0.28  # a line of text
_VERDICT = 2.5  # what is said of a picture, right of its name
_COLUMNS = ("picture", "truth", "prediction", "errors")
_TALL = 6  # more rows than this stand in two blocks side by side
_MANY = 40  # of more classes than this the legend has those that occur
_BEST, _WORST = "#00704F", "#B3001E"


def draw_predictions(
    rows: Sequence[Row],
    classes: Sequence[str],
    colours: Sequence[Sequence[int]],
    title: str,
    scores: Sequence[float | None] | None = None,
) -> Figure:
    """Examples: picture, truth, prediction and errors side by side; below them what the colours mean.

    More than 6 examples stand in two blocks, so that the figure fits a slide.

    Args:
        rows: at least one.
        classes: the names of the classes.
        colours: RGB of each class.
        title: one line or more.
        scores: the IoU of each class over all pictures, 0 to 1, for the legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    half = len(rows) if len(rows) <= _TALL else math.ceil(len(rows) / 2)
    blocks = [rows[start : start + half] for start in range(0, len(rows), half)]
    big = 1.0 if len(blocks) == 1 else 1.35  # text: on a screen, two blocks are shown smaller
    line = big * _LINE
    column = max(1.9, *(_size(row)[0] for row in rows))
    step = 4 * column + 3 * _GAP + _APART
    width = len(blocks) * step - _APART + 2 * _MARGIN
    figure = Figure(figsize=(width, 1))
    renderer = FigureCanvasAgg(figure).get_renderer()
    meanings = _meanings(rows, lettering.legible(classes), colours, scores)
    legend = _add_legend(figure, renderer, *meanings, _note(rows, scores), fontsize=11 * big)
    below = legend.get_window_extent(renderer).height / figure.dpi + _MARGIN + 0.1
    lines = title.splitlines()
    head = _MARGIN + line * (len(lines) + 1) + 0.1
    height = head + max(sum(_size(row)[1] + line + _BETWEEN for row in block) for block in blocks) + below
    figure.set_figheight(height)
    # By its top, so that it lies on no picture whatever its height is in the end: text is measured at another size.
    legend.set_loc("upper left")
    legend.set_bbox_to_anchor((_MARGIN / width, (below - 0.1) / height), figure.transFigure)

    def write(x: float, top: float, text: str, room: float, **style: Any) -> None:
        style["fontsize"] *= big
        text, families = lettering.written(text)
        text = _shorten(text, renderer, room * figure.dpi, families, **style)
        style = {"ha": "left", "va": "center", "parse_math": False, "fontfamily": families, **style}
        figure.text(x / width, 1 - (top + line / 2) / height, text, **style)

    for number, text in enumerate(lines):
        write(_MARGIN, _MARGIN + number * line, text, width - 2 * _MARGIN, fontsize=12 if number else 15)
    for number, block in enumerate(blocks):
        left, top = _MARGIN + number * step, head
        for place, text in enumerate(_COLUMNS):
            middle = left + place * (column + _GAP) + column / 2
            write(middle, head - line - 0.02, text, column, fontsize=12, ha="center")
        for row in block:
            verdict, style = _verdict(row)
            write(left, top, row["name"], step - _APART - big * _VERDICT, fontsize=11)
            write(left + step - _APART, top, verdict, big * _VERDICT, fontsize=11, ha="right", **style)
            top += line
            wide, tall = _size(row)
            for place, shown in enumerate(_views(row, colours)):
                start = left + place * (column + _GAP) + (column - wide) / 2
                _show(figure, shown, (start / width, 1 - (top + tall) / height, wide / width, tall / height))
            top += tall + _BETWEEN
    return figure


def legend_png(classes: Sequence[str], colours: Sequence[Sequence[int]]) -> bytes:
    """A PNG file of the classes' numbers and names beside their colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _draw_legend(lettering.legible(classes), colours)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()


def _draw_legend(classes: Sequence[str], colours: Sequence[Sequence[int]]) -> Figure:
    """A dozen classes a column, in at most 6 columns; the figure is as large as they need."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=150)
    renderer = FigureCanvasAgg(figure).get_renderer()
    digits = len(str(len(classes) - 1))
    texts = [f"{number:\N{FIGURE SPACE}>{digits}}  {abbreviated(name, 40)}" for number, name in enumerate(classes)]
    columns = min(6, math.ceil(len(classes) / 12))
    legend = _legend(figure, texts, colours[: len(classes)], columns, fontsize=13, labelspacing=0.6)
    box = legend.get_window_extent(renderer)
    width, height = (2 * _MARGIN + side / figure.dpi for side in (box.width, box.height))
    figure.set_size_inches(width, height)
    legend.set_bbox_to_anchor((_MARGIN / width, _MARGIN / height), figure.transFigure)
    return figure


def _size(row: Row) -> tuple[float, float]:
    """Width and height of its pictures in the figure."""
    height, width = row["image"].shape[:2]
    scale = _SIDE / max(height, width)
    return max(0.15, scale * width), max(0.15, scale * height)


def _verdict(row: Row) -> tuple[str, dict[str, str]]:
    """What is said of a row's prediction, and in which style."""
    score, kind = row.get("score"), row.get("kind") or ""
    verdict = "" if score is None or math.isnan(score) else f"mean IoU {100 * score:.1f} %"
    verdict = f"{kind}:  {verdict}" if kind and verdict else kind or verdict
    shade = {"best": _BEST, "worst": _WORST}.get(kind, "black")
    return verdict, {"color": shade, "fontweight": "bold" if kind else "normal"}


def _note(rows: Sequence[Row], scores: Sequence[float | None] | None) -> str | None:
    """What the percentages of the figure are."""
    lines = ["% of a class: its IoU over all validation pictures"] if scores is not None else []
    if any("IoU" in _verdict(row)[0] for row in rows):
        lines.append("mean IoU of a picture: of the classes in its truth or prediction")
    return "\n".join(lines) or None


def _views(row: Row, colours: Sequence[Sequence[int]]) -> list[Image]:
    picture, truth, prediction = row["image"], row["target"], row["labels"]
    wrong = errors(picture, truth, prediction)
    return [_rgb(picture), colour(truth, colours), colour(prediction, colours), wrong]


def _show(figure: Figure, shown: Image, box: tuple[float, float, float, float]) -> None:
    from PIL import Image as Pillow

    if max(shown.shape) > 900:  # drawing takes as long as there are pixels
        pillow = Pillow.fromarray(np.ascontiguousarray(shown))
        pillow.thumbnail((900, 900), Pillow.Resampling.BOX)
        shown = np.asarray(pillow)
    axes = figure.add_axes(box)
    axes.imshow(shown, interpolation="nearest" if max(shown.shape) < 300 else "antialiased", aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="#999999", linewidth=0.5)


def _meanings(
    rows: Sequence[Row],
    classes: Sequence[str],
    colours: Sequence[Sequence[int]],
    scores: Sequence[float | None] | None,
) -> tuple[list[str], list[Sequence[int]]]:
    """What the legend says, and the colours it says it of."""
    occurring = {int(number) for row in rows for name in ("target", "labels") for number in np.unique(row[name])}
    texts: list[str] = []
    shades: list[Sequence[int]] = []
    for number, name in enumerate(classes):
        if len(classes) > _MANY and number not in occurring:
            continue
        score = scores[number] if scores is not None else None
        percent = "" if score is None or math.isnan(score) else f"  {100 * score:.0f} %"
        texts.append(abbreviated(name, 24) + percent)
        shades.append(colours[number])
    ignored = [("ignored, not scored", (0, 0, 0))] if IGNORED in occurring else []
    for name, shade in [*ignored, ("wrong", WRONG)]:
        texts.append(name)
        shades.append(shade)
    return texts, shades


def _add_legend(
    figure: Figure,
    renderer: RendererAgg,
    texts: Sequence[str],
    shades: Sequence[Sequence[int]],
    note: str | None,
    fontsize: float,
) -> Legend:
    """The legend at the foot, in as many columns as fit; `note` is its heading."""
    room = figure.bbox.width - 2 * _MARGIN * figure.dpi
    for columns in range(min(12, len(texts)), 0, -1):
        legend = _legend(figure, texts, shades, columns, fontsize=fontsize, title_fontsize=fontsize, title=note)
        if columns == 1 or legend.get_window_extent(renderer).width <= room:
            break
        legend.remove()
    return legend


def _legend(
    figure: Figure, texts: Sequence[str], shades: Sequence[Sequence[int]], columns: int, **style: Any
) -> Legend:
    """A patch and a text for each; its place is left to the caller."""
    from matplotlib.patches import Patch

    def patch(red: int, green: int, blue: int) -> Patch:
        return Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="#555555", linewidth=0.6)

    style |= {"loc": "lower left", "frameon": False, "borderaxespad": 0, "borderpad": 0}
    style |= {"handlelength": 1.2, "columnspacing": 1.4, "alignment": "left", "ncols": columns}
    legend = figure.legend([patch(*shade) for shade in shades], ["x"] * len(shades), **style)
    for text, said in zip(legend.get_texts(), texts, strict=True):
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
