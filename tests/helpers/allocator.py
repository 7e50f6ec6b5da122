"""What torch's own allocator hands out in a step of the loop: what predictions are compared with."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from trainers.data import sampler
from trainers.data.batches import Batch
from trainers.recipe import Recipe
from trainers.training import build, distributed, parts
from trainers.training.batchnorm import BatchNormStatistics
from trainers.training.distributed import World
from trainers.training.step import Run, Step, by_step


class _Drawn:
    """Noise of the shape of a data set."""

    def __init__(self, recipe: Recipe, meta: Mapping[str, Any]) -> None:
        self.meta, self.recipe = meta, recipe

    def batches(self, _: str, passes: Any) -> Any:
        rng = np.random.default_rng(0)
        for of in passes:
            shape = (len(of.ids), *self.recipe.storage_size)
            images = rng.integers(0, 256, (*shape, self.meta["channels"]), np.uint8)
            classes = len(self.meta["classes"])
            masks = rng.integers(0, classes, shape, np.uint8)
            yield Batch(of, images, masks if self.meta["masks"] else rng.integers(0, classes, len(of.ids)))


def facts(recipe: Recipe, channels: int, classes: int) -> dict[str, Any]:
    """What preparing the data set would find."""
    names, ones = [f"class{number}" for number in range(classes)], [1] * classes
    return {
        "channels": channels,
        "classes": names,
        "class_counts": {"train": ones},
        "class_areas": ones,
        "masks": recipe.task.startswith("segment"),
        "mean": [0.5] * channels,
        "std": [0.5] * channels,
        "rows": {"train": 2 * recipe.batch_size},
    }


def measure(
    recipe: Recipe,
    meta: Mapping[str, Any],
    device: str = "cpu",
    *,
    activation_checkpointing: bool = False,
    ranks: int = 1,
    rank: int = 0,
) -> int:
    """Bytes of the allocator's peak in two steps, and in making what they need.

    Args:
        recipe: With a precision that is not auto.
        meta: Facts of the data, as `facts` makes them.
        device: cpu or cuda.
        activation_checkpointing: As the flag of `train`.
        ranks: Processes; with several, the model is sharded by FSDP2.
        rank: Of this process.
    """
    assert recipe.precision != "auto"
    recipe = recipe.replace(micro_batch_size=recipe.micro_batch_size or recipe.batch_size)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _steps(recipe, meta, World(0, 1, torch.device("cuda", 0), recipe.precision), activation_checkpointing)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _steps(
            recipe, meta, World(rank, ranks, torch.device("cpu"), recipe.precision, "fsdp2"), activation_checkpointing
        )
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def measure_sharded(recipe: Recipe, meta: Mapping[str, Any], ranks: int) -> int:
    """`measure` under FSDP2, of the rank that takes most."""
    context = multiprocessing.get_context("spawn")
    peaks: Any = context.Queue()
    with tempfile.TemporaryDirectory() as meeting:
        arguments = [(recipe.to_json(), meta, ranks, rank, f"file://{meeting}/met", peaks) for rank in range(ranks)]
        processes = [context.Process(target=_measure_rank, args=each) for each in arguments]
        for process in processes:
            process.start()
        found = [peaks.get(timeout=900) for _ in processes]
        for process in processes:
            process.join()
    return max(found)


def _measure_rank(recipe: Any, meta: Mapping[str, Any], ranks: int, rank: int, meeting: str, peaks: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    peaks.put(measure(Recipe.from_json(recipe), meta, ranks=ranks, rank=rank))
    dist.destroy_process_group()


def _steps(recipe: Recipe, meta: Mapping[str, Any], world: World, activation_checkpointing: bool) -> None:
    """The first two steps of an epoch, as the loop makes them."""
    assert recipe.micro_batch_size is not None
    data = _Drawn(recipe, meta)
    state = build.create_state(recipe, meta, world, fresh=False)
    distributed.prepare(state.model, activation_checkpointing=activation_checkpointing)
    model = distributed.wrap(state.model, world)
    run = Run(recipe=recipe, state=state, data=data, world=world, model=model)
    parts.set_training(recipe, state.model, parts.LAST_EPOCH)
    step = Step(run, BatchNormStatistics(state.model, world))
    passes = sampler.passes(
        sampler.in_order(run.rows),
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size,
        rank=0,
        world_size=1,
    )
    for batches in by_step(data.batches("train", passes)):
        step.accumulate(batches)
        step.update()
