"""Predicted memory against what torch's allocator hands out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.allocator import facts, measure, measure_sharded

from trainers.formatting import format_size, parse_size
from trainers.recipe import Recipe, Scale, resolve
from trainers.training import memory_trace, peak_memory
from trainers.training.memory_fit import fit_memory
from trainers.training.memory_trace import Untraceable

MODELS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "linear_cnn": ("digits.cnn", 1, 10, {"image_size": (28, 28)}),
    "texture_cnn": ("textures.cnn", 1, 10, {"image_size": (32, 32)}),
    "resnet-18": ("cifar.r18", 3, 10, {"image_size": (32, 32)}),
    "resnet-50": ("resnet.r50", 3, 10, {"image_size": (64, 64), "stored_size": (72, 72)}),
    "erfnet encoder": ("erfnet.encoder", 3, 19, {"image_size": (64, 128)}),
    "erfnet decoder": ("erfnet.decoder", 3, 19, {"image_size": (64, 128), "init_from": None}),
    "deeplabv3plus": ("deeplab.camvid", 3, 11, {"image_size": (96, 128)}),
    "unet": ("unet.drone", 3, 24, {"image_size": (64, 64), "model_args": {"base_channels": 16}}),
}
"""Name -> recipe, channels, classes, changes."""


def made(name: str, **changes: Any) -> tuple[Recipe, dict[str, Any]]:
    """A small recipe of a model, and what preparing its data would find."""
    recipe, channels, classes, small = MODELS[name]
    made = resolve(recipe, **{**small, "precision": "fp32", "batch_size": 3, **changes})
    return made, facts(made, channels, classes)


def assert_measured(predicted: int, measured: int, recipe: Recipe, meta: dict[str, Any]) -> None:
    """Up to 5 %, and to what kernels borrow for themselves on the way back, which is the processor's affair.

    Predicted are the two copies of a weight that oneDNN makes with AVX2 or AVX-512; on a processor without these it
    makes four, and other libraries may make none.
    """
    weights = [p.numel() for p in _model(recipe, meta).parameters() if p.ndim == 4]
    copy = max(weights) * (8 if recipe.precision == "fp64" else 4)
    assert 0.95 * measured - 2 * copy <= predicted <= 1.05 * measured + 2 * copy


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "resnet-50" else [])
        for name in MODELS
        if name != "erfnet encoder"  # a part of the decoder's
    ],
)
def test_a_prediction_is_what_the_allocator_hands_out(name: str) -> None:
    recipe, meta = made(name)  # a batch of 3, which is not traced
    assert_measured(peak_memory.predict(recipe, meta), measure(recipe, meta), recipe, meta)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 6, "micro_batch_size": 2, "class_weights": "inverse"},
        {"optimizer": "adamw", "clip_norm": 1.0, "ema": 0.99, "frozen": ("layer1", "layer2")},
        {"precision": "fp64", "momentum": 0.0},
        {"augment": {"rotate": 10, "brightness": 0.2, "fill": "reflect"}},
        {"augment": {"mixup": 0.4}, "class_weights": "inverse"},
        {"augment": {"rand_augment": 9, "elastic": [20, 2], "erase": 0.3, "blur": 0.3, "noise": 0.1, "cutmix": 1.0}},
    ],
    ids=" ".join,
)
def test_what_a_recipe_asks_for_is_counted(changes: dict[str, Any]) -> None:
    recipe, meta = made("resnet-18", **changes)
    assert_measured(peak_memory.predict(recipe, meta), measure(recipe, meta), recipe, meta)


def test_what_a_loss_takes_is_counted() -> None:
    """Where the network is small and its classes are many, that is most of it."""
    small = {"image_size": (32, 32), "model_args": {"base_channels": 4, "depth": 2}}
    recipe, meta = made("unet", **small, task_args={"loss": "tversky"})
    assert peak_memory.predict(recipe, meta) == pytest.approx(measure(recipe, meta), rel=0.01)


def test_bf16_takes_less_than_fp32_and_is_predicted_as_well() -> None:
    recipe, meta = made("unet", precision="bf16", batch_size=4)
    predicted = peak_memory.predict(recipe, meta)
    assert_measured(predicted, measure(recipe, meta), recipe, meta)
    assert predicted < peak_memory.predict(recipe.replace(precision="fp32"), meta)


@pytest.mark.parametrize("name", ["unet", "erfnet encoder"])
def test_activations_that_are_made_again_are_predicted_as_well(name: str) -> None:
    recipe, meta = made(name)
    predicted = peak_memory.predict(recipe, meta, activation_checkpointing=True)
    assert_measured(predicted, measure(recipe, meta, activation_checkpointing=True), recipe, meta)
    assert predicted < 0.95 * peak_memory.predict(recipe, meta)


@pytest.mark.slow
def test_a_sharded_model_takes_less_and_no_more_than_predicted() -> None:
    recipe, meta = made("resnet-50", optimizer="adam", ema=0.99)
    predicted = peak_memory.predict(recipe, meta, workers=2, sharded=True)
    assert predicted < 0.85 * peak_memory.predict(recipe, meta, workers=2)
    assert predicted / 1.4 < measure_sharded(recipe, meta, 2) <= predicted
    assert peak_memory.predict(recipe, meta, workers=8, sharded=True) < 0.8 * predicted


def test_states_and_averages_are_counted_once_for_each_weight() -> None:
    sgd, meta = made("linear_cnn", batch_size=2)
    weights = sum(p.numel() * 4 for p in _model(sgd, meta).parameters())
    base = peak_memory.predict(sgd, meta)
    assert peak_memory.predict(sgd.replace(optimizer="adam"), meta) - base == pytest.approx(weights, rel=0.1)
    assert peak_memory.predict(sgd.replace(momentum=0.0), meta) - base == pytest.approx(-weights, rel=0.1)
    assert peak_memory.predict(sgd.replace(ema=0.9), meta) - base == pytest.approx(weights, rel=0.1)


def _model(recipe: Recipe, meta: dict[str, Any]) -> Any:
    from trainers.training.build import build_model

    return build_model(recipe, meta)


def test_a_weighted_loss_keeps_all_micro_batches_on_the_device() -> None:
    recipe, meta = made("linear_cnn", batch_size=64, micro_batch_size=4)
    waiting = (64 - 2 * 4) * (28 * 28 * 4 + 8)
    weighted = peak_memory.curve(recipe.replace(class_weights="inverse"), meta)
    assert weighted(4, 16) - weighted(4, 2) == waiting
    plain = peak_memory.curve(recipe, meta)
    assert plain(4, 16) == plain(4, 2) > plain(4)


def test_what_is_alive_is_affine_in_the_micro_batch() -> None:
    recipe, channels, classes, small = MODELS["unet"]
    traced = resolve(recipe, **{**small, "precision": "fp32"})
    low, middle, high = (memory_trace.Trace(traced, channels, classes, n).step(1) for n in (2, 5, 8))
    assert all(a + c == 2 * b for a, b, c in zip(low, middle, high, strict=True))
    curve = peak_memory.curve(*made("unet"))
    assert [curve(n) for n in (2, 5, 8)] == [max(low), max(middle), max(high)]


def test_the_largest_micro_batch_divides_and_fits() -> None:
    recipe, meta = made("unet", batch_size=12)
    curve = peak_memory.curve(recipe, meta)
    for limit in (curve(12), curve(12) - 1, curve(4, 3), curve(1, 12), curve(1, 12) - 1):
        micro = peak_memory.largest_micro_batch(recipe, meta, limit)
        fitting = [d for d in (1, 2, 3, 4, 6, 12) if peak_memory.predict(recipe, meta, d) <= limit]
        assert micro == max(fitting, default=None)
    assert peak_memory.largest_micro_batch(recipe.replace(micro_batch_size=3), meta, 2**40) == 3
    huge = recipe.replace(batch_size=10**9, micro_batch_size=None)
    assert peak_memory.largest_micro_batch(huge, {**meta, "rows": {}}, 0) is None  # at once


POOLED = """
from torch import nn


def build(image_size, channels, classes):
    wide = nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*wide, nn.{norm}, nn.Flatten(), nn.Linear(16, classes))
"""


@pytest.mark.parametrize(
    ("norm", "rows", "smallest"),
    [
        ("BatchNorm2d(16)", 60, 2),
        ("BatchNorm2d(16)", 59, 3),  # some steps are odd: by twos, one picture of them is alone
        ("GroupNorm(4, 16)", 60, 1),
        ("GroupNorm(4, 16)", 59, 1),
    ],
)
def test_no_micro_batch_is_chosen_that_leaves_batch_norm_one_value(
    norm: str, rows: int, smallest: int, tmp_path: Path
) -> None:
    path = tmp_path / norm[:5] / f"{rows}.py"
    path.parent.mkdir()
    path.write_text(POOLED.format(norm=norm))
    recipe = resolve("cifar.r18", model=str(path), precision="fp32", batch_size=6)
    meta = facts(recipe, 3, 10)
    meta["rows"] = {"train": rows}
    least = peak_memory.predict(recipe, meta, smallest)
    assert peak_memory.largest_micro_batch(recipe, meta, least) == smallest
    assert peak_memory.largest_micro_batch(recipe, meta, least - 1) is None
    note = fit_memory(recipe, Scale(), meta, least - 1, always=True).note
    assert note.endswith(f"not even {'one picture at a time fits' if smallest == 1 else 'two pictures at a time fit'}")


def test_that_mixing_sees_smaller_micro_batches_is_told() -> None:
    recipe, meta = made("linear_cnn", batch_size=4, augment={"mixup": 0.2})
    for micro, told in ((2, "; mixup of these, not the batch"), (1, "one of micro_batch_size=1 has no other")):
        limit = peak_memory.predict(recipe, meta, micro)
        need = fit_memory(recipe, Scale(), meta, limit, always=True)
        assert need.recipe.micro_batch_size == micro
        assert told in need.note


def test_the_largest_batch_is_the_last_that_fits() -> None:
    curve = peak_memory.curve(*made("unet"))
    limit = 2**30
    batch = curve.largest_batch(limit)
    assert curve(batch) <= limit < curve(batch + 1)
    assert curve.largest_batch(1000) == 0
    shared = curve.largest_batch(limit, 3)
    assert shared % 3 == 0
    assert curve(shared // 3, 1, 3) <= limit < curve(shared // 3 + 1, 1, 3)


def test_a_step_has_no_more_pictures_than_there_are() -> None:
    recipe, meta = made("linear_cnn", batch_size=64)
    few = {**meta, "rows": {"train": 70}}  # two steps of 35
    assert peak_memory.predict(recipe, few) == peak_memory.predict(recipe.replace(batch_size=35), {**meta, "rows": {}})


def test_recipes_that_differ_in_what_takes_no_memory_share_a_trace() -> None:
    recipe, meta = made("linear_cnn")
    other = recipe.replace(lr=0.5, epochs=3, batch_size=8, seed=1, schedule="step")
    assert peak_memory.curve(recipe, meta) is peak_memory.curve(other, meta)


def test_random_numbers_are_left_as_they_are() -> None:
    recipe, meta = made("linear_cnn", image_size=(20, 20))
    before = torch.random.get_rng_state()
    peak_memory.predict(recipe, meta)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return images.mean((2, 3)) if float(images.sum()) else None", "cannot be predicted.*model.py, line"),
        ("return self.fc(images)", "cannot be predicted.*model.py, line"),
        ("raise ValueError('odd sizes only')", "odd sizes only"),
    ],
)
def test_a_model_that_cannot_be_traced_is_named(body: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\n\n\nclass M(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.fc = nn.Linear(1, 10)\n\n    def forward(self, images):\n        {body}\n\n\n"
        "def build(*, image_size, channels, classes):\n    return M()\n"
    )
    recipe, meta = made("linear_cnn", model=str(tmp_path / "model.py"))
    with pytest.raises(ValueError, match=message) as raised:
        peak_memory.predict(recipe, meta)
    with pytest.raises(ValueError, match=message):  # a limit that is asked for cannot be kept
        fit_memory(recipe, Scale(memory="1GiB"), meta, 2**30)
    if isinstance(raised.value, Untraceable):  # it may well train
        need = fit_memory(recipe, Scale(), meta, 2**30, always=True)
        assert (need.fits, need.bytes, need.recipe) == (True, None, recipe)
        assert "whether it fits will show" in need.note
    else:
        with pytest.raises(ValueError, match=message):
            fit_memory(recipe, Scale(), meta, 2**30, always=True)


@pytest.mark.parametrize(
    ("text", "size"),
    [("10.76GiB", int(10.76 * 2**30)), ("32 gb", 32 * 10**9), ("900MiB", 900 * 2**20), ("1.5MB", 1500000), ("77", 77)],
)
def test_sizes_with_units_are_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "3x", "1e3MB", "1 GiB 2", "nan"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size of memory"):
        parse_size(text)


def test_sizes_are_formatted_in_binary_units() -> None:
    sizes = [12, 3 * 2**10, 512 * 2**20, int(10.76 * 2**30)]
    assert [format_size(size) for size in sizes] == ["12 bytes", "3 KiB", "512 MiB", "10.76 GiB"]


def test_the_context_is_known_where_there_is_a_gpu() -> None:
    found = peak_memory.context_bytes()
    assert (found is None) == (not torch.cuda.is_available())
    assert found is None or found > 2**26
