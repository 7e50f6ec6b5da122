"""Checkpoints: complete or not there, bounded, and no way to run code."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints
from trainers.training.state import TrainState


def state(seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return TrainState(model=model, optimizer=optimizer)


def at(step: int, best_step: int | None = None) -> TrainState:
    made = state(step)
    made.total_steps = step
    made.best = None if best_step is None else {"epoch": 1, "metric": "accuracy", "value": 0.5, "step": best_step}
    return made


def steps(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoints"))


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    made = at(7, 7)
    made.epoch, made.step, made.sums = 2, 3, {"loss": 1.5}
    made.history, made.seconds = [{"epoch": 1, "val/loss": 0.25}], {"train": 2.0}
    made.ema = {name: value.clone() for name, value in made.model.state_dict().items()}
    checkpoints = Checkpoints(Store(tmp_path), 1)
    checkpoints.save(made)
    for parameter in made.model.parameters():
        parameter.data.zero_()  # what was saved is a copy
    checkpoints.wait()
    other = state(99)
    other.ema = {name: value.clone() for name, value in other.model.state_dict().items()}
    snapshot = checkpoints.latest()
    assert snapshot is not None
    other.restore(snapshot)
    expected = at(7)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)
        assert torch.equal(other.ema[name], value)
    for mine, theirs in zip(
        expected.optimizer.state_dict()["state"].values(), other.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (other.epoch, other.step, other.sums, other.history) == (2, 3, {"loss": 1.5}, made.history)


def test_the_best_the_last_and_the_one_before_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Store(tmp_path), 1)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(at(step, best_step=20 if step > 10 else 10))
        checkpoints.wait()
    assert steps(tmp_path) == ["00000020", "00000040", "00000050"]


@pytest.mark.parametrize("damage", ["cut", "changed", "no manifest", "cut manifest", "gone"])
def test_of_a_damaged_checkpoint_the_one_before_is_used_and_it_is_said(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(Store(tmp_path), 1)
    for step in (10, 20):
        checkpoints.save(at(step))
        checkpoints.wait()
    folder = tmp_path / "checkpoints" / "00000020"
    file, manifest = folder / "state-1.pt", folder / "manifest.json"
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        file.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "cut manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        file.unlink()
    warnings: list[str] = []
    snapshot = checkpoints.latest(warnings.append)
    assert snapshot is not None
    assert '"total_steps": 10' in snapshot["progress"]
    if "manifest" not in damage:  # without a manifest it was never a checkpoint
        assert "00000020" in warnings[0]
        assert "the one before it is used" in warnings[0]


def test_a_later_attempt_wins_over_a_later_step(tmp_path: Path) -> None:
    new, cut_off = Checkpoints(Store(tmp_path), 2), Checkpoints(Store(tmp_path), 1)
    new.save(at(20))
    new.wait()
    cut_off.save(at(90))
    cut_off.wait()
    snapshot = new.latest()
    assert snapshot is not None
    assert '"total_steps": 20' in snapshot["progress"]


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/pwned",)

    checkpoints = Checkpoints(Store(tmp_path), 1)
    checkpoints._write({"model": Evil()}, 10, None)
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        checkpoints.latest()
    assert not (tmp_path / "pwned").exists()


def test_a_write_that_takes_long_does_not_stop_training_and_the_best_and_the_newest_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write = threading.Event(), Store.write

    def slow(*args: Any, **options: Any) -> None:
        assert go.wait(30)
        write(*args, **options)

    monkeypatch.setattr(Store, "write", slow)
    checkpoints = Checkpoints(Store(tmp_path), 1)
    for step, best_step in ((10, 10), (20, 20), (30, 20), (40, 20)):
        checkpoints.save(at(step, best_step))  # none of them waits
    go.set()
    checkpoints.close()
    assert steps(tmp_path) == ["00000020", "00000040"]
    assert '"total_steps": 20' in checkpoints.best()["progress"]


def test_a_write_that_failed_is_reported_at_the_next_save_and_the_one_before_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(Store(tmp_path), 1)
    checkpoints.save(at(10))
    checkpoints.wait()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        checkpoints.save(at(20))
        with pytest.raises(OSError, match=r"00000020 cannot be written: the disk is full"):
            checkpoints.wait()
    assert '"total_steps": 10' in (checkpoints.latest() or {})["progress"]
    checkpoints.save(at(30))
    checkpoints.close()
    assert '"total_steps": 30' in (checkpoints.latest() or {})["progress"]


def test_a_host_that_was_cut_off_changes_nothing_where_the_run_continues_elsewhere(tmp_path: Path) -> None:
    cut_off, new = Checkpoints(Store(tmp_path), 1), Checkpoints(Store(tmp_path), 2)
    for step in (10, 20):
        cut_off.save(at(step))
        cut_off.wait()
    new.save(at(15))
    new.wait()
    for step in (30, 40, 50):
        cut_off.save(at(step))
    cut_off.close()
    assert steps(tmp_path) == ["00000015", "00000020"]
    assert '"total_steps": 15' in (new.latest() or {})["progress"]
