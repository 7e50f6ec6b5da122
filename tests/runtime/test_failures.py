"""Why a process ended, as diagnosed from Ray's error and from the process's own last words."""

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
def test_the_cause_of_a_process_death_is_diagnosed(error: str, facts: dict[str, Any], status: str, why: str) -> None:
    host = mock.Mock(id="a", address="10.0.0.2")
    with (
        mock.patch.object(failures, "ray_hosts", return_value=[host, mock.Mock(id="b", address="10.0.0.3")]),
        mock.patch.object(failures, "on_every", return_value={"a": facts}) as asked,
    ):
        diagnosis = failures.diagnose(error)
    assert diagnosis[0] == status
    assert why in diagnosis[1]
    assert len(diagnosis[1].splitlines()) == 1
    for call in asked.call_args_list:
        assert (call.args[0], call.args[2]) == ([host], {"pid": 4838})
