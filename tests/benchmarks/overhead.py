"""Training time of an image: ours against a loop written by hand over float tensors in memory.

    python tests/benchmarks/overhead.py [--quick] [--repeats N] [--threads N] [--only digits|mnist|ray]

Same linear CNN, batch 128, SGD with momentum 0.9, as many threads. By hand: float32 NCHW tensors, normalised
beforehand; torch.randperm each epoch, batches by index, CrossEntropyLoss, torch's default SGD.

    loop          worker.work in this process, with its checkpoints; no run folder
    workers=0     fit() in this process, with run folder and progress
    workers=1     fit() in one Ray Train worker; the peer then runs in a Ray Train worker too

Counted are epochs after the first, without start-up, evaluation and the writing of files: for ours
`images_per_second` of the history, as users see it. Both sides must have trained on as many images, and their
losses must fall. Wanted: at most 1.05 times the peer's time, 1.11 times on Ray.

--quick: 3 epochs, of 600 pictures in place of MNIST's 10,000; on Ray, digits alone.
"""

from __future__ import annotations

import io
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common
import numpy as np
import torch
from helpers import small
from torch import Tensor, nn

from trainers.data import sampler
from trainers.data.batches import Cached
from trainers.messages import Event, Job, Line
from trainers.models import linear_cnn
from trainers.recipe import Recipe, Scale, resolve
from trainers.runtime import worker

BATCH = 128
RAY_ENVIRONMENT = {"RAY_TRAIN_V2_ENABLED": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_DEDUP_LOGS": "0"}
"""As `--workers 1` sets it: it is read when Ray is imported, by both sides here."""


@dataclass(frozen=True)
class Case:
    """A recipe, its prepared data, and the same data as files for the peer."""

    name: str
    recipe: Recipe
    raw: str | None
    storage: Path
    threads: int

    @property
    def arrays(self) -> Path:
        return self.storage / f"{self.name}.npz"

    @property
    def image_size(self) -> tuple[int, int]:
        return self.recipe.image_size

    def job(self, run: str) -> Job:
        """What fit() would hand to a worker for a new run of this name; decodes what was not decoded yet."""
        job = small.job(self.recipe, self.raw, self.storage, run, workers=0)
        job["threads"] = self.threads
        return job

    def prepare(self) -> Cached:
        """Decode, and keep a copy of the training split for the peer."""
        folder = self.job(f"prepare-{self.name}")["data"]["folder"]
        assert folder is not None
        cached = Cached(folder)
        rows = cached.meta["rows"]["train"]
        whole = sampler.passes(sampler.in_order(rows), batch_size=rows, micro_batch_size=rows, rank=0, world_size=1)
        batch = next(cached.batches("train", whole))
        np.savez(self.arrays, images=batch.images, targets=batch.targets)
        return cached


# By hand ---------------------------------------------------------------------------------------------------


def by_hand(arrays: Path, epochs: int, threads: int, wrap: Callable[[nn.Module], nn.Module]) -> list[float]:
    """Microseconds an image, of each epoch."""
    torch.set_num_threads(threads)
    loaded = np.load(arrays)
    images = torch.from_numpy(loaded["images"]).permute(0, 3, 1, 2).float().div(255).contiguous()
    images = (images - images.mean()) / images.std()
    targets = torch.from_numpy(loaded["targets"])
    height, width = images.shape[2:]
    model = wrap(linear_cnn.build(image_size=(height, width), channels=1, classes=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    times, losses = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        losses.append(train_epoch(model, optimizer, criterion, images, targets))
        times.append(1e6 * (time.perf_counter() - start) / len(images))
    assert losses[-1] < losses[0], f"by hand: nothing was learnt: {losses}"
    return times


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module, images: Tensor, targets: Tensor
) -> float:
    """One epoch; returns the mean loss."""
    model.train()
    total = 0.0
    permutation = torch.randperm(len(images))
    for start in range(0, len(images), BATCH):
        indices = permutation[start : start + BATCH]
        x, y = images[indices], targets[indices]
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    return total / len(images)


def by_hand_on_ray(case: Case, epochs: int) -> float:
    """The same loop in a bare TorchTrainer with one worker."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    result = case.storage / "by_hand.json"

    def train_func(config: dict[str, Any]) -> None:
        import ray.train.torch

        wrap = ray.train.torch.prepare_model
        times = by_hand(Path(config["arrays"]), config["epochs"], config["threads"], wrap)
        Path(config["result"]).write_text(json.dumps(times))
        ray.train.report({"microseconds": times[-1]})

    config = {"arrays": str(case.arrays), "epochs": epochs, "threads": case.threads, "result": str(result)}
    TorchTrainer(
        train_func,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": case.threads}),
        run_config=RunConfig(storage_path=str(case.storage / "ray")),
    ).fit()
    return statistics.median(json.loads(result.read_text())[1:])


# Ours ------------------------------------------------------------------------------------------------------


def loop_alone(case: Case) -> float:
    """Microseconds an image, of worker.work in this process."""
    return _later(case, loop_history(case))


def loop_history(case: Case) -> list[Line]:
    """The lines of history of worker.work in this process."""
    lines: list[Line] = []

    def report(event: Event) -> None:
        if event["kind"] == "epoch":
            lines.append(event["line"])

    end = worker.work(case.job(f"loop-{time.time_ns()}"), 0, 1, 1, report, lambda: False)
    assert end["status"] == "finished", end["message"]
    return lines


def by_fit(case: Case, workers: int) -> float:
    """Microseconds an image, of fit() in this process or in workers of Ray Train."""
    from trainers.fitting import fit
    from trainers.progress import Progress

    scale = Scale(workers=workers, cpus_per_worker=case.threads, data=case.raw, storage=str(case.storage))
    silent = Progress(io.StringIO())
    result = fit(case.recipe, scale=scale, run=f"fit-{time.time_ns()}", progress=silent)
    assert result.status == "finished", result.run["message"]
    return _later(case, result.history)


def _later(case: Case, lines: Sequence[Mapping[str, float]]) -> float:
    rows = len(np.load(case.arrays)["targets"])
    seen = [round(line["images_per_second"] * line["seconds"]) for line in lines]
    assert seen == [rows] * case.recipe.epochs, f"{seen} images in the epochs, not {rows} in each"
    losses = [line["train/loss"] for line in lines]
    assert losses[-1] < losses[0], f"ours: nothing was learnt: {losses}"
    return statistics.median(1e6 / line["images_per_second"] for line in lines[1:])


def start_ray(threads: int) -> None:
    """One Ray for all, set up as ours does it."""
    os.environ.update(RAY_ENVIRONMENT)
    import ray

    ray.init(address="local", num_cpus=threads + 1, log_to_driver=False, logging_level=logging.ERROR)


def main() -> None:
    given = _common.flags(__doc__, repeats=7)
    with _common.temporary_storage() as storage:
        _common.print_machine()
        common = {"batch_size": BATCH, "micro_batch_size": BATCH, "precision": "fp32", "weight_decay": 0.0}
        mnist = resolve("mnist.cnn", epochs=3 if given.quick else 5, **common)
        digits = resolve("digits.cnn", epochs=3 if given.quick else 60, **common)
        raw = _common.draw_mnist(storage / "raw", 600 if given.quick else 10_000)
        cases = [
            Case("digits", digits, None, storage, given.threads),
            Case("mnist", mnist, raw, storage, given.threads),
        ]
        for case in cases:
            case.prepare()
            if given.only in case.name:
                here(case, given.repeats)
        if given.only in ("", "ray"):
            start_ray(given.threads)
            for case in cases[: 1 if given.quick else None]:
                on_ray_worker(case, given.repeats)


def here(case: Case, repeats: int) -> None:
    """The comparison in this process."""
    epochs = case.recipe.epochs
    peer = "by hand"

    def unchanged(model: nn.Module) -> nn.Module:
        return model

    rounds = _common.take_turns(
        {
            peer: lambda: statistics.median(by_hand(case.arrays, epochs, case.threads, unchanged)[1:]),
            "loop": lambda: loop_alone(case),
            "workers=0": lambda: by_fit(case, 0),
        },
        repeats,
    )
    bars = {("loop", peer): "<= 1.05", ("workers=0", peer): "<= 1.05"}
    _common.compare(f"{_title(case)}, in this process", "microseconds an image", rounds, bars)


def on_ray_worker(case: Case, repeats: int) -> None:
    """The comparison in one Ray Train worker."""
    peer = "by hand, Ray Train"
    runs = {peer: lambda: by_hand_on_ray(case, case.recipe.epochs), "workers=1": lambda: by_fit(case, 1)}
    rounds = _common.take_turns(runs, repeats)
    bars = {("workers=1", peer): "<= 1.11"}
    _common.compare(f"{_title(case)}, in one Ray Train worker", "microseconds an image", rounds, bars)


def _title(case: Case) -> str:
    height, width = case.image_size
    return f"{case.name} {height}x{width}, batch {BATCH}, {case.threads} threads"


if __name__ == "__main__":
    main()
