"""The run folder: what scripts rely on."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainers import record
from trainers.recipe import resolve
from trainers.store import Store

CLASSES = ["cat", "dog", "bird"]
CONFUSION = np.array([[5, 1, 0], [0, 7, 2], [1, 0, 4]])


def run_json(**changes: Any) -> dict[str, Any]:
    recipe = resolve("digits.cnn", model_args={"num_filters": 4}).to_json()
    dataset = {"name": "digits", "fingerprint": "f", "rows": {"train": 10, "val": 20}, "classes": CLASSES}
    return {
        "name": "one",
        "status": "running",
        "recipe": recipe,
        "scale": {"workers": 2},
        "dataset": dataset,
        **changes,
    }


def line(epoch: int, accuracy: float = 0.5) -> dict[str, float]:
    speed = {"seconds": 2.0, "images_per_second": 100.0 + epoch, "data_wait_share": 0.01, "lr": 0.1 / epoch}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        **speed,
        "train/loss": 1 / epoch,
        "val/loss": 2 / epoch,
        "val/accuracy": accuracy,
    }


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def finish(writer: record.Record, **fields: Any) -> None:
    best = {"epoch": 2, "metric": "accuracy", "value": 0.75}
    final = {"loss": 1.0, "accuracy": 0.75}
    writer.finish("finished", CONFUSION, **{"best": best, "final": final, "epochs_run": 3, **fields})


def test_the_files_of_a_run(tmp_path: Path) -> None:
    writer = record.Record(Store(tmp_path), run_json())
    writer.write()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    writer.restore([])
    for epoch, accuracy in ((1, 0.5), (2, 0.75), (3, 0.7)):
        writer.epoch(line(epoch, accuracy), CONFUSION)
        told = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert told[-1] == line(epoch, accuracy)  # readable while the run goes on
    finish(writer)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["best"]["epoch"], run["final"]["accuracy"]) == ("finished", 2, 0.75)
    assert run["finished"].endswith("+00:00")
    for name in ("curves.png", "confusion.png"):
        data = (tmp_path / name).read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG")
        assert 500 < width < 4000
        assert 400 < height < 4000
    board = events(tmp_path)
    tags = board.Tags()
    assert {"train/loss", "val/loss", "val/accuracy", "speed/images_per_second", "optim/lr"} <= set(tags["scalars"])
    assert [(point.step, round(point.value, 4)) for point in board.Scalars("val/accuracy")] == [
        (1, 0.5),
        (2, 0.75),
        (3, 0.7),
    ]
    assert tags["images"] == ["confusion"]
    assert board.Scalars("hparam/val_accuracy")[-1].value == pytest.approx(0.75)
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_a_resumed_run_has_each_epoch_once(tmp_path: Path) -> None:
    first = record.Record(Store(tmp_path), run_json())
    first.restore([])
    for epoch in (1, 2, 3):
        first.epoch(line(epoch))
    assert first._board is not None
    first._board.close()  # as the end of its process would
    second = record.Record(Store(tmp_path), run_json())
    second.restore([line(1), line(2)])  # the checkpoint knows of two epochs
    second.epoch(line(3, 0.9))
    finish(second)
    told = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(each["epoch"], each["val/accuracy"]) for each in told] == [(1, 0.5), (2, 0.5), (3, 0.9)]
    assert [point.step for point in events(tmp_path).Scalars("val/accuracy")] == [1, 2, 3]


def test_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    writer = record.Record(Store(tmp_path), run_json())
    writer.restore([])
    writer.epoch(line(1, math.nan))
    writer.finish("failed", message="diverged", final={"loss": math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["val/accuracy"] is None
    assert json.loads((tmp_path / "run.json").read_text())["final"] == {"loss": None}


def test_a_run_that_failed_before_its_first_epoch_has_no_pictures(tmp_path: Path) -> None:
    writer = record.Record(Store(tmp_path), run_json())
    writer.restore([])
    writer.finish("failed", message="no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "run.json"]


@pytest.mark.parametrize("classes", [2, 24, 100])
def test_confusion_pictures_of_many_classes(classes: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 50, (classes, classes))
    matrix[0] = 0  # a class of which there is none
    figure = record._draw_confusion(matrix, [f"class number {index}" for index in range(classes)], "name")
    assert record._png(figure, dpi=50).startswith(b"\x89PNG")


def test_where_a_number_comes_from() -> None:
    assert {"python", "torch", "ray", "numpy"} <= set(record.versions())
    machine = record.machine()
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 2**28
    assert machine["cpu"]
