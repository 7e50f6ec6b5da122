"""The facts that `doctor` gathers about a cluster: plain data, as `--json` prints them.

    HostFacts, SilentHost      of a host; what a probe (probe.py) answers, in parts: Inspection, Meeting, Exchange
    ClusterFacts               of the cluster as a whole
    Facts                      all of them
    ProbeQuestion              what is asked of a probe

A part whose step failed, or took too long, is a preflight.Failure: {"error": why}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict, final

from trainers.runtime.preflight import Failure, HostQuestion, Question, SharedFacts

# What is asked -------------------------------------------------------------------------------------------------


class ClusterQuestion(Question):
    """What is asked of the cluster."""

    data_mode: Literal["auto", "cache", "stream"]
    """How the run would read its pictures."""
    paths: Mapping[str, str]
    """What lies there, for people -> path whose disk is measured."""


class ProbeQuestion(HostQuestion, ClusterQuestion):
    """What is asked of one host."""

    address: str
    """Ray's, of the host."""
    alone: bool
    """Whether there are no other hosts."""


# A host --------------------------------------------------------------------------------------------------------


@final
class TokenFacts(TypedDict):
    """Ray's token on a host."""

    on: bool
    """Whether Ray authenticates."""
    path: str | None
    """The token's file; None: the environment has it; "": there is none."""
    exposed: bool
    """Whether others may read it."""


@final
class NetworkFacts(TypedDict):
    interface: str | None
    """The one that has the address by which Ray knows the host."""
    chosen: str | None
    """GLOO_SOCKET_IFNAME: what the host's owner chose in its place."""
    name: str
    resolves: str | None
    """The address that the host's own name resolves to."""


@final
class DiskFacts(TypedDict):
    """A disk, in bytes."""

    path: str
    """What lies on it."""
    total: int
    free: int


@final
class MemoryFacts(TypedDict):
    """A host's memory, in bytes."""

    total: int
    available: int


@final
class LoadFacts(TypedDict):
    """How busy a host is."""

    cores: int
    busy: float
    """Processes that computed, or were to, in the mean of some minutes."""


@final
class GpuFacts(TypedDict):
    """GPUs, as their driver reports them; the keys that are not required come where there are any."""

    devices: list[str]
    driver: str | None
    torch_cuda: NotRequired[str | None]
    """The CUDA that torch was built for; None: it was built without."""
    usable: NotRequired[bool]
    """Whether torch can use them."""
    why: NotRequired[str]
    """What torch says where it cannot."""


@final
class HealthFacts(TypedDict):
    settings: dict[str, str] | None
    """How the head finds that a host hangs: the variables of its control store; None on other hosts."""


class Inspection(SharedFacts):
    """What one host can say alone."""

    token: TokenFacts | Failure
    network: NetworkFacts | Failure
    shm: DiskFacts | Failure
    disk: dict[str, DiskFacts] | Failure
    """Name in `ProbeQuestion.paths` -> its disk."""
    memory: MemoryFacts | Failure
    load: LoadFacts | Failure
    gpu: GpuFacts | Failure
    health: HealthFacts | Failure
    ports: list[int]
    """Of its two listeners: one for the other hosts to connect to, one for rank 0's store."""


@final
class SeenFiles(TypedDict):
    seen: list[str]
    """Ids of the hosts whose files in the storage are seen."""


@final
class Meeting(TypedDict):
    """What a host sees of the others."""

    unreached: dict[str, str]
    """Host -> why it is not reached."""
    storage: SeenFiles | Failure


class Exchange(TypedDict, total=False):
    """An all-reduce with all other hosts."""

    bytes_per_second: float
    """Of each host's data; missing where it failed."""
    error: str
    ready: bool
    """Whether torch was loaded in time."""


class Clock(TypedDict):
    """Seconds."""

    offset: float
    """How far the host's clock is ahead of this one."""
    round_trip: float
    """Of the question."""


class Answers(Inspection):
    """What a host answers."""

    clock: Clock
    met: Meeting | Failure
    exchange: Exchange | None
    """None: it was not tried."""


@final
class HostFacts(Answers):
    id: str
    """Ray's, of the node."""
    arrived: bool
    """Whether the host's file is in the storage."""


class Silence(TypedDict):
    """No process started on a host, or it does not answer."""

    error: str
    reached: bool
    """Whether its port of Ray can be connected to."""


@final
class SilentHost(Silence):
    id: str
    arrived: bool


# The cluster ---------------------------------------------------------------------------------------------------


class ThisFacts(TypedDict):
    """The process that asks."""

    versions: dict[str, str]
    storage: NotRequired[Failure]
    """Why it cannot be written from here."""


class ClusterFacts(TypedDict):
    """The cluster as a whole, and the workers that a Scale asks for."""

    cpus: float
    """With those that the autoscaler may add."""
    workers: int
    """Most."""
    resources: dict[str, float]
    """Of each worker."""
    unfit: str | None
    """Why workers find no place; None: they do."""
    shapes: dict[str, dict[str, float]]
    """Host -> Ray's resources."""
    store: dict[str, float]
    """Host -> bytes that its object store may still take."""


@final
class UploadFacts(TypedDict):
    """What `submit` would send of the working directory."""

    bytes: int
    files: int
    limit: int
    """Bytes that Ray takes."""
    refused: bool
    """Whether `submit` refuses it as too large."""
    largest: dict[str, int]
    """What lies directly in the folder -> its bytes; the largest three."""


class Facts(TypedDict):
    this: ThisFacts
    hosts: dict[str, HostFacts | SilentHost]
    """By their labels (preflight.Host)."""
    cluster: ClusterFacts
    upload: UploadFacts | Failure
