"""Drawn detections and objects, and what COCO's own evaluation makes of them."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trainers import box_table

Array = np.ndarray[Any, np.dtype[Any]]


class Case(NamedTuple):
    """Pictures with objects and detections."""

    detections: Array
    """(N, K, 6), class -1 in rows without any; equal scores among them."""
    truths: Array
    """(N, M, 8)."""
    masks: Array | None
    """(N, K, H, W)."""
    true_masks: Array | None
    """(N, M, H, W)."""


def draw(
    seed: int, pictures: int, classes: int, most_objects: int, most_detections: int, *, masks: bool = False
) -> Case:
    """Corners are quarters of a pixel, so that all sums and products of both sides are exact."""
    rng = np.random.default_rng(seed)
    side = 60 if masks else 160
    truths = np.zeros((pictures, most_objects, box_table.COLUMNS))
    detections = np.zeros((pictures, most_detections, 6))
    truths[..., box_table.CLASS], detections[..., 5] = -1, -1
    truths[..., box_table.SCALE] = rng.choice([1, 0.25, 4], pictures)[:, None]
    for truth, found in zip(truths, detections, strict=True):
        count = int(rng.choice([0, rng.integers(most_objects + 1)], p=[0.15, 0.85]))
        corner = rng.integers(0, 3 * side, (count, 2)) / 4
        truth[:count, :2], truth[:count, 2:4] = corner, corner + rng.integers(4, 3 * side, (count, 2)) / 4
        truth[:count, box_table.CLASS] = rng.integers(classes, size=count)
        truth[:count, box_table.KIND] = rng.choice([box_table.PLAIN, box_table.CROWD], count, p=[0.85, 0.15])
        truth[:count, box_table.AREA] = rng.choice([100, 1024, 2000.5, 9216, 30000], count)
        if rng.random() < 0.15:
            continue
        of = rng.integers(max(count, 1), size=int(rng.integers(most_detections + 1)))
        count = len(of)
        found[:count, :4] = truth[of, :4] + rng.integers(-12, 13, (count, 4)) / rng.choice([1, 2, 4], (count, 1))
        found[:count, 2:4] = np.maximum(found[:count, 2:4], found[:count, :2] + 0.25)
        found[:count, 4] = rng.integers(1, rng.choice([4, 1000]), count) / 1024
        found[:count, 5] = np.where(
            rng.random(count) < 0.8, truth[of, box_table.CLASS], rng.integers(classes, size=count)
        )
        found[:count, 5] = np.maximum(found[:count, 5], 0)
    if not masks:
        return Case(detections, truths, None, None)
    return Case(detections, truths, _pixels(rng, detections[..., :4], side), _pixels(rng, truths[..., :4], side))


def _pixels(rng: np.random.Generator, corners: Array, side: int) -> Array:
    """Boxes with bites taken out of them."""
    grid = np.arange(side)
    columns = (corners[..., 0, None] <= grid) & (grid < corners[..., 2, None])
    rows = (corners[..., 1, None] <= grid) & (grid < corners[..., 3, None])
    bites = rng.random((*corners.shape[:2], side, side)) < 0.9
    return (columns[..., None, :] & rows[..., :, None] & bites).astype(np.uint8)


def evaluate_by_coco(case: Case, classes: int, most: list[int]) -> COCOeval:
    """pycocotools' evaluation, accumulated: `eval` has precision (IoUs, recalls, classes, areas, limits) and recall."""
    with contextlib.redirect_stdout(io.StringIO()):
        kind = "bbox" if case.masks is None else "segm"
        evaluation = COCOeval(*to_coco(case, classes), kind)
        evaluation.params.maxDets = most
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def to_coco(case: Case, classes: int) -> tuple[COCO, COCO]:
    """Objects and detections as pycocotools wants them."""
    truths, found = [], []
    for picture in range(len(case.truths)):
        for row, truth in enumerate(case.truths[picture]):
            if truth[box_table.CLASS] >= 0:
                entry = _entry(picture, truth, case.true_masks, row, len(truths) + 1)
                entry |= {"category_id": int(truth[box_table.CLASS]), "area": float(truth[box_table.AREA])}
                truths.append(entry | {"iscrowd": int(truth[box_table.KIND])})
        scale = float(case.truths[picture, 0, box_table.SCALE])
        for row, one in enumerate(case.detections[picture]):
            if one[5] >= 0:
                entry = _entry(picture, one, case.masks, row, len(found) + 1)
                size = (one[2] - one[0]) * (one[3] - one[1]) if case.masks is None else case.masks[picture, row].sum()
                entry |= {"category_id": int(one[5]), "score": float(one[4]), "area": float(size) * scale}
                found.append(entry | {"iscrowd": 0})
    sides = case.truths.shape[0] * [(1000, 1000)]
    images = [{"id": number, "height": height, "width": width} for number, (height, width) in enumerate(sides)]
    names = [{"id": number, "name": str(number)} for number in range(classes)]
    both = []
    for entries in (truths, found):
        coco = COCO()
        coco.dataset = {"images": images, "categories": names, "annotations": entries}
        coco.createIndex()
        both.append(coco)
    return both[0], both[1]


def _entry(picture: int, row: Array, masks: Array | None, number: int, identity: int) -> dict[str, Any]:
    left, top, right, bottom = (float(side) for side in row[:4])
    entry: dict[str, Any] = {"id": identity, "image_id": picture, "bbox": [left, top, right - left, bottom - top]}
    if masks is not None:
        entry["segmentation"] = coco_masks.encode(np.asfortranarray(masks[picture, number]))
    return entry
