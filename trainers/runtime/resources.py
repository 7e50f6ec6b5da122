"""What a run asks of the cluster's hosts; what no host can hold is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from trainers.limits import cpus
from trainers.recipe import Scale
from trainers.runtime.addresses import cluster_address
from trainers.runtime.ray_internals import addable_resources

MOST_WORKERS_PER_CORE = 4
ROUNDING = 1e-6
"""1 / 0.1 is 10, but 1 // 0.1 is 9."""


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


def worker_resources(scale: Scale, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What each worker asks of a cluster's hosts: where nobody says how many CPUs, an even share of those hosts that
    have the rest, but so few that as many workers find a place as would without; 1 where none of these is up."""
    special, workers = gpu_of_worker(scale, nodes) | named_resources(scale), scale.worker_range[1]
    if scale.cpus_per_worker is not None:
        return {"CPU": float(scale.cpus_per_worker), **special}
    able = [node for node in nodes if holds(node, special)]
    most = min(workers, places(able, {"CPU": 1.0, **special}))
    share = share_of_cpus(able, workers)
    while share > 1 and places(able, {"CPU": float(share), **special}) < most:
        share -= 1
    return {"CPU": float(share), **special}


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
    if total < workers * cpus + 1 and addable_resources() is not None:
        raise ValueError(
            f"workers={workers} with {cpus:g} CPUs each leaves no CPU to decode pictures on: the cluster has "
            f"{total:g}; give fewer --workers or --cpus-per-worker, or --data-mode cache"
        )


def gpu_of_worker(scale: Scale, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The GPU that each worker asks for: by itself one, where the cluster has any, or its autoscaler adds some.

    Raises ValueError where no host is up that could hold a worker, and Ray does not know what its autoscaler adds.
    """
    given = scale.gpus_per_worker
    if given is not None:
        return {"GPU": given} if given else {}
    if any(node.get("GPU", 0) for node in nodes):
        return {"GPU": 1.0}
    addable = addable_resources()
    if addable is None and not any(node.get("CPU", 0) >= 1 for node in nodes):
        raise ValueError(
            "no host for workers is up, and it is not known whether those that the cluster's autoscaler adds have "
            "GPUs: give --gpus-per-worker 1, or --gpus-per-worker 0 to train on their CPUs"
        )
    return {"GPU": 1.0} if addable and addable.get("GPU", 0) else {}


def cluster_total(nodes: Sequence[Mapping[str, float]], name: str) -> float:
    """So much of a resource the hosts have, or will have once the autoscaler has added all that it is known to add."""
    return max(sum(node.get(name, 0) for node in nodes), (addable_resources() or {}).get(name, 0))


def holds(node: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    """Whether a host has what a worker needs."""
    return all(node.get(name, 0) >= need for name, need in resources.items())


def places(nodes: Sequence[Mapping[str, float]], resources: Mapping[str, float]) -> int:
    """How many workers that ask for `resources` the hosts hold."""
    needs = {name: need for name, need in resources.items() if need}
    return sum(min(int(node.get(name, 0) / need + ROUNDING) for name, need in needs.items()) for node in nodes)


def smallest_share(nodes: Sequence[Mapping[str, float]], resources: Mapping[str, float], workers: int) -> float | None:
    """Bytes of memory that each worker gets of its host, at least; None where no host that holds one is up.

    A host's memory is what was free as Ray started there. Workers are taken to fill one host before the next.
    """
    shares = []
    for node in nodes:
        memory = node.get("memory", 0) + node.get("object_store_memory", 0)
        if memory and holds(node, resources):
            shares.append(memory / min(workers, places([node], resources)))
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
    if scale.gpus_per_worker is None and "GPU" not in resources and addable_resources() is None:
        warnings.append(
            "the workers train on CPUs: no host with a GPU is up, and it is not known whether the cluster's autoscaler "
            "adds some; --gpus-per-worker 1 asks for them"
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
    found, addable = places(nodes, resources), addable_resources()
    if found >= workers or addable is None:
        return
    if all(addable.get(name, 0) >= need * workers for name, need in resources.items()):
        return
    has = "; ".join(_describe_host(node) for node in nodes)
    need = ", ".join(f"{value:g} {name}" for name, value in resources.items())
    fewer = f"give --workers {found} or fewer, or ask for less for each" if found else "ask for what a host has"
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
