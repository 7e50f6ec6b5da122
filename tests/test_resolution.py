"""From the recipe that was requested to the recipe as it will be trained. No files, no processes, no torch."""

from __future__ import annotations

from typing import Any

import pytest

from trainers.recipe import Recipe, Scale, resolve
from trainers.resolution import Circumstances, PlaceFacts, Resolved, resolve_recipe
from trainers.training.memory_fit import Need

REQUESTED = resolve("digits.cnn", batch_size=64)
META: Any = {"rows": {"train": 100, "val": 20}}
CPU = PlaceFacts(gpus=False, auto_precision="fp32", memory_limit=2**30)
GPU = PlaceFacts(gpus=True, auto_precision="bf16", memory_limit=2**30)
ELSEWHERE = PlaceFacts(gpus=True, auto_precision="auto", memory_limit=None)
MIB = 2**20


def earlier(epochs_run: int = 0, **changes: Any) -> Any:
    """The run.json of a run that was started before."""
    recipe = REQUESTED.replace(**{"micro_batch_size": 16, "precision": "fp64", **changes})
    return {"recipe": recipe.to_json(), "epochs_run": epochs_run}


UNTOLD = earlier(precision="auto")


def enough(recipe: Recipe, scale: Scale, meta: Any, limit: int | None, *, gpus: bool) -> Need:
    assert isinstance(scale, Scale)
    assert meta is META
    assert gpus in (True, False)
    return Need(recipe, bytes=MIB, limit=limit)


def enough_at_full_precision(recipe: Recipe, scale: Scale, meta: Any, limit: int | None, *, gpus: bool) -> Need:
    assert recipe.precision == "fp32"
    return enough(recipe, scale, meta, limit, gpus=gpus)


def too_little(recipe: Recipe, *_: object, **__: object) -> Need:
    return Need(recipe.replace(micro_batch_size=8), True, MIB, 2**30, "in micro-batches of 8")


def far_too_little(recipe: Recipe, *_: object, **__: object) -> Need:
    return Need(recipe, False, MIB, 2**30, "does not fit")


def so_little_that_it_is_not_predicted(recipe: Recipe, *_: object, **__: object) -> Need:
    return Need(recipe)


def unused(*_: object, **__: object) -> Need:
    raise AssertionError("memory is not to be predicted")


@pytest.mark.parametrize(
    ("changes", "workers", "known", "fit_memory", "micro_batch_size", "precision"),
    [
        # what the user chose stays
        ({"micro_batch_size": 4, "precision": "fp64"}, 2, {"place": GPU, "meta": META}, enough, 4, "fp64"),
        # else each worker's part of the batch, and the device's precision
        ({}, 0, {"place": CPU, "meta": META}, enough, 64, "fp32"),
        ({}, 1, {"place": GPU, "meta": META}, enough, 64, "bf16"),
        ({}, 4, {"place": GPU, "meta": META}, enough, 16, "bf16"),
        # which the workers find out where the driver does not know their devices
        ({}, 4, {"place": ELSEWHERE, "meta": META}, enough_at_full_precision, 16, "auto"),
        ({}, 4, {"place": ELSEWHERE, "meta": META}, too_little, 8, "auto"),
        ({"precision": "bf16"}, 4, {"place": ELSEWHERE, "meta": META}, enough, 16, "bf16"),
        # a run that ended before they did may still be given one
        (
            {"precision": "bf16"},
            4,
            {"earlier": earlier(precision="auto"), "place": GPU, "meta": META},
            enough,
            16,
            "bf16",
        ),
        # memory decides last
        ({}, 4, {"place": GPU, "meta": META}, too_little, 8, "bf16"),
        ({}, 4, {"place": GPU, "meta": META}, far_too_little, 16, "bf16"),
        # a run that continues keeps what was fixed at its start; memory is predicted until an epoch is done
        ({}, 4, {"earlier": earlier(), "place": GPU, "meta": META}, enough, 16, "fp64"),
        ({}, 1, {"earlier": earlier(), "place": GPU, "meta": META}, too_little, 8, "fp64"),
        ({}, 1, {"earlier": earlier(epochs_run=3), "place": GPU, "meta": META}, unused, 16, "fp64"),
        # but with a recipe of its own where it adopts another run's checkpoint
        ({"lr": 0.7}, 1, {"earlier": earlier(), "adopts": True, "place": CPU, "meta": META}, enough, 64, "fp32"),
        # before the place stands and the data are known, only what needs neither
        ({}, 4, {}, unused, 16, "auto"),
        ({}, 4, {"earlier": earlier()}, unused, 16, "fp64"),
        ({}, 4, {"place": GPU}, unused, 16, "auto"),
    ],
)
def test_a_recipe_is_resolved_by_its_circumstances(
    changes: dict[str, Any], workers: int, known: dict[str, Any], fit_memory: Any, micro_batch_size: int, precision: str
) -> None:
    requested = REQUESTED.replace(**changes)
    found = resolve_recipe(requested, Scale(workers=workers), Circumstances(run="one", **known), fit_memory)
    expected = requested.replace(micro_batch_size=micro_batch_size, precision=precision)
    assert found.recipe.differences(expected) == {}


@pytest.mark.parametrize(
    ("fit_memory", "fits", "note"),
    [(enough, True, ""), (too_little, True, "in micro-batches of 8"), (far_too_little, False, "does not fit")],
)
def test_what_memory_decides_is_noted(fit_memory: Any, fits: bool, note: str) -> None:
    found = resolve_recipe(REQUESTED, Scale(), Circumstances(run="one", place=CPU, meta=META), fit_memory)
    assert (found.fits, found.note) == (fits, note)
    assert found.memory == {"predicted_bytes": MIB, "limit_bytes": 2**30}


def test_without_a_prediction_run_json_has_no_memory() -> None:
    known = Circumstances(run="one", place=CPU, meta=META)
    found = resolve_recipe(REQUESTED, Scale(), known, so_little_that_it_is_not_predicted)
    assert found == Resolved(recipe=REQUESTED.replace(micro_batch_size=64, precision="fp32"))


@pytest.mark.parametrize(
    ("changes", "scale", "known", "words"),
    [
        ({"lr": 0.7}, Scale(), {"earlier": earlier()}, ("the run one", "lr was", "now 0.7", "--run")),
        ({"precision": "fp32"}, Scale(), {"earlier": earlier()}, ("precision was 'fp64'", "--run")),
        (
            {"batch_size": 24},
            Scale(),
            {"earlier": earlier()},
            (": batch_size was 64 and is now 24. Give",),
        ),
        (
            {},
            Scale(),
            {"earlier": {"recipe": REQUESTED.to_json() | {"lr": "x"}}},
            ("the run one", "invalid recipe", "--run"),
        ),
        ({}, Scale(workers=5), {}, ("batch_size=64", "workers=5", "--micro-batch-size")),
        ({}, Scale(workers=(1, 3)), {}, ("workers=1:3", "--micro-batch-size")),
    ],
)
def test_what_cannot_be_resolved_is_refused_before_place_and_data_are_known(
    changes: dict[str, Any], scale: Scale, known: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        resolve_recipe(REQUESTED.replace(**changes), scale, Circumstances(run="one", **known), unused)
    for word in words:
        assert word in str(refused.value)


def test_resolving_early_changes_nothing_about_the_result() -> None:
    scale, known = Scale(workers=4), Circumstances(run="one", earlier=earlier(), place=GPU, meta=META)
    early = resolve_recipe(REQUESTED, scale, Circumstances(run="one", earlier=earlier()), unused).recipe
    assert resolve_recipe(early, scale, known, too_little) == resolve_recipe(REQUESTED, scale, known, too_little)
