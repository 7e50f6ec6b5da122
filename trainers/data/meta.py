"""What `meta.json` says of a prepared data set: classes, counts, mean, what was skipped or repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from trainers import notices
from trainers.data import targets
from trainers.datasets import Source
from trainers.messages import Meta, ShardResult
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Repeated, SkippedImage

SHOWN = 20
"""Skipped or repeated pictures that a message names."""
LISTED = 1000
"""Bad pictures that the message names that ends a run."""
ROUNDING = 1 / 12
"""Variance that rounding to whole levels adds to a channel."""
CLASSES_SHOWN = 12
"""Classes whose counts are printed."""


def report_bad(bad: Sequence[SkippedImage]) -> str:
    """The message that ends a run."""
    lines = "\n".join(f"  {entry['name']}: {entry['why']}" for entry in bad[:LISTED])
    more = f"\n  and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
    what = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
    return f"{what} cannot be used:\n{lines}{more}\nfix or remove them, or give --on-bad-image skip"


def summarise(recipe: Recipe, source: Source, done: Sequence[ShardResult], bad: Sequence[SkippedImage]) -> Meta:
    """What `meta.json` holds.

    Args:
        recipe, source: what was decoded.
        done: of each chunk of pictures, in order.
        bad: pictures that could not be used.

    Raises:
        ValueError: a split that training needs has no picture, or nothing to learn from.
    """
    target = targets.kind(source.target)
    parts = {split: [result for result in done if result["split"] == split] for split in source.splits}
    for split in ("train", "val"):
        if not any(result["rows"] for result in parts[split]):
            raise ValueError(f"no picture of the {split} split of {recipe.dataset} can be used; {report_bad(bad)}")
    zeros = [0] * len(source.classes)
    counts = {
        split: np.sum([zeros, *(result["counts"] for result in some)], axis=0).tolist() for split, some in parts.items()
    }
    mean, std = _mean_and_std(recipe, parts["train"])
    meta: Meta = {
        "dataset": recipe.dataset,
        "classes": list(source.classes),
        "channels": source.channels,
        "target": target.name,
        "masks": target.legacy_masks,
        "colours": None if source.colours is None else [list(colour) for colour in source.colours],
        "class_ids": None if source.class_ids is None else list(source.class_ids),
        "size": list(recipe.storage_size),
        "rows": {split: sum(result["rows"] for result in some) for split, some in parts.items()},
        "class_counts": counts,
        "mean": mean,
        "std": std,
        "skipped": bad,
        "repeated": _find_repeated(done, source),
        "fingerprint": _fingerprint(done),
        "fingerprints": {split: _fingerprint(some) for split, some in parts.items()},
        "notices": {},
    }
    for result in done:
        notices.merge(meta["notices"], result["notices"])
    for split in ("train", "val"):
        target.check_counts(counts[split], split, recipe.dataset)
    _add_extents(meta, parts["train"])
    if target.names_rows:
        meta["names"] = {split: [name for result in some for name in result["names"]] for split, some in parts.items()}
    identified = [row for result in parts["train"] for row in result["targets"]]
    if facts := target.facts(identified, len(source.classes)):
        meta["target_facts"] = facts
    if files := {result["file"]: check for result in done if (check := result["check"]) is not None}:
        meta["files"] = files
        meta["shards"] = {split: [result["file"] for result in some if result["rows"]] for split, some in parts.items()}
    return meta


def _add_extents(meta: Meta, train: Sequence[ShardResult]) -> None:
    """What some kinds of targets count besides."""
    if areas := [result["areas"] for result in train if "areas" in result]:
        meta["class_areas"] = np.sum(areas, axis=0).tolist()
    if most := [result["most_objects"] for result in train if "most_objects" in result]:
        meta["most_objects"] = max(most)
    if layers := [result["layers"] for result in train if "layers" in result]:
        meta["layers"] = max(layers)


def _mean_and_std(recipe: Recipe, train: Sequence[ShardResult]) -> tuple[list[float], list[float]]:
    """Of each channel of the training split, of values in [0, 1].

    A channel that is the same in all pictures has a deviation of 0, by which nothing can be divided: the first other
    value would be infinite. No channel has less than what comes from rounding to whole levels.
    """
    pixels = sum(result["rows"] for result in train) * recipe.storage_size[0] * recipe.storage_size[1]
    mean = np.sum([result["sum"] for result in train], axis=0) / pixels
    variance = np.sum([result["squares"] for result in train], axis=0) / pixels - mean**2
    return (mean / 255).tolist(), np.sqrt(np.maximum(variance, ROUNDING) / 255**2).tolist()


def _fingerprint(done: Sequence[ShardResult]) -> str:
    """A digest of all pixels and targets."""
    fingerprint = hashlib.sha256()
    for result in done:
        for content, target in zip(result["hashes"], result["targets"], strict=True):
            fingerprint.update(f"{result['split']} {content} {target}\n".encode())
    return fingerprint.hexdigest()


def keep_numbers(meta: Meta, begun: DatasetFacts) -> Meta:
    """A data set as a run that has begun sees it: normalised and weighted by the numbers that it began with.

    Args:
        meta: what is known of the data now.
        begun: `dataset` of the run's run.json.
    """
    if begun.get("classes") != meta["classes"]:
        return meta
    found: Mapping[str, object] = begun
    names = ("mean", "std", "class_counts", "class_areas", "target_facts")
    kept = {name: found[name] for name in names if name in found}
    return cast(Meta, {**meta, **kept})


def _find_repeated(done: Sequence[ShardResult], source: Source) -> dict[str, Repeated]:
    """Pictures with equal pixels in two splits or in two classes: how many, and some of their names."""
    one_class = targets.kind(source.target).one_class
    first: dict[str, tuple[str, str, int | str]] = {}
    found: dict[str, list[str]] = {"splits": [], "classes": []} if one_class else {"splits": []}
    for result in done:
        split = result["split"]
        for content, name, target in zip(result["hashes"], result["names"], result["targets"], strict=True):
            seen_split, seen_name, seen_target = first.setdefault(content, (split, name, target))
            if seen_split != split:
                found["splits"].append(f"{seen_split}: {seen_name} = {split}: {name}")
            if one_class and seen_target != target:
                pair = [f"{source.classes[int(seen_target)]}: {seen_name}", f"{source.classes[int(target)]}: {name}"]
                found["classes"].append(" = ".join(pair))
    return {where: {"count": len(pairs), "examples": pairs[:SHOWN]} for where, pairs in found.items()}


def describe(meta: Meta) -> list[str]:
    """What was read, per split and class in the classes' order, and what is suspicious, as lines for people."""
    classes = meta["classes"]
    target = targets.of_meta(meta)
    lines = []
    for split, counts in meta["class_counts"].items():
        pairs = list(zip(classes, target.format_counts(counts), strict=True))[:CLASSES_SHOWN]
        shown = ", ".join(f"{name} {count}" for name, count in pairs)
        more = f", and {len(classes) - CLASSES_SHOWN} more classes" if len(classes) > CLASSES_SHOWN else ""
        lines.append(f"{split}: {meta['rows'][split]:,} pictures ({shown}{more})")
        if meta["rows"][split] and not any(counts):
            lines.append(f"warning: {target.blank.format(split=split)}: it cannot be scored")
    lines += target.describe(meta.get("target_facts", {}), classes)
    if meta["skipped"]:
        names = ", ".join(entry["name"] for entry in meta["skipped"][:SHOWN])
        more = f" and {len(meta['skipped']) - SHOWN} more" if len(meta["skipped"]) > SHOWN else ""
        skipped = f"{len(meta['skipped'])} pictures were skipped as they cannot be used: {names}{more}"
        lines.append(f"warning: {skipped}; run.json lists all")
    for where, found in meta["repeated"].items():
        if found["count"]:
            example = found["examples"][0]
            lines.append(f"warning: {found['count']} pictures occur in two {where}, such as {example}")
    return [*lines, *(f"warning: {line}" for line in notices.describe(meta.get("notices", {})))]
