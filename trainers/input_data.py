"""The pictures of a recipe, from their listing to what a run reads: for a run, and for all trials of a sweep."""

from __future__ import annotations

from pathlib import Path

from trainers.checks import check_model
from trainers.datasets import Source
from trainers.messages import DataSpec
from trainers.progress import Progress
from trainers.recipe import Recipe, Scale
from trainers.runs import code
from trainers.runtime.addresses import cluster_address
from trainers.runtime.preflight import this_node
from trainers.storage.store import Store, default_storage


def list_data(recipe: Recipe, scale: Scale, progress: Progress) -> Source:
    """The listing of the data set. Raises ValueError where it cannot be used."""
    from trainers.data import targets  # with NumPy: not needed to refuse a wrong name
    from trainers.data.source import scan_files

    source = scan_files(code.absolute(recipe), scale.data)
    for warning in (*source.warnings, *targets.kind(source.target).doubts(recipe.augment)):
        progress.warning(warning)
    return source


def check_trial(recipe: Recipe, scale: Scale, source: Source) -> None:
    """Check a model before pictures are decoded. Raises ValueError where it does not go with the data."""
    check_model(code.absolute(recipe), source, weights=reads_here(scale), workers=scale.worker_range[1])


def prepare_data(recipe: Recipe, scale: Scale, source: Source, progress: Progress) -> DataSpec:
    """Decode the pictures to shards on disk, or decide to stream them.

    Args:
        recipe: Its data set and sizes.
        scale: Where it runs. Ray, if that asks for it, is connected to already.
        source: What `list_data` found.
        progress: Where messages go.

    Returns:
        The data, as `fit` takes it.

    Raises:
        ValueError: The pictures cannot be used.
    """
    from trainers.data.batches import Cached
    from trainers.data.meta import describe
    from trainers.data.prepare import measure, prepare
    from trainers.data.prepared_sets import note_superseded
    from trainers.data.source import cache_folder, choose_mode, list_digest, published

    recipe, storage = code.absolute(recipe), Store(scale.storage or default_storage())
    cache, there = cache_folder(storage), published(storage)
    mode = choose_mode(scale.data_mode, recipe, source, cache, ray=scale.on_ray)
    doing = "measuring pictures, once" if mode == "stream" else "preparing pictures"
    with progress.bar(doing, sum(source.rows.values())) as advance:  # nothing moves where it was done before
        found = (measure if mode == "stream" else prepare)(
            recipe, source, cache, published=there, ray=scale.on_ray, advance=advance, warn=progress.warning
        )
    folder, meta = (found, Cached(found).meta) if isinstance(found, Path) else (None, found)
    meta = {**meta, "listing": list_digest(source)}
    for line in describe(meta):
        progress.message(line)
    if folder is not None and (note := note_superseded(folder)):
        progress.message(note)
    if recipe.batch_size > meta["rows"]["train"] and "batch_size" not in recipe.from_data:
        progress.warning(
            f"batch_size={recipe.batch_size} is more than the {meta['rows']['train']} training pictures: "
            "each epoch is a single step"
        )
    return {
        "mode": "stream" if mode == "stream" else "cache",
        "folder": None if folder is None else str(folder),
        "published": None if folder is None or there is None else (there / folder.name).address,
        "node": this_node() if scale.on_ray else None,
        "meta": meta,
    }


def reads_here(scale: Scale) -> bool:
    """Whether the workers run on this machine, and read what it has."""
    return not scale.on_ray or cluster_address() is None
