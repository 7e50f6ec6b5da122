"""Precision, DDP, FSDP2 and the exchange between workers: the only module that knows them.

Pipeline stages over devices are not offered. `torch.distributed.pipelining.pipeline` (torch 2.15) does cut ResNets and
U-Nets, within the encoder too, without touching them, and carries skip connections. But its stages are graphs exported
in training mode: no BatchNorm module is left in them, so that statistics cannot be applied in the order of the
micro-batches and no part can be frozen, and `eval()` has no effect: evaluation would use each batch's own
statistics. A stage receives into buffers of the first micro-batch's shape, where an epoch's last step cuts 7 pictures
into 4 and 3: it fails there. And a schedule makes all passes of a step in one call: dropout cannot be seeded before
each. A model that does not fit is sharded, its activations recomputed, its batch cut into micro-batches.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.phase import phase
from trainers.run_facts import MemoryFormat
from trainers.training.activation_checkpointing import blocks, checkpoint_activations
from trainers.training.torch_internals import is_view, tree_map_only

T = TypeVar("T")
_waiting = phase("waiting for other ranks", on="ranks")


@dataclass(frozen=True)
class World:
    """One worker's place among all."""

    rank: int
    size: int
    device: torch.device
    precision: Literal["fp32", "bf16", "fp64"]
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    memory_format: MemoryFormat = "channels_last"
    """Of pictures, and of the weights of convolutions; FSDP2 has no other."""

    @property
    def sharded(self) -> bool:
        """Whether each worker holds a part of the weights. Then all of them must take part in a forward pass, and in
        a snapshot. One worker alone has nothing to shard."""
        return self.strategy == "fsdp2" and self.size > 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters and of the input."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of every forward pass and loss."""
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def clock(self) -> float:
        """Seconds, when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    # Every worker calls each of the following, in the same order.

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all workers, in place."""
        if self.size > 1:
            with _waiting:
                dist.all_reduce(tensor)
        return tensor

    def broadcast(self, *numbers: int) -> list[int]:
        """The numbers of rank 0."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, device=self.device)
        with _waiting:
            dist.broadcast(tensor, src=0)
        return [int(number) for number in tensor.tolist()]

    def agree(self, *requests: bool) -> list[bool]:
        """What rank 0 requests."""
        return [bool(request) for request in self.broadcast(*requests)]

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks, by rank; they are pickled."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with _waiting:
            dist.all_gather_object(values, value)
        return cast(list[T], values)


def place(model: nn.Module, world: World) -> nn.Module:
    """The model on its device and in its precision: whole or, under FSDP2, this worker's part of every weight.

    Call it before the optimizer is made: FSDP2 replaces the parameters.
    """
    if not world.sharded:
        memory_format = torch.channels_last if world.memory_format == "channels_last" else torch.contiguous_format
        return model.to(world.device, world.dtype, memory_format=memory_format)  # type: ignore[call-overload, no-any-return]
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
        block.register_forward_hook(_no_views)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return model


def _channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The output of a convolution is laid out as by weights in channels_last: dropout draws in the order of memory."""
    return (inputs[0].to(memory_format=torch.channels_last), *inputs[1:]) if inputs[0].ndim == 4 else inputs


def _no_views(_: nn.Module, __: object, output: object) -> object:
    """What a block returns, copied where it is a view, as of a linear layer's rows: where an operation in place follows
    one, as of an activation, FSDP2 does not fetch the block's weights again on the way back, which fails."""
    return tree_map_only(Tensor, lambda tensor: tensor.clone() if is_view(tensor) else tensor, output)


def prepare(model: nn.Module, *, compile: bool = False, activation_checkpointing: bool = False) -> None:
    """Change how the model is called, once.

    Args:
        model: What `place` returned; changed in place.
        compile: Whether to compile it.
        activation_checkpointing: Whether to keep only the inputs of its blocks, and recompute the rest.

    Raises:
        ValueError: It has no blocks to recompute.
    """
    if activation_checkpointing:
        checkpoint_activations(model)
    if compile:
        model.compile()


def wrap(model: nn.Module, world: World) -> nn.Module:
    """The model as it is called in training: in DDP where there are several workers that hold it whole.

    DDP exchanges the gradients of what is trained now: the model is wrapped anew when that changes.
    """
    if world.size == 1 or world.sharded:
        return model
    with warnings.catch_warnings():  # torch 2.15 renames broadcast_buffers; older ones know only this name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            broadcast_buffers=False,  # BatchNormStatistics keeps the buffers alike
            gradient_as_bucket_view=True,
        )


@contextlib.contextmanager
def accumulating(model: nn.Module, last: bool) -> Iterator[None]:
    """One forward and backward pass of a step: DDP exchanges gradients in the last one only.

    FSDP2 does in each: so it never keeps whole gradients, which would take as much memory as the weights it shards.
    """
    if last or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, in which every worker must take part; any other tensor as it is."""
    if not hasattr(tensor, "full_tensor"):  # importing DTensor, to ask for its type, takes 0.4 s
        return tensor
    with _waiting:
        return cast(Tensor, tensor.full_tensor())


def shard_like(value: T, like: Tensor) -> T:
    """This worker's part of a tensor, or a tensor laid out in memory as fused optimizers take for granted.

    Args:
        value: A whole tensor; anything else, and a tensor of another shape, is returned as it is.
        like: A tensor of the same shape, which may be sharded.
    """
    if not (isinstance(value, Tensor) and value.shape == like.shape):
        return value
    if not hasattr(like, "full_tensor"):
        return value if value.stride() == like.stride() else cast(T, torch.empty_like(like).copy_(value))
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    if isinstance(value, DTensor):
        return value
    whole = value.contiguous(), like.device_mesh, like.placements
    return cast(T, distribute_tensor(*whole, src_data_rank=None))  # None: each worker has the whole


def shard_all_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`shard_like` of each, by name; names that `like` lacks stay as they are."""
    return {name: shard_like(tensor, like.get(name, tensor)) for name, tensor in tensors.items()}


def interface_of(address: str) -> str | None:
    """The network interface of this host that has an IP address; None where none has."""
    import psutil

    found = psutil.net_if_addrs().items()
    return next((name for name, entries in found if address in [entry.address for entry in entries]), None)


def use_interface(name: str | None) -> None:
    """Bind Gloo and NCCL to an interface, where the user has not; before the process group is made."""
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": not every interface that begins so


def join(
    backend: str, rank: int, size: int, at: tuple[str, int], listener: int | None, limit: datetime.timedelta
) -> None:
    """Make the process group of all workers.

    Args:
        backend: Of torch: "gloo", "nccl".
        rank: Of this worker.
        size: Number of workers.
        at: Address and port at which they meet.
        listener: In rank 0 the file descriptor of a socket that listens there, else None: a store of torch's own
            making listens on every address of the host.
        limit: Longest time that an exchange may take.
    """
    store = dist.TCPStore(  # type: ignore[attr-defined]  # exported, but not by __all__
        *at, size, rank == 0, limit, wait_for_workers=False, master_listen_fd=listener
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
