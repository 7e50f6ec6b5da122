"""Training speed, images/s: ours against a loop written by hand over float tensors in memory.

    python tests/benchmarks/overhead.py [--quick] [--repeats N] [--threads N] [--only digits|mnist|ray]

Same linear CNN, batch 128, SGD with momentum 0.9, as many threads. By hand: float32 NCHW tensors, normalised
beforehand; torch.randperm each epoch, batches by index, CrossEntropyLoss, torch's default SGD.

    loop          worker.work in this process, with its checkpoints; no run folder
    workers=0     fit() in this process, with run folder and progress
    workers=1     fit() in one Ray Train worker; the peer then runs in a Ray Train worker too

Counted are epochs after the first, without start-up, evaluation and the writing of files: for ours
`images_per_second` of the history, as users see it. Wanted: 0.95 of the peer's speed, 0.90 on Ray.
"""

from __future__ import annotations

import io
import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common
import numpy as np
import torch
from torch import Tensor, nn

from trainers.data import sampler
from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.source import scan_files
from trainers.models import linear_cnn
from trainers.recipe import Recipe, Scale, resolve
from trainers.runtime import worker

BATCH = 128


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

    def prepare(self) -> dict[str, Any]:
        """Decode, keep a copy of the training split for the peer, and return what fit() hands to workers."""
        source = scan_files(self.recipe, self.raw)
        folder = prepare(self.recipe, source, self.storage / "cache")
        cached = Cached(folder)
        rows = cached.meta["rows"]["train"]
        whole = sampler.passes(np.arange(rows), batch_size=rows, micro_batch_size=rows, rank=0, world_size=1)
        batch = next(cached.batches("train", whole))
        np.savez(self.arrays, images=batch.images, targets=batch.targets)
        return {
            "recipe": self.recipe.to_json(),
            "scale": Scale(workers=0).to_json(),
            "storage": str(self.storage),
            "attempt": 1,
            "data": {"mode": "cache", "folder": str(folder), "meta": dict(cached.meta)},
            "threads": self.threads,
        }


# By hand ---------------------------------------------------------------------------------------------------


def by_hand(arrays: Path, epochs: int, threads: int, wrap: Callable[[nn.Module], nn.Module]) -> list[float]:
    """Images/s of each epoch."""
    torch.set_num_threads(threads)
    loaded = np.load(arrays)
    images = torch.from_numpy(loaded["images"]).permute(0, 3, 1, 2).float().div(255).contiguous()
    images = (images - images.mean()) / images.std()
    targets = torch.from_numpy(loaded["targets"])
    height, width = images.shape[2:]
    model = wrap(linear_cnn.build(image_size=(height, width), channels=1, classes=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    speeds = []
    for _ in range(epochs):
        start = time.perf_counter()
        train_epoch(model, optimizer, criterion, images, targets)
        speeds.append(len(images) / (time.perf_counter() - start))
    return speeds


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
        speeds = by_hand(Path(config["arrays"]), config["epochs"], config["threads"], wrap)
        Path(config["result"]).write_text(json.dumps(speeds))
        ray.train.report({"images_per_second": speeds[-1]})

    config = {"arrays": str(case.arrays), "epochs": epochs, "threads": case.threads, "result": str(result)}
    TorchTrainer(
        train_func,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": case.threads}),
        run_config=RunConfig(storage_path=str(case.storage / "ray")),
    ).fit()
    return statistics.median(json.loads(result.read_text())[1:])


# Ours ------------------------------------------------------------------------------------------------------


def loop_alone(case: Case, job: dict[str, Any]) -> float:
    """Images/s of worker.work in this process."""
    return _later(loop_history(case, job))


def loop_history(case: Case, job: dict[str, Any]) -> list[dict[str, float]]:
    """The lines of history of worker.work in this process."""
    lines: list[dict[str, float]] = []

    def report(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            lines.append(event["line"])

    folder = case.storage / f"loop-{time.time_ns()}"
    end = worker.work({**job, "folder": str(folder)}, 0, 1, 1, report, lambda: False)
    assert end["status"] == "finished", end["message"]
    return lines


def by_fit(case: Case, workers: int) -> float:
    """fit(), in this process or in a worker of Ray Train."""
    from trainers.fitting import fit
    from trainers.progress import Progress

    scale = Scale(workers=workers, cpus_per_worker=case.threads, data=case.raw, storage=str(case.storage))
    silent = Progress(io.StringIO())
    result = fit(case.recipe, scale=scale, run=f"fit-{time.time_ns()}", progress=silent)
    assert result.status == "finished", result.run["message"]
    return _later(result.history)


def _later(lines: Any) -> float:
    return statistics.median(line["images_per_second"] for line in lines[1:])


def start_ray(threads: int) -> None:
    """One Ray for all, set up as ours does it."""
    import ray

    from trainers.runtime import ray_train

    os.environ.update(ray_train._ENVIRONMENT)
    ray.init(address="local", num_cpus=threads + 1, log_to_driver=False, logging_level=logging.ERROR)


def main() -> None:
    given = _common.flags(__doc__, repeats=7)
    with _common.temporary_storage() as storage:
        _common.tell_machine()
        common = {"batch_size": BATCH, "micro_batch_size": BATCH, "precision": "fp32", "weight_decay": 0.0}
        mnist = resolve("mnist.cnn", epochs=2 if given.quick else 5, **common)
        digits = resolve("digits.cnn", epochs=3 if given.quick else 60, **common)
        raw = _common.draw_mnist(storage / "raw", 600 if given.quick else 10_000)
        cases = [
            Case("digits", digits, None, storage, given.threads),
            Case("mnist", mnist, raw, storage, given.threads),
        ]
        jobs = {case.name: case.prepare() for case in cases}
        for case in cases:
            if given.only not in case.name:
                continue
            here(case, jobs[case.name], given.repeats)
        if given.only in ("", "ray"):
            start_ray(given.threads)
            for case in cases:
                on_ray_worker(case, given.repeats)


def here(case: Case, job: dict[str, Any], repeats: int) -> None:
    """The comparison in this process."""
    epochs = case.recipe.epochs
    peer = "by hand"

    def unchanged(model: nn.Module) -> nn.Module:
        return model

    rounds = _common.take_turns(
        {
            peer: lambda: statistics.median(by_hand(case.arrays, epochs, case.threads, unchanged)[1:]),
            "loop": lambda: loop_alone(case, job),
            "workers=0": lambda: by_fit(case, 0),
        },
        repeats,
    )
    bars = {("loop", peer): ">= 0.95", ("workers=0", peer): ">= 0.95"}
    _common.compare(f"{_title(case)}, in this process", "images/s", rounds, bars)


def on_ray_worker(case: Case, repeats: int) -> None:
    """The comparison in one Ray Train worker."""
    peer = "by hand, Ray Train"
    runs = {peer: lambda: by_hand_on_ray(case, case.recipe.epochs), "workers=1": lambda: by_fit(case, 1)}
    rounds = _common.take_turns(runs, repeats)
    bars = {("workers=1", peer): ">= 0.90"}
    _common.compare(f"{_title(case)}, in one Ray Train worker", "images/s", rounds, bars)


def _title(case: Case) -> str:
    height, width = case.image_size
    return f"{case.name} {height}x{width}, batch {BATCH}, {case.threads} threads"


if __name__ == "__main__":
    main()
