"""Three hosts: the same results as on one, and nothing lost when one dies, hangs or is cut off.

Made of network namespaces on this machine (tests/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest
from hosts import Host, Hosts, Training, assert_as_undisturbed, history, why_not

from trainers.store import Store

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

STEPS = 23
FP64 = ["--precision", "fp64", "--micro-batch-size", "16"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all hosts see, as a shared disk."""
    return tmp_path_factory.mktemp("storage")


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
