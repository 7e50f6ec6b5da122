"""Device, precision, threads, DDP, FSDP2 and the exchange between workers: the only module that knows them.

Pipeline stages over devices are not offered. `torch.distributed.pipelining.pipeline` (torch 2.15) does cut ResNets and
U-Nets, within the encoder too, without touching them, and carries skip connections. But its stages are graphs exported
in training mode: no BatchNorm module is left in them, so that statistics cannot be applied in the order of the
micro-batches and no part can be frozen, and `eval()` is taken without effect: evaluation would use each batch's own
statistics. A stage receives into buffers of the first micro-batch's shape, where an epoch's last step cuts 7 pictures
into 4 and 3: it fails there. And a schedule makes all passes of a step in one call: dropout cannot be seeded before
each. A model that does not fit is sharded, its activations made again, its batch cut into micro-batches.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class World:
    """One worker's place among all."""

    rank: int
    size: int
    device: torch.device
    precision: Literal["fp32", "bf16", "fp64"]
    strategy: Literal["ddp", "fsdp2"] = "ddp"

    @property
    def sharded(self) -> bool:
        """Whether each worker holds a part of the weights. Then all of them must take part in a forward pass, and in
        a snapshot. One worker alone has nothing to share."""
        return self.strategy == "fsdp2" and self.size > 1

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

    def agree(self, *wishes: bool) -> list[bool]:
        """What rank 0 wishes; waits until every worker asks."""
        mine = [float(wish and self.rank == 0) for wish in wishes]
        return [bool(wish) for wish in self.add_up(torch.tensor(mine, device=self.device)).tolist()]


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


def place(model: nn.Module, world: World) -> nn.Module:
    """The model on its device and in its precision: whole or, under FSDP2, this worker's part of every weight.

    To be called before the optimizer is made: FSDP2 puts new parameters in the place of the old ones.
    """
    if not world.sharded:
        return model.to(world.device, world.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    assert dist.group.WORLD is not None
    model.to(world.dtype)  # to its device FSDP2 moves it, block by block
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):  # FSDP2 takes contiguous weights only
            layer.register_forward_pre_hook(_channels_last)
    mesh = DeviceMesh.from_group(dist.group.WORLD, world.device.type)
    for block in [*blocks(model), model]:
        # The outermost too: between passes `parameters()` are the optimizer's
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return model


def _channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a convolution puts out is laid out as by weights in channels_last: dropout draws in the order of memory."""
    return (inputs[0].to(memory_format=torch.channels_last), *inputs[1:]) if inputs[0].ndim == 4 else inputs


def wrap(model: nn.Module, world: World, *, compile: bool = False, recompute: bool = False) -> nn.Module:
    """The model as it is called in training: with recomputed activations and compiled on request, and DDP where
    there are several workers. Raises ValueError where there is nothing to recompute."""
    if recompute:
        recompute_activations(model)
    if compile:
        model.compile()
    if world.size == 1 or world.sharded:
        return model
    with warnings.catch_warnings():  # torch 2.15 renames broadcast_buffers; older ones know only this name
        warnings.simplefilter("ignore", FutureWarning)
        return (DistributedDataParallel if compile else _Eager)(
            model,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            broadcast_buffers=False,  # BatchNormStatistics brings the buffers in step
            gradient_as_bucket_view=True,
        )


class _Eager(DistributedDataParallel):
    """DDP around a model that is not compiled: it does not import torch._dynamo, which takes 1.4 s and 146 MiB in each
    worker, at every start. DDP asks there for a setting of the compiler, and tells it which model runs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        if "torch._dynamo" in sys.modules:
            super().__init__(*args, **options)
            return
        settings: Any = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
        torch._dynamo = SimpleNamespace(utils=settings)  # type: ignore[assignment]
        try:
            super().__init__(*args, **options)
        finally:
            del torch._dynamo  # torch imports the real one when somebody looks for it

    @contextlib.contextmanager
    def _inside_ddp_forward(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def accumulating(model: nn.Module, last: bool) -> Iterator[None]:
    """DDP exchanges gradients in the last backward pass of a step only. FSDP2 does in each: so it never keeps whole
    gradients, which would take as much memory as the weights that it spreads."""
    if last or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


def blocks(model: nn.Module) -> list[nn.Module]:
    """What a model consists of: the innermost modules of several layers with weights, and the layers beside these.

    A ResNet's first convolution, its residual blocks, its last layer; the pairs of convolutions of a U-Net. None where
    weights are used in several places, which only the whole model sees.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    return [] if len(set(names.values())) < len(names) else list(dict.fromkeys(_blocks_below(model)))


def _blocks_below(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        only_holds = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if only_holds or any(_count_weights(part) > 1 for part in child.children()):
            yield from _blocks_below(child)
        elif _count_weights(child):
            yield child


def _count_weights(module: nn.Module) -> int:
    return sum(parameter.ndim > 1 for parameter in module.parameters())


def recompute_activations(model: nn.Module) -> None:
    """Activation checkpointing: of each block of layers only the input is kept, and its forward pass is made again on
    the way back, with the same random numbers. Raises ValueError where the model has no such blocks."""
    several = [block for block in blocks(model) if any(block.children())]
    if not several:
        raise ValueError(
            "activation_checkpointing: this model has no blocks of several layers to make again; leave the flag out"
        )
    for block in several:
        block.forward = _recomputed(block)  # names and structure stay


def _recomputed(block: nn.Module) -> Any:
    forward = block.forward
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _at_rest(norms)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # a compiled graph keeps statistics apart from what it makes again
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextlib.contextmanager
def _at_rest(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Running statistics stay as they are: a pass that is made again counts once."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor's whole, in which every worker must take part; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # importing DTensor takes 0.4 s


def share(tensor: Any, like: Tensor) -> Any:
    """A whole tensor of the shape of `like` as that is: this worker's part of it, or laid out in memory as that, which
    fused optimizers take for granted. Anything else as it is."""
    if not (isinstance(tensor, Tensor) and tensor.shape == like.shape):
        return tensor
    if not hasattr(like, "full_tensor"):
        return tensor if tensor.stride() == like.stride() else torch.empty_like(like).copy_(tensor)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    if isinstance(tensor, DTensor):
        return tensor
    parts = tensor.contiguous(), like.device_mesh, like.placements
    return distribute_tensor(*parts, src_data_rank=None)  # None: each worker has the whole


def shares(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`share` of each, by name; names that `like` lacks stay as they are."""
    return {name: share(tensor, like.get(name, tensor)) for name, tensor in tensors.items()}


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
