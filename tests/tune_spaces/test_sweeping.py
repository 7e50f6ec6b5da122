"""Sweeps on real Ray: nothing is lost, nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.small import Slow

from trainers.report.sweep_stats import savings

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SECONDS = 900
QUICK = ["--recipe", "digits.cnn", "--precision", "fp32"]
MINE = '''
import os
import signal

import ray
import torch

from trainers.models import linear_cnn
from trainers.recipe import resolve
from tune_spaces.sweep import Sweep


class Troubled(torch.nn.Module):
    """Runs out of memory at 60 pictures, with more filters so that the kernel kills it; dies once at 20."""

    def __init__(self, inner, filters):
        super().__init__()
        self.inner = inner
        self.filters = filters

    def forward(self, images):
        real = type(images) is torch.Tensor and images.device.type == "cpu" and self.training
        in_trial = real and ray.is_initialized() and ray.get_runtime_context().get_actor_id()
        if in_trial and len(images) >= 60 and self.filters > 8:
            os.kill(os.getpid(), signal.SIGKILL)
        if real and len(images) >= 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if in_trial and len(images) == 20 and not os.path.exists("DIED"):
            open("DIED", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(images)


def build(num_filters=8, **args):
    return Troubled(linear_cnn.build(num_filters=num_filters, **args), num_filters)


def recipe():
    return resolve("digits.cnn").replace(model="./mine.py", epochs=2, schedule="constant", warmup_epochs=0.0)


def space():
    values = {"model_args.num_filters": [8, 16], "lr": [0.05, 1e20], "batch_size": [20, 64, 128]}
    return Sweep(recipe="./mine.py:recipe", space=values)
'''


def start(storage: Path, *words: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    own = {"TRAINYARD_STORAGE": str(storage), "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **environment}
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "TRAINYARD_CACHE")}
    command = [sys.executable, "-m", "tune_spaces", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**kept, **own}, cwd=cwd, text=True, stdout=pipe, stderr=pipe)


def sweep(
    storage: Path, *words: str, cwd: Path = ROOT, code: int = 0, **environment: str
) -> tuple[dict[str, Any], str]:
    """Run a sweep to its end; returns sweep.json and what it printed."""
    process = start(storage, *words, cwd=cwd, **environment)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, err
    folder = Path(out.splitlines()[-1])
    return json.loads((folder / "sweep.json").read_text()), err


def read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}


def table(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Losses and scores of every trial."""
    return {
        path.parent.name: [(line["train/loss"], line["val/accuracy"]) for line in read(path)]
        for path in folder.glob("*/metrics.jsonl")
    }


EPOCHS = 4


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model of `grid`, whose epochs take 3 s while there is a sign."""
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def grid(slow_folder: Path) -> list[str]:
    """A sweep of four trials, which may be disturbed."""
    model = [*Slow(slow_folder).flags, "--micro-batch-size", "64", "--epochs", str(EPOCHS)]
    return ["--recipe", "digits.cnn", *model, "--scheduler", "none", "--space", "lr=0.01,0.05", "batch_size=64,128"]


@pytest.fixture(scope="module")
def undisturbed(storage: Path, slow_folder: Path, grid: list[str]) -> Path:
    """The folder of that sweep, which nobody disturbed."""
    Slow(slow_folder).hurry()
    content, _ = sweep(storage, *grid, "--run", "undisturbed")
    assert content["status"] == "finished"
    return storage / "undisturbed"


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_stopped_continues_and_no_trial_runs_twice(
    storage: Path, slow_folder: Path, grid: list[str], undisturbed: Path
) -> None:
    """The driver is killed after two trials; then Ctrl-C; then the time is over; then it may continue to the end."""
    folder, slow, limit = storage / "troubled", Slow(slow_folder), time.monotonic() + SECONDS
    process = start(storage, *grid, "--run", "troubled")
    finished: dict[str, dict[str, Any]] = {}
    while len(finished) < 2 and time.monotonic() < limit and process.poll() is None:
        finished = {name: run for name, run in runs(folder).items() if run["status"] == "finished"}
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert 2 <= len(finished) < 4

    process = start(storage, *grid, "--run", "troubled")
    assert process.stderr is not None
    assert any("at once" in line for line in process.stderr)  # its plan; by now the killed driver's trials have ended
    before = table(folder)
    while not under_way(before, table(folder)) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    assert out.splitlines()[-1] == str(folder)
    assert "repeat the command with --run troubled" in err
    assert json.loads((folder / "sweep.json").read_text())["status"] == "interrupted"
    assert any(0 < run["epochs_run"] < EPOCHS for run in runs(folder).values())
    content, _ = sweep(storage, *grid, "--run", "troubled", "--budget", "2s")  # less than an epoch takes
    assert content["status"] == "out_of_time"
    slow.hurry()

    content, _ = sweep(storage, *grid, "--run", "troubled")
    after = runs(folder)
    assert {name: after[name] for name in finished} == finished  # untouched, to the second
    assert content["status"] == "finished"
    assert [trial["status"] for trial in content["trials"]] == ["finished"] * 4
    assert all(run["epochs_run"] == EPOCHS for run in after.values())
    assert sum(run["attempt"] - 1 for run in after.values()) <= 3 * 2  # those that were running, each time
    assert table(folder) == table(undisturbed)


def under_way(before: dict[str, list[Any]], now: dict[str, list[Any]]) -> bool:
    """Whether a trial has ended an epoch meanwhile, and not the last but one."""
    return any(len(before.get(name, ())) < len(lines) < EPOCHS - 1 for name, lines in now.items())


@pytest.mark.slow
def test_a_finished_sweep_takes_more_values_within_a_budget_that_preparing_does_not_spend(storage: Path) -> None:
    words = [*QUICK, "--epochs", "2", "--scheduler", "none", "--run", "more"]
    before, said = sweep(storage, *words, "--space", "lr=0.01,0.05", "batch_size=64,4096")
    assert [trial["number"] for trial in before["trials"]] == [0, 1]
    assert "left out: 2 combinations that cannot be" in said
    assert "batch_size=4096 is more than the" in said
    kept = runs(storage / "more")
    content, said = sweep(storage, *words, "--space", "lr=0.01,0.05,0.1", "batch_size=64,4096", "--budget", "9m")
    assert "continuing: 2 of 3 trials are over and are kept" in said
    assert "the budget of 9:00 counts from the start of the first trial, and holds about 1 of the 1" in said
    assert [trial["status"] for trial in content["trials"]] == ["finished"] * 3
    now = runs(storage / "more")
    assert {name: now[name] for name in kept} == kept  # untouched
    seconds = content["seconds"]
    assert before["seconds"]["setup"] < seconds["setup"] < seconds["total"]
    assert seconds["total"] - seconds["setup"] >= content["training_seconds"]["run"] / content["concurrency"]


@pytest.mark.slow
def test_a_trial_equals_the_run_of_train_with_its_values(storage: Path, slow_folder: Path, undisturbed: Path) -> None:
    words = ["digits.cnn", "--workers", "0", "--cpus-per-worker", "1", *Slow(slow_folder).flags]
    words += ["--micro-batch-size", "64", "--epochs", str(EPOCHS), "--lr", "0.05", "--batch-size", "64"]
    words += ["--run", "alone", "--storage", str(storage)]
    subprocess.run([sys.executable, "-m", "trainers", "train", *words], cwd=ROOT, check=True, capture_output=True)
    alone = [(line["train/loss"], line["val/accuracy"]) for line in read(storage / "alone" / "metrics.jsonl")]
    assert table(undisturbed)["002-lr=0.05-batch_size=64"] == alone


@pytest.mark.slow
def test_the_same_command_again_does_nothing_and_another_plan_is_refused(
    storage: Path, grid: list[str], undisturbed: Path
) -> None:
    before = (undisturbed / "sweep.json").read_text()
    _, err = sweep(storage, *grid, "--run", "undisturbed")
    assert "finished already" in err
    process = start(storage, *QUICK, "--space", "lr=0.01,0.02", "--run", "undisturbed")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "exists with another plan" in err
    assert (undisturbed / "sweep.json").read_text() == before


@pytest.mark.slow
def test_no_trial_is_lost_to_failures_of_its_process(storage: Path, tmp_path: Path) -> None:
    """Out of memory, a loss that is NaN, a process that is killed: each is recorded or repaired, others continue."""
    (tmp_path / "mine.py").write_text(MINE)
    words = ["./mine.py:space", "--run", "trouble", "--scheduler", "none", "--max-concurrent", "1"]
    content, err = sweep(storage, *words, cwd=tmp_path)
    keys = ("model_args.num_filters", "lr", "batch_size")
    trials = {tuple(trial["values"][key] for key in keys): trial for trial in content["trials"]}
    for filters in (8, 16):
        assert trials[filters, 0.05, 20]["status"] == "finished"
        assert trials[filters, 1e20, 20]["status"] == "failed"
        assert "nan" in trials[filters, 1e20, 20]["message"]
        large = [trials[filters, lr, size] for lr in (0.05, 1e20) for size in (64, 128)]
        assert sorted(trial["status"] for trial in large) == ["out_of_memory"] + ["settled"] * 3
    assert all("SIGKILL" in trial["message"] for trial in large if trial["status"] == "out_of_memory")
    assert (tmp_path / "DIED").exists()
    assert runs(storage / "trouble")[trials[8, 0.05, 20]["name"]]["attempt"] == 2
    resolved = [trial for trial in content["trials"] if trial["status"] == "settled"]
    assert all("ran out of memory and needs no more" in trial["message"] for trial in resolved)
    untried = [trial["name"] for trial in resolved if trial["values"]["model_args.num_filters"] == 8]
    assert not any((storage / "trouble" / name).exists() for name in untried)
    assert "settled: " in err
    assert "Traceback" not in err


WATCHED = """
import json, sys
import psutil
from trainers.recipe import Scale
from tune_spaces.run import run
from tune_spaces import ray_tune
from tune_spaces.sweep import Sweep

seen = []

def is_actor(process):
    try:
        title = process.cmdline()[:1]
    except psutil.Error:
        return False
    return bool(title) and title[0].startswith("ray::") and "IDLE" not in title[0]

class Watching(ray_tune.Listener):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        super().on_trial_result(iteration, trials, trial, result, **info)
        if "status" in result:
            from ray.util import placement_group_table
            groups = sum(group["state"] != "REMOVED" for group in placement_group_table().values())
            actors = sum(map(is_actor, psutil.Process().children(recursive=True)))
            facts = {key: result[key] for key in ("open_files", "threads", "pid")}
            seen.append({"groups": groups, "actors": actors, **facts})

ray_tune.Listener = Watching
space = {"lr": [1e-5, 1e-4, 0.05], "batch_size": list(range(60, 132, 6))}
sweep = Sweep(recipe="digits.cnn", space=space, changes={"epochs": 8}, scale=Scale(storage=sys.argv[1]))
run(sweep, name="asha", repeats=2)
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_asha_stops_many_trials_saves_what_it_says_and_leaves_nothing_behind(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(tmp_path / "watched.py"), str(storage)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    folder = storage / "asha"
    content = json.loads((folder / "sweep.json").read_text())
    assert content["status"] == "finished"
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == len(content["trials"])
    assert_nothing_is_left_behind(seen[:36])

    first = [trial for trial in content["trials"] if not trial["repeat_of"]]
    assert len(first) == 36
    assert {trial["status"] for trial in first} == {"finished", "stopped_early"}
    assert sum(trial["status"] == "stopped_early" for trial in first) >= 20
    lines = {path.parent.name: read(path) for path in folder.glob("*/metrics.jsonl")}
    assert content["epochs"]["run"] + content["epochs"]["repeats"] == sum(map(len, lines.values()))
    assert content["epochs"]["run"] == sum(len(lines[trial["name"]]) for trial in first)
    assert content["epochs"]["run"] + content["epochs"]["saved"] == content["epochs"]["planned"] == 36 * 8
    seconds = content["training_seconds"]
    assert seconds["run"] + seconds["repeats"] == pytest.approx(
        sum(line["seconds"] for each in lines.values() for line in each)
    )
    assert content["epochs"] == savings(content["trials"], lines)["epochs"]
    assert content["epochs"]["saved"] > 60
    winner = next(trial for trial in content["trials"] if trial["name"] == content["winner"])
    assert winner["values"]["lr"] == 0.05
    assert {"confusion.png", "curves.png"} <= {path.name for path in (folder / winner["name"]).iterdir()}
    kept = {path.parent.name for path in folder.glob("*/checkpoints")}
    assert len(kept) == 3
    assert winner["name"] in kept
    assert all(list((folder / name / "tensorboard").iterdir()) for name in lines)
    stopped = runs(folder)[next(trial["name"] for trial in first if trial["status"] == "stopped_early")]
    assert re.match(r"stopped by asha after epoch \d+, at accuracy", stopped["message"])
    page, rows = (folder / "report.html").read_text(), (folder / "trials.csv").read_text().splitlines()
    assert all(name in page for name in lines)
    assert len(rows) == 1 + len(content["trials"])
    repeated = [trial for trial in content["trials"] if trial["repeat_of"]]
    assert {trial["seed"] for trial in repeated} <= {0, 1}
    assert all(trial["status"] == "finished" for trial in repeated)
    assert "2 seeds" in done.stderr


def assert_nothing_is_left_behind(seen: list[dict[str, Any]]) -> None:
    """`seen` is what there was of each kind when each trial ended."""
    early, late = seen[6:16], seen[-6:]
    for what in ("groups", "actors"):
        assert max(each[what] for each in late) <= max(each[what] for each in early), what
    for what in ("open_files", "threads"):
        for pid in {each["pid"] for each in late}:
            before = [each[what] for each in early if each["pid"] == pid]
            now = [each[what] for each in late if each["pid"] == pid]
            assert before
            assert max(now) <= max(before), what


@pytest.mark.slow
def test_workers_that_can_never_be_placed_are_refused(storage: Path) -> None:
    process = start(storage, *QUICK, "--space", "lr=0.01,0.1", "--workers", "2", "--cpus-per-worker", "99")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, err
    assert "workers=2 with 99 CPU each do not fit: the cluster has 1 hosts" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--search tpe --scheduler median --trials 6 --space lr=log:1e-4:1e-1 image_size=8,16",
        "--search random --scheduler pbt --trials 4 --grace-epochs 2 --space lr=log:1e-5:1",
    ],
    ids=["tpe and median", "random and pbt"],
)
def test_each_search_and_scheduler_of_tune_finishes_its_trials(storage: Path, words: str) -> None:
    name, many = words.split()[1], int(words.split()[5])
    content, _ = sweep(storage, *QUICK, "--epochs", "6", *words.split(), "--run", name)
    assert content["status"] == "finished"
    assert len(content["trials"]) == many
    assert {trial["status"] for trial in content["trials"]} <= {"finished", "stopped_early"}
    rates = [trial["values"]["lr"] for trial in content["trials"]]
    assert len(set(rates)) == len(rates)
    if "pbt" in words:  # a weak trial took over the weights and the changed rate of a strong one
        lines = [read(path) for path in (storage / name).glob("*/metrics.jsonl")]
        assert all(len(each) == 6 for each in lines)
        now = [run["recipe"]["lr"] for run in runs(storage / name).values()]
        assert set(now) != set(rates)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["micro_batch", "record"])
def test_cells_that_cannot_fit_are_run_in_micro_batches_or_recorded(storage: Path, policy: str) -> None:
    words = ["unet.drone", "--dataset", "shapes", "--dataset-args", "train=16", "val=4", "test=0", "--epochs", "1"]
    words += ["--model-args", "base_channels=4", "--scheduler", "none", "--max-concurrent", "2"]
    words += ["--space", "lr=0.001", "batch_size=4,8,16", "image_size=32,96"]
    content, err = sweep(storage, *words, "--memory", "20MiB", "--on-oom", policy, "--run", policy)
    assert content["memory_limit_bytes"] == 20 * 2**20
    too_big = [trial for trial in content["trials"] if trial["memory_bytes"] > 20 * 2**20]
    assert len(content["trials"]) == 6
    assert 2 <= len(too_big) <= 3
    for trial in content["trials"]:
        if trial not in too_big:
            assert (trial["status"], trial["micro_batch_size"]) == ("finished", None)
        elif policy == "record":
            assert trial["status"] == "does_not_fit"
            assert re.match(r"does not fit: needs \d+ MiB of 20 MiB; micro-batches of \d+ would fit", trial["message"])
            assert not (storage / policy / trial["name"]).exists()
        else:
            assert trial["status"] == "finished"
            assert trial["micro_batch_size"] < trial["values"]["batch_size"]
            assert f"runs in micro-batches of {trial['micro_batch_size']}: needs" in trial["note"]
            assert "BatchNorm" in trial["note"]
    assert ("does not fit" if policy == "record" else "micro-batches") in err
