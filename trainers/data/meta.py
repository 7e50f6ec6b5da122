"""What `meta.json` says of a prepared data set: classes, counts, mean, what was skipped or repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np

from trainers.data import targets
from trainers.datasets import Source
from trainers.messages import Meta, Repeated, ShardResult, SkippedImage
from trainers.recipe import Recipe

SHOWN = 20
"""Skipped or repeated pictures that a message names."""
LISTED = 1000
"""Bad pictures that the message names that ends a run."""
CLASSES_SHOWN = 12
"""Classes whose counts are printed."""


class Part(TypedDict):
    """What is known of some rows of a split: of a shard, or of a sample."""

    split: str
    rows: int
    counts: list[int]
    areas: NotRequired[list[int]]


def report_bad(bad: Sequence[SkippedImage]) -> str:
    """The message that ends a run."""
    lines = "\n".join(f"  {entry['name']}: {entry['why']}" for entry in bad[:LISTED])
    more = f"\n  and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
    what = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
    return f"{what} cannot be used:\n{lines}{more}\nfix or remove them, or give --on-bad-image skip"


def summarise(recipe: Recipe, source: Source, done: Sequence[ShardResult], bad: Sequence[SkippedImage]) -> Meta:
    """What `meta.json` holds.

    Args:
        recipe, source: what was prepared.
        done: of each shard, in order.
        bad: pictures that could not be used.

    Raises:
        ValueError: a split has no picture, or nothing to learn from.
    """
    train = [result for result in done if result["split"] == "train"]
    pixels = sum(result["rows"] for result in train) * recipe.storage_size[0] * recipe.storage_size[1]
    for split in ("train", "val"):
        if not any(result["rows"] for result in done if result["split"] == split):
            raise ValueError(f"no picture of the {split} split of {recipe.dataset} can be used; {report_bad(bad)}")
    mean = np.sum([result["sum"] for result in train], axis=0) / pixels
    variance = np.sum([result["squares"] for result in train], axis=0) / pixels - mean**2
    fingerprint = hashlib.sha256()
    for result in done:
        for content, target in zip(result["hashes"], result["targets"], strict=True):
            fingerprint.update(f"{result['split']} {content} {target}\n".encode())
    meta = describe_data(
        recipe,
        source,
        done,
        mean=(mean / 255).tolist(),
        std=np.sqrt(np.maximum(variance, 1e-12) / 255**2).tolist(),
        skipped=bad,
        repeated=_find_repeated(done, source),
        fingerprint=fingerprint.hexdigest(),
    )
    meta["shards"] = {
        split: [result["file"] for result in done if result["split"] == split and result["rows"]]
        for split in source.splits
    }
    meta["files"] = {result["file"]: check for result in done if (check := result["check"]) is not None}
    if targets.kind(source.target).names_rows:
        meta["names"] = {
            split: [name for result in done if result["split"] == split for name in result["names"]]
            for split in source.splits
        }
    return meta


def describe_data(
    recipe: Recipe,
    source: Source,
    done: Sequence[Part] | Sequence[ShardResult],
    *,
    mean: list[float],
    std: list[float],
    skipped: Sequence[SkippedImage],
    repeated: dict[str, Repeated],
    fingerprint: str,
) -> Meta:
    """What the data is, and how often each class occurs in the parts that were read.

    Args:
        recipe: names the data set and the stored size.
        source: the data set's listing.
        done: the parts that were read.
        mean: of the training split, for each channel, of values in [0, 1].
        std: standard deviation, likewise.
        skipped: pictures that could not be used.
        repeated: "splits" and "classes" -> pictures that occur in two of them.
        fingerprint: digest of all pixels and targets.

    Raises:
        ValueError: a split holds nothing to learn from.
    """
    target = targets.kind(source.target)
    parts: dict[str, list[Part | ShardResult]] = {split: [] for split in source.splits}
    for part in done:
        parts[part["split"]].append(part)
    zeros = [0] * len(source.classes)
    counts = {
        split: np.sum([zeros, *(part["counts"] for part in some)], axis=0).tolist() for split, some in parts.items()
    }
    facts: Meta = {
        "dataset": recipe.dataset,
        "classes": list(source.classes),
        "channels": source.channels,
        "target": target.name,
        "masks": target.legacy_masks,
        "colours": None if source.colours is None else [list(colour) for colour in source.colours],
        "size": list(recipe.storage_size),
        "rows": {split: sum(part["rows"] for part in some) for split, some in parts.items()},
        "class_counts": counts,
        "mean": mean,
        "std": std,
        "skipped": skipped,
        "repeated": repeated,
        "fingerprint": fingerprint,
    }
    if areas := [part["areas"] for part in parts["train"] if "areas" in part]:
        facts["class_areas"] = np.sum([zeros, *areas], axis=0).tolist()
    for split, found in counts.items():
        if facts["rows"][split]:
            target.check_counts(found, split, recipe.dataset)
    return facts


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
    if meta["skipped"]:
        names = ", ".join(entry["name"] for entry in meta["skipped"][:SHOWN])
        more = f" and {len(meta['skipped']) - SHOWN} more" if len(meta["skipped"]) > SHOWN else ""
        skipped = f"{len(meta['skipped'])} pictures were skipped as they cannot be used: {names}{more}"
        lines.append(f"warning: {skipped}; run.json lists all")
    for where, found in meta["repeated"].items():
        if found["count"]:
            example = found["examples"][0]
            lines.append(f"warning: {found['count']} pictures occur in two {where}, such as {example}")
    return lines
