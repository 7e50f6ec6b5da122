"""DDP and FSDP2 learn the same, continue each other's runs; activations that are made again change nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.ranks import run_ranks, watched_work
from helpers.small import job, last_weights, small_data, small_recipe
from torch import Tensor, nn

from trainers.recipe import Recipe, resolve
from trainers.training import build, distributed
from trainers.training.activation_checkpointing import blocks
from trainers.training.distributed import World
from trainers.training.state import TrainState

ALONE = World(0, 1, torch.device("cpu"), "fp64")
Events = list[dict[str, Any]]
EVERYTHING: dict[str, Any] = {"ema": 0.9, "clip_norm": 0.05, "optimizer": "adamw"}
"""What touches weights and gradients one by one."""
NO_GRADIENT = ("0.bias", "4.bias", "8.bias")
"""Of mnist.cnn, the biases before a BatchNorm, which takes away what they add: their gradients are 0 but for rounding.
Adam divides that by its size plus eps, 1e-8: at a learning rate of 0.1 the order of a sum, which depends on processor
and ranks, moves such a bias by 1e-9 a step. What it is after some steps is not defined."""


def on_ranks(storage: Path, runs: dict[str, tuple[Recipe, str, int, dict[str, Any]]]) -> dict[str, Events]:
    """Run name -> recipe, its name, ranks, and what the job and the scale hold besides; all in the same processes."""
    jobs = []
    for run, (recipe, name, ranks, more) in runs.items():
        raw = small_data(name, storage / "raw" / name)
        ours = {key: more[key] for key in ("stop_after", "attempt") if key in more}
        scale = {key: value for key, value in more.items() if key not in ours}
        jobs.append((job(recipe, raw, storage, run.split("#")[0], **scale) | ours, ranks))
    return dict(zip(runs, run_ranks(jobs), strict=True))


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-8) -> None:
    """Half of float64's digits, as the curves of test_loop.py; 0.0 where the same is computed in the same order."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


def assert_same_history(one: Events, other: Events, epochs: int = 3) -> None:
    lines = [[event["line"] for event in events if event["kind"] == "epoch"] for events in (one, other)]
    assert len(lines[0]) == epochs
    scores = [name for name in lines[0][0] if name.startswith("val/")]
    for name in ("train/loss", *scores):
        expected, found = ([line[name] for line in history] for history in lines)
        np.testing.assert_allclose(found, expected, rtol=1e-8, err_msg=name)


@pytest.fixture(scope="module")
def some(storage: Path) -> dict[str, Events]:
    """Two models under DDP and FSDP2, and a run that goes from one to the other and back."""
    small = {"base_channels": 4, "depth": 2, "dropout": 0.2}
    unet = small_recipe("unet.drone", precision="fp64", model_args=small, **EVERYTHING)
    mnist = small_recipe("mnist.cnn", precision="fp64", frozen=("0",))
    moved = small_recipe("mnist.cnn", precision="fp64", optimizer="adamw", ema=0.9, frozen=NO_GRADIENT)
    sharded = {"strategy": "fsdp2", "activation_checkpointing": True}
    return on_ranks(
        storage,
        {
            "unet/ddp": (unet, "unet.drone", 2, {}),
            "unet/fsdp2": (unet, "unet.drone", 3, sharded),
            "mnist/ddp": (mnist, "mnist.cnn", 2, {}),
            "mnist/fsdp2": (mnist, "mnist.cnn", 3, {"strategy": "fsdp2"}),
            "moved#1": (moved, "mnist.cnn", 2, {"stop_after": 7}),
            "moved#2": (moved, "mnist.cnn", 3, {"stop_after": 8, "attempt": 2, "strategy": "fsdp2"}),
            "moved#3": (moved, "mnist.cnn", 2, {"attempt": 3}),
            "unmoved": (moved, "mnist.cnn", 1, {"strategy": "fsdp2"}),
        },
    )


@pytest.mark.parametrize("name", ["unet", "mnist"])
def test_fsdp2_learns_what_ddp_learns(some: dict[str, Events], storage: Path, name: str) -> None:
    """With clipping, averaging, AdamW, dropout and activations made again; with SGD and a frozen part."""
    assert_same_history(some[f"{name}/ddp"], some[f"{name}/fsdp2"])
    assert_alike(last_weights(storage / name / "ddp"), last_weights(storage / name / "fsdp2"))


def test_each_worker_holds_its_part(some: dict[str, Events]) -> None:
    whole = some["unet/ddp"][-1]["weights"]
    assert len(set(whole)) == 1
    assert sum(some["unet/fsdp2"][-1]["weights"]) == whole[0]
    assert max(some["unet/fsdp2"][-1]["weights"]) < 0.5 * whole[0]


def test_pictures_are_shown_by_sharded_models_too(some: dict[str, Events]) -> None:
    ends = [some[f"unet/{strategy}"][-1] for strategy in ("ddp", "fsdp2")]
    expected, found = ([picture["labels"] for picture in end["pictures"]] for end in ends)
    assert len(found) >= 3
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))


def test_a_run_goes_from_ddp_to_fsdp2_and_back(some: dict[str, Events], storage: Path) -> None:
    ends = [some[f"moved#{part}"][-1] for part in (1, 2, 3)]
    assert [end["status"] for end in ends] == ["interrupted", "interrupted", "finished"]
    assert sum(len(end["steps"]) for end in ends) == len(some["unmoved"][-1]["steps"])
    one, other = last_weights(storage / "unmoved"), last_weights(storage / "moved")
    assert_alike(one, other)


@pytest.mark.slow
def test_fsdp2_learns_what_ddp_learns_with_the_other_models_too(storage: Path) -> None:
    runs: dict[str, tuple[Recipe, str, int, dict[str, Any]]] = {}
    names = ("textures.cnn", "shapes.erfnet", "deeplab.camvid")
    for name in names:
        recipe = small_recipe(name, precision="fp64", epochs=1)
        runs[f"every/{name}/ddp"] = (recipe, name, 2, {})
        runs[f"every/{name}/fsdp2"] = (recipe, name, 2, {"strategy": "fsdp2"})
    events = on_ranks(storage, runs)
    for name in names:
        assert_same_history(events[f"every/{name}/ddp"], events[f"every/{name}/fsdp2"], epochs=1)
        assert_alike(*(last_weights(storage / "every" / name / strategy) for strategy in ("ddp", "fsdp2")))


# Activations that are made again -----------------------------------------------------------------------------------


class _Blocks(nn.Module):
    """Two blocks with all that could count a pass twice, and a layer beside them."""

    def __init__(self) -> None:
        super().__init__()
        norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.InstanceNorm2d(3, track_running_stats=True)]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 3), norm, nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(3, 3, 1))
            for norm in norms
        )
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize("compile", [False, True])
def test_what_is_made_again_counts_once_and_draws_the_same(compile: bool) -> None:
    torch.manual_seed(0)
    plain = _Blocks().double()
    if compile:  # compiled dropout draws otherwise; and such averages cannot be compiled
        for block in plain.blocks:
            assert isinstance(block, nn.Sequential)
            block[1], block[3] = nn.BatchNorm2d(3).double(), nn.Identity()
    again = copy.deepcopy(plain)
    distributed.prepare(again, activation_checkpointing=True)
    if compile:
        again.compile(backend="aot_eager")  # the way back is cut as inductor cuts it, without compiling in C++
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    after = []
    for model in (plain, again):
        torch.manual_seed(1)
        for _ in range(2):
            model(images).square().sum().backward()
        with torch.inference_mode():
            model.eval()(images)
        after.append(torch.rand(1))
    assert torch.equal(*after)  # whatever draws next is not disturbed
    tolerance = 1e-10 if compile else 0.0
    assert_alike(plain.state_dict(), again.state_dict(), tolerance)
    gradients = [
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None} for model in (plain, again)
    ]
    assert len(gradients[0]) == len(list(plain.parameters()))
    assert_alike(*gradients, tolerance)


@pytest.mark.parametrize("name", ["unet.drone", "shapes.erfnet_encoder"])
def test_a_run_with_activations_made_again_ends_with_the_same_weights(storage: Path, name: str) -> None:
    recipe, raw = small_recipe(name, precision="fp32", epochs=1), small_data(name, storage / "raw" / name)
    watched_work(job(recipe, raw, storage, f"{name}-kept"))
    watched_work(job(recipe, raw, storage, f"{name}-again", activation_checkpointing=True))
    assert_alike(*(last_weights(storage / f"{name}-{way}") for way in ("kept", "again")), tolerance=0.0)


def test_a_model_without_blocks_says_so(storage: Path) -> None:
    recipe, raw = (
        small_recipe("mnist.cnn", precision="fp32", epochs=1),
        small_data("mnist.cnn", storage / "raw" / "mnist.cnn"),
    )
    end = watched_work(job(recipe, raw, storage, "no-blocks", activation_checkpointing=True))[-1]
    assert end["status"] == "failed"
    assert "no blocks of several layers" in end["message"]


class _InPlace(nn.Module):
    """Its linear layers return views, of rows, in which activations change them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.relu(layer(x), inplace=True)
        out: Tensor = self.head(x)
        return out


@pytest.mark.slow
@pytest.mark.filterwarnings("error:FSDP2-wrapped module")
def test_what_a_sharded_block_returns_may_be_changed_in_place(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = _InPlace().double()
        alone_of_two = World(0, 2, torch.device("cpu"), "fp64", "fsdp2")  # one process is enough to shard
        sharded = distributed.place(copy.deepcopy(plain), alone_of_two)
        images = torch.rand(3, 5, 4, dtype=torch.float64)
        found = []
        for model in (plain, sharded):
            model(images).square().sum().backward()
            found.append([distributed.full_tensor(p.grad) for p in model.parameters() if p.grad is not None])
        assert len(found[0]) == len(found[1]) == 8
        assert all(map(torch.equal, *found))
    finally:
        dist.destroy_process_group()


# Blocks, and states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "classes", "single", "several"),
    [
        ("digits.cnn", 1, 10, 4, 0),
        ("textures.cnn", 1, 10, 7, 0),
        ("cifar.r18", 3, 10, 2, 8),
        ("resnet.r50", 3, 10, 2, 16),
        ("erfnet.encoder", 3, 19, 1, 16),
        ("erfnet.decoder", 3, 19, 1, 22),
        ("unet.drone", 3, 24, 5, 9),
    ],
)
def test_blocks_are_what_a_model_repeats(name: str, channels: int, classes: int, single: int, several: int) -> None:
    recipe = resolve(name, init_from=None)
    with torch.device("meta"):
        model = build.build_model(recipe, {"channels": channels, "classes": ["c"] * classes})
    found = blocks(model)
    layers = [block for block in found if not any(block.children())]
    assert (len(layers), len(found) - len(layers)) == (single, several)
    inside = {id(p) for block in found for p in block.parameters()}
    assert all(p.ndim == 1 for p in model.parameters() if id(p) not in inside)
    assert sum(len(list(block.parameters())) for block in found) == len(inside)  # none in two blocks


def test_weights_that_are_used_twice_stay_together() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert blocks(model) == []


def test_a_whole_tensor_is_its_own_share_and_joining_a_whole_state_does_nothing() -> None:
    model = nn.Linear(3, 2)
    state = TrainState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    state.join_snapshot()
    own = model.state_dict()
    assert distributed.shard_all_like(own, own)["weight"] is own["weight"]
    assert distributed.full_tensor(own["weight"]) is own["weight"]
