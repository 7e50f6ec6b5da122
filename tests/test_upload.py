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
from trainers.data.resident import SHARE, Resident
from trainers.runtime.worker import work
from trainers.training import build, loop
from trainers.training.distributed import World
from trainers.training.state import TrainState
from trainers.training.step import Run
from trainers.upload import upload

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
AMPLE = 2**30


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


def train(prepared: Path, room: int | None) -> tuple[dict[str, Tensor], Resident | None]:
    sizes = {"epochs": 3, "batch_size": 120, "micro_batch_size": 60}
    recipe = small_recipe("digits.cnn", precision="fp32", augment={"translate": 0.1}, ema=0.9, **sizes)
    resident = None if room is None else Resident(CPU, lambda: room)
    data = Cached(prepared, resident=resident)
    world, state = start(recipe, data)
    summary = loop.train(recipe, state, data, world, resident=resident)
    assert summary.status == "finished"
    return state.model.state_dict(), resident


def test_pictures_that_are_kept_on_the_device_change_nothing(prepared: Path) -> None:
    (plain, _), (kept, resident) = train(prepared, None), train(prepared, AMPLE)
    assert resident is not None
    assert resident.bytes == Cached(prepared).meta["rows"]["train"] * 64
    assert all(torch.equal(plain[name], kept[name]) for name in plain)


@pytest.mark.parametrize(
    ("scale", "changes", "kept"),
    [
        ({}, {}, True),
        ({"memory": "4GiB"}, {}, False),
        ({"gpus_per_worker": 0.5}, {}, False),
        ({}, {"own_device": False}, False),
    ],
)
def test_a_device_that_others_use_keeps_no_pictures(
    scale: Any, changes: Any, kept: bool, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("trainers.training.device.spare_memory", lambda device: asked.append(device) or AMPLE)
    recipe = small_recipe("digits.cnn", precision="fp32", epochs=2, batch_size=240, micro_batch_size=240)
    task: Any = job(recipe, None, storage, f"{scale} {changes}", workers=0, **scale) | changes
    assert work(task, 0, 1, 1, lambda event: None, lambda: False)["status"] == "finished"
    assert bool(asked) == kept


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_pictures_are_kept_from_the_second_epoch_on_where_they_fit(spare: int, fits: bool) -> None:
    shards = [np.zeros((rows, 4, 4, 1), np.uint8) for rows in (3, 8)]
    size = 11 * 16
    rooms = iter([round(size / SHARE) + spare])
    resident = Resident(CPU, lambda: next(rooms))  # it is asked once
    assert [resident.holds(shards) for _ in range(4)] == [False, fits, fits, fits]  # a first epoch shows what is free
    assert resident.bytes == size * fits


def test_shards_are_kept_in_pieces_and_gathered_across_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.data.resident.PIECE_BYTES", 5 * 12)
    rng = np.random.default_rng(0)
    shards = [rng.integers(0, 256, (rows, 2, 2, 3), np.uint8) for rows in (7, 1, 11)]
    resident = Resident(CPU, lambda: AMPLE)
    assert not resident.holds(shards)
    assert resident.holds(shards)
    ids = np.array([18, 0, 7, 7, 3])
    np.testing.assert_array_equal(resident.gather(ids).numpy(), np.concatenate(shards)[ids])
