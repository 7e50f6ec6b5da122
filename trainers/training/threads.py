"""How many threads a network is worth on this machine: one, where it is so small that one is as fast.

Threads that share small work wait for each other, mostly in a busy loop. Beside another program that keeps the cores
busy each wait becomes one for the scheduler, and a training of seconds takes minutes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainers.messages import Meta
from trainers.recipe import Recipe
from trainers.training import device
from trainers.training.distributed import World

MOST_WORK = 10**8
"""Multiplications of a forward pass: more keep the cores of any host busy, and take too long to be tried."""
FEWEST_SECONDS, MOST_SECONDS = 0.003, 0.05
"""Of a pass forward and back in one thread, which makes some dozens of hand-overs of tens of microseconds where there
are more: in less time these never pay, in more they do."""
WORTH = 1.2
"""Twice the threads must be so much faster."""
TRY_SECONDS = 0.005
"""So long each number of threads is tried, and at least once; the fastest pass counts."""
PATIENCE = 3.0
"""So many passes of fewer threads may last what more threads are tried for."""


def choose_threads(recipe: Recipe, meta: Meta, model: nn.Module, world: World, most: int) -> int:
    """Try passes of a copy of the model in 1, 2, 4, ... threads, for a tenth of a second at most, as long as more are
    faster.

    Args:
        recipe: Resolved: with a micro_batch_size.
        meta: Channels and rows of the data.
        model: On its device; not changed.
        world: Of this worker.
        most: CPUs of this worker.

    Returns:
        From 1 to `most`; `most` where the work is elsewhere, is large, or is of a kind that cannot be tried.
    """
    assert recipe.micro_batch_size is not None
    pictures = min(recipe.micro_batch_size, meta["rows"]["train"])
    weights = sum(parameter.numel() for parameter in model.parameters())
    if most == 1 or world.sharded or world.device.type != "cpu" or pictures * weights > MOST_WORK:
        return most
    try:
        images = torch.zeros((pictures, meta["channels"], *recipe.image_size), dtype=world.dtype)
        images = images.to(memory_format=torch.channels_last)
        if pictures * _multiplications(model, images[:1], MOST_WORK // pictures) > MOST_WORK:
            return most
        once = _passes(copy.deepcopy(model).train(), images, world)
        return _fewest(once, most)
    except Exception:  # a model of the user's own: what is wrong with it shows in training
        return most


def _fewest(once: Callable[[], float], most: int) -> int:
    """The least number of threads of which twice as many bring little."""
    device.set_threads(1)
    once()  # the first of all is slower
    threads, least = 1, min(once(), _least_seconds(once, 1))  # a busy machine may hold up any single one for long
    if not FEWEST_SECONDS < least < MOST_SECONDS:
        return 1 if least <= FEWEST_SECONDS else most
    while threads < most:
        more = min(2 * threads, most)
        seconds = _least_seconds(once, more, enough=least / WORTH, patience=PATIENCE * least)
        if seconds > least / WORTH:
            break
        threads, least = more, seconds
    return threads


def _least_seconds(once: Callable[[], float], threads: int, enough: float = 0.0, patience: float = 0.0) -> float:
    """Of the fastest pass in so many threads, for TRY_SECONDS or `patience` where that is more; less where a pass took
    no more than `enough`."""
    device.set_threads(threads)
    least, spent = float("inf"), 0.0
    while least > enough and spent < max(TRY_SECONDS, patience):
        least = min(least, seconds := once())
        spent += seconds
    return least


def _passes(model: nn.Module, images: Tensor, world: World) -> Callable[[], float]:
    """A function that makes a pass forward and back, and returns its seconds."""

    def once() -> float:
        start = time.perf_counter()
        with world.autocast():
            output = model(images)
        output.float().sum().backward()
        model.zero_grad()
        return time.perf_counter() - start

    return once


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
