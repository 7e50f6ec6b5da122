"""One optimizer step: micro-batches are accumulated, brought together over the ranks, applied."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainers.data import sampler
from trainers.data.batches import Batch, Data, ahead
from trainers.data.sampler import Pass
from trainers.phase import phase
from trainers.recipe import Recipe
from trainers.tasks.base import Task
from trainers.training import device, distributed
from trainers.training.batchnorm import BatchNormStatistics
from trainers.training.build import make_task
from trainers.training.checkpoint import Checkpoints
from trainers.training.distributed import World
from trainers.training.preprocess import Preprocess
from trainers.training.schedule import learning_rate
from trainers.training.state import TrainState


@dataclass(kw_only=True)
class Reporter:
    """What the loop tells, and asks, the world outside. Ranks other than 0 tell nothing."""

    report: Callable[[dict[str, Any]], None] = lambda event: None
    """Events of kind "step" (progress), "epoch" (a line of history, counts, pictures) and "file" (a profiler trace)."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the run was asked to stop; asked once a step, of rank 0."""
    saving: Callable[[], bool] = lambda: False
    """Whether a checkpoint is wished for now; asked likewise."""


@dataclass(kw_only=True)
class Run:
    """All that a step needs."""

    recipe: Recipe
    state: TrainState
    data: Data
    world: World
    model: nn.Module
    """The model as it is called in training: `state.model`, wrapped."""
    reporter: Reporter = field(default_factory=Reporter)
    checkpoints: Checkpoints | None = None
    checkpoint_seconds: float = math.inf
    last_save: float = field(default_factory=time.monotonic)
    last_pictures: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.task = make_task(self.recipe, self.data.meta)
        self.preprocess = Preprocess(self.recipe, self.data.meta, self.world)

    @functools.cached_property
    def rows(self) -> int:
        return int(self.data.meta["rows"]["train"])

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Pictures of each optimizer step of an epoch."""
        return [stop - start for start, stop in sampler.cut(self.rows, self.recipe.batch_size)]

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.sizes)

    def batches(self, split: str, passes: Iterator[Pass]) -> Iterator[Batch]:
        """A GPU computes while a thread reads ahead; on a CPU the thread would take the cores that compute."""
        batches = self.data.batches(split, passes)
        return batches if self.world.device.type == "cpu" else ahead(batches)


def by_step(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """The micro-batches of each step of this rank."""
    some = []
    for batch in batches:
        some.append(batch)
        if batch.of.last:
            yield some
            some = []


class Step:
    """One optimizer step: micro-batches are accumulated, then applied."""

    def __init__(self, run: Run, norms: BatchNormStatistics) -> None:
        self.run, self.norms = run, norms
        self.parameters = [p for p in run.state.model.parameters() if p.requires_grad]
        self.loss: Tensor | None = None
        """Sums of the losses (terms,); after `update`, those of the whole batch."""
        self.divisors: Tensor | list[float] = []
        """What they are divided by: numbers where that is the number of pictures."""
        self.statistics: dict[int, Tensor] = {}
        self.lr = 0.0
        self.requests = Requests(run)

    @phase("the passes of a step", on="device")
    def accumulate(self, batches: list[Batch]) -> None:
        """Forward and backward of this rank's micro-batches: gradients of the mean loss of the batch are added up."""
        run = self.run
        prepared = ((batch.of, *run.preprocess(batch, run.state.epoch)) for batch in batches)
        first = next(prepared)
        weight = run.task.weight(first[2])
        if weight is None:
            self.divisors = [float(run.sizes[first[0].step])]
            ready: Iterable[tuple[Pass, Tensor, Tensor]] = itertools.chain([first], prepared)
        else:  # the divisors are those of the whole batch: all its targets are needed before the first backward
            rest = list(prepared)
            ready = [first, *rest]
            own = [weight * first[0].weight]
            own += [divisors_of(run.task, targets) * of.weight for of, _, targets in rest]
            self.divisors = run.world.all_reduce(torch.stack(own).sum(0))
        factors = _inverse(self.divisors, run.world.size)  # DDP and FSDP2 take the mean over the workers, not the sum
        self.loss = None
        for of, images, targets in ready:
            seed = sampler.torch_seed(run.recipe.seed, run.state.total_steps, of.micro_batch)
            device.seed_generators(seed, run.world.device)
            with distributed.accumulating(run.model, of.last):
                with run.world.autocast():
                    loss = run.task.loss(run.model(images), targets)
                factor = (factors * of.weight).to(loss.device, loss.dtype)  # a surplus pass counts 0
                with phase("the backward pass", on="ranks" if of.last else "device"):  # the last one exchanges
                    (loss * factor).sum().backward()
            if of.weight:
                self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
                if self.norms.size:
                    self.statistics[of.micro_batch] = self.norms.of_micro_batch()

    @phase("the end of a step", on="device")
    def update(self) -> None:
        """Bring the ranks together, then take the step."""
        run, state = self.run, self.run.state
        if run.world.size > 1:
            self._exchange()
        if run.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, run.recipe.clip_norm)
        self.lr = learning_rate(run.recipe, state.total_steps, run.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = self.lr
        state.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        _update_average(state, run.recipe.ema)
        state.step += 1
        state.total_steps += 1
        self.statistics = {}

    def mean(self) -> float:
        """The loss of the step; waits for the device."""
        return mean_loss(to_numbers(self.loss), to_numbers(self.divisors))

    def _exchange(self) -> None:
        """The step's one small all-reduce: sums, rank 0's wishes, statistics of each micro-batch in its place."""
        recipe, state, world = self.run.recipe, self.run.state, self.run.world
        assert recipe.micro_batch_size is not None
        pieces = len(sampler.cut(self.run.sizes[state.step], recipe.micro_batch_size))
        table = torch.zeros(pieces, self.norms.size, dtype=torch.float64, device=world.device)
        for micro_batch, row in self.statistics.items():
            table[micro_batch] = row
        requests = torch.tensor(self.requests.own(), dtype=torch.float64).to(world.device)
        terms = len(self.divisors)
        if self.loss is None:  # this rank made surplus passes only
            self.loss = torch.zeros(terms, device=world.device)
        together = world.all_reduce(torch.cat([self.loss.double(), requests, table.flatten()]))
        self.loss = together[:terms]
        self.requests.put(together[terms : terms + 2])
        self.norms.apply(together[terms + 2 :].view(pieces, self.norms.size))


class Requests:
    """Rank 0's wishes (stop, save), known to all ranks at the same step.

    With several workers they are read one step late, so that no rank waits for its device.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._arrived: Tensor | None = None
        self._next: Tensor | None = None
        self._event: Any = None

    def own(self) -> list[float]:
        """What rank 0 wants now; other ranks want nothing."""
        if self.run.world.rank != 0:
            return [0.0, 0.0]
        due = time.monotonic() - self.run.last_save > self.run.checkpoint_seconds or self.run.reporter.saving()
        return [float(self.run.reporter.stopping()), float(due)]

    def put(self, requests: Tensor) -> None:
        if self._event is not None:
            self._event.synchronize()
        self._arrived, self._next = self._next, requests.to("cpu", non_blocking=True)
        if requests.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        """[stop, save]"""
        if self.run.world.size == 1:
            return self.own()
        return [0.0, 0.0] if self._arrived is None else self._arrived.tolist()


def divisors_of(task_: Task, targets: Tensor) -> Tensor:
    """What the losses of a micro-batch are divided by, float64 (terms,)."""
    weight = task_.weight(targets)
    return torch.tensor([float(len(targets))], dtype=torch.float64, device=targets.device) if weight is None else weight


def _inverse(divisors: Tensor | list[float], times: int) -> Tensor:
    """times / divisor; 0 where there is nothing to divide: a batch of ignored pixels moves nothing."""
    if not isinstance(divisors, Tensor):
        return torch.tensor([times / divisor for divisor in divisors], dtype=torch.float64)
    return torch.where(divisors > 0, times / divisors.clamp(min=1e-300), 0.0)


def to_numbers(values: Tensor | list[float] | None) -> list[float]:
    return values.tolist() if isinstance(values, Tensor) else values or []


def mean_loss(sums: Sequence[float], divisors: Sequence[float]) -> float:
    """Each sum over its own divisor, added up."""
    return sum(total / divisor if divisor else 0.0 for total, divisor in zip(sums, divisors, strict=True))


def _update_average(state: TrainState, decay: float | None) -> None:
    if state.ema is None:
        return
    assert decay is not None
    for name, value in state.model.state_dict().items():
        if value.is_floating_point():
            state.ema[name].lerp_(value, 1 - decay)
        else:
            state.ema[name].copy_(value)
