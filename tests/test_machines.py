"""Commands on machines that lack something: no affinity, a quota, no home, poor disks."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from trainers import limits
from trainers.__main__ import main
from trainers.data.prepare import prepare
from trainers.data.source import scan_files
from trainers.recipe import Scale, resolve
from trainers.runtime.local import ThisProcess
from trainers.training import device

DIGITS = ["train", "digits.cnn", "--workers", "0", "--epochs", "1", "--run", "one"]


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path / "storage"))
    for name in ("TRAINYARD_CACHE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "storage"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A class folder of photographs."""
    for label, value in (("dark", 40), ("light", 200)):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (12, 10), (value, value - index, value + index)).save(folder / f"{index}.png")
    return tmp_path / "data"


def lacks(code: int) -> Callable[..., None]:
    """A system call that fails, as where there is no such thing."""

    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def test_a_mac_knows_no_affinity(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(vllm-project/vllm 19120)"""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert main(DIGITS) == 0
    found = json.loads((storage / "one" / "run.json").read_text())
    assert found["machine"]["nodes"][0]["cores"] == found["threads"]["of"] == limits.cpus()


@pytest.mark.parametrize("quota", ["100000 100000", "30000 100000", "199000 100000"])
def test_a_quota_of_less_than_two_cpus_is_one_thread(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str
) -> None:
    """Containers (pytorch/pytorch 64864)."""
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(limits, "GROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    before = torch.get_num_threads()
    try:
        assert main(DIGITS) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    found = json.loads((storage / "one" / "run.json").read_text())
    assert (found["machine"]["nodes"][0]["cores"], found["threads"]) == (1, {"used": 1, "of": 1})


def test_two_commands_prepare_at_once_where_there_are_no_hard_links(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lacks(errno.EPERM))
    recipe = resolve("resnet.r18", image_size=(8, 8), stored_size=(9, 9))
    source = scan_files(recipe, str(pictures))
    folder = prepare(recipe, source, tmp_path / "cache")
    names = sorted(os.listdir(folder))
    (folder / "meta.json").rename(tmp_path / "meta.json")

    def finished_meanwhile(_: int) -> None:
        if not (folder / "meta.json").exists():
            (folder / "meta.json").write_bytes((tmp_path / "meta.json").read_bytes())

    assert prepare(recipe, source, tmp_path / "cache", advance=finished_meanwhile) == folder
    assert sorted(os.listdir(folder)) == names, "the shards of the first are kept, those of the second are not"


@pytest.mark.parametrize("kind", ["a file", "of another user"])
def test_a_cache_that_cannot_be_written_is_refused_before_pictures_are_decoded(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    monkeypatch.setattr("trainers.data.decoder.Decoder.try_read", lambda *_: pytest.fail("decoded"))
    cache = tmp_path / "closed"
    monkeypatch.setenv("TRAINYARD_CACHE", str(cache))
    if kind == "a file":
        cache.touch()
    else:
        monkeypatch.setattr(Path, "touch", lacks(errno.EACCES))
    flags = ["--workers", "0", "--image-size", "32", "--batch-size", "4", "--epochs", "1"]
    assert main(["train", "resnet.r18", "--data", str(pictures), *flags]) == 2
    err = " ".join(capfd.readouterr().err.split())
    assert f"the cache {cache} cannot be written: " in err
    assert "set TRAINYARD_CACHE to another folder" in err


def test_a_full_disk_is_named_at_the_start(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "fsync", lacks(errno.ENOSPC))
    assert main(DIGITS) == 2
    err = " ".join(capfd.readouterr().err.split())
    assert f"the storage {storage} cannot be written: the disk is full; give --storage another folder" in err


def test_without_a_home_folder_the_storage_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """(h2oai/h2o-llmstudio 974)"""

    def nobody(*_: object) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "TRAINYARD_STORAGE"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    for command in (DIGITS, ["report"], ["evaluate", "one"], ["export", "one", "--out", "m.pt2"]):
        assert main(command) == 2, command
        assert "give --storage a folder for runs, or set TRAINYARD_STORAGE" in " ".join(capfd.readouterr().err.split())


def test_a_mac_says_that_its_gpu_stays_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert ThisProcess(Scale(workers=0)).wait() == []
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    (warning,) = ThisProcess(Scale(workers=0)).wait()
    assert "GPU of this Mac is not used, training runs on its CPU" in warning
    assert device.choose_device().type == "cpu" or torch.cuda.is_available()


@pytest.mark.parametrize(("system", "largest"), [("linux", 300_000), ("darwin", 300_000 * 1024)])
def test_peak_memory_is_bytes_where_there_is_no_proc(
    monkeypatch: pytest.MonkeyPatch, system: str, largest: int
) -> None:
    """getrusage counts in KiB on Linux, in bytes on macOS."""
    monkeypatch.setattr(Path, "read_text", lacks(errno.ENOENT))
    monkeypatch.setattr(Path, "write_text", lacks(errno.ENOENT))
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=largest))
    monkeypatch.setattr("sys.platform", system)
    device.reset_peak_memory(torch.device("cpu"))
    assert device.peak_memory(torch.device("cpu")) == {"host": 300_000 * 1024, "device": None}
