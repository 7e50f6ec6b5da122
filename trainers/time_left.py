"""How long something will still take."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

SOONEST = 2.0
"""Seconds before which nothing is said: the first steps tell little."""
WINDOW = 30.0
"""Seconds that are looked back on, at least; else half of all, so that waits that come again are counted in."""
SMOOTH = 30.0
"""Seconds within which what is said comes near what was found."""
FARTHEST = 2.0
"""Factor by which what is said differs from what was found, at most: else what becomes faster shortly before its end
would end with minutes left."""
MARKS = 200
"""Moments that are kept of the window, about."""


class TimeLeft:
    """An estimate from how it has gone lately, waits between steps included.

    What comes before the first call, such as what is made ready once, is left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, float]] = deque()
        """(time, done) of moments, the oldest first."""
        self._begun: float | None = None
        self._said: tuple[float, float] | None = None
        """(time, seconds left) of the last answer."""

    def at(self, done: float, total: float) -> float | None:
        """Seconds that are left; None: it cannot be told yet.

        Args:
            done: What is done now, in any unit; it is called again and again, each time with as much or more.
            total: What there is to do.
        """
        now, marks = self._clock(), self._marks
        if marks and done < marks[-1][1]:  # it began again
            marks.clear()
            self._said = None
        if not marks:
            self._begun = now
        elapsed = now - (self._begun or now)
        if not marks or now - marks[-1][0] >= elapsed / MARKS:
            marks.append((now, done))
        while len(marks) > 2 and now - marks[1][0] >= max(WINDOW, elapsed / 2):
            marks.popleft()
        seconds, moved = now - marks[0][0], done - marks[0][1]
        if seconds < SOONEST or moved <= 0:
            return None
        found = max(0.0, total - done) * seconds / moved
        if self._said is not None and found > 0:
            before = self._said[1] - (now - self._said[0])
            smooth = before + (found - before) * (1 - math.exp((self._said[0] - now) / SMOOTH))
            found = min(max(smooth, found / FARTHEST), found * FARTHEST)
        self._said = now, found
        return found
