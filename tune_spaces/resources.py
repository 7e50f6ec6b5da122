"""What the trials of a sweep get of a cluster: how many run at once, and what Tune reserves for each.

Numbers in, frozen numbers out: nothing here asks Ray or the machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainers.recipe import Scale
from trainers.runtime.ray_internals import HEAD_NODE
from trainers.runtime.resources import named_resources

GPU_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of a GPU, that a trial may hold if it does not need all of it."""
MEMORY_MARGIN = 1.15
"""Predicted memory times this is reserved: what kernels borrow, and what the allocator rounds up, come on top."""
DATA_TASK_CPUS = 1
"""CPUs that are left free: a task that decodes pictures waits for one while trials run."""
PRECISION = 1e-4
"""Ray counts resources in units of this."""
PLACEHOLDER = {"memory": 1.0}
"""A byte: Tune must reserve something, and a data task does not lack it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a sweep asks of its cluster."""

    trials: int
    """How many there will be."""
    workers: int
    """Most workers of a trial; 0 or 1: it trains in its own process."""
    cpus_per_worker: int | None = None
    """None: what there is, shared evenly."""
    max_concurrent: int | None = None
    """Trials at once, at most."""

    @property
    def processes(self) -> int:
        """That train for a trial."""
        return max(1, self.workers)

    @property
    def several_workers(self) -> bool:
        """Whether each trial starts workers by Ray Train, which reserves for them itself."""
        return self.workers > 1

    def at_once(self, cpus: int) -> int:
        """Trials that run at once on so many CPUs."""
        each = self.processes * (self.cpus_per_worker or 1)
        return max(1, min(cpus // each, self.trials, self.max_concurrent or self.trials))

    def slots(self, cpus: int) -> int:
        """For how many training processes a Ray of our own is started: with more than run, there is a share of its
        CPUs that leaves one free and yet is too large for a further trial (`cpu_share`)."""
        trials = self.at_once(cpus)
        return trials * self.processes + (1 if self.several_workers else spare_slots(trials))


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What the cluster has."""

    ours: bool
    """Whether Ray was started for this sweep alone."""
    cpus: int
    """Real ones: of this process where Ray is ours, else those of all hosts."""
    ray_cpus: float = 0.0
    """Those that a Ray of our own was started with: more than the real ones."""
    gpus: float = 0.0
    """Of all hosts."""
    host_cpus: float = math.inf
    """Of the smallest host that trials may run on; no trial may ask for more."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """How the trials share the cluster."""

    concurrency: int
    """Trials that run at once."""
    standby: int
    """Trials that are ready next to these, and take over the first actor that gets free."""
    threads: int
    """Of each training process."""
    cpus: float
    """That Tune reserves for a trial which trains in its own process."""
    gpus: bool
    """Whether trials train on GPUs."""
    processes: int
    """That train at once, over all trials."""

    def reserve(self, scale: Scale, scheduler: str, gpu_share: float = 1.0) -> dict[str, float]:
        """What Tune reserves for a trial: the bundle of its placement group.

        Args:
            scale: of the trial.
            scheduler: that of the sweep.
            gpu_share: of a GPU, where the scale does not say how much a worker gets.

        Returns:
            Ray's name of a resource -> amount.
        """
        if scale.worker_range[1] > 1:
            if scheduler == "pbt":  # it pauses trials: Tune itself must know how many run at once
                return {HEAD_NODE: head_share(self.concurrency)}
            return dict(PLACEHOLDER)
        bundle = {"CPU": self.cpus, **named_resources(scale)}
        return {**bundle, "GPU": scale.gpus_per_worker or gpu_share} if self.gpus else bundle


def resolve_places(request: Request, capacity: Capacity) -> Places:
    """How so many trials share what the cluster has."""
    usable = capacity.cpus if capacity.ours else max(1, capacity.cpus - DATA_TASK_CPUS)
    concurrency = request.at_once(usable)
    if capacity.gpus and not request.several_workers:
        concurrency = min(concurrency, int(capacity.gpus / GPU_SHARES[0]))
    most = usable if capacity.host_cpus == math.inf else int(capacity.host_cpus)
    threads = request.cpus_per_worker or (1 if request.several_workers else max(1, min(usable // concurrency, most)))
    alone = capacity.ours and not request.several_workers
    return Places(
        concurrency=concurrency,
        standby=1 if alone else 0,
        threads=threads,
        cpus=cpu_share(capacity.ray_cpus, concurrency) if alone else float(threads),
        gpus=capacity.gpus > 0,
        processes=concurrency * request.processes,
    )


def cpu_share(ray_cpus: float, trials: int) -> float:
    """CPUs that each of so many trials reserves on a Ray of our own, where that alone limits how many run.

    A further trial must not fit: (trials + 1) * share > ray_cpus. A data task must: trials * share <= ray_cpus - 1.
    The middle between both bounds is furthest from either: rounding to Ray's precision does no harm.
    """
    too_small = ray_cpus / (trials + 1)
    largest = (ray_cpus - DATA_TASK_CPUS) / trials
    return round((too_small + largest) / 2, 4)


def spare_slots(trials: int) -> int:
    """How many more CPUs than trials and a data task need a Ray of our own must have for `cpu_share` to exist.

    Its bounds are spare / (trials * (trials + 1)) apart, which must be twice Ray's precision: 1 up to 70 trials.
    """
    return max(1, math.ceil(2 * PRECISION * trials * (trials + 1)))


def head_share(trials: int) -> float:
    """Of the one HEAD_NODE that there is: so many trials fit, and half of a further one."""
    return round(1 / (trials + 0.5), 4)


def gpu_share(memory_bytes: int | None, limit_bytes: int | None, context_bytes: int) -> float:
    """Of a GPU, what a trial reserves: the smallest of a few shares that holds it. An actor takes over the next trial
    only where that reserves the same, so there are few.

    Args:
        memory_bytes: predicted peak of a step; None: not known.
        limit_bytes: memory of the GPU; None: not known.
        context_bytes: what each process takes beside that.
    """
    if memory_bytes is None or limit_bytes is None:
        return 1.0
    need = (memory_bytes + context_bytes) * MEMORY_MARGIN
    return next((share for share in GPU_SHARES if need <= share * limit_bytes), 1.0)


def repeat_number(number: int, repeat: int, trials: int, repeats: int) -> int:
    """The number of a trial that runs another again.

    Args:
        number: of the trial that is repeated, below `trials`.
        repeat: which of its repeats, from 0, below `repeats`.
        trials: of the sweep, repeats left out.
        repeats: of each trial.

    Returns:
        A number for this pair alone, and above those of all trials: 1000 + 100 * number + repeat, as long as there are
        no more than 1,000 trials and 100 repeats; 10 times as much where there are more, and so on.
    """
    first = max(1000, _power_of_ten(trials))
    return first + max(100, _power_of_ten(repeats)) * number + repeat


def _power_of_ten(least: int) -> int:
    """The smallest above 1 that is not below this."""
    return int(10 ** len(str(least - 1)))
