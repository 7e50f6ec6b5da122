"""The signals that end a run: what they do while it trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from trainers.process import ending_signals

Handler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.signal` takes and returns."""


class Signals:
    """SIGINT, SIGTERM and SIGHUP: the first one while training requests a stop; any other is a KeyboardInterrupt.

    A terminal that is closed sends SIGHUP more than once, and whoever logs out SIGTERM beside it: that is one request.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.training = False
        self._hung_up = False
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
            for number in ending_signals():
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.stop.is_set()
        if self.training and number == getattr(signal, "SIGHUP", None):
            self._hung_up = True
        elif self.training and self._hung_up:
            self._hung_up = False
        elif not self.training or again:
            raise KeyboardInterrupt
        self.stop.set()
