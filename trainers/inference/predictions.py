"""What people get of a model's predictions: one class for each kind of target (data/targets).

labels        a class for each picture: rows of predictions.csv
masks         masks, colours and overlays at the picture's own size, and scores at that size
label_sets    the labels of each picture, and the probability of each label
numbers       a number for each picture, or several
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from trainers.data import targets
from trainers.data.decoder import Decoder, Sample
from trainers.data.resize import Pixels, shrink
from trainers.datasets import BadImage, Source
from trainers.decode import decode, free_memory, reading
from trainers.inference import sheet
from trainers.inference.png_by_bands import Draw, draw_png
from trainers.inference.predictor import Predictor
from trainers.inference.sliding_window import slide
from trainers.notices import notice
from trainers.pixels import LARGE
from trainers.progress import Advance
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Scores
from trainers.runs import mask_figures
from trainers.storage.store import Store
from trainers.tasks.base import CountsLabels, ImageTask, Ints, Task
from trainers.training import build

Named = tuple[str, str]
"""A picture's path, and the name, without an ending, that files made of it get."""

Done = tuple[str, Sequence[str]]
"""A picture's path, and its row."""


class Predictions(Protocol):
    """What is made of the predictions of a kind of target."""

    own_size: bool
    """Whether pictures may keep their own size: --native and --sliding."""

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

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Path) -> list[list[str]]:
        """Predict some files.

        Args:
            predictor: the run's best model.
            files: the path of each, and its name in what is written.
            out: folder below which whatever else there is of a file is written.

        Returns:
            A row of predictions.csv for each file; its second field is "" where the file cannot be decoded.
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

    def evaluate(self, predictor: Predictor, source: Source, split: str, advance: Advance) -> Scores:
        """Scores of a split at the pictures' own size; only where `own_size`.

        Args:
            predictor: the run's best model.
            source: the data set's listing.
            split: the name of the split.
            advance: gets the number of pictures done since the last call.

        Raises:
            ValueError: the task cannot score at that size.
        """
        ...


class Classes:
    """A class for each picture, with its probability."""

    own_size = False

    def file_of(self, name: str) -> str | None:
        return None

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        if top_k < 1:
            raise ValueError(f"top_k={top_k} is not allowed; give 1 to {len(meta['classes'])}, the number of classes")
        more = range(2, min(top_k, len(meta["classes"])) + 1)
        each = meta["classes"] if cast(ImageTask, task).every_probability else []
        further = [name for place in more for name in (f"class {place}", f"probability {place}")]
        return ["path", "class", "probability", *further, *(f"probability of {name}" for name in each)]

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Path) -> list[list[str]]:
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

    def evaluate(self, predictor: Predictor, source: Source, split: str, advance: Advance) -> Scores:
        raise AssertionError("classes of whole pictures have no size")


class Tags:
    """The labels of each picture, and the probability of each label."""

    own_size = False

    def file_of(self, name: str) -> str | None:
        return None

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        _refuse_top_k(top_k, "any number of labels for each picture")
        return ["path", "number of labels", "labels", *(f"probability of {name}" for name in meta["classes"])]

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Path) -> list[list[str]]:
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

    def evaluate(self, predictor: Predictor, source: Source, split: str, advance: Advance) -> Scores:
        raise AssertionError("labels of whole pictures have no size")


class Numbers:
    """A number for each picture, or several, in the unit of the data."""

    own_size = False

    def file_of(self, name: str) -> str | None:
        return None

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        _refuse_top_k(top_k, "numbers, no classes")
        return ["path", *meta["classes"]]

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Path) -> list[list[str]]:
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

    def evaluate(self, predictor: Predictor, source: Source, split: str, advance: Advance) -> Scores:
        raise AssertionError("numbers of whole pictures have no size")


class PixelClasses:
    """A class for each pixel, at the picture's own size: masks/, colours/ and overlays/."""

    own_size = True

    def file_of(self, name: str) -> str | None:
        return f"masks/{name}.png"

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        _refuse_top_k(top_k, "masks")
        return ["path", "mask", *(f"share of {name}" for name in meta["classes"])]

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Path) -> list[list[str]]:
        classes, store = predictor.meta["classes"], Store(out)
        colours = class_colours(predictor.meta)
        rows = []
        how = reading(predictor.recipe.dataset_args)
        for path, name in files:
            try:
                picture = decode(path, predictor.meta["channels"], how=how)
                _check_room(predictor, picture, path)
            except (BadImage, OSError) as error:
                notice(str(error), path)
                rows.append([path, "", *([""] * len(classes))])
                continue
            labels = segment(predictor, picture)
            counts = sum(np.bincount(row, minlength=len(classes)) for row in labels)  # whole it would take 8 bytes each
            shares = np.asarray(counts) / labels.size
            drawings: dict[str, Draw] = {
                "masks": lambda _, labels: labels,
                "colours": lambda _, labels: mask_figures.colour(labels, colours),
                "overlays": lambda picture, labels: mask_figures.overlay(picture, labels, colours),
            }
            for folder, draw in drawings.items():
                store.write(f"{folder}/{name}.png", draw_png(draw, picture, labels))
            rows.append([path, f"masks/{name}.png", *(f"{share:.4f}" for share in shares)])
        return rows

    def finish(self, recipe: Recipe, meta: DatasetFacts, out: Store, done: Sequence[Done], title: str) -> None:
        """What numbers and colours mean, in legend.png."""
        out.write("legend.png", mask_figures.legend_png(meta["classes"], class_colours(meta)))

    def evaluate(self, predictor: Predictor, source: Source, split: str, advance: Advance) -> Scores:
        """One picture after another."""
        task = predictor.task
        if not isinstance(task, CountsLabels):
            raise ValueError(
                f"the task {predictor.recipe.task} scores no masks at their own size, as it has no count(labels, "
                "target); leave out --native and --sliding"
            )
        target = targets.kind(source.target)
        decoder = Decoder(predictor.recipe, target, source.channels, len(source.classes), source.numbers)
        totals: dict[str, Ints] = {}
        tables: dict[str, list[Ints]] = {}
        for picture, mask in _ahead(decoder.read_raw(item) for item in source.splits[split]):
            labels = segment(predictor, picture)
            truth = torch.tensor(mask)[None].to(predictor.world.device).long()
            counts = task.count(torch.from_numpy(labels)[None].to(truth.device), truth)
            for name, count in counts.total.items():
                totals[name] = totals.get(name, 0) + count.cpu().numpy()
            for name, count in counts.per_image.items():
                tables.setdefault(name, []).append(count.cpu().numpy())
            advance(1)
        if "confusion" in totals:
            target.check_counts([int(totals["confusion"].sum())], split, predictor.recipe.dataset)
        scores = predictor.task.scores({**totals, **{name: np.concatenate(parts) for name, parts in tables.items()}})
        rows = source.rows[split]
        about = {"rows": rows, "classes": list(source.classes), "ms_per_image": 1000 * predictor.seconds / rows}
        return {**about, **scores}


_KINDS: Mapping[str, Predictions] = {
    "labels": Classes(),
    "masks": PixelClasses(),
    "label_sets": Tags(),
    "numbers": Numbers(),
}


def of_meta(meta: Mapping[str, object]) -> Predictions:
    """What is made of the predictions of a run, from `dataset` of its run.json. Raises ValueError."""
    return targets.pick(_KINDS, targets.of_meta(meta).name)


def _as_stored(path: str, recipe: Recipe, meta: DatasetFacts) -> Pixels:
    """A picture at the size at which pictures are stored."""
    picture = decode(path, meta["channels"], recipe.storage_size, how=reading(recipe.dataset_args))
    return shrink(picture, recipe.storage_size, recipe.resize)


Said = list[tuple[str, str]]
"""What is said of a picture: names, each with a number."""


def _look(predictor: Predictor, files: Sequence[Named]) -> tuple[list[str], Tensor | None]:
    """The paths of the pictures that can be decoded, and what the model makes of them; None: there are none."""
    found: dict[str, Pixels] = {}
    for path, _ in files:
        try:
            found[path] = _as_stored(path, predictor.recipe, predictor.meta)
        except (BadImage, OSError) as error:
            notice(str(error), path)
    if not found:
        return [], None
    with torch.inference_mode(), predictor.world.autocast():
        return list(found), predictor.timed(predictor.preprocess.images(np.stack(list(found.values()))))


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
            shown.append(sheet.Shown(_as_stored(path, recipe, meta), os.path.basename(row[0]), pairs(row)))
    if shown:
        out.write("predictions.png", sheet.draw_sheet(shown, f"{title}: {len(shown)} of {len(done):,} pictures"))


def _refuse_top_k(top_k: int, has: str) -> None:
    if top_k != 1:
        raise ValueError(f"top_k={top_k} is for classes of whole pictures, and this run has {has}; leave it out")


def class_colours(meta: DatasetFacts) -> Sequence[Sequence[int]]:
    """Those of the classes in pictures of masks."""
    return meta.get("colours") or mask_figures.palette(len(meta["classes"]))


def _check_room(predictor: Predictor, picture: Pixels, path: str) -> None:
    """Raises BadImage where the logits of a large picture, at its own size, would not fit into memory."""
    height, width = picture.shape[:2]
    outputs = 1 if predictor.tta is None else 2  # that of a view, and their sum
    needed = height * width * (4 * outputs * len(predictor.meta["classes"]) + 8)
    if predictor.sliding or height * width <= LARGE or needed <= (free := free_memory()):
        return
    raise BadImage(
        f"{path} has {width}x{height} pixels, whose logits need {needed / 2**30:.1f} GiB of memory, and "
        f"{free / 2**30:.1f} GiB are free; give --sliding, which needs little"
    )


def segment(predictor: Predictor, picture: Pixels) -> Pixels:
    """Class numbers, uint8 (H, W), of a picture, uint8 (H, W, C), at its own size."""
    size = picture.shape[0], picture.shape[1]
    inner = size if predictor.sliding else _whole_size(size, predictor.recipe)
    world = predictor.world
    pixels = torch.from_numpy(np.require(shrink(picture, inner, "stretch"), requirements="W")).permute(2, 0, 1)
    window = predictor.recipe.image_size if predictor.sliding else inner
    labels = np.empty(size, np.uint8)

    def look(part: Tensor) -> Tensor:
        return predictor.timed(predictor.preprocess.normalise(part.to(world.device).to(world.dtype)))

    with torch.inference_mode(), world.autocast():
        for top, logits in slide(look, pixels, window, predictor.overlap):
            wanted = (logits.shape[-2], logits.shape[-1]) if predictor.sliding else size
            band = predictor.task.labels(logits[None], wanted)[0]
            labels[top : top + len(band)] = band.to(torch.uint8).cpu().numpy()
    return labels


def _whole_size(own: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """The size to which a whole picture is brought, so that things are as large in it as they were in training."""
    if recipe.resize == "stretch":
        return recipe.storage_size
    ratios = [wanted / given for wanted, given in zip(recipe.storage_size, own, strict=True)]
    scale = max(ratios) if recipe.resize == "crop" else min(ratios)
    return max(1, round(own[0] * scale)), max(1, round(own[1] * scale))


def _ahead(samples: Iterator[list[Sample]]) -> Iterator[Sample]:
    """The samples of each item; the next item is read while one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, samples, None)
        while (found := following.result()) is not None:
            following = thread.submit(next, samples, None)
            yield from found
