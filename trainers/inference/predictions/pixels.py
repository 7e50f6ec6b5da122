"""Predictions for each pixel: masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainers.data import targets
from trainers.data.decoder import Decoder
from trainers.data.resize import Pixels, shrink
from trainers.datasets import BadImage, Source
from trainers.decode import decode, free_memory, reading
from trainers.inference.png_by_bands import Draw, draw_png
from trainers.inference.predictions.base import Done, Named, Shared, Tally, ahead, refuse_top_k
from trainers.inference.predictor import Predictor
from trainers.inference.sliding_window import slide
from trainers.notices import notice
from trainers.pixels import LARGE
from trainers.progress import Advance
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Scores
from trainers.runs import mask_figures
from trainers.storage.store import Store
from trainers.tasks.base import CountsLabels, Task


class PixelClasses(Shared):
    """A class for each pixel, at the picture's own size: masks/, colours/ and overlays/."""

    together = False
    own_size = True
    native = True
    holds = "segments pictures"
    folders: Sequence[str] = ("masks", "colours", "overlays")
    drawn = "legend.png"

    def file_of(self, name: str) -> str | None:
        return f"masks/{name}.png"

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        refuse_top_k(top_k, "masks")
        return ["path", "mask", *(f"share of {name}" for name in meta["classes"])]

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Store) -> list[list[str]]:
        classes = predictor.meta["classes"]
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
                out.write(f"{folder}/{name}.png", draw_png(draw, picture, labels))
            rows.append([path, f"masks/{name}.png", *(f"{share:.4f}" for share in shares)])
        return rows

    def finish(self, recipe: Recipe, meta: DatasetFacts, out: Store, done: Sequence[Done], title: str) -> None:
        """What numbers and colours mean, in legend.png."""
        out.write("legend.png", mask_figures.legend_png(meta["classes"], class_colours(meta)))

    def evaluate(
        self, predictor: Predictor, source: Source, split: str, advance: Advance, results: Path | None = None
    ) -> Scores:
        """One picture after another."""
        task = predictor.task
        if not isinstance(task, CountsLabels):
            raise ValueError(
                f"the task {predictor.recipe.task} scores no masks at their own size, as it has no count(labels, "
                "target); leave out --native and --sliding"
            )
        target = targets.kind(source.target)
        decoder = Decoder(predictor.recipe, target, source.channels, len(source.classes), source.numbers)
        tally = Tally()
        read = ahead(decoder.read_raw(item) for item in source.splits[split])
        for picture, mask in itertools.chain.from_iterable(read):
            labels = segment(predictor, picture)
            truth = torch.tensor(mask)[None].to(predictor.world.device).long()
            counts = task.count(torch.from_numpy(labels)[None].to(truth.device), truth)
            tally.add(counts)
            advance(1)
        found = tally.counts()
        if "confusion" in found:
            target.check_counts([int(found["confusion"].sum())], split, predictor.recipe.dataset)
        rows = source.rows[split]
        about = {"rows": rows, "classes": list(source.classes), "ms_per_image": 1000 * predictor.seconds / rows}
        return {**about, **predictor.task.scores(found)}


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
    pixels = torch.from_numpy(np.require(shrink(picture, inner, "stretch"), requirements="W")).permute(2, 0, 1)
    labels = np.empty(size, np.uint8)
    with torch.inference_mode(), predictor.world.autocast():
        for top, logits in _bands(predictor, pixels):
            wanted = (logits.shape[-2], logits.shape[-1]) if predictor.sliding else size
            band = predictor.task.labels(logits[None], wanted)[0]
            labels[top : top + len(band)] = band.to(torch.uint8).cpu().numpy()
    return labels


def _bands(predictor: Predictor, pixels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Logits of a picture (C, H, W), in bands from top to bottom; but where its size is changed again, in one. A model
    that takes one size alone is moved over a picture of another, as a window."""
    own, fixed = (pixels.shape[1], pixels.shape[2]), predictor.recipe.image_size
    world, one_size = predictor.world, predictor.trained.one_size

    def look(part: Tensor) -> Tensor:
        values, given = part.to(world.device).to(world.dtype), (part.shape[2], part.shape[3])
        if not one_size or given == fixed:
            logits: Tensor = predictor.timed(predictor.preprocess.normalise(values))
            return logits
        padded = functional.pad(values, (0, fixed[1] - given[1], 0, fixed[0] - given[0]))
        logits = predictor.timed(predictor.preprocess.normalise(padded))
        if logits.shape[-2:] != fixed:
            logits = functional.interpolate(logits, fixed, mode="bilinear", align_corners=False)
        return logits[..., : given[0], : given[1]]

    window = fixed if predictor.sliding or one_size else own
    bands = slide(look, pixels, window, predictor.overlap)
    if predictor.sliding:
        yield from bands
    else:
        yield 0, torch.cat([logits for _, logits in bands], 1)


def _whole_size(own: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """The size to which a whole picture is brought, so that things are as large in it as they were in training."""
    if recipe.resize == "stretch":
        return recipe.storage_size
    ratios = [wanted / given for wanted, given in zip(recipe.storage_size, own, strict=True)]
    scale = max(ratios) if recipe.resize == "crop" else min(ratios)
    return max(1, round(own[0] * scale)), max(1, round(own[1] * scale))
