"""SIGINT and SIGTERM of a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.signal` takes and returns."""


class Signals:
    """SIGINT and SIGTERM: the first one while training requests a stop; any other is a KeyboardInterrupt."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.training = False
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Signals:
        self._listen()
        return self

    def training_starts(self) -> None:
        """From now on a signal requests a stop. Ray has put its own handlers in place of ours meanwhile."""
        self.training = True
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.training or self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()
