"""Made-up sweeps: folders as a sweep's driver leaves them, with any numbers one likes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainers.recipe import resolve

MACHINE = {"nodes": [{"cpu": "Fast CPU", "cores": 8, "memory_bytes": 2**34, "gpus": []}]}


def trial(number: int, status: str = "finished", *, values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An entry of `trials`. `epoch_seconds`, `scores` (one an epoch) and `memory` go into its run folder."""
    label = "-".join(f"{key}={value}" for key, value in values.items())
    scores = changes.setdefault("scores", [] if status in ("pending", "does_not_fit", "settled") else [0.5, 0.8, 0.9])
    return {
        "name": f"{number:03d}-{label}",
        "number": number,
        "values": values,
        "seed": 0,
        "repeat_of": None,
        "status": status,
        "message": "",
        "micro_batch_size": values.get("batch_size"),
        "memory_bytes": None,
        "epochs": 3,
        "epochs_run": len(scores),
        "best": {"epoch": len(scores), "metric": "accuracy", "value": max(scores)} if scores else None,
        "epoch_seconds": 2.0,
        "memory": 2**29,
        "fingerprint": "abc",
        **changes,
    }


def make_sweep(storage: Path, name: str, trials: list[dict[str, Any]], **changes: Any) -> Path:
    """A sweep's folder below `storage`, with a run folder for each trial that has scores or ran out of memory."""
    folder = storage / name
    folder.mkdir(parents=True)
    space: dict[str, list[Any]] = {}
    for entry in trials:
        for key, value in entry["values"].items():
            space.setdefault(key, [])
            space[key] += [value] if value not in space[key] else []
    machine = changes.setdefault("machine", MACHINE)
    own = ("scores", "epoch_seconds", "memory", "fingerprint")
    sweep = {
        "name": name,
        "status": "finished",
        "message": "",
        "space_name": "digits.quick",
        "recipe_name": "digits.cnn",
        "metric": "accuracy",
        "mode": "max",
        "plan": {"space": space, "search": "grid", "scheduler": "asha", "trials": len(trials), "on_oom": "record"},
        "scale": {"workers": 0},
        "versions": {"torch": "2.15.0", "ray": "2.60.0", "trainyard": "0.1.0"},
        "commit": "5f0b3a91c7d0aa",
        "command": "python -m tune_spaces digits.quick",
        "started": "2026-11-22T10:15:00+00:00",
        "finished": "2026-11-22T10:15:44+00:00",
        "seconds": {"total": 44.1, "setup": 9.3},
        "concurrency": 2,
        "memory_limit_bytes": None,
        "winner": None,
        "trials": [{key: value for key, value in entry.items() if key not in own} for entry in trials],
        **changes,
    }
    (folder / "sweep.json").write_text(json.dumps(sweep))
    for entry in trials:
        if entry["scores"] or entry["status"] in ("out_of_memory", "failed"):
            _make_run(folder, entry, machine)
    return folder


def _make_run(folder: Path, entry: dict[str, Any], machine: dict[str, Any]) -> None:
    scores, seconds = entry["scores"], entry["epoch_seconds"]
    values: dict[str, Any] = {"epochs": entry["epochs"], "seed": entry["seed"]}
    for key, value in entry["values"].items():
        outer, _, inner = key.partition(".")
        values = {**values, outer: {**values.get(outer, {}), inner: value} if inner else value}
    batch = entry["values"].get("batch_size", 64)
    run = {
        "name": entry["name"],
        "status": entry["status"],
        "recipe_name": "digits.cnn",
        "recipe": {**resolve("digits.cnn").to_json(), **values},
        "scale": {"workers": 0},
        "dataset": {"name": "digits", "fingerprint": entry["fingerprint"], "rows": {"train": 1000}},
        "machine": machine,
        "versions": {"torch": "2.15.0", "ray": "2.60.0", "trainyard": "0.1.0"},
        "commit": "5f0b3a91c7d0aa",
        "seconds": {
            "total": seconds * len(scores) + 1.5,
            "setup": 1.5,
            "compute": 0.9 * seconds * len(scores),
            "data_wait": 0.1 * seconds * len(scores),
        },
        "images_per_second": 1000 / seconds if scores else None,
        "peak_memory_bytes": {"host": entry["memory"], "device": None},
        "epochs_run": len(scores),
        "best": entry["best"],
        "final": {"accuracy": max(scores), "loss": 0.3} if scores else None,
    }
    (folder / entry["name"]).mkdir()
    (folder / entry["name"] / "run.json").write_text(json.dumps(run))
    lines = [
        {
            "epoch": epoch,
            "step": epoch * 1000 // batch,
            "seconds": seconds,
            "train/loss": 2.3 * (1 - score) + 0.02,
            "val/loss": 2.4 * (1 - score) + 0.05,
            "val/accuracy": score,
        }
        for epoch, score in enumerate(scores, start=1)
    ]
    (folder / entry["name"] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
