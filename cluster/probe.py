"""What `doctor` runs on every host: one process there that examines it. Plain data in, plain data out.

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
from typing import TYPE_CHECKING, cast

from trainers.runtime.preflight import shared_steps, take_step, take_steps

if TYPE_CHECKING:
    from cluster.facts import (
        DiskFacts,
        Exchange,
        GpuFacts,
        HealthFacts,
        Inspection,
        LoadFacts,
        Meeting,
        MemoryFacts,
        NetworkFacts,
        ProbeQuestion,
        SeenFiles,
        TokenFacts,
    )

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

    def __init__(self, wanted: ProbeQuestion) -> None:
        self.wanted = wanted
        self.ready = threading.Event()
        """torch is loaded, which takes seconds: in a thread, while the rest is checked."""
        if not wanted["alone"]:
            threading.Thread(target=self._load, daemon=True).start()
        self.listeners = [_listen(wanted["address"]) for _ in range(2)]
        """One for the other hosts to connect to, one for rank 0's store."""

    def clock(self) -> float:
        return time.time()

    def inspect(self, seconds: float) -> Inspection:
        """Everything that one host can say alone."""
        wanted = self.wanted
        steps: dict[str, Callable[[], object]] = {
            **shared_steps(wanted),
            "token": token,
            "network": lambda: network(wanted["address"]),
            "shm": lambda: room("/dev/shm"),
            "disk": lambda: {
                name: room(path) for name, path in {**wanted["paths"], "Ray's files": _temporary()}.items()
            },
            "memory": memory,
            "load": load,
            "gpu": gpu,
            "health": lambda: health(wanted["host"]),
        }
        found = {**take_steps(steps, seconds), "ports": [listener.getsockname()[1] for listener in self.listeners]}
        return cast("Inspection", found)

    def meet(self, peers: Mapping[str, tuple[str, int]]) -> Meeting:
        """Connect to the other hosts.

        Args:
            peers: Host -> address and port of its probe.

        Returns:
            Which of them are not reached, and whose files in the storage are seen.
        """
        wanted = self.wanted
        steps: dict[str, Callable[[], SeenFiles | None]] = {id: partial(check_port, *at) for id, at in peers.items()}
        steps["storage"] = lambda: {"seen": []} if wanted["storage"] is None else see_others(wanted)
        found = take_steps(steps, MEET_SECONDS)
        storage = found.pop("storage")
        assert storage is not None
        unreached = {id: answer["error"] for id, answer in found.items() if answer is not None and "error" in answer}
        return {"unreached": unreached, "storage": storage}

    def all_reduce(self, rank: int, size: int, at: tuple[str, int], seconds: float) -> Exchange:
        """Exchange numbers with all other hosts by Gloo, as training does.

        Args:
            rank: Of this host.
            size: Number of hosts.
            at: Address and port of rank 0's store.
            seconds: Longest time that it may take.
        """
        listener = self.listeners[1].detach() if rank == 0 else None
        own = self.wanted["address"]
        rate = take_step(lambda: exchange(own, rank, size, at, listener, seconds), seconds + 1)
        if isinstance(rate, dict):
            return {"error": rate["error"], "ready": self.ready.is_set()}
        return {"bytes_per_second": rate, "ready": self.ready.is_set()}

    def _load(self) -> None:
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401

            self.ready.set()


def token() -> TokenFacts:
    """Ray's token, as this process finds it."""
    on = os.environ.get("RAY_AUTH_MODE", "disabled") != "disabled"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return {"on": on, "path": None, "exposed": False}
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")).resolve()
    if not path.exists():
        return {"on": on, "path": "", "exposed": False}
    above = [folder.stat().st_mode for folder in path.parents]  # a folder that is closed hides what is in it
    ways = ((0o040, 0o010), (0o004, 0o001))  # of the group, and of all others: to read a file, to enter a folder
    exposed = any(path.stat().st_mode & read and all(mode & enter for mode in above) for read, enter in ways)
    return {"on": on, "path": str(path), "exposed": exposed}


def network(address: str) -> NetworkFacts:
    """How other hosts find this one, whose address is Ray's."""
    import psutil

    found = psutil.net_if_addrs().items()  # trainers.training.distributed.interface_of, where Trainyard may be missing
    bearing = [name for name, entries in found if address in [entry.address for entry in entries]]
    name = socket.gethostname()
    resolved = take_step(lambda: socket.gethostbyname(name), NAME_SECONDS)
    return {
        "interface": next(iter(bearing), None),
        "chosen": os.environ.get("GLOO_SOCKET_IFNAME"),
        "name": name,
        "resolves": resolved if isinstance(resolved, str) else None,
    }


def room(path: str) -> DiskFacts:
    """The disk that a path, or the nearest folder above it that exists, lies on."""
    here = Path(path)
    while not here.exists():
        here = here.parent
    usage = shutil.disk_usage(here)
    return {"path": path, "total": usage.total, "free": usage.free}


def memory() -> MemoryFacts:
    import psutil

    found = psutil.virtual_memory()
    return {"total": found.total, "available": found.available}


def load() -> LoadFacts:
    """How many processes computed, or were to, in the mean of the last 5 minutes: this check itself counts little."""
    import psutil

    return {"cores": psutil.cpu_count() or 1, "busy": psutil.getloadavg()[1]}


def gpu() -> GpuFacts:
    """What the GPUs' driver reports, and, where there are any, whether torch can use them."""
    devices: list[str] = []
    driver = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_SECONDS)
        rows = [line.rpartition(", ") for line in done.stdout.splitlines() if ", " in line]
        devices, driver = [name for name, _, _ in rows], next((version for _, _, version in rows), None)
    if not devices:
        return {"devices": [], "driver": None}
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from processes that request none
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import torch
        except ImportError as error:
            return {"devices": devices, "driver": driver, "torch_cuda": None, "usable": False, "why": str(error)}
        usable = torch.cuda.is_available()
    why = str(caught[-1].message).splitlines()[0] if caught and not usable else ""
    return {"devices": devices, "driver": driver, "torch_cuda": torch.version.cuda, "usable": usable, "why": why}


def health(node: str) -> HealthFacts:
    """How the head's control store, where it runs on this node, finds that a host hangs."""
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

    context = ray.get_runtime_context()
    return os.path.join(context.get_temp_dir(), context.get_session_name())


def see_others(wanted: ProbeQuestion) -> SeenFiles:
    """The hosts whose files are in the storage."""
    from trainers.storage.store import Store

    assert wanted["storage"] is not None
    return {"seen": (Store(wanted["storage"]) / wanted["folder"]).names()}


def check_port(address: str, port: int) -> None:
    """Connect to a port of another host, and close the connection. Raises OSError."""
    socket.create_connection((address, port), timeout=MEET_SECONDS).close()


def exchange(own: str, rank: int, size: int, at: tuple[str, int], listener: int | None, seconds: float) -> float:
    """Take part in an all-reduce by Gloo.

    Args:
        own: Address of this host.
        rank: Of this process.
        size: Number of processes.
        at: Address and port of rank 0's store.
        listener: File descriptor at which that store listens; None on other ranks.
        seconds: Longest wait for the others.

    Returns:
        Bytes per second of each process's data.
    """
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from trainers.training.distributed import interface_of, use_interface

    use_interface(interface_of(own))
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(  # type: ignore[attr-defined]  # exported, but not by __all__
        *at, size, rank == 0, limit, master_listen_fd=listener
    )
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
        return times * EXCHANGED_BYTES / (time.perf_counter() - begun)
    finally:
        dist.destroy_process_group()


def _listen(address: str) -> socket.socket:
    """On the interface of Ray alone."""
    listener = socket.socket()
    listener.bind((address, 0))
    listener.listen(128)
    return listener
