"""The time of a sweep: what a budget counts, what it holds, and where setup ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainers.storage.store import Store
from tune_spaces import clock, sweep_state
from tune_spaces.clock import Clock
from tune_spaces.forecast import Forecast
from tune_spaces.sweep_state import SweepState


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, by time.monotonic()."""
    time = [100.0]
    for module in (clock, sweep_state):
        monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


def test_a_budget_counts_from_the_start_of_the_first_trial(now: list[float]) -> None:
    made = Clock(60.0)
    now[0] += 1000  # preparing
    assert not made.is_over()
    made.start()
    now[0] += 55
    made.start()  # of a further trial
    assert not made.is_over()
    now[0] += 2  # some is left for checkpoints and the report
    assert made.is_over()
    assert made.usable == 56.0


def test_of_a_short_budget_a_quarter_is_left_for_the_end() -> None:
    assert Clock(2.0).usable == 1.5


def test_without_a_budget_time_is_never_over(now: list[float]) -> None:
    made = Clock(None)
    made.start()
    now[0] += 1e9
    assert not made.is_over()


@pytest.mark.parametrize(
    ("concurrency", "further", "seconds", "held"),
    [
        (1, 0, 9.0, 0),
        (1, 0, 10.0, 1),
        (1, 0, 35.0, 2),
        (2, 0, 30.0, 3),  # 10 and 20 at once, then 30 beside them
        (2, 0, 29.0, 2),
        (1, 2, 100.0, 5),  # those that are not known yet take the mean
        (1, 2, 85.0, 4),
    ],
)
def test_the_plan_says_how_many_trials_a_budget_holds(
    concurrency: int, further: int, seconds: float, held: int
) -> None:
    expected = Forecast({"a": 10.0, "b": 20.0, "c": 30.0}, concurrency, further)
    assert expected.held(seconds) == held
    assert expected.total == pytest.approx((60 + 20 * further) / concurrency)


def test_a_forecast_of_nothing_holds_nothing() -> None:
    assert (Forecast({}, 2).total, Forecast({}, 2).held(9.0)) == (0.0, 0)


def test_setup_and_total_are_counted_from_one_start_over_all_processes(tmp_path: Path, now: list[float]) -> None:
    facts: Any = {"metric": "accuracy", "mode": "max", "plan": {"scheduler": "none"}}
    begun = now[0]
    now[0] += 30  # preparing, before there is a record
    state = SweepState(Store(tmp_path / "sweep"), facts, None, begun)
    now[0] += 5
    state.end_setup()
    now[0] += 10
    state.finish("finished", "")
    assert state.content["seconds"] == {"setup": 35.0, "total": 45.0}
    now[0] += 1000
    again = SweepState(Store(tmp_path / "sweep"), facts, state.content, now[0] - 3)
    again.end_setup()
    now[0] += 7
    again.finish("finished", "")
    assert again.content["seconds"] == {"setup": 38.0, "total": 55.0}
