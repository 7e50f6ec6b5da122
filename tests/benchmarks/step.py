"""Seconds of a training step, as the trial at the start of a long run chooses it: against one written by hand.

    python tests/benchmarks/step.py [--quick] [--repeats N] [--threads N] [--only digits|mnist|resnet|unet]

Same model and batch, SGD with momentum 0.9, cross-entropy, no augmentation. By hand: plain fp32 and NCHW, float tensors
in memory, normalised beforehand, a batch by a random index, torch's default SGD, as many threads as are given.
Ours: bytes as they are stored, in the threads and memory format that `tune_step.tune` chose, from 1 up to as many
threads; in fp32, and with --precision bf16. All take turns, step by step; of each the fastest of 20 counts. Wanted: at
most 1.0 times the peer's time; 0.77 in bf16 where the CPU multiplies it by itself.

What was chosen is printed, with the seconds of each way that was tried. --quick: the smallest two, 2 steps, and tried
as in a run of 600 of them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import _common
import torch
from torch import Tensor, nn

from trainers.messages import Meta
from trainers.recipe import Recipe, resolve
from trainers.training import tune_step
from trainers.training.distributed import World

PLAIN: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.01,
    "weight_decay": 0.0,
    "schedule": "constant",
}
CPU = World(0, 1, torch.device("cpu"), "fp32")
BF16 = dataclasses.replace(CPU, precision="bf16")


def cases(quick: bool) -> dict[str, tuple[Recipe, Meta]]:
    """Name -> recipe and facts of data that are not needed."""
    found = {
        "digits": (resolve("digits.cnn", **PLAIN), meta(1, 10, "labels")),
        "unet": (_like("shapes.unet", (32, 32) if quick else (128, 128), 8), meta(3, 5, "masks")),
    }
    if not quick:
        found["mnist"] = resolve("mnist.cnn", batch_size=128, **PLAIN), meta(1, 10, "labels")
        found["resnet"] = _like("resnet.r18", (64, 64), 32), meta(3, 10, "labels")
    epochs, rows = (tune_step.FEWEST_PASSES, None) if quick else (1000, 10_000)
    return {
        name: (
            dataclasses.replace(recipe, micro_batch_size=recipe.batch_size, augment={}, epochs=epochs),
            {**facts, "rows": {"train": rows or recipe.batch_size}},
        )
        for name, (recipe, facts) in found.items()
    }


def _like(name: str, size: tuple[int, int], batch: int) -> Recipe:
    return resolve(name, image_size=size, stored_size=None, batch_size=batch, **PLAIN)


def meta(channels: int, classes: int, target: str) -> Meta:
    """Of pictures that nobody reads."""
    facts = {
        "dataset": "none",
        "channels": channels,
        "classes": [str(number) for number in range(classes)],
        "masks": target == "masks",
        "target": target,
        "class_counts": {"train": [1] * classes},
        "mean": [0.5] * channels,
        "std": [0.25] * channels,
    }
    return cast(Meta, facts)


def by_hand(model: nn.Module, recipe: Recipe, facts: Meta, threads: int) -> Callable[[], float]:
    """A step written by hand."""
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion, rows = nn.CrossEntropyLoss(), 4 * recipe.batch_size
    images = torch.randn(rows, facts["channels"], *recipe.image_size)
    shape = (rows, *recipe.image_size) if facts["masks"] else (rows,)
    targets = torch.randint(0, len(facts["classes"]), shape)

    def once() -> float:
        torch.set_num_threads(threads)
        start = CPU.clock()
        indices = torch.randperm(rows)[: recipe.batch_size]
        _step(model, optimizer, criterion, images[indices], targets[indices])
        return CPU.clock() - start

    return once


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    loss.item()


def fastest(steps: list[Callable[[], float]], times: int) -> list[float]:
    """Seconds of the fastest step of each of some that take turns."""
    for once in steps:
        once()
    taken = [[once() for once in steps] for _ in range(times)]
    return [min(seconds) for seconds in zip(*taken, strict=True)]


def main() -> None:
    given = _common.flags(__doc__, repeats=3)
    with _common.temporary_storage(temporary_files=False) as storage:
        _common.print_machine()
        for name, (recipe, facts) in cases(given.quick).items():
            if given.only in name:
                _compare(name, recipe, facts, given.threads, given.repeats, 2 if given.quick else 20, storage)


def _compare(name: str, recipe: Recipe, facts: Meta, threads: int, repeats: int, steps: int, storage: Path) -> None:
    peer, ours = "by hand", dict[str, Callable[[], float]]()
    for world in (CPU, BF16):
        of = recipe.replace(precision=world.precision)
        tuned = tune_step.tune(of, facts, world, most=threads, keep=storage)
        for (count, memory_format), seconds in tuned.measured.items():
            print(f"  {name}, {world.precision}: {count} threads, {memory_format}: {1000 * seconds:.2f} ms")
        (count, memory_format), trial = tuned.execution, tune_step._Trial(of, facts, world)
        label = f"{world.precision}, {count} threads, {memory_format}; tried in {tuned.seconds:.1f} s"
        ours[label] = trial.step(tuned.execution)
    everyone = {peer: by_hand(trial.model, recipe, facts, threads), **ours}
    rounds = [fastest(list(everyone.values()), steps) for _ in range(repeats)]
    bars = {(label, peer): "<= 1.0" if label.startswith("fp32") else "<= 0.77, native" for label in ours}
    _common.compare(
        f"{name} {'x'.join(map(str, recipe.image_size))}, batch {recipe.batch_size}",
        "seconds of a step",
        dict(zip(everyone, map(list, zip(*rounds, strict=True)), strict=True)),
        bars,
    )


if __name__ == "__main__":
    main()
