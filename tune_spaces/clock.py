"""The time that a sweep may train for."""

from __future__ import annotations

import time

CLOSING_SECONDS = 4.0
"""Of a budget: what is left for the last checkpoints and the report."""


class Clock:
    """Counts from the start of the first trial: preparing data and starting Ray take nothing off a budget."""

    def __init__(self, seconds: float | None) -> None:
        """`seconds`: of the budget; None: there is none."""
        self.seconds = seconds
        self._deadline: float | None = None

    @property
    def usable(self) -> float:
        """Seconds until trials are asked to end."""
        return 0.0 if self.seconds is None else self.seconds - min(CLOSING_SECONDS, self.seconds / 4)

    def start(self) -> None:
        """A trial starts."""
        if self.seconds is not None and self._deadline is None:
            self._deadline = time.monotonic() + self.usable

    def is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline
