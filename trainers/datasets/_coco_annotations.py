"""What an annotation of COCO says of its object: box, outline, flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from trainers import outlines
from trainers.datasets._objects import Corners, format_box
from trainers.datasets._outlines import Outline, pack

Json = dict[str, Any]
Hook = Callable[[Json], Json]
"""Of the JSON parser."""


def without_outlines(found: Json) -> Json:
    """Polygons of a large set would fill the memory; they are needed where there is no box."""
    if "segmentation" in found and found.get("bbox"):
        found["segmentation"] = None
    return found


def with_outlines(found: Json) -> Json:
    """Polygons as a text, `Outline`, which takes less memory; of annotations without a box beside what they are."""
    if "segmentation" in found:
        found["outline"] = pack(found["segmentation"])
        if found.get("bbox"):
            found["segmentation"] = None
    return found


def outline_of(annotation: Json) -> Outline:
    """Of an annotation that `with_outlines` has seen."""
    found: Outline = annotation.get("outline") or pack(None)
    return found


def flag(annotation: Json, name: str) -> bool:
    return str(annotation.get(name)).lower() in ("1", "true", "1.0")


def corners_of(annotation: Json) -> Corners | str:
    """Left, top, right, bottom; or what is wrong."""
    box = annotation.get("bbox")
    if not box:
        polygons = annotation.get("segmentation")
        if isinstance(polygons, dict) and not pack(polygons).problem:
            return _around(outlines.decode(polygons))
        flat = isinstance(polygons, list) and all(isinstance(each, list) and len(each) >= 6 for each in polygons)
        if not polygons or not flat:
            return "it has neither a bbox nor an outline; add bbox: [left, top, width, height]"
        across = [float(x) for polygon in polygons for x in polygon[0::2]]
        down = [float(y) for polygon in polygons for y in polygon[1::2]]
        return min(across), min(down), max(across), max(down)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
        return f"its bbox is {json.dumps(box)[:80]}; it must be four numbers, [left, top, width, height]"
    left, top, width, height = map(float, box)
    if width < 0 or height < 0:
        return f"its bbox {format_box(box)} has a negative width or height; it must be [left, top, width, height]"
    return left, top, left + width, top + height


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _around(mask: outlines.Mask) -> Corners:
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(across[0]), float(down[0]), float(across[-1] + 1), float(down[-1] + 1)
