"""What is done with a finished run: evaluate it, predict with it, export it. One process; predict also on Ray."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.data import prepare as datas
from trainers.datasets import BadImage, Source
from trainers.datasets._files import SUFFIXES, decode
from trainers.fitting import cache_folder, published
from trainers.inference.sliding_window import slide
from trainers.recipe import Recipe, Scale, nearest
from trainers.runs import mask_figures as pictures
from trainers.storage.store import Store, default_storage, read_run, run_names
from trainers.tasks.base import Segment
from trainers.training import distributed as parallel
from trainers.training import loop
from trainers.training.checkpoint import Checkpoints, TrainState
from trainers.training.distributed import World

PREDICT_BATCH = 64
Advance = Callable[[int], None]


def open_run(run: str, storage: str | None = None) -> tuple[Store, dict[str, Any]]:
    """The folder of a run, by name or path, and what its run.json holds. Raises ValueError, with the nearest names."""
    below = Store(storage or default_storage())
    for folder in (below / run, Store(run)):
        if (found := read_run(folder)) is not None:
            return folder, found
    raise ValueError(f"there is no run {run!r} in {below.address}{nearest(run, run_names(below))}")


def evaluate(
    run: str,
    split: str | None = None,
    *,
    data: str | None = None,
    storage: str | None = None,
    native: bool = False,
    sliding: bool = False,
    overlap: float = 0.25,
    advance: Advance = lambda n: None,
) -> dict[str, Any]:
    """Score the best checkpoint of a run.

    Parameters: `split`, by default "test" where the data has one, else "val"; `data`, where the raw data lies, by
    default where it lay in training; `native`, whether masks are scored at their own size, to which the logits are
    resized; `sliding`, whether pictures too keep their own size and a window of image_size, sharing `overlap` with
    its neighbours, is moved over them; `advance`, told the number of pictures done. Returns `split`,
    `rows`, `classes`, every score by bare name, `per_class`, and `ms_per_image`, of the model alone: reading and
    pre-processing are left out; `loss` too, but not at native size. Raises ValueError.
    """
    folder, found = open_run(run, storage)
    recipe, scale = Recipe.from_json(found["recipe"]), Scale.from_json(found["scale"])
    _check_overlap(overlap)
    source = datas.look(recipe, data or scale.data)
    split = split or ("test" if "test" in source.splits else "val")
    if split not in source.splits:
        raise ValueError(f"the data has no split {split!r}; it has {', '.join(source.splits)}")
    if (native or sliding) and not source.masks:
        raise ValueError(
            f"the run {run} classifies whole pictures: --native and --sliding are for masks; leave them out"
        )
    if native or sliding:
        predictor = _Predictor(folder, sliding, overlap)
        return {"split": split, **_evaluate_native(predictor, source, split, advance)}
    below = Store(storage or scale.storage or default_storage())
    cached = datas.Cached(datas.prepare(recipe, source, cache_folder(below), published=published(below)))
    state, world = _restore(recipe, cached.meta, folder)
    run_ = loop.Run(recipe=recipe, state=state, data=cached, world=world, model=state.model)
    loss, counts, ms_per_image = loop.evaluate(run_, split)
    rows = int(cached.meta["rows"][split])
    advance(rows)
    told = {"split": split, "rows": rows, "classes": cached.meta["classes"], "loss": loss}
    return {**told, "ms_per_image": ms_per_image, **run_.task.scores(counts)}


def _evaluate_native(predictor: _Predictor, source: Source, split: str, advance: Advance) -> dict[str, Any]:
    """Scores of masks at their own size, one picture after another."""
    task_ = predictor.task
    assert isinstance(task_, Segment)
    decoder = datas.Decoder(predictor.recipe, source.channels, len(source.classes))
    totals: dict[str, Any] = {}
    tables: dict[str, list[Any]] = {}
    for picture, mask in _ahead(decoder.read_raw(item) for item in source.splits[split]):
        labels = predictor.segment(picture)
        target = torch.tensor(mask)[None].to(predictor.world.device).long()
        counts = task_.count(torch.from_numpy(labels)[None].to(target.device), target)
        for name, count in counts.total.items():
            totals[name] = totals.get(name, 0) + count.cpu().numpy()
        for name, count in counts.per_image.items():
            tables.setdefault(name, []).append(count.cpu().numpy())
        advance(1)
    scores = task_.scores({**totals, **{name: np.concatenate(parts) for name, parts in tables.items()}})
    rows = len(next(iter(tables.values())))
    told = {"rows": rows, "classes": list(source.classes), "ms_per_image": 1000 * predictor.seconds / rows}
    return {**told, **scores}


def predict(
    run: str,
    paths: Sequence[str],
    out: str,
    *,
    workers: int = 0,
    storage: str | None = None,
    sliding: bool = False,
    overlap: float = 0.25,
    advance: Advance = lambda n: None,
) -> tuple[Path, list[str]]:
    """What the best checkpoint of a run makes of pictures. `out`/predictions.csv holds path, class, probability or,
    where the run segments, path, mask and the share of each class in the picture; then there are also, at the
    picture's own size, `out`/masks/*.png (class numbers), colours/*.png and overlays/*.png, and what the numbers and
    colours mean, `out`/legend.png.

    Parameters: `paths`, files and folders (searched through); `workers`, 0 for this process, else so many actors
    of Ray Data; `sliding`, `overlap`: see `evaluate`; `advance`, told the number of pictures done. Returns the
    CSV's path and the pictures that could not be decoded, whose class is left empty. Raises ValueError where there
    is nothing to predict.
    """
    folder, found = open_run(run, storage)
    _check_overlap(overlap)
    if sliding and not found["dataset"].get("masks"):
        raise ValueError(f"the run {run} classifies whole pictures: --sliding is for masks; leave it out")
    files = list(_pictures(paths))
    if not files:
        raise ValueError(f"no pictures in {', '.join(paths)}; endings looked for: {', '.join(SUFFIXES)}")
    target = Path(out).expanduser().absolute()
    target.mkdir(parents=True, exist_ok=True)
    named = list(zip(files, _names_below(files), strict=True))
    batches = [named[start : start + PREDICT_BATCH] for start in range(0, len(named), PREDICT_BATCH)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    shares = [f"share of {name}" for name in found["dataset"]["classes"]]
    writer.writerow(["path", "mask", *shares] if found["dataset"].get("masks") else ["path", "class", "probability"])
    bad = []
    job = {"folder": folder.address, "out": str(target), "sliding": sliding, "overlap": overlap}
    here = (_predictor(folder.address, sliding, overlap)(batch, target) for batch in batches)
    for rows in _on_ray(job, batches, workers) if workers else here:
        writer.writerows(rows)
        bad += [row[0] for row in rows if not row[1]]
        advance(len(rows))
    if found["dataset"].get("masks"):
        legend = pictures.legend_png(found["dataset"]["classes"], _colours(found["dataset"]))
        Store(target).write("legend.png", legend)
    Store(target).write("predictions.csv", table.getvalue().encode())
    return target / "predictions.csv", bad


def export(run: str, out: str, *, storage: str | None = None) -> Path:
    """Write the best checkpoint of a run as a torch.export program, for any batch size, and beside it `out`.json with
    the classes and how pictures are prepared. Returns `out`.

    The program is loaded again and its output compared with the model's before the file is kept. Raises ValueError
    where a model cannot be exported, or where the two differ.
    """
    folder, found = open_run(run, storage)
    recipe, meta = Recipe.from_json(found["recipe"]), found["dataset"]
    state, world = _restore(recipe, meta, folder, torch.device("cpu"))
    model = state.model.eval()
    images = torch.rand(3, meta["channels"], *recipe.image_size, dtype=world.dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about itself
        try:
            shapes = ({0: torch.export.Dim("batch", min=1)},)
            program = torch.export.export(model, (images[:2],), dynamic_shapes=shapes)
        except Exception as error:  # whatever a model of the user's own makes torch raise
            raise ValueError(f"the model {recipe.model} cannot be exported: {str(error).splitlines()[0]}") from None
        target = Path(out).expanduser().absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part.pt2")
        try:
            torch.export.save(program, part)
            again = torch.export.load(part).module()
            for some in (images, images[:1]):
                torch.testing.assert_close(again(some), model(some), rtol=1e-4, atol=1e-4)
            Store(target.parent).write_json(f"{target.name}.json", _input_of(recipe, found, world))
            part.replace(target)
        except AssertionError as error:
            raise ValueError(f"the exported program of {run} differs from the model: {error}") from None
        finally:
            part.unlink(missing_ok=True)
    return target


def _input_of(recipe: Recipe, run: Mapping[str, Any], world: World) -> dict[str, Any]:
    """What one must know to use an exported program."""
    meta = run["dataset"]
    return {
        "run": run["name"],
        "task": recipe.task,
        "classes": meta["classes"],
        "colours": meta.get("colours"),
        "input": f"{str(world.dtype).removeprefix('torch.')} (batch, channels, height, width)",
        "values": "(pixel / 255 - mean) / std",
        "channels": meta["channels"],
        "image_size": list(recipe.image_size),
        "resize": recipe.resize,
        "mean": meta["mean"],
        "std": meta["std"],
        "versions": run["versions"],
    }


def _colours(meta: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    """Those of the classes in pictures of masks."""
    return meta.get("colours") or pictures.palette(len(meta["classes"]))


Named = tuple[str, str]
"""A picture's path, and the name, without an ending, that files made of it get."""


class _Predictor:
    """A model at hand for batch after batch of files."""

    def __init__(self, folder: Store, sliding: bool, overlap: float) -> None:
        found = folder.read_json("run.json")
        self.recipe, self.meta = Recipe.from_json(found["recipe"]), found["dataset"]
        self.state, self.world = _restore(self.recipe, self.meta, folder)
        self.preprocess = loop.Preprocess(self.recipe, self.meta, self.world)
        self.task = loop.make_task(self.recipe, self.meta)
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
        pixels = torch.tensor(datas.shrink(picture, inner, "stretch")).permute(2, 0, 1).to(self.world.device)
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
        colours = _colours(self.meta)
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
                "colours": pictures.colour(labels, colours),
                "overlays": pictures.overlay(picture, labels, colours),
            }
            for kind, image in images.items():
                store.write(f"{kind}/{name}.png", pictures.save_png(image))
            rows.append([path, f"masks/{name}.png", *(f"{share:.4f}" for share in shares)])
        return rows

    def _classify_files(self, files: Sequence[Named]) -> list[list[str]]:
        found: dict[str, Any] = {}
        for path, _ in files:
            with contextlib.suppress(BadImage, OSError):
                picture = decode(path, self.meta["channels"], self.recipe.storage_size)
                found[path] = datas.shrink(picture, self.recipe.storage_size, self.recipe.resize)
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


@functools.lru_cache(1)
def _predictor(address: str, sliding: bool, overlap: float) -> _Predictor:
    return _Predictor(Store(address), sliding, overlap)


def _predict_task(row: dict[str, Any]) -> dict[str, str]:
    """One batch, as a task of Ray Data; a worker process keeps its model for the next."""
    predictor = _predictor(row["folder"], row["sliding"], row["overlap"])
    return {"rows": json.dumps(predictor([tuple(named) for named in json.loads(row["files"])], Path(row["out"])))}


def _on_ray(job: Mapping[str, Any], batches: Sequence[Sequence[Named]], workers: int) -> Iterator[list[list[str]]]:
    from trainers.runtime.ray_train import Cluster

    with Cluster(Scale(workers=workers)) as cluster:
        cluster.wait()
        tasks = [
            {**job, "files": json.dumps([(os.path.abspath(path), name) for path, name in batch])} for batch in batches
        ]
        for row in datas.ray_map(tasks, _predict_task, most=workers):
            yield json.loads(row["rows"])


def _restore(
    recipe: Recipe, meta: Mapping[str, Any], folder: Store, device: torch.device | None = None
) -> tuple[TrainState, World]:
    """The best checkpoint's model, on this process' device or on another."""
    world = World(0, 1, device or parallel.settle_device(), recipe.precision)  # type: ignore[arg-type]
    weights = Checkpoints(folder).best_weights()
    state = loop.create_state(recipe, meta, world, fresh=False)
    state.model.load_state_dict(weights)
    state.ema = None
    return state, world


def _whole_size(own: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """The size to which a whole picture is brought, so that things are as large in it as they were in training."""
    if recipe.resize == "stretch":
        return recipe.storage_size
    ratios = [wanted / given for wanted, given in zip(recipe.storage_size, own, strict=True)]
    scale = max(ratios) if recipe.resize == "crop" else min(ratios)
    return max(1, round(own[0] * scale)), max(1, round(own[1] * scale))


def _check_overlap(overlap: float) -> None:
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap} is not allowed; give 0 up to, not including, 1")


def _ahead(samples: Iterator[list[tuple[Any, Any]]]) -> Iterator[tuple[Any, Any]]:
    """The samples of each item; the next item is read while one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, samples, None)
        while (found := following.result()) is not None:
            following = thread.submit(next, samples, None)
            yield from found


def _names_below(files: Sequence[str]) -> list[str]:
    """For each file its path below the folder that all share, without the ending; where two files differ in the
    ending alone, with it."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
    whole = [os.path.relpath(os.path.abspath(path), shared) for path in files]
    stems = [os.path.splitext(path)[0] for path in whole]
    twice = {stem for stem, count in Counter(stems).items() if count > 1}
    return [path if stem in twice else stem for path, stem in zip(whole, stems, strict=True)]


def _pictures(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if os.path.isfile(path):
            yield path
        elif os.path.isdir(path):
            for parent, folders, names in os.walk(path):
                folders.sort()
                yield from (os.path.join(parent, n) for n in sorted(names) if n.lower().endswith(SUFFIXES))
        else:
            raise ValueError(f"there is no file or folder {path}")
