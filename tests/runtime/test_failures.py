"""What becomes of a process is told from Ray's words, and from its own last ones."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from trainers.runtime import failures

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: Worker
\tpid: 4838
\tip: 10.0.0.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: """
VANISHED = f"{DIED}Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include..."


@pytest.mark.parametrize(
    ("error", "facts", "status", "why"),
    [
        (VANISHED, {"fault": None}, "out_of_memory", "SIGKILL"),
        (VANISHED, {"fault": "Segmentation fault"}, "failed", "the process crashed: Segmentation fault"),
        (VANISHED, {"error": "no answer"}, "failed", "connection error"),  # its host is gone, too
        (f"{DIED}Worker exits with an exit code 4.", {"fault": None}, "failed", "the process died: Worker exits with"),
        ("1 worker(s) were killed due to the node running low on memory. It was", {}, "out_of_memory", "monitor"),
        ("", {}, "failed", "no reason given"),
    ],
)
def test_why_a_process_is_gone(error: str, facts: dict[str, Any], status: str, why: str) -> None:
    host = mock.Mock(id="a", address="10.0.0.2")
    with (
        mock.patch.object(failures, "ray_hosts", return_value=[host, mock.Mock(id="b", address="10.0.0.3")]),
        mock.patch.object(failures, "on_every", return_value={"a": facts}) as asked,
    ):
        told = failures.diagnose(error)
    assert told[0] == status
    assert why in told[1]
    assert len(told[1].splitlines()) == 1
    for call in asked.call_args_list:
        assert (call.args[0], call.args[2]) == ([host], {"pid": 4838})


def test_tune_takes_what_the_memory_monitor_does_for_the_death_of_a_trial() -> None:
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    from tune_spaces.ray_tune import out_of_memory_is_a_death

    manager, seen = RayActorManager(resource_manager=mock.Mock()), []
    actor = mock.Mock(_on_error=None)
    task = mock.Mock(_tracked_actor=actor, _on_error=lambda actor, error: seen.append(error))
    with mock.patch.object(manager, "_cleanup_actor"), out_of_memory_is_a_death():
        manager._actor_task_failed(tracked_actor_task=task, exception=OutOfMemoryError("running low on memory"))
    assert isinstance(seen[0], RayActorError)
    assert "running low on memory" in str(seen[0])
    with pytest.raises(RuntimeError):  # what Ray does by itself; where it no longer does, this can go
        manager._actor_task_failed(tracked_actor_task=task, exception=OutOfMemoryError("running low on memory"))
