"""Average precision and recall of detections, equal to COCO's: boxes and instance masks, in NumPy.

Matching is a matter of one picture and done where it lies (`match`); the scores of a split are made of the tables of
its pictures (`scores`). `trainers/match_tables.py` has the columns, and all else that is read off them.

The rule is that of COCO's evaluation (Lin et al. 2014; cocodataset.org/#detection-eval), and its results. Detections of
a class are matched from the surest down, each with the object of its class that it overlaps most of those that are left
(of equal ones the last); objects that do not count, being crowds, difficult or of another area, only where there is no
other. Crowds and difficult objects are matched by any number of detections; a crowd's overlap is the share of the
detection that lies in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from trainers import box_table
from trainers.arrays import Floats, Ints
from trainers.match_tables import (
    ALL,
    AREAS,
    CLASS,
    IOUS,
    LARGE,
    MISTAKEN,
    OBJECTS,
    RECALLS,
    SCORE,
    Bools,
    Detections,
    at_confidence,
    best_confidence,
    precision_at_recalls,
)
from trainers.match_tables import COLUMNS as COLUMNS
from trainers.match_tables import confusion as confusion
from trainers.match_tables import curves as curves
from trainers.match_tables import ranking as ranking
from trainers.ratios import divide

# While matching, a set of the 40 pairs of area a and IoU t is an integer, whose bit 10 a + t stands for one of them.
_ONE_AREA = (1 << len(IOUS)) - 1
_EACH_AREA = sum(1 << len(IOUS) * area for area in range(len(AREAS)))
_EVERY = _ONE_AREA * _EACH_AREA
_REACHED = np.array([((1 << count) - 1) * _EACH_AREA for count in range(len(IOUS) + 1)])


def match(detections: Floats, truths: Floats, overlaps: Floats | None = None, areas: Floats | None = None) -> Ints:
    """Which detections are right, of one picture or of several. Each picture's result is its own alone.

    Args:
        detections: (K, 6) or (N, K, 6), in any order: left, top, right, bottom in pixels of the picture, score, class;
            class -1 in rows without a detection. Scores are compared in float32, equal ones by their order.
        truths: (M, 8) or (N, M, 8) with at least one row, tables as `trainers/box_table.py` describes them, in the
            same pixels.
        overlaps: (K, M) or (N, K, M), such as `mask_overlaps` returns; None: those of the boxes.
        areas: (K,) or (N, K), of the detections in pixels of the picture, such as those of their masks; None: those of
            their boxes.

    Returns:
        int32 (K, COLUMNS) or (N, K, COLUMNS), rows as in `detections`: see `trainers/match_tables.py`.
    """
    if detections.ndim == 2:
        one = (None if each is None else each[None] for each in (overlaps, areas))
        alone: Ints = match(detections[None], truths[None], *one)[0]
        return alone
    shape = detections.shape[:2]
    classes = detections[..., 5].astype(np.int64)
    scores = np.ascontiguousarray(detections[..., 4], np.float32)
    plain = box_table.are_plain(truths)
    if overlaps is None:
        overlaps = box_overlaps(detections[..., :4], truths)
    if areas is None:
        width, height = (detections[..., side + 2].astype(np.float64) - detections[..., side] for side in (0, 1))
        areas = width * height
    places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    objects = _Objects(
        classes=truths[..., box_table.CLASS].astype(np.int64).ravel().tolist(),
        counts=np.where(plain, _in_areas(truths[..., box_table.AREA]), 0).ravel().tolist(),
        many=(truths[..., box_table.KIND] != box_table.PLAIN).ravel().tolist(),
    )
    near = overlaps >= IOUS[0]
    near &= (classes >= 0)[:, :, None] & box_table.are_objects(truths)[:, None, :]
    own, other = _pairs(near, overlaps, places, classes[:, :, None] == truths[:, None, :, box_table.CLASS])
    places, names = places.ravel(), classes.ravel()
    right, matched, finders = _match_own(own, objects, names.size)
    mistaken = _match_other(other, objects, matched, finders, places.tolist(), shape[1])

    inside = _in_areas(areas * truths[:, :1, box_table.SCALE]).ravel()
    counted = right | (inside & ~matched)
    shifts = len(IOUS) * np.arange(len(AREAS))
    table = np.zeros((names.size, COLUMNS), np.int32)
    table[:, CLASS], table[:, SCORE], table[:, MISTAKEN] = names + 1, scores.ravel().view(np.int32), mistaken
    table[:, ALL : LARGE + 1] = right[:, None] >> shifts & _ONE_AREA
    table[:, ALL : LARGE + 1] |= (counted[:, None] >> shifts & _ONE_AREA) << len(IOUS)
    table[names < 0] = 0
    table = table.reshape(*shape, COLUMNS)
    table[..., OBJECTS] = plain.sum(axis=1)[:, None]
    return table


class _Objects(NamedTuple):
    """Of each object."""

    classes: list[int]
    counts: list[int]
    """Pairs of area and IoU, those in which it is to be found."""
    many: list[bool]
    """Whether any number of detections may match it."""


Pair = tuple[int, int, int]
"""A detection, an object, and the pairs of area and IoU for which they overlap enough."""


def _in_areas(areas: Floats) -> Ints:
    """Pairs of area and IoU, all IoUs of those areas in which each number lies."""
    inside = np.zeros(areas.shape, np.int64)
    for number, (smallest, largest) in enumerate(AREAS):
        inside[(smallest <= areas) & (areas <= largest)] |= _ONE_AREA << len(IOUS) * number
    return inside


def _pairs(near: Bools, overlaps: Floats, places: Ints, same: Bools) -> tuple[list[Pair], list[Pair]]:
    """Pairs of one class and pairs of two: by picture, then by detection, the surest first, then by overlap, the
    largest first, of equal ones the last object."""
    picture, found, true = np.nonzero(near)
    overlap = overlaps[picture, found, true]
    order = np.lexsort((-true, -overlap, places[picture, found], picture))
    picture, found, true, overlap = picture[order], found[order], true[order], overlap[order]
    _, most_found, most_true = near.shape
    enough = _REACHED[np.searchsorted(IOUS, overlap, side="right")]
    columns = (picture * most_found + found, picture * most_true + true, enough)
    one_class = same[picture, found, true]
    of_one, of_two = (
        list(zip(*(column[which].tolist() for column in columns), strict=True)) for which in (one_class, ~one_class)
    )
    return of_one, of_two


def _match_own(pairs: Iterable[Pair], objects: _Objects, detections: int) -> tuple[Ints, Ints, dict[int, int]]:
    """Where each detection finds an object of its class that counts, and where it matches any of its class, (D,) each;
    and which detection finds an object, of any area, at an IoU of 0.5."""
    right, matched = np.zeros(detections, np.int64), np.zeros(detections, np.int64)
    left = [_EVERY] * len(objects.counts)
    finders: dict[int, int] = {}
    for detection, near in itertools.groupby(pairs, itemgetter(0)):
        near_ones = list(near)
        done = 0
        for _, true, enough in near_ones:
            won = enough & objects.counts[true] & left[true] & ~done
            left[true] &= ~won
            done |= won
            if won & 1:
                finders[true] = detection
        right[detection] = done
        for _, true, enough in near_ones:
            won = enough & ~objects.counts[true] & left[true] & ~done
            if not objects.many[true]:
                left[true] &= ~won
            done |= won
        matched[detection] = done
    return right, matched, finders


def _match_other(
    pairs: Iterable[Pair], objects: _Objects, matched: Ints, finders: dict[int, int], places: list[int], rows: int
) -> Ints:
    """The column MISTAKEN, (D,). An object is mistaken once, and never by a detection less sure than its finder."""
    mistaken = np.zeros(len(matched), np.int64)
    gone = set()
    for detection, true, _ in pairs:
        if true in gone or mistaken[detection] or matched[detection] & 1 or not objects.counts[true] & 1:
            continue
        finder = finders.get(true)
        if finder is not None and places[finder] < places[detection]:
            continue
        gone.add(true)
        mistaken[detection] = (objects.classes[true] + 1) | (0 if finder is None else finder % rows + 1) << 16
    return mistaken


def box_overlaps(corners: Floats, truths: Floats) -> Floats:
    """IoU of detections and objects; of crowds, the share of the detection that lies in it.

    Args:
        corners: (..., K, 4), left, top, right, bottom of detections.
        truths: (..., M, 8), tables of objects.

    Returns:
        float64 (..., K, M); 0 where they touch at most.
    """
    ours = corners.astype(np.float64)[..., :, None, :]
    theirs = box_table.corners(truths).astype(np.float64)[..., None, :, :]
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    both = np.where((sides > 0).all(axis=-1), sides[..., 0] * sides[..., 1], 0.0)
    our_area, their_area = ((box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (ours, theirs))
    return _share(both, our_area, their_area, box_table.kinds(truths) == box_table.CROWD)


def mask_overlaps(masks: Ints, true_masks: Ints, crowds: Bools) -> Floats:
    """IoU of detections and objects by their pixels; of crowds, the share of the detection that lies in it.

    Counted in words of 64 pixels: a matrix product of zeros and ones takes six times as long, and the memory of floats.

    Args:
        masks: (K, H, W), bool, or 0 and 1, of detections.
        true_masks: (M, H, W), of objects.
        crowds: (M,).

    Returns:
        float64 (K, M).
    """
    ours, theirs = _pack(masks), _pack(true_masks)
    both = np.stack([_count(ours & each) for each in theirs], axis=1)
    return _share(both, _count(ours)[:, None], _count(theirs)[None, :], crowds)


def _pack(masks: Ints | Bools) -> Ints:
    """The pixels of each mask as bits, uint64 (n, words)."""
    packed = np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]) != 0, axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def _count(words: Ints) -> Floats:
    """The ones among the bits of each row, float64 (n,)."""
    count: Floats = np.bitwise_count(words).sum(axis=1, dtype=np.float64)
    return count


def _share(both: Floats, ours: Floats, theirs: Floats, crowds: Bools) -> Floats:
    whole = np.where(crowds[..., None, :], ours, ours + theirs - both)
    share = np.zeros(both.shape)
    np.divide(both, whole, out=share, where=both > 0)
    return share


def count_truths(tables: Floats, classes: int) -> Ints:
    """How many objects are to be found.

    Args:
        tables: (..., M, 8), as `trainers/box_table.py` describes them.
        classes: their number.

    Returns:
        int64 (classes, 4), of each of AREAS.
    """
    plain = tables[box_table.are_plain(tables)]
    names, areas = plain[:, box_table.CLASS].astype(np.int64), plain[:, box_table.AREA]
    inside = [names[(smallest <= areas) & (areas <= largest)] for smallest, largest in AREAS]
    return np.stack([np.bincount(each, minlength=classes) for each in inside], axis=1)


def precisions(found: Detections, truths: Ints) -> Floats:
    """Precision at each recall, as `precision_at_recalls` has it.

    Args:
        found: Of all pictures; no more of a class in a picture than count.
        truths: (classes, 4).

    Returns:
        float64 (classes, areas, IoUs, recalls); NaN where a class has no object of an area.
    """
    result = np.full((len(truths), len(AREAS), len(IOUS), len(RECALLS)), np.nan)
    order = np.argsort(found.classes, kind="stable")
    bounds = np.searchsorted(found.classes[order], np.arange(len(truths) + 1))
    for name in np.flatnonzero(truths[:, 0]):
        own = found.take(order[bounds[name] : bounds[name + 1]])
        right, counted = (np.ascontiguousarray(each.transpose(1, 2, 0)) for each in (own.right(), own.counted()))
        for area in np.flatnonzero(truths[name]):
            count = np.full(len(IOUS), truths[name, area])
            result[name, area] = precision_at_recalls(right[area], counted[area], count)
    return result


def recalls(found: Detections, truths: Ints) -> Floats:
    """The share of the objects that is found by all of these detections, float64 (classes, areas, IoUs); otherwise as
    `precisions`."""
    right = np.zeros((len(truths), len(AREAS), len(IOUS)))
    which, area, threshold = np.nonzero(found.right())
    cells = np.ravel_multi_index((found.classes[which], area, threshold), right.shape)
    right += np.bincount(cells, minlength=right.size).reshape(right.shape)
    return divide(right, np.broadcast_to(truths[:, :, None], right.shape), otherwise=np.nan)


def scores(matches: Ints, truths: Ints, *, max_detections: int = 100) -> dict[str, Any]:
    """COCO's scores, and F1 at the confidence where it is best. Means over the classes that occur; NaN where none does.

    ap: mean of precision over RECALLS, IOUS and classes; ap50, ap75: at that IoU; ap_small, ap_medium, ap_large: of
        objects of that area
    ar1, ar10, ar100: recall by so many detections of a class in a picture, mean over IOUS and classes; the last is
        named after `max_detections`
    f1, precision, recall: means over classes at an IoU of 0.5, of detections with scores of `confidence` or more, where
        the mean F1 is best
    per_class: `ap`, `ap50`, `f1` (None where the class does not occur), `count` of objects

    Args:
        matches: (N, K, COLUMNS), of all pictures.
        truths: (classes, 4), of all pictures.
        max_detections: of a class in a picture, so many of the surest count for AP and the last AR.
    """
    found = Detections.of(matches)
    places = found.places()
    precision = precisions(found.take(places < max_detections), truths)
    occur = truths[:, 0] > 0
    confidence = best_confidence(matches, truths[:, 0])
    there = at_confidence(matches, truths[:, 0], confidence)
    result: dict[str, Any] = {
        "ap": _mean(precision[:, 0]),
        "ap50": _mean(precision[:, 0, 0]),
        "ap75": _mean(precision[:, 0, 5]),
        "ap_small": _mean(precision[:, 1]),
        "ap_medium": _mean(precision[:, 2]),
        "ap_large": _mean(precision[:, 3]),
    }
    for most in sorted({1, 10, max_detections}):
        if most <= max_detections:
            result[f"ar{most}"] = _mean(recalls(found.take(places < most), truths)[:, 0])
    for name in ("f1", "precision", "recall"):
        result[name] = _mean(np.where(occur, getattr(there, name), np.nan))
    result["confidence"] = confidence
    result["per_class"] = {
        "ap": _known(precision[:, 0].mean(axis=(1, 2)), occur),
        "ap50": _known(precision[:, 0, 0].mean(axis=1), occur),
        "f1": _known(there.f1, occur),
        "count": truths[:, 0].tolist(),
    }
    return result


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _known(values: Floats, occur: Bools) -> list[float | None]:
    return [value if known else None for value, known in zip(values.tolist(), occur.tolist(), strict=True)]
