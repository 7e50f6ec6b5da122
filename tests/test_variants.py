"""`optimize`: forms of a model, compared with what evaluate and predict say of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small import small_data, small_recipe

from trainers.__main__ import main
from trainers.fitting import fit
from trainers.inference import boxes, predictions
from trainers.inference.evaluate import evaluate
from trainers.inference.predictor import open_model
from trainers.recipe import Scale
from trainers.variants import page
from trainers.variants.facts import Optimized, Row
from trainers.variants.run import optimize

FORMS = ["original", "fused", "ONNX", "int8"]


def trained(name: str, storage: Path, **changes: Any) -> str:
    raw = small_data(name, storage / "data")
    scale = Scale(workers=0, cpus_per_worker=1, data=raw, storage=str(storage))
    return fit(small_recipe(name, **changes), scale=scale, run="one").folder


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.variants.measure.SECONDS", 0.0)
    monkeypatch.setattr("trainers.variants.measure.TURN", 0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["folder.tune", "folder.tune_labels", "folder.tune_values", "unet.camvid", "shapes.fcos"]
)
def test_each_form_scores_as_evaluate_says_and_runs_as_predict(name: str, tmp_path: Path) -> None:
    run = trained(name, tmp_path, epochs=1)
    found = optimize("one", str(tmp_path / "out"), storage=str(tmp_path))
    facts: Optimized = json.loads((tmp_path / "out" / "optimize.json").read_text())
    assert facts == json.loads(json.dumps(found.facts))
    assert [row["name"] for row in facts["rows"]] == FORMS
    assert "python -m trainers prune one" in facts["left_out"]["pruned"]
    for row in facts["rows"]:
        scores = evaluate(row["model"], "val", storage=str(tmp_path))
        assert row["score"] == pytest.approx(scores[facts["metric"]], abs=1e-6), row["name"]
        assert all(low <= median <= high for low, median, high in row["ms"].values())
        assert row["bytes"] > 0
        assert (row["file"] is None) == (row["name"] == "original")
    near = 0.06 if name == "shapes.fcos" else 1e-3  # of some 20 objects one may be as sure as is asked for
    assert [row["agreement"] for row in facts["rows"][:3]] == pytest.approx([1, 1, 1], abs=near)
    good = [row for row in facts["rows"] if row["score"] >= facts["rows"][0]["score"] - 0.01]
    assert facts["chosen"] == min(good, key=lambda row: row["ms"]["1"][1])["name"]
    assert open_model(run).classes == open_model(str(tmp_path / "out" / "int8.onnx")).classes
    text = (tmp_path / "out" / "optimize.html").read_text()
    assert all(f">{row['name']}</td>" in text for row in facts["rows"])


@pytest.mark.slow
def test_the_pruned_run_is_compared_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trained("unet.camvid", tmp_path, epochs=2, model_args={"base_channels": 16, "depth": 2})
    words = ["--storage", str(tmp_path)]
    assert main(["prune", "one", "--speedup", "2", "--workers", "0", *words]) == 0
    capfd.readouterr()
    assert main(["optimize", "one", "--out", str(tmp_path / "out"), "--json", *words]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert [row["name"] for row in facts["rows"]] == [*FORMS, "pruned", "pruned ONNX", "pruned int8"]
    assert facts["left_out"] == {}
    original, pruned = facts["rows"][0], facts["rows"][4]
    assert pruned["bytes"] < 0.7 * original["bytes"]
    assert pruned["score"] == pytest.approx(evaluate("one-pruned", "val", storage=str(tmp_path))["miou"], abs=1e-6)
    assert facts["rows"][5]["agreement"] < 1  # as it says what the pruned one says, not the run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "--out", "out"], "there is no run 'nothing'"),
        (["one", "--out", "out", "--tolerance", "-1"], "--tolerance -1 is not allowed"),
        (["one", "two", "--out", "out"], "usage: python -m trainers optimize RUN --out DIR"),
        (["one", "--out", "file"], "--out file is a file"),
    ],
)
def test_bad_input_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["optimize", *words, "--storage", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def row(name: str, score: float, ms: float, good: bool = True) -> Row:
    spreads = {"1": [ms, ms, ms], "32": [ms, ms, ms]}
    file = None if name == "original" else f"{name}.onnx"
    return {
        **{"name": name, "file": file, "model": name, "score": score, "agreement": 1.0},  # type: ignore[typeddict-item]
        **{"bytes": 10, "ms": spreads, "good": good},
    }


def told(chosen: str, *rows: Row) -> Optimized:
    return {
        **{"run": "<b>one</b>", "split": "val", "pictures": 1234, "metric": "accuracy"},  # type: ignore[typeddict-item]
        **{"tolerance": 0.01, "chosen": chosen, "rows": list(rows), "left_out": {"pruned": "there is no run"}},
        **{"threads": 1, "machine": {"cpu": "a CPU"}, "flags": ["avx2"], "versions": {"torch": "2"}},
    }


def test_the_page_and_the_sentence_say_which_form_was_chosen() -> None:
    facts = told("int8", row("original", 0.9, 4.0), row("int8", 0.895, 1.0), row("other", 0.5, 0.1, good=False))
    chosen = "int8.onnx is the fastest within 0.01 of the accuracy: 4.00 times as fast as the run"
    assert page.choice(facts) == f"{chosen}, accuracy 0.8950 for 0.9000."
    text = page.render_page(facts)
    assert "&lt;b&gt;one&lt;/b&gt;" in text
    assert "0.5000 (too low)" in text
    assert "pruned is left out: there is no run" in text
    assert "1 thread of a CPU (avx2)" in text
    same = told("original", row("original", 0.9, 1.0), row("int8", 0.5, 0.5, good=False))
    assert page.choice(same) == "Nothing is faster than the run itself within 0.01 of its accuracy."


def test_detections_agree_where_boxes_of_a_class_overlap() -> None:
    some = torch.tensor(
        [[0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 0], [50, 50, 60, 60, 0.7, 0]], dtype=torch.float64
    )
    others = torch.tensor(
        [[1, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 1], [50, 50, 58, 60, 0.2, 0]], dtype=torch.float64
    )
    assert boxes.pairs(some, others) == 2
    assert boxes.pairs(some, others[:0]) == boxes.pairs(some[:0], others) == 0
    assert boxes.pairs(some[[0, 0]], some[[0]]) == 1  # one object is found once
    padding = torch.full((1, 6), -1.0, dtype=torch.float64)
    kind = predictions.of_meta({"target": "boxes"})
    meta: Any = {}
    whole = torch.cat([some, padding])[None], torch.cat([others, padding])[None]
    assert kind.agreement(*whole, meta, 0.0) == (4.0, 6.0)
    assert kind.agreement(*whole, meta, 0.5) == (2.0, 5.0)  # what is less sure is not told


def test_classes_labels_and_numbers_agree_one_by_one() -> None:
    meta: Any = {"target_facts": {"target_mean": [0.0, 0.0], "target_std": [1.0, 10.0]}}
    labels = predictions.of_meta({"target": "labels"})
    assert labels.agreement(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 0]), meta, None) == (2.0, 3.0)
    numbers = predictions.of_meta({"target": "numbers"})
    one = torch.from_numpy(np.array([[0.0, 0.0], [5.0, 5.0]]))
    assert numbers.agreement(one, one + 0.1, meta, None) == (2.0, 4.0)
