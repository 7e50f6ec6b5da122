"""Why a process that Ray started is gone: out of memory is a result, a crash is a failure."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

from trainers.runtime.preflight import by_value, on_every, ray_hosts

MONITOR = "running low on memory"
"""What Ray's error says of a process that its memory monitor ended."""
KILLED = "the process was killed without a word (SIGKILL), most likely by the kernel, out of memory"


def diagnose(error: str) -> tuple[Literal["out_of_memory", "failed"], str]:
    """A status, and a line for people, from the text of Ray's error. Ray is connected to.

    Ray says the same of a process that the kernel killed for want of memory as of one that crashed; one that crashed
    has left its last words in its log, where Python's fault handler writes them.
    """
    if MONITOR in error:
        return "out_of_memory", "Ray's memory monitor ended the process: its host was running out of memory"
    place = re.search(r"^\s*pid: (\d+)$.*?^\s*ip: (\S+)$", error, re.MULTILINE | re.DOTALL)
    if place and "connection error code 2" in error:
        there = [host for host in ray_hosts() if host.address == place[2]]
        with by_value(sys.modules[__name__]):
            words = on_every(there, _last_words, {"pid": int(place[1])})
        heard = [each for each in words.values() if "error" not in each]
        if fault := next((each["fault"] for each in heard if each["fault"]), None):
            return "failed", f"the process crashed: {fault}"
        if heard:
            return "out_of_memory", KILLED
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["no reason given"]
    return "failed", f"the process died: {lines[-1].rpartition('Worker exit detail: ')[2]}"


def _last_words(wanted: dict[str, Any]) -> dict[str, Any]:
    """What a process of this host wrote as it crashed; None where it did not."""
    import ray._private.worker

    node: Any = ray._private.worker._global_node
    for log in Path(node.get_logs_dir_path()).glob(f"worker-*-{wanted['pid']}.err"):
        if found := re.search(r"Fatal Python error: (.+)", log.read_text(errors="replace")):
            return {"fault": found[1].strip()}
    return {"fault": None}
