"""Hyper-parameters that follow from the number of training pictures, and hold from then on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from trainers import from_data
from trainers.cli import parse
from trainers.recipe import Recipe, Scale, resolve
from trainers.resolution import Circumstances, PlaceFacts, agree_with_earlier, resolve_recipe
from trainers.training.memory_fit import Need


@dataclass
class Nothing:
    """No options of a command."""


CPU = PlaceFacts(gpus=False, auto_precision="fp32", memory_limit=None)


def enough(recipe: Recipe, *_: object, **__: object) -> Need:
    return Need(recipe)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "lr"),
    [(30, 8, 30, 5e-4), (200, 8, 30, 5e-4), (740, 16, 16, 7.07e-4), (4_500, 64, 4, 1.41e-3), (50_000, 64, 4, 1.41e-3)],
)
def test_batch_epochs_and_learning_rate_follow_from_the_number_of_pictures(
    rows: int, batch: int, epochs: int, lr: float
) -> None:
    recipe, reasons = from_data.follow(resolve("folder.tune"), rows)
    assert (recipe.batch_size, recipe.epochs, recipe.from_data) == (batch, epochs, ())
    assert recipe.lr == pytest.approx(lr, rel=0.01)
    assert reasons.keys() == {"batch_size", "epochs", "lr"}
    assert f"{rows:,} pictures" in reasons["batch_size"]


def test_what_is_given_holds_and_the_learning_rate_is_that_of_the_batch() -> None:
    recipe, reasons = from_data.follow(resolve("folder.tune", epochs=2, batch_size=128), 740)
    assert (recipe.epochs, recipe.batch_size) == (2, 128)
    assert recipe.lr == pytest.approx(2e-3)
    assert list(reasons) == ["lr"]


def test_the_rate_of_sgd_grows_as_the_batch() -> None:
    recipe, _ = from_data.follow(resolve("resnet.r18", from_data=("batch_size", "lr")), 740)
    assert (recipe.batch_size, recipe.lr, recipe.epochs) == (16, pytest.approx(0.05), 90)


def test_a_flag_holds_though_its_value_is_the_one_that_stands_in_the_recipe() -> None:
    recipe = resolve("folder.tune")
    flags = ["--epochs", str(recipe.epochs), "--lr", str(recipe.lr)]
    changes, _, _ = parse(recipe, Scale(), Nothing(), flags, "train")
    assert changes == {"epochs": recipe.epochs, "lr": recipe.lr}
    assert recipe.replace(**changes).from_data == ("batch_size",)


def test_a_micro_batch_needs_a_batch() -> None:
    with pytest.raises(ValueError, match="micro_batch_size=4 needs a batch_size that is given"):
        resolve("folder.tune", micro_batch_size=4)
    assert resolve("folder.tune", micro_batch_size=4, batch_size=16).micro_batch_size == 4


def test_only_what_can_follow_is_named() -> None:
    with pytest.raises(ValueError, match="there is no field that from_data can set called 'momentum'"):
        resolve("folder.tune", from_data=("momentum",))


def test_a_run_is_resolved_with_its_pictures_and_goes_on_with_what_it_began_with() -> None:
    requested = resolve("folder.tune")
    early = resolve_recipe(requested, Scale(workers=2), Circumstances(run="one"), enough)
    assert early.recipe.micro_batch_size is None
    meta: Any = {"rows": {"train": 740}}
    known = Circumstances(run="one", place=CPU, meta=meta)
    found = resolve_recipe(requested, Scale(workers=2), known, enough)
    assert (found.recipe.batch_size, found.recipe.micro_batch_size, found.recipe.epochs) == (16, 8, 16)
    assert found.from_data.keys() == {"batch_size", "epochs", "lr"}
    # the same command, when some pictures were added or left out: refused elsewhere; what was resolved holds
    assert agree_with_earlier(requested, found.recipe.to_json(), "one") == found.recipe
    with pytest.raises(ValueError, match=r"lr was 0.0007.* and is now 0.1"):
        agree_with_earlier(requested.replace(lr=0.1), found.recipe.to_json(), "one")


def test_workers_that_cannot_share_the_batch_are_told() -> None:
    meta: Any = {"rows": {"train": 740}}
    known = Circumstances(run="one", place=CPU, meta=meta)
    with pytest.raises(ValueError, match="batch_size=16 cannot be split evenly over workers=3"):
        resolve_recipe(resolve("folder.tune"), Scale(workers=3), known, enough)


def test_a_run_of_a_version_that_knew_no_share_goes_on() -> None:
    recipe = resolve("digits.cnn")
    old = recipe.replace(warmup_epochs=1.0, micro_batch_size=64, precision="fp32").to_json()
    assert agree_with_earlier(recipe, {k: v for k, v in old.items() if k != "warmup_share"}, "one").warm_up == 1.0
    with pytest.raises(ValueError, match="warmup_epochs was 2"):
        agree_with_earlier(recipe, {**old, "warmup_epochs": 2.0}, "one")


@pytest.mark.parametrize("changes", [{"warmup_share": 0.1, "warmup_epochs": 1.0}, {"warmup_share": 1.0}])
def test_a_warm_up_is_one_or_the_other_and_leaves_something_of_the_run(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="warmup_"):
        resolve("resnet.r18", **changes)


def test_one_kind_of_warm_up_takes_the_place_of_the_other() -> None:
    assert resolve("resnet.r18", epochs=18).warm_up == pytest.approx(1.0)
    assert resolve("resnet.r18", warmup_epochs=2).warm_up == 2.0
    assert resolve("resnet.r18", warmup_epochs=0).warm_up == 0.0
    assert resolve("resnet.r18").replace(warmup_epochs=3).replace(warmup_share=0.5).warm_up == 45.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("weights", None),
        ("data", None),
        ("0.5,0.25", ([0.5] * 3, [0.25] * 3)),
        ("0.1,0.2,0.3,0.4,0.5,0.6", ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])),
    ],
)
def test_normalisation_is_a_rule_or_numbers(given: str, expected: object) -> None:
    assert resolve("resnet.r18", normalisation=given).mean_and_std(3) == expected


@pytest.mark.parametrize("given", ["imagenet", "0.5", "0.5,0", "0.1,0.2,0.3", "0.5,-1"])
def test_other_normalisations_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"normalisation=.* takes weights, data, or MEAN,STD"):
        resolve("resnet.r18", normalisation=given)


def test_normalisation_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="is of 2 channels, and image_folder gives 3"):
        resolve("resnet.r18", normalisation="0.1,0.2,0.3,0.4").mean_and_std(3)
