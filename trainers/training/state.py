"""All that training continues from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainers.training import distributed

Line = dict[str, float]


@dataclass
class TrainState:
    """Everything that training changes. Restored, a run goes on as if nothing had happened."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor] | None = None
    """The moving average of the model's state, where the recipe asks for one."""
    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Optimizer steps completed within the running epoch."""
    total_steps: int = 0
    """Optimizer steps completed over the run: a checkpoint's name."""
    sums: dict[str, Any] = field(default_factory=dict)
    """Losses and divisors (lists, one number for each term), images, seconds... of the running epoch."""
    history: list[Line] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    best: dict[str, Any] | None = None
    """{epoch, metric, value, step} of the best epoch so far."""
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """The validation counts of the best epoch."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent so far on data_wait, compute, evaluate, checkpoint."""

    def snapshot(self) -> dict[str, Any]:
        """A copy on the host that later steps do not change: plain data and whole tensors, the same for any number of
        workers. Of a sharded state: while all others `join_snapshot`."""
        plain = ("epoch", "step", "total_steps", "sums", "history", "best", "seconds")
        return {
            "model": _copy(self.model.state_dict()),
            "optimizer": _copy(self.optimizer.state_dict()),
            "ema": _copy(self.ema),
            "counts": {name: torch.from_numpy(np.array(count)) for name, count in self.counts.items()},
            "progress": json.dumps({name: getattr(self, name) for name in plain}),
        }

    def join_snapshot(self) -> None:
        """Hand this worker's parts to the one that takes a snapshot, tensor by tensor, and keep nothing."""
        for part in (self.model.state_dict(), self.optimizer.state_dict(), self.ema):
            _gather(part)

    def load_weights(self, weights: Mapping[str, Tensor], *, strict: bool = True) -> None:
        """Take over whole weights; of a sharded model, this worker's parts of them."""
        self.model.load_state_dict(distributed.shard_all_like(weights, self.model.state_dict()), strict=strict)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take over what `snapshot` returned, on any device, whether sharded or not."""
        self.load_weights(snapshot["model"])
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        states = {
            index: {name: distributed.shard_like(value, parameters[index]) for name, value in values.items()}
            for index, values in snapshot["optimizer"]["state"].items()
        }
        own_options = self.optimizer.state_dict()["param_groups"]  # DDP and FSDP2 do not use the same kernels
        self.optimizer.load_state_dict({"state": states, "param_groups": own_options})
        if self.ema is not None:
            for name, tensor in snapshot["ema"].items():
                self.ema[name].copy_(distributed.shard_like(tensor, self.ema[name]))
        self.counts = {name: count.numpy() for name, count in snapshot["counts"].items()}
        for name, value in json.loads(snapshot["progress"]).items():
            setattr(self, name, value)


@dataclass(frozen=True)
class Snapshot:
    """A state on its way to the store."""

    snapshot: Mapping[str, Any]
    step: int
    best_step: int | None


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return distributed.full_tensor(value.detach()).to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def _gather(value: Any) -> None:
    """What `_copy` does on another worker, in the same order."""
    if isinstance(value, Tensor):
        distributed.full_tensor(value.detach())
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _gather(item)
