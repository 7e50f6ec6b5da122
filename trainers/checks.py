"""What is refused before pictures are decoded: a model that does not fit, a run that differs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainers.datasets import Source
from trainers.formatting import locate_error, nearest
from trainers.messages import Facts
from trainers.recipe import Recipe, recipe_names
from trainers.runs.files import read_run, run_names
from trainers.storage.store import Store

SMALL_PIXELS, SMALL_WEIGHTS = 32 * 32, 2**24
"""Such a model is tried on two such pictures sooner than without memory, which takes imports of 1.5 s."""


def check_init_from(recipe: Recipe, storage: Store) -> None:
    """That the run whose weights the model starts from is there; its checkpoint is read by the workers."""
    run = recipe.init_from
    if run is not None and read_run(Store(run) if "/" in run else storage / run) is None:
        before = f", train {run} first in the same command" if run in recipe_names() else ""
        raise ValueError(
            f"init_from={run}: there is no such run in {storage.address}{nearest(run, run_names(storage))}; "
            f"give --init-from RUN{before}, or start from nothing with --init-from none"
        )


def agree_with_earlier(wanted: Recipe, earlier: Mapping[str, Any] | None, run: str) -> Recipe:
    """The recipe of a run that exists, if it is the one wanted. Raises ValueError naming the fields that differ."""
    if earlier is None:
        return wanted
    try:
        old = Recipe.from_json(earlier["recipe"])
    except ValueError as error:
        raise ValueError(f"the run {run} exists with an invalid recipe: {error}; give another --run") from None
    if wanted.micro_batch_size is None:
        wanted = wanted.replace(micro_batch_size=old.micro_batch_size)
    if wanted.precision == "auto":
        wanted = wanted.replace(precision=old.precision)
    if different := old.differences(wanted):
        told = "; ".join(f"{name} was {was!r} and is now {now!r}" for name, (was, now) in different.items())
        raise ValueError(f"the run {run} exists with another recipe: {told}. Give another --run, or the old values")
    return wanted


def check_model(recipe: Recipe, source: Source) -> None:
    """Build the model and try it, without memory unless both are small: one that does not fit the data is refused
    before pictures are decoded."""
    import torch

    from trainers.data import targets
    from trainers.training import build, distributed

    target, classes = targets.kind(source.target), list(source.classes)
    known = target.listed(source.splits["train"])  # else how often a class occurs shows when targets are read
    frequencies = [1] * len(classes) if known is None else target.count(known, len(classes))["counts"]
    meta: Facts = {
        "channels": source.channels,
        "classes": classes,
        "target": target.name,
        "masks": target.legacy_masks,
        "class_counts": {"train": frequencies},
    }
    where = torch.device("meta")
    try:
        with where:
            model = build.build_model(build.without_weights(recipe), meta)
        weights = sum(parameter.numel() for parameter in model.parameters())
        if math.prod(recipe.image_size) <= SMALL_PIXELS and weights <= SMALL_WEIGHTS:
            where = torch.device("cpu")
            model = build.build_model(build.without_weights(recipe), meta)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the model {recipe.model} cannot be built: {locate_error(error)}") from None
    distributed.freeze(model, recipe.frozen)
    task = build.make_task(recipe, meta)
    try:  # do sizes fit?
        with where:
            output = model(torch.zeros(2, source.channels, *recipe.image_size))
            task.loss(output, torch.zeros(target.dummy(2, recipe.image_size).shape, dtype=torch.int64))
    except ValueError:
        raise
    except Exception as error:
        if "meta" in str(error).lower():  # a model that looks at values: this cannot tell
            return
        what = f"pictures of {recipe.image_size[0]}x{recipe.image_size[1]} and task={recipe.task}"
        raise ValueError(f"the model {recipe.model} does not go with {what}: {locate_error(error)}") from None
