"""Runs with every augmentation: the same on any number of workers, and resumed bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import run_ranks
from helpers.small import job, last_weights, small_data, small_recipe

from trainers import fitting
from trainers.augmentations import AUGMENTATIONS
from trainers.progress import Progress
from trainers.recipe import Scale

ALONE: dict[str, Any] = {
    "horizontal_flip": 0.5,
    "translate": 0.1,
    "rand_augment": [2, 15],
    "elastic": [12, 2],
    "erase": 0.5,
    "blur": 0.3,
    "noise": 0.05,
}
LABELS = {**ALONE, "mixup": 0.4, "cutmix": 1.0}
MASKS = {**ALONE, "mixup": 0.4, "cutmix": 1.0, "trivial_augment": True, "rand_augment": 0}
TABLE: dict[str, Any] = {"model": "linear_cnn", "model_args": {}, "image_size": (12, 12), "stored_size": None}
TABLE |= {"fixed_norms": (), "augment": LABELS}
RECIPES: dict[str, dict[str, Any]] = {
    "mnist.cnn": {"augment": LABELS, "class_weights": "inverse", "task_args": {"label_smoothing": 0.1}},
    "unet.camvid": {"augment": MASKS, "task_args": {"loss": "sum"}},
    "folder.tune_labels": {**TABLE, "class_weights": "inverse"},
    "folder.tune_values": TABLE,
}


@pytest.fixture(scope="module")
def curves(storage: Path) -> dict[str, list[dict[str, Any]]]:
    jobs: dict[str, tuple[Any, int]] = {}
    for name, changes in RECIPES.items():
        recipe = small_recipe(name, precision="fp64", epochs=2, **changes)
        raw = small_data(name, storage / "raw" / f"augmented-{name}")
        for ranks in (1, 2, 3):
            jobs[f"{name}/{ranks}"] = (job(recipe, raw, storage, f"augmented/{name}/{ranks}"), ranks)
        jobs[f"{name}/sharded"] = (job(recipe, raw, storage, f"augmented/{name}/sharded", strategy="fsdp2"), 2)
        for attempt, more in ((1, {"stop_after": 5}), (2, {})):  # within the second epoch, or the first
            stopped = job(recipe, raw, storage, f"augmented/{name}/stopped") | {"attempt": attempt, **more}
            jobs[f"{name}/stopped#{attempt}"] = (stopped, 2)
    return dict(zip(jobs, run_ranks(list(jobs.values())), strict=True))


def lines(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [event["line"] for event in events if event["kind"] == "epoch"]


def test_every_augmentation_is_in_these_runs() -> None:
    used = {name for changes in RECIPES.values() for name, value in changes["augment"].items() if value}
    new = {"rand_augment", "trivial_augment", "elastic", "erase", "blur", "noise", "mixup", "cutmix"}
    assert new <= used <= AUGMENTATIONS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("run", ["2", "3", "sharded"])
@pytest.mark.parametrize("name", RECIPES)
def test_several_workers_learn_the_same_from_augmented_and_mixed_pictures(
    curves: dict[str, list[dict[str, Any]]], name: str, run: str
) -> None:
    one, other = (curves[f"{name}/{number}"] for number in ("1", run))
    np.testing.assert_allclose(other[-1]["steps"], one[-1]["steps"], rtol=1e-8)
    assert len(lines(one)) == len(lines(other)) == 2
    for key in ("train/loss", "val/loss"):
        np.testing.assert_allclose(
            [line[key] for line in lines(other)], [line[key] for line in lines(one)], rtol=1e-8, err_msg=key
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_stopped_within_an_epoch_ends_bit_for_bit_as_one_that_was_not(
    curves: dict[str, list[dict[str, Any]]], storage: Path, name: str
) -> None:
    assert [curves[f"{name}/stopped#{attempt}"][-1]["status"] for attempt in (1, 2)] == ["interrupted", "finished"]
    whole, stopped = (last_weights(storage / "augmented" / name / run) for run in ("2", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(stopped[key], value) for key, value in whole.items())


class _Stopped(Exception):
    pass


def test_a_run_that_cannot_mix_says_so_before_data_are_listed(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise _Stopped

    monkeypatch.setattr(fitting, "list_data", stop)
    said = io.StringIO()
    recipe = small_recipe("digits.cnn", batch_size=4, micro_batch_size=1, augment={"mixup": 0.2})
    with pytest.raises(_Stopped):
        fitting.fit(recipe, scale=Scale(workers=0, storage=str(storage)), progress=Progress(said))
    words = " ".join(said.getvalue().split())
    assert "mixup=0.2 mixes the pictures of a micro-batch, and one of micro_batch_size=1 has no other" in words
