"""Which detections are right: a table with a row for each detection, and all that is read off such tables.

A picture's detections are matched with its objects where both are at hand (`tasks/average_precision.py`); from then on
these integers are all that is known of it. They are exact in any order and on any number of workers, and so is what is
made of them: average precisions, F1 at every confidence, the confusion matrix, a rank of each picture.

Matching goes from the surest detection down, so what the first k of them match does not depend on the others: one table
tells of every confidence and of every limit of detections.

The columns, int32; a row that holds no detection has class 0:

    CLASS                      number of the predicted class + 1
    SCORE                      the bits of the score, float32
    ALL, SMALL, MEDIUM, LARGE  of objects of that area (AREAS): bit t: right at an IoU of IOUS[t]; bit 10 + t: counted
                               there, as right or as wrong. What is not counted found a crowd, a difficult object or one
                               of another area, or nothing, but has another area itself
    MISTAKEN                   of a detection that is wrong at an IoU of 0.5, where an object of another class lies: its
                               class + 1; and << 16: the row + 1 of the less sure detection that finds this object, from
                               whose score down it is no longer mistaken. 0: there is none
    OBJECTS                    how many objects the picture has that are to be found; in every row, also those without
                               a detection
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.arrays import Floats, Ints
from trainers.ratios import divide

Bools = npt.NDArray[np.bool_]

CLASS, SCORE, ALL, SMALL, MEDIUM, LARGE, MISTAKEN, OBJECTS = range(8)
COLUMNS = 8

IOUS = np.linspace(0.5, 0.95, 10)
"""At which detections are right, COCO's."""
AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""All, small, medium and large, both ends included, in pixels of the original picture: COCO's."""
RECALLS = np.linspace(0, 1, 101)
"""At which precision is averaged, COCO's."""


class Detections(NamedTuple):
    """The D detections of a split, the surest first; equal scores in the order of pictures and rows."""

    pictures: Ints
    """(D,)."""
    rows: Ints
    """(D,): in the tables of their pictures."""
    classes: Ints
    """(D,)."""
    scores: Floats
    """float32 (D,)."""
    bits: Ints
    """(D, 4), the columns of areas."""
    mistaken: Ints
    """(D,), the column of that name."""

    @classmethod
    def of(cls, matches: Ints) -> Detections:
        """From tables (N, K, COLUMNS)."""
        pictures, rows = np.nonzero(matches[..., CLASS])
        found = matches[pictures, rows]
        scores = np.ascontiguousarray(found[:, SCORE], np.int32).view(np.float32)
        order = np.argsort(-scores, kind="stable")
        found = found[order]
        bits = found[:, ALL : LARGE + 1]
        return cls(pictures[order], rows[order], found[:, CLASS] - 1, scores[order], bits, found[:, MISTAKEN])

    def take(self, which: Bools | Ints) -> Detections:
        """Some of them."""
        return Detections(
            self.pictures[which],
            self.rows[which],
            self.classes[which],
            self.scores[which],
            self.bits[which],
            self.mistaken[which],
        )

    def places(self) -> Ints:
        """How many of their class in their picture are surer, (D,)."""
        order = np.lexsort((self.classes, self.pictures))  # stable: of equal keys the surest stays first
        picture, name = self.pictures[order], self.classes[order]
        starts = np.append(True, (picture[1:] != picture[:-1]) | (name[1:] != name[:-1]))[: len(order)]
        count = np.arange(len(order))
        places = np.empty(len(order), np.int64)
        places[order] = count - np.maximum.accumulate(np.where(starts, count, 0))
        return places

    def right(self) -> Bools:
        """(D, areas, IoUs)."""
        return (self.bits[:, :, None] >> np.arange(len(IOUS)) & 1).astype(bool)

    def counted(self) -> Bools:
        """(D, areas, IoUs)."""
        return (self.bits[:, :, None] >> np.arange(len(IOUS), 2 * len(IOUS)) & 1).astype(bool)

    def outcomes(self) -> tuple[Bools, Bools]:
        """Which are right, and which are wrong, at an IoU of 0.5, whatever the area, (D,) each."""
        right = (self.bits[:, 0] & 1).astype(bool)
        return right, (self.bits[:, 0] >> len(IOUS) & 1).astype(bool) & ~right


def precision_at_recalls(right: Bools, counted: Bools, truths: Ints) -> Floats:
    """Precision where each of RECALLS is reached, or beyond it where that is larger; 0 where it is not reached.

    Args:
        right: (lanes, D), the surest detection first.
        counted: The same, right or wrong.
        truths: (lanes,), how many objects are to be found, 1 or more.

    Returns:
        float64 (lanes, RECALLS).
    """
    lanes, most = right.shape
    if not most:
        return np.zeros((lanes, len(RECALLS)))
    hits = np.cumsum(right, axis=1)
    precision = hits / (np.cumsum(counted, axis=1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # One search for all lanes: hits grow along a lane, and what is added grows from lane to lane
    base = np.arange(lanes)[:, None] * (int(truths.max()) + 2)
    wanted = np.stack([np.searchsorted(np.arange(count + 1) / count, RECALLS) for count in truths])
    first = np.searchsorted((hits + base).ravel(), (wanted + base).ravel()).reshape(lanes, -1)
    first -= np.arange(lanes)[:, None] * most
    return np.where(first < most, np.take_along_axis(precision, np.minimum(first, most - 1), axis=1), 0.0)


class AtConfidence(NamedTuple):
    """Of each class, float64 (classes,), at an IoU of 0.5; 0 where there is nothing to divide by."""

    precision: Floats
    recall: Floats
    f1: Floats


def at_confidence(matches: Ints, truths: Ints, confidence: float) -> AtConfidence:
    """Of the detections that are at least so sure.

    Args:
        matches: (N, K, COLUMNS).
        truths: (classes,), how many objects are to be found of each.
        confidence: A score.
    """
    found = Detections.of(matches)
    found = found.take(found.scores >= confidence)
    right, wrong = (np.bincount(found.classes[which], minlength=len(truths)) for which in found.outcomes())
    return AtConfidence(divide(right, right + wrong), divide(right, truths), divide(2 * right, right + wrong + truths))


def best_confidence(matches: Ints, truths: Ints) -> float:
    """The score at which the mean F1 of the classes that occur is best; of several the largest; 0 without detections.

    Args:
        matches: (N, K, COLUMNS).
        truths: (classes,), how many objects are to be found of each.
    """
    found = Detections.of(matches)
    found = found.take(np.logical_or(*found.outcomes()) & (truths[found.classes] > 0))
    if not len(found.scores):
        return 0.0
    gains = np.zeros(len(found.scores))
    right, _ = found.outcomes()
    for name in np.unique(found.classes):
        own = np.flatnonzero(found.classes == name)
        f1 = 2 * np.cumsum(right[own]) / (np.arange(1, len(own) + 1) + truths[name])
        gains[own] = np.diff(f1, prepend=0)
    last = np.append(found.scores[1:] != found.scores[:-1], True)  # equal scores pass a confidence together
    total = np.where(last, np.cumsum(gains).round(12), -1)
    return float(found.scores[np.argmax(total)])


class Curves(NamedTuple):
    """What figures show of each class at an IoU of 0.5; NaN for classes that do not occur."""

    recalls: Floats
    """(R,)."""
    precision: Floats
    """(classes, R), where that recall is reached, or beyond it where that is larger; its mean is the class's AP50."""
    confidences: Floats
    """(C,), from 0 to 1."""
    f1: Floats
    """(classes, C), of the detections that are at least so sure."""


def curves(matches: Ints, truths: Ints, confidences: Floats | None = None) -> Curves:
    """Precision over recall and F1 over confidence.

    Args:
        matches: (N, K, COLUMNS).
        truths: (classes,), how many objects are to be found of each; or (classes, 4), of each area.
        confidences: None: 0, 0.002, ... 1.
    """
    truths = truths[:, 0] if truths.ndim == 2 else truths
    confidences = np.linspace(0, 1, 501) if confidences is None else confidences
    found = Detections.of(matches)
    precision = np.full((len(truths), len(RECALLS)), np.nan)
    f1 = np.full((len(truths), len(confidences)), np.nan)
    for name in np.flatnonzero(truths):
        own = found.take(found.classes == name)
        right, wrong = own.outcomes()
        precision[name] = precision_at_recalls(right[None], (right | wrong)[None], truths[None, name])
        above = len(own.scores) - np.searchsorted(own.scores[::-1], confidences)
        hits, all_counted = (np.append(0, np.cumsum(which))[above] for which in (right, right | wrong))
        f1[name] = divide(2 * hits, all_counted + truths[name])
    return Curves(RECALLS, precision, confidences, f1)


def confusion(matches: Ints, truths: Ints, confidence: float) -> Ints:
    """Which class was taken for which, of the detections that are at least so sure, at an IoU of 0.5.

    The diagonal holds what is right there, as precision, recall and F1 count it. A detection that is wrong belongs to
    the object of another class that it overlaps most, if nothing surer has found or mistaken that; otherwise to the
    background, as do objects that nothing finds. Detections of crowds and difficult objects are in no cell.

    Args:
        matches: (N, K, COLUMNS).
        truths: (classes,), how many objects are to be found of each; or (classes, 4), of each area.
        confidence: A score.

    Returns:
        int64 (classes + 1, classes + 1), rows are true classes, the last is the background. A row sums to the objects
        of its class, a column to its detections.
    """
    truths = truths[:, 0] if truths.ndim == 2 else truths
    classes = len(truths)
    found = Detections.of(matches)
    found = found.take(found.scores >= confidence)
    right, wrong = found.outcomes()
    finder = found.mistaken >> 16
    scores = np.ascontiguousarray(matches[..., SCORE], np.int32).view(np.float32)
    mistaken = wrong & (found.mistaken > 0)
    mistaken &= (finder == 0) | (scores[found.pictures, finder - 1] < confidence)
    true = np.where(right, found.classes, np.where(mistaken, (found.mistaken & 0xFFFF) - 1, classes))
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (true[right | wrong], found.classes[right | wrong]), 1)
    matrix[:classes, classes] = truths - matrix[:classes].sum(axis=1)
    return matrix


def ranking(matches: Ints, confidence: float) -> Floats:
    """F1 of each picture at an IoU of 0.5, of the detections that are at least so sure.

    Args:
        matches: (N, K, COLUMNS).
        confidence: A score.

    Returns:
        float64 (N,); NaN of pictures without objects in which nothing was detected.
    """
    found = Detections.of(matches)
    found = found.take(found.scores >= confidence)
    right, wrong = (np.bincount(found.pictures[which], minlength=len(matches)) for which in found.outcomes())
    return divide(2 * right, right + wrong + matches[:, 0, OBJECTS], otherwise=np.nan)
