"""A network gets as few threads as are as fast, and keeps them."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers.small import small_recipe
from torch import nn

from trainers import limits
from trainers.fitting import fit
from trainers.messages import Meta
from trainers.recipe import Scale
from trainers.training import device, threads
from trainers.training.distributed import World


class Raises(nn.Module):
    """A model that fails."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"{len(images)} pictures")


WORLD = World(0, 1, torch.device("cpu"), "fp32")
RECIPE = small_recipe("digits.cnn", batch_size=8, micro_batch_size=8)
META = cast(Meta, {"channels": 1, "rows": {"train": 100}})


@pytest.mark.parametrize(
    ("seconds", "most", "expected", "tried"),
    [
        ({1: 0.020, 2: 0.019}, 2, 1, [1, 2]),
        ({1: 0.020, 2: 0.500}, 2, 1, [1, 2]),  # beside a busy program
        ({1: 0.020, 2: 0.011}, 2, 2, [1, 2]),
        ({1: 0.020, 2: 0.011, 3: 0.008}, 3, 3, [1, 2, 3]),
        ({1: 0.020, 2: 0.011, 4: 0.010}, 64, 2, [1, 2, 4]),
        ({1: 0.040, 2: 0.021, 4: 0.011, 6: 0.008}, 6, 6, [1, 2, 4, 6]),
        ({1: 0.001}, 64, 1, [1]),
        ({1: 0.100}, 64, 64, [1]),
    ],
)
def test_threads_are_doubled_as_long_as_that_pays(
    monkeypatch: pytest.MonkeyPatch, seconds: Mapping[int, float], most: int, expected: int, tried: list[int]
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(device, "set_threads", set_to.append)
    assert threads._fewest(lambda: seconds[set_to[-1]], most) == expected
    assert list(dict.fromkeys(set_to)) == tried


@pytest.mark.parametrize("held_up", [0, 1, 2])
def test_a_pass_that_a_busy_machine_holds_up_decides_nothing(monkeypatch: pytest.MonkeyPatch, held_up: int) -> None:
    monkeypatch.setattr(device, "set_threads", lambda _: None)
    passes = itertools.count()
    assert threads._fewest(lambda: 0.2 if next(passes) == held_up else 0.001, 64) == 1


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (1, 4, 10, 12), 5 * 6 * 8 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 7), 5 * 7 * 4 * 6 * 4),
        (nn.Linear(5, 7), (1, 11, 5), 11 * 5 * 7),
        (nn.BatchNorm2d(4), (1, 4, 5, 5), 0),
    ],
)
def test_the_work_of_a_layer_is_counted(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    before = copy.deepcopy(layer.state_dict())
    assert threads._multiplications(layer, torch.zeros(shape), 10**9) == expected
    assert layer.training
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_no_more_is_counted_than_must_be_known() -> None:
    layers = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 11), Raises())
    assert threads._multiplications(layers, torch.zeros(1, 5), 100) == 5 * 7 + 7 * 11


def test_a_trial_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    before, threads_before = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    try:
        assert threads.choose_threads(RECIPE, META, model, WORLD, 2) == 1
    finally:
        torch.set_num_threads(threads_before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        (Raises(), RECIPE),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), RECIPE),  # does not go with the pictures
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2**18)), RECIPE),  # large
        (nn.Conv2d(1, 64, 3, padding=1), RECIPE.replace(image_size=(512, 512), stored_size=None)),  # large pictures
    ],
)
def test_what_is_large_or_cannot_be_tried_gets_all_threads(model: nn.Module, recipe: Any) -> None:
    assert threads.choose_threads(recipe, META, model, WORLD, 6) == 6


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(limits, "cpus", lambda: 2)


def recorded(storage: Path, epochs: int = 1, **scale: Any) -> tuple[dict[str, int], int]:
    """What run.json says, and how many threads torch had at the end."""
    before = torch.get_num_threads()
    try:
        fit(
            "digits.cnn", {"epochs": epochs, "warmup_epochs": 1}, Scale(workers=0, storage=str(storage), **scale), "run"
        )
        return json.loads((storage / "run" / "run.json").read_text())["threads"], torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_a_small_network_gets_one_thread_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded(tmp_path) == ({"used": 1, "of": 2}, 1)
    monkeypatch.setattr(threads, "choose_threads", lambda *_: pytest.fail("asked again"))
    assert recorded(tmp_path, epochs=2) == ({"used": 1, "of": 2}, 1)


@pytest.mark.usefixtures("two_cores")
def test_threads_are_chosen_anew_where_the_machine_grants_another_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "choose_threads", lambda *_: 2)
    assert recorded(tmp_path) == ({"used": 2, "of": 2}, 2)
    monkeypatch.setattr(limits, "cpus", lambda: 4)
    monkeypatch.setattr(threads, "choose_threads", lambda *_: 3)
    assert recorded(tmp_path, epochs=2) == ({"used": 3, "of": 4}, 3)


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (2, 2), (8, 3)])
def test_a_quota_limits_the_threads_that_torch_starts_with(
    monkeypatch: pytest.MonkeyPatch, cpus: int, expected: int
) -> None:
    monkeypatch.setattr(limits, "cpus", lambda: cpus)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        device.limit_threads()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_as_many_threads_as_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "choose_threads", lambda *_: pytest.fail("nobody asked"))
    assert recorded(tmp_path / "flag", cpus_per_worker=2) == ({"used": 2, "of": 2}, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert recorded(tmp_path / "variable") == ({"used": 3, "of": 3}, 3)
    assert recorded(tmp_path / "both", cpus_per_worker=1) == ({"used": 1, "of": 1}, 1)
