"""How the trials of a sweep share a cluster: tables, without Ray."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from trainers.recipe import Scale
from trainers.runtime.ray_internals import HEAD_NODE
from tune_spaces.resources import (
    DATA_TASK_CPUS,
    PLACEHOLDER,
    Capacity,
    Places,
    Request,
    cpu_share,
    gpu_share,
    head_share,
    repeat_number,
    resolve_places,
)

GIB = 2**30
LAPTOP = Capacity(ours=True, cpus=8, ray_cpus=10)
CLUSTER = Capacity(ours=False, cpus=17)
HOSTS = Capacity(ours=False, cpus=32, host_cpus=8)
AT_ZERO = Capacity(ours=False, cpus=32, host_cpus=1)
CARDS = Capacity(ours=False, cpus=65, gpus=2)


@pytest.mark.parametrize(
    ("request_", "capacity", "concurrency", "standby", "threads", "cpus"),
    [
        ({"workers": 1}, LAPTOP, 8, 1, 1, 1.1181),  # between 10/9 and 9/8
        ({"workers": 0}, LAPTOP, 8, 1, 1, 1.1181),
        ({"workers": 1, "trials": 3}, LAPTOP, 3, 1, 2, 2.75),  # the threads of real CPUs, a share of Ray's
        ({"workers": 1, "max_concurrent": 2}, LAPTOP, 2, 1, 4, 3.9167),
        ({"workers": 1, "cpus_per_worker": 3}, LAPTOP, 2, 1, 3, 3.9167),
        ({"workers": 1, "cpus_per_worker": 99}, LAPTOP, 1, 1, 99, 7.0),
        ({"workers": 2}, LAPTOP, 4, 0, 1, 1.0),  # workers are placed by Ray Train
        ({"workers": 2, "cpus_per_worker": 2}, LAPTOP, 2, 0, 2, 2.0),
        ({"workers": 1}, CLUSTER, 16, 0, 1, 1.0),  # one CPU is left for data tasks
        ({"workers": 1, "trials": 4}, CLUSTER, 4, 0, 4, 4.0),
        ({"workers": 3}, CLUSTER, 5, 0, 1, 1.0),
        ({"workers": 1, "trials": 2}, HOSTS, 2, 0, 8, 8.0),  # no trial asks for more than a host has
        ({"workers": 1, "trials": 8}, HOSTS, 8, 0, 3, 3.0),
        ({"workers": 1, "trials": 2}, AT_ZERO, 2, 0, 1, 1.0),  # what hosts will have is not known
        ({"workers": 1}, CARDS, 16, 0, 4, 4.0),  # eight on each of two cards
        ({"workers": 2}, CARDS, 32, 0, 1, 1.0),
    ],
    ids=str,
)
def test_concurrency_and_resources_of_trials_follow_the_capacity(
    request_: dict[str, Any], capacity: Capacity, concurrency: int, standby: int, threads: int, cpus: float
) -> None:
    asked = Request(**{"trials": 100, **request_})
    places = resolve_places(asked, capacity)
    assert (places.concurrency, places.standby, places.threads) == (concurrency, standby, threads)
    assert places.cpus == pytest.approx(cpus, abs=0.00005)
    assert places.gpus == bool(capacity.gpus)
    assert places.processes == concurrency * max(1, asked.workers)


@pytest.mark.parametrize(
    ("scale", "scheduler", "gpus", "held"),
    [
        (Scale(), "asha", False, {"CPU": 1.5}),
        (Scale(), "asha", True, {"CPU": 1.5, "GPU": 0.25}),
        (Scale(gpus_per_worker=1), "asha", True, {"CPU": 1.5, "GPU": 1}),
        (Scale(resources={"fast_disk": 1}), "asha", False, {"CPU": 1.5, "fast_disk": 1}),
        (Scale(workers=2), "asha", True, PLACEHOLDER),
        (Scale(workers=2), "pbt", False, {HEAD_NODE: 0.2857}),
        (Scale(workers=1), "pbt", False, {"CPU": 1.5}),
    ],
    ids=str,
)
def test_tune_reserves_what_a_trial_and_its_workers_need(
    scale: Scale, scheduler: str, gpus: bool, held: dict[str, float]
) -> None:
    places = Places(concurrency=3, standby=1, threads=2, cpus=1.5, gpus=gpus, processes=3)
    assert places.reserve(scale, scheduler, 0.25) == held


SIZES = [*itertools.product((1, 2, 3, 8, 64, 70, 71, 192, 1000), (0, 1), (1, 2, 5, 999))]


@pytest.mark.parametrize(("cores", "workers", "most"), SIZES)
def test_a_ray_of_our_own_holds_the_trials_and_a_data_task_and_no_further_trial(
    cores: int, workers: int, most: int
) -> None:
    request = Request(trials=1000, workers=workers, max_concurrent=most)
    ray_cpus = max(cores, request.slots(cores) + 1)  # as trainers/runtime/ray_train.py starts it
    places = resolve_places(request, Capacity(ours=True, cpus=cores, ray_cpus=ray_cpus))
    assert places.cpus == cpu_share(ray_cpus, places.concurrency)
    assert places.concurrency * places.cpus + DATA_TASK_CPUS <= ray_cpus
    assert (places.concurrency + 1) * places.cpus > ray_cpus


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 16, 100, 1000])
def test_the_head_holds_so_many_trials_and_no_more(trials: int) -> None:
    assert trials * head_share(trials) <= 1 < (trials + 1) * head_share(trials)


@pytest.mark.parametrize(
    ("need", "limit", "context", "share"),
    [
        (None, 80 * GIB, GIB, 1.0),
        (GIB, None, GIB, 1.0),
        (GIB, 80 * GIB, GIB, 1 / 8),
        (8 * GIB, 80 * GIB, 0, 1 / 8),
        (8 * GIB, 80 * GIB, GIB, 1 / 4),  # 9 GiB and a margin of 15 % are more than an eighth
        (30 * GIB, 80 * GIB, GIB, 1 / 2),
        (40 * GIB, 80 * GIB, GIB, 1.0),
    ],
)
def test_the_share_of_a_gpu_is_the_smallest_that_holds_a_trial(
    need: int | None, limit: int | None, context: int, share: float
) -> None:
    assert gpu_share(need, limit, context) == share


def test_repeats_of_small_sweeps_keep_their_numbers() -> None:
    assert [repeat_number(7, repeat, 12, 3) for repeat in range(3)] == [1700, 1701, 1702]
    assert repeat_number(999, 99, 1000, 100) == 1000 + 100 * 999 + 99


@pytest.mark.parametrize(
    ("trials", "repeats"), [(1, 1), (12, 3), (1000, 100), (1001, 2), (1001, 101), (10_000, 3), (150, 1000)]
)
def test_no_two_trials_have_one_number(trials: int, repeats: int) -> None:
    some = sorted({0, 1, trials // 2, trials - 1})
    numbers = [repeat_number(number, repeat, trials, repeats) for number in some for repeat in range(repeats)]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) >= trials
