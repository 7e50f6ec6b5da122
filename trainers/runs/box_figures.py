"""Pictures of boxes: examples with right, wrong and missed ones, boxes drawn into a picture, curves. No torch, no Ray.

A table of objects is (M, 8), as data/targets/box_table.py has it; detections are (K, 6): left, top, right, bottom in
pixels of the picture, score, class; a row of class -1 is padding in either. Pillow and matplotlib are imported where
used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers import match_tables
from trainers.arrays import Floats, Ints
from trainers.box_table import CLASS, CROWD, KIND, are_objects, are_plain
from trainers.confusion import DENSE_CLASSES, DRAWN_CLASSES, Drawn
from trainers.formatting import abbreviations
from trainers.runs import lettering
from trainers.runs.example_sheet import Example, Meanings, draw_examples, show
from trainers.runs.palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text
    from PIL import ImageDraw

Pixels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Row = Mapping[str, Any]
"""One example: name (str), image (picture), target (table) and labels (detections); where known, score (its F1, or
None) and kind ("best", "worst" or ""); truth_image and found_image, where what is drawn on is not the bare picture."""

SIDE = 4.4  # the longer side of a picture, in inches
OVERLAP = 0.5
"""Least intersection over union of a right detection and its object."""
_COLUMNS = ("truth", "predictions")
_TEXT = 7.5  # points
_NAME = 16  # characters of a class's name on a picture
_MANY = 12  # boxes of a picture, from which on what is written of them may be left out where it finds no room
_SCORE, _LABEL = 4, 5  # columns of detections


class _Style(NamedTuple):
    """How a kind of box is drawn: told apart without its colour too."""

    colour: str
    rim: str
    line: Any
    width: float
    means: str


_TRUE = _Style("#FFFFFF", "#000000", "-", 1.6, "object")
_RIGHT = _Style("#009E73", "#FFFFFF", "-", 2.2, f"right: overlaps an object of its class by {OVERLAP:g} (IoU) or more")
_WRONG = _Style("#D55E00", "#FFFFFF", (0, (3.5, 1.6)), 2.0, "wrong: no such object, or found before")
_MISSED = _Style("#F0E442", "#000000", (0, (0.9, 1.3)), 2.4, "missed: an object that nothing found")
_IGNORED = _Style(
    "#BBBBBB", "#000000", (0, (5, 1.5, 1, 1.5)), 1.2, "not scored: a crowd or difficult, or found as such"
)


def shade(verdict: str) -> tuple[int, int, int]:
    """The colour of what is "right", "wrong", "missed" or "ignored"."""
    code = {"right": _RIGHT, "wrong": _WRONG, "missed": _MISSED, "ignored": _IGNORED}[verdict].colour
    red, green, blue = bytes.fromhex(code.removeprefix("#"))
    return red, green, blue


class Verdicts(NamedTuple):
    """What has become of the detections and the objects of a picture."""

    right: Bools
    """Of each detection."""
    ignored: Bools
    """Of each detection: of a score too low, or padding, or found where an object is not scored."""
    missed: Bools
    """Of each object."""


def judge(detections: Floats, table: Floats, confidence: float) -> Verdicts:
    """As AP matches at an IoU of 0.5: the detection of the highest score first takes the object of its class that it
    overlaps most; crowds and difficult objects are taken where no other is left, and are neither right nor wrong.

    Args:
        detections: (K, 6).
        table: (M, 8).
        confidence: The least score that counts.
    """
    right, ignored = np.zeros(len(detections), bool), np.ones(len(detections), bool)
    plain = are_plain(table)
    crowd = table[:, KIND] == CROWD
    found = np.zeros(len(table), bool)
    overlaps = _overlaps(detections[:, :4], table[:, :4], crowd)
    for number in np.argsort(-detections[:, _SCORE], kind="stable"):
        if detections[number, _LABEL] < 0 or detections[number, _SCORE] < confidence:
            continue
        fits = (table[:, CLASS] == detections[number, _LABEL]) & (overlaps[number] >= OVERLAP)
        free = np.flatnonzero(fits & plain & ~found)
        if len(free):
            best = len(free) - 1 - np.argmax(overlaps[number, free[::-1]])  # of equal ones the last, as COCO has it
            found[free[best]] = right[number] = True
        ignored[number] = not len(free) and bool((fits & ~plain).any())
    return Verdicts(right, ignored, plain & ~found)


def _overlaps(boxes: Floats, others: Floats, crowd: Bools) -> Floats:
    """Intersection over union (K, M); of crowds, over the area of the box."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), 2)
    own, its = (np.prod(np.clip(each[:, 2:] - each[:, :2], 0, None), 1) for each in (boxes, others))
    either = np.where(crowd, own[:, None], own[:, None] + its - both)
    shares: Floats = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    return shares


# Examples


def draw_predictions(rows: Sequence[Row], classes: Sequence[str], title: str, confidence: float) -> Figure:
    """Examples: the objects, and what is right, wrong and missed of them, side by side; below, what the lines mean.

    Args:
        rows: at least one.
        classes: the names of the classes.
        title: one line or more.
        confidence: the least score of the detections that are shown.
    """
    names = abbreviations(lettering.legible(classes), _NAME)
    examples, styles = [], [_TRUE, _RIGHT, _WRONG, _MISSED]
    for row in rows:
        image, verdicts = row["image"], judge(row["labels"], row["target"], confidence)
        views = [
            functools.partial(_draw_truth, image=row.get("truth_image", image), table=row["target"], names=names),
            functools.partial(_draw_found, row=row, verdicts=verdicts, names=names, confidence=confidence),
        ]
        examples.append(Example(row["name"], _verdict(row), row.get("kind") or "", image.shape[:2], views))
        if (are_objects(row["target"]) & ~are_plain(row["target"])).any():
            styles = [*styles[:4], _IGNORED]
    note = [f"predictions: those of a score of {confidence:.2f} or more, with their scores where there is room"]
    if any(each.verdict for each in examples):
        note.append("F1 of a picture: 2 right / (2 right + wrong + missed)")
    meanings = Meanings([_handle(style) for style in styles], [style.means for style in styles], "\n".join(note))
    return draw_examples(examples, _COLUMNS, title, meanings, SIDE)


def _verdict(row: Row) -> str:
    score = row.get("score")
    return "" if score is None or math.isnan(score) else f"F1 {100 * score:.1f} %"


def _draw_truth(axes: Axes, big: float, image: Pixels, table: Floats, names: Sequence[str]) -> None:
    show(axes, image)
    there = table[are_objects(table)]
    styles = [_IGNORED if kind else _TRUE for kind in there[:, KIND]]
    said = ["" if kind == 1 else _name(names, number) for kind, number in zip(there[:, KIND], there[:, 4], strict=True)]
    _draw_boxes(axes, there[:, :4], styles, said, big)


def _draw_found(axes: Axes, big: float, row: Row, verdicts: Verdicts, names: Sequence[str], confidence: float) -> None:
    show(axes, row.get("found_image", row["image"]))
    found, table = row["labels"], row["target"]
    shown = np.flatnonzero((found[:, _LABEL] >= 0) & (found[:, _SCORE] >= confidence))
    boxes = [*table[verdicts.missed, :4], *found[shown[::-1], :4]]  # the surest ones above
    styles, said = [_MISSED] * int(verdicts.missed.sum()), [""] * int(verdicts.missed.sum())
    for number in shown[::-1]:
        styles.append(_IGNORED if verdicts.ignored[number] else _RIGHT if verdicts.right[number] else _WRONG)
        said.append(f"{_name(names, found[number, _LABEL])} {found[number, _SCORE]:.2f}")
    _draw_boxes(axes, np.array(boxes).reshape(-1, 4), styles, said, big)


def _name(names: Sequence[str], number: float) -> str:
    return names[int(number)] if int(number) < len(names) else f"class {int(number)}"


def _handle(style: _Style) -> Line2D:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    line = Line2D([0, 1], [0, 0], color=style.colour, linestyle=style.line, linewidth=style.width)
    line.set_path_effects([withStroke(linewidth=style.width + 1.6, foreground=_dark(style.rim))])
    return line


def _dark(rim: str) -> str:
    """The colour around a line of the legend, where white would not be seen."""
    return "#DDDDDD" if rim == "#FFFFFF" else rim


def _draw_boxes(axes: Axes, boxes: Floats, styles: Sequence[_Style], said: Sequence[str], big: float) -> None:
    """Boxes, and above or below each what is said of it, where it lies on nothing that was written before."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    thin = 1.0 if len(boxes) <= _MANY else 0.65
    for (left, top, right, bottom), style in zip(boxes.tolist(), styles, strict=True):
        patch = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=style.colour)
        patch.set(linestyle=style.line, linewidth=thin * style.width, joinstyle="miter")
        patch.set_path_effects([withStroke(linewidth=thin * (style.width + 1.6), foreground=style.rim)])
        axes.add_patch(patch)
    taken: list[tuple[float, float, float, float]] = []
    for box, style, text in reversed([*zip(boxes.tolist(), styles, said, strict=True)]):  # the surest ones first
        if text:
            _write(axes, box, style, text, big * thin**0.5, taken, needed=len(boxes) <= _MANY)


def _write(
    axes: Axes,
    box: Sequence[float],
    style: _Style,
    text: str,
    big: float,
    taken: list[tuple[float, float, float, float]],
    needed: bool,
) -> None:
    """What is said of a box; unless it is `needed`, not where there is no room, or where it would hide more than the
    box holds."""
    left, top, right, bottom = box
    written = _text(axes, text, style, big)
    across, down = axes.get_xlim()[1], axes.get_ylim()[0]
    wide, high = _extent(written, unit=max(across, down) / SIDE)
    places = [(left, top - high), (left, bottom), (right - wide, top - high), (right - wide, bottom), (left, top)]
    places += [(left, bottom - high), (right - wide, bottom - high)]
    inside = [(min(max(x, 0), max(0, across - wide)), min(max(y, 0), max(0, down - high))) for x, y in places]

    def covered(place: tuple[float, float]) -> float:
        x, y = place
        return sum(
            max(0.0, min(x + wide, b[2]) - max(x, b[0])) * max(0.0, min(y + high, b[3]) - max(y, b[1])) for b in taken
        )

    best = min(inside, key=covered)
    hides = wide * high > (right - left) * (bottom - top) or covered(best) > 0.1 * wide * high
    if hides and not needed:
        written.remove()
        return
    written.set_position((best[0] + 0.5 * wide, best[1] + 0.5 * high))
    taken.append((best[0], best[1], best[0] + wide, best[1] + high))


def _text(axes: Axes, text: str, style: _Style, big: float) -> Text:
    said, families = lettering.written(text)
    light = style.colour in (_TRUE.colour, _MISSED.colour, _IGNORED.colour)
    patch: dict[str, Any] = {
        "boxstyle": "square,pad=0.12",
        "facecolor": style.colour,
        "edgecolor": "none",
        "alpha": 0.85,
    }
    how: dict[str, Any] = {
        "color": "black" if light else "white",
        "ha": "center",
        "va": "center",
        "fontsize": _TEXT * big,
    }
    return axes.text(0, 0, said, bbox=patch, parse_math=False, fontfamily=families, clip_on=True, **how)


def _extent(text: Text, unit: float) -> tuple[float, float]:
    """Width and height in pixels of a picture, of which an inch has `unit`."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    size = float(text.get_fontsize())
    font = FontProperties(family=text.get_fontfamily(), size=size)
    width, height, descent = RendererAgg(1, 1, 72).get_text_width_height_descent(text.get_text(), font, ismath=False)
    pad = 0.3 * size
    return (width + pad) / 72 * unit, (max(height + descent, size) + pad) / 72 * unit


# A picture with its boxes, at its own size


def overlay(picture: Pixels, detections: Floats, classes: Sequence[str], letters: int | None = None) -> Pixels:
    """The picture with the boxes of detections, each in its class's colour, with name and score.

    Args:
        picture: uint8 (height, width, 1 or 3).
        detections: (K, 6), in pixels of the picture.
        classes: the names of the classes.
        letters: their height in pixels; None: by the size of the picture.

    Returns:
        uint8 (height, width, 3).
    """
    from PIL import Image, ImageDraw

    names = abbreviations(lettering.legible(classes), _NAME)
    height, width = picture.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(picture, (height, width, 3))))
    canvas = ImageDraw.Draw(image)
    line = max(1, round(max(height, width) / 600))
    rim = (line + 1) // 2
    letters = letters or max(9, round(max(height, width) / 55))
    for left, top, right, bottom, score, number in detections[np.argsort(detections[:, _SCORE])].tolist():
        if number < 0:
            continue
        colour = COLOURS[int(number) % len(COLOURS)]
        box = (left, top, max(left, right - 1), max(top, bottom - 1))
        around = (box[0] - rim, box[1] - rim, box[2] + rim, box[3] + rim)
        canvas.rectangle(around, outline=(255, 255, 255), width=rim)
        canvas.rectangle(box, outline=colour, width=line)
        if len(detections) > _MANY and 6 * letters**2 > (right - left) * (bottom - top):
            continue  # what is written would hide more than the box holds; the colour tells the class
        _letter(canvas, box, f"{_name(names, number)} {score:.2f}", colour, (width, height), letters)
    return np.asarray(image)


def _letter(
    canvas: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    text: str,
    colour: tuple[int, int, int],
    size: tuple[int, int],
    letters: int,
) -> None:
    """Name and score above a box, or in it where there is no room above."""
    font = _font(text, letters)
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    wide, high = right - left + 4, bottom - top + 4
    if wide > size[0] or high > size[1]:
        return
    x = min(max(0, box[0]), size[0] - wide)
    y = box[1] - high if box[1] >= high else min(max(0, box[1]), size[1] - high)
    canvas.rectangle((x, y, x + wide, y + high), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    canvas.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)


@functools.cache
def _font_file(families: tuple[str, ...]) -> str:
    from matplotlib.font_manager import FontProperties, findfont

    return findfont(FontProperties(family=families[-1]))


def _font(text: str, size: int) -> Any:
    """The font that has the letters which matplotlib's own lacks, else that one."""
    from PIL import ImageFont

    return ImageFont.truetype(_font_file(tuple(lettering.written(text)[1])), size)


# Curves


_LISTED = 12
"""Classes that have a line and a name of their own; of more, the best and the worst have."""
_GREY, _BLACK = "#BBBBBB", "#222222"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))


def draw_curves(matches: Ints, truths: Ints, names: Sequence[str], title: str) -> Figure:
    """Precision over recall at an IoU of 0.5, and F1 over confidence: a line a class, and their mean; the confidence
    that is chosen is marked.

    Args:
        matches: tables of the pictures of a split, see `match_tables`.
        truths: (classes, areas), objects to be found, the first column of any area.
        names: of the classes; those that are missing are numbered.
        title: the first line.
    """
    from matplotlib.figure import Figure

    curves, best = match_tables.curves(matches, truths), match_tables.best_confidence(matches, truths[:, 0])
    ap50 = curves.precision.mean(axis=1)
    names = [*names, *map(str, range(len(names), len(ap50)))]
    there = [int(number) for number in np.argsort(-ap50, kind="stable") if truths[number, 0]]
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    figure.suptitle(title, fontsize=14, parse_math=False)
    left, right = figure.subplots(1, 2)
    entries = _lines_of_classes(there, ap50, lettering.legible(names))
    for axes, across, values in ((left, curves.recalls, curves.precision), (right, curves.confidences, curves.f1)):
        for number in there:
            colour, line, _ = entries.get(number, (_GREY, "-", ""))
            listed = number in entries
            axes.plot(across, values[number], color=colour, linestyle=line, linewidth=1.8 if listed else 0.7,
                      zorder=3 if listed else 2, clip_on=False)  # fmt: skip
        if len(there) > 1:
            mean = np.mean(values[there], axis=0)
            axes.plot(across, mean, color=_BLACK, linewidth=3, zorder=4, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=11)
    left.set_title("precision over recall, at an IoU of 0.5", loc="left", fontsize=12)
    left.set_xlabel("recall", fontsize=12)
    left.set_ylabel("precision", fontsize=12)
    right.set_title(f"F1 over confidence; chosen: {best:.2f}", loc="left", fontsize=12)
    right.set_xlabel("least score of a detection (confidence)", fontsize=12)
    right.set_ylabel("F1", fontsize=12)
    right.axvline(best, color=_BLACK, linestyle="--", linewidth=1.4, zorder=5)
    _add_legend(figure, entries, ap50[there])
    return figure


def _lines_of_classes(there: Sequence[int], ap50: Floats, names: Sequence[str]) -> dict[int, tuple[str, Any, str]]:
    """Colour, line and text of those that are listed, the best ones first."""
    listed = list(there)
    if len(there) > _LISTED:
        listed = [*there[: _LISTED // 2], *there[-_LISTED // 2 :]]
    found, short = {}, abbreviations(names, 20)
    for place, number in enumerate(listed):
        text = f"{short[number]}  {ap50[number]:.3f}"
        found[number] = (_COLOURS[place % len(_COLOURS)], _LINES[place // len(_COLOURS) % len(_LINES)], text)
    return found


def _add_legend(figure: Figure, entries: Mapping[int, tuple[str, Any, str]], known: Floats) -> None:
    from matplotlib.lines import Line2D

    count = len(known)
    handles = [Line2D([], [], color=colour, linestyle=line, linewidth=2) for colour, line, _ in entries.values()]
    texts = [text for _, _, text in entries.values()]
    if count > 1:
        handles.insert(0, Line2D([], [], color=_BLACK, linewidth=3))
        texts.insert(0, f"mean of {count} classes  {np.mean(known):.3f}")
    if count > len(entries):
        handles.append(Line2D([], [], color=_GREY, linewidth=0.8))
        texts.append(f"{count - len(entries)} classes in between")
    if not handles:
        return
    legend = figure.legend(handles, ["x"] * len(handles), loc="outside right upper", fontsize=10, frameon=False,
                           title="AP at an IoU of 0.5", title_fontsize=11, alignment="left")  # fmt: skip
    for text, said in zip(legend.get_texts(), texts, strict=True):
        text.set(text=said, parse_math=False)


# Which class was taken for which


def detected(counts: Mapping[str, Ints]) -> Drawn | None:
    """The confusion matrix at the confidence that is chosen, with background; of many classes, those with the most
    errors. None: no detections were counted."""
    if not {"matches", "truths"} <= counts.keys():
        return None
    matches, truths = counts["matches"], counts["truths"]
    confidence = match_tables.best_confidence(matches, truths[:, 0])
    matrix = match_tables.confusion(matches, truths, confidence)
    if len(truths) <= DENSE_CLASSES:
        return Drawn(matrix, None, confidence)
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    kept = np.argsort(-errors[:-1], kind="stable")[:DRAWN_CLASSES]
    number = np.full(len(matrix), DRAWN_CLASSES)
    number[kept], number[-1] = np.arange(DRAWN_CLASSES), DRAWN_CLASSES + 1
    merged = np.zeros((DRAWN_CLASSES + 2, DRAWN_CLASSES + 2), np.int64)
    np.add.at(merged, (number[:, None], number[None, :]), matrix)
    return Drawn(merged, kept.tolist(), confidence)


def chosen_confidence(counts: Mapping[str, Ints]) -> float:
    """That at which F1 is best; 0.5 where no detections were counted."""
    if not {"matches", "truths"} <= counts.keys():
        return 0.5
    return match_tables.best_confidence(counts["matches"], counts["truths"][:, 0])
