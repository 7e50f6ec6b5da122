"""python -m trainers optimize: its words, and what it prints."""

from __future__ import annotations

import dataclasses
import json

from trainers.cli import cli, leading


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    out: str
    """Folder that the files, optimize.json and optimize.html are written to."""
    tolerance: float = 0.01
    """By how much the score of the form that is chosen may be below that of the run."""
    split: str | None = None
    """On which pictures the forms are scored. None: val."""
    data: str | None = None
    """Where the raw data lies. None: where it lay in training."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""
    json: bool = False
    """Print optimize.json, in place of the path of the page."""


def optimize_command(argv: list[str]) -> int:
    """Write a run's model in other forms, compare them, and choose. Returns the exit code."""
    names, flags = leading(argv)
    options = cli(_Options, flags, "python -m trainers optimize RUN")
    if len(names) != 1:
        raise ValueError("usage: python -m trainers optimize RUN --out DIR [--tolerance 0.01]")
    from rich.console import Console

    from trainers.progress import Progress
    from trainers.variants.page import about, choice, table
    from trainers.variants.run import optimize

    progress = Progress()
    found = optimize(
        names[0],
        options.out,
        tolerance=options.tolerance,
        split=options.split,
        data=options.data,
        storage=options.storage,
        progress=progress,
    )
    if options.json:
        print(json.dumps(found.facts, indent=1))
        return 0
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDE
    console.print(table(found.facts))
    progress.message(about(found.facts))
    progress.message(choice(found.facts))
    print(found.page)
    return 0


WIDE = 160
"""Columns of a table that does not go to a terminal."""
