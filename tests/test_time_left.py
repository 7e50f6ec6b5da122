"""Times left neither jump nor promise what is not known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from trainers.time_left import SOONEST, TimeLeft


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def estimates(seconds: Iterator[float] | list[float], total: int) -> list[tuple[float, float | None]]:
    """(time, seconds left) after each of `total` steps that take so long."""
    clock, found = Clock(), []
    time_left = TimeLeft(clock)
    for done, taken in enumerate(seconds, 1):
        clock.now += taken
        found.append((clock.now, time_left.at(done, total)))
    return found


def test_a_slow_first_step_is_left_out() -> None:
    """A device is woken, a model compiled: 5 minutes that come once."""
    found = [(at, left) for at, left in estimates([300.0] + [0.1] * 99, 100) if left is not None]
    for at, left in found:
        assert left == pytest.approx(309.9 - at, abs=0.2)


def test_nothing_is_said_before_it_is_known() -> None:
    found = estimates([0.01] * 1000, 100_000)
    assert found[0][1] is None
    assert all(left is None for at, left in found if at < SOONEST)
    assert found[-1][1] == pytest.approx(990, rel=0.01)


def test_what_comes_again_is_counted_in_and_nothing_jumps() -> None:
    """An evaluation of 5 s after every 20 steps of 1 s."""
    seconds = [6.0 if step % 20 == 0 else 1.0 for step in range(400)]
    found, end = estimates(seconds, 400), sum(seconds)
    known = [(at, left) for at, left in found if left is not None]
    late = [(at, left) for at, left in known if at > 100]
    for at, left in late:
        assert left == pytest.approx(end - at, rel=0.1, abs=6)
    for (at, left), (after, following) in itertools.pairwise(late):
        assert abs(left - (after - at) - following) <= 0.1 * left + 5


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_machine_that_becomes_slower_or_faster_is_noticed(factor: float) -> None:
    found = estimates([1.0] * 100 + [factor] * 600, 700)
    assert found[-100][1] == pytest.approx(100 * factor, rel=0.15)


def test_a_run_that_begins_again_is_measured_anew() -> None:
    clock = Clock()
    time_left = TimeLeft(clock)
    for done in (5, 6, 7, 1):
        clock.now += 10
        last = time_left.at(done, 10)
    assert last is None
    clock.now += 10
    assert time_left.at(2, 10) == pytest.approx(80)


def test_what_becomes_faster_shortly_before_its_end_does_not_end_with_a_minute_left() -> None:
    found = estimates([1.0] * 600 + [0.1] * 100, 700)
    assert found[-2][1] is not None
    assert found[-2][1] < 2
