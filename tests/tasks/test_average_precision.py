"""Average precision of detections against COCO's own evaluation, and what else is read off the tables of matches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.detections import Case, draw, evaluate_by_coco

from trainers import box_table
from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.source import scan_files
from trainers.match_tables import CLASS, COLUMNS, LARGE, OBJECTS, Detections, at_confidence
from trainers.recipe import resolve
from trainers.tasks.average_precision import (
    box_overlaps,
    confusion,
    count_truths,
    curves,
    mask_overlaps,
    match,
    precisions,
    ranking,
    recalls,
    scores,
)
from trainers.training import build
from trainers.training.distributed import World
from trainers.training.evaluate import evaluate_split
from trainers.training.step import Run

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
        kept = found.take(found.places() < most)
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


def mixed(seed: int = 3) -> tuple[Case, int]:
    """20 pictures of 4 classes, with difficult objects among the crowds, and objects taken for others."""
    case = draw(seed, 20, 4, 9, 25)
    mistaken = (np.random.default_rng(seed).random((20, 25)) < 0.3) & (case.detections[..., 5] >= 0)
    case.detections[mistaken, 5] = (case.detections[mistaken, 5] + 1) % 4
    crowds = np.argwhere(case.truths[..., box_table.KIND] == box_table.CROWD)
    case.truths[(*crowds[::2].T, box_table.KIND)] = box_table.DIFFICULT
    return case, 4


def test_a_batch_is_matched_as_its_pictures_are_and_padding_adds_nothing() -> None:
    case, _ = mixed()
    alone = match_case(case)
    padded = np.pad(case.detections, ((0, 0), (0, 7), (0, 0)), constant_values=-1)
    truths = np.concatenate([case.truths, case.truths[:, :1]], axis=1)
    truths[:, -1, box_table.CLASS] = -1
    together = match(padded, truths)
    np.testing.assert_array_equal(together[:, : alone.shape[1]], alone)
    np.testing.assert_array_equal(together[:, alone.shape[1] :, :OBJECTS], 0)
    assert alone.dtype == np.int32
    assert alone.shape == (20, 25, COLUMNS)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_scores_are_equal_bit_for_bit_however_pictures_are_split(workers: int, batch: int) -> None:
    case, classes = draw(5, 70, 3, 6, 12), 3
    expected = scores(match_case(case), count_truths(case.truths, classes))
    tables, truths = np.zeros((70, 12, COLUMNS), np.int32), np.zeros((classes, 4), np.int64)
    for worker in range(workers):
        own = np.zeros_like(tables)
        pictures = np.arange(worker, 70, workers)
        for part in np.split(pictures, range(batch, len(pictures), batch)):
            own[part] = match(case.detections[part], case.truths[part])
            truths += count_truths(case.truths[part], classes)
        tables += own
    assert scores(tables, truths) == expected


@pytest.mark.slow
def test_the_batch_of_the_evaluation_changes_no_bit_of_what_a_model_detects(tmp_path: Path) -> None:
    drawn = {"objects": "boxes", "train": 8, "val": 15, "test": 1, "height": 48, "width": 64}
    recipe = resolve("shapes.fcos", image_size=(48, 64), dataset_args=drawn, batch_size=8, precision="fp64")
    data = Cached(prepare(recipe, scan_files(recipe, None), tmp_path))
    world = World(0, 1, torch.device("cpu"), "fp64")
    state = build.create_state(recipe.replace(micro_batch_size=8), data.meta, world)
    found = []
    for batch in (1, 7, 64):
        one = recipe.replace(batch_size=batch, micro_batch_size=batch)
        run = Run(recipe=one, state=state, data=data, world=world, model=state.model)
        found.append(evaluate_split(run, "val").counts)
    assert (found[0]["matches"][..., CLASS] > 0).sum() > 100
    for counts in found[1:]:
        for name, table in counts.items():
            np.testing.assert_array_equal(table, found[0][name])


def test_the_order_of_detections_counts_only_where_scores_are_equal() -> None:
    case, classes = mixed()
    rng = np.random.default_rng(0)
    case.detections[..., 4] = rng.permuted(np.linspace(0.01, 0.99, case.detections[..., 4].size)).reshape(20, 25)
    truths = count_truths(case.truths, classes)
    matches = match(case.detections, case.truths)
    order = rng.permuted(np.tile(np.arange(25), (20, 1)), axis=1)
    shuffled = match(np.take_along_axis(case.detections, order[..., None], axis=1), case.truths)
    assert scores(shuffled, truths) == scores(matches, truths)
    for confidence in (0, 0.3, 0.6):
        np.testing.assert_array_equal(confusion(shuffled, truths, confidence), confusion(matches, truths, confidence))


def keep(case: Case, confidence: float) -> Case:
    """Without the detections that are less sure."""
    detections = case.detections.copy()
    detections[detections[..., 4] < confidence] = -1
    return case._replace(detections=detections)


@pytest.mark.parametrize("confidence", [0.002, 0.1, 0.3, 0.5, 2])
def test_a_table_tells_of_a_confidence_what_matching_these_detections_alone_does(confidence: float) -> None:
    case, classes = mixed()
    truths = count_truths(case.truths, classes)
    all_of_them, few = (match(each.detections, each.truths) for each in (case, keep(case, confidence)))
    kept = few[..., CLASS] > 0
    np.testing.assert_array_equal(all_of_them[kept][:, : LARGE + 1], few[kept][:, : LARGE + 1])
    np.testing.assert_array_equal(ranking(all_of_them, confidence), ranking(few, 0))
    alone = at_confidence(few, truths[:, 0], 0)
    np.testing.assert_array_equal(at_confidence(all_of_them, truths[:, 0], confidence), alone)


def by_hand(detections: Array, truths: Array) -> tuple[dict[int, int], dict[int, int], set[int], set[int]]:
    """Of one picture at an IoU of 0.5: the object that each right detection finds, and each mistaken one mistakes; the
    detections that are wrong; those that do not count."""
    overlaps = box_overlaps(detections[:, :4], truths)
    order = [k for k in np.argsort(-detections[:, 4], kind="stable").tolist() if detections[k, 5] >= 0]
    finds: dict[int, int] = {}
    passed = set()
    for k in order:
        same = truths[:, box_table.CLASS] == detections[k, 5]
        near = np.flatnonzero(same & (overlaps[k] >= 0.5)).tolist()
        free = [m for m in near if truths[m, box_table.KIND] == box_table.PLAIN and m not in finds.values()]
        if free:
            finds[k] = max(free, key=lambda m: (overlaps[k, m], m))
        elif any(truths[m, box_table.KIND] != box_table.PLAIN for m in near):
            passed.add(k)
    mistakes: dict[int, int] = {}
    wrong = set(order) - finds.keys() - passed
    for k in order:
        if k not in wrong:
            continue
        surer = set(order[: order.index(k)])
        gone = {m for one, m in finds.items() if one in surer} | set(mistakes.values())
        plain = box_table.are_plain(truths) & (truths[:, box_table.CLASS] != detections[k, 5])
        near = [m for m in np.flatnonzero(plain).tolist() if overlaps[k, m] >= 0.5 and m not in gone]
        if near:
            mistakes[k] = max(near, key=lambda m: (overlaps[k, m], m))
    for k, m in list(mistakes.items()):
        if m in finds.values():  # by a detection that is less sure
            del mistakes[k]
    return finds, mistakes, wrong, passed


@pytest.mark.parametrize("confidence", [0.002, 0.1, 0.3, 0.5, 2])
def test_confusion_and_f1_equal_those_of_matching_by_hand(confidence: float) -> None:
    case, classes = mixed()
    expected = np.zeros((classes + 1, classes + 1), np.int64)
    f1 = []
    for detections, truths in zip(keep(case, confidence).detections, case.truths, strict=True):
        finds, mistakes, wrong, _ = by_hand(detections, truths)
        names, true = detections[:, 5].astype(int), truths[:, box_table.CLASS].astype(int)
        plain = np.flatnonzero(box_table.are_plain(truths)).tolist()
        taken = {**finds, **mistakes}
        for k, m in taken.items():
            expected[true[m], names[k]] += 1
        for k in wrong - mistakes.keys():
            expected[classes, names[k]] += 1
        for m in set(plain) - set(taken.values()):
            expected[true[m], classes] += 1
        whole = len(finds) + len(wrong) + len(plain)
        f1.append(2 * len(finds) / whole if whole else math.nan)
    matches, counts = match(case.detections, case.truths), count_truths(case.truths, classes)
    found = confusion(matches, counts, confidence)
    np.testing.assert_array_equal(found, expected)
    assert confidence > 0.5 or found[:classes, :classes].sum() > np.diag(found).sum() > 0
    np.testing.assert_array_equal(found[:classes].sum(axis=1), counts[:, 0])
    np.testing.assert_allclose(ranking(matches, confidence), f1, rtol=1e-15)
    there = at_confidence(matches, counts[:, 0], confidence)
    np.testing.assert_allclose(there.recall, np.diag(expected)[:classes] / counts[:, 0], rtol=1e-15)
    predictions = np.maximum(expected.sum(axis=0)[:classes], 1)
    np.testing.assert_allclose(there.precision, np.diag(expected)[:classes] / predictions, rtol=1e-15)


def test_the_confidence_is_that_of_the_best_mean_f1() -> None:
    case, classes = mixed()
    matches, truths = match(case.detections, case.truths), count_truths(case.truths, classes)
    found = np.unique(case.detections[case.detections[..., 5] >= 0][:, 4])
    mean_f1 = [float(at_confidence(matches, truths[:, 0], score).f1.mean()) for score in found]
    result = scores(matches, truths)
    assert result["f1"] == max(mean_f1)
    assert result["confidence"] == found[int(np.argmax(mean_f1))]
    there = at_confidence(matches, truths[:, 0], result["confidence"])
    assert (result["precision"], result["recall"]) == (there.precision.mean(), there.recall.mean())
    assert result["per_class"]["f1"] == there.f1.tolist()


def test_curves_hold_the_ap_and_the_f1_of_each_class() -> None:
    case, classes = mixed()
    matches, truths = match(case.detections, case.truths), count_truths(case.truths, classes)
    found = curves(matches, np.append(truths, [[0, 0, 0, 0]], axis=0), np.array([0, 0.25, 0.5, 1]))
    np.testing.assert_allclose(found.precision[:-1].mean(axis=1), scores(matches, truths)["per_class"]["ap50"])
    for confidence, f1 in zip(found.confidences.tolist(), found.f1[:-1].T, strict=True):
        np.testing.assert_array_equal(f1, at_confidence(matches, truths[:, 0], confidence).f1)
    assert np.isnan(found.precision[-1]).all()
    assert np.isnan(found.f1[-1]).all()


def objects(*rows: tuple[float, ...]) -> Array:
    """(M, 8) of (left, top, right, bottom, class, kind), areas those of the boxes."""
    return np.array([[*row, (row[2] - row[0]) * (row[3] - row[1]), 1] for row in rows], float)


BOX = (10.0, 10.0, 30.0, 30.0)


@pytest.mark.parametrize("kind", [box_table.CROWD, box_table.DIFFICULT])
def test_what_finds_crowds_and_difficult_objects_is_neither_right_nor_wrong(kind: int) -> None:
    truths = objects((*BOX, 0, kind), (50, 50, 70, 70, 0, box_table.PLAIN))
    detections = np.array([[*BOX, 0.9, 0], [*BOX, 0.8, 0], [50, 50, 70, 70, 0.7, 0], [50, 50, 70, 70, 0.6, 0]])
    counts = count_truths(truths[None], 1)
    assert counts.tolist() == [[1, 1, 0, 0]]
    matches = match(detections, truths)[None]
    assert confusion(matches, counts, 0).tolist() == [[1, 0], [1, 0]]
    assert ranking(matches, 0.65).tolist() == [1]
    result = scores(matches, counts)
    assert (result["ap"], result["ar1"], result["ar10"]) == pytest.approx((1, 0, 1), abs=1e-12)
    assert result["confidence"] == np.float32(0.7)


def test_part_of_a_crowd_lies_in_it_and_is_no_part_of_a_difficult_object() -> None:
    part = np.array([[12.0, 12, 16, 16, 0.9, 0]])
    for kind, wrong in ((box_table.CROWD, 0), (box_table.DIFFICULT, 1)):
        matches = match(part, objects((*BOX, 0, kind)))[None]
        assert confusion(matches, np.array([0]), 0)[1, 0] == wrong


def test_areas_are_those_of_the_original_picture() -> None:
    """A box of 20 x 20 pixels of a picture shrunk to a quarter of its area: 1,600 pixels, a medium one."""
    truths = objects((*BOX, 0, box_table.PLAIN))
    truths[:, box_table.SCALE], truths[:, box_table.AREA] = 4, 1600
    detections = np.array([[*BOX, 0.9, 0], [100, 100, 110, 110, 0.95, 0]])
    counts = count_truths(truths[None], 1)
    assert counts.tolist() == [[1, 0, 1, 0]]
    result = scores(match(detections, truths)[None], counts)
    assert (result["ap"], result["ap_medium"]) == pytest.approx((0.5, 1), abs=1e-12)  # the wrong one is small
    assert math.isnan(result["ap_small"])


def test_a_mistaken_object_that_a_less_sure_detection_finds_is_found_from_there_on() -> None:
    truths = objects((*BOX, 1, box_table.PLAIN))
    detections = np.array([[*BOX, 0.9, 0], [*BOX, 0.8, 1]])
    matches, counts = match(detections, truths)[None], np.array([0, 1])
    assert confusion(matches, counts, 0.85).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert confusion(matches, counts, 0.5).tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_a_split_without_objects_or_detections_has_no_score() -> None:
    empty = np.zeros((2, 3, COLUMNS), np.int32)
    result = scores(empty, np.zeros((2, 4), np.int64))
    assert all(math.isnan(result[name]) for name in ("ap", "ap_small", "ar100", "f1", "precision", "recall"))
    assert result["confidence"] == 0
    assert result["per_class"] == {"ap": [None, None], "ap50": [None, None], "f1": [None, None], "count": [0, 0]}
    assert np.isnan(ranking(empty, 0)).all()
    missed = scores(empty, np.array([[3, 3, 0, 0], [0, 0, 0, 0]]))
    assert (missed["ap"], missed["ar10"], missed["f1"]) == (0, 0, 0)
    assert missed["per_class"]["ap"] == [0, None]
