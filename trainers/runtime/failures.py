"""Why a process that Ray started is gone: out of memory is a result, a crash is a failure."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal, TypedDict

from trainers.runtime.preflight import by_value, on_every, ray_hosts, split
from trainers.runtime.ray_internals import parse_death


class Process(TypedDict):
    pid: int


class LastWords(TypedDict):
    fault: str | None
    """None: it did not crash."""


KILLED = "the process was killed without a word (SIGKILL), most likely by the kernel, out of memory"


def diagnose(error: str) -> tuple[Literal["out_of_memory", "failed"], str]:
    """Why a process is gone. Ray is connected to.

    Ray says the same of a process that the kernel killed for want of memory as of one that crashed; one that crashed
    has left its last words in its log, where Python's fault handler writes them.

    Args:
        error: The text of Ray's error.

    Returns:
        A status, and a line for people.
    """
    death = parse_death(error)
    if death.by_memory_monitor:
        return "out_of_memory", "Ray's memory monitor ended the process: its host was running out of memory"
    if death.vanished_at is not None:
        address, pid = death.vanished_at
        there = [host for host in ray_hosts() if host.address == address]
        with by_value(sys.modules[__name__]):
            words = on_every(there, _last_words, {"pid": pid})
        heard, _ = split(words)
        if fault := next((each["fault"] for each in heard.values() if each["fault"]), None):
            return "failed", f"the process crashed: {fault}"
        if heard:
            return "out_of_memory", KILLED
    return "failed", f"the process died: {death.detail}"


def _last_words(wanted: Process) -> LastWords:
    """What a process of this host wrote as it crashed."""
    import ray

    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir(), context.get_session_name(), "logs")
    for log in logs.glob(f"worker-*-{wanted['pid']}.err"):
        if found := re.search(r"Fatal Python error: (.+)", log.read_text(errors="replace")):
            return {"fault": found[1].strip()}
    return {"fault": None}
