"""The server of trainers/README.md, which knows nothing but a file and its JSON, answers as `predict` does."""

from __future__ import annotations

import csv
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.fitting import fit
from trainers.inference.export import export
from trainers.inference.predict import predict
from trainers.recipe import Scale, resolve

README = Path(__file__).parents[2] / "trainers/README.md"
PICTURES = 100
SECONDS = 300


def save(path: Path, draw: np.random.Generator, kind: int) -> None:
    """A picture of large areas, which tell sizes and places apart, of one of several sorts."""
    height, width = draw.integers(20, 300, 2).tolist()
    bands = draw.integers(0, 256, (5, 7, 4))
    pixels = np.kron(bands, np.ones((-(-height // 5), -(-width // 7), 1), np.int64))[:height, :width].astype(np.uint8)
    if kind == 0:
        Image.fromarray(pixels[..., 0]).save(path.with_suffix(".png"))
    elif kind == 1:
        pixels[..., 3] = np.where(pixels[..., 3] > 128, 255, 0)
        Image.fromarray(pixels).save(path.with_suffix(".png"))
    elif kind == 2:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels[..., :3]).save(path.with_suffix(".jpg"), exif=exif, quality=90)
    elif kind == 3:
        Image.fromarray(pixels[..., :3]).quantize(16).save(path.with_suffix(".gif"))
    else:
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 250).save(path.with_suffix(".png"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(4)
    for number in range(PICTURES + 20):
        below = folder / ("val" if number < PICTURES else "train") / "ab"[number % 2]
        below.mkdir(parents=True, exist_ok=True)
        save(below / str(number), draw, number // 2 % 5)
    return folder


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """Starts the server; gives its address."""
    processes = []

    def start(model: Path) -> str:
        (code,) = re.findall(r"```python\n(# serve\.py.*?)```", README.read_text(), re.DOTALL)
        (tmp_path / "serve.py").write_text(code)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert "trainers" not in re.findall(r"import (.*)", code)
        command = [sys.executable, "-I", str(tmp_path / "serve.py"), str(model), str(port)]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ask(address: str, picture: Path) -> dict[str, Any]:
    until = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, picture.read_bytes(), timeout=SECONDS) as answer:
                return dict(json.load(answer))
        except urllib.error.URLError:  # it has not begun to listen
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"stored_size": (24, 32), "image_size": (16, 24)},
        {"resize": "pad", "stored_size": (33, 21), "image_size": (24, 16)},
        {"resize": "stretch", "image_size": (16, 16), "dataset_args": {"channels": 1}},
    ],
    ids=["crop", "pad", "stretch-grey"],
)
def test_the_server_of_the_readme_answers_as_predict(
    changes: dict[str, Any], pictures: Path, served: Any, tmp_path: Path
) -> None:
    small = {"model": "linear_cnn", "precision": "fp32", "epochs": 2, "batch_size": 6, "lr": 0.05}
    recipe = resolve("resnet.r18").replace(**{"stored_size": None, **small, "warmup_epochs": 0.0, **changes})
    scale = Scale(workers=0, cpus_per_worker=1, storage=str(tmp_path / "runs"), data=str(pictures))
    run = fit(recipe, scale=scale, run="served").folder
    address = served(export(run, str(tmp_path / "model.onnx")))
    table, bad = predict(run, [str(pictures / "val")], str(tmp_path / "out"), top_k=2)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert (len(rows), bad) == (PICTURES, [])
    assert len({row["probability"] for row in rows}) > PICTURES / 2  # which tell pictures apart
    for row in rows:
        answer = ask(address, Path(row["path"]))
        said = {row["class"]: float(row["probability"]), row["class 2"]: float(row["probability 2"])}
        assert answer["probabilities"] == pytest.approx(said, abs=1e-3), row["path"]
        if abs(float(row["probability"]) - 0.5) > 1e-3:
            assert answer["class"] == row["class"]
