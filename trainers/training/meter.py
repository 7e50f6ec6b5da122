"""Loss, speed and waiting time of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from torch import Tensor

from trainers.data.batches import Batch
from trainers.messages import Sums
from trainers.training.step import Run, Step, to_numbers

PROGRESS_SECONDS = 0.5


class Meter:
    """Adds up loss, pictures and seconds of the running epoch into `state.sums`, and reports progress."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sums: Sums = {"images": 0.0, "seconds": 0.0, "data_wait": 0.0, "loss": [], "divisor": [], **run.state.sums}
        self.recent: list[tuple[Tensor | None, Tensor | list[float]]] = []
        """Losses and divisors, on the device, of the steps since the last `check`."""
        self.lr = 0.0
        self._start = time.perf_counter()
        self._reported_at = 0.0

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
        """Take in a step.

        Args:
            step: After its `update`.
            images: Of its whole batch.
        """
        self.recent.append((step.loss, step.divisors))
        self.sums["images"] += images
        self.lr = step.lr
        now = time.perf_counter()
        if self.run.world.rank == 0 and now - self._reported_at > PROGRESS_SECONDS:
            self._reported_at = now
            self._report(step.mean())

    def flush(self) -> None:
        """Bring `state.sums` up to date."""
        assert not self.recent  # `check` was called
        now = time.perf_counter()
        self.sums["seconds"] += now - self._start
        self._start = now
        self.run.state.sums = {**self.sums, "lr": self.lr}

    def check(self) -> str | None:
        """Add up the losses since the last call; waits for the device. Returns what is wrong with them, or None."""
        recent, self.recent = self.recent, []
        for index, pair in enumerate(recent):
            losses, divisors = map(to_numbers, pair)
            if not all(map(math.isfinite, losses)):
                step = self.run.state.step - len(recent) + index + 1
                return diverged("training loss", sum(losses), self.run.state.epoch + 1, step, self.lr)
            self.sums["loss"] = _add(self.sums["loss"], losses)
            self.sums["divisor"] = _add(self.sums["divisor"], divisors)
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
                "seconds_left": run.time_left.at(done, run.recipe.epochs),
            }
        )


def _add(sums: list[float], new: list[float]) -> list[float]:
    """Term by term; no sums: all 0."""
    return [old + each for old, each in zip(sums or [0.0] * len(new), new, strict=True)]


def diverged(what: str, value: float, epoch: int, step: int, lr: float) -> str:
    """The message of a run that ends as a loss is not finite.

    Args:
        what: Which loss.
        value: Of the loss.
        epoch: Counted from 1.
        step: Counted from 1, over all epochs.
        lr: Learning rate of that step.
    """
    return (
        f"the {what} is {value} in epoch {epoch}, step {step}, at learning rate {lr:.4g}; the last good checkpoint "
        "is kept. Try a smaller --lr, --clip-norm 1, or --warmup-epochs 1, under a new --run"
    )
