"""Check every host of a cluster, in parallel, and report what would stop or slow a run before one is started.

    python -m cluster doctor --storage /shared/runs --data /shared/photos --workers 8 --gpus-per-worker 1

On the cluster of RAY_ADDRESS or of the job, else on this machine. Exit codes: 0, 1 where a run would fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, Protocol, TypeVar, cast

from rich.console import Console
from rich.markup import escape

from cluster.facts import (
    Answers,
    Clock,
    ClusterFacts,
    ClusterQuestion,
    Exchange,
    Facts,
    HostFacts,
    Inspection,
    Meeting,
    ProbeQuestion,
    Silence,
    SilentHost,
    ThisFacts,
    UploadFacts,
)
from cluster.findings import HERE, examine
from cluster.upload import measure
from trainers.cli import cli, cli_type
from trainers.limits import cpus
from trainers.progress import Progress
from trainers.recipe import Scale
from trainers.runs import provenance
from trainers.runtime import preflight
from trainers.runtime.addresses import cluster_address, host_of, refuse_other_servers, use_token
from trainers.runtime.preflight import Failure, Finding, Host
from trainers.runtime.proxies import ask_directly
from trainers.runtime.ray_internals import connect, start_on_loopback
from trainers.runtime.resources import is_connected
from trainers.storage.store import Store, default_storage

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

P = ParamSpec("P")
Result = TypeVar("Result")

PORT_SECONDS = 3.0
CONNECT_SECONDS = 15.0
START_SECONDS = 9.0
INSPECT_SECONDS = 8.0
MEET_SECONDS = 4.0
WHOLE_SECONDS = 28.0
"""For the whole check; the all-reduce is the last answer that it waits for."""
UPLOAD_SECONDS = 3.0
PINGS = 5
LARGEST = 3
"""Entries of the working directory that are reported."""


class _Method(Protocol[P, Result]):
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[Result]: ...


class _Probe(Protocol):
    """Ray's handle of a probe.Probe."""

    @property
    def clock(self) -> _Method[[], float]: ...
    @property
    def inspect(self) -> _Method[[float], Inspection]: ...
    @property
    def meet(self) -> _Method[[Mapping[str, tuple[str, int]]], Meeting]: ...
    @property
    def all_reduce(self) -> _Method[[int, int, tuple[str, int], float], Exchange]: ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """What would stop a run on the cluster of RAY_ADDRESS, or slow it: checked on every host, before one is started.

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
    """Examine the cluster that a command line asks for.

    Args:
        argv: The words after `doctor`.

    Returns:
        The exit code.

    Raises:
        ValueError: A flag is not allowed.
    """
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
        records = [dataclasses.asdict(finding) for finding in findings]
        everything = {"seconds": round(seconds, 1), "findings": records, "facts": facts or {"hosts": {}}}
        print(json.dumps(everything, indent=1))
    else:
        _show(facts["hosts"] if facts else {}, findings, seconds)
    return int(any(finding.fatal for finding in findings))


# What is found out ---------------------------------------------------------------------------------------------


def _visit(
    scale: Scale, storage: Store, working_dir: Path, end: float, progress: Progress
) -> tuple[Facts | None, list[Finding]]:
    """Connect, gather the facts, and judge them: (facts, findings). No facts: the cluster is not there."""
    address = cluster_address()
    if address is None:
        progress.message("RAY_ADDRESS is not set: this machine is examined alone")
    with progress.waiting(f"connecting to {address}" if address else "starting Ray"):
        refused = _connect(address, scale.worker_range[1])
    if refused is not None:
        return None, [refused]
    import ray

    try:
        with progress.waiting("checking every host"), contextlib.redirect_stdout(sys.stderr):  # where Ray may print
            facts, wanted = gather_facts(scale, storage, working_dir, end)
        return facts, examine(facts, wanted)
    finally:
        ray.shutdown()


def _connect(address: str | None, workers: int) -> Finding | None:
    """Connect to Ray, or start it here, as a run of so many workers would; why that failed."""
    if is_connected():
        return None
    ask_directly(host_of(address))
    if address is None:
        start_on_loopback(max(cpus(), workers + 1), dashboard=True)
        return None
    refuse_other_servers(address)
    if address.startswith("ray://"):
        what = f"RAY_ADDRESS={address} is that of Ray's client server, through which not all of a cluster is seen"
        return Finding(True, what, HERE, "on a host of the cluster give the address of its head, HEAD:6379")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))
    known = token.exists() or "RAY_AUTH_TOKEN" in os.environ
    if known:
        use_token()
    host, port = host_of(address), address.rpartition(":")[2]
    if host is not None and port.isdigit():
        try:
            socket.create_connection((host, int(port)), PORT_SECONDS).close()
        except OSError as error:
            fix = "start the cluster (ray start --head ...), or correct RAY_ADDRESS, or open that port"
            return Finding(True, f"nothing answers at RAY_ADDRESS={address}: {error.strerror or error}", HERE, fix)
    lacking = os.environ.get("RAY_AUTH_MODE") == "token" and not known
    failure: Failure | None = {"error": "no token"}
    if not lacking:
        failure = preflight.take_step(lambda: connect(address), CONNECT_SECONDS)
    if failure is None:
        return None
    if not known:
        what = f"there is no token, neither at {token} nor in RAY_AUTH_TOKEN, and the cluster requires one"
        return Finding(True, what, HERE, "copy the head's ~/.ray/auth_token here, with mode 600")
    what = f"the cluster at {address} rejects this process: {failure['error'].strip().splitlines()[0]}"
    return Finding(True, what, HERE, "compare the token, and the versions of Python and Ray, with the head's")


def gather_facts(scale: Scale, storage: Store, working_dir: Path, end: float) -> tuple[Facts, ClusterQuestion]:
    """Find out what there is to know of the cluster that Ray is connected to.

    Args:
        scale: Where a run would run, with the path of its raw data.
        storage: Where its run folder would lie.
        working_dir: What a submitted job would carry along.
        end: When the last answer has to be in, by time.monotonic().

    Returns:
        The facts, and what was asked for, as `findings.examine` takes them.
    """
    nodes = preflight.ray_hosts()
    wanted = _question(scale, storage)
    upload = preflight.take_step(lambda: measure_upload(working_dir), UPLOAD_SECONDS)
    this: ThisFacts = {"versions": provenance.versions()}
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        reached = preflight.take_step(storage.names, INSPECT_SECONDS / 2)
        try:
            if isinstance(reached, dict):
                raise ValueError(f"the storage {storage.address} cannot be read: {reached['error']}; check its mount")
            wanted = {**wanted, **stack.enter_context(preflight.probe_file(storage))}
        except ValueError as error:
            this["storage"] = {"error": str(error)}
        answers, silences = _ask_all(nodes, wanted, end)
        if wanted["storage"] is not None:
            names = (storage / wanted["folder"]).names()
    hosts: dict[str, HostFacts | SilentHost] = {}
    for node in nodes:
        label, arrived = node.label, node.id in names
        if label in answers:
            hosts[label] = {**answers[label], "id": node.id, "arrived": arrived}
        else:
            hosts[label] = {**silences[label], "id": node.id, "arrived": arrived}
    return {"this": this, "hosts": hosts, "cluster": _cluster(scale, nodes), "upload": upload}, wanted


def _question(scale: Scale, storage: Store) -> ClusterQuestion:
    from trainers.data.source import cache_folder

    paths = {"prepared pictures": str(cache_folder(storage))}
    if storage.local is not None:
        paths["runs"] = str(storage.local)
    data = None if scale.data is None else os.path.abspath(os.path.expanduser(scale.data))
    return {"storage": None, "data": data, "data_mode": scale.data_mode, "paths": paths}


def _ask_all(
    nodes: Sequence[Host], wanted: ClusterQuestion, end: float
) -> tuple[dict[str, Answers], dict[str, Silence]]:
    """Start a probe on every node and question it: by label, the answers, and the hosts without any."""
    import ray

    from cluster import probe

    with preflight.by_value(preflight, provenance, probe):
        actor = ray.remote(probe.Probe)
        handles: dict[str, ActorHandle[probe.Probe]] = {}
        for node in nodes:
            own: ProbeQuestion
            own = {**wanted, "host": node.id, "address": node.address, "alone": len(nodes) == 1}
            there = actor.options(num_cpus=0, max_concurrency=4, **preflight.pinned(node))
            handles[node.label] = cast("ActorHandle[probe.Probe]", there.remote(own))
    try:
        probes = cast("dict[str, _Probe]", handles)
        answers, failures = _ask(probes, {node.label: node.address for node in nodes}, end)
    finally:
        for each in handles.values():
            ray.kill(each)
    silences: dict[str, Silence] = {}
    for node in nodes:
        if node.label in failures:
            refusal = preflight.take_step(partial(probe.check_port, node.address, node.port), PORT_SECONDS)
            silences[node.label] = {"error": failures[node.label]["error"], "reached": refusal is None}
    return answers, silences


def _ask(
    probes: Mapping[str, _Probe], addresses: Mapping[str, str], end: float
) -> tuple[dict[str, Answers], dict[str, Failure]]:
    started = preflight.gather({label: each.clock.remote() for label, each in probes.items()}, START_SECONDS)
    up, silent = preflight.split(started)
    clocks = {label: _clock(probes[label]) for label in up}
    seen = preflight.gather({label: probes[label].inspect.remote(INSPECT_SECONDS) for label in up}, INSPECT_SECONDS + 1)
    inspections, stuck = preflight.split(seen)
    listeners = {label: (addresses[label], inspection["ports"][0]) for label, inspection in inspections.items()}
    meeting = {
        label: probes[label].meet.remote({other: listener for other, listener in listeners.items() if other != label})
        for label in inspections
    }
    met = preflight.gather(meeting, MEET_SECONDS)
    exchanged = _exchange(probes, addresses, inspections, met, end)
    answers: dict[str, Answers] = {}
    for label, inspection in inspections.items():
        answers[label] = {**inspection, "clock": clocks[label], "met": met[label], "exchange": exchanged.get(label)}
    return answers, silent | stuck


def _exchange(
    probes: Mapping[str, _Probe],
    addresses: Mapping[str, str],
    inspections: Mapping[str, Inspection],
    met: Mapping[str, Meeting | Failure],
    end: float,
) -> dict[str, Exchange]:
    """An all-reduce of all hosts that have what it takes, where they reach each other."""
    able = [
        label for label, inspection in inspections.items() if {"torch", "trainyard"} <= inspection["versions"].keys()
    ]
    cut_off = [label for label in able if "error" in (each := met[label]) or each["unreached"]]
    if len(able) < 2 or cut_off:
        return {}
    at, left = (addresses[able[0]], inspections[able[0]]["ports"][1]), max(3.0, end - time.monotonic())
    calls = {label: probes[label].all_reduce.remote(rank, len(able), at, left - 2) for rank, label in enumerate(able)}
    return {label: cast("Exchange", answer) for label, answer in preflight.gather(calls, left).items()}


def _clock(probe: _Probe) -> Clock:
    """How far a host's clock is ahead of this one, by the fastest of a few questions."""
    import ray

    best: Clock = {"offset": 0.0, "round_trip": float("inf")}
    for _ in range(PINGS):
        begun, asked = time.perf_counter(), time.time()
        answer = ray.get(probe.clock.remote())
        taken = time.perf_counter() - begun
        if taken < best["round_trip"]:
            best = {"offset": answer - (asked + taken / 2), "round_trip": taken}
    return best


def _cluster(scale: Scale, nodes: Sequence[Host]) -> ClusterFacts:
    """What the cluster as a whole has, and the resources of each worker that `scale` asks for."""
    from trainers.runtime.ray_internals import addable_resources, free_resources
    from trainers.runtime.resources import refuse_what_never_fits, worker_resources

    shapes = [node.resources for node in nodes]
    resources, unfit = {"CPU": 1.0}, None
    try:
        resources = worker_resources(scale, shapes)
        refuse_what_never_fits(scale.worker_range[0], resources, shapes)
    except ValueError as error:
        unfit = str(error)
    left = free_resources() or {}
    addable = (addable_resources() or {}).get("CPU", 0.0)
    return {
        "cpus": max(addable, sum(node.cpus for node in nodes)),
        "workers": scale.worker_range[1],
        "resources": resources,
        "unfit": unfit,
        "shapes": {node.label: dict(node.resources) for node in nodes},
        "store": {node.label: left.get(node.id, {}).get("object_store_memory", 0.0) for node in nodes},
    }


def measure_upload(folder: Path) -> UploadFacts:
    """What `submit` would upload of a folder."""
    upload = measure(folder)
    return {
        "bytes": upload.size,
        "files": upload.files,
        "limit": upload.limit,
        "refused": upload.too_large,
        "largest": dict(upload.entries[:LARGEST]),
    }


# What is shown -------------------------------------------------------------------------------------------------


def _show(hosts: Mapping[str, HostFacts | SilentHost], findings: Sequence[Finding], seconds: float) -> None:
    """The findings and the measured rate, on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        kind = "[red]error:[/red]  " if finding.fatal else "[yellow]warning:[/yellow]"
        console.print(f"{kind} {escape(finding.where)}: {escape(finding.what)}")
        console.print(f"         {escape(finding.fix)}", style="dim")
    rates = [
        exchange["bytes_per_second"]
        for found in hosts.values()
        if "error" not in found and (exchange := found["exchange"]) and "bytes_per_second" in exchange
    ]
    if rates:
        console.print(f"all-reduce over {len(rates)} hosts: {min(rates) / 1e6:,.0f} MB/s of data, by Gloo")
    count, fatal = len(hosts), sum(finding.fatal for finding in findings)
    outcome = f"{fatal} fatal and {len(findings) - fatal} other findings" if findings else "nothing found"
    where = f" on {count} host{'s' if count > 1 else ''}" if count else ""
    console.print(f"{outcome}{where} in {seconds:.1f} s")
