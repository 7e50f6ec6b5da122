"""All that is used of Ray and that Ray does not promise to keep: private names, constants, and prose that is parsed.

No other file imports, overrides or patches a private name of Ray (tests/test_internals.py). Each entry below names the
test that fails when Ray changes it; unless another is named that is tests/runtime/test_ray_internals.py. Importing this
module imports nothing of Ray: functions do, when they are called.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from trainers.runtime.ray_folder import ray_folder

if TYPE_CHECKING:
    import requests
    from ray.tune.experiment import Trial

PathTest = Callable[[Path], bool]


# Nodes and resources -----------------------------------------------------------------------------------------

# test_ray_itself_marks_the_node_of_its_head
HEAD_NODE = "node:__internal_head__"
"""A resource of which the head's node has 1.0, and no other node has any."""


def start_on_loopback(cpus: int, dashboard: bool) -> None:
    """Start a Ray of our own, which listens on this machine alone, and connect to it.

    Args:
        cpus: So many CPUs it takes this machine for.
        dashboard: Whether to start Ray's dashboard.

    Raises:
        ValueError: There is no folder for its sockets.
    """
    import ray

    # Its workers are as nice as this process. By itself Ray makes them the last that get a core: beside any other
    # program they would stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")  # test_a_ray_of_our_own_has_a_folder_and_workers_that_are_nice

    with _loopback_alone(), ray_folder() as folder:
        ray.init(
            address="local",
            _temp_dir=str(folder),  # test_a_ray_of_our_own_has_a_folder_and_workers_that_are_nice
            _node_ip_address="127.0.0.1",  # test_a_ray_of_our_own_listens_on_loopback
            num_cpus=cpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def connect(address: str) -> None:
    """Connect to a cluster; to one on loopback without listening anywhere else.

    Args:
        address: Of its head, as `ray.init` takes it.
    """
    import ray

    if address == "auto":  # as Ray itself finds it
        from ray._private import services  # test_ray_still_has_what_we_use

        with _loopback_alone():
            address = services.canonicalize_bootstrap_address(address) or address
    host = address.rpartition("://")[2].rpartition(":")[0]
    local = host in ("localhost", "[::1]") or host.startswith("127.")
    with _loopback_alone() if local else contextlib.nullcontext():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


@contextlib.contextmanager
def _loopback_alone() -> Iterator[None]:
    """Ray takes loopback for this host's address. By itself it replaces that by another one, and listens on all.

    It reads the variable when it is imported, which may have been long ago; its processes read it when they start.
    """
    from ray._private import ray_constants  # test_ray_still_has_what_we_use

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name) if given is None else os.environ.update({name: given})


def addable_resources() -> dict[str, float] | None:
    """What the cluster's autoscaler could grow it to, in all. Ray is connected to.

    Returns:
        Empty where there is no autoscaler; None where there is one that does not tell, as those that come with Ray
        2.60: none of them reports what it was configured with (ray-project/ray pull request 63012). Ray's client
        (ray://) does not tell, either.
    """
    if is_client():
        return None
    # test_ray_still_has_what_we_use
    from ray._private.state import state

    known = state.get_max_resources_from_cluster_config()
    return None if known is None and _has_autoscaler() else dict(known or {})


def _has_autoscaler() -> bool:
    """Whether something adds hosts. Ray runs its autoscaler beside every head, but without a configuration it only
    looks on, and takes each host for a kind of its own, called node_ID; one that was configured names kinds. The second
    version reports no such list, but is only on where somebody has configured it, and its hosts bear their kind."""
    # test_an_autoscaler_is_noticed
    import ray
    from ray import _raylet
    from ray._private import ray_constants
    from ray.experimental import internal_kv

    if not internal_kv._internal_kv_initialized():  # not connected: there is none to ask
        return False
    raylet: Any = _raylet  # compiled, without types
    space = raylet.GCS_AUTOSCALER_STATE_NAMESPACE
    if internal_kv._internal_kv_get(raylet.GCS_AUTOSCALER_V2_ENABLED_KEY, namespace=space) == b"1":
        return any("ray.io/node-group" in (node.get("Labels") or {}) for node in ray.nodes())
    status = internal_kv._internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    report = json.loads(status).get("autoscaler_report") or {} if status else {}
    kinds = [*(report.get("active_nodes") or ()), *(report.get("idle_nodes") or ())]
    return any(re.fullmatch("node_[0-9a-f]+", kind) is None for kind in kinds)


def is_client() -> bool:
    """Whether this process talks to the cluster through Ray's client (ray://), which does not see its state."""
    from ray.util.client import ray as client

    return bool(client.is_connected())


def free_resources() -> dict[str, dict[str, float]] | None:
    """What each node has left: id -> resources; None: not known. (`ray.available_resources` adds the nodes up.)"""
    if is_client():
        return None
    # test_ray_still_has_what_we_use
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


# What a job uploads ------------------------------------------------------------------------------------------


def upload_limit() -> int:
    """Bytes that Ray takes as a job's working directory."""
    # test_ray_still_has_what_we_use
    from ray._private.runtime_env import packaging

    return int(packaging.GCS_STORAGE_MAX_SIZE)


def walk_upload(
    folder: Path,
    excludes: Sequence[str],
    visit: Callable[[Path], None],
    *,
    skip: PathTest = lambda path: False,
    gitignore: bool = True,
) -> None:
    """Call `visit` for each file and folder that Ray would upload of `folder`.

    Args:
        folder: An absolute path.
        excludes: Patterns as in .gitignore, relative to `folder`.
        visit: Takes absolute paths.
        skip: Whether a path, and what is below it, stays out besides.
        gitignore: Whether .gitignore and .rayignore files count.
    """
    # test_a_walk_skips_what_ray_would_not_upload
    from ray._private.runtime_env import packaging

    excluded = [packaging._get_excludes(folder, list(excludes)), skip]
    packaging._dir_travel(folder, excluded, visit, gitignore, logging.getLogger("ray"))


# Jobs --------------------------------------------------------------------------------------------------------

# test_the_loggers_that_are_silenced_are_those_of_a_module
JOB_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.working_dir",
)
"""What reports on stderr how an upload proceeds."""

# test_ray_still_says_what_we_read
JOB_LOG_LINES = ("Runtime env is setting up.", "Running entrypoint for job ")
"""How lines of Ray's own in a job's log begin."""


class JobClientHooks:
    """The first base of a class that derives from Ray's JobSubmissionClient: requests and refusals to override.

    Ray's client has no time limits, and raises RuntimeError for everything that is refused.
    """

    def request(self, send: Callable[..., requests.Response], method: str, endpoint: str) -> requests.Response:
        """Makes every request of the client.

        Args:
            send: Makes the request, with the keyword arguments of `requests.request` that it is called with.
            method: As in "GET".
            endpoint: As in "/api/version".
        """
        return send()

    def refuse(self, response: requests.Response) -> None:
        """Raises the error that a response stands for, whose status is none of success."""
        super()._raise_error(response)  # type: ignore[misc]

    def verify_certificates(self) -> None:
        """By the certificates of this machine, in the stream of a log too, where Ray's None makes aiohttp give up."""
        # test_the_job_client_still_reads_the_context_that_we_set
        self._ssl_context = ssl.create_default_context()

    # Both: test_ray_still_has_what_we_use; tests/cluster/test_submit.py calls them.
    def _do_request(self, method: str, endpoint: str, **arguments: object) -> requests.Response:
        plain: Callable[..., requests.Response] = super()._do_request  # type: ignore[misc]
        return self.request(lambda **more: plain(method, endpoint, **arguments, **more), method, endpoint)

    def _raise_error(self, r: requests.Response) -> None:
        self.refuse(r)


def is_known_job(refusal: str, job: str) -> bool:
    """Whether Ray refused to start a job because it has one of that name."""
    return f"{job} already exists" in refusal  # test_ray_still_says_what_we_read


def lacks_agent(refusal: str) -> bool:
    """Whether Ray refused to start a job because no dashboard agent is up (yet) that would."""
    return "No available agent" in refusal  # test_ray_still_says_what_we_read


def explain_refusal(error: Exception) -> str | None:
    """Why a cluster that answers takes no process like this one, and what to do; None of other errors."""
    from ray.exceptions import AuthenticationError

    if isinstance(error, AuthenticationError) or AuthenticationError.__name__ in str(error.__cause__):
        return (
            "requires another token: copy ~/.ray/auth_token of its head to ~/.ray/auth_token here, with "
            "mode 600, or set RAY_AUTH_TOKEN_PATH to such a file"
        )
    # test_a_cluster_of_other_versions_is_told_from_one_that_does_not_answer
    versions = re.findall(r"(Ray|Python): (\S+)", str(error))
    if "Version mismatch" not in str(error) or len(versions) != 4:
        return None
    theirs, ours = (" and ".join(f"{name} {number}" for name, number in half) for half in (versions[:2], versions[2:]))
    return (
        f"runs {theirs}, and this process {ours}: install the same here, or send the command to the cluster: "
        "python -m cluster submit"
    )


# Ray's words on a process that is gone -----------------------------------------------------------------------

# All of these: test_ray_still_says_what_we_read, and tests/runtime/test_failures.py; tests/tune_spaces/test_sweeping.py
# and tests/runtime/test_ray_train.py end real processes (slow).
_MEMORY_MONITOR = "running low on memory"
_VANISHED = "connection error code 2"
_DETAIL = "Worker exit detail: "


class Death(NamedTuple):
    """What the text of an error of Ray says of the process that died."""

    by_memory_monitor: bool
    """Ray's memory monitor ended it: its host was running out of memory."""
    vanished_at: tuple[str, int] | None
    """(address, pid) of one that left without a word, if known: killed by the kernel, or crashed."""
    detail: str
    """The last line, for people."""


def parse_death(error: str) -> Death:
    """Read the text of Ray's error."""
    place = re.search(r"^\s*pid: (\d+)$.*?^\s*ip: (\S+)$", error, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["no reason given"]
    return Death(
        by_memory_monitor=_MEMORY_MONITOR in error,
        vanished_at=(place[2], int(place[1])) if place and _VANISHED in error else None,
        detail=lines[-1].rpartition(_DETAIL)[2],
    )


# Ray Train ---------------------------------------------------------------------------------------------------


class ControllerListener(Protocol):
    """What is done when Ray Train's controller restarts workers, and why; called in the controller's process."""

    def preempting(self, ranks: Sequence[int], deadline: float | None) -> None:
        """The hosts of `ranks` are taken back, at `deadline`, in seconds since the epoch, where that is known."""

    def resizing(self) -> None:
        """The workers are about to be ended, for a group of another size."""

    def restarting(self, error: str) -> None:
        """Workers died, as `error` says, and are about to be restarted."""

    def rescheduling(self) -> None:
        """No room was found for the workers; it is about to be looked for again."""


def controller_callback(listener: ControllerListener) -> object:
    """A callback for `ray.train.RunConfig`; Ray's public `UserCallback` hears nothing of the controller's states."""
    # test_controller_states_are_heard; tests/runtime/test_ray_train.py runs through them (slow).
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller import state as states

    class Callback(ControllerCallback):
        def after_controller_state_update(self, previous_state: object, current_state: Any) -> None:
            match current_state:
                case states.PreemptingState():
                    info = current_state.preemption_info
                    listener.preempting(info.preempted_ranks, info.deadline_ms and info.deadline_ms / 1000)
                case states.ResizingState():
                    listener.resizing()
                case states.RestartingState():
                    listener.restarting(str(current_state.training_failed_error))
                case states.ReschedulingState():
                    listener.rescheduling()

    return Callback()


def shorten_claims(seconds: int) -> None:
    """What an elastic run claims of the cluster becomes void so long after its driver was killed (Ray: 180 s).

    A live run renews its claim every 20 s.
    """
    # test_claims_become_void_sooner
    from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

    autoscaling_coordinator_client.AUTOSCALING_REQUESTS_EXPIRE_TIME_S = seconds


def refresh_cluster_view() -> Any:
    """Bring Ray Train's view of the cluster up to date, which it does itself every 20 s; done when this is ready.

    Returns:
        A reference to wait for with `ray.get`.
    """
    # test_the_view_of_the_cluster_is_refreshed
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    return get_or_create_autoscaling_coordinator().get_reserved_resources.remote("trainyard", recompute=True)


# Ray Tune ----------------------------------------------------------------------------------------------------


class ExploreHook:
    """The first base of a class that derives from Tune's PopulationBasedTraining: says what a trial keeps of its own.

    Ray's `custom_explore_fn` sees the configuration of the other trial alone.
    """

    def own_config(self, trial: Trial) -> dict[str, object]:
        """What stays in the configuration of a trial that takes over another's."""
        return {}

    # test_a_trial_keeps_its_own_part_of_a_configuration
    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, object], dict[str, object]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)  # type: ignore[misc]
        return {**config, **self.own_config(trial)}, operations


@contextlib.contextmanager
def out_of_memory_is_a_death() -> Iterator[None]:
    """A trial that Ray's memory monitor ends is lost as if it had died; Tune would end the sweep with an error."""
    # test_tune_takes_what_the_memory_monitor_does_for_the_death_of_a_trial
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    manager_type: Any = RayActorManager
    plain = manager_type._actor_task_failed

    def failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        plain(manager, tracked_actor_task, exception)

    manager_type._actor_task_failed = failed
    try:
        yield
    finally:
        manager_type._actor_task_failed = plain


def last_failure(error_file: str | os.PathLike[str] | None) -> str:
    """What Ray said when a trial's process died, the last time; Tune's own `get_error` reads where it is not yet.

    Args:
        error_file: `error_file` of Tune's trial, to which each failure is appended; None where there was none.

    Returns:
        The text of the error, "" where none was written.
    """
    try:
        return "" if error_file is None else Path(error_file).read_text().rpartition("Failure # ")[2]
    except OSError:
        return ""
