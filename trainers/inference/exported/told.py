"""What an exported file tells: how pictures are prepared for it, what its output means, and which run it is of."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from trainers.decode import reading
from trainers.formatting import printable
from trainers.inference import Views
from trainers.inference.exported import steps
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Json, RunFacts
from trainers.storage.store import Store

TRAINED = "trained"
"""The key of what `open_model` needs: a part of run.json."""
_OF_RUN = ("name", "recipe_name", "start_id", "versions", "commit", "best", "licence")
_NOT_OF_DATA = ("skipped", "repeated")
"""Lists of names, which may be long."""


def describe(recipe: Recipe, run: RunFacts, output: Json, *, tta: Views | None, takes: Json, to_values: bool) -> Json:
    """What one must know to use an exported model.

    Args:
        recipe: of the run.
        run: run.json.
        output: what the output means, where the task says so.
        tta: views that the model averages.
        takes: "input" and "values", in words.
        to_values: whether pictures are normalised before the model; else it does so itself.
    """
    meta = run["dataset"]
    return {
        "run": run["name"],
        "task": recipe.task,
        "classes": meta["classes"],
        **output,
        "colours": meta.get("colours"),
        **takes,
        **reading(recipe.dataset_args),
        "channels": meta["channels"],
        "image_size": list(recipe.image_size),
        "stored_size": list(recipe.storage_size),
        "resize": recipe.resize,
        "mean": meta["mean"],
        "std": meta["std"],
        "preprocessing": [*steps.to_pixels(recipe, meta), *(steps.to_values(meta) if to_values else ())],
        "tta": tta,
        "versions": run["versions"],
        TRAINED: _of_run(recipe, run),
    }


def _of_run(recipe: Recipe, run: RunFacts) -> Json:
    """What `evaluate` and `predict` read of run.json, without what belongs to the place where the run lies."""
    found: Mapping[str, object] = run
    confidence = (run.get("final") or {}).get("confidence")
    dataset = {name: value for name, value in run["dataset"].items() if name not in _NOT_OF_DATA}
    return {
        **{name: found[name] for name in _OF_RUN if name in found},
        "status": "finished",
        "recipe": recipe.to_json(),
        "scale": {"data": run["scale"].get("data")},
        "dataset": dataset,
        "final": {} if confidence is None else {"confidence": confidence},
    }


def trained(told: Json, file: Path) -> RunFacts:
    """The facts of the run that a file tells. Raises ValueError where it tells none."""
    facts = told.get(TRAINED)
    if not (isinstance(facts, dict) and {"name", "recipe", "scale", "dataset"} <= facts.keys()):
        raise ValueError(
            f"{printable(str(file))} does not say which recipe it is of: it was not written by export, or by an older "
            "version of it; export the run again"
        )
    dataset = {"skipped": [], "repeated": {}, **facts["dataset"]}
    return cast(RunFacts, {**facts, "dataset": dataset})


def write_beside(file: Path, told: Json, content: bytes) -> None:
    """Write what a file tells into FILE.json, with the digest of the file's content."""
    Store(file.parent).write_json(f"{file.name}.json", {**told, "sha256": hashlib.sha256(content).hexdigest()})


def check_whole(file: Path) -> None:
    """Raises ValueError where a file is not the one that the JSON beside it was written for."""
    beside = file.with_name(f"{file.name}.json")
    wanted: object = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(beside.read_bytes())
        wanted = found.get("sha256") if isinstance(found, dict) else None
    if wanted is None:
        return
    with open(file, "rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
            raise ValueError(
                f"{printable(str(file))} is not the file that {beside.name} was written for, by its SHA-256: it was "
                "cut off, changed or replaced; copy both again, or remove that JSON"
            )


def as_taken(facts: RunFacts, mean: Sequence[float], std: Sequence[float]) -> RunFacts:
    """The facts, with other numbers to normalise pictures by."""
    dataset: DatasetFacts = {**facts["dataset"], "mean": list(mean), "std": list(std)}
    return {**facts, "dataset": dataset}
