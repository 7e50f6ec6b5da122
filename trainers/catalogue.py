"""What there is to train: tables of recipes and of models, on stdout."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table

from trainers.progress import Progress
from trainers.recipe import describe, recipe_names, resolve
from trainers.registry import find_models

WIDE = 140
"""Columns of a table that goes into a file or pipe."""


def print_recipes() -> None:
    """A table of the recipes that ship with Trainyard."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("recipe", "dataset", "model", "parameters", "expected"):
        table.add_column(column, justify="right" if column == "parameters" else "left", no_wrap=column == "recipe")
    for name in recipe_names():
        recipe, text = resolve(name), describe(name)
        table.add_row(name, recipe.dataset, recipe.model, _noted(text, "Parameters"), _noted(text, "Expected"))
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def print_models(pattern: str) -> None:
    """Flags of the models that match, one a line, to be copied. Raises ValueError where there are none."""
    found, missing = find_models(pattern)
    for why in missing:
        Progress().warning(why)
    if not found:
        raise ValueError(f"no model matches {pattern!r}; give a part of a name, or a pattern such as '*net*'")
    flags = [f"--model {model} --model-args {args}" if args else f"--model {model}" for model, args, _ in found]
    width = max(map(len, flags))
    for flag, (_, _, weights) in zip(flags, found, strict=True):
        print(f"{flag:{width}}  {weights}".rstrip())


def _noted(text: str, what: str) -> str:
    """The line `what: ...` of a recipe's docstring."""
    found = re.search(rf"^\s*{what}: (.+)$", text, re.MULTILINE)
    return found[1] if found else ""
