"""What the trials of a sweep are made of, besides its plan: the data, and files of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainers import own_code
from trainers.registry import Kind, identify
from tune_spaces.sweep import Cell, setting
from tune_spaces.trials import PreparedData

KINDS: Mapping[str, Kind] = {"model": "models", "dataset": "datasets", "task": "tasks"}
"""Field of a recipe that may name a FILE.py -> the kind of module."""
Origins = dict[str, str]
"""A file or the pictures of a data set, in words -> what they hold, as a digest."""


def find_origins(cells: Iterable[Cell], prepared: PreparedData) -> Origins:
    found: Origins = {}
    for each in cells:
        for field, kind in KINDS.items():
            if own_code.is_file(name := getattr(each.recipe, field)):
                found[str(own_code.absolute(name))] = identify(kind, name)
        args = setting(each.recipe.dataset_args)
        found[f"the pictures of {each.recipe.dataset} {args}"] = prepared.meta(each.recipe).get("listing", "")
    return found


def check_origins(sweep: str, earlier: Origins, now: Origins) -> None:
    """Raises ValueError where a sweep that goes on would compare trials of other data or another model."""
    changed = [name for name in earlier if name in now and earlier[name] != now[name]]
    if changed:
        raise ValueError(
            f"since the sweep {sweep} began have changed: {', '.join(changed)}; its trials could not be compared. Put "
            "back what was there, or give another --run"
        )
