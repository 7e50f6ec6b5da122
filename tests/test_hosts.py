"""Three hosts: the same results as on one, and nothing lost when one dies, hangs or is cut off.

Made of network namespaces on this machine (tests/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hosts import Host, Hosts, Training, why_not
from small import last_weights

from trainers.checkpoint import Checkpoints
from trainers.store import Store

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

STEPS = 23
FP64 = ["--precision", "fp64", "--micro-batch-size", "16"]
SLOW = """
import sys
import time

import torch

from trainers.models import linear_cnn


class Slow(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        if self.training and "ray" in sys.modules:
            time.sleep(0.06)
        return self.inner(images)


def build(**args):
    return Slow(linear_cnn.build(**args))
"""
"""A model that takes its time, not the processor's, in a worker on Ray."""
EPOCHS = 30


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts")) as made:
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
def long(storage: Path) -> list[str]:
    """The flags of a run of minutes."""
    (storage / "slow.py").write_text(SLOW)
    return ["--model", str(storage / "slow.py"), "--epochs", str(EPOCHS), "--checkpoint-seconds", "1", *FP64]


@pytest.fixture(scope="module")
def undisturbed(hosts: Hosts, storage: Path, long: list[str]) -> dict[str, torch.Tensor]:
    Training(hosts, storage, "undisturbed", "--workers", "0", *long).end()
    return last_weights(storage / "undisturbed")


def assert_undisturbed(training: Training, undisturbed: dict[str, torch.Tensor]) -> None:
    """Equal up to rounding, which the number of workers changes; each sample of each epoch was counted once."""
    run, weights = training.end(), last_weights(training.folder)
    assert run["status"] == "finished"
    for name, value in undisturbed.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-8)
    seen = [round(line["images_per_second"] * line["seconds"]) for line in history(training.folder)]
    assert seen == [1438] * EPOCHS


@pytest.mark.parametrize("trouble", ["killed", "frozen", "cut off"])
def test_a_host_is_lost_and_comes_back(
    hosts: Hosts, storage: Path, long: list[str], undisturbed: dict[str, torch.Tensor], trouble: str
) -> None:
    training = Training(hosts, storage, trouble.replace(" ", "-"), "--workers", "1:3", *long)
    training.wait_for("epoch 1/")
    training.wait_for_the_middle_of_an_epoch(STEPS)
    victim = hosts.all[2]
    lost = time.monotonic()
    {"killed": victim.down, "frozen": victim.freeze, "cut off": lambda: hosts.cut(victim)}[trouble]()
    training.wait_for("going on from step")
    print(f"{trouble}: went on after {time.monotonic() - lost:.1f} s")
    _bring_back(hosts, victim, trouble, lost)
    training.wait_for("room for more workers")
    training.wait_for("going on from step")
    assert_undisturbed(training, undisturbed)


def _bring_back(hosts: Hosts, host: Host, trouble: str, lost: float) -> None:
    """As a machine whose services start by themselves."""
    if trouble == "cut off":
        time.sleep(max(0.0, lost + 60 - time.monotonic()))
        hosts.mend(host)
    if trouble == "frozen":
        host.thaw()
    host.down()
    hosts.restart(host)


def test_a_host_that_is_taken_back_saves_in_time(hosts: Hosts, storage: Path, long: list[str]) -> None:
    """A preemption notice, 12 s before the end."""
    slowly = [*long, "--checkpoint-seconds", "1000"]
    training = Training(hosts, storage, "preempted", "--workers", "1:3", *slowly)
    training.wait_for("epoch 1/")
    listed = hosts.head.run("ray", "list", "nodes", "--format=json", "--address", hosts.dashboard)
    node = next(
        n["node_id"] for n in json.loads(listed) if n["node_ip"] == hosts.all[2].address and n["state"] == "ALIVE"
    )
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    notice += ["--deadline-remaining-seconds", "12"]
    hosts.head.run("ray", "drain-node", "--address", hosts.address, "--node-id", node, *notice)
    assert "checkpoints every 5 s" in training.wait_for("taken back")
    training.wait_for_the_middle_of_an_epoch(STEPS)
    training.wait_for("going on from step")
    training.kill()
    hosts.all[2].down()
    hosts.restart(hosts.all[2])


def test_the_head_is_lost_and_the_same_submitted_line_continues(
    hosts: Hosts, storage: Path, long: list[str], undisturbed: dict[str, torch.Tensor]
) -> None:
    outside = hosts.add_outsider()
    line = ["--workers", "3", *long]
    training = Training(hosts, storage, "headless", *line, submitted_by=outside)
    training.wait_for("epoch 1/")
    training.wait_for_the_middle_of_an_epoch(STEPS)
    hosts.head.down()
    training.kill()
    kept = Checkpoints(training.folder).latest_step()
    for host in hosts.all:
        host.down()
        hosts.restart(host)
    again = Training(hosts, storage, "headless", *line, submitted_by=outside)
    assert again.wait_for("going on from step").split("step ")[1].startswith(f"{kept},")
    assert_undisturbed(again, undisturbed)
