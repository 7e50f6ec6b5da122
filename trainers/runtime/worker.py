"""What each worker does, and this process where there are none: rebuild everything from plain data, and train."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable, Mapping

import torch

from trainers.data import shard_transfer
from trainers.data.batches import Cached, Data
from trainers.data.resident import Resident
from trainers.data.source import cache_folder, scan_files
from trainers.data.stream import Streamed
from trainers.limits import Load
from trainers.messages import DoneEvent, Event, Job, Meta, Picture, StartEvent
from trainers.phase import phase
from trainers.recipe import Recipe, Scale
from trainers.run_facts import MemoryFormat, RunFacts, Status
from trainers.runs.files import find_run, not_shared, sees
from trainers.runs.provenance import machine
from trainers.runtime.stall_detector import Heartbeat
from trainers.storage.store import Store, explain_with_file
from trainers.training import build, device, loop, tune_step
from trainers.training.checkpoint import Checkpoints, start_weights
from trainers.training.distributed import World
from trainers.training.examples import show_best_and_worst
from trainers.training.loop import Summary
from trainers.training.state import TrainState
from trainers.training.step import Reporter
from trainers.training.unused import explain_left_out

Report = Callable[[Event], None]


def work(
    job: Job,
    rank: int,
    size: int,
    attempt: int,
    report: Report,
    stopping: Callable[[], bool],
    saving: Callable[[], bool] = lambda: False,
    heartbeat: Heartbeat | None = None,
) -> DoneEvent:
    """Train as `job` says, from the newest checkpoint. Returns the event that ends the run.

    What would happen again at another start, such as for bad values or no memory, is returned as the run's end.

    Args:
        job: What to train, on what, where.
        rank: Of this worker, from 0.
        size: The number of workers.
        attempt: Larger at every start of the run; it decides which of two checkpoints counts.
        report: Takes the events; see runs.events.Listener.
        stopping: Whether rank 0 is to stop; called once a step.
        saving: Whether rank 0 is to save; likewise.
        heartbeat: Follows the progress of this rank; None: nobody watches for stalls.
    """
    scale = Scale.from_json(job["scale"])
    device.set_threads(job["threads"])
    world = World(rank, size, device.choose_device(), job["recipe"]["precision"], scale.strategy)
    device.reset_peak_memory(world.device)
    report({"kind": "machine", "host": socket.gethostname(), "machine": machine()})
    state: TrainState | None = None
    before: dict[str, float] = {}
    recipe = _open_recipe(job, world)
    if isinstance(recipe, str):
        return ending("failed", recipe)
    load, resident = Load(), _resident(recipe, scale, world, job)
    try:
        data = _open_data(job, recipe, scale, resident)
        checkpoints = Checkpoints(Store(job["folder"]), attempt, lambda step: report({"kind": "saved", "step": step}))
        world = _choose_execution(recipe, data.meta, world, scale, job, load, report)
        state = _restore(recipe, data.meta, world, checkpoints, job, report)
        if heartbeat is not None:
            data = heartbeat.follow(state, data, world)
        before = dict(state.seconds)
        report(_start(state, recipe))
        summary = loop.train(
            recipe,
            state,
            data,
            world,
            reporter=Reporter(report=report, stopping=stopping, saving=saving),
            checkpoints=checkpoints,
            checkpoint_seconds=scale.checkpoint_seconds,
            compile=scale.compile,
            activation_checkpointing=scale.activation_checkpointing,
            profile=scale.profile,
            resident=resident,
            watch_load=job["data"]["mode"] == "cache",  # else programs of ours decode
        )
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        explained = _explain_error(error, recipe, state)
        if explained is None:
            raise
        summary = explained
    event = _ending(summary, state, recipe, job["data"]["meta"], world, before, resident)
    takes_part = rank == 0 or world.sharded
    if takes_part and state is not None and state.best and summary.status not in ("failed", "out_of_memory"):
        event["pictures"] = _show(recipe, state, data, world, checkpoints)
    return event


def _open_recipe(job: Job, world: World) -> Recipe | str:
    """The recipe, whose own files lie in the storage; or why it cannot be opened here."""
    try:
        _refuse_unshared(job, world)
        return Recipe.from_json(job["recipe"])
    except ValueError as error:
        return str(error)
    except OSError as error:
        return explain_with_file(error)


def _show(recipe: Recipe, state: TrainState, data: Data, world: World, checkpoints: Checkpoints) -> list[Picture]:
    """The shown pictures as the best weights see them; none where these cannot be read."""
    if world.sharded:
        world.agree(True)  # all are here: rank 0 has written everything
    weights = None
    with contextlib.suppress(ValueError):
        weights = checkpoints.best_weights()
    every = world.gather_objects(weights is not None) if world.sharded else [weights is not None]
    if weights is None or not all(every):
        return []
    state.load_weights(weights)
    state.ema = None
    return show_best_and_worst(recipe, state, data, world, "val")


def ending(status: Status, message: str) -> DoneEvent:
    """The event that ends a run of which nothing more is known."""
    return {
        "kind": "done",
        "status": status,
        "message": message,
        "counts": {},
        "pictures": [],
        "peak_memory_bytes": {"host": None, "device": None},
        "seconds": {},
        "before": {},
        "images": 0,
        "epoch": 0,
        "best": None,
        "final": {},
    }


@phase("trying the step", on="ranks")
def _choose_execution(
    recipe: Recipe, meta: Meta, world: World, scale: Scale, job: Job, load: Load, report: Report
) -> World:
    """Execute steps as run.json says; what is open there, as is fastest, which all ranks try and agree on."""
    most, keep = job["threads"], None
    run = Store(job["folder"]).read_json("run.json") if world.rank == 0 else None
    threads, memory_format = world.gather_objects(_recorded(run, most))[0]
    if threads is None or memory_format is None:
        with contextlib.suppress(ValueError):  # this host has no folder for it
            keep = cache_folder(Store(job["storage"])) / tune_step.FOLDER
        found = tune_step.tune(
            recipe,
            meta,
            world,
            threads,
            "channels_last" if scale.compile else memory_format,
            most=most,
            enabled=scale.tune_step,
            load=load,
            keep=keep,
        )
        threads, memory_format = found.execution
        device.reset_peak_memory(world.device)
        if world.rank == 0:
            report({"kind": "execution", "threads": threads, "step": found.facts()})
    device.set_threads(threads)
    return dataclasses.replace(world, memory_format=memory_format)


def _recorded(run: RunFacts | None, most: int) -> tuple[int | None, MemoryFormat | None]:
    """Threads and memory format by run.json; None: they are open. Older versions knew channels_last alone."""
    threads, step = (run.get("threads"), run.get("step")) if run else (None, None)
    return threads["used"] if threads else most, step["memory_format"] if step else "channels_last"


def _start(state: TrainState, recipe: Recipe) -> StartEvent:
    history = list(state.history)  # an event may leave this process after the next epoch
    step, epoch = state.total_steps, state.epoch
    return {"kind": "start", "history": history, "step": step, "epoch": epoch, "precision": recipe.precision}


@phase("opening the data")
def _open_data(job: Job, recipe: Recipe, scale: Scale, resident: Resident | None) -> Data:
    where = job["data"]
    if where["mode"] == "cache":
        return Cached(shard_transfer.local(where), where["meta"], resident)
    return Streamed(recipe, scan_files(recipe, scale.data), where["meta"])


def _resident(recipe: Recipe, scale: Scale, world: World, job: Job) -> Resident | None:
    """What keeps pictures on the device; None where others may need its memory, or later epochs need more."""
    shared = not job["own_device"] or scale.memory is not None or (scale.gpus_per_worker or 1) < 1
    if shared or recipe.frozen_epochs is not None or recipe.augment.get("mosaic"):
        return None
    return Resident(world.device, lambda: device.spare_memory(world.device))


def _refuse_unshared(job: Job, world: World) -> None:
    """Every rank raises the same ValueError, naming all hosts that do not see the driver's storage."""
    folder = Store(job["folder"])
    blind = None if sees(folder, "run.json", job["start_id"]) else socket.gethostname()
    hosts = [host for host in world.gather_objects(blind) if host is not None]
    if hosts:
        raise ValueError(not_shared(folder, hosts))


def _restore(
    recipe: Recipe, meta: Meta, world: World, checkpoints: Checkpoints, job: Job, report: Report
) -> TrainState:
    """The state that training starts from: of the three below, the first that there is."""
    adopt = job["adopt"]
    if adopt is not None:
        snapshot = Checkpoints(Store(adopt[0])).at(adopt[1])
    else:
        snapshot = checkpoints.latest(lambda text: report({"kind": "warning", "text": text}))
    state = build.create_state(recipe, meta, world, fresh=snapshot is None)
    # 1 the newest checkpoint of this run that verifies; or one of another run, whose best epoch has no file here
    if snapshot is not None:
        state.restore(snapshot)
        if adopt is not None:
            state.best = None
    # 2 the best weights of another run
    elif recipe.init_from is not None:
        _take_weights(state, recipe.init_from, Store(job["storage"]), report)
    # 3 the weights that the recipe's seed gives
    return state


def _take_weights(state: TrainState, run: str, storage: Store, report: Report) -> None:
    """Start from the best weights of another run; parts of another shape keep their fresh values, and are named."""
    own = state.model.state_dict()
    fitting = start_weights(find_run(storage, run), run, own)
    state.load_weights(fitting, strict=False)
    if state.ema is not None:
        state.ema = {name: value.detach().clone() for name, value in state.model.state_dict().items()}
    fresh = [name for name in own if name not in fitting]
    rest = f"; fresh: {', '.join(fresh[:6])}{' ...' if len(fresh) > 6 else ''}" if fresh else ""
    report({"kind": "message", "text": f"{len(fitting)} of {len(own)} tensors start from {run}{rest}"})


def _ending(
    summary: Summary,
    state: TrainState | None,
    recipe: Recipe,
    meta: Meta,
    world: World,
    before: Mapping[str, float],
    resident: Resident | None,
) -> DoneEvent:
    event = ending(summary.status, summary.message)
    if state is None:
        return event
    best = state.history[state.best["epoch"] - 1] if state.best else {}
    keys = {"loss": "val/loss", "train_loss": "train/loss", "ms_per_image": "evaluate_ms_per_image"}
    losses = {name: best[key] for name, key in keys.items() if key in best}
    scores = build.make_task(recipe, meta).scores(state.counts) if state.counts else {}
    event["counts"] = state.counts
    event["seconds"] = state.seconds
    event["before"] = dict(before)
    event["images"] = round(sum(line["images_per_second"] * line["seconds"] for line in state.history))
    event["peak_memory_bytes"] = device.peak_memory(world.device, resident.bytes if resident else 0)
    event["epoch"] = state.epoch
    event["best"] = state.best
    event["final"] = {**losses, **scores}
    return event


def _explain_error(error: BaseException, recipe: Recipe, state: TrainState | None) -> Summary | None:
    """How a run ends after an error that would come again; None of one that may not."""
    if isinstance(error, ValueError):
        return Summary("failed", str(error))
    if isinstance(error, OSError):
        return Summary("failed", explain_with_file(error))
    if _is_out_of_memory(error):
        return Summary("out_of_memory", _advise(recipe, error))
    if state is not None and (left_out := explain_left_out(str(error), state.model)):
        return Summary("failed", left_out)
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _advise(recipe: Recipe, error: BaseException) -> str:
    micro = recipe.micro_batch_size or recipe.batch_size
    advice = f"try --micro-batch-size {micro // 2}" if micro > 1 else "try a smaller --image-size"
    return f"out of memory at micro_batch_size={micro} ({str(error).splitlines()[0]}); {advice}"


def change_folder(cwd: str) -> None:
    """Change to the driver's folder, from which the user names files (`./mine.py`): Ray starts workers elsewhere."""
    if os.path.isdir(cwd):
        os.chdir(cwd)
