"""fit(): a run from its name to its folder. With 0 workers it calls loop.train in this process; else it is the
only place that imports ray.train.

What is started travels as JSON (`job`) and is rebuilt by each worker. One writer, the driver, owns the run
folder; workers write checkpoints only, and tell the rest through a small actor, the `Desk`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainers import recipe as recipes
from trainers.datasets import Source
from trainers.progress import Progress
from trainers.recipe import Recipe, Scale
from trainers.runs.record import Record, commit, versions
from trainers.runtime.preflight import this_node
from trainers.storage.run_lock import lock
from trainers.storage.store import CACHE, Store, default_storage, explain, read_history, read_run, run_names

EXIT_CODES = {"finished": 0, "stopped_early": 0, "failed": 1, "out_of_memory": 3, "interrupted": 130}
RECORDED = (
    "fingerprint rows classes channels masks colours mean std class_counts class_areas skipped repeated"
).split()
"""What run.json tells of the data: enough to predict without it."""
ROOM, ROOM_BYTES = ".room", 2**16
"""A file that keeps room on the disk for the run's last word, that the disk is full."""
CRUDE_BYTES = 8000
"""More than any of our models needs for a pixel: what stays far below the limit at that is not predicted."""
SMALL_PIXELS, SMALL_WEIGHTS = 32 * 32, 2**24
"""Such a model is tried on two such pictures sooner than without memory, which takes imports of 1.5 s."""
HOST_SHARE = 0.85
"""Of a host's memory, what training may take."""
Job = Mapping[str, Any]
Listen = Callable[[dict[str, Any]], None]


class Control:
    """What a sweep has of a run that it started: it sees each epoch, and may end the run. This one does neither."""

    adopt: tuple[str, int] | None = None
    """(run folder, step) of another run's checkpoint to go on from, in place of the run's own newest."""
    first_picture = 0.0
    """Seconds before which nothing is drawn, but at the end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set: the run saves and ends."""
        self.verdict: str | None = None
        """Why it was stopped early; None: it was interrupted, and can go on later."""

    def epoch(self, line: Mapping[str, float]) -> None:
        """Called after each epoch with its line of metrics.jsonl."""

    def wants_pictures(self, best: Mapping[str, Any] | None) -> bool:
        """Whether the ended run, with this best epoch, is worth drawing."""
        return True


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
    wanted = recipes.resolve(recipe) if isinstance(recipe, str) else recipe
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
        wanted = _agree(wanted, earlier, run) if control.adopt is None else wanted
        if earlier and (earlier["status"] == "finished" or earlier["status"] == "stopped_early"):
            progress.message(f"the run {run} has {earlier['status'].replace('_', ' ')} already; nothing is left to do")
            return RunResult(folder.address, earlier, read_history(folder))
        wanted = recipes.settle_micro_batch(wanted, scale)
        if earlier is None:
            check_init_from(wanted, storage)
        with _place(scale) as place, contextlib.ExitStack() as stack:
            need, data = _settle(wanted, scale, place, storage, earlier, data, progress)
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
            listener = _Listener(record, progress, begun, wanted.epochs, control)
            if not need.fits:
                listener(_ending("out_of_memory", need.note))
            else:
                listener.wait_for(f"waiting for {_spell_workers(scale)} to start") if scale.on_ray else None
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
    _check_model(recipe, source)
    return _prepare(recipe, scale, source, Store(scale.storage or default_storage()), progress)


def _settle(
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
    recipe = _settle_precision(recipe, place.gpus)
    if source is not None:
        _check_model(recipe, source)
        data = _prepare(recipe, scale, source, storage, progress)
    assert data is not None
    need = Need(recipe)
    if not (earlier or {}).get("epochs_run"):
        need = fit_memory(recipe, scale, data["meta"], _limit(scale, place), gpus=place.gpus)
    if need.note:
        progress.warning(need.note)
    return need, data


# Before it starts --------------------------------------------------------------------------------------------


def run_name(recipe: str, rest: str) -> str:
    """What a run of a recipe is called; of a recipe in a file of the user's own too."""
    return f"{recipe.replace('.py:', '-').split('/')[-1]}-{rest}"


def now() -> str:
    """Date and time, as they stand in the names of runs."""
    return f"{datetime.now():%Y%m%d-%H%M%S}"


def new_run_name(storage: Store, name: str) -> str:
    """A name for a run of a recipe that no other run in `storage` has."""
    stem = run_name(name, now())
    others = (f"{stem}-{number}" for number in itertools.count(2))
    return next(run for run in (stem, *itertools.islice(others, 99)) if not (storage / run).names())


def check_run_name(run: str) -> str:
    parts = run.split("/")
    if run == CACHE or not all(re.fullmatch(r"\w[^?*:\\]*", part) for part in parts):
        raise ValueError(f"--run {run} cannot be the name of a run; give letters, digits, '-', '_' and '.'")
    return run


def check_init_from(recipe: Recipe, storage: Store) -> None:
    """That the run whose weights the model starts from is there; its checkpoint is read by the workers."""
    run = recipe.init_from
    if run is not None and read_run(Store(run) if "/" in run else storage / run) is None:
        before = f", train {run} first in the same command" if run in recipes.recipe_names() else ""
        raise ValueError(
            f"init_from={run}: there is no such run in {storage.address}{recipes.nearest(run, run_names(storage))}; "
            f"give --init-from RUN{before}, or start from nothing with --init-from none"
        )


def _agree(wanted: Recipe, earlier: Mapping[str, Any] | None, run: str) -> Recipe:
    """The recipe of a run that exists, if it is the one wanted. Raises ValueError naming the fields that differ."""
    if earlier is None:
        return wanted
    try:
        old = Recipe.from_json(earlier["recipe"])
    except ValueError as error:
        raise ValueError(f"the run {run} exists with an invalid recipe: {error}; give another --run") from None
    if wanted.micro_batch_size is None:
        wanted = wanted.replace(micro_batch_size=old.micro_batch_size)
    if wanted.precision == "auto":
        wanted = wanted.replace(precision=old.precision)
    if different := old.differences(wanted):
        told = "; ".join(f"{name} was {was!r} and is now {now!r}" for name, (was, now) in different.items())
        raise ValueError(f"the run {run} exists with another recipe: {told}. Give another --run, or the old values")
    return wanted


def _settle_precision(recipe: Recipe, gpus: bool) -> Recipe:
    """Fix the precision at the first start."""
    from trainers.training import distributed as parallel

    return recipe.replace(precision=parallel.settle_precision(recipe.precision, gpus))


def _data() -> Any:
    from trainers.data import prepare as data  # with pyarrow and NumPy: not needed to refuse a wrong name

    return data


def _look(recipe: Recipe, scale: Scale, progress: Progress) -> Source:
    source: Source = _data().look(recipe, scale.data)
    for warning in source.warnings:
        progress.warning(warning)
    return source


def _prepare(recipe: Recipe, scale: Scale, source: Source, storage: Store, progress: Progress) -> dict[str, Any]:
    """Shards on disk, or the decision to stream: {"mode", "folder", "meta"}."""
    data = _data()
    cache = cache_folder(storage)
    mode = data.choose_mode(scale.data_mode, recipe, source, cache, ray=scale.on_ray)
    if mode == "stream":
        meta, folder = data.stream_meta(recipe, source), None
    else:
        total = sum(len(item.targets) for items in source.splits.values() for item in items)
        with progress.bar("preparing pictures", total) as advance:  # nothing moves where it was done before
            folder = data.prepare(
                recipe,
                source,
                cache,
                published=published(storage),
                ray=scale.on_ray,
                advance=advance,
                warn=progress.warning,
            )
        meta = data.Cached(folder).meta
    for line in data.describe(meta):
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
        "meta": dict(meta),
    }


def cache_folder(storage: Store) -> Path:
    """Where prepared pictures lie on this host: `$TRAINYARD_CACHE`, else `<storage>/cache`, else a folder at home."""
    from trainers.data import shard_transfer as shards

    if storage.local is None or os.environ.get("TRAINYARD_CACHE"):
        return shards.home()
    return storage.local / CACHE


def published(storage: Store) -> Store | None:
    """Where prepared pictures lie for all hosts; None where that is the cache folder itself."""
    return storage / CACHE if storage.local is None else None


def _check_model(recipe: Recipe, source: Source) -> None:
    """Build the model and try it, without memory unless both are small: one that does not fit the data is refused
    before pictures are decoded."""
    import torch

    from trainers.training import distributed as parallel
    from trainers.training import loop

    counts = Counter(target for item in source.splits["train"] for target in item.targets)
    unknown = 1 if source.masks else 0  # how often a class occurs in masks is not known before they are read
    frequencies = [counts[label] or unknown for label in range(len(source.classes))]
    meta = {"channels": source.channels, "classes": source.classes, "class_counts": {"train": frequencies}}
    where = torch.device("meta")
    try:
        with where:
            model = loop.build_model(loop.without_weights(recipe), meta)
        weights = sum(parameter.numel() for parameter in model.parameters())
        if math.prod(recipe.image_size) <= SMALL_PIXELS and weights <= SMALL_WEIGHTS:
            where = torch.device("cpu")
            model = loop.build_model(loop.without_weights(recipe), meta)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the model {recipe.model} cannot be built: {recipes.blame(error)}") from None
    parallel.freeze(model, recipe.frozen)
    task = loop.make_task(recipe, meta)
    shape = (2, *recipe.image_size)
    try:  # do sizes fit?
        with where:
            output = model(torch.zeros(2, source.channels, *recipe.image_size))
            task.loss(output, torch.zeros(shape if source.masks else shape[:1], dtype=torch.int64))
    except ValueError:
        raise
    except Exception as error:
        if "meta" in str(error).lower():  # a model that looks at values: this cannot tell
            return
        what = f"pictures of {recipe.image_size[0]}x{recipe.image_size[1]} and task={recipe.task}"
        raise ValueError(f"the model {recipe.model} does not go with {what}: {recipes.blame(error)}") from None


@dataclass(frozen=True)
class Need:
    """What a recipe needs of a worker's memory, and how it is run for that."""

    recipe: Recipe
    """With the micro-batch that fits."""
    fits: bool = True
    bytes: int | None = None
    """Predicted peak of a step as it was asked for; None: so little that it was not predicted."""
    limit: int | None = None
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {} if self.bytes is None else {"memory": {"predicted_bytes": self.bytes, "limit_bytes": self.limit}}


def fit_memory(
    recipe: Recipe,
    scale: Scale,
    meta: Mapping[str, Any],
    limit: int | None,
    *,
    gpus: bool = False,
    always: bool = False,
) -> Need:
    """What a recipe needs, and what `scale.on_oom` says to do where that is more than `limit` bytes.

    Parameters: `gpus`, or `always`: also where it is clearly little. Where it cannot be predicted, as the model looks
    at its numbers, the note says so; raises ValueError where --memory asks for it, or the model fails.
    """
    micro = recipe.micro_batch_size or recipe.batch_size // max(1, scale.worker_range[1])
    crude = CRUDE_BYTES * micro * recipe.image_size[0] * recipe.image_size[1]
    if limit is None or not (gpus or always or scale.memory or crude > limit / 4):
        return Need(recipe)
    from trainers.training import peak_memory as memory

    limit -= context_bytes(gpus)
    asked = recipe.replace(micro_batch_size=micro)
    sharded = scale.strategy == "fsdp2"
    workers = max(1, scale.worker_range[0 if sharded else 1])  # with fewer, each holds a larger part
    try:
        peak = memory.predict(asked, meta, workers=workers, sharded=sharded, recompute=scale.activation_checkpointing)
    except memory.Untraceable as error:
        if scale.memory is not None:  # a limit that was asked for cannot be kept
            raise
        return Need(recipe, note=f"{error}; whether it fits will show")
    if peak <= limit:
        return Need(recipe, True, peak, limit)
    needs = f"needs {recipes.spell_size(peak)} of {recipes.spell_size(limit)}"
    smaller = memory.largest_micro_batch(
        asked, meta, limit, workers=workers, sharded=sharded, recompute=scale.activation_checkpointing
    )
    if smaller is None:
        return Need(recipe, False, peak, limit, f"does not fit: {needs}, and not even one picture at a time fits")
    if scale.on_oom == "record":
        return Need(recipe, False, peak, limit, f"does not fit: {needs}; micro-batches of {smaller} would fit")
    norm = "; BatchNorm sees these, not the batch" if memory.curve(asked, meta).batch_norm else ""
    note = f"batch {recipe.batch_size} runs in micro-batches of {smaller}: {needs}{norm}"
    return Need(recipe.replace(micro_batch_size=smaller), True, peak, limit, note)


def _limit(scale: Scale, place: Any) -> int | None:
    """Bytes that a worker's step may take: --memory, the GPU's, or the host's, shared by its workers."""
    if scale.memory is not None:
        return recipes.parse_size(scale.memory)
    return device_memory(place.gpus, max(1, scale.worker_range[1]))


def device_memory(gpus: bool, workers: int) -> int | None:
    """Bytes of this process's GPU, or of this host for each of so many workers; None where that is not known."""
    from trainers.runs.record import machine

    found = machine()
    if not gpus:
        return int(HOST_SHARE * found["memory_bytes"]) // workers if found.get("memory_bytes") else None
    return min((gpu["memory_bytes"] for gpu in found.get("gpus") or []), default=None)


def context_bytes(gpus: bool) -> int:
    """What the context of this process's GPU takes; 0 where there is none to measure."""
    from trainers.training import peak_memory as memory

    return (memory.context_bytes() or 0) if gpus else 0


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


# While it runs -----------------------------------------------------------------------------------------------


class _Listener:
    """Takes the events of the workers, and writes and shows what they say."""

    def __init__(self, record: Record, progress: Progress, begun: float, epochs: int, control: Control) -> None:
        self.record, self.progress, self.begun, self.epochs = record, progress, begun, epochs
        self.control = control
        self.history: list[dict[str, float]] = []
        self.setup: float | None = None
        self.done: dict[str, Any] | None = None
        self._machines: dict[str, Any] = {}
        self._waiting = contextlib.ExitStack()
        if record.store.local is not None:
            record.store.write(ROOM, os.urandom(ROOM_BYTES))
        record.write()

    def wait_for(self, text: str) -> None:
        """Say what is waited for, until the workers stand or the run has ended."""
        self._waiting.enter_context(self.progress.waiting(text))

    def __call__(self, event: dict[str, Any]) -> None:
        try:
            getattr(self, f"_on_{event['kind']}")(event)
        except OSError as error:
            where = self.record.store.address
            raise OSError(f"the run folder {where} cannot be written: {explain(error)}") from None

    def _on_machine(self, event: dict[str, Any]) -> None:
        self._machines[event["host"]] = event["machine"]
        self.record.run["machine"] = {"nodes": list(self._machines.values())}

    def _on_message(self, event: dict[str, Any]) -> None:
        self.progress.message(event["text"])

    def _on_warning(self, event: dict[str, Any]) -> None:
        self.progress.warning(event["text"])

    def _on_start(self, event: dict[str, Any]) -> None:
        """A (new) group of workers stands; the history is that of the checkpoint it goes on from."""
        self._waiting.close()
        if self.setup is None:
            self.setup = time.perf_counter() - self.begun
        self.history = list(event["history"])
        self.record.write()
        self.record.restore(self.history)
        if event["step"]:
            self.progress.message(f"going on from step {event['step']:,}, in epoch {event['epoch'] + 1}")

    def _on_saved(self, event: dict[str, Any]) -> None:
        """A checkpoint is complete."""

    def _on_step(self, event: dict[str, Any]) -> None:
        self.progress.step(event)

    def _on_file(self, event: dict[str, Any]) -> None:
        self.record.folder.write(event["name"], event["data"])

    def _on_epoch(self, event: dict[str, Any]) -> None:
        self.history.append(event["line"])
        self.record.epoch(event["line"], event["counts"].get("confusion"), pictures=event["pictures"])
        self.progress.epoch(event["line"], self.epochs, event["better"])
        self.control.epoch(event["line"])

    def _on_done(self, event: dict[str, Any]) -> None:
        self._waiting.close()
        if event["status"] == "interrupted" and self.control.verdict:
            event |= {"status": "stopped_early", "message": self.control.verdict}
        self.done = event
        spent, before = event["seconds"], event["before"]
        parts = {name: spent.get(name, 0.0) for name in ("data_wait", "evaluate", "checkpoint")}
        trained = spent.get("train", 0.0)
        # A run that went on from a checkpoint has spent time before this process was started.
        earlier = sum(before.get(name, 0.0) for name in ("train", "evaluate", "checkpoint"))
        total = time.perf_counter() - self.begun + earlier
        best = event["best"] and {name: event["best"][name] for name in ("epoch", "metric", "value")}
        predicted, measured = self.record.run.get("memory"), event["peak_memory_bytes"]["device"]
        if predicted and measured:
            error = predicted["predicted_bytes"] / measured - 1
            self.record.run["memory"] = {**predicted, "measured_bytes": measured, "error": error}
        self.progress.close()
        self.progress.message(event["message"])  # first: a full storage may not take the rest
        self.record.folder.delete(ROOM)
        self.record.finish(
            event["status"],
            event["counts"].get("confusion"),
            pictures=event["pictures"],
            draw=self.control.wants_pictures(best),
            message=event["message"],
            seconds={"total": total, "setup": self.setup, "compute": trained - parts["data_wait"], **parts},
            images_per_second=event["images"] / trained if trained else None,
            peak_memory_bytes=event["peak_memory_bytes"],
            epochs_run=event["epoch"],
            best=best,
            final=event["final"],
        )


def _spell_workers(scale: Scale) -> str:
    low, high = scale.worker_range
    many = f"{low} to {high}" if low != high else str(high)
    return f"{many} worker{'s' if high > 1 else ''}"


class Signals:
    """SIGINT and SIGTERM: while training, a wish to stop, told once; before and after, KeyboardInterrupt."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._listen()
        return self

    def training_starts(self) -> None:
        """From now on a signal is a wish to stop. Ray has put its own handlers in place of ours meanwhile."""
        self.training = True
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if not self.training or self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()


# Where it runs -----------------------------------------------------------------------------------------------


class _ThisProcess:
    """The place of a run with 0 workers."""

    def __init__(self, scale: Scale) -> None:
        self.threads = scale.cpus_per_worker or len(os.sched_getaffinity(0))
        self.gpus = False

    def __enter__(self) -> _ThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> list[str]:
        import torch

        self.gpus = torch.cuda.is_available()
        return []

    def train(self, job: Job, listen: Listen, stop: threading.Event, callbacks: Sequence[Any]) -> None:
        from trainers.runtime.worker import work

        listen(work(job, 0, 1, job["attempt"] * 1000, listen, stop.is_set))


def _place(scale: Scale) -> Any:
    if not scale.on_ray:
        return _ThisProcess(scale)
    from trainers.runtime.ray_train import Cluster

    return Cluster(scale)


def _run(place: Any, job: Job, listener: _Listener, stop: threading.Event, callbacks: Sequence[Any]) -> None:
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
