"""Three hosts: the same results as on one, and nothing lost when one dies, hangs or is cut off.

Made of network namespaces on this machine (tests/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hosts import SLOW_MODEL, Host, Hosts, Training, why_not
from small import last_weights

from trainers.checkpoint import Checkpoints
from trainers.store import Store

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

STEPS = 23
FP64 = ["--precision", "fp64", "--micro-batch-size", "16"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts")) as made:
        for host in made.all:
            host.resolve_to_loopback()  # where Gloo would bind to by itself
        made.start_cluster()
        yield made


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all hosts see, as a shared disk."""
    return tmp_path_factory.mktemp("storage")


def history(folder: Store) -> list[dict[str, float]]:
    return [json.loads(line) for line in folder.read("metrics.jsonl").splitlines()]


def assert_equal_history(folder: Store, other: Store, rel: float = 1e-8) -> None:
    mine, theirs = history(folder), history(other)
    assert len(mine) == len(theirs)
    for one, two in zip(mine, theirs, strict=True):
        scores = [name for name in one if name.startswith(("val/", "train/"))]
        assert {name: one[name] for name in scores} == pytest.approx({name: two[name] for name in scores}, rel=rel)


def test_three_hosts_equal_one_worker(hosts: Hosts, storage: Path) -> None:
    streets = ["--image-size", "32x48", "--dataset-args", "train=13", "val=5", "test=3", "--batch-size", "6"]
    streets += ["--precision", "fp64", "--micro-batch-size", "2", "--epochs", "2"]
    for recipe, flags in {"digits.cnn": ["--epochs", "2", *FP64], "streets.unet": streets}.items():
        one = Training(hosts, storage, f"{recipe}-one", "--workers", "0", *flags, recipe=recipe)
        one.end()
        three = Training(hosts, storage, f"{recipe}-three", "--workers", "3", *flags, recipe=recipe)
        run = three.end()
        assert_equal_history(three.folder, one.folder)
        assert len(run["machine"]["nodes"]) == 3
    prepared = [path for path in (storage / "cache").iterdir() if (path / "meta.json").exists()]
    assert len(prepared) == 2  # once for each recipe


@pytest.fixture(scope="module")
def slow(storage: Path) -> list[str]:
    """The flags of a run whose epochs take seconds."""
    (storage / "slow.py").write_text(SLOW_MODEL)
    return ["--model", str(storage / "slow.py"), "--checkpoint-seconds", "1", *FP64]


def assert_as_undisturbed(training: Training, hosts: Hosts, storage: Path, *flags: str) -> None:
    """Equal up to rounding, which the number of workers changes; each sample of each epoch was counted once."""
    run = training.end()
    undisturbed = Training(hosts, storage, "undisturbed", "--workers", "0", *flags).end()
    shutil.move(storage / "undisturbed", storage / f"undisturbed-{run['name']}")
    weights = last_weights(training.folder)
    assert (run["status"], undisturbed["status"]) == ("finished", "finished")
    for name, value in last_weights(storage / f"undisturbed-{run['name']}").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-8)
    seen = [round(line["images_per_second"] * line["seconds"]) for line in history(training.folder)]
    assert seen == [1438] * run["recipe"]["epochs"]


def test_hosts_are_lost_and_come_back(hosts: Hosts, storage: Path, slow: list[str]) -> None:
    """One is killed, another hangs, a third is cut off for a minute, all in the middle of an epoch of one run."""
    flags = [*slow, "--epochs", "40"]
    training = Training(hosts, storage, "troubled", "--workers", "1:3", *flags)
    training.wait_for("epoch 1/")
    for trouble, victim in (("killed", hosts.all[1]), ("frozen", hosts.all[2]), ("cut off", hosts.all[1])):
        training.wait_for_the_middle_of_an_epoch(STEPS)
        lost = time.monotonic()
        {"killed": victim.down, "frozen": victim.freeze, "cut off": functools.partial(hosts.cut, victim)}[trouble]()
        training.wait_for("going on from step")
        print(f"{trouble}: went on after {time.monotonic() - lost:.1f} s")
        _bring_back(hosts, victim, trouble, lost)
        training.wait_for("room for more workers")
        training.wait_for("going on from step")
        print(f"{trouble}: three again after {time.monotonic() - lost:.1f} s")
    assert_as_undisturbed(training, hosts, storage, *flags)


def _bring_back(hosts: Hosts, host: Host, trouble: str, lost: float) -> None:
    """As a machine whose services start by themselves."""
    if trouble == "cut off":
        time.sleep(max(0.0, lost + 60 - time.monotonic()))
        hosts.mend(host)
    if trouble == "frozen":
        host.thaw()
    host.down()
    hosts.restart(host)


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
