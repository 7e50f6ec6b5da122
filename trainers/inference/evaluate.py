"""Scores of a run's best weights, or of a file that was exported of them, on a split."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import cast

from trainers.checks import list_known, list_source
from trainers.data import contract, shard_transfer, targets
from trainers.data.batches import Cached
from trainers.data.decoded import Decoded
from trainers.data.meta import keep_numbers
from trainers.data.prepare import prepare
from trainers.data.source import LEARNED, cache_folder, cache_key, published, scan_files
from trainers.datasets import ALL, Item, Source
from trainers.formatting import check_is_path, composed, shortened
from trainers.inference import Views, predictions
from trainers.inference.load import find_trained
from trainers.inference.predictions import Predictions
from trainers.inference.predictor import Predictor, check_overlap, limited
from trainers.inference.views import check_views
from trainers.messages import Meta
from trainers.progress import Advance
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, RunFacts, Scores
from trainers.storage.store import Store, absolute, default_storage
from trainers.training.evaluate import evaluate_split
from trainers.training.step import Run

FIRST = ("test", "val", "train", ALL)
"""Splits in the order in which one is chosen."""


def evaluate(
    run: str,
    split: str | None = None,
    *,
    data: str | None = None,
    storage: str | None = None,
    native: bool = False,
    sliding: bool = False,
    overlap: float = 0.25,
    tta: Views | None = None,
    max_detections: int | None = None,
    results: str | None = None,
    advance: Advance = lambda n: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Scores:
    """Score the best checkpoint of a run, or a file that was exported of one, by its own classes and normalisation.

    Args:
        run: its name below `storage`, or its folder; or the file.
        split: by default "test" where the data has one, else "val", else whatever there is.
        data: where the raw data lies, by default where it lay in training. Other data may lack splits and classes.
        storage: where run folders lie, by default the usual place.
        native: whether masks are scored at their own size, to which the logits are resized.
        sliding: whether pictures too keep their own size and a window of image_size is moved over them.
        overlap: share of a window that its neighbours cover too.
        tta: "flip", "flips" or "rotations": outputs are means over such views of each picture.
        max_detections: the most objects of a picture that are scored, by default as in training.
        results: a file for what was found, as COCO's results.
        advance: gets the number of pictures done.
        warn: gets what a person should know of the choice of pictures.

    Returns:
        `split`, `tta` where it was given, `rows`, `classes`, every score by bare name, `per_class`, and `ms_per_image`,
        of the model alone: reading and pre-processing are left out; `loss` too, but not at native size.

    Raises:
        ValueError: there is no such run or split, or the data does not go with it.
    """
    check_is_path("data", data)
    trained = find_trained(run, storage)
    found, recipe = trained.facts, limited(Recipe.from_json(trained.facts["recipe"]), max_detections)
    check_overlap(overlap)
    check_views(tta, recipe)
    kind = predictions.of_meta(trained.dataset)
    _refuse_options(run, kind, native=native, sliding=sliding, results=results)
    file = None if results is None else absolute(results)
    source, split = find_split(recipe, found, data, split, warn)
    marked = {"split": split} if tta is None else {"split": split, "tta": tta}
    if native or sliding:
        predictor = Predictor(trained, sliding, overlap, tta=tta, max_detections=max_detections)
        return {**marked, **kind.evaluate(predictor, source, split, advance, file)}
    opened = open_split(recipe, source, split, trained.dataset, Store(storage or trained.storage or default_storage()))
    state, world = trained.restore(recipe, opened.meta, tta=tta)
    run_ = Run(recipe=recipe, state=state, data=opened, world=world, model=state.model)
    if file is not None:
        items = _items(source, split, opened)
        run_.task = recording = kind.recording(run_.task, items, recipe, trained.dataset)
    loss, counts, ms_per_image = evaluate_split(run_, split)
    if file is not None:
        recording.write(file)
    for name in {"confusion", "labels", "truths"} & counts.keys():
        targets.kind(source.target).check_counts([int(counts[name].sum())], split, recipe.dataset)
    rows = int(opened.meta["rows"][split])
    advance(rows)
    for warning in opened.take_warnings() if isinstance(opened, Decoded) else ():
        warn(warning)
    about = {**marked, "rows": rows, "classes": opened.meta["classes"], "loss": loss}
    return {**about, "ms_per_image": ms_per_image, **run_.task.scores(counts)}


def _refuse_options(run: str, kind: Predictions, *, native: bool, sliding: bool, results: str | None) -> None:
    """Raises ValueError for what does not go with the run's kind of predictions."""
    if native and not kind.native:
        raise ValueError(f"the run {run} {kind.holds}: --native is for masks; leave it out")
    if sliding and not kind.own_size:
        raise ValueError(f"the run {run} {kind.holds}: --sliding is for masks and boxes; leave it out")
    if results is not None and not kind.results:
        raise ValueError(f"the run {run} {kind.holds}: --results is for runs that find objects; leave it out")
    if results is not None and not os.path.isdir(os.path.dirname(absolute(results))):
        raise ValueError(f"--results {results} cannot be written: its folder is not there; create it")


def _items(source: Source, split: str, opened: Cached | Decoded) -> list[tuple[str, Item]]:
    """The name of each row, and its item."""
    owners = {name: item for item in source.splits[split] for name in item.names}
    return [(name, owners[name]) for name in opened.meta["names"][split]]


def find_split(
    recipe: Recipe, run: RunFacts, data: str | None, split: str | None, warn: Callable[[str], None]
) -> tuple[Source, str]:
    """The listing of the pictures to score, their classes numbered as the run's, and the split.

    Args:
        recipe: of the run.
        run: what run.json holds.
        data, split, warn: as of `evaluate`.

    Raises:
        ValueError: there is no such split, or the data does not go with the run.
    """
    begun, lay = run["dataset"], run["scale"].get("data")
    other = data is not None and (lay is None or os.path.realpath(os.path.expanduser(data)) != os.path.realpath(lay))
    found = _scored(recipe, data, begun["classes"]) if other else None
    if found is not None:
        chosen = next(name for name in FIRST if name in found.splits) if split is None else split
        if split is None and chosen == ALL and (moved := _as_trained(recipe, data, begun)) is not None:
            found, chosen = moved, next(name for name in FIRST if name in moved.splits)
        elif chosen == ALL:
            rows = found.rows[ALL]
            warn(
                f"{data} has no folders of splits: all its {rows:,} pictures are scored, also those that the run "
                "learned from, should there be any; --split val scores the part that training would set aside"
            )
        elif chosen not in found.splits and (ALL in found.splits or (chosen == "val" and "train" in found.splits)):
            found = None  # as training would split it
    if found is None:
        found = _listed(recipe, data or lay, begun, split)
        chosen = split or next(name for name in FIRST if name in found.splits)
    if chosen not in found.splits:
        raise ValueError(f"the data has no split {chosen!r}; it has {', '.join(found.splits)}")
    if not any(item.targets for item in found.splits[chosen]):
        raise ValueError(f"{data or lay or recipe.dataset} holds no pictures in the split {chosen!r}; add some")
    for warning in found.warnings if other else _find_other_pictures(found, run):
        warn(warning)
    return _number(found, chosen, begun["classes"], run["name"], data or lay or recipe.dataset), chosen


def _listed(recipe: Recipe, data: str | None, begun: DatasetFacts, split: str | None) -> Source:
    """The data as in training; where it lacks what training needs, what there is, if that will do."""
    try:
        return scan_files(recipe, data)
    except ValueError:
        with contextlib.suppress(ValueError):
            found = _scored(recipe, data, begun["classes"])
            if found is not None and (split or found.splits.keys() - {ALL}) and split in (None, *found.splits):
                return found
        raise


def _find_other_pictures(found: Source, run: RunFacts) -> list[str]:
    """A warning where the data of a run is no longer what it was when the run began."""
    then = list_known(run["dataset"])
    if not found.splits.keys() >= set(LEARNED) or then.digest in (None, list_source(found).digest):
        return []
    counts = [
        f"{count:,} {split} pictures (now {found.rows.get(split, 0):,})" for split, count in then.pictures.items()
    ]
    return [
        f"the run {run['name']} began with {' and '.join(counts) or 'other pictures'}, and names or classes differ: it "
        "may have learned from some of those that are scored now"
    ]


def _scored(recipe: Recipe, data: str | None, known: Sequence[str]) -> Source | None:
    """Other data, with the splits that it has; None: the data set lists it as for training."""
    found = contract.list_scored(recipe.dataset, data, known, recipe.dataset_args)
    if found is not None:
        targets.check_task(recipe.task, found, recipe.dataset)
    return found


def _as_trained(recipe: Recipe, data: str | None, begun: DatasetFacts) -> Source | None:
    """The data as in training, where it is that of training, moved."""
    try:
        found = scan_files(recipe, data)
    except ValueError:
        return None
    then, now = list_known(begun), list_source(found)
    same = then.digest == now.digest if then.digest is not None else then.pictures == now.pictures
    return found if same and list(then.classes) == list(now.classes) else None


def _number(source: Source, split: str, classes: Sequence[str], run: str, data: str) -> Source:
    """The listing with the run's classes and numbers. Raises ValueError for a class that the run does not know."""
    if list(source.classes) == list(classes):
        return source
    places = {composed(name): number for number, name in enumerate(classes)}
    target = targets.kind(source.target)
    listed = target.listed(source.splits[split], len(source.classes))
    used = range(len(source.classes)) if listed is None else target.occurring(listed)
    unknown = [source.classes[number] for number in used if composed(source.classes[number]) not in places]
    if unknown:
        raise ValueError(
            f"{data} holds classes that the run {run} does not know: {shortened(unknown)}; it knows "
            f"{shortened(classes)}. Rename them, or leave them out"
        )
    numbers = [places.get(composed(name), 0) for name in source.classes]  # those that are not known do not occur
    return dataclasses.replace(source, classes=list(classes), numbers=numbers)


def open_split(recipe: Recipe, source: Source, split: str, begun: DatasetFacts, storage: Store) -> Cached | Decoded:
    """The pictures of a split: prepared ones where there are some, else decoded while they are scored.

    Args:
        recipe: of the run.
        source, split: as of `find_split`.
        begun: `dataset` of run.json.
        storage: beside whose runs prepared pictures lie.
    """
    cache, there = cache_folder(storage), published(storage)
    if source.numbers is None and _is_prepared(cache_key(recipe, source), Store(cache), there):
        cached = Cached(prepare(recipe, source, cache, published=there))
        cached.meta = keep_numbers(cached.meta, begun)
        return cached
    return Decoded(recipe, source, split, cast(Meta, begun))


def _is_prepared(key: str, cache: Store, there: Store | None) -> bool:
    return any(shard_transfer.META in (place / key).names() for place in (cache, there) if place is not None)
