"""Three hosts and what they see of the disks: pictures are copied once to each host that lacks them, an object store
serves all, and a storage that is not shared is refused.

Made of network namespaces on this machine (tests/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from hosts import ON_DISK, Host, Hosts, why_not
from object_store import SECRET

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

FLAGS = ["--precision", "fp64", "--micro-batch-size", "16", "--epochs", "2", "--batch-size", "64"]


@pytest.fixture(scope="module")
def one(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The scores of the same run without workers."""
    storage = tmp_path_factory.mktemp("one")
    code, told = train(hosts, str(storage), "one", "--workers", "0")
    assert code == 0, told
    return scores((storage / "one" / "metrics.jsonl").read_text())


def train(hosts: Hosts, storage: str, run: str, *flags: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and what was told of a `train` command on the head."""
    command = [sys.executable, "-m", "trainers", "train", "digits.cnn", "--run", run, "--storage", storage]
    driver = hosts.head.start(*command, *FLAGS, *flags, env={"RAY_ADDRESS": hosts.address, **(env or {})})
    try:
        out, err = driver.communicate(timeout=280)
    finally:
        driver.kill()
    return driver.returncode, out + err


def scores(lines: str) -> list[dict[str, float]]:
    """Of metrics.jsonl, what does not depend on time."""
    kept = [json.loads(line) for line in lines.splitlines()]
    return [{name: line[name] for name in line if name.startswith(("val/", "train/"))} for line in kept]


def copies(host: Host) -> list[Path]:
    """Whole sets in the host's own cache."""
    return [path.parent for path in (host.home / ".cache" / "trainyard").glob("*/meta.json")]


def test_hosts_that_do_not_see_the_pictures_copy_them_once_and_unshared_storage_is_refused(
    hosts: Hosts, one: list[dict[str, float]], tmp_path: Path
) -> None:
    storage, cache, unshared = tmp_path / "storage", tmp_path / "cache", tmp_path / "unshared"
    for path in (storage, cache, unshared):
        path.mkdir()
    for host in hosts.all[1:]:
        host.hide(cache)
    hosts.all[2].hide(unshared)
    env = {"TRAINYARD_CACHE": str(cache)}
    code, told = train(hosts, str(storage), "three", "--workers", "3", *ON_DISK, env=env)
    assert code == 0, told
    three = scores((storage / "three" / "metrics.jsonl").read_text())
    assert [line.keys() for line in one] == [line.keys() for line in three]
    for mine, theirs in zip(one, three, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-8)
    assert [len(copies(host)) for host in hosts.all] == [0, 1, 1]
    (prepared,) = [path.parent for path in cache.glob("*/meta.json")]
    assert [path.name for path in copies(hosts.all[1])] == [prepared.name]

    code, told = train(hosts, str(unshared), "run", "--workers", "3", *ON_DISK)
    assert code == 2
    assert "host3" in told
    assert "storage" in told
    assert "epoch 1/2" not in told


def test_an_object_store_serves_all_hosts(
    hosts: Hosts, one: list[dict[str, float]], store: str, tmp_path: Path
) -> None:
    for host in hosts.all[1:]:
        host.hide(tmp_path)
        shutil.rmtree(host.home / ".cache", ignore_errors=True)
    code, told = train(hosts, store, "three", "--workers", "3", *ON_DISK, env={"TRAINYARD_CACHE": str(tmp_path)})
    assert code == 0, told
    hosts.fetch(store, "three", tmp_path / "fetched")
    three = scores((tmp_path / "fetched" / "metrics.jsonl").read_text())
    for mine, theirs in zip(one, three, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-8)
    assert [len(copies(host)) for host in hosts.all] == [0, 1, 1]
    assert SECRET not in told
