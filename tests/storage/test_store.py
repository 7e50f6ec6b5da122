"""A folder anywhere: writes are whole or not there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from helpers import ranks, small

from trainers.runs import files
from trainers.runs.files import not_shared, sees
from trainers.runtime import worker
from trainers.storage.store import Store
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
