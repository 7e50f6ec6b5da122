"""Scores of a run's best weights on a split."""

from __future__ import annotations

from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.source import cache_folder, published, scan_files
from trainers.formatting import check_is_path
from trainers.inference import predictions
from trainers.inference.load import open_run, restore
from trainers.inference.predictor import Predictor, check_overlap
from trainers.messages import Scores
from trainers.progress import Advance
from trainers.recipe import Recipe, Scale
from trainers.storage.store import Store, default_storage
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
) -> Scores:
    """Score the best checkpoint of a run.

    Args:
        run: its name below `storage`, or its folder.
        split: by default "test" where the data has one, else "val".
        data: where the raw data lies, by default where it lay in training.
        storage: where run folders lie, by default the usual place.
        native: whether masks are scored at their own size, to which the logits are resized.
        sliding: whether pictures too keep their own size and a window of image_size is moved over them.
        overlap: share of a window that its neighbours cover too.
        advance: gets the number of pictures done.

    Returns:
        `split`, `rows`, `classes`, every score by bare name, `per_class`, and `ms_per_image`, of the model alone:
        reading and pre-processing are left out; `loss` too, but not at native size.

    Raises:
        ValueError: there is no such run or split, or the data does not go with it.
    """
    check_is_path("data", data)
    folder, found = open_run(run, storage)
    recipe, scale = Recipe.from_json(found["recipe"]), Scale.from_json(found["scale"])
    check_overlap(overlap)
    source = scan_files(recipe, data or scale.data)
    split = split or ("test" if "test" in source.splits else "val")
    if split not in source.splits:
        raise ValueError(f"the data has no split {split!r}; it has {', '.join(source.splits)}")
    kind = predictions.of_meta(found["dataset"])
    if (native or sliding) and not kind.own_size:
        raise ValueError(
            f"the run {run} classifies whole pictures: --native and --sliding are for masks; leave them out"
        )
    if native or sliding:
        predictor = Predictor(folder, sliding, overlap)
        return {"split": split, **kind.evaluate(predictor, source, split, advance)}
    below = Store(storage or scale.storage or default_storage())
    cached = Cached(prepare(recipe, source, cache_folder(below), published=published(below)))
    state, world = restore(recipe, cached.meta, folder)
    run_ = Run(recipe=recipe, state=state, data=cached, world=world, model=state.model)
    loss, counts, ms_per_image = evaluate_split(run_, split)
    rows = int(cached.meta["rows"][split])
    advance(rows)
    about = {"split": split, "rows": rows, "classes": cached.meta["classes"], "loss": loss}
    return {**about, "ms_per_image": ms_per_image, **run_.task.scores(counts)}
