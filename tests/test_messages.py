"""A key of a job, an event or a data set's facts that is missing or misspelt is a type error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SNIPPET = """
from typing import assert_never

from trainers.messages import DataSpec, DoneEvent, Event, Job, Meta
from trainers.run_facts import RunFacts


def make_job(data: DataSpec) -> Job:
    return {
        "recipe": {}, "scale": {}, "folder": "f", "storage": "s", "attempt": 1, "start_id": "i", "data": data,
        "threads": 1, "cwd": ".", "adopt": None, "own_device": True,
    }


def make_job_without_threads(data: DataSpec) -> Job:
    return {  # E: threads
        "recipe": {}, "scale": {}, "folder": "f", "storage": "s", "attempt": 1, "start_id": "i", "data": data,
        "cwd": ".", "adopt": None, "own_device": True,
    }


def read(job: Job, meta: Meta, run: RunFacts, end: DoneEvent) -> None:
    print(job["data"]["meta"]["rows"]["train"], meta["class_counts"], run["status"], end["counts"])
    print(job["thread"])  # E: thread
    print(job["data"]["fodler"])  # E: fodler
    print(meta["clases"])  # E: clases
    print(run["best_epoch"])  # E: best_epoch
    print(end["pictures"][0]["labeled"])  # E: labeled
    end["status"] = "stopped"  # E: status


def report(event: Event) -> None: ...


report({"kind": "warning", "text": "careful"})
report({"kind": "saved", "step": 3})
report({"kind": "warning", "message": "careful"})  # E: Event
report({"kind": "saved", "steps": 3})  # E: Event
report({"kind": "save", "step": 3})  # E: kind


def show(event: Event) -> str:
    if event["kind"] == "epoch":
        return f"{event['line']}"
    if event["kind"] == "file":
        return event["line"]  # E: line
    return ""


def show_all(event: DoneEvent) -> str:
    if event["kind"] == "done":
        return event["message"]
    assert_never(event)


def show_too_few(event: Event) -> str:
    if event["kind"] == "done":
        return event["message"]
    assert_never(event)  # E: assert_never
"""


@pytest.mark.slow
def test_a_missing_or_misspelt_key_is_a_type_error(tmp_path: Path) -> None:
    """mypy finds an error in every line that says so, and in no other."""
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary", "--hide-error-context", str(snippet)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = dict(re.findall(r"snippet\.py:(\d+): error: (.*)", done.stdout))
    expected = {
        str(number): line.partition("# E: ")[2]
        for number, line in enumerate(SNIPPET.splitlines(), start=1)
        if "# E: " in line
    }
    assert found.keys() == expected.keys(), done.stdout + done.stderr
    for number, word in expected.items():
        assert word in found[number]
