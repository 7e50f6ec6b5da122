"""Loss and counts over a split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers import own_code
from trainers.data import sampler
from trainers.data.batches import Batch
from trainers.instances import parts
from trainers.phase import phase
from trainers.recipe import Recipe
from trainers.tasks.base import Output
from trainers.training.state import TrainState
from trainers.training.step import Run, divisors_of, mean_loss
from trainers.upload import upload

Counts = dict[str, npt.NDArray[np.int64]]


class Evaluation(NamedTuple):
    """The result of an evaluation, the same on every rank but for the time."""

    loss: float
    counts: Counts
    """Totals, and tables with a row for each image."""
    ms_per_image: float
    """Of the model's forward passes on this rank; reading, pre-processing, loss and scores are left out."""


@phase("evaluation", on="device")
def evaluate_split(run: Run, split: str) -> Evaluation:
    """Mean loss and counts over a split, the same on every rank; each picture counts once.

    Uses the moving average of the weights where the recipe keeps one.

    Args:
        run: Every rank calls this with its own.
        split: Such as "val".
    """
    recipe, state, world = run.recipe, run.state, run.world
    rows = int(run.data.meta["rows"][split])
    sums: Tensor | None = None
    counts: dict[str, Tensor] = {}
    seconds, images_seen = 0.0, 0
    with evaluating(state):
        for batch in batches(run, split):
            images, targets = run.preprocess(batch)
            with world.autocast():
                start = world.clock()
                output = state.model(images)
                seconds += world.clock() - start
                check_rows(output, len(images), recipe)
                loss = run.task.loss(output, targets)
            images_seen += len(images)
            sums = torch.zeros(2, len(loss), dtype=torch.float64, device=world.device) if sums is None else sums
            new = run.task.counts(output, targets)
            if not counts:
                counts = {name: torch.zeros_like(count) for name, count in new.total.items()}
                counts |= {name: count.new_zeros(rows, *count.shape[1:]) for name, count in new.per_image.items()}
            if batch.of.weight:
                sums += torch.stack([loss.double(), divisors_of(run.task, targets)])
                for name, count in new.total.items():
                    counts[name] += count
                for name, count in new.per_image.items():
                    counts[name][upload(batch.of.ids, world.device)] = count
    assert sums is not None
    for tensor in (sums, *counts.values()):
        world.all_reduce(tensor)
    found = {name: count.cpu().numpy() for name, count in counts.items()}
    return Evaluation(mean_loss(*sums.tolist()), found, 1000 * seconds / images_seen)


def batches(run: Run, split: str) -> Iterator[Batch]:
    """The pictures of a split in order, this rank's micro-batches of them."""
    rows, world = int(run.data.meta["rows"][split]), run.world
    passes = sampler.passes(
        sampler.in_order(rows),
        batch_size=rows,
        micro_batch_size=run.recipe.micro_batch_size or run.recipe.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    yield from run.batches(split, passes)


def check_rows(output: Output, pictures: int, recipe: Recipe) -> None:
    """Raises ValueError where a model returns no row for each picture, as after a squeeze() of a single one; what a
    task of the user's own takes is not known."""
    if own_code.is_file(recipe.task):
        return
    for each in parts(output):
        if each.ndim > 1 and len(each) == pictures:
            continue
        given = f"{pictures} picture{'s' * (pictures > 1)}"
        raise ValueError(
            f"the model {recipe.model} returned a tensor {tuple(each.shape)} for {given}; its first dimension must be "
            "that of the pictures, which squeeze() drops where there is one"
        )


@contextlib.contextmanager
def evaluating(state: TrainState) -> Iterator[None]:
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
