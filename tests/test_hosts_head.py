"""Three hosts: one is taken back with notice; the head is lost, and the same submitted line continues.

Made of network namespaces on this machine (tests/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hosts import Hosts, Training, assert_as_undisturbed, why_not

from trainers.checkpoint import Checkpoints

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

STEPS = 23


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all hosts see, as a shared disk."""
    return tmp_path_factory.mktemp("storage")


def test_a_host_that_is_taken_back_saves_in_time(hosts: Hosts, storage: Path, slow: list[str]) -> None:
    """A preemption notice, 12 s before the end."""
    seldom = [*slow, "--epochs", "60", "--checkpoint-seconds", "1000"]
    training = Training(hosts, storage, "preempted", "--workers", "1:3", *seldom)
    training.wait_for("epoch 1/")
    listed = json.loads(hosts.head.run("ray", "list", "nodes", "--format=json", "--address", hosts.dashboard))
    alive = {node["node_ip"]: node["node_id"] for node in listed if node["state"] == "ALIVE"}
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    notice += ["--node-id", alive[hosts.all[2].address], "--deadline-remaining-seconds", "12"]
    hosts.head.run("ray", "drain-node", "--address", hosts.address, *notice)
    assert "checkpoints every 5 s" in training.wait_for("taken back")
    training.wait_for_the_middle_of_an_epoch(STEPS)
    training.wait_for("going on from step")
    training.kill()
    hosts.all[2].down()
    hosts.restart(hosts.all[2])


def test_the_head_is_lost_and_the_same_submitted_line_continues(hosts: Hosts, storage: Path, slow: list[str]) -> None:
    outside = hosts.add_outsider()
    flags = [*slow, "--epochs", "10"]
    training = Training(hosts, storage, "headless", "--workers", "3", *flags, submitted_by=outside)
    training.wait_for("epoch 1/")
    training.wait_for_the_middle_of_an_epoch(STEPS)
    hosts.head.down()
    training.kill()
    kept = Checkpoints(training.folder).latest_step()
    for host in hosts.all:
        host.down()
        hosts.restart(host)
    again = Training(hosts, storage, "headless", "--workers", "3", *flags, submitted_by=outside)
    assert again.wait_for("going on from step").split("step ")[1].startswith(f"{kept},")
    assert_as_undisturbed(again, hosts, storage, *flags)
