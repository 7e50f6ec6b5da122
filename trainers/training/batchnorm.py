"""BatchNorm statistics that do not depend on the number of workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.training.distributed import World
from trainers.training.torch_internals import BatchNorm, version_of


class OtherStatistics:
    """Finds buffers that a forward pass in training changes, and that are not BatchNorm's: each worker would have its
    own, of the micro-batches that it sees."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self._versions()

    def changed(self) -> list[str]:
        """Names of those that were changed since this was made."""
        before = self.before
        return [
            name
            for name, (buffer, version) in self._versions().items()
            if name not in before or before[name][0] is not buffer or before[name][1] != version
        ]

    def _versions(self) -> dict[str, tuple[Tensor, int]]:
        norms = [name for name, module in self.model.named_modules() if isinstance(module, BatchNorm)]
        return {
            name: (buffer, version_of(buffer))
            for name, buffer in self.model.named_buffers()
            if name.rpartition(".")[0] not in norms
        }


class BatchNormStatistics:
    """Running means and variances as one worker would have them.

    Each worker sees its own micro-batches only, and averaging the running statistics is not what one worker would
    have. So each forward pass begins with buffers of 0, and leaves in them what it alone adds, whether it calls a layer
    once, several times or not at all; this is exchanged once a step and applied in the order of the micro-batches.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        found = [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
        layers = [m for m in found if m.training] if world.size > 1 else []
        self._statistics = [each for m in layers for each in (m.running_mean, m.running_var) if each is not None]
        self._calls = [m.num_batches_tracked for m in layers if m.num_batches_tracked is not None]
        """How often each layer was called so far, as BatchNorm itself counts."""
        if not layers:
            return
        kept = self.of_micro_batch()
        self._sizes = [len(kept) - len(layers), len(layers)]
        self._kept, self._tracked = kept.split(self._sizes)
        numbers = torch.tensor([2 * layer.num_features for layer in layers], device=kept.device)
        self._layer = torch.arange(len(layers), device=kept.device).repeat_interleave(numbers)
        """That each of the statistics belongs to."""
        momenta = [layer.momentum for layer in layers]
        self._momentum = torch.tensor([m or 0.0 for m in momenta], dtype=torch.float64, device=kept.device)
        self._cumulative = torch.tensor([m is None for m in momenta], device=kept.device)

    @property
    def size(self) -> int:
        """Numbers per micro-batch."""
        return sum(self._sizes) if self._calls else 0

    def begin_pass(self) -> None:
        """Before each forward pass."""
        for buffer in (*self._statistics, *self._calls):
            buffer.zero_()

    def of_micro_batch(self) -> Tensor:
        """What the last forward pass adds, and how often it called each layer: float64 (size,)."""
        return torch.cat([buffer.detach().double().flatten() for buffer in (*self._statistics, *self._calls)])

    def apply(self, statistics: Tensor) -> None:
        """Take in the statistics of a step's micro-batches, float64 (micro_batches, size), in order."""
        if not self._calls:
            return
        for row in statistics:
            added, calls = row.split(self._sizes)
            self._tracked = self._tracked + calls
            share = calls / self._tracked.clamp(min=1)  # of all calls: without momentum the mean over them is kept
            before = torch.where(self._cumulative, 1 - share, (1 - self._momentum) ** calls)
            now = torch.where(self._cumulative, share, 1.0)
            self._kept = before[self._layer] * self._kept + now[self._layer] * added
        with torch.no_grad():
            start = 0
            for buffer in self._statistics:
                buffer.copy_(self._kept[start : start + buffer.numel()])
                start += buffer.numel()
            for buffer, calls in zip(self._calls, self._tracked, strict=True):
                buffer.copy_(calls)
