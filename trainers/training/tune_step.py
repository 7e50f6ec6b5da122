"""How a training step is executed on this machine: tried in the first moments of a run, and not guessed.

No choice is right everywhere. Convolutions in channels_last are faster on one CPU and slower on the next; threads that
share small work wait for each other, mostly in a busy loop, and beside another program that keeps the cores busy each
wait becomes one for the scheduler.

Steps of a copy of the model, on pictures of the run's shapes, are made in each way in turn. What counts is the fastest
of each, so that what holds up single steps decides nothing; and the usual way stays where no other is clearly faster.
Where other programs take cores all the time, single steps that are not held up say little: there the median counts.
Rounding, and the order in which dropout draws, depend on the choice: a run keeps it for all its workers and for as long
as it is continued, as do later runs of the same step on the same machine.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainers import limits
from trainers.data.batches import Batch, NoData
from trainers.data.sampler import one_pass
from trainers.instances import each
from trainers.messages import Meta
from trainers.recipe import Recipe
from trainers.registry import identify
from trainers.run_facts import MemoryFormat, StepFacts, TriedStep
from trainers.runs.provenance import machine
from trainers.training import build, device, distributed, parts
from trainers.training.batchnorm import BatchNormStatistics
from trainers.training.distributed import World
from trainers.training.state import TrainState
from trainers.training.step import Run, Step

VERSION = 1
"""Of what is kept; where it is of another one, it is tried again."""
FOLDER = "steps"
"""Of what was found, below that of the prepared pictures."""
FORMATS: tuple[MemoryFormat, ...] = ("channels_last", "contiguous")
"""The usual one, and the other."""
SHARE, LEAST_TRIED, MOST_TRIED = 0.02, 0.1, 3.0
"""Of a run's time, that trying may take; seconds that it may take of any run, and of none may take more."""
FEWEST_PASSES, FEWEST_BUSY = 600, 150
"""Of a run in which more than the threads of small networks is tried, and where others keep the machine busy: the SHARE
of these are the passes that this takes, 12 and 3."""
ROUNDS = 30
"""Most passes in each way; the first is slower."""
HOPELESS = 8.0
"""A way whose first pass takes so many times as long as the fastest is not tried again."""
MOST_MEMORY = 0.2
"""Of a host's memory, what copies of the model may take."""
CLEARLY, BY_FAR = 1.05, 1.25
"""So much faster another way must be than the usual one; and beside other programs, of which nobody knows how long they
will be there."""
MOST_WORK = 10**8
"""Multiplications of a forward pass: more keep the cores of any host busy, and take too long to be tried in one."""
FEWEST_SECONDS, MOST_SECONDS = 0.003, 0.05
"""Of a pass forward and back in one thread, which makes some dozens of hand-overs of tens of microseconds where there
are more: in less time these never pay, in more they do."""
WORTH = 1.1
"""Twice the threads must be so much faster."""
TRY_SECONDS = 0.005
"""So long each number of threads is tried, and at least once; the fastest pass counts."""
PATIENCE = 3.0
"""So many passes of fewer threads may last what more threads are tried for."""


class Execution(NamedTuple):
    """A way to execute a training step."""

    threads: int
    memory_format: MemoryFormat


Measured = dict[Execution, float]
"""Seconds of a step in each way."""
Passes = dict[Execution, list[float]]
"""Seconds of each."""


class Tuned(NamedTuple):
    """The way that was chosen, and why."""

    execution: Execution
    why: Literal["tried", "kept", "as it comes"] = "as it comes"
    measured: Mapping[Execution, float] = MappingProxyType({})
    seconds: float = 0.0

    def facts(self) -> StepFacts:
        """For run.json, where the threads have a place of their own."""
        tried: list[TriedStep] = [
            {"threads": way.threads, "memory_format": way.memory_format, "seconds": round(took, 7)}
            for way, took in self.measured.items()
        ]
        seconds = round(self.seconds, 3)
        return {"memory_format": self.execution.memory_format, "why": self.why, "tried": tried, "seconds": seconds}


def tune(
    recipe: Recipe,
    meta: Meta,
    world: World,
    threads: int | None = None,
    memory_format: MemoryFormat | None = None,
    *,
    most: int,
    enabled: bool = True,
    load: limits.Load | None = None,
    keep: Path | None = None,
) -> Tuned:
    """Find how steps are executed fastest. All ranks call this with equal arguments, and get the same.

    In float64 nothing is tried, nor where the model is sharded; in a short run no more than the number of threads of a
    small network, for a tenth of a second.

    Args:
        recipe: Its micro_batch_size and precision are set.
        meta: Of the data.
        world: Of this rank; its memory format is not looked at.
        threads: Of each worker; None: they are tried.
        memory_format: None: it is tried.
        most: Threads that each worker may use.
        enabled: Whether anything may be tried.
        load: Of this host, for some time; None: since this call.
        keep: Folder of what was found on this machine, which is used again, unless other programs take cores that it
            needs; None: there is none.
    """
    usual = Execution(threads or most, memory_format or FORMATS[0])
    if not enabled or world.precision == "fp64" or world.sharded:
        return Tuned(usual)
    start, load = time.perf_counter(), load or limits.Load()
    kept = keep and keep / f"{_key(recipe, meta, world, [threads, memory_format, most])}.json"
    (before, *_) = world.gather_objects(_read(kept) if kept and world.rank == 0 else None)
    if before is not None and (before.threads == 1 or not _disturbed(world, load, before.threads)):
        return Tuned(before, "kept")
    trial = _Trial(recipe, meta, world)
    with _apart(world.device):
        counted = _agreed(world.gather_objects(_count_threads(trial, usual))) if threads is None else {}
        found = fewest_threads(counted, usual)
        fewer = threads is None and found not in counted and world.device.type == "cpu"
        found, raced, noisy = _search(trial, world, found, load, fewer=fewer, reorder=memory_format is None)
    if raced and kept and world.rank == 0 and not noisy:
        _write(kept, found)
    measured = counted | raced
    return Tuned(found, "tried" if measured else "as it comes", measured, time.perf_counter() - start)


def _search(
    trial: _Trial, world: World, usual: Execution, load: limits.Load, *, fewer: bool, reorder: bool
) -> tuple[Execution, Measured, bool]:
    """The fastest way as all ranks see it, seconds of each, and whether other programs took the processor meanwhile.

    Args:
        trial: Makes passes.
        world: Of this rank.
        usual: The way to stay with where no other is better.
        load: Of this host, for some time.
        fewer: Whether to try fewer threads: as many as others leave cores, and where these leave enough, half of them.
        reorder: Whether to try the other memory format.
    """
    left = min(world.gather_objects(load.leaves(usual.threads)))
    noisy = left < usual.threads
    threads = max(1, int(left) if noisy else usual.threads // 2) if fewer else usual.threads
    ways = _ways(usual, threads, reorder)
    if len(ways) == 1 or trial.passes(world.size) < (FEWEST_BUSY if fewer and noisy else FEWEST_PASSES):
        return usual, {}, noisy
    passes = _race(trial, ways, world.size)
    noisy = noisy or _disturbed(world, load, usual.threads)
    typical = statistics.median if noisy else min
    raced = _agreed(world.gather_objects({way: typical(seconds) for way, seconds in passes.items()}))
    return choose(raced, usual, noisy), raced, noisy


def _disturbed(world: World, load: limits.Load, threads: int) -> bool:
    """Whether others took cores that so many threads of any rank needed."""
    return any(world.gather_objects(load.leaves(threads) < threads))


# What is chosen --------------------------------------------------------------------------------------------------


def choose(measured: Mapping[Execution, float], usual: Execution, noisy: bool = False) -> Execution:
    """The fastest way, as far as it is clearly faster than the usual one.

    Args:
        measured: Seconds of each way.
        usual: One of them, if it could be tried.
        noisy: Whether other programs took the processor meanwhile.
    """
    if usual not in measured:
        return usual
    handicap = BY_FAR if noisy else CLEARLY
    return min(measured, key=lambda way: measured[way] * (1.0 if way == usual else handicap))


def fewest_threads(measured: Mapping[Execution, float], usual: Execution) -> Execution:
    """The usual way in the least number of threads of which twice as many bring little.

    Args:
        measured: Seconds of the same way in 1, 2, 4, ... threads; empty: they were not tried.
        usual: In as many threads as there are.
    """
    ways = list(measured)
    if not ways or measured[ways[0]] >= MOST_SECONDS:
        return usual
    for fewer, more in itertools.pairwise(ways):
        if not _pays(measured[fewer], measured[more]):
            return fewer
    return ways[-1]


def _pays(fewer: float, more: float) -> bool:
    """Whether more threads are worth it, by the seconds of a pass."""
    return fewer > FEWEST_SECONDS and more <= fewer / WORTH


def _ways(usual: Execution, threads: int, reorder: bool) -> list[Execution]:
    """The usual way, and those to try beside it, in the order of their turns.

    Args:
        usual: As steps are executed otherwise.
        threads: As many, or fewer, which come first: on a busy machine a pass in all of them may take any time.
        reorder: Whether to try the other memory format.
    """
    formats = FORMATS if reorder else (usual.memory_format,)
    ways = [Execution(count, lies) for lies in formats for count in (threads, usual.threads)]
    return list(dict.fromkeys(ways))


def _agreed(ranks: Sequence[Mapping[Execution, float]]) -> Measured:
    """Of the slowest rank, for each way that all of them have tried."""
    return {way: max(rank[way] for rank in ranks) for way in ranks[0] if all(way in rank for rank in ranks)}


# How it is tried -------------------------------------------------------------------------------------------------


class _Trial:
    """Steps of copies of the model, on pictures of the run's shapes."""

    def __init__(self, recipe: Recipe, meta: Meta, world: World) -> None:
        assert recipe.micro_batch_size is not None
        self.recipe, self.meta, self.device, self.precision = recipe, meta, world.device, world.precision
        self.rows = meta["rows"]["train"]
        self.pictures = min(recipe.micro_batch_size, self.rows)
        self._states: dict[MemoryFormat, TrainState] = {}

    def passes(self, ranks: int) -> int:
        """Of each rank, in the whole run."""
        return self.recipe.epochs * math.ceil(self.rows / (self.pictures * ranks))

    def copies_bytes(self) -> int:
        """Of a copy in each memory format with its gradients and an optimizer's states, at most."""
        weights = sum(parameter.nbytes for parameter in self.model.parameters())
        return 5 * weights * len(FORMATS)

    @functools.cached_property
    def model(self) -> nn.Module:
        """As it is trained in the first epoch, on the host; not trained itself."""
        model = build.build_model(build.without_weights(self.recipe), self.meta)
        parts.freeze(self.recipe, model, 0)
        parts.set_training(self.recipe, model, 0)
        return model

    @functools.cached_property
    def batch(self) -> Batch:
        """Noise, for which no data is read."""
        size, channels = self.recipe.storage_size, self.meta["channels"]
        shape = (self.pictures, *size, channels)
        pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        dummies = build.target_of(self.recipe).dummy(self.pictures, size, len(self.meta["classes"]))
        return Batch(one_pass(np.arange(self.pictures)), pictures, each(lambda part: part.copy(), dummies))

    def step(self, way: Execution) -> Callable[[], float]:
        """A function that makes a step of one micro-batch, and returns its seconds."""
        world = World(0, 1, self.device, self.precision, memory_format=way.memory_format)
        state = self._state(world)
        run = Run(recipe=self.recipe, state=state, data=NoData(self.meta), world=world, model=state.model)
        step = Step(run, BatchNormStatistics(state.model, world))

        def once() -> float:
            device.set_threads(way.threads)
            state.step = state.total_steps = 0  # the recipe may have fewer, and no learning rate beyond them
            start = world.clock()
            step.accumulate([self.batch])
            step.update()
            return world.clock() - start

        return once

    def _state(self, world: World) -> TrainState:
        if (known := self._states.get(world.memory_format)) is not None:
            return known
        model = distributed.place(copy.deepcopy(self.model), world)
        self._states[world.memory_format] = state = build.state_of(self.recipe, model)
        return state


def _count_threads(trial: _Trial, usual: Execution) -> Measured:
    """Seconds of a step in 1, 2, 4, ... threads, as long as more are worth it; empty where the work is elsewhere, is
    large, or cannot be tried."""
    if usual.threads == 1 or trial.device.type != "cpu":
        return {}
    try:
        weights = sum(parameter.numel() for parameter in trial.model.parameters())
        if trial.pictures * weights > MOST_WORK:
            return {}
        picture = torch.zeros((1, trial.meta["channels"], *trial.recipe.image_size))
        if trial.pictures * _multiplications(trial.model, picture, MOST_WORK // trial.pictures) > MOST_WORK:
            return {}
        return _doubled(trial.step, usual)
    except Exception:  # a model of the user's own: what is wrong with it shows in training
        return {}


def _doubled(step: Callable[[Execution], Callable[[], float]], usual: Execution) -> Measured:
    """Seconds in 1, 2, 4, ... threads, as long as more are worth it."""
    way = usual._replace(threads=1)
    once = step(way)
    once()  # the first of all is slower
    measured = {way: min(once(), _least_seconds(once))}  # a busy machine may hold up any single one for long
    while FEWEST_SECONDS < measured[way] < MOST_SECONDS and way.threads < usual.threads:
        fewer, way = way, way._replace(threads=min(2 * way.threads, usual.threads))
        least = measured[fewer]
        measured[way] = _least_seconds(step(way), enough=least / WORTH, patience=PATIENCE * least)
        if not _pays(least, measured[way]):
            break
    return measured


def _least_seconds(once: Callable[[], float], enough: float = 0.0, patience: float = 0.0) -> float:
    """Of the fastest pass, for TRY_SECONDS or `patience` where that is more; less where a pass took no more than
    `enough`."""
    least, spent = float("inf"), 0.0
    while least > enough and spent < max(TRY_SECONDS, patience):
        least = min(least, seconds := once())
        spent += seconds
    return least


def _race(trial: _Trial, ways: Sequence[Execution], ranks: int) -> Passes:
    """Those in each way that there was time for; empty where they cannot be tried."""
    try:
        if trial.device.type == "cpu" and trial.copies_bytes() > MOST_MEMORY * limits.memory() / ranks:
            return {}
        return _take_turns(trial.step, ways, trial.passes(ranks))
    except Exception:  # no memory, or a model of the user's own: what is wrong with it shows in training
        return {}


def _take_turns(step: Callable[[Execution], Callable[[], float]], ways: Sequence[Execution], passes: int) -> Passes:
    """Passes in each way, as far as there is time for one more; no way may be among them.

    Args:
        step: Gives a function that makes a pass in that way, and returns its seconds.
        ways: In the order of their turns.
        passes: Of the whole run.
    """
    steps, taken = {ways[0]: step(ways[0])}, Passes()
    most = MOST_TRIED - steps[ways[0]]()  # the first pass of all loads libraries, in training's place
    start, left = time.perf_counter(), list(ways)
    for _ in range(ROUNDS):
        for way in list(left):
            fastest = min(map(min, taken.values()), default=0.0)
            allowed = min(most, max(LEAST_TRIED, SHARE * passes * fastest))
            if time.perf_counter() - start + _expected(way, taken) > allowed:
                left.remove(way)
                continue
            steps[way] = steps.get(way) or step(way)
            took = steps[way]()
            if taken and way not in taken and took > max(LEAST_TRIED, HOPELESS * fastest):
                left.remove(way)
            taken.setdefault(way, []).append(took)
        if len(left) < min(2, len(ways)):
            break
    return taken


def _expected(way: Execution, taken: Passes) -> float:
    """Seconds of a pass, at least: as fast as any so far, or as one in as many threads."""
    known = taken.get(way) or [min(taken[tried]) for tried in taken if tried.threads == way.threads]
    return min(known, default=0.0)


@contextlib.contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """What is drawn meanwhile changes no later number."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


# What is kept ----------------------------------------------------------------------------------------------------


def _key(recipe: Recipe, meta: Meta, world: World, asked: Sequence[int | str | None]) -> str:
    """Of the same step on the same machine, in the same versions."""
    host = machine()
    facts = {
        **recipe.memory_facts(),
        "model": identify("models", recipe.model),
        "task": identify("tasks", recipe.task),
        "data": [meta["channels"], len(meta["classes"])],
        "asked": asked,
        "machine": [host["cpu"], host["gpus"], world.device.type, world.size],
        "versions": [torch.__version__, VERSION],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _read(file: Path) -> Execution | None:
    """What was kept; None where there is nothing that can be read."""
    try:
        return Execution(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(file: Path, found: Execution) -> None:
    """Keep it; where that cannot be, it is tried again the next time."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(f".{os.getpid()}")
        half.write_text(json.dumps(found._asdict()))
        half.replace(file)


class _Enough(Exception):
    """Of the multiplications."""


def _multiplications(model: nn.Module, picture: Tensor, enough: int) -> int:
    """Of a forward pass, as its layers with weights make them; it ends where there are more than `enough`.

    A pass of tensors without values would do as well, but importing what it needs takes longer than most of these.
    """
    found = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal found
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1:  # of a convolution, or linear
            of = given[0] if getattr(layer, "transposed", False) else output
            found += weight.numel() * of.numel() // of.shape[-1 if isinstance(layer, nn.Linear) else 1]
        if found > enough:
            raise _Enough

    hooks, training = [layer.register_forward_hook(count) for layer in model.modules()], model.training
    try:
        with torch.no_grad():
            model.eval()(picture)
    except _Enough:
        pass
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found
