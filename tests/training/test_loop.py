"""The promises that the loop keeps: the same result everywhere, every picture once, nothing lost."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import run_ranks, watched_work
from helpers.small import ALL, job, last_weights, small_data, small_recipe
from torch.nn import functional

from trainers.data import sampler
from trainers.data.batches import Cached
from trainers.recipe import resolve
from trainers.storage.store import Store
from trainers.training import build
from trainers.training.checkpoint import Checkpoints
from trainers.training.schedule import learning_rate, warm_up_note

PLAIN = {"model": "linear_cnn", "model_args": {"batch_norm": False}}
Events = list[dict[str, Any]]
EPOCHS = 2
# Rounding grows by the learning rate, and with depth where BatchNorm sees few values: at a tiny size ResNets need a
# small rate (at 1e-6 ResNet-50 turns 1e-7 into 1e-2 within 10 steps). Larger ones are tested in float64.
FP32: dict[str, dict[str, Any]] = {
    "digits.cnn": {"batch_size": 120, "micro_batch_size": 40},
    "textures.cnn": {},
    "cifar.r18": {"lr": 2e-5, "epochs": 3},
    "resnet.r50": {"lr": 1e-9, "epochs": 5},
}


LARGE = [name for name in ALL if name.startswith(("fcos.", "folder.", "shapes."))] + ["resnet.r50", "deeplab.camvid"]
"""Recipes whose curves are slow tests: smaller ones of each kind are among the others."""
LIKE_OTHERS = ["erfnet.encoder", "resnet.r18", "shapes.erfnet_encoder", "shapes.unet", "unet.drone"]
LIKE_OTHERS += ["fcos_masks.coco"]
"""Models and tasks whose curves those of other recipes show."""
NAMES = [name for name in ALL if name not in LIKE_OTHERS]
BY_TWO = ["digits.cnn", "shapes.fcos_masks", "textures.cnn", "unet.camvid"]
"""Recipes that are trained on 2 ranks, too; the others on 1 and 3."""


def sizes_of(name: str) -> tuple[int, ...]:
    return (1, 2, 3) if name in BY_TWO else (1, 3)


def marked(names: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in names]
    )


EVERY = marked(NAMES)


@pytest.fixture(scope="module")
def larger(storage: Path) -> dict[str, Events]:
    """Those of LARGE, in float64 on 1 and 3 ranks, and in fp32; run names as those of `everywhere`."""
    jobs = {}

    def add(name: str, run: str, size: int, **changes: Any) -> None:
        raw = small_data(name, storage / "raw" / name)
        jobs[run] = (job(small_recipe(name, **changes), raw, storage, run) | {"no_checkpoints": True}, size)

    for name in (name for name in NAMES if name in LARGE):
        for size in sizes_of(name):
            add(name, f"{name}/{size}", size, precision="fp64", epochs=EPOCHS)
    for name in FP32.keys() & set(LARGE):
        for size in (1, 3):
            add(name, f"fp32 {name}/{size}", size, precision="fp32", **{"epochs": 2, **FP32[name]})
    return dict(zip(jobs, run_ranks(list(jobs.values())), strict=True))


def runs_of(request: pytest.FixtureRequest, name: str) -> dict[str, Events]:
    found: dict[str, Events] = request.getfixturevalue("larger" if name in LARGE else "everywhere")
    return found


def of_recipe(request: pytest.FixtureRequest, name: str) -> dict[int, Events]:
    """Ranks -> what they reported."""
    events = runs_of(request, name)
    return {size: events[f"{name}/{size}"] for size in sizes_of(name)}


@pytest.fixture(scope="module")
def everywhere(storage: Path) -> dict[str, Events]:
    """The others of NAMES in float64 on 1 and 3 ranks, and some more; run names like "digits.cnn/2"."""
    jobs: dict[str, tuple[dict[str, Any], int]] = {}

    def add(name: str, key: str, sizes: tuple[int, ...], memory_format: Any = "channels_last", **changes: Any) -> None:
        raw = small_data(name, storage / "raw" / name)
        for size in sizes:
            recipe = small_recipe(name, **changes)
            if recipe.micro_batch_size is None:
                recipe = recipe.replace(micro_batch_size=recipe.batch_size // size)
            run = f"{key}/{size}"
            jobs[run] = (job(recipe, raw, storage, run) | {"no_checkpoints": True}, size)
            (storage / run / "run.json").write_text(
                json.dumps({"start_id": "of tests", "step": {"memory_format": memory_format}})
            )

    for name in NAMES:
        if name in LARGE:
            continue
        many = {"batch_size": 120, "micro_batch_size": 40} if name == "digits.cnn" else {}
        add(name, name, sizes_of(name), precision="fp64", epochs=EPOCHS, **many)
    add("mnist.cnn", "split", (1, 2, 3), precision="fp64", micro_batch_size=None, **PLAIN)
    dropout: Any = {"model_args": {"dropout": 0.5}, "augment": {"rotate": 20}}
    add("mnist.cnn", "dropout", (1, 2), precision="fp64", memory_format="contiguous", **dropout)
    add("mnist.cnn", "weighted", (1, 2), precision="fp64", class_weights="inverse", clip_norm=0.5, ema=0.9)
    add("textures.cnn", "ordinal", (1, 2, 3), precision="fp64", task="ordinal", class_weights="inverse")
    add("mnist.cnn", "four", (1, 4), precision="fp64", epochs=1)
    for name, changes in FP32.items():
        if name in LARGE:
            continue
        add(name, f"fp32 {name}", (1, 3), precision="fp32", **{"epochs": 2, **changes})
    return dict(zip(jobs, run_ranks(list(jobs.values())), strict=True))


def lines(events: Events) -> list[dict[str, float]]:
    return [event["line"] for event in events if event["kind"] == "epoch"]


def assert_same_curves(one: Events, other: Events, tolerance: float = 1e-8) -> None:
    """Half of float64's digits: a sum in another order errs by 1e-16, and a step of a deep network with BatchNorm over
    few values multiplies that by up to 10 (see FP32); nothing but rounding is as small after a dozen steps."""
    scores = [name for name in lines(one)[0] if name.startswith("val/")]
    for name in ("train/loss", *scores):
        expected, found = ([line[name] for line in lines(events)] for events in (one, other))
        np.testing.assert_allclose(found, expected, rtol=tolerance, err_msg=name)


@EVERY
def test_losses_do_not_depend_on_the_number_of_workers(request: pytest.FixtureRequest, name: str) -> None:
    events = of_recipe(request, name)
    assert len(lines(events[1])) == EPOCHS
    for size in sizes_of(name)[1:]:
        assert_same_curves(events[1], events[size])


@pytest.mark.parametrize(
    ("key", "sizes"), [("split", (2, 3)), ("dropout", (2,)), ("weighted", (2,)), ("ordinal", (2, 3)), ("four", (4,))]
)
def test_losses_do_not_depend_on_the_number_of_workers_with(
    everywhere: dict[str, Events], key: str, sizes: tuple[int, ...]
) -> None:
    """Another micro-batch without BatchNorm; dropout and augmentation, contiguous; class weights, clipping and
    averaging; order."""
    for size in sizes:
        assert_same_curves(everywhere[f"{key}/1"], everywhere[f"{key}/{size}"])


@marked(FP32)
def test_in_fp32_the_first_ten_steps_agree(request: pytest.FixtureRequest, name: str) -> None:
    one, three = (runs_of(request, name)[f"fp32 {name}/{size}"][-1]["steps"][:10] for size in (1, 3))
    assert len(one) >= 8
    np.testing.assert_allclose(three, one, rtol=1e-4)  # of 1e-7, which ten steps at these rates let grow a little


def test_every_picture_is_seen_once_in_an_epoch(everywhere: dict[str, Events]) -> None:
    checked = 0
    for events in everywhere.values():
        for ids in events[-1]["seen"]:
            assert ids == list(range(len(ids)))
            checked += 1
    assert checked > 50
    rows = len(everywhere["four/4"][-1]["seen"][0])
    assert all(rows % size for size in (2, 3, 4))


@EVERY
def test_every_picture_is_evaluated_once(request: pytest.FixtureRequest, name: str, storage: Path) -> None:
    meta = job(small_recipe(name), small_data(name, storage / "raw" / name), storage, "unused")["data"]["meta"]
    events = of_recipe(request, name)
    for size in sizes_of(name):
        first = next(event for event in events[size] if event["kind"] == "epoch")
        if "confusion" in first["counts"]:
            assert first["counts"]["confusion"].sum(1).tolist() == meta["class_counts"]["val"]
        else:  # a row for each picture, but in what is counted of all of them
            of_pictures = {len(count) for key, count in first["counts"].items() if key != "truths"}
            assert of_pictures == {meta["rows"]["val"]}
        for count, expected in first["counts"].items():
            other = next(event for event in events[1] if event["kind"] == "epoch")["counts"][count]
            np.testing.assert_array_equal(expected, other, err_msg=count)


@pytest.mark.parametrize(
    ("changes", "kind", "options"),
    [
        ({"optimizer": "sgd", "nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ({"optimizer": "adam"}, torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ({"optimizer": "adamw"}, torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    ],
)
def test_optimizers_are_those_of_torch(changes: dict[str, Any], kind: Any, options: dict[str, Any]) -> None:
    recipe = resolve("digits.cnn", momentum=0.9, weight_decay=0.01, **changes)
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    one = build.make_optimizer(recipe, [{"params": [ours], "weight_decay": 0.01, "factor": 1.0}])  # type: ignore[list-item]
    other = kind([theirs], lr=recipe.lr, weight_decay=0.01, fused=True, **options)
    for step in range(4):
        for values, optimizer in ((ours, one), (theirs, other)):
            (values**3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(ours, theirs)
        if step == 1:
            one.load_state_dict(copy.deepcopy(other.state_dict()))
    assert str(one) == str(other)


def test_a_plain_loop_gives_the_same_weights(storage: Path) -> None:
    batch = {"batch_size": 128, "micro_batch_size": 128}
    recipe = small_recipe("digits.cnn", precision="fp64", epochs=2, weight_decay=0.01, **batch)
    task = job(recipe, None, storage, "plain")
    watched_work(task)
    found = Checkpoints(Store(storage / "plain")).latest()
    assert found is not None

    cached = Cached(task["data"]["folder"])
    rows = cached.meta["rows"]["train"]
    every = sampler.one_pass(np.arange(rows))
    whole = next(cached.batches("train", [every]))
    images = torch.from_numpy(whole.images).permute(0, 3, 1, 2).double() / 255
    images = (images - cached.meta["mean"][0]) / cached.meta["std"][0]
    targets = torch.from_numpy(whole.targets)
    model = build.build_model(recipe, cached.meta).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    edges = [rows * piece // 12 for piece in range(13)]
    for epoch in range(2):
        ids = torch.from_numpy(sampler.permutation(0, epoch, rows))
        for step in range(12):
            chosen = ids[edges[step] : edges[step + 1]]
            done = epoch * 12 + step
            warm = 0.5 * 12
            share = (done + 1) / warm if done < warm else 0.5 * (1 + math.cos(math.pi * (done - warm) / (24 - warm)))
            optimizer.param_groups[0]["lr"] = recipe.lr * share
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), targets[chosen]).backward()
            optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-9, atol=1e-11)


def test_a_run_that_is_stopped_in_mid_epoch_ends_with_the_same_weights(storage: Path) -> None:
    changes = {"precision": "fp32", "epochs": 3, "ema": 0.9, "model_args": {"dropout": 0.2}, "optimizer": "adamw"}
    recipe = small_recipe("mnist.cnn", **changes)
    raw = small_data("mnist.cnn", storage / "raw" / "mnist.cnn")
    watched_work(job(recipe, raw, storage, "undisturbed"))
    stopped = {**job(recipe, raw, storage, "stopped"), "stop_after": 13}
    end = watched_work(stopped)[-1]
    assert (end["status"], end["epoch"]) == ("interrupted", 1)
    events = watched_work(job(recipe, raw, storage, "stopped") | {"attempt": 2})
    assert events[1] == {"kind": "start", "history": events[1]["history"], "step": 13, "epoch": 1, "precision": "fp32"}
    assert (events[-1]["status"], events[-1]["epoch"]) == ("finished", 3)
    undisturbed, resumed = last_weights(storage / "undisturbed"), last_weights(storage / "stopped")
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def test_it_can_go_on_with_another_number_of_workers(storage: Path) -> None:
    recipe = small_recipe("mnist.cnn", precision="fp64")
    raw = small_data("mnist.cnn", storage / "raw" / "mnist.cnn")
    first = {**job(recipe, raw, storage, "moved"), "stop_after": 12}
    rest = job(recipe, raw, storage, "moved") | {"attempt": 2}
    stopped, ended, whole = run_ranks([(first, 3), (rest, 2), (job(recipe, raw, storage, "unmoved"), 1)])
    assert stopped[-1]["status"] == "interrupted"
    assert (ended[-1]["status"], ended[-1]["epoch"]) == ("finished", 3)
    assert len(stopped[-1]["steps"]) + len(ended[-1]["steps"]) == len(whole[-1]["steps"])
    one, other = last_weights(storage / "unmoved"), last_weights(storage / "moved")
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-9, atol=1e-12)


def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_good_checkpoint_stays(storage: Path) -> None:
    recipe = small_recipe("mnist.cnn", lr=1e20, warmup_epochs=1, epochs=5, precision="fp32", **PLAIN)
    raw = small_data("mnist.cnn", storage / "raw" / "mnist.cnn")
    end = watched_work(job(recipe, raw, storage, "diverged"))[-1]
    assert end["status"] == "failed"
    assert "epoch 1, step" in end["message"]
    assert "at learning rate" in end["message"]
    assert not (storage / "diverged" / "checkpoints").exists()  # nothing good was there to save


def test_patience_ends_the_run_and_says_why(storage: Path) -> None:
    recipe = small_recipe("digits.cnn", lr=1e-9, epochs=50, patience=3, precision="fp32")
    end = watched_work(job(recipe, None, storage, "patient"))[-1]
    assert end["status"] == "stopped_early"
    assert end["epoch"] == end["best"]["epoch"] + 3
    assert "no better accuracy" in end["message"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "step", "schedule_args": {"every": 1, "factor": 0.5}}, [1, 1, 0.5, 0.5]),
        ({"schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]),
        ({"schedule": "polynomial", "schedule_args": {"power": 2}}, [(1 - k / 4) ** 2 for k in range(4)]),
        ({"schedule": "constant", "warmup_epochs": 1.5}, [1 / 3, 2 / 3, 1, 1]),
    ],
)
def test_learning_rates_follow_the_schedule(changes: dict[str, Any], expected: list[float]) -> None:
    recipe = resolve("textures.cnn", epochs=2, lr=1.0, **changes)
    np.testing.assert_allclose([learning_rate(recipe, step, 2) for step in range(4)], expected)


@pytest.mark.parametrize(
    ("epochs", "warmup", "expected"),
    [
        (30, 1.0, ""),
        (3, 1.0, ""),
        (1, 0.2, ""),
        (2, 1.0, "warmup_epochs=1 is more than a third of epochs=2: .* give --warmup-epochs 0.2, or more --epochs"),
        (1, 1.0, "is more than a third of epochs=1"),
        (
            1,
            5.0,
            r"more than epochs=1: the learning rate rises .* to 0.02, and never reaches lr=0.1; give .* 0.1",
        ),
        (4, 4.5, "is more than epochs=4: .* give --warmup-epochs 0.4"),
    ],
)
def test_a_warm_up_that_takes_much_of_the_run_is_said(epochs: int, warmup: float, expected: str) -> None:
    note = warm_up_note(resolve("digits.cnn", epochs=epochs, warmup_epochs=warmup, lr=0.1))
    assert re.search(expected, note) if expected else note == ""


def test_the_learning_rate_of_a_long_warm_up_ends_where_the_note_says() -> None:
    recipe = resolve("digits.cnn", epochs=2, warmup_epochs=8, lr=0.1)
    assert f"to {learning_rate(recipe, 2 * 50 - 1, 50):.4g}," in warm_up_note(recipe)


def test_a_model_built_for_other_channels_than_the_data_has_is_refused() -> None:
    meta = {"channels": 1, "classes": ["a", "b"]}
    recipe = resolve("digits.cnn", model_args={"channels": 3})
    with pytest.raises(ValueError, match=r"channels=3 does not fit the data, which has channels=1"):
        build.build_model(recipe, meta)


def test_a_profile_is_a_trace_of_some_steps(storage: Path) -> None:
    recipe = small_recipe("digits.cnn", batch_size=120, micro_batch_size=40, epochs=1, precision="fp32")
    events = watched_work(job(recipe, None, storage, "profiled", profile=True))
    files = [event for event in events if event["kind"] == "file"]
    assert [event["name"] for event in files] == ["tensorboard/rank0.pt.trace.json"]
    names = {event.get("name", "") for event in json.loads(files[0]["data"])["traceEvents"]}
    assert any("conv" in name for name in names)


def test_frozen_parts_do_not_move(storage: Path) -> None:
    recipe = small_recipe("cifar.r18", frozen=("layer1", "bn1"), epochs=1, precision="fp32")
    raw = small_data("cifar.r18", storage / "raw" / "cifar.r18")
    task = job(recipe, raw, storage, "frozen")
    before = copy.deepcopy(build.build_model(recipe, task["data"]["meta"]).state_dict())
    watched_work(task)
    after = last_weights(storage / "frozen")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("layer1.", "bn1."))} <= same
    assert not any(name.startswith("layer2.") for name in same)
