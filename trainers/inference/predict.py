"""Predictions of a run's best model, by this process or by Ray: predictions.csv and, of masks, pictures.

Who predicts keeps the rows too, in parts (table.py): what is done stays done, however the command or a worker ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from trainers import notices
from trainers.data.ray_map import ray_map
from trainers.endings import left_out
from trainers.formatting import check_is_path, printable
from trainers.inference import Views, predictions
from trainers.inference.load import Trained, find_trained
from trainers.inference.pictures import check_output, find_pictures
from trainers.inference.predictions import Named, Predictions
from trainers.inference.predictor import Predictor, check_overlap
from trainers.inference.table import MOST_ROWS, Row, Table, has_part, open_table, stamp, write_part
from trainers.inference.views import check_views
from trainers.messages import Notice
from trainers.progress import Advance, Progress
from trainers.recipe import Recipe, Scale
from trainers.run_facts import Json
from trainers.storage.store import Store
from trainers.training import build

PREDICT_BATCH = 64
"""Pictures at once. Masks, and what a window finds, are made one by one."""
KEEP_SECONDS, KEEP_SHARE = 1.0, 1 / 50
"""This process keeps rows so often, in time or of all pictures."""
TASKS_EACH, LEAST = 50, 8
"""Tasks of each of Ray's workers, which keep their rows at their ends, of at most PREDICT_BATCH pictures and at least
LEAST, or as many as make MOST_TASKS of them."""
MOST_TASKS = 10_000


class _Picture(NamedTuple):
    """One to predict."""

    path: str
    name: str
    """In the table."""
    stem: str
    """In the names of files that are made of it."""


class Options(TypedDict, total=False):
    """Of `predict`, each with a default."""

    workers: int
    """0, the default, for this process, else so many tasks of Ray Data at once."""
    storage: str | None
    """Where run folders lie, by default the usual place."""
    sliding: bool
    """See `evaluate`, as the next two."""
    overlap: float
    tta: Views | None
    top_k: int
    """How many classes are named for each picture, the most probable ones: 1."""
    confidence: float | None
    """The least score of an object, by default the one at which the run's F1 is best."""
    advance: Advance
    """Gets the number of pictures done."""
    progress: Progress | None
    """Where messages and a bar go; None, the default: there are none."""


class Predicted(NamedTuple):
    """What there is of predictions."""

    address: str
    """Of predictions.csv, or of the folder of parts."""
    pictures: int
    bad: list[str]
    """Pictures that could not be decoded, whose class is left empty."""


def predict(run: str, paths: Sequence[str], out: str, **options: Unpack[Options]) -> tuple[Path, list[str]]:
    """`predict_into` a folder on a disk.

    Args:
        run, paths, options: see there.
        out: the folder.

    Returns:
        The path of predictions.csv, or of the folder of parts; and the pictures that could not be decoded.

    Raises:
        ValueError: see there; or `out` is an address.
    """
    check_is_path("out", out)
    found = predict_into(run, paths, Store(out), **options)
    return Path(found.address), found.bad


def predict_into(
    run: str,
    paths: Sequence[str],
    out: Store,
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
) -> Predicted:
    """What the best checkpoint of a run, or a file that was exported of one, makes of pictures.

    `out`/predictions.csv holds path, class, probability (with `top_k`, "class 2", "probability 2" ... too; and the
    probability of each class, where the task says so), and `out`/predictions.png some of the pictures with their
    classes. Where the run segments, it holds path, mask and the share of each class in the picture, and there are, at
    the picture's own size, masks/*.png (class numbers), colours/, overlays/ and legend.png. Where it finds objects, it
    holds a line for each, in the picture's own pixels, and there are detections.json, labels/*.txt and overlays/.
    `out`/predictions.json says which run and weights they are of.

    However it ends, the rows that are done lie in `out`/predictions.parts, and the same call goes on with the rest. Of
    more than 100,000 pictures they stay there, a folder of Parquet files, and there is no CSV.

    Args:
        run: its name below `storage`, or its folder; or the file.
        paths: files, and folders that are searched through; what `predict` has written there is passed over.
        out: the folder that is written, on a disk or in an object store.
        workers, storage, sliding, overlap, top_k, tta, confidence, advance, progress: see `Options`.

    Raises:
        ValueError: there is nothing to predict, or no such run; `out` holds predictions of another one.
    """
    trained = find_trained(run, storage)
    check_overlap(overlap)
    recipe, meta = Recipe.from_json(trained.facts["recipe"]), trained.dataset
    check_views(tta, recipe)
    kind = predictions.of_meta(meta)
    check_sliding(sliding, kind, run)
    confidence = kind.confidence(trained.facts, confidence)
    header = kind.header(meta, build.make_task(recipe, meta), top_k)
    say, warn = (progress.message, progress.warning) if progress else (lambda text: None,) * 2
    if out.local is None:  # a wrong address is told within seconds
        out.check_writable("give another --out")
    pictures = _list(paths, out, kind, say, warn)
    chosen = _Chosen(sliding=sliding, overlap=overlap, top_k=top_k, tta=tta, confidence=confidence)
    facts = {**(origin := _origin(trained)), **chosen}
    options: _Options = {
        "folder": trained.address,
        "weights": json.dumps(origin),
        "out": out.address,
        "header": json.dumps(kind.kept(header)),
        **chosen,
    }
    with open_table(out, kind.kept(header), facts, progress or Progress()) as table:
        left = [each for each in pictures if not table.has(each.name, each.path, kind.file_of(each.stem))]
        if len(left) < len(pictures):
            say(f"{len(pictures) - len(left):,} of {len(pictures):,} pictures were predicted before")
        bar = progress.bar("predicting", len(left)) if progress else contextlib.nullcontext(advance)
        with bar as shown:
            noticed = _fill(left, options, kind, workers, _checked(table, shown)) if left else {}
        for line in notices.describe(noticed):
            warn(line)
        return _finish(table, pictures, kind, trained, header, facts)


def _finish(
    table: Table, pictures: Sequence[_Picture], kind: Predictions, trained: Trained, header: Row, facts: Json
) -> Predicted:
    """Write what there is of all pictures. `header`: of predictions.csv; `facts`: for predictions.json."""
    recipe, meta = Recipe.from_json(trained.facts["recipe"]), trained.dataset
    rows = table.rows([(picture.name, picture.path) for picture in pictures])
    done = [(picture.path, row) for picture, row in zip(pictures, rows, strict=True) if row[1]]
    kind.finish(recipe, meta, table.out, done, trained.facts["name"])
    bad = [row[0] for row in rows if not row[1]]
    whole = len(rows) <= MOST_ROWS
    lines = [header, *(line for row in rows for line in kind.lines(row))] if whole else None
    address = table.finish(lines, {**facts, "pictures": len(rows), "undecoded": len(bad)})
    return Predicted(address, len(rows), bad)


def _checked(table: Table, advance: Advance) -> Advance:
    """Says how many are done, as long as nobody else writes to the folder."""

    def count(done: int) -> None:
        table.check_owned()
        advance(done)

    return count


def check_sliding(sliding: bool, kind: Predictions, run: str) -> None:
    """Raises ValueError."""
    if sliding and not kind.own_size:
        raise ValueError(f"the run {run} {kind.holds}: --sliding is for masks and boxes; leave it out")


Say = Callable[[str], None]


def _list(paths: Sequence[str], out: Store, kind: Predictions, say: Say, warn: Say) -> list[_Picture]:
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
    left: Sequence[_Picture], options: _Options, kind: Predictions, workers: int, advance: Advance
) -> dict[str, Notice]:
    """Predict what is left, and keep the rows. Returns what was noticed of the pictures."""
    return _by_ray(left, options, kind, workers, advance) if workers else _here(left, options, advance)


def _here(left: Sequence[_Picture], options: _Options, advance: Advance) -> dict[str, Notice]:
    """In this process; rows are kept as time passes."""
    predictor, out, header = _opened(options)
    size = PREDICT_BATCH if predictions.of_meta(predictor.meta).together and not options["sliding"] else 1
    rows: list[Row] = []
    stamps: list[Row] = []
    most, kept = max(PREDICT_BATCH, int(KEEP_SHARE * len(left))), time.monotonic()
    with notices.collected() as noticed:
        try:
            for start in range(0, len(left), size):
                some = left[start : start + size]
                found, of_files = _predict(predictor, some, out)
                rows, stamps = [*rows, *found], [*stamps, *of_files]
                if len(rows) >= most or time.monotonic() - kept > KEEP_SECONDS:
                    write_part(out, header, rows, stamps)
                    rows, stamps, kept = [], [], time.monotonic()
                advance(len(some))
        finally:
            if rows:
                write_part(out, header, rows, stamps)
    return noticed


def _by_ray(
    left: Sequence[_Picture], options: _Options, kind: Predictions, workers: int, advance: Advance
) -> dict[str, Notice]:
    """By tasks of Ray Data, each of which keeps its rows."""
    out, header = Store(options["out"]), json.loads(options["header"])
    size = min(PREDICT_BATCH, max(LEAST, len(left) // (TASKS_EACH * workers)))
    size = max(size, len(left) // MOST_TASKS)
    tasks = [_task(left[start : start + size], options) for start in range(0, len(left), size)]
    noticed: dict[str, Notice] = {}
    for result in _on_ray(tasks, workers):
        rows, stamps = json.loads(result["rows"]), json.loads(result["stamps"])
        if not has_part(out, rows):
            if kind.folders:
                raise ValueError(
                    f"--out {out.address} lies on another disk where the workers run: what they wrote is not here; "
                    "give a folder that all hosts see, or an object store"
                )
            write_part(out, header, rows, stamps)
        notices.merge(noticed, json.loads(result["notices"]))
        advance(len(rows))
    return noticed


def _predict(predictor: Predictor, some: Sequence[_Picture], out: Store) -> tuple[list[Row], list[Row]]:
    """The rows of pictures, by their names in the table; and size and time of their files before these were read."""
    stamps: list[Row] = [stamp(picture.path) for picture in some]
    files: list[Named] = [(picture.path, picture.stem) for picture in some]
    rows = predictions.of_meta(predictor.meta).rows(predictor, files, out)
    named: list[Row] = [[picture.name, *row[1:]] for picture, row in zip(some, rows, strict=True)]
    return named, stamps


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
    """Address of the folder."""
    header: str
    """The columns of its parts, as JSON."""


class _Task(_Options):
    """A batch to predict: plain columns, as Ray Data takes them."""

    files: str
    """(path, name, stem) of each, as JSON."""


class _Done(TypedDict):
    rows: str
    """That are kept, as JSON."""
    stamps: str
    """Size and time of each file, as JSON."""
    notices: str
    """What was noticed of the pictures, as JSON."""


def _task(batch: Sequence[_Picture], options: _Options) -> _Task:
    files = [picture._replace(path=os.path.abspath(picture.path)) for picture in batch]
    return {**options, "files": json.dumps(files)}


def _opened(options: _Options) -> tuple[Predictor, Store, list[str]]:
    """The model, the folder, and the columns of its parts; a worker process keeps its model for the next task."""
    chosen = (options["sliding"], options["overlap"], options["top_k"], options["tta"], options["confidence"])
    predictor = _predictor(options["folder"], options["weights"], *chosen)
    return predictor, Store(options["out"]), json.loads(options["header"])


def _predict_task(task: _Task) -> _Done:
    """One batch, on a worker."""
    predictor, out, header = _opened(task)
    some = [_Picture(*each) for each in json.loads(task["files"])]
    with notices.collected() as noticed:
        rows, stamps = _predict(predictor, some, out)
    write_part(out, header, rows, stamps)
    return {"rows": json.dumps(rows), "stamps": json.dumps(stamps), "notices": json.dumps(noticed)}


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
