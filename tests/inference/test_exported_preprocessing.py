"""Whoever follows the JSON beside an exported program gets what `predict` says.

Users of exported models lose accuracy to steps that are not written down (ultralytics/ultralytics 7069).
The server here is written with Pillow and NumPy alone, and knows nothing but the JSON.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

from trainers.fitting import fit
from trainers.inference.export import export
from trainers.inference.predict import predict
from trainers.recipe import Recipe, Scale, resolve

RNG = np.random.default_rng(3)


def draw(height: int, width: int, bands: int, top: int = 256) -> np.ndarray:
    """A picture of large areas: what tells sizes and places apart."""
    coarse = RNG.integers(0, top, (5, 7, bands))
    return np.kron(coarse, np.ones((-(-height // 5), -(-width // 7), 1), np.int64))[:height, :width]


def save_all(folder: Path) -> None:
    """Pictures of all kinds whose steps the JSON must tell."""
    folder.mkdir(parents=True)
    Image.fromarray(draw(90, 140, 3).astype(np.uint8)).save(folder / "wide.png")
    Image.fromarray(draw(201, 77, 3).astype(np.uint8)).save(folder / "tall.png")
    Image.fromarray(draw(700, 500, 3).astype(np.uint8)).save(folder / "large.jpg", quality=90)
    turned = Image.fromarray(draw(610, 450, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif, quality=90)
    clear = draw(60, 60, 4).astype(np.uint8)
    clear[..., 3] = np.where(clear[..., 3] > 128, 255, 0)
    Image.fromarray(clear).save(folder / "clear.png")
    Image.fromarray(draw(64, 50, 1, 65536)[..., 0].astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(draw(40, 40, 1)[..., 0].astype(np.uint8)).save(folder / "grey.png")


def serve(path: Path, facts: Mapping[str, Any]) -> np.ndarray:
    """What the program takes, step by step."""
    steps = {step["step"]: step for step in facts["preprocessing"]}
    with Image.open(path) as picture:
        least = steps["decode"]["jpeg_at_least"]
        swapped = picture.getexif().get(0x0112, 1) >= 5
        size = (least["width"], least["height"])
        picture.draft(steps["convert"]["mode"], size[::-1] if swapped else size)
        image = ImageOps.exif_transpose(picture)
    if image.mode.startswith("I"):
        black, white = steps["range"]["black"], steps["range"]["white"]
        share = (np.asarray(image).astype(np.float64) - black) / (white - black)
        image = Image.fromarray(np.floor(share * 255 + 0.5).clip(0, 255).astype(np.uint8))
    if image.mode == "RGBA" and steps["transparency"]["alpha"] in ("auto", "white"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = resize(image.convert(steps["convert"]["mode"]), steps["resize"])
    crop = steps["crop"]
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    pixels = pixels[crop["top"] :, crop["left"] :][: crop["size"]["height"], : crop["size"]["width"]]
    if "normalise" not in steps:
        return np.ascontiguousarray(pixels[None])
    values = (pixels / 255 - np.array(steps["normalise"]["mean"])) / np.array(steps["normalise"]["std"])
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None].astype(np.float32))


def resize(image: Image.Image, step: Mapping[str, Any]) -> Image.Image:
    (w, h), width, height = image.size, step["size"]["width"], step["size"]["height"]
    if step["how"] == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if step["how"] == "crop":
        scale = min(w / width, h / height)
        left, top = (w - width * scale) / 2, (h - height * scale) / 2
        return image.resize((width, height), Image.Resampling.BILINEAR, (left, top, w - left, h - top))
    scale = max(w / width, h / height)
    inner = max(1, round(w / scale)), max(1, round(h / scale))
    canvas = Image.new(image.mode, (width, height))
    small = image.resize(inner, Image.Resampling.BILINEAR)
    canvas.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def recipe_of(**changes: Any) -> Recipe:
    small = {
        "image_size": (16, 16),
        "stored_size": None,
        "epochs": 2,
        "batch_size": 6,
        "lr": 0.05,
        "warmup_epochs": 0.0,
    }
    return resolve("resnet.r18").replace(model="linear_cnn", precision="fp32").replace(**{**small, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"stored_size": (24, 32), "image_size": (16, 24)},
        {"resize": "pad", "stored_size": (21, 21)},
        {"resize": "stretch"},
        {"dataset_args": {"channels": 1}, "stored_size": (17, 19), "image_size": (16, 16)},
        {"dataset_args": {"value_range": [0, 40000], "alpha": "ignore"}},
    ],
)
def test_following_the_json_gives_what_predict_says(changes: dict[str, Any], tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in "ab":
            save_all(tmp_path / "data" / split / name)
    scale = Scale(workers=0, cpus_per_worker=1, storage=str(tmp_path / "runs"), data=str(tmp_path / "data"))
    run = fit(recipe_of(**changes), scale=scale, run="served").folder
    out = export(run, str(tmp_path / "model.pt2"))
    facts = json.loads(Path(f"{out}.json").read_text())
    table, bad = predict(run, [str(tmp_path / "data" / "val")], str(tmp_path / "out"))[:2]
    assert not bad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(out).module()
    session = onnxruntime.InferenceSession(export(run, str(tmp_path / "model.onnx")))
    of_session = json.loads((tmp_path / "model.onnx.json").read_text())
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 14
    for row in rows:
        with torch.no_grad():
            of_program = program(torch.from_numpy(serve(Path(row["path"]), facts))).softmax(1)[0]
        (by_itself,) = session.run(["probabilities"], {"pictures": serve(Path(row["path"]), of_session)})[0]
        for probabilities in (of_program, by_itself):
            assert float(probabilities[facts["classes"].index(row["class"])]) == pytest.approx(
                float(row["probability"]), abs=2e-4
            ), row["path"]
