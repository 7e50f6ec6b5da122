"""How steps are executed is tried on the machine, in little time, and chosen by rules."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from helpers import small
from helpers.small import small_recipe
from torch import nn

from trainers import limits
from trainers.messages import Meta
from trainers.training import tune_step
from trainers.training.distributed import World
from trainers.training.tune_step import Execution

CPU = World(0, 1, torch.device("cpu"), "fp32")
USUAL = Execution(2, "channels_last")
PLAIN = Execution(2, "contiguous")
HALF = Execution(1, "channels_last")
HALF_PLAIN = Execution(1, "contiguous")
LONG = 100_000
"""Passes of a run in which trying takes the seconds that it may take at most."""
META = cast(Meta, {"channels": 1, "classes": list("0123456789"), "rows": {"train": 100}})
RECIPE = small_recipe("digits.cnn", batch_size=8, micro_batch_size=8, epochs=1)


class Raises(nn.Module):
    """A model that fails."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"{len(images)} pictures")


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# What is chosen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "noisy", "expected"),
    [
        ({USUAL: 1.0, PLAIN: 1.2}, False, USUAL),
        ({USUAL: 1.0, PLAIN: 0.96}, False, USUAL),  # not clearly faster
        ({USUAL: 1.0, PLAIN: 0.94}, False, PLAIN),
        ({USUAL: 1.0, HALF: 0.9}, False, HALF),  # two processors of one core
        ({USUAL: 1.0, HALF: 0.9}, True, USUAL),  # another program holds the other one
        ({USUAL: 1.0, HALF: 0.75, PLAIN: 0.7}, True, PLAIN),
        ({USUAL: 1.0, HALF: 0.75, PLAIN: 0.85}, True, HALF),
        ({USUAL: 2.1, HALF: 0.09}, True, HALF),  # threads wait for cores that others keep busy
        ({USUAL: 2.1, HALF: 0.09, HALF_PLAIN: 0.08, PLAIN: 1.9}, True, HALF_PLAIN),
        ({HALF: 0.5, HALF_PLAIN: 0.4}, True, USUAL),  # there was no time for it: as slow as that may be by itself
        ({}, False, USUAL),
    ],
)
def test_the_fastest_is_taken_where_it_is_clearly_faster(
    measured: Mapping[Execution, float], noisy: bool, expected: Execution
) -> None:
    assert tune_step.choose(measured, USUAL, noisy) == expected


@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [
        ({1: 0.020, 2: 0.019}, 2, 1),
        ({1: 0.020, 2: 0.500}, 2, 1),  # beside a busy program
        ({1: 0.020, 2: 0.011}, 2, 2),
        ({1: 0.020, 2: 0.017}, 2, 2),
        ({1: 0.020, 2: 0.011, 3: 0.008}, 3, 3),
        ({1: 0.020, 2: 0.011, 4: 0.0102}, 64, 2),
        ({1: 0.040, 2: 0.021, 4: 0.011, 6: 0.008}, 6, 6),
        ({1: 0.001}, 64, 1),
        ({1: 0.100}, 64, 64),
    ],
)
def test_threads_are_doubled_as_long_as_that_pays(seconds: Mapping[int, float], most: int, expected: int) -> None:
    tried: list[int] = []

    def step(way: Execution) -> Callable[[], float]:
        tried.append(way.threads)
        return lambda: seconds[way.threads]

    usual = USUAL._replace(threads=most)
    measured = tune_step._doubled(step, usual)
    assert tried == list(seconds)
    assert measured == {usual._replace(threads=count): took for count, took in seconds.items()}
    assert tune_step.fewest_threads(measured, usual).threads == expected


@pytest.mark.parametrize("held_up", [0, 1, 2])
def test_a_pass_that_a_busy_machine_holds_up_decides_nothing(held_up: int) -> None:
    passes = itertools.count()
    usual = USUAL._replace(threads=64)
    measured = tune_step._doubled(lambda _: lambda: 0.2 if next(passes) == held_up else 0.001, usual)
    assert tune_step.fewest_threads(measured, usual).threads == 1


class Machine:
    """Steps that take no time, but move a clock on."""

    def __init__(self, seconds: Callable[[Execution, int], float]) -> None:
        self.seconds, self.clock = seconds, 0.0
        self.turns: list[Execution] = []

    def now(self) -> float:
        return self.clock

    def step(self, way: Execution) -> Callable[[], float]:
        def once() -> float:
            took = self.seconds(way, len(self.turns))
            self.turns.append(way)
            self.clock += took
            return took

        return once

    def try_all(self, *ways: Execution, passes: int = LONG) -> Mapping[Execution, float]:
        with mock.patch("time.perf_counter", self.now):
            return {way: min(took) for way, took in tune_step._take_turns(self.step, ways, passes).items()}


def test_ways_take_turns_and_the_fastest_step_of_each_counts() -> None:
    """Another program holds up most steps."""
    machine = Machine(lambda way, turn: (0.002 if way.threads == 2 else 0.001) * (1.0 if turn % 3 == 0 else 5.0))
    assert search(machine, 2, left=2.0) == 1
    assert machine.turns[1:] == [HALF, USUAL] * tune_step.ROUNDS


def test_on_a_busy_machine_the_median_counts() -> None:
    """Few steps in two threads get both cores; where nobody takes any, these are what training will be like."""
    machine = Machine(lambda way, turn: 0.0015 if way.threads == 1 else 0.001 if turn % 5 == 0 else 0.002)
    assert search(machine, 2, left=1.0) == 1
    assert search(machine, 2, left=2.0) == 2


def test_a_step_that_waits_for_cores_is_made_once() -> None:
    """Half the threads come first: then it is known what a step can take, before one in all of them takes long."""
    machine = Machine(lambda way, _: 0.09 if way.threads == 1 else 2.1)
    found = machine.try_all(*tune_step._ways(USUAL, 1, reorder=True))
    assert machine.turns[:3] == [HALF, HALF, USUAL]
    assert machine.turns.count(USUAL) == 1
    assert PLAIN not in machine.turns  # in as many threads, for which there is no time
    assert machine.turns.count(HALF_PLAIN) > 1
    assert machine.clock <= tune_step.MOST_TRIED
    assert tune_step.choose(found, USUAL, noisy=True).threads == 1


@pytest.mark.parametrize("seconds", [1e-4, 0.01, 0.3, 1.4, 2.0, 5.0])
@pytest.mark.parametrize("passes", [1, 600, LONG])
@pytest.mark.parametrize("slower", [1.0, 1.9, 7.0, 30.0])
def test_trying_ends_in_time_but_for_a_step_of_which_nothing_is_known(
    seconds: float, passes: int, slower: float
) -> None:
    machine = Machine(lambda way, _: seconds * (slower if way.threads == 2 else 1.0))
    machine.try_all(*tune_step._ways(USUAL, 1, reorder=True), passes=passes)
    allowed = max(tune_step.LEAST_TRIED, tune_step.SHARE * passes * seconds)
    unknown = seconds * (slower if USUAL in machine.turns else 1.0)
    assert machine.clock <= min(tune_step.MOST_TRIED, seconds + allowed) + unknown
    most = 1 + tune_step.ROUNDS * 4
    fits = slower < tune_step.HOPELESS and most * slower * seconds < min(tune_step.MOST_TRIED, allowed)
    assert len(machine.turns) == most or not fits
    assert len(machine.turns) <= most


def test_the_first_pass_may_take_long_by_itself() -> None:
    """Libraries are loaded in it, which takes as long as trying may in a run that is not long."""
    machine = Machine(lambda way, turn: 0.5 if turn == 0 else 0.01)
    assert machine.try_all(HALF, USUAL, passes=600) == {HALF: 0.01, USUAL: 0.01}


def test_steps_that_take_seconds_are_not_tried() -> None:
    machine = Machine(lambda *_: 4.0)
    assert machine.try_all(HALF, USUAL) == {}
    assert machine.turns == [HALF]


def search(machine: Machine, threads: int, left: float, passes: int = LONG) -> int:
    """Threads of a network that gets all where nothing is tried, beside programs that leave so many cores."""
    trial = mock.Mock(device=CPU.device, step=machine.step)
    trial.passes.return_value, trial.copies_bytes.return_value = passes, 0
    load = mock.Mock()
    load.leaves.return_value = left
    with mock.patch("time.perf_counter", machine.now):
        found, *_ = tune_step._search(trial, CPU, USUAL._replace(threads=threads), load, fewer=True, reorder=False)
    return found.threads


@pytest.mark.parametrize(
    ("left", "tried", "expected"), [(64, 32, 64), (60.3, 60, 60), (4.6, 4, 4), (1.9, 1, 1), (0.2, 1, 1)]
)
def test_as_many_threads_are_tried_as_others_leave_cores(left: float, tried: int, expected: int) -> None:
    """One thread without a core, and all wait for it."""
    machine = Machine(lambda way, _: 0.4 / way.threads + (0.9 if way.threads > max(1.0, left) else 0.0))
    assert search(machine, 64, left) == expected
    assert {way.threads for way in machine.turns} == {tried, 64}


@pytest.mark.parametrize(("left", "passes", "expected", "steps"), [(2, 599, 2, 0), (0.7, 149, 2, 0), (0.7, 150, 1, 3)])
def test_a_shorter_run_tries_fewer_threads_where_the_machine_is_busy(
    left: float, passes: int, expected: int, steps: int
) -> None:
    machine = Machine(lambda way, _: 0.09 if way.threads == 1 else 2.1)
    assert search(machine, 2, left, passes) == expected
    assert len(machine.turns) == steps


def test_what_cannot_be_tried_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tune_step._Trial(RECIPE, META, CPU)
    monkeypatch.setattr(limits, "memory", lambda: 5 * trial.copies_bytes() - 1)
    assert tune_step._race(trial, [USUAL, PLAIN], 1) == {}
    monkeypatch.undo()
    trial.model = Raises()
    assert tune_step._race(trial, [USUAL, PLAIN], 1) == {}
    assert tune_step._count_threads(trial, USUAL) == {}


def test_ranks_choose_by_the_slowest_of_them() -> None:
    assert tune_step._agreed([{USUAL: 1.0, PLAIN: 0.5}, {USUAL: 0.9, PLAIN: 2.0}]) == {USUAL: 1.0, PLAIN: 2.0}
    assert tune_step._agreed([{USUAL: 1.0, PLAIN: 0.5}, {USUAL: 0.9}]) == {USUAL: 1.0}
    assert tune_step._agreed([{USUAL: 1.0}, {}]) == {}


# How it is tried -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (1, 4, 10, 12), 5 * 6 * 8 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 7), 5 * 7 * 4 * 6 * 4),
        (nn.Linear(5, 7), (1, 11, 5), 11 * 5 * 7),
        (nn.BatchNorm2d(4), (1, 4, 5, 5), 0),
    ],
)
def test_the_work_of_a_layer_is_counted(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    before = copy.deepcopy(layer.state_dict())
    assert tune_step._multiplications(layer, torch.zeros(shape), 10**9) == expected
    assert layer.training
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_no_more_is_counted_than_must_be_known() -> None:
    layers = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 11), Raises())
    assert tune_step._multiplications(layers, torch.zeros(1, 5), 100) == 5 * 7 + 7 * 11


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (Raises(), {}),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), {}),  # does not go with the pictures
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2**18)), {}),  # large
        (nn.Conv2d(1, 64, 3, padding=1), {"image_size": (512, 512), "stored_size": None}),  # large pictures
    ],
)
def test_what_is_large_or_cannot_be_tried_gets_all_threads(model: nn.Module, changes: Mapping[str, Any]) -> None:
    trial = tune_step._Trial(RECIPE.replace(**changes), META, CPU)
    trial.model = model
    usual = USUAL._replace(threads=6)
    assert tune_step.fewest_threads(tune_step._count_threads(trial, usual), usual) == usual


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("digits.cnn", "fp32"),
        ("shapes.unet", "fp32"),
        pytest.param("shapes.unet", "bf16", marks=pytest.mark.slow),
        pytest.param("erfnet.decoder", "fp32", marks=pytest.mark.slow),  # in more steps than it has
        pytest.param("shapes.fcos", "fp32", marks=pytest.mark.slow),
        pytest.param("folder.tune_values", "fp32", marks=pytest.mark.slow),
    ],
)
def test_the_step_of_a_recipe_can_be_tried_in_every_way(
    name: str, precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_step, "ROUNDS", 2)
    monkeypatch.setattr(tune_step, "MOST_TRIED", float("inf"))
    monkeypatch.setattr(tune_step, "LEAST_TRIED", float("inf"))
    recipe = small_recipe(name, epochs=1)
    job = small.job(recipe, small.small_data(name, tmp_path / "raw"), tmp_path, "run")
    trial = tune_step._Trial(recipe, job["data"]["meta"], World(0, 1, CPU.device, precision))
    assert set(tune_step._race(trial, [USUAL, PLAIN], 1)) == {USUAL, PLAIN}
