"""Scores of a run's best weights on a split."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.resize import Decoder
from trainers.data.source import cache_folder, published, scan_files
from trainers.datasets import Source
from trainers.inference.load import open_run, restore
from trainers.inference.predict import Advance
from trainers.inference.predictor import Predictor, check_overlap
from trainers.recipe import Recipe, Scale
from trainers.storage.store import Store, default_storage
from trainers.tasks.segmentation import Segment
from trainers.training.evaluate import evaluate_split
from trainers.training.step import Run


def evaluate(
    run: str,
    split: str | None = None,
    *,
    data: str | None = None,
    storage: str | None = None,
    native: bool = False,
    sliding: bool = False,
    overlap: float = 0.25,
    advance: Advance = lambda n: None,
) -> dict[str, Any]:
    """Score the best checkpoint of a run.

    Parameters: `split`, by default "test" where the data has one, else "val"; `data`, where the raw data lies, by
    default where it lay in training; `native`, whether masks are scored at their own size, to which the logits are
    resized; `sliding`, whether pictures too keep their own size and a window of image_size, sharing `overlap` with
    its neighbours, is moved over them; `advance`, told the number of pictures done. Returns `split`,
    `rows`, `classes`, every score by bare name, `per_class`, and `ms_per_image`, of the model alone: reading and
    pre-processing are left out; `loss` too, but not at native size. Raises ValueError.
    """
    folder, found = open_run(run, storage)
    recipe, scale = Recipe.from_json(found["recipe"]), Scale.from_json(found["scale"])
    check_overlap(overlap)
    source = scan_files(recipe, data or scale.data)
    split = split or ("test" if "test" in source.splits else "val")
    if split not in source.splits:
        raise ValueError(f"the data has no split {split!r}; it has {', '.join(source.splits)}")
    if (native or sliding) and not source.masks:
        raise ValueError(
            f"the run {run} classifies whole pictures: --native and --sliding are for masks; leave them out"
        )
    if native or sliding:
        predictor = Predictor(folder, sliding, overlap)
        return {"split": split, **_evaluate_native(predictor, source, split, advance)}
    below = Store(storage or scale.storage or default_storage())
    cached = Cached(prepare(recipe, source, cache_folder(below), published=published(below)))
    state, world = restore(recipe, cached.meta, folder)
    run_ = Run(recipe=recipe, state=state, data=cached, world=world, model=state.model)
    loss, counts, ms_per_image = evaluate_split(run_, split)
    rows = int(cached.meta["rows"][split])
    advance(rows)
    told = {"split": split, "rows": rows, "classes": cached.meta["classes"], "loss": loss}
    return {**told, "ms_per_image": ms_per_image, **run_.task.scores(counts)}


def _evaluate_native(predictor: Predictor, source: Source, split: str, advance: Advance) -> dict[str, Any]:
    """Scores of masks at their own size, one picture after another."""
    task_ = predictor.task
    assert isinstance(task_, Segment)
    decoder = Decoder(predictor.recipe, source.channels, len(source.classes))
    totals: dict[str, Any] = {}
    tables: dict[str, list[Any]] = {}
    for picture, mask in _ahead(decoder.read_raw(item) for item in source.splits[split]):
        labels = predictor.segment(picture)
        target = torch.tensor(mask)[None].to(predictor.world.device).long()
        counts = task_.count(torch.from_numpy(labels)[None].to(target.device), target)
        for name, count in counts.total.items():
            totals[name] = totals.get(name, 0) + count.cpu().numpy()
        for name, count in counts.per_image.items():
            tables.setdefault(name, []).append(count.cpu().numpy())
        advance(1)
    scores = task_.scores({**totals, **{name: np.concatenate(parts) for name, parts in tables.items()}})
    rows = len(next(iter(tables.values())))
    told = {"rows": rows, "classes": list(source.classes), "ms_per_image": 1000 * predictor.seconds / rows}
    return {**told, **scores}


def _ahead(samples: Iterator[list[tuple[Any, Any]]]) -> Iterator[tuple[Any, Any]]:
    """The samples of each item; the next item is read while one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, samples, None)
        while (found := following.result()) is not None:
            following = thread.submit(next, samples, None)
            yield from found
