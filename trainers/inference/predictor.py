"""A model that predicts pictures of any size, one batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.data.resize import shrink
from trainers.datasets import BadImage
from trainers.decode import decode
from trainers.inference.load import restore
from trainers.inference.sliding_window import slide
from trainers.recipe import Recipe
from trainers.runs import mask_figures
from trainers.storage.store import Store
from trainers.training import build
from trainers.training.preprocess import Preprocess


def class_colours(meta: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    """Those of the classes in pictures of masks."""
    return meta.get("colours") or mask_figures.palette(len(meta["classes"]))


Named = tuple[str, str]
"""A picture's path, and the name, without an ending, that files made of it get."""


class Predictor:
    """A model at hand for batch after batch of files."""

    def __init__(self, folder: Store, sliding: bool, overlap: float) -> None:
        found = folder.read_json("run.json")
        self.recipe, self.meta = Recipe.from_json(found["recipe"]), found["dataset"]
        self.state, self.world = restore(self.recipe, self.meta, folder)
        self.preprocess = Preprocess(self.recipe, self.meta, self.world)
        self.task = build.make_task(self.recipe, self.meta)
        self.sliding, self.overlap = sliding, overlap
        self.seconds = 0.0
        """Time that the model took so far, without reading and pre-processing."""
        self.state.model.eval()

    def __call__(self, files: Sequence[Named], out: Path) -> list[list[str]]:
        """A row of predictions.csv for each file; its second word is "" where the file cannot be decoded."""
        return self._segment_files(files, out) if self.meta.get("masks") else self._classify_files(files)

    def segment(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Class numbers, uint8 (H, W), of a picture, uint8 (H, W, C), at its own size."""
        size = picture.shape[0], picture.shape[1]
        inner = size if self.sliding else _whole_size(size, self.recipe)
        pixels = torch.tensor(shrink(picture, inner, "stretch")).permute(2, 0, 1).to(self.world.device)
        image = self.preprocess.normalise(pixels[None].to(self.world.dtype))[0]
        window = self.recipe.image_size if self.sliding else inner
        labels = []
        with torch.inference_mode(), self.world.autocast():
            for _, logits in slide(self._timed, image, window, self.overlap):
                wanted = (logits.shape[-2], logits.shape[-1]) if self.sliding else size
                labels.append(self.task.labels(logits[None], wanted)[0].cpu())
        return torch.cat(labels).to(torch.uint8).numpy()

    def _timed(self, images: Tensor) -> Tensor:
        start = self.world.clock()
        output: Tensor = self.state.model(images)
        self.seconds += self.world.clock() - start
        return output

    def _segment_files(self, files: Sequence[Named], out: Path) -> list[list[str]]:
        classes, store = self.meta["classes"], Store(out)
        colours = class_colours(self.meta)
        rows = []
        for path, name in files:
            try:
                picture = decode(path, self.meta["channels"])
            except (BadImage, OSError):
                rows.append([path, "", *([""] * len(classes))])
                continue
            labels = self.segment(picture)
            shares = np.bincount(labels.reshape(-1), minlength=len(classes)) / labels.size
            images = {
                "masks": labels,
                "colours": mask_figures.colour(labels, colours),
                "overlays": mask_figures.overlay(picture, labels, colours),
            }
            for kind, image in images.items():
                store.write(f"{kind}/{name}.png", mask_figures.save_png(image))
            rows.append([path, f"masks/{name}.png", *(f"{share:.4f}" for share in shares)])
        return rows

    def _classify_files(self, files: Sequence[Named]) -> list[list[str]]:
        found: dict[str, Any] = {}
        for path, _ in files:
            with contextlib.suppress(BadImage, OSError):
                picture = decode(path, self.meta["channels"], self.recipe.storage_size)
                found[path] = shrink(picture, self.recipe.storage_size, self.recipe.resize)
        if not found:
            return [[path, "", ""] for path, _ in files]
        with torch.inference_mode(), self.world.autocast():
            output = self.state.model(self.preprocess.images(np.stack(list(found.values()))))
        probability, label = output.float().softmax(1).max(1)
        named = {
            path: [self.meta["classes"][index], f"{p:.4f}"]
            for path, index, p in zip(found, label.tolist(), probability.tolist(), strict=True)
        }
        return [[path, *named.get(path, ["", ""])] for path, _ in files]


def _whole_size(own: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """The size to which a whole picture is brought, so that things are as large in it as they were in training."""
    if recipe.resize == "stretch":
        return recipe.storage_size
    ratios = [wanted / given for wanted, given in zip(recipe.storage_size, own, strict=True)]
    scale = max(ratios) if recipe.resize == "crop" else min(ratios)
    return max(1, round(own[0] * scale)), max(1, round(own[1] * scale))


def check_overlap(overlap: float) -> None:
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap} is not allowed; give 0 up to, not including, 1")
