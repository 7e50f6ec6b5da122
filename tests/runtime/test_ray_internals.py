"""What is used of Ray without a promise is still there, in the version that is installed."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray

from trainers.runtime import ray_internals
from trainers.runtime.ray_internals import (
    ExploreHook,
    JobClientHooks,
    connect,
    controller_callback,
    explain_refusal,
    last_failure,
    out_of_memory_is_a_death,
    parse_death,
    refresh_cluster_view,
    shorten_claims,
    start_on_loopback,
    upload_limit,
    walk_upload,
)
from trainers.runtime.shortage import Shortage

ROOT = Path(__file__).parents[2]
RAY = Path(ray.__file__).parent
TRAIN = "ray.train.v2._internal.execution"
COORDINATOR = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("ray", "init", "address num_cpus include_dashboard log_to_driver logging_level"),
        ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", ""),
        ("ray._private.ray_constants", "ENABLE_RAY_CLUSTERS_ENV_VAR", ""),
        ("ray._private.state", "state.get_max_resources_from_cluster_config", ""),
        ("ray._private.state", "available_resources_per_node", ""),
        ("ray._private.services", "canonicalize_bootstrap_address", "addr"),
        ("ray._private.ray_constants", "DEBUG_AUTOSCALING_STATUS", ""),
        ("ray._raylet", "GCS_AUTOSCALER_STATE_NAMESPACE", ""),
        ("ray.experimental.internal_kv", "_internal_kv_get", "key namespace"),
        ("ray.experimental.internal_kv", "_internal_kv_initialized", ""),
        ("ray._private.runtime_env.packaging", "GCS_STORAGE_MAX_SIZE", ""),
        ("ray._private.runtime_env.packaging", "_get_excludes", "path excludes"),
        ("ray._private.runtime_env.packaging", "_dir_travel", "path excludes handler include_gitignore logger"),
        ("ray.job_submission", "JobSubmissionClient._do_request", "self method endpoint kwargs"),
        ("ray.job_submission", "JobSubmissionClient._raise_error", "self r"),
        (f"{TRAIN}.callback", "ControllerCallback.after_controller_state_update", "self previous_state current_state"),
        (f"{TRAIN}.controller.state", "PreemptingState", "preemption_info"),
        (f"{TRAIN}.controller.state", "ResizingState", ""),
        (f"{TRAIN}.controller.state", "RestartingState", "training_failed_error"),
        (f"{TRAIN}.controller.state", "ReschedulingState", ""),
        (f"{TRAIN}.scaling_policy.autoscaling_coordinator_client", "AUTOSCALING_REQUESTS_EXPIRE_TIME_S", ""),
        (COORDINATOR, "get_or_create_autoscaling_coordinator", ""),
        (COORDINATOR, "_AutoscalingCoordinatorActor.get_reserved_resources", "self requester_id recompute"),
        ("ray.tune.schedulers", "PopulationBasedTraining._get_new_config", "self trial trial_to_clone"),
        (
            "ray.air.execution._internal.actor_manager",
            "RayActorManager._actor_task_failed",
            "self tracked_actor_task exception",
        ),
        ("ray.tune.experiment", "Trial.error_file", ""),
    ],
)
def test_ray_still_has_what_we_use(module: str, name: str, arguments: str) -> None:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if arguments:
        assert set(arguments.split()) <= set(inspect.signature(found).parameters)


def test_the_job_client_still_reads_the_context_that_we_set() -> None:
    from ray.job_submission import JobSubmissionClient

    assert "ssl=self._ssl_context" in inspect.getsource(JobSubmissionClient)


@pytest.mark.parametrize("name", ray_internals.JOB_LOGGERS)
def test_the_loggers_that_are_silenced_are_those_of_a_module(name: str) -> None:
    module = importlib.import_module(name)
    assert name in {found.name for found in vars(module).values() if isinstance(found, logging.Logger)}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("dashboard/modules/job/job_manager.py", ray_internals.JOB_LOG_LINES[0]),
        ("dashboard/modules/job/job_supervisor.py", ray_internals.JOB_LOG_LINES[1]),
        ("dashboard/modules/job/job_manager.py", "{submission_id} already exists"),
        ("dashboard/modules/job/job_head.py", "No available agent"),
        ("tune/experiment/trial.py", "Failure # {}"),
        ("exceptions.py", "\\tpid: {cause.pid}"),
        ("exceptions.py", "\\tip: {cause.node_ip_address}"),
        ("core/src/ray/raylet/raylet", "running low on memory"),
        ("core/src/ray/raylet/raylet", "connection error code "),
    ],
)
def test_ray_still_says_what_we_read(file: str, words: str) -> None:
    with (RAY / file).open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        assert text.find(words.encode()) >= 0


@pytest.mark.parametrize(
    ("kinds", "second", "labels", "found"),
    [
        (None, False, {}, False),  # it has not looked yet
        ({"active_nodes": {"node_0a1b": 1}}, False, {}, False),
        ({"active_nodes": {}, "idle_nodes": None}, False, {}, False),
        ({"active_nodes": {"ray.head.default": 1}}, False, {}, True),
        ({"active_nodes": {}, "idle_nodes": {"headgroup": 1}}, False, {}, True),
        (None, True, {}, False),
        (None, True, {"ray.io/node-group": "headgroup"}, True),
        ({"active_nodes": {"node_0a1b": 1}}, False, {"ray.io/node-group": "headgroup"}, False),
    ],
)
def test_an_autoscaler_is_noticed(
    kinds: Any, second: bool, labels: dict[str, str], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {
        b"__autoscaling_status": json.dumps({"autoscaler_report": kinds}).encode() if kinds else None,
        ray._raylet.GCS_AUTOSCALER_V2_ENABLED_KEY.encode(): b"1" if second else b"0",  # type: ignore[attr-defined]
    }
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_initialized", lambda: True)
    monkeypatch.setattr(
        "ray.experimental.internal_kv._internal_kv_get",
        lambda key, namespace=None: stored[key if isinstance(key, bytes) else key.encode()],
    )
    monkeypatch.setattr("ray.nodes", lambda: [{"Labels": {}}, {"Labels": labels}])
    monkeypatch.setattr("ray._private.state.state.get_max_resources_from_cluster_config", lambda: None)
    assert ray_internals.addable_resources() == (None if found else {})


def test_through_rays_client_nothing_is_known_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.client.ray.is_connected", lambda: True)
    assert ray_internals.addable_resources() is None
    assert ray_internals.free_resources() is None
    shortage = Shortage(1, {"CPU": 1.0})
    monkeypatch.setattr(shortage, "_next", 0.0)
    assert shortage.check() is None


@pytest.mark.parametrize(
    ("version", "python"), [("2.40.0", "3.11.0"), ("2.60.0", "3.9.1"), ("3.0.0.dev0", "3.13.0rc1")]
)
def test_a_cluster_of_other_versions_is_told_from_one_that_does_not_answer(version: str, python: str) -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as raised:
        check_version_info({"ray_version": version, "python_version": python}, "node 10.0.0.1")
    said = explain_refusal(raised.value)
    assert said is not None
    assert said.startswith(
        f"runs Ray {version} and Python {python}, and this process Ray {ray.__version__} and Python 3"
    )
    assert "python -m cluster submit" in said
    assert explain_refusal(RuntimeError("Ray: 1 Python: 2")) is None


def test_ray_itself_marks_the_node_of_its_head() -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    assert ray_internals.HEAD_NODE == HEAD_NODE_RESOURCE_NAME


@pytest.mark.parametrize(
    ("start", "loopback"),
    [
        (lambda: start_on_loopback(3, dashboard=False), True),
        (lambda: connect("127.0.0.1:6379"), True),
        (lambda: connect("localhost:6379"), True),
        (lambda: connect("ray://[::1]:10001"), True),
        (lambda: connect("10.0.0.7:6379"), False),
        (lambda: connect("head.example:6379"), False),
    ],
)
def test_ray_keeps_to_loopback_where_the_cluster_does(start: Callable[[], None], loopback: bool) -> None:
    check_loopback(start, loopback)


@pytest.mark.parametrize(
    ("found", "loopback"), [("127.0.0.1:6379", True), ("10.0.0.7:6379", False), ("192.168.1.2:6380", False)]
)
def test_ray_keeps_to_loopback_where_the_cluster_that_it_finds_does(
    found: str, loopback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {found})
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)
    check_loopback(lambda: connect("auto"), loopback)


def check_loopback(start: Callable[[], None], loopback: bool) -> None:
    from ray._private import ray_constants, services

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    seen: list[tuple[str | None, bool]] = []
    with (
        mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", True),
        mock.patch.dict(os.environ),
        mock.patch("ray.init", side_effect=lambda **_: seen.append((os.environ.get(name), found()))),
    ):
        os.environ.pop(name, None)

        def found() -> bool:
            """Whether Ray takes loopback for this host's address."""
            with mock.patch("ray._private.worker._global_node", None):
                return bool(services.get_node_ip_address() == "127.0.0.1")

        elsewhere = found()
        start()
        assert seen == [("0", True) if loopback else (None, elsewhere)]
        assert (os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER) == (None, True)
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_a_ray_of_our_own_listens_on_loopback() -> None:
    from ray._private import worker

    assert 'kwargs.pop("_node_ip_address", None)' in inspect.getsource(worker.init)
    with mock.patch("ray.init") as init:
        start_on_loopback(3, dashboard=False)
    arguments = init.call_args.kwargs
    assert (arguments["_node_ip_address"], arguments["num_cpus"]) == ("127.0.0.1", 3)


_NICE = """
import os
import ray
from trainers.runtime.ray_internals import start_on_loopback

os.nice(1)
start_on_loopback(2, dashboard=True)
print(os.nice(0), ray.get(ray.remote(lambda: os.nice(0)).remote()))
"""


@pytest.mark.slow
def test_a_ray_of_our_own_has_a_folder_and_workers_that_are_nice(tmp_path: Path) -> None:
    """As nice as their driver, and sockets that have room where temporary files lie deep (verl-project/verl 1120)."""
    deep = tmp_path / ("a" * max(1, 100 - len(str(tmp_path))))
    deep.mkdir()
    others = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_worker_niceness")}
    environment = {**others, "TMPDIR": str(deep)}
    argv = [sys.executable, "-c", _NICE]
    done = subprocess.run(argv, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr
    ours, theirs = map(int, done.stdout.split()[-2:])
    assert ours == theirs > 0


def test_a_walk_skips_what_ray_would_not_upload(tmp_path: Path) -> None:
    for name in ("mine.py", "notes.txt", "data/one.png", "runs/run.json", "kept/a.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_text("notes.txt\n")

    def walked(**options: Any) -> set[str]:
        seen: set[str] = set()
        walk_upload(tmp_path, ["*.pyc", "/data"], lambda path: seen.add(path.name), **options)
        return seen & {"mine.py", "notes.txt", "one.png", "run.json", "a.pyc"}

    assert walked() == {"mine.py", "run.json"}
    assert walked(skip=lambda path: path.name == "runs") == {"mine.py"}
    assert walked(gitignore=False) == {"mine.py", "notes.txt", "run.json"}
    assert upload_limit() >= 100 * 2**20


def test_a_job_client_sends_and_refuses_as_its_class_says() -> None:
    class Plain:
        def _do_request(self, method: str, endpoint: str, **arguments: Any) -> Any:
            return method, endpoint, arguments

    class Client(JobClientHooks, Plain):
        def request(self, send: Any, method: str, endpoint: str) -> Any:
            return send(timeout=len(endpoint))

        def refuse(self, response: Any) -> None:
            raise ValueError(response)

    assert Client()._do_request("PUT", "/api", data=b"x") == ("PUT", "/api", {"data": b"x", "timeout": 4})
    with pytest.raises(ValueError, match="503"):
        Client()._raise_error("503")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "by_monitor", "vanished_at", "detail"),
    [
        ("worker(s) were killed due to the node running low on memory.\nIt was 1 GB", True, None, "It was 1 GB"),
        ("dead\n\tpid: 7\n\tip: 10.0.0.2\nWorker exit detail: connection error code 2.", False, ("10.0.0.2", 7), ""),
        ("dead\n\tpid: 7\n\tip: 10.0.0.2\nWorker exit detail: exit code 4.", False, None, "exit code 4."),
        ("", False, None, "no reason given"),
    ],
)
def test_messages_of_ray_about_a_death_are_parsed(error: str, by_monitor: bool, vanished_at: Any, detail: str) -> None:
    death = parse_death(error)
    assert (death.by_memory_monitor, death.vanished_at) == (by_monitor, vanished_at)
    assert detail in death.detail


def test_controller_states_are_heard() -> None:
    from ray.train.v2._internal.execution.controller import state as states

    listener = mock.Mock()
    hear: Any = controller_callback(listener)
    for deadline in (5000, None):
        info = mock.Mock(preempted_ranks=[1], deadline_ms=deadline)
        hear.after_controller_state_update(None, states.PreemptingState(info, 0.0))
    hear.after_controller_state_update(None, states.ResizingState(mock.Mock()))
    hear.after_controller_state_update(None, states.RestartingState(RuntimeError("gone")))  # type: ignore[arg-type]
    hear.after_controller_state_update(None, states.ReschedulingState(RuntimeError("no room")))  # type: ignore[arg-type]
    hear.after_controller_state_update(None, states.RunningState())
    assert listener.mock_calls == [
        mock.call.preempting([1], 5.0),
        mock.call.preempting([1], None),
        mock.call.resizing(),
        mock.call.restarting("gone"),
        mock.call.rescheduling(),
    ]


def test_a_controller_callback_travels_to_the_controller() -> None:
    from ray import cloudpickle

    from trainers.runtime.ray_callbacks import Changes

    cloudpickle.loads(cloudpickle.dumps(controller_callback(Changes("coordinator"))))


def test_claims_become_void_sooner() -> None:
    from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client as client

    with (
        mock.patch.object(client, "AUTOSCALING_REQUESTS_EXPIRE_TIME_S", 180),
        mock.patch.object(client, "build_train_resource_request", return_value=([], [])),
        mock.patch.object(client, "get_or_create_autoscaling_coordinator") as coordinator,
        mock.patch("ray.get"),
    ):
        shorten_claims(30)
        client.TrainAutoscalingCoordinatorClient("me").send_resource_request(mock.Mock(), 1)
    assert coordinator().request_resources.remote.call_args.kwargs["expire_after_s"] == 30


def test_the_view_of_the_cluster_is_refreshed() -> None:
    with mock.patch(f"{COORDINATOR}.get_or_create_autoscaling_coordinator") as coordinator:
        refresh_cluster_view()
    method = coordinator().get_reserved_resources.remote
    module = importlib.import_module(COORDINATOR)
    inspect.signature(module._AutoscalingCoordinatorActor.get_reserved_resources).bind(None, *method.call_args.args)
    assert method.call_args.kwargs == {"recompute": True}


def test_a_trial_keeps_its_own_part_of_a_configuration() -> None:
    from ray.tune.schedulers import PopulationBasedTraining

    class Population(ExploreHook, PopulationBasedTraining):
        def own_config(self, trial: Any) -> dict[str, Any]:
            return {"name": trial.config["name"]}

    population = Population(
        time_attr="epoch", metric="score", mode="max", perturbation_interval=1, hyperparam_mutations={"lr": [0.1]}
    )
    one, other = (mock.Mock(config={"name": name, "lr": 0.1}) for name in ("one", "other"))
    config, _ = population._get_new_config(one, other)
    assert config == {"name": "one", "lr": 0.1}


def test_the_last_failure_of_a_trial_is_read(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    assert last_failure(None) == last_failure(file) == ""
    file.write_text("Failure # 1 (occurred at noon)\nfirst\nFailure # 2 (occurred at one)\nsecond\n")
    assert last_failure(file) == "2 (occurred at one)\nsecond\n"


def test_tune_takes_what_the_memory_monitor_does_for_the_death_of_a_trial() -> None:
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    manager, seen = RayActorManager(resource_manager=mock.Mock()), []
    actor = mock.Mock(_on_error=None)
    task = mock.Mock(_tracked_actor=actor, _on_error=lambda actor, error: seen.append(error))
    with mock.patch.object(manager, "_cleanup_actor"), out_of_memory_is_a_death():
        manager._actor_task_failed(tracked_actor_task=task, exception=OutOfMemoryError("running low on memory"))
    assert isinstance(seen[0], RayActorError)
    assert "running low on memory" in str(seen[0])
    with pytest.raises(RuntimeError):  # what Ray does by itself; where it no longer does, this can go
        manager._actor_task_failed(tracked_actor_task=task, exception=OutOfMemoryError("running low on memory"))
