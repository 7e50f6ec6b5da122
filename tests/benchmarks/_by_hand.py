"""What time_to_score.py compares with: trainings as one would write them with PyTorch, torchvision and Lightning.

    python tests/benchmarks/_by_hand.py loop|lightning JOB

JOB is the JSON of a `Job`. Each epoch appends a line {"epoch": ..., "score": ...} to its file. Of Trainyard only the
network is taken.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms, tv_tensors
from torchvision.transforms import v2


class Job(TypedDict):
    """A training. Values are those of the recipe, where their names are."""

    data: str
    """"mnist": torchvision's folder, with val.npy, the numbers of the pictures for validation; "folder": a folder for
    each class in train and val; "masks": pictures in train and val, and masks of class ids in trainannot and valannot,
    where the number of classes is no class."""
    folder: str
    lines: str
    """The file that gets the scores."""
    classes: int
    class_weights: list[float] | None
    model: str
    model_args: dict[str, Any]
    image_size: list[int]
    augment: dict[str, Any]
    loss: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    warmup_share: float
    seed: int
    loaders: int
    """Processes of each DataLoader."""


# Pictures -------------------------------------------------------------------------------------------------------------


class Masks(Dataset[tuple[Tensor, Tensor]]):
    """Pictures with a class for each pixel."""

    def __init__(self, folder: Path, split: str, transform: v2.Compose) -> None:
        self.pictures = sorted((folder / split).glob("*.png"))
        self.masks = folder / f"{split}annot"
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = tv_tensors.Image(Image.open(self.pictures[index]).convert("RGB"))
        mask = tv_tensors.Mask(np.array(Image.open(self.masks / self.pictures[index].name)))
        return self.transform(picture, mask)  # type: ignore[no-any-return]


def pictures(job: Job) -> tuple[Dataset[Any], Dataset[Any]]:
    """For training and for validation."""
    folder, (height, width), changes = Path(job["folder"]), job["image_size"], job["augment"]
    if job["data"] == "mnist":
        change = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.1307], [0.3081])])
        whole, val = datasets.MNIST(folder, train=True, transform=change), np.load(folder / "val.npy")
        return Subset(whole, np.setdiff1d(np.arange(len(whole)), val).tolist()), Subset(whole, val.tolist())
    if job["data"] == "folder":
        end = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        crop = transforms.RandomResizedCrop((height, width), changes["resized_crop"])
        middle = [transforms.Resize(round(height / 0.875)), transforms.CenterCrop((height, width))]
        train = datasets.ImageFolder(
            folder / "train", transforms.Compose([crop, transforms.RandomHorizontalFlip(), *end])
        )
        return train, datasets.ImageFolder(folder / "val", transforms.Compose([*middle, *end]))
    resize = v2.Resize((height, width))
    crops = [v2.RandomResizedCrop((height, width), changes["resized_crop"])] if "resized_crop" in changes else [resize]
    flips = [v2.RandomHorizontalFlip(), *([v2.RandomVerticalFlip()] if "vertical_flip" in changes else [])]
    types = v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True)
    last = [types, v2.Normalize([0.5] * 3, [0.5] * 3)]
    return Masks(folder, "train", v2.Compose([*crops, *flips, *last])), Masks(
        folder, "val", v2.Compose([resize, *last])
    )


def loaders(job: Job) -> tuple[DataLoader[Any], DataLoader[Any]]:
    train, val = pictures(job)
    common: dict[str, Any] = {"num_workers": job["loaders"], "persistent_workers": job["loaders"] > 0}
    shuffled = DataLoader(train, job["batch_size"], shuffle=True, drop_last=True, **common)
    return shuffled, DataLoader(val, job["batch_size"], **common)


# Training -------------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """Of a training."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer


def make(job: Job) -> Parts:
    module = importlib.import_module(f"trainers.models.{job['model']}")
    facts = {"image_size": tuple(job["image_size"]), "channels": 1 if job["data"] == "mnist" else 3}
    model = module.build(**facts, classes=job["classes"], **job["model_args"])
    common: dict[str, Any] = {"lr": job["lr"], "weight_decay": job["weight_decay"]}
    if job["optimizer"] == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), momentum=job["momentum"], **common)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[job["optimizer"]]
        optimizer = kind(model.parameters(), **common)
    weights = None if job["class_weights"] is None else torch.tensor(job["class_weights"])

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        value = functional.cross_entropy(logits, target, weights, ignore_index=job["classes"])
        return value + dice(logits, target) if job["loss"] == "cross_entropy+dice" else value

    return Parts(model, loss, optimizer)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 minus the mean of the classes' Dice coefficients."""
    classes = logits.shape[1]
    truth = functional.one_hot(target, classes + 1).permute(0, 3, 1, 2)[:, :classes]
    chance = logits.softmax(1) * (target < classes)[:, None]
    both, each = (chance * truth).sum((0, 2, 3)), (chance + truth).sum((0, 2, 3))
    return 1 - ((2 * both + 1) / (each + 1)).mean()


def schedule(job: Job, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Up to the rate of the recipe, over its share of the steps, and down again by a cosine."""
    share = max(job["warmup_share"], 2 / steps)  # torch divides by zero where it goes up within a single step
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, job["lr"], total_steps=steps, pct_start=share, cycle_momentum=False
    )


class Score:
    """Accuracy, or of masks the mean IoU of the classes that occur, from the confusion of all batches."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.confusion = torch.zeros(job["classes"], job["classes"], dtype=torch.int64)

    def add(self, logits: Tensor, target: Tensor) -> None:
        classes, known = self.job["classes"], target < self.job["classes"]
        cells = target[known] * classes + logits.argmax(1)[known]
        self.confusion += torch.bincount(cells.cpu(), minlength=classes**2).view(classes, classes)

    def write(self, epoch: int) -> None:
        """Its line."""
        right = self.confusion.diag()
        either = self.confusion.sum(0) + self.confusion.sum(1) - right
        ious = (right / either)[either > 0]
        score = ious.mean() if self.job["data"] == "masks" else right.sum() / self.confusion.sum()
        with open(self.job["lines"], "a") as stream:
            stream.write(json.dumps({"epoch": epoch, "score": float(score)}) + "\n")


def loop(job: Job) -> None:
    """Plain PyTorch."""
    torch.manual_seed(job["seed"])
    train, val = loaders(job)
    model, criterion, optimizer = make(job)
    rates = schedule(job, optimizer, job["epochs"] * len(train))
    for epoch in range(1, job["epochs"] + 1):
        model.train()
        for images, targets in train:
            optimizer.zero_grad()
            loss = criterion(model(images), targets)
            loss.backward()
            optimizer.step()
            rates.step()
        model.eval()
        score = Score(job)
        with torch.inference_mode():
            for images, targets in val:
                score.add(model(images), targets)
        score.write(epoch)


def with_lightning(job: Job) -> None:
    """As Lightning's documentation shows it: a module, and a Trainer with its defaults."""
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion, self.optimizer = make(job)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            images, targets = batch
            loss = self.criterion(self.model(images), targets)
            self.log("train_loss", loss)
            return loss

        def on_validation_epoch_start(self) -> None:
            self.score = Score(job)

        def validation_step(self, batch: list[Tensor], _: int) -> None:
            images, targets = batch
            logits = self.model(images)
            self.log("val_loss", self.criterion(logits, targets))
            self.score.add(logits, targets)

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.score.write(self.current_epoch + 1)

        def configure_optimizers(self) -> dict[str, Any]:
            rates = schedule(job, self.optimizer, int(self.trainer.estimated_stepping_batches))
            return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    lightning.seed_everything(job["seed"])
    trainer = lightning.Trainer(max_epochs=job["epochs"], default_root_dir=Path(job["lines"]).parent)
    trainer.fit(Module(), *loaders(job))


if __name__ == "__main__":
    {"loop": loop, "lightning": with_lightning}[sys.argv[1]](json.loads(sys.argv[2]))
