"""Pretrained weights: refused before anything is decoded where they cannot be had, and given pictures normalised as
they were trained (fyu/drn 24, wasidennis/AdaptSegNet 74)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from trainers.__main__ import main
from trainers.fitting import RunResult, fit
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.recipe import Recipe, Scale, resolve
from trainers.resolution import resolve_normalisation

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stands in for the download: the weights of another ResNet-18 of 1000 classes."""
    folder = tmp_path_factory.mktemp("hub")
    path = folder / "hub" / "checkpoints" / os.path.basename(models.ResNet18_Weights.DEFAULT.url)
    path.parent.mkdir(parents=True)
    torch.save(models.resnet18().state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder))
        yield path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark pictures: their own mean is far from ImageNet's."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "val"):
        for name, top in (("a", 30), ("b", 60)):
            (folder / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, top, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def train(root: Path, data: Path, run: str = "x", **changes: Any) -> RunResult:
    small = {"image_size": (32, 32), "stored_size": None, "epochs": 1, "batch_size": 4, "warmup_epochs": 0.0}
    model = {"model": changes.pop("model", "resnet")}
    recipe = resolve("resnet.r18", precision="fp32").replace(**model).replace(**{**small, **changes})
    return fit(recipe, scale=Scale(workers=0, cpus_per_worker=1, storage=str(root), data=str(data)), run=run)


def test_pictures_are_normalised_as_the_weights_ask(tmp_path: Path, data: Path) -> None:
    run = train(tmp_path, data, model_args={"weights": "imagenet"})
    assert (run.run["dataset"]["mean"], run.run["dataset"]["std"]) == (MEAN, STD)
    out = export(run.folder, str(tmp_path / "model.pt2"))
    assert json.loads(Path(f"{out}.json").read_text())["mean"] == MEAN
    assert evaluate(run.folder)["loss"] == pytest.approx(run.run["final"]["loss"], rel=1e-5)


def test_without_weights_they_are_normalised_by_the_data(tmp_path: Path, data: Path) -> None:
    for number, args in enumerate(({}, {"weights": None})):
        run = train(tmp_path, data, str(number), model_args=args)
        assert run.run["dataset"]["mean"] == pytest.approx([22 / 255] * 3, abs=0.01)


def test_a_run_that_starts_from_another_takes_its_normalisation(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, "first", model_args={"weights": "imagenet"})
    assert train(tmp_path, data, "second", init_from="first").run["dataset"]["mean"] == MEAN
    grey = train(tmp_path, data, "grey", init_from="first", dataset_args={"channels": 1})
    assert len(grey.run["dataset"]["mean"]) == 1


def test_runs_that_were_trained_otherwise_keep_their_normalisation(tmp_path: Path, data: Path) -> None:
    """Older versions normalised by the data whatever the weights."""
    run = train(tmp_path, data, model_args={"weights": "imagenet"})
    file = Path(run.folder) / "run.json"
    old = {**run.run["dataset"], "mean": [0.1, 0.1, 0.1], "std": [0.2, 0.2, 0.2]}
    file.write_text(json.dumps({**run.run, "status": "interrupted", "dataset": old}))
    again = train(tmp_path, data, model_args={"weights": "imagenet"})
    assert again.run["dataset"]["mean"] == [0.1, 0.1, 0.1]


def test_a_model_of_ones_own_says_what_its_weights_ask(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from trainers.models import linear_cnn\nNORMALISATION = {'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}\n\n\n"
        "def build(*, image_size, channels, classes, weights=None):\n"
        "    return linear_cnn.build(image_size=image_size, channels=channels, classes=classes)\n"
    )
    run = train(tmp_path, data, model=str(path), model_args={"weights": "half"})
    assert run.run["dataset"]["mean"] == [0.5, 0.5, 0.5]


def test_a_run_in_a_folder_of_runs_is_started_from_by_its_name(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, data, "sweep/first", model="linear_cnn")
    for number, name in enumerate(("sweep/first", f"{tmp_path}/sweep/first")):
        train(tmp_path, data, str(number), model="linear_cnn", init_from=name)
        assert "tensors start from" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused_before_decoding(tmp_path: Path, data: Path) -> None:
    train(tmp_path, data, "first", model="linear_cnn")
    prepared = sorted((tmp_path / "cache").iterdir())
    with pytest.raises(ValueError, match="init_from=first: none of its weights fits this model; give the model"):
        train(tmp_path, data, "second", init_from="first", image_size=40)
    shutil.rmtree(tmp_path / "first/checkpoints")
    with pytest.raises(ValueError, match="holds no checkpoint of a finished epoch"):
        train(tmp_path, data, "second", init_from="first", image_size=40)
    with pytest.raises(ValueError, match="there is no such run"):
        train(tmp_path, data, "second", init_from=f"{tmp_path}/first/run.json")
    assert sorted((tmp_path / "cache").iterdir()) == prepared
    assert not (tmp_path / "second/run.json").exists()


def flags(root: Path, data: Path, *more: str) -> list[str]:
    return [
        *("train", "resnet.r18", "--data", str(data), "--storage", str(root), "--run", "x", "--workers", "0"),
        *("--image-size", "32", "--batch-size", "4", "--epochs", "1", *more),
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["weights=imagenett"], "weights=imagenett is not allowed"),
        (["weights=imagenet", "stem=3x3"], "weights=imagenet needs images of 3 channels and stem=standard"),
        (["weights=imagenet", "--dataset-args", "channels=1"], "needs images of 3 channels"),
        (["weights=imagenet", "depth=34"], "could not be read"),  # behind a proxy that is not there
        (["depth=19"], "depth=19 is not allowed; model_args depth takes one of 18, 34, 50, 101"),
        (["stem=5x5"], "stem=5x5 is not allowed"),
        (["width=3"], "there is no argument of model 'resnet' called 'width'"),
    ],
)
def test_what_a_model_cannot_start_from_is_refused_before_decoding(
    more: list[str],
    words: str,
    tmp_path: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert main(flags(tmp_path / "runs", data, "--model-args", *more)) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert words in message
    assert "Traceback" not in message
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []


def test_a_run_is_resumed_where_the_hub_is_not_reached(tmp_path: Path, data: Path, hub: Path) -> None:
    run = train(tmp_path, data, model_args={"weights": "imagenet"})
    file = Path(run.folder) / "run.json"
    file.write_text(json.dumps({**run.run, "status": "interrupted"}))
    away = hub.rename(hub.with_suffix(".away"))
    try:
        assert train(tmp_path, data, model_args={"weights": "imagenet"}).status == "finished"
        assert evaluate(run.folder)["rows"] == 8
    finally:
        away.rename(hub)


def test_grey_pictures_are_refused_with_the_way_to_colour(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"change these \(--dataset-args channels=3 .*\), or leave"):
        train(tmp_path, data, model_args={"weights": "imagenet"}, dataset_args={"channels": 1})


def recipe_with(weights: str | None) -> Recipe:
    return resolve("deeplab.camvid", model_args={"weights": weights})


def test_deeplab_asks_for_the_same() -> None:
    meta: Any = {"mean": [0.1] * 3, "std": [0.2] * 3, "channels": 3}
    found, note = resolve_normalisation(recipe_with("imagenet"), meta, None)
    assert (found["mean"], found["std"]) == (MEAN, STD)
    assert "weights=imagenet" in note
    assert resolve_normalisation(recipe_with(None), meta, None) == (meta, "")
