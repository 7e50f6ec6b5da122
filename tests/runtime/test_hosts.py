"""Three hosts: the same results as on one; nothing lost when one dies, hangs, is cut off or taken back with notice, or
when the head dies, be the run on a shared disk or in an object store; pictures are copied once to each host that lacks
them.

Made of network namespaces on this machine (tests/helpers/hosts.py): needs root, and is skipped elsewhere. One file, so
that two clusters of three hosts never share the machine.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from pathlib import Path

import pytest
from helpers.hosts import (
    IN_STORE,
    ON_DISK,
    TRAINING_SECONDS,
    Host,
    Hosts,
    Training,
    assert_as_undisturbed,
    history,
    why_not,
)
from helpers.object_store import SECRET
from helpers.small import DIGITS_STEPS, Slow

from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

DIGITS = ["--precision", "fp64", "--micro-batch-size", "16", "--epochs", "2", "--batch-size", "64"]
EPOCHS = 14
"""Of a run and a sweep that lose the head."""


def assert_equal_scores(folder: Path, other: Path) -> None:
    """In each epoch, up to rounding."""
    scores = [
        [{name: line[name] for name in line if name.startswith(("val/", "train/"))} for line in history(each)]
        for each in (folder, other)
    ]
    for mine, theirs in zip(*scores, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-8)


def test_a_run_survives_the_loss_and_return_of_hosts(
    hosts: Hosts, storage: Path, store: str, slow: Slow, tmp_path: Path
) -> None:
    """One is killed and another is cut off, in the middle of an epoch of two runs."""
    flags = [*slow.flags, "--epochs", "36"]
    on_disk = Training(hosts, storage, "troubled", "--workers", "1:3", *ON_DISK, *flags)
    in_store = Training(hosts, store, "troubled", "--workers", "1:3", *IN_STORE, *flags)
    for training in (on_disk, in_store):
        training.wait_for("epoch 2/")  # a checkpoint is uploaded
    for trouble, victim in (("killed", hosts.all[1]), ("cut off", hosts.all[2])):
        on_disk.wait_for_the_middle_of_an_epoch(DIGITS_STEPS)
        lost = time.monotonic()
        {"killed": victim.down, "cut off": functools.partial(hosts.cut, victim)}[trouble]()
        for name, training in (("on disk", on_disk), ("in store", in_store)):
            step = int(training.wait_for("going on from step").split("step ")[1].split(",")[0])
            print(f"{trouble}, {name}: went on from step {step} after {time.monotonic() - lost:.1f} s")
            assert step > 0
        if trouble == "cut off":
            hosts.fix(victim)
        victim.down()
        hosts.restart(victim)  # as a machine whose services start by themselves
        for name, training in (("on disk", on_disk), ("in store", in_store)):
            training.wait_for("room for more workers")
            training.wait_for("going on from step")
            print(f"{trouble}, {name}: three again after {time.monotonic() - lost:.1f} s")
    slow.hurry()
    for training in (on_disk, in_store):
        training.end()
    Training(hosts, storage, "undisturbed", "--workers", "0", *flags).end()
    assert len(list((storage / "cache").glob("*/meta.json"))) == 1
    hosts.fetch(store, "troubled", tmp_path)
    for run in (storage / "troubled", tmp_path):
        assert_as_undisturbed(run, storage / "undisturbed")


# What hosts see of the disks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without workers."""
    storage = tmp_path_factory.mktemp("one")
    Training(hosts, storage, "one", "--workers", "0", *DIGITS).end()
    return storage / "one"


def forget_pictures(hosts: Hosts) -> None:
    """Those of the tests before."""
    for host in hosts.all:
        shutil.rmtree(host.home / ".cache", ignore_errors=True)


def copies(host: Host) -> list[Path]:
    """Whole sets in the host's own cache."""
    return [path.parent for path in (host.home / ".cache" / "trainyard").glob("*/meta.json")]


def test_hosts_that_do_not_see_the_pictures_copy_them_once_and_unshared_storage_is_refused(
    hosts: Hosts, one: Path, tmp_path: Path
) -> None:
    storage, cache, unshared = tmp_path / "storage", tmp_path / "cache", tmp_path / "unshared"
    for path in (storage, cache, unshared):
        path.mkdir()
    forget_pictures(hosts)
    for host in hosts.all[1:]:
        host.hide(cache)
    hosts.all[2].hide(unshared)
    env = {"TRAINYARD_CACHE": str(cache)}
    Training(hosts, storage, "three", "--workers", "3", *ON_DISK, *DIGITS, env=env).end()
    assert_equal_scores(storage / "three", one)
    assert len(json.loads((storage / "three" / "run.json").read_text())["machine"]["nodes"]) == 3
    assert [len(copies(host)) for host in hosts.all] == [0, 1, 1]
    (prepared,) = [path.parent for path in cache.glob("*/meta.json")]
    assert [path.name for path in copies(hosts.all[1])] == [prepared.name]

    printed = Training(hosts, unshared, "run", "--workers", "3", *ON_DISK, *DIGITS).end(code=2)
    assert "host3" in printed
    assert "storage" in printed
    assert "epoch 1/2" not in printed


def test_an_object_store_serves_all_hosts(hosts: Hosts, one: Path, store: str, tmp_path: Path) -> None:
    forget_pictures(hosts)
    for host in hosts.all[1:]:
        host.hide(tmp_path)
    env = {"TRAINYARD_CACHE": str(tmp_path)}
    printed = Training(hosts, store, "three", "--workers", "3", *ON_DISK, *DIGITS, env=env).end()
    hosts.fetch(store, "three", tmp_path / "fetched")
    assert_equal_scores(tmp_path / "fetched", one)
    assert [len(copies(host)) for host in hosts.all] == [0, 1, 1]
    assert SECRET not in printed


# Hosts and the head that go away --------------------------------------------------------------------------------------


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
    Training(hosts, storage, "calm", "--workers", "0", *slow.flags, *epochs).end()
    content = json.loads((storage / "sweep" / "sweep.json").read_text())
    for run in (storage / "run", storage / "sweep" / content["trials"][0]["name"]):
        assert_as_undisturbed(run, storage / "calm")
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
