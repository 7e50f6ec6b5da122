"""Loss, speed and waiting times of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from trainers.data.batches import Batch
from trainers.training.step import Run, Step, to_numbers

PROGRESS_SECONDS = 0.5


class Meter:
    """Adds up loss, pictures and seconds of the running epoch into `state.sums`, and tells of progress."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sums: dict[str, Any] = dict.fromkeys(("images", "seconds", "data_wait"), 0.0)
        self.sums |= {"loss": [], "divisor": []}  # a number for each term of the loss
        self.sums |= run.state.sums
        self.recent: list[tuple[Tensor | None, Tensor | list[float]]] = []
        """Losses and divisors of the steps since the last look, on the device."""
        self.lr = 0.0
        self._start = time.perf_counter()
        self._told = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time spent waiting for each counted."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.sums["data_wait"] += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def step(self, step: Step, images: int) -> None:
        self.recent.append((step.loss, step.divisors))
        self.sums["images"] += images
        self.lr = step.lr
        now = time.perf_counter()
        if self.run.world.rank == 0 and now - self._told > PROGRESS_SECONDS:
            self._told = now
            self._report(step.mean())

    def flush(self) -> None:
        """Bring `state.sums` up to date."""
        assert not self.recent
        now = time.perf_counter()
        self.sums["seconds"] += now - self._start
        self._start = now
        self.run.state.sums = {**self.sums, "lr": self.lr}

    def look(self) -> str | None:
        """Add up the losses since the last look; waits for the device. Returns what is wrong with them, or None."""
        recent, self.recent = self.recent, []
        for index, pair in enumerate(recent):
            losses, divisors = map(to_numbers, pair)
            if not all(map(math.isfinite, losses)):
                step = self.run.state.step - len(recent) + index + 1
                return diverged("training loss", sum(losses), self.run.state.epoch + 1, step, self.lr)
            for name, values in (("loss", losses), ("divisor", divisors)):
                before = self.sums[name] or [0.0] * len(values)
                self.sums[name] = [old + new for old, new in zip(before, values, strict=True)]
        return None

    def _report(self, loss: float) -> None:
        run, state, sums = self.run, self.run.state, self.sums
        seconds = sums["seconds"] + time.perf_counter() - self._start
        rate = sums["images"] / seconds
        done = state.epoch + sums["images"] / run.rows
        best = state.history[-1] if state.history else None
        name = f"val/{run.task.metric}"
        run.reporter.report(
            {
                "kind": "step",
                "epoch": state.epoch + 1,
                "epochs": run.recipe.epochs,
                "step": state.step,
                "steps": run.steps,
                "loss": loss,
                "score": None if best is None else f"{run.task.metric} {best[name]:.4f}",
                "images_per_second": rate,
                "data_wait_share": sums["data_wait"] / seconds,
                "seconds_left": (run.recipe.epochs - done) * run.rows / rate,
            }
        )


def diverged(what: str, value: float, epoch: int, step: int, lr: float) -> str:
    return (
        f"the {what} is {value} in epoch {epoch}, step {step}, at learning rate {lr:.4g}; the last good checkpoint "
        "is kept. Try a smaller --lr, --clip-norm 1, or --warmup-epochs 1, under a new --run"
    )
