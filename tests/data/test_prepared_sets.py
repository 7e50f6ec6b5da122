"""Prepared sets pile up: which are of use is known, and the others are removed, but none that a command uses."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.__main__ import main
from trainers.data import prepared_sets
from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.prepared_sets import Held, clean, list_sets, superseded
from trainers.data.source import scan_files
from trainers.recipe import Recipe, resolve
from trainers.storage.store import Store


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Pictures of two classes."""
    rng = np.random.default_rng(0)
    for label in "ab":
        for index in range(10):
            path = tmp_path / f"raw/{label}/{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (12, 14, 3), dtype=np.uint8)).save(path)
    return tmp_path / "raw"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def recipe(size: int = 8) -> Recipe:
    return resolve("digits.cnn", dataset="image_folder", image_size=size)


def make(raw: Path, cache: Path, size: int = 8) -> Path:
    return prepare(recipe(size), scan_files(recipe(size), str(raw)), cache)


def states(cache: Path) -> dict[str, str]:
    return {each.folder.name: each.state for each in list_sets(cache)}


def touch(raw: Path) -> None:
    os.utime(raw / "a/1.png", (1, 1))


def add(raw: Path) -> None:
    (raw / "b/new.png").write_bytes((raw / "b/1.png").read_bytes())


def remove(raw: Path) -> None:
    (raw / "b/1.png").unlink()


def rename(raw: Path) -> None:
    (raw / "b").rename(raw / "c")


@pytest.mark.parametrize("change", [touch, add, remove, rename])
def test_sets_of_files_that_have_changed_are_removed(raw: Path, cache: Path, change: Callable[[Path], None]) -> None:
    before, other = make(raw, cache), make(raw, cache, size=6)
    assert set(states(cache).values()) == {"current"}
    change(raw)
    after = make(raw, cache)
    assert superseded(after) == [before]
    assert states(cache) == {before.name: "outdated", other.name: "outdated", after.name: "current"}
    assert {each.folder for each in clean(cache, show=True)} == {before, other}
    assert before.exists()
    assert {each.folder for each in clean(cache)} == {before, other}
    assert states(cache) == {after.name: "current"}
    assert clean(cache) == []


def test_sets_that_cannot_be_checked_are_kept_and_say_why(raw: Path, cache: Path) -> None:
    gone, old = make(raw, cache), make(raw, cache, size=6)
    meta = json.loads((old / "meta.json").read_text())
    del meta["origin"]  # as earlier versions wrote it
    (old / "meta.json").write_text(json.dumps(meta))
    raw.rename(raw.with_name("elsewhere"))
    found = {each.folder: each for each in list_sets(cache)}
    assert {each.state for each in found.values()} == {"unknown"}
    assert "does not exist" in found[gone].why
    assert found[old].why == "an earlier version prepared it"
    assert clean(cache) == []
    assert {each.folder for each in clean(cache, everything=True)} == {gone, old}


def test_what_a_killed_command_left_is_removed_once_nothing_is_written_there(raw: Path, cache: Path) -> None:
    folder = make(raw, cache)
    (folder / "meta.json").unlink()
    assert states(cache) == {folder.name: "unfinished"}
    assert clean(cache) == []
    long_ago = time.time() - 2 * prepared_sets.UNFINISHED_SECONDS
    for path in (*folder.iterdir(), folder):
        os.utime(path, (long_ago, long_ago))
    with Held(folder):  # it is being prepared, slowly
        assert clean(cache) == []
    assert [each.folder for each in clean(cache)] == [folder]


def test_a_set_in_use_is_never_removed(raw: Path, cache: Path) -> None:
    folder = make(raw, cache)
    touch(raw)
    opened = Cached(folder)
    assert [each.in_use for each in list_sets(cache)] == [True]
    assert clean(cache) == clean(cache, everything=True) == []
    del opened
    with Held(folder), Held(folder):
        assert clean(cache, everything=True) == []
    assert [each.folder for each in clean(cache)] == [folder]


def closed_to_us(folder: Path, call: Callable[..., Any]) -> Callable[..., Any]:
    """A system call as a folder of another user answers it."""

    def closed(path: Path | int, *args: Any, **more: Any) -> Any:
        if not isinstance(path, int) and folder in (Path(path), *Path(path).parents):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return call(path, *args, **more)

    return closed


def test_sets_that_are_closed_to_us_are_listed_and_hinder_nobody(
    raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that users with a strict umask share."""
    theirs, ours = make(raw, cache), make(raw, cache, size=6)
    for name in ("open", "scandir", "listdir"):
        monkeypatch.setattr(os, name, closed_to_us(theirs, getattr(os, name)))
    found = {each.folder: each for each in list_sets(cache)}
    assert {folder: (each.state, each.why) for folder, each in found.items()} == {
        theirs: ("unknown", "Permission denied"),
        ours: ("current", ""),
    }
    told: list[str] = []
    assert [each.folder for each in clean(cache, everything=True, warn=told.append)] == [ours]
    assert told == [f"{theirs} cannot be removed: Permission denied"]
    assert theirs.exists()


def test_a_set_that_is_closed_to_us_asks_for_a_cache_of_our_own(
    raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make(raw, cache)
    monkeypatch.setattr(os, "stat", closed_to_us(theirs / "meta.json", os.stat))
    monkeypatch.setattr(Path, "touch", closed_to_us(theirs, Path.touch))
    monkeypatch.setattr("trainers.data.decoder.Decoder.try_read", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        ValueError, match=f"the cache {cache} cannot be written: Permission denied; set TRAINYARD_CACHE"
    ):
        make(raw, cache)


def test_nothing_else_in_the_folder_is_touched(raw: Path, cache: Path) -> None:
    make(raw, cache)
    for name in ("mine", "photos-2024", "x-8x8-abc", "notes-8x8-0123456789abcdef.txt"):
        (cache / name).mkdir()
        (cache / name / "file").touch()
    (cache / "file-8x8-0123456789abcdef").touch()
    clean(cache, everything=True)
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        ["mine", "photos-2024", "x-8x8-abc", "notes-8x8-0123456789abcdef.txt", "file-8x8-0123456789abcdef"]
    )


def test_the_command_lists_sizes_runs_and_states(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path / "store"))
    flags = ["resnet.r18", "--image-size", "8", "--stored-size", "9", "--data", str(raw), "--workers", "0"]
    assert main(["prepare", *flags]) == 0
    assert "cache clean" not in capsys.readouterr().err
    touch(raw)
    assert main(["prepare", *flags]) == 0
    ended = capsys.readouterr()
    assert "to remove them: python -m trainers cache clean" in " ".join(ended.err.split())
    meta = json.loads((Path(ended.out.strip()) / "meta.json").read_text())
    facts = {"status": "finished", "recipe": {}, "scale": {}, "dataset": {"fingerprint": meta["fingerprint"]}}
    Store(tmp_path / "store/sweep/one").write_json("run.json", facts)
    assert main(["cache", "list"]) == 0
    shown = capsys.readouterr()
    assert "2 sets" in shown.err
    for word in ("current", "outdated", "sweep/one"):
        assert word in shown.out
    assert main(["cache", "clean"]) == 0
    assert "1 sets" in capsys.readouterr().err
    assert len(list((tmp_path / "store/cache").iterdir())) == 1
    assert main(["cache", "clean", "--all"]) == 0
    assert list((tmp_path / "store/cache").iterdir()) == []
    assert main(["cache", "list"]) == 0
    for words in (["cache"], ["cache", "remove"], ["cache", "list", "clean"]):
        capsys.readouterr()
        assert main(words) == 2
        assert "cache list | clean" in capsys.readouterr().err
