"""The learning rate of each step."""

from __future__ import annotations

import math

from trainers.recipe import SCHEDULE_ARGS, Recipe


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        recipe: Its lr, schedule, warm-up and epochs.
        step: Counted from 0 over the whole run.
        steps: Of an epoch.
    """
    warm = recipe.warm_up * steps
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


def warm_up_note(recipe: Recipe) -> str:
    """What people should know of a warm-up that takes much of the run; "": nothing."""
    warm, epochs, fitting = recipe.warm_up, recipe.epochs, f"{recipe.epochs / 10:g}"
    if warm > epochs:
        highest = recipe.lr * epochs / warm
        return (
            f"warmup_epochs={warm:g} is more than epochs={epochs}: the learning rate rises to the end, to "
            f"{highest:.4g}, and never reaches lr={recipe.lr:g}; give --warmup-epochs {fitting}, or more --epochs"
        )
    if 3 * warm > epochs:
        return (
            f"warmup_epochs={warm:g} is more than a third of epochs={epochs}: lr={recipe.lr:g} is reached late; "
            f"give --warmup-epochs {fitting}, or more --epochs"
        )
    return ""
