"""What `meta.json` says of a prepared data set: classes, counts, mean, what was skipped or repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainers.data.batches import Array
from trainers.datasets import IGNORED, Source
from trainers.recipe import Recipe

SHOWN = 20
"""Skipped or repeated pictures that a message names."""


LISTED = 1000
"""Bad pictures that the message names that ends a run."""


def hash_pixels(pixels: Array) -> str:
    return hashlib.blake2b(pixels.tobytes(), digest_size=12).hexdigest()


def count_targets(targets: Array, classes: int) -> dict[str, list[int]]:
    """How often each class occurs: `counts` of pictures, or of pixels with, in `areas`, the labelled pixels of the
    pictures in which the class occurs."""
    if targets.ndim == 1:
        return {"counts": np.bincount(targets, minlength=classes).tolist()}
    counts, areas = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for mask in targets:
        found = np.bincount(mask.reshape(-1), minlength=256)[:classes]
        counts += found
        areas += np.where(found > 0, found.sum(), 0)
    return {"counts": counts.tolist(), "areas": areas.tolist()}


def report_bad(bad: Sequence[Mapping[str, str]]) -> str:
    lines = "\n".join(f"  {entry['name']}: {entry['why']}" for entry in bad[:LISTED])
    more = f"\n  and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
    what = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
    return f"{what} cannot be used:\n{lines}{more}\nmend or remove them, or give --on-bad-image skip"


def summarise(recipe: Recipe, source: Source, done: Sequence[Mapping[str, Any]], bad: list[Any]) -> dict[str, Any]:
    """What `meta.json` holds."""
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
    meta = {
        **describe_data(recipe, source, done),
        "mean": (mean / 255).tolist(),
        "std": np.sqrt(np.maximum(variance, 1e-12) / 255**2).tolist(),
        "skipped": bad,
        "repeated": _find_repeated(done, source),
        "fingerprint": fingerprint.hexdigest(),
        "shards": {
            split: [result["file"] for result in done if result["split"] == split and result["rows"]]
            for split in source.splits
        },
        "files": {result["file"]: result["check"] for result in done if result["rows"]},
    }
    if source.masks:
        meta["names"] = {
            split: [name for result in done if result["split"] == split for name in result["names"]]
            for split in source.splits
        }
    return meta


def describe_data(recipe: Recipe, source: Source, done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the data is, and how often each class occurs in the parts that were read."""
    parts = {split: [result for result in done if result["split"] == split] for split in source.splits}
    zeros = [0] * len(source.classes)
    counts = {split: np.sum([zeros, *(r["counts"] for r in some)], axis=0).tolist() for split, some in parts.items()}
    facts: dict[str, Any] = {
        "dataset": recipe.dataset,
        "classes": list(source.classes),
        "channels": source.channels,
        "masks": source.masks,
        "colours": None if source.colours is None else [list(colour) for colour in source.colours],
        "size": list(recipe.storage_size),
        "rows": {split: sum(result["rows"] for result in some) for split, some in parts.items()},
        "class_counts": counts,
    }
    if source.masks:
        facts["class_areas"] = np.sum([zeros, *(result["areas"] for result in parts["train"])], axis=0).tolist()
        for split, found in counts.items():
            if facts["rows"][split] and not sum(found):
                raise ValueError(
                    f"the masks of the {split} split of {recipe.dataset} hold nothing but ignored pixels ({IGNORED}): "
                    "there is nothing to learn or to score; annotate some, or leave the split out"
                )
    return facts


def _find_repeated(done: Sequence[Mapping[str, Any]], source: Source) -> dict[str, Any]:
    """Pictures with equal pixels in two splits or in two classes: how many, and some of their names."""
    first: dict[str, tuple[str, str, Any]] = {}
    found: dict[str, list[str]] = {"splits": []} if source.masks else {"splits": [], "classes": []}
    for result in done:
        split = result["split"]
        for content, name, target in zip(result["hashes"], result["names"], result["targets"], strict=True):
            seen_split, seen_name, seen_target = first.setdefault(content, (split, name, target))
            if seen_split != split:
                found["splits"].append(f"{seen_split}: {seen_name} = {split}: {name}")
            if seen_target != target and not source.masks:
                pair = [f"{source.classes[seen_target]}: {seen_name}", f"{source.classes[target]}: {name}"]
                found["classes"].append(" = ".join(pair))
    return {kind: {"count": len(pairs), "examples": pairs[:SHOWN]} for kind, pairs in found.items()}


def describe(meta: Mapping[str, Any]) -> list[str]:
    """What was read, per split and class, and what is suspicious, as lines for people."""
    classes = meta["classes"]
    lines = []
    for split, counts in meta["class_counts"].items():
        unit = "{:.1%}" if meta["masks"] else "{:,}"
        of = [count / max(1, sum(counts)) for count in counts] if meta["masks"] else counts
        shown = ", ".join(f"{name} {unit.format(count)}" for name, count in list(zip(classes, of, strict=True))[:12])
        more = f", and {len(classes) - 12} more classes" if len(classes) > 12 else ""
        lines.append(f"{split}: {meta['rows'][split]:,} pictures ({shown}{more})")
    if meta["skipped"]:
        names = ", ".join(entry["name"] for entry in meta["skipped"][:SHOWN])
        more = f" and {len(meta['skipped']) - SHOWN} more" if len(meta["skipped"]) > SHOWN else ""
        skipped = f"{len(meta['skipped'])} pictures were skipped as they cannot be used: {names}{more}"
        lines.append(f"warning: {skipped}; run.json lists all")
    for kind, found in meta["repeated"].items():
        if found["count"]:
            example = found["examples"][0]
            lines.append(f"warning: {found['count']} pictures occur in two {kind}, such as {example}")
    return lines
