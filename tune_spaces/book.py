"""sweep.json: what a sweep plans, what has become of each trial, and what it took."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from trainers.record import machine
from trainers.store import Store, read_run
from tune_spaces.sweep import REPEATED, Cell, spell

FILE = "sweep.json"
WRITE_SECONDS = 1.0
OVER = ("finished", "stopped_early", "out_of_memory", "does_not_fit", "settled", "failed")
"""A trial of these is not run again."""
RANKED = ("finished", "stopped_early")
MEMORY_FIELDS = ("model", "model_args", "optimizer", "momentum", "ema", "precision", "task")
"""Two trials that share these fields differ in memory by their micro-batch and image size alone."""


class Book:
    """The one writer of a sweep's sweep.json. Not for use by several threads at once."""

    def __init__(self, folder: Store, facts: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> None:
        """Parameters: `facts`, what sweep.json holds besides trials; `earlier`, what it held, where it goes on."""
        self.folder = folder
        self.content: dict[str, Any] = {**facts, "status": "running", "message": "", "winner": None}
        self.content |= {"started": (earlier or {}).get("started") or _now(), "finished": None, "trials": []}
        self.content["machine"] = {"nodes": [machine()]}
        self.before = float(((earlier or {}).get("seconds") or {}).get("total") or 0.0)
        self.sign = -1 if facts["mode"] == "min" else 1
        self._begun = time.monotonic()
        self._written = 0.0
        self._by_name: dict[str, dict[str, Any]] = {}

    @property
    def trials(self) -> Sequence[Mapping[str, Any]]:
        """All of them, in order of number."""
        found: list[dict[str, Any]] = self.content["trials"]
        return found

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._by_name[name]

    def add(self, cell: Cell, **fields: Any) -> Mapping[str, Any]:
        """A further trial; what its run folder says of it, where it ran before, counts."""
        trial: dict[str, Any] = {
            "name": cell.name,
            "number": cell.number,
            "values": _plain(cell.values),
            "seed": cell.recipe.seed,
            "repeat_of": cell.repeat_of,
            "status": "pending",
            "message": "",
            "micro_batch_size": cell.recipe.micro_batch_size,
            "memory_bytes": None,
            "epochs": cell.recipe.epochs,
            "epochs_run": 0,
            "best": None,
            **fields,
        }
        self.content["trials"].append(trial)
        self._by_name[cell.name] = trial
        run = read_run(self.folder / cell.name) if trial["status"] == "pending" else None
        if run is not None:
            self._take_over(trial, run)
        return trial

    def start(self, name: str) -> None:
        self._by_name[name]["status"] = "running"
        self.write()

    def epoch(self, name: str, epoch: int, metric: str, value: float) -> None:
        """A trial has come so far."""
        trial = self._by_name[name]
        trial["epochs_run"] = epoch
        best = trial["best"]
        if best is None or self.sign * value > self.sign * best["value"]:
            trial["best"] = {"epoch": epoch, "metric": metric, "value": value}
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write()

    def end(self, name: str, status: str, message: str) -> None:
        """A trial is over, or interrupted."""
        self._by_name[name] |= {"status": status, "message": message}
        self._drop_checkpoints()
        self.write()

    def died(self, name: str, status: str, message: str) -> None:
        """A trial's process is gone: its run.json, which says that it runs, is set right."""
        run = read_run(self.folder / name)
        if run is not None:
            (self.folder / name).write_json("run.json", run | {"status": status, "message": message})
        self.end(name, status, message)

    def finish(self, status: str, message: str, **facts: Any) -> None:
        best = self.ranked()
        self.content |= {"status": status, "message": message, "finished": _now(), **facts}
        self.content["winner"] = best[0]["name"] if best else None
        self.write()

    def write(self) -> None:
        total = self.before + time.monotonic() - self._begun
        self.content["seconds"] = {**(self.content.get("seconds") or {}), "total": total}
        self.folder.write_json(FILE, self.content)
        self._written = time.monotonic()

    def ranked(self) -> list[dict[str, Any]]:
        """Trials that have a score, the best first; those that repeat another are left out."""
        found = [t for t in self.content["trials"] if t["best"] and t["status"] in RANKED and not t["repeat_of"]]
        return sorted(found, key=lambda trial: -self.sign * trial["best"]["value"])

    def _drop_checkpoints(self) -> None:
        """Weights of the best trials are kept, and of those that go on; the others keep everything else."""
        keep = {trial["name"] for trial in self.ranked()[:REPEATED]}
        for trial in self.content["trials"]:
            if trial["status"] in OVER and trial["name"] not in keep and not trial.get("dropped"):
                trial["dropped"] = True
                (self.folder / trial["name"]).delete("checkpoints")

    def _take_over(self, trial: dict[str, Any], run: Mapping[str, Any]) -> None:
        status = run["status"] if run["status"] in OVER else "interrupted"
        trial |= {"status": status, "message": run.get("message", ""), "epochs_run": run.get("epochs_run") or 0}
        trial["micro_batch_size"] = run["recipe"].get("micro_batch_size")
        lines = self.history(trial["name"])
        metric = self.content["metric"]
        scored = [(line["epoch"], line[f"val/{metric}"]) for line in lines if f"val/{metric}" in line]
        if scored:
            epoch, value = max(scored, key=lambda pair: self.sign * pair[1])
            trial |= {"epochs_run": len(lines), "best": {"epoch": epoch, "metric": metric, "value": value}}

    def history(self, name: str) -> list[dict[str, float]]:
        """The lines of a trial's metrics.jsonl."""
        try:
            lines = (self.folder / name).read("metrics.jsonl").splitlines()
        except OSError:
            return []
        return [json.loads(line) for line in lines]


def dominates(cell: Cell, other: Cell) -> bool:
    """Whether a trial needs at least as much memory as another: no field but these sizes makes a difference."""
    mine, theirs = cell.recipe, other.recipe
    if any(getattr(mine, name) != getattr(theirs, name) for name in MEMORY_FIELDS):
        return False
    if cell.scale.worker_range != other.scale.worker_range:
        return False
    sizes = zip(mine.image_size, theirs.image_size, strict=True)
    return (
        (mine.micro_batch_size or mine.batch_size) >= (theirs.micro_batch_size or theirs.batch_size)
        and mine.batch_size >= theirs.batch_size
        and all(one >= another for one, another in sizes)
    )


def told(values: Mapping[str, Any]) -> str:
    """lr=0.01 batch_size=64"""
    return " ".join(f"{key}={spell(value)}" for key, value in values.items())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
