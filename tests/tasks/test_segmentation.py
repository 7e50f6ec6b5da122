"""What segmentation adds to the promises of the loop: ignored pixels, two terms of a loss, two stages of training."""

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
from helpers.ranks import run_ranks, watched_work
from helpers.small import job, last_weights, scene, small_data, small_recipe, write_pairs
from torch.nn import functional

from trainers.__main__ import main
from trainers.data import sampler
from trainers.data.batches import Cached
from trainers.datasets import IGNORED
from trainers.storage.store import Store
from trainers.training import build
from trainers.training.checkpoint import Checkpoints

SHAPES = ["--workers", "0", "--cpus-per-worker", "1", "--image-size", "32x48", "--batch-size", "4"]
SHAPES += ["--dataset-args", "train=13", "val=5", "test=3"]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A user's own folder of 19 and 6 pictures: from none to all of the pixels of a picture are ignored."""
    folder = tmp_path_factory.mktemp("uneven")
    rng = np.random.default_rng(5)
    for split, count in (("train", 19), ("val", 6)):
        for index in range(count):
            picture, mask = scene(rng, 3, 24, 24)
            mask[: [0, 3, 12, 23, 24][index % 5]] = 255
            files = folder / split / "images" / f"{index}.png", folder / split / "masks" / f"{index}.png"
            write_pairs({files: (picture, mask)})
    return str(folder)


def own(**changes: Any) -> Any:
    small = {"image_size": (24, 24), "dataset_args": {"classes": 3}, "precision": "fp64", "augment": {"translate": 0.3}}
    small |= {"task_args": {"loss": "cross_entropy"}, "class_weights": "none"}
    return small_recipe("unet.camvid", dataset="mask_folder", **{**small, **changes})


def curves(events: list[dict[str, Any]]) -> np.ndarray:
    found = [event["line"] for event in events if event["kind"] == "epoch"]
    return np.array(
        [[line["train/loss"], line["val/loss"], line["val/miou"], line["val/boundary_f1"]] for line in found]
    )


def test_uneven_ignored_pixels_do_not_tilt_the_loss(storage: Path, uneven: str) -> None:
    """Workers, and micro-batches where there is no BatchNorm, may be any: each term has the batch's own divisor."""
    plain = {"model_args": {"batch_norm": False, "base_channels": 4, "depth": 2}}
    changes: dict[str, dict[str, Any]] = {
        "plain": {"batch_size": 8, "micro_batch_size": 4},
        "weighted": {"batch_size": 8, "micro_batch_size": 4, "class_weights": "median", "task_args": {"loss": "sum"}},
        "micro 4": {"batch_size": 8, "micro_batch_size": 4, "class_weights": "erfnet", **plain},
        "micro 8": {"batch_size": 8, "micro_batch_size": 8, "class_weights": "erfnet", **plain},
        "sum 1": {"batch_size": 8, "micro_batch_size": 1, "task_args": {"loss": "sum"}, **plain},
        "sum 8": {"batch_size": 8, "micro_batch_size": 8, "task_args": {"loss": "sum"}, **plain},
    }
    plan = [("plain", 1), ("plain", 2), ("weighted", 1), ("weighted", 2), ("weighted", 3)]
    plan += [("micro 4", 1), ("micro 8", 1), ("sum 1", 2), ("sum 8", 1)]
    jobs = [(job(own(**changes[key]), uneven, storage, f"{key}/{size}"), size) for key, size in plan]
    found = dict(zip(plan, map(curves, run_ranks(jobs)), strict=True))
    pairs = [("plain", 1), ("plain", 2)], [("weighted", 1), ("weighted", 2)], [("weighted", 1), ("weighted", 3)]
    for one, other in (*pairs, [("micro 4", 1), ("micro 8", 1)], [("sum 1", 2), ("sum 8", 1)]):
        assert found[one].shape == (3, 4)
        np.testing.assert_allclose(found[other], found[one], rtol=1e-8, err_msg=f"{one} {other}")


def test_a_plain_loop_over_whole_batches_gives_the_same_weights(storage: Path, uneven: str) -> None:
    recipe = own(
        batch_size=20,
        micro_batch_size=2,
        epochs=4,
        optimizer="sgd",
        momentum=0.0,
        lr=0.1,
        schedule="constant",
        warmup_epochs=0.0,
        class_weights="median",
        augment={"horizontal_flip": 0, "translate": 0, "brightness": 0, "contrast": 0},
        model_args={"batch_norm": False, "base_channels": 4, "depth": 2},
    )
    work = job(recipe, uneven, storage, "by hand")
    watched_work(work)
    cached = Cached(work["data"]["folder"])
    whole = next(cached.batches("train", [sampler.one_pass(np.arange(19))]))
    mean, std = (torch.tensor(cached.meta[name], dtype=torch.float64).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = (torch.from_numpy(whole.images).permute(0, 3, 1, 2).double() / 255 - mean) / std
    targets = torch.from_numpy(whole.targets).long()
    pixels = np.array([(whole.targets == label).sum() for label in range(3)])
    areas = [sum((mask != 255).sum() for mask in whole.targets if (mask == label).any()) for label in range(3)]
    weights = torch.from_numpy(np.median(pixels / areas) / (pixels / areas))
    model = build.build_model(recipe, cached.meta).double()
    for _ in range(4):
        functional.cross_entropy(model(images), targets, weights, ignore_index=255).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    found = Checkpoints(Store(storage / "by hand")).latest()
    assert found is not None
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["unet.drone", "unet.drone_binary"])
def test_both_kinds_of_unet_stop_early_and_say_why(storage: Path, name: str) -> None:
    raw = small_data(name, storage / "raw" / name)
    recipe = small_recipe(name, epochs=50, patience=5, precision="fp32", lr=1e-12, schedule="constant")
    end = watched_work(job(recipe, raw, storage, f"patient {name}"))[-1]
    assert end["status"] == "stopped_early"
    assert end["epoch"] == end["best"]["epoch"] + 5
    assert f"no better {'iou' if 'binary' in name else 'miou'} than" in end["message"]
    assert "for 5 epochs" in end["message"]


@pytest.mark.parametrize("name", ["unet.drone", "unet.drone_binary", "shapes.unet"])
def test_the_loss_falls(storage: Path, name: str) -> None:
    raw = small_data(name, storage / "raw" / name)
    recipe = small_recipe(name, epochs=8, precision="fp32", lr=3e-3)
    lines = [event["line"] for event in watched_work(job(recipe, raw, storage, f"falls {name}")) if "line" in event]
    assert lines[-1]["train/loss"] < 0.95 * lines[0]["train/loss"]


def test_the_shown_pictures_are_the_fixed_ones_and_the_best_and_worst(storage: Path) -> None:
    recipe = small_recipe("shapes.unet", precision="fp32", dataset_args={"train": 13, "val": 12, "test": 3})
    work = job(recipe, None, storage, "shown")
    end = watched_work(work)[-1]
    pictures = end["pictures"]
    assert [picture["kind"] for picture in pictures[:4]] == [""] * 4
    assert {"best", "worst"} == {picture["kind"] for picture in pictures[4:]}
    overlap = end["counts"]["overlap"]
    for picture in pictures:
        inner, union = overlap[picture["row"]].T
        assert picture["score"] == pytest.approx((inner[union > 0] / union[union > 0]).mean())
        valid = picture["target"] != 255  # what is shown is what was counted, in the best epoch
        right = (picture["labels"] == picture["target"]) & valid
        assert right.sum() == inner.sum()
        assert picture["image"].shape == (32, 48, 3)
    ranked = sorted(range(12), key=lambda row: -(overlap[row, :, 0] / np.maximum(overlap[row, :, 1], 1)).sum())
    assert len(ranked) == 12
    assert len({picture["row"] for picture in pictures}) == len(pictures)
    best = min(picture["score"] for picture in pictures if picture["kind"] == "best")
    worst = max(picture["score"] for picture in pictures if picture["kind"] == "worst")
    assert best >= worst
    again = watched_work(job(recipe, None, storage, "shown again"))[-1]["pictures"]
    assert [picture["name"] for picture in again] == [picture["name"] for picture in pictures]


# Two stages --------------------------------------------------------------------------------------------------


def test_one_command_trains_both_stages_and_hands_the_weights_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path))
    code = main(["train", "shapes.erfnet", *SHAPES, "--epochs", "1", "--run", "two"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.out.split() == [str(tmp_path / "two-erfnet_encoder"), str(tmp_path / "two")]
    first, second = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("two-erfnet_encoder", "two"))
    assert (first["recipe"]["model_args"], second["recipe"]["model_args"]) == (
        {"stage": "encoder"},
        {"stage": "decoder"},
    )
    assert second["recipe"]["init_from"] == "two-erfnet_encoder"
    for name in ("two-erfnet_encoder", "two"):  # the table at the end
        assert printed.err.rstrip().splitlines()[-1].startswith("two ")
        assert f"\n{name} " in printed.err
    encoder = [name for name in last_weights(tmp_path / "two") if name.startswith("encoder.")]
    assert f"{len(encoder)} of " in printed.err
    assert "tensors start from two-erfnet_encoder; fresh: decoder." in printed.err
    # both named, and with --init-from, it is the same
    code = main(["train", "shapes.erfnet_encoder", "shapes.erfnet", *SHAPES, "--epochs", "1", "--run", "named"])
    assert code == 0
    flags = ["--epochs", "1", "--init-from", "shapes.erfnet_encoder-named", "--run", "alone"]
    assert main(["train", "shapes.erfnet", *SHAPES, *flags]) == 0
    two = last_weights(tmp_path / "two")
    for other in ("shapes.erfnet-named", "alone"):
        weights = last_weights(tmp_path / other)
        assert all(torch.equal(weights[name], two[name]) for name in two), other
    capsys.readouterr()
    assert main(["train", "shapes.erfnet", *SHAPES, "--epochs", "1", "--run", "two"]) == 0
    assert capsys.readouterr().err.count("has finished already") == 2


@pytest.mark.slow
def test_a_run_killed_in_its_second_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainers", "train", "shapes.erfnet", *SHAPES, "--epochs", "4"]
    command += ["--checkpoint-seconds", "0.05"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(storage: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--run", "run", "--storage", str(tmp_path / storage)],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    whole = start("undisturbed")
    _, printed = whole.communicate(timeout=900)
    assert whole.returncode == 0, printed
    killed = start("killed")
    history = tmp_path / "killed/run/metrics.jsonl"
    until = time.monotonic() + 240
    while time.monotonic() < until and not (history.exists() and len(history.read_text().splitlines()) >= 2):
        time.sleep(0.02)
    assert history.exists()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed/run/confusion.png").exists(), "it had ended before it was killed"
    again = start("killed")
    _, printed = again.communicate(timeout=900)
    assert again.returncode == 0, printed
    assert "has finished already" in printed  # the first stage
    assert "going on from step" in printed
    one, other = last_weights(tmp_path / "undisturbed/run"), last_weights(tmp_path / "killed/run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ignored_is_what_published_masks_use() -> None:
    assert IGNORED == 255
