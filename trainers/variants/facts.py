"""What is known of the forms of a model: optimize.json."""

from __future__ import annotations

from typing import TypedDict

from trainers.run_facts import Machine

FACTS = "optimize.json"


class Row(TypedDict):
    """A form of a model."""

    name: str
    file: str | None
    """In the folder; None: it is a run."""
    model: str
    """What `predict`, `evaluate` and `open_model` take."""
    score: float
    agreement: float
    """Share of what the first form says that this one says too."""
    bytes: int
    ms: dict[str, list[float]]
    """Pictures at once -> milliseconds a picture: first quartile, median, third quartile."""
    good: bool
    """Whether its score is within the tolerance."""


class Optimized(TypedDict):
    """What optimize.json holds."""

    run: str
    split: str
    pictures: int
    metric: str
    tolerance: float
    """Of the score, below that of the first form."""
    chosen: str
    """Name of the form that is fastest, picture by picture, of those within the tolerance."""
    rows: list[Row]
    left_out: dict[str, str]
    """Form -> why it could not be made."""
    threads: int
    machine: Machine
    flags: list[str]
    """What its processor says of itself that matters for multiplying."""
    versions: dict[str, str]
