"""On a real Ray: the same results, nothing lost when a process dies. One cluster for all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest
import torch
from helpers.ranks import watched_work
from helpers.small import DIGITS_STEPS, Slow, job, last_weights, small_data, small_recipe
from PIL import Image

from trainers.data.batches import Cached
from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SECONDS = 900


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def processes_of(home: Path | str) -> list[psutil.Process]:
    """Those that were started in this home: a cluster's, and its drivers."""
    found = psutil.process_iter(["environ"])
    return [process for process in found if (process.info["environ"] or {}).get("HOME") == str(home)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[dict[str, str]]:
    """The environment of commands that use a cluster with 3 CPUs, token authentication on, bound to loopback."""
    port, dashboard = free_port(), free_port()
    # Its own home: `ray start` writes a token there. PYTHONPATH: the project need not be installed.
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # `python` of jobs
    environment.pop("RAY_ADDRESS", None)
    environment["RAY_metrics_report_interval_ms"] = "1000"  # Ray's 10 s are long for a test
    ray = str(Path(sys.executable).parent / "ray")
    start = [ray, "start", "--head", "--num-cpus=3", f"--port={port}", f"--dashboard-port={dashboard}"]
    start += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", f"--temp-dir=/tmp/ty{os.getpid()}"]
    start += ['--resources={"fast_disk": 1}']
    token = [ray, "get-auth-token", "--generate"]
    subprocess.run(token, env=environment, check=True, capture_output=True, timeout=SECONDS)
    subprocess.run(start, env=environment, check=True, capture_output=True, timeout=SECONDS)
    yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}", "DASHBOARD": f"http://127.0.0.1:{dashboard}"}
    for process in processes_of(home):  # `ray stop` would end every Ray of this machine
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended with its parent
            process.kill()
    subprocess.run(["rm", "-rf", f"/tmp/ty{os.getpid()}"])


def start_training(
    cluster: dict[str, str],
    storage: Path,
    run: str,
    *flags: str,
    recipe: str = "digits.cnn",
    stderr: IO[str] | int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainers", "train", recipe, "--run", run, "--storage", str(storage), *flags]
    return subprocess.Popen(command, env=cluster, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=stderr)


def train(cluster: dict[str, str], storage: Path, run: str, *flags: str, recipe: str = "digits.cnn") -> dict[str, Any]:
    """Train to the end; returns run.json."""
    process = start_training(cluster, storage, run, *flags, recipe=recipe)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(storage / run)
    return json.loads((storage / run / "run.json").read_text())  # type: ignore[no-any-return]


def wait_for_the_middle_of_an_epoch(storage: Path, run: str, after: int = 0) -> int:
    """Until a checkpoint within an epoch, of a later step than `after`, lies there; returns its step."""
    checkpoints = Checkpoints(Store(storage / run))
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        step = checkpoints.latest_step()
        if step > after and step % DIGITS_STEPS:
            return step
        time.sleep(0.02)
    raise AssertionError("no checkpoint within an epoch was written")


def losses(storage: Path, run: str) -> list[float]:
    lines = [json.loads(line) for line in (storage / run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("train/loss", "val/loss")]


@pytest.mark.slow
def test_two_workers_learn_the_same_as_no_worker(cluster: dict[str, str], storage: Path) -> None:
    flags = ["--precision", "fp64", "--micro-batch-size", "32", "--epochs", "2", "--image-size", "12"]
    none = train(cluster, storage, "none", "--workers", "0", *flags)
    two = train(cluster, storage, "two", "--workers", "2", *flags)
    assert losses(storage, "two") == pytest.approx(losses(storage, "none"), rel=1e-8)
    assert two["final"]["accuracy"] == none["final"]["accuracy"]
    assert two["status"] == "finished"
    assert two["machine"]["nodes"] == none["machine"]["nodes"]
    names = {"run.json", "metrics.jsonl", "tensorboard", "checkpoints", "curves.png", "confusion.png"}
    assert {path.name for path in (storage / "two").iterdir()} == names
    assert sorted(path.name for path in storage.iterdir()) == ["cache", "none", "two"]


OWN_TASK = """
import os
import signal
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from trainers.tasks.base import Counts

TARGET = "labels"
SIGN = Path(__file__).with_name("kill")
calls = 0


def outputs(classes):
    return classes


def make(classes, class_weights=None, *, margin: float = 1.0):
    return Margin(classes, margin)


class Margin:
    metric, errors, shown, every_probability = "accuracy", (), 0, False

    def __init__(self, classes, margin):
        self.classes, self.margin = classes, margin

    def weight(self, target):
        return None

    def loss(self, output, target):
        global calls
        calls += 1
        if calls == 150:
            try:
                SIGN.unlink()
            except FileNotFoundError:  # the other worker was first, or this is after the restart
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return functional.multi_margin_loss(output, target, margin=self.margin, reduction="sum")[None]

    def labels(self, output, size):
        return output.argmax(1)

    def probabilities(self, output):
        return output.softmax(1)

    def counts(self, output, target):
        cell = target * self.classes + output.argmax(1)
        return Counts({"confusion": torch.bincount(cell, minlength=self.classes**2).view(self.classes, -1)}, {})

    def ranking(self, counts):
        return None

    def scores(self, counts):
        return {"accuracy": float(np.trace(counts["confusion"]) / counts["confusion"].sum())}
"""


@pytest.mark.slow
def test_a_task_in_a_file_trains_resumes_evaluates_predicts_and_reports(
    cluster: dict[str, str], storage: Path, tmp_path: Path
) -> None:
    """A worker is killed in a step: it continues from a checkpoint, and ends with the weights of an undisturbed run."""
    (tmp_path / "mine.py").write_text(OWN_TASK)
    (tmp_path / "kill").touch()
    image = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "one.png")
    flags = ["--task", str(tmp_path / "mine.py"), "--task-args", "margin=0.5", "--workers", "2"]
    flags += ["--precision", "fp64", "--micro-batch-size", "16", "--epochs", "4", "--checkpoint-seconds", "0.2"]
    killed, quiet = "own", "quiet"
    process = start_training(cluster, storage, killed, *flags)
    _, err = process.communicate(timeout=SECONDS)
    assert not (tmp_path / "kill").exists(), err
    assert process.returncode == 0, err
    assert "going on from step" in err
    run = train(cluster, storage, quiet, *flags)
    weights, expected = last_weights(storage / killed), last_weights(storage / quiet)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert run["best"]["metric"] == "accuracy"
    assert (run["dataset"]["target"], run["dataset"]["masks"]) == ("labels", False)

    def command(*words: str) -> str:
        argv = [sys.executable, "-m", "trainers", *words, "--storage", str(storage)]
        done = subprocess.run(argv, env=cluster, cwd=ROOT, text=True, capture_output=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout

    scores = json.loads(command("evaluate", killed, "--split", "val", "--json"))
    assert scores["accuracy"] == pytest.approx(run["final"]["accuracy"])
    out = tmp_path / "out"
    command("predict", killed, str(tmp_path / "one.png"), "--out", str(out), "--workers", "2")
    header, row = (out / "predictions.csv").read_text().splitlines()
    assert header == "path,class,probability"
    assert re.fullmatch(r".*one\.png,\d,[01]\.\d{4}", row)
    assert killed in command("report", "--format", "csv")


def workers_of(cluster: dict[str, str]) -> list[int]:
    """Process ids of the workers that train on this cluster."""
    return [each.pid for each in processes_of(cluster["HOME"]) if each.name().startswith("ray::RayTrainWo")]


@pytest.mark.slow
def test_a_run_with_repeated_failures_loses_nothing(
    cluster: dict[str, str], storage: Path, slow: Slow, tmp_path: Path
) -> None:
    """A worker hangs, and is named; a worker is killed; SIGTERM; the driver is killed: the same command continues."""
    flags = [*slow.flags, "--checkpoint-seconds", "0.2", "--epochs", "5", "--workers", "2"]
    said = tmp_path / "said"
    with said.open("w") as stderr:
        impatient = {**cluster, "TRAINYARD_STALL_SECONDS": "3"}
        process = start_training(impatient, storage, "troubled", *flags, stderr=stderr)
    step = wait_for_the_middle_of_an_epoch(storage, "troubled")
    hanging = workers_of(cluster)[0]
    os.kill(hanging, signal.SIGSTOP)
    where = metrics_address(cluster)
    limit = time.monotonic() + SECONDS
    while "warning: no step for" not in said.read_text() and time.monotonic() < limit:
        time.sleep(0.1)
    os.kill(hanging, signal.SIGCONT)
    wait_for_the_middle_of_an_epoch(storage, "troubled", after=max(step, DIGITS_STEPS))
    missing = {name for name in wanted_metrics() if "_gpus_" not in name and "_gram_" not in name}
    while missing and process.poll() is None:
        missing -= metrics(where)
    killed = workers_of(cluster)
    assert len(killed) == 2
    os.kill(killed[0], signal.SIGKILL)
    while set(workers_of(cluster)) & set(killed) and process.poll() is None:
        time.sleep(0.05)
    kept = Checkpoints(Store(storage / "troubled")).latest_step()  # now that nobody writes any more
    wait_for_the_middle_of_an_epoch(storage, "troubled", after=kept)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
    err = said.read_text()
    assert process.returncode == 130, err
    assert not missing
    who = rf"rank \d on {re.escape(socket.gethostname())} \({re.escape(where.partition(':')[0])}\), not heard of for"
    assert re.search(
        rf"warning: no step for \d+ s: rank \d waits in (step \d+|the evaluation) of epoch \d for {who} \d+ s", err
    )
    assert re.search(r"goes on after \d+ s", err)
    assert "going on from step" in err
    assert "repeat the command with --run troubled" in err
    assert "Traceback" not in err
    assert "SIGTERM received" not in err
    assert json.loads((storage / "troubled" / "run.json").read_text())["status"] == "interrupted"

    process = start_training(cluster, storage, "troubled", *flags)
    wait_for_the_middle_of_an_epoch(storage, "troubled", after=Checkpoints(Store(storage / "troubled")).latest_step())
    process.kill()
    process.communicate()
    assert json.loads((storage / "troubled" / "run.json").read_text())["status"] == "running"
    slow.hurry()
    run = train(cluster, storage, "troubled", *flags)
    assert (run["status"], run["attempt"]) == ("finished", 3)

    train(cluster, storage, "undisturbed", *flags, "--workers", "0")
    weights, expected = last_weights(storage / "troubled"), last_weights(storage / "undisturbed")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():  # up to rounding, which the number of workers changes
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-8)


def metrics_address(cluster: dict[str, str]) -> str:
    """Where Prometheus reads this node."""
    environment = {**cluster, "RAY_AUTH_MODE": "token"}
    return subprocess.check_output([sys.executable, "-c", _METRICS], env=environment, text=True).strip()


def metrics(where: str) -> set[str]:
    """Those that are exported, of the run or of the node."""
    with urllib.request.urlopen(f"http://{where}/metrics", timeout=SECONDS) as answer:
        text = answer.read().decode()
    return set(re.findall(r"^ray_\w+(?=.*[{,](?:run=.troubled|ip=))", text, re.MULTILINE))


def wanted_metrics() -> set[str]:
    """Those that the dashboard shows."""
    queries = re.findall('"expr": (.*)', (ROOT / "cluster/grafana.json").read_text())
    return set(re.findall(r"ray_\w+", " ".join(queries)))


_METRICS = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
node = ray.nodes()[0]
print(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}")
"""


@pytest.mark.slow
def test_more_workers_than_the_cluster_holds_are_refused(cluster: dict[str, str], storage: Path) -> None:
    process = start_training(cluster, storage, "crowd", "--workers", "8")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "1 hosts (3 CPUs, 0 GPUs, 1 fast_disk)" in err
    assert "Traceback" not in err
    assert not (storage / "crowd").exists()


_HOLDER = """
import ray, time
ray.init(log_to_driver=False, logging_level="ERROR")
class Holder:
    def ping(self):
        return True
holder = ray.remote(num_cpus=2)(Holder).remote()
ray.get(holder.ping.remote())
print("holding", flush=True)
time.sleep(300)
"""


@pytest.mark.slow
def test_what_waits_says_for_whom_and_stops_at_once(cluster: dict[str, str], storage: Path) -> None:
    environment = {**cluster, "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-c", _HOLDER]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        for process in (
            start_training(cluster, storage, "waiting", "--workers", "1", "--cpus-per-worker", "2"),
            start_sweep(cluster, storage, "waiting-too", "0.01,0.02", "--cpus-per-worker", "2"),
        ):
            with process:
                assert process.stderr is not None
                line = next((line for line in process.stderr if "the workers wait" in line), "")
                process.send_signal(signal.SIGINT)
                begun = time.monotonic()
                err = process.stderr.read()
                assert process.wait(SECONDS) == 130, err
                assert time.monotonic() - begun < 60  # and not as long as the holder stays
            assert "1 of 3 CPU are free, and 1 x 2 needed" in line
            assert re.search(r"python -c .*holds 2 CPU", line)
            assert "--cpus-per-worker asks for less" in line
        holder.kill()
    assert json.loads((storage / "waiting/run.json").read_text())["status"] == "interrupted"
    assert json.loads((storage / "waiting-too/sweep.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_masks_give_the_same_losses_and_scores_streamed_to_workers(
    cluster: dict[str, str], storage: Path, tmp_path: Path
) -> None:
    raw = str(small_data("unet.camvid", tmp_path / "raw"))
    flags = ["--data", raw, "--precision", "fp64", "--batch-size", "4", "--micro-batch-size", "2", "--epochs", "2"]
    flags += ["--image-size", "33x24", "--model-args", "base_channels=4", "depth=2", "--lr", "1e-4"]
    for run, how in {"alone": ["0"], "together": ["2", "--cpus-per-worker", "1", "--data-mode", "stream"]}.items():
        train(cluster, storage, run, *flags, "--workers", *how, recipe="unet.camvid")
    one = [json.loads(line) for line in (storage / "alone/metrics.jsonl").read_text().splitlines()]
    assert len(one) == 2
    other = [json.loads(line) for line in (storage / "together/metrics.jsonl").read_text().splitlines()]
    for mine, theirs in zip(one, other, strict=True):
        for name in mine:
            if name.startswith("val/") or name == "train/loss":
                assert theirs[name] == pytest.approx(mine[name], rel=1e-8), name
    pictures = str(tmp_path / "raw/test")
    for workers in ("0", "2"):
        command = [sys.executable, "-m", "trainers", "predict", str(storage / "alone"), pictures, "--workers", workers]
        command += ["--out", str(tmp_path / workers)]
        done = subprocess.run(command, env=cluster, text=True, capture_output=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
    found = sorted(path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*") if path.is_file())
    assert len(found) == 3 + 3 * 3  # the table, where it is from, the legend, three of each picture
    for path in found:
        assert (tmp_path / "0" / path).read_bytes() == (tmp_path / "2" / path).read_bytes(), path


@pytest.mark.slow
def test_streaming_needs_a_cpu_of_its_own(cluster: dict[str, str], storage: Path) -> None:
    process = start_training(
        cluster, storage, "starved", "--workers", "3", "--data-mode", "stream", "--micro-batch-size", "32"
    )
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "leaves no CPU to decode" in err


def start_sweep(cluster: dict[str, str], storage: Path, name: str, rates: str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tune_spaces", "--recipe", "digits.cnn", "--epochs", "2", "--run", name]
    command += ["--storage", str(storage), "--space", f"lr={rates}", "--scheduler", "none", *flags]
    return subprocess.Popen(command, env=cluster, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def trials_of(storage: Path, name: str) -> list[str]:
    return [trial["status"] for trial in json.loads((storage / name / "sweep.json").read_text())["trials"]]


@pytest.mark.slow
def test_two_sweeps_and_a_training_share_a_cluster(cluster: dict[str, str], storage: Path) -> None:
    """Trials of one worker, of two that stream, workers and the tasks that read for them want the same 3 CPUs."""
    pairs = ["--workers", "2", "--cpus-per-worker", "1", "--data-mode", "stream"]
    sweeps = [
        start_sweep(cluster, storage, "many", "0.01,0.02", "--cpus-per-worker", "1"),
        start_sweep(cluster, storage, "pairs", "0.01,0.05", *pairs),
    ]
    where = ["--resources", "fast_disk=0.5", "--placement", "spread", "--cpus-per-worker", "1"]
    training = start_training(cluster, storage, "beside", "--workers", "2", *where, "--epochs", "2")
    for process in (*sweeps, training):
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
    assert trials_of(storage, "many") == ["finished"] * 2
    assert trials_of(storage, "pairs") == ["finished"] * 2


@pytest.mark.slow
def test_ray_data_prepares_and_predicts_as_this_process_does(cluster: dict[str, str], tmp_path: Path) -> None:
    raw = small_data("resnet.r18", tmp_path / "raw")
    assert raw is not None
    recipe = small_recipe("resnet.r18", image_size=(16, 16), stored_size=(16, 16), model="linear_cnn", precision="fp32")
    recipe = dataclasses.replace(recipe, augment={})
    here = job(recipe, raw, tmp_path / "here", "run")
    watched_work(here)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE, str(tmp_path), raw],
        env={**cluster, "TRAINYARD_STORAGE": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    there = Cached(done.stdout.splitlines()[-1])
    assert there.meta["fingerprint"] == here["data"]["meta"]["fingerprint"]
    assert there.meta["mean"] == here["data"]["meta"]["mean"]

    (tmp_path / "here" / "run" / "run.json").write_text(
        json.dumps({**here, "name": "run", "dataset": here["data"]["meta"], "status": "finished"})
    )
    for workers, out in (("0", "alone"), ("2", "together")):
        command = [sys.executable, "-m", "trainers", "predict", str(tmp_path / "here" / "run"), raw]
        command += ["--out", str(tmp_path / out), "--workers", workers]
        done = subprocess.run(command, env=cluster, text=True, capture_output=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
    alone, together = ((tmp_path / out / "predictions.csv").read_text() for out in ("alone", "together"))
    assert alone == together
    assert len(alone.splitlines()) == 1 + 11 + 12 + 13


_PREPARE = """
import json, sys
from pathlib import Path
from trainers.data import prepare
from trainers import fitting
from trainers.recipe import Recipe, Scale
prepare.INLINE_BYTES = 0  # as if the pictures were many
recipe = Recipe.from_json(json.loads(Path(sys.argv[1], "recipe.json").read_text()))
print(fitting.prepare(recipe, Scale(workers=1, data=sys.argv[2])))
"""
