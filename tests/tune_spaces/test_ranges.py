"""Ranges: what a field takes of one, drawn at random and by TPE."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainers.storage.store import Store
from tune_spaces.candidates import choose
from tune_spaces.messages import RangeKind
from tune_spaces.proposals import Tpe, draws
from tune_spaces.ranges import Range
from tune_spaces.sweep import Sweep, setting
from tune_spaces.sweep_state import SweepState

KINDS: dict[str, RangeKind] = {
    "batch_size": "whole",
    "epochs": "whole",
    "micro_batch_size": "whole",
    "patience": "whole",
    "seed": "whole",
    "workers": "whole",
    "cpus_per_worker": "whole",
    "model_args.num_filters": "whole",
    "dataset_args.split_seed": "whole",
    "schedule_args.every": "whole",
    "image_size": "square",
    "stored_size": "square",
    "lr": "number",
    "warmup_epochs": "number",
    "ema": "number",
    "checkpoint_seconds": "number",
    "gpus_per_worker": "number",
    "model_args.dropout": "number",
    "task_args.label_smoothing": "number",
    "schedule_args.factor": "number",
    "augment.translate": "number",
}


def sweep(key: str, values: Any, **changes: Any) -> Sweep:
    own = {"recipe": "digits.cnn", "space": {key: values}, "search": "random", "trials": 60}
    return Sweep(**{**own, "changes": {"schedule": "step"} if "schedule" in key else {}, **changes})


@pytest.mark.parametrize("key", KINDS)
def test_a_field_takes_whole_numbers_where_it_takes_no_others(key: str) -> None:
    low, high = {"image_size": (8, 16), "stored_size": (8, 16)}.get(key, (0.25, 0.75))
    if KINDS[key] == "whole":
        low, high = 1, 9
    found = sweep(key, Range(low, high)).space[key]
    assert isinstance(found, Range)
    assert found.kind == KINDS[key]


@pytest.mark.parametrize(
    ("signature", "given", "kind"),
    [
        ("depth: int", Range(1, 9), "whole"),
        ("depth: int | None = None", Range(1.0, 9.0), "whole"),
        ("depth: float", Range(1, 9), "number"),
        ("depth: float | None = None", Range(1, 9), "number"),
        ("depth=3", Range(1, 9), "whole"),
        ("depth=3.0", Range(1, 9), "number"),
        ("depth", Range(1, 9), "whole"),
        ("depth", Range(0.5, 9), "number"),
    ],
)
def test_an_argument_says_by_its_annotation_or_default_what_it_takes(
    signature: str, given: Range, kind: str, tmp_path: Path
) -> None:
    model = tmp_path / "mine.py"
    model.write_text(f"def build(*, image_size, channels, classes, {signature}):\n    raise AssertionError\n")
    found = sweep("model_args.depth", given, changes={"model": str(model)}).space["model_args.depth"]
    assert isinstance(found, Range)
    assert found.kind == kind


def test_values_that_are_listed_in_the_signature_are_no_range(tmp_path: Path) -> None:
    model = tmp_path / "mine.py"
    text = "def build(*, image_size, channels, classes, depth: Literal[18, 34, 50] = 18):\n    raise AssertionError\n"
    model.write_text(text)
    with pytest.raises(ValueError, match=r"model_args.depth takes one of 18, 34, 50; list some of them"):
        sweep("model_args.depth", Range(18, 50), changes={"model": str(model)})


def test_whole_numbers_are_drawn_evenly_with_both_ends() -> None:
    drawn = [each["batch_size"] for each in draws(sweep("batch_size", Range(3, 7)))]
    assert sorted(drawn) == [3, 4, 5, 6, 7]
    assert all(type(each) is int for each in drawn)


def test_whole_numbers_of_a_logarithmic_range_come_as_often_from_each_octave() -> None:
    given = sweep("batch_size", Range(8, 8 * 2**10, log=True), trials=400)
    drawn = [each["batch_size"] for each in itertools.islice(draws(given), 400)]
    octaves = Counter(int(math.log2(int(str(each)) / 8)) for each in drawn)
    assert min(drawn) >= 8  # type: ignore[type-var]
    assert all(20 <= octaves[octave] <= 80 for octave in range(2, 10))  # low ones have few numbers, each drawn once


def test_sizes_of_a_range_are_as_high_as_wide() -> None:
    trials = choose(sweep("image_size", Range(8, 24), trials=5), None).cells
    assert len(trials) == 5
    assert all(each.recipe.image_size[0] == each.recipe.image_size[1] for each in trials)
    assert all(8 <= each.recipe.image_size[0] <= 24 for each in trials)
    assert trials[0].name == f"000-image_size={trials[0].recipe.image_size[0]}"


@pytest.mark.parametrize("key", ["epochs", "model_args.num_filters", "image_size"])
def test_tpe_proposes_whole_numbers_and_learns_from_those_of_an_earlier_process(key: str, tmp_path: Path) -> None:
    made, tried = sweep(key, Range(4, 12, log=True), search="tpe", trials=8), set[str]()
    plan: Any = {"metric": "accuracy", "mode": "max", "plan": {"scheduler": "asha"}}
    state = SweepState(Store(tmp_path / "sweep"), plan, None)
    tpe = Tpe(made, "accuracy", "max", state)
    for _ in range(6):
        values = tpe.propose(tried)
        assert values is not None
        value = values[key]
        tried.add(setting(values))
        sides = value if isinstance(value, tuple) else (value, value)
        assert type(sides[0]) is int
        assert sides[0] == sides[1]
        assert 4 <= sides[0] <= 12
        tpe.end(values, 0.5)
    tpe.end({key: [12, 12] if key == "image_size" else 12}, 0.9)  # as sweep.json has it
    assert tpe.propose(tried) is not None


def test_a_sweep_with_a_range_is_recorded_with_its_kind() -> None:
    made = sweep("batch_size", Range(8, 64))
    assert made.to_json()["space"] == {"batch_size": {"low": 8, "high": 64, "log": False, "kind": "whole"}}
    assert sweep("lr", Range(0.1, 1.0)).to_json()["space"] == {"lr": {"low": 0.1, "high": 1.0, "log": False}}


def test_a_range_is_searched_at_random_where_nobody_says_how() -> None:
    made = Sweep(recipe="digits.cnn", space={"lr": Range(0.01, 0.1)})
    assert (made.search, made.trials) == ("random", 16)
    assert Sweep(recipe="digits.cnn", space={"lr": [0.01, 0.1]}).search == "grid"


def test_the_longest_trial_of_a_sweep() -> None:
    assert sweep("lr", Range(0.1, 1.0), changes={"epochs": 7}).most_epochs == 7
    assert sweep("epochs", Range(2, 9)).most_epochs == 9
    assert sweep("epochs", [3, 5, 4]).most_epochs == 5
