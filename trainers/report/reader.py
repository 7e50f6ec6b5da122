"""Finding and reading the runs and sweeps in a storage, whether complete, unfinished or broken."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

from trainers.report.sweep_stats import WITHOUT_FOLDER, number, values_of
from trainers.storage.store import Store

HALF_WRITTEN = "no run.json yet; it is being started, or was cut off at its start"

Broken = list[tuple[str, str]]  # name, reason

RunKey = Literal[
    "best", "commit", "dataset", "epochs_run", "final", "finished", "images_per_second", "machine", "message", "name",
    "peak_memory_bytes", "recipe", "recipe_name", "scale", "seconds", "started", "status", "versions",
]  # fmt: skip
"""What a report reads of run.json: keys of `RunFacts`."""
SweepKey = Literal[
    "commit", "concurrency", "epochs", "finished", "machine", "memory_limit_bytes", "message", "metric", "mode", "name",
    "plan", "recipe_name", "scale", "seconds", "space_name", "started", "status", "trials", "versions",
    "winner",
]  # fmt: skip
"""What a report reads of sweep.json."""


class TrialFacts(TypedDict, total=False):
    """An entry of `trials` in sweep.json, as far as a report reads it; what is missing or of another kind is left out.

    The whole entry is `Run.info["trial"]`.
    """

    name: str
    number: float
    values: Mapping[str, object]
    """What the sweep set: {"lr": 0.1, "model_args.num_filters": 16}."""
    seed: float
    repeat_of: str
    status: str
    message: str
    micro_batch_size: float
    memory_bytes: float
    """Predicted."""
    epochs: float
    """Planned."""
    epochs_run: float
    best: Mapping[str, object]


@dataclass(frozen=True)
class Run:
    """A run folder and its `run.json`, of which any part may be missing: it is running, or an older version wrote it.

    Of a sweep's trial, `info` also has what only sweep.json knows; it may have no run folder at all.
    """

    label: str
    store: Store
    info: Mapping[str, object]
    trial: TrialFacts = field(default_factory=TrialFacts)
    """The entry in sweep.json; empty for a run of its own."""
    sweep: str = ""
    """The address of the sweep's folder; empty for a run of its own."""
    remark: str = ""
    """Why a trial's folder cannot be read; of a sweep that is one row, how to see its trials."""
    has_folder: bool = True

    def get(self, key: RunKey, *path: str) -> object:
        """The value at that path, or None: `run.get("seconds", "total")`."""
        return _at(self.info, key, *path)

    def number(self, key: RunKey, *path: str) -> float | None:
        return number(self.get(key, *path))

    def setting(self, key: str) -> object:
        """What `key` was set to, by the sweep or the recipe, or None: `run.setting("model_args.num_filters")`."""
        values = values_of(self.trial)
        return values[key] if key in values else self.get("recipe", *key.split("."))


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder: `sweep.json`, of which any part may be missing, and its trials by number."""

    label: str
    store: Store
    info: Mapping[str, object]
    runs: Sequence[Run]

    @property
    def trials(self) -> list[TrialFacts]:
        """The entries of sweep.json, in the order of `runs`."""
        return [run.trial for run in self.runs if run.trial]

    def get(self, key: SweepKey, *path: str) -> object:
        """The value at that path, or None: `sweep.get("plan", "search")`."""
        return _at(self.info, key, *path)

    def number(self, key: SweepKey, *path: str) -> float | None:
        return number(self.get(key, *path))


def _at(value: object, *path: str) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True)
class Found:
    """Each run once, the sweeps whose trials are among them, and the names and reasons of what cannot be read."""

    runs: list[Run]
    sweeps: list[Sweep]
    broken: Broken


def find(names: Sequence[str], storage: Store, first: Sequence[Run] = ()) -> Found:
    """The requested runs. In a folder of runs a sweep is one row; requested by name, it is its trials.

    Args:
        names: below `storage`, or paths of runs, sweeps or folders of runs. None means all of `storage`.
        storage: the folder of run folders.
        first: runs that come before those, where they are not among them.

    Raises:
        ValueError: a name does not exist or cannot be read, or the storage holds no runs.
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
    labels = _distinct({address: run.label for address, run in found.items()})
    found = {address: replace(run, label=labels[address]) for address, run in found.items()}
    labels = _distinct({sweep.store.address: sweep.label for sweep in sweeps})
    sweeps = [
        replace(sweep, label=labels[sweep.store.address], runs=[found[run.store.address] for run in sweep.runs])
        for sweep in sweeps
    ]
    return Found(list(found.values()), sweeps, broken)


def _distinct(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels by address, with as many parent folders in front as make each unique."""
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
    """The run, the sweep's trials or the folder's runs of a name. Raises ValueError where there is none."""
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

    Trials without a run folder are runs too; run folders that sweep.json does not name come last. Where a run.json is
    broken, that run's `remark` says why.

    Raises:
        ValueError: sweep.json is broken.
    """
    names = _names(folder)
    if "sweep.json" not in names:
        return None
    info = _read_object(folder, "sweep.json")
    listed = _listed(folder, info)
    trials = {str(entry.get("name") or f"trial {place}"): entry for place, entry in enumerate(listed)}
    order = sorted(trials, key=lambda name: _order(trials[name]))
    runs = [_trial(folder, name, trials[name], info, name in names) for name in order]
    unlisted = [_trial(folder, name, None, info, True) for name in names if name not in trials and name[0] != "."]
    return Sweep(folder.name, folder, info, [*runs, *(run for run in unlisted if run.info or run.remark)])


def _listed(folder: Store, info: Mapping[str, object]) -> list[Mapping[str, object]]:
    listed = info.get("trials") or []
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        raise ValueError(f"{folder.address}/sweep.json: trials is not a list of objects")
    return listed


def _order(entry: Mapping[str, object]) -> float:
    place = number(entry.get("number"))
    return float("inf") if place is None else place


def _trial_facts(name: str, entry: Mapping[str, object]) -> TrialFacts:
    """An entry of sweep.json without what is null or not of its kind."""
    facts: TrialFacts = {"name": name}
    for key in ("repeat_of", "status", "message"):
        if (text := entry.get(key)) is not None:
            facts[key] = str(text)
    for amount in ("number", "seed", "micro_batch_size", "memory_bytes", "epochs", "epochs_run"):
        if (size := number(entry.get(amount))) is not None:
            facts[amount] = size
    if isinstance(values := entry.get("values"), Mapping):
        facts["values"] = values
    if isinstance(best := entry.get("best"), Mapping):
        facts["best"] = best
    return facts


def _trial(
    folder: Store, name: str, entry: Mapping[str, object] | None, sweep: Mapping[str, object], has_folder: bool
) -> Run:
    """A trial as a run; `entry` is None of a folder that sweep.json does not name.

    The status is the sweep's: only it knows who stopped a run, and why.
    """
    store, remark = folder / name, ""
    info: dict[str, object] = {}
    trial = TrialFacts() if entry is None else _trial_facts(name, entry)
    has_folder = has_folder and trial.get("status") not in WITHOUT_FOLDER
    if has_folder:
        try:
            run = _load(store)
            info = dict(run.info) if run else {}
        except ValueError as error:
            remark = str(error)
    if entry is not None:
        fallback = {
            "name": name,
            "recipe_name": sweep.get("recipe_name"),
            "epochs_run": trial.get("epochs_run"),
            "best": trial.get("best"),
        }
        known = {key: value for key, value in info.items() if value is not None}
        status = trial.get("status") or info.get("status")
        info = {**fallback, **known, "status": status, "trial": {**entry, "name": name}}
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
    winner = next((trial for trial in trials if trial.get("name") == info.get("winner")), None)
    kept = "name status message recipe_name machine versions commit started finished seconds concurrency winner".split()
    row = {key: info[key] for key in kept if key in info}
    row |= {"best": _at(winner, "best"), "epochs_run": _at(info, "epochs", "run")}
    row["seconds"] = {"total": _at(info, "seconds", "total"), "training": _at(info, "training_seconds", "run")}
    row |= _trained_on(folder, [winner, *trials])
    return Run(folder.name, folder, row, remark=f"a sweep of {len(trials)} trials; report {folder.name} shows them")


def _trained_on(folder: Store, trials: Sequence[Mapping[str, object] | None]) -> dict[str, object]:
    """Data and task of a sweep: those of the first trial that has a run folder."""
    for name in (str(trial["name"]) for trial in trials if trial and trial.get("name")):
        try:
            run = _load(folder / name)
        except ValueError:
            continue
        dataset = run.get("dataset") if run else None
        if run is not None and isinstance(dataset, Mapping):
            return {
                "dataset": {**dataset, "task": run.get("recipe", "task")},
                "scale": {"data": run.get("scale", "data")},
            }
    return {}


def _load(folder: Store) -> Run | None:
    """The run of a folder; None where there is no run.json. Raises ValueError saying why one is broken."""
    if "run.json" not in _names(folder):
        return None
    return Run(folder.name, folder, _read_object(folder, "run.json"))


def _read_object(folder: Store, name: str) -> Mapping[str, object]:
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


def read_metrics(run: Run) -> tuple[list[dict[str, object]], str]:
    """The lines of metrics.jsonl, and what is wrong with them, if anything."""
    if not run.has_folder:
        return [], ""
    try:
        text = run.store.read("metrics.jsonl").decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return [], ""
    except OSError as error:
        return [], f"metrics.jsonl cannot be read: {error.strerror or error}"
    lines: list[dict[str, object]] = []
    for place, line in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            return lines, f"metrics.jsonl is broken from line {place} on"
        if isinstance(value, dict):
            lines.append(value)
    return lines, ""
