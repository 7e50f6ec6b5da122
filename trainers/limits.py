"""What this process may use of its host: CPUs, threads and memory, within its affinity and its control groups."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
CORES = Path("/proc/stat")
SPARE = 0.25
"""Cores that the small things a system does may take."""
SOON = 0.1
"""Seconds in which too few ticks of 0.01 s are counted."""
SPINS = 2000
"""Of a thread of OpenMP that waits: tens of microseconds, which handing work over takes. By itself it spins for
milliseconds."""
OWN_GROUPS = Path("/proc/self/cgroup")
"""Of this process: "0::/path" of version 2, "4:cpu,cpuacct:/path" of version 1."""


def cpus() -> int:
    """Cores whose time this process gets, at least 1: a quota of 1.5 is one."""
    found: list[float] = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        found.append(len(os.sched_getaffinity(0)))
    return max(1, int(min([*found, *_quotas()])))


def threads() -> int | None:
    """What the user's OMP_NUM_THREADS says; None where it says nothing. "4,2" are 4 at the outermost level."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) else None


def wait_briefly() -> None:
    """Let threads of OpenMP that wait for each other soon do so without a core.

    A thread that spins holds the core that the one it waits for may need: where other programs compute, a step in as
    many threads as there are cores then takes ten times as long and more. Whether they will nobody knows at the start.
    OpenMP reads this when torch is imported, here or in processes that this one starts. What the user says holds.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}.isdisjoint(os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def memory() -> int:
    """Bytes."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for text in _cgroup("memory", "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    return min([host, *limits])


class Load:
    """How busy the cores of this host are, from when it is made."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), _busy_seconds()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    def cores(self) -> tuple[float, float] | None:
        """How many were busy in the mean: in all, with what other machines on the same hardware took, and for this
        process. None where the system does not tell, nor so soon."""
        before, now, seconds = self._before, _busy_seconds(), self.seconds
        if before is None or now is None or seconds < SOON:
            return None
        return (now[0] - before[0]) / seconds, (now[1] - before[1]) / seconds

    def leaves(self, threads: int) -> float:
        """How many cores others left to so many threads of this process: as many, where none of these was taken as far
        as is known."""
        found, cores = self.cores(), os.cpu_count() or 1
        left = threads if found is None else cores - (found[0] - found[1])
        return threads if left >= min(threads, cores) - SPARE else left


def _busy_seconds() -> tuple[float, float] | None:
    """Of all cores of the host, and of this process; None where the system does not tell."""
    words = _read(CORES).partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":  # Linux's alone
        return None
    user, nice, system, _, _, hard, soft, stolen = map(int, words[1:9])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK"), time.process_time()


def _quotas() -> Iterator[float]:
    """How many cores' time the control groups grant."""
    version_2 = [text.partition(" ")[::2] for text in _cgroup("cpu", "cpu.max", "")]  # "150000 100000", "max 100000"
    version_1 = zip(_cgroup("cpu", "", "cpu.cfs_quota_us"), _cgroup("cpu", "", "cpu.cfs_period_us"), strict=False)
    for quota, period in [*version_2, *version_1]:
        with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", or "-1": without a limit
            if int(quota) > 0:
                yield int(quota) / int(period)


def _cgroup(controller: str, name_v2: str, name_v1: str) -> Iterator[str]:
    """What a file says in the control group of this process and in all above it, whose limits hold too."""
    for entry in _read(OWN_GROUPS).splitlines():
        number, _, rest = entry.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and controller not in controllers.split(","):
            continue
        root, name = GROUPS, name_v2
        if number != "0":
            root, name = next(filter(Path.is_dir, [GROUPS / controllers, GROUPS / controller]), GROUPS), name_v1
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if name and (text := _read(group / name).strip()):
                yield text
            if group == root:
                break


def _read(file: Path) -> str:
    """The file's text; "" where it is not there, or is closed to us."""
    try:
        return file.read_text(errors="surrogateescape")  # names of groups need not be UTF-8
    except OSError:
        return ""
