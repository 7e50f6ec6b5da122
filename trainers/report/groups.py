"""Which runs are compared with one another: those of one task on the same data. Scores of others say nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import PurePath

from trainers.report.reader import Run
from trainers.report.sweep_stats import number


def dataset_of(run: Run) -> str | None:
    """The name of its data set, and of the folder with the pictures where that says more: "image_folder gravel"."""
    name, folder = run.get("dataset", "name") or run.get("recipe", "dataset"), run.get("scale", "data")
    if name is None:
        return None
    last = PurePath(str(folder)).name if folder else ""
    return f"{name} {last}" if last and last != name else str(name)


def task_of(run: Run) -> str | None:
    """What it learns; of a sweep in one row too."""
    found = run.get("recipe", "task") or run.get("dataset", "task")
    return None if found is None else str(found)


def grouped(runs: Sequence[Run]) -> dict[str, str]:
    """Which group each run is in.

    Runs of one task are of the same data where these have one name, folder, classes and number of pictures, or one
    fingerprint (which the size of the pictures is part of). All trials of a sweep are, but those of another data set or
    task by name.

    Returns:
        Address of a run's folder -> the name of its group: "digits, classify". A run of which nothing is known is in
        the group "".
    """
    of: dict[Hashable, Hashable] = {}

    def root(mark: Hashable) -> Hashable:
        while (above := of.setdefault(mark, mark)) != mark:
            mark = above
        return mark

    for run in runs:
        for mark in _marks(run):
            of[root(mark)] = root(run.store.address)
    members: dict[Hashable, list[Run]] = {}
    for run in runs:
        members.setdefault(root(run.store.address), []).append(run)
    names = _names(list(members.values()))
    return {run.store.address: name for name, those in zip(names, members.values(), strict=True) for run in those}


def _marks(run: Run) -> Iterator[Hashable]:
    """What two runs of one group share."""
    name, task = dataset_of(run), task_of(run)
    if name is None:
        yield "unknown"
        return
    data = [run.get("dataset", "classes"), run.get("dataset", "rows")]
    yield name, task, json.dumps(data, sort_keys=True)
    if fingerprint := run.get("dataset", "fingerprint"):
        yield task, str(fingerprint)
    if run.sweep:
        yield run.sweep, name, task


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Those of the groups; where two would be called the same, with the number of pictures, or numbered."""
    names = [_name(runs[0]) for runs in groups]
    again = Counter(names)
    names = [
        f"{name}{_pictures(runs[0])}" if again[name] > 1 else name for name, runs in zip(names, groups, strict=True)
    ]
    again, seen = Counter(names), Counter[str]()
    for place, name in enumerate(names):
        seen[name] += 1
        if again[name] > 1:
            names[place] = f"{name} ({seen[name]})"
    return names


def _name(run: Run) -> str:
    return ", ".join(filter(None, [dataset_of(run), task_of(run)]))


def _pictures(run: Run) -> str:
    rows = run.get("dataset", "rows")
    many = [number(each) or 0.0 for each in rows.values()] if isinstance(rows, Mapping) else []
    return f", {sum(many):,.0f} pictures" if many else ""
