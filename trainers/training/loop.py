"""The training loop: plain PyTorch. No Ray, no files.

for every epoch that is left:
    for every step:
        micro-batches of this rank to the device, augmented and normalised
        what the losses are divided by (pixels, class weights, images), added up over the ranks
        for every micro-batch of this rank:
            default generator seeded; forward; sum of losses; backward of the sum / divisor
        one small all-reduce: losses, BatchNorm statistics, rank 0's requests (stop, save)
        clip; learning rate; optimizer; moving average
    evaluate: counts added up over the ranks, then turned into scores
    a line of history; a checkpoint; patience
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from trainers import limits
from trainers.data import sampler
from trainers.data.batches import Data
from trainers.data.resident import Resident
from trainers.messages import Line
from trainers.phase import phase
from trainers.recipe import Recipe
from trainers.run_facts import Status
from trainers.training import device, distributed, parts
from trainers.training.batchnorm import BatchNormStatistics
from trainers.training.checkpoint import Checkpoints
from trainers.training.distributed import World
from trainers.training.evaluate import evaluate_split
from trainers.training.examples import PICTURE_SECONDS, show_again
from trainers.training.meter import Meter, diverged
from trainers.training.profiler import profiler
from trainers.training.state import TrainState
from trainers.training.step import Reporter, Run, Step, by_step, mean_loss
from trainers.training.unused import describe_unused, leave_out_unused

FINITE_EVERY = 20
"""Steps between checks of the loss: each waits for the device."""
BUSY_SHARE, BUSY_CORES, BUSY_SECONDS = 0.25, 0.5, 5.0
"""Of the cores that its threads need, what others may take, and at most; the start of this run is over sooner."""
SAVE_SECONDS = 1.0
"""An epoch that ends sooner after a checkpoint writes none, unless it is the best or the last."""


class Summary(NamedTuple):
    """How training ended."""

    status: Status
    message: str


@phase("training", on="device")
def train(
    recipe: Recipe,
    state: TrainState,
    data: Data,
    world: World,
    *,
    reporter: Reporter | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = math.inf,
    compile: bool = False,
    activation_checkpointing: bool = False,
    profile: bool = False,
    resident: Resident | None = None,
    watch_load: bool = False,
) -> Summary:
    """Train from where `state` stands to the recipe's last epoch. Every rank calls this with equal arguments.

    Args:
        recipe: Resolved: with a micro_batch_size and a precision other than "auto".
        state: Changed in place.
        data: Its splits "train" and "val" are read.
        world: This worker's place.
        reporter: Gets the events; says whether to stop or to save.
        checkpoints: Used by rank 0 only. None: none are written.
        checkpoint_seconds: Least time between two checkpoints within an epoch.
        compile: Whether to compile the model.
        activation_checkpointing: Whether to recompute activations in the backward pass.
        profile: Whether to trace a few steps of the first epoch.
        resident: What `data` keeps on the device.
        watch_load: Whether to say once where other programs keep the cores of a CPU busy.

    Raises:
        OSError: A checkpoint cannot be written.
    """
    assert recipe.micro_batch_size is not None
    assert recipe.precision != "auto"
    reporter = reporter or Reporter()
    distributed.prepare(state.model, compile=compile, activation_checkpointing=activation_checkpointing)
    run = Run(
        recipe=recipe,
        state=state,
        data=data,
        world=world,
        model=state.model,
        reporter=reporter,
        checkpoints=checkpoints if world.rank == 0 else None,
        checkpoint_seconds=checkpoint_seconds,
        resident=resident,
    )
    _choose_trained(run)
    run.load = limits.Load() if watch_load and world.device.type == "cpu" else None
    summary = _stopped_early(run)
    while summary is None and state.epoch < recipe.epochs:
        if state.epoch == recipe.frozen_epochs and not state.step:
            _choose_trained(run)
        with profiler(run, profile and world.rank == 0 and state.epoch == 0) as tick:
            summary = _train_epoch(run, tick) or _finish_epoch(run) or _stopped_early(run)
    if run.checkpoints is not None:
        run.checkpoints.close()
    return summary or Summary("finished", f"finished {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}")


def _choose_trained(run: Run) -> None:
    """What is trained in the epoch that comes, and how its gradients are exchanged."""
    recipe, state, world = run.recipe, run.state, run.world
    run.model = state.model  # the hooks of the last wrapper go with it
    parts.freeze(recipe, state.model, state.epoch)
    if world.size == 1 or world.sharded:
        return
    if unused := leave_out_unused(recipe, run.data.meta, state.model, world, state.epoch):
        run.reporter.report({"kind": "warning", "text": describe_unused(unused)})
    run.model = distributed.wrap(state.model, world)


# One epoch ---------------------------------------------------------------------------------------------------


def _train_epoch(run: Run, tick: Callable[[], None]) -> Summary | None:
    """The steps of the running epoch that are left. Returns a summary where the run ends within it."""
    recipe, state, world = run.recipe, run.state, run.world
    assert recipe.micro_batch_size is not None
    passes = sampler.passes(
        _order(run),
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        first_step=state.step,
    )
    meter = Meter(run)
    parts.set_training(recipe, state.model, state.epoch)
    step = Step(run, BatchNormStatistics(state.model, world))
    for batches in by_step(meter.timed(run.batches("train", passes, state.epoch))):
        step.accumulate(batches)
        step.update()
        tick()
        meter.step(step, run.cut.size(batches[0].of.step))
        if summary := _end_step(run, meter, step):
            return summary
    meter.flush()
    return None


def _order(run: Run) -> sampler.Order:
    """The draws of the running epoch."""
    seed, epoch = run.recipe.seed, run.state.epoch
    if run.recipe.order == "balanced":
        return sampler.balanced(seed, epoch, run.data.labels("train"))
    return sampler.shuffled(seed, epoch, run.rows)


def _end_step(run: Run, meter: Meter, step: Step) -> Summary | None:
    """Between two steps: is the loss finite, is the run to stop, is a checkpoint due?"""
    request = step.requests.read()
    end = run.state.step == run.steps
    due = run.state.step % FINITE_EVERY == 0 or end or request.stop or request.save
    if due and (trouble := meter.check()):
        return Summary("failed", trouble)
    if (request.stop or request.save) and not end:
        meter.flush()
        _save(run)
        if request.stop:
            return Summary("interrupted", f"interrupted in epoch {run.state.epoch + 1}, step {run.state.step}")
    return None


def _finish_epoch(run: Run) -> Summary | None:
    """Evaluate, report the history's line, save."""
    state, sums = run.state, run.state.sums
    _warn_of_others(run)
    start = time.perf_counter()
    loss, counts, ms_per_image = evaluate_split(run, "val")
    evaluate_seconds = time.perf_counter() - start
    if not math.isfinite(loss):
        return Summary("failed", diverged("validation loss", loss, state.epoch + 1, state.step, sums["lr"]))
    scores = {f"val/{k}": v for k, v in run.task.scores(counts).items() if isinstance(v, float)}
    line: Line = {
        "epoch": state.epoch + 1,
        "step": state.total_steps,
        "seconds": sums["seconds"],
        "images_per_second": sums["images"] / sums["seconds"],
        "data_wait_share": sums["data_wait"] / sums["seconds"],
        "lr": sums["lr"],
        "evaluate_ms_per_image": ms_per_image,
        "train/loss": mean_loss(sums["loss"], sums["divisor"]),
        "val/loss": loss,
        **scores,
        **_peak_memory(run),
    }
    value = line[f"val/{run.task.metric}"]
    best = math.nan if state.best is None else state.best["value"]
    better = state.best is None or value > best or (math.isnan(best) and not math.isnan(value))
    if better:
        state.best = {"epoch": state.epoch + 1, "metric": run.task.metric, "value": value, "step": state.total_steps}
        state.counts = counts
    state.history.append(line)
    state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
    spent = {"train": sums["seconds"], "data_wait": sums["data_wait"], "evaluate": evaluate_seconds}
    for name, seconds in spent.items():
        state.seconds[name] = state.seconds.get(name, 0.0) + seconds
    # Epochs of milliseconds are not all worth a file; the best and the last are.
    save = better or state.epoch == run.recipe.epochs
    now = time.monotonic()
    long_ago, due = run.world.agree(now - run.last_save > SAVE_SECONDS, now - run.last_pictures > PICTURE_SECONDS)
    save = save or long_ago
    if save:
        _save(run)
    pictures = show_again(run) if due else None
    run.reporter.report(
        {
            "kind": "epoch",
            "line": line,
            "metric": run.task.metric,
            "better": better,
            "counts": counts,
            "pictures": pictures,
        }
    )
    (requested,) = run.world.agree(run.reporter.stopping())  # whoever got the epoch's event may request it now
    stop = requested and state.epoch < run.recipe.epochs
    if stop and not save:
        _save(run)
    return Summary("interrupted", f"interrupted after epoch {state.epoch}") if stop else None


def _warn_of_others(run: Run) -> None:
    """After the first epoch, or the first few where these are short: whether other programs held cores meanwhile."""
    if run.load is None:
        return
    found = run.world.gather_objects((socket.gethostname(), run.load.seconds, run.load.cores()))
    if min(seconds for _, seconds, _ in found) < BUSY_SECONDS:
        return
    run.load = None
    host, *_ = found[run.world.rank]
    here = [cores for name, _, cores in found if name == host and cores is not None]
    if here:
        others, all_cores = max(busy for busy, _ in here) - sum(own for _, own in here), os.cpu_count() or 1
        threads = len(here) * torch.get_num_threads()
        if others > all_cores - threads + min(BUSY_SHARE * threads, BUSY_CORES):
            text = f"other programs kept {others:.1f} of {all_cores} cores busy"
            run.reporter.report({"kind": "warning", "text": f"{text}: training takes longer than it would alone"})


def _peak_memory(run: Run) -> Line:
    peak = device.peak_memory(run.world.device, run.resident.bytes if run.resident else 0)
    known = {"memory/host_bytes": peak["host"], "memory/device_bytes": peak["device"]}
    return {name: value for name, value in known.items() if value is not None}


def _stopped_early(run: Run) -> Summary | None:
    """Whether the last `patience` epochs brought nothing better."""
    state, patience = run.state, run.recipe.patience
    if patience is None or state.best is None or state.epoch - state.best["epoch"] < patience:
        return None
    best = state.best
    return Summary(
        "stopped_early",
        f"stopped after epoch {state.epoch}: no better {best['metric']} than {best['value']:.4f} of epoch "
        f"{best['epoch']} for {patience} epochs",
    )


def _save(run: Run) -> None:
    """Write a checkpoint, on rank 0; the time that training waits for it is counted. Every rank calls this."""
    start = time.perf_counter()
    if run.checkpoints is not None:
        run.checkpoints.save(run.state)
    elif run.world.sharded:
        run.state.join_snapshot()
    spent = run.state.seconds.get("checkpoint", 0.0) + time.perf_counter() - start
    run.state.seconds["checkpoint"] = spent
    run.last_save = time.monotonic()
