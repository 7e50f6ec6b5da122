"""Pictures of objects with masks: what `box_figures` draws, on pictures tinted by the masks. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainers.box_table import CLASS, are_objects, are_plain
from trainers.instances import Instances, masks
from trainers.outlines import Piece
from trainers.runs import box_figures
from trainers.runs.palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]
"""One example, as of `box_figures`, but target and labels are `Instances` of one picture: a table and layers, (L,
height, width), of the labels one for each detection."""
STRENGTH = 0.45
"""Share of the colour in a tinted pixel."""


def draw_predictions(rows: Sequence[box_figures.Row], classes: Sequence[str], title: str, confidence: float) -> Figure:
    """Examples: the objects, and what is right, wrong and missed of them, side by side, boxes and masks; arguments as
    of `box_figures.draw_predictions`."""
    boxed = []
    for row in rows:
        target, labels, image = row["target"], row["labels"], row["image"]
        views = {"truth_image": _tint_truth(image, target), "found_image": _tint_found(image, row, confidence)}
        boxed.append({**row, **views, "target": target.table, "labels": labels.table})
    return box_figures.draw_predictions(boxed, classes, title, confidence)


def _tint_truth(image: Pixels, target: Instances[Any]) -> Pixels:
    """Each object in the colour of its class; crowds and difficult ones in grey."""
    there, plain = are_objects(target.table), are_plain(target.table)
    shades = [
        COLOURS[int(number) % len(COLOURS)] if scored else box_figures.shade("ignored")
        for number, scored in zip(target.table[:, CLASS], plain, strict=True)
    ]
    drawn = masks(Instances(target.table[None], target.layers[None]))[0]
    return tint(image, ((mask, shade) for mask, shade, seen in zip(drawn, shades, there, strict=True) if seen))


def _tint_found(image: Pixels, row: box_figures.Row, confidence: float) -> Pixels:
    """What is missed, and above it what is found, the surest last, in the colours of their lines."""
    target, labels = row["target"], row["labels"]
    verdicts = box_figures.judge(labels.table, target.table, confidence)
    true = masks(Instances(target.table[None], target.layers[None]))[0]
    parts = [(mask, box_figures.shade("missed")) for mask in true[verdicts.missed]]
    shown = np.flatnonzero((labels.table[:, 5] >= 0) & (labels.table[:, 4] >= confidence))
    for number in shown[::-1]:
        verdict = "ignored" if verdicts.ignored[number] else "right" if verdicts.right[number] else "wrong"
        parts.append((labels.layers[number] > 0, box_figures.shade(verdict)))
    return tint(image, parts)


def overlay(picture: Pixels, pieces: Sequence[Piece], numbers: Sequence[int]) -> Pixels:
    """A picture tinted by masks, each in the colour of its class; those that come first lie above.

    Args:
        picture: uint8 (height, width, 1 or 3).
        pieces: Masks.
        numbers: Of their classes.
    """
    shades = [COLOURS[number % len(COLOURS)] for number in numbers]
    height, width = picture.shape[:2]
    whole = ((piece.whole(height, width), shade) for piece, shade in reversed([*zip(pieces, shades, strict=True)]))
    return tint(picture, whole)


def tint(picture: Pixels, parts: Iterable[tuple[Bools, Colour]]) -> Pixels:
    """The picture with masks in colours, one after the other, and rims in the very colour: uint8 (height, width, 3)."""
    result = np.broadcast_to(picture, (*picture.shape[:2], 3)).copy()
    for mask, shade in parts:
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        result[mask] = (1 - STRENGTH) * result[mask] + STRENGTH * np.array(shade)
        result[mask & ~inner] = shade
    return result
