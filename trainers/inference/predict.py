"""Predictions of a run's best model, by this process or by Ray: predictions.csv and, of masks, pictures."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from trainers import notices
from trainers.data.ray_map import ray_map
from trainers.endings import left_out
from trainers.formatting import printable
from trainers.inference import Views, predictions
from trainers.inference.load import Trained, find_trained
from trainers.inference.pictures import check_output, find_pictures
from trainers.inference.predictions import Named, Predictions
from trainers.inference.predictor import Predictor, check_overlap
from trainers.inference.table import Row, Table, open_table, stamp
from trainers.inference.views import check_views
from trainers.messages import Notice
from trainers.progress import Advance, Progress
from trainers.recipe import Recipe, Scale
from trainers.run_facts import Json
from trainers.storage.store import Store, absolute
from trainers.training import build

PREDICT_BATCH = 64
"""Pictures at once. Masks, and what a window finds, are made one by one, and kept one by one."""


class _Picture(NamedTuple):
    """One to predict."""

    path: str
    name: str
    """In the table."""
    stem: str
    """In the names of files that are made of it."""


def predict(
    run: str,
    paths: Sequence[str],
    out: str,
    *,
    workers: int = 0,
    storage: str | None = None,
    sliding: bool = False,
    overlap: float = 0.25,
    top_k: int = 1,
    tta: Views | None = None,
    confidence: float | None = None,
    advance: Advance = lambda n: None,
    progress: Progress | None = None,
) -> tuple[Path, list[str]]:
    """What the best checkpoint of a run, or a file that was exported of one, makes of pictures.

    `out`/predictions.csv holds path, class, probability (with `top_k`, "class 2", "probability 2" ... too; and the
    probability of each class, where the task says so), and `out`/predictions.png some of the pictures with their
    classes. Where the run segments, it holds path, mask and the share of each class in the picture, and there are, at
    the picture's own size, masks/*.png (class numbers), colours/, overlays/ and legend.png. Where it finds objects, it
    holds a line for each, in the picture's own pixels, and there are detections.json, labels/*.txt and overlays/.
    `out`/predictions.json says which run and weights they are of.

    However it ends, the rows that are done lie in `out`, and the same call goes on with the rest.

    Args:
        run: its name below `storage`, or its folder; or the file.
        paths: files, and folders that are searched through; what `predict` has written there is passed over.
        out: the folder that is written.
        workers: 0 for this process, else so many tasks of Ray Data at once.
        storage: where run folders lie, by default the usual place.
        sliding, overlap, tta: see `evaluate`.
        top_k: how many classes are named for each picture, the most probable ones.
        confidence: the least score of an object, by default the one at which the run's F1 is best.
        advance: gets the number of pictures done.
        progress: where messages and a bar go; None: there are none.

    Returns:
        The CSV's path, and the pictures that could not be decoded, whose class is left empty.

    Raises:
        ValueError: there is nothing to predict, or no such run; `out` holds predictions of another one.
    """
    trained = find_trained(run, storage)
    check_overlap(overlap)
    found, recipe, meta = trained.facts, Recipe.from_json(trained.facts["recipe"]), trained.dataset
    check_views(tta, recipe)
    kind = predictions.of_meta(meta)
    check_sliding(sliding, kind, run)
    confidence = kind.confidence(found, confidence)
    header = kind.header(meta, build.make_task(recipe, meta), top_k)
    say, warn = (progress.message, progress.warning) if progress else (lambda text: None,) * 2
    pictures = _list(paths, target := absolute(out), kind, say, warn)
    chosen = _Chosen(sliding=sliding, overlap=overlap, top_k=top_k, tta=tta, confidence=confidence)
    facts = {**(origin := _origin(trained)), **chosen}
    options: _Options = {"folder": trained.address, "weights": json.dumps(origin), "out": str(target), **chosen}
    with open_table(target, kind.kept(header), facts) as table:
        left = [each for each in pictures if not table.has(each.name, each.path, kind.file_of(each.stem))]
        if len(left) < len(pictures):
            say(f"{len(pictures) - len(left):,} of {len(pictures):,} pictures were predicted before")
        bar = progress.bar("predicting", len(left)) if progress else contextlib.nullcontext(advance)
        with bar as shown:
            size = PREDICT_BATCH if workers or (kind.together and not sliding) else 1
            noticed = _fill(table, left, options, size, workers, shown)
        for line in notices.describe(noticed):
            warn(line)
        rows = table.rows([picture.name for picture in pictures])
        done = [(picture.path, row) for picture, row in zip(pictures, rows, strict=True) if row[1]]
        kind.finish(recipe, meta, Store(target), done, found["name"])
        return _finish(table, [header, *(line for row in rows for line in kind.lines(row))], rows, facts)


def _finish(table: Table, lines: Sequence[Row], rows: Sequence[Row], facts: Json) -> tuple[Path, list[str]]:
    """Write predictions.csv; returns its path, and the pictures that could not be decoded."""
    bad = [row[0] for row in rows if not row[1]]
    return table.finish(lines, {**facts, "pictures": len(rows), "undecoded": len(bad)}), bad


def check_sliding(sliding: bool, kind: Predictions, run: str) -> None:
    """Raises ValueError."""
    if sliding and not kind.own_size:
        raise ValueError(f"the run {run} {kind.holds}: --sliding is for masks and boxes; leave it out")


Say = Callable[[str], None]


def _list(paths: Sequence[str], out: Path, kind: Predictions, say: Say, warn: Say) -> list[_Picture]:
    """The pictures to predict; `kind`: of what is written to `out`."""
    listed = find_pictures(paths)
    check_output(out, listed, drawn=kind.drawn, folders=kind.folders)
    if listed.own:
        say(f"predictions of earlier commands are passed over: {', '.join(map(printable, listed.own))}")
    if unread := left_out(listed.others):
        warn(unread)
    return list(map(_Picture, listed.files, map(printable, listed.files), _names_below(listed.files)))


def _origin(trained: Trained) -> Json:
    """The weights that predictions come from, for predictions.json."""
    run, best = trained.facts, trained.facts.get("best")
    about = {"run": run["name"], "folder": trained.address, "start_id": run.get("start_id")}
    file = {"file": stamp(trained.address)} if trained.folder is None else {}
    return {**about, "best": dict(best) if best else None, **file}


def _fill(
    table: Table, left: Sequence[_Picture], options: _Options, size: int, workers: int, advance: Advance
) -> dict[str, Notice]:
    """Predict what is left, and keep each batch. Returns what was noticed of the pictures."""
    noticed: dict[str, Notice] = {}
    batches = [left[start : start + size] for start in range(0, len(left), size)]
    stamps = [[stamp(picture.path) for picture in batch] for batch in batches]
    tasks = [_task(batch, options, absolute=workers > 0) for batch in batches]
    done = _on_ray(tasks, workers) if workers else map(_predict_task, tasks)
    for batch, of_files, result in zip(batches, stamps, done, strict=True):
        rows = json.loads(result["rows"])
        table.add([[picture.name, *row[1:]] for picture, row in zip(batch, rows, strict=True)], of_files)
        notices.merge(noticed, json.loads(result["notices"]))
        advance(len(rows))
    return noticed


@functools.lru_cache(1)
def _predictor(
    address: str, weights: str, sliding: bool, overlap: float, top_k: int, tta: Views | None, confidence: float | None
) -> Predictor:
    """That of the last call; `weights` says which they are: a run may have gone on since."""
    assert weights
    return Predictor(find_trained(address), sliding, overlap, top_k, tta, confidence)


class _Chosen(TypedDict):
    """What the user chose."""

    sliding: bool
    overlap: float
    top_k: int
    tta: Views | None
    confidence: float | None
    """The least score of an object; None: there are none."""


class _Options(_Chosen):
    """What all pictures have in common."""

    folder: str
    weights: str
    """Of the run, as JSON: they change while it trains."""
    out: str


class _Task(_Options):
    """A batch to predict: plain columns, as Ray Data takes them."""

    files: str
    """(path, name) of each, as JSON."""


class _Done(TypedDict):
    rows: str
    """Of predictions.csv, as JSON."""
    notices: str
    """What was noticed of the pictures, as JSON."""


def _task(batch: Sequence[_Picture], options: _Options, absolute: bool) -> _Task:
    files = [(os.path.abspath(picture.path) if absolute else picture.path, picture.stem) for picture in batch]
    return {**options, "files": json.dumps(files)}


def _predict_task(task: _Task) -> _Done:
    """One batch; a worker process keeps its model for the next."""
    chosen = (task["sliding"], task["overlap"], task["top_k"], task["tta"], task["confidence"])
    predictor = _predictor(task["folder"], task["weights"], *chosen)
    files: list[Named] = [(path, name) for path, name in json.loads(task["files"])]
    with notices.collected() as noticed:
        rows = predictions.of_meta(predictor.meta).rows(predictor, files, Path(task["out"]))
    return {"rows": json.dumps(rows), "notices": json.dumps(noticed)}


def _on_ray(tasks: Sequence[_Task], workers: int) -> Iterator[_Done]:
    from trainers.runtime.ray_train import Cluster

    with Cluster(Scale(workers=workers, gpus_per_worker=0)) as cluster:  # tasks of Ray Data, which ask for none
        cluster.wait()
        yield from ray_map(tasks, _predict_task, most=workers)


def _names_below(files: Sequence[str]) -> list[str]:
    """For each file its path below the folder that all share, without the ending; where that is what another file is
    called, with it."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
    whole = [printable(os.path.relpath(os.path.abspath(path), shared)) for path in files]
    stems = [os.path.splitext(path)[0] for path in whole]
    taken = Counter([*stems, *whole])
    return [stem if taken[stem] == 1 else path for path, stem in zip(whole, stems, strict=True)]
