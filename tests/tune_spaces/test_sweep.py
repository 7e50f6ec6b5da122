"""What a sweep is: spaces, cells, what is refused before anything starts, and sweep.json."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from trainers.recipe import Scale, resolve
from trainers.storage.store import Store
from tune_spaces.__main__ import main
from tune_spaces.candidates import choose
from tune_spaces.proposals import draws
from tune_spaces.run import SweepResult
from tune_spaces.sweep import (
    Cell,
    Range,
    Sweep,
    cell,
    distance,
    find,
    format_value,
    nested,
    setting,
    settings,
    space_names,
)
from tune_spaces.sweep_state import SweepState, dominates

GRID = {"lr": [0.01, 0.1], "batch_size": [32, 64]}


def sweep(**changes: Any) -> Sweep:
    return Sweep(**{"recipe": "digits.cnn", "space": GRID, **changes})


def drawn_of(sweep: Sweep) -> list[dict[str, Any]]:
    return list(itertools.islice(draws(sweep), sweep.trials))


@pytest.mark.parametrize("name", space_names())
def test_every_space_has_trials_that_can_be(name: str) -> None:
    found = find(name)
    cells = [cell(found, number, values) for number, values in enumerate(found.grid())]
    assert len({each.name for each in cells}) == len(cells) >= 3
    assert json.loads(json.dumps(found.to_json()))["recipe"] == found.recipe


def test_a_grid_is_every_combination_the_last_key_changing_fastest() -> None:
    assert list(sweep().grid()) == [{"lr": lr, "batch_size": size} for lr in GRID["lr"] for size in GRID["batch_size"]]
    assert len(choose(sweep(trials=3), None).cells) == 3


def test_random_trials_are_those_of_the_seed_and_lie_within_their_ranges() -> None:
    space = {"lr": Range(1e-4, 1e-1, log=True), "momentum": Range(0.5, 0.9), "image_size": [(8, 8), (16, 16)]}
    random = sweep(space=space, search="random", trials=200)
    drawn = drawn_of(random)
    assert drawn == drawn_of(random) != drawn_of(sweep(space=space, search="random", trials=200, seed=1))
    assert all(1e-4 <= each["lr"] <= 1e-1 and 0.5 <= each["momentum"] <= 0.9 for each in drawn)
    assert {each["image_size"] for each in drawn} == {(8, 8), (16, 16)}
    low = sum(each["lr"] < 10**-2.5 for each in drawn)  # half of a logarithmic range
    assert 70 < low < 130


def test_values_go_into_recipe_and_scale() -> None:
    both = sweep(space={"model_args.num_filters": [4], "workers": [2], "image_size": [(16, 8)]})
    made = cell(both, 7, {"model_args.num_filters": 4, "workers": 2, "image_size": [16, 8]})
    assert (made.recipe.model_args["num_filters"], made.scale.workers, made.recipe.image_size) == (4, 2, (16, 8))
    assert made.name == "007-num_filters=4-workers=2-image_size=16x8"
    assert nested({"a.b": 1, "a.c": 2, "d": [3]}) == {"a": {"b": 1, "c": 2}, "d": (3,)}
    assert [format_value(value) for value in (0.00012345, (128, 128), True, None)] == [
        "0.0001234",
        "128",
        "true",
        "none",
    ]


def test_a_trials_name_is_one_that_a_folder_can_have() -> None:
    names = ["写真" * 50, "wf" * 90]
    made = Sweep(recipe="digits.cnn", space={"init_from": names})
    cells = [cell(made, number, values) for number, values in enumerate(made.grid())]
    assert [len(each.name.encode()) for each in cells] == [254, 100]


def test_trials_near_the_recipes_own_setting_come_first() -> None:
    base = resolve("digits.cnn").replace(lr=0.1, batch_size=64)
    values = [{"lr": lr, "batch_size": size} for lr in (0.001, 0.1, 0.15) for size in (32, 64)]
    assert sorted(values, key=lambda each: distance(each, base))[:2] == [values[3], values[5]]
    assert distance({"optimizer": "sgd", "image_size": [8, 8]}, base) == 0
    assert distance({"optimizer": "adam"}, base) == 1
    assert distance({"model_args.num_filters": 8}, base.replace(model_args={"num_filters": 8})) == 0


@pytest.mark.parametrize(
    ("low", "high", "log", "words"),
    [(0.1, 0.1, False, "is empty"), (0.2, 0.1, True, "is empty"), (0.0, 0.1, True, "zero"), (-1, 1, True, "zero")],
)
def test_a_range_that_cannot_be_is_refused(low: float, high: float, log: bool, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Range(low, high, log)


REFUSED = {
    "digits.quik": "there is no space 'digits.quik'; did you mean digits.quick",
    "digits.quick --space learning_rate=0.1": "there is no field 'learning_rate'",
    "digits.quick --space model_args.filters=1,2": "there is no argument of model 'linear_cnn' called 'filters'",
    "digits.quick --space model_args=1": "cannot be varied as a whole",
    "digits.quick --space storage=a,b": "storage holds for the whole sweep; give --storage VALUE",
    "digits.quick --space lr=0.1 lr=0.2": "lr= is given twice",
    "digits.quick --space lr=0.1 --space lr=0.2": "lr= is given twice",
    "digits.quick --space batch_size=32,,64": "a value is missing between its commas",
    "digits.quick --lr 0.5": "--lr is what the space varies; give --space lr=VALUES in its place",
    "digits.quick --space model_args.num_filters=8,16 --model-args num_filters=4": (
        "--model-args num_filters is what the space varies; give --space model_args.num_filters=VALUES"
    ),
    "digits.quick --workers 2 --space workers=1,2": "--workers is what the space varies",
    "digits.quick --search tpe --trials 4 --micro-batch-size 256": "micro_batch_size=256 does not divide batch_size=64",
    "digits.quick --space lr=": "lr has no values",
    "digits.quick --space lr=0.1,0.1": "lists a value twice",
    "digits.quick --space lr=0,0.1": "lr=0 is not allowed",
    "digits.quick --space lr=log:0:0.1": "goes through zero",
    "digits.quick --space lr=log:0.1:0.01": "is empty",
    "digits.quick --space lr=log:a:b": "with two numbers",
    "digits.quick --search grid --space lr=log:0.01:0.1": "which no grid covers",
    "digits.quick --space lr": "give FIELD=VALUE,VALUE",
    "digits.quick --micro-batch-size 48": "does not divide batch_size=",
    "digits.quick --micro-batch-size 256": "micro_batch_size=256 does not divide batch_size=64",
    "digits.quick --stored-size 4": "stored_size=4x4 is smaller than image_size=8x8",
    "digits.quick --workers 7": "cannot be split evenly over workers=7",
    "digits.quick --workers 1:2": "give a --micro-batch-size",
    "digits.quick --space epochs=uniform:1.2:1.8": "epochs: between 1.2 and 1.8 there are no two whole numbers",
    "digits.quick --space nesterov=uniform:0:1": "nesterov=0.0 is not allowed; nesterov takes true or false",
    "digits.quick --space model_args.batch_norm=uniform:0:1": "takes true or false",
    "digits.quick --scheduler pbt": "give it a range",
    "digits.quick --budget soon": "give 90s, 30m or 2h",
    "digits.quick --max-concurrent 0": "give 1 or more",
    "digits.quick --memory much": "is not a size of memory",
    "digits.quick --trials 0": "trials=0 is not allowed",
    "digits.quick mnist.quick": "one space at a time",
    "--space lr=0.1": "give the name of a space, or --recipe",
    "--recipe digits.cnn": "the space of digits.cnn is empty",
    "--recipe digits.cnn --space init_from=no-such-run": "there is no such run",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_refused_with_one_message(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path / "storage"))
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert REFUSED[words] in err
    assert not list(tmp_path.glob("storage/*"))


def test_help_lists_the_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in space_names())


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--recipe", "--space", "--search", "--trials", "--budget", "--repeats"))


def made(number: int, **changes: Any) -> Cell:
    recipe = resolve("digits.cnn").replace(**changes)
    return Cell(number=number, values=changes, recipe=recipe, scale=Scale())


def test_trials_that_need_as_much_memory_or_more_are_recognised() -> None:
    small = made(0, batch_size=64)
    assert dominates(made(1, batch_size=128), small)
    assert dominates(made(1, batch_size=64, lr=0.5), small)
    assert dominates(made(1, batch_size=64, image_size=(16, 8)), small)
    assert not dominates(made(1, batch_size=32), small)
    assert not dominates(made(1, batch_size=128, micro_batch_size=32), small)
    assert not dominates(made(1, batch_size=128, model_args={"num_filters": 4}), small)
    assert not dominates(made(1, batch_size=128, optimizer="adam"), small)
    assert not dominates(made(1, batch_size=128, frozen=("0",)), small)
    recomputing = dataclasses.replace(small, scale=Scale(activation_checkpointing=True))
    assert not dominates(recomputing, small)


@pytest.fixture
def sweep_state(tmp_path: Path) -> Callable[..., SweepState]:
    def make(mode: str = "max") -> SweepState:
        return SweepState(
            Store(tmp_path / "sweep"), {"metric": "accuracy", "mode": mode, "plan": {"scheduler": "asha"}}, None
        )

    return make


def test_ranked_trials_and_the_winner_follow_the_mode(sweep_state: Callable[..., SweepState]) -> None:
    for mode, order in (("max", ["002", "001", "000"]), ("min", ["000", "001", "002"])):
        state = sweep_state(mode)
        for number in range(5):
            name = str(state.add(made(number, seed=number))["name"])
            for epoch in (1, 2):
                state.epoch(name, epoch, "accuracy", number + 0.1 * epoch)
            state.end(name, "finished" if number < 3 else "failed", "")
        assert [trial["name"][:3] for trial in state.ranked()] == order
        assert state["000-seed=0"]["best"]["epoch"] == (2 if mode == "max" else 1)
        state.finish("finished", "")
        assert Store(state.folder.address).read_json("sweep.json")["winner"][:3] == order[0]


def test_checkpoints_are_kept_for_the_best_three_alone(sweep_state: Callable[..., SweepState], tmp_path: Path) -> None:
    state = sweep_state()
    for number in range(6):
        name = str(state.add(made(number, seed=number))["name"])
        (tmp_path / "sweep" / name / "checkpoints").mkdir(parents=True)
        state.epoch(name, 1, "accuracy", [3, 9, 5, 1, 7, 2][number])
        state.end(name, "interrupted" if number == 3 else "finished", "")
    kept = sorted(path.parent.name[:3] for path in tmp_path.glob("sweep/*/checkpoints"))
    assert kept == ["001", "002", "003", "004"]  # 003 goes on later


def test_the_winner_of_repeats_is_of_the_setting_with_the_best_mean(
    sweep_state: Callable[..., SweepState], tmp_path: Path
) -> None:
    state, lucky, steady = sweep_state(), made(0, lr=0.1), made(1, lr=0.2)
    runs = [(lucky, 0.9), (steady, 0.8)]
    for origin, later in ((lucky, (0.1, 0.2)), (steady, (0.85, 0.75))):
        for seed, score in enumerate(later, 1):
            recipe = origin.recipe.replace(seed=seed)
            again = dataclasses.replace(origin, number=10 * origin.number + seed, recipe=recipe, repeat_of=origin.name)
            runs.append((again, score))
    for each, score in runs:
        name = str(state.add(each)["name"])
        (tmp_path / "sweep" / name / "checkpoints").mkdir(parents=True)
        state.epoch(name, 1, "accuracy", score)
    for each, _ in runs:
        state.end(each.name, "finished", "")
    state.finish("finished", "")
    assert state.content["winner"] == "011-lr=0.2-seed=1"
    kept = {path.parent.name for path in tmp_path.glob("sweep/*/checkpoints")}
    assert kept == {"000-lr=0.1", "011-lr=0.2-seed=1", "001-lr=0.2"}


def test_a_sweep_that_is_cut_short_has_a_best_so_far(sweep_state: Callable[..., SweepState]) -> None:
    state = sweep_state()
    name = str(state.add(made(0, lr=0.1))["name"])
    state.epoch(name, 1, "accuracy", 0.5)
    state.end(name, "interrupted", "")
    state.finish("out_of_time", "")
    assert state.content["winner"] == name


def test_tpe_proposes_no_setting_twice_and_stops_where_there_are_no_others(
    sweep_state: Callable[..., SweepState],
) -> None:
    from tune_spaces.proposals import Tpe

    space = {"lr": [0.01, 0.1], "image_size": [(8, 8), (16, 16)]}
    sweep = Sweep(recipe="digits.cnn", space=space, search="tpe", trials=9)
    tpe, tried = Tpe(sweep, "accuracy", "max", sweep_state()), set[str]()
    while (values := tpe.propose(tried)) is not None:
        assert setting(values) not in tried
        tried.add(setting(values))
        tpe.end(values, float(values["lr"]))
    assert len(tried) == 4


def test_random_trials_of_a_small_space_are_all_different() -> None:
    sweep = Sweep(recipe="digits.cnn", space={"lr": [0.01, 0.1], "epochs": [1, 2]}, search="random", trials=9)
    assert sorted(map(setting, drawn_of(sweep))) == sorted(map(setting, settings(sweep)))


@pytest.mark.parametrize(
    ("status", "winner", "trials", "code"),
    [
        ("finished", "a", ["finished", "failed"], 0),
        ("finished", None, ["failed", "does_not_fit"], 1),
        ("finished", None, ["does_not_fit", "out_of_memory", "settled"], 3),
        ("out_of_time", None, ["pending"], 1),
        ("interrupted", "a", ["interrupted"], 130),
    ],
)
def test_the_exit_code_follows_status_and_trials(status: str, winner: str | None, trials: list[str], code: int) -> None:
    content = {"status": status, "winner": winner, "trials": [{"status": each} for each in trials]}
    assert SweepResult("", content).exit_code == code


def test_a_trial_of_several_workers_that_has_run_ahead_can_be_left() -> None:
    from tune_spaces.trial import _Watch

    watch = _Watch({"name": "a"}, {"metric": "accuracy", "sign": 1}, mock.Mock(), None)
    lines = [{"epoch": epoch, "val/accuracy": 0.5, "seconds": 1.0} for epoch in (1, 2, 3)]
    with mock.patch.object(watch, "_ask"):
        ahead = threading.Thread(target=lambda: [watch.epoch(line) for line in lines], daemon=True)
        ahead.start()
        assert watch.events.get(timeout=900)["epoch"] == 1  # and Tune, which has seen it, wants no more
        watch.stop.set()
        watch.go.put(None)
        ahead.join(10)
    assert not ahead.is_alive()


def test_a_trial_that_ran_before_is_taken_over(sweep_state: Callable[..., SweepState], tmp_path: Path) -> None:
    folder = Store(tmp_path / "sweep" / "004-seed=4")
    recipe = resolve("digits.cnn").replace(seed=4, micro_batch_size=16)
    run = {"status": "finished", "recipe": recipe.to_json(), "scale": {}, "message": "done", "epochs_run": 2}
    folder.write_json("run.json", run)
    lines = [{"epoch": epoch, "val/accuracy": value} for epoch, value in ((1, 0.9), (2, 0.8))]
    folder.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    trial = sweep_state().add(made(4, seed=4))
    assert (trial["status"], trial["micro_batch_size"], trial["epochs_run"]) == ("finished", 16, 2)
    assert trial["best"] == {"epoch": 1, "metric": "accuracy", "value": 0.9}
    folder.write_json("run.json", run | {"status": "running"})
    assert sweep_state().add(made(4, seed=4))["status"] == "interrupted"


def test_a_space_may_be_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "from tune_spaces.sweep import Sweep\ndef fast():\n    return Sweep(recipe='digits.cnn', space={'lr': [1.0]})\n"
    )
    (tmp_path / "mine.py").write_text(text)
    assert list(find("./mine.py:fast").grid()) == [{"lr": 1.0}]
    with pytest.raises(ValueError, match="no function slow"):
        find("./mine.py:slow")
