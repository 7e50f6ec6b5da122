"""Looks at every host of a cluster, in parallel, and names what would stop or slow a run before one is started.

    python -m cluster doctor --storage /shared/runs --data /shared/photos --workers 8 --gpus-per-worker 1

On the cluster of RAY_ADDRESS or of the job, else on this machine. Exit codes: 0, 1 where a run would fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from cluster.findings import HERE, examine
from trainers.cli import cli, cli_type
from trainers.progress import Progress
from trainers.recipe import Scale
from trainers.runs import provenance
from trainers.runtime import preflight
from trainers.runtime.preflight import Facts, Finding, Host
from trainers.storage.store import Store, default_storage

KNOCK_SECONDS = 3.0
CONNECT_SECONDS = 15.0
START_SECONDS = 9.0
LOOK_SECONDS = 8.0
MEET_SECONDS = 4.0
WHOLE_SECONDS = 28.0
"""The last answer that is waited for, that of the all-reduce, is in by then."""
UPLOAD_SECONDS = 3.0
PINGS = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """What would stop a run on the cluster of RAY_ADDRESS, or slow it: looked at on every host, before one is started.

    Exit codes: 0; 1 where a run would fail; 2 bad usage.
    """

    storage: str | None = None
    """Folder or URI that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""
    data: str | None = None
    """Folder of the raw data."""
    workers: int | tuple[int, int] = 1
    """Training processes to find room for; MIN:MAX: as many as the cluster has."""
    cpus_per_worker: int | None = None
    """CPUs of each worker. None: the host's, shared evenly."""
    gpus_per_worker: float | None = None
    """GPUs of each worker. None: one where the cluster has GPUs."""
    accelerator_type: str | None = None
    """Kind of GPU that each worker needs, by Ray's name, such as A100."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What else each worker needs, by the names that the cluster gives its own resources, such as fast_disk=1."""
    data_mode: Literal["auto", "cache", "stream"] = "auto"
    """How the run would read its pictures."""
    working_dir: str = "."
    """Folder that a submitted job would carry to the cluster."""
    json: bool = False
    """Print the findings and all facts as JSON."""


def main(argv: list[str]) -> int:
    """Examine the cluster that a command line asks for; returns the exit code. Raises ValueError."""
    options = cli(cli_type(Options), argv, "python -m cluster doctor", cli_type(Options)(**vars(Options())))
    known = {each.name for each in dataclasses.fields(Scale)}
    scale = Scale(**{name: value for name, value in vars(options).items() if name in known})
    if not scale.on_ray:
        raise ValueError("--workers 0 trains in one process, without a cluster; give 1 or more")
    if not Path(options.working_dir).is_dir():
        raise ValueError(f"--working-dir {options.working_dir} is not a folder")
    storage = Store(scale.storage or default_storage())
    begun, progress = time.monotonic(), Progress()
    facts, findings = _visit(scale, storage, Path(options.working_dir), begun + WHOLE_SECONDS, progress)
    seconds = time.monotonic() - begun
    if options.json:
        told = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"seconds": round(seconds, 1), "findings": told, "facts": facts}, indent=1))
    else:
        _show(facts, findings, seconds)
    return int(any(finding.fatal for finding in findings))


# What is found out ---------------------------------------------------------------------------------------------


def _visit(
    scale: Scale, storage: Store, working_dir: Path, end: float, progress: Progress
) -> tuple[Facts, list[Finding]]:
    """Connect, look, and judge: (facts, findings)."""
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        progress.message("RAY_ADDRESS is not set: this machine is examined alone")
    with progress.waiting(f"connecting to {address}" if address else "starting Ray"):
        refused = _connect(address, scale.worker_range[1])
    if refused is not None:
        return {"hosts": {}}, [refused]
    import ray

    try:
        with progress.waiting("looking at every host"), contextlib.redirect_stdout(sys.stderr):  # where Ray may talk
            facts, wanted = gather_facts(scale, storage, working_dir, end)
        return facts, examine(facts, wanted)
    finally:
        ray.shutdown()


def _connect(address: str | None, workers: int) -> Finding | None:
    """Connect to Ray, or start it here, as a run of so many workers would; why that failed."""
    if address is None:
        _join("local", num_cpus=max(len(os.sched_getaffinity(0)), workers + 1))
        return None
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    known = token.exists() or "RAY_AUTH_TOKEN" in os.environ
    if known:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
        except OSError as error:
            fix = "start the cluster (ray start --head ...), or correct RAY_ADDRESS, or open that port"
            return Finding(True, f"nothing answers at RAY_ADDRESS={address}: {error.strerror or error}", HERE, fix)
    lacking = os.environ.get("RAY_AUTH_MODE") == "token" and not known
    joined = (
        {"error": "no token"} if lacking else preflight.take_steps({"": lambda: _join(address)}, CONNECT_SECONDS)[""]
    )
    if "error" not in joined:
        return None
    if not known:
        what = f"there is no token, neither at {token} nor in RAY_AUTH_TOKEN, and the cluster lets nobody in without"
        return Finding(True, what, HERE, "copy the head's ~/.ray/auth_token here, with mode 600")
    what = f"the cluster at {address} does not let this process in: {joined['error'].strip().splitlines()[0]}"
    return Finding(True, what, HERE, "compare the token, and the versions of Python and Ray, with the head's")


def _join(address: str, **options: Any) -> Facts:
    import ray

    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    return {}


def gather_facts(scale: Scale, storage: Store, working_dir: Path, end: float) -> tuple[Facts, Facts]:
    """What there is to know of the cluster that Ray is connected to: (facts, wanted), as `findings.examine` takes them.

    Parameters: `end`, by time.monotonic(). The facts:

    hosts: label -> what probe.Probe.look told, and id, arrived (its file is in the storage), clock {offset,
        round_trip}, met {unreached, storage}, exchange {bytes_per_second}; or {error} where no process started
    this: versions, and storage {error} where it cannot be written from here
    cluster: cpus, workers (most), resources (of each), unfit (why they find no place), shapes (label -> what the host
        has), store (label -> bytes that its object store may still take)
    upload: bytes, largest: name -> bytes
    """
    from trainers.data.source import cache_folder

    nodes = preflight.ray_hosts()
    wanted: Facts = {
        "storage": None,
        "data": None,
        "scale": scale.to_json(),
        "paths": {"prepared pictures": str(cache_folder(storage))},
    }
    if storage.local is not None:
        wanted["paths"]["runs"] = str(storage.local)
    if scale.data is not None:
        wanted["data"] = os.path.abspath(os.path.expanduser(scale.data))
    upload = preflight.take_steps({"": lambda: upload_size(working_dir)}, UPLOAD_SECONDS)[""]
    facts: Facts = {"this": {"versions": provenance.versions()}, "cluster": _cluster(scale, nodes), "upload": upload}
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        reached = preflight.take_steps({"": lambda: {"names": storage.names()}}, LOOK_SECONDS / 2)[""]
        try:
            if "error" in reached:
                raise ValueError(f"the storage {storage.address} cannot be read: {reached['error']}; look at its mount")
            wanted |= stack.enter_context(preflight.probe_file(storage))
        except ValueError as error:
            facts["this"]["storage"] = {"error": str(error)}
        facts["hosts"] = _ask_all(nodes, wanted, end)
        if wanted["storage"] is not None:
            names = (storage / wanted["folder"]).names()
    for node in nodes:
        facts["hosts"][node.label] |= {"id": node.id, "arrived": node.id in names}
    return facts, wanted


def _ask_all(nodes: Sequence[Host], wanted: Facts, end: float) -> dict[str, Facts]:
    """Start a probe on every node and ask it everything: label -> facts."""
    import ray

    from cluster import probe

    with preflight.by_value(preflight, provenance, probe):
        actor: Any = ray.remote(probe.Probe)
        probes = {}
        for node in nodes:
            own = {**wanted, "host": node.id, "address": node.address, "alone": len(nodes) == 1}
            probes[node.label] = actor.options(num_cpus=0, max_concurrency=4, **preflight.pinned(node)).remote(own)
    try:
        found = _ask(probes, {node.label: node.address for node in nodes}, end)
    finally:
        for each in probes.values():
            ray.kill(each)
    for node in nodes:
        if "error" in found[node.label]:
            door = preflight.take_steps({"": partial(probe.knock, node.address, node.port)}, KNOCK_SECONDS)[""]
            found[node.label]["reached"] = "error" not in door
    return found


def _ask(probes: Mapping[str, Any], addresses: Mapping[str, str], end: float) -> dict[str, Facts]:
    found = preflight.gather({label: each.clock.remote() for label, each in probes.items()}, START_SECONDS)
    up = _answered(probes, found)
    clocks = {label: _clock(each) for label, each in up.items()}
    found |= preflight.gather({label: each.look.remote(LOOK_SECONDS) for label, each in up.items()}, LOOK_SECONDS + 1)
    up = _answered(up, found)
    doors = {label: (addresses[label], found[label]["ports"][0]) for label in up}
    meeting = {
        label: each.meet.remote({other: door for other, door in doors.items() if other != label})
        for label, each in up.items()
    }
    met = preflight.gather(meeting, MEET_SECONDS)
    exchanged: dict[str, Facts] = {}
    able = [label for label in up if {"torch", "trainyard"} <= found[label]["versions"].keys()]
    if len(able) > 1 and not any("error" in met[label] or met[label]["unreached"] for label in able):
        at, left = (addresses[able[0]], found[able[0]]["ports"][1]), max(3.0, end - time.monotonic())
        calls = {label: up[label].all_reduce.remote(rank, len(able), at, left - 2) for rank, label in enumerate(able)}
        exchanged = preflight.gather(calls, left)
    for label in up:
        found[label] |= {"clock": clocks[label], "met": met[label], "exchange": exchanged.get(label)}
    return found


def _answered(probes: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        label: each
        for label, each in probes.items()
        if not (isinstance(found[label], dict) and "error" in found[label])
    }


def _clock(probe: Any) -> Facts:
    """{offset, round_trip} seconds: how far a host's clock is ahead of this one, by the fastest of a few questions."""
    import ray

    best = {"offset": 0.0, "round_trip": float("inf")}
    for _ in range(PINGS):
        begun, asked = time.perf_counter(), time.time()
        told = ray.get(probe.clock.remote())
        taken = time.perf_counter() - begun
        if taken < best["round_trip"]:
            best = {"offset": told - (asked + taken / 2), "round_trip": taken}
    return best


def _cluster(scale: Scale, nodes: Sequence[Host]) -> Facts:
    """What the cluster as a whole has, and the resources of each worker that `scale` asks for."""
    from ray._private.state import available_resources_per_node, state

    from trainers.runtime.resources import named_resources, refuse_what_never_fits, share_of_cpus

    shapes = [node.resources for node in nodes]
    cpus = scale.cpus_per_worker or share_of_cpus(shapes, scale.worker_range[1])
    resources = {"CPU": float(cpus)}
    gpus = scale.gpus_per_worker
    if gpus or (gpus is None and any(shape.get("GPU", 0) for shape in shapes)):
        resources["GPU"] = gpus or 1.0
    resources |= named_resources(scale)
    unfit = None
    try:
        refuse_what_never_fits(scale.worker_range[0], resources, shapes)
    except ValueError as error:
        unfit = str(error)
    left = available_resources_per_node()
    addable = (state.get_max_resources_from_cluster_config() or {}).get("CPU", 0.0)
    return {
        "cpus": max(addable, sum(node.cpus for node in nodes)),
        "workers": scale.worker_range[1],
        "resources": resources,
        "unfit": unfit,
        "shapes": {node.label: dict(node.resources) for node in nodes},
        "store": {node.label: left.get(node.id, {}).get("object_store_memory", 0.0) for node in nodes},
    }


def upload_size(folder: Path) -> Facts:
    """{bytes, largest: name -> bytes} of what Ray would send as a job's working directory."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    folder = folder.absolute()
    sizes: Counter[str] = Counter()

    def count(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).parts[0]] += path.stat().st_size

    excluded = _get_excludes(folder, get_runtime_env_default_excludes())
    _dir_travel(folder, [excluded], count, include_gitignore=True, logger=logging.getLogger("none"))
    return {"bytes": sizes.total(), "largest": dict(sizes.most_common(3))}


# What is told --------------------------------------------------------------------------------------------------


def _show(facts: Facts, findings: Sequence[Finding], seconds: float) -> None:
    """The findings and the measured rate, on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        kind = "[red]error:[/red]  " if finding.fatal else "[yellow]warning:[/yellow]"
        console.print(f"{kind} {escape(finding.where)}: {escape(finding.what)}")
        console.print(f"         {escape(finding.fix)}", style="dim")
    rates = [
        found["exchange"]["bytes_per_second"]
        for found in facts["hosts"].values()
        if "bytes_per_second" in (found.get("exchange") or {})
    ]
    if rates:
        console.print(f"all-reduce over {len(rates)} hosts: {min(rates) / 1e6:,.0f} MB/s of data, by Gloo")
    count, fatal = len(facts["hosts"]), sum(finding.fatal for finding in findings)
    told = f"{fatal} fatal and {len(findings) - fatal} other findings" if findings else "nothing found"
    where = f" on {count} host{'s' if count > 1 else ''}" if count else ""
    console.print(f"{told}{where} in {seconds:.1f} s")
