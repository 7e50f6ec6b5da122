"""What a run asks of the cluster's hosts; what no host can hold is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from trainers.limits import cpus
from trainers.recipe import Scale
from trainers.runtime.ray_internals import addable_resources

MOST_WORKERS_PER_CORE = 4


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names, which Ray sets in a job, too; None: Ray is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def host_of(address: str | None) -> str | None:
    """The host in an address of Ray's, such as ray://head:10001 or [::1]:6379."""
    return None if address is None else address.rpartition("://")[2].rpartition(":")[0].strip("[]") or None


def is_connected() -> bool:
    """Whether this process has Ray, as a trial of a sweep has; importing Ray takes a second."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def share_of_cpus(nodes: Sequence[Mapping[str, float]], workers: int) -> int:
    """CPUs of each worker: a host's, less one for data tasks, shared by the workers it gets; at least 1."""
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    if not cpus:
        return 1
    each = -(-workers // len(cpus))
    return max(1, (min(cpus) - 1) // each)


def refuse_crowding(scale: Scale) -> None:
    """On this machine alone, without a cluster."""
    cores, workers = cpus(), scale.worker_range[0]
    if not is_connected() and cluster_address() is None and workers > MOST_WORKERS_PER_CORE * cores:
        raise ValueError(
            f"workers={workers} is more than {MOST_WORKERS_PER_CORE} for each of this machine's {cores} cores; "
            f"give --workers {MOST_WORKERS_PER_CORE * cores} or fewer, or set RAY_ADDRESS to a cluster"
        )


def refuse_shards_of_one_gpu(scale: Scale) -> None:
    """They would save no memory, and need exchanges that Gloo lacks on GPUs."""
    if scale.strategy == "fsdp2" and shares_gpus(scale):
        raise ValueError(
            f"strategy=fsdp2 with gpus_per_worker={scale.gpus_per_worker:g}: shards on one GPU save no memory; "
            "give --gpus-per-worker 1, or --strategy ddp"
        )


def refuse_to_starve(workers: int, cpus: float, total: float) -> None:
    """Streaming decodes in tasks of Ray Data, which wait for ever where the workers hold every CPU."""
    if total < workers * cpus + 1:
        raise ValueError(
            f"workers={workers} with {cpus:g} CPUs each leaves no CPU to decode pictures on: the cluster has "
            f"{total:g}; give fewer --workers or --cpus-per-worker, or --data-mode cache"
        )


def gpu_of_worker(scale: Scale, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The GPU that each worker asks for: by itself one, where the cluster has any, or its autoscaler adds some."""
    given = scale.gpus_per_worker
    if given is None:
        given = 1.0 if any(node.get("GPU", 0) for node in nodes) or addable_resources().get("GPU", 0) else 0.0
    return {"GPU": given} if given else {}


def cluster_total(nodes: Sequence[Mapping[str, float]], name: str) -> float:
    """So much of a resource the hosts have, or will have once the autoscaler has added all that it may."""
    return max(sum(node.get(name, 0) for node in nodes), addable_resources().get(name, 0))


def holds(node: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    """Whether a host has what a worker needs."""
    return all(node.get(name, 0) >= need for name, need in resources.items())


def smallest_share(nodes: Sequence[Mapping[str, float]], resources: Mapping[str, float], workers: int) -> float | None:
    """Bytes of memory that each worker gets of its host, at least; None where no host that holds one is up.

    A host's memory is what was free as Ray started there. Workers are taken to fill one host before the next.
    """
    shares = []
    for node in nodes:
        memory = node.get("memory", 0) + node.get("object_store_memory", 0)
        if memory and holds(node, resources):
            places = min(int(node[name] // need) for name, need in resources.items() if need)
            shares.append(memory / min(workers, places))
    return min(shares, default=None)


def warn_of_workers(scale: Scale, resources: Mapping[str, float], up: bool, memory: int | None) -> list[str]:
    """What people should know of workers that wait for their hosts, or share a GPU.

    Args:
        scale: Workers, and what was asked for them.
        resources: What each of them asks for.
        up: Whether a host is up that has the special ones.
        memory: Of their devices, in bytes; None: not known.
    """
    warnings = []
    if shares_gpus(scale):
        warnings.append(
            f"gpus_per_worker={scale.gpus_per_worker:g}: workers may share a GPU, which NCCL refuses; they exchange "
            "gradients by Gloo, through the host's memory, which is slower"
        )
    if not up:
        asks = ", ".join(f"{value:g} {name}" for name, value in resources.items())
        flags = "--cpus-per-worker and --gpus-per-worker ask for more"
        unknown = "" if memory or scale.memory else ", how much memory it will have is not known (--memory says it)"
        warnings.append(f"no host for the workers is up yet{unknown}; each asks for {asks}: {flags}")
    return warnings


def shares_gpus(scale: Scale) -> bool:
    """Whether several workers may get shares of one GPU, which NCCL refuses."""
    return scale.worker_range[1] > 1 and 0 < (scale.gpus_per_worker or 0) < 1


def named_resources(scale: Scale) -> dict[str, float]:
    """What a worker needs apart from CPUs, GPUs and memory. Ray marks hosts by a trace of their kind of GPU."""
    kind = scale.accelerator_type
    return {**({} if kind is None else {f"accelerator_type:{kind}": 0.001}), **scale.resources}


def refuse_what_never_fits(workers: int, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ValueError where neither the hosts that are there nor those the autoscaler can add hold the workers."""
    places = sum(min(int(node.get(name, 0) // need) for name, need in resources.items()) for node in nodes)
    if places >= workers:
        return
    addable = addable_resources()
    if all(addable.get(name, 0) >= need * workers for name, need in resources.items()):
        return
    has = "; ".join(_describe_host(node) for node in nodes)
    need = ", ".join(f"{value:g} {name}" for name, value in resources.items())
    fewer = f"give --workers {places} or fewer, or ask for less for each" if places else "ask for what a host has"
    fewer += " (--cpus-per-worker, --gpus-per-worker)"
    raise ValueError(
        f"workers={workers} with {need} each do not fit: the cluster has {len(nodes)} hosts ({has}) and its "
        f"autoscaler adds none that would do; {fewer}"
    )


def _describe_host(node: Mapping[str, float]) -> str:
    """What a host has, for people; Ray's own entries (its address, memory) are left out."""
    mine = {name: amount for name, amount in node.items() if not name.startswith(("node:", "accelerator_type:"))}
    others = [f"{amount:g} {name}" for name, amount in mine.items() if "memory" not in name and len(name) > 3]
    kinds = [name.partition(":")[2] for name in node if name.startswith("accelerator_type:")]
    return ", ".join([f"{node.get('CPU', 0):g} CPUs", f"{node.get('GPU', 0):g} GPUs", *kinds, *others])
