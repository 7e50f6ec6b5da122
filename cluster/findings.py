"""What the facts about a cluster mean: pure functions from what the probes report to what is wrong, and the fix."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from cluster.facts import ClusterQuestion, Facts, HostFacts, SilentHost, UploadFacts
from cluster.upload import WARN_BYTES
from trainers.formatting import format_size
from trainers.runtime.preflight import Failure, Finding, compare

CLOCK_SECONDS = 2.0
SHM_BYTES = 64 * 2**20
"""With less, NCCL and Ray's object store end processes by a bus error."""
DISK_BYTES = 2**30
"""For checkpoints and logs."""
RAY_FULL = 0.05
"""Ray puts no more objects on a disk, and kills processes of a host, with less free than this share."""
WORKER_BYTES = 2**30
"""Of a host's memory, for a worker: torch alone takes half of it."""
BUSY_SHARE = 0.5
"""Of a host's cores, that others keep busy."""
SLOW_SECONDS = 30.0
HEALTH = {"period_ms": 3000.0, "timeout_ms": 10000.0, "failure_threshold": 5.0}
"""How Ray finds hosts that hang, where nobody says otherwise."""
ALL, HERE = "all hosts", "here"
TOKEN = "copy the head's ~/.ray/auth_token there, with mode 600"


def examine(facts: Facts, wanted: ClusterQuestion) -> list[Finding]:
    """Judge the facts about a cluster.

    Args:
        facts: What doctor.gather_facts found.
        wanted: What it looked for.

    Returns:
        The findings, the fatal first.
    """
    hosts = {label: found for label, found in facts["hosts"].items() if "error" not in found}
    silent = {label: found for label, found in facts["hosts"].items() if "error" in found}
    findings = [*_silent(silent), *_storage_from_here(facts)]
    arrived = {label for label, found in hosts.items() if found["arrived"]}
    findings += compare(facts["this"], hosts, arrived, wanted)
    for label, found in hosts.items():
        findings += [*_token(label, found), *_disk(label, found), *_memory(label, found), *_load(label, found)]
        for step in (_network, _shm, _gpu, _health):
            findings += step(label, found, facts)
    findings += [*_clocks(hosts), *_unseen_files(hosts, wanted), *_unreached(hosts), *_no_exchange(hosts)]
    findings += [*_shape(facts, wanted), *_upload(facts["upload"])]
    return sorted(findings, key=lambda finding: not finding.fatal)


def _silent(silent: Mapping[str, SilentHost]) -> Iterator[Finding]:
    for label, found in silent.items():
        if found["reached"]:
            what = f"Ray starts no process there ({found['error']}), as where there is no token, or where it hangs"
            yield Finding(True, what, label, f"{TOKEN}, if it is missing; else read Ray's logs there")
        else:
            what = "it does not answer, though Ray counts it: it is down, or cut off"
            yield Finding(True, what, label, "check that it runs, and the network between it and here")


def _storage_from_here(facts: Facts) -> Iterator[Finding]:
    if "storage" in facts["this"]:
        what, _, fix = facts["this"]["storage"]["error"].rpartition("; ")
        yield Finding(True, what, HERE, fix)


# A host by itself ----------------------------------------------------------------------------------------------


def _token(label: str, found: HostFacts) -> Iterator[Finding]:
    token = found["token"]
    if "error" in token:
        yield Finding(False, f"the token cannot be read: {token['error']}", label, "check ~/.ray there")
    elif not token["on"]:
        fix = "start Ray there with RAY_AUTH_MODE=token, and the head's ~/.ray/auth_token on every host"
        yield Finding(False, "authentication is off: whoever reaches its ports can run programs", label, fix)
    elif token["path"] == "":
        what = "there is no token: Ray starts no further process there"
        yield Finding(True, what, label, TOKEN)
    elif token["exposed"]:
        yield Finding(False, f"others may read the token {token['path']}", label, f"chmod 600 {token['path']}")


def _network(label: str, found: HostFacts, facts: Facts) -> Iterator[Finding]:
    network = found["network"]
    if "error" in network:
        yield Finding(False, f"its network cannot be checked: {network['error']}", label, "install psutil there")
    elif len(facts["hosts"]) < 2:
        return
    elif network["chosen"] == "lo":
        what = "GLOO_SOCKET_IFNAME=lo is set there: workers of other hosts are not found"
        yield Finding(True, what, label, "unset it before ray start: the interface of Ray's address is found by itself")
    elif network["interface"] is None and network["chosen"] is None:
        resolves = network["resolves"]
        lost = resolves is None or resolves.startswith("127.")
        what = f"no network interface has the address that Ray uses for it, and its name {network['name']} "
        what += f"resolves to {resolves}" if resolves else "does not resolve"
        what += ": workers of other hosts are not found" if lost else ""
        fix = "start Ray there with --node-ip-address of an interface of the host, or set GLOO_SOCKET_IFNAME before it"
        yield Finding(lost, what, label, fix)


def _shm(label: str, found: HostFacts, facts: Facts) -> Iterator[Finding]:
    shm = found["shm"]
    if "error" in shm:
        yield Finding(False, f"/dev/shm cannot be checked: {shm['error']}", label, "mount a tmpfs there")
        return
    store = facts["cluster"]["store"].get(label, 0)
    fix = "remove what fills it (ls -l /dev/shm), or enlarge it: mount -o remount,size=..., docker --shm-size"
    text = f"/dev/shm has {format_size(shm['free'])} free of {format_size(shm['total'])}"
    if shm["free"] < SHM_BYTES:
        yield Finding(True, f"{text}: NCCL and Ray's object store fail there", label, fix)
    elif shm["free"] < store <= shm["total"]:  # a larger store lies elsewhere
        yield Finding(False, f"{text}; Ray's object store may take {format_size(int(store))}", label, fix)


def _disk(label: str, found: HostFacts) -> Iterator[Finding]:
    if "error" in found["disk"]:
        yield Finding(True, f"its disks cannot be checked: {found['disk']['error']}", label, "check its mounts")
        return
    for name, disk in found["disk"].items():
        text = f"the disk of {name} ({disk['path']}) has {format_size(disk['free'])} free"
        fix = "make room there, or give another --storage, $TRAINYARD_CACHE, or ray start --temp-dir"
        if disk["free"] < DISK_BYTES:
            yield Finding(True, text, label, fix)
        elif disk["free"] < RAY_FULL * disk["total"] and name == "Ray's files":
            yield Finding(False, f"{text}: Ray moves no objects to disks so full", label, fix)


def _memory(label: str, found: HostFacts) -> Iterator[Finding]:
    memory = found["memory"]
    if "error" in memory:
        yield Finding(False, f"its memory cannot be checked: {memory['error']}", label, "install psutil there")
        return
    text = f"{format_size(memory['available'])} of {format_size(memory['total'])} memory are free"
    if memory["available"] < RAY_FULL * memory["total"]:
        yield Finding(True, f"{text}: Ray kills processes there", label, "end what takes it")
    elif memory["available"] < WORKER_BYTES:
        yield Finding(False, f"{text}: less than a worker takes", label, "end what takes it")


def _load(label: str, found: HostFacts) -> Iterator[Finding]:
    load = found["load"]
    if "error" not in load and load["busy"] > BUSY_SHARE * load["cores"]:
        text = f"{load['busy']:.1f} processes computed on its {load['cores']} cores in the last 5 minutes"
        text += ": training gets what they leave"
        yield Finding(False, text, label, "end them, or train when they have ended")


def _gpu(label: str, found: HostFacts, facts: Facts) -> Iterator[Finding]:
    gpu, promised = found["gpu"], facts["cluster"]["shapes"].get(label, {}).get("GPU", 0)
    needed = bool(promised and "GPU" in facts["cluster"]["resources"])
    if "error" in gpu:
        yield Finding(needed, f"its GPUs cannot be checked: {gpu['error']}", label, "run nvidia-smi there")
    elif promised and not gpu["devices"]:
        fix = "install the GPU's driver there, or start Ray there with --num-gpus 0"
        yield Finding(needed, f"Ray counts {promised:g} GPUs, but the driver (nvidia-smi) lists none", label, fix)
    elif gpu["devices"] and gpu["torch_cuda"] is None:
        fix = "install torch as built for CUDA, not the CPU's"
        yield Finding(needed, f"torch is a build without CUDA, beside {len(gpu['devices'])} GPUs", label, fix)
    elif gpu["devices"] and not gpu["usable"]:
        what = f"torch, built for CUDA {gpu['torch_cuda']}, cannot use the GPUs with driver {gpu['driver']}"
        what += f" ({gpu['why']})" if gpu["why"] else ""
        yield Finding(needed, what, label, "install a newer driver there, or torch as built for an older CUDA")
    elif gpu["devices"] and not promised:
        fix = f"start Ray there with --num-gpus {len(gpu['devices'])}"
        yield Finding(False, f"Ray does not know of the {len(gpu['devices'])} GPUs", label, fix)


def _health(label: str, found: HostFacts, facts: Facts) -> Iterator[Finding]:
    health = found["health"]
    if "error" in health or health["settings"] is None or len(facts["hosts"]) < 2:
        return
    settings = health["settings"]
    period, timeout, failures = (float(settings.get(f"RAY_health_check_{name}", HEALTH[name])) for name in HEALTH)
    seconds = 1 + (failures * timeout + (failures - 1) * period) / 1000  # one more passes, as measured
    if seconds > SLOW_SECONDS:
        fix = "start the head with RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000 "
        fix += "RAY_health_check_failure_threshold=3: 12 s"
        yield Finding(False, f"a host that hangs, or loses its network, is noticed after {seconds:.0f} s", label, fix)


# All hosts together --------------------------------------------------------------------------------------------


def _clocks(hosts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    """A host whose clock is off the others' median by more than the limit, beyond what the question itself took."""
    offsets = {label: found["clock"]["offset"] for label, found in hosts.items()}
    median = statistics.median_low(offsets.values()) if offsets else 0.0
    for label, offset in offsets.items():
        off = offset - median
        if abs(off) > CLOCK_SECONDS + hosts[label]["clock"]["round_trip"]:
            what = f"its clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the others'"
            fix = "synchronise it (chrony or ntpd): S3 refuses such requests, and times in logs mislead"
            yield Finding(abs(off) > 600, what, label, fix)


def _unseen_files(hosts: Mapping[str, HostFacts], wanted: ClusterQuestion) -> Iterator[Finding]:
    """Hosts that see the driver's file, but not that of every other host."""
    writers = {found["id"]: label for label, found in hosts.items() if found["arrived"]}
    for label, found in hosts.items():
        if wanted["storage"] is None or not found["storage"].get("seen"):
            continue
        met = found["met"]
        storage = met if "error" in met else met["storage"]
        if "error" in storage:
            yield Finding(True, f"the storage cannot be listed: {storage['error']}", label, "check its mount there")
        elif missing := [writers[id] for id in writers if id not in storage["seen"]]:
            what = f"in the storage {wanted['storage']}, files are not seen that were written on {', '.join(missing)}"
            yield Finding(True, what, label, "mount the same folder on all hosts, without long caching of names")


def _unreached(hosts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    addresses = {found["id"]: label for label, found in hosts.items()}
    for label, found in hosts.items():
        met = found["met"]
        for other, why in ({} if "error" in met else met["unreached"]).items():
            what = f"does not reach {addresses.get(other, other)}: {why}"
            fix = "open all ports between the hosts (firewall, security group): workers choose theirs freely"
            yield Finding(True, what, label, fix)


def _no_exchange(hosts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    exchanges = {label: found["exchange"] or {} for label, found in hosts.items()}
    errors = {label: exchange["error"] for label, exchange in exchanges.items() if "error" in exchange}
    slow = [label for label in errors if not exchanges[label].get("ready", True)]
    if slow:
        fix = "run doctor again; if it stays so, check what else runs there, and the disk that Python lies on"
        yield Finding(False, "torch was not loaded in time to measure the network", ", ".join(slow), fix)
    elif errors:
        what = f"an all-reduce by Gloo fails: {next(iter(errors.values()))}"
        fix = "check the network between these hosts, or set GLOO_SOCKET_IFNAME there"
        yield Finding(True, what, ", ".join(errors), fix)


def _shape(facts: Facts, wanted: ClusterQuestion) -> Iterator[Finding]:
    cluster = facts["cluster"]
    if cluster["unfit"]:
        what, _, fix = cluster["unfit"].rpartition("; ")
        yield Finding(True, what, ALL, fix)
        return
    cpus, workers, mode = cluster["resources"]["CPU"], cluster["workers"], wanted["data_mode"]
    if cluster["cpus"] < workers * cpus + 1:
        what = f"{workers} workers with {cpus:g} CPUs each leave none of {cluster['cpus']:g} to prepare or stream data"
        yield Finding(mode == "stream", what, ALL, "give fewer --workers or --cpus-per-worker, or add a host")


def _upload(upload: UploadFacts | Failure) -> Iterator[Finding]:
    fix = "list what the job does not need in .gitignore or .rayignore, or give --working-dir another folder"
    if "error" in upload:
        yield Finding(False, f"the working directory could not be measured: {upload['error']}", HERE, fix)
        return
    largest = ", ".join(f"{name} {format_size(size)}" for name, size in upload["largest"].items())
    sent = f"{format_size(upload['bytes'])} in {upload['files']:,} files ({largest})"
    if upload["refused"]:
        what = (
            f"submit would refuse the working directory: {sent} or more, and Ray takes {format_size(upload['limit'])}"
        )
        yield Finding(False, what, HERE, fix)
    elif upload["bytes"] > WARN_BYTES:
        yield Finding(False, f"submit would upload {sent}", HERE, fix)
