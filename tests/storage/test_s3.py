"""Object stores: what holds for a folder holds there, and a store that fails loses nothing."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import object_store
from helpers.object_store import SECRET, Flaky, address, contents

from trainers import registry
from trainers.fitting import RunResult, fit
from trainers.inference.evaluate import evaluate
from trainers.progress import Progress
from trainers.recipe import Scale, resolve
from trainers.report.report import report
from trainers.runs import code
from trainers.runs.events import Control
from trainers.storage import mirror, run_lock
from trainers.storage.run_lock import Busy, lock
from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints

CHANGES = {"epochs": 3, "precision": "fp64", "model_args": {"num_filters": 2}, "batch_size": 256}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with object_store.moto() as port:
        yield port


@pytest.fixture
def flaky(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    for name, value in {**object_store.CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "host-cache"))
    monkeypatch.setattr(mirror, "UPLOAD_SECONDS", 0.2)
    with Flaky(server) as proxy:
        yield proxy


@pytest.fixture
def folder(flaky: Flaky, request: pytest.FixtureRequest) -> Store:
    """One of its own for each test, behind the proxy."""
    return Store(address(flaky.port, re.sub(r"\W", "-", request.node.name)))


class StopAfter(Control):
    """Interrupts a run; `then` is called just before."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.last = epoch

    def epoch(self, line: Mapping[str, float]) -> None:
        if line["epoch"] == self.last:
            self.stop.set()


def train(storage: str, printed: io.StringIO | None = None, control: Control | None = None, **scale: Any) -> RunResult:
    progress = Progress(file=printed or io.StringIO())
    given = Scale(workers=0, storage=storage, cpus_per_worker=1, **scale)
    return fit("digits.cnn", CHANGES, given, "run", progress=progress, control=control)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The last weights of the same run on a disk."""
    return last_weights(Store(train(str(tmp_path_factory.mktemp("disk"))).folder))


def last_weights(run: Store) -> dict[str, torch.Tensor]:
    snapshot = Checkpoints(run).latest()
    assert snapshot is not None
    weights: dict[str, torch.Tensor] = snapshot["model"]
    return weights


def check_equal(run: Store, expected: Mapping[str, torch.Tensor]) -> None:
    found = last_weights(run)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_files_are_written_read_listed_and_deleted(folder: Store) -> None:
    folder.check_writable()
    run = folder / "a" / "run"
    run.write("deep/a.bin", b"12")
    run.write("deep/a.bin", b"345")
    run.write("large.bin", b"x" * 25_000_000)
    assert run.read("deep/a.bin") == b"345"
    assert len(run.read("large.bin")) == 25_000_000
    assert run.read_json("missing.json") is None
    assert run.names() == ["deep", "large.bin"]
    assert (run.name, run.parent.name, run.parent.names()) == ("run", "a", ["run"])
    for name in ("deep", "large.bin", "never.was"):
        run.delete(name)
    assert run.names() == []
    assert (folder / "nowhere").names() == []


def test_a_run_its_resumption_and_all_that_reads_it(
    folder: Store, server: int, expected: dict[str, torch.Tensor]
) -> None:
    stopped = train(folder.address, control=StopAfter(1))
    assert stopped.status == "interrupted"
    result = train(folder.address)
    run = folder / "run"
    assert (result.status, result.run["attempt"]) == ("finished", 2)
    assert {"run.json", "metrics.jsonl", "tensorboard", "checkpoints", "curves.png"} <= set(run.names())
    assert len(run.names()) == len(set(run.names()) - {".lock", ".room"})
    check_equal(run, expected)
    assert len(run.read("metrics.jsonl").splitlines()) == 3
    assert run.read_json("run.json")["status"] == "finished"
    assert len((run / "tensorboard").names()) == 1  # what the first part wrote is written again
    scores = evaluate("run", storage=folder.address)
    assert scores["accuracy"] == pytest.approx(result.run["best"]["value"])
    assert evaluate(result.folder, storage=folder.address)["loss"] == scores["loss"]
    assert "finished" in report([], storage=folder.address)
    assert "finished" in report([result.folder], storage=folder.address)
    for name, content in contents(server).items():
        assert SECRET.encode() not in content, name


def test_pictures_are_decoded_once_for_all_hosts_and_copied_once_to_each(
    flaky: Flaky, folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.data import prepare, shard_transfer
    from trainers.data.batches import Cached

    result = train(folder.address, control=StopAfter(1))
    (key,) = (folder / "cache").names()
    where = {"folder": str(tmp_path / "host-cache" / key), "published": (folder / "cache" / key).address}
    assert shard_transfer.local(where) == Path(where["folder"])
    os.rename(tmp_path / "host-cache", tmp_path / "hidden")  # another host: it does not see the driver's folder
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "other-host"))
    flaky.requests.clear()
    workers = [threading.Thread(target=shard_transfer.local, args=(where,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    copied = shard_transfer.local(where)
    assert copied == tmp_path / "other-host" / key
    for name in copied.glob("*.arrow"):
        assert sum(request.startswith("GET") and name.name in request for request in flaky.requests) == 1
    assert Cached(copied).meta["fingerprint"] == result.run["dataset"]["fingerprint"]

    shard = next(copied.glob("train-*.arrow"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])  # damaged: copied again
    shard_transfer.local(where)
    assert shard.read_bytes() == whole
    (copied / "meta.json").unlink()  # a copy that was killed half-way: what is whole of it is kept
    shard.write_bytes(b"x" + whole[1:])
    flaky.requests.clear()
    shard_transfer.local(where)
    assert shard.read_bytes() == whole
    assert sum(".arrow" in request and request.startswith("GET") for request in flaky.requests) == 1

    monkeypatch.setattr(prepare, "_decode_chunk", None)  # nothing is decoded on a host that never saw the data
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "third-host"))
    assert train(folder.address).status == "finished"


@pytest.mark.parametrize("damage", ["shard", "meta.json"])
def test_a_published_set_that_is_damaged_is_prepared_again(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    train(folder.address, control=StopAfter(1))
    (key,) = (folder / "cache").names()
    there = folder / "cache" / key
    if damage == "shard":
        there.delete(next(name for name in there.names() if name.endswith(".arrow")))
    else:
        there.write("meta.json", b"{")
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "other-host"))
    printed = io.StringIO()
    assert train(folder.address, printed).status == "finished"
    assert "are prepared again" in printed.getvalue()


def test_a_store_that_fails_now_and_then_or_is_away_for_a_while_changes_nothing(
    flaky: Flaky, folder: Store, expected: dict[str, torch.Tensor]
) -> None:
    flaky.share = 0.1

    class Away(Control):
        def epoch(self, line: Mapping[str, float]) -> None:
            if line["epoch"] == 1:
                flaky.down(2)

    assert train(folder.address, control=Away()).status == "finished"
    flaky.share = 0
    assert folder.read_json("run/run.json")["status"] == "finished"
    check_equal(folder / "run", expected)


def test_a_store_that_is_full_ends_the_run_and_the_last_good_checkpoint_is_intact(
    flaky: Flaky, folder: Store, expected: dict[str, torch.Tensor]
) -> None:
    class Full(Control):
        def epoch(self, line: Mapping[str, float]) -> None:
            if line["epoch"] == 1:
                until = time.monotonic() + 200
                while Checkpoints(folder / "run").latest() is None and time.monotonic() < until:
                    time.sleep(0.05)
                flaky.full = True

    with pytest.raises(OSError, match="the store is full"):
        train(folder.address, control=Full())
    snapshot = Checkpoints(folder / "run").latest()
    assert snapshot is not None
    flaky.full = False
    assert train(folder.address).status == "finished"
    check_equal(folder / "run", expected)


@pytest.mark.parametrize("address_", ["s3://key:hidden@runs/x", "s3://runs/x?access_key=a&secret_key=hidden"])
def test_an_address_with_credentials_is_refused_and_not_repeated(address_: str) -> None:
    with pytest.raises(ValueError, match="must not carry credentials") as refused:
        Store(address_)
    assert "hidden" not in str(refused.value)


def test_what_an_address_or_a_store_lacks_is_reported_at_once(flaky: Flaky) -> None:
    with pytest.raises(ValueError, match=r"there is no option regoin; allowed are endpoint_override, region"):
        Store("s3://runs/x?regoin=here")
    with pytest.raises(ValueError, match="there is no such bucket; make it first"):
        Store(address(flaky.port).replace("runs", "nowhere", 1)).check_writable()
    flaky.full = True
    with pytest.raises(ValueError, match="the store is full"):
        Store(address(flaky.port)).check_writable()


def test_one_process_at_a_time_owns_a_run(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(run_lock, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "WATCHED_SECONDS", 30.0)  # as long as a busy machine may hold up a beat
    monkeypatch.setattr(run_lock, "_machine", lambda: os.urandom(4).hex())  # each on a machine of its own
    run, printed, stop = folder / "run", io.StringIO(), threading.Event()
    with lock(run, Progress(file=printed), stop):
        second = lock(run, Progress(file=printed), stop)
        with pytest.raises(Busy, match=f"by process {os.getpid()} on {socket.gethostname()}"):
            second.__enter__()
        for _ in range(600):  # began in the same instant; a beat that is on its way may overwrite what it wrote
            run.write_json(".lock", {"owner": "process 1 on elsewhere", "token": "other"})
            if stop.wait(0.1):
                break
        assert stop.is_set()
    assert "process 1 on elsewhere trains the run run too" in printed.getvalue()
    assert run.names() == [".lock"]  # the other's
    monkeypatch.setattr(run_lock, "WATCHED_SECONDS", 0.5)
    with lock(run, Progress(file=printed), stop):  # which is never renewed: it is gone
        assert run.read_json(".lock")["token"] != "other"
    assert folder.names() == []


def command(port: int, *flags: str) -> list[str]:
    sizes = ["--precision", "fp64", "--model-args", "num_filters=4", "--batch-size", "64", "--epochs", "3"]
    where = ["--storage", address(port, "killed"), "--run", "run", "--checkpoint-seconds", "0.2"]
    return [sys.executable, "-m", "trainers", "train", "digits.cnn", *where, *sizes, *flags]


@pytest.mark.slow
@pytest.mark.ray
def test_a_driver_that_is_killed_while_it_uploads_and_workers_on_a_bad_store(
    flaky: Flaky, server: int, tmp_path: Path
) -> None:
    whole = subprocess.run([*command(server), "--workers", "0", "--storage", str(tmp_path / "disk")], timeout=900)
    assert whole.returncode == 0
    flaky.put_seconds = 1.0  # an upload is always on its way
    driver = subprocess.Popen([*command(flaky.port), "--workers", "0"], stderr=subprocess.DEVNULL)
    run = Store(address(server, "killed/run"))
    until = time.monotonic() + 200
    while Checkpoints(run).latest_step() == 0 and time.monotonic() < until:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert Checkpoints(run).latest() is not None
    flaky.put_seconds, flaky.share = 0.0, 0.1
    printed = ""
    with subprocess.Popen([*command(flaky.port), "--workers", "2"], stderr=subprocess.PIPE, text=True) as again:
        assert again.stderr is not None
        for line in again.stderr:
            printed += line
            if "going on from step" in line:
                flaky.down(8)
    assert again.returncode == 0, printed
    assert "going on from step" in printed
    assert Store(address(server, "killed")).names() == ["cache", "run"]  # nothing of Ray's is left
    for name, value in last_weights(Store(tmp_path / "disk" / "run")).items():
        torch.testing.assert_close(last_weights(run)[name], value, rtol=1e-9, atol=1e-9)
    for name, content in contents(server).items():
        assert SECRET.encode() not in content, name
    assert SECRET not in printed


def test_copies_of_own_files_are_read_from_the_store(folder: Store, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "blocks.py").write_text("WIDTH = 5\n")
    build = (
        "def build(*, image_size, channels, classes):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    (project / "mine.py").write_text(f"import blocks\nfrom torch import nn\nassert blocks.WIDTH == 5\n{build}")
    recipe = resolve("digits.cnn", model=str(project / "mine.py"))
    copies = code.keep(recipe, folder / "run", {})
    shutil.rmtree(project)
    copied = code.name_copies(recipe, folder / "run", copies)
    assert copied.model.startswith("s3://")
    assert registry.load("models", copied.model).blocks.WIDTH == 5
