"""Runs of other data or another task are not compared: neither in one front nor as one best."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeps import make_sweep, trial
from rich.console import Console

from trainers.formatting import format_duration
from trainers.progress import Progress
from trainers.report.groups import dataset_of, grouped
from trainers.report.reader import Run
from trainers.report.report import report
from trainers.storage.store import Store

ROWS = {"train": 100, "val": 20}


def run(
    label: str, name: str = "image_folder", folder: str | None = None, task: str = "classify", **dataset: Any
) -> Run:
    facts = {"name": name, "rows": ROWS, "classes": ["a", "b"], "fingerprint": label, **dataset}
    info = {"dataset": facts, "recipe": {"dataset": name, "task": task}, "scale": {"data": folder}}
    return Run(label, Store(f"/runs/{label}"), info)


def names(*runs: Run) -> list[str]:
    return list(grouped(runs).values())


def test_a_folder_of_ones_own_is_named_by_its_last_part() -> None:
    assert dataset_of(run("a", folder="/data/gravel/")) == "image_folder gravel"
    assert dataset_of(run("a", "mnist", folder="/data/mnist")) == "mnist"
    assert dataset_of(run("a", "digits")) == "digits"
    assert dataset_of(Run("a", Store("/runs/a"), {"recipe": {"dataset": "digits"}})) == "digits"
    assert dataset_of(Run("a", Store("/runs/a"), {})) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (run("a", folder="/data/gravel"), run("b", folder="/data/moss")),
        (run("a", "digits"), run("b", "mnist")),
        (run("a", "digits"), run("b", "digits", task="ordinal")),
        (run("a", "shapes"), run("b", "shapes", rows={"train": 16, "val": 4})),
        (run("a", folder="/data/x"), run("b", folder="/data/x", classes=["a", "b", "c"])),
        (run("a"), Run("b", Store("/runs/b"), {})),
    ],
)
def test_other_data_and_other_tasks_are_other_groups(one: Run, other: Run) -> None:
    assert len(set(names(one, other))) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (run("a", folder="/data/x"), run("b", folder="/mnt/cloud/x")),  # the size of pictures changes the fingerprint
        (run("same", folder="/data/x", rows=None), run("same", folder="/data/copy")),
        (run("a", "digits"), run("b", "digits")),
    ],
)
def test_the_same_data_is_one_group(one: Run, other: Run) -> None:
    other = Run("other", Store("/runs/other"), other.info)
    assert len(set(names(one, other))) == 1


def test_groups_of_one_name_are_told_apart_by_their_pictures_or_a_number() -> None:
    few, many = run("a", "shapes", rows={"train": 8, "val": 2}), run("b", "shapes", rows={"train": 800, "val": 200})
    assert names(few, many) == ["shapes, classify, 10 pictures", "shapes, classify, 1,000 pictures"]
    other = run("c", "shapes", classes=["x"], rows=few.info["dataset"]["rows"])  # type: ignore[index]
    assert names(few, other) == ["shapes, classify, 10 pictures (1)", "shapes, classify, 10 pictures (2)"]


def test_trials_of_a_sweep_are_compared_whatever_its_arguments_make_of_the_data(tmp_path: Path) -> None:
    trials = [trial(n, values={"dataset_args.crop_size": 100 * n}, fingerprint=str(n)) for n in (1, 2, 3)]
    make_sweep(tmp_path, "crops", trials)
    page = report(["crops"], storage=str(tmp_path), format="html")
    assert "digits, classify: Score against training time" not in page
    assert page.count("<h2>Score against training time</h2>") == 1


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Digits with high scores, gravel with low ones, and a sweep of digits."""
    make_sweep(tmp_path / "made", "sweep", [trial(1, values={"lr": 0.1}, epoch_seconds=31.0)])
    for number, (folder, value) in enumerate(
        [(None, 0.99), ("/data/gravel", 0.61), ("/data/gravel", 0.52), (None, 0.97)]
    ):
        made = tmp_path / "made" / "sweep" / "001-lr=0.1"
        content = json.loads((made / "run.json").read_text())
        if folder:
            content["dataset"] = {"name": "image_folder", "fingerprint": "g", "rows": ROWS}
            content["scale"]["data"] = folder
        content |= {"name": f"run{number}", "best": {"epoch": 1, "metric": "accuracy", "value": value}}
        (tmp_path / "storage" / f"run{number}").mkdir(parents=True)
        (tmp_path / "storage" / f"run{number}" / "run.json").write_text(json.dumps(content))
        (tmp_path / "storage" / f"run{number}" / "metrics.jsonl").write_text((made / "metrics.jsonl").read_text())
    make_sweep(
        tmp_path / "storage", "zz-sweep", [trial(n, values={"lr": 0.1 * n}) for n in (1, 2)], winner="001-lr=0.1"
    )
    return tmp_path / "storage"


def test_a_storage_is_reported_by_data_set(storage: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(report([], storage=str(storage), format="csv"))))
    assert [(row["run"], row["dataset"], row["task"]) for row in rows] == [
        ("run0", "digits", "classify"),
        ("run3", "digits", "classify"),
        ("zz-sweep", "digits", "classify"),
        ("run1", "image_folder gravel", "classify"),
        ("run2", "image_folder gravel", "classify"),
    ]
    found = json.loads(report([], storage=str(storage), format="json"))
    assert {each["dataset"] for each in found} == {"digits", "image_folder gravel"}
    assert "image_folder gravel" in report([], storage=str(storage))
    named = report(["run2", "run0"], storage=str(storage), format="csv").splitlines()
    assert [line.partition(",")[0] for line in named[1:]] == ["run2", "run0"]  # as they were asked for


def test_each_data_set_has_its_own_best_curves_and_front(storage: Path) -> None:
    page = report([], storage=str(storage), format="html")
    for group, best in (("digits, classify", "0.9900"), ("image_folder gravel, classify", "0.6100")):
        assert f"<span>best accuracy, {group}</span><b>{best}</b>" in page
        assert page.count(f"<h2>{group}: Learning curves</h2>") == 1
        assert page.count(f"<h2>{group}: Score against training time</h2>") == 1
    gravel = page.partition("<h2>image_folder gravel, classify: Score against training time</h2>")[2].partition(
        "</section>"
    )[0]
    assert 'data-label="run1"' in gravel
    assert 'data-label="run0"' not in gravel
    front = gravel.partition('data-label="Pareto front"')[2].partition("</g>")[0]
    assert front.count("<circle") == 1  # run1 alone: as fast as run2, and better


def test_runs_of_one_data_set_need_no_name_of_it_before_their_charts(storage: Path) -> None:
    page = report(["run1", "run2"], storage=str(storage), format="html")
    assert "<h2>Learning curves</h2>" in page
    assert "<span>best accuracy</span>" in page


def test_training_is_one_number_in_the_summary_and_in_every_report(storage: Path) -> None:
    folder = storage / "run0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = sum(line["seconds"] for line in lines)
    assert trained > 60  # else it is written with a fraction
    console = Console(file=io.StringIO(), width=120)
    Progress(console=console).summary(json.loads((folder / "run.json").read_text()), str(folder))
    assert f"training     {format_duration(trained)}  " in console.file.getvalue()  # type: ignore[attr-defined]
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(report([], storage=str(storage), format="csv")))}
    assert float(rows["run0"]["training_seconds"]) == pytest.approx(trained)


def test_a_sweep_whose_time_was_counted_from_two_starts_has_no_negative_training(tmp_path: Path) -> None:
    trials = [trial(0, values={"lr": 0.1})]
    make_sweep(tmp_path, "old", trials, seconds={"total": 1.1, "setup": 9.3}, winner=trials[0]["name"])
    make_sweep(tmp_path, "new", trials, training_seconds={"run": 6.0, "saved": 0.0, "repeats": 0.0})
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(report([], storage=str(tmp_path), format="csv")))}
    assert rows["old"]["training_seconds"] == ""
    assert float(rows["new"]["training_seconds"]) == 6.0
