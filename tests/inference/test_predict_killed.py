"""A prediction of thousands of pictures that is killed half-way, and given again: each once, hardly any twice."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import object_store
from PIL import Image

from trainers.fitting import fit
from trainers.inference.pictures import PARTS
from trainers.recipe import Scale, resolve
from trainers.storage.store import Store

ROOT = Path(__file__).parents[2]
PICTURES, SECONDS = 5000, 600
COUNTS = """
import os
from pathlib import Path

from trainers.models import linear_cnn

LOG = Path({log!r})


def count(model, inputs):
    if not model.training and LOG.exists():
        with open(LOG, "ab", 0) as log:
            log.write(b"x" * len(inputs[0]))


def build(**args):
    model = linear_cnn.build(**args)
    model.register_forward_pre_hook(count)
    return model
"""
"""A network that writes down how many pictures it has seen, as long as there is a file for it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and pictures for it."""
    folder, draw = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for number in range(PICTURES + 20):
        below = folder / "pictures" if number < PICTURES else folder / "data" / "ab"[number % 2]
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(below / f"{number}.png")
    (folder / "counts.py").write_text(COUNTS.format(log=str(folder / "log")))
    recipe = resolve("digits.cnn", dataset="image_folder", image_size=12, batch_size=8, epochs=1)
    recipe = recipe.replace(model=str(folder / "counts.py"), model_args={})
    scale = Scale(workers=0, cpus_per_worker=1, storage=str(folder), data=str(folder / "data"))
    fit(recipe, scale=scale, run="one")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of commands, which have a home of their own; whatever was started there is ended."""
    given = {**os.environ, **object_store.CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true"}
    yield {**given, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("HOME") == str(tmp_path):
            process.kill()


def start(made: Path, out: str, workers: int, environment: dict[str, str], printed: Path) -> subprocess.Popen[bytes]:
    words = ["predict", "one", str(made / "pictures"), "--out", out, "--workers", str(workers)]
    argv = [sys.executable, "-m", "trainers", *words, "--storage", str(made)]
    with open(printed, "ab") as file:
        return subprocess.Popen(argv, env=environment, stdout=file, stderr=file)


def seen(made: Path) -> int:
    """Pictures that the network has seen."""
    return (made / "log").stat().st_size


def check_killed(made: Path, out: str, workers: int, environment: dict[str, str], tmp_path: Path) -> None:
    (made / "log").write_bytes(b"")
    printed = tmp_path / "printed.txt"
    killed = start(made, out, workers, environment, printed)
    until = time.monotonic() + SECONDS
    while seen(made) < PICTURES // 2 and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    killed.kill()
    assert killed.wait() != 0, printed.read_text()
    if workers:  # tasks end with their driver
        time.sleep(3)
    assert PICTURES // 2 <= seen(made) < PICTURES
    assert "predictions.csv" not in Store(out).names()
    assert start(made, out, workers, environment, printed).wait(SECONDS) == 0, printed.read_text()
    assert re.search(r"[\d,]+ of 5,000 pictures were predicted before", printed.read_text())
    rows = list(csv.DictReader(Store(out).read("predictions.csv").decode().splitlines()))
    assert sorted(row["path"] for row in rows) == sorted(map(str, (made / "pictures").iterdir()))
    assert all(row["class"] in "ab" for row in rows)
    assert seen(made) - PICTURES < 0.05 * PICTURES
    assert PARTS not in Store(out).names()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_each_picture_is_predicted_once_and_hardly_any_twice(
    made: Path, tmp_path: Path, environment: dict[str, str], workers: int
) -> None:
    check_killed(made, str(tmp_path / "out"), workers, environment, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_the_same_into_an_object_store_that_fails_now_and_then(
    made: Path, tmp_path: Path, environment: dict[str, str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with object_store.moto() as port, object_store.Flaky(port) as flaky:
        flaky.share = 0.1
        check_killed(made, object_store.address(flaky.port, "out"), workers, environment, tmp_path)
        assert sum(request.startswith("PUT") for request in flaky.requests) > 20
