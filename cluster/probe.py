"""What `doctor` runs on every host: one process there that looks at it. Plain data in, plain data out.

It travels by value (trainers.runtime.preflight.by_value): it works, and says so, where Trainyard itself is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trainers.runs.provenance import versions
from trainers.runtime.preflight import Facts, see_data, see_storage, take_steps

HEALTH = "RAY_health_check_"
MEET_SECONDS = 3.0
NAME_SECONDS = 3.0
"""For a name server to answer."""
DRIVER_SECONDS = 5.0
"""For the driver of a GPU to answer."""
EXCHANGED_BYTES = 16 * 2**20
"""Of one all-reduce."""
EXCHANGE_SECONDS = 1.0
"""All-reduces are measured for about so long."""


class Probe:
    """An actor on one host. Its methods answer in bounded time, whatever hangs."""

    def __init__(self, wanted: Facts) -> None:
        """Parameters: `wanted`, host (its id), address (Ray's, of the host), storage, folder, token,
        data, paths, alone (there are no other hosts)."""
        self.wanted = wanted
        self.ready = threading.Event()
        """torch is loaded, which takes seconds: in a thread, while the rest is asked."""
        if not wanted["alone"]:
            threading.Thread(target=self._load, daemon=True).start()
        self.doors = [_listen(wanted["address"]) for _ in range(2)]
        """One for the other hosts to knock at, one for rank 0's store."""

    def clock(self) -> float:
        return time.time()

    def look(self, seconds: float) -> Facts:
        """Everything that one host can tell alone: name of the step -> facts, or {"error"}."""
        wanted = self.wanted
        steps: dict[str, Callable[[], Any]] = {
            "versions": versions,
            "token": token,
            "network": lambda: network(wanted["address"]),
            "shm": lambda: room("/dev/shm"),
            "disk": lambda: {
                name: room(path) for name, path in {**wanted["paths"], "Ray's files": _temporary()}.items()
            },
            "memory": memory,
            "gpu": gpu,
            "health": lambda: health(wanted["host"]),
        }
        if wanted["storage"] is not None:
            steps["storage"] = lambda: see_storage(wanted)
        if wanted["data"] is not None:
            steps["data"] = lambda: see_data(wanted["data"])
        found = take_steps(steps, seconds)
        return {**found, "ports": [door.getsockname()[1] for door in self.doors]}

    def meet(self, peers: Mapping[str, tuple[str, int]]) -> Facts:
        """Which of the peers, id -> (address, port), are reached, and whose files in the storage are seen."""
        wanted = self.wanted
        steps: dict[str, Callable[[], Any]] = {f"reach {id}": partial(knock, *at) for id, at in peers.items()}
        if wanted["storage"] is not None:
            steps["storage"] = lambda: see_others(wanted)
        found = take_steps(steps, MEET_SECONDS)
        unreached = {id: found[f"reach {id}"]["error"] for id in peers if "error" in found[f"reach {id}"]}
        return {"unreached": unreached, "storage": found.get("storage", {"seen": []})}

    def all_reduce(self, rank: int, size: int, at: tuple[str, int], seconds: float) -> Facts:
        """Exchange numbers with all other hosts by Gloo, as training does: {bytes_per_second} of each host's data.

        Parameters: `at`, address and port of rank 0's store.
        """
        door = self.doors[1].detach() if rank == 0 else None
        own = self.wanted["address"]
        found: Facts = take_steps({"": lambda: exchange(own, rank, size, at, door, seconds)}, seconds + 1)[""]
        return {**found, "ready": self.ready.is_set()}

    def _load(self) -> None:
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401

            self.ready.set()


def token() -> Facts:
    """{on, path, exposed}: whether Ray authenticates here, the token's file (None: the environment has it; "" where
    there is none), and whether others may read it."""
    on = os.environ.get("RAY_AUTH_MODE", "disabled") != "disabled"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return {"on": on, "path": None, "exposed": False}
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").resolve()
    if not path.exists():
        return {"on": on, "path": "", "exposed": False}
    above = [folder.stat().st_mode for folder in path.parents]  # a folder that is closed hides what is in it
    ways = ((0o040, 0o010), (0o004, 0o001))  # of the group, and of all others: to read a file, to enter a folder
    exposed = any(path.stat().st_mode & read and all(mode & enter for mode in above) for read, enter in ways)
    return {"on": on, "path": str(path), "exposed": exposed}


def network(address: str) -> Facts:
    """{interface, chosen, name, resolves}: what bears Ray's address, what the host's owner chose in its place for Gloo,
    and what the host's own name resolves to."""
    import psutil

    found = psutil.net_if_addrs().items()  # trainers.training.distributed.interface_of, where Trainyard may be missing
    bearing = [name for name, entries in found if address in [entry.address for entry in entries]]
    name = socket.gethostname()
    resolved = take_steps({"name": lambda: {"address": socket.gethostbyname(name)}}, NAME_SECONDS)["name"]
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    return {"interface": next(iter(bearing), None), "chosen": chosen, "name": name, "resolves": resolved.get("address")}


def room(path: str) -> Facts:
    """{total, free} bytes of the disk that a path, or the nearest folder above it that exists, lies on."""
    here = Path(path)
    while not here.exists():
        here = here.parent
    usage = shutil.disk_usage(here)
    return {"path": path, "total": usage.total, "free": usage.free}


def memory() -> Facts:
    """{total, available} bytes."""
    import psutil

    found = psutil.virtual_memory()
    return {"total": found.total, "available": found.available}


def gpu() -> Facts:
    """{devices, driver}: what the GPUs' driver tells; where there are any, {torch_cuda, usable, why} too: what torch
    was built for, and whether it can use them."""
    devices, driver = [], None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_SECONDS)
        rows = [line.rpartition(", ") for line in done.stdout.splitlines() if ", " in line]
        devices, driver = [name for name, _, _ in rows], next((version for _, _, version in rows), None)
    if not devices:
        return {"devices": [], "driver": None}
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from processes that asked for none
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            import torch
        except ImportError as error:
            return {"devices": devices, "driver": driver, "torch_cuda": None, "usable": False, "why": str(error)}
        usable = torch.cuda.is_available()
    why = str(told[-1].message).splitlines()[0] if told and not usable else ""
    return {"devices": devices, "driver": driver, "torch_cuda": torch.version.cuda, "usable": usable, "why": why}


def health(node: str) -> Facts:
    """{settings}: how the head's control store, where it runs on this node, finds that a host hangs; None elsewhere."""
    import psutil

    for process in psutil.process_iter(["name"]):
        if process.info["name"] != "gcs_server":
            continue
        with contextlib.suppress(psutil.Error):
            if f"--node-id={node}" in process.cmdline():
                return {"settings": {key: value for key, value in process.environ().items() if key.startswith(HEALTH)}}
    return {"settings": None}


def _temporary() -> str:
    """Where Ray keeps its sockets, logs and spilt objects on this host."""
    import ray

    node: Any = ray._private.worker.global_worker.node
    return str(node.get_session_dir_path())


def see_others(wanted: Facts) -> Facts:
    """{seen}: the hosts whose files are in the storage."""
    from trainers.storage.store import Store

    return {"seen": (Store(wanted["storage"]) / wanted["folder"]).names()}


def knock(address: str, port: int) -> Facts:
    """Connect to another host's probe. Raises OSError."""
    socket.create_connection((address, port), timeout=MEET_SECONDS).close()
    return {}


def exchange(own: str, rank: int, size: int, at: tuple[str, int], door: int | None, seconds: float) -> Facts:
    """One of `size` processes that all-reduce, the one at address `own`; their store listens at rank 0's `door`."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    from trainers.training.distributed import interface_of, use_interface

    use_interface(interface_of(own))
    limit = timedelta(seconds=seconds)
    store = TCPStore(*at, size, rank == 0, limit, master_listen_fd=door)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    try:
        numbers = torch.zeros(EXCHANGED_BYTES // 4)
        dist.all_reduce(numbers)
        times = 0
        begun = time.perf_counter()
        more = torch.ones(1)
        while more.item() > 0:
            dist.all_reduce(numbers)
            times += 1
            more.fill_(float(rank == 0 and time.perf_counter() - begun < EXCHANGE_SECONDS))
            dist.all_reduce(more)  # all stop when rank 0 does
        return {"bytes_per_second": times * EXCHANGED_BYTES / (time.perf_counter() - begun)}
    finally:
        dist.destroy_process_group()


def _listen(address: str) -> socket.socket:
    """On the interface of Ray alone."""
    door = socket.socket()
    door.bind((address, 0))
    door.listen(128)
    return door
