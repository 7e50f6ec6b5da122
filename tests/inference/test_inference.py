"""Evaluate at the masks' own size, predict masks, export: what is done with a finished run."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.small import ALL, scene, small_data, small_recipe, write_pairs
from PIL import Image
from torch.nn import functional

from trainers.__main__ import main
from trainers.data.source import scan_files
from trainers.fitting import fit
from trainers.inference import load, predictions
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.load import find_trained
from trainers.inference.predict import predict
from trainers.inference.predictions import pixels as pixel_classes
from trainers.inference.predictions.pixels import segment
from trainers.inference.predictor import Predictor
from trainers.progress import Progress
from trainers.recipe import Recipe, Scale, resolve
from trainers.runs.mask_figures import palette
from trainers.storage.store import Store
from trainers.training import build
from trainers.training.preprocess import Preprocess

pytestmark = pytest.mark.figures

HERE = Scale(workers=0, cpus_per_worker=1)
CLASSES = 4


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes with masks, and a classes.csv."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(7)
    for split, count in (("train", 6), ("val", 3)):
        for index in range(count):
            files = folder / split / "images" / f"{index}.png", folder / split / "masks" / f"{index}.png"
            write_pairs({files: scene(rng, CLASSES, 50 + 9 * index, 70 - index)})
    return folder


def pixels(file: Any) -> np.ndarray:
    with Image.open(file) as picture:
        return np.array(picture)


def own(**changes: Any) -> Recipe:
    small = {"image_size": (32, 40), "dataset_args": {"classes": CLASSES}, "epochs": 1, "lr": 1e-3}
    return small_recipe("unet.camvid", dataset="mask_folder", **{**small, **changes})


@pytest.fixture(scope="module")
def runs(storage: Path, raw: Path) -> dict[str, str]:
    """Trained runs by what is special about them -> their folders."""
    scale = HERE.replace(storage=str(storage), data=str(raw))
    changes: dict[str, dict[str, Any]] = {
        "stretch": {"resize": "stretch"},
        "pad": {"resize": "pad"},
        "crop": {"resize": "crop"},
        "larger": {"resize": "stretch", "stored_size": (40, 48), "augment": {"crop": True}},
    }
    return {name: fit(own(**some), scale=scale, run=name).folder for name, some in changes.items()}


def reference(folder: str, resize: str) -> np.ndarray:
    """The confusion matrix of the val split at its own size, step by step."""
    run = json.loads((Path(folder) / "run.json").read_text())
    recipe = Recipe.from_json(run["recipe"])
    source = scan_files(recipe, run["scale"]["data"])
    state, world = load.restore(recipe, run["dataset"], Store(folder))
    preprocess = Preprocess(recipe, run["dataset"], world)
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for item in source.splits["val"]:
        picture = pixels(item.path)
        mask = pixels(item.mask_path)
        height, width = mask.shape
        wanted = recipe.storage_size
        if resize != "stretch":
            pick = min if resize == "pad" else max
            scale = pick(wanted[0] / height, wanted[1] / width)
            wanted = (round(height * scale), round(width * scale))
        shrunk = np.asarray(Image.fromarray(picture).resize((wanted[1], wanted[0]), Image.Resampling.BILINEAR))
        images = preprocess.normalise(torch.from_numpy(shrunk.copy()).permute(2, 0, 1)[None].float())
        with torch.no_grad():
            logits = state.model.eval()(images)
        logits = functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        labels = logits.argmax(1)[0].numpy()
        np.add.at(confusion, (mask[mask < 255], labels[mask < 255]), 1)
    return confusion


@pytest.mark.parametrize("name", ["stretch", "pad", "crop", "larger"])
def test_scores_at_the_masks_own_size(runs: dict[str, str], name: str) -> None:
    scores = evaluate(runs[name], native=True)
    confusion = reference(runs[name], "stretch" if name == "larger" else name)
    right, both = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    assert scores["rows"] == 3
    assert scores["classes"] == [f"class{label}" for label in range(CLASSES)]
    assert scores["accuracy"] == pytest.approx(right.sum() / confusion.sum(), abs=2e-4)  # of nearly equal logits
    iou = right / (both - right)
    np.testing.assert_allclose(scores["per_class"]["iou"], iou, atol=2e-3)
    assert scores["ms_per_image"] > 0
    assert 0 <= scores["boundary_f1"] <= 1


def test_sliding_windows_at_the_masks_own_size(runs: dict[str, str]) -> None:
    """A window as large as the picture is the picture; smaller ones differ at their rims alone."""
    predictor = Predictor(find_trained(runs["stretch"]), sliding=True, overlap=0.5)
    picture = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
    images = predictor.preprocess.normalise(torch.from_numpy(picture).permute(2, 0, 1)[None].float())
    with torch.no_grad():
        expected = predictor.state.model(images).argmax(1)[0].numpy()
    np.testing.assert_array_equal(segment(predictor, picture), expected)
    larger = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    assert segment(predictor, larger).shape == (150, 200)
    scores = evaluate(runs["stretch"], sliding=True)
    assert scores["rows"] == 3
    assert scores["accuracy"] > 0


def test_predict_writes_masks_colours_and_overlays(runs: dict[str, str], raw: Path, tmp_path: Path) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    for name in ("in/0.png", "in/a/0.png", "in/a/0.jpg"):
        Image.fromarray(pixels(raw / "val/images/0.png")).save(tmp_path / name)
    (tmp_path / "in/a/broken.png").write_bytes(b"no picture")
    table, bad = predict(runs["stretch"], [str(tmp_path / "in")], str(tmp_path / "out"))
    assert bad == [str(tmp_path / "in/a/broken.png")]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["mask"] for row in rows] == ["masks/0.png", "masks/a/0.jpg.png", "masks/a/0.png.png", ""]
    picture = pixels(raw / "val/images/0.png")
    labels = segment(Predictor(find_trained(runs["stretch"]), sliding=False, overlap=0), picture)
    for name in ("masks/0.png", "masks/a/0.png.png"):
        np.testing.assert_array_equal(pixels(tmp_path / "out" / name), labels)
    colours = Image.open(tmp_path / "out/legend.png").convert("RGB").getcolors(2**24)
    assert colours is not None
    assert set(palette(CLASSES)) <= {colour for _, colour in colours}
    for kind in ("colours", "overlays"):
        assert pixels(tmp_path / "out" / kind / "0.png").shape == picture.shape
    shares = [float(rows[0][f"share of class{label}"]) for label in range(CLASSES)]
    np.testing.assert_allclose(shares, np.bincount(labels.ravel(), minlength=CLASSES) / labels.size, atol=1e-4)


def test_predict_tells_of_files_it_leaves_out_and_why_others_cannot_be_read(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 32)).save(tmp_path / "in/0.png", save_all=True, append_images=[Image.new("RGB", (40, 32), 9)])
    Image.new("RGB", (40, 32)).save(tmp_path / "in/1.jpe", format="JPEG")
    (tmp_path / "in/2.png").write_bytes(b"")
    for name in ("3.cr2", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"-")
    _, bad = predict(runs["stretch"], [str(tmp_path / "in")], str(tmp_path / "out"), progress=Progress())
    told = " ".join(capsys.readouterr().err.split())
    assert bad == [str(tmp_path / "in/2.png")]
    assert "1 file is left out" in told
    assert ".cr2" in told
    assert "the file is empty" in told
    assert "several pages or frames" in told


def test_a_picture_whose_logits_do_not_fit_into_memory_is_named(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 32)).save(tmp_path / "0.png")
    monkeypatch.setattr(pixel_classes, "LARGE", 100)
    monkeypatch.setattr(pixel_classes, "free_memory", lambda: 1000)
    for sliding in (False, True):
        out = tmp_path / f"out{sliding}"
        _, bad = predict(runs["stretch"], [str(tmp_path / "0.png")], str(out), sliding=sliding, progress=Progress())
        assert len(bad) == (not sliding)
        assert ("40x32 pixels, whose logits need" in " ".join(capsys.readouterr().err.split())) == (not sliding)


def test_what_is_for_masks_is_refused_elsewhere(
    storage: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fit(small_recipe("digits.cnn", epochs=1), scale=HERE.replace(storage=str(storage)), run="digits")
    digits = str(storage / "digits")
    for command, words in (
        (["evaluate", digits, "--native"], "classifies whole pictures"),
        (["predict", digits, str(tmp_path), "--out", str(tmp_path), "--sliding"], "classifies whole pictures"),
        (["evaluate", runs["pad"], "--sliding", "--overlap", "1"], "overlap=1.0 is not allowed"),
        (["export", runs["pad"]], "--out"),
        (["export", "--out", "x"], "usage: python -m trainers export RUN --out FILE"),
    ):
        try:
            code = main(command)
        except SystemExit as error:
            code = int(str(error.code))
        assert code == 2, command
        assert words in " ".join(capsys.readouterr().err.split())


def test_evaluate_prints_a_table_of_classes(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", runs["stretch"], "--native"]) == 0
    out = capsys.readouterr().out
    assert "ms_per_image" in out
    assert [line.split()[0] for line in out.splitlines()[-CLASSES:]] == [f"class{label}" for label in range(CLASSES)]
    assert main(["evaluate", runs["stretch"], "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["split"], scores["rows"]) == ("val", 3)
    assert {"miou", "accuracy", "boundary_f1", "dice", "f1", "fw_iou", "class_accuracy"} <= scores.keys()


EXPORTED = ["cifar.r18", "digits.cnn", "textures.cnn", "unet.camvid", "unet.drone_binary"]
LIKE_OTHERS = ["erfnet.decoder", "erfnet.encoder", "fcos.coco", "mnist.cnn", "resnet.r18", "shapes.unet", "unet.drone"]
LIKE_OTHERS += ["fcos_masks.coco"]
TABLES = ["folder.tune_labels", "folder.tune_values"]
"""Those that test_table_inference.py exports."""
LARGER = [name for name in ALL if name not in (*EXPORTED, *LIKE_OTHERS, *TABLES)]
"""Recipes whose export takes several seconds."""


def test_a_recipe_of_each_model_and_task_is_exported() -> None:
    kinds = {(resolve(name).model, resolve(name).task) for name in ALL}
    assert {(resolve(name).model, resolve(name).task) for name in (*EXPORTED, *LARGER, *TABLES)} == kinds


@pytest.mark.parametrize("name", [*EXPORTED, *(pytest.param(name, marks=[pytest.mark.slow]) for name in LARGER)])
def test_a_recipe_exports_what_it_has_learned(storage: Path, tmp_path: Path, name: str) -> None:
    folder = small_data(name, storage / "raw" / name)
    recipe = small_recipe(name, epochs=1, precision="fp32")
    scale = HERE.replace(storage=str(storage), data=folder)
    run = fit(recipe, scale=scale, run=f"export-{name}")
    file = export(run.folder, str(tmp_path / "model.pt2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]
    facts = json.loads((tmp_path / "model.pt2.json").read_text())
    assert facts["classes"] == run.run["dataset"]["classes"]
    assert (facts["mean"], facts["std"]) == (run.run["dataset"]["mean"], run.run["dataset"]["std"])
    program = torch.export.load(file).module()
    if name == "digits.cnn":
        full = mock.patch("os.fsync", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with full, pytest.raises(ValueError, match=r"full\.pt2 cannot be written: the disk is full; give another file"):
            export(run.folder, str(tmp_path / "full.pt2"))
        assert len(list(tmp_path.iterdir())) == 2
    state, _ = load.restore(recipe, run.run["dataset"], Store(run.folder))
    images = torch.rand(5, facts["channels"], *facts["image_size"])
    dataset = run.run["dataset"]
    of_model = predictions.of_meta(dataset).program(state.model.eval(), build.make_task(recipe, dataset))
    with torch.no_grad():
        torch.testing.assert_close(program(images), of_model(images), rtol=1e-4, atol=1e-4)
    shutil.rmtree(run.folder)


def test_a_model_that_cannot_be_exported_is_reported_and_no_file_is_kept(storage: Path, tmp_path: Path) -> None:
    model = tmp_path / "mine.py"
    model.write_text(
        "import torch\n"
        "class Odd(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        out = super().forward(x.flatten(1))\n"
        "        return out + 1 if out.sum() > 0 else out - 1\n"
        "def build(*, image_size, channels, classes):\n"
        "    return Odd(channels * image_size[0] * image_size[1], classes)\n"
    )
    recipe = resolve("digits.cnn", epochs=1, model=str(model), precision="fp32")
    run = fit(recipe, scale=HERE.replace(storage=str(storage)), run="odd", name="odd")
    with pytest.raises(ValueError, match="cannot be exported"):
        export(run.folder, str(tmp_path / "out/model.pt2"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"that is a folder; .* give FILE"):
        export(run.folder, str(tmp_path))
