"""Pictures of masks: coloured, laid over the picture, wrong pixels, rows of examples, PNG files. No torch, no Ray.

A picture is uint8 (height, width, 1 or 3); a mask uint8 (height, width) with the class number of each pixel or
IGNORED. Pillow and matplotlib are imported where used.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainers.datasets import IGNORED
from trainers.formatting import abbreviated
from trainers.runs import lettering
from trainers.runs.box_figures import Row
from trainers.runs.example_sheet import MARGIN, Example, Meanings, add_legend, draw_examples, show
from trainers.runs.palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

WRONG = (0, 255, 255)
"""The colour of a wrong pixel: far from grey and from the colours of every data set here, for the colour-blind too, as
red and magenta are not."""

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
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
    # Photographs hardly get smaller by more effort, which takes longer than all else that is done to them.
    pillow.save(stream, format="PNG", compress_level=1 if pillow.mode == "RGB" else 6)
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


# Figures: the examples, the legend alone. Lengths are in inches.

_SIDE = 3.0  # the longer side of a picture
_COLUMNS = ("picture", "truth", "prediction", "errors")
_MANY = 40  # of more classes than this the legend has those that occur


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
    examples = []
    for row in rows:
        views = [functools.partial(_draw_view, shown=shown) for shown in _views(row, colours)]
        shape = row["image"].shape[:2]
        examples.append(Example(row["name"], _verdict(row), row.get("kind") or "", shape, views))
    texts, shades = _meanings(rows, lettering.legible(classes), colours, scores)
    meanings = Meanings([_patch(shade) for shade in shades], texts, _note(rows, scores))
    return draw_examples(examples, _COLUMNS, title, meanings, _SIDE)


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
    meanings = Meanings([_patch(shade) for shade in colours[: len(classes)]], texts)
    legend = add_legend(figure, meanings, columns, fontsize=13, labelspacing=0.6)
    box = legend.get_window_extent(renderer)
    width, height = (2 * MARGIN + side / figure.dpi for side in (box.width, box.height))
    figure.set_size_inches(width, height)
    legend.set_bbox_to_anchor((MARGIN / width, MARGIN / height), figure.transFigure)
    return figure


def _verdict(row: Row) -> str:
    """What is said of a row's prediction."""
    score = row.get("score")
    return "" if score is None or math.isnan(score) else f"mean IoU {100 * score:.1f} %"


def _note(rows: Sequence[Row], scores: Sequence[float | None] | None) -> str | None:
    """What the percentages of the figure are."""
    lines = ["% of a class: its IoU over all validation pictures"] if scores is not None else []
    if any(_verdict(row) for row in rows):
        lines.append("mean IoU of a picture: of the classes in its truth or prediction")
    return "\n".join(lines) or None


def _views(row: Row, colours: Sequence[Sequence[int]]) -> list[Image]:
    picture, truth, prediction = row["image"], row["target"], row["labels"]
    wrong = errors(picture, truth, prediction)
    return [_rgb(picture), colour(truth, colours), colour(prediction, colours), wrong]


def _draw_view(axes: Axes, _: float, shown: Image) -> None:
    show(axes, shown)


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


def _patch(shade: Sequence[int]) -> Patch:
    from matplotlib.patches import Patch

    red, green, blue = shade
    return Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="#555555", linewidth=0.6)
