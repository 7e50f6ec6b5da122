"""Every recipe at a tiny size, on pictures that the tests draw."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainers import data
from trainers.recipe import Recipe, Scale, recipe_names, resolve


def small_recipe(name: str, **changes: Any) -> Recipe:
    """The recipe, small enough for seconds on a CPU; 3 epochs and a number of pictures that nothing divides."""
    small: dict[str, Any] = {"epochs": 3, "batch_size": 12, "micro_batch_size": 4, "warmup_epochs": 0.5}
    small |= {
        "textures": {"image_size": (16, 16), "dataset_args": {"crop_size": 24, "crops_per_photo": 5}},
        "resnet": {
            "image_size": (64, 64),
            "stored_size": (72, 72),
            "lr": 0.0005,
            "batch_size": 16,
            "micro_batch_size": 8,
        },
        "cifar": {"image_size": (16, 16), "lr": 0.002, "batch_size": 32, "micro_batch_size": 16},
        "mnist": {"image_size": (12, 12)},
    }.get(name.split(".")[0], {})
    return resolve(name, **{**small, **changes})


def small_data(name: str, folder: Path) -> str | None:
    """A raw data set for the recipe, in its published layout; None where it needs no files."""
    dataset = resolve(name).dataset
    if dataset == "digits":
        return None
    if not folder.exists():
        folder.mkdir(parents=True)
        {"mnist": _mnist, "cifar10": _cifar, "image_folder": _pictures, "texture_crops": _pictures}[dataset](folder)
    return str(folder)


def job(recipe: Recipe, raw: str | None, storage: Path, run: str, **scale: Any) -> dict[str, Any]:
    """What launch.fit would hand to the workers."""
    source = data.look(recipe, raw)
    folder = data.prepare(recipe, source, storage / "cache")
    return {
        "recipe": recipe.to_json(),
        "scale": Scale(data=raw, storage=str(storage), **scale).to_json(),
        "folder": str(storage / run),
        "storage": str(storage),
        "attempt": 1,
        "data": {"mode": "cache", "folder": str(folder), "meta": dict(data.Cached(folder).meta)},
        "threads": 1,
        "cwd": os.getcwd(),
    }


ALL = recipe_names()


def _drawn(rng: np.random.Generator, label: int, height: int, width: int) -> Any:
    """A noisy picture whose stripes tell its class."""
    wave = np.sin(np.arange(width) * (label + 1) / 2)[None, :, None] * 60 + 128
    return np.clip(wave + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)


def _pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(3):
        (folder / f"class{label}").mkdir()
        for index in range(11 + label):
            picture = _drawn(rng, label, 40 + index, 52)
            Image.fromarray(picture).save(folder / f"class{label}" / f"{index}.png")


def _mnist(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, rows in (("train", 107), ("t10k", 13)):
        labels = np.arange(rows, dtype=np.uint8) % 10
        images = np.stack([_drawn(rng, int(label), 28, 28)[:, :, 0] for label in labels])
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, rows, 28, 28) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, rows) + labels.tobytes())


def _cifar(folder: Path) -> None:
    rng = np.random.default_rng(0)
    home = folder / "cifar-10-batches-bin"
    home.mkdir()
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (home / "batches.meta.txt").write_text("\n".join(names) + "\n")
    for part in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        records = b""
        for row in [*range(10), *range(10)]:
            records += bytes([row]) + _drawn(rng, row, 32, 32).transpose(2, 0, 1).tobytes()
        (home / f"{part}.bin").write_bytes(records)
