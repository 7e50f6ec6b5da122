"""Arrays reach a GPU without a wait, and none is overwritten before it was copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small import job, small_recipe
from torch import Tensor

from trainers.data import sampler
from trainers.data.batches import Cached
from trainers.training import build
from trainers.training.distributed import World
from trainers.training.state import TrainState
from trainers.training.step import Run
from trainers.upload import upload

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class LateGPU:
    """In place of a GPU: copies that nobody is to wait for take place when it gets to them, as late as can be."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.locked: dict[int, Tensor] = {}
        """Page-locked memory, by its address."""
        self.late: list[tuple[Tensor, Tensor]] = []
        plain = Tensor.to

        def pin_memory(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() in self.locked:
                return tensor
            copy = tensor.clone()
            self.locked[copy.data_ptr()] = copy
            return copy

        def to(tensor: Tensor, *args: Any, non_blocking: bool = False, **options: Any) -> Tensor:
            if not (args and args[0] == GPU):
                return plain(tensor, *args, **options)
            if not non_blocking:
                return plain(tensor, CPU, *args[1:], **options).clone()
            assert tensor.data_ptr() in self.locked, "it is not page-locked: the host would wait for the copy"
            there = torch.zeros_like(tensor)
            self.late.append((there, tensor))
            return there

        patch.setattr(Tensor, "pin_memory", pin_memory)
        patch.setattr(Tensor, "to", to)

    def catch_up(self) -> None:
        for there, tensor in self.late:
            there.copy_(tensor)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateGPU:
    return LateGPU(monkeypatch)


@pytest.fixture(scope="module")
def prepared(storage: Path) -> Path:
    folder = job(small_recipe("digits.cnn"), None, storage, "prepare")["data"]["folder"]
    assert folder is not None
    return Path(folder)


def start(recipe: Any, data: Cached, device: torch.device = CPU) -> tuple[World, TrainState]:
    world = World(0, 1, device, recipe.precision)
    return world, build.create_state(recipe, data.meta, World(0, 1, CPU, recipe.precision))


def test_an_array_may_change_as_soon_as_it_was_handed_over(late: LateGPU) -> None:
    array = np.arange(5)
    there = upload(array, GPU)
    halves = upload(torch.arange(5) / 2, GPU, torch.float64)
    array[:] = 0
    assert there.tolist() == [0] * 5
    late.catch_up()
    assert there.tolist() == [0, 1, 2, 3, 4]
    assert halves.tolist() == [0, 0.5, 1, 1.5, 2]
    assert halves.dtype == torch.float64


def test_batches_that_are_copied_late_are_still_those_that_were_read(prepared: Path, late: LateGPU) -> None:
    recipe, data = small_recipe("digits.cnn", precision="fp32"), Cached(prepared)
    world, state = start(recipe, data, GPU)
    run = Run(recipe=recipe, state=state, data=data, world=world, model=state.model)
    sizes = {"batch_size": 32, "micro_batch_size": 16, "rank": 0, "world_size": 1}
    order = sampler.shuffled(0, 0, run.rows)
    read = list(data.batches("train", sampler.passes(order, **sizes)))
    before = len(late.locked)
    found = [
        (upload(batch.images, GPU), upload(batch.targets, GPU))
        for batch in run.batches("train", sampler.passes(order, **sizes), 0)
    ]
    assert len(late.locked) == before + 2 * len(read)  # by the thread that reads: the copies need no others
    late.catch_up()
    assert len(found) == len(read)
    for (images, targets), batch in zip(found, read, strict=True):
        np.testing.assert_array_equal(images.numpy(), batch.images)
        np.testing.assert_array_equal(targets.numpy(), batch.targets)
