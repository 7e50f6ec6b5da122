"""Runs that find masks of objects: the same by any micro-batches, and from where they were killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import watched_work
from helpers.small import job, small_recipe
from torch import Tensor

from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints
from trainers.training.torch_internals import tree_leaves

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


STANDS = """
import os
import time
from pathlib import Path

from trainers.models import fcos
from trainers.models.fcos import head, points

METRICS = Path(os.environ.get("STANDS_AFTER_A_LINE_OF", "/none"))
passes = 0


def stand(model, _):
    global passes
    passes += model.training and METRICS.exists() and METRICS.read_text().count(chr(10)) == 1
    while passes == 5:
        time.sleep(0.02)


def build(**args):
    model = fcos.build(width=32, prototypes=4, **args)
    model.register_forward_pre_hook(stand)
    return model
"""
"""A network that stands still in the third step of its second epoch, where it is told to."""
STEPS = 3
"""In an epoch."""


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "stands.py").write_text(STANDS)
    line = f"shapes.fcos_masks --model {tmp_path}/stands.py --workers 0 --precision fp64"
    line += " --image-size 64 --batch-size 4 --micro-batch-size 2 --epochs 2 --checkpoint-seconds 0.001 --dataset-args"
    words = [*line.split(), *(f"{name}={value}" for name, value in OBJECTS.items()), "--storage", str(tmp_path)]
    metrics, store = tmp_path / "killed" / "metrics.jsonl", Store(tmp_path / "killed")

    def start(run: str, **more: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "trainers", "train", *words, "--run", run]
        with open(tmp_path / f"{run}.txt", "wb") as printed:
            return subprocess.Popen(
                argv, env={**os.environ, "OMP_NUM_THREADS": "1", **more}, stdout=printed, stderr=printed
            )

    def printed_by(run: str) -> str:
        return (tmp_path / f"{run}.txt").read_text()

    assert start("undisturbed").wait(300) == 0, printed_by("undisturbed")
    killed = start("killed", STANDS_AFTER_A_LINE_OF=str(metrics))
    until = time.monotonic() + 300
    while time.monotonic() < until and killed.poll() is None and Checkpoints(store).latest_step() <= STEPS:
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL, printed_by("killed")
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [STEPS]
    assert start("killed").wait(300) == 0, printed_by("killed")
    one, other = (Checkpoints(Store(tmp_path / run)).latest() for run in ("undisturbed", "killed"))
    assert one is not None
    assert other is not None
    for part in ("model", "optimizer"):
        pairs = list(zip(tree_leaves(one[part]), tree_leaves(other[part]), strict=True))
        assert sum(isinstance(leaf, Tensor) for leaf, _ in pairs) > 50
        assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
