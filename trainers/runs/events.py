"""The events of a run: what workers report is written to the run folder and shown."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from trainers.progress import Progress
from trainers.runs.record import Record
from trainers.storage.store import explain

ROOM, ROOM_BYTES = ".room", 2**16
"""A file that keeps room on the disk for the run's last word, that the disk is full."""


class Control:
    """What a sweep has of a run that it started: it sees each epoch, and may end the run. This one does neither."""

    adopt: tuple[str, int] | None = None
    """(run folder, step) of another run's checkpoint to go on from, in place of the run's own newest."""
    first_picture = 0.0
    """Seconds before which nothing is drawn, but at the end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set: the run saves and ends."""
        self.verdict: str | None = None
        """Why it was stopped early; None: it was interrupted, and can go on later."""

    def epoch(self, line: Mapping[str, float]) -> None:
        """Called after each epoch with its line of metrics.jsonl."""

    def wants_pictures(self, best: Mapping[str, Any] | None) -> bool:
        """Whether the ended run, with this best epoch, is worth drawing."""
        return True


class Listener:
    """Takes the events of the workers, and writes and shows what they say."""

    def __init__(self, record: Record, progress: Progress, begun: float, epochs: int, control: Control) -> None:
        self.record, self.progress, self.begun, self.epochs = record, progress, begun, epochs
        self.control = control
        self.history: list[dict[str, float]] = []
        self.setup: float | None = None
        self.done: dict[str, Any] | None = None
        self._machines: dict[str, Any] = {}
        self._waiting = contextlib.ExitStack()
        if record.store.local is not None:
            record.store.write(ROOM, os.urandom(ROOM_BYTES))
        record.write()

    def wait_for(self, text: str) -> None:
        """Say what is waited for, until the workers stand or the run has ended."""
        self._waiting.enter_context(self.progress.waiting(text))

    def __call__(self, event: dict[str, Any]) -> None:
        try:
            getattr(self, f"_on_{event['kind']}")(event)
        except OSError as error:
            where = self.record.store.address
            raise OSError(f"the run folder {where} cannot be written: {explain(error)}") from None

    def _on_machine(self, event: dict[str, Any]) -> None:
        self._machines[event["host"]] = event["machine"]
        self.record.run["machine"] = {"nodes": list(self._machines.values())}

    def _on_message(self, event: dict[str, Any]) -> None:
        self.progress.message(event["text"])

    def _on_warning(self, event: dict[str, Any]) -> None:
        self.progress.warning(event["text"])

    def _on_start(self, event: dict[str, Any]) -> None:
        """A (new) group of workers stands; the history is that of the checkpoint it goes on from."""
        self._waiting.close()
        if self.setup is None:
            self.setup = time.perf_counter() - self.begun
        self.history = list(event["history"])
        self.record.write()
        self.record.restore(self.history)
        if event["step"]:
            self.progress.message(f"going on from step {event['step']:,}, in epoch {event['epoch'] + 1}")

    def _on_saved(self, event: dict[str, Any]) -> None:
        """A checkpoint is complete."""

    def _on_step(self, event: dict[str, Any]) -> None:
        self.progress.step(event)

    def _on_file(self, event: dict[str, Any]) -> None:
        self.record.folder.write(event["name"], event["data"])

    def _on_epoch(self, event: dict[str, Any]) -> None:
        self.history.append(event["line"])
        self.record.epoch(event["line"], event["counts"].get("confusion"), pictures=event["pictures"])
        self.progress.epoch(event["line"], self.epochs, event["better"])
        self.control.epoch(event["line"])

    def _on_done(self, event: dict[str, Any]) -> None:
        self._waiting.close()
        if event["status"] == "interrupted" and self.control.verdict:
            event |= {"status": "stopped_early", "message": self.control.verdict}
        self.done = event
        spent, before = event["seconds"], event["before"]
        parts = {name: spent.get(name, 0.0) for name in ("data_wait", "evaluate", "checkpoint")}
        trained = spent.get("train", 0.0)
        # A run that went on from a checkpoint has spent time before this process was started.
        earlier = sum(before.get(name, 0.0) for name in ("train", "evaluate", "checkpoint"))
        total = time.perf_counter() - self.begun + earlier
        best = event["best"] and {name: event["best"][name] for name in ("epoch", "metric", "value")}
        predicted, measured = self.record.run.get("memory"), event["peak_memory_bytes"]["device"]
        if predicted and measured:
            error = predicted["predicted_bytes"] / measured - 1
            self.record.run["memory"] = {**predicted, "measured_bytes": measured, "error": error}
        self.progress.close()
        self.progress.message(event["message"])  # first: a full storage may not take the rest
        self.record.folder.delete(ROOM)
        self.record.finish(
            event["status"],
            event["counts"].get("confusion"),
            pictures=event["pictures"],
            draw=self.control.wants_pictures(best),
            message=event["message"],
            seconds={"total": total, "setup": self.setup, "compute": trained - parts["data_wait"], **parts},
            images_per_second=event["images"] / trained if trained else None,
            peak_memory_bytes=event["peak_memory_bytes"],
            epochs_run=event["epoch"],
            best=best,
            final=event["final"],
        )
