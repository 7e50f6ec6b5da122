"""Device, precision, threads and the exchange between workers: the only module that knows them."""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """One worker's place among all."""

    rank: int
    size: int
    device: torch.device
    precision: Literal["fp32", "bf16", "fp64"]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters and of the input."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of every forward pass and loss."""
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def clock(self) -> float:
        """Seconds, when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


def settle_precision(wanted: str, gpus: bool) -> str:
    """`auto` is bf16 on GPUs that have it and fp32 elsewhere; settled once, by the driver, and recorded."""
    if wanted != "auto":
        return wanted
    return "bf16" if gpus and torch.cuda.is_bf16_supported() else "fp32"


def settle_device() -> torch.device:
    """The GPU that this process was given, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def set_threads(threads: int) -> None:
    """As many threads for arithmetic as the worker has CPUs: Ray starts workers with one."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the default generator, which dropout draws from: 2 us, where torch.manual_seed takes 250."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def freeze(model: nn.Module, names: tuple[str, ...]) -> None:
    """Switch off the gradients of every parameter whose name starts with one of `names`. Raises ValueError."""
    parameters = dict(model.named_parameters())
    for name in names:
        matching = [key for key in parameters if key == name or key.startswith(name + ".")]
        if not matching:
            tops = ", ".join(key for key, _ in model.named_children())
            raise ValueError(f"frozen: the model has no part called {name!r}; its parts are {tops}")
        for key in matching:
            parameters[key].requires_grad_(False)


def set_training(model: nn.Module, frozen: tuple[str, ...]) -> None:
    """`model.train()`, but frozen parts stay in eval mode: their BatchNorm statistics do not move either."""
    model.train()
    for name, module in model.named_modules() if frozen else ():
        if any(name == part or name.startswith(part + ".") for part in frozen):
            module.eval()


def wrap(model: nn.Module, world: World, compile: bool = False) -> nn.Module:
    """The model as it is called in training: compiled on request, and DDP where there are several workers."""
    if compile:
        model.compile()
    if world.size == 1:
        return model
    with warnings.catch_warnings():  # torch 2.15 renames broadcast_buffers; older ones know only this name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            broadcast_buffers=False,  # BatchNormStatistics brings the buffers in step
            gradient_as_bucket_view=True,
        )


@contextlib.contextmanager
def accumulating(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are exchanged in the last backward pass of a step only."""
    if last or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


class BatchNormStatistics:
    """Running means and variances as one worker would have them.

    Each worker sees its own micro-batches only, and averaging the running statistics is not what one worker
    would have. So forwards run with momentum 1, which leaves a micro-batch's own statistics in the buffers;
    these are exchanged once a step and applied in the order of the micro-batches.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.layers = [m for m in layers if m.training] if world.size > 1 else []
        if not self.layers:
            return
        self.momenta = [layer.momentum for layer in self.layers if layer.momentum is not None]
        if len(self.momenta) < len(self.layers):
            raise ValueError("BatchNorm with momentum=None (a cumulative average) is not supported; give a number")
        self.kept = self._read()
        repeats = torch.tensor([2 * layer.num_features for layer in self.layers])
        self.factors = torch.tensor(self.momenta, dtype=torch.float64).repeat_interleave(repeats).to(self.kept.device)
        self.tracked = int(self.layers[0].num_batches_tracked or 0)
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
        self.tracked += len(statistics)
        with torch.no_grad():
            start = 0
            for layer in self.layers:
                assert layer.num_batches_tracked is not None
                layer.num_batches_tracked.fill_(self.tracked)
                for buffer in (layer.running_mean, layer.running_var):
                    assert buffer is not None
                    buffer.copy_(self.kept[start : start + buffer.numel()])
                    start += buffer.numel()

    def _read(self) -> Tensor:
        parts = [b for layer in self.layers for b in (layer.running_mean, layer.running_var)]
        return torch.cat([b.detach().double() for b in parts if b is not None])


def interface_of(address: str) -> str | None:
    """The network interface of this host that bears an IP address; None where none does."""
    import psutil

    found = psutil.net_if_addrs().items()
    return next((name for name, entries in found if address in [entry.address for entry in entries]), None)


def use_interface(name: str | None) -> None:
    """Bind Gloo and NCCL to an interface, where the user has not; before the process group is made."""
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": not every interface that begins so


def reset_peak_memory(device: torch.device) -> None:
    """Count `peak_memory` from now on: a process may train one run after the other."""
    with contextlib.suppress(OSError):  # Linux's alone
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Largest memory so far, in bytes: of this process, and of torch's allocator on its GPU (None on a CPU)."""
    import resource

    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        host = int(found[1]) * 1024 if found else host
    return {"host": host, "device": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None}


def memory_held(device: torch.device) -> int:
    """Bytes of its GPU that this process's allocator holds now; 0 on a CPU."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
