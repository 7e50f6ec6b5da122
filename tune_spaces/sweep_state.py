"""sweep.json: what a sweep plans, what has become of each trial, and what it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from trainers.messages import Line
from trainers.recipe import Recipe
from trainers.report.sweep_stats import Setting, repeated, repeats
from trainers.runs.files import read_history, read_run
from trainers.runs.provenance import machine
from trainers.storage.store import Store
from tune_spaces.messages import SweepContent, SweepFacts, SweepStatus, TrialEntry, TrialStatus
from tune_spaces.sweep import REPEATED, Cell, plain

FILE = "sweep.json"
WRITE_SECONDS = 1.0
OVER = ("finished", "stopped_early", "out_of_memory", "does_not_fit", "settled", "failed")
"""A trial of these is not run again."""
RANKED = ("finished", "stopped_early", "interrupted")


class SweepState:
    """The one writer of a sweep's sweep.json. Not for use by several threads at once."""

    def __init__(
        self, folder: Store, facts: SweepFacts, earlier: SweepContent | None, begun: float | None = None
    ) -> None:
        """Start the record of a sweep.

        Args:
            folder: of the sweep.
            facts: what sweep.json says of the sweep itself.
            earlier: what it held, where the sweep continues.
            begun: when the command did, by time.monotonic(); None: now.
        """
        self.folder = folder
        started = earlier.get("started") if earlier else None
        own = {"status": "running", "message": "", "winner": None, "started": started or _now(), "finished": None}
        content = {**facts, **own, "trials": [], "machine": {"nodes": [machine()]}}
        self.content = cast(SweepContent, content)
        self._before: Mapping[str, float] = (earlier.get("seconds") or {}) if earlier else {}
        self.sign = -1 if facts["mode"] == "min" else 1
        self._begun = time.monotonic() if begun is None else begun
        self._written = 0.0
        self._by_name: dict[str, TrialEntry] = {}

    @property
    def trials(self) -> Sequence[TrialEntry]:
        """All of them, in the order in which they were added."""
        return self.content["trials"]

    def __getitem__(self, name: str) -> TrialEntry:
        return self._by_name[name]

    def add(
        self,
        cell: Cell,
        *,
        memory_bytes: int | None = None,
        note: str = "",
        status: TrialStatus = "pending",
        message: str = "",
    ) -> TrialEntry:
        """Add a trial. Where it ran before, what its run folder says of it counts.

        Args:
            cell: the trial.
            memory_bytes: predicted for a step; None: not predicted.
            note: how it is run so that it fits into memory.
            status: does_not_fit, where it is not to be run.
            message: why.

        Returns:
            Its entry of sweep.json.
        """
        trial: TrialEntry = {
            "name": cell.name,
            "number": cell.number,
            "values": {key: plain(value) for key, value in cell.values.items()},
            "seed": cell.recipe.seed,
            "repeat_of": cell.repeat_of,
            "status": status,
            "message": message,
            "micro_batch_size": cell.recipe.micro_batch_size,
            "memory_bytes": memory_bytes,
            "epochs": cell.recipe.epochs,
            "epochs_run": 0,
            "best": None,
            "note": note,
        }
        self.content["trials"].append(trial)
        self._by_name[cell.name] = trial
        run = read_run(self.folder / cell.name) if trial["status"] == "pending" else None
        if run is not None:
            self._take_over(trial, run, cell.recipe.batch_size // max(1, cell.scale.worker_range[1]))
        return trial

    def start(self, name: str) -> None:
        """A trial runs."""
        self._by_name[name]["status"] = "running"
        self.write()

    def epoch(self, name: str, epoch: int, metric: str, value: float) -> None:
        """Record that a trial has ended an epoch.

        Args:
            name: of the trial.
            epoch: from 1.
            metric: of the sweep.
            value: of the metric, on the validation split.
        """
        trial = self._by_name[name]
        trial["epochs_run"] = epoch
        best = trial["best"]
        if best is None or self.sign * value > self.sign * best["value"]:
            trial["best"] = {"epoch": epoch, "metric": metric, "value": value}
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write()

    def end(self, name: str, status: str, message: str) -> None:
        """A trial is over, or interrupted."""
        trial = self._by_name[name]
        trial["status"], trial["message"] = status, message
        if self.content["plan"]["scheduler"] == "pbt" and (run := read_run(self.folder / name)) is not None:
            self._note_rate(trial, run)
        self._drop_checkpoints()
        self.write()

    def died(self, name: str, status: str, message: str) -> None:
        """A trial's process is gone: its run.json, which says that it runs, is corrected."""
        run = read_run(self.folder / name)
        if run is not None:
            (self.folder / name).write_json("run.json", {**run, "status": status, "message": message})
        self.end(name, status, message)

    def finish(self, status: SweepStatus, message: str) -> None:
        """The sweep ends, for good or for now: name its winner, keep the weights that are worth it."""
        self.content["status"], self.content["message"], self.content["finished"] = status, message, _now()
        winner = self._winner()
        self.content["winner"] = winner["name"] if winner else None
        self._drop_checkpoints(finishing=True)
        self.write()

    def end_setup(self) -> None:
        """The trials are known, and start."""
        self.content["seconds"] = {"setup": self._spent("setup")}
        self.write()

    def _spent(self, what: str) -> float:
        """Seconds up to now, with those of earlier processes."""
        return self._before.get(what, 0.0) + time.monotonic() - self._begun

    def write(self) -> None:
        self.content["seconds"] = {**(self.content.get("seconds") or {}), "total": self._spent("total")}
        self.folder.write_json(FILE, self.content)
        self._written = time.monotonic()

    def ranked(self) -> list[TrialEntry]:
        """Trials that have a score, the best first; those that repeat another are left out."""
        return [trial for trial in self._scored() if not trial["repeat_of"]]

    def repeats(self) -> list[Setting]:
        """The settings that were repeated, the best mean first: see sweep_stats.repeats."""
        scores = {trial["name"]: _value(trial) for trial in self.trials}
        return repeats(repeated(self.trials), scores, self.content["mode"])

    def _scored(self) -> list[TrialEntry]:
        found = [trial for trial in self.trials if trial["best"] and trial["status"] in RANKED]
        return sorted(found, key=lambda trial: -self.sign * (_value(trial) or 0.0))

    def _winner(self) -> TrialEntry | None:
        """The best trial; once the best settings were repeated, the best of the one with the best mean."""
        again = [trial for trial in self.content["trials"] if trial["repeat_of"]]
        if again and all(trial["status"] in OVER for trial in again):
            names: list[str] = next((group["trials"] for group in self.repeats()), [])
            return next((trial for trial in self._scored() if trial["name"] in names), None)
        return next(iter(self.ranked()), None)

    def _drop_checkpoints(self, finishing: bool = False) -> None:
        """Weights of the best trials are kept, and of those that continue; the others keep everything else. Which of
        several repeats is worth keeping shows at the end."""
        scored = self._scored() if finishing else self.ranked()
        best = [trial["name"] for trial in scored if trial["status"] in OVER]
        keep = [name for name in dict.fromkeys([self.content["winner"], *best]) if name][:REPEATED]
        for trial in self.content["trials"]:
            waits = trial["repeat_of"] and not finishing
            if trial["status"] in OVER and trial["name"] not in keep and not waits and not trial.get("dropped"):
                trial["dropped"] = True
                (self.folder / trial["name"]).delete("checkpoints")

    def _note_rate(self, trial: TrialEntry, run: Mapping[str, Any]) -> None:
        """Population-based training changes the learning rate on the way: the values say how a trial began."""
        now = run["recipe"]["lr"]
        if now != trial["values"].get("lr", now):
            trial["lr_at_end"] = now
            trial["message"] += f"; its learning rate came to {now:.4g}"

    def _take_over(self, trial: TrialEntry, run: Mapping[str, Any], whole: int) -> None:
        """What a run folder says of a trial; `whole` is the micro-batch where each worker takes its share in one."""
        trial["status"] = run["status"] if run["status"] in OVER else "interrupted"
        trial["message"], trial["epochs_run"] = run.get("message", ""), run.get("epochs_run") or 0
        micro = run["recipe"].get("micro_batch_size")
        trial["micro_batch_size"] = None if micro == whole else micro
        self._note_rate(trial, run)
        lines = self.history(trial["name"])
        metric = self.content["metric"]
        scored = [(line["epoch"], line[f"val/{metric}"]) for line in lines if f"val/{metric}" in line]
        if scored:
            epoch, value = max(scored, key=lambda pair: self.sign * pair[1])
            trial["epochs_run"] = len(lines)
            trial["best"] = {"epoch": int(epoch), "metric": metric, "value": value}

    def history(self, name: str) -> list[Line]:
        """The lines of a trial's metrics.jsonl."""
        return history(self.folder / name)


def history(folder: Store) -> list[Line]:
    """The lines of a run's metrics.jsonl; none where there is no such file."""
    try:
        return read_history(folder)
    except OSError:
        return []


def dominates(cell: Cell, other: Cell) -> bool:
    """Whether a trial needs at least as much memory as another: larger or equal in its sizes, alike in all else that
    its memory depends on. No field of a scale is taken for one that makes no difference."""
    if cell.scale != other.scale or _but_for_sizes(cell.recipe) != _but_for_sizes(other.recipe):
        return False
    mine, theirs = cell.recipe, other.recipe
    sizes = zip(mine.image_size, theirs.image_size, strict=True)
    return (
        (mine.micro_batch_size or mine.batch_size) >= (theirs.micro_batch_size or theirs.batch_size)
        and mine.batch_size >= theirs.batch_size
        and all(one >= another for one, another in sizes)
    )


def _but_for_sizes(recipe: Recipe) -> dict[str, object]:
    sizes = ("batch_size", "micro_batch_size", "image_size")
    return {name: value for name, value in recipe.memory_facts().items() if name not in sizes}


def _value(trial: TrialEntry) -> float | None:
    return trial["best"]["value"] if trial["best"] else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
