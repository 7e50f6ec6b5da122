"""Three hosts: the same results as on one, and nothing lost when one dies, hangs or is cut off, be the run on a shared
disk or in an object store.

Made of network namespaces on this machine (tests/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path

import pytest
from hosts import IN_STORE, ON_DISK, Host, Hosts, Training, assert_as_undisturbed, history, why_not

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

STEPS = 23


def test_three_hosts_equal_one_worker(hosts: Hosts, storage: Path) -> None:
    """Masks; for classes see tests/test_hosts_storage.py."""
    flags = ["--image-size", "32x48", "--dataset-args", "train=13", "val=5", "test=3", "--batch-size", "6"]
    flags += ["--precision", "fp64", "--micro-batch-size", "2", "--epochs", "2"]
    for run, where in {"one": ["--workers", "0"], "three": ["--workers", "3", *ON_DISK]}.items():
        Training(hosts, storage, run, *where, *flags, command=("trainers", "train", "streets.unet")).end()
    mine, theirs = history(storage / "three"), history(storage / "one")
    assert len(mine) == len(theirs) == 2
    for one, two in zip(mine, theirs, strict=True):
        scores = [name for name in one if name.startswith(("val/", "train/"))]
        assert {name: one[name] for name in scores} == pytest.approx({name: two[name] for name in scores}, rel=1e-8)
    assert len(json.loads((storage / "three" / "run.json").read_text())["machine"]["nodes"]) == 3
    prepared = [path for path in (storage / "cache").iterdir() if (path / "meta.json").exists()]
    assert len(prepared) == 1


def test_hosts_are_lost_and_come_back(hosts: Hosts, storage: Path, store: str, slow: list[str], tmp_path: Path) -> None:
    """One is killed, another hangs, a third is cut off for a minute, all in the middle of an epoch of two runs."""
    flags = [*slow, "--epochs", "40"]
    on_disk = Training(hosts, storage, "troubled", "--workers", "1:3", *ON_DISK, *flags)
    in_store = Training(hosts, store, "troubled", "--workers", "1:3", *IN_STORE, *flags)
    for training in (on_disk, in_store):
        training.wait_for("epoch 1/")
    for trouble, victim in (("killed", hosts.all[1]), ("frozen", hosts.all[2]), ("cut off", hosts.all[1])):
        on_disk.wait_for_the_middle_of_an_epoch(STEPS)
        lost = time.monotonic()
        {"killed": victim.down, "frozen": victim.freeze, "cut off": functools.partial(hosts.cut, victim)}[trouble]()
        for name, training in (("on disk", on_disk), ("in store", in_store)):
            step = int(training.wait_for("going on from step").split("step ")[1].split(",")[0])
            print(f"{trouble}, {name}: went on from step {step} after {time.monotonic() - lost:.1f} s")
            assert step > 0
        _bring_back(hosts, victim, trouble, lost)
        for name, training in (("on disk", on_disk), ("in store", in_store)):
            training.wait_for("room for more workers")
            training.wait_for("going on from step")
            print(f"{trouble}, {name}: three again after {time.monotonic() - lost:.1f} s")
    for training in (on_disk, in_store):
        training.end()
    Training(hosts, storage, "undisturbed", "--workers", "0", *flags).end()
    hosts.fetch(store, "troubled", tmp_path)
    for run in (storage / "troubled", tmp_path):
        assert_as_undisturbed(run, storage / "undisturbed")


def _bring_back(hosts: Hosts, host: Host, trouble: str, lost: float) -> None:
    """As a machine whose services start by themselves."""
    if trouble == "cut off":
        time.sleep(max(0.0, lost + 60 - time.monotonic()))
        hosts.mend(host)
    if trouble == "frozen":
        host.thaw()
    host.down()
    hosts.restart(host)
