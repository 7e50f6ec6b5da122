"""What is hung into Ray Train: the network interface, a checkpoint before workers are taken away, a quick recovery.

Imports ray.train; ray_train alone imports it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import ray
import ray.train
import ray.util
import torch
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.torch import TorchConfig

from trainers.runtime.ray_internals import refresh_cluster_view, shorten_claims
from trainers.training import distributed

if TYPE_CHECKING:
    from ray.train.backend import Backend

T = TypeVar("T")
REFRESH_SECONDS = 5.0
"""So long a refreshed view of the cluster is waited for."""
CLAIM_SECONDS = 30
"""What a killed driver has claimed of the cluster is void then: whoever gives the same command again waits for that."""
shorten_claims(CLAIM_SECONDS)
GONE = (ray.exceptions.RayError, ValueError)
"""A run whose coordinator is gone is over."""


class _Workers(Protocol):
    """A group of workers of Ray Train."""

    def __len__(self) -> int: ...

    def get_resources_per_worker(self) -> Mapping[str, float]: ...

    def execute_single(self, rank: int, function: Callable[[], tuple[str, int]]) -> tuple[str, int]:
        """Call a function in one of them."""

    def execute_single_async(self, rank: int, function: Callable[..., T], *arguments: object) -> ray.ObjectRef[T]:
        """Likewise; returns at once."""


class Network(TorchConfig):
    """The process group of the workers, on the interface that bears the node's Ray address, and on no other.

    Gloo by itself binds to whatever the host's name resolves to, which on many machines is 127.0.0.1: workers on
    several hosts then do not find each other. torch's store, where they meet, by itself listens on every address.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: _Workers, backend_config: TorchConfig) -> None:
        size, on_gpus = len(worker_group), worker_group.get_resources_per_worker().get("GPU", 0)
        able = ray.get([worker_group.execute_single_async(rank, sees_gpu, on_gpus > 0) for rank in range(size)])
        backend = backend_config.backend or ("nccl" if on_gpus and all(able) else "gloo")
        address, port = worker_group.execute_single(0, listen)
        joining = [
            worker_group.execute_single_async(rank, join, backend, rank, size, address, port, backend_config.timeout_s)
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: _Workers, backend_config: TorchConfig) -> None:
        # Ranks whose peer is cut off do not get out of the process group: Ray's 30 s would be waited for in vain.
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, "3")
        super().on_shutdown(worker_group, backend_config)


def sees_gpu(given: bool) -> bool:
    """Whether torch can use the GPU of this worker. One that was given none is kept from seeing those of its host."""
    if not given:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return given and torch.cuda.is_available()


_listeners: list[socket.socket] = []
"""Of rank 0: where the workers are about to meet."""


def listen() -> tuple[str, int]:
    """Listen, in rank 0, at the node's Ray address. Returns address and port."""
    address = ray.util.get_node_ip_address()
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.bind((address, 0))
    listener.listen()
    _listeners[:] = [listener]
    return address, listener.getsockname()[1]


def join(backend: str, rank: int, size: int, address: str, port: int, seconds: float) -> None:
    """Make the process group, in each worker.

    Args:
        backend: Of torch.
        rank: Of this worker.
        size: Number of workers.
        address: Where rank 0 listens.
        port: Likewise.
        seconds: Longest time that an exchange may take.
    """
    context = ray.train.get_context()
    local, locals = context.get_local_rank(), context.get_local_world_size()
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": locals}
    os.environ.update({name: str(number) for name, number in names.items()})  # as torchrun sets them
    distributed.use_interface(distributed.interface_of(ray.util.get_node_ip_address()))
    listener = _listeners.pop().detach() if rank == 0 else None
    distributed.join(backend, rank, size, (address, port), listener, timedelta(seconds=seconds))


class Changes:
    """What to do when hosts come and go: a `ControllerListener`, in the process of Ray Train's controller.

    Workers save before they are ended to start more of them, and before their host is taken back (preemption;
    `get_preemption_info`, Ray's way to notify the workers, waits for all of them at each call). When a host is lost,
    the next group of workers is made for the cluster as it is now. Why workers died is reported to the run's
    coordinator.
    """

    def __init__(self, coordinator: str) -> None:
        """Report to the coordinator of a run.

        Args:
            coordinator: The name of the run's coordinator, an actor.
        """
        self.coordinator = coordinator

    def preempting(self, ranks: Sequence[int], deadline: float | None) -> None:
        with contextlib.suppress(*GONE):
            seconds = deadline and max(0.0, deadline - time.time())
            ray.get(self._actor().host_goes.remote(ranks, seconds))

    def resizing(self) -> None:
        with contextlib.suppress(*GONE):
            coordinator = self._actor()
            ray.get(coordinator.ask_to_save.remote())
            while ray.get(coordinator.is_saving.remote()):
                time.sleep(0.1)

    def restarting(self, error: str) -> None:
        with contextlib.suppress(*GONE):  # reported before the next group of workers asks
            ray.get(self._actor().failed.remote(error))
            ray.get(refresh_cluster_view(), timeout=REFRESH_SECONDS)

    def rescheduling(self) -> None:
        with contextlib.suppress(*GONE):
            ray.get(refresh_cluster_view(), timeout=REFRESH_SECONDS)

    def _actor(self) -> Any:
        return ray.get_actor(self.coordinator)
