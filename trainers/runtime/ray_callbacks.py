"""What is hung into Ray Train: the network interface, a checkpoint before workers are taken away, a quick recovery.

Imports ray.train; ray_train alone imports it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.util
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.torch import TorchConfig

from trainers.runtime.ray_internals import refresh_cluster_view, shorten_claims
from trainers.training import distributed

if TYPE_CHECKING:
    from ray.train.backend import Backend

REFRESH_SECONDS = 5.0
"""So long a refreshed view of the cluster is waited for."""
CLAIM_SECONDS = 30
"""What a killed driver has claimed of the cluster is void then: whoever gives the same command again waits for that."""
shorten_claims(CLAIM_SECONDS)
GONE = (ray.exceptions.RayError, ValueError)
"""A run whose coordinator is gone is over."""


class _Workers(Protocol):
    """A group of workers of Ray Train."""

    def execute(self, function: Callable[[], object]) -> object:
        """Call a function in each of them."""


class Network(TorchConfig):
    """Ray Train's process group, once each worker knows its interface.

    Gloo binds to whatever the host's name resolves to, which on many machines is 127.0.0.1: workers on several hosts
    then do not find each other.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: _Workers, backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: _Workers, backend_config: TorchConfig) -> None:
        # Ranks whose peer is cut off do not get out of the process group: Ray's 30 s would be waited for in vain.
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, "3")
        super().on_shutdown(worker_group, backend_config)


def use_interface_of_ray() -> None:
    """Give Gloo and NCCL, in this process, the interface that bears the node's Ray address."""
    distributed.use_interface(distributed.interface_of(ray.util.get_node_ip_address()))


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
