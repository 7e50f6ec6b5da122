"""What is reported of sweeps: sums, repeats and maps against numbers by hand, and the report of made-up folders."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sweeps import MACHINE, make_sweep, trial

from trainers.report.reader import read_sweep
from trainers.report.report import report
from trainers.report.sweep_stats import levels, pareto, ranges_of, repeats, savings, swept_keys, text
from trainers.storage.store import Store


def values(lr: float, batch_size: int) -> dict[str, Any]:
    return {"lr": lr, "batch_size": batch_size}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    trials = [
        trial(2, "finished", values=values(0.1, 64), scores=[0.5, 0.8, 0.91], memory_bytes=2**29),
        trial(0, "stopped_early", values=values(0.1, 32), scores=[0.4], message="stopped by asha <at> 1"),
        trial(1, "out_of_memory", values=values(0.01, 512), scores=[], message="out of memory", memory_bytes=2**33),
        trial(3, "does_not_fit", values=values(0.1, 512), message="does not fit: needs 12.4 GiB of 10.8 GiB"),
        trial(4, "settled", values=values(0.2, 512), message="settled without a try"),
        trial(5, "failed", values=values(0.2, 64), scores=[0.1], message="ValueError: <b>x</b>"),
        trial(6, "pending", values=values(0.2, 32)),
    ]
    make_sweep(tmp_path, "sweep", trials, winner=trials[0]["name"], memory_limit_bytes=2**32)
    return tmp_path


def rows(storage: Path, *names: str, **options: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report(names, storage=str(storage), format="csv", **options))))


# Sums


def test_savings_are_the_sums_over_the_lines(storage: Path) -> None:
    sweep = json.loads((storage / "sweep" / "sweep.json").read_text())
    histories = {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (storage / "sweep").glob("*/metrics.jsonl")
    }
    found = savings(sweep["trials"], histories)
    assert found["epochs"] == {"planned": 3 + 3 + 1, "run": 3 + 1 + 1, "saved": 2, "repeats": 0}
    assert found["training_seconds"] == {
        "run": pytest.approx(sum(line["seconds"] for lines in histories.values() for line in lines)),
        "saved": pytest.approx(2 * 2.0),
        "repeats": 0.0,
    }
    again = [*sweep["trials"], {"name": "again", "repeat_of": sweep["trials"][0]["name"], "status": "finished"}]
    more = savings(again, {**histories, "again": [{"seconds": 5.0}] * 2})
    assert more["epochs"] == {**found["epochs"], "repeats": 2}
    assert more["training_seconds"] == {**found["training_seconds"], "repeats": 10.0}


def test_seconds_saved_are_at_the_pace_of_each_trial() -> None:
    trials = [
        {"name": "fast", "status": "stopped_early", "epochs": 10},
        {"name": "slow", "status": "stopped_early", "epochs": 10},
        {"name": "failed", "status": "failed", "epochs": 10},
        {"name": "silent", "status": "stopped_early", "epochs": 10},
    ]
    histories = {
        "fast": [{"seconds": 1.0}] * 9,
        "slow": [{"seconds": 90.0}, {"seconds": 110.0}],
        "failed": [{"seconds": 5.0}, {"seconds": None}, {}],
    }
    found = savings(trials, histories)
    assert found["epochs"] == {"planned": 10 + 10 + 3 + 10, "run": 14, "saved": 1 + 8 + 10, "repeats": 0}
    assert found["training_seconds"] == {"run": 214.0, "saved": 1.0 + 8 * 100.0, "repeats": 0.0}
    assert savings([], {})["epochs"] == {"planned": 0, "run": 0, "saved": 0, "repeats": 0}


def test_repeats_have_the_mean_spread_and_verdict_that_numpy_gives() -> None:
    scores = {"a": 0.90, "b": 0.91, "c": 0.95, "d": 0.895, "e": 0.899, "f": 0.70, "g": None}
    settings = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2, "f": 3, "g": 3}
    trials = [{"name": name, "values": {"lr": lr}, "seed": n} for n, (name, lr) in enumerate(settings.items())]
    best, tie, worse = repeats(trials, scores)
    assert best["scores"] == [0.90, 0.91, 0.95]
    assert best["mean"] == pytest.approx(np.mean([0.90, 0.91, 0.95]))
    assert best["std"] == pytest.approx(np.std([0.90, 0.91, 0.95], ddof=1))
    assert (best["verdict"], tie["verdict"], worse["verdict"]) == ("best", "tie", "worse")
    assert abs(best["mean"] - tie["mean"]) <= best["std"]  # but not within its own spread
    assert abs(best["mean"] - tie["mean"]) > tie["std"]
    assert worse["trials"] == ["f"]
    assert worse["std"] is None


def test_repeats_of_a_loss_rank_the_lowest_first_and_a_swept_seed_is_no_setting() -> None:
    settings = {"a": 1, "b": 1, "c": 2}
    trials = [{"name": name, "values": {"lr": lr, "seed": n}} for n, (name, lr) in enumerate(settings.items())]
    found = repeats(trials, {"a": 0.5, "b": 0.7, "c": 0.2}, "min")
    assert [group["values"] for group in found] == [{"lr": 2}, {"lr": 1}]
    assert found[1]["trials"] == ["a", "b"]
    equal = repeats(trials, {"a": 0.5, "c": 0.5})
    assert [group["verdict"] for group in equal] == ["best", "tie"]


def test_the_pareto_front_has_what_no_other_point_beats_in_both() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (4.0, 0.9), (2.5, 0.8), (1.0, 0.3)]
    assert pareto(points) == [1, 4, 0]
    assert pareto(points, minimise=True) == [5]
    assert pareto([]) == []


def test_axis_steps_are_in_order_and_many_numbers_become_ranges() -> None:
    assert levels([64, 32, 128, 32]) == (["32", "64", "128"], [1, 0, 2, 0])
    assert levels([[256, 256], [64, 64], None]) == (["64x64", "256x256"], [1, 0, None])
    assert levels(["sgd", "adam", True]) == (["sgd", "adam", "true"], [0, 1, 2])
    labels, places = levels([10.0 ** (-n / 4) for n in range(17)])
    assert len(labels) == 5
    assert labels[0].startswith("1e-4 to")
    assert places == sorted(places, reverse=True)
    assert set(places) == set(range(5))
    assert levels([99.7 * n / 2 for n in range(11)])[0][:2] == ["0 to 100", "100 to 199"]
    assert levels([])[0] == []
    assert levels([5.0, "none", 1.0, None]) == (["1", "5", "none"], [1, 2, 0, None])  # a value, and one that is unknown


@pytest.mark.parametrize(
    ("low", "high", "kind", "few"),
    [(2, 9, "whole", True), (2, 10, "whole", False), (8, 12, "square", True), (0.1, 0.9, "number", False)],
)
def test_few_whole_numbers_of_a_range_have_a_step_each(low: float, high: float, kind: str, few: bool) -> None:
    drawn = {"low": low, "high": high, "log": True, "kind": kind}
    assert ranges_of({"plan": {"space": {"depth": drawn, "lr": [0.1]}}}) == ({} if few else {"depth": True})


def test_what_was_tried_without_a_value_is_on_the_map(storage: Path) -> None:
    made = [trial(n, values={"clip_norm": norm, "lr": lr}) for n, (norm, lr) in enumerate(PAIRS)]
    make_sweep(storage, "clipped", made, plan={"space": {"clip_norm": [None, 1.0, 5.0], "lr": [0.1, 0.2]}})
    page = report(["clipped"], storage=str(storage), format="html")
    maps = page.split('<svg class="map"')[1]
    assert maps.count("<rect") == len(PAIRS)
    assert ">none</text>" in maps


PAIRS = [(norm, lr) for norm in (None, 1.0, 5.0) for lr in (0.1, 0.2)]


def test_numbers_drawn_from_a_range_become_ranges_however_few_they_are() -> None:
    labels, places = levels([0.01, 0.5, 0.03, 0.2, 0.07], False)
    assert len(labels) == 5
    assert places == [0, 4, 0, 1, 0]
    assert levels([0.01, 0.1, 1.0], True)[1] == [0, 2, 4]  # by the logarithm
    assert levels([[8, 8], [16, 16], [32, 32]], False)[0][0] == "8 to 13"  # sizes as high as wide
    assert levels([4, 9], False) == (["4", "9"], [0, 1])
    assert levels([None, 0.1, 0.2, 0.3], False)[1] == [None, 0, 2, 4]


@pytest.mark.parametrize("trials", [5, 8, 30])
def test_a_random_search_of_two_ranges_has_maps_of_ranges(trials: int, storage: Path) -> None:
    made = [trial(n, values={"lr": 0.001 * 1.3**n, "momentum": 0.9 - 0.01 * n}) for n in range(trials)]
    low_high = {"low": 0.001, "high": 3.0, "log": True}
    space = {"lr": low_high, "momentum": {**low_high, "log": False}}
    make_sweep(storage, f"random{trials}", made, plan={"space": space, "search": "random", "trials": trials})
    page = report([f"random{trials}"], storage=str(storage), format="html")
    drawn = re.findall(r'<svg class="map".*?</svg>', page, re.S)
    assert len(drawn) == 2  # score and time
    assert all(len(set(re.findall(r'<rect [^>]* x="([0-9.]+)"', each))) <= 5 for each in drawn)


def test_a_random_search_of_one_range_is_dots(storage: Path) -> None:
    made = [trial(n, values={"lr": 0.001 * 2**n}) for n in range(4)]
    make_sweep(storage, "one-range", made, plan={"space": {"lr": {"low": 0.001, "high": 0.1, "log": True}}})
    page = report(["one-range"], storage=str(storage), format="html")
    assert '<svg class="map"' not in page
    assert 'data-x="lr"' in page


def test_what_was_left_out_is_said_with_the_reasons(storage: Path) -> None:
    gone = [{"values": {"lr": n}, "reason": f"reason {n % 4}"} for n in range(8)]
    make_sweep(storage, "left-out", [trial(0, values={"lr": 0.1})], left_out=gone)
    text = report(["left-out"], storage=str(storage))
    assert "left out, as they cannot be: 8 combinations: reason 0; reason 1; reason 2; and 1 more reasons" in text


def test_the_swept_keys_are_those_of_the_plan_and_others_that_trials_have() -> None:
    trials = [{"values": {"model_args.num_filters": 8}}, {"values": None}, {}]
    assert swept_keys({"plan": {"space": {"lr": {"low": 1e-4}}}}, trials) == ["lr", "model_args.num_filters"]
    assert swept_keys({"plan": None}, []) == []
    assert text([128, 64]) == "128x64"


# The report of a sweep


def test_every_trial_is_a_row_in_the_order_of_numbers(storage: Path) -> None:
    found = rows(storage, "sweep")
    assert [row["status"] for row in found] == [
        "stopped_early", "out_of_memory", "finished", "does_not_fit", "settled", "failed", "pending",
    ]  # fmt: skip
    assert [row["batch_size"] for row in found] == ["32", "512", "64", "512", "512", "64", "32"]
    assert found[3]["message"] == "does not fit: needs 12.4 GiB of 10.8 GiB"
    assert found[3]["training_seconds"] == ""
    assert found[1]["predicted_memory_bytes"] == str(2**33)
    assert found[2]["micro_batch_size"] == "64"
    assert found[2]["best_value"] == "0.91"
    assert found[2]["training_seconds"] == "6.0"
    assert found[0]["recipe"] == found[6]["recipe"] == "digits.cnn"
    records = json.loads(report(["sweep"], storage=str(storage), format="json"))
    assert [record["lr"] for record in records] == [0.1, 0.01, 0.1, 0.1, 0.2, 0.2, 0.2]


def test_the_table_shows_messages_the_winner_and_what_was_saved(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = report([str(storage / "sweep")], storage=str(storage / "elsewhere"))
    assert "000-lr=0.1-batch_size=32: stopped by asha <at> 1" in shown
    assert "winner 002-lr=0.1-batch_size=64, accuracy 0.9100" in shown
    assert "epochs: 5 of 7 run, 2 saved; training: 10.0 s run, 4.0 s saved" in shown


def test_the_page_of_a_sweep_shows_winner_savings_memory_and_pictures_escaped(storage: Path) -> None:
    winner = storage / "sweep" / "002-lr=0.1-batch_size=64"
    (winner / "confusion.png").write_bytes(b"\x89PNG confusion")
    (winner / "predictions.png").write_bytes(b"\x89PNG predictions")
    page = report(["sweep"], storage=str(storage), format="html", price_per_hour=2.0)
    assert "Content-Security-Policy" in page
    assert not re.search(r"https?://", page)
    assert "<b>x</b>" not in page
    assert "ValueError: &lt;b&gt;x&lt;/b&gt;" in page
    assert page.count("data:image/png;base64") == 2
    for shown in ("winner, accuracy", "5 of 7", "2 saved (29%)", "best accuracy", "limit 4.00 GiB", "Pareto front",
                 "does not fit", 'class="mark"', 'class="ring"', "no fit"):  # fmt: skip
        assert shown in page, shown
    assert "Mean and spread" not in page  # nothing was repeated


def test_repeats_are_reported_with_mean_and_tie(tmp_path: Path) -> None:
    scores = {0.1: (0.90, 0.94), 0.01: (0.91, 0.91), 0.001: (0.5, 0.52)}
    trials = []
    for lr, pair in scores.items():
        first = trial(len(trials), values={"lr": lr}, scores=[pair[0]])
        again = trial(len(trials) + 1, values={"lr": lr}, scores=[pair[1]], seed=1, repeat_of=first["name"])
        trials += [first, {**again, "name": f"{again['name']}-seed=1"}]
    make_sweep(tmp_path, "sweep", trials, winner=trials[1]["name"])
    page = report(["sweep"], storage=str(tmp_path), format="html")
    assert "0.9200 ± 0.0283" in page
    assert '<em class="calm">tie</em>' in page
    assert "a tie with 1 more" in page
    shown = report(["sweep"], storage=str(tmp_path))
    assert "best: lr 0.1: 0.9200 +- 0.0283 over 2" in shown
    assert "tie: lr 0.01" in shown


def test_cost_is_that_of_the_trials_and_of_the_wall_time_of_the_sweep(storage: Path) -> None:
    nodes = {"nodes": MACHINE["nodes"] * 2}
    make_sweep(storage, "two-nodes", [trial(0, values={"lr": 1})], machine=nodes, seconds={"total": 1800.0, "setup": 1})
    assert float(rows(storage, "two-nodes", price_per_hour=3.6)[0]["cost"]) == pytest.approx(7.5 * 2 * 0.001)
    assert "cost of the sweep: 3.60" in report(["two-nodes"], storage=str(storage), price_per_hour=3.6)


def test_a_storage_shows_a_sweep_as_one_row(storage: Path) -> None:
    row = rows(storage)[0]
    assert (row["run"], row["status"], row["best_value"]) == ("sweep", "finished", "0.91")
    assert "a sweep of 7 trials; report sweep shows them" in report([], storage=str(storage))
    assert "0.9100" in report([], storage=str(storage), format="html")


def test_a_single_trial_is_a_run(storage: Path) -> None:
    assert [row["status"] for row in rows(storage, "sweep/002-lr=0.1-batch_size=64")] == ["finished"]


@pytest.mark.parametrize("sweep", ["{}", '{"trials": null}', '{"status": "running", "trials": [{}], "plan": 3}',
                                   '{"trials": [{"number": 1, "values": 4, "best": [], "status": null}]}',
                                   '{"winner": "gone", "epochs": {"run": 7}, "seconds": null}'])  # fmt: skip
def test_what_is_missing_while_it_runs_does_not_stop_it(tmp_path: Path, sweep: str) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text(sweep)
    for format in ("table", "csv", "json", "html"):
        shown = report(["sweep"], storage=str(tmp_path), format=format, price_per_hour=1)
        report([], storage=str(tmp_path), format=format)
        if "gone" in sweep and format in ("table", "html"):
            assert "its winner gone is not among the trials" in shown
            assert "sweep.json counts 7 epochs run, metrics.jsonl 0" in shown
        if sweep == "{}" and format == "html":
            assert "no trials yet" in shown


def test_broken_files_are_named_and_do_not_stop_the_report(storage: Path) -> None:
    (storage / "sweep" / "002-lr=0.1-batch_size=64" / "run.json").write_text('{"na')
    (storage / "sweep" / "000-lr=0.1-batch_size=32" / "metrics.jsonl").write_text('{"epoch": 1}\n{')
    shown = report(["sweep"], storage=str(storage))
    assert re.search(r"002-lr=0.1-batch_size=64: .*run.json is not valid JSON", shown)
    assert "metrics.jsonl is broken from line 2 on" in shown
    assert rows(storage, "sweep")[2]["best_value"] == "0.91"  # of sweep.json
    (storage / "sweep" / "sweep.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"sweep.json does not hold an object"):
        report(["sweep"], storage=str(storage))
    assert "not readable: sweep" in report([], storage=str(storage))
    (storage / "sweep" / "sweep.json").write_text('{"trials": [1]}')
    with pytest.raises(ValueError, match="trials is not a list of objects"):
        report(["sweep"], storage=str(storage))


def test_a_trial_without_epochs_recorded_makes_the_saving_doubtful(storage: Path) -> None:
    (storage / "sweep" / "002-lr=0.1-batch_size=64" / "metrics.jsonl").unlink()
    assert "no epochs are recorded of 002-lr=0.1-batch_size=64" in report(["sweep"], storage=str(storage))


def test_a_run_folder_that_sweep_json_does_not_name_is_shown(storage: Path) -> None:
    found = json.loads((storage / "sweep" / "sweep.json").read_text())
    found["trials"] = [entry for entry in found["trials"] if entry["number"] != 2]
    (storage / "sweep" / "sweep.json").write_text(json.dumps(found))
    sweep = read_sweep(Store(storage / "sweep"))
    assert sweep is not None
    assert sweep.runs[-1].label == "002-lr=0.1-batch_size=64"
    assert "sweep.json does not name 002" in report(["sweep"], storage=str(storage))


# Comparison across machines


@pytest.fixture
def machines(tmp_path: Path) -> Path:
    """The same sweep on two machines; on the slower one, less fits."""
    batches = [32, 64, 128]
    fast = [trial(n, values={"batch_size": b}, epoch_seconds=2.0, memory=2**30) for n, b in enumerate(batches)]
    fast.append(trial(3, values={"batch_size": 256}, fingerprint="other"))
    fast.append(trial(4, values={"batch_size": 512}))
    slow = [
        trial(n, values={"batch_size": b}, epoch_seconds=5.0, scores=[0.7, 0.8, 0.85]) for n, b in enumerate(batches)
    ]
    slow[2] = trial(2, "does_not_fit", values={"batch_size": 128}, message="does not fit: needs 9 GiB of 8 GiB")
    slow.append(trial(3, values={"batch_size": 256}))
    for name, trials, cpu in (("cloud", fast, "Fast CPU"), ("local", slow, "Slow CPU")):
        make_sweep(tmp_path, name, trials, machine={"nodes": [{**MACHINE["nodes"][0], "cpu": cpu}]})
    return tmp_path


def test_trials_of_the_same_recipe_and_data_are_paired(machines: Path) -> None:
    found = rows(machines, "cloud", baseline="local")
    for row in found[:2]:
        assert float(row["speed_up"]) == pytest.approx(2.5)
        assert float(row["score_difference"]) == pytest.approx(0.05)
        assert float(row["baseline_seconds"]) == 15.0
        assert float(row["baseline_memory_bytes"]) == 2**29
        assert float(row["baseline_images_per_second"]) == 200.0
        assert row["note"] == ""
    assert [row["speed_up"] for row in found[2:]] == ["", "", ""]
    assert "of the same values, did not run there: does not fit: needs 9 GiB of 8 GiB" in found[2]["note"]
    assert "same recipe, but other data: fingerprint other against abc" in found[3]["note"]
    assert re.search(r"no run of the same recipe; the nearest, .*: batch_size 512 against", found[4]["note"])


def test_the_page_shows_speed_ups(machines: Path) -> None:
    page = report(["cloud"], storage=str(machines), format="html", baseline="local")
    against = page[page.index("Against local") : page.index("Learning curves")]
    assert against.count("2.50x") == 4  # a bar and a row each
    assert "8 cores Fast; the baseline: 8 cores Slow" in against
    alone = report(["local"], storage=str(machines), format="html", baseline="local")
    assert "No run is paired" in alone[alone.index("Against local") :]


def test_a_baseline_can_be_a_folder_of_runs_or_a_run(machines: Path) -> None:
    other = machines / "elsewhere"
    other.mkdir()
    (machines / "local").rename(other / "cloud")
    found = rows(machines, "cloud", "elsewhere/cloud", baseline="elsewhere")  # all of one name, but for the path
    assert len({row["run"] for row in found}) == 9
    assert float(found[0]["speed_up"]) == pytest.approx(2.5)
    (other / "cloud").rename(machines / "local")
    (machines / "local" / "sweep.json").unlink()
    assert float(rows(machines, "cloud", baseline="local")[0]["speed_up"]) == pytest.approx(2.5)
    found = rows(machines, "cloud", baseline="local/000-batch_size=32")
    assert found[0]["run"].endswith("000-batch_size=32")  # the baseline comes first
    assert float(found[2]["speed_up"]) == pytest.approx(2.5)
    assert "batch_size 64 against 32" in found[2]["note"]
