"""One optimizer step, over all ranks:

step.accumulate(micro-batches of this rank)
    micro-batches to the device, augmented, normalised and mixed
    divisors of the losses (images, pixels, class weights), added up over the ranks
    for every micro-batch:
        default generator seeded; forward; sums of the losses; backward of sums / divisors
        the last backward of a step averages the gradients over the ranks
step.update()
    one small all-reduce: losses, BatchNorm statistics, rank 0's requests (stop, save)
    clip the gradients; set the learning rate; optimizer; moving average of the weights
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainers.augmentations.mosaic import is_on
from trainers.data import mosaic, sampler
from trainers.data.batches import Batch, Data, ahead
from trainers.data.mixing import Mixture
from trainers.data.resident import Resident
from trainers.data.sampler import Pass
from trainers.instances import Targets, each, parts
from trainers.limits import Load
from trainers.messages import Event
from trainers.phase import phase
from trainers.recipe import Recipe
from trainers.tasks.base import Task
from trainers.time_left import TimeLeft
from trainers.training import device, distributed
from trainers.training.batchnorm import BatchNormStatistics
from trainers.training.build import make_task
from trainers.training.checkpoint import Checkpoints
from trainers.training.distributed import World
from trainers.training.preprocess import Preprocess
from trainers.training.schedule import learning_rate
from trainers.training.state import TrainState
from trainers.upload import page_locked, upload


@dataclass(kw_only=True)
class Reporter:
    """What the loop reports to, and asks of, whoever started it."""

    report: Callable[[Event], None] = lambda event: None
    """Takes StepEvent, EpochEvent and FileEvent (a profiler trace); those of rank 0 count."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the run is to stop; called once a step, on rank 0."""
    saving: Callable[[], bool] = lambda: False
    """Whether a checkpoint is requested now; called likewise."""


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
    """Least time between two checkpoints within an epoch."""
    last_save: float = field(default_factory=time.monotonic)
    """By time.monotonic(), as the next."""
    last_pictures: float = field(default_factory=time.monotonic)
    time_left: TimeLeft = field(default_factory=TimeLeft)
    resident: Resident | None = None
    """What `data` keeps on the device."""
    load: Load | None = None
    """Of this host since training began; None: nobody wants to know any more."""

    def __post_init__(self) -> None:
        self.task = make_task(self.recipe, self.data.meta)
        self.preprocess = Preprocess(self.recipe, self.data.meta, self.world)

    @functools.cached_property
    def rows(self) -> int:
        """Training samples."""
        return self.data.meta["rows"]["train"]

    @functools.cached_property
    def cut(self) -> sampler.Cut:
        """The images of an epoch, cut into optimizer steps."""
        return sampler.Cut(self.rows, self.recipe.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.cut)

    def batches(self, split: str, passes: Iterator[Pass], epoch: int | None = None) -> Iterator[Batch]:
        """Stored pictures; a GPU computes while a thread reads ahead; on a CPU the thread would take the cores that
        compute.

        Args:
            split: Such as "val".
            passes: Of this rank.
            epoch: Whose mosaics they are, where it has any; None: they are as they are stored.
        """
        if epoch is not None and is_on(self.recipe.augment, epoch, self.recipe.epochs):
            batches = mosaic.batches(self.data, split, passes, self.recipe, epoch)
        else:
            batches = self.data.batches(split, passes)
        return batches if self.world.device.type == "cpu" else ahead(map(_page_locked, batches))


def _page_locked(batch: Batch) -> Batch:
    return Batch(batch.of, page_locked(batch.images), each(page_locked, batch.targets))


def by_step(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """The micro-batches of each step of this rank."""
    some = []
    for batch in batches:
        some.append(batch)
        if batch.of.last:
            yield some
            some = []


class Prepared(NamedTuple):
    """A micro-batch on the device, augmented, normalised and mixed."""

    of: Pass
    images: Tensor
    targets: Targets
    mixture: Mixture | None
    """How its loss is mixed; None: it is not."""


class Step:
    """One optimizer step: `accumulate`, then `update`. One object makes all steps of an epoch."""

    def __init__(self, run: Run, norms: BatchNormStatistics) -> None:
        """
        Args:
            run: Its state is changed.
            norms: Collects what BatchNorm saw in each micro-batch.
        """
        self.run, self.norms = run, norms
        self.parameters = [p for p in run.state.model.parameters() if p.requires_grad]
        self.loss: Tensor | None = None
        """Sums of the losses (terms,) of this rank's micro-batches; after `update`, those of the whole batch."""
        self.divisors: Tensor | list[float] = []
        """What they are divided by, of the whole batch: numbers where that is the number of images."""
        self.statistics: dict[int, Tensor] = {}
        """BatchNorm's, of each micro-batch of this rank."""
        self.lr = 0.0
        self.requests = RequestExchange(run)

    @phase("the passes of a step", on="device")
    def accumulate(self, batches: list[Batch]) -> None:
        """Forward and backward of this rank's micro-batches: gradients of the mean loss of the batch are added up."""
        run = self.run
        prepared = (Prepared(batch.of, *run.preprocess.mixed(batch, run.state.epoch)) for batch in batches)
        micro_batches = self._find_divisors(prepared)
        # DDP and FSDP2 take the mean over the workers, not the sum
        factors = upload(_inverse(self.divisors, run.world.size), run.world.device)
        self.loss = None
        for micro_batch in micro_batches:
            self._forward_backward(micro_batch, factors)

    @phase("the end of a step", on="device")
    def update(self) -> None:
        """Exchange between the ranks, then clip, set the learning rate, and apply the gradients."""
        run, state = self.run, self.run.state
        if run.world.size > 1:
            self._exchange()
        if run.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, run.recipe.clip_norm)
        self.lr = learning_rate(run.recipe, state.total_steps, run.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = self.lr * group["factor"]
        state.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        _update_average(state, run.recipe)
        state.step += 1
        state.total_steps += 1
        self.statistics = {}

    def mean(self) -> float:
        """The loss of the step; waits for the device."""
        return mean_loss(to_numbers(self.loss), to_numbers(self.divisors))

    def _find_divisors(self, prepared: Iterator[Prepared]) -> Iterator[Prepared]:
        """Set `divisors`, those of the whole batch. Returns the micro-batches, none of them lost."""
        run = self.run
        first = next(prepared)
        weight = run.task.weight(first.targets)
        if weight is None:
            self.divisors = [float(run.cut.size(first.of.step))]
            return itertools.chain([first], prepared)
        micro_batches = [first, *prepared]  # all targets are needed before the first backward
        own = [weight * first.of.weight]
        own += [divisors_of(run.task, each.targets) * each.of.weight for each in micro_batches[1:]]
        self.divisors = run.world.all_reduce(torch.stack(own).sum(0))
        return iter(micro_batches)

    def _forward_backward(self, micro_batch: Prepared, factors: Tensor) -> None:
        """One pass; `factors` (terms,) turn the sums of its losses into its part of the mean loss of the batch."""
        run, of = self.run, micro_batch.of
        seed = sampler.torch_seed(run.recipe.seed, run.state.total_steps, of.micro_batch)
        device.seed_generators(seed, run.world.device)
        self.norms.begin_pass()
        with distributed.accumulating(run.model, of.last):
            with run.world.autocast():
                loss = _loss(run.task, run.model(micro_batch.images), micro_batch)
            factor = (factors * of.weight).to(loss.dtype)  # a surplus pass counts 0
            with phase("the backward pass", on="ranks" if of.last else "device"):  # the last one exchanges
                (loss * factor).sum().backward()
        if of.weight:
            self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
            if self.norms.size:
                self.statistics[of.micro_batch] = self.norms.of_micro_batch()

    def _exchange(self) -> None:
        """The step's one small all-reduce: losses, rank 0's requests, and the BatchNorm statistics as a table with a
        row for each micro-batch of the whole batch, of which each rank fills its own."""
        recipe, state, world = self.run.recipe, self.run.state, self.run.world
        assert recipe.micro_batch_size is not None
        pieces = len(sampler.Cut(self.run.cut.size(state.step), recipe.micro_batch_size))
        table = torch.zeros(pieces, self.norms.size, dtype=torch.float64, device=world.device)
        for micro_batch, row in self.statistics.items():
            table[micro_batch] = row
        requests = upload(torch.tensor(self.requests.own(), dtype=torch.float64), world.device)
        terms = len(self.divisors)
        if self.loss is None:  # this rank made surplus passes only
            self.loss = torch.zeros(terms, device=world.device)
        together = world.all_reduce(torch.cat([self.loss.double(), requests, table.flatten()]))
        self.loss, requests, rows = together.split([terms, len(requests), table.numel()])
        self.requests.put(requests)
        self.norms.apply(rows.view_as(table))


def _loss(task: Task, output: Tensor, micro_batch: Prepared) -> Tensor:
    """The sums of the losses, (terms,): of mixed pictures, those for their own targets and for their partners', by
    shares. What they are divided by is the same for both, as the partners are a permutation."""
    loss = task.loss(output, micro_batch.targets)
    if (how := micro_batch.mixture) is None:
        return loss
    others = each(lambda part: part[how.partners], micro_batch.targets)
    return how.share * loss + (1 - how.share) * task.loss(output, others)


class Request(NamedTuple):
    """What rank 0 wants of all ranks."""

    stop: bool = False
    save: bool = False


class RequestExchange:
    """Rank 0's request, known to all ranks at the same step.

    With several workers it is read one step late, so that no rank waits for its device.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._arrived: Tensor | None = None
        self._next: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def own(self) -> Request:
        """What rank 0 wants now; other ranks want nothing."""
        if self.run.world.rank != 0:
            return Request()
        due = time.monotonic() - self.run.last_save > self.run.checkpoint_seconds or self.run.reporter.saving()
        return Request(self.run.reporter.stopping(), due)

    def put(self, request: Tensor) -> None:
        """Take in the ranks' sum of their own requests, (2,), on the device."""
        if self._event is not None:
            self._event.synchronize()
        self._arrived, self._next = self._next, request.to("cpu", non_blocking=True)
        if request.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> Request:
        """The request that all ranks follow now."""
        if self.run.world.size == 1:
            return self.own()
        return Request() if self._arrived is None else Request(*map(bool, self._arrived.tolist()))


def divisors_of(task: Task, targets: Targets) -> Tensor:
    """What the losses of a micro-batch are divided by, float64 (terms,)."""
    weight = task.weight(targets)
    if weight is None:
        part, *_ = parts(targets)
        return torch.full((1,), len(part), dtype=torch.float64, device=part.device)
    return weight


def _inverse(divisors: Tensor | list[float], times: int) -> Tensor:
    """times / divisor; 0 where there is nothing to divide: a batch of ignored pixels moves nothing."""
    if not isinstance(divisors, Tensor):
        return torch.tensor([times / divisor for divisor in divisors], dtype=torch.float64)
    return torch.where(divisors > 0, times / divisors.clamp(min=1e-300), 0.0)


def to_numbers(values: Tensor | list[float] | None) -> list[float]:
    """As a list; waits for the device. None: no numbers."""
    if values is None:
        return []
    return values.tolist() if isinstance(values, Tensor) else values


def mean_loss(sums: Sequence[float], divisors: Sequence[float]) -> float:
    """Each sum over its own divisor, added up."""
    return sum(total / divisor if divisor else 0.0 for total, divisor in zip(sums, divisors, strict=True))


def _update_average(state: TrainState, recipe: Recipe) -> None:
    if state.ema is None or recipe.ema is None:
        return
    decay, step = recipe.ema, state.total_steps
    if recipe.ema_warmup:  # else the average would hold the first weights for 1 / (1 - decay) steps
        decay = min(decay, (1 + step) / (10 + step))
    for name, value in state.model.state_dict().items():
        if value.is_floating_point():
            state.ema[name].lerp_(value, 1 - decay)
        else:
            state.ema[name].copy_(value)
