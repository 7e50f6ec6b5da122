"""What a folder holds, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainers.listing import list_folder, walk


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"-")
    return root


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/a/._1.jpg",
        "__MACOSX/a/1.jpg",
        ".ipynb_checkpoints/1-checkpoint.jpg",
        ".thumbnails/1.jpg",
        "#recycle/old.jpg",
        "@Recycle/old.jpg",
        "$RECYCLE.BIN/S-1/1.jpg",
        "lost+found/1.jpg",
        "System Volume Information/1.jpg",
        ".AppleDouble/1.jpg",
        ".@__thumb/default1.jpg",
        ".Trash-1000/files/1.jpg",
        "._1.jpg",
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
    ],
)
def test_what_systems_leave_beside_pictures_is_passed_over(tmp_path: Path, name: str) -> None:
    files(tmp_path, "1.jpg", "more/2.jpg", name, f"more/{name}")
    tree = walk(str(tmp_path), "")
    assert tree.pictures == ["1.jpg", "more/2.jpg"]
    assert tree.folders == ["more"]


def test_names_that_merely_resemble_those_of_systems_are_kept(tmp_path: Path) -> None:
    names = ["#1/x.jpg", "@home/x.jpg", "lost/x.jpg", "recycled/x.jpg", "$5/x.jpg", "macosx/x.jpg"]
    assert walk(str(files(tmp_path, *names)), "").pictures == sorted(names)


def test_links_are_followed_once(tmp_path: Path) -> None:
    files(tmp_path, "far/1.jpg", "data/a/2.jpg")
    (tmp_path / "data/a/more").symlink_to(tmp_path / "far")
    (tmp_path / "data/a/same").symlink_to(tmp_path / "far")
    tree = walk(str(tmp_path / "data"), "a")
    assert tree.pictures == ["a/2.jpg", "a/more/1.jpg"]
    assert tree.again == ["a/same"]


@pytest.mark.parametrize("name", ["thumbs", "Thumbnails", "_thumb"])
def test_thumbnails_beside_their_pictures_are_not_taken_twice(tmp_path: Path, name: str) -> None:
    files(tmp_path, "a/1.jpg", "a/2.jpg", f"a/{name}/1.png", f"a/{name}/2.png")
    tree = walk(str(tmp_path), "a")
    assert (tree.pictures, tree.again) == (["a/1.jpg", "a/2.jpg"], [f"a/{name}"])
    files(tmp_path, f"a/{name}/3.jpg")
    assert len(walk(str(tmp_path), "a").pictures) == 5
    files(tmp_path, f"b/{name}/1.jpg")
    assert walk(str(tmp_path), "b").pictures == [f"b/{name}/1.jpg"]


@pytest.mark.parametrize("target", [".", "..", "../a", "deep/back"])
def test_links_in_circles_are_said_with_their_path(tmp_path: Path, target: str) -> None:
    files(tmp_path, "a/1.jpg", "a/deep/2.jpg")
    (tmp_path / "a/deep/back").symlink_to("..")
    (tmp_path / "a/x").symlink_to(target)
    with pytest.raises(ValueError, match=r"a/(deep/back|x) is a link to a folder above it; remove the link"):
        walk(str(tmp_path), "a")


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    files(tmp_path, "a/1.jpg")
    for name in ("a/2.jpg", "a/3.PNG", "a/notes.txt"):
        (tmp_path / name).symlink_to("/nowhere/x")
    (tmp_path / "a/4.jpg").symlink_to("4.jpg")
    tree = walk(str(tmp_path), "a")
    assert tree.pictures == ["a/1.jpg", "a/2.jpg", "a/3.PNG", "a/4.jpg"]
    (tmp_path / "a/cats").symlink_to("/nowhere/cats")
    with pytest.raises(ValueError, match="a/cats cannot be read: it is a link to /nowhere/cats, which is not there"):
        walk(str(tmp_path), "a")


@pytest.mark.skipif(os.uname().sysname == "Darwin", reason="names are UTF-8 there")
def test_names_that_are_no_utf8_can_be_listed(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/stra\xdfe")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/stra\xdfe/\xe9.jpg")).write_bytes(b"-")
    found = list_folder(str(tmp_path))
    assert [os.fsencode(name) for name in found.folders] == [b"stra\xdfe"]
    assert [os.fsencode(name) for name in walk(str(tmp_path), "").pictures] == [b"stra\xdfe/\xe9.jpg"]
