"""torch's process group on the interface that Ray itself uses.

Gloo binds to whatever the host's name resolves to, which on many machines is 127.0.0.1: workers on several hosts then
do not find each other. Imports ray.train; on_ray alone imports it.
"""

from __future__ import annotations

from typing import Any

import ray.util
from ray.train.torch import TorchConfig

from trainers import parallel


class Network(TorchConfig):
    """Ray Train's process group, once each worker knows its interface."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)


def use_interface_of_ray() -> None:
    """Give Gloo and NCCL, in this process, the interface that bears the node's Ray address."""
    parallel.use_interface(parallel.interface_of(ray.util.get_node_ip_address()))
