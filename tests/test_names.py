"""Names of files that are no UTF-8, and links that lead nowhere, from the command line to what is written."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.__main__ import main

TRAIN = "train digits.cnn --dataset image_folder --image-size 8 --batch-size 4 --epochs 1 --workers 0 --data".split()
SEGMENT = "train unet.camvid --dataset mask_folder --image-size 16 --batch-size 2 --epochs 1 --workers 0".split()
SMALL = "--model-args base_channels=2 depth=1 --dataset-args classes=2 --data".split()


def picture(path: bytes | str, seed: int, ending: str = "PNG") -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    with open(path, "wb") as stream:
        Image.fromarray(pixels).save(stream, ending)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path / "storage"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "storage"


def facts(storage: Path, run: str) -> Any:
    return json.loads((storage / run / "run.json").read_text())["dataset"]


@pytest.mark.skipif(os.uname().sysname == "Darwin", reason="names are UTF-8 there")
@pytest.mark.parametrize(
    "name",
    [b"data/stra\xdfe/b\xfcro/\x83\x65%d.png", b"data\xe9/a/%d.png"],
    ids=["class and folder and file", "data"],
)
def test_names_that_are_no_utf8_are_trained_on_and_predicted(
    tmp_path: Path, storage: Path, name: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    root = os.fsencode(tmp_path) + b"/"
    data = root + name.split(b"/")[0]
    for number in range(20):
        picture(root + name % number, number)
        picture(data + b"/zebra/%d.png" % number, 100 + number)
    assert main([*TRAIN, os.fsdecode(data), "--run", "x"]) == 0
    assert main(["predict", "x", os.fsdecode(data), "--out", "out"]) == 0
    assert main(["evaluate", "x"]) == 0
    assert main(["report", "x", "--format", "html", "--out", "page.html"]) == 0
    (tmp_path / "page.html").read_text("utf-8")
    assert "Traceback" not in capsys.readouterr().err
    for class_name in facts(storage, "x")["classes"]:
        class_name.encode()
    with open(tmp_path / "out/predictions.csv", encoding="utf-8", newline="") as stream:
        assert len(list(csv.reader(stream))) == 41


@pytest.mark.skipif(os.uname().sysname == "Darwin", reason="names are UTF-8 there")
@pytest.mark.usefixtures("storage")
def test_masks_of_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = os.fsencode(tmp_path) + b"/data/"
    for number in range(6):
        picture(root + b"images/\xe9%d.png" % number, number)
        os.makedirs(root + b"masks", exist_ok=True)
        mask = (np.arange(256).reshape(16, 16) % (number + 2) == 0).astype(np.uint8)
        with open(root + b"masks/\xe9%d.png" % number, "wb") as stream:
            Image.fromarray(mask).save(stream, "PNG")
    assert main([*SEGMENT, *SMALL, str(tmp_path / "data"), "--run", "m"]) == 0
    assert main(["predict", "m", str(tmp_path / "data/images"), "--out", "out"]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert len(os.listdir(tmp_path / "out/masks")) == 6
    (tmp_path / "out/predictions.csv").read_text("utf-8")


def test_links_that_lead_nowhere_are_bad_pictures_like_any(
    tmp_path: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "data")
    for number in range(20):
        picture(f"{data}/a/{number}.png", number)
        picture(f"{data}/b/{number}.png", 100 + number)
    os.symlink("/nowhere/x.png", f"{data}/a/gone.png")
    os.symlink("round.png", f"{data}/b/round.png")
    os.symlink("../../annex/y.png", f"{data}/b/deep.jpg")
    assert main([*TRAIN, data]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("3 pictures cannot be used", "a/gone.png", "b/round.png", "b/deep.jpg"))
    assert "it is a link to /nowhere/x.png, which is not there" in error
    assert main([*TRAIN, data, "--run", "s", "--on-bad-image", "skip"]) == 0
    assert {entry["name"] for entry in facts(storage, "s")["skipped"]} == {"a/gone.png", "b/round.png", "b/deep.jpg"}
    os.makedirs(tmp_path / "annex")
    picture(str(tmp_path / "annex/y.png"), 77)
    assert main([*TRAIN, data, "--run", "t", "--on-bad-image", "skip"]) == 0
    assert {entry["name"] for entry in facts(storage, "t")["skipped"]} == {"a/gone.png", "b/round.png"}
    assert sum(facts(storage, "t")["rows"].values()) == 41
