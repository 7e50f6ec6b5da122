"""Which trials a sweep has: combinations that cannot be are left out, and a sweep that is over takes further ones."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainers.progress import Progress
from trainers.recipe import Scale
from tune_spaces import trials
from tune_spaces.candidates import Chosen, choose, confirm, describe_left_out, differences, edited, next_number
from tune_spaces.ranges import Range
from tune_spaces.run import _is_over
from tune_spaces.sweep import Cell, Sweep, plain, setting

GRID = {"lr": [0.01, 0.1], "batch_size": [32, 64]}


def sweep(**changes: Any) -> Sweep:
    return Sweep(**{"recipe": "digits.cnn", "space": GRID, **changes})


def recorded(made: Sweep, cells: list[Cell]) -> Any:
    """sweep.json of a sweep that has had these trials, as far as it matters here."""
    trials = [
        {
            "name": each.name,
            "number": each.number,
            "values": {key: plain(value) for key, value in each.values.items()},
            "repeat_of": None,
        }
        for each in cells
    ]
    return {"trials": trials, "plan": made.to_json()}


CANNOT_BE: dict[str, tuple[dict[str, Any], int, int, str]] = {
    "a micro-batch larger than the batch": (
        {"space": {"batch_size": [16, 32, 64], "micro_batch_size": [8, 32]}},
        5,
        1,
        "micro_batch_size=32 does not divide batch_size=16; use",
    ),
    "pictures stored smaller than they are used": (
        {"space": {"image_size": [(8, 8), (16, 16), (32, 32)], "stored_size": [(16, 16), (32, 32)]}},
        5,
        1,
        "stored_size=16x16 is smaller than image_size=32x32",
    ),
    "Nesterov's momentum without momentum": (
        {"space": {"nesterov": [False, True], "momentum": [0.0, 0.9]}},
        3,
        1,
        "nesterov=True needs",
    ),
    "Nesterov's momentum of Adam": (
        {"space": {"nesterov": [False, True], "optimizer": ["sgd", "adam", "adamw"]}},
        4,
        2,
        "nesterov=True needs",
    ),
    "workers that cannot share a batch": (
        {"space": {"batch_size": [32, 48], "workers": [1, 2, 3]}},
        5,
        1,
        "batch_size=32 cannot be split evenly over workers=3",
    ),
    "an argument of another schedule": (
        {"space": {"schedule": ["step", "cosine"], "schedule_args.every": [2, 3]}},
        2,
        2,
        "there is no argument of schedule 'cosine' called 'every'",
    ),
    "augmentations that exclude each other": (
        {"space": {"augment.crop": [False, True], "augment.resized_crop": [[0.5, 1.0]]}},
        1,
        1,
        "excludes",
    ),
}


@pytest.mark.parametrize("what", CANNOT_BE)
def test_combinations_that_cannot_be_are_left_out_with_the_reason(what: str) -> None:
    changes, kept, gone, reason = CANNOT_BE[what]
    chosen = choose(sweep(**changes), None)
    assert (len(chosen.cells), len(chosen.left_out)) == (kept, gone)
    assert [each.number for each in chosen.cells] == list(range(kept))
    assert all(each["reason"].startswith(reason) or reason in each["reason"] for each in chosen.left_out)
    said = describe_left_out(chosen.left_out)
    assert said[0] == f"left out: {gone} combination{'s' if gone > 1 else ''} that cannot be"
    assert reason in said[1]


def test_what_only_the_data_shows_is_left_out_too() -> None:
    def check(each: Cell) -> None:
        if each.recipe.batch_size > 32:
            raise ValueError(f"batch_size={each.recipe.batch_size} is more than the 40 training pictures")

    chosen = confirm(choose(sweep(), None), sweep(), None, check)
    assert [each.values for each in chosen.cells] == [{"lr": 0.01, "batch_size": 32}, {"lr": 0.1, "batch_size": 32}]
    assert describe_left_out(chosen.left_out)[1].endswith(
        "and 1 more: batch_size=64 is more than the 40 training pictures"
    )


def choose_for(data: Path, space: dict[str, Any], checked: str = "prepare", **changes: Any) -> Chosen:
    """The trials of ResNet-18 on three training pictures of 32x32."""
    for name in ("train/a/0", "train/a/1", "train/b/2", "val/a/3", "val/b/4"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (50 * int(name[-1]), 0, 0)).save(data / f"{name}.png")
    scale = Scale(workers=0, data=str(data), storage=str(data.parent / "storage"))
    own = {"image_size": (32, 32), "stored_size": (32, 32), "batch_size": 3}
    made = sweep(recipe="resnet.r18", changes={**own, **changes}, scale=scale, space=space)
    return choose(made, None, getattr(trials.PreparedData(scale, Progress(io.StringIO())), checked))


def test_batches_of_one_picture_are_left_out_where_batch_norm_needs_more(tmp_path: Path) -> None:
    """ResNet-18 at 32x32 ends in a single pixel; of three pictures by two, one is alone."""
    chosen = choose_for(tmp_path / "data", {"batch_size": [1, 2, 3]})
    assert [each.values for each in chosen.cells] == [{"batch_size": 3}]
    assert all("cannot be trained on one picture" in each["reason"] for each in chosen.left_out)


@pytest.mark.parametrize(
    ("space", "changes", "kept", "reason"),
    [
        (
            {"model_args.stem": ["standard", "3x3"]},
            {"image_size": (16, 16)},
            {"model_args.stem": "3x3"},
            "stem=standard",
        ),
        ({"image_size": [(16, 16), (32, 32)]}, {"model_args": {"stem": "standard"}}, {"image_size": (32, 32)}, "16x16"),
        ({"batch_size": [4, 3]}, {}, {"batch_size": 3}, "batch_size=4 is more than the 3 training pictures"),
        ({"frozen": [("no_such_part",), ()]}, {}, {"frozen": ()}, "no_such_part"),
    ],
)
def test_a_model_that_cannot_be_spoils_no_other_on_the_same_pictures(
    space: dict[str, Any], changes: dict[str, Any], kept: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    chosen = choose_for(tmp_path / "data", space, "check", **changes)
    assert [each.values for each in chosen.cells] == [kept]
    assert [reason in each["reason"] for each in chosen.left_out] == [True]
    assert not (tmp_path / "storage").exists()  # nothing was decoded for it


@pytest.mark.parametrize(
    ("space", "many"),
    [
        ({"lr": [0.1, 0.2], "seed": [1, 2]}, 1),
        ({"lr": [0.1, 0.2], "batch_size": [1, 3]}, 2),
        ({"lr": [0.1, 0.2], "frozen": [(), ("1",)]}, 2),
    ],
)
def test_trials_that_differ_in_nothing_a_model_asks_for_are_checked_once(
    space: dict[str, Any], many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = list[object]()
    monkeypatch.setattr(trials, "check_trial", lambda *given: checked.append(given))
    choose_for(tmp_path / "data", space, "check")
    assert len(checked) == many


def test_a_trial_is_planned_with_what_follows_from_its_data(tmp_path: Path) -> None:
    followed = choose_for(tmp_path / "data", {"seed": [1, 2]}, from_data=("epochs", "lr"))
    recipe, scale = followed.cells[0].recipe, followed.cells[0].scale
    complete = trials.PreparedData(scale, Progress(io.StringIO())).complete(recipe)
    assert (complete.from_data, complete.epochs, complete.lr) == (
        (),
        30,
        pytest.approx(recipe.lr * recipe.batch_size / 32),
    )


def test_a_batch_that_follows_is_the_one_that_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=8 is more than the 3 training pictures"):
        choose_for(tmp_path / "data", {"seed": [1, 2]}, "check", from_data=("batch_size",))


def test_trials_that_can_all_be_are_made_once() -> None:
    chosen, seen = choose(sweep(), None), list[Cell]()
    assert confirm(chosen, sweep(), None, seen.append) is chosen
    assert seen == chosen.cells


@pytest.mark.parametrize(
    "changes",
    [
        {"space": {"batch_size": [32, 64]}, "changes": {"micro_batch_size": 256}},
        {"space": {"batch_size": [32, 64]}, "scale": Scale(workers=7)},
        {"space": {"lr": [0.1]}, "scale": Scale(workers=(1, 2))},
    ],
)
def test_a_sweep_without_any_trial_that_can_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"micro_batch_size=256 does not|no trial can be; the first, .* over workers=7|^workers=1:2"
    ):
        choose(sweep(**changes), None)


@pytest.mark.parametrize(
    ("space", "changes"),
    [
        ({"image_size": [(8, 8), (12, 12)]}, {"stored_size": (12, 12)}),
        ({"image_size": [(4, 4), (6, 6)]}, {"stored_size": (6, 6)}),  # the recipe's own 8x8 is in no trial
        ({"batch_size": [24, 48]}, {"micro_batch_size": 24}),  # nor its batch of 64
        ({"momentum": [0.5, 0.9]}, {"nesterov": True, "optimizer": "sgd"}),
        ({"schedule": ["step"]}, {"schedule_args": {"every": 3}}),
    ],
)
def test_what_holds_for_all_trials_is_checked_with_the_values_they_have(
    space: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert len(choose(sweep(space=space, changes=changes), None).cells) == len(next(iter(space.values())))


def test_a_random_search_draws_as_many_as_it_was_asked_for_among_those_that_can_be() -> None:
    made = sweep(space={"batch_size": Range(8, 64)}, changes={"micro_batch_size": 8}, trials=6)
    chosen = choose(made, None)
    assert sorted(each.recipe.batch_size % 8 for each in chosen.cells) == [0] * 6
    assert len(chosen.left_out) > 6


def test_tpe_needs_no_lower_end_that_can_be() -> None:
    made = sweep(space={"batch_size": Range(9, 64)}, changes={"micro_batch_size": 8}, search="tpe", trials=4)
    chosen = choose(made, None)
    assert chosen.cells
    assert chosen.cells[0].recipe.batch_size % 8 == 0


# A sweep that is over


@pytest.mark.parametrize("search", ["grid", "random"])
def test_more_trials_keep_those_there_were(search: str) -> None:
    space = {"lr": [0.001, 0.003, 0.01, 0.03, 0.1], "batch_size": [16, 32, 64]}
    few, many = (sweep(space=space, search=search, trials=count) for count in (4, 9))
    before = choose(few, None).cells
    after = choose(many, recorded(few, before)).cells
    assert [each.name for each in after[:4]] == [each.name for each in before]
    assert [setting(each.values) for each in after] == [setting(each.values) for each in choose(many, None).cells]
    assert not differences(few.to_json(), many)


def test_more_values_of_a_grid_keep_the_names_of_its_trials() -> None:
    larger = sweep(space={"lr": [0.001, 0.01, 0.1], "batch_size": [64, 32, 128]})
    before = choose(sweep(), None).cells
    after = choose(larger, recorded(sweep(), before)).cells
    assert [each.name for each in after[:4]] == [each.name for each in before]
    assert len(after) == 9
    assert len({setting(each.values) for each in after}) == 9
    assert sorted(each.number for each in after) == list(range(9))
    assert not differences(sweep().to_json(), larger)


def test_more_values_of_a_random_search_keep_its_trials_and_may_add_some() -> None:
    few = sweep(space={"lr": Range(0.01, 0.1), "batch_size": [32, 64]}, trials=3)
    before = choose(few, None).cells
    wider = sweep(space={"lr": Range(0.001, 0.5), "batch_size": [32, 64, 128]}, trials=5)
    after = choose(wider, recorded(few, before)).cells
    assert [each.name for each in after[:3]] == [each.name for each in before]
    assert len(after) == 5
    assert not differences(few.to_json(), wider)


def test_sizes_of_sweep_json_are_those_of_the_space() -> None:
    few = sweep(space={"image_size": [(8, 8), (16, 8)]})
    more = sweep(space={"image_size": [(8, 8), (16, 8), (16, 16)]})
    after = choose(more, recorded(few, choose(few, None).cells)).cells
    assert [each.name for each in after] == ["000-image_size=8", "001-image_size=16x8", "002-image_size=16"]
    assert not differences(few.to_json(), more)


def test_numbers_of_further_trials_are_above_those_of_repeats() -> None:
    assert next_number(set()) == 0
    assert next_number({0, 1, 1000}) == 3
    assert next_number({0, 2}) == 3
    assert next_number({0, 3, 1000}) == 1001


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {**GRID, "lr": [0.01]}}, ["lr no longer has 0.1"]),
        ({"space": {"lr": [0.01, 0.1]}}, ["batch_size is no longer in the space"]),
        ({"space": {**GRID, "momentum": [0.9]}}, ["momentum was not in the space"]),
        ({"trials": 3}, ["trials was every combination and is now 3, which is fewer"]),
        ({"recipe": "mnist.cnn"}, ["recipe was digits.cnn and is now mnist.cnn"]),
        ({"metric": "loss"}, ["metric was none and is now loss"]),
        ({"changes": {"epochs": 3}}, ["epochs was the recipe's own and is now 3"]),
        ({"scheduler": "none", "seed": 4}, ["scheduler was asha and is now none", "seed was 0 and is now 4"]),
        ({"search": "random"}, ["search was grid and is now random"]),
    ],
)
def test_another_plan_is_named_by_what_differs(changes: dict[str, Any], words: list[str]) -> None:
    found = differences(sweep().to_json(), sweep(**changes))
    assert all(each in found for each in words), found


@pytest.mark.parametrize(
    ("was", "words"),
    [
        ({"lr": 0.5}, []),  # the space has it
        ({"epochs": 7}, []),  # given
        ({"momentum": 0.5}, ["momentum of the recipe was 0.5 and is now 0.9"]),
        ({"schedule": "step"}, ["schedule of the recipe was step and is now cosine"]),
        ({"model_args": {"num_filters": 9}}, []),
        ({"image_size": [16, 8]}, ["image_size of the recipe was 16x8 and is now 8"]),
        ({"a_field_of_before": 1}, []),
    ],
)
def test_a_recipe_that_was_edited_since_is_named_by_what_differs(was: dict[str, Any], words: list[str]) -> None:
    made = sweep(space={"lr": [0.1, 0.2], "model_args.num_filters": [8, 16]}, changes={"epochs": 3})
    assert edited({**json.loads(json.dumps(made.base.to_json())), **was}, made) == words


def test_a_narrower_range_is_another_plan() -> None:
    wide, narrow = (sweep(space={"lr": Range(0.01, high, log=True)}) for high in (0.5, 0.1))
    assert differences(wide.to_json(), narrow) == ["lr no longer has all of log:0.01:0.5"]
    assert differences(wide.to_json(), sweep(space={"lr": Range(0.01, 0.5)})) == [
        "lr no longer has all of log:0.01:0.5"
    ]
    assert not differences(narrow.to_json(), wide)


def test_a_population_that_learns_together_takes_no_further_trials() -> None:
    few, more = (sweep(space={"lr": Range(0.01, 0.5)}, scheduler="pbt", trials=count) for count in (4, 6))
    assert "so none can be added" in differences(few.to_json(), more)[0]
    assert not differences(few.to_json(), few)


def test_of_tpe_fewer_trials_than_there_were_are_no_other_plan() -> None:
    many, few = (sweep(search="tpe", trials=count) for count in (6, 4))
    assert not differences(many.to_json(), few)
    assert not differences(few.to_json(), many)


@pytest.mark.parametrize(("trials", "over"), [(6, True), (7, False)])
def test_the_same_command_leaves_a_finished_sweep_alone(trials: int, over: bool, tmp_path: Path) -> None:
    """Those that only the data showed to be impossible are not tried again."""
    made = sweep(space={"lr": Range(0.01, 0.1), "batch_size": [32, 4096]}, trials=6, scale=Scale(storage=str(tmp_path)))

    def check(each: Cell) -> None:
        if each.recipe.batch_size > 1000:
            raise ValueError("more than the pictures")

    chosen = choose(made, None, check)
    content = {**recorded(made, chosen.cells[:4]), "status": "finished", "left_out": chosen.left_out}
    earlier = json.loads(json.dumps(content))
    assert _is_over(earlier, made, choose(made, earlier), 1)
    assert not _is_over({**earlier, "status": "interrupted"}, made, choose(made, earlier), 1)
    assert not _is_over(earlier, made, choose(made, earlier), 2)
    again = dataclasses.replace(made, trials=trials)
    assert _is_over(earlier, again, choose(again, earlier), 1) == over
