"""The actor between the driver of a sweep and its trials. It starts in a process of its own: it imports nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune_spaces.messages import Answer


class SweepCoordinator:
    """One for each sweep: the requests of the driver, and the best score so far."""

    def __init__(self, sign: int) -> None:
        """`sign`: 1 where more is better, -1 where less is."""
        self.sign = sign
        self.best: float | None = None
        self.verdicts: dict[str, str] = {}
        self.all_stop = False
        self.given_up: dict[str, tuple[str, str]] = {}

    def stop(self, name: str, why: str) -> None:
        """The trial ends after this epoch, for good."""
        self.verdicts[name] = why

    def stop_all(self) -> None:
        """All trials save and end; they can continue later."""
        self.all_stop = True

    def give_up(self, name: str, status: str, why: str) -> None:
        """The trial is not started (again): its process ran out of memory, or a smaller trial did."""
        self.given_up[name] = (status, why)

    def ask(self, name: str) -> Answer:
        """What has been requested of a trial."""
        return {"stop": self.all_stop, "verdict": self.verdicts.get(name), "given_up": self.given_up.get(name)}

    def is_best(self, value: float) -> bool:
        """Whether no trial that ended before has a better score."""
        best = self.best is None or self.sign * value >= self.sign * self.best
        if best:
            self.best = value
        return best
