"""Average precision of detections against COCO's own evaluation, and what else is read off the tables of matches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers.detections import Case, draw, evaluate_by_coco

from trainers import box_table
from trainers.match_tables import Detections
from trainers.tasks.average_precision import (
    count_truths,
    mask_overlaps,
    match,
    precisions,
    recalls,
    scores,
)

Array = np.ndarray[Any, np.dtype[Any]]
LIMITS = [1, 10, 100, 300]


def match_case(case: Case) -> Array:
    """Picture by picture."""
    return np.stack([match_one(case, number) for number in range(len(case.truths))])


def match_one(case: Case, number: int) -> Array:
    detections, truths = case.detections[number], case.truths[number]
    if case.masks is None or case.true_masks is None:
        return match(detections, truths)
    crowds = box_table.kinds(truths) == box_table.CROWD
    overlaps = mask_overlaps(case.masks[number], case.true_masks[number], crowds)
    return match(detections, truths, overlaps, case.masks[number].sum((1, 2), dtype=np.float64))


def mean(values: Array) -> float:
    return float(values[values > -1].mean()) if (values > -1).any() else math.nan


def check(case: Case, classes: int) -> None:
    """All precisions and recalls, and the scores made of them."""
    theirs = evaluate_by_coco(case, classes, LIMITS).eval
    matches, truths = match_case(case), count_truths(case.truths, classes)
    found = Detections.of(matches)
    for number, most in enumerate(LIMITS):
        kept = found.take(found.first(most))
        precision, recall = theirs["precision"][..., number], theirs["recall"][..., number]
        ours = precisions(kept, truths).transpose(2, 3, 0, 1)
        np.testing.assert_allclose(np.where(np.isnan(ours), -1, ours), precision, rtol=0, atol=1e-12)
        ours = recalls(kept, truths).transpose(2, 0, 1)
        np.testing.assert_allclose(np.where(np.isnan(ours), -1, ours), recall, rtol=0, atol=1e-12)

        result = scores(matches, truths, max_detections=most)
        expected = {"ap": mean(precision[..., 0]), "ap50": mean(precision[0, ..., 0])}
        expected |= {"ap75": mean(precision[5, ..., 0]), "ap_small": mean(precision[..., 1])}
        expected |= {"ap_medium": mean(precision[..., 2]), "ap_large": mean(precision[..., 3])}
        expected |= {f"ar{limit}": mean(theirs["recall"][..., 0, at]) for at, limit in enumerate(LIMITS[: number + 1])}
        if most == 300:
            del expected["ar100"]  # beside those of 1 and 10 there is that of the limit
        assert {name: result[name] for name in expected} == pytest.approx(expected, rel=0, abs=1e-12, nan_ok=True)
        assert [name for name in result if name.startswith("ar")] == [n for n in expected if n.startswith("ar")]


def boxes_of(seed: int) -> tuple[Case, int]:
    rng = np.random.default_rng([seed, 1])
    classes = int(rng.integers(1, 5))
    most_objects, most_detections = (
        (330, 340) if seed % 40 == 0 else (int(rng.integers(1, 12)), int(rng.integers(1, 30)))
    )
    return draw(seed, int(rng.integers(1, 9)), classes, most_objects, most_detections), classes


def masks_of(seed: int) -> tuple[Case, int]:
    rng = np.random.default_rng([seed, 2])
    classes = int(rng.integers(1, 4))
    numbers = (int(rng.integers(1, 5)), classes, int(rng.integers(1, 9)), int(rng.integers(1, 20)))
    return draw(seed, *numbers, masks=True), classes


@pytest.mark.parametrize("seed", range(20))
def test_boxes_equal_cocos_own_evaluation(seed: int) -> None:
    check(*boxes_of(seed))
    check(*masks_of(seed))


@pytest.mark.slow
def test_200_cases_of_boxes_and_of_masks_equal_cocos_own_evaluation() -> None:
    for seed in range(20, 200):
        check(*boxes_of(seed))
        check(*masks_of(seed))
