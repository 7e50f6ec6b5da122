"""Three hosts and what they see of the disks: pictures are copied once to each host that lacks them, an object store
serves all, and a storage that is not shared is refused.

Made of network namespaces on this machine (tests/hosts.py): needs root, and is skipped elsewhere.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import object_store
import pytest
import torch
from hosts import SLOW_MODEL, SWITCH, Host, Hosts, Training, why_not
from object_store import SECRET
from small import last_weights

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


@pytest.fixture(scope="module")
def s3(hosts: Hosts) -> Iterator[str]:
    """A server on the switch, with an empty bucket; its address for people of this cluster."""
    server = hosts.serve(
        sys.executable, "-c", f"from moto.server import main; main(['-H', '{SWITCH}', '-p', '{PORT}'])"
    )
    make = (
        "import time, urllib.request as r\n"
        "for _ in range(100):\n"
        "  try: r.urlopen(r.Request('http://%s:%d/runs', method='PUT')); break\n"
        "  except OSError: time.sleep(0.3)\n"
    )
    hosts.head.run(sys.executable, "-c", make % (SWITCH, PORT))
    yield S3
    server.kill()
    server.wait()


def test_an_object_store_serves_all_hosts(hosts: Hosts, one: list[dict[str, float]], s3: str, tmp_path: Path) -> None:
    for host in hosts.all[1:]:
        host.hide(tmp_path)
        shutil.rmtree(host.home / ".cache", ignore_errors=True)
    code, told = train(hosts, s3, "three", "--workers", "3", env={"TRAINYARD_CACHE": str(tmp_path)})
    assert code == 0, told
    read = f"from trainers.store import Store; print(Store({s3!r}).read('three/metrics.jsonl').decode().strip())"
    three = scores(hosts.head.run(sys.executable, "-c", read))
    for mine, theirs in zip(one, three, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-8)
    assert [len(copies(host)) for host in hosts.all] == [0, 1, 1]
    assert SECRET not in told


def test_a_host_is_killed_and_the_object_store_has_all_that_is_needed(hosts: Hosts, s3: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_MODEL)
    flags = ["--model", str(tmp_path / "slow.py"), *FLAGS, "--epochs", "8", "--checkpoint-seconds", "1"]
    Training(hosts, tmp_path, "undisturbed", "--workers", "0", *flags).end()
    training = Training(hosts, s3, "killed", "--workers", "1:3", *flags)
    training.wait_for("epoch 1/")
    time.sleep(2)  # within an epoch, with a checkpoint behind
    hosts.all[2].down()
    step = int(training.wait_for("going on from step").split("step ")[1].split(",")[0])
    training.process.wait(120)
    training.kill()
    assert training.process.returncode == 0, training.lines
    hosts.head.run(sys.executable, "-c", FETCH, s3, str(tmp_path / "fetched"))
    assert step > 0
    mine, theirs = last_weights(tmp_path / "fetched"), last_weights(tmp_path / "undisturbed")
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-6, atol=1e-8)
    lines = [json.loads(line) for line in (tmp_path / "fetched" / "metrics.jsonl").read_text().splitlines()]
    assert [round(line["images_per_second"] * line["seconds"]) for line in lines] == [1438] * 8


FETCH = """
import sys
from trainers.store import Store

run, here = Store(sys.argv[1]) / "killed", Store(sys.argv[2])
here.write("metrics.jsonl", run.read("metrics.jsonl"))
for step in (run / "checkpoints").names():
    for name in (run / "checkpoints" / step).names():
        (here / "checkpoints" / step).write(name, (run / "checkpoints" / step).read(name))
"""
"""A run of the object store, which this process cannot reach, into a folder."""
