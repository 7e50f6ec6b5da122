"""What is hung into Ray Train: the network interface, a checkpoint before workers are taken away, a quick recovery.

Imports ray.train; on_ray alone imports it.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import ray
import ray.util
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
)
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

from trainers.training import distributed

LOOK_SECONDS = 5.0
# What an elastic run claims of the cluster is claimed anew every 20 s. A driver that is killed leaves its claim behind,
# and whoever gives the same command waits until it is void: with Ray's number 180 s.
autoscaling_coordinator_client.AUTOSCALING_REQUESTS_EXPIRE_TIME_S = 30


class Network(TorchConfig):
    """Ray Train's process group, once each worker knows its interface.

    Gloo binds to whatever the host's name resolves to, which on many machines is 127.0.0.1: workers on several hosts
    then do not find each other.
    """

    @property
    def backend_cls(self) -> Any:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        # Ranks whose peer is cut off do not get out of the process group: Ray's 30 s would be waited for in vain.
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, "3")
        super().on_shutdown(worker_group, backend_config)


def use_interface_of_ray() -> None:
    """Give Gloo and NCCL, in this process, the interface that bears the node's Ray address."""
    distributed.use_interface(distributed.interface_of(ray.util.get_node_ip_address()))


class Changes(ControllerCallback):
    """What to do when hosts come and go; lives in Ray Train's controller.

    Workers save before they are ended to start more of them, and before their host is taken back (preemption;
    `get_preemption_info`, Ray's way to tell the workers, waits for all of them at each call). When a host is lost, the
    next group of workers is made for the cluster as it is now. Why workers died is told to the run's Desk.
    """

    def __init__(self, coordinator: str) -> None:
        """Parameters: `desk`, the name of the run's Desk."""
        self.coordinator = coordinator

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):  # a run without its desk is over
            if isinstance(current_state, PreemptingState):
                self._hurry(current_state.preemption_info)
            if isinstance(current_state, ResizingState):
                self._save()
            if isinstance(current_state, RestartingState):
                self._report(current_state.training_failed_error)
            if isinstance(current_state, RestartingState | ReschedulingState):
                ray.get(refresh_cluster_view(), timeout=LOOK_SECONDS)

    def _report(self, error: Exception) -> None:
        coordinator: Any = ray.get_actor(self.coordinator)
        ray.get(coordinator.failed.remote(str(error)))  # before the next group of workers asks

    def _hurry(self, info: Any) -> None:
        seconds = info.deadline_ms and max(0.0, info.deadline_ms / 1000 - time.time())
        coordinator: Any = ray.get_actor(self.coordinator)
        ray.get(coordinator.host_goes.remote(info.preempted_ranks, seconds))

    def _save(self) -> None:
        coordinator: Any = ray.get_actor(self.coordinator)
        ray.get(coordinator.ask_to_save.remote())
        while ray.get(coordinator.is_saving.remote()):
            time.sleep(0.1)


def refresh_cluster_view() -> Any:
    """Bring Ray Train's view of the cluster up to date, which it does itself every 20 s; done when this is ready."""
    coordinator: Any = get_or_create_autoscaling_coordinator()
    return coordinator.get_reserved_resources.remote("trainyard", recompute=True)
