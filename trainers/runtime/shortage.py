"""What workers wait for that do not start: which resource is short, and which jobs hold it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from trainers.messages import MessageEvent
from trainers.runtime.ray_internals import free_resources
from trainers.runtime.resources import places

FIRST_SECONDS, AGAIN_SECONDS = 6.0, 30.0
"""Until the first look, and between two."""
ANSWER_SECONDS = 3
"""For the cluster to list its jobs."""
MOST_LISTED = 10_000
"""Ray lists 100 by itself, and those of jobs that have ended count; it lists no more than this."""
NAME_LENGTH = 100
"""Of a job's command, as it is shown."""

Resources = Mapping[str, float]


class Shortage:
    """Looks now and then why workers have not started; Ray is connected to."""

    def __init__(self, workers: int, resources: Resources) -> None:
        """
        Args:
            workers: How many are to start.
            resources: What each of them asks for.
        """
        self.workers, self.resources = workers, resources
        self._next = time.monotonic() + FIRST_SECONDS
        self._said = ""

    def check(self) -> MessageEvent | None:
        """A line that says what is short, where that is known and has not been said."""
        if time.monotonic() < self._next:
            return None
        import ray

        left = free_resources()
        if left is None:
            return None
        nodes = [node for node in ray.nodes() if node["Alive"]]
        free, whole = [left.get(node["NodeID"], {}) for node in nodes], [node["Resources"] for node in nodes]
        text = ""
        if explain(self.workers, self.resources, free, whole, {}):
            held = _held_by_jobs(ray.get_runtime_context().get_job_id())
            text = "" if held is None else explain(self.workers, self.resources, free, whole, held)
        self._next = time.monotonic() + AGAIN_SECONDS
        if text in ("", self._said):
            return None
        self._said = text
        return {"kind": "message", "text": text}


def explain(
    workers: int,
    resources: Resources,
    free: Sequence[Resources],
    whole: Sequence[Resources],
    held: Mapping[str, Resources],
) -> str:
    """Why workers do not start, for people; "" where there is room for them.

    Args:
        workers: How many are to start.
        resources: What each of them asks for.
        free: What each host has left.
        whole: What each host has.
        held: Job -> what it holds.
    """
    if places(free, resources) >= workers:
        return ""
    asks = ", ".join(f"{value:g} {name}" for name, value in resources.items())
    if (most := places(whole, resources)) < workers:
        return f"the hosts that are up hold {most} of {workers} workers of {asks} each: they wait for more hosts"
    short = [name for name, need in resources.items() if places(free, {name: need}) < workers] or list(resources)
    parts = [
        f"{_total(free, name):g} of {_total(whole, name):g} {name} are free, and {workers} x {resources[name]:g} needed"
        for name in short
    ]
    holders = [
        f"{job} holds " + ", ".join(f"{has[name]:g} {name}" for name in short if has.get(name))
        for job, has in held.items()
        if any(has.get(name) for name in short)
    ]
    flags = {"CPU": "--cpus-per-worker", "GPU": "--gpus-per-worker"}
    less = [flags[name] for name in short if name in flags and resources[name] > (1 if name == "CPU" else 0)]
    advice = f"{' or '.join(less)} asks for less" if less else ""
    return "; ".join(filter(None, ["the workers wait: " + ", ".join(parts), *holders, advice]))


def _total(nodes: Sequence[Resources], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)


def _held_by_jobs(own: str) -> dict[str, dict[str, float]] | None:
    """Job, as people know it -> what its placement groups and actors hold.

    Args:
        own: Ray's name of this job.

    Returns:
        None where this job has its places, and its processes start; and where the cluster lists none, for want of its
        dashboard.
    """
    from ray.util import state

    held: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    try:
        jobs = state.list_jobs(limit=MOST_LISTED, timeout=ANSWER_SECONDS, raise_on_missing_output=False)
        names = {job.job_id: _name(job) for job in jobs}
        groups = state.list_placement_groups(
            filters=[("state", "=", "CREATED")],
            limit=MOST_LISTED,
            detail=True,
            timeout=ANSWER_SECONDS,
            raise_on_missing_output=False,
        )
        actors = state.list_actors(
            filters=[("state", "=", "ALIVE")],
            limit=MOST_LISTED,
            detail=True,
            timeout=ANSWER_SECONDS,
            raise_on_missing_output=False,
        )
    except Exception:  # whatever Ray raises then
        return None
    if any(group.creator_job_id == own for group in groups):
        return None
    for group in groups:
        for bundle in group.bundles or ():
            _add(held[names.get(group.creator_job_id, "another job")], bundle.get("unit_resources") or {})
    for actor in actors:
        if not actor.placement_group_id and actor.job_id != own:
            _add(held[names.get(actor.job_id, "another job")], actor.required_resources or {})
    return {job: dict(resources) for job, resources in held.items()}


def _add(held: defaultdict[str, float], resources: Mapping[str, float]) -> None:
    for name, amount in resources.items():
        held[name] += float(amount)


def _name(job: object) -> str:
    """The name that `cluster status` shows, and what was submitted."""
    metadata = getattr(job, "metadata", None) or {}
    command = " ".join(str(metadata.get("command") or getattr(job, "entrypoint", "") or "").split())
    command = command if len(command) <= NAME_LENGTH else command[: NAME_LENGTH - 3] + "..."
    return f"{getattr(job, 'submission_id', None) or 'a job'} ({command})" if command else "a job"
