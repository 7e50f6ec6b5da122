"""Parts of a model that learn apart from others: frozen for a while, at another rate, by fixed statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.killed import check_killed
from helpers.ranks import run_ranks
from helpers.small import job, last_weights, small_data, small_recipe
from torch import Tensor, nn

from trainers.data import sampler
from trainers.recipe import Recipe, resolve
from trainers.training import build, parts
from trainers.training.distributed import World
from trainers.training.state import TrainState
from trainers.training.step import _update_average

META: Any = {"channels": 1, "classes": list("abcdefghij"), "class_counts": {"train": [1] * 10}, "target": "labels"}
EVERYTHING: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.05,
    "decay_on": "weights",
    "lr_factor": {"body": 0.3},
    "layer_decay": 0.7,
    "frozen": ("body",),
    "frozen_epochs": 2,
    "fixed_norms": ("1",),
    "ema": 0.9,
    "ema_warmup": True,
    "order": "balanced",
    "normalisation": "0.4,0.3",
}


def model_of(recipe: Recipe) -> nn.Module:
    return build.build_model(recipe, META)


def test_body_and_head_are_all_of_a_model_and_head_is_its_last_layer() -> None:
    recipe = resolve("digits.cnn")
    model = model_of(recipe)
    body, head = (parts.find(recipe, model, [part], "frozen") for part in ("body", "head"))
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if head(name)] == names[-2:]
    assert [name for name in names if body(name)] == names[:-2]
    assert not any(body(name) and head(name) for name, _ in model.named_modules())


@pytest.mark.parametrize("field", ["frozen", "fixed_norms", "lr_factor"])
def test_an_unknown_part_is_named_with_those_that_there_are(field: str) -> None:
    value = {"spine": 0.1} if field == "lr_factor" else ("spine",)
    recipe = resolve("digits.cnn").replace(**{field: value})
    with pytest.raises(ValueError, match=f"{field}: the model has no part called 'spine'; its parts are 0, 1, .*body"):
        parts.check(recipe, model_of(recipe))


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    recipe = resolve("digits.cnn", frozen=("all",))
    with pytest.raises(ValueError, match="frozen=all leaves nothing of the model linear_cnn to be trained"):
        parts.check(recipe, model_of(recipe))


def test_frozen_epochs_need_something_that_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen_epochs=2 needs frozen parts"):
        resolve("digits.cnn", frozen_epochs=2)
    thawed = resolve("digits.cnn", frozen="body", frozen_epochs=2).replace(frozen=())
    assert thawed.frozen_epochs is None


def test_each_parameter_learns_at_its_own_rate() -> None:
    recipe = resolve("digits.cnn", lr_factor={"body": 0.5, "0": 0.1}, layer_decay=0.8)
    factors = parts.learning_rates(recipe, model_of(recipe))
    # conv, norm; conv, norm; conv, norm; head: three blocks before it
    expected = {"0": 0.5 * 0.1 * 0.8**3, "4": 0.5 * 0.8**2, "8": 0.5 * 0.8}
    for layer, factor in expected.items():
        assert factors[f"{layer}.weight"] == pytest.approx(factor)
        assert factors[f"{int(layer) + 1}.weight"] == pytest.approx(factor / (0.1 if layer == "0" else 1))
    assert [factors[name] for name in list(factors)[-2:]] == [1.0, 1.0]


def test_groups_are_those_that_a_plain_loop_would_make() -> None:
    """AdamW with two groups by hand against the recipe's, three steps."""
    recipe = resolve(
        "digits.cnn", optimizer="adamw", lr=0.01, weight_decay=0.1, decay_on="weights", lr_factor={"body": 0.1}
    )
    # in training, the biases before a BatchNorm have gradients of rounding alone, by which AdamW divides
    ours, theirs = (model_of(recipe).double().eval() for _ in range(2))
    one = build.make_optimizer(recipe, build.parameter_groups(recipe, ours))
    named = list(theirs.named_parameters())
    head = {name for name, _ in named[-2:]}
    other = torch.optim.AdamW(
        [
            {
                "params": [parameter],
                "lr": 0.01 * (1 if name in head else 0.1),
                "weight_decay": 0.1 if parameter.ndim > 1 else 0.0,
            }
            for name, parameter in named
        ],
        betas=(0.9, 0.999),
    )
    images = torch.rand(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for group in one.param_groups:
            group["lr"] = recipe.lr * group["factor"]
        for model, optimizer in ((ours, one), (theirs, other)):
            model(images).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, mine), (_, reference) in zip(ours.named_parameters(), named, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12, msg=name)
    assert len(one.param_groups) == 4


def test_a_recipe_without_parts_has_one_group() -> None:
    recipe = resolve("digits.cnn")
    (group,) = build.parameter_groups(recipe, model_of(recipe))
    assert (group["factor"], group["weight_decay"]) == (1.0, recipe.weight_decay)
    assert len(group["params"]) == len(list(model_of(recipe).parameters()))


def test_what_is_frozen_for_some_epochs_is_trained_after_them() -> None:
    recipe = resolve("digits.cnn", frozen=("body",), frozen_epochs=2, fixed_norms=("1",))
    model = model_of(recipe)
    trained, training = [], []
    for epoch in (0, 1, 2):
        parts.freeze(recipe, model, epoch)
        parts.set_training(recipe, model, epoch)
        trained.append([parameter.requires_grad for parameter in model.parameters()])
        training.append([module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d)])
    assert trained[0] == trained[1] == [False] * (len(trained[0]) - 2) + [True, True]
    assert all(trained[2])
    assert training == [[False] * 3, [False] * 3, [False, True, True]]


def test_the_average_forgets_its_first_weights_where_it_warms_up() -> None:
    """min(decay, (1 + t) / (10 + t)), as of TensorFlow's ExponentialMovingAverage with num_updates."""
    found = []
    for warm in (False, True):
        recipe = resolve("digits.cnn", ema=0.99, ema_warmup=warm)
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(1.0)
        state = TrainState(
            model=model, optimizer=torch.optim.SGD(model.parameters()), ema={"weight": torch.zeros(1, 1)}
        )
        expected = 0.0
        for step in range(5):
            state.total_steps = step
            _update_average(state, recipe)
            decay = min(0.99, (1 + step) / (10 + step)) if warm else 0.99
            expected = decay * expected + (1 - decay)
        assert state.ema is not None
        assert state.ema["weight"].item() == pytest.approx(expected, rel=1e-6)
        found.append(expected)
    assert found[0] < 0.05 < 0.99 < found[1]


# Balanced order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("counts", [(1, 5, 30), (4, 4), (17,), (50, 1, 1, 3)])
def test_every_class_is_drawn_equally_often_and_so_is_every_picture_of_it(seed: int, counts: tuple[int, ...]) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)) * 3, counts))
    rows, drawn, numbers = len(labels), np.zeros(len(labels), int), []
    for epoch in range(6):
        order = sampler.balanced(seed, epoch, labels)
        assert len(order.rows) == rows
        per_class = np.bincount(np.searchsorted(np.unique(labels), labels[order.rows]), minlength=len(counts))
        assert per_class.max() - per_class.min() <= 1
        drawn += np.bincount(order.rows, minlength=rows)
        numbers += order.numbers.tolist()
        assert (order.numbers % rows == order.rows).all()
        for label in np.unique(labels):
            assert np.ptp(drawn[labels == label]) <= 1
    assert len(set(numbers)) == len(numbers)  # each draw is changed at random by itself


def test_balanced_orders_differ_by_seed_and_epoch() -> None:
    labels = np.repeat([0, 1], [4, 20])
    orders = {tuple(sampler.balanced(seed, epoch, labels).rows) for seed in range(2) for epoch in range(3)}
    assert len(orders) == 6


def test_masks_have_no_balanced_order() -> None:
    from trainers.checks import check_model
    from trainers.data.source import scan_files

    recipe = small_recipe("shapes.unet", order="balanced")
    with pytest.raises(ValueError, match="order=balanced draws the classes of pictures equally often, and shapes has"):
        check_model(recipe, scan_files(recipe, None))


# Any number of workers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curves(storage: Path) -> dict[str, list[dict[str, Any]]]:
    recipe = small_recipe("mnist.cnn", precision="fp64", **EVERYTHING)
    raw = small_data("mnist.cnn", storage / "raw" / "fine")
    runs: dict[str, tuple[int, dict[str, Any]]] = {
        "fine/1": (1, {}),
        "fine/2": (2, {}),
        "fine/3": (3, {}),
        "fine/sharded": (2, {"strategy": "fsdp2"}),
        # stopped in the last frozen epoch (9 steps each), and after it
        "fine/stopped#1": (2, {"stop_after": 14}),
        "fine/stopped#2": (2, {"attempt": 2, "stop_after": 8}),
        "fine/stopped#3": (2, {"attempt": 3}),
    }
    jobs = []
    for run, (ranks, more) in runs.items():
        own = {key: more[key] for key in ("stop_after", "attempt") if key in more}
        scale = {key: value for key, value in more.items() if key not in own}
        jobs.append((job(recipe, raw, storage, run.split("#")[0], **scale) | own, ranks))
    return dict(zip(runs, run_ranks(jobs), strict=True))


def lines(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [event["line"] for event in events if event["kind"] == "epoch"]


@pytest.mark.parametrize("run", ["fine/2", "fine/3", "fine/sharded"])
def test_several_workers_learn_the_same_with_all_of_it(
    curves: dict[str, list[dict[str, Any]]], storage: Path, run: str
) -> None:
    one, other = lines(curves["fine/1"]), lines(curves[run])
    assert len(one) == len(other) == 3
    for name in ("train/loss", "val/loss", "val/accuracy"):
        np.testing.assert_allclose([line[name] for line in other], [line[name] for line in one], rtol=1e-8)
    expected, found = last_weights(storage / "fine" / "1"), last_weights(storage / run)
    for name in expected:  # of a bias before a BatchNorm the gradient is rounding: see NO_GRADIENT in test_distributed
        if name not in ("0.bias", "4.bias", "8.bias"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-8, msg=name)


def test_a_run_stopped_in_its_last_frozen_epoch_ends_bit_for_bit_as_one_that_was_not(
    curves: dict[str, list[dict[str, Any]]], storage: Path
) -> None:
    assert [curves[f"fine/stopped#{part}"][-1]["status"] for part in (1, 2, 3)] == [
        "interrupted",
        "interrupted",
        "finished",
    ]
    whole, stopped = last_weights(storage / "fine" / "2"), last_weights(storage / "fine" / "stopped")
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())


@pytest.mark.slow
def test_a_run_killed_in_its_last_frozen_epoch_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL, and the same command again: weights, states of the optimizer and moving average. 30 pictures."""
    words = f"folder.tune --data {small_data('folder.tune', tmp_path / 'raw')}"
    words += " --epochs 4 --frozen body --frozen-epochs 2 --ema 0.9 --ema-warmup --layer-decay 0.7 --augment mixup=0.4"
    words += " --image-size 32 --stored-size 36 --batch-size 6 --micro-batch-size 3"
    network = {"model": "timm", "names": "head", "settings": "name='test_resnet'"}
    check_killed(tmp_path, words.split(), network=network, steps=5, kept=("model", "ema", "optimizer"))


def test_frozen_weights_move_after_the_frozen_epochs_only() -> None:
    recipe = small_recipe("mnist.cnn", precision="fp64", frozen=("body",), frozen_epochs=2)
    world = World(0, 1, torch.device("cpu"), "fp64")
    meta: Any = {**META, "classes": list("abcdefghij")}
    state = build.create_state(recipe, meta, world)
    parts.freeze(recipe, state.model, 0)
    before: dict[str, Tensor] = {name: value.clone() for name, value in state.model.state_dict().items()}
    images = torch.rand(4, 1, 12, 12, dtype=torch.float64)
    for epoch, moves in ((1, False), (2, True)):
        parts.freeze(recipe, state.model, epoch)
        parts.set_training(recipe, state.model, epoch)
        state.model(images).square().sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        after = state.model.state_dict()
        assert torch.equal(after["4.weight"], before["4.weight"]) != moves
        assert torch.equal(after["1.running_mean"], before["1.running_mean"]) != moves
