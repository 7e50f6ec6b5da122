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
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.training.activation_checkpointing import blocks, checkpoint_activations

Value = TypeVar("Value")


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

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_objects(self, value: Value) -> list[Value]:
        """`value` of every rank, in the order of the ranks; it is pickled. Waits until every worker asks."""
        if self.size == 1:
            return [value]
        gathered: list[Value] = [value] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def agree(self, *requests: bool) -> list[bool]:
        """What rank 0 wishes; waits until every worker asks."""
        mine = [float(request and self.rank == 0) for request in requests]
        return [bool(request) for request in self.all_reduce(torch.tensor(mine, device=self.device)).tolist()]


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


def wrap(model: nn.Module, world: World, *, compile: bool = False, activation_checkpointing: bool = False) -> nn.Module:
    """The model as it is called in training: with recomputed activations and compiled on request, and DDP where
    there are several workers. Raises ValueError where there is nothing to recompute."""
    if activation_checkpointing:
        checkpoint_activations(model)
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
