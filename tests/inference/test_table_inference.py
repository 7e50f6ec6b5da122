"""Runs of labels and of numbers are drawn, evaluated and exported, and predict, as any other."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small import small_data, small_recipe
from PIL import Image

from trainers import Scale, fit
from trainers.checks import check_model
from trainers.data.source import scan_files
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.predict import predict
from trainers.runs.score_figures import draw_scores, has_charts
from trainers.tasks import multilabel, regress

pytestmark = pytest.mark.figures


def counts_of(task: Any, output: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    return {name: table.numpy() for name, table in task.counts(output, target).per_image.items()}


def test_charts_show_every_column_and_label() -> None:
    torch.manual_seed(0)
    numbers = counts_of(regress.make(2), torch.randn(9, 2), torch.randn(9, 2, dtype=torch.float64))
    assert has_charts(numbers)
    (scatter,) = draw_scores(numbers, {"classes": ["sand", "clay"]}, "run").values()
    assert [axes.get_xlabel() for axes in scatter.axes] == ["true sand", "true clay"]
    assert [len(axes.collections[0].get_offsets()) for axes in scatter.axes] == [9, 9]
    labels = counts_of(multilabel.make(50), torch.randn(9, 50), torch.randint(0, 2, (9, 50)))
    labels["labels"][:, 3] = 0
    scores = multilabel.make(50).scores(labels)
    (bars,) = draw_scores(labels, {"classes": [f"label {k}" for k in range(50)]}, "run").values()
    (axes,) = bars.axes
    each = scores["per_class"]["average_precision"]
    lowest = sorted((k for k in range(50) if k != 3), key=lambda k: each[k])[:40]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"label {k}" for k in sorted(lowest)]
    assert f"mAP {scores['map']:.4f} of 49 labels; the 40 lowest are shown" in axes.get_title(loc="left")
    assert draw_scores({"confusion": np.eye(2)}, {}) == {}


def test_one_number_for_all_pictures_can_be_drawn() -> None:
    same = torch.ones(3, 1, dtype=torch.float64)
    (scatter,) = draw_scores(counts_of(regress.make(1), same, same), {}).values()
    assert scatter.axes[0].get_xlim()[0] < 1 < scatter.axes[0].get_xlim()[1]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("folder.tune_values", {"class_weights": "inverse"}, "class_weights=inverse are for classes, .* has numbers"),
        ("folder.tune_values", {"order": "balanced"}, "order=balanced .* has numbers, no classes; leave it out$"),
        ("folder.tune_labels", {"order": "balanced"}, "has sets of labels; leave it out, or give --class-weights"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], words: str) -> None:
    recipe = small_recipe(name, **changes)
    with pytest.raises(ValueError, match=words):
        check_model(recipe, scan_files(recipe, small_data(name, tmp_path / "raw")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder.tune_labels", "folder.tune_values"])
def test_a_run_is_drawn_evaluated_exported_and_predicts(storage: Path, tmp_path: Path, name: str) -> None:
    raw = small_data(name, storage / name)
    assert raw is not None
    recipe = small_recipe(name, precision="fp32", class_weights="inverse" if "labels" in name else "none")
    run = fit(recipe, scale=Scale(workers=0, storage=str(storage), data=raw)).folder
    chart, metric = ("average_precision.png", "map") if "labels" in name else ("scatter.png", "r2")
    assert (Path(run) / chart).exists()
    assert not (Path(run) / "confusion.png").exists()
    facts = json.loads((Path(run) / "run.json").read_text())
    assert facts["best"]["metric"] == metric
    scores = evaluate(run, "val")
    for score in (metric, "loss"):
        assert scores[score] == pytest.approx(facts["final"][score], rel=1e-5)
    other = tmp_path / "other"
    other.mkdir()
    header, first = (Path(raw) / ("labels.csv" if "labels" in name else "values.csv")).read_text().splitlines()[:2]
    picture, _, said = first.partition(",")
    Image.open(Path(raw) / picture).save(other / "one.png")
    (other / "table.csv").write_text(f"{header}\none,{said}\n")
    assert evaluate(run, data=str(other))["rows"] == 1
    (other / "broken.png").write_bytes(b"no picture")
    table, bad = predict(run, [str(other)], str(tmp_path / "out"))
    assert bad == [str(other / "broken.png")]
    assert (tmp_path / "out" / "predictions.png").exists()
    _, row = csv.DictReader(table.read_text().splitlines())
    program = torch.export.load(export(run, str(tmp_path / "model.pt2"))).module()
    about = json.loads((tmp_path / "model.pt2.json").read_text())
    assert about["classes"] == facts["dataset"]["classes"]
    assert about["target_facts"] == facts["dataset"]["target_facts"]
    with torch.no_grad():
        assert program(torch.zeros(1, 3, *recipe.image_size)).shape == (1, len(about["classes"]))
    if "labels" in name:
        probabilities = {label: float(row[f"probability of {label}"]) for label in about["classes"]}
        assert row["labels"] == ";".join(label for label, p in probabilities.items() if p > 0.5)
        assert int(row["number of labels"]) == sum(p > 0.5 for p in probabilities.values())
    else:
        assert 900 < float(row["waves"]) < 1900
    with pytest.raises(ValueError, match="top_k=2 is for classes of whole pictures"):
        predict(run, [str(other)], str(tmp_path / "more"), top_k=2)
