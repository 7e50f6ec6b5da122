"""A run of classes with an order is evaluated, exported, predicts and is reported as any other."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainers import Scale, fit
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.predict import predict
from trainers.tasks.ordinal import Ordinal

pytestmark = pytest.mark.figures


@pytest.fixture(scope="module")
def run(storage: Path) -> str:
    changes = {"task": "ordinal", "epochs": 2, "precision": "fp64"}
    result = fit("digits.cnn", changes, Scale(workers=0, storage=str(storage)))
    assert result.status == "finished"
    assert result.run["best"]["metric"] == "kappa"
    return result.folder


def test_scores_are_those_of_training(run: str) -> None:
    final = json.loads((Path(run) / "run.json").read_text())["final"]
    scores = evaluate(run, "val")
    for name in ("kappa", "mae", "within_one", "accuracy", "loss"):
        assert scores[name] == pytest.approx(final[name]), name
    assert (Path(run) / "confusion.png").exists()


def test_the_table_and_the_exported_program_give_the_same_classes_and_probabilities(run: str, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    table, bad = predict(run, [str(tmp_path)], str(tmp_path / "out"))
    assert bad == [str(tmp_path / "broken.png")]
    broken, rows = None, []
    for row in csv.DictReader(table.read_text().splitlines()):
        if row["path"] == bad[0]:
            broken = row
        else:
            rows.append(row)
    assert broken is not None
    assert set(broken.values()) == {bad[0], ""}

    program = torch.export.load(export(run, str(tmp_path / "model.pt2"))).module()
    about = json.loads((tmp_path / "model.pt2.json").read_text())
    assert about["task"] == "ordinal"
    images = torch.from_numpy(pictures)[:, None].double() / 255
    mean, std = (torch.tensor(about[name]).double().view(1, -1, 1, 1) for name in ("mean", "std"))
    logits, task = program((images - mean) / std), Ordinal(len(about["classes"]))
    for row, label, each in zip(rows, task.labels(logits, (1, 1)), task.probabilities(logits), strict=True):
        name = about["classes"][int(label)]
        assert row["class"] == name
        assert row["probability"] == row[f"probability of {name}"]
        found = [float(row[f"probability of {name}"]) for name in about["classes"]]
        np.testing.assert_allclose(found, each.detach(), atol=1e-4)
