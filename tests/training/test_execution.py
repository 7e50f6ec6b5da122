"""A run tries how its steps are executed, keeps that when it is continued, and names what keeps the machine busy."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from helpers import small
from helpers.small import small_recipe

from trainers import limits
from trainers.fitting import fit
from trainers.inference.load import restore
from trainers.recipe import Recipe, Scale
from trainers.storage.store import Store
from trainers.training import device, loop, tune_step
from trainers.training.distributed import World
from trainers.training.tune_step import Execution, Tuned

CPU = World(0, 1, torch.device("cpu"), "fp32")
USUAL = Execution(2, "channels_last")
PLAIN = Execution(2, "contiguous")
HALF = Execution(1, "channels_last")
HALF_PLAIN = Execution(1, "contiguous")


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def long_recipe(**changes: Any) -> Recipe:
    """In which more than threads is tried: of 1,438 pictures in 600 passes or more."""
    return small_recipe("digits.cnn", batch_size=8, micro_batch_size=8, epochs=4, **changes)


def tune(folder: Path, *wanted: Any, world: World = CPU, recipe: Recipe | None = None, **given: Any) -> Tuned:
    recipe = recipe or long_recipe()
    job = small.job(recipe.replace(epochs=1), None, folder, "run")
    given = {"most": 2, "keep": folder / "kept", **given}
    return tune_step.tune(recipe, job["data"]["meta"], world, *wanted, **given)


@pytest.mark.parametrize(
    ("world", "given"),
    [
        (dataclasses.replace(CPU, precision="fp64"), {}),
        (CPU, {"enabled": False}),
        (World(0, 2, CPU.device, "fp32", "fsdp2"), {}),
        (CPU, {"threads": 2, "memory_format": "channels_last"}),
    ],
)
def test_nothing_is_tried_in_float64_nor_where_it_is_fixed_or_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World, given: Any
) -> None:
    monkeypatch.setattr(tune_step._Trial, "step", lambda *_: pytest.fail("tried"))
    assert tune(tmp_path, world=world, **given)[:3] == (USUAL, "as it comes", {})


def test_what_was_found_is_kept_for_the_same_step_on_the_same_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tune_step, "_race", lambda trial, ways, _: {way: [0.5 if way == PLAIN else 1.0] for way in ways}
    )
    monkeypatch.setattr(tune_step, "_count_threads", lambda *_: {})
    monkeypatch.setattr(limits.Load, "leaves", lambda self, threads: threads - 1)
    first = tune(tmp_path)
    assert (first.execution, first.why) == (PLAIN, "tried")
    assert list(first.measured) == [HALF, USUAL, HALF_PLAIN, PLAIN]
    assert not (tmp_path / "kept").exists()  # as others kept the machine busy
    monkeypatch.setattr(limits.Load, "leaves", lambda self, threads: threads)
    assert tune(tmp_path).why == "tried"
    monkeypatch.setattr(tune_step, "_race", lambda *_: pytest.fail("tried again"))
    for recipe in (long_recipe(), long_recipe(lr=0.3, seed=5), long_recipe().replace(epochs=1)):  # of a sweep
        assert tune(tmp_path, recipe=recipe)[:2] == (PLAIN, "kept")
    monkeypatch.setattr(tune_step, "_race", lambda *_: {})
    monkeypatch.setattr(limits.Load, "leaves", lambda self, threads: threads - 1)
    assert tune(tmp_path).why == "as it comes"  # others take what it needs: it is tried again
    monkeypatch.setattr(limits.Load, "leaves", lambda self, threads: threads)
    others: list[Any] = [{"most": 3}, {"recipe": long_recipe(model_args={"num_filters": 5})}, {"threads": 2}]
    for other in others:
        assert tune(tmp_path, **other).why == "as it comes"
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text("{")
    assert tune(tmp_path).why == "as it comes"


class Rank(World):
    """One of two, each in a thread."""

    met = threading.Barrier(2, timeout=20)
    values: ClassVar[list[Any]] = [None, None]

    def gather_objects(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.met.wait()
        values = list(self.values)
        self.met.wait()
        return values


def test_two_workers_execute_steps_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the slower one of each way; and by what the first one's host has kept."""
    seconds = [{USUAL: [1.0], PLAIN: [0.5]}, {USUAL: [0.6], PLAIN: [0.8]}]
    monkeypatch.setattr(tune_step, "_race", lambda *_: seconds[int(threading.current_thread().name)])
    monkeypatch.setattr(limits.Load, "leaves", lambda self, threads: threads)
    recipe = long_recipe().replace(epochs=8)
    meta = small.job(recipe, None, tmp_path, "run")["data"]["meta"]
    found: dict[int, Tuned] = {}

    def work(rank: int) -> None:
        world, keep = Rank(rank, 2, CPU.device, "fp32"), tmp_path / str(rank)
        found[rank] = tune_step.tune(recipe, meta, world, 2, most=2, keep=keep)

    for why in ("tried", "kept"):
        workers = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [(found[rank].execution, found[rank].why) for rank in range(2)] == [(PLAIN, why)] * 2
    assert not (tmp_path / "1").exists()


def test_a_short_run_tries_threads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_step, "_race", lambda *_: pytest.fail("takes longer than it may gain"))
    found = tune(tmp_path, recipe=small_recipe("digits.cnn", batch_size=64, micro_batch_size=64, epochs=2))
    assert {way.memory_format for way in found.measured} == {"channels_last"}
    assert not (tmp_path / "kept").exists()


def test_a_run_of_fewer_steps_than_are_tried(tmp_path: Path) -> None:
    """A polynomial has no learning rate beyond the last step."""
    schedule: Any = {"schedule": "polynomial", "warmup_epochs": None, "epochs": 1}
    recipe = small_recipe("digits.cnn", batch_size=1024, micro_batch_size=64, **schedule)
    assert tune(tmp_path, recipe=recipe).why == "tried"


def test_trying_draws_no_number_and_changes_no_later_one(tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    tune(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(limits, "cpus", lambda: 2)


def choosing(way: Execution) -> Callable[..., Tuned]:
    """In place of `tune`: whatever is open, this way."""

    def tune(*given: Any, **_: object) -> Tuned:
        *_, threads, memory_format = given
        chosen = Execution(threads or way.threads, memory_format or way.memory_format)
        return Tuned(chosen, "tried", {way: 1.0}, 0.5)

    return tune


def trained(storage: Path, run: str = "run", epochs: int = 1, scale: Any = None, **changes: Any) -> Any:
    """run.json of a run."""
    changes = {"epochs": epochs, "warmup_epochs": 1, **changes}
    fit("digits.cnn", changes, Scale(workers=0, storage=str(storage), **scale or {}), run)
    return json.loads((storage / run / "run.json").read_text())


@pytest.mark.usefixtures("two_cores")
def test_a_small_network_gets_one_thread(tmp_path: Path) -> None:
    found = trained(tmp_path)
    assert found["threads"] == {"used": 1, "of": 2}
    assert torch.get_num_threads() == 1
    assert found["step"]["why"] == "tried"
    assert [tried["threads"] for tried in found["step"]["tried"]] in ([1], [1, 2])


@pytest.mark.usefixtures("two_cores")
def test_a_run_is_continued_as_it_was_executed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: Any = {"schedule": "constant", "model_args": {"dropout": 0.5}}
    monkeypatch.setattr(tune_step, "tune", choosing(PLAIN))
    whole = trained(tmp_path, "whole", epochs=2, **changes)
    step = {
        "memory_format": "contiguous",
        "why": "tried",
        "tried": [{**PLAIN._asdict(), "seconds": 1.0}],
        "seconds": 0.5,
    }
    assert (whole["step"], whole["threads"]) == (step, {"used": 2, "of": 2})
    trained(tmp_path, "parts", **changes)
    monkeypatch.setattr(tune_step, "tune", lambda *_, **__: pytest.fail("asked again"))
    parts = trained(tmp_path, "parts", epochs=2, **changes)
    assert (parts["step"], parts["threads"]) == (step, {"used": 2, "of": 2})
    ours, theirs = (small.last_weights(tmp_path / run) for run in ("whole", "parts"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    state, world = restore(Recipe.from_json(whole["recipe"]), whole["dataset"], Store(tmp_path / "whole"))
    assert world.memory_format == "contiguous"
    assert all(weight.is_contiguous() for weight in state.model.parameters())


@pytest.mark.usefixtures("two_cores")
def test_a_run_of_an_older_version_is_continued_in_channels_last_and_in_other_threads_where_these_are_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_step, "tune", choosing(USUAL))
    older = trained(tmp_path)
    del older["step"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(older))
    _, world = restore(Recipe.from_json(older["recipe"]), older["dataset"], Store(tmp_path / "run"))
    assert world.memory_format == "channels_last"
    monkeypatch.setattr(limits, "cpus", lambda: 4)
    monkeypatch.setattr(tune_step, "tune", choosing(Execution(3, "contiguous")))
    found = trained(tmp_path, epochs=2)
    assert (found["threads"], found["step"]["memory_format"]) == ({"used": 3, "of": 4}, "channels_last")
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    ("variable", "scale", "threads", "memory_format", "enabled"),
    [
        (None, {}, None, None, True),
        (None, {"cpus_per_worker": 2}, 2, None, True),
        ("3", {}, 3, None, True),
        ("3", {"cpus_per_worker": 1}, 1, None, True),
        (None, {"tune_step": False}, None, None, False),
    ],
)
def test_what_is_asked_for_is_not_tried(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    scale: Any,
    threads: int | None,
    memory_format: str | None,
    enabled: bool,
) -> None:
    class Asked(Exception):
        pass

    def tune(*given: Any, enabled: bool, **_: object) -> Tuned:
        raise Asked(*given[3:], enabled)

    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(tune_step, "tune", tune)
    with pytest.raises(Asked) as caught:
        trained(tmp_path, scale=scale)
    assert caught.value.args == (threads, memory_format, enabled)


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (2, 2), (8, 3)])
def test_a_quota_limits_the_threads_that_torch_starts_with(
    monkeypatch: pytest.MonkeyPatch, cpus: int, expected: int
) -> None:
    monkeypatch.setattr(limits, "cpus", lambda: cpus)
    torch.set_num_threads(3)
    device.limit_threads()
    assert torch.get_num_threads() == expected


# Beside other programs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "cores", "threads", "said"),
    [
        ([("a", 9.0, (2.0, 0.4))], 2, 1, "other programs kept 1.6 of 2 cores busy"),
        ([("a", 9.0, (2.0, 0.7))], 2, 1, "other programs kept 1.3 of 2 cores busy"),  # two threads beside this one
        ([("a", 9.0, (2.0, 0.8))], 2, 1, ""),
        ([("a", 9.0, (2.0, 0.9))], 4, 1, ""),  # on the other cores
        ([("a", 9.0, (2.0, 1.9))], 2, 2, ""),
        ([("a", 9.0, (2.0, 1.0)), ("a", 9.0, (2.0, 0.9))], 2, 1, ""),  # two ranks
        ([("a", 9.0, (2.0, 0.6)), ("a", 9.0, (2.0, 0.6))], 2, 1, "other programs kept 0.8 of 2 cores busy"),
        ([("a", 9.0, None)], 2, 2, ""),
    ],
)
def test_a_machine_that_others_keep_busy_is_named_once(
    monkeypatch: pytest.MonkeyPatch, ranks: Any, cores: int, threads: int, said: str
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    torch.set_num_threads(threads)
    heard: list[str] = []
    run = mock.Mock()
    run.world.rank, run.world.gather_objects = 0, lambda value: [(*ranks[0][:1], 4.9, (64.0, 0.0))]  # a short epoch
    run.reporter.report = lambda event: heard.append(event["text"])
    loop._warn_of_others(run)
    assert (heard, run.load is None) == ([], False)
    run.world.gather_objects = lambda value: [*ranks, ("b", 9.0, (64.0, 0.0))]
    loop._warn_of_others(run)
    loop._warn_of_others(run)
    assert len(heard) == bool(said)
    assert said in "".join(heard)
