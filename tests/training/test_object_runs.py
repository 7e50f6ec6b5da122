"""A detector without BatchNorm learns the same in micro-batches of any size, also of pictures without objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.ranks import watched_work
from helpers.small import job, small_recipe

from trainers import box_table
from trainers.data.batches import Cached
from trainers.data.sampler import Pass

PICTURES = 19
SCORES = ("val/loss", "val/ap", "val/ap50", "val/ap75", "val/ar100", "val/f1", "val/confidence")


@pytest.mark.slow
@pytest.mark.parametrize(
    "augment",
    [{"horizontal_flip": 0.5, "translate": 0.1}, {"mosaic": 1.0, "scale": [0.5, 1.5]}],
    ids=["moved", "mosaic"],
)
def test_losses_and_scores_do_not_depend_on_the_micro_batch(storage: Path, augment: dict[str, Any]) -> None:
    runs = []
    for micro in (8, 4, 2, 1):
        recipe = small_recipe(
            "shapes.fcos",
            precision="fp64",
            epochs=2,
            batch_size=8,
            micro_batch_size=micro,
            model_args={"norm": "group", "width": 32},
            augment=augment,
            dataset_args={"objects": "boxes", "train": PICTURES, "val": 9, "test": 0},
        )
        made = job(recipe, None, storage, f"group/{'-'.join(augment)}/{micro}")
        *events, end = watched_work(made | {"no_checkpoints": True})
        assert [sorted(ids) for ids in end["seen"]] == [list(range(PICTURES))] * 2
        lines = [event["line"] for event in events if event["kind"] == "epoch"]
        runs.append([end["steps"], *([line[score] for line in lines] for score in SCORES)])
    rows = np.arange(PICTURES)
    (batch,) = Cached(made["data"]["folder"]).batches("train", [Pass(0, 0, rows, rows, 1, True)])
    assert 1 <= (~box_table.are_objects(batch.targets)).all(axis=1).sum() < PICTURES / 2
    whole, *others = runs
    for other in others:
        for expected, found in zip(whole, other, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-8)
