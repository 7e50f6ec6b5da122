"""What a worker reports to Ray's metrics, for Prometheus and the dashboard `cluster/grafana.json`.

Ray puts "ray_" before the names, and drops what a process reported some seconds after it has ended. Imports ray;
ray_train alone imports it.
"""

from __future__ import annotations

import socket

import ray.util
import torch
from ray.util.metrics import Gauge

from trainers.messages import Event
from trainers.training.device import choose_device, memory_held

DESCRIPTIONS = {
    "images_per_second": "Images that all workers train on in a second, this epoch.",
    "data_wait_share": "Share of the training time that this rank waits for data, this epoch.",
    "loss": "Training loss: of the last step, at the end of an epoch its mean.",
    "validation_loss": "Validation loss of the last epoch.",
    "validation_score": "Validation scores of the last epoch; the tag `score` names them.",
    "learning_rate": "Learning rate at the end of the last epoch.",
    "epoch": "Epochs done, with the part of the running one.",
    "gpu_memory_bytes": "What this rank's allocator holds of its GPU; 0 on a CPU.",
    "idle_seconds": "Seconds since this rank made a step or read a batch.",
}
_OF_EVERY_RANK = ("data_wait_share", "gpu_memory_bytes", "idle_seconds")


class Gauges:
    """The gauges of one rank, fed from the events of its loop and its beats."""

    def __init__(self, run: str, rank: int) -> None:
        """Register the gauges with Ray.

        Args:
            run: The name of the run.
            rank: The rank of this process; 0 reports what all ranks have in common, too.
        """
        self.rank = rank
        self.host = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
        """With its address: hosts may share a name."""
        self.device = choose_device()
        self._tags = {"run": run, "rank": str(rank), "host": self.host, "score": ""}
        names = [name for name in DESCRIPTIONS if rank == 0 or name in _OF_EVERY_RANK]
        self._gauges = {
            f"trainyard_{name}": Gauge(f"trainyard_{name}", DESCRIPTIONS[name], tuple(self._tags)) for name in names
        }

    def take(self, event: Event) -> None:
        """Set what the event says."""
        for name, value in measured(event, self.device).items():
            base, _, score = name.partition("/")
            if gauge := self._gauges.get(f"trainyard_{base}"):
                gauge.set(value, {**self._tags, "score": score})


def measured(event: Event, device: torch.device) -> dict[str, float]:
    """The gauges that an event sets; those of a score are named "validation_score/<name>"."""
    if event["kind"] == "beat":
        return {"idle_seconds": event["idle"], "gpu_memory_bytes": memory_held(device)}
    if event["kind"] == "step":
        epoch = event["epoch"] - 1 + event["step"] / event["steps"]
        return {"epoch": epoch, **{name: event[name] for name in ("images_per_second", "data_wait_share", "loss")}}
    if event["kind"] != "epoch":
        return {}
    line = event["line"]
    scores = {name: value for name, value in line.items() if name.startswith("val/") and name != "val/loss"}
    return {
        **{name: line[name] for name in ("epoch", "images_per_second", "data_wait_share")},
        "loss": line["train/loss"],
        "validation_loss": line["val/loss"],
        "learning_rate": line["lr"],
        **{f"validation_score/{name.removeprefix('val/')}": value for name, value in scores.items()},
    }
