"""The training loop: plain PyTorch. No Ray, no files.

for every epoch that is left:
    for every step:
        micro-batches of this rank to the device, augmented and normalised
        what the losses are divided by (pixels, class weights, images), added up over the ranks
        for every micro-batch of this rank:
            default generator seeded; forward; sum of losses; backward of the sum / divisor
        one small all-reduce: losses, BatchNorm statistics, rank 0's wishes (stop, save)
        clip; learning rate; optimizer; moving average
    evaluate: counts added up over the ranks, then turned into scores
    a line of history; a checkpoint; patience
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainers.data import augment
from trainers.data import sampler as order
from trainers.data.prepare import Batch, Data, ahead
from trainers.data.sampler import Pass
from trainers.recipe import SCHEDULE_ARGS, Recipe, load
from trainers.tasks import base as task
from trainers.training import distributed as parallel
from trainers.training.checkpoint import Checkpoints, Line, TrainState
from trainers.training.distributed import BatchNormStatistics, World

Status = Literal["finished", "stopped_early", "interrupted", "failed", "out_of_memory"]
Counts = dict[str, npt.NDArray[np.int64]]
FINITE_EVERY = 20
"""Steps between looks at the loss: each look waits for the device."""
PROGRESS_SECONDS = 0.5
SAVE_SECONDS = 1.0
"""An epoch that ends sooner after a checkpoint writes none, unless it is the best or the last."""


PICTURE_SECONDS = 10.0
"""Least time between two looks at the shown pictures."""
PICTURE_SIDE = 512
"""Longest side, in pixels, of a picture that is shown."""


class Summary(NamedTuple):
    """How training ended."""

    status: Status
    message: str


class Evaluation(NamedTuple):
    """What an evaluation found, the same on every rank but for the time."""

    loss: float
    counts: Counts
    """Totals, and tables with a row for each image."""
    ms_per_image: float
    """Of the model's forward passes on this rank; reading, pre-processing, loss and scores are left out."""


@dataclass(kw_only=True)
class Reporter:
    """What the loop tells, and asks, the world outside. Ranks other than 0 tell nothing."""

    tell: Callable[[dict[str, Any]], None] = lambda event: None
    """Events of kind "step" (progress), "epoch" (a line of history, counts, pictures) and "file" (a profiler trace)."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the run was asked to stop; asked once a step, of rank 0."""
    saving: Callable[[], bool] = lambda: False
    """Whether a checkpoint is wished for now; asked likewise."""


class Preprocess:
    """Stored pictures to what the model takes, on the device."""

    def __init__(self, recipe: Recipe, meta: Mapping[str, Any], world: World) -> None:
        """Parameters: `meta` with the training split's `mean` and `std`, per channel, of values in [0, 1]."""
        self.recipe, self.world = recipe, world
        mean, std = (torch.tensor(meta[name], dtype=torch.float64).view(1, -1, 1, 1) for name in ("mean", "std"))
        self.shift, self.scale, self.scale_of_bytes = (
            tensor.to(world.device, world.dtype) for tensor in (-mean / std, 1 / std, 1 / std / 255)
        )

    def __call__(self, batch: Batch, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """Images, normalised (N, C, *image_size), and targets: int64 (N,), or masks (N, *image_size).

        With an `epoch`: augmented as its random numbers say; else the middle of the stored pictures.
        """
        recipe = self.recipe
        targets = self._to_device(batch.targets)
        masks = targets if targets.ndim == 3 else None
        if epoch is None or not recipe.augment:
            images, masks = self._middle(batch.images, masks)
        else:
            pixels = self._to_device(batch.images).permute(0, 3, 1, 2).to(self.world.dtype).mul_(1 / 255)
            images, masks = augment.augment(
                pixels,
                recipe.augment,
                size=recipe.image_size,
                seed=recipe.seed,
                epoch=epoch,
                ids=batch.of.ids,
                masks=masks,
            )
            images = torch.addcmul(self.shift, images, self.scale)
        return images, (targets if masks is None else masks).long()

    def images(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 (N, *storage_size, C) -> normalised (N, C, *image_size)."""
        return self._middle(pictures, None)[0]

    def normalise(self, images: Tensor) -> Tensor:
        """(N, C, H, W) with values from 0 to 255, of any size, to zero mean and unit variance."""
        return torch.addcmul(self.shift, images, self.scale_of_bytes)

    def _middle(self, pictures: npt.NDArray[np.uint8], masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        images = self._to_device(pictures).permute(0, 3, 1, 2).to(self.world.dtype)
        if self.recipe.storage_size != self.recipe.image_size:
            images, masks = augment.center(images, self.recipe.image_size, masks)
        return self.normalise(images), masks

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.world.device, non_blocking=True)


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
        return [stop - start for start, stop in order.cut(self.rows, self.recipe.batch_size)]

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return len(self.sizes)

    def batches(self, split: str, passes: Iterator[Pass]) -> Iterator[Batch]:
        """A GPU computes while a thread reads ahead; on a CPU the thread would take the cores that compute."""
        batches = self.data.batches(split, passes)
        return batches if self.world.device.type == "cpu" else ahead(batches)


def build_model(recipe: Recipe, meta: Mapping[str, Any]) -> nn.Module:
    """The recipe's model with the weights of its seed, on the CPU. Raises ValueError where data and model differ."""
    outputs = task.outputs(recipe.task, len(meta["classes"]))
    facts = {"image_size": recipe.image_size, "channels": meta["channels"], "classes": outputs}
    for name, value in facts.items():
        if recipe.model_args.get(name, value) != value:
            raise ValueError(
                f"model_args {name}={recipe.model_args[name]} does not fit the data, which has {name}={value}; "
                f"leave {name} out of --model-args"
            )
    torch.manual_seed(recipe.seed)
    model: nn.Module = load("models", recipe.model).build(**{**recipe.model_args, **facts})
    return model


def without_weights(recipe: Recipe) -> Recipe:
    """The recipe, but its model is built without reading weights from anywhere."""
    return recipe.replace(model_args={"weights": None}) if "weights" in recipe.model_args else recipe


def make_task(recipe: Recipe, meta: Mapping[str, Any]) -> task.Task:
    """The recipe's loss and scores for this data set."""
    weights = task.weigh_classes(recipe.class_weights, meta["class_counts"]["train"], meta.get("class_areas"))
    return task.make(recipe.task, recipe.task_args, len(meta["classes"]), weights)


def create_state(recipe: Recipe, meta: Mapping[str, Any], world: World, *, fresh: bool = True) -> TrainState:
    """The state of a run before its first step, the same on every rank; not `fresh`: about to be restored."""
    if not fresh:  # downloads nothing
        recipe = without_weights(recipe)
    model = build_model(recipe, meta)
    parallel.freeze(model, recipe.frozen)
    model = parallel.place(model, world)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ema = None if recipe.ema is None else {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = _optimizer(recipe, trained, fused=not world.sharded)
    return TrainState(model=model, optimizer=optimizer, ema=ema)


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
) -> Summary:
    """Train from where `state` stands to the recipe's last epoch; `state` is changed in place.

    Parameters: `recipe` with a micro_batch_size and a settled precision; `checkpoints`, for rank 0 only.
    Every rank calls this with equal arguments. Raises OSError where a checkpoint cannot be written.
    """
    assert recipe.micro_batch_size is not None
    assert recipe.precision != "auto"
    run = Run(
        recipe=recipe,
        state=state,
        data=data,
        world=world,
        model=parallel.wrap(state.model, world, compile=compile, recompute=activation_checkpointing),
        reporter=reporter or Reporter(),
        checkpoints=checkpoints if world.rank == 0 else None,
        checkpoint_seconds=checkpoint_seconds,
    )
    summary = _stopped_early(run)
    while summary is None and state.epoch < recipe.epochs:
        with _profiler(run, profile and world.rank == 0 and state.epoch == 0) as tick:
            summary = _train_epoch(run, tick) or _finish_epoch(run) or _stopped_early(run)
    if run.checkpoints is not None:
        run.checkpoints.close()
    return summary or Summary("finished", f"finished {recipe.epochs} epochs")


def evaluate(run: Run, split: str) -> Evaluation:
    """Mean loss and counts over a split, the same on every rank; each picture counts once.

    Uses the moving average of the weights where the recipe keeps one.
    """
    recipe, state, world = run.recipe, run.state, run.world
    rows = int(run.data.meta["rows"][split])
    passes = order.passes(
        np.arange(rows),
        batch_size=rows,
        micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    sums: Tensor | None = None
    counts: dict[str, Tensor] = {}
    seconds, images_seen = 0.0, 0
    with _evaluating(state):
        for batch in run.batches(split, passes):
            images, targets = run.preprocess(batch)
            with world.autocast():
                start = world.clock()
                output = state.model(images)
                seconds += world.clock() - start
                loss = run.task.loss(output, targets)
            images_seen += len(images)
            sums = torch.zeros(2, len(loss), dtype=torch.float64, device=world.device) if sums is None else sums
            new = run.task.counts(output, targets)
            if not counts:
                counts = {name: torch.zeros_like(count) for name, count in new.total.items()}
                counts |= {name: count.new_zeros(rows, *count.shape[1:]) for name, count in new.per_image.items()}
            if batch.of.weight:
                sums += torch.stack([loss.double(), _divisors(run.task, targets)])
                for name, count in new.total.items():
                    counts[name] += count
                for name, count in new.per_image.items():
                    counts[name][torch.from_numpy(batch.of.ids)] = count
    assert sums is not None
    for tensor in (sums, *counts.values()):
        world.add_up(tensor)
    found = {name: count.cpu().numpy() for name, count in counts.items()}
    return Evaluation(_mean_loss(*sums.tolist()), found, 1000 * seconds / images_seen)


def show(run: Run, split: str, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Pictures with what the model makes of them, for people: name, image, target and labels, uint8 arrays of at
    most PICTURE_SIDE pixels a side. Where the model is sharded every rank calls this, elsewhere any that likes."""
    recipe, state = run.recipe, run.state
    shown = []
    for row in rows:
        batch = next(run.data.batches(split, [Pass(0, 0, np.array([row]), 1.0, True)]))
        images, targets = run.preprocess(batch)
        with _evaluating(state), run.world.autocast():
            labels = run.task.labels(state.model(images), recipe.image_size)
        pixels, _ = augment.center(torch.from_numpy(batch.images).permute(0, 3, 1, 2), recipe.image_size)
        every = -(-max(recipe.image_size) // PICTURE_SIDE)
        names = run.data.meta.get("names", {}).get(split)
        shown.append(
            {
                "row": row,
                "name": names[row] if names else f"{split} {row}",
                "image": pixels[0, :, ::every, ::every].permute(1, 2, 0).numpy(),
                "target": targets[0].to("cpu", torch.uint8)[::every, ::every].numpy(),
                "labels": labels[0].to("cpu", torch.uint8)[::every, ::every].numpy(),
            }
        )
    return shown


def show_best_and_worst(
    recipe: Recipe, state: TrainState, data: Data, world: World, split: str, most: int = 2
) -> list[dict[str, Any]]:
    """The pictures that were shown all along and, by the counts of the best epoch, the best and the worst of all.

    `state.model` holds the weights of the best epoch.
    """
    run = Run(recipe=recipe, state=state, data=data, world=world, model=state.model)
    scores = run.task.ranking(state.counts)
    if scores is None:
        return []
    ranked = [int(row) for row in np.argsort(-scores, kind="stable") if np.isfinite(scores[row])]
    fixed = _fixed_rows(run, split)
    best = [row for row in ranked[:most] if row not in fixed]
    worst = [row for row in ranked[-most:] if row not in (*fixed, *best)]
    kinds = [*((row, "") for row in fixed), *((row, "best") for row in best), *((row, "worst") for row in worst)]
    pictures = show(run, split, [row for row, _ in kinds])
    return [
        {**picture, "kind": kind, "score": float(scores[picture["row"]])}
        for picture, (_, kind) in zip(pictures, kinds, strict=True)
    ]


def _fixed_rows(run: Run, split: str) -> list[int]:
    """The rows that are shown every time: the same for every run on this data."""
    return [int(row) for row in order.permutation(0, 0, int(run.data.meta["rows"][split]))[: run.task.shown]]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of step `step`, counted from 0 over the whole run, where an epoch has `steps` steps."""
    warm = recipe.warmup_epochs * steps
    if step < warm:
        return recipe.lr * min(1.0, (step + 1) / warm)
    args = {**SCHEDULE_ARGS[recipe.schedule], **recipe.schedule_args}
    done = (step - warm) / max(1.0, recipe.epochs * steps - warm)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
    if recipe.schedule == "polynomial":
        return float(recipe.lr * (1 - done) ** args["power"])
    if recipe.schedule == "step":
        return float(recipe.lr * args["factor"] ** (step // steps // args["every"]))
    return recipe.lr


# One epoch ---------------------------------------------------------------------------------------------------


def _train_epoch(run: Run, tick: Callable[[], None]) -> Summary | None:
    """The steps of the running epoch that are left. Returns a summary where the run ends within it."""
    recipe, state, world = run.recipe, run.state, run.world
    assert recipe.micro_batch_size is not None
    epoch_order = order.permutation(recipe.seed, state.epoch, run.rows)
    passes = order.passes(
        epoch_order,
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        first_step=state.step,
    )
    meter = _Meter(run)
    parallel.set_training(state.model, recipe.frozen)
    with BatchNormStatistics(state.model, world) as norms:
        step = _Step(run, norms)
        for batches in _by_step(meter.timed(run.batches("train", passes))):
            step.accumulate(batches)
            step.update()
            tick()
            meter.step(step, run.sizes[batches[0].of.step])
            if summary := _look_after(run, meter, step):
                return summary
    meter.settle()
    return None


def _by_step(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """The micro-batches of each step of this rank."""
    some = []
    for batch in batches:
        some.append(batch)
        if batch.of.last:
            yield some
            some = []


class _Step:
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
        self.wishes = _Wishes(run)

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
            own += [_divisors(run.task, targets) * of.weight for of, _, targets in rest]
            self.divisors = run.world.add_up(torch.stack(own).sum(0))
        factors = _inverse(self.divisors, run.world.size)  # DDP and FSDP2 take the mean over the workers, not the sum
        self.loss = None
        for of, images, targets in ready:
            seed = order.torch_seed(run.recipe.seed, run.state.total_steps, of.micro_batch)
            parallel.seed_generators(seed, run.world.device)
            with parallel.accumulating(run.model, of.last):
                with run.world.autocast():
                    loss = run.task.loss(run.model(images), targets)
                factor = (factors * of.weight).to(loss.device, loss.dtype)  # a surplus pass counts 0
                (loss * factor).sum().backward()
            if of.weight:
                self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
                if self.norms.size:
                    self.statistics[of.micro_batch] = self.norms.of_micro_batch()

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
        return _mean_loss(_numbers(self.loss), _numbers(self.divisors))

    def _exchange(self) -> None:
        """The step's one small all-reduce: sums, rank 0's wishes, statistics of each micro-batch in its place."""
        recipe, state, world = self.run.recipe, self.run.state, self.run.world
        assert recipe.micro_batch_size is not None
        pieces = len(order.cut(self.run.sizes[state.step], recipe.micro_batch_size))
        table = torch.zeros(pieces, self.norms.size, dtype=torch.float64, device=world.device)
        for micro_batch, row in self.statistics.items():
            table[micro_batch] = row
        wishes = torch.tensor(self.wishes.own(), dtype=torch.float64).to(world.device)
        terms = len(self.divisors)
        if self.loss is None:  # this rank made surplus passes only
            self.loss = torch.zeros(terms, device=world.device)
        together = world.add_up(torch.cat([self.loss.double(), wishes, table.flatten()]))
        self.loss = together[:terms]
        self.wishes.put(together[terms : terms + 2])
        self.norms.apply(together[terms + 2 :].view(pieces, self.norms.size))


class _Wishes:
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

    def put(self, wishes: Tensor) -> None:
        if self._event is not None:
            self._event.synchronize()
        self._arrived, self._next = self._next, wishes.to("cpu", non_blocking=True)
        if wishes.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        """[stop, save]"""
        if self.run.world.size == 1:
            return self.own()
        return [0.0, 0.0] if self._arrived is None else self._arrived.tolist()


class _Meter:
    """Adds up loss, pictures and seconds of the running epoch into `state.sums`, and tells of progress."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sums: dict[str, Any] = dict.fromkeys(("images", "seconds", "data_wait"), 0.0)
        self.sums |= {"loss": [], "divisor": []}  # a number for each term of the loss
        self.sums |= run.state.sums
        self.recent: list[tuple[Tensor | None, Tensor | list[float]]] = []
        """Losses and divisors of the steps since the last look, on the device."""
        self.lr = 0.0
        self._start = time.perf_counter()
        self._told = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time spent waiting for each counted."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.sums["data_wait"] += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def step(self, step: _Step, images: int) -> None:
        self.recent.append((step.loss, step.divisors))
        self.sums["images"] += images
        self.lr = step.lr
        now = time.perf_counter()
        if self.run.world.rank == 0 and now - self._told > PROGRESS_SECONDS:
            self._told = now
            self._tell(step.mean())

    def settle(self) -> None:
        """Bring `state.sums` up to date."""
        assert not self.recent
        now = time.perf_counter()
        self.sums["seconds"] += now - self._start
        self._start = now
        self.run.state.sums = {**self.sums, "lr": self.lr}

    def look(self) -> str | None:
        """Add up the losses since the last look; waits for the device. Returns what is wrong with them, or None."""
        recent, self.recent = self.recent, []
        for index, pair in enumerate(recent):
            losses, divisors = map(_numbers, pair)
            if not all(map(math.isfinite, losses)):
                step = self.run.state.step - len(recent) + index + 1
                return _diverged("training loss", sum(losses), self.run.state.epoch + 1, step, self.lr)
            for name, values in (("loss", losses), ("divisor", divisors)):
                before = self.sums[name] or [0.0] * len(values)
                self.sums[name] = [old + new for old, new in zip(before, values, strict=True)]
        return None

    def _tell(self, loss: float) -> None:
        run, state, sums = self.run, self.run.state, self.sums
        seconds = sums["seconds"] + time.perf_counter() - self._start
        rate = sums["images"] / seconds
        done = state.epoch + sums["images"] / run.rows
        best = state.history[-1] if state.history else None
        name = f"val/{run.task.metric}"
        run.reporter.tell(
            {
                "kind": "step",
                "epoch": state.epoch + 1,
                "epochs": run.recipe.epochs,
                "step": state.step,
                "steps": run.steps,
                "loss": loss,
                "score": None if best is None else f"{run.task.metric} {best[name]:.4f}",
                "images_per_second": rate,
                "data_wait_share": sums["data_wait"] / seconds,
                "seconds_left": (run.recipe.epochs - done) * run.rows / rate,
            }
        )


def _look_after(run: Run, meter: _Meter, step: _Step) -> Summary | None:
    """Between two steps: is the loss finite, was the run asked to stop, is a checkpoint due?"""
    stop, save = step.wishes.read()
    end = run.state.step == run.steps
    due = run.state.step % FINITE_EVERY == 0 or end or stop or save
    if due and (trouble := meter.look()):
        return Summary("failed", trouble)
    if (stop or save) and not end:
        meter.settle()
        _save(run)
        if stop:
            return Summary("interrupted", f"interrupted in epoch {run.state.epoch + 1}, step {run.state.step}")
    return None


def _finish_epoch(run: Run) -> Summary | None:
    """Evaluate, tell the history's line, save."""
    state, sums = run.state, run.state.sums
    start = time.perf_counter()
    loss, counts, ms_per_image = evaluate(run, "val")
    evaluate_seconds = time.perf_counter() - start
    if not math.isfinite(loss):
        return Summary("failed", _diverged("validation loss", loss, state.epoch + 1, state.step, sums["lr"]))
    scores = {f"val/{k}": v for k, v in run.task.scores(counts).items() if isinstance(v, float)}
    line: Line = {
        "epoch": state.epoch + 1,
        "step": state.total_steps,
        "seconds": sums["seconds"],
        "images_per_second": sums["images"] / sums["seconds"],
        "data_wait_share": sums["data_wait"] / sums["seconds"],
        "lr": sums["lr"],
        "evaluate_ms_per_image": ms_per_image,
        "train/loss": _mean_loss(sums["loss"], sums["divisor"]),
        "val/loss": loss,
        **scores,
        **{f"memory/{k}_bytes": v for k, v in parallel.peak_memory(run.world.device).items() if v is not None},
    }
    value = line[f"val/{run.task.metric}"]
    better = state.best is None or value > state.best["value"]
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
    pictures = _show_again(run) if due else None
    run.reporter.tell({"kind": "epoch", "line": line, "better": better, "counts": counts, "pictures": pictures})
    (asked,) = run.world.agree(run.reporter.stopping())  # whoever was told of the epoch may ask now
    stop = asked and state.epoch < run.recipe.epochs
    if stop and not save:
        _save(run)
    return Summary("interrupted", f"interrupted after epoch {state.epoch}") if stop else None


def _show_again(run: Run) -> list[dict[str, Any]] | None:
    """The same pictures every time. Every rank calls this."""
    if not (run.task.shown and (run.world.rank == 0 or run.world.sharded)):
        return None
    run.last_pictures = time.monotonic()
    return show(run, "val", _fixed_rows(run, "val"))


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


def _diverged(what: str, value: float, epoch: int, step: int, lr: float) -> str:
    return (
        f"the {what} is {value} in epoch {epoch}, step {step}, at learning rate {lr:.4g}; the last good checkpoint "
        "is kept. Try a smaller --lr, --clip-norm 1, or --warmup-epochs 1, under a new --run"
    )


# Small parts -------------------------------------------------------------------------------------------------


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter], *, fused: bool = True) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": fused}
    if recipe.optimizer == "sgd":
        return _plain(torch.optim.SGD)(parameters, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return _plain(kind)(parameters, betas=(recipe.momentum, 0.999), **common)


@functools.cache
def _plain(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """An optimizer without the decorators that are for compiled steps. They import torch._dynamo: 1.2 s and 146 MiB
    in every process that trains alone, such as each that runs trials."""
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def _divisors(task_: task.Task, targets: Tensor) -> Tensor:
    """What the losses of a micro-batch are divided by, float64 (terms,)."""
    weight = task_.weight(targets)
    return torch.tensor([float(len(targets))], dtype=torch.float64, device=targets.device) if weight is None else weight


def _inverse(divisors: Tensor | list[float], times: int) -> Tensor:
    """times / divisor; 0 where there is nothing to divide: a batch of ignored pixels moves nothing."""
    if not isinstance(divisors, Tensor):
        return torch.tensor([times / divisor for divisor in divisors], dtype=torch.float64)
    return torch.where(divisors > 0, times / divisors.clamp(min=1e-300), 0.0)


def _numbers(values: Tensor | list[float] | None) -> list[float]:
    return values.tolist() if isinstance(values, Tensor) else values or []


def _mean_loss(sums: Sequence[float], divisors: Sequence[float]) -> float:
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


@contextlib.contextmanager
def _evaluating(state: TrainState) -> Iterator[None]:
    """The model in evaluation mode, with the moving average of its weights where there is one."""
    before = None
    if state.ema is not None:
        before = {name: value.detach().clone() for name, value in state.model.state_dict().items()}
        state.model.load_state_dict(state.ema)
    state.model.eval()
    with torch.inference_mode():
        yield
    if before is not None:
        state.model.load_state_dict(before)


class _profiler:
    """Traces a few steps for TensorBoard, where asked; gives a function to be called after every step."""

    def __init__(self, run: Run, on: bool) -> None:
        self.run, self.on = run, on

    def __enter__(self) -> Callable[[], None]:
        if not self.on:
            return lambda: None
        schedule = torch.profiler.schedule(wait=1, warmup=2, active=min(5, max(1, self.run.steps - 3)), repeat=1)
        self.profile = torch.profiler.profile(schedule=schedule, on_trace_ready=self._hand_over)
        self.profile.__enter__()
        return self.profile.step

    def __exit__(self, *error: Any) -> None:
        if self.on:
            self.profile.__exit__(*error)

    def _hand_over(self, profile: Any) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(path))
            data = path.read_bytes()
        self.run.reporter.tell({"kind": "file", "name": "tensorboard/rank0.pt.trace.json", "data": data})
