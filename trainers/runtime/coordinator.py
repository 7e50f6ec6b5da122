"""The actor of a run: carries progress from the workers to the driver, and requests back."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

Job = Mapping[str, Any]


Event = dict[str, Any]


POLL_SECONDS = 0.3


STILL_SECONDS = 20.0
"""Workers that are to save, and then to be ended, are not waited for where they have not moved for so long."""


HURRY_SECONDS = 5.0
"""Between checkpoints once a host is about to be taken back."""


class Coordinator:
    """A small actor, one for each run: carries events to the driver, and its wish to stop to the workers."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.events: list[Event] = []
        self.stop = False
        self.saves = 0
        """Checkpoints that were asked for."""
        self.saved = 0
        self.moved = 0.0
        """Time (monotonic) when rank 0 last did, or was asked to save."""
        self.hurry = False
        self.over = False
        self.starts = 0
        self.tries: dict[int, int] = {}
        self.error = ""
        """What Ray said when workers died, the last time."""

    def failed(self, error: str) -> None:
        self.error = error

    def begin(self, step: int) -> dict[str, Any]:
        """A group of workers starts from the checkpoint of `step`: {start: the how many-eth, over: leave at once,
        why: that ends the run, error: Ray's}."""
        self.starts += 1
        self.saved, self.hurry = self.saves, False
        self.tries[step] = self.tries.get(step, 0) + 1
        if self.tries[step] > self.max_failures and not self.over:
            text = f"gave up after {self.max_failures} attempts without a new checkpoint (at step {step})"
            return {"start": self.starts, "over": True, "why": text, "error": self.error}
        return {"start": self.starts, "over": self.over, "why": None, "error": self.error}

    def put(self, events: list[Event]) -> dict[str, Any]:
        """Take in events; returns what is wished: {stop, saves: so many so far, hurry: save often}."""
        for event in events:
            if event["kind"] == "saved":
                self.saved = self.saves
            if event["kind"] == "beat" and event["rank"] == 0:
                self.moved = time.monotonic() - event["idle"]
        events = [event for event in events if event["kind"] != "saved"]
        self.events += [] if self.over else events
        self.over = self.over or any(event["kind"] == "done" for event in events)
        return {"stop": self.stop, "saves": self.saves, "hurry": self.hurry}

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def ask_to_stop(self) -> None:
        self.stop = True

    def ask_to_save(self) -> None:
        """The workers are about to be ended, to start more of them."""
        text = "the cluster has room for more workers: a checkpoint, then training goes on with them"
        self.put([{"kind": "message", "text": text}])
        self.saves += 1
        self.moved = time.monotonic()

    def is_saving(self) -> bool:
        """Whether what `ask_to_save` asked for is still to be done, and the workers get on: while a store is away
        they train, and what they have done since the last checkpoint is not to be lost."""
        return self.saved < self.saves and not self.over and time.monotonic() - self.moved < STILL_SECONDS

    def host_goes(self, ranks: Sequence[int], seconds: float | None) -> None:
        """The host of these ranks is about to be taken back, in so many seconds where that is known."""
        when = "soon" if seconds is None else f"in {seconds:.0f} s"
        text = (
            f"the host of rank {', '.join(map(str, ranks))} is taken back {when}: checkpoints every {HURRY_SECONDS:g} s"
        )
        self.put([{"kind": "warning", "text": text}])
        self.hurry = True


class Link:
    """Rank 0's line to the desk: a thread sends what is told and asks for the wish to stop."""

    def __init__(self, coordinator: Any) -> None:
        import ray

        self.coordinator = coordinator
        self.requests: dict[str, Any] = ray.get(coordinator.put.remote([]))
        self._saves = self.requests["saves"]
        self._asked = time.monotonic()
        self._queue: queue.Queue[Event] = queue.Queue()
        self._open = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def report(self, event: Event) -> None:
        self._queue.put(event)

    def stopping(self) -> bool:
        return bool(self.requests["stop"])

    def saving(self) -> bool:
        """Whether a checkpoint is wished for now, next to those that are due."""
        once = self.requests["saves"] > self._saves
        often = self.requests["hurry"] and time.monotonic() - self._asked > HURRY_SECONDS
        if once or often:
            self._saves, self._asked = self.requests["saves"], time.monotonic()
        return bool(once or often)

    def close(self) -> None:
        """Everything told so far has arrived."""
        self._open = False
        self._thread.join()
        self._send()

    def _run(self) -> None:
        while self._open:
            self._send()
            time.sleep(POLL_SECONDS)

    def _send(self) -> None:
        import ray

        events = []
        while not self._queue.empty():
            events.append(self._queue.get())
        self.requests = ray.get(self.coordinator.put.remote(events))
