"""Hyper-parameters that follow from the data, for whoever has a folder of pictures and no idea of a learning rate.

A pure function of the number of training pictures and of what the user chose: it never looks at the machine, so that
the same data gives the same run anywhere. What it says is recorded in run.json with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainers.recipe import Recipe

LR_BATCH = 32
"""The batch that the lr of a recipe belongs to, where lr follows: SGD's grows as the batch (Goyal et al., "Accurate,
Large Minibatch SGD", 2017), Adam's as its root (Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient
Algorithms", NeurIPS 2022)."""
STEPS_AN_EPOCH = 40
BATCHES = (8, 64)
"""Smallest and largest, powers of 2."""
PICTURES = 12_000
"""Seen over the whole run, as far as EPOCHS allows."""
EPOCHS = (4, 30)
"""Fewest and most."""


def follow(recipe: Recipe, rows: int) -> tuple[Recipe, dict[str, str]]:
    """Set the fields that the recipe's `from_data` names.

    Args:
        recipe: What it does not name holds, and decides what follows: the learning rate is that of its batch.
        rows: Training pictures.

    Returns:
        The recipe, whose `from_data` is empty; and field -> why it has its value.
    """
    following, reasons = recipe.from_data, {}
    if "batch_size" in following:
        low, high = BATCHES
        size = min(high, max(low, 2 ** round(math.log2(max(1, rows / STEPS_AN_EPOCH)))))
        recipe = recipe.replace(batch_size=size)
        reasons["batch_size"] = f"{rows:,} pictures / {STEPS_AN_EPOCH}, to a power of 2 from {low} to {high}"
    if "epochs" in following:
        fewest, most = EPOCHS
        recipe = recipe.replace(epochs=min(most, max(fewest, round(PICTURES / rows))))
        reasons["epochs"] = f"{PICTURES:,} / {rows:,} pictures, from {fewest} to {most}"
    if "lr" in following:
        times = recipe.batch_size / LR_BATCH
        law = "" if recipe.optimizer == "sgd" else "sqrt"
        reasons["lr"] = f"{recipe.lr:g} x {law}({recipe.batch_size} / {LR_BATCH}), of {recipe.optimizer}"
        recipe = recipe.replace(lr=recipe.lr * (math.sqrt(times) if law else times))
    return recipe, reasons


def describe(recipe: Recipe, reasons: Mapping[str, str]) -> str:
    """A line for people; "" where nothing followed."""
    values = recipe.to_json()
    parts = [f"{name}={values[name]:.3g} ({reason})" for name, reason in reasons.items()]
    return f"from the data: {'; '.join(parts)}" if parts else ""
