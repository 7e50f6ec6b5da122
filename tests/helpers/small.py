"""Every recipe at a tiny size, on pictures that the tests draw."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from helpers import boxed
from PIL import Image

from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.source import scan_files
from trainers.messages import Job, Meta
from trainers.recipe import Recipe, Scale, recipe_names, resolve
from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints


def small_recipe(name: str, **changes: Any) -> Recipe:
    """The recipe, small enough for seconds on a CPU; 3 epochs and a number of pictures that nothing divides."""
    small: dict[str, Any] = {"epochs": 3, "batch_size": 12, "micro_batch_size": 4, "warmup_epochs": 0.5}
    small |= {
        "textures": {"image_size": (16, 16), "dataset_args": {"crop_size": 24, "crops_per_photo": 5}},
        "resnet": {
            "image_size": (48, 48),
            "stored_size": (54, 54),
            "lr": 0.0005,
            "batch_size": 16,
            "micro_batch_size": 8,
        },
        "cifar": {"image_size": (12, 12), "lr": 0.002, "batch_size": 32, "micro_batch_size": 16},
        "mnist": {"image_size": (12, 12)},
        "erfnet": {"image_size": (32, 48), "init_from": None},
        "deeplab": {"image_size": (32, 33)},
        "unet": {"image_size": (33, 24), "model_args": {"base_channels": 4, "depth": 2}},
        "folder": {
            "image_size": (32, 48),
            "stored_size": None if name in ("folder.tune_masks", "folder.detect") else (36, 54),
            "model_args": {"name": "test_efficientnet", "weights": None}
            if name != "folder.detect"
            else {"backbone": "timm:test_efficientnet", "weights": None, "width": 32},
        },
        "fcos": {
            "image_size": (64, 64),
            "model_args": {"backbone": "timm:test_efficientnet", "weights": None, "width": 32},
        },
        "fcos_masks": {
            "image_size": (64, 64),
            "model_args": {"backbone": "timm:test_efficientnet", "weights": None, "width": 32, "prototypes": 4},
        },
        "shapes": {"image_size": (32, 48), "init_from": None, "dataset_args": {"train": 13, "val": 5, "test": 3}},
    }.get(name.split(".")[0], {})
    if name.startswith("shapes.fcos"):  # at 32x48 BatchNorm would divide by the differences of two numbers
        small["image_size"] = (64, 64)
    if resolve(name).task != "classify":
        small |= {"batch_size": 4, "micro_batch_size": 2, "lr": resolve(name).lr / 10, "patience": None}
    if name == "deeplab.camvid":  # 16.6 million parameters: few steps
        small |= {"batch_size": 12, "micro_batch_size": 4}
    return resolve(name, **{**small, **changes})


def small_data(name: str, folder: Path) -> str | None:
    """A raw data set for the recipe, in its published layout; None where it needs no files."""
    dataset = resolve(name).dataset
    if dataset not in DRAWN:
        return None
    if not folder.exists():
        folder.mkdir(parents=True)
        DRAWN[dataset](folder)
    return str(folder)


def job(recipe: Recipe, raw: str | None, storage: Path, run: str, **scale: Any) -> Job:
    """What fit would hand to the workers."""
    source = scan_files(recipe, raw)
    folder = prepare(recipe, source, storage / "cache")
    Store(storage / run).write_json("run.json", {"start_id": "of tests"})
    return {
        "recipe": recipe.to_json(),
        "scale": Scale(data=raw, storage=str(storage), **scale).to_json(),
        "folder": str(storage / run),
        "storage": str(storage),
        "attempt": 1,
        "start_id": "of tests",
        "data": {
            "mode": "cache",
            "folder": str(folder),
            "published": None,
            "node": None,
            "meta": cast(Meta, dict(Cached(folder).meta)),
        },
        "threads": 1,
        "cwd": os.getcwd(),
        "adopt": None,
        "own_device": True,
    }


def last_weights(folder: Path | Store) -> dict[str, torch.Tensor]:
    """Those of the newest checkpoint of a run."""
    snapshot = Checkpoints(folder if isinstance(folder, Store) else Store(folder)).latest()
    assert snapshot is not None
    weights: dict[str, torch.Tensor] = snapshot["model"]
    return weights


ALL = recipe_names()
DIGITS_STEPS = 23
"""Optimizer steps in an epoch of digits.cnn: 1,438 training pictures in batches of 64."""


def _drawn(rng: np.random.Generator, label: int, height: int, width: int) -> Any:
    """A noisy picture whose stripes show its class."""
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


def scene(rng: np.random.Generator, classes: int, height: int = 48, width: int = 64) -> tuple[Any, Any]:
    """A noisy picture of coloured boxes and its mask; from none to most of the pixels are 255, ignored."""
    mask = np.full((height, width), rng.integers(classes), np.uint8)
    for _ in range(6):
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + height // 2, left : left + width // 2] = rng.integers(classes)
    picture = mask[:, :, None] * np.array([7, 11, 5]) % 200 + rng.normal(30, 10, (height, width, 3))
    mask[: int(rng.choice([0, 0.1, 0.9]) * height)] = 255
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def write_pairs(pairs: Mapping[tuple[Path, Path], tuple[Any, Any]]) -> None:
    """(picture, mask) -> their files."""
    for files, images in pairs.items():
        for file, image in zip(files, images, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file, quality=95)


def _camvid(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for split, count in (("train", 13), ("val", 5), ("test", 3)):
        for index in range(count):
            picture, mask = scene(rng, 11)
            files = folder / split / f"{index}.png", folder / f"{split}annot" / f"{index}.png"
            write_pairs({files: (picture, np.where(mask == 255, 11, mask).astype(np.uint8))})


def _pairs(folder: Path) -> None:
    rng = np.random.default_rng(3)
    for split, count in (("train", 13), ("val", 5)):
        for index in range(count):
            files = folder / split / "images" / f"{index}.jpg", folder / split / "masks" / f"{index}.png"
            write_pairs({files: scene(rng, 4)})


def _cityscapes(folder: Path) -> None:
    rng = np.random.default_rng(2)
    ids = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)
    for split, count in (("train", 13), ("val", 5)):
        for index in range(count):
            picture, mask = scene(rng, 19, 32, 64)
            city, stem = f"{split}/ulm", f"ulm_{index:06}_000019"
            files = (
                folder / "leftImg8bit" / city / f"{stem}_leftImg8bit.png",
                folder / "gtFine" / city / f"{stem}_gtFine_labelIds.png",
            )
            write_pairs({files: (picture, np.where(mask == 255, 0, ids[mask % 19]).astype(np.uint8))})


def _drone(folder: Path) -> None:
    rng = np.random.default_rng(3)
    for index in range(20):
        picture, mask = scene(rng, 24)
        files = folder / "original_images" / f"{index:03}.jpg", folder / "label_images_semantic" / f"{index:03}.png"
        write_pairs({files: (picture, np.where(mask == 255, 0, mask).astype(np.uint8))})


def _label_table(folder: Path) -> None:
    rows = _striped(folder)
    lines = [
        f"{name},{';'.join(['even', 'odd'][number % 2 :][:1] + ['high'] * (wave > 1))}" for number, name, wave in rows
    ]
    (folder / "labels.csv").write_text("\n".join(["file,labels", *lines]) + "\n")


def _value_table(folder: Path) -> None:
    lines = [f"{name},{1000 + 250 * wave}" for _, name, wave in _striped(folder)]
    (folder / "values.csv").write_text("\n".join(["file,waves", *lines]) + "\n")


def _striped(folder: Path) -> list[tuple[int, str, int]]:
    """Number, name and stripes of each picture."""
    rng = np.random.default_rng(4)
    rows = [(number, f"images/{number}.png", int(rng.integers(4))) for number in range(37)]
    (folder / "images").mkdir()
    for _, name, wave in rows:
        Image.fromarray(_drawn(rng, wave, 40, 52)).save(folder / name)
    return rows


def _boxes(folder: Path) -> None:
    """In the form of COCO: pictures of 40x30 pixels with two objects each, and one without."""
    for split, count in (("train", 13), ("val", 5)):
        paths = [folder / split / f"{number}.jpg" for number in range(count)]
        boxed.draw(*paths)
        boxed.coco_file(folder / f"annotations/instances_{split}.json", [path.name for path in paths])


def _outlines(folder: Path) -> None:
    """As `_boxes`, and each object is a polygon."""
    for split, count in (("train", 13), ("val", 5)):
        paths = [folder / split / f"{number}.jpg" for number in range(count)]
        boxed.draw(*paths)
        polygon = [[2, 3, 12, 5, 10, 11, 4, 9]]
        objects = [
            boxed.annotation((2, 3, 10, 8), number, 1 + number % 2, image_id=number // 2, segmentation=polygon)
            for number in range(2 * count - 2)
        ]
        file = folder / f"annotations/instances_{split}.json"
        boxed.coco_file(file, [path.name for path in paths], annotations=objects)


DRAWN: dict[str, Callable[[Path], None]] = {
    "mnist": _mnist,
    "cifar10": _cifar,
    "image_folder": _pictures,
    "texture_crops": _pictures,
    "mask_folder": _pairs,
    "object_folder": _boxes,
    "coco": _outlines,
    "label_table": _label_table,
    "value_table": _value_table,
    "camvid": _camvid,
    "cityscapes": _cityscapes,
    "semantic_drone": _drone,
}
"""Data sets that read files -> what draws some in their layout."""


class Slow:
    """A digits model whose epochs take seconds in workers on Ray, of time, not of the processor, until it is to hurry.

    `flags`: of `train` or `tune_spaces`.
    """

    def __init__(self, folder: Path) -> None:
        """Write the model into `folder`, which every host sees."""
        self._sign, model = folder / "slow", folder / "slow.py"
        self._sign.touch()
        model.write_text(_SLOW)
        self.flags = ["--model", str(model), "--checkpoint-seconds", "1", "--precision", "fp64"]
        self.flags += ["--micro-batch-size", "16"]

    def hurry(self) -> None:
        """From now on, in every worker."""
        self._sign.unlink()


_SLOW = """
import sys
import time
from pathlib import Path

import torch

from trainers.models import linear_cnn

SIGN = Path(__file__).with_name("slow")


class Slow(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        if self.training and "ray" in sys.modules and SIGN.exists():
            time.sleep(0.12)
        return self.inner(images)


def build(**args):
    return Slow(linear_cnn.build(**args))
"""
