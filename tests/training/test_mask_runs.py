"""Runs that find masks of objects: the same by any micro-batches, and from where they were killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.killed import check_killed
from helpers.ranks import watched_work
from helpers.small import job, small_recipe

OBJECTS = {"objects": "masks", "train": 12, "val": 5, "test": 0}


@pytest.mark.slow
def test_micro_batches_change_nothing_where_groups_are_normalised(storage: Path) -> None:
    """And one worker alone, in this process; 1, 2 and 3 workers: test_loop.py. One picture in ten has no object."""
    found = []
    for micro_batch in (1, 2, 4, 8):
        changes: dict[str, Any] = {"batch_size": 8, "micro_batch_size": micro_batch, "precision": "fp64", "epochs": 3}
        changes |= {"model_args": {"norm": "group", "width": 32}, "dataset_args": OBJECTS}
        run = f"groups/{micro_batch}"
        events = watched_work(job(small_recipe("shapes.fcos_masks", **changes), None, storage, run))
        found.append([event["line"] for event in events if event["kind"] == "epoch"])
    for lines in found[1:]:
        for line, expected in zip(lines, found[0], strict=True):
            for name in line:
                if name.startswith(("train/", "val/")):
                    np.testing.assert_allclose(line[name], expected[name], rtol=1e-8, err_msg=name)
    assert found[0][-1]["val/loss"] < found[0][0]["val/loss"]


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    words = "shapes.fcos_masks --image-size 64 --batch-size 4 --micro-batch-size 2 --epochs 2 --dataset-args".split()
    words += [f"{name}={value}" for name, value in OBJECTS.items()]
    network = {"model": "fcos", "names": "head, points", "settings": "width=32, prototypes=4"}
    check_killed(tmp_path, words, network=network, steps=3, kept=("model", "optimizer"))
