"""How a recipe is run within the memory that there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainers.augmentations import mixing, mixing_of
from trainers.formatting import format_size
from trainers.messages import Facts
from trainers.recipe import Recipe, Scale
from trainers.run_facts import DatasetFacts

CRUDE_BYTES = 8000
"""More than any of our models needs for a pixel: what stays far below the limit at that is not predicted."""


HOST_SHARE = 0.85
"""Of a host's memory, what training may take."""


@dataclass(frozen=True)
class Need:
    """What a recipe needs of a worker's memory, and how it is run for that."""

    recipe: Recipe
    """With the micro-batch that fits."""
    fits: bool = True
    bytes: int | None = None
    """Predicted peak of a step as it was asked for; None: so little that it was not predicted."""
    limit: int | None = None
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {} if self.bytes is None else {"memory": {"predicted_bytes": self.bytes, "limit_bytes": self.limit}}


def fit_memory(
    recipe: Recipe,
    scale: Scale,
    meta: Facts | DatasetFacts,
    limit: int | None,
    *,
    gpus: bool = False,
    always: bool = False,
) -> Need:
    """What a recipe needs, and what `scale.on_oom` says to do where that is more than `limit` bytes.

    Where it cannot be predicted, as the model reads the values of its tensors, the note says so.

    Args:
        recipe: As requested.
        scale: Workers, strategy, memory and what to do where it does not suffice.
        meta: Channels, classes and rows of the data.
        limit: Bytes of a worker's memory; None: not known, so nothing is predicted.
        gpus: Whether the workers have GPUs; memory is then predicted where it is clearly little, too.
        always: Predict where it is clearly little, too.

    Raises:
        ValueError: The model fails, or its memory cannot be predicted and --memory asks for that.
    """
    micro = recipe.micro_batch_size or recipe.batch_size // max(1, scale.worker_range[1])
    crude = CRUDE_BYTES * micro * recipe.image_size[0] * recipe.image_size[1]
    if limit is None or not (gpus or always or scale.memory or crude > limit / 4):
        return Need(recipe)
    from trainers.training import peak_memory
    from trainers.training.memory_trace import Untraceable

    limit -= context_bytes(gpus)
    asked = recipe.replace(micro_batch_size=micro)
    sharded = scale.strategy == "fsdp2"
    workers = max(1, scale.worker_range[0 if sharded else 1])  # with fewer, each holds a larger part
    try:
        peak = peak_memory.predict(
            asked, meta, workers=workers, sharded=sharded, activation_checkpointing=scale.activation_checkpointing
        )
    except Untraceable as error:
        if scale.memory is not None:  # a limit that was asked for cannot be kept
            raise
        return Need(recipe, note=f"{error}; whether it fits will show")
    if peak <= limit:
        return Need(recipe, True, peak, limit)
    needs = f"needs {format_size(peak)} of {format_size(limit)}"
    smaller = peak_memory.largest_micro_batch(
        asked, meta, limit, workers=workers, sharded=sharded, activation_checkpointing=scale.activation_checkpointing
    )
    if smaller is None:
        least = "two pictures" if peak_memory.why_not_alone(asked, meta) else "one picture"
        fit = "fit" if least == "two pictures" else "fits"
        return Need(recipe, False, peak, limit, f"does not fit: {needs}, and not even {least} at a time {fit}")
    if scale.on_oom == "record":
        return Need(recipe, False, peak, limit, f"does not fit: {needs}; micro-batches of {smaller} would fit")
    norm = "; BatchNorm sees these, not the batch" if peak_memory.curve(asked, meta).batch_norm else ""
    mixed = f"; {note}" if (note := mixing.note(recipe.augment, smaller)) else ""
    if not mixed and (names := mixing_of(recipe.augment)):
        mixed = f"; {' and '.join(names)} of these, not the batch"
    note = f"batch {recipe.batch_size} runs in micro-batches of {smaller}: {needs}{norm}{mixed}"
    return Need(recipe.replace(micro_batch_size=smaller), True, peak, limit, note)


def device_memory(gpus: bool, workers: int) -> int | None:
    """Bytes of this process's GPU, or of this host for each of so many workers; None where that is not known."""
    from trainers.runs.provenance import machine

    found = machine()
    if not gpus:
        return int(HOST_SHARE * found["memory_bytes"]) // workers if found.get("memory_bytes") else None
    return min((gpu["memory_bytes"] for gpu in found.get("gpus") or []), default=None)


def context_bytes(gpus: bool) -> int:
    """What the context of this process's GPU takes; 0 where there is none to measure."""
    from trainers.training import peak_memory

    return (peak_memory.context_bytes() or 0) if gpus else 0
