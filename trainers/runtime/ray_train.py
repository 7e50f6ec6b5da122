"""Training on Ray: the only place that imports ray.train.

Ray Train starts the workers and starts them anew when one dies. What it keeps of its own (checkpoints, results)
is not relied on: workers resume from the run folder, and tell the driver what happens through one small actor.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.recipe import Scale
from trainers.runtime.preflight import check_hosts, this_node
from trainers.runtime.stall_detector import STALL_SECONDS, Lookout, Watch
from trainers.storage.store import Store, default_storage

Job = Mapping[str, Any]
Event = dict[str, Any]

MOST_WORKERS_PER_CORE = 4
CONNECT_SECONDS = 90.0
"""Ray itself waits for minutes where something else listens at the address."""
POLL_SECONDS = 0.3
GRACE_SECONDS = 30.0
RESIZE_SECONDS = 10.0
"""So often elastic training looks whether the cluster has room for more workers."""
STILL_SECONDS = 20.0
"""Workers that are to save, and then to be ended, are not waited for where they have not moved for so long."""
HURRY_SECONDS = 5.0
"""Between checkpoints once a host is about to be taken back."""
NETWORK_SECONDS = 900
"""A rank waits so long for the others, which may decode or evaluate; dead ones are noticed by Ray, sooner."""
_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # every look costs the workers CPU; the end waits for one
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # Ray's 600: a process that does not answer is dead before that
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # notices come as late as 25 s before the end
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
}


class Cluster:
    """The cluster that RAY_ADDRESS or the job names, else a Ray of our own on this machine.

    It is connected to in a thread, while the caller looks at the data; `wait` ends that.
    """

    def __init__(self, scale: Scale, slots: int | None = None) -> None:
        """Parameters: `slots`, processes that train at once, where that is more than the scale's workers (a sweep)."""
        self.scale = scale
        self.sweeping = slots is not None
        self.slots = slots or scale.worker_range[1]
        self.imported = threading.Event()
        """Ray is: what needs it can be imported while it starts."""
        self.threads = 1
        self.gpus = False
        self._resources: dict[str, float] = {}
        self.ours = False
        """Whether Ray was started here, for this command alone."""
        self._error: BaseException | None = None
        self._ready, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._stay, daemon=True)

    def __enter__(self) -> Cluster:
        _refuse_crowding(self.scale)
        environment = _ENVIRONMENT
        if self.scale.elastic:  # the hosts that were there a moment ago may be gone: try again with fewer
            environment = {**environment, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
        os.environ.update({name: os.environ.get(name, value) for name, value in environment.items()})
        if os.environ.get("RAY_ADDRESS") and (Path.home() / ".ray" / "auth_token").exists():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
        if not os.environ.get("RAY_ADDRESS"):
            # A Ray of our own listens on loopback alone; without this it takes another address, and listens on all.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        if self._ready.is_set():
            self._thread.join()

    def wait(self) -> list[str]:
        """Until Ray answers; returns warnings.

        Raises ValueError where the cluster can never hold the workers, or its hosts do not agree on what they must.
        """
        self.imported.wait()
        if not self.sweeping and self._error is None:
            # As long as Ray starts, and not in its thread: SciPy fails where torch is half imported beside it.
            importlib.import_module("ray.train.torch")
        if not self._ready.wait(CONNECT_SECONDS):
            address = os.environ.get("RAY_ADDRESS")
            raise ValueError(f"no Ray cluster answers at RAY_ADDRESS={address} within {CONNECT_SECONDS:g} s")
        if self._error is not None:
            raise self._error
        nodes = self.nodes()
        self.gpus = any(node.get("GPU", 0) for node in nodes)
        workers = self.scale.worker_range[1]
        if self.scale.cpus_per_worker is not None:
            self.threads = self.scale.cpus_per_worker
        elif self.ours:
            self.threads = max(1, len(os.sched_getaffinity(0)) // workers)
        else:
            self.threads = share_of_cpus(nodes, workers)
        gpus = self.scale.gpus_per_worker
        self._resources = {"CPU": 1.0 if self.ours else float(self.threads)}
        if gpus or (gpus is None and self.gpus):
            self._resources["GPU"] = gpus or 1
        self._resources |= named_resources(self.scale)
        refuse_what_never_fits(self.scale.worker_range[0], self._resources, nodes)
        if self.ours or len(nodes) == 1:
            return []
        storage, streamed = Store(self.scale.storage or default_storage()), self.scale.data_mode == "stream"
        return check_hosts(storage, self.scale.data if streamed else None)

    def nodes(self) -> list[Mapping[str, float]]:
        """What each host has: CPU, GPU, memory..."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def train(self, job: Job, listen: Callable[[Event], None], stop: threading.Event, callbacks: Sequence[Any]) -> None:
        """Run `job` on the workers; `listen` gets their events, the last one of kind "done"."""
        import ray

        from trainers.runtime.ray_callbacks import look_again

        if job["data"]["mode"] == "stream":
            _refuse_to_starve(self.scale.worker_range[1], self._resources["CPU"], ray.cluster_resources())
        desk_name = f"trainyard-desk-{uuid.uuid4().hex[:12]}"
        desk: Any = (
            ray.remote(num_cpus=0)(Desk)
            .options(name=desk_name, label_selector={"ray.io/node-id": this_node()})  # not lost with another host
            .remote(self.scale.max_failures)
        )
        traces = Store(job["storage"]) / ".ray"
        lookout = Lookout(float(os.environ.get("TRAINYARD_STALL_SECONDS", STALL_SECONDS)))
        job = {**job, "desk": desk_name, "report": bool(callbacks), "stall_seconds": lookout.stall_seconds}
        trainer = _trainer(job, self.scale, self._resources, traces.address, desk_name, callbacks)
        failed: list[BaseException] = []
        fitting = threading.Thread(target=_fit, args=(trainer, failed), daemon=True)
        fitting.start()
        ended_at, asked, looked = None, False, time.monotonic()
        # A run that ended with an error needs no second attempt: the driver leaves, and Ray ends the workers.
        while ended_at is None or (fitting.is_alive() and time.monotonic() - ended_at < GRACE_SECONDS):
            alive = fitting.is_alive()
            for event in ray.get(desk.take.remote()):
                (lookout.hear if event["kind"] == "beat" else listen)(event)
                if event["kind"] == "done":
                    ended_at = time.monotonic()
            if ended_at is None and (event := lookout.look()):
                listen(event)
            if stop.is_set() and not asked:
                asked = True
                desk.ask_to_stop.remote()
            if self.scale.elastic and time.monotonic() - looked > RESIZE_SECONDS:
                looked = time.monotonic()
                look_again()
            if not alive and ended_at is None:
                listen(_end_without_a_word(failed))
                ended_at = time.monotonic()
            time.sleep(POLL_SECONDS)
        with contextlib.suppress(OSError):
            traces.delete(desk_name)
            if not traces.names():
                traces.parent.delete(".ray")
        ray.kill(desk)

    def _stay(self) -> None:
        """Connect, and stay: processes that Ray starts here are killed when the *thread* that started them ends."""
        try:
            self._connect()
        except ConnectionError as error:
            address = os.environ.get("RAY_ADDRESS")
            self._error = ValueError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}")
        except BaseException as error:
            self._error = error
        self.imported.set()
        self._ready.set()
        self._leave.wait()
        if self.ours:
            import ray

            ray.shutdown()

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        import ray

        self.imported.set()
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        if ray.is_initialized():
            return
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        cores = len(os.sched_getaffinity(0))
        cpus = max(cores, self.slots + 1)  # one is left for data tasks
        self.ours = True
        # Ray starts sooner without its dashboard; what cleans up after Ray Train asks that, and complains without end
        dashboard = not self.sweeping or self.scale.worker_range[1] > 1
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            num_cpus=cpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _end_without_a_word(failed: Sequence[BaseException]) -> Event:
    """The last event of a run that Ray Train gave up: its memory monitor ends Ray Train's own processes, too. Raises
    the error where that is not why."""
    from trainers.runtime.failures import death
    from trainers.runtime.worker import ending

    error = failed[0] if failed else RuntimeError("the workers ended without a word")
    status, why = death(str(error))
    if status != "out_of_memory":
        raise error
    return ending(status, f"{why}; try a smaller --micro-batch-size")


class Desk:
    """A small actor, one for each run: carries events to the driver, and its wish to stop to the workers."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.events: list[Event] = []
        self.stop = False
        self.saves = 0
        """Checkpoints that were asked for."""
        self.saved = 0
        self.moved = 0.0
        """Time (monotonic) when rank 0 last did, or was asked to save."""
        self.hurry = False
        self.over = False
        self.starts = 0
        self.tries: dict[int, int] = {}
        self.error = ""
        """What Ray said when workers died, the last time."""

    def failed(self, error: str) -> None:
        self.error = error

    def begin(self, step: int) -> dict[str, Any]:
        """A group of workers starts from the checkpoint of `step`: {start: the how many-eth, over: leave at once,
        why: that ends the run, error: Ray's}."""
        self.starts += 1
        self.saved, self.hurry = self.saves, False
        self.tries[step] = self.tries.get(step, 0) + 1
        if self.tries[step] > self.max_failures and not self.over:
            text = f"gave up after {self.max_failures} attempts without a new checkpoint (at step {step})"
            return {"start": self.starts, "over": True, "why": text, "error": self.error}
        return {"start": self.starts, "over": self.over, "why": None, "error": self.error}

    def put(self, events: list[Event]) -> dict[str, Any]:
        """Take in events; returns what is wished: {stop, saves: so many so far, hurry: save often}."""
        for event in events:
            if event["kind"] == "saved":
                self.saved = self.saves
            if event["kind"] == "beat" and event["rank"] == 0:
                self.moved = time.monotonic() - event["idle"]
        events = [event for event in events if event["kind"] != "saved"]
        self.events += [] if self.over else events
        self.over = self.over or any(event["kind"] == "done" for event in events)
        return {"stop": self.stop, "saves": self.saves, "hurry": self.hurry}

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def ask_to_stop(self) -> None:
        self.stop = True

    def ask_to_save(self) -> None:
        """The workers are about to be ended, to start more of them."""
        text = "the cluster has room for more workers: a checkpoint, then training goes on with them"
        self.put([{"kind": "message", "text": text}])
        self.saves += 1
        self.moved = time.monotonic()

    def is_saving(self) -> bool:
        """Whether what `ask_to_save` asked for is still to be done, and the workers get on: while a store is away
        they train, and what they have done since the last checkpoint is not to be lost."""
        return self.saved < self.saves and not self.over and time.monotonic() - self.moved < STILL_SECONDS

    def host_goes(self, ranks: Sequence[int], seconds: float | None) -> None:
        """The host of these ranks is about to be taken back, in so many seconds where that is known."""
        when = "soon" if seconds is None else f"in {seconds:.0f} s"
        text = (
            f"the host of rank {', '.join(map(str, ranks))} is taken back {when}: checkpoints every {HURRY_SECONDS:g} s"
        )
        self.put([{"kind": "warning", "text": text}])
        self.hurry = True


class _Line:
    """Rank 0's line to the desk: a thread sends what is told and asks for the wish to stop."""

    def __init__(self, desk: Any) -> None:
        import ray

        self.desk = desk
        self.wishes: dict[str, Any] = ray.get(desk.put.remote([]))
        self._saves = self.wishes["saves"]
        self._asked = time.monotonic()
        self._queue: queue.Queue[Event] = queue.Queue()
        self._open = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        self._queue.put(event)

    def stopping(self) -> bool:
        return bool(self.wishes["stop"])

    def saving(self) -> bool:
        """Whether a checkpoint is wished for now, next to those that are due."""
        once = self.wishes["saves"] > self._saves
        often = self.wishes["hurry"] and time.monotonic() - self._asked > HURRY_SECONDS
        if once or often:
            self._saves, self._asked = self.wishes["saves"], time.monotonic()
        return bool(once or often)

    def close(self) -> None:
        """Everything told so far has arrived."""
        self._open = False
        self._thread.join()
        self._send()

    def _run(self) -> None:
        while self._open:
            self._send()
            time.sleep(POLL_SECONDS)

    def _send(self) -> None:
        import ray

        events = []
        while not self._queue.empty():
            events.append(self._queue.get())
        self.wishes = ray.get(self.desk.put.remote(events))


def _train_worker(job: Job) -> None:
    """What Ray Train runs in every worker."""
    import ray
    import ray.train

    from trainers.runtime import worker
    from trainers.runtime.prometheus import Gauges

    worker.change_folder(job["cwd"])
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    desk = ray.get_actor(job["desk"])
    gauges = Gauges(Store(job["folder"]).name, rank)

    def beat(event: Event) -> None:
        gauges.take(event)
        desk.put.remote([event])

    def tell(event: Event) -> None:
        gauges.take(event)
        if event["kind"] == "epoch" and job["report"]:
            ray.train.report(event["line"])  # on every rank, equally often; it waits for Ray's controller
        if rank == 0 or event["kind"] == "machine":
            line.tell(event)

    with Watch(rank, size, gauges.host, beat, job["stall_seconds"]) as watching:
        start = _begin(job, desk, rank, size)
        if start is None:
            return
        line = _Line(desk)
        attempt = job["attempt"] * 1000 + start
        end = worker.work(job, rank, size, attempt, tell, line.stopping, line.saving, watching)
    if rank == 0 or end["status"] in ("failed", "out_of_memory"):
        line.tell(end)
    line.close()
    if end["status"] in ("failed", "out_of_memory"):
        raise RuntimeError(end["message"])  # other ranks may wait for this one: Ray ends them all


def _begin(job: Job, desk: Any, rank: int, size: int) -> int | None:
    """The how many-eth start of the workers this is, agreed by all ranks; None where the run is over already."""
    import ray
    import torch

    from trainers.runtime import worker
    from trainers.runtime.failures import death
    from trainers.training import distributed as parallel
    from trainers.training.checkpoint import Checkpoints

    start = 0
    if rank == 0:
        step = Checkpoints(Store(job["folder"])).latest_step()
        answer: dict[str, Any] = dict(ray.get(desk.begin.remote(step)))
        if answer["why"]:
            status, cause = death(answer["error"])
            ray.get(desk.put.remote([worker.ending(status, f"{answer['why']}: {cause}")]))
        start = 0 if answer["over"] else answer["start"]
    world = parallel.World(rank, size, parallel.settle_device(), "fp32")
    agreed = int(world.add_up(torch.tensor(start, device=world.device)))
    return agreed or None


def _trainer(
    job: Job, scale: Scale, resources: dict[str, float], storage: str, name: str, callbacks: Sequence[Any]
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trainers.runtime.ray_callbacks import Changes, Network

    return TorchTrainer(
        _train_worker,
        torch_config=Network(timeout_s=NETWORK_SECONDS),
        train_loop_config=dict(job),
        scaling_config=ScalingConfig(
            num_workers=scale.workers,  # type: ignore[arg-type]  # V2 takes (fewest, most); the stub is V1's
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,  # type: ignore[call-arg]  # V2's, too
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            placement_strategy=scale.placement.upper(),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=-1),  # the desk counts, and knows what would come again
            callbacks=[Changes(job["desk"]), *callbacks],  # type: ignore[list-item]
        ),
    )


def _fit(trainer: Any, failed: list[BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as error:
        failed.append(error)


def share_of_cpus(nodes: Sequence[Mapping[str, float]], workers: int) -> int:
    """CPUs of each worker: a host's, less one for data tasks, shared by the workers it gets; at least 1."""
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    if not cpus:
        return 1
    each = -(-workers // len(cpus))
    return max(1, (min(cpus) - 1) // each)


def _refuse_crowding(scale: Scale) -> None:
    """On this machine alone, without a cluster."""
    inside = "ray" in sys.modules and sys.modules["ray"].is_initialized()  # a trial of a sweep; Ray is not imported yet
    cores, workers = len(os.sched_getaffinity(0)), scale.worker_range[0]
    if not inside and not os.environ.get("RAY_ADDRESS") and workers > MOST_WORKERS_PER_CORE * cores:
        raise ValueError(
            f"workers={workers} is more than {MOST_WORKERS_PER_CORE} for each of this machine's {cores} cores; "
            f"give --workers {MOST_WORKERS_PER_CORE * cores} or fewer, or set RAY_ADDRESS to a cluster"
        )


def _refuse_to_starve(workers: int, cpus: float, cluster: Mapping[str, float]) -> None:
    """Streaming decodes in tasks of Ray Data, which wait for ever where the workers hold every CPU."""
    if cluster.get("CPU", 0) < workers * cpus + 1:
        raise ValueError(
            f"workers={workers} with {cpus:g} CPUs each leaves no CPU to decode pictures on: the cluster has "
            f"{cluster.get('CPU', 0):g}; give fewer --workers or --cpus-per-worker, or --data-mode cache"
        )


def named_resources(scale: Scale) -> dict[str, float]:
    """What a worker needs apart from CPUs, GPUs and memory. Ray marks hosts by a trace of their kind of GPU."""
    kind = scale.accelerator_type
    return {**({} if kind is None else {f"accelerator_type:{kind}": 0.001}), **scale.resources}


def refuse_what_never_fits(workers: int, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ValueError where neither the hosts that are there nor those the autoscaler can add hold the workers."""
    from ray._private.state import state

    places = sum(min(int(node.get(name, 0) // need) for name, need in resources.items()) for node in nodes)
    if places >= workers:
        return
    addable = state.get_max_resources_from_cluster_config() or {}
    if all(addable.get(name, 0) >= need * workers for name, need in resources.items()):
        return
    has = "; ".join(_spell_host(node) for node in nodes)
    need = ", ".join(f"{value:g} {name}" for name, value in resources.items())
    fewer = f"give --workers {places} or fewer, or ask for less for each" if places else "ask for what a host has"
    raise ValueError(
        f"workers={workers} with {need} each do not fit: the cluster has {len(nodes)} hosts ({has}) and its "
        f"autoscaler adds none that would do; {fewer}"
    )


def _spell_host(node: Mapping[str, float]) -> str:
    """What a host has, for people; Ray's own entries (its address, memory) are left out."""
    mine = {name: amount for name, amount in node.items() if not name.startswith(("node:", "accelerator_type:"))}
    others = [f"{amount:g} {name}" for name, amount in mine.items() if "memory" not in name and len(name) > 3]
    kinds = [name.partition(":")[2] for name in node if name.startswith("accelerator_type:")]
    return ", ".join([f"{node.get('CPU', 0):g} CPUs", f"{node.get('GPU', 0):g} GPUs", *kinds, *others])
