"""What our commands listen on: loopback alone, whatever Ray and torch do by themselves.

What a training listens on is looked at in test_process.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.listeners import beyond_loopback, listeners

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "a sweep that imports Ray early": "tune_spaces digits.quick --epochs 1 --search random --trials 2 --run sweep",
    "a check of the cluster": "cluster doctor",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_listens_on_loopback_alone(command: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRAINYARD_STORAGE": str(tmp_path)}
    environment.pop("RAY_ADDRESS", None)
    words = [sys.executable, "-m", *command.split()]
    seen: dict[str, set[str]] = {}
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=output, stderr=output)
        while process.poll() is None:
            try:
                for name, addresses in listeners(psutil.Process(process.pid)).items():
                    seen.setdefault(name, set()).update(addresses)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
    assert process.wait() == 0, (tmp_path / "output").read_text()
    assert "raylet" in seen  # it was looked at while Ray ran
    assert beyond_loopback(seen) == {}
