"""What a sweep will take, printed before it starts: memory of each trial, time from a short probe, what cannot fit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainers.formatting import format_size
from trainers.messages import DataSpec
from trainers.recipe import Recipe
from tune_spaces.messages import TrialEntry
from tune_spaces.sweep import Cell, format_value

if TYPE_CHECKING:
    from rich.table import Table

PROBE_SECONDS = 0.5
PROBE_PIXELS = 2**20
"""A probe's batch is at most so large: it must be short on any model."""
MOST_PROBES = 3
MOST_ROWS = 30


def probe(recipe: Recipe, data: DataSpec, threads: int) -> float:
    """The speed of training steps on this process's device, from about half a second of them.

    Args:
        recipe: what is trained.
        data: prepared pictures, on this host.
        threads: of this process, for as long as it takes.

    Returns:
        Pixels per second.
    """
    assert data["folder"] is not None
    import torch

    from trainers.data.batches import Cached
    from trainers.training import build, device, distributed, loop
    from trainers.training.step import Reporter

    height, width = recipe.image_size
    batch = max(2, min(recipe.batch_size, PROBE_PIXELS // (height * width)))
    recipe = recipe.replace(batch_size=batch, micro_batch_size=batch, epochs=1, init_from=None)
    recipe = recipe.replace(precision=device.resolve_precision(recipe.precision, torch.cuda.is_available()))
    before = torch.get_num_threads()
    device.set_threads(threads)
    try:
        world = distributed.World(0, 1, device.choose_device(), recipe.precision)  # type: ignore[arg-type]
        state = build.create_state(build.without_weights(recipe), data["meta"], world)
        start: list[float] = []

        def over() -> bool:
            start.append(time.perf_counter())
            return len(start) > 1 and start[-1] - start[0] > PROBE_SECONDS  # the first step is slower than the rest

        loop.train(recipe, state, Cached(data["folder"]), world, reporter=Reporter(stopping=over))
    finally:
        device.set_threads(before)
    steps = max(1, len(start) - 1)
    seconds = start[-1] - start[0] if len(start) > 1 else PROBE_SECONDS
    return steps * batch * height * width / seconds


@dataclass(frozen=True)
class Forecast:
    """Seconds of training, if every trial ran to its last epoch."""

    seconds: Mapping[str, float]
    """Of each trial, by name."""
    concurrency: int
    further: int = 0
    """Trials that are not known yet: they take the mean of the others."""

    @property
    def _all(self) -> list[float]:
        known = list(self.seconds.values())
        return known + [sum(known) / len(known)] * self.further if known else []

    @property
    def total(self) -> float:
        return max(sum(self._all) / self.concurrency, max(self._all, default=0.0))

    def held(self, seconds: float) -> int:
        """How many trials, in their order, end within so many seconds."""
        ends = itertools.accumulate(self._all)
        return sum(max(end / self.concurrency, took) <= seconds for end, took in zip(ends, self._all, strict=True))


def forecast(
    cells: Sequence[Cell],
    epochs: Mapping[str, int],
    data: Mapping[str, DataSpec],
    threads: int,
    concurrency: int,
    further: int = 0,
) -> Forecast | None:
    """Time of each trial, from probes of the smallest pictures: a convolution's work grows as their pixels do.

    Args:
        cells: the trials.
        epochs: name of a trial -> epochs that it has before it.
        data: name of a trial -> its prepared pictures.
        threads: of each trial.
        concurrency: trials at once.
        further: trials that are not known yet.

    Returns:
        The times; None where a probe fails: the trials will report why.
    """
    rates: dict[str, float] = {}
    seconds = {}
    for cell in sorted(cells, key=lambda cell: cell.recipe.image_size):
        key = repr((cell.recipe.model, sorted(cell.recipe.model_args.items())))
        if key not in rates and len(rates) < MOST_PROBES:
            try:
                rates[key] = probe(cell.recipe, data[cell.name], threads)
            except Exception:
                return None
        rate = rates.get(key) or next(iter(rates.values()))
        height, width = cell.recipe.image_size
        rows = data[cell.name]["meta"]["rows"]["train"]
        seconds[cell.name] = epochs[cell.name] * rows * height * width / rate
    return Forecast(seconds, concurrency, further)


def table(trials: Sequence[TrialEntry], seconds: Mapping[str, float]) -> Table:
    """What will run, as a table for the console.

    Args:
        trials: entries of sweep.json.
        seconds: name of a trial -> its forecast.
    """
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    keys = list(dict.fromkeys(key for trial in trials for key in trial["values"]))
    for name in ("trial", *keys, "micro-batch", "memory", "at most", "note"):
        drawn.add_column(name, justify="left" if name == "note" else "right")
    for trial in trials[:MOST_ROWS]:
        memory = trial["memory_bytes"]
        values = [format_value(trial["values"].get(key)) for key in keys]
        micro = "all" if trial["micro_batch_size"] is None else str(trial["micro_batch_size"])
        took = seconds.get(trial["name"])
        size = "-" if memory is None else format_size(memory)
        row = [f"{trial['number']:03}", *values, micro, size, "-" if took is None else f"{took:,.0f} s"]
        drawn.add_row(*map(Text, [*row, trial["message"] or trial.get("note", "")]))
    if len(trials) > MOST_ROWS:
        drawn.add_row("...", *[""] * (len(keys) + 3), f"and {len(trials) - MOST_ROWS} more")
    return drawn
