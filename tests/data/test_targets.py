"""Kinds of targets: found by name, of older files too; what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.data import targets
from trainers.datasets import BadImage, Source


def test_an_unknown_kind_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"did you mean masks.*labels, masks"):
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
    ):
        with pytest.raises(TypeError, match=words):
            targets.kind(kind).check("one.png", image, target, 3)
    assert targets.kind("labels").check("one.png", image, 2.0, 3) == 2


@pytest.mark.parametrize("name", ["labels", "masks"])
def test_what_stands_in_for_targets_is_as_they_are(name: str) -> None:
    kind = targets.kind(name)
    some = [0, 1, 1] if name == "labels" else [np.full((4, 6), label, np.uint8) for label in (0, 1, 255)]
    stacked, dummy = kind.stack(some), kind.dummy(3, (4, 6))
    assert (stacked.shape, stacked.dtype) == (dummy.shape, dummy.dtype)
    assert kind.stack([]).dtype == dummy.dtype
    assert kind.count(kind.stack([]), 2)["counts"] == [0, 0]
    stored = torch.from_numpy(stacked)
    assert kind.finish(stored, kind.maps(stored)).dtype == torch.int64
    assert len(set(kind.identify(stacked))) == (2 if name == "labels" else 3)
