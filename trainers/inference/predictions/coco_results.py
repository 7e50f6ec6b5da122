"""Detections as COCO's results, which FiftyOne, supervision and pycocotools read: one JSON list of boxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.run_facts import Json

Segments = Sequence[Json | None] | None
"""Run lengths of masks."""


class Found(NamedTuple):
    """What was found in a picture."""

    name: str
    """Of its file."""
    image_id: Any
    """As its data set has it; None: there is none."""
    boxes: npt.NDArray[np.float64]
    """(K, 6): left, top, right, bottom in pixels of the picture, score, class."""
    segments: Segments = None
    """Their masks as run lengths; None: there are none."""


def results(pictures: Sequence[Found], class_ids: Sequence[int] | None) -> bytes:
    """The file: of each box image_id, category_id, bbox (left, top, width, height), score, segmentation where there are
    masks, and the picture's file_name.

    Args:
        pictures: in order.
        class_ids: COCO's id of each class; None: they are counted from 1, as COCO's own are.
    """
    lines = []
    for identity, picture in zip(image_ids(pictures), pictures, strict=True):
        segments = [None] * len(picture.boxes) if picture.segments is None else picture.segments
        for (left, top, right, bottom, score, number), segment in zip(picture.boxes.tolist(), segments, strict=True):
            box = [round(side, 4) for side in (left, top, right - left, bottom - top)]
            category = class_ids[int(number)] if class_ids else int(number) + 1
            about = {"image_id": identity, "category_id": category, "bbox": box, "score": score}
            about |= {"segmentation": segment} if segment else {}
            lines.append(json.dumps({**about, "file_name": picture.name}, ensure_ascii=False))
    return ("[" + ",\n".join(lines) + "]\n").encode()


def image_ids(pictures: Sequence[Found]) -> list[Any]:
    """Those of the data set; where pictures have none, the numbers that their files are called, as COCO's are; where
    they are called otherwise, or two the same, 1, 2, ..."""
    given = [picture.image_id for picture in pictures]
    if all(each is not None for each in given):
        return [int(each) if str(each).isdigit() else each for each in given]
    stems = [PurePath(picture.name).stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(pictures) + 1))
