"""Kinds of targets: found by name, of older files too; what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from trainers.box_table import CLASS, COLUMNS, KIND, PAD, SCALE, corners
from trainers.data import targets
from trainers.data.resize import fit, shrink
from trainers.datasets import CROWD, DIFFICULT, PLAIN, BadImage, Item, Objects, Source


def test_an_unknown_kind_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"did you mean masks.*labels, masks, label_sets, numbers, boxes, instances"):
        targets.kind("mask")


@pytest.mark.parametrize(
    ("meta", "name"),
    [
        ({"target": "masks", "masks": True}, "masks"),
        ({"target": "labels", "masks": False}, "labels"),
        ({"masks": True}, "masks"),  # of older versions
        ({"masks": False}, "labels"),
        ({}, "labels"),
    ],
)
def test_files_without_a_kind_say_masks(meta: dict[str, object], name: str) -> None:
    assert targets.of_meta(meta).name == name


def test_a_source_that_says_masks_has_them() -> None:
    common = {"classes": ["a", "b"], "channels": 1, "splits": {}}
    assert Source(**common).target == "labels"  # type: ignore[arg-type]
    assert Source(**common, masks=True).target == "masks"  # type: ignore[arg-type]


def test_targets_that_do_not_fit_are_named() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    assert targets.kind("labels").check("one.png", image, np.int64(2), 3) == 2
    for kind, target, words in (
        ("labels", 3, "one.png: its class is number 3; allowed are 0 to 2"),
        ("labels", -1, "number -1"),
        ("masks", np.zeros((6, 4), np.uint8), "6x4 of uint8; it must be 4x6 of uint8"),
        ("masks", np.full((4, 6), 7, np.uint8), "holds 7; allowed are 0 to 2, and 255"),
        ("label_sets", [0, 3], "one.png: one of its classes is number 3; allowed are 0 to 2"),
        ("numbers", [1.0, 2.0], "one.png: its target is .1.0, 2.0.; it must be a list of 3 finite numbers"),
        ("numbers", [1.0, 2.0, float("nan")], "it must be a list of 3 finite numbers"),
    ):
        with pytest.raises(BadImage, match=words):
            targets.kind(kind).check("one.png", image, target, 3)


def objects(*corners: tuple[float, float, float, float], **others: Any) -> Objects:
    """Of class 1, of 10 pixels, where nothing else is said."""
    count = len(corners)
    fields: dict[str, Any] = {
        "corners": np.reshape(corners, (count, 4)).astype(float),
        "classes": np.ones(count, np.int64),
        "kinds": np.full(count, PLAIN),
        "areas": np.full(count, 10.0),
    }
    return Objects(**{**fields, **others})


def test_objects_that_do_not_fit_are_named() -> None:
    image, boxes = np.zeros((4, 6, 3), np.uint8), targets.kind("boxes")
    whole, nan = (0.0, 0.0, 1.0, 1.0), float("nan")
    for target, words in (
        (objects(whole, classes=np.array([3])), "one.png: the class of an object is number 3; allowed are 0 to 2"),
        (objects(whole, kinds=np.array([3])), "allowed are 0, 1 and 2"),
        (objects(whole, (0.5, 0, 0.5, 1)), "the box 0.5, 0, 0.5, 1 is none: .*with left < right"),
        (objects((0, 0, 1.1, 1)), "the box 0, 0, 1.1, 1 is none: .* shares of the picture, 0 to 1"),
        (objects((0, 0, nan, 1)), "the box 0, 0, nan, 1 is none"),
        (objects(whole, areas=np.array([0.0])), "the area of an object is 0 pixels"),
    ):
        with pytest.raises(BadImage, match=words):
            boxes.check("one.png", image, target, 3)
    for wrong, words in (
        ([whole], "the target is list; it must be Objects"),
        (objects(whole, classes=np.array([1.0])), "Objects.classes is 1 of float64"),
        (objects(whole, areas=np.array([1.0, 2.0])), "Objects.areas is 2 of float64; it must be 1, as there are 1"),
    ):
        with pytest.raises(TypeError, match=words):
            boxes.check("one.png", image, wrong, 3)


def test_what_is_no_target_at_all_is_an_error_of_the_data_set() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    for kind, target, words in (
        ("masks", np.zeros((4, 6), np.int64), "the mask is an array of int64; it must be 4x6 of uint8"),
        ("masks", 1, "the mask is int"),
        ("labels", "1", "the target is '1'; it must be the number of a class"),
        ("labels", 1.5, "the target is 1.5"),
        ("labels", None, "the target is None"),
        ("label_sets", 1, "the target is 1; it must be a list of the numbers of its classes"),
        ("label_sets", "01", "the target is '01'"),
        ("label_sets", [0.5], "the target is 0.5"),
        ("numbers", "1", "the target is '1'; it must be a number, or a list of numbers"),
        ("numbers", [None], "must be a number"),
        ("numbers", True, "must be a number"),
    ):
        with pytest.raises(TypeError, match=words):
            targets.kind(kind).check("one.png", image, target, 3)
    assert targets.kind("labels").check("one.png", image, 2.0, 3) == 2


SOME = {
    "labels": [0, 1, 1],
    "masks": [np.full((4, 6), label, np.uint8) for label in (0, 1, 255)],
    "label_sets": [[], [0, 1], (1, 0)],
    "numbers": [[0.1, 2], [0.1, 2.0], np.array([3, 4])],
}
"""Of two classes, or columns, of which two are equal but of the masks."""


@pytest.mark.parametrize("name", SOME)
def test_what_stands_in_for_targets_is_as_they_are(name: str) -> None:
    kind = targets.kind(name)
    image = np.zeros((4, 6, 3), np.uint8)
    stacked = kind.stack([kind.check("one.png", image, target, 2) for target in SOME[name]])
    dummy = kind.dummy(3, (4, 6), 2)
    assert (stacked.shape, stacked.dtype) == (dummy.shape, dummy.dtype)
    assert kind.stack([]).dtype == dummy.dtype
    assert kind.count(kind.stack([]), 2)["counts"] == [0, 0]
    stored = torch.from_numpy(stacked)
    finished = kind.finish(stored, kind.maps(stored))
    assert finished.dtype == (torch.float64 if name == "numbers" else torch.int64)
    stand_in, _ = targets.stand_in(kind, 3, (4, 6), 2)
    assert (stand_in.shape, stand_in.dtype) == (finished.shape, finished.dtype)
    assert len(set(kind.identify(stacked))) == (3 if name == "masks" else 2)


@pytest.mark.parametrize("name", ["labels", "label_sets", "numbers"])
def test_shards_and_the_listing_give_the_same_targets(name: str) -> None:
    kind = targets.kind(name)
    image = np.zeros((4, 6, 3), np.uint8)
    items = [Item(path=None, name=str(row), targets=[target]) for row, target in enumerate(SOME[name])]
    stacked = kind.stack([kind.check("one.png", image, target, 2) for target in SOME[name]])
    table = pa.table({"target": kind.to_column(stacked)})
    (read,) = kind.from_columns([table["target"].chunk(0), table["target"].chunk(0)])
    np.testing.assert_array_equal(read, np.concatenate([stacked, stacked]))
    listed = kind.listed(items, 2)
    assert listed is not None
    np.testing.assert_array_equal(listed, stacked)
    assert listed.dtype == read.dtype
    assert kind.occurring(listed) == [0, 1]
    assert kind.facts(kind.identify(listed), 2) == kind.facts(kind.identify(read), 2)


def test_classes_are_renumbered() -> None:
    sets, values = targets.kind("label_sets"), targets.kind("numbers")
    image = np.zeros((4, 6, 3), np.uint8)
    assert sets.renumber(sets.check("a", image, [0, 2], 3), [4, 1, 0], 5).tolist() == [1, 0, 0, 0, 1]
    assert values.renumber(values.check("a", image, [7.5, 2], 2), [1, 0], 2).tolist() == [2, 7.5]


def test_facts_of_training_targets_do_not_depend_on_how_they_were_cut() -> None:
    values = targets.kind("numbers")
    numbers = 1e9 + np.random.default_rng(0).normal(0, 0.01, 1000)  # sums of squares would lose the deviation
    facts = values.facts(values.identify(numbers[:, None]), 1)
    assert facts["target_mean"][0] == pytest.approx(numbers.mean(), rel=1e-15)
    assert facts["target_std"][0] == pytest.approx(numbers.std(), rel=1e-9)
    assert values.facts(values.identify(numbers[::-1, None]), 1) == facts
    assert values.facts(["0x1.0p+1"] * 3, 1) == {"target_mean": [2.0], "target_std": [1.0]}
    sets = targets.kind("label_sets")
    assert sets.facts(["", "0,2", "2", "2"], 3) == {"target_shares": [0.25, 0, 0.75]}


def test_a_split_without_any_label_is_refused() -> None:
    with pytest.raises(ValueError, match="no picture of the val split of label_table has a label"):
        targets.kind("label_sets").check_counts([0, 0], "val", "label_table")


def tables() -> list[Any]:
    """Of pictures with two objects, none, one and three, as they are stored."""
    boxes, image = targets.kind("boxes"), np.zeros((40, 80, 3), np.uint8)
    whole, half = (0.0, 0.0, 1.0, 1.0), (0.25, 0.5, 0.75, 1.0)
    found = [objects(whole, half), objects(size=(400, 800)), objects(half), objects(whole, half, half)]
    return [boxes.resize(boxes.check("one.png", image, each, 2), (40, 80), "pad") for each in found]


def test_boxes_of_batches_are_those_of_their_pictures_padded_to_the_longest() -> None:
    boxes, rows = targets.kind("boxes"), tables()
    shards = [boxes.to_column(boxes.stack(part)) for part in (rows[:2], rows[2:3], rows[3:])]
    columns = boxes.from_columns(shards)
    for ids in ([3, 0, 1, 2], [1], [1, 1], [2, 0], []):
        batch = boxes.gather(columns, np.array([0, 2, 3]), np.array(ids, np.int64))
        np.testing.assert_array_equal(batch, boxes.stack([rows[row] for row in ids]))
        assert batch.dtype == np.float32
        assert batch.shape[1] == max([len(rows[row]) for row in ids], default=1)
    batch = boxes.gather(columns, np.array([0, 2, 3]), np.array([1, 3]))
    assert batch[0, :, CLASS].tolist() == [PAD] * 3
    assert batch[0, :, SCALE].tolist() == [100] * 3  # of the padding too: what is found there has an original area
    assert boxes.finish(torch.from_numpy(batch), None).dtype == torch.float64


def test_boxes_are_identified_by_all_that_is_known_of_them_and_not_by_the_batch() -> None:
    boxes, rows = targets.kind("boxes"), tables()
    together, alone = boxes.identify(boxes.stack(rows)), [boxes.identify(boxes.stack([row]))[0] for row in rows]
    assert together == alone
    changed = []
    for column in range(COLUMNS):
        other = rows[0].copy()
        other[1, column] += 1
        changed += boxes.identify(boxes.stack([other]))
    assert len({*alone, *changed}) == len(rows) + COLUMNS


def test_only_objects_that_are_to_be_found_are_counted() -> None:
    boxes, image = targets.kind("boxes"), np.zeros((4, 6, 3), np.uint8)
    whole = (0.0, 0.0, 1.0, 1.0)
    kinds = objects(whole, whole, whole, whole, kinds=np.array([PLAIN, CROWD, DIFFICULT, PLAIN]))
    stacked = boxes.stack([boxes.check("one.png", image, each, 3).table for each in (kinds, objects())])
    assert boxes.count(stacked, 3) == {"counts": [0, 2, 0], "most_objects": 4}
    with pytest.raises(ValueError, match="no picture of the val split of coco has an object that is to be found"):
        boxes.check_counts([0, 0, 0], "val", "coco")


@pytest.mark.parametrize("how", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("own", [(40, 80), (80, 40), (41, 83), (20, 30)])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (40, 80)])
def test_boxes_lie_where_the_picture_that_is_brought_to_another_size_shows_them(
    own: tuple[int, int], size: tuple[int, int], how: str
) -> None:
    """A white box on black, drawn much larger than it is read: its rims in the smaller picture."""
    boxes, factor = targets.kind("boxes"), 16
    height, width = own[0] * factor, own[1] * factor
    left, top, right, bottom = int(0.3 * width), int(0.25 * height), int(0.6 * width), int(0.7 * height)
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right] = 255
    shares = (left / width, top / height, right / width, bottom / height)
    (row,) = boxes.resize(boxes.check("one.png", image, objects(shares), 2), size, how)
    seen = shrink(image, size, how)[:, :, 0] / 255
    across, down = seen.max(0), seen.max(1)
    wide, high = across.sum(), down.sum()  # pixels that are covered in part count so
    np.testing.assert_allclose(corners(row)[2] - corners(row)[0], wide, atol=0.3)
    np.testing.assert_allclose(corners(row)[3] - corners(row)[1], high, atol=0.3)
    middle = (
        (seen * (np.arange(size[1]) + 0.5)).sum() / seen.sum(),
        (seen.T * (np.arange(size[0]) + 0.5)).sum() / seen.sum(),
    )
    np.testing.assert_allclose((corners(row)[:2] + corners(row)[2:]) / 2, middle, atol=0.1)
    place = fit((height, width), size, how)
    shown = (place.box[2] - place.box[0]) * (place.box[3] - place.box[1])
    assert row[SCALE] == pytest.approx(shown / (place.inner[0] * place.inner[1]))


def test_what_a_crop_leaves_too_little_of_is_a_crowd_and_what_it_cuts_off_is_gone() -> None:
    boxes, image = targets.kind("boxes"), np.zeros((40, 80, 3), np.uint8)  # of which x from 20 to 60 is seen
    shares = [(0.0, 0.0, 0.3, 0.5), (0.1, 0.0, 0.5, 0.5), (0.0, 0.0, 0.25, 1.0), (0.3, 0.0, 0.6, 0.5)]
    table = boxes.resize(boxes.check("one.png", image, objects(*shares), 2), (40, 40), "crop")
    assert table[:, CLASS].tolist() == [1, 1, PAD, 1]
    assert table[:, KIND].tolist() == [CROWD, PLAIN, PLAIN, PLAIN]
    np.testing.assert_allclose(corners(table), [[0, 0, 4, 20], [0, 0, 20, 20], [0, 0, 0, 0], [4, 0, 28, 20]], atol=1e-6)
    np.testing.assert_allclose(table[:, 6], [10 * 4 / 24, 10 * 20 / 32, 0, 10], rtol=1e-6)
