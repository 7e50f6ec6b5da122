"""The folders that Ray needs of this machine."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from trainers.runtime import ray_folder
from trainers.runtime.ray_folder import LONGEST, some_home

SOCKET = "session_2026-11-29_23-03-37_123456_4194304/sockets/dash_MetricsHead"


@pytest.fixture
def short() -> object:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def long(above: Path) -> Path:
    folder = above / ("a" * (100 - len(str(above))))
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_ray_keeps_its_sockets_where_it_is_told_to(short: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, str(short))
    with ray_folder.ray_folder() as found:
        assert found == short / "ray"
        assert os.environ.get("TMPDIR") == (str(short) if name == "TMPDIR" else None)


def test_where_tmpdir_is_long_sockets_and_children_go_elsewhere(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = long(short)
    monkeypatch.setenv("TMPDIR", str(there))
    with ray_folder.ray_folder() as found:
        assert there not in found.parents
        assert len(os.environ["TMPDIR"]) <= LONGEST
        with tempfile.TemporaryDirectory(dir=found.parent) as folder:
            place = Path(folder).with_name(found.name) / SOCKET  # as long as Ray's
            assert len(str(place)) <= len(str(found)) + 1 + len(SOCKET) <= 107
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{folder}/s")
    assert os.environ["TMPDIR"] == str(there)


def test_a_folder_of_another_user_is_left_alone(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    (short / "ray").mkdir()
    reachable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != short / "ray" and reachable(path, mode))
    with ray_folder.ray_folder() as found:
        assert found == short / f"ray-{os.getuid()}"


def test_a_folder_that_is_hidden_in_another_users_is_left_alone(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TMPDIR as `su` hands it on: whether it is there cannot even be asked."""
    monkeypatch.setenv("TMPDIR", str(short / "closed" / "tmp"))
    (short / "closed").mkdir()
    stat, reachable = os.stat, os.access

    def closed(path: Path, *args: object, **more: object) -> object:
        if short / "closed" in Path(os.fspath(path)).parents:
            raise PermissionError(13, "Permission denied")
        return stat(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", closed)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != short / "closed" and reachable(path, mode))
    with ray_folder.ray_folder() as found:
        assert short not in found.parents


def test_where_no_folder_will_do_the_remedy_is_named(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = long(short)
    monkeypatch.setenv("RAY_TMPDIR", str(there))
    with pytest.raises(ValueError, match=rf"{there}/ray: .* too long .* set RAY_TMPDIR to .* {LONGEST - 4} "):
        ray_folder.ray_folder().__enter__()
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"/ray: .* cannot be written by this user; set RAY_TMPDIR"):
        ray_folder.ray_folder().__enter__()
    (short / "ray").touch()
    with pytest.raises(ValueError, match=r"/ray is no folder; set RAY_TMPDIR"):
        ray_folder.ray_folder().__enter__()


def test_who_has_no_home_gets_one_as_long_as_ray_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", _nobody)
    with some_home(writable=False):
        home = Path.home()
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert "HOME" not in os.environ
    assert not home.exists()


@pytest.mark.parametrize("kind", ["missing", "a file", "of the system", "closed"])
def test_a_home_that_takes_no_token_is_replaced_for_a_ray_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As in containers that run under a number of their own, with HOME=/."""
    (tmp_path / "file").touch()
    (tmp_path / "closed" / ".ray").mkdir(parents=True)
    home = {
        "missing": tmp_path / "file" / "home",
        "a file": tmp_path / "file",
        "of the system": Path("/proc"),
        "closed": tmp_path / "closed",
    }[kind]
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with some_home(writable=False):  # a cluster's token is read
        assert os.environ["HOME"] == str(home)
    with some_home(writable=True):
        assert os.environ["HOME"] != str(home)
        assert Path.home().is_dir()
    assert os.environ["HOME"] == str(home)


def test_a_home_that_takes_a_token_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with some_home(writable=True):
        assert os.environ["HOME"] == str(tmp_path / "home")
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path == token and mode == os.R_OK)
    with some_home(writable=True):
        assert os.environ["HOME"] == str(tmp_path / "home")
    monkeypatch.setattr(os, "access", lambda path, mode: path != token)
    with some_home(writable=True):  # a command under sudo wrote it
        assert os.environ["HOME"] != str(tmp_path / "home")


def _nobody(uid: int) -> object:
    raise KeyError(f"uid not found: {uid}")
