"""What is done with a finished run: evaluate it, and predict with it. One process; predict also on Ray."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers import data as datas
from trainers import loop, parallel
from trainers.checkpoint import Checkpoints, TrainState
from trainers.datasets import BadImage
from trainers.datasets._files import SUFFIXES, decode
from trainers.launch import cache_folder
from trainers.parallel import World
from trainers.recipe import Recipe, Scale, nearest
from trainers.store import Store, default_storage, read_run, run_names

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
    run: str, split: str | None = None, *, data: str | None = None, storage: str | None = None
) -> dict[str, Any]:
    """Score the best checkpoint of a run.

    Parameters: `split`, by default "test" where the data has one, else "val"; `data`, where the raw data lies, by
    default where it lay in training. Returns `split`, `rows`, `loss` and every score by bare name. Raises ValueError.
    """
    folder, found = open_run(run, storage)
    recipe, scale = Recipe.from_json(found["recipe"]), Scale.from_json(found["scale"])
    source = datas.look(recipe, data or scale.data)
    split = split or ("test" if "test" in source.splits else "val")
    if split not in source.splits:
        raise ValueError(f"the data has no split {split!r}; it has {', '.join(source.splits)}")
    home = cache_folder(Store(storage or scale.storage or default_storage()))
    cached = datas.Cached(datas.prepare(recipe, source, home))
    state, world = _restore(recipe, cached.meta, folder)
    run_ = loop.Run(
        recipe=recipe,
        state=state,
        data=cached,
        world=world,
        task=loop.make_task(recipe, cached.meta),
        model=state.model,
        reporter=loop.Reporter(),
        checkpoints=None,
    )
    loss, counts = loop.evaluate(run_, split)
    return {"split": split, "rows": int(cached.meta["rows"][split]), "loss": loss, **run_.task.scores(counts)}


def predict(
    run: str,
    paths: Sequence[str],
    out: str,
    *,
    workers: int = 0,
    storage: str | None = None,
    advance: Advance = lambda n: None,
) -> tuple[Path, list[str]]:
    """Classify pictures with the best checkpoint of a run: `out`/predictions.csv with path, class, probability.

    Parameters: `paths`, files and folders (searched through); `workers`, 0 for this process, else so many actors
    of Ray Data; `advance`, told the number of pictures done. Returns the CSV's path and the pictures that could
    not be decoded, whose class is left empty. Raises ValueError where there is nothing to predict.
    """
    folder, _ = open_run(run, storage)
    files = list(_pictures(paths))
    if not files:
        raise ValueError(f"no pictures in {', '.join(paths)}; endings looked for: {', '.join(SUFFIXES)}")
    target = Path(out).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    batches = [files[start : start + PREDICT_BATCH] for start in range(0, len(files), PREDICT_BATCH)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "class", "probability"])
    bad = []
    for rows in _on_ray(folder, batches, workers) if workers else map(_Predictor(folder), batches):
        writer.writerows(rows)
        bad += [path for path, label, _ in rows if not label]
        advance(len(rows))
    Store(target).write("predictions.csv", table.getvalue().encode())
    return target / "predictions.csv", bad


class _Predictor:
    """A model at hand for batch after batch of files."""

    def __init__(self, folder: Store) -> None:
        found = folder.read_json("run.json")
        self.recipe, self.meta = Recipe.from_json(found["recipe"]), found["dataset"]
        self.state, world = _restore(self.recipe, self.meta, folder)
        self.preprocess = loop.Preprocess(self.recipe, self.meta, world)
        self.state.model.eval()

    def __call__(self, paths: Sequence[str]) -> list[tuple[str, str, str]]:
        """(path, class, probability) for each; class "" where the file cannot be decoded."""
        pictures: dict[str, Any] = {}
        for path in paths:
            with contextlib.suppress(BadImage, OSError):
                picture = decode(path, self.meta["channels"], self.recipe.storage_size)
                pictures[path] = datas.shrink(picture, self.recipe.storage_size, self.recipe.resize)
        if not pictures:
            return [(path, "", "") for path in paths]
        with torch.inference_mode(), self.preprocess.world.autocast():
            output = self.state.model(self.preprocess(np.stack(list(pictures.values()))))
        probability, label = output.float().softmax(1).max(1)
        named = {
            path: (self.meta["classes"][index], f"{p:.4f}")
            for path, index, p in zip(pictures, label.tolist(), probability.tolist(), strict=True)
        }
        return [(path, *named.get(path, ("", ""))) for path in paths]


@functools.lru_cache(1)
def _predictor(address: str) -> _Predictor:
    return _Predictor(Store(address))


def _predict_task(row: dict[str, str]) -> dict[str, str]:
    """One batch, as a task of Ray Data; a worker process keeps its model for the next."""
    return {"rows": json.dumps(_predictor(row["folder"])(json.loads(row["paths"])))}


def _on_ray(folder: Store, batches: Sequence[Sequence[str]], workers: int) -> Iterator[list[tuple[str, str, str]]]:
    from trainers.on_ray import Cluster

    with Cluster(Scale(workers=workers)) as cluster:
        cluster.wait()
        tasks = [
            {"folder": folder.address, "paths": json.dumps([os.path.abspath(path) for path in batch])}
            for batch in batches
        ]
        for row in datas.ray_map(tasks, _predict_task, most=workers):
            yield [tuple(entry) for entry in json.loads(row["rows"])]


def _restore(recipe: Recipe, meta: Mapping[str, Any], folder: Store) -> tuple[TrainState, World]:
    """The best checkpoint's model, on this process' device."""
    world = World(0, 1, parallel.settle_device(), recipe.precision)  # type: ignore[arg-type]
    snapshot = Checkpoints(folder).best()
    state = loop.create_state(recipe, meta, world, fresh=False)
    state.restore(snapshot)
    if state.ema is not None:
        state.model.load_state_dict(state.ema)
        state.ema = None
    return state, world


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
