"""Predictions of boxes: the objects of each picture, in the picture's own pixels."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.data import targets
from trainers.data.decoder import Decoder
from trainers.data.resize import Pixels, shrink
from trainers.datasets import BadImage, Item, Source
from trainers.decode import decode, geometry, reading
from trainers.inference import boxes, sheet
from trainers.inference.boxes import Floats, Placed
from trainers.inference.exported.format import Plain
from trainers.inference.predictions.base import (
    Done,
    Named,
    Recording,
    Sample,
    Shared,
    Tally,
    ahead,
    all_as_stored,
    refuse_top_k,
)
from trainers.inference.predictions.coco_results import Found, Segments, results
from trainers.inference.predictor import Predictor
from trainers.inference.sliding_window import places
from trainers.instances import Targets, each, parts
from trainers.notices import notice
from trainers.outlines import Piece, encode
from trainers.outlines import decode as decode_mask
from trainers.progress import Advance
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Json, RunFacts, Scores
from trainers.runs import box_figures, mask_figures
from trainers.storage.store import Store
from trainers.tasks.base import BoxTask, Counts, Output, Task

WINDOWS = 16
"""Windows at once."""
SHOWN = 480
"""Longest side, in pixels, of a picture in predictions.png."""
LETTERS = 18
"""Their height there, in pixels."""
COLUMNS = ("class", "score", "left", "top", "right", "bottom")


class Look(NamedTuple):
    """What is found in a picture, or a window of one, that the model has looked at."""

    found: Floats
    """(K, 6): left, top, right, bottom in its pixels, score, class; the surest first."""
    rows: Tensor
    """(K, ...), of the task."""
    prototypes: Tensor | None = None
    """Of masks, (prototypes, h, w)."""


class Seen(NamedTuple):
    """What is found in a picture, the surest first."""

    boxes: Floats
    """(K, 6): left, top, right, bottom in the picture's own pixels, score, class."""
    pieces: Sequence[Piece] | None = None
    """Their masks; None: there are none."""

    def first(self, count: int) -> Seen:
        """The surest ones."""
        return Seen(self.boxes[:count], None if self.pieces is None else self.pieces[:count])

    def tell(self, name: str, item: Item | None, size: tuple[int, int]) -> Found:
        """For COCO's results; `size`: of the picture."""
        segments = None if self.pieces is None else [encode(piece.whole(*size)) for piece in self.pieces]
        return Found(name, item.args.get("image_id") if item else None, self.boxes, segments)


class Objects(Shared):
    """The objects of each picture: predictions.csv, detections.json, labels/ and overlays/."""

    own_size = True
    results = True
    holds = "finds objects"
    folders: Sequence[str] = ("labels", "overlays")
    answers: Sequence[str] = ("detections",)

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
        return [[row[0], *map(str, each[: len(COLUMNS)])] for each in found] or [[row[0], *[""] * len(COLUMNS)]]

    def confidence(self, run: RunFacts, given: float | None) -> float:
        found = (run.get("final") or {}).get("confidence") if given is None else given
        if found is None:
            raise ValueError(f"the run {run['name']} has no best confidence, as it has not ended; give --confidence")
        if not 0 <= found <= 1:
            raise ValueError(f"confidence={found} is not allowed; give 0 to 1")
        return float(found)

    def agreement(
        self, one: Targets, other: Targets, meta: DatasetFacts, confidence: float | None
    ) -> tuple[float, float]:
        """Objects that both find, twice, out of those that each finds: of a class, with boxes that overlap."""
        same, of = 0.0, 0.0
        for mine, theirs in zip(parts(one)[0], parts(other)[0], strict=True):
            some, others = (each[(each[:, 5] >= 0) & (each[:, 4] >= (confidence or 0))] for each in (mine, theirs))
            same += 2 * boxes.pairs(some, others)
            of += len(some) + len(others)
        return same, of

    def look(self, task: Task, output: Output, size: tuple[int, int]) -> list[Look]:
        """What is found in each picture of this size, from the model's output of them."""
        found = task.labels(output, size)
        return [Look(each.double().cpu().numpy(), each) for each in _without_padding(found)]

    def pieces(self, task: Task, found: Floats, looks: Sequence[tuple[Look, Placed]]) -> Sequence[Piece] | None:
        """The masks of objects; None: there are none.

        Args:
            task: Of the run.
            found: (K, 8): left, top, right, bottom in the picture's own pixels, score, class, and which look has found
                it, in which row.
            looks: At the picture, and where each lies in it.
        """
        return None

    def tinted(self, picture: Pixels, seen: Seen) -> Pixels:
        """The picture that boxes are drawn on."""
        return picture

    def labels(self, seen: Seen, most: int, size: tuple[int, int]) -> Targets:
        """What is found in a picture of this size as the task's `count` takes it, padded to `most`."""
        padded = np.full((1, most, 6), -1.0)
        padded[0, : len(seen.boxes)] = seen.boxes
        return torch.from_numpy(padded)

    def check(self, task: Task, recipe: Recipe) -> BoxTask:
        """Raises ValueError where the task cannot score what is found by itself."""
        if not isinstance(task, BoxTask):
            raise ValueError(
                f"the task {recipe.task} scores no boxes by themselves, as it has no count(detections, target); leave "
                "out --sliding"
            )
        return task

    def see(self, predictor: Predictor, picture: Pixels, seen: Look | None = None) -> Seen:
        """What is found in a picture.

        Args:
            predictor: With `sliding`, a window is moved over the picture, which is also seen whole.
            picture: uint8 (H, W, C).
            seen: What is found in it as the model sees it whole; None: it is found here.
        """
        recipe, own = predictor.recipe, (picture.shape[0], picture.shape[1])
        if seen is None:
            (seen,) = self.see_whole(predictor, [shrink(picture, recipe.storage_size, recipe.resize)])
        place = boxes.place(own, recipe.storage_size, recipe.image_size, recipe.resize)
        looks = [(seen, place)]
        found = [boxes.clip(place.to_picture(_numbered(seen, 0)), own)]
        with torch.inference_mode(), predictor.world.autocast():
            for corner, look in self._windows(predictor, picture) if predictor.sliding else ():
                found.append(boxes.whole(_numbered(look, len(looks)), recipe.image_size, corner, own))
                looks.append((look, Placed((1.0, 1.0), (corner[1], corner[0]))))
            merged = boxes.merge(found) if predictor.sliding else found[0]
            return Seen(merged[:, :6], self.pieces(predictor.task, merged, looks))

    def see_whole(self, predictor: Predictor, stored: Sequence[Pixels]) -> list[Look]:
        """What is found in pictures of the stored size, in pixels of what the model sees: as many at once as in
        training, for which there is memory."""
        size = predictor.recipe.micro_batch_size or predictor.recipe.batch_size
        found = []
        with torch.inference_mode(), predictor.world.autocast():
            for start in range(0, len(stored), size):
                output = predictor.timed(predictor.preprocess.images(np.stack(stored[start : start + size])))
                found += self.look(predictor.task, output, predictor.recipe.image_size)
        return found

    def _windows(self, predictor: Predictor, picture: Pixels) -> Iterator[tuple[tuple[int, int], Look]]:
        """What is found in each window, and the window's top and left; a smaller picture is laid on black."""
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
            output = predictor.timed(predictor.preprocess.normalise(pixels))
            yield from zip(some, self.look(predictor.task, output, (height, width)), strict=True)

    def rows(self, predictor: Predictor, files: Sequence[Named], out: Store) -> list[list[str]]:
        """Seen together, at the stored size; drawn one by one, as pictures may be large."""
        recipe, meta = predictor.recipe, predictor.meta
        seen: dict[str, Look | None] = dict.fromkeys(path for path, _ in files)
        if not predictor.sliding:
            stored = all_as_stored(files, recipe, meta)
            seen = dict(zip(stored, self.see_whole(predictor, list(stored.values())), strict=True))
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
            shown = self.see(predictor, picture, seen[path])
            shown = shown.first(int((shown.boxes[:, 4] >= (predictor.confidence or 0.0)).sum()))
            drawn = box_figures.overlay(self.tinted(picture, shown), shown.boxes, meta["classes"])
            out.write(f"labels/{name}.txt", _yolo(shown.boxes, picture.shape[:2]))
            out.write(f"overlays/{name}.png", mask_figures.save_png(drawn))
            told = _told(shown.tell(name, None, picture.shape[:2]), meta["classes"])
            rows.append([path, f"labels/{name}.txt", json.dumps(told, ensure_ascii=False)])
        return rows

    def finish(self, recipe: Recipe, meta: DatasetFacts, out: Store, done: Sequence[Done], title: str) -> None:
        """All objects in detections.json, and some of the pictures with theirs in predictions.png."""
        number = {name: place for place, name in enumerate(meta["classes"])}
        pictures = []
        for path, row in done:
            told = json.loads(row[2])
            found = np.array([[*sides, score, number[name]] for name, score, *sides, _ in told], np.float64)
            pictures.append(Found(path, None, found.reshape(-1, 6), [each[-1] for each in told]))
        shown = []
        for path, _, found, segments in (pictures[place] for place in sheet.spread(len(pictures))):
            with contextlib.suppress(BadImage, OSError):  # it has been there
                drawn = self._draw_small(path, found, segments, recipe, meta)
                said = "1 object" if len(found) == 1 else f"{len(found) or 'no'} objects"
                shown.append(sheet.Shown(drawn, os.path.basename(path), [(said, "")]))
        if shown:
            out.write("predictions.png", sheet.draw_sheet(shown, f"{title}: {len(shown)} of {len(done):,} pictures"))
        shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path, _ in done]) if done else ""
        named = [each._replace(name=os.path.relpath(os.path.abspath(each.name), shared)) for each in pictures]
        out.write("detections.json", results(named, meta.get("class_ids")))

    def _draw_small(self, path: str, found: Floats, segments: Segments, recipe: Recipe, meta: DatasetFacts) -> Pixels:
        """A picture with its objects, SHOWN pixels long, so that what is written in it can be read."""
        about = geometry(path)
        scale = SHOWN / max(about.height, about.width)
        size = max(1, round(scale * about.height)), max(1, round(scale * about.width))
        picture = shrink(decode(path, meta["channels"], size, how=reading(recipe.dataset_args)), size, "stretch")
        moved = found * [*[size[1] / about.width, size[0] / about.height] * 2, 1, 1]
        pieces = [_smaller(segment, size) for segment in segments or () if segment]
        return box_figures.overlay(self.tinted(picture, Seen(moved, pieces)), moved, meta["classes"], letters=LETTERS)

    def evaluate(
        self, predictor: Predictor, source: Source, split: str, advance: Advance, results: Path | None = None
    ) -> Scores:
        """One picture after another, in their own pixels."""
        task = self.check(predictor.task, predictor.recipe)
        target = targets.kind(source.target)
        decoder = Decoder(predictor.recipe, target, source.channels, len(source.classes), source.numbers)
        tally, pictures = Tally(), []
        read = ahead((item, decoder.read_raw(item)) for item in source.splits[split])
        for item, (picture, truth) in itertools.chain.from_iterable(
            zip(itertools.repeat(item), samples, strict=False) for item, samples in read
        ):
            size = (picture.shape[0], picture.shape[1])
            seen = self.see(predictor, picture).first(task.max_detections)
            if results is not None:
                pictures.append(seen.tell(item.name, item, size))
            stored = each(torch.from_numpy, target.stack([target.resize(truth, size, "stretch")]))
            labels = self.labels(seen, task.max_detections, size)
            tally.add(task.count(labels, target.finish(stored, target.maps(stored))))
            advance(1)
        if results is not None:
            _write(results, pictures, predictor.meta)
        rows = source.rows[split]
        about = {"rows": rows, "classes": list(source.classes), "ms_per_image": 1000 * predictor.seconds / rows}
        return {**about, **task.scores(tally.counts())}

    def recording(self, task: Task, items: Sequence[Sample], recipe: Recipe, meta: DatasetFacts) -> Recording:
        return cast(Recording, _Recording(self, task, items, recipe, meta))

    def program(self, model: nn.Module, task: Task) -> nn.Module:
        return Detector(model, task, self)

    def answer(self, task: Task, output: Output, size: tuple[int, int]) -> tuple[Tensor, ...]:
        return (pick(cast(BoxTask, task), output, size).float(),)

    def output(self, meta: DatasetFacts, task: Task) -> Json:
        most = cast(BoxTask, task).max_detections
        means = (
            f"(batch, {most}, 6): left, top, right, bottom in pixels of the input, score, number of the class; the "
            "surest first; class -1 in rows that hold no object"
        )
        return {"output": means}


class _Recording:
    """A task that keeps what was found too, of pictures that come in the order of `items`."""

    def __init__(self, kind: Objects, task: Task, items: Sequence[Sample], recipe: Recipe, meta: DatasetFacts) -> None:
        self._kind, self._task, self._recipe, self._meta = kind, task, recipe, meta
        self._items, self._found = items, list[Found]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def counts(self, output: Output, target: Targets) -> Counts:
        recipe = self._recipe
        for look in self._kind.look(self._task, output, recipe.image_size):
            name, item = self._items[len(self._found)]
            own = _size_of(item, recipe, self._meta)
            place = boxes.place(own, recipe.storage_size, recipe.image_size, recipe.resize)
            found = boxes.clip(place.to_picture(_numbered(look, 0)), own)
            seen = Seen(found[:, :6], self._kind.pieces(self._task, found, [(look, place)]))
            self._found.append(seen.tell(name, item, own))
        return self._task.counts(output, target)

    def write(self, file: Path) -> None:
        """Write what was found, as COCO's results."""
        _write(file, self._found, self._meta)


class Detector(nn.Module):
    """A model and what is made of its output: boxes, scores and classes, in static shapes."""

    def __init__(self, model: nn.Module, task: Task, kind: Objects) -> None:
        super().__init__()
        self.model, self.task, self.kind = Plain(model), task, kind

    def forward(self, images: Tensor) -> Output:
        """Of normalised images (N, C, H, W), (N, max_detections, 6): left, top, right, bottom in pixels of the image,
        score, class; the surest first, class -1 in rows that hold no object. And what else the kind answers."""
        found = self.kind.answer(self.task, self.model(images), (images.shape[2], images.shape[3]))
        return found if len(found) > 1 else found[0]


def pick(task: BoxTask, output: Output, size: tuple[int, int]) -> Tensor:
    """Detections in pictures of this size, with what the task has behind the class, in static shapes."""
    found = task.candidates(output, size)
    kept = boxes.kept(found[..., :4], found[..., 5], task.nms)
    order = torch.where(kept, found[..., 4], -1.0).argsort(dim=1, descending=True, stable=True)
    order = order[:, : task.max_detections]
    blank = functional.pad(found.new_tensor([0, 0, 0, 0, 0, -1]), (0, found.shape[2] - 6))
    found = torch.where(kept[..., None], found, blank)
    return found.gather(1, order[..., None].expand(-1, -1, found.shape[2]))


def _without_padding(found: Tensor) -> list[Tensor]:
    """Of each picture the rows that are detections."""
    return [each[each[:, 5] >= 0] for each in found]


def _numbered(look: Look, number: int) -> Floats:
    """What a look has found, with the look's number and that of each row behind it, (K, 8)."""
    count = len(look.found)
    return np.column_stack([look.found[:, :6], np.full(count, number), np.arange(count)])


def _told(found: Found, classes: Sequence[str]) -> list[list[Any]]:
    """COLUMNS of each object, and its mask."""
    segments = [None] * len(found.boxes) if found.segments is None else found.segments
    return [
        [classes[int(number)], round(score, 6), *(round(side, 4) for side in sides), segment]
        for (*sides, score, number), segment in zip(found.boxes.tolist(), segments, strict=True)
    ]


def _smaller(segment: Json, size: tuple[int, int]) -> Piece:
    """A mask, from run lengths, of a picture of another size."""
    mask = decode_mask(segment)
    down, across = ((np.arange(new) + 0.5) * old / new for old, new in zip(mask.shape, size, strict=True))
    return Piece(0, 0, mask[np.ix_(down.astype(int), across.astype(int))] > 0)


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
