"""Kinds of targets: found by name, of older files too; what they refuse."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from trainers.data import targets
from trainers.datasets import BadImage, Item, Source


def test_an_unknown_kind_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"did you mean masks.*labels, masks, label_sets, numbers"):
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
