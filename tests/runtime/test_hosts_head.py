"""Three hosts: one is taken back with notice; the head is lost, and the same submitted lines continue.

Made of network namespaces on this machine (tests/helpers/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from helpers.hosts import (
    ON_DISK,
    TRAINING_SECONDS,
    Hosts,
    Training,
    assert_as_undisturbed,
    history,
    why_not,
)
from helpers.small import DIGITS_STEPS, Slow

from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

EPOCHS = 14


def test_a_host_that_is_taken_back_saves_in_time(hosts: Hosts, storage: Path, slow: Slow) -> None:
    """A preemption notice, 12 s before the end."""
    seldom = ["--workers", "1:3", *ON_DISK, *slow.flags, "--epochs", "36", "--checkpoint-seconds", "1000"]
    training = Training(hosts, storage, "preempted", *seldom)
    training.wait_for("epoch 1/")
    listed = json.loads(hosts.head.run("ray", "list", "nodes", "--format=json", "--address", hosts.dashboard))
    alive = {node["node_ip"]: node["node_id"] for node in listed if node["state"] == "ALIVE"}
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    notice += ["--node-id", alive[hosts.all[2].address], "--deadline-remaining-seconds", "12"]
    hosts.head.run("ray", "drain-node", "--address", hosts.address, *notice)
    assert "checkpoints every 5 s" in training.wait_for("taken back")
    training.wait_for_the_middle_of_an_epoch(DIGITS_STEPS)
    training.wait_for("going on from step")
    training.kill()
    hosts.all[2].down()
    hosts.restart(hosts.all[2])


def test_the_head_is_lost_and_the_same_submitted_lines_continue(hosts: Hosts, storage: Path, slow: Slow) -> None:
    """A run and a sweep."""
    outside = hosts.add_outsider()
    epochs = ["--epochs", str(EPOCHS)]
    grid = ["tune_spaces", "--recipe", "digits.cnn", "--space", "seed=0,1,2", "--scheduler", "none"]
    lines = [
        ("run", ["trainers", "train", "digits.cnn"], ["--workers", "3", *ON_DISK, *epochs]),
        ("sweep", grid, [*epochs, "--cpus-per-worker", "1", "--max-concurrent", "2"]),
    ]

    def submit() -> list[Training]:
        return [
            Training(hosts, storage, run, *slow.flags, *flags, command=command, submitted_by=outside)
            for run, command, flags in lines
        ]

    training, sweep = submit()
    _wait_for_trials(storage / "sweep")
    training.wait_for_the_middle_of_an_epoch(DIGITS_STEPS)
    hosts.head.down()
    for command in (training, sweep):
        command.kill()
    steps = {path.parent: Checkpoints(Store(path.parent)).latest_step() for path in storage.glob("sweep/*/run.json")}
    assert len(steps) == 2
    assert all(0 < step < EPOCHS * DIGITS_STEPS for step in steps.values())
    for host in hosts.all:
        host.down()
    kept = Checkpoints(training.folder).latest_step()  # now that nobody writes any more
    for host in hosts.all:
        hosts.restart(host)

    training, sweep = submit()
    assert training.wait_for("going on from step").split("step ")[1].startswith(f"{kept},")
    slow.hurry()
    for command in (training, sweep):
        command.end()
    Training(hosts, storage, "undisturbed", "--workers", "0", *slow.flags, *epochs).end()
    content = json.loads((storage / "sweep" / "sweep.json").read_text())
    for run in (storage / "run", storage / "sweep" / content["trials"][0]["name"]):
        assert_as_undisturbed(run, storage / "undisturbed")
    assert [trial["status"] for trial in content["trials"]] == ["finished"] * 3
    for trial in content["trials"]:
        folder = storage / "sweep" / trial["name"]
        assert [line["epoch"] for line in history(folder)] == list(range(1, EPOCHS + 1))
        assert json.loads((folder / "run.json").read_text())["attempt"] == 1 + (folder in steps)


def _wait_for_trials(sweep: Path) -> None:
    """Until two trials of a sweep have a checkpoint."""
    limit = time.monotonic() + TRAINING_SECONDS
    while sum(Checkpoints(Store(path.parent)).latest_step() > 0 for path in sweep.glob("*/checkpoints")) < 2:
        assert time.monotonic() < limit, "no two trials have written a checkpoint"
        time.sleep(0.05)
