"""Runs on mosaics: the same with any number of workers, and from where they were stopped."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import run_ranks, watched_work
from helpers.small import job, last_weights, small_recipe

AUGMENT = {"mosaic": 1.0, "scale": [0.5, 1.5], "translate": 0.1, "horizontal_flip": 0.5}
OBJECTS = {"objects": "boxes", "train": 13, "val": 5, "test": 0}
STEPS = 4
"""Of an epoch."""


def mosaics(storage: Path, run: str, **changes: Any) -> dict[str, Any]:
    """Two epochs with mosaics, and one without."""
    more = {"precision": "fp64", "epochs": 3, "augment": AUGMENT, "dataset_args": OBJECTS, **changes}
    return job(small_recipe("shapes.fcos", **more), None, storage, run)


@pytest.mark.slow
def test_several_workers_learn_the_same_from_mosaics(storage: Path) -> None:
    jobs = [(mosaics(storage, f"mosaic/{ranks}"), ranks) for ranks in (1, 3)]
    one, other = (
        events[-1] | {"lines": [e["line"] for e in events if e["kind"] == "epoch"]} for events in run_ranks(jobs)
    )
    assert len(one["steps"]) == 3 * STEPS
    np.testing.assert_allclose(other["steps"], one["steps"], rtol=1e-8)
    assert other["seen"] == one["seen"] == [list(range(13))] * 3
    for line, same in zip(other["lines"], one["lines"], strict=True):
        for key in line.keys() & {"train/loss", "val/loss", "val/ap", "val/ap50", "val/ar100", "val/f1"}:
            np.testing.assert_allclose(line[key], same[key], rtol=1e-8, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [STEPS + 2, 2 * STEPS + 2], ids=["with mosaics", "in the epoch without"])
def test_a_run_stopped_within_an_epoch_ends_bit_for_bit_as_one_that_was_not(storage: Path, stop_after: int) -> None:
    whole, name = mosaics(storage, "mosaic/whole"), f"mosaic/stopped-{stop_after}"
    if not (storage / "mosaic/whole" / "checkpoints").exists():
        watched_work(whole)
    ends = [
        watched_work(mosaics(storage, name) | {"attempt": attempt, **more})[-1]["status"]
        for attempt, more in ((1, {"stop_after": stop_after}), (2, {}))
    ]
    assert ends == ["interrupted", "finished"]
    expected, found = (last_weights(storage / run) for run in ("mosaic/whole", name))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [STEPS + 2, 2 * STEPS + 2], ids=["with mosaics", "in the epoch without"])
def test_a_run_killed_within_an_epoch_ends_bit_for_bit_as_one_that_was_not(storage: Path, kill_after: int) -> None:
    whole, name = mosaics(storage, "mosaic/whole"), f"mosaic/killed-{kill_after}"
    if not (storage / "mosaic/whole" / "checkpoints").exists():
        watched_work(whole)
    process = multiprocessing.get_context("spawn").Process(
        target=watched_work, args=(mosaics(storage, name) | {"kill_after": kill_after},)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    end = watched_work(mosaics(storage, name) | {"attempt": 2})[-1]
    assert end["status"] == "finished"
    assert len(end["steps"]) in (STEPS, 2 * STEPS)  # since the newest checkpoint, or the one that a thread still wrote
    expected, found = (last_weights(storage / run) for run in ("mosaic/whole", name))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.slow
def test_the_last_epoch_sees_pictures_as_they_are(storage: Path) -> None:
    """Another probability of mosaics changes the losses of the first two epochs, and with a rate of 0 not the last."""
    often, never = (
        watched_work(mosaics(storage, f"mosaic/{name}", lr=1e-300, augment={"mosaic": chance, "scale": [0.5, 1.5]}))
        for name, chance in (("often", 1.0), ("never", 1e-9))
    )
    first, last = (
        [abs(a - b) > 1e-6 for a, b in zip(often[-1]["steps"][part], never[-1]["steps"][part], strict=True)]
        for part in (slice(0, 2 * STEPS), slice(2 * STEPS, None))
    )
    assert all(first)
    assert not any(last)
