"""Runs side by side: numbers worked out by hand from made-up run folders."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.sweeps import make_sweep, trial

from trainers.recipe import resolve
from trainers.report.reader import RunKey
from trainers.report.report import report
from trainers.run_facts import RunFacts

ROOT = Path(__file__).parents[2]


def make(storage: Path, name: str, *, total: float = 130.0, value: float = 0.9, **changes: Any) -> None:
    """A run of 10 epochs with 30 s of setup and, by default, 100 s of training."""
    run: dict[str, Any] = {
        "name": name,
        "status": "finished",
        "recipe_name": "digits.cnn",
        "recipe": resolve("digits.cnn", epochs=10, batch_size=changes.pop("batch_size", 64)).to_json(),
        "scale": {"workers": 2},
        "dataset": {"name": "digits", "fingerprint": changes.pop("fingerprint", "abc"), "rows": {"train": 100}},
        "machine": {"nodes": [{"cpu": "Fast CPU", "cores": 8, "memory_bytes": 2**33, "gpus": []}]},
        "versions": {"torch": "2.15"},
        "seconds": {"total": total + 20, "setup": 30.0, "data_wait": 5.0, "compute": total - 35, "evaluate": 20.0},
        "images_per_second": 1234.5,
        "peak_memory_bytes": {"host": 3 * 2**29, "device": None},
        "epochs_run": 10,
        "best": {"epoch": 7, "metric": "accuracy", "value": value},
        "final": {"accuracy": value, "loss": 0.25, "per_class": {"f1": [1.0]}},
        **changes,
    }
    (storage / name).mkdir(parents=True)
    (storage / name / "run.json").write_text(json.dumps(run))
    lines = [{"epoch": epoch, "val/accuracy": value * epoch / 10, "val/loss": 1 / epoch} for epoch in range(1, 11)]
    (storage / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    make(tmp_path, "one")
    make(tmp_path, "two", total=80.0, value=0.92, batch_size=128)
    make(tmp_path, "other-data", fingerprint="xyz")
    (tmp_path / "cache").mkdir()
    return tmp_path


def rows(storage: Path, *names: str, **options: Any) -> dict[str, dict[str, str]]:
    text = report(names, storage=str(storage), format="csv", **options)
    return {row["run"]: row for row in csv.DictReader(io.StringIO(text))}


def test_times_rates_and_cost_are_those_worked_out_by_hand(storage: Path) -> None:
    found = rows(storage, "one", "two", baseline="one", price_per_hour=3.6)
    assert float(found["one"]["training_seconds"]) == 100.0
    assert float(found["two"]["training_seconds"]) == 50.0
    assert float(found["two"]["data_wait_share"]) == pytest.approx(0.1)
    assert float(found["two"]["speed_up"]) == pytest.approx(2.0)
    assert float(found["two"]["score_difference"]) == pytest.approx(0.02)
    assert float(found["two"]["cost"]) == pytest.approx(100 * 3.6 / 3600)  # with start and evaluation
    assert int(found["one"]["peak_memory_bytes"]) == 3 * 2**29
    assert found["one"]["image_size"] == "8x8"
    assert "8 cores" in found["one"]["machine"]


def test_runs_on_other_data_are_not_compared_and_it_says_why(storage: Path) -> None:
    found = rows(storage, baseline="one")
    assert found["other-data"]["speed_up"] == ""
    text = report([], storage=str(storage), baseline="one")
    assert re.search(r"other-data: not compared with one: dataset fingerprint differs", text)
    assert re.search(r"two: .*batch_size 128 against 64", text)


def test_the_table_has_what_people_compare(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = report([], storage=str(storage))
    for header in ("run", "status", "epochs", "batch", "image size", "workers", "machine", "training", "images/s",
                   "data wait", "peak memory", "best"):  # fmt: skip
        assert header in text
    assert "1:40" in text or "100" in text
    for width in ("80", "120"):
        monkeypatch.setenv("COLUMNS", width)
        assert max(map(len, report([], storage=str(storage)).split("same for all")[0].splitlines())) <= int(width)


def test_json_is_a_list_of_flat_records(storage: Path) -> None:
    records = json.loads(report(["one"], storage=str(storage), format="json"))
    assert len(records) == 1
    assert records[0]["best_value"] == 0.9
    assert all(not isinstance(value, dict | list) for value in records[0].values())


def test_broken_and_running_folders_do_not_stop_it(storage: Path) -> None:
    (storage / "broken").mkdir()
    (storage / "broken" / "run.json").write_text('{"name": "bro')
    (storage / "running").mkdir()
    (storage / "running" / "run.json").write_text('{"name": "running", "status": "running"}')
    text = report([], storage=str(storage))
    assert "not readable: broken" in text
    assert "running" in text
    assert rows(storage)["broken"]["status"] == "unreadable"


def test_an_unknown_run_format_or_empty_storage_is_refused_with_what_there_is(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"onee.*one"):
        report(["onee"], storage=str(storage))
    with pytest.raises(ValueError, match=r"format=.*pdf.*html"):
        report([], storage=str(storage), format="pdf")
    with pytest.raises(ValueError, match=r"price_per_hour=-1.*at least 0"):
        report([], storage=str(storage), price_per_hour=-1)
    with pytest.raises(ValueError, match=r"empty.*--storage"):
        report([], storage=str(tmp_path / "empty"))


def test_the_page_needs_no_network(storage: Path) -> None:
    (storage / "two" / "confusion.png").write_bytes(b"\x89PNG not really")
    page = report([], storage=str(storage), format="html", baseline="one")
    assert page.startswith("<!doctype html>")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "data:image/png;base64" in page
    assert page.count("<svg") >= 2
    assert 'name="viewport"' in page
    for name in ("one", "two", "other-data"):
        assert name in page


def test_names_cannot_run_code_in_the_page(storage: Path) -> None:
    make(storage, "evil\" onload='x'", recipe_name="<script>alert(1)</script>", best={
        "epoch": 1, "metric": "<b>score", "value": 0.5})  # fmt: skip
    page = report([], storage=str(storage), format="html", baseline="one")
    assert "<script>alert(1)" not in page
    assert "<b>score" not in page
    assert "best &lt;b&gt;score" in page
    assert 'evil"' not in page
    assert "evil&#34; onload=&#39;x&#39;" in page


def test_only_the_script_of_the_page_may_run_in_it(storage: Path) -> None:
    page = report([], storage=str(storage), format="html")
    [script] = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    [allowed] = re.findall(r"script-src '(.*?)'", page)
    assert allowed == "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_the_page_is_the_same_but_for_the_time_it_was_made(storage: Path) -> None:
    pages = [report([], storage=str(storage), format="html", baseline="one") for _ in range(2)]
    first, second = (re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", page) for page in pages)
    assert first == second


def test_a_chart_has_the_numbers_that_the_pointer_shows(storage: Path) -> None:
    page = report(["one"], storage=str(storage), format="html")
    chart = page[page.index('data-y="val/accuracy"') :].partition("</svg>")[0]
    [points] = re.findall(r'data-label="one" data-points="(.*?)"', chart)
    shown = dict(tuple(map(float, point.split(","))) for point in points.split())
    assert shown == pytest.approx({epoch: 0.9 * epoch / 10 for epoch in range(1, 11)})


def test_the_templates_are_package_data() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    there = {file.name for file in resources.files("trainers.report").joinpath("templates").iterdir()}
    assert {"page.html.j2", "chart.svg.j2", "report.css", "report.js"} <= there
    assert all(any(fnmatch(f"templates/{name}", each) for each in declared["trainers.report"]) for name in there)


def test_what_is_read_of_run_json_is_written_there() -> None:
    assert set(get_args(RunKey)) <= RunFacts.__required_keys__ | RunFacts.__optional_keys__


def test_a_run_of_an_older_version_with_half_its_keys_is_reported(storage: Path) -> None:
    old = {"name": "old", "status": "finished", "seconds": 12, "best": None, "machine": {"nodes": [{"gpus": None}]}}
    (storage / "old").mkdir()
    (storage / "old" / "run.json").write_text(json.dumps({**old, "recipe": ["lr"], "final": None, "dataset": 3}))
    assert rows(storage)["old"]["training_seconds"] == ""
    assert rows(storage)["old"]["machine"] == "0 cores"
    for baseline in (None, "one"):
        assert "old" in report([], storage=str(storage), format="html", baseline=baseline)


def test_it_runs_without_torch_and_without_ray(storage: Path) -> None:
    make_sweep(storage, "sweep", [trial(0, values={"lr": 0.1}), trial(1, "does_not_fit", values={"lr": 0.2})])
    code = f"""
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from trainers.__main__ import main

storage = {str(storage)!r}
html = ["--format", "html", "--out", storage + "/report.html"]
sys.exit(
    main(["report", "--storage", storage])
    or main(["report", "sweep", "--storage", storage, "--baseline", "sweep"])
    or main(["report", "sweep", "one", "--storage", storage, *html])
)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (storage / "report.html").stat().st_size > 3000
