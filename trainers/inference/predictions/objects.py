"""Predictions of boxes: the objects of each picture, in the picture's own pixels."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainers.data import targets
from trainers.data.decoder import Decoder
from trainers.data.resize import Pixels, shrink
from trainers.datasets import BadImage, Item, Source
from trainers.decode import decode, geometry, reading
from trainers.inference import boxes, sheet
from trainers.inference.boxes import Floats
from trainers.inference.predictions.base import Done, Named, Sample, Shared, Tally, ahead, all_as_stored, refuse_top_k
from trainers.inference.predictions.coco_results import Found, results
from trainers.inference.predictor import Predictor
from trainers.inference.sliding_window import places
from trainers.instances import each
from trainers.notices import notice
from trainers.progress import Advance
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Json, RunFacts, Scores
from trainers.runs import box_figures, mask_figures
from trainers.storage.store import Store
from trainers.tasks.base import BoxTask, Counts, Ints, Task

WINDOWS = 16
"""Windows at once."""
SHOWN = 480
"""Longest side, in pixels, of a picture in predictions.png."""
LETTERS = 18
"""Their height there, in pixels."""
COLUMNS = ("class", "score", "left", "top", "right", "bottom")


class Objects(Shared):
    """The objects of each picture: predictions.csv, detections.json, labels/ and overlays/."""

    own_size = True
    results = True
    holds = "finds objects"
    folders: Sequence[str] = ("labels", "overlays")

    def file_of(self, name: str) -> str | None:
        return f"labels/{name}.txt"

    def header(self, meta: DatasetFacts, task: Task, top_k: int = 1) -> list[str]:
        refuse_top_k(top_k, "objects")
        return ["path", *COLUMNS]

    def kept(self, header: list[str]) -> list[str]:
        return ["path", "labels", "boxes"]

    def lines(self, row: Sequence[str]) -> list[list[str]]:
        """A line an object; a picture without any has one, with its path alone, and one that cannot be decoded none."""
        if not row[1]:
            return []
        found = json.loads(row[2])
        return [[row[0], *map(str, each)] for each in found] or [[row[0], *[""] * len(COLUMNS)]]

    def confidence(self, run: RunFacts, given: float | None) -> float:
        found = (run.get("final") or {}).get("confidence") if given is None else given
        if found is None:
            raise ValueError(f"the run {run['name']} has no best confidence, as it has not ended; give --confidence")
        if not 0 <= found <= 1:
            raise ValueError(f"confidence={found} is not allowed; give 0 to 1")
        return float(found)

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Path) -> list[list[str]]:
        """Seen together, at the stored size; drawn one by one, as pictures may be large."""
        recipe, meta, store = predictor.recipe, predictor.meta, Store(out)
        seen: dict[str, Floats | None] = dict.fromkeys(path for path, _ in files)
        if not predictor.sliding:
            stored = all_as_stored(files, recipe, meta)
            seen = dict(zip(stored, _see(predictor, list(stored.values())), strict=True))
        rows = []
        for path, name in files:
            try:
                picture = decode(path, meta["channels"], how=reading(recipe.dataset_args)) if path in seen else None
            except (BadImage, OSError) as error:
                notice(str(error), path)
                picture = None
            if picture is None:
                rows.append([path, "", ""])
                continue
            found = detect(predictor, picture, seen[path])
            found = found[found[:, 4] >= (predictor.confidence or 0.0)]
            store.write(f"labels/{name}.txt", _yolo(found, picture.shape[:2]))
            drawn = box_figures.overlay(picture, found, meta["classes"])
            store.write(f"overlays/{name}.png", mask_figures.save_png(drawn))
            rows.append([path, f"labels/{name}.txt", json.dumps(_told(found, meta["classes"]), ensure_ascii=False)])
        return rows

    def finish(self, recipe: Recipe, meta: DatasetFacts, out: Store, done: Sequence[Done], title: str) -> None:
        """All objects in detections.json, and some of the pictures with theirs in predictions.png."""
        number = {name: place for place, name in enumerate(meta["classes"])}
        pictures = []
        for path, row in done:
            told = [[*each[2:], each[1], number[each[0]]] for each in json.loads(row[2])]
            pictures.append(Found(path, None, np.array(told, np.float64).reshape(-1, 6)))
        shown = []
        for path, _, found in (pictures[place] for place in sheet.spread(len(pictures))):
            with contextlib.suppress(BadImage, OSError):  # it has been there
                drawn = _draw_small(path, found, recipe, meta)
                said = "1 object" if len(found) == 1 else f"{len(found) or 'no'} objects"
                shown.append(sheet.Shown(drawn, os.path.basename(path), [(said, "")]))
        if shown:
            out.write("predictions.png", sheet.draw_sheet(shown, f"{title}: {len(shown)} of {len(done):,} pictures"))
        shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path, _ in done]) if done else ""
        named = [each._replace(name=os.path.relpath(os.path.abspath(each.name), shared)) for each in pictures]
        out.write("detections.json", results(named, meta.get("class_ids")))

    def evaluate(
        self, predictor: Predictor, source: Source, split: str, advance: Advance, results: Path | None = None
    ) -> Scores:
        """One picture after another, in their own pixels."""
        task = _box_task(predictor.task, predictor.recipe)
        target = targets.kind(source.target)
        decoder = Decoder(predictor.recipe, target, source.channels, len(source.classes), source.numbers)
        tally, pictures = Tally(), []
        read = ahead((item, decoder.read_raw(item)) for item in source.splits[split])
        for item, (picture, truth) in itertools.chain.from_iterable(
            zip(itertools.repeat(item), samples, strict=False) for item, samples in read
        ):
            found = detect(predictor, picture)[: task.max_detections]
            pictures.append(Found(item.name, item.args.get("image_id"), found))
            padded = np.full((1, task.max_detections, 6), -1.0)
            padded[0, : len(found)] = found
            stored = target.stack([target.resize(truth, picture.shape[:2], "stretch")])
            stored = each(torch.from_numpy, stored)
            tally.add(task.count(torch.from_numpy(padded), target.finish(stored, target.maps(stored))))
            advance(1)
        if results is not None:
            _write(results, pictures, predictor.meta)
        rows = source.rows[split]
        about = {"rows": rows, "classes": list(source.classes), "ms_per_image": 1000 * predictor.seconds / rows}
        return {**about, **task.scores(tally.counts())}

    def recording(self, task: Task, size: tuple[int, int]) -> Task:
        return cast(Task, _Recording(task, size))

    def write_results(
        self,
        file: Path,
        counts: Mapping[str, Ints],
        items: Sequence[Sample],
        recipe: Recipe,
        meta: DatasetFacts,
    ) -> None:
        pictures = []
        for (name, item), found in zip(items, counts["detections"], strict=True):
            own = _size_of(item, recipe, meta)
            found = boxes.back(found[found[:, 5] >= 0], own, recipe.storage_size, recipe.image_size, recipe.resize)
            pictures.append(Found(name, item.args.get("image_id"), found))
        _write(file, pictures, meta)

    def program(self, model: nn.Module, task: Task) -> nn.Module:
        return Detector(model, cast(BoxTask, task))

    def output(self, meta: DatasetFacts, task: Task) -> Json:
        most = cast(BoxTask, task).max_detections
        means = (
            f"(batch, {most}, 6): left, top, right, bottom in pixels of the input, score, number of the class; the "
            "surest first; class -1 in rows that hold no object"
        )
        return {"output": means}


class _Recording:
    """A task that counts what was found too."""

    def __init__(self, task: Task, size: tuple[int, int]) -> None:
        self._task, self._size = task, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def counts(self, output: Tensor, target: Tensor) -> Counts:
        found = self._task.counts(output, target)
        return found._replace(per_image={**found.per_image, "detections": self._task.labels(output, self._size)})


class Detector(nn.Module):
    """A model and what is made of its output: boxes, scores and classes, in static shapes."""

    def __init__(self, model: nn.Module, task: BoxTask) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        """Of normalised images (N, C, H, W), (N, max_detections, 6): left, top, right, bottom in pixels of the image,
        score, class; the surest first, class -1 in rows that hold no object."""
        found = self.task.candidates(self.model(images), (images.shape[2], images.shape[3]))
        kept = boxes.kept(found[..., :4], found[..., 5], self.task.nms)
        order = torch.where(kept, found[..., 4], -1.0).argsort(dim=1, descending=True, stable=True)
        order = order[:, : self.task.max_detections]
        blank = found.new_tensor([0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
        found = torch.where(kept[..., None], found, blank)
        return found.gather(1, order[..., None].expand(-1, -1, 6)).float()


def detect(predictor: Predictor, picture: Pixels, seen: Floats | None = None) -> Floats:
    """What is found in a picture, (K, 6): left, top, right, bottom in its own pixels, score, class; the surest first.

    Args:
        predictor: with `sliding`, a window is moved over the picture, which is also seen whole.
        picture: uint8 (H, W, C).
        seen: what is found in it as the model sees it whole, in pixels of that; None: it is found here.
    """
    recipe, own = predictor.recipe, (picture.shape[0], picture.shape[1])
    if seen is None:
        (seen,) = _see(predictor, [shrink(picture, recipe.storage_size, recipe.resize)])
    whole = boxes.back(seen, own, recipe.storage_size, recipe.image_size, recipe.resize)
    if not predictor.sliding:
        return whole
    with torch.inference_mode(), predictor.world.autocast():
        return boxes.merge([whole, *_windows(predictor, picture)])


def _see(predictor: Predictor, stored: Sequence[Pixels]) -> list[Floats]:
    """What is found in pictures of the stored size, in pixels of what the model sees: as many at once as in training,
    for which there is memory."""
    size = predictor.recipe.micro_batch_size or predictor.recipe.batch_size
    found = []
    with torch.inference_mode(), predictor.world.autocast():
        for start in range(0, len(stored), size):
            found += _look(predictor, predictor.preprocess.images(np.stack(stored[start : start + size])))
    return found


def _look(predictor: Predictor, images: Tensor) -> list[Floats]:
    """What is found in normalised images, in their pixels, without padding."""
    found = predictor.task.labels(predictor.timed(images), predictor.recipe.image_size).double().cpu().numpy()
    return [each[each[:, 5] >= 0] for each in found]


def _windows(predictor: Predictor, picture: Pixels) -> Iterator[Floats]:
    """What is found in each window, in pixels of the picture; a smaller picture is laid on black."""
    (height, width), own = predictor.recipe.image_size, (picture.shape[0], picture.shape[1])
    tops, lefts = (places(*sides, predictor.overlap) for sides in zip(own, (height, width), strict=True))
    corners = list(itertools.product(tops, lefts))
    for start in range(0, len(corners), WINDOWS):
        some = corners[start : start + WINDOWS]
        parts = np.zeros((len(some), height, width, picture.shape[2]), np.uint8)
        for part, (top, left) in zip(parts, some, strict=True):
            seen = picture[top : top + height, left : left + width]
            part[: seen.shape[0], : seen.shape[1]] = seen
        pixels = torch.from_numpy(parts).permute(0, 3, 1, 2).to(predictor.world.device).to(predictor.world.dtype)
        for at, found in zip(some, _look(predictor, predictor.preprocess.normalise(pixels)), strict=True):
            yield boxes.whole(found, (height, width), at, own)


def _box_task(task: Task, recipe: Recipe) -> BoxTask:
    if not isinstance(task, BoxTask):
        raise ValueError(
            f"the task {recipe.task} scores no boxes by themselves, as it has no count(detections, target); leave out "
            "--sliding"
        )
    return task


def _told(found: Floats, classes: Sequence[str]) -> list[list[str | float]]:
    """COLUMNS of each object."""
    return [
        [classes[int(number)], round(score, 6), *(round(side, 4) for side in sides)]
        for *sides, score, number in found.tolist()
    ]


def _draw_small(path: str, found: Floats, recipe: Recipe, meta: DatasetFacts) -> Pixels:
    """A picture with its objects, SHOWN pixels long, so that what is written in it can be read."""
    about = geometry(path)
    scale = SHOWN / max(about.height, about.width)
    size = max(1, round(scale * about.height)), max(1, round(scale * about.width))
    picture = decode(path, meta["channels"], size, how=reading(recipe.dataset_args))
    moved = found * [*[size[1] / about.width, size[0] / about.height] * 2, 1, 1]
    return box_figures.overlay(shrink(picture, size, "stretch"), moved, meta["classes"], letters=LETTERS)


def _yolo(found: Floats, size: tuple[int, int]) -> bytes:
    """A line an object: class, middle and extent as shares of the picture, score."""
    height, width = size
    lines = []
    for left, top, right, bottom, score, number in found.tolist():
        sides = (
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        )
        lines.append(f"{int(number)} {' '.join(f'{side:.6f}' for side in sides)} {score:.6f}\n")
    return "".join(lines).encode()


def _size_of(item: Item, recipe: Recipe, meta: DatasetFacts) -> tuple[int, int]:
    """Height and width of an item's picture, upright."""
    if item.path is not None:
        about = geometry(item.path)
        return about.height, about.width
    decoder = Decoder(recipe, targets.of_meta(meta), meta["channels"], len(meta["classes"]))
    picture, _ = decoder.read_raw(item)[0]
    return picture.shape[0], picture.shape[1]


def _write(file: Path, pictures: Sequence[Found], meta: DatasetFacts) -> None:
    Store(file.parent).write(file.name, results(pictures, meta.get("class_ids")))
