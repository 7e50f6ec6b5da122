"""BatchNorm statistics that do not depend on the number of workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.training.distributed import World
from trainers.training.torch_internals import BatchNorm


class BatchNormStatistics:
    """Running means and variances as one worker would have them.

    Each worker sees its own micro-batches only, and averaging the running statistics is not what one worker
    would have. So forwards run with momentum 1, which leaves a micro-batch's own statistics in the buffers;
    these are exchanged once a step and applied in the order of the micro-batches.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        layers = [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
        self.layers = [m for m in layers if m.training] if world.size > 1 else []
        if not self.layers:
            return
        self.momenta = [layer.momentum for layer in self.layers if layer.momentum is not None]
        if len(self.momenta) < len(self.layers):
            raise ValueError("BatchNorm with momentum=None (a cumulative average) is not supported; give a number")
        self.kept = self._read()
        repeats = torch.tensor([2 * layer.num_features for layer in self.layers])
        self.factors = torch.tensor(self.momenta, dtype=torch.float64).repeat_interleave(repeats).to(self.kept.device)
        counts = [layer.num_batches_tracked for layer in self.layers]
        self.tracked = [count.clone() for count in counts if count is not None]
        for layer in self.layers:
            layer.momentum = 1.0

    def __enter__(self) -> BatchNormStatistics:
        return self

    def __exit__(self, *_: object) -> None:
        """Evaluation and checkpoints see the model as its author made it."""
        for layer, momentum in zip(self.layers, getattr(self, "momenta", []), strict=True):
            layer.momentum = momentum

    @property
    def size(self) -> int:
        """Numbers per micro-batch."""
        return self.kept.numel() if self.layers else 0

    def of_micro_batch(self) -> Tensor:
        """What the last forward pass found: float64 (size,)."""
        return self._read()

    def apply(self, statistics: Tensor) -> None:
        """Take in the statistics of a step's micro-batches, float64 (micro_batches, size), in order."""
        if not self.layers:
            return
        for row in statistics:
            self.kept = self.kept + self.factors * (row - self.kept)
        for count in self.tracked:
            count += len(statistics)
        with torch.no_grad():
            start = 0
            for layer, count in zip(self.layers, self.tracked, strict=True):
                assert layer.num_batches_tracked is not None
                layer.num_batches_tracked.copy_(count)
                for buffer in (layer.running_mean, layer.running_var):
                    assert buffer is not None
                    buffer.copy_(self.kept[start : start + buffer.numel()])
                    start += buffer.numel()

    def _read(self) -> Tensor:
        parts = [b for layer in self.layers for b in (layer.running_mean, layer.running_var)]
        return torch.cat([b.detach().double() for b in parts if b is not None])
