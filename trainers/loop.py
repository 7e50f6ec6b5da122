"""The training loop: plain PyTorch. No Ray, no files.

for every epoch that is left:
    for every step:
        for every micro-batch of this rank:
            pictures to the device, augmented and normalised
            default generator seeded; forward; sum of losses; backward
        one small all-reduce: loss, divisor, BatchNorm statistics, rank 0's wishes (stop, save)
        gradient / divisor; clip; learning rate; optimizer; moving average
    evaluate: counts added up over the ranks, then turned into scores
    a line of history; a checkpoint; patience
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainers import augment, order, parallel, task
from trainers.checkpoint import Checkpoints, Line, TrainState
from trainers.data import Batch, Data, ahead
from trainers.order import Pass
from trainers.parallel import BatchNormStatistics, World
from trainers.recipe import SCHEDULE_ARGS, Recipe, load

Status = Literal["finished", "stopped_early", "interrupted", "failed", "out_of_memory"]
Counts = dict[str, npt.NDArray[np.int64]]
FINITE_EVERY = 20
"""Steps between looks at the loss: each look waits for the device."""
PROGRESS_SECONDS = 0.5
SAVE_SECONDS = 1.0
"""An epoch that ends sooner after a checkpoint writes none, unless it is the best or the last."""


class Summary(NamedTuple):
    """How training ended."""

    status: Status
    message: str


@dataclass(kw_only=True)
class Reporter:
    """What the loop tells, and asks, the world outside. Ranks other than 0 tell nothing."""

    tell: Callable[[dict[str, Any]], None] = lambda event: None
    """Events of kind "step" (progress), "epoch" (a line of history, counts) and "file" (a profiler trace)."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the run was asked to stop; asked once a step, of rank 0."""


class Preprocess:
    """Stored pictures to what the model takes, on the device."""

    def __init__(self, recipe: Recipe, meta: Mapping[str, Any], world: World) -> None:
        """Parameters: `meta` with the training split's `mean` and `std`, per channel, of values in [0, 1]."""
        self.recipe, self.world = recipe, world
        mean, std = (torch.tensor(meta[name], dtype=torch.float64).view(1, -1, 1, 1) for name in ("mean", "std"))
        self.shift, self.scale, self.scale_of_bytes = (
            tensor.to(world.device, world.dtype) for tensor in (-mean / std, 1 / std, 1 / std / 255)
        )

    def __call__(
        self, pictures: npt.NDArray[np.uint8], ids: npt.NDArray[np.int64] | None = None, epoch: int | None = None
    ) -> Tensor:
        """uint8 (N, H, W, C) -> normalised (N, C, *image_size). With `ids` (N,) and `epoch`: augmented."""
        recipe, world = self.recipe, self.world
        pixels = torch.from_numpy(pictures).to(world.device, non_blocking=True).permute(0, 3, 1, 2)
        images = pixels.to(world.dtype)
        if ids is not None and epoch is not None and recipe.augment:
            images, _ = augment.augment(
                images.mul_(1 / 255), recipe.augment, size=recipe.image_size, seed=recipe.seed, epoch=epoch, ids=ids
            )
            return torch.addcmul(self.shift, images, self.scale)
        if recipe.storage_size != recipe.image_size:
            images, _ = augment.center(images, recipe.image_size)
        return torch.addcmul(self.shift, images, self.scale_of_bytes)

    def targets(self, batch: Batch) -> Tensor:
        """int64 (N,)"""
        return torch.from_numpy(batch.targets).to(self.world.device, non_blocking=True)


@dataclass(kw_only=True)
class Run:
    """All that a step needs."""

    recipe: Recipe
    state: TrainState
    data: Data
    world: World
    task: task.Task
    model: nn.Module
    """The model as it is called in training: `state.model`, wrapped."""
    reporter: Reporter
    checkpoints: Checkpoints | None
    checkpoint_seconds: float = math.inf
    last_save: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
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
    facts = {"image_size": recipe.image_size, "channels": meta["channels"], "classes": len(meta["classes"])}
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
    weights = task.weigh_classes(recipe.class_weights, meta["class_counts"]["train"])
    return task.make(recipe.task, recipe.task_args, len(meta["classes"]), weights)


def create_state(recipe: Recipe, meta: Mapping[str, Any], world: World, *, fresh: bool = True) -> TrainState:
    """The state of a run before its first step, the same on every rank; not `fresh`: about to be restored."""
    if not fresh:  # downloads nothing
        recipe = without_weights(recipe)
    model = build_model(recipe, meta).to(world.device, world.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parallel.freeze(model, recipe.frozen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ema = None if recipe.ema is None else {k: v.detach().clone() for k, v in model.state_dict().items()}
    return TrainState(model=model, optimizer=_optimizer(recipe, trained), ema=ema)


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
        task=make_task(recipe, data.meta),
        model=parallel.wrap(state.model, world, compile),
        reporter=reporter or Reporter(),
        checkpoints=checkpoints if world.rank == 0 else None,
        checkpoint_seconds=checkpoint_seconds,
    )
    summary = _stopped_early(run)
    while summary is None and state.epoch < recipe.epochs:
        with _profiler(run, profile and world.rank == 0 and state.epoch == 0) as tick:
            summary = _train_epoch(run, tick) or _finish_epoch(run) or _stopped_early(run)
    if run.checkpoints is not None:
        run.checkpoints.wait()
    return summary or Summary("finished", f"finished {recipe.epochs} epochs")


def evaluate(run: Run, split: str) -> tuple[float, Counts]:
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
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    counts: dict[str, Tensor] = {}
    kept = _swap_in(state.model, state.ema)
    state.model.eval()
    with torch.inference_mode():
        for batch in run.batches(split, passes):
            images, targets = run.preprocess(batch.images), run.preprocess.targets(batch)
            with world.autocast():
                output = state.model(images)
                loss = run.task.loss(output, targets)
            new = run.task.counts(output, targets)
            if not counts:
                counts = {name: torch.zeros_like(count) for name, count in new.items()}
            if batch.of.weight:
                weight = run.task.weight(targets)
                sums += _pair(loss, float(len(targets)) if weight is None else weight)
                for name, count in new.items():
                    counts[name] += count
    _swap_in(state.model, kept)
    for tensor in (sums, *counts.values()):
        world.add_up(tensor)
    total, divisor = sums.tolist()
    return total / divisor, {name: count.cpu().numpy() for name, count in counts.items()}


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
        for batch in meter.timed(run.batches("train", passes)):
            step.accumulate(batch)
            if not batch.of.last:
                continue
            step.update()
            tick()
            meter.step(step, run.sizes[batch.of.step])
            if summary := _look_after(run, meter, step):
                return summary
    meter.settle()
    return None


class _Step:
    """One optimizer step: micro-batches are accumulated, then applied."""

    def __init__(self, run: Run, norms: BatchNormStatistics) -> None:
        self.run, self.norms = run, norms
        self.parameters = [p for p in run.state.model.parameters() if p.requires_grad]
        self.loss: Tensor | float = 0.0
        """Sum of the losses; after `update`, that of the whole batch."""
        self.divisor: Tensor | float = 0.0
        """What it is divided by: a number where that is the number of pictures."""
        self.statistics: dict[int, Tensor] = {}
        self.lr = 0.0
        self.wishes = _Wishes(run)
        self.weighted = False
        self._fresh = True

    def accumulate(self, batch: Batch) -> None:
        """Forward and backward of one micro-batch: gradients of the sum of losses, over the pictures of the step,
        are added up."""
        run, of = self.run, batch.of
        images = run.preprocess(batch.images, of.ids, run.state.epoch)
        targets = run.preprocess.targets(batch)
        if self._fresh:
            self.loss, self.divisor, self._fresh = 0.0, 0.0, False
        seed = order.torch_seed(run.recipe.seed, run.state.total_steps, of.micro_batch)
        parallel.seed_generators(seed, run.world.device)
        with parallel.accumulating(run.model, of.last):
            with run.world.autocast():
                loss = run.task.loss(run.model(images), targets)
            # DDP takes the mean over the workers, where the sum is wanted. A surplus pass counts 0.
            factor = of.weight * run.world.size / run.sizes[of.step]
            loss.backward(torch.full((), factor, dtype=loss.dtype, device=loss.device))
        weight = run.task.weight(targets)
        self.weighted = weight is not None
        if of.weight:
            self.loss = self.loss + loss.detach()
            self.divisor = self.divisor + (float(len(targets)) if weight is None else weight)
            if self.norms.size:
                self.statistics[of.micro_batch] = self.norms.of_micro_batch()

    def update(self) -> None:
        """Bring the ranks together, then take the step."""
        run, state = self.run, self.run.state
        if run.world.size > 1:
            self._exchange()
        if isinstance(self.divisor, Tensor):
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            torch._foreach_mul_(gradients, (run.sizes[state.step] / self.divisor).to(gradients[0].dtype))
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
        self.statistics, self._fresh = {}, True

    def _exchange(self) -> None:
        """The step's one small all-reduce: sums, rank 0's wishes, statistics of each micro-batch in its place."""
        recipe, state, world = self.run.recipe, self.run.state, self.run.world
        assert recipe.micro_batch_size is not None
        pieces = len(order.cut(self.run.sizes[state.step], recipe.micro_batch_size))
        table = torch.zeros(pieces, self.norms.size, dtype=torch.float64, device=world.device)
        for micro_batch, row in self.statistics.items():
            table[micro_batch] = row
        wishes = torch.tensor(self.wishes.own(), dtype=torch.float64).to(world.device)
        together = world.add_up(torch.cat([_pair(self.loss, self.divisor, world.device), wishes, table.flatten()]))
        self.loss = together[0]
        self.divisor = together[1] if self.weighted else float(self.run.sizes[state.step])
        self.wishes.put(together[2:4])
        self.norms.apply(together[4:].view(pieces, self.norms.size))


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
        due = time.monotonic() - self.run.last_save > self.run.checkpoint_seconds
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
        self.sums = dict.fromkeys(("loss", "divisor", "images", "seconds", "data_wait"), 0.0)
        self.sums |= run.state.sums
        self.recent: list[tuple[Tensor | float, Tensor | float]] = []
        """Loss and divisor of the steps since the last look, on the device."""
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
        self.recent.append((step.loss, step.divisor))
        self.sums["images"] += images
        self.lr = step.lr
        now = time.perf_counter()
        if self.run.world.rank == 0 and now - self._told > PROGRESS_SECONDS:
            self._told = now
            self._tell(float(step.loss) / float(step.divisor))

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
            loss, divisor = map(float, pair)
            if not math.isfinite(loss):
                step = self.run.state.step - len(recent) + index + 1
                return _diverged("training loss", loss, self.run.state.epoch + 1, step, self.lr)
            self.sums["loss"] += loss
            self.sums["divisor"] += divisor
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
    loss, counts = evaluate(run, "val")
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
        "train/loss": sums["loss"] / sums["divisor"],
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
    run.reporter.tell({"kind": "epoch", "line": line, "better": better, "counts": counts})
    wish = torch.tensor(float(run.world.rank == 0 and run.reporter.stopping()), device=run.world.device)
    stop = bool(run.world.add_up(wish)) and state.epoch < run.recipe.epochs
    # Epochs of milliseconds are not all worth a file; the best and the last are.
    if better or stop or state.epoch == run.recipe.epochs or time.monotonic() - run.last_save > SAVE_SECONDS:
        _save(run)
    return Summary("interrupted", f"interrupted after epoch {state.epoch}") if stop else None


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
    """Write a checkpoint, on rank 0; the time that training waits for it is counted."""
    start = time.perf_counter()
    if run.checkpoints is not None:
        run.checkpoints.save(run.state)
    spent = run.state.seconds.get("checkpoint", 0.0) + time.perf_counter() - start
    run.state.seconds["checkpoint"] = spent
    run.last_save = time.monotonic()


def _diverged(what: str, value: float, epoch: int, step: int, lr: float) -> str:
    return (
        f"the {what} is {value} in epoch {epoch}, step {step}, at learning rate {lr:.4g}; the last good checkpoint "
        "is kept. Try a smaller --lr, --clip-norm 1, or --warmup-epochs 1, under a new --run"
    )


# Small parts -------------------------------------------------------------------------------------------------


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, betas=(recipe.momentum, 0.999), **common)


def _pair(loss: Tensor | float, divisor: Tensor | float, device: torch.device | None = None) -> Tensor:
    """Both in one tensor, float64 (2,), that can be added up. A rank without a micro-batch has two numbers."""
    where = loss.device if isinstance(loss, Tensor) else device
    return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=where) for value in (loss, divisor)])


def _update_average(state: TrainState, decay: float | None) -> None:
    if state.ema is None:
        return
    assert decay is not None
    for name, value in state.model.state_dict().items():
        if value.is_floating_point():
            state.ema[name].lerp_(value, 1 - decay)
        else:
            state.ema[name].copy_(value)


def _swap_in(model: nn.Module, weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Load `weights`, where given; returns what was there before."""
    if weights is None:
        return None
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return before


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
