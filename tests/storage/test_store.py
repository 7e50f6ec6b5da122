"""A folder anywhere: writes are whole or not there."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import ranks, small

from trainers.data import shard_transfer
from trainers.progress import Progress
from trainers.runs import files
from trainers.runs.files import not_shared, sees
from trainers.runtime import worker
from trainers.storage import run_lock
from trainers.storage import store as store_module
from trainers.storage.run_lock import Busy, lock
from trainers.storage.store import Store, default_storage, rename_once
from trainers.training.distributed import World


@pytest.fixture(params=["path", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path if request.param == "path" else f"file://{tmp_path}")


def test_files_are_written_read_listed_and_deleted(store: Store) -> None:
    if store.local is None:
        os.makedirs(store.address.removeprefix("file://") + "/run/deep")  # object stores need no folders
    run = store / "run"
    assert run.name == "run"
    run.write("deep/a.bin", b"12")
    run.write("deep/a.bin", b"345")
    run.write_json("b.json", {"x": [1, None]})
    assert run.read("deep/a.bin") == b"345"
    assert run.read_json("b.json") == {"x": [1, None]}
    assert run.read_json("missing.json") is None
    assert run.names() == ["b.json", "deep"]
    run.delete("deep")
    run.delete("b.json")
    run.delete("never.was")
    assert run.names() == []
    assert (store / "nowhere").names() == []
    store.check_writable()


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write("a", b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        store.write("a", b"new")
    assert store.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path).write_json("a.json", {"x": float("nan")})


def test_an_address_is_expanded_and_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be opened"):
        Store("ftp://somewhere/runs")
    assert Store("~/runs").address == str(Path.home() / "runs")


def test_a_host_that_does_not_see_what_the_driver_wrote_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SEEN_SECONDS", 0.0)
    run = Store(tmp_path / "run")
    assert not sees(run, "run.json", "this start")
    run.write_json("run.json", {"start_id": "an earlier start"})
    assert not sees(run, "run.json", "this start")
    run.write_json("run.json", {"start_id": "this start"})
    assert sees(run, "run.json", "this start")
    run.write("run.json", b"{")
    with pytest.raises(OSError, match=f"{socket.gethostname()} cannot read .*run.json"):
        sees(run, "run.json", "this start")
    run.write_json("run.json", {"start_id": "another start"})
    world = World(0, 1, torch.device("cpu"), "fp32")
    with pytest.raises(ValueError, match=f"the storage is not shared: {socket.gethostname()} cannot see"):
        worker._refuse_unshared({"folder": run.address, "start_id": "this start"}, world)
    assert "host1, host2 cannot see" in not_shared(run, ["host2", "host1", "host2"])


def test_every_rank_ends_where_one_host_does_not_see_the_run_folder(tmp_path: Path) -> None:
    started = small.job(small.small_recipe("digits.cnn"), None, tmp_path, "run")
    alone = {**started, "start_id": "of another start"}
    [events] = ranks.run_ranks([(alone, 2)])
    end = events[-1]
    assert end["status"] == "failed"
    assert f"the storage is not shared: {socket.gethostname()} cannot see" in end["message"]


def lack(code: int) -> Callable[..., None]:
    """A system call as it fails where a file system has no such thing."""

    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK]


@pytest.mark.parametrize("code", [None, *NO_LINKS])
def test_a_name_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None) -> None:
    """With hard links, and without them (huggingface/huggingface_hub 2399)."""
    if code is not None:
        monkeypatch.setattr(os, "link", lack(code))
    target, parts = tmp_path / "meta.json", [tmp_path / f"{number}.part" for number in range(8)]
    for part in parts:
        part.write_text(part.name)
    with ThreadPoolExecutor(len(parts)) as threads:
        first = list(threads.map(lambda part: rename_once(part, target), parts))
    assert first.count(True) == 1
    assert target.read_text() == parts[first.index(True)].name
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_name_that_a_killed_process_had_claimed_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lack(errno.EPERM))
    monkeypatch.setattr(store_module, "CLAIM_SECONDS", 0.1)
    (tmp_path / ".meta.json.claim").touch()
    (tmp_path / "1.part").write_text("1")
    assert rename_once(tmp_path / "1.part", tmp_path / "meta.json")
    assert os.listdir(tmp_path) == ["meta.json"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL])
def test_a_run_folder_has_one_owner_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Lustre and FUSE mounts without flock (python-poetry/poetry 8825)."""
    monkeypatch.setattr("fcntl.flock", lack(code))
    monkeypatch.setattr(run_lock, "WATCHED_SECONDS", 30.0)  # as long as a busy machine may hold up a beat
    monkeypatch.setattr(run_lock, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.1)
    progress, stop, run = Progress(file=io.StringIO()), threading.Event(), Store(tmp_path / "storage") / "run"
    with lock(run, progress, stop):
        with pytest.raises(Busy, match=f"already, by process {os.getpid()} on"), lock(run, progress, stop):
            pass
        assert run.names() == [".lock"]
    assert not stop.is_set()
    assert not (tmp_path / "storage" / "run").exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_that_cannot_sync_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "fsync", lack(code))
    Store(tmp_path).write("a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    monkeypatch.setattr(os, "fsync", lack(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        Store(tmp_path).write("a", b"2")


def test_a_storage_that_replaces_no_files_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def once(part: str, target: Path) -> None:
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        replace(part, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be written: File exists; give --storage another folder"):
        Store(tmp_path).check_writable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o077, 0o027])
def test_a_strict_umask_leaves_our_own_files_to_us(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        store = Store(tmp_path / "deep" / "storage")
        store.check_writable()
        store.write("run/run.json", b"{}")
    finally:
        os.umask(before)
    assert store.read("run/run.json") == b"{}"


def test_without_a_home_folder_the_storage_must_be_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A number without an account, as clusters give it to a process (h2oai/h2o-llmstudio 974)."""

    def nobody(*_: object) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "TRAINYARD_STORAGE", "TRAINYARD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("pwd.getpwnam", nobody)
    with pytest.raises(ValueError, match=r"no home folder.*: give --storage .*, or set TRAINYARD_STORAGE"):
        default_storage()
    with pytest.raises(ValueError, match="set TRAINYARD_CACHE"):
        shard_transfer.home()
    for path in ("~/runs", "~nobody/runs"):
        with pytest.raises(ValueError, match=f"there is no home folder for ~ in {path}; give the whole path"):
            Store(path)
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path))
    assert default_storage() == str(tmp_path)


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}"])
def test_an_address_of_a_local_file_is_its_path(tmp_path: Path, form: str) -> None:
    store = Store(form.format(f"{tmp_path}/a%20b"))
    store.write("run/run.json", b"{}")
    assert (store.local, store.address) == (tmp_path / "a b", str(tmp_path / "a b"))
    assert (tmp_path / "a b" / "run" / "run.json").read_bytes() == b"{}"


def test_a_question_mark_in_a_path_is_no_option_of_an_address(tmp_path: Path) -> None:
    assert (Store(tmp_path / "what?" / "run").name, Store(tmp_path / "what?").name) == ("run", "what?")


@pytest.mark.parametrize("address", ["s3:/bucket/runs", "gs:bucket/runs", "S3:/bucket/runs", "hdfs:/head/runs"])
def test_an_address_that_lacks_a_slash_is_no_folder_here(address: str) -> None:
    """pathlib makes these of addresses."""
    scheme, _, rest = address.partition(":")
    with pytest.raises(ValueError, match=f"give {scheme}://{rest.lstrip('/')}"):
        Store(address)
