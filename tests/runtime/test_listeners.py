"""What our commands listen on: loopback alone, whatever Ray and torch do by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TRAIN = "trainers train digits.cnn --epochs 1"
COMMANDS = {
    "one worker": f"{TRAIN} --workers 1 --run one",
    "a sweep that imports Ray early": "tune_spaces digits.quick --epochs 1 --search random --trials 2 --run sweep",
    "a check of the cluster": "cluster doctor",
}


def listeners(process: psutil.Process) -> dict[str, set[str]]:
    """Name of a process, of this one and all below it -> addresses that it listens on."""
    found: dict[str, set[str]] = {}
    for each in [process, *process.children(recursive=True)]:
        try:
            opened = each.net_connections("inet")
            own = {entry.laddr.ip.removeprefix("::ffff:") for entry in opened if entry.status == psutil.CONN_LISTEN}
            found.setdefault(each.name(), set()).update(own)
        except psutil.Error:  # it has ended
            continue
    return found


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
    beyond = {name: addresses for name, addresses in seen.items() if addresses - {"127.0.0.1", "::1"}}
    assert beyond == {}
