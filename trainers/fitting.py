"""fit(): a run from its name to its folder.

What is started travels as JSON (`Job`) and is rebuilt by each worker: in this process (0 workers), or on a Ray cluster
(runtime/ray_train.py). One writer, the driver, owns the run folder; workers write checkpoints only, and report the rest
as events: on Ray through a small actor, the `Coordinator`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol, Self, cast

from trainers import from_data
from trainers.augmentations import mixing
from trainers.checks import (
    check_batches,
    check_init_from,
    check_model,
    check_same_data,
    check_start,
    find_other_pixels,
    list_known,
    list_source,
)
from trainers.datasets import Source
from trainers.formatting import parse_size
from trainers.input_data import list_data, prepare_data, reads_here
from trainers.messages import DataSpec, DoneEvent, Event, Job, Line, Meta
from trainers.progress import Progress
from trainers.recipe import Recipe, Scale, resolve, resolve_micro_batch
from trainers.resolution import (
    END,
    Circumstances,
    PlaceFacts,
    Resolved,
    is_over,
    licence_of_weights,
    resolve_normalisation,
    resolve_recipe,
)
from trainers.run_facts import CodeCopy, DatasetFacts, NewEnd, RunFacts, Status, Threads
from trainers.runs import code
from trainers.runs.events import Control, Listener
from trainers.runs.files import check_run_name, count_epochs, find_run, new_run_name, read_history, read_run
from trainers.runs.provenance import changed_since, commit, versions
from trainers.runs.record import Record
from trainers.runtime.addresses import default_workers
from trainers.runtime.local import ThisProcess
from trainers.runtime.signals import Signals
from trainers.storage.run_lock import lock
from trainers.storage.store import Store, default_storage, explain_with_file
from trainers.training.memory_fit import fit_memory
from trainers.training.schedule import warm_up_note

EXIT_CODES = {"finished": 0, "stopped_early": 0, "failed": 1, "out_of_memory": 3, "interrupted": 130}


class Place(Protocol):
    """Where a run's workers run: this process (`ThisProcess`), or a Ray cluster (`Cluster`)."""

    threads: int
    """For arithmetic, of each worker; known after `wait`."""
    fewer_threads: bool
    """Whether nobody asked for so many: fewer will do where they are as fast; known after `wait`."""
    gpus: bool
    """Whether the workers have any; known after `wait`, as is the rest."""
    auto_precision: Literal["auto", "fp32", "bf16"]
    """What precision "auto" means; "auto" itself: the workers will find out, by their devices."""
    memory: int | None
    """Bytes that a worker's step may take; None: not known."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def wait(self) -> list[str]:
        """Wait until the place stands. Returns warnings. Raises ValueError where it can never hold the workers."""
        ...

    def train(self, job: Job, listen: Callable[[Event], None], stop: threading.Event) -> None:
        """Run a job to its end.

        Args:
            job: What the workers rebuild everything from.
            listen: Called with each event, in this thread; the last one is a DoneEvent.
            stop: When it is set, the workers save and end.
        """
        ...


@dataclass(frozen=True)
class RunResult:
    """A run that ended."""

    folder: str
    """Where its files lie."""
    run: RunFacts
    """What run.json holds."""
    history: Sequence[Line]
    """The lines of metrics.jsonl."""

    @property
    def status(self) -> str:
        return self.run["status"]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]


def fit(
    recipe: str | Recipe,
    changes: Mapping[str, object] | None = None,
    scale: Scale | None = None,
    run: str | None = None,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    data: DataSpec | None = None,
    control: Control | None = None,
) -> RunResult:
    """Train a recipe, or resume a run of this name where it stopped.

    Args:
        recipe: The name of one, or a Recipe.
        changes: Fields of the recipe to change.
        scale: Where it runs; None: one worker on the cluster of RAY_ADDRESS, or this process where it names none.
        run: The run's name; None: <recipe>-<date>-<time>.
        name: What a Recipe is called in run.json; None: <dataset>.<model>.
        progress: Where messages go; None: stderr.
        data: What `prepare_data` returned, where recipe and data are checked already.
        control: Of a sweep.

    Raises:
        ValueError: Anything that a user can fix, before anything runs.
        OSError: The run folder cannot be written.
    """
    begun = time.perf_counter()
    requested = (resolve(recipe) if isinstance(recipe, str) else recipe).replace(**changes or {})
    name = name or (recipe if isinstance(recipe, str) else f"{recipe.dataset}.{recipe.model}")
    scale = scale or Scale(workers=default_workers(Scale()))
    progress, control = progress or Progress(), control or Control()
    if scale.data is not None:  # workers, and whoever evaluates the run later, start in other folders
        scale = scale.replace(data=os.path.abspath(os.path.expanduser(scale.data)))
    storage = Store(scale.storage or default_storage())
    storage.check_writable()
    run = check_run_name(run) if run else new_run_name(storage, name)
    folder = storage / run
    with lock(folder, progress, control.stop), Signals(control.stop) as signals:
        requested, known, warnings = _agree(code.absolute(requested), run, folder, control)
        earlier = known.earlier
        early = resolve_recipe(requested, scale, known, fit_memory).recipe
        if earlier is None:
            check_init_from(early, storage, run)
        elif over := is_over(early, earlier, known.epochs_run):
            progress.message(f"the run {run} {over}")
            return RunResult(folder.address, cast(RunFacts, read_run(folder)), read_history(folder))
        with _place(scale) as place, contextlib.ExitStack() as stack:
            opened = _open(early, scale, known, place, folder, storage, data, progress)
            for warning in (warnings := [*warnings, *opened.warnings]):
                progress.warning(warning)
            known = dataclasses.replace(known, place=_place_facts(scale, place), meta=opened.data["meta"])
            requested, known = opened.name_copies(requested, known)
            resolved = resolve_recipe(requested, scale, known, fit_memory)
            if resolved.fits:  # in micro-batches of the memory's choice, of the pictures that can be used
                meta = opened.data["meta"]
                check_batches(resolved.recipe, meta, meta["rows"]["train"])
            facts = _new_run(known, name, resolved, scale, _threads(earlier, place, control), opened.copies, warnings)
            _tell(resolved, facts, progress)
            record = stack.enter_context(contextlib.closing(Record(folder, facts, control.first_picture)))
            listener = Listener(record, progress, begun, resolved.recipe.epochs, control)
            if not resolved.fits:
                listener(_ending("out_of_memory", resolved.note))
            else:
                if scale.on_ray:
                    listener.wait_for(f"waiting for {_describe_workers(scale)} to start")
                signals.training_starts()
                job = _job(resolved.recipe, facts, folder, storage, opened.data, place, control)
                _run(place, job, listener, signals.stop)
    progress.summary(record.run, folder.address)
    return RunResult(folder.address, record.run, listener.history)


def prepare(recipe: Recipe, scale: Scale) -> str:
    """Decode the pictures of a recipe, without training. Returns the folder of the shards. Raises ValueError."""
    progress, recipe = Progress(), code.absolute(recipe)
    with _place(scale.replace(gpus_per_worker=0)) as place:
        source = list_data(recipe, scale, progress)
        place.wait()
        return str(prepare_data(recipe, scale, source, progress)["folder"])


def _agree(requested: Recipe, run: str, folder: Store, control: Control) -> tuple[Recipe, Circumstances, list[str]]:
    """A request, and what an earlier run.json holds, both naming the run's own copies; and warnings of what changed."""
    earlier, begun = read_run(folder), bool((folder / "checkpoints").names())
    warnings: list[str] = []
    if earlier is not None:
        earlier = cast(RunFacts, {**earlier, "name": run})  # the folder may have been copied
        if not begun:  # nothing was learned: a model that was mended meanwhile is the one to use
            earlier = cast(RunFacts, {**earlier, "code": {}})
        requested, earlier, warnings = code.agree(requested, earlier, folder)
        if begun and (changed := changed_since(earlier)):
            warnings.append(f"since the run {run} began, versions have changed: {changed}; results may differ")
    else:
        warnings += code.describe_uncopied(requested)
    known = Circumstances(
        run=run,
        earlier=earlier,
        epochs_run=count_epochs(folder) if earlier else 0,
        begun=begun,
        adopts=control.adopt is not None,
    )
    return requested, known, warnings


class _Opened(NamedTuple):
    """What a run is made of, checked and prepared."""

    folder: Store
    """Of the run."""
    copies: dict[str, CodeCopy]
    data: DataSpec
    warnings: list[str]
    held: object
    """Keeps the prepared pictures from being removed."""

    def name_copies(self, requested: Recipe, known: Circumstances) -> tuple[Recipe, Circumstances]:
        """A request and what an earlier run.json holds, both naming all of the run's own copies."""
        earlier = known.earlier
        if earlier is not None:
            earlier = code.with_copies(cast(RunFacts, {**earlier, "code": self.copies}), self.folder)
        return code.name_copies(requested, self.folder, self.copies), dataclasses.replace(known, earlier=earlier)


def _open(
    recipe: Recipe,
    scale: Scale,
    known: Circumstances,
    place: Place,
    folder: Store,
    storage: Store,
    data: DataSpec | None,
    progress: Progress,
) -> _Opened:
    """Wait until the place stands; check the model and prepare the data, where that is not done."""
    from trainers.data.prepared_sets import hold

    for note in (warm_up_note(recipe), mixing.note(recipe.augment, recipe.micro_batch_size)):
        if note:
            progress.warning(note)
    source = list_data(recipe, scale, progress) if data is None else None  # while Ray starts
    if known.resumed is not None:
        listed = list_known(data["meta"]) if data is not None else list_source(cast(Source, source))
        check_same_data(known.resumed, listed)
    with progress.waiting("starting Ray") if scale.on_ray else contextlib.nullcontext():
        warnings = place.wait()
    for warning in warnings:
        progress.warning(warning)
    if source is not None:
        recipe = _follow_listed(recipe, source, scale)
        fresh = known.resumed is None and reads_here(scale)
        check_model(recipe, source, weights=fresh, workers=scale.worker_range[1])
        if known.resumed is None:
            check_start(recipe, source, storage)
    copies = code.keep(recipe, folder, known.earlier.get("code", {}) if known.earlier is not None else {})
    if source is not None:
        try:
            data = prepare_data(code.name_copies(recipe, folder, copies), scale, source, progress)
        except BaseException:
            if known.earlier is None:  # nothing is left of a run that never began
                folder.delete(code.FOLDER)
            raise
    assert data is not None
    data, notes = _set_numbers(recipe, data, known.resumed, storage, progress)
    return _Opened(folder, copies, data, notes, hold(data["folder"]))


def _follow_listed(recipe: Recipe, source: Source, scale: Scale) -> Recipe:
    """The recipe as it follows from the listing, to be checked; how many pictures are sound shows when they are
    decoded. Raises ValueError where the workers cannot share its batches."""
    if recipe.from_data:
        recipe = resolve_micro_batch(from_data.follow(recipe, source.rows["train"])[0], scale)
    return recipe


def _set_numbers(
    recipe: Recipe, data: DataSpec, resumed: RunFacts | None, storage: Store, progress: Progress
) -> tuple[DataSpec, list[str]]:
    """The data, normalised and weighted as when the run began, or else as its first weights were trained; and warnings
    of what changed."""
    from trainers.data.meta import keep_numbers

    if resumed is not None:
        notes = find_other_pixels(resumed, data["meta"])
        return {**data, "meta": keep_numbers(data["meta"], resumed["dataset"])}, notes
    start = None
    if (name := recipe.init_from) is not None:
        before = read_run(find_run(storage, name))
        start = before.get("dataset") if before is not None else None
    meta, note = resolve_normalisation(recipe, data["meta"], start)
    if note:
        progress.message(note)
    return {**data, "meta": meta}, []


def _place_facts(scale: Scale, place: Place) -> PlaceFacts:
    """Of a place that stands. A step may take --memory, else what the place says."""
    limit = place.memory if scale.memory is None else parse_size(scale.memory)
    return PlaceFacts(gpus=place.gpus, auto_precision=place.auto_precision, memory_limit=limit)


def _tell(resolved: Resolved, facts: RunFacts, progress: Progress) -> None:
    """What people should know of how a recipe was resolved."""
    if "licence" in facts:
        progress.message(f"licence of weights={resolved.recipe.model_args['weights']}: {facts['licence']}")
    if resolved.note:
        progress.warning(resolved.note)
    if line := from_data.describe(resolved.recipe, resolved.from_data):
        progress.message(line)


def _ending(status: Status, message: str) -> DoneEvent:
    from trainers.runtime.worker import ending

    return ending(status, message)


def _new_run(
    known: Circumstances,
    name: str,
    resolved: Resolved,
    scale: Scale,
    threads: Threads,
    copies: dict[str, CodeCopy],
    warnings: Sequence[str],
) -> RunFacts:
    """What run.json holds at the start."""
    assert known.meta is not None
    facts: RunFacts = {
        "name": known.run,
        "status": "running",
        "recipe_name": name,
        "recipe": code.without_copies(resolved.recipe, copies),
        "scale": scale.to_json(),
        "dataset": _dataset_facts(resolved.recipe.dataset, known.meta),
        "machine": {"nodes": []},
        "threads": threads,
        "versions": versions(),
        "commit": commit(),
        "attempt": known.earlier.get("attempt", 0) + 1 if known.earlier else 1,
        "start_id": uuid.uuid4().hex,
        "started": (known.earlier and known.earlier.get("started")) or datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "command": " ".join(sys.argv),
    }
    if not known.begun:
        facts["step"] = {"memory_format": None, "why": "as it comes", "tried": [], "seconds": 0.0}
    elif known.earlier is not None and "step" in known.earlier:
        facts["step"] = known.earlier["step"]
    if copies:
        facts["code"] = copies
    if known.resumed is not None and (changed := [*known.resumed.get("changed", []), *warnings]):
        facts["changed"] = list(dict.fromkeys(changed))
    if resolved.memory is not None:
        facts["memory"] = resolved.memory
    if (licence := licence_of_weights(resolved.recipe)) is not None:
        facts["licence"] = licence
    if followed := resolved.from_data or (known.earlier.get("from_data") if known.earlier else None):
        facts["from_data"] = followed
    if ends := _ends(known, resolved.recipe):
        facts["ends"] = ends
    if known.earlier is not None and "pruned" in known.earlier:
        facts["pruned"] = known.earlier["pruned"]
    return facts


def _ends(known: Circumstances, recipe: Recipe) -> list[NewEnd]:
    """What run.json says of the times that the end of a run was changed."""
    if known.earlier is None or known.adopts:
        return []
    now, was = recipe.to_json(), known.earlier["recipe"]
    changed = {name: [was[name], now[name]] for name in END if was.get(name, now[name]) != now[name]}
    ends = list(known.earlier.get("ends", []))
    if changed:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        ends.append({"after_epoch": known.epochs_run, "changed": changed, "at": at})
    return ends


def _threads(earlier: RunFacts | None, place: Place, control: Control) -> Threads:
    """A run that is resumed computes in as many as before, where the place grants as many as then."""
    before = earlier.get("threads") if earlier else None
    if not (place.fewer_threads or control.fewer_threads):
        return {"used": place.threads, "of": place.threads}
    return before if before and before["of"] == place.threads else {"used": None, "of": place.threads}


def _dataset_facts(name: str, meta: Meta) -> DatasetFacts:
    """What run.json says of the data: what DatasetFacts names, as far as `meta` has it."""
    found: Mapping[str, object] = meta
    recorded = {key: found[key] for key in DatasetFacts.__annotations__ if key in found}
    return cast(DatasetFacts, {"name": name, **recorded})


def _job(
    recipe: Recipe, facts: RunFacts, folder: Store, storage: Store, data: DataSpec, place: Place, control: Control
) -> Job:
    return {
        "recipe": recipe.to_json(),
        "scale": facts["scale"],
        "folder": folder.address,
        "storage": storage.address,
        "attempt": facts["attempt"],
        "start_id": facts["start_id"],
        "data": data,
        "threads": place.threads,
        "cwd": os.getcwd(),
        "adopt": control.adopt,
        "own_device": control.own_device,
    }


def _describe_workers(scale: Scale) -> str:
    low, high = scale.worker_range
    many = f"{low} to {high}" if low != high else str(high)
    return f"{many} worker{'s' if high > 1 else ''}"


def _place(scale: Scale) -> Place:
    if not scale.on_ray:
        return ThisProcess(scale)
    from trainers.runtime.ray_train import Cluster

    return Cluster(scale)


def _run(place: Place, job: Job, listener: Listener, stop: threading.Event) -> None:
    """Train; whatever happens, the record says how the run ended."""
    try:
        place.train(job, listener, stop)
    except OSError as error:
        if listener.done is not None:
            raise
        listener(_ending("failed", explain_with_file(error)))
    except BaseException as error:
        if listener.done is None:
            status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            listener(_ending(status, f"{type(error).__name__}: {error}"))
        raise
