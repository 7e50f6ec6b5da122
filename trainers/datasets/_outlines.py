"""Outlines of objects, as listings keep them, a text for each, and as pictures are read with them.

A text is JSON: polygons, [[x, y, x, y, ...], ...], or COCO's run lengths, {"size": [height, width], "counts": ...}. The
numbers of a large set would fill the memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers import outlines

FORM = "polygons, [[x, y, x, y, x, y, ...], ...], or run lengths, {size: [height, width], counts: ...}"


class Outline(NamedTuple):
    """An object's, before it is checked against its box."""

    text: str
    problem: str = ""
    """What is wrong, and what to do."""
    bounds: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom of polygons."""
    size: tuple[int, int] | None = None
    """Width and height of the picture that run lengths are of."""
    area: float | None = None
    thin: bool = False
    """Whether polygons of fewer than three points were left out, besides others."""


def pack(segmentation: object) -> Outline:
    """The segmentation of an annotation of COCO."""
    if not segmentation:
        return Outline("", "it has no segmentation, and masks=true needs one for each; add it, or leave masks out")
    if isinstance(segmentation, dict):
        return _pack_runs(segmentation)
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        return Outline("", f"its segmentation is {json.dumps(segmentation)[:60]}; it must be {FORM}")
    numbers = [number for part in segmentation for number in part]
    wrong = next((number for number in numbers if not _is_number(number)), None)
    odd = next((part for part in segmentation if len(part) % 2), None)
    if wrong is not None or odd is not None:
        what = f"{len(odd or [])} numbers, of x and y" if wrong is None else f"{wrong!r:.20}, which is no number"
        return Outline("", f"a polygon of its segmentation has {what}; correct it")
    full = [part for part in segmentation if len(part) >= 6]
    if not full:
        return Outline("", "its polygons have fewer than three points; draw them again, or remove the annotation")
    across, down = [x for part in full for x in part[0::2]], [y for part in full for y in part[1::2]]
    bounds = (min(across), min(down), max(across), max(down))
    return Outline(_text(full), bounds=bounds, thin=len(full) < len(segmentation), area=area_of(full))


def area_of(polygons: Sequence[Sequence[float]]) -> float:
    """Of x, y, x, y, ... each, added up, by the shoelace formula."""
    total = 0.0
    for polygon in polygons:
        x, y = np.reshape(polygon, (-1, 2)).T
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(plain: object) -> str:
    return json.dumps(plain, separators=(",", ":"))


def _pack_runs(found: dict[str, Any]) -> Outline:
    try:
        height, width = map(int, found["size"])
        counts = found["counts"]
        runs = outlines.uncompress(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
        if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(f"they do not fill {height} x {width} pixels")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        return Outline("", f"the run lengths of its segmentation are none: {what}; correct them")
    if not runs[1::2].sum():
        return Outline("", "its segmentation has no pixel; draw it again, or remove the annotation")
    text = _text({"size": [height, width], "counts": counts})
    return Outline(text, size=(width, height), area=float(runs[1::2].sum()))


def read_outlines(
    texts: Sequence[str], size: tuple[int, int], orientation: int, image: tuple[int, int]
) -> list[npt.NDArray[np.uint8] | list[list[float]]]:
    """The outlines of a picture, as `Objects` has them.

    Args:
        texts: One for each object.
        size: Width and height of the picture that polygons are drawn on; (1, 1): they are shares.
        orientation: EXIF's, by which they are turned; 1: they are upright.
        image: Height and width that the picture is read with.
    """
    return [_read(json.loads(text), size, orientation, image) for text in texts]


def _read(
    plain: Any, size: tuple[int, int], orientation: int, image: tuple[int, int]
) -> npt.NDArray[np.uint8] | list[list[float]]:
    if isinstance(plain, dict):
        return _shrink(_turn(outlines.decode(plain), orientation), image)
    parts = []
    for polygon in plain:
        points = np.clip(np.reshape(polygon, (-1, 2)) / size, 0, 1)
        parts.append(_turn_points(points, orientation).ravel().tolist())
    return parts


def _shrink(mask: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    from PIL import Image

    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def _turn(mask: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Pixels of the stored picture as those of the one that EXIF's orientation makes upright."""
    mask = mask.T if orientation >= 5 else mask
    mask = mask[::-1] if orientation in (3, 4, 7, 8) else mask
    return np.ascontiguousarray(mask[:, ::-1] if orientation in (2, 3, 6, 7) else mask)


def _turn_points(points: npt.NDArray[np.float64], orientation: int) -> npt.NDArray[np.float64]:
    """Likewise, of x and y as shares, (n, 2)."""
    x, y = points[:, ::-1].T if orientation >= 5 else points.T
    y = 1 - y if orientation in (3, 4, 7, 8) else y
    x = 1 - x if orientation in (2, 3, 6, 7) else x
    return np.stack([x, y], axis=1)
