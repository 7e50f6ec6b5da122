"""What all hosts of a cluster must have alike: checked on every one, at once, before workers start.

What runs on the hosts travels there by value: it works, and says so, where Trainyard itself is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar, cast, final

from trainers.runs import provenance
from trainers.runs.provenance import OPTIONAL, PACKAGES, versions
from trainers.runtime.resources import holds

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from trainers.storage.store import Store

Answer = TypeVar("Answer")
MUST_AGREE = ("python", "ray", "torch", "trainyard")
"""Other versions of these make a run fail, or train something else."""
CHECK_SECONDS = 8.0
"""What takes longer on a host (a file system whose server is gone) is taken for an error."""
ANSWER_SECONDS = 15.0
"""A host that has started no process by then is left alone."""
DRIVER = "driver"
NO_ANSWER = "no process started there in time"
SAME_CODE = "install the same versions on all hosts (the same image), or send the code along: python -m cluster submit"


@final
class Failure(TypedDict):
    """In place of an answer: it failed, or was not there in time."""

    error: str


@final
class StorageFacts(TypedDict):
    seen: bool
    """Whether the driver's file is."""


@final
class DataFacts(TypedDict):
    found: bool


class ProbeFile(TypedDict):
    """A file of the driver in the storage."""

    storage: str
    folder: str
    token: str
    """What is in it."""


class Question(TypedDict):
    """What is asked of every host."""

    storage: str | None
    """Address of the storage; None: it is not checked."""
    folder: NotRequired[str]
    token: NotRequired[str]
    data: str | None
    """Path of the raw data; None: there is none."""


class HostQuestion(Question):
    """What is asked of one host."""

    host: str
    """Its id."""


class GpuMemory(TypedDict):
    bytes: list[int]


class Versions(TypedDict):
    versions: dict[str, str]
    """Package -> version; "error" -> why they are not known."""


class SharedFacts(Versions):
    """What one host answers: what all of them must have alike."""

    storage: NotRequired[StorageFacts | Failure]
    data: NotRequired[DataFacts | Failure]


class Pinned(TypedDict):
    """Options of a task or an actor."""

    scheduling_strategy: NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class Host:
    """A node of Ray."""

    id: str
    label: str
    """How people know it: name and address, and the beginning of its id where several are alike."""
    address: str
    port: int
    """Of its raylet."""
    resources: Mapping[str, float]

    @property
    def cpus(self) -> float:
        return self.resources.get("CPU", 0.0)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a cluster."""

    fatal: bool
    """A run would fail."""
    what: str
    where: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


def check_hosts(storage: Store, data: str | None = None) -> list[str]:
    """Refuse a cluster whose hosts do not see the storage or the raw data, or have other versions than this process.

    Ray is connected to. Takes about a second; a process is started on every host that has CPUs, and needs none of
    them.

    Args:
        storage: Checked where it is a local path.
        data: Folder of the raw data, where the hosts read it.

    Returns:
        Warnings: the hosts that did not answer.

    Raises:
        ValueError: It names the hosts and the remedy.
    """
    hosts = [host for host in ray_hosts() if host.cpus]
    wanted: Question = {"storage": None, "data": data}
    with contextlib.ExitStack() as stack:
        if storage.local is not None:
            wanted = {**wanted, **stack.enter_context(probe_file(storage))}
        found = on_every(hosts, check_host, wanted)
        seen = set((storage / wanted["folder"]).names()) if wanted["storage"] else None
    answered = {host.label: facts for host in hosts if "error" not in (facts := found[host.id])}
    silent = [host.label for host in hosts if host.label not in answered]
    arrived = None if seen is None else {host.label for host in hosts if host.id in seen}
    findings = compare({"versions": versions()}, answered, arrived, wanted)
    if fatal := [str(finding) for finding in findings if finding.fatal]:
        raise ValueError(". ".join(fatal))
    return [f"{label}: {NO_ANSWER}; python -m cluster doctor reports more" for label in silent]


def ray_hosts() -> list[Host]:
    """The nodes of the cluster that are alive."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    labels = [f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in nodes]
    return [
        Host(
            node["NodeID"],
            label if labels.count(label) == 1 else f"{label[:-1]}, node {node['NodeID'][:6]})",
            node["NodeManagerAddress"],
            node["NodeManagerPort"],
            node["Resources"],
        )
        for node, label in zip(nodes, labels, strict=True)
    ]


def smallest_gpu(resources: Mapping[str, float]) -> int | None:
    """Bytes of the smallest GPU that a worker may get, as its driver says.

    Args:
        resources: What a worker needs; other hosts are not asked.

    Returns:
        None where no such host is up, or its driver cannot be asked.
    """
    able = [host for host in ray_hosts() if holds(host.resources, resources)]
    answers, _ = split(on_every(able, gpu_memory, {}))
    return min((size for answer in answers.values() for size in answer["bytes"]), default=None)


def this_node() -> str:
    """Ray's name of this process's host."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def on_every(
    hosts: Sequence[Host],
    function: Callable[[Any], Answer],
    wanted: Mapping[str, object],
    seconds: float = ANSWER_SECONDS,
) -> dict[str, Answer | Failure]:
    """Call a function on each host, at once.

    Args:
        hosts: Where it is called.
        function: Takes {**wanted, "host": id}. It travels by value: Trainyard may be missing there.
        wanted: What it is asked for.
        seconds: Hosts that have not answered by then have failed.

    Returns:
        Host's id -> what the function returned, or {"error": text}.
    """
    import ray

    with by_value(sys.modules[__name__], provenance):  # what `check_host` calls
        remote: Any = ray.remote(num_cpus=0, max_retries=0)(function)
        calls: dict[str, ObjectRef[Answer]]
        calls = {h.id: remote.options(**pinned(h)).remote({**wanted, "host": h.id}) for h in hosts}
    answers = gather(calls, seconds)
    for id, call in calls.items():
        if failed(answers[id]):
            ray.cancel(call, force=True)
    return answers


def pinned(host: Host) -> Pinned:
    """Options of a task or an actor that runs on a host, and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(host.id, soft=False)}


def gather(calls: Mapping[str, ObjectRef[Answer]], seconds: float) -> dict[str, Answer | Failure]:
    """The results of remote calls, or {"error": text}: of those that failed, or were not done in time."""
    import ray

    done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds) if calls else ([], [])
    found: dict[str, Answer | Failure] = {}
    for id, call in calls.items():
        try:
            found[id] = ray.get(call) if call in done else {"error": NO_ANSWER}
        except Exception as error:  # anything that went wrong over there
            found[id] = {"error": (str(error).strip().splitlines() or [repr(error)])[-1]}
    return found


def failed(answer: object) -> bool:
    return isinstance(answer, dict) and "error" in answer


def split(answers: Mapping[str, Answer | Failure]) -> tuple[dict[str, Answer], dict[str, Failure]]:
    """What was answered, and what failed."""
    good = {id: cast("Answer", answer) for id, answer in answers.items() if not failed(answer)}
    return good, {id: cast("Failure", answer) for id, answer in answers.items() if id not in good}


@contextlib.contextmanager
def by_value(*modules: ModuleType) -> Iterator[None]:
    """Functions of these modules travel as they are: where they run, the modules need not be there."""
    from ray import cloudpickle

    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


@contextlib.contextmanager
def probe_file(storage: Store) -> Iterator[ProbeFile]:
    """A folder in the storage with a file for the hosts to read: yields what `check_host` needs to know of it.

    Raises ValueError where the storage cannot be written from here.
    """
    folder, token = f".hosts-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    storage.check_writable()
    (storage / folder).write(DRIVER, token.encode())
    try:
        yield {"storage": storage.address, "folder": folder, "token": token}
    finally:
        with contextlib.suppress(OSError):
            storage.delete(folder)


# What runs on each host ---------------------------------------------------------------------------------------


def check_host(wanted: HostQuestion) -> SharedFacts:
    """Versions, and whether the storage and the raw data are seen."""
    return cast("SharedFacts", take_steps(shared_steps(wanted), CHECK_SECONDS))


def gpu_memory(_: object) -> GpuMemory:
    """Of each GPU, by the driver's own tool: Ray hides GPUs from processes that request none."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_SECONDS)
    return {"bytes": [int(line) * 2**20 for line in done.stdout.split() if line.isdigit()]}


def shared_steps(wanted: HostQuestion) -> dict[str, Callable[[], object]]:
    """The steps of `check_host`: key of `SharedFacts` -> what gives its value."""
    steps: dict[str, Callable[[], object]] = {"versions": versions}
    if wanted["storage"] is not None:
        steps["storage"] = lambda: see_storage(wanted)
    if (data := wanted["data"]) is not None:
        steps["data"] = lambda: see_data(data)
    return steps


def take_step(step: Callable[[], Answer], seconds: float) -> Answer | Failure:
    """What a step returns; {"error": text} where it fails or is not done in `seconds`."""
    return take_steps({"": step}, seconds)[""]


def take_steps(steps: Mapping[str, Callable[[], Answer]], seconds: float) -> dict[str, Answer | Failure]:
    """What each step returns, all at once; {"error": text} of one that fails or is not done in `seconds`."""
    found: dict[str, Answer | Failure] = {}

    def take(name: str, step: Callable[[], Answer]) -> None:
        result: Answer | Failure
        try:
            result = step()
        except OSError as error:
            result = {"error": f"{error.strerror or error}"}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        found.setdefault(name, result)

    threads = {name: threading.Thread(target=take, args=(name, step), daemon=True) for name, step in steps.items()}
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    for name in steps:
        found.setdefault(name, {"error": f"no answer in {seconds:g} s"})
    return {name: found[name] for name in steps}


def see_storage(wanted: HostQuestion) -> StorageFacts:
    """Read the driver's file, and put one beside it: {seen}. Writes nothing where the file is not seen."""
    from trainers.storage.store import Store

    assert wanted["storage"] is not None
    folder = Store(wanted["storage"]) / wanted["folder"]
    try:
        seen = folder.read("driver") == wanted["token"].encode()
    except FileNotFoundError:
        seen = False
    if seen:
        folder.write(wanted["host"], wanted["token"].encode())
    return {"seen": seen}


def see_data(path: str) -> DataFacts:
    """Whether a file, or a folder with something in it, is there: a disk that is not mounted leaves an empty
    one."""
    if not os.path.isdir(path):
        return {"found": os.path.exists(path)}
    with os.scandir(path) as entries:
        return {"found": any(entries)}


# What it means ------------------------------------------------------------------------------------------------


def compare(
    this: Versions, hosts: Mapping[str, SharedFacts], arrived: set[str] | None, wanted: Question
) -> list[Finding]:
    """What is wrong with the hosts' facts, which `check_host` found.

    Args:
        this: {versions} of the driver.
        hosts: Label -> facts.
        arrived: Labels of the hosts whose file the driver sees in the storage; None: that was not checked.
        wanted: What the hosts were asked.
    """
    return [
        *_unlike_versions(this["versions"], {label: facts["versions"] for label, facts in hosts.items()}),
        *_unshared_storage(hosts, arrived, wanted),
        *_missing_data(hosts, wanted),
    ]


def _unlike_versions(this: Mapping[str, str], hosts: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    for name in ("python", *PACKAGES, *OPTIONAL, "trainyard"):
        missing = [label for label, found in hosts.items() if "error" not in found and name not in found]
        if missing and name not in OPTIONAL:
            yield Finding(True, f"{name} is not installed", ", ".join(missing), SAME_CODE)
        here = this.get(name)
        others: dict[str, list[str]] = {}
        for label, found in hosts.items():
            if name in found and here is not None and _core(name, found[name]) != _core(name, here):
                others.setdefault(found[name], []).append(label)
        for version, labels in others.items():
            what = f"{name} is {version}, and {here} where the command was started"
            yield Finding(name in MUST_AGREE, what, ", ".join(labels), SAME_CODE)
    for label, found in hosts.items():
        if "error" in found:
            yield Finding(False, f"versions cannot be read: {found['error']}", label, "check its Python environment")


def _core(name: str, version: str) -> str:
    """What has to agree of a version: not the build (2.15.0+cpu, 2.15.0+cu130), nor Python's last number."""
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]


def _unshared_storage(
    hosts: Mapping[str, SharedFacts], arrived: set[str] | None, wanted: Question
) -> Iterator[Finding]:
    if wanted.get("storage") is None:
        return
    address = wanted["storage"]
    fix = "mount it there at the same path, or give --storage a folder that all hosts share, or s3://BUCKET/FOLDER"
    blind = [label for label, facts in hosts.items() if not facts["storage"].get("seen", True)]
    lost = [label for label, facts in hosts.items() if facts["storage"].get("seen") and label not in (arrived or ())]
    if blind:
        yield Finding(
            True, f"the storage {address} is not shared: what is written elsewhere is not seen", ", ".join(blind), fix
        )
    if lost:
        yield Finding(
            True,
            f"the storage {address} is not shared: what is written there is not seen elsewhere",
            ", ".join(lost),
            fix,
        )
    for label, facts in hosts.items():
        if "error" in facts["storage"] and "trainyard" in facts["versions"]:  # which it is seen with
            yield Finding(True, f"the storage {address} cannot be used: {facts['storage']['error']}", label, fix)


def _missing_data(hosts: Mapping[str, SharedFacts], wanted: Question) -> Iterator[Finding]:
    if wanted.get("data") is None:
        return
    fix = "mount or copy it there at the same path"
    missing = [label for label, facts in hosts.items() if facts["data"].get("found") is False]
    if missing:
        yield Finding(True, f"the data are not there: {wanted['data']}", ", ".join(missing), fix)
    for label, facts in hosts.items():
        if "error" in facts["data"]:
            yield Finding(True, f"the data {wanted['data']} cannot be read: {facts['data']['error']}", label, fix)
