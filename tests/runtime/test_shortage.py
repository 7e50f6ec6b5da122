"""What is said of workers that wait. No Ray runs here."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from trainers.runtime import shortage
from trainers.runtime.shortage import Shortage, explain

HOSTS = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]
OTHER = "job-1 (python -m trainers train mnist.cnn)"


@pytest.mark.parametrize(
    ("workers", "resources", "free", "held", "words"),
    [
        (
            2,
            {"CPU": 3.0},
            [{"CPU": 1.0}, {"CPU": 4.0}],
            {OTHER: {"CPU": 3.0}},
            ["5 of 8 CPU are free, and 2 x 3 needed", f"{OTHER} holds 3 CPU", "--cpus-per-worker asks for less"],
        ),
        (
            1,
            {"CPU": 1.0, "GPU": 1.0},
            [{"CPU": 3.0}, {"CPU": 3.0, "GPU": 0.5}],
            {OTHER: {"CPU": 2.0, "GPU": 1.5}, "a job": {"CPU": 1.0}},
            ["0.5 of 2 GPU are free, and 1 x 1 needed", f"{OTHER} holds 1.5 GPU", "--gpus-per-worker asks for less"],
        ),
        (2, {"CPU": 1.0}, [{}, {}], {}, ["0 of 8 CPU are free, and 2 x 1 needed"]),
        (
            2,
            {"CPU": 2.0, "GPU": 1.0},
            [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 4.0}],  # each is there, but not on one host
            {OTHER: {"GPU": 1.0, "CPU": 3.0}},
            ["1 of 2 GPU are free", "holds 1 GPU"],
        ),
        (3, {"GPU": 1.0}, [{}, {}], {}, ["hold 2 of 3 workers of 1 GPU each", "wait for more hosts"]),
    ],
)
def test_what_is_short_and_who_holds_it_is_named(
    workers: int, resources: dict[str, float], free: list[dict[str, float]], held: Any, words: list[str]
) -> None:
    text = explain(workers, resources, free, HOSTS, held)
    for word in words:
        assert word in text
    assert "a job holds" not in text  # it holds nothing that is short


@pytest.mark.parametrize("resources", [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 0.5}, {"CPU": 0.0, "GPU": 1.0}])
def test_where_there_is_room_nothing_is_short(resources: dict[str, float]) -> None:
    assert explain(2, resources, HOSTS, HOSTS, {}) == ""


def test_nobody_is_told_to_ask_for_less_than_one_cpu() -> None:
    assert "--cpus-per-worker" not in explain(2, {"CPU": 1.0}, [{}, {}], HOSTS, {})


def test_the_same_line_is_said_once_and_a_change_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter(range(1000, 2000, 100))
    monkeypatch.setattr(shortage.time, "monotonic", lambda: float(next(hours)))
    free = {"one": {"CPU": 1.0}}
    nodes = [{"NodeID": "one", "Alive": True, "Resources": {"CPU": 4.0}}]
    with (
        mock.patch("ray.nodes", return_value=nodes),
        mock.patch("ray.get_runtime_context"),
        mock.patch.object(shortage, "free_resources", return_value=free),
        mock.patch.object(shortage, "_held_by_jobs", return_value={OTHER: {"CPU": 3.0}}),
    ):
        watch = Shortage(1, {"CPU": 2.0})
        first = watch.check()
        assert first is not None
        assert OTHER in first["text"]
        assert watch.check() is None
        free["one"] = {"CPU": 0.5}
        assert watch.check() is not None
        free["one"] = {"CPU": 4.0}
        assert watch.check() is None


def listed(**own: Any) -> Any:
    """What the cluster lists: two jobs, of which the first has a placement group and actors; `own` changes it."""
    jobs = [mock.Mock(job_id="01", submission_id="job-1", metadata={"command": "python -m trainers train mnist.cnn"})]
    groups = [mock.Mock(creator_job_id="01", bundles=[{"unit_resources": {"CPU": 1.0}}] * 2)]
    actors = [
        mock.Mock(job_id="01", placement_group_id=None, required_resources={"CPU": 0.5}),
        mock.Mock(job_id="01", placement_group_id="within", required_resources={"CPU": 1.0}),
        mock.Mock(job_id="02", placement_group_id=None, required_resources={"GPU": 1.0}),
        mock.Mock(job_id="03", placement_group_id=None, required_resources={"CPU": 9.0}),
    ]
    return mock.patch.multiple(
        "ray.util.state",
        list_jobs=mock.Mock(return_value=jobs, **own),
        list_placement_groups=mock.Mock(return_value=groups),
        list_actors=mock.Mock(return_value=actors),
    )


def test_what_other_jobs_hold_is_added_up_by_the_names_that_people_know() -> None:
    with listed():
        assert shortage._held_by_jobs("03") == {OTHER: {"CPU": 2.5}, "another job": {"GPU": 1.0}}


def test_a_job_that_has_its_places_does_not_wait_for_others() -> None:
    with listed():
        assert shortage._held_by_jobs("01") is None


def test_a_cluster_that_does_not_list_its_jobs_is_not_guessed_about() -> None:
    with listed(side_effect=ConnectionError):
        assert shortage._held_by_jobs("03") is None


def test_nothing_is_said_of_workers_whose_processes_start() -> None:
    with (
        mock.patch.object(shortage, "FIRST_SECONDS", 0.0),
        mock.patch("ray.nodes", return_value=[{"NodeID": "one", "Alive": True, "Resources": {"CPU": 4.0}}]),
        mock.patch("ray.get_runtime_context"),
        mock.patch.object(shortage, "free_resources", return_value={"one": {"CPU": 1.0}}),
        mock.patch.object(shortage, "_held_by_jobs", return_value=None),
    ):
        assert Shortage(1, {"CPU": 2.0}).check() is None
