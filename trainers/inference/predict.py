"""What is done with a finished run: evaluate it, predict with it, export it. One process; predict also on Ray."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.data.ray_map import ray_map
from trainers.decode import SUFFIXES
from trainers.inference.load import open_run
from trainers.inference.predictor import Named, Predictor, check_overlap, class_colours
from trainers.recipe import Scale
from trainers.runs import mask_figures
from trainers.storage.store import Store

PREDICT_BATCH = 64
Advance = Callable[[int], None]


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
    check_overlap(overlap)
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
        legend = mask_figures.legend_png(found["dataset"]["classes"], class_colours(found["dataset"]))
        Store(target).write("legend.png", legend)
    Store(target).write("predictions.csv", table.getvalue().encode())
    return target / "predictions.csv", bad


@functools.lru_cache(1)
def _predictor(address: str, sliding: bool, overlap: float) -> Predictor:
    return Predictor(Store(address), sliding, overlap)


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
        for row in ray_map(tasks, _predict_task, most=workers):
            yield json.loads(row["rows"])


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
