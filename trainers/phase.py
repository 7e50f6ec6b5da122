"""Where each thread of this process stands, as the code itself says: read by whoever watches from another thread."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from threading import Thread, get_ident
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class phase:
    """What a thread does for as long as the `with` block lasts, or a function that this decorates: 0.5 us each time.

    No block may contain a `yield`: it would stand for whatever the caller does meanwhile.
    """

    __slots__ = ("name", "on", "thread")

    def __init__(
        self, name: str, on: Literal["host", "device", "ranks"] = "host", thread: Thread | None = None
    ) -> None:
        """Describe a phase; a `with` block enters it.

        Args:
            name: As in "reading data"; for people.
            on: What the work depends on: this host alone, the device, which does orders later, or other ranks.
            thread: Another thread of this process that is waited for, which does the work.
        """
        self.name, self.on, self.thread = name, on, thread

    def __enter__(self) -> None:
        _phases[get_ident()].append(self)

    def __exit__(self, *_: object) -> None:
        _phases[get_ident()].pop()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return run


_phases: defaultdict[int, list[phase]] = defaultdict(list)
"""Thread -> the phases that it is in, innermost last. (A context variable is not seen from another thread.)"""


def phases(thread: int | None) -> list[phase]:
    """The phases that a thread is in, innermost last.

    Args:
        thread: Its `ident`.
    """
    return list(_phases.get(thread or 0, ()))
