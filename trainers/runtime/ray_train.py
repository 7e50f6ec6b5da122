"""Training on a cluster: starts Ray, and workers by Ray Train. Beside it only ray_callbacks imports ray.train.

Ray Train starts the workers and restarts them when one dies. What it keeps of its own (checkpoints, results) is not
relied on: workers resume from the run folder, and report to the driver through one small actor, the `Coordinator`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, cast

from trainers import limits
from trainers.messages import BeatEvent, DoneEvent, Event, GroupStart, Job, RayJob
from trainers.process import let_children_survive_hang_up
from trainers.recipe import Scale
from trainers.runtime.addresses import START, cluster_address, host_of, refuse_other_servers, use_token
from trainers.runtime.coordinator import POLL_SECONDS, ActorHandle, Coordinator, Link
from trainers.runtime.preflight import check_hosts, smallest_gpu, this_node
from trainers.runtime.proxies import ask_directly
from trainers.runtime.ray_folder import some_home
from trainers.runtime.ray_internals import connect, explain_refusal, refresh_cluster_view, start_on_loopback
from trainers.runtime.resources import (
    cluster_total,
    holds,
    refuse_crowding,
    refuse_shards_of_one_gpu,
    refuse_to_starve,
    refuse_what_never_fits,
    shares_gpus,
    smallest_share,
    warn_of_workers,
    worker_resources,
)
from trainers.runtime.shortage import Shortage
from trainers.runtime.stall_detector import STALL_SECONDS, Heartbeat, StallDetector
from trainers.storage.store import Store, default_storage

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from trainers.training.distributed import World

CONNECT_SECONDS = 90.0
"""Ray itself waits for minutes where something else listens at the address."""
GRACE_SECONDS = 30.0
"""For workers to end, and for a new group of them to stand, when a run ends or is to stop."""
RESIZE_SECONDS = 10.0
"""Between two checks of elastic training whether the cluster has room for more workers."""
NETWORK_SECONDS = 900
"""A rank waits so long for the others, which may decode or evaluate; dead ones are noticed by Ray, sooner."""
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # every check costs the workers CPU; the end waits for one
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # Ray's 600: a process that does not answer is dead before that
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # notices come as late as 25 s before the end
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
}


_ALWAYS = {"RAY_TRAIN_V2_ENABLED": "1"}
"""Whatever the user's environment says of it."""


class Cluster:
    """The cluster that RAY_ADDRESS or the job names, else a Ray of our own on this machine; a `fitting.Place`.

    A thread connects while the caller scans the data; `wait` ends that.
    """

    def __init__(self, scale: Scale, slots: int | None = None) -> None:
        """
        Args:
            scale: Workers, and what each of them needs.
            slots: Processes that train at once in a sweep; None: the workers of `scale`.
        """
        self.scale = scale
        self.sweeping = slots is not None
        self.slots = slots or scale.worker_range[1]
        self.imported = threading.Event()
        """Ray is: what needs it can be imported while it starts."""
        self.threads = 1
        """Of each worker; known after `wait`, as is the rest."""
        self.fewer_threads = False
        self.gpus = False
        self.auto_precision: Literal["auto", "fp32", "bf16"] = "fp32"
        self.memory: int | None = None
        self._resources: dict[str, float] = {}
        self.ours = False
        """Whether Ray was started here, for this command alone."""
        self._error: BaseException | None = None
        self._ready, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._stay, daemon=True)
        self._home = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        if (address := cluster_address()) is not None:
            refuse_other_servers(address)
        refuse_crowding(self.scale)
        refuse_shards_of_one_gpu(self.scale)
        environment = _ENVIRONMENT
        if self.scale.elastic:  # the hosts that were there a moment ago may be gone: try again with fewer
            environment = {**environment, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
        os.environ.update({name: os.environ.get(name, value) for name, value in environment.items()} | _ALWAYS)
        if address is not None:
            use_token()
        self._home.enter_context(some_home(writable=address is None))
        ask_directly(host_of(address))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        if self._ready.is_set():
            self._thread.join()
        self._home.close()

    def wait(self) -> list[str]:
        """Until Ray answers; returns warnings.

        Raises ValueError where the cluster can never hold the workers, or its hosts do not agree on what they must.
        """
        self.imported.wait()
        if not self.sweeping and self._error is None:
            # As long as Ray starts, and not in its thread: SciPy fails where torch is half imported beside it.
            importlib.import_module("ray.train.torch")
        if not self._ready.wait(CONNECT_SECONDS):
            raise ValueError(_why_not_connected(TimeoutError(f"it was tried for {CONNECT_SECONDS:g} s")))
        if self._error is not None:
            raise self._error
        nodes = self.nodes()
        workers, resources = self.scale.worker_range[1], worker_resources(self.scale, nodes)
        asked = self.scale.cpus_per_worker or (limits.threads() if self.ours else None)
        share = max(1, limits.cpus() // workers) if self.ours else int(resources["CPU"])
        self.threads, self.fewer_threads = asked or share, asked is None
        self._resources = {**resources, "CPU": 1.0} if self.ours else resources
        refuse_what_never_fits(self.scale.worker_range[0], self._resources, nodes)
        self.gpus = "GPU" in resources
        self.auto_precision = "auto" if self.gpus else "fp32"
        self.memory = self.worker_memory(workers)
        special = {name: need for name, need in resources.items() if name != "CPU"}
        up = any(holds(node, special) for node in nodes)
        warnings = [] if self.sweeping else warn_of_workers(self.scale, self._resources, up, self.memory)
        if self.ours:
            from trainers.training.device import warn_of_idle_gpu

            return warnings + warn_of_idle_gpu()
        if len(nodes) == 1:
            return warnings
        storage, streamed = Store(self.scale.storage or default_storage()), self.scale.data_mode == "stream"
        return warnings + check_hosts(storage, self.scale.data if streamed else None)

    def worker_memory(self, workers: int) -> int | None:
        """Bytes that a step may take in each of so many workers, on the hosts that are up; None: not known."""
        from trainers.training.memory_fit import HOST_SHARE, device_memory

        if not self.gpus and not self.ours:
            host = smallest_share(self.nodes(), self._resources, workers)
            return None if host is None else int(HOST_SHARE * host)
        found = device_memory(self.gpus, workers) if self.ours else smallest_gpu(self._resources)
        return found if found is None or not self.gpus else int(found * min(1.0, self._resources["GPU"]))

    def nodes(self) -> list[Mapping[str, float]]:
        """What each host has: CPU, GPU, memory..."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def train(self, job: Job, listen: Callable[[Event], None], stop: threading.Event) -> None:
        """Run `job` on the workers; see `fitting.Place.train`."""
        import ray

        if job["data"]["mode"] == "stream":
            refuse_to_starve(self.scale.worker_range[1], self._resources["CPU"], cluster_total(self.nodes(), "CPU"))
        name = f"trainyard-{uuid.uuid4().hex[:12]}"
        coordinator = _start_coordinator(name, self.scale.max_failures)
        traces = Store(job["storage"]) / ".ray"
        stall_detector = StallDetector(float(os.environ.get("TRAINYARD_STALL_SECONDS", STALL_SECONDS)))
        ray_job: RayJob = {**job, "coordinator": name, "stall_seconds": stall_detector.stall_seconds}
        trainer = _trainer(ray_job, self.scale, self._resources, traces.address)
        failed: list[BaseException] = []
        fitting = threading.Thread(target=_fit, args=(trainer, failed), daemon=True)
        fitting.start()
        try:
            self._follow(coordinator, fitting, failed, stall_detector, listen, stop)
        except ray.exceptions.RayActorError:
            if not stop.is_set():
                raise
            listen(_interrupted("with Ray's own processes"))  # which a signal to the whole group ends, too
            return
        with contextlib.suppress(OSError):
            traces.delete(name)
            if not traces.names():
                traces.parent.delete(".ray")
        ray.kill(coordinator)

    def _follow(
        self,
        coordinator: ActorHandle,
        fitting: threading.Thread,
        failed: Sequence[BaseException],
        stall_detector: StallDetector,
        listen: Callable[[Event], None],
        stop: threading.Event,
    ) -> None:
        """Hand on events and requests until Ray Train has ended, or has had GRACE_SECONDS after the last event: a run
        that ended with an error needs no second attempt, so the driver leaves, and Ray ends the workers. It leaves
        at once where a stop is requested and no worker is there that could save."""
        import ray

        ended_at: float | None = None
        heard_at: float | None = None
        stop_requested, refreshed_at = False, time.monotonic()
        shortage = Shortage(self.scale.worker_range[0], self._resources)
        while ended_at is None or (fitting.is_alive() and time.monotonic() - ended_at < GRACE_SECONDS):
            alive = fitting.is_alive()
            events: list[Event] = ray.get(coordinator.take.remote())
            for event in events:
                if event["kind"] == "beat":
                    stall_detector.hear(event)
                else:
                    listen(event)
                if event["kind"] == "done":
                    ended_at = time.monotonic()
            heard_at = time.monotonic() if events else heard_at
            if ended_at is None and (line := stall_detector.check() or (heard_at is None and shortage.check())):
                listen(line)
            if stop.is_set() and not stop_requested:
                stop_requested = True
                coordinator.ask_to_stop.remote()
            if stop.is_set() and ended_at is None and _is_silent(heard_at, GRACE_SECONDS):
                listen(_interrupted("while workers were waited for"))
                return
            if self.scale.elastic and time.monotonic() - refreshed_at > RESIZE_SECONDS:
                refreshed_at = time.monotonic()
                refresh_cluster_view()
            if not alive and ended_at is None:
                listen(_end_without_a_word(failed))
                ended_at = time.monotonic()
            time.sleep(POLL_SECONDS)

    def _stay(self) -> None:
        """Connect, and stay: processes that Ray starts here are killed when the *thread* that started them ends."""
        let_children_survive_hang_up()
        try:
            self._connect()
        except Exception as error:
            self._error = error if cluster_address() is None else ValueError(_why_not_connected(error))
        except BaseException as error:
            self._error = error
        self.imported.set()
        self._ready.set()
        self._leave.wait()
        if self.ours:
            import ray

            ray.shutdown()

    def _connect(self) -> None:
        address = cluster_address()
        import ray

        self.imported.set()
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        if ray.is_initialized():
            return
        if address:
            connect(address)
            return
        cpus = max(limits.cpus(), self.slots + 1)  # one is left for data tasks
        self.ours = True
        # Ray starts sooner without its dashboard; what cleans up after Ray Train asks that, and complains without end
        dashboard = not self.sweeping or self.scale.worker_range[1] > 1
        start_on_loopback(cpus, dashboard)


def _why_not_connected(error: Exception) -> str:
    """A line for people."""
    cluster, refusal = f"RAY_ADDRESS={cluster_address()}", explain_refusal(error)
    if refusal is not None:
        return f"the cluster at {cluster} {refusal}"
    cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"no Ray cluster answers at {cluster}: {cause.rstrip('.')}; {START}"


def _start_coordinator(name: str, max_failures: int) -> ActorHandle:
    """The run's actor, on this host: it is not lost with another."""
    import ray

    actor = ray.remote(num_cpus=0)(Coordinator)
    return actor.options(name=name, label_selector={"ray.io/node-id": this_node()}).remote(max_failures)


def _is_silent(heard_at: float | None, seconds: float) -> bool:
    """Whether the workers have not been heard for so long, or not at all."""
    return heard_at is None or time.monotonic() - heard_at > seconds


def _interrupted(how: str) -> DoneEvent:
    from trainers.runtime.worker import ending

    return ending("interrupted", f"interrupted {how}; nothing is lost that was saved")


def _end_without_a_word(failed: Sequence[BaseException]) -> DoneEvent:
    """The last event of a run that Ray Train gave up: its memory monitor ends Ray Train's own processes, too. Raises
    the error where that is not why."""
    from trainers.runtime.failures import diagnose
    from trainers.runtime.worker import ending

    error = failed[0] if failed else RuntimeError("the workers ended without a word")
    status, why = diagnose(str(error))
    if status != "out_of_memory":
        raise error
    return ending(status, f"{why}; try a smaller --micro-batch-size")


def _train_worker(job: RayJob) -> None:
    """What Ray Train runs in every worker."""
    import ray
    import ray.train

    from trainers.runtime import worker
    from trainers.runtime.prometheus import Gauges
    from trainers.training import device, distributed

    worker.change_folder(job["cwd"])
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    coordinator = ray.get_actor(job["coordinator"])
    gauges = Gauges(Store(job["folder"]).name, rank)

    def beat(event: BeatEvent) -> None:
        gauges.take(event)
        coordinator.put.remote([event])

    def report(event: Event) -> None:
        gauges.take(event)
        if rank == 0 or event["kind"] == "machine":
            line.report(event)

    with Heartbeat(rank, size, gauges.host, beat, job["stall_seconds"]) as heartbeat:
        world = distributed.World(rank, size, device.choose_device(), "fp32")
        idle = _idle_gpus(world)
        start = _begin(job, coordinator, world)
        if start is None:
            return
        job = _with_precision(job, coordinator, world)
        line = Link(coordinator)
        if idle:
            report({"kind": "warning", "text": idle})
        attempt = job["attempt"] * 1000 + start
        end = worker.work(job, rank, size, attempt, report, line.stopping, line.saving, heartbeat)
    if rank == 0 or end["status"] in ("failed", "out_of_memory"):
        line.report(end)
    line.close()
    if end["status"] in ("failed", "out_of_memory"):
        raise RuntimeError(end["message"])  # other ranks may wait for this one: Ray ends them all


def _begin(job: RayJob, coordinator: ActorHandle, world: World) -> int | None:
    """The number of this start of the workers, from 1, agreed by all ranks; None where the run is over already."""
    import ray

    from trainers.runtime import worker
    from trainers.runtime.failures import diagnose
    from trainers.training.checkpoint import Checkpoints

    start = 0
    if world.rank == 0:
        step = Checkpoints(Store(job["folder"])).latest_step()
        answer = cast(GroupStart, ray.get(coordinator.begin.remote(step)))
        if answer["why"]:
            status, cause = diagnose(answer["error"])
            ray.get(coordinator.put.remote([worker.ending(status, f"{answer['why']}: {cause}")]))
        start = 0 if answer["over"] else answer["start"]
    return world.broadcast(start)[0] or None


def _idle_gpus(world: World) -> str:
    """A line for people where workers were given GPUs that their torch cannot use; "" where all can."""
    import ray
    import torch

    if not ray.get_gpu_ids():  # nor have the others any
        return ""
    blind = world.gather_objects("" if world.device.type == "cuda" else socket.gethostname())
    hosts = ", ".join(sorted(set(filter(None, blind))))
    if not hosts:
        return ""
    return (
        f"torch {torch.__version__} cannot use the GPUs of {hosts}: workers there train on their CPUs; install a torch "
        "that is built for these GPUs and their driver, or give --gpus-per-worker 0"
    )


def _with_precision(job: RayJob, coordinator: ActorHandle, world: World) -> RayJob:
    """The job, with the precision that all workers' devices compute by themselves where the driver could not know."""
    import ray

    from trainers.training import device

    if job["recipe"]["precision"] != "auto":
        return job
    found = world.gather_objects(device.auto_precision(world.device.type == "cuda"))
    precision = "bf16" if set(found) == {"bf16"} else "fp32"
    if world.rank == 0:
        precision = ray.get(coordinator.fix_precision.remote(precision))
    return {**job, "recipe": {**job["recipe"], "precision": world.gather_objects(precision)[0]}}


def _trainer(job: RayJob, scale: Scale, resources: dict[str, float], storage: str) -> TorchTrainer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trainers.runtime.ray_callbacks import Changes, Network
    from trainers.runtime.ray_internals import controller_callback

    return TorchTrainer(
        _train_worker,  # type: ignore[arg-type]  # it takes a dict, of whatever keys
        torch_config=Network(backend="gloo" if shares_gpus(scale) else None, timeout_s=NETWORK_SECONDS),
        train_loop_config=dict(job),
        scaling_config=ScalingConfig(
            num_workers=scale.workers,  # type: ignore[arg-type]  # V2 takes (fewest, most); the stub is V1's
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,  # type: ignore[call-arg]  # V2's, too
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            placement_strategy=scale.placement.upper(),
        ),
        run_config=RunConfig(
            name=job["coordinator"],
            storage_path=storage,
            failure_config=FailureConfig(max_failures=-1),  # the coordinator counts, and knows what would happen again
            callbacks=[controller_callback(Changes(job["coordinator"]))],  # type: ignore[list-item]
        ),
    )


def _fit(trainer: TorchTrainer, failed: list[BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as error:
        failed.append(error)
