"""What is asked of the predictions of a kind of target, and what kinds share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from trainers.data import targets
from trainers.data.resize import Pixels
from trainers.datasets import BadImage, Item, Source
from trainers.inference.predictor import Predictor
from trainers.inference.predictor import as_stored as as_stored
from trainers.instances import Targets
from trainers.notices import notice
from trainers.progress import Advance
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Json, RunFacts, Scores
from trainers.storage.store import Store
from trainers.tasks.base import Counts, Ints, Output, Task

T = TypeVar("T")
Sample = tuple[str, Item]
"""The name of a row, and its item."""

Named = tuple[str, str]
"""A picture's path, and the name, without an ending, that files made of it get."""

Done = tuple[str, Sequence[str]]
"""A picture's path, and its row."""


class Recording(Task, Protocol):
    """A task that keeps what was found in the pictures that it counts."""

    def write(self, file: Path) -> None:
        """Write it, as COCO's results."""
        ...


class Predictions(Protocol):
    """What is made of the predictions of a kind of target."""

    together: bool
    """Whether the model sees several pictures at once, brought to one size."""
    own_size: bool
    """Whether a window may be moved over pictures of their own size: --sliding."""
    native: bool
    """Whether scores at the pictures' own size depend on it: --native."""
    results: bool
    """Whether `evaluate` can write what was found: --results."""
    holds: str
    """What the run does, for messages that refuse an option."""
    folders: Sequence[str]
    """That files of each picture are written to."""
    drawn: str
    """The file that `finish` draws."""
    answers: Sequence[str]
    """What a file that answers by itself gives besides the model's output."""

    def file_of(self, name: str) -> str | None:
        """The file that is made of a picture, as predictions.csv names it; None: there is none."""
        ...

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        """The first line of predictions.csv.

        Args:
            meta: The data's, of run.json.
            task: Of the run.
            top_k: Classes that are named for each picture.

        Raises:
            ValueError: There is no such number of classes of a picture.
        """
        ...

    def kept(self, header: list[str]) -> list[str]:
        """The first line of the file of rows that are done, from that of predictions.csv."""
        ...

    def lines(self, row: Sequence[str]) -> list[list[str]]:
        """What predictions.csv has of a picture, from its row."""
        ...

    def confidence(self, run: RunFacts, given: float | None) -> float | None:
        """The least score of what is told of a picture.

        Args:
            run: What run.json holds.
            given: By the user; None: chosen here.

        Raises:
            ValueError: It is not allowed, or there are no scores.
        """
        ...

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Store) -> list[list[str]]:
        """Predict some files.

        Args:
            predictor: the run's best model.
            files: the path of each, and its name in what is written.
            out: folder below which whatever else there is of a file is written.

        Returns:
            A row for each file; its second field is "" where the file cannot be decoded.
        """
        ...

    def finish(self, recipe: Recipe, meta: DatasetFacts, out: Store, done: Sequence[Done], title: str) -> None:
        """Write what explains the files.

        Args:
            recipe: of the run.
            meta: the data's, of run.json.
            out: the folder.
            done: every picture that was decoded, in order.
            title: of a figure.
        """
        ...

    def evaluate(
        self, predictor: Predictor, source: Source, split: str, advance: Advance, results: Path | None = None
    ) -> Scores:
        """Scores of a split at the pictures' own size; only where `own_size`.

        Args:
            predictor: the run's best model.
            source: the data set's listing.
            split: the name of the split.
            advance: gets the number of pictures done since the last call.
            results: a file for what was found.

        Raises:
            ValueError: the task cannot score at that size.
        """
        ...

    def recording(self, task: Task, items: Sequence[Sample], recipe: Recipe, meta: DatasetFacts) -> Recording:
        """A task that keeps what was found too; only where `results`.

        Args:
            task: the run's.
            items: the name of each row of the split, and its item.
            recipe: of the run.
            meta: the data's, of run.json.
        """
        ...

    def program(self, model: nn.Module, task: Task) -> nn.Module:
        """What is exported of a model."""
        ...

    def answer(self, task: Task, output: Output, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """`answers`, from the model's output of pictures of this size, in static shapes."""
        ...

    def output(self, meta: DatasetFacts, task: Task) -> Json:
        """What one must know to use the output of `program`."""
        ...

    def agreement(
        self, one: Targets, other: Targets, meta: DatasetFacts, confidence: float | None
    ) -> tuple[float, float]:
        """How much two models say alike of the same pictures, and out of how much.

        Args:
            one, other: `Task.labels` of each.
            meta: the data's, of run.json.
            confidence: the least score of what is told of a picture; None: there are no scores.
        """
        ...


class Shared:
    """What most kinds do alike: a picture has a line in predictions.csv, and the program is the model."""

    together: bool = True
    own_size: bool = False
    native: bool = False
    results: bool = False
    holds: str = "classifies whole pictures"
    folders: Sequence[str] = ()
    drawn: str = "predictions.png"
    answers: Sequence[str] = ()

    def kept(self, header: list[str]) -> list[str]:
        return header

    def lines(self, row: Sequence[str]) -> list[list[str]]:
        return [list(row)]

    def confidence(self, run: RunFacts, given: float | None) -> float | None:
        if given is not None:
            raise ValueError(f"confidence={given:g} is for runs that find objects; the run {run['name']} {self.holds}")
        return None

    def recording(self, task: Task, items: Sequence[Sample], recipe: Recipe, meta: DatasetFacts) -> Recording:
        raise AssertionError("there are no results")

    def program(self, model: nn.Module, task: Task) -> nn.Module:
        return model

    def answer(self, task: Task, output: Output, size: tuple[int, int]) -> tuple[Tensor, ...]:
        return ()

    def output(self, meta: DatasetFacts, task: Task) -> Json:
        """What the kind of target says, where it does, and what it takes to use it."""
        means = targets.of_meta(meta).output
        return {"output": means, "target_facts": meta.get("target_facts", {})} if means else {}

    def agreement(
        self, one: Targets, other: Targets, meta: DatasetFacts, confidence: float | None
    ) -> tuple[float, float]:
        """Classes, and labels, that are the same."""
        return float((one == other).sum()), float(one.numel())


def all_as_stored(files: Sequence[Named], recipe: Recipe, meta: DatasetFacts) -> dict[str, Pixels]:
    """Path -> picture, of those that can be decoded."""
    found = {}
    for path, _ in files:
        try:
            found[path] = as_stored(path, recipe, meta)
        except (BadImage, OSError) as error:
            notice(str(error), path)
    return found


def refuse_top_k(top_k: int, has: str) -> None:
    if top_k != 1:
        raise ValueError(f"top_k={top_k} is for classes of whole pictures, and this run has {has}; leave it out")


class Tally:
    """Counts of a split, picture by picture."""

    def __init__(self) -> None:
        self._totals: dict[str, Ints] = {}
        self._tables: dict[str, list[Ints]] = {}

    def add(self, counts: Counts) -> None:
        """Those of a picture, or of several."""
        for name, count in counts.total.items():
            self._totals[name] = self._totals.get(name, 0) + count.cpu().numpy()
        for name, count in counts.per_image.items():
            self._tables.setdefault(name, []).append(count.cpu().numpy())

    def counts(self) -> dict[str, Ints]:
        """All of them, as `Task.scores` takes them."""
        return {**self._totals, **{name: np.concatenate(parts) for name, parts in self._tables.items()}}


def ahead(samples: Iterator[T]) -> Iterator[T]:
    """Each of some things; the next one is made while one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, samples, None)
        while (found := following.result()) is not None:
            following = thread.submit(next, samples, None)
            yield found
