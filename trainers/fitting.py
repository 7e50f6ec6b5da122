"""fit(): a run from its name to its folder. With 0 workers it calls loop.train in this process; else it is the
only place that imports ray.train.

What is started travels as JSON (`job`) and is rebuilt by each worker. One writer, the driver, owns the run
folder; workers write checkpoints only, and tell the rest through a small actor, the `Desk`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trainers.checks import agree_with_earlier, check_init_from, check_model
from trainers.datasets import Source
from trainers.formatting import parse_size
from trainers.progress import Progress
from trainers.recipe import Recipe, Scale, resolve, resolve_micro_batch
from trainers.runs.events import Control, Listener
from trainers.runs.files import check_run_name, new_run_name, read_history, read_run
from trainers.runs.provenance import commit, versions
from trainers.runs.record import Record
from trainers.runtime.local import Job, ThisProcess
from trainers.runtime.preflight import this_node
from trainers.runtime.signals import Signals
from trainers.storage.run_lock import lock
from trainers.storage.store import Store, default_storage, explain
from trainers.training.memory_fit import Need, device_memory, fit_memory

EXIT_CODES = {"finished": 0, "stopped_early": 0, "failed": 1, "out_of_memory": 3, "interrupted": 130}
RECORDED = (
    "fingerprint rows classes channels target masks colours mean std class_counts class_areas skipped repeated"
).split()
"""What run.json tells of the data: enough to predict without it."""


@dataclass(frozen=True)
class RunResult:
    """A run that ended."""

    folder: str
    """Where its files lie."""
    run: Mapping[str, Any]
    """What run.json holds."""
    history: Sequence[Mapping[str, float]]
    """The lines of metrics.jsonl."""

    @property
    def status(self) -> str:
        return str(self.run["status"])

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]


def fit(
    recipe: str | Recipe,
    changes: Mapping[str, Any] | None = None,
    scale: Scale | None = None,
    run: str | None = None,
    *,
    name: str | None = None,
    callbacks: Sequence[Any] = (),
    progress: Progress | None = None,
    data: Mapping[str, Any] | None = None,
    control: Control | None = None,
) -> RunResult:
    """Train a recipe, or go on with a run of this name where it stopped.

    Parameters: `recipe`, a name or a Recipe; `changes`, fields to change; `scale`, where it runs; `run`, the
    run's name, by default <recipe>-<date>-<time>; `name`, what a Recipe is called; `callbacks`, for Ray Train's
    RunConfig (workers >= 1); `progress`, where messages go; `data`, what `prepare_data` returned, where recipe
    and data are checked already; `control`, for a sweep. Raises ValueError for anything that a user can mend,
    before anything runs.
    """
    begun = time.perf_counter()
    wanted = resolve(recipe) if isinstance(recipe, str) else recipe
    wanted = wanted.replace(**changes or {})
    name = name or (recipe if isinstance(recipe, str) else f"{recipe.dataset}.{recipe.model}")
    scale, progress, control = scale or Scale(), progress or Progress(), control or Control()
    if scale.data is not None:  # workers, and whoever evaluates the run later, start in other folders
        scale = scale.replace(data=os.path.abspath(os.path.expanduser(scale.data)))
    storage = Store(scale.storage or default_storage())
    storage.check_writable()
    run = check_run_name(run) if run else new_run_name(storage, name)
    folder = storage / run
    with lock(folder, progress, control.stop), Signals(control.stop) as signals:
        earlier = read_run(folder)
        wanted = agree_with_earlier(wanted, earlier, run) if control.adopt is None else wanted
        if earlier and (earlier["status"] == "finished" or earlier["status"] == "stopped_early"):
            progress.message(f"the run {run} has {earlier['status'].replace('_', ' ')} already; nothing is left to do")
            return RunResult(folder.address, earlier, read_history(folder))
        wanted = resolve_micro_batch(wanted, scale)
        if earlier is None:
            check_init_from(wanted, storage)
        with _place(scale) as place, contextlib.ExitStack() as stack:
            need, data = _resolve(wanted, scale, place, storage, earlier, data, progress)
            wanted = need.recipe
            facts = _new_run(run, name, wanted, scale, data["meta"], (earlier or {}).get("attempt", 0) + 1, earlier)
            facts |= need.facts()
            record = stack.enter_context(contextlib.closing(Record(folder, facts, control.first_picture)))
            job = {
                "recipe": wanted.to_json(),
                "scale": scale.to_json(),
                "folder": folder.address,
                "storage": storage.address,
                "attempt": facts["attempt"],
                "start_id": facts["start_id"],
                "data": data,
                "threads": place.threads,
                "cwd": os.getcwd(),
                "adopt": control.adopt,
            }
            listener = Listener(record, progress, begun, wanted.epochs, control)
            if not need.fits:
                listener(_ending("out_of_memory", need.note))
            else:
                listener.wait_for(f"waiting for {_describe_workers(scale)} to start") if scale.on_ray else None
                signals.training_starts()
                _run(place, job, listener, signals.stop, callbacks)
    result = RunResult(folder.address, record.run, listener.history)
    progress.summary(record.run | {"folder": folder.address})
    return result


def prepare(recipe: Recipe, scale: Scale, *, progress: Progress | None = None) -> str:
    """Decode the pictures of a recipe, without training. Returns the folder of the shards. Raises ValueError."""
    storage = Store(scale.storage or default_storage())
    with _place(scale) as place:
        source = _look(recipe, scale, progress or Progress())
        place.wait()
        return str(_prepare(recipe, scale, source, storage, progress or Progress())["folder"])


def prepare_data(recipe: Recipe, scale: Scale, progress: Progress) -> dict[str, Any]:
    """Check data and model, and decode the pictures: {"mode", "folder", "meta"}, as `fit` takes it. Ray, where
    `scale` asks for it, is connected to already. Raises ValueError."""
    source = _look(recipe, scale, progress)
    check_model(recipe, source)
    return _prepare(recipe, scale, source, Store(scale.storage or default_storage()), progress)


def _resolve(
    recipe: Recipe,
    scale: Scale,
    place: Any,
    storage: Store,
    earlier: Mapping[str, Any] | None,
    data: Mapping[str, Any] | None,
    progress: Progress,
) -> tuple[Need, Mapping[str, Any]]:
    """Wait for the place, check the model, prepare the data: the recipe as it will be trained, and what of."""
    source = _look(recipe, scale, progress) if data is None else None
    with progress.waiting("starting Ray") if scale.on_ray else contextlib.nullcontext():
        warnings = place.wait()
    for warning in warnings:
        progress.warning(warning)
    recipe = _resolve_precision(recipe, place.gpus)
    if source is not None:
        check_model(recipe, source)
        data = _prepare(recipe, scale, source, storage, progress)
    assert data is not None
    need = Need(recipe)
    if not (earlier or {}).get("epochs_run"):
        need = fit_memory(recipe, scale, data["meta"], _limit(scale, place), gpus=place.gpus)
    if need.note:
        progress.warning(need.note)
    return need, data


def _resolve_precision(recipe: Recipe, gpus: bool) -> Recipe:
    """Fix the precision at the first start."""
    from trainers.training import device

    return recipe.replace(precision=device.resolve_precision(recipe.precision, gpus))


def _look(recipe: Recipe, scale: Scale, progress: Progress) -> Source:
    from trainers.data.source import scan_files  # with NumPy: not needed to refuse a wrong name

    source = scan_files(recipe, scale.data)
    for warning in source.warnings:
        progress.warning(warning)
    return source


def _prepare(recipe: Recipe, scale: Scale, source: Source, storage: Store, progress: Progress) -> dict[str, Any]:
    """Shards on disk, or the decision to stream: {"mode", "folder", "meta"}."""
    from trainers.data.batches import Cached
    from trainers.data.meta import describe
    from trainers.data.prepare import prepare
    from trainers.data.source import cache_folder, choose_mode, published
    from trainers.data.stream import stream_meta

    cache = cache_folder(storage)
    mode = choose_mode(scale.data_mode, recipe, source, cache, ray=scale.on_ray)
    if mode == "stream":
        meta, folder = stream_meta(recipe, source), None
    else:
        total = sum(len(item.targets) for items in source.splits.values() for item in items)
        with progress.bar("preparing pictures", total) as advance:  # nothing moves where it was done before
            folder = prepare(
                recipe,
                source,
                cache,
                published=published(storage),
                ray=scale.on_ray,
                advance=advance,
                warn=progress.warning,
            )
        meta = dict(Cached(folder).meta)
    for line in describe(meta):
        progress.message(line)
    if recipe.batch_size > meta["rows"]["train"]:
        progress.warning(
            f"batch_size={recipe.batch_size} is more than the {meta['rows']['train']} training pictures: "
            "each epoch is a single step"
        )
    there = published(storage)
    return {
        "mode": mode,
        "folder": None if folder is None else str(folder),
        "published": None if folder is None or there is None else (there / folder.name).address,
        "node": this_node() if scale.on_ray else None,
        "meta": meta,
    }


def _limit(scale: Scale, place: Any) -> int | None:
    """Bytes that a worker's step may take: --memory, the GPU's, or the host's, shared by its workers."""
    if scale.memory is not None:
        return parse_size(scale.memory)
    return device_memory(place.gpus, max(1, scale.worker_range[1]))


def _ending(status: str, message: str) -> dict[str, Any]:
    from trainers.runtime.worker import ending

    return ending(status, message)


def _new_run(
    run: str,
    name: str,
    recipe: Recipe,
    scale: Scale,
    meta: Mapping[str, Any],
    attempt: int,
    earlier: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What run.json holds at the start."""
    return {
        "name": run,
        "status": "running",
        "recipe_name": name,
        "recipe": recipe.to_json(),
        "scale": scale.to_json(),
        "dataset": {
            "name": recipe.dataset,
            **{name: meta[name] for name in RECORDED if name in meta},
        },
        "machine": {"nodes": []},
        "versions": versions(),
        "commit": commit(),
        "attempt": attempt,
        "start_id": uuid.uuid4().hex,
        "started": (earlier or {}).get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "command": " ".join(sys.argv),
    }


def _describe_workers(scale: Scale) -> str:
    low, high = scale.worker_range
    many = f"{low} to {high}" if low != high else str(high)
    return f"{many} worker{'s' if high > 1 else ''}"


def _place(scale: Scale) -> Any:
    if not scale.on_ray:
        return ThisProcess(scale)
    from trainers.runtime.ray_train import Cluster

    return Cluster(scale)


def _run(place: Any, job: Job, listener: Listener, stop: threading.Event, callbacks: Sequence[Any]) -> None:
    """Train; whatever happens, the record says how the run ended."""
    try:
        place.train(job, listener, stop, callbacks)
    except OSError as error:
        if listener.done is not None:
            raise
        listener(_ending("failed", explain(error)))
    except BaseException as error:
        if listener.done is None:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            listener(_ending(status, f"{type(error).__name__}: {error}"))
        raise
