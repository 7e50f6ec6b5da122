"""Predictions for whole pictures: classes, labels, numbers."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from trainers.datasets import BadImage, Source
from trainers.inference import sheet
from trainers.inference.predictions.base import Done, Named, Shared, all_as_stored, as_stored, refuse_top_k
from trainers.inference.predictor import Predictor
from trainers.instances import Targets
from trainers.progress import Advance
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Scores
from trainers.storage.store import Store
from trainers.tasks.base import ImageTask, Output, Task
from trainers.training import build

CLOSE = 0.05
"""Of the deviation of a column of numbers: two that differ by no more are alike."""


class Classes(Shared):
    """A class for each picture, with its probability."""

    answers: Sequence[str] = ("probabilities",)

    def answer(self, task: Task, output: Output, size: tuple[int, int]) -> tuple[Tensor, ...]:
        return (_probabilities(task, output),)

    def file_of(self, name: str) -> str | None:
        return None

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        if top_k < 1:
            raise ValueError(f"top_k={top_k} is not allowed; give 1 to {len(meta['classes'])}, the number of classes")
        more = range(2, min(top_k, len(meta["classes"])) + 1)
        each = meta["classes"] if cast(ImageTask, task).every_probability else []
        further = [name for place in more for name in (f"class {place}", f"probability {place}")]
        return ["path", "class", "probability", *further, *(f"probability of {name}" for name in each)]

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Store) -> list[list[str]]:
        classes, task = predictor.meta["classes"], cast(ImageTask, predictor.task)
        blank = [""] * (len(self.header(predictor.meta, task, predictor.top_k)) - 1)
        found, output = _look(predictor, files)
        if output is None:
            return [[path, *blank] for path, _ in files]
        labels, probabilities = task.labels(output, predictor.recipe.image_size), task.probabilities(output)
        named = {}
        for path, label, row in zip(found, labels.tolist(), probabilities.tolist(), strict=True):
            others = (k for k in range(len(row)) if k != label)
            likely = heapq.nlargest(predictor.top_k - 1, others, key=row.__getitem__)
            pairs = [word for k in (label, *likely) for word in (classes[k], f"{row[k]:.4f}")]
            named[path] = [*pairs, *(f"{p:.4f}" for p in (row if task.every_probability else []))]
        return [[path, *named.get(path, blank)] for path, _ in files]

    def finish(self, recipe: Recipe, meta: DatasetFacts, out: Store, done: Sequence[Done], title: str) -> None:
        """Some of the pictures, as the model sees them, with their classes, in predictions.png."""
        every = len(meta["classes"]) if cast(ImageTask, build.make_task(recipe, meta)).every_probability else 0

        def pairs(row: Sequence[str]) -> Said:
            words = row[1 : len(row) - every]
            return list(zip(words[::2], words[1::2], strict=True))

        _draw_some(recipe, meta, out, done, title, pairs)

    def evaluate(
        self, predictor: Predictor, source: Source, split: str, advance: Advance, results: Path | None = None
    ) -> Scores:
        raise AssertionError("classes of whole pictures have no size")


class Tags(Shared):
    """The labels of each picture, and the probability of each label."""

    answers: Sequence[str] = ("probabilities",)

    def answer(self, task: Task, output: Output, size: tuple[int, int]) -> tuple[Tensor, ...]:
        return (_probabilities(task, output),)

    def file_of(self, name: str) -> str | None:
        return None

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        refuse_top_k(top_k, "any number of labels for each picture")
        return ["path", "number of labels", "labels", *(f"probability of {name}" for name in meta["classes"])]

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Store) -> list[list[str]]:
        classes, task = predictor.meta["classes"], cast(ImageTask, predictor.task)
        found, output = _look(predictor, files)
        made = {}
        if output is not None:
            labels, probabilities = task.labels(output, predictor.recipe.image_size), task.probabilities(output)
            for path, has, row in zip(found, labels.tolist(), probabilities.tolist(), strict=True):
                names = [name for name, there in zip(classes, has, strict=True) if there]
                made[path] = [str(len(names)), ";".join(names), *(f"{probability:.4f}" for probability in row)]
        return [[path, *made.get(path, [""] * (2 + len(classes)))] for path, _ in files]

    def finish(self, recipe: Recipe, meta: DatasetFacts, out: Store, done: Sequence[Done], title: str) -> None:
        """Some of the pictures with their labels, the most probable ones first, in predictions.png."""

        def pairs(row: Sequence[str]) -> Said:
            likely = sorted(zip(meta["classes"], row[3:], strict=True), key=lambda pair: -float(pair[1]))
            return likely[: int(row[1])] or [("none", "")]

        _draw_some(recipe, meta, out, done, title, pairs)

    def evaluate(
        self, predictor: Predictor, source: Source, split: str, advance: Advance, results: Path | None = None
    ) -> Scores:
        raise AssertionError("labels of whole pictures have no size")


class Numbers(Shared):
    """A number for each picture, or several, in the unit of the data."""

    answers: Sequence[str] = ("numbers",)

    def answer(self, task: Task, output: Output, size: tuple[int, int]) -> tuple[Tensor, ...]:
        return (task.labels(output, size),)

    def agreement(
        self, one: Targets, other: Targets, meta: DatasetFacts, confidence: float | None
    ) -> tuple[float, float]:
        """Numbers that differ by at most CLOSE of the deviation of their column in training."""
        close = (one - other).abs() <= CLOSE * torch.tensor(meta["target_facts"]["target_std"], dtype=torch.float64)
        return float(close.sum()), float(close.numel())

    def file_of(self, name: str) -> str | None:
        return None

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        refuse_top_k(top_k, "numbers, no classes")
        return ["path", *meta["classes"]]

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Store) -> list[list[str]]:
        found, output = _look(predictor, files)
        made = {}
        if output is not None:
            numbers = predictor.task.labels(output, predictor.recipe.image_size).tolist()
            made = {path: [f"{number:.7g}" for number in row] for path, row in zip(found, numbers, strict=True)}
        return [[path, *made.get(path, [""] * len(predictor.meta["classes"]))] for path, _ in files]

    def finish(self, recipe: Recipe, meta: DatasetFacts, out: Store, done: Sequence[Done], title: str) -> None:
        """Some of the pictures with their numbers, in predictions.png."""

        def pairs(row: Sequence[str]) -> Said:
            return [(name, f"{float(word):.4g}") for name, word in zip(meta["classes"], row[1:], strict=True)]

        _draw_some(recipe, meta, out, done, title, pairs)

    def evaluate(
        self, predictor: Predictor, source: Source, split: str, advance: Advance, results: Path | None = None
    ) -> Scores:
        raise AssertionError("numbers of whole pictures have no size")


Said = list[tuple[str, str]]
"""What is said of a picture: names, each with a number."""


def _look(predictor: Predictor, files: Sequence[Named]) -> tuple[list[str], Tensor | None]:
    """The paths of the pictures that can be decoded, and what the model makes of them; None: there are none."""
    found = all_as_stored(files, predictor.recipe, predictor.meta)
    if not found:
        return [], None
    with torch.inference_mode(), predictor.world.autocast():
        return list(found), predictor.timed(predictor.preprocess.images(np.stack(list(found.values()))))


def _probabilities(task: Task, output: Output) -> Tensor:
    assert isinstance(output, Tensor)
    return cast(ImageTask, task).probabilities(output)


def _draw_some(
    recipe: Recipe,
    meta: DatasetFacts,
    out: Store,
    done: Sequence[Done],
    title: str,
    pairs: Callable[[Sequence[str]], Said],
) -> None:
    """Some of the pictures, as the model sees them, with what `pairs` makes of their rows, in predictions.png."""
    shown = []
    for path, row in (done[place] for place in sheet.spread(len(done))):
        with contextlib.suppress(BadImage, OSError):
            shown.append(sheet.Shown(as_stored(path, recipe, meta), os.path.basename(row[0]), pairs(row)))
    if shown:
        out.write("predictions.png", sheet.draw_sheet(shown, f"{title}: {len(shown)} of {len(done):,} pictures"))
