"""Peak memory of a training step, predicted before it is made: the loop's own step, on tensors without numbers.

    predict()               bytes at the peak of a step on one worker's device
    curve()                 the same for every micro-batch, from two traces; cached
    largest_micro_batch()   the largest that fits into so many bytes
    roughly()               more than `predict` would say, in a fraction of its time
    context_bytes()         what a GPU takes for itself, where there is one to measure

Steps run under torch's FakeTensorMode on the CPU: tensors have shape, type and storage, and no memory. A dispatch mode
adds up the storages that are alive after every operation. Counted is what torch's allocator would hand out: weights,
buffers, gradients, the optimizer's states, the moving average, activations, the batch. Not counted are the device's
context, the allocator's rounding and fragmentation, and what kernels borrow for themselves, but for the copies of
their weights that convolutions make on the way back (`_borrowed`). Each rank of DDP needs as much, and its gradients
live from step to step, as they do here where a step has several micro-batches. With activation checkpointing the trace
makes activations again too. Under FSDP2 a worker holds its share of weights, gradients, states and averages, and the
largest block GATHERED times as a whole: an upper estimate, 10 to 40 % above what two and three workers took on a CPU
(which differs by 10 % from run to run, as ranks wait for each other).
"""

from __future__ import annotations

import functools
import json
import math
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.data import sampler as order
from trainers.data.augment import COUNT, Column
from trainers.data.prepare import Batch
from trainers.data.sampler import Pass
from trainers.recipe import Recipe
from trainers.training import distributed as parallel
from trainers.training import loop
from trainers.training.checkpoint import TrainState
from trainers.training.distributed import BatchNormStatistics, World

TRACED = (2, 4)
"""Micro-batches that are traced. Not 1: a network with BatchNorm after global pooling takes no single image."""
MOST = 2**24
"""Pictures of the largest batch that is looked for."""
GATHERED = 5
"""Copies of FSDP2's largest block: weights, those that arrive, those fetched ahead, gradient, and that as it leaves."""
Line = tuple[float, float]
"""Bytes of no picture, and bytes of each picture."""


@dataclass(frozen=True)
class Curve:
    """The peak of a step for every micro-batch.

    What is alive after each operation is affine in the number of pictures, so the peak is the largest of some lines:
    of few pictures, where the optimizer steps; of many, at the end of the forward pass.
    """

    alone: tuple[Line, ...]
    """Of steps of one micro-batch."""
    several: tuple[Line, ...]
    """Of steps of two: the gradients of the first live through the forward pass of the second."""
    waiting: int
    """Bytes of each picture of further micro-batches, where a step's targets are needed before it begins, else 0."""
    batch_norm: bool
    """Whether the micro-batch changes what is learned: BatchNorm's statistics are those of a micro-batch."""

    def __call__(self, micro_batch_size: int, micro_batches: int = 1, workers: int = 1) -> int:
        """Bytes at the peak of a step in which a worker has so many micro-batches of so many pictures."""
        lines = self.alone if micro_batches == workers == 1 else self.several  # DDP keeps gradients from step to step
        peak = max(base + per_image * micro_batch_size for base, per_image in lines)
        return round(peak) + max(0, micro_batches - 2) * self.waiting * micro_batch_size

    def largest_batch(self, limit: int, workers: int = 1) -> int:
        """Most pictures of a step in which each of so many workers has one micro-batch, and whose peak is at most
        `limit` bytes on each; 0: not even one picture each."""
        low, high = 0, 1
        while high < MOST and self(high, 1, workers) <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self(middle, 1, workers) <= limit else (low, middle)
        return low * workers


def predict(
    recipe: Recipe,
    meta: Mapping[str, Any],
    micro_batch_size: int | None = None,
    *,
    workers: int = 1,
    sharded: bool = False,
    recompute: bool = False,
) -> int:
    """Bytes at the peak of the second optimizer step on the device of each of so many workers.

    Parameters: `meta`, what `prepare` has found (channels, classes; rows, where no step has more); `micro_batch_size`,
    by default the recipe's, else its batch_size; `sharded`, by FSDP2; `recompute`, activation checkpointing.
    `precision="auto"` is what this machine would settle it to.
    Raises ValueError where the model cannot be built or has nothing to recompute; Untraceable, a ValueError, where it
    looks at numbers.
    """
    micro = micro_batch_size or recipe.micro_batch_size or recipe.batch_size
    found = curve(recipe, meta, workers=workers, sharded=sharded, recompute=recompute)
    return _peak(found, recipe, meta, micro, workers)


def largest_micro_batch(
    recipe: Recipe,
    meta: Mapping[str, Any],
    limit_bytes: int,
    *,
    workers: int = 1,
    sharded: bool = False,
    recompute: bool = False,
) -> int | None:
    """The largest divisor of the batch size, at most the recipe's own micro-batch, whose `predict` is within the
    limit; None: not even 1 is. Raises ValueError as `predict` does."""
    found = curve(recipe, meta, workers=workers, sharded=sharded, recompute=recompute)
    batch = recipe.batch_size
    small = [d for d in range(1, math.isqrt(batch) + 1) if batch % d == 0]
    divisors = sorted({*small, *(batch // d for d in small)}, reverse=True)
    most = recipe.micro_batch_size or batch
    fitting = (d for d in divisors if d <= most and _peak(found, recipe, meta, d, workers) <= limit_bytes)
    return next(fitting, None)


def _peak(found: Curve, recipe: Recipe, meta: Mapping[str, Any], micro_batch_size: int, workers: int) -> int:
    micro, count = _dealt(recipe, meta, micro_batch_size)
    return found(micro, _ceil(count, workers), workers)


def curve(
    recipe: Recipe, meta: Mapping[str, Any], *, workers: int = 1, sharded: bool = False, recompute: bool = False
) -> Curve:
    """The peaks of a recipe, whatever its batch size: two traces, about a second each at the first call. Parameters and
    errors are those of `predict`; `workers` count where the model is sharded."""
    return _curve(*_key(recipe, meta), workers if sharded else 1, recompute)


def roughly(recipe: Recipe, meta: Mapping[str, Any]) -> int:
    """More bytes than `predict` would say, up to several times as many, from one forward pass of two pictures.

    Raises ValueError as `predict` does.
    """
    fixed, per_image = _rough(*_key(recipe, meta))
    micro, count = _dealt(recipe, meta, recipe.micro_batch_size or recipe.batch_size)
    return fixed + per_image * micro + max(0, count - 1) * _picture_bytes(recipe, meta["channels"]) * micro


@functools.cache
def context_bytes() -> int | None:
    """What the context of this process's GPU takes, beside all that torch hands out; None without a GPU.

    Measured as total less free, less torch's own: what other processes hold there is counted too.
    """
    if not torch.cuda.is_available():
        return None
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


# Steps of a batch ----------------------------------------------------------------------------------------------


def _dealt(recipe: Recipe, meta: Mapping[str, Any], micro_batch_size: int) -> tuple[int, int]:
    """Pictures of the largest micro-batch, and how many of them the largest step has."""
    largest = recipe.batch_size
    if rows := meta.get("rows", {}).get("train"):  # epochs are cut into steps, and steps into micro-batches, evenly
        largest = _ceil(rows, _ceil(rows, largest))
    count = _ceil(largest, micro_batch_size)
    return _ceil(largest, count), count


def _ceil(of: int, by: int) -> int:
    return -(-of // by)


def _picture_bytes(recipe: Recipe, channels: int) -> int:
    """A picture and its target as they wait for their turn: floats, and int64."""
    pixels = recipe.image_size[0] * recipe.image_size[1]
    numbers = 8 if recipe.precision == "fp64" else 4
    return pixels * channels * numbers + 8 * (pixels if _has_masks(recipe) else 1)


def _has_masks(recipe: Recipe) -> bool:
    return recipe.task != "classify"


def _key(recipe: Recipe, meta: Mapping[str, Any]) -> tuple[str, int, int]:
    """What memory depends on, but for the batch: recipes that differ in a learning rate share a trace."""
    plain = recipe.replace(
        batch_size=1,
        micro_batch_size=1,
        epochs=1,
        lr=1.0,
        schedule="constant",
        warmup_epochs=0.0,
        patience=None,
        init_from=None,
        seed=0,
        precision=parallel.settle_precision(recipe.precision, torch.cuda.is_available()),
    )
    return json.dumps(plain.to_json(), sort_keys=True), meta["channels"], len(meta["classes"])


# Tracing -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _curve(recipe_json: str, channels: int, classes: int, parts: int, recompute: bool) -> Curve:
    recipe = Recipe.from_json(json.loads(recipe_json))
    few, many = (_Trace(recipe, channels, classes, images, parts, recompute) for images in TRACED)
    alone, several = (_envelope(few.step(count), many.step(count)) for count in (1, 2))
    waiting = _picture_bytes(recipe, channels) if few.waits else 0
    return Curve(alone, several, waiting, any(isinstance(part, _BatchNorm) for part in few.model.modules()))


@functools.lru_cache(maxsize=256)
def _rough(recipe_json: str, channels: int, classes: int) -> tuple[int, int]:
    """Bytes of no picture, and of each: all that a forward pass makes, twice, and 8 times the weights, for gradients,
    two states, a moving average and copies."""
    recipe = Recipe.from_json(json.loads(recipe_json))
    trace = _Trace(recipe, channels, classes, TRACED[0])
    weights = trace.ledger.given
    trace.forward()
    return 8 * weights, 2 * (trace.ledger.given - weights) // TRACED[0]


def _envelope(few: list[int], many: list[int]) -> tuple[Line, ...]:
    """The lines through what was alive after each operation, without those that others lie above for any batch."""
    if len(few) != len(many):  # a model that computes otherwise for other batches: its peaks alone can be told
        few, many = [max(few)], [max(many)]
    first, second = TRACED
    slopes = [(high - low) / (second - first) for low, high in zip(few, many, strict=True)]
    kept: list[Line] = []
    for slope, base in sorted({(s, low - s * first) for s, low in zip(slopes, few, strict=True)}, reverse=True):
        if not kept or base > kept[-1][0]:
            kept.append((base, slope))
    return tuple(kept)


class _Trace:
    """A run whose tensors have no memory. Raises ValueError where the model does not allow it."""

    def __init__(
        self, recipe: Recipe, channels: int, classes: int, images: int, parts: int = 1, recompute: bool = False
    ) -> None:
        recipe = recipe.replace(batch_size=2 * images, micro_batch_size=images)
        meta = _meta(recipe, channels, classes)
        assert recipe.precision != "auto"
        self.world = World(0, 1, torch.device("cpu"), recipe.precision)
        self.fake, self.ledger = FakeTensorMode(allow_non_fake_inputs=True), _Ledger()
        with torch.random.fork_rng(devices=[]), _Blaming(recipe.model):
            with torch.device("meta"):
                model = loop.build_model(loop.without_weights(recipe), meta)
                self.model = model.to(dtype=self.world.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
            with self.fake, self.ledger:
                state = _state(recipe, self.model)
        parallel.set_training(self.model, recipe.frozen)
        if recompute:
            parallel.recompute_activations(self.model)
        self.parts = parts
        self.run = loop.Run(recipe=recipe, state=state, data=_NoData(meta), world=self.world, model=self.model)
        self.run.preprocess = _Preprocess(recipe, meta, self.world)
        self.batch = _batch(recipe, channels, images)
        self.waits = False
        """Whether a step's micro-batches are all on the device before its first forward pass."""
        self._begun = False

    def forward(self) -> None:
        """A forward pass, and the loss."""
        with (
            torch.random.fork_rng(devices=[]),
            _Blaming(self.run.recipe.model),
            self.fake,
            self.ledger,
            torch.no_grad(),
        ):
            images, targets = self.run.preprocess(self.batch, 0)
            with self.world.autocast():
                self.run.task.loss(self.model(images), targets)

    def step(self, micro_batches: int) -> list[int]:
        """Bytes alive after each operation of an optimizer step that is not the first."""
        with torch.random.fork_rng(devices=[]), _Blaming(self.run.recipe.model), self.fake, self.ledger:
            step = loop._Step(self.run, BatchNormStatistics(self.model, self.world))
            if not self._begun:  # makes the optimizer's states
                self._make(step, 1)
                self._begun = True
            start = len(self.ledger.history)
            if self.parts > 1:
                self.ledger.elsewhere = _Elsewhere(self.run.state, self.parts)
            self._make(step, micro_batches)
            self.waits = isinstance(step.divisors, Tensor)
        return self.ledger.history[start:]

    def _make(self, step: Any, micro_batches: int) -> None:
        last = micro_batches - 1
        passes = [self.batch.of._replace(micro_batch=m, last=m == last) for m in range(micro_batches)]
        step.accumulate([self.batch._replace(of=of) for of in passes])
        step.update()


_WANTS_NUMBERS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


class Untraceable(ValueError):
    """What a model does depends on its numbers: it may train well, and what it takes shows then."""


class _Blaming:
    """What a model does wrong, as a ValueError."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, ValueError):
            return
        frames = traceback.extract_tb(error.__traceback__)
        frame = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__][-1]
        raise (Untraceable if isinstance(error, _WANTS_NUMBERS) else ValueError)(
            f"the memory of the model {self.model} cannot be predicted: on tensors without numbers it fails by "
            f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
        ) from None


class _Ledger(TorchDispatchMode):
    """Adds up the bytes of all storages that are alive; views share one."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.given = 0
        """Bytes of all storages so far, alive or not."""
        self.elsewhere: Callable[[], int] = lambda: 0
        """Bytes of what is alive that lie on other workers."""
        self.history: list[int] = []
        """Bytes on this worker after each operation that took memory."""
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = self.given
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        if self.given > before:
            self.history.append(self.live - self.elsewhere() + _borrowed(func, args))
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def free(_: Any) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, free)
        self.live += size
        self.given += size


class _Elsewhere:
    """Bytes that FSDP2 leaves to other workers, less what it gathers of them for the block that computes."""

    def __init__(self, state: TrainState, parts: int) -> None:
        self.sizes = {parameter: parameter.nbytes for parameter in state.model.parameters()}
        states = tree_leaves(list(state.optimizer.state.values()))
        kept = sum(tensor.nbytes for tensor in states if isinstance(tensor, Tensor) and tensor.ndim)
        average = sum(self.sizes.values()) if state.ema is not None else 0
        self.always = sum(self.sizes.values()) + kept + average
        self.share = 1 - 1 / parts
        blocks = parallel.blocks(state.model)
        rest = sum(self.sizes.values()) - sum(self._of(block) for block in blocks)
        self.gathered = GATHERED * max(rest, *(self._of(block) for block in blocks), 0)

    def __call__(self) -> int:
        gradients = sum(size for parameter, size in self.sizes.items() if parameter.grad is not None)
        return round(self.share * (self.always + gradients)) - self.gathered

    def _of(self, block: nn.Module) -> int:
        return sum(self.sizes[parameter] for parameter in block.parameters())


def _borrowed(func: Any, args: Any) -> int:
    """Bytes of the two copies of a weight's gradient that the CPU's convolutions make on the way back, besides it: one
    in oneDNN's layout, one for the weight's. cuDNN borrows a workspace there, which nobody can tell without trying."""
    return 2 * args[2].untyped_storage().nbytes() if func is torch.ops.aten.convolution_backward.default else 0


# What a trace needs --------------------------------------------------------------------------------------------


class _Preprocess(loop.Preprocess):
    """The loop's, for pictures without memory."""

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        dtype = {"uint8": torch.uint8, "int64": torch.int64}[array.dtype.name]
        return torch.empty(array.shape, dtype=dtype, device=self.world.device)


@dataclass
class _NoData:
    meta: Mapping[str, Any]

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        raise AssertionError("a step that is traced reads no data")


def _meta(recipe: Recipe, channels: int, classes: int) -> dict[str, Any]:
    """What a data set would tell; its numbers decide nothing here."""
    return {
        "channels": channels,
        "classes": [str(number) for number in range(classes)],
        "class_counts": {"train": [1] * classes},
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
        "rows": {"train": recipe.batch_size},
    }


def _state(recipe: Recipe, model: nn.Module) -> TrainState:
    """As loop.create_state makes it, of a model on the meta device. (That one's `.to` cannot change fake weights.)"""
    model.to_empty(device="cpu")
    parallel.freeze(model, recipe.frozen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ema = None if recipe.ema is None else {k: v.detach().clone() for k, v in model.state_dict().items()}
    return TrainState(model=model, optimizer=loop._optimizer(recipe, trained), ema=ema)


def _batch(recipe: Recipe, channels: int, images: int) -> Batch:
    """Pictures without memory, of rows that are flipped where the recipe flips: an untouched batch takes less."""
    shape = (images, *recipe.storage_size)
    pictures = np.broadcast_to(np.zeros((), np.uint8), (*shape, channels))
    masks = _has_masks(recipe)
    targets = np.broadcast_to(np.zeros((), np.uint8 if masks else np.int64), shape if masks else shape[:1])
    draws = order.uniforms(recipe.seed, 0, np.arange(256), COUNT)
    ids = [int(draws[:, column].argmin()) for column in (Column.FLIP_X, Column.FLIP_Y)]
    return Batch(Pass(0, 0, np.resize(ids, images).astype(np.int64), 1.0, True), pictures, targets)
