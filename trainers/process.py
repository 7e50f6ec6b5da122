"""This process: the signals that ask it to end, and streams that may go away while it works."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any, TextIO, cast

GONE = (errno.EPIPE, errno.EIO)
"""Nobody reads on: the reader of a pipe has ended, or the terminal was closed."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a command to save and end.

    SIGHUP, of a terminal that is closed, is one of them, but not under nohup, which has it ignored.
    """
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """What holds while a command runs: any of `ending_signals` is a KeyboardInterrupt, and output that nobody reads any
    more ends nothing."""
    streams = sys.stdout, sys.stderr
    out, err = (stream or open(os.devnull, "w") for stream in streams)  # noqa: SIM115  # None: it was closed
    sys.stdout, sys.stderr = cast(TextIO, Lasting(out)), cast(TextIO, Lasting(err, messages=True))
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, _interrupt) for number in ending_signals()}
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def let_children_survive_hang_up() -> None:
    """Processes that this thread starts from here on do not hear SIGHUP: this one does, and ends them in order."""
    if hasattr(signal, "SIGHUP"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])


class Lasting:
    """A stream that goes on when nobody reads it any more: what is written then is lost, and nothing else is."""

    def __init__(self, stream: IO[str], *, messages: bool = False) -> None:
        """
        Args:
            stream: Whatever was open.
            messages: Whether it is for people: then a full disk behind it ends nothing either.
        """
        self._stream = stream
        self._messages = messages

    def write(self, text: str) -> int:
        """Write, where somebody reads."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._redirect(error)
            return len(text)

    def flush(self) -> None:
        """Flush, where somebody reads."""
        try:
            self._stream.flush()
        except OSError as error:
            self._redirect(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _redirect(self, error: OSError) -> None:
        """Let the stream lead nowhere, for whoever writes to it without this class too. Raises other errors."""
        if self._messages and error.errno in FULL:
            return
        if error.errno not in GONE:
            raise error
        with contextlib.suppress(OSError, ValueError):  # a stream without a file is left as it is
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
