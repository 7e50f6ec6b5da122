"""A run that is killed in mid-epoch, by SIGKILL, and continued by the same command, beside one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints
from trainers.training.torch_internals import tree_leaves

STANDS = """
import os
import time
from pathlib import Path

from trainers.models import {model}
from trainers.models.{model} import {names}

METRICS = Path(os.environ.get("STANDS_AFTER_A_LINE_OF", "/none"))
passes = 0


def stand(model, _):
    global passes
    passes += model.training and METRICS.exists() and METRICS.read_text().count(chr(10)) == 1
    while passes == 5:
        time.sleep(0.02)


def build(**args):
    model = {model}.build({settings}, **args)
    model.register_forward_pre_hook(stand)
    return model
"""
"""A network that stands still in its fifth pass of the second epoch, where it is told to."""


def check_killed(
    tmp_path: Path, words: Sequence[str], *, network: dict[str, str], steps: int, kept: Sequence[str]
) -> None:
    """Kill a run of `words` in its second epoch: given again, it ends bit for bit as one that was not killed.

    Args:
        tmp_path: Where the runs lie.
        words: Of the command, with a micro-batch of half a batch; --model, --storage and --run are added.
        network: What STANDS needs: the model, the names that its module offers besides, settings of build.
        steps: In an epoch.
        kept: Parts of the checkpoint that are compared.
    """
    (tmp_path / "stands.py").write_text(STANDS.format(**network))
    words = [*words, "--workers", "0", "--precision", "fp64", "--checkpoint-seconds", "0.001"]
    words += ["--model", f"{tmp_path}/stands.py", "--storage", str(tmp_path)]
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
    while time.monotonic() < until and killed.poll() is None and Checkpoints(store).latest_step() <= steps:
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL, printed_by("killed")
    assert steps < Checkpoints(store).latest_step() < 2 * steps
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [steps]
    assert start("killed").wait(300) == 0, printed_by("killed")
    assert "going on from step" in printed_by("killed")
    one, other = (Checkpoints(Store(tmp_path / run)).latest() for run in ("undisturbed", "killed"))
    assert one is not None
    assert other is not None
    for part in kept:
        pairs = list(zip(tree_leaves(one[part]), tree_leaves(other[part]), strict=True))
        assert sum(isinstance(leaf, Tensor) for leaf, _ in pairs) > 50
        assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
