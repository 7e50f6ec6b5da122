"""Validation pictures with what the model makes of them, for people."""

from __future__ import annotations

import time
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch

from trainers.data import augment, sampler
from trainers.data.batches import Data
from trainers.data.sampler import one_pass
from trainers.instances import each
from trainers.messages import Picture
from trainers.phase import phase
from trainers.recipe import Recipe
from trainers.training.distributed import World
from trainers.training.evaluate import evaluating
from trainers.training.state import TrainState
from trainers.training.step import Run

PICTURE_SECONDS = 10.0
"""Least time between two showings of the same pictures."""
PICTURE_SIDE = 512
"""Longest side, in pixels, of a picture that is shown."""
EXTREMES = 2
"""So many of the best pictures are shown, and of the worst."""


@phase("drawing pictures")
def show(run: Run, split: str, rows: Sequence[int]) -> list[Picture]:
    """Pictures with what the model makes of them, of at most PICTURE_SIDE pixels a side.

    Where the model is sharded every rank calls this, elsewhere any rank may.

    Args:
        run: Its state's weights are used as they are.
        split: "val", as a rule.
        rows: Of the split.
    """
    recipe, state = run.recipe, run.state
    shown: list[Picture] = []
    for row in rows:
        batch = next(run.data.batches(split, [one_pass(np.array([row]))]))
        images, targets = run.preprocess(batch)
        with evaluating(state), run.world.autocast():
            labels = run.task.labels(state.model(images), recipe.image_size)
        pixels, _ = augment.center(torch.as_tensor(batch.images).permute(0, 3, 1, 2), recipe.image_size)
        every = -(-max(recipe.image_size) // PICTURE_SIDE)
        names = run.data.meta.get("names", {}).get(split)
        shown.append(
            {
                "row": row,
                "name": names[row] if names else f"{split} {row}",
                "image": pixels[0, :, ::every, ::every].permute(1, 2, 0).numpy(),
                "target": run.preprocess.target.shown(each(itemgetter(0), targets), every),
                "labels": run.preprocess.target.shown(each(itemgetter(0), labels), every),
            }
        )
    return shown


def show_best_and_worst(recipe: Recipe, state: TrainState, data: Data, world: World, split: str) -> list[Picture]:
    """The pictures that were shown all along and, by the counts of the best epoch, the best and the worst of all.

    Args:
        recipe: As it is trained.
        state: With the weights of the best epoch.
        data: Holds the split.
        world: This worker's place.
        split: The one that `state.counts` belongs to.
    """
    run = Run(recipe=recipe, state=state, data=data, world=world, model=state.model)
    scores = run.task.ranking(state.counts)
    if scores is None:
        return []
    ranked = [int(row) for row in np.argsort(-scores, kind="stable") if np.isfinite(scores[row])]
    fixed = _fixed_rows(run, split)
    best = [row for row in ranked[:EXTREMES] if row not in fixed]
    worst = [row for row in ranked[-EXTREMES:] if row not in (*fixed, *best)]
    kinds = [*((row, "") for row in fixed), *((row, "best") for row in best), *((row, "worst") for row in worst)]
    pictures = show(run, split, [row for row, _ in kinds])
    return [
        {**picture, "kind": kind, "score": float(scores[picture["row"]])}
        for picture, (_, kind) in zip(pictures, kinds, strict=True)
    ]


def _fixed_rows(run: Run, split: str) -> list[int]:
    """The rows that are shown every time: the same for every run on this data."""
    return [int(row) for row in sampler.permutation(0, 0, int(run.data.meta["rows"][split]))[: run.task.shown]]


def show_again(run: Run) -> list[Picture] | None:
    """The same pictures every time. Every rank calls this."""
    if not (run.task.shown and (run.world.rank == 0 or run.world.sharded)):
        return None
    run.last_pictures = time.monotonic()
    return show(run, "val", _fixed_rows(run, "val"))
