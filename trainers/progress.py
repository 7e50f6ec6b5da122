"""What people see on stderr while something runs: a live bar on a terminal, plain lines in a log or a pipe."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from trainers.formatting import format_duration
from trainers.messages import Line, StepEvent
from trainers.process import Lasting
from trainers.run_facts import RunFacts, RunSeconds
from trainers.time_left import TimeLeft

Advance = Callable[[int], None]
TOLD_SECONDS = 60.0
"""Training of which more is left, as the first seconds show, says so once."""
QUIET_SECONDS = 1.0
"""What takes less is not worth a line."""
LINE_SECONDS = 10.0
LOG_WIDTH = 120
STEP_LINE_SECONDS = 30.0


class Progress:
    """Where messages and progress go. Not for use by several threads at once."""

    def __init__(self, file: IO[str] | None = None, console: Console | None = None) -> None:
        lasting = cast(IO[str], Lasting(file or sys.stderr, messages=True))
        self.console = console or Console(file=lasting, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal
        if not self.live:
            self.console.width = LOG_WIDTH
        self._training: Bar | None = None
        self._last_line = time.monotonic()
        self._told = False
        """Whether the time that training takes was told."""
        self._left: float | None = None

    def message(self, text: str) -> None:
        """A line for people."""
        self.console.print(escape(text))

    def warning(self, text: str) -> None:
        """A line that should not be missed."""
        text = text.removeprefix("warning: ")
        self.console.print(f"[yellow]warning:[/yellow] {escape(text)}")

    @contextlib.contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Advance]:
        """A bar over `total` things; yields a function to call with the number of those that are done since."""
        begun = last = time.monotonic()
        done = 0
        about, left = (TextColumn(f"{{task.{name}}}") for name in ("description", "fields[left]"))
        columns = (about, BarColumn(), MofNCompleteColumn(), left)
        shown = Bar(*columns, console=self.console, transient=True, disable=not self.live)
        task = shown.add_task(description, total=total, left="")
        time_left = TimeLeft()

        def advance(count: int = 1) -> None:
            nonlocal done, last
            done += count
            still = None if total is None else _left(time_left.at(done, total))
            shown.update(task, advance=count, left=still or "")
            if not self.live and time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                of = "" if total is None else f" of {total:,}"
                self.message(f"{description}: {done:,}{of}{f', {still}' if still else ''}")

        with shown:
            yield advance
        seconds = time.monotonic() - begun
        if seconds > QUIET_SECONDS:
            self.message(f"{description}: {done:,} in {format_duration(seconds)}")

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say what is waited for, and for how long already."""
        begun, over = time.monotonic(), threading.Event()
        if self.live:
            with self.console.status(escape(text)):
                yield
            return

        def say() -> None:
            if over.wait(QUIET_SECONDS):
                return
            self.message(text)
            while not over.wait(15):
                self.message(f"{text}: {time.monotonic() - begun:.0f} s")

        thread = threading.Thread(target=say, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def step(self, event: StepEvent) -> None:
        """Show how far training is."""
        self._left = event["seconds_left"]
        if self._left is not None and not self._told:
            self._told = True
            if self._left > TOLD_SECONDS:
                left = event["epochs"] - event["epoch"] + 1
                epochs = f"{left} epochs" if left > 1 else "an epoch"
                ahead = f"about {format_duration(self._left)} of training are ahead, {epochs} at this speed"
                self.message(f"{ahead}: Ctrl-C saves, and the same command with --run goes on")
        speed = _speed(event["images_per_second"], event["data_wait_share"])
        parts = [f"loss {event['loss']:.4g}", event["score"], *speed, _left(self._left)]
        text = "  ".join(filter(None, parts))
        if not self.live:
            if time.monotonic() - self._last_line > STEP_LINE_SECONDS:
                self._line(f"epoch {event['epoch']}/{event['epochs']}  step {event['step']}/{event['steps']}  {text}")
            return
        if self._training is None:
            columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(20), TextColumn("{task.fields[text]}"))
            self._training = Bar(*columns, console=self.console, transient=True, refresh_per_second=5)
            self._training.add_task("", total=event["epochs"] * event["steps"], epoch="", text="")
            self._training.start()
        room = self.console.width - 20 - len(f"epoch {event['epoch']}/{event['epochs']}") - 4
        while len(text) > room and len(parts) > 1:  # the least needed goes first
            parts.pop(3 if len(parts) > 4 else -2)
            text = "  ".join(filter(None, parts))
        self._training.update(
            self._training.task_ids[0],
            completed=(event["epoch"] - 1) * event["steps"] + event["step"],
            epoch=f"{event['epoch']}/{event['epochs']}",
            text=escape(text),
        )

    def epoch(self, line: Line, epochs: int, metric: str, better: bool) -> None:
        """A line for each epoch, on a terminal at most one a second; a star where it has the best `metric`."""
        if self.live and not better and time.monotonic() - self._last_line < 1:
            return
        scores = [f"{name} {line[name]:.4f}" for name in line if name in (f"val/{metric}", *_SHOWN)]
        left = list(filter(None, [_left(self._left)])) if line["epoch"] < epochs else []
        losses = f"train loss {line['train/loss']:.4f}  val loss {line['val/loss']:.4f}"
        words = [f"epoch {line['epoch']}/{epochs}", losses, *scores]
        if better:
            words[-1] += " *"
        speed = _speed(line["images_per_second"], line["data_wait_share"])
        self._line("  ".join([*words, *speed, *left]).replace("val/", "val "))

    def summary(self, run: RunFacts, folder: str) -> None:
        """The table at the end.

        Args:
            run: What run.json holds.
            folder: Address of the run folder.
        """
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column()
        for name, value in _facts(run, folder):
            table.add_row(name, escape(value))
        self.console.print(table)

    def stages(self, runs: Iterable[RunFacts]) -> None:
        """A table of runs that followed one another: the time and the best score of each."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("stage", "status", "training", "in all", "best"):
            table.add_column(column, justify="left" if column in ("stage", "status", "best") else "right")
        for run in runs:
            seconds, best = run.get("seconds"), run.get("best")
            score = f"{best['metric']} {best['value']:.4f}" if best else ""
            times = [format_duration(_trained(seconds)), format_duration(seconds["total"] if seconds else 0.0)]
            table.add_row(run["name"], run["status"].replace("_", " "), *times, score)
        self.console.print(table)

    def close(self) -> None:
        """Take the live bar away."""
        if self._training is not None:
            self._training.stop()
            self._training = None

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.console.print(escape(text))


def _left(seconds: float | None) -> str | None:
    return None if seconds is None else f"{format_duration(seconds)} left"


_SHOWN = ("val/accuracy", "val/boundary_f1", "val/mae")
"""Scores of an epoch that its line shows beside the task's main one."""


def _facts(run: RunFacts, folder: str) -> Iterator[tuple[str, str]]:
    yield "status", run["status"].replace("_", " ")
    if best := run.get("best"):
        yield "best epoch", f"{best['epoch']} of {run['epochs_run']}, val {best['metric']} {best['value']:.4f}"
    scores = {k: v for k, v in (run.get("final") or {}).items() if isinstance(v, float)}
    if final := {k: v for k, v in scores.items() if not math.isnan(v)}:  # NaN: of what does not occur
        yield "best scores", "  ".join(f"{name} {value:.4f}" for name, value in final.items())
    seconds = run.get("seconds")
    if seconds and (trained := _trained(seconds)):
        wait = 100 * seconds["data_wait"] / trained
        rate = run.get("images_per_second") or 0.0
        whole = f"{format_duration(seconds['total'])} in all, {format_duration(seconds['setup'] or 0)} of it to start"
        yield "training", f"{format_duration(trained)}  ({rate:,.0f} images/s, data wait {wait:.1f} %; {whole})"
    memory = run.get("peak_memory_bytes")
    peaks = {"host": memory["host"], "device": memory["device"]} if memory else {}
    if shown := [f"{name} {value / 2**30:.2f} GiB" for name, value in peaks.items() if value]:
        yield "peak memory", ", ".join(shown)
    yield "run folder", folder
    plain = folder.partition("?")[0] if "://" in folder else folder  # without the options of an address
    yield "dashboard", f"tensorboard --logdir {shlex.quote(plain)}"


def _trained(seconds: RunSeconds | None) -> float:
    return seconds["compute"] + seconds["data_wait"] if seconds else 0.0


def _speed(images_per_second: float, data_wait_share: float) -> list[str]:
    return [f"{images_per_second:,.0f} images/s", f"data wait {100 * data_wait_share:.0f} %"]
