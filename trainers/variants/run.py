"""optimize(): the forms of a run's model, written, compared, and the fastest of those that are good enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch

from trainers.formatting import check_is_path
from trainers.inference.evaluate import find_split, open_split
from trainers.inference.load import Trained, find_trained
from trainers.inference.predictor import Predictor
from trainers.progress import Progress
from trainers.recipe import Recipe
from trainers.runs.provenance import machine, processor_flags, versions
from trainers.storage.store import Store, absolute, default_storage, explain
from trainers.training.step import Run
from trainers.variants.facts import FACTS, Optimized, Row
from trainers.variants.make import Variant, make
from trainers.variants.measure import MOST_ROUNDS, Scored, Spread, score, time_each
from trainers.variants.page import render_page

MULTIPLYING = ("fma avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_int8 amx_bf16 asimd asimddp i8mm bf16").split()
"""Instructions that decide how fast numbers, and bytes, are multiplied."""
BATCHES = (1, 32)
"""Pictures at once, as models are timed."""
PAGE = "optimize.html"


class Result(NamedTuple):
    """What was found, and where it lies."""

    facts: Optimized
    page: Path


def optimize(
    run: str,
    out: str,
    *,
    tolerance: float = 0.01,
    split: str | None = None,
    data: str | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Write a run's best model in other forms: with fused layers, as ONNX, in whole numbers of 8 bits, and each with
    fewer channels, where `prune` has made such a run; compare them, and choose.

    Args:
        run: its name below `storage`, or its folder.
        out: the folder that is written: the files, optimize.json and optimize.html.
        tolerance: by how much a score may be below that of the run.
        split: of which pictures, by default "val", on which the best epoch was chosen too.
        data: where the raw data lies, by default where it lay in training.
        storage: where run folders lie, by default the usual place.
        progress: where messages and bars go; None: stderr.

    Raises:
        ValueError: there is no such run or split, or a package is missing; or `out` cannot be written.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"--tolerance {tolerance:g} is not allowed; give 0 up to, not including, 1")
    check_is_path("out", out)
    check_is_path("data", data)
    target, progress = absolute(out), progress or Progress()
    if target.is_file():
        raise ValueError(f"--out {out} is a file; a folder is written")
    trained = find_trained(run, storage)
    if trained.folder is None:
        raise ValueError(f"{run} is a file; optimize takes the run that it is of")
    try:
        target.mkdir(parents=True, exist_ok=True)
        facts = _compare(trained, target, tolerance, split or "val", data, storage, progress)
        Store(target).write_json(FACTS, cast(dict[str, object], facts))
        Store(target).write(PAGE, render_page(facts).encode())
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {explain(error)}; give another folder") from None
    return Result(facts, target / PAGE)


def _compare(
    trained: Trained,
    target: Path,
    tolerance: float,
    split: str,
    data: str | None,
    storage: str | None,
    progress: Progress,
) -> Optimized:
    recipe = Recipe.from_json(trained.facts["recipe"])
    source, split = find_split(recipe, trained.facts, data, split, progress.warning)
    below = Store(storage or trained.storage or default_storage())
    made = make(trained.address, target, storage=storage, data=data, say=progress.message, warn=progress.warning)
    opened = open_split(recipe, source, split, trained.dataset, below)
    predictors = [Predictor(find_trained(each.model)) for each in made.variants]
    first, pictures = predictors[0], int(opened.meta["rows"][split])
    given = Run(recipe=recipe, state=first.state, data=opened, world=first.world, model=first.state.model)
    with progress.bar(f"scoring {len(predictors)} forms", pictures) as advance:
        scored = score(predictors, given, split, advance)
    timed = {batch: _timed(made.variants, predictors, batch, progress) for batch in BATCHES}
    rows = _rows(made.variants, scored, timed, scored[0].score - tolerance)
    fastest = min((row for row in rows if row["good"]), key=lambda row: row["ms"][str(BATCHES[0])][1])
    return {
        "run": trained.facts["name"],
        "split": split,
        "pictures": pictures,
        "metric": first.task.metric,
        "tolerance": tolerance,
        "chosen": fastest["name"],
        "rows": rows,
        "left_out": made.left_out,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "flags": sorted(processor_flags() & set(MULTIPLYING)),
        "versions": versions(),
    }


def _timed(
    variants: Sequence[Variant], predictors: Sequence[Predictor], batch: int, progress: Progress
) -> list[Spread]:
    with progress.bar(f"timing {len(variants)} forms, {batch} at once, in rounds", MOST_ROUNDS) as advance:
        return time_each(variants, predictors, batch, advance)


def _rows(
    variants: Sequence[Variant], scored: Sequence[Scored], timed: dict[int, list[Spread]], least: float
) -> list[Row]:
    """`least`: score that is good enough."""
    return [
        {
            "name": each.name,
            "file": None if each.file is None else each.file.name,
            "model": each.model,
            "score": found.score,
            "agreement": found.agreement,
            "bytes": each.bytes,
            "ms": {str(batch): list(spreads[place]) for batch, spreads in timed.items()},
            "good": found.score >= least,
        }
        for place, (each, found) in enumerate(zip(variants, scored, strict=True))
    ]
