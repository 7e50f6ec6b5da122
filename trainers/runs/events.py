"""The events of a run: what workers report is written to the run folder and shown."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import assert_never

from trainers.confusion import to_draw
from trainers.messages import DoneEvent, EpochEvent, Event, ExecutionEvent, Line, MachineEvent, StartEvent
from trainers.progress import Progress
from trainers.run_facts import Best, Machine, RunSeconds
from trainers.runs.record import Record
from trainers.storage.store import explain

ROOM, ROOM_BYTES = ".room", 2**16
"""A file that keeps room on the disk for the run's last word, that the disk is full."""


class Control:
    """What a sweep has of a run that it started: it sees each epoch, and may end the run. This class does neither."""

    adopt: tuple[str, int] | None = None
    """(run folder, step) of another run's checkpoint to continue from, in place of the run's own newest."""
    fewer_threads = False
    """Whether the CPUs of the run's scale are what the sweep grants: fewer threads will do where they are as fast."""
    own_device = True
    """Whether the run's devices are its alone."""
    first_picture = 0.0
    """Seconds before which nothing is drawn, but at the end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set: the run saves and ends."""
        self.verdict: str | None = None
        """Why it was stopped early; None: it was interrupted, and can be resumed later."""

    def epoch(self, line: Mapping[str, float]) -> None:
        """Called after each epoch with its line of metrics.jsonl."""

    def wants_pictures(self, best: Best | None) -> bool:
        """Whether the ended run, with this best epoch, is worth drawing."""
        return True


class Listener:
    """Takes the events of the workers; writes and shows what they say."""

    def __init__(self, record: Record, progress: Progress, begun: float, epochs: int, control: Control) -> None:
        """
        Args:
            record: Of the run; its run.json is written at once.
            progress: Where messages go.
            begun: When the command began, by time.perf_counter().
            epochs: Of the recipe.
            control: Learns of each epoch.
        """
        self.record, self.progress, self.begun, self.epochs = record, progress, begun, epochs
        self.control = control
        self.history: list[Line] = []
        self.setup: float | None = None
        """Seconds until the workers first stood."""
        self.done: DoneEvent | None = None
        self._machines: dict[str, Machine] = {}
        self._waiting = contextlib.ExitStack()
        if record.store.local is not None:
            record.store.write(ROOM, os.urandom(ROOM_BYTES))
        record.write()

    def wait_for(self, text: str) -> None:
        """Say what is waited for, until the workers stand or the run has ended."""
        self._waiting.enter_context(self.progress.waiting(text))

    def __call__(self, event: Event) -> None:
        """Take one event. Raises OSError where the run folder cannot be written."""
        try:
            self._take(event)
        except OSError as error:
            where = self.record.store.address
            raise OSError(f"the run folder {where} cannot be written: {explain(error)}") from None

    def _take(self, event: Event) -> None:
        if event["kind"] == "machine" or event["kind"] == "execution":
            self._place(event)
        elif event["kind"] == "message":
            self.progress.message(event["text"])
        elif event["kind"] == "warning":
            self.progress.warning(event["text"])
        elif event["kind"] == "start":
            self._start(event)
        elif event["kind"] == "saved" or event["kind"] == "beat":
            pass  # for the coordinator, and for the stall detector
        elif event["kind"] == "step":
            self.progress.step(event)
        elif event["kind"] == "file":
            self.record.folder.write(event["name"], event["data"])
        elif event["kind"] == "epoch":
            self._epoch(event)
        elif event["kind"] == "done":
            self._done(event)
        else:
            assert_never(event)

    def _place(self, event: MachineEvent | ExecutionEvent) -> None:
        """Where the workers run, and how, for run.json."""
        if event["kind"] == "execution":
            self.record.run["threads"]["used"] = event["threads"]
            self.record.run["step"] = event["step"]
        else:
            self._machines[event["host"]] = event["machine"]
            self.record.run["machine"] = {"nodes": list(self._machines.values())}

    def _start(self, event: StartEvent) -> None:
        """A (new) group of workers stands; the history is that of the checkpoint it resumes from."""
        self._waiting.close()
        if self.setup is None:
            self.setup = time.perf_counter() - self.begun
        self.history = list(event["history"])
        self.record.run["recipe"] = {**self.record.run["recipe"], "precision": event["precision"]}
        self.record.write()
        self.record.restore(self.history)
        if event["step"]:
            self.progress.message(f"going on from step {event['step']:,}, in epoch {event['epoch'] + 1}")

    def _epoch(self, event: EpochEvent) -> None:
        self.history.append(event["line"])
        self.record.epoch(event["line"], to_draw(event["counts"]), event["pictures"], event["counts"])
        self.progress.epoch(event["line"], self.epochs, event["metric"], event["better"])
        self.control.epoch(event["line"])

    def _done(self, event: DoneEvent) -> None:
        self._waiting.close()
        if event["status"] == "interrupted" and self.control.verdict:
            event["status"], event["message"] = "stopped_early", self.control.verdict
        self.done = event
        best: Best | None = None
        if event["best"] is not None:  # without the step: the checkpoint's manifest has it
            of = event["best"]
            best = {"epoch": of["epoch"], "metric": of["metric"], "value": of["value"]}
        trained = event["seconds"].get("train", 0.0)
        self._compare_memory(event["peak_memory_bytes"]["device"])
        self.progress.close()
        self.progress.message(event["message"])  # first: a full storage may not take the rest
        self.record.folder.delete(ROOM)
        self.record.finish(
            event["status"],
            to_draw(event["counts"]),
            pictures=event["pictures"],
            draw=self.control.wants_pictures(best),
            counts=event["counts"],
            message=event["message"],
            seconds=self._seconds(event["seconds"], event["before"]),
            images_per_second=event["images"] / trained if trained else None,
            peak_memory_bytes=event["peak_memory_bytes"],
            epochs_run=event["epoch"],
            best=best,
            final=event["final"],
        )

    def _seconds(self, spent: Mapping[str, float], before: Mapping[str, float]) -> RunSeconds:
        """Of run.json, from those of the last event."""
        data_wait = spent.get("data_wait", 0.0)
        # A run that was resumed from a checkpoint has spent time before this process was started.
        earlier = sum(before.get(name, 0.0) for name in ("train", "evaluate", "checkpoint"))
        return {
            "total": time.perf_counter() - self.begun + earlier,
            "setup": self.setup,
            "compute": spent.get("train", 0.0) - data_wait,
            "data_wait": data_wait,
            "evaluate": spent.get("evaluate", 0.0),
            "checkpoint": spent.get("checkpoint", 0.0),
        }

    def _compare_memory(self, measured: int | None) -> None:
        """Put the measured peak beside the predicted one, where both are known."""
        predicted = self.record.run.get("memory")
        if predicted and measured:
            predicted["measured_bytes"] = measured
            predicted["error"] = predicted["predicted_bytes"] / measured - 1
