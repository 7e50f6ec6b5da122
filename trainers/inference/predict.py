"""Predictions of a run's best model, by this process or by Ray: predictions.csv and, of masks, pictures."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from trainers.data.ray_map import ray_map
from trainers.decode import SUFFIXES
from trainers.formatting import printable
from trainers.inference import predictions
from trainers.inference.load import open_run
from trainers.inference.predictions import Named
from trainers.inference.predictor import Predictor, check_overlap
from trainers.progress import Advance
from trainers.recipe import Recipe, Scale
from trainers.storage.store import Store, absolute
from trainers.training import build

PREDICT_BATCH = 64


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
    """What the best checkpoint of a run makes of pictures. `out`/predictions.csv holds path, class, probability (and
    the probability of each class, where the task says so) or, where the run segments, path, mask and the share of
    each class in the picture; then there are also, at the picture's own size, `out`/masks/*.png (class numbers),
    colours/*.png and overlays/*.png, and what the numbers and colours mean, `out`/legend.png.

    Args:
        run: its name below `storage`, or its folder.
        paths: files, and folders that are searched through.
        out: the folder that is written.
        workers: 0 for this process, else so many tasks of Ray Data at once.
        storage: where run folders lie, by default the usual place.
        sliding, overlap: see `evaluate`.
        advance: gets the number of pictures done.

    Returns:
        The CSV's path, and the pictures that could not be decoded, whose class is left empty.

    Raises:
        ValueError: there is nothing to predict, or no such run.
    """
    folder, found = open_run(run, storage)
    check_overlap(overlap)
    meta = found["dataset"]
    kind = predictions.of_meta(meta)
    if sliding and not kind.own_size:
        raise ValueError(f"the run {run} classifies whole pictures: --sliding is for masks; leave it out")
    files = list(_pictures(paths))
    if not files:
        raise ValueError(f"no pictures in {', '.join(paths)}; endings looked for: {', '.join(SUFFIXES)}")
    target = absolute(out)
    target.mkdir(parents=True, exist_ok=True)
    named = list(zip(files, _names_below(files), strict=True))
    batches = [named[start : start + PREDICT_BATCH] for start in range(0, len(named), PREDICT_BATCH)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(kind.header(meta, build.make_task(Recipe.from_json(found["recipe"]), meta)))
    bad = []
    tasks: list[_Task] = [
        {
            "folder": folder.address,
            "out": str(target),
            "sliding": sliding,
            "overlap": overlap,
            "files": json.dumps([(os.path.abspath(path), name) for path, name in batch] if workers else batch),
        }
        for batch in batches
    ]
    done = _on_ray(tasks, workers) if workers else map(_predict_task, tasks)
    for rows in (json.loads(row["rows"]) for row in done):
        writer.writerows(rows)
        bad += [row[0] for row in rows if not row[1]]
        advance(len(rows))
    kind.finish(meta, Store(target))
    Store(target).write("predictions.csv", printable(table.getvalue()).encode())
    return target / "predictions.csv", bad


@functools.lru_cache(1)
def _predictor(address: str, sliding: bool, overlap: float) -> Predictor:
    return Predictor(Store(address), sliding, overlap)


class _Task(TypedDict):
    """A batch to predict: plain columns, as Ray Data takes them."""

    folder: str
    out: str
    sliding: bool
    overlap: float
    files: str
    """(path, name) of each, as JSON."""


class _Done(TypedDict):
    rows: str
    """Of predictions.csv, as JSON."""


def _predict_task(task: _Task) -> _Done:
    """One batch; a worker process keeps its model for the next."""
    predictor = _predictor(task["folder"], task["sliding"], task["overlap"])
    files: list[Named] = [(path, name) for path, name in json.loads(task["files"])]
    return {"rows": json.dumps(predictions.of_meta(predictor.meta).rows(predictor, files, Path(task["out"])))}


def _on_ray(tasks: Sequence[_Task], workers: int) -> Iterator[_Done]:
    from trainers.runtime.ray_train import Cluster

    with Cluster(Scale(workers=workers)) as cluster:
        cluster.wait()
        yield from ray_map(tasks, _predict_task, most=workers)


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
