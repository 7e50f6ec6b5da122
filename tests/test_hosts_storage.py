"""Three hosts and what they see of the disks: pictures are copied once to each host that lacks them, an object store
serves all, and a storage that is not shared is refused.

Made of network namespaces on this machine (tests/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import object_store
import pytest
from hosts import SWITCH, Host, Hosts, why_not
from object_store import SECRET

_why = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(_why is not None, reason=str(_why))]

PORT = 9000
S3 = f"s3://runs/team?endpoint_override=http://{SWITCH}:{PORT}&region=us-east-1"
FLAGS = ["--precision", "fp64", "--micro-batch-size", "16", "--epochs", "2", "--batch-size", "64"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts")) as made:
        for host in made.all:
            (host.home / ".aws").mkdir()
            names = {name.lower(): value for name, value in object_store.CREDENTIALS.items()}
            lines = [f"{name} = {value}" for name, value in names.items()]
            (host.home / ".aws" / "credentials").write_text("\n".join(["[default]", *lines, ""]))
        made.start_cluster()
        yield made


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
    code, told = train(hosts, str(storage), "three", "--workers", "3", env=env)
    assert code == 0, told
    three = scores((storage / "three" / "metrics.jsonl").read_text())
    assert [line.keys() for line in one] == [line.keys() for line in three]
    for mine, theirs in zip(one, three, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-8)
    assert [len(copies(host)) for host in hosts.all] == [0, 1, 1]
    (prepared,) = [path.parent for path in cache.glob("*/meta.json")]
    assert [path.name for path in copies(hosts.all[1])] == [prepared.name]

    code, told = train(hosts, str(unshared), "run", "--workers", "3")
    assert code == 2
    assert "host3" in told
    assert "storage" in told
    assert "epoch 1/2" not in told


def test_an_object_store_serves_all_hosts(hosts: Hosts, one: list[dict[str, float]], tmp_path: Path) -> None:
    code = f"from moto.server import main; main(['-H', '{SWITCH}', '-p', '{PORT}'])"
    for host in hosts.all[1:]:
        host.hide(tmp_path)
        shutil.rmtree(host.home / ".cache", ignore_errors=True)
    server = hosts.serve(sys.executable, "-c", code)
    make = (
        "import time, urllib.request as r\n"
        "for _ in range(100):\n"
        "  try: r.urlopen(r.Request('http://%s:%d/runs', method='PUT')); break\n"
        "  except OSError: time.sleep(0.3)\n"
    )
    try:
        hosts.head.run(sys.executable, "-c", make % (SWITCH, PORT))
        code_, told = train(hosts, S3, "three", "--workers", "3", env={"TRAINYARD_CACHE": str(tmp_path)})
        assert code_ == 0, told
        read = f"from trainers.store import Store; print(Store({S3!r}).read('three/metrics.jsonl').decode().strip())"
        three = scores(hosts.head.run(sys.executable, "-c", read))
    finally:
        server.kill()
        server.wait()
    for mine, theirs in zip(one, three, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-8)
    assert [len(copies(host)) for host in hosts.all] == [0, 1, 1]
    assert SECRET not in told
