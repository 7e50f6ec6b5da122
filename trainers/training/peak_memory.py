"""Peak memory of a training step, predicted before it is made: the loop's own step, on tensors without numbers.

    predict()               bytes at the peak of a step on one worker's device
    curve()                 the same for every micro-batch, from two traces; cached
    largest_micro_batch()   the largest that fits into so many bytes
    why_not_alone()         why a model cannot be trained on one picture at a time
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch

from trainers.augmentations import mosaic
from trainers.data import targets
from trainers.data.sampler import fewest_at_once
from trainers.data.targets import Most
from trainers.instances import parts
from trainers.messages import Facts, Meta
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts
from trainers.training import build, device
from trainers.training.memory_trace import Trace
from trainers.training.torch_internals import BatchNorm

TRACED = (2, 4)
"""Micro-batches that are traced. Not 1: a network with BatchNorm after global pooling takes no single image."""
MOST = 2**24
"""Pictures of the largest batch that is looked for."""
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
        """The largest batch of which each worker has one micro-batch that fits.

        Args:
            limit: Bytes of each worker's device.
            workers: Their number.

        Returns:
            Pictures of all workers together; 0: not even one picture each fits.
        """
        low, high = 0, 1
        while high < MOST and self(high, 1, workers) <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self(middle, 1, workers) <= limit else (low, middle)
        return low * workers


def predict(
    recipe: Recipe,
    meta: Facts | DatasetFacts,
    micro_batch_size: int | None = None,
    *,
    workers: int = 1,
    sharded: bool = False,
    activation_checkpointing: bool = False,
) -> int:
    """Bytes at the peak of the second optimizer step on the device of each of so many workers.

    Args:
        recipe: Its precision "auto" is what this machine resolves it to.
        meta: What `prepare` has found: channels and classes; rows, where no step has more; most_objects.
        micro_batch_size: None: the recipe's, else its batch size.
        workers: Their number.
        sharded: Whether by FSDP2.
        activation_checkpointing: Whether activations are recomputed in the backward pass.

    Raises:
        ValueError: The model cannot be built, or has nothing to recompute.
        Untraceable: A ValueError: the model reads the values of its tensors.
    """
    micro = micro_batch_size or recipe.micro_batch_size or recipe.batch_size
    found = curve(recipe, meta, workers=workers, sharded=sharded, activation_checkpointing=activation_checkpointing)
    return _peak(found, recipe, meta, micro, workers)


def largest_micro_batch(
    recipe: Recipe,
    meta: Facts | DatasetFacts,
    limit_bytes: int,
    *,
    workers: int = 1,
    sharded: bool = False,
    activation_checkpointing: bool = False,
) -> int | None:
    """The largest micro-batch that fits.

    Args:
        recipe: See `predict`.
        meta: See `predict`.
        limit_bytes: Of a worker's device.
        workers: Their number.
        sharded: Whether by FSDP2.
        activation_checkpointing: Whether activations are recomputed in the backward pass.

    Returns:
        The largest divisor of the batch size, at most the recipe's own micro-batch, that the model can be trained
        with and whose `predict` is within the limit; None: there is none.

    Raises:
        ValueError: As `predict`.
    """
    found = curve(recipe, meta, workers=workers, sharded=sharded, activation_checkpointing=activation_checkpointing)
    batch = recipe.batch_size
    small = [d for d in range(1, math.isqrt(batch) + 1) if batch % d == 0]
    divisors = sorted({*small, *(batch // d for d in small)}, reverse=True)
    most = recipe.micro_batch_size or batch
    fitting = (d for d in divisors if d <= most and _peak(found, recipe, meta, d, workers) <= limit_bytes)
    return next((d for d in fitting if _fewest(recipe, meta, d) > 1 or not why_not_alone(recipe, meta)), None)


def why_not_alone(recipe: Recipe, meta: Facts | DatasetFacts) -> str:
    """Why the model cannot be trained on one picture where it can be on two, as by a BatchNorm that is left with one
    value of each channel. "": it can be, or that does not show without numbers.

    Args:
        recipe: See `predict`.
        meta: See `predict`.
    """
    return _why_not_alone(_key(recipe, meta))


def _peak(found: Curve, recipe: Recipe, meta: Facts | DatasetFacts, micro_batch_size: int, workers: int) -> int:
    micro, count = _split_batch(recipe, meta, micro_batch_size)
    return found(micro, _ceil(count, workers), workers)


def curve(
    recipe: Recipe,
    meta: Facts | DatasetFacts,
    *,
    workers: int = 1,
    sharded: bool = False,
    activation_checkpointing: bool = False,
) -> Curve:
    """The peaks of a recipe, whatever its batch size: two traces, about a second each at the first call.

    Args:
        recipe: See `predict`.
        meta: See `predict`.
        workers: Count where the model is sharded.
        sharded: Whether by FSDP2.
        activation_checkpointing: Whether activations are recomputed in the backward pass.

    Raises:
        ValueError: As `predict`.
    """
    return _curve(_key(recipe, meta), workers if sharded else 1, activation_checkpointing)


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


def _split_batch(recipe: Recipe, meta: Facts | DatasetFacts, micro_batch_size: int) -> tuple[int, int]:
    """Pictures of the largest micro-batch, and how many of them the largest step has."""
    largest = recipe.batch_size
    if rows := _training_rows(meta):  # epochs are cut into steps, and steps into micro-batches, evenly
        largest = _ceil(rows, _ceil(rows, largest))
    count = _ceil(largest, micro_batch_size)
    return _ceil(largest, count), count


def _training_rows(meta: Facts | DatasetFacts) -> int | None:
    """How many training pictures there are, where that is known: of prepared data."""
    rows: Mapping[str, int] = cast(Meta, meta).get("rows", {})
    return rows.get("train")


def _fewest(recipe: Recipe, meta: Facts | DatasetFacts, micro_batch_size: int) -> int:
    """Pictures of the smallest micro-batch of an epoch; where it is not known how many there are, of a step."""
    rows = _training_rows(meta) or recipe.batch_size
    return fewest_at_once(rows, recipe.batch_size, micro_batch_size)


def _ceil(of: int, by: int) -> int:
    return -(-of // by)


def _picture_bytes(recipe: Recipe, channels: int, classes: int, most: Most) -> int:
    """A picture and its target as they wait for their turn: floats, and int64 or float64."""
    pixels = recipe.image_size[0] * recipe.image_size[1]
    numbers = 8 if recipe.precision == "fp64" else 4
    most = most._replace(objects=mosaic.side(recipe.augment) ** 2 * most.objects)
    target, _ = targets.stand_in(build.target_of(recipe), 1, recipe.image_size, classes, most)
    return pixels * channels * numbers + sum(int(part.nbytes) for part in parts(target))


@dataclass(frozen=True)
class _Traced:
    """A recipe to trace; equal to another where the same is allocated, but for the batch."""

    facts: str
    """`Recipe.memory_facts`, without the batch."""
    channels: int
    classes: int
    most: Most
    """Objects of a picture, where targets are objects."""
    recipe: Recipe = field(compare=False)


def _key(recipe: Recipe, meta: Facts | DatasetFacts) -> _Traced:
    """What memory depends on, but for the batch: recipes that differ in a learning rate share a trace."""
    recipe = recipe.replace(precision=device.resolve_precision(recipe.precision, torch.cuda.is_available()))
    facts = {
        name: value for name, value in recipe.memory_facts().items() if name not in ("batch_size", "micro_batch_size")
    }
    return _Traced(json.dumps(facts, sort_keys=True), meta["channels"], len(meta["classes"]), Most.of(meta), recipe)


# Tracing -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _curve(traced: _Traced, parts: int, activation_checkpointing: bool) -> Curve:
    recipe, channels, classes, most = traced.recipe, traced.channels, traced.classes, traced.most
    few, many = (Trace(recipe, channels, classes, images, parts, activation_checkpointing, most) for images in TRACED)
    alone, several = (_envelope(few.step(count), many.step(count)) for count in (1, 2))
    waiting = _picture_bytes(recipe, channels, classes, most) if few.waits else 0
    return Curve(alone, several, waiting, any(isinstance(part, BatchNorm) for part in few.model.modules()))


@functools.lru_cache(maxsize=256)
def _why_not_alone(traced: _Traced) -> str:
    why = {}
    for images in (1, 2):
        try:
            Trace(traced.recipe, traced.channels, traced.classes, images).forward()
        except ValueError as error:
            why[images] = str(error)
    return why.get(1, "") if 2 not in why else ""


def _envelope(few: list[int], many: list[int]) -> tuple[Line, ...]:
    """The lines through what was alive after each operation, without those that others lie above for any batch."""
    if len(few) != len(many):  # a model that computes otherwise for other batches: only its peaks are known
        few, many = [max(few)], [max(many)]
    first, second = TRACED
    slopes = [(high - low) / (second - first) for low, high in zip(few, many, strict=True)]
    kept: list[Line] = []
    for slope, base in sorted({(s, low - s * first) for s, low in zip(slopes, few, strict=True)}, reverse=True):
        if not kept or base > kept[-1][0]:
            kept.append((base, slope))
    return tuple(kept)
