"""Instead of a silent hang: which rank the others wait for, and where it stands.

A thread in every worker checks how far its rank is and sends beats to the driver; the driver's StallDetector hears
them, and warns where a rank stalls or is not heard of. Where a rank stands its code says itself (trainers.phase).
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from trainers import phase as phase_module
from trainers.messages import BeatEvent, MessageEvent, WarningEvent
from trainers.phase import phase, phases

if TYPE_CHECKING:
    from trainers.data.batches import Batch, Data
    from trainers.data.sampler import Pass
    from trainers.data.targets import Array
    from trainers.training.distributed import World
    from trainers.training.state import TrainState

STALL_SECONDS = 20.0
BEATS_A_STALL = 4
"""A rank sends so many within STALL_SECONDS."""
SLOW = 5
"""A rank has stalled where nothing moves for so many times its longest step, so that slow models raise no alarm."""
SETTING_UP = 3
"""Up to its second step, for so many times STALL_SECONDS: data sets are opened, models are compiled."""
STEPS_TO_SET_UP = 2
MOST_NAMED = 4
"""Ranks that are named one by one."""


# In a worker -------------------------------------------------------------------------------------------------


class Heartbeat:
    """A thread that checks how far the thread that made it is with its rank's work, and reports it.

    It ends with the `with` block.
    """

    def __init__(
        self, rank: int, size: int, host: str, send: Callable[[BeatEvent], None], stall_seconds: float = STALL_SECONDS
    ) -> None:
        """Watch the calling thread.

        Args:
            rank: Of the thread that makes this.
            size: Ranks in all.
            host: How people know this rank's host.
            send: Takes the beats, in the heartbeat's own thread; must not wait for long.
            stall_seconds: A rank that moves nothing for so long has stalled.
        """
        self.rank, self.size, self.host, self.send, self.stall_seconds = rank, size, host, send, stall_seconds
        self._watched = threading.get_ident()
        self._state: TrainState | None = None
        self._data: _Counted | None = None
        self._start = 0
        self._device_waits = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def follow(self, state: TrainState, data: Data, world: World) -> Data:
        """Training is about to start from `state`. Returns the same data, whose batches are counted."""
        self._device_waits = world.device.type == "cuda" or world.sharded
        self._state, self._data, self._start = state, _Counted(data), state.total_steps
        return self._data

    def _run(self) -> None:
        longest, stalled, sent = 0.0, False, -1e9
        progress, moved = self._progress(), time.monotonic()
        looked = moved
        while not self._over.is_set():
            now, before = time.monotonic(), stalled
            if now - looked > self.stall_seconds:  # this process was stopped
                moved = now
            looked = now
            set_up = progress[0] >= STEPS_TO_SET_UP
            known, progress = progress, self._progress()
            if progress != known:
                longest = max(longest, now - moved) if set_up and not stalled else longest
                moved = now
            patience = max(self.stall_seconds, SLOW * longest) if set_up else SETTING_UP * self.stall_seconds
            stalled = now - moved > patience
            if stalled != before or now - sent >= self.stall_seconds / BEATS_A_STALL:
                self._beat(now - moved, stalled, first=sent < 0)
                sent = now
            self._over.wait(self.stall_seconds / BEATS_A_STALL / 5)
        self._beat(0.0, False, last=True)

    def _progress(self) -> tuple[int, int]:
        """(steps made in this process, batches read)."""
        if self._state is None or self._data is None:
            return 0, 0
        return self._state.total_steps - self._start, self._data.read

    def _beat(self, idle: float, stalled: bool, *, first: bool = False, last: bool = False) -> None:
        where, waits = stands(self._watched, self._device_waits)
        self.send(
            {
                "kind": "beat",
                "rank": self.rank,
                "size": self.size,
                "host": self.host,
                "idle": idle,
                "stalled": stalled,
                "at": self._at(),
                "where": where,
                "waits": waits and self.size > 1,
                "first": first,
                "last": last,
            }
        )

    def _at(self) -> str:
        if self._state is None or self._data is None:
            return "the start"
        epoch = self._state.epoch + 1
        if self._data.split != "train":
            return f"the evaluation of epoch {epoch}"
        return f"step {self._state.step + 1} of epoch {epoch}"


_reading = phase("reading data")


class _Counted:
    """Data that counts the batches it gives: progress, in evaluation too."""

    def __init__(self, data: Data) -> None:
        self.data, self.meta = data, data.meta
        self.split, self.read = "train", 0

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        self.split = split
        batches = iter(self.data.batches(split, passes))
        while True:
            with _reading:
                batch = next(batches, None)
            if batch is None:
                return
            self.read += 1
            yield batch

    def labels(self, split: str) -> Array:
        return self.data.labels(split)


class Frame(NamedTuple):
    """A call of a thread's stack."""

    file: str
    line: int
    function: str


_LIBRARIES = ("<", *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OURS = os.path.dirname(os.path.dirname(__file__))
_PHASES = phase_module.__file__


def stands(thread: int, device_waits: bool = False) -> tuple[str, bool]:
    """Where a thread of this process stands, in words, and whether it seems to wait for other ranks.

    Args:
        thread: Its `ident`.
        device_waits: Whether work on the device may be waiting for other ranks: a GPU takes orders and does them later,
            an exchange among them; and under FSDP2 every pass exchanges weights.

    Returns:
        As in ("reading data (batches.py:93 _gather)", False).
    """
    within = phases(thread)
    if within and (other := within[-1].thread) is not None and other.ident is not None:
        thread, within = other.ident, [*within, *phases(other.ident)]
    frames = _frames(sys._current_frames().get(thread))
    return judge(within, frames, device_waits)


def judge(within: Sequence[phase], frames: Sequence[Frame], device_waits: bool = False) -> tuple[str, bool]:
    """What the phases that a thread is in say, and its stack, innermost call first, which gives file and line.

    The exchange of gradients is a part of the backward pass: a rank in it counts as one that waits.
    """
    if not frames:
        return "nowhere: its thread has ended", False
    on = within[-1].on if within else "device"
    names = [each.name for each in within[-2 if on == "ranks" else -1 :]]
    known = (each for each in frames if _is_ours(each.file) or not each.file.startswith(_LIBRARIES))
    own = next(known, frames[0])
    place = f"{Path(own.file).name}:{own.line} {own.function}"
    where = f"{', '.join(names)} ({place})" if names else place
    return where, on == "ranks" or (on == "device" and device_waits)


def _is_ours(file: str) -> bool:
    return file.startswith(_OURS) and file != _PHASES


def _frames(frame: FrameType | None) -> list[Frame]:
    """Innermost first."""
    found = []
    while frame is not None:
        found.append(Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


# In the driver -----------------------------------------------------------------------------------------------


class StallDetector:
    """Hears the beats of all ranks, and warns who is waited for: at once, and again whenever the wait has doubled."""

    def __init__(self, stall_seconds: float = STALL_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.stall_seconds, self.clock = stall_seconds, clock
        self._beats: dict[int, BeatEvent] = {}
        self._heard: dict[int, float] = {}
        self._begun: float | None = None
        """When the stall that was reported began."""
        self._next = 0.0
        """Seconds of stall at which it is reported again."""

    def hear(self, beat: BeatEvent) -> None:
        """Take in a beat."""
        now, rank = self.clock(), beat["rank"]
        if beat["first"]:  # perhaps of a new group of workers, and fewer: those of the old one that died are no loss
            lost = 2 * self.stall_seconds / BEATS_A_STALL
            alive = {each for each, heard in self._heard.items() if now - heard < lost and each < beat["size"]}
            self._heard = {each: heard for each, heard in self._heard.items() if each in alive}
            self._heard |= {each: now for each in range(beat["size"]) if each not in alive}
            self._beats = {each: known for each, known in self._beats.items() if each in alive}
        self._heard[rank], self._beats[rank] = now, beat
        if beat["last"]:
            del self._heard[rank], self._beats[rank]

    def check(self) -> MessageEvent | WarningEvent | None:
        """The event for people, where there is one now: of kind "warning", and "message" when the stall is over."""
        now = self.clock()
        silent = {rank: now - heard for rank, heard in self._heard.items() if now - heard > self.stall_seconds}
        heard = {rank: beat for rank, beat in self._beats.items() if rank not in silent}
        idle = [beat["idle"] + now - self._heard[rank] for rank, beat in heard.items() if beat["stalled"]]
        seconds = max([*idle, *silent.values()], default=0.0)
        if not seconds:
            begun, self._begun, self._next = self._begun, None, 0.0
            return None if begun is None else {"kind": "message", "text": f"goes on after {now - begun:.0f} s"}
        self._begun = now - seconds if self._begun is None else min(self._begun, now - seconds)
        if seconds < self._next:
            return None
        self._next = 2 * seconds
        hosts = {rank: beat["host"] for rank, beat in self._beats.items()}
        text = f"no step for {seconds:.0f} s: {describe(heard, silent, hosts)}"
        return {"kind": "warning", "text": text}


def describe(heard: Mapping[int, BeatEvent], silent: Mapping[int, float], hosts: Mapping[int, str]) -> str:
    """Who waits for whom, and where that one stands.

    Args:
        heard: Rank -> its last beat, of the ranks that are heard of.
        silent: Rank -> seconds since it was heard of, of the others.
        hosts: Rank -> how people know its host, of every rank that was ever heard of.
    """

    def named(rank: int) -> str:
        return f"rank {rank} on {hosts[rank]}" if rank in hosts else f"rank {rank}, which has not come up"

    waiting = [rank for rank, beat in sorted(heard.items()) if beat["waits"]]
    missing = [f"{named(rank)}, not heard of for {seconds:.0f} s" for rank, seconds in sorted(silent.items())]
    standing = [
        f"{named(rank)}, which stands in {beat['where']}" for rank, beat in sorted(heard.items()) if rank not in waiting
    ]
    if not heard:
        return f"{_all(missing)}; Ray restarts workers where they or their hosts are gone"
    if not waiting:
        return _all([*missing, *(text.replace(", which stands", " stands") for text in standing)])
    first = heard[waiting[0]]
    they = f"{_ranks(waiting)} {'wait' if len(waiting) > 1 else 'waits'} in {first['at']}"
    if missing or standing:
        return f"{they} for {_all([*missing, *standing])}"
    return f"{they} for each other, in {first['where']}: is the network between {_all(sorted(set(hosts.values())))} up?"


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 * MOST_NAMED:
        return f"{len(ranks)} ranks"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _all(texts: Sequence[str]) -> str:
    more = [f"and {len(texts) - MOST_NAMED} more"] if len(texts) > MOST_NAMED else []
    return "; ".join([*texts[:MOST_NAMED], *more])
