"""The actor of a run: carries events from the workers to the driver, and requests back.

It must answer while rank 0 trains and while hosts die, so it only stores: the driver polls `take`, rank 0 polls `put`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

from trainers.messages import Event, GroupStart, Requests

ActorHandle = Any
"""Ray's handle of an actor: its methods are made at run time."""
POLL_SECONDS = 0.3
STILL_SECONDS = 20.0
"""Workers that are to save, and then to be ended, are not waited for where they have not moved for so long."""
HURRY_SECONDS = 5.0
"""Between checkpoints once a host is about to be taken back."""


class Coordinator:
    """A small actor, one for each run: carries events to the driver, and its request to stop to the workers."""

    def __init__(self, max_failures: int) -> None:
        """
        Args:
            max_failures: Starts of the workers without a new checkpoint before the run is given up.
        """
        self.max_failures = max_failures
        self.events: list[Event] = []
        self.stop = False
        self.saves = 0
        """Checkpoints that were requested."""
        self.saved = 0
        self.moved = 0.0
        """Time (monotonic) of rank 0's last step or batch, or of the last request to save."""
        self.hurry = False
        self.over = False
        self.starts = 0
        self.tries: dict[int, int] = {}
        self.error = ""
        """What Ray said when workers died, the last time."""
        self.precision: str | None = None

    def failed(self, error: str) -> None:
        """Workers died.

        Args:
            error: What Ray says of it.
        """
        self.error = error

    def begin(self, step: int) -> GroupStart:
        """A group of workers starts.

        Args:
            step: Of the checkpoint that it starts from.
        """
        self.starts += 1
        self.saved, self.hurry = self.saves, False
        self.tries[step] = self.tries.get(step, 0) + 1
        if self.tries[step] > self.max_failures and not self.over:
            text = f"gave up after {self.max_failures} attempts without a new checkpoint (at step {step})"
            return {"start": self.starts, "over": True, "why": text, "error": self.error}
        return {"start": self.starts, "over": self.over, "why": None, "error": self.error}

    def fix_precision(self, found: str) -> str:
        """The precision of the run: what its first group of workers found best; a later one may have other devices."""
        self.precision = self.precision or found
        return self.precision

    def put(self, events: Sequence[Event]) -> Requests:
        """Take in events; returns what is requested of the workers."""
        for event in events:
            if event["kind"] == "saved":
                self.saved = self.saves
            if event["kind"] == "beat" and event["rank"] == 0:
                self.moved = time.monotonic() - event["idle"]
        events = [event for event in events if event["kind"] != "saved"]
        if not self.over:
            self.events += events
        self.over = self.over or any(event["kind"] == "done" for event in events)
        return {"stop": self.stop, "saves": self.saves, "hurry": self.hurry}

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def ask_to_stop(self) -> None:
        """Request that the run saves and ends."""
        self.stop = True

    def ask_to_save(self) -> None:
        """The workers are about to be ended, to start more of them."""
        text = "the cluster has room for more workers: a checkpoint, then training goes on with them"
        self.put([{"kind": "message", "text": text}])
        self.saves += 1
        self.moved = time.monotonic()

    def is_saving(self) -> bool:
        """Whether the requested checkpoint is still to be written, and the workers move: while a store is away they
        train, and what they have done since the last checkpoint is not to be lost."""
        return self.saved < self.saves and not self.over and time.monotonic() - self.moved < STILL_SECONDS

    def host_goes(self, ranks: Sequence[int], seconds: float | None) -> None:
        """A host is about to be taken back.

        Args:
            ranks: Those that run on it.
            seconds: Until then; None: not known.
        """
        when = "soon" if seconds is None else f"in {seconds:.0f} s"
        text = (
            f"the host of rank {', '.join(map(str, ranks))} is taken back {when}: checkpoints every {HURRY_SECONDS:g} s"
        )
        self.put([{"kind": "warning", "text": text}])
        self.hurry = True


class Link:
    """Rank 0's line to the coordinator: a thread sends the events and fetches the requests."""

    def __init__(self, coordinator: ActorHandle) -> None:
        self.coordinator = coordinator
        self.requests = self._put([])
        self._saves = self.requests["saves"]
        self._asked = time.monotonic()
        self._queue: queue.Queue[Event] = queue.Queue()
        self._open = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def report(self, event: Event) -> None:
        """Queue an event; returns at once."""
        self._queue.put(event)

    def stopping(self) -> bool:
        """Whether the run is to stop."""
        return self.requests["stop"]

    def saving(self) -> bool:
        """Whether a checkpoint is requested now, besides those that are due."""
        once = self.requests["saves"] > self._saves
        often = self.requests["hurry"] and time.monotonic() - self._asked > HURRY_SECONDS
        if once or often:
            self._saves, self._asked = self.requests["saves"], time.monotonic()
        return once or often

    def close(self) -> None:
        """Wait until every event has arrived."""
        self._open = False
        self._thread.join()
        self._send()

    def _run(self) -> None:
        while self._open:
            self._send()
            time.sleep(POLL_SECONDS)

    def _send(self) -> None:
        events: list[Event] = []
        while not self._queue.empty():
            events.append(self._queue.get())
        self.requests = self._put(events)

    def _put(self, events: Sequence[Event]) -> Requests:
        import ray

        return cast(Requests, ray.get(self.coordinator.put.remote(events)))
