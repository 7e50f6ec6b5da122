"""A sweep of 12 trials x 6 epochs, start-up included: ours against three others; and what a trial costs by itself.

    python tests/benchmarks/sweeps.py [--quick] [--repeats N] [--threads N] [--only sweep|trials] [--naive 0|1]

sweep: tune_spaces mnist.quick (learning rate x batch size, 10,000 drawn digits of 28x28). Each competitor is a process
of its own, on pictures prepared beforehand, with the same loop, model and schedule; wall time from start to end.

    trainyard     python -m tune_spaces mnist.quick: ASHA, run folders, report and all
    nested loop   for lr: for batch_size: train to the end; one process, all threads
    optuna        the same loop driven by Optuna in one process, its successive halving pruner, all threads
    naive ray     a Tuner over a function that starts a TorchTrainer for each trial, with the resources of its defaults:
                  one CPU for the function, one for its worker, so that two CPUs hold one trial (--naive 1; minutes)
    tuned ray     the same with ASHA, two trials at once, and functions that hold no CPU

Wanted: 0.6 of the nested loop's time, 0.25 of naive Ray's. All must train 12 trials, the nested loop all
their epochs, and learn.

trials: what 100 and 1,000 trials cost that train nothing: our trials in reused actors, and Tune's function trainable
with and without reuse of actors (the last with 10 trials). Wanted: under 1 s for each further trial.

--quick: 2 epochs of 500 pictures; tuned Ray with 1 of the 12 settings and naive Ray not at all; 5 trials that train
nothing, of ours and in reused actors, both on the same Ray.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _common

from trainers.limits import cpus
from trainers.messages import Event

SPACE: dict[str, list[float]] = {"lr": [0.003, 0.01, 0.03, 0.1], "batch_size": [32, 64, 128]}
FEW: dict[str, list[float]] = {"lr": [0.03], "batch_size": [32]}
ROWS = 10_000
CHANCE = 0.1
"""Accuracy of a guess, of ten classes."""


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--as":
        for name in sys.argv[2].split(" + "):
            COMPETITORS[name](*sys.argv[3:])
        return
    given = _common.flags(__doc__, repeats=1, numbers={"naive": (1, "whether naive Ray takes part")})
    _common.print_machine()
    with _common.temporary_storage():
        if given.only in "sweep":
            _sweep(given)
        if given.only in "trials":
            _trials(given)


def _sweep(given: Any) -> None:
    epochs, rows = (2, 500) if given.quick else (6, ROWS)
    folder = _prepare(rows, epochs)
    found: dict[str, dict[str, Any]] = {}

    def run(name: str) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            words = [sys.executable, __file__, "--as", name, folder, str(epochs), str(given.threads), str(rows)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            found[name] = json.loads(done.stdout.splitlines()[-1])
            return time.perf_counter() - start

        return once

    ray = ["tuned ray"] if given.quick else ["tuned ray", "naive ray"] if given.naive else []
    rounds = _common.take_turns(
        {name: run(name) for name in ("trainyard", "nested loop", "optuna", *ray)}, given.repeats
    )
    wanted = {"nested loop": "<= 0.6", "optuna": "", "tuned ray": "", "naive ray": "<= 0.25"}
    bars = {("trainyard", peer): wanted[peer] for peer in rounds if peer != "trainyard"}
    _common.compare(f"12 trials x {epochs} epochs, {rows:,} pictures", "seconds", rounds, bars)
    rows_ = [[name, str(each["epochs"]), f"{each['best']:.4f}"] for name, each in found.items()]
    _common.show("", ["", "epochs run", "best accuracy"], rows_)
    for name, each in found.items():
        trials = _trial_count(FEW if given.quick and name in ray else SPACE)
        fewest = trials * (epochs if name in ("nested loop", "naive ray") else 1)
        assert fewest <= each["epochs"] <= trials * epochs, f"{name}: {each['epochs']} epochs of {trials} trials"
        assert each["best"] > 2 * CHANCE, f"{name}: nothing was learnt: accuracy {each['best']}"
    ours = found["trainyard"]
    print(
        f"trainyard: {ours['setup']:.1f} s before the first trial, {ours['trial_setup']:.2f} s (median) in each trial"
    )


def _trial_count(space: Mapping[str, Sequence[float]]) -> int:
    return math.prod(len(values) for values in space.values())


def _trials(given: Any) -> None:
    rows = []
    plan = [("tune, reuse + ours", 5)] if given.quick else [("ours", 100), ("ours", 1000)]
    plan += [] if given.quick else [("tune, reuse", 100), ("tune, reuse", 1000), ("tune, new actors", 10)]
    for names, many in plan:
        words = [sys.executable, __file__, "--as", names, str(many)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=3000)
        if done.returncode:
            raise SystemExit(f"{names}: {done.stderr[-2000:]}")
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]  # Tune writes others
        for name, line in zip(names.split(" + "), lines, strict=True):
            seconds = json.loads(line)["seconds"]
            rows.append([name, f"{many:,}", f"{seconds:.1f}", f"{1000 * seconds / many:.0f}"])
    _common.show("trials that train nothing, Ray running", ["", "trials", "seconds", "ms a trial"], rows)


def _prepare(rows: int, epochs: int) -> str:
    """Decode the pictures once, for all; returns the folder of the shards."""
    from trainers.fitting import prepare
    from trainers.recipe import Scale

    return prepare(_recipe(rows, epochs), Scale(workers=0))


def _recipe(rows: int, epochs: int, **changes: Any) -> Any:
    from tune_spaces.spaces import mnist

    args = {} if rows == ROWS else {"train": rows, "val": rows}
    return mnist.quick().base.replace(epochs=epochs, precision="fp32", dataset_args=args, **changes)


# Competitors: each in a process of its own ---------------------------------------------------------------------


def _train(
    folder: str, rows: int, epochs: int, values: Mapping[str, Any], report: Callable[[int, float], bool]
) -> tuple[float, int]:
    """The loop alone, without files. `report` gets each epoch's accuracy and says whether to stop."""
    import torch

    from trainers.data.batches import Cached
    from trainers.training import build, distributed, loop
    from trainers.training.step import Reporter

    recipe = _recipe(rows, epochs, **values)
    recipe = recipe.replace(micro_batch_size=recipe.batch_size)
    source = Cached(folder)
    world = distributed.World(0, 1, torch.device("cpu"), "fp32")
    state = build.create_state(recipe, source.meta, world)
    stop = False

    def take(event: Event) -> None:
        nonlocal stop
        if event["kind"] == "epoch":
            stop = report(int(event["line"]["epoch"]), event["line"]["val/accuracy"])

    loop.train(recipe, state, source, world, reporter=Reporter(report=take, stopping=lambda: stop))
    return max(line["val/accuracy"] for line in state.history), state.epoch


def nested_loop(folder: str, epochs: str, threads: str, rows: str) -> None:
    import torch

    torch.set_num_threads(int(threads))
    found = [
        _train(folder, int(rows), int(epochs), {"lr": lr, "batch_size": size}, lambda epoch, score: False)
        for lr in SPACE["lr"]
        for size in SPACE["batch_size"]
    ]
    print(json.dumps({"epochs": sum(run for _, run in found), "best": max(score for score, _ in found)}))


def with_optuna(folder: str, epochs: str, threads: str, rows: str) -> None:
    import optuna
    import torch

    torch.set_num_threads(int(threads))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run = []

    def objective(trial: optuna.Trial) -> float:
        values = {name: trial.suggest_categorical(name, choices) for name, choices in SPACE.items()}

        def report(epoch: int, score: float) -> bool:
            trial.report(score, epoch)
            return trial.should_prune()

        best, many = _train(folder, int(rows), int(epochs), values, report)
        run.append(many)
        return best

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(SPACE, seed=0), pruner=pruner)
    study.optimize(objective, n_trials=12)
    print(json.dumps({"epochs": sum(run), "best": study.best_value}))


def trainyard(_: str, epochs: str, __: str, rows: str) -> None:
    from tune_spaces.__main__ import main

    storage = Path(os.environ["TRAINYARD_STORAGE"])
    few = [] if int(rows) == ROWS else ["--dataset-args", f"train={rows}", f"val={rows}"]
    code = main(["mnist.quick", "--epochs", epochs, "--run", f"sweep-{os.getpid()}", *few])
    if code:
        raise SystemExit(code)
    sweep = storage / f"sweep-{os.getpid()}"
    content = json.loads((sweep / "sweep.json").read_text())
    setups = [json.loads(path.read_text())["seconds"]["setup"] for path in sweep.glob("*/run.json")]
    best = next(trial["best"]["value"] for trial in content["trials"] if trial["name"] == content["winner"])
    result = {"epochs": content["epochs"]["run"], "best": best, "setup": content["seconds"]["setup"]}
    print(json.dumps({**result, "trial_setup": statistics.median(setups)}))


def naive_ray(folder: str, epochs: str, _: str, rows: str, tuned: bool = False) -> None:
    """As Ray's documentation shows it: a Train run for each trial, its metrics reported through a callback."""
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    import ray
    import ray.train.torch
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.schedulers import ASHAScheduler

    scratch = os.environ["TRAINYARD_STORAGE"] + "/naive"

    def train_worker(config: dict[str, Any]) -> None:
        sys.path.insert(0, config["root"])
        sys.path.insert(0, config["root"] + "/tests/benchmarks")
        import sweeps

        def report(epoch: int, score: float) -> bool:
            ray.train.report({"epoch": epoch, "accuracy": score})
            return False

        sweeps._train(folder, int(rows), int(epochs), config["values"], report)

    def trial(config: dict[str, Any]) -> None:
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={"values": config, "root": str(_common.ROOT)},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(
                name=f"train-{ray.tune.get_context().get_trial_id()}",
                storage_path=scratch,
                callbacks=[TuneReportCallback()],
            ),
        )
        trainer.fit()

    cores = cpus()
    ray.init(num_cpus=cores + 1 if tuned else cores, log_to_driver=False)
    halving = ASHAScheduler(time_attr="epoch", metric="accuracy", mode="max", max_t=int(epochs), reduction_factor=4)
    results = tune.Tuner(
        tune.with_resources(trial, {"cpu": 0.001 if tuned else 1}),
        param_space={name: tune.grid_search(values) for name, values in (SPACE if int(rows) == ROWS else FEW).items()},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=cores if tuned else max(1, cores // 2),
            scheduler=halving if tuned else None,
        ),
        run_config=tune.RunConfig(storage_path=scratch, name="naive", verbose=0),
    ).fit()
    frames = [result.metrics_dataframe for result in results]
    run = sum(len(frame) for frame in frames if frame is not None)
    best = max(frame["accuracy"].max() for frame in frames if frame is not None)
    print(json.dumps({"epochs": int(run), "best": float(best)}))


def our_trials(many: str) -> None:
    """Our trials, queue and sweep.json, with a training that is over at once."""
    from trainers.recipe import Scale
    from trainers.storage.store import Store
    from tune_spaces import ray_tune, sweep, trial
    from tune_spaces.clock import Clock
    from tune_spaces.sweep_state import SweepState

    class Idle(trial.Trial):
        def step(self) -> dict[str, Any]:
            return {"epoch": 1, "accuracy": 0.5, "status": "finished", "message": "", "done": True}

    storage = os.environ["TRAINYARD_STORAGE"]
    numbers = list(range(int(many)))
    space = sweep.Sweep(recipe="digits.cnn", space={"seed": numbers}, scale=Scale(storage=storage))
    cells = [sweep.cell(space, number, values) for number, values in enumerate(space.grid())]
    sweep_state = SweepState(
        Store(storage) / "idle", {"metric": "accuracy", "mode": "max", "plan": space.to_json()}, None
    )
    for cell in cells:
        sweep_state.add(cell)

    def run(cpus: int) -> float:
        start = time.perf_counter()
        name, coordinator = ray_tune.start_coordinator(1)
        queue = ray_tune.Queue(
            cells,
            lambda cell: {"name": cell.name, "scale": cell.scale.to_json(), "resources": {"CPU": 1.0}},
            cpus + 1,
            lambda: None,
            lambda trial_id, cell: None,
        )
        shared = {
            "coordinator": name,
            "sweep": "idle",
            "metric": "accuracy",
            "sign": 1,
            "cwd": os.getcwd(),
            "argv": sys.argv,
        }
        listener = ray_tune.Listener(sweep_state, "accuracy", coordinator, Clock(None), lambda name: None)
        ray_tune.Trial = Idle  # type: ignore[misc,assignment]
        scheduler = ray_tune.scheduler(space, "asha", 1, "accuracy", "max", coordinator)
        waiting = ray_tune.Waiting(threading.Event(), listener.started, {"CPU": 1.0}, print)
        ray_tune.tune_trials(queue, [], scheduler, listener, waiting, shared)
        ended = [each["status"] for each in sweep_state.trials]
        assert ended == ["finished"] * len(cells), f"trials ended as {ended}"
        return time.perf_counter() - start

    _with_ray(run)


def tune_trials(many: str, reuse: bool) -> None:
    from ray import tune

    def run(_: int) -> float:
        start = time.perf_counter()
        scratch = os.environ["TRAINYARD_STORAGE"] + "/tune"
        results = tune.Tuner(
            tune.with_resources(lambda config: tune.report({"accuracy": 0.5}), {"cpu": 1}),
            param_space={"seed": tune.grid_search(list(range(int(many))))},
            tune_config=tune.TuneConfig(reuse_actors=reuse, metric="accuracy", mode="max"),
            run_config=tune.RunConfig(storage_path=scratch, verbose=0),
        ).fit()
        assert len(results) == int(many)
        assert not results.num_errors
        return time.perf_counter() - start

    _with_ray(run)


def _with_ray(run: Callable[[int], float]) -> None:
    import ray

    workers = max(2, cpus())
    ray.init(num_cpus=workers, log_to_driver=False, ignore_reinit_error=True)
    print(json.dumps({"seconds": run(workers)}))


COMPETITORS: dict[str, Callable[..., None]] = {
    "trainyard": trainyard,
    "nested loop": nested_loop,
    "optuna": with_optuna,
    "naive ray": naive_ray,
    "tuned ray": lambda *words: naive_ray(*words, tuned=True),
    "ours": our_trials,
    "tune, reuse": lambda many: tune_trials(many, True),
    "tune, new actors": lambda many: tune_trials(many, False),
}


if __name__ == "__main__":
    main()
