"""All that training continues from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainers.messages import Line, Sums
from trainers.run_facts import Best
from trainers.training import distributed


class OptimizerState(TypedDict):
    """What `Optimizer.state_dict()` returns."""

    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, object]]


class Snapshot(TypedDict):
    """A state on the host: plain data and whole tensors, the content of a checkpoint's file."""

    model: dict[str, Tensor]
    optimizer: OptimizerState
    ema: dict[str, Tensor] | None
    counts: dict[str, Tensor]
    progress: str
    """JSON of the fields of TrainState that are plain data."""


@dataclass
class TrainState:
    """Everything that training changes. Restored, a run continues as if nothing had happened."""

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
    sums: Sums = field(default_factory=Sums)
    """Of the running epoch."""
    history: list[Line] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    best: Best | None = None
    """The best epoch so far, with its step."""
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """The validation counts of the best epoch."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent so far in train, data_wait, evaluate and checkpoint."""

    def snapshot(self) -> Snapshot:
        """A copy on the host that later steps do not change, the same for any number of workers. Where the state is
        sharded, all other workers call `join_snapshot` at the same time."""
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
        """Take over whole weights; of a sharded model, this worker's parts of them.

        Args:
            weights: By name, on any device.
            strict: Whether the names must be those of the model.
        """
        self.model.load_state_dict(distributed.shard_all_like(weights, self.model.state_dict()), strict=strict)

    def restore(self, snapshot: Snapshot) -> None:
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
            assert snapshot["ema"] is not None
            for name, tensor in snapshot["ema"].items():
                self.ema[name].copy_(distributed.shard_like(tensor, self.ema[name]))
        self.counts = {name: count.numpy() for name, count in snapshot["counts"].items()}
        for name, value in json.loads(snapshot["progress"]).items():
            setattr(self, name, value)


def _copy(value: object) -> Any:
    """The same structure of lists and mappings, with whole tensors on the host."""
    if isinstance(value, Tensor):
        return distributed.full_tensor(value.detach()).to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def _gather(value: object) -> None:
    """What `_copy` does on another worker, in the same order."""
    if isinstance(value, Tensor):
        distributed.full_tensor(value.detach())
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _gather(item)
