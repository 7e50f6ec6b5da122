"""Every search with every scheduler, without Ray: trials whose scores are made up."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainers.storage.store import Store
from tune_spaces import ray_tune
from tune_spaces.proposals import Tpe, draws
from tune_spaces.sweep import Range, Sweep, setting
from tune_spaces.sweep_state import SweepState

SEARCHES, SCHEDULERS = ("grid", "random", "tpe"), ("none", "asha", "median", "pbt")
EPOCHS, TRIALS = 8, 12


def made(search: Any, scheduler: Any) -> Sweep:
    rates: Any = [0.001 * 2**step for step in range(TRIALS)] if search == "grid" else Range(1e-4, 1.0, log=True)
    return Sweep(recipe="digits.cnn", space={"lr": rates}, search=search, scheduler=scheduler, trials=TRIALS)


REFUSED = {("grid", "pbt"): "range", ("tpe", "pbt"): "--search random"}


@pytest.mark.parametrize(("search", "scheduler"), REFUSED)
def test_population_based_training_needs_a_random_search_over_a_range(search: str, scheduler: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[search, scheduler]):
        made(search, scheduler)


class Recorded:
    """The coordinator of a sweep; of its requests, those to stop a trial."""

    def __init__(self) -> None:
        self.stopped: dict[str, str] = {}
        self.stop = SimpleNamespace(remote=self.stopped.__setitem__)


class Made:
    """A trial as Tune's schedulers see one."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.config = name, {"trial": {"name": name}}


def result(epoch: int, score: float) -> dict[str, Any]:
    return {"epoch": epoch, "accuracy": score, "training_iteration": epoch}


ALLOWED = [pair for pair in itertools.product(SEARCHES, SCHEDULERS) if pair not in REFUSED]


@pytest.mark.parametrize(("search", "scheduler"), ALLOWED, ids=[" ".join(pair) for pair in ALLOWED])
def test_weak_trials_are_stopped_and_the_best_is_not(
    search: str, scheduler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_tune.ray, "get", lambda found: found)
    sweep, coordinator = made(search, scheduler), Recorded()
    facts: Any = {"metric": "accuracy", "mode": "max", "plan": {"scheduler": scheduler}}
    tpe = Tpe(sweep, "accuracy", "max", SweepState(Store(tmp_path), facts, None)) if search == "tpe" else None
    drawn = iter(sweep.grid() if search == "grid" else draws(sweep) if search == "random" else ())
    schedule: Any = ray_tune.scheduler(sweep, scheduler, EPOCHS, "accuracy", "max", coordinator)  # type: ignore[arg-type]
    scores: dict[str, float] = {}
    while len(scores) < TRIALS:
        values: Any = tpe.propose(set(scores)) if tpe else next(drawn)
        name = setting(values)
        scores[name] = 1 - abs(values["lr"] - 0.03)
        if scheduler != "pbt":  # which looks into Tune's controller
            one = Made(name)
            schedule.on_trial_add(None, one)
            for epoch in range(1, EPOCHS + 1):
                assert schedule.on_trial_result(None, one, result(epoch, scores[name] * epoch / EPOCHS)) == "CONTINUE"
                if name in coordinator.stopped:
                    break
            schedule.on_trial_complete(None, one, result(epoch, scores[name] * epoch / EPOCHS))
        if tpe:
            tpe.end(values, scores[name])
    assert len(scores) == TRIALS
    best = max(scores, key=lambda name: scores[name])
    assert best not in coordinator.stopped
    assert bool(coordinator.stopped) == (scheduler in ("asha", "median"))
    assert all("accuracy" in why for why in coordinator.stopped.values())
    kinds = {"none": "FIFOScheduler", "asha": "EarlyStopping", "median": "EarlyStopping", "pbt": "Population"}
    assert type(schedule).__name__ == kinds[scheduler]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_scheduler_remembers_the_trials_of_an_earlier_process(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tune.ray, "get", lambda found: found)
    coordinator = Recorded()
    schedule: Any = ray_tune.scheduler(
        made("random", scheduler),
        scheduler,
        EPOCHS,
        "accuracy",
        "max",
        coordinator,  # type: ignore[arg-type]
    )
    for number in range(8):
        lines = [{"epoch": epoch, "val/accuracy": 0.8 + 0.01 * number} for epoch in range(1, EPOCHS + 1)]
        schedule.replay(ray_tune.PastTrial(f"past {number}"), lines)
    schedule.replay(
        ray_tune.PastTrial("weak, but it came first"), [{**line, "val/accuracy": 0.2} for line in lines], "it"
    )
    schedule.on_trial_result(None, Made("it"), result(EPOCHS, 0.2))
    assert not coordinator.stopped
    weak = Made("weak")
    schedule.on_trial_add(None, weak)
    for epoch in (1, 2, 3):  # workers run ahead
        schedule.on_trial_result(None, weak, result(epoch, 0.1))
    assert list(coordinator.stopped) == ["weak"]
