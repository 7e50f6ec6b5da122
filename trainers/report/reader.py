"""Runs and sweeps as they lie in a storage: finding and reading them, whole, unfinished or broken."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainers.report.sweep_stats import WITHOUT_FOLDER, number, values_of
from trainers.storage.store import Store

HALF_WRITTEN = "no run.json yet; it is being started, or was cut off at its start"

Record = dict[str, Any]
Broken = list[tuple[str, str]]  # name, reason


@dataclass(frozen=True)
class Run:
    """A run folder and its `run.json`, of which any part may be missing while the run is going on.

    Of a sweep's trial, `info` also tells what only sweep.json does; it may have no run folder at all.
    """

    label: str
    store: Store
    info: Mapping[str, Any]
    trial: Mapping[str, Any] = field(default_factory=dict)
    """The entry in sweep.json; empty for a run of its own."""
    sweep: str = ""
    """The address of the sweep's folder; empty for a run of its own."""
    remark: str = ""
    """Why a trial's folder cannot be read; of a sweep that is one row, how to see its trials."""
    has_folder: bool = True

    def get(self, *path: str) -> Any:
        """The value at `path`, or None: `run.get("seconds", "total")`."""
        value: Any = self.info
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def number(self, *path: str) -> float | None:
        return number(self.get(*path))

    def setting(self, key: str) -> Any:
        """What `key` was set to, by the sweep or the recipe, or None: `run.setting("model_args.num_filters")`."""
        values = values_of(self.trial)
        return values[key] if key in values else self.get("recipe", *key.split("."))


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder: `sweep.json`, of which any part may be missing, and its trials by number."""

    label: str
    store: Store
    info: Mapping[str, Any]
    runs: Sequence[Run]

    @property
    def trials(self) -> list[Mapping[str, Any]]:
        """The entries of sweep.json, in the order of `runs`."""
        return [run.trial for run in self.runs if run.trial]

    def get(self, *path: str) -> Any:
        return Run(self.label, self.store, self.info).get(*path)


@dataclass(frozen=True)
class Found:
    """Each run once, the sweeps whose trials are among them, and the names and reasons of what cannot be read."""

    runs: list[Run]
    sweeps: list[Sweep]
    broken: Broken


def find(names: Sequence[str], storage: Store, first: Sequence[Run] = ()) -> Found:
    """The runs asked for: names below `storage` or paths of runs, sweeps, or folders of runs; none: all of `storage`.

    `first` come before them, where they are not among them. In a folder of runs a sweep is a row of its own; asked for
    by name, it is its trials. Raises ValueError for what does not exist or cannot be read, and for a storage without
    runs.
    """
    groups = [resolve(name, storage) for name in names] if names else [_below(storage)]
    found: dict[str, Run] = {}
    for run in (run for group in groups for run in group.runs):
        if run.trial or run.store.address not in found:
            found[run.store.address] = run
    broken = list(dict.fromkeys(entry for group in groups for entry in group.broken))
    sweeps = list({sweep.store.address: sweep for group in groups for sweep in group.sweeps}.values())
    if not found and not broken and not sweeps:
        raise ValueError(
            f"{storage.address} holds no runs; train one (python -m trainers train RECIPE), "
            "or name the folder of your runs with --storage"
        )
    found = {run.store.address: run for run in first if run.store.address not in found} | found
    labels = _told_apart({address: run.label for address, run in found.items()})
    found = {address: replace(run, label=labels[address]) for address, run in found.items()}
    labels = _told_apart({sweep.store.address: sweep.label for sweep in sweeps})
    sweeps = [
        replace(sweep, label=labels[sweep.store.address], runs=[found[run.store.address] for run in sweep.runs])
        for sweep in sweeps
    ]
    return Found(list(found.values()), sweeps, broken)


def _told_apart(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of addresses, with as many folders in front as make each unique."""
    labels = dict(labels)
    for parts in range(2, 2 + max((address.count("/") for address in labels), default=0)):
        again = Counter(labels.values())
        for address, label in labels.items():
            if again[label] > 1:
                labels[address] = "/".join(address.partition("?")[0].rstrip("/").split("/")[-parts:])
    return labels


def with_trials(found: Found) -> Found:
    """The same with the trials of its sweeps in place of their rows."""
    sweeps = {run.store.address: read_sweep(run.store) for run in found.runs if not run.trial}
    groups = [sweep.runs if (sweep := sweeps.get(run.store.address)) else [run] for run in found.runs]
    return replace(found, runs=[run for group in groups for run in group])


def resolve(name: str, storage: Store) -> Found:
    """The run, the sweep's trials or the folder's runs of that name. Raises ValueError where there is none."""
    places = [Store(name)]
    if "://" not in name and not name.startswith(("/", ".", "~")):
        places.insert(0, storage / name)
    for place in places:
        if run := _load(place):
            return Found([run], [], [])
        if sweep := read_sweep(place):
            return Found(list(sweep.runs), [sweep], [])
    for place in places:
        below = _below(place)
        if below.runs:
            return below
    if any(_is_half_written(place) for place in places):
        raise ValueError(f"run {name!r} cannot be read: {HALF_WRITTEN}")
    known = [run.label for run in _below(storage).runs]
    near = difflib.get_close_matches(name, known) or known[:5]
    hint = f"the nearest names are {', '.join(near)}" if near else f"{storage.address} holds no runs"
    raise ValueError(f"there is no run {name!r}, neither in {storage.address} nor as a path; {hint}")


def read_sweep(folder: Store) -> Sweep | None:
    """The sweep of a folder, its trials in the order of their numbers; None where there is no sweep.json.

    Trials without a run folder are runs too; run folders that sweep.json does not name come last. Raises ValueError
    saying why sweep.json is broken. A run.json that is broken is told in that run's `remark`.
    """
    names = _names(folder)
    if "sweep.json" not in names:
        return None
    info = _read_object(folder, "sweep.json")
    listed = _listed(folder, info)
    trials = {str(trial.get("name") or f"trial {place}"): trial for place, trial in enumerate(listed)}
    order = sorted(trials, key=lambda name: _order(trials[name]))
    runs = [_trial(folder, name, {**trials[name], "name": name}, info, name in names) for name in order]
    unlisted = [_trial(folder, name, {}, info, True) for name in names if name not in trials and name[0] != "."]
    return Sweep(folder.name, folder, info, [*runs, *(run for run in unlisted if run.info or run.remark)])


def _listed(folder: Store, info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = info.get("trials") or []
    if not isinstance(listed, list) or not all(isinstance(trial, Mapping) for trial in listed):
        raise ValueError(f"{folder.address}/sweep.json: trials is not a list of objects")
    return listed


def _order(trial: Mapping[str, Any]) -> float:
    place = number(trial.get("number"))
    return float("inf") if place is None else place


def _trial(folder: Store, name: str, trial: Mapping[str, Any], sweep: Mapping[str, Any], has_folder: bool) -> Run:
    """A trial as a run. The sweep's word on its status counts: only it knows who stopped a run, and why."""
    store, remark = folder / name, ""
    info: Record = {}
    has_folder = has_folder and trial.get("status") not in WITHOUT_FOLDER
    if has_folder:
        try:
            run = _load(store)
            info = dict(run.info) if run else {}
        except ValueError as error:
            remark = str(error)
    if trial:
        fallback = {
            "name": name,
            "recipe_name": sweep.get("recipe_name"),
            "epochs_run": trial.get("epochs_run"),
            "best": trial.get("best"),
        }
        known = {key: value for key, value in info.items() if value is not None}
        info = {**fallback, **known, "status": trial.get("status") or info.get("status"), "trial": dict(trial)}
        info["best"] = trial.get("best") or info["best"]  # by the sweep's metric
    return Run(name, store, info, trial, folder.address, remark, has_folder)


def _below(folder: Store) -> Found:
    """The runs that lie directly in a folder; a sweep is one row."""
    runs: list[Run] = []
    broken: Broken = []
    for name in _names(folder):
        if name.startswith("."):
            continue
        try:
            run = _load(folder / name) or _sweep_row(folder / name)
            if run is not None:
                runs.append(run)
            elif _is_half_written(folder / name):
                broken.append((name, HALF_WRITTEN))
        except ValueError as error:
            broken.append((name, str(error)))
    return Found(runs, [], broken)


def _sweep_row(folder: Store) -> Run | None:
    """A sweep as one row among runs: its whole time and cost, the epochs of all trials, the winner's score."""
    if "sweep.json" not in _names(folder):
        return None
    info = _read_object(folder, "sweep.json")
    trials = _listed(folder, info)
    winner = next((trial for trial in trials if trial.get("name") == info.get("winner")), {})
    epochs = info.get("epochs")
    kept = "name status message recipe_name machine versions commit started finished seconds concurrency winner".split()
    row = {key: info[key] for key in kept if key in info}
    row |= {"best": winner.get("best"), "epochs_run": epochs.get("run") if isinstance(epochs, Mapping) else None}
    return Run(folder.name, folder, row, remark=f"a sweep of {len(trials)} trials; report {folder.name} shows them")


def _load(folder: Store) -> Run | None:
    """The run of a folder; None where there is no run.json. Raises ValueError saying why one is broken."""
    if "run.json" not in _names(folder):
        return None
    return Run(folder.name, folder, _read_object(folder, "run.json"))


def _read_object(folder: Store, name: str) -> Mapping[str, Any]:
    try:
        info = folder.read_json(name)
    except OSError as error:
        raise ValueError(f"{folder.address}/{name} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{folder.address}/{name} is not text") from None
    if not isinstance(info, dict):
        raise ValueError(f"{folder.address}/{name} does not hold an object")
    return info


def _is_half_written(folder: Store) -> bool:
    return bool({"metrics.jsonl", "checkpoints"} & set(_names(folder)))


def _names(folder: Store) -> list[str]:
    try:
        return folder.names()
    except NotADirectoryError:  # some file systems say so, others list nothing
        return []
    except OSError as error:
        raise ValueError(f"{folder.address} cannot be read: {error.strerror or error}") from None


def read_metrics(run: Run) -> tuple[list[Record], str]:
    """The lines of metrics.jsonl, and what is wrong with them, if anything."""
    if not run.has_folder:
        return [], ""
    try:
        text = run.store.read("metrics.jsonl").decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return [], ""
    except OSError as error:
        return [], f"metrics.jsonl cannot be read: {error.strerror or error}"
    lines: list[Record] = []
    for place, line in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            return lines, f"metrics.jsonl is broken from line {place} on"
        if isinstance(value, dict):
            lines.append(value)
    return lines, ""
