"""Which hosts workers can run on, checked before anything is started. No Ray runs here."""

from __future__ import annotations

import os
from typing import cast
from unittest import mock

import pytest

from trainers.messages import RayJob
from trainers.progress import Progress
from trainers.recipe import Scale
from trainers.runs.events import Control, Listener
from trainers.runtime import preflight, ray_callbacks, ray_train, resources
from trainers.runtime.coordinator import Coordinator
from trainers.runtime.resources import (
    cluster_total,
    gpu_of_worker,
    named_resources,
    refuse_shards_of_one_gpu,
    refuse_to_starve,
    refuse_what_never_fits,
    shares_gpus,
    smallest_share,
    warn_of_workers,
    worker_resources,
)

HOSTS = [
    {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0, "node:10.0.0.1": 1.0, "memory": 2.0**36},
    {"CPU": 8.0, "GPU": 2.0, "accelerator_type:T4": 1.0, "node:10.0.0.2": 1.0, "memory": 2.0**35, "fast_disk": 1.0},
]


@pytest.fixture(autouse=True)
def no_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "addable_resources", dict)


def needs(**scale: object) -> dict[str, float]:
    return {"CPU": 1.0, "GPU": 1.0, **named_resources(Scale.from_json(scale))}


@pytest.mark.parametrize(
    ("scale", "fits"),
    [
        ({}, 4),
        ({"accelerator_type": "A100"}, 2),
        ({"resources": {"fast_disk": 1}}, 1),
        ({"accelerator_type": "H100"}, 0),
    ],
)
def test_only_workers_that_the_hosts_can_hold_are_accepted(scale: dict[str, object], fits: int) -> None:
    if fits:
        refuse_what_never_fits(fits, needs(**scale), HOSTS)
    remedy = f"give --workers {fits} or fewer" if fits else "ask for what a host has"
    with pytest.raises(ValueError, match=remedy) as refused:
        refuse_what_never_fits(fits + 1, needs(**scale), HOSTS)
    assert "8 CPUs, 2 GPUs, A100; 8 CPUs, 2 GPUs, T4, 1 fast_disk" in str(refused.value)


def test_what_the_autoscaler_can_add_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "addable_resources", lambda: {"CPU": 99.0, "GPU": 9.0})
    refuse_what_never_fits(9, {"CPU": 1.0, "GPU": 1.0}, HOSTS)


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [({"GPU": 1}, "--gpus-per-worker"), ({"fast_disk": 0}, "above 0"), ({"fast_disk": "much"}, "above 0")],
)
def test_resources_that_cannot_be_are_refused_with_the_remedy(asked: dict[str, object], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        Scale.from_json({"resources": asked})


CPU_HEAD = {"CPU": 4.0, "memory": 2.0**33, "object_store_memory": 2.0**32}
EMPTY_HEAD = {"memory": 2.0**33}


@pytest.mark.parametrize(
    ("nodes", "addable", "scale", "expected"),
    [
        ([EMPTY_HEAD], {"CPU": 32.0, "GPU": 4.0}, {}, 1),  # at zero workers
        ([CPU_HEAD], {"CPU": 36.0, "GPU": 4.0}, {}, 1),
        ([CPU_HEAD], {"CPU": 36.0, "GPU": 4.0}, {"gpus_per_worker": 0}, None),
        ([CPU_HEAD], {"CPU": 36.0}, {}, None),
        ([CPU_HEAD], {}, {}, None),
        (HOSTS, {}, {"gpus_per_worker": 0.5}, 0.5),
        (HOSTS, {}, {"gpus_per_worker": 2}, 2),
        ([CPU_HEAD, *HOSTS], {}, {}, 1),
    ],
)
def test_each_worker_asks_for_a_gpu_where_the_cluster_has_or_adds_some(
    nodes: list[dict[str, float]],
    addable: dict[str, float],
    scale: dict[str, object],
    expected: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resources, "addable_resources", lambda: addable)
    assert gpu_of_worker(Scale.from_json(scale), nodes) == ({} if expected is None else {"GPU": expected})


@pytest.mark.parametrize(
    ("nodes", "scale", "expected"),
    [
        (HOSTS, {"workers": 2}, {"CPU": 7.0, "GPU": 1.0}),
        (HOSTS, {"workers": 2, "cpus_per_worker": 2}, {"CPU": 2.0, "GPU": 1.0}),
        ([{"CPU": 64.0}, *HOSTS], {"workers": 2}, {"CPU": 7.0, "GPU": 1.0}),  # the head has no GPU
        ([{"CPU": 2.0}, *HOSTS], {"workers": 2}, {"CPU": 7.0, "GPU": 1.0}),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 1.0}], {"workers": 5}, {"CPU": 4.0, "GPU": 1.0}),
        ([{"CPU": 16.0, "GPU": 1.0}], {"workers": 10, "gpus_per_worker": 0.1}, {"CPU": 1.0, "GPU": 0.1}),
        ([{"CPU": 16.0}], {"workers": 1, "gpus_per_worker": 1}, {"CPU": 1.0, "GPU": 1.0}),  # none of its hosts is up
        ([{"CPU": 16.0}, {"CPU": 4.0}], {"workers": 4}, {"CPU": 1.0}),
    ],
)
def test_workers_share_the_cpus_of_hosts_that_they_can_run_on_and_all_find_a_place(
    nodes: list[dict[str, float]], scale: dict[str, object], expected: dict[str, float]
) -> None:
    wanted = Scale.from_json(scale)
    assert worker_resources(wanted, nodes) == expected
    if any("GPU" in node for node in nodes):
        refuse_what_never_fits(wanted.worker_range[1], expected, nodes)


@pytest.mark.parametrize(("share", "workers"), [(0.1, 10), (0.2, 5), (0.3, 3), (0.7, 1), (0.05, 20)])
def test_shares_of_a_gpu_fill_it_whatever_their_binary_digits(share: float, workers: int) -> None:
    """As 1 // 0.1 is 9."""
    host = {"CPU": 32.0, "GPU": 1.0, "memory": 2.0**30}
    resources = {"CPU": 1.0, "GPU": share}
    refuse_what_never_fits(workers, resources, [host])
    assert smallest_share([host], resources, workers) == 2.0**30 / workers
    with pytest.raises(ValueError, match=f"give --workers {workers} or fewer"):
        refuse_what_never_fits(workers + 1, resources, [host])


@pytest.mark.parametrize("gpus", [1.5, 2.25, 1.001, -1, -0.5])
def test_more_than_one_gpu_is_a_whole_number_of_them(gpus: float) -> None:
    with pytest.raises(ValueError, match=r"gpus_per_worker.* a share of one GPU"):
        Scale(gpus_per_worker=gpus)


class TestAnAutoscalerThatDoesNotTell:
    """Ray's own do not say what they may add (ray-project/ray pull request 63012): nothing is taken for impossible."""

    @pytest.fixture(autouse=True)
    def silent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resources, "addable_resources", lambda: None)

    @pytest.mark.parametrize("gpus", [0, 0.5, 1, 2])
    def test_what_is_asked_for_is_waited_for(self, gpus: float) -> None:
        asked = worker_resources(Scale(workers=4, gpus_per_worker=gpus), [EMPTY_HEAD])
        assert asked == {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
        refuse_what_never_fits(4, asked, [EMPTY_HEAD])
        refuse_to_starve(4, 1.0, cluster_total([EMPTY_HEAD], "CPU"))

    @pytest.mark.parametrize("nodes", [[], [EMPTY_HEAD], [{"CPU": 0.0}]])
    def test_who_does_not_say_whether_on_gpus_is_asked(self, nodes: list[dict[str, float]]) -> None:
        with pytest.raises(ValueError, match=r"give --gpus-per-worker 1, or --gpus-per-worker 0"):
            worker_resources(Scale(), nodes)

    def test_where_hosts_without_gpus_are_up_they_are_taken_and_this_is_said(self) -> None:
        asked = worker_resources(Scale(), [CPU_HEAD])
        assert "GPU" not in asked
        (warning,) = warn_of_workers(Scale(), asked, True, 2**30)
        assert "--gpus-per-worker 1 asks for them" in warning
        assert warn_of_workers(Scale(gpus_per_worker=0), asked, True, 2**30) == []

    def test_where_gpus_are_up_they_are_asked_for(self) -> None:
        assert gpu_of_worker(Scale(), HOSTS) == {"GPU": 1.0}


def test_a_cluster_counts_as_large_as_its_autoscaler_may_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_total(HOSTS, "GPU") == 4
    monkeypatch.setattr(resources, "addable_resources", lambda: {"GPU": 9.0, "CPU": 1.0})
    assert (cluster_total(HOSTS, "GPU"), cluster_total(HOSTS, "CPU")) == (9, 16)


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([CPU_HEAD], 1, 2**33 + 2**32),
        ([CPU_HEAD], 2, (2**33 + 2**32) / 2),
        ([CPU_HEAD], 9, (2**33 + 2**32) / 4),  # it holds 4
        ([CPU_HEAD, *HOSTS], 1, 2**33 + 2**32),  # the smallest host
        ([{"CPU": 0.5, "memory": 1.0}, *HOSTS], 2, 2**34),  # too small for a worker
        ([EMPTY_HEAD], 2, None),
        ([{"CPU": 4.0}], 2, None),
    ],
)
def test_workers_without_gpus_share_the_memory_of_their_own_hosts(
    nodes: list[dict[str, float]], workers: int, expected: float | None
) -> None:
    assert smallest_share(nodes, {"CPU": 1.0}, workers) == expected


@pytest.mark.parametrize(
    ("scale", "shared"),
    [
        ({"workers": 2, "gpus_per_worker": 0.5}, True),
        ({"workers": (1, 4), "gpus_per_worker": 0.25}, True),
        ({"workers": 1, "gpus_per_worker": 0.5}, False),
        ({"workers": 2, "gpus_per_worker": 1}, False),
        ({"workers": 2, "gpus_per_worker": 0}, False),
        ({"workers": 2}, False),
    ],
)
def test_workers_that_may_share_a_gpu_exchange_by_gloo_and_are_told(scale: dict[str, object], shared: bool) -> None:
    wanted = Scale(**scale)  # type: ignore[arg-type]
    assert shares_gpus(wanted) == shared
    warnings = warn_of_workers(wanted, {"CPU": 1.0, "GPU": 0.5}, True, 2**30)
    assert [("Gloo" in warning, "NCCL" in warning) for warning in warnings] == ([(True, True)] if shared else [])
    with mock.patch("ray.train.torch.TorchTrainer") as trainer:
        ray_train._trainer(cast(RayJob, {"coordinator": "x"}), wanted, {"CPU": 1.0, "GPU": 0.5}, "/nowhere")
    assert trainer.call_args.kwargs["torch_config"].backend == ("gloo" if shared else None)


def test_shards_on_one_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match="--gpus-per-worker 1"):
        refuse_shards_of_one_gpu(Scale(workers=2, gpus_per_worker=0.5, strategy="fsdp2"))
    refuse_shards_of_one_gpu(Scale(workers=2, gpus_per_worker=1, strategy="fsdp2"))


@pytest.mark.parametrize(
    ("scale", "memory", "said"),
    [(Scale(), None, True), (Scale(memory="11GiB"), None, False), (Scale(), 2**30, False)],
)
def test_workers_whose_hosts_are_not_up_are_told_what_they_ask_for(
    scale: Scale, memory: int | None, said: bool
) -> None:
    (warning,) = warn_of_workers(scale, {"CPU": 1.0, "GPU": 1.0}, False, memory)
    assert ("--memory" in warning) == said
    for word in ("1 CPU, 1 GPU", "--cpus-per-worker", "--gpus-per-worker"):
        assert word in warning


# The precision is that of the workers' devices -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        (["bf16", "bf16"], "bf16"),
        (["fp32", "bf16"], "fp32"),  # a mixed cluster
        (["bf16", "fp32", "bf16"], "fp32"),
        (["fp32"], "fp32"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_all_workers_take_the_precision_that_each_of_them_has(found: list[str], precision: str, rank: int) -> None:
    coordinator = Coordinator(max_failures=3)
    handle = mock.Mock()
    handle.fix_precision.remote = coordinator.fix_precision
    answers = iter([found, [precision] * len(found)])
    world = mock.Mock(rank=rank, gather_objects=lambda value: next(answers))
    job = cast(RayJob, {"recipe": {"precision": "auto", "epochs": 3}})
    with mock.patch("ray.get", lambda value: value):
        agreed = ray_train._with_precision(job, handle, world)
    assert agreed == {"recipe": {"precision": precision, "epochs": 3}}
    assert coordinator.precision == (precision if rank == 0 else None)


@pytest.mark.parametrize(
    ("given", "devices", "said"),
    [([], ["cpu"], ""), ([0], ["cuda"], ""), ([0], ["cpu"], "host"), ([0], ["cuda", "cpu"], "host")],
)
def test_gpus_that_torch_cannot_use_are_not_left_idle_in_silence(
    given: list[int], devices: list[str], said: str
) -> None:
    """A torch built for CPUs, or for another driver."""
    hosts = ["" if device == "cuda" else "host" for device in devices]
    for device in devices:
        world = mock.Mock(gather_objects=lambda value: hosts)
        world.device.type = device
        with mock.patch("ray.get_gpu_ids", return_value=given):
            text = ray_train._idle_gpus(world)
        assert (f"the GPUs of {said}:" in text and "--gpus-per-worker 0" in text) if said else text == ""


@pytest.mark.parametrize(
    ("given", "available", "seen"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_worker_sees_the_gpus_that_it_was_given(
    given: bool, available: bool, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    assert ray_callbacks.sees_gpu(given) == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("0,1" if given else "")


def test_a_later_group_of_workers_keeps_the_precision_of_the_first() -> None:
    coordinator = Coordinator(max_failures=3)
    assert [coordinator.fix_precision(found) for found in ("fp32", "bf16", "fp32")] == ["fp32"] * 3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_a_precision_that_is_fixed_is_not_asked_for(precision: str) -> None:
    job = cast(RayJob, {"recipe": {"precision": precision}})
    assert ray_train._with_precision(job, None, mock.Mock(gather_objects=None)) is job


def test_a_cpu_that_the_autoscaler_will_add_is_one_to_decode_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the cluster has 0; give fewer --workers"):
        refuse_to_starve(2, 1.0, cluster_total([EMPTY_HEAD], "CPU"))
    monkeypatch.setattr(resources, "addable_resources", lambda: {"CPU": 32.0})
    refuse_to_starve(2, 1.0, cluster_total([EMPTY_HEAD], "CPU"))


def test_the_precision_that_the_workers_found_is_recorded() -> None:
    record = mock.Mock(run={"recipe": {"precision": "auto", "epochs": 3}})
    record.store.local = None
    listener = Listener(record, Progress(), 0.0, 3, Control())
    listener({"kind": "start", "history": [], "step": 0, "epoch": 0, "precision": "bf16"})
    assert record.run["recipe"] == {"precision": "bf16", "epochs": 3}
    assert record.mock_calls[-2:] == [mock.call.write(), mock.call.restore([])]


# The memory is that of the workers' GPUs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "sizes"),
    [("23028\n", [23028 * 2**20]), ("81559\n16384\n", [81559 * 2**20, 16384 * 2**20]), ("[N/A]\n", []), ("", [])],
)
def test_the_memory_of_gpus_is_read_from_their_driver(said: str, sizes: list[int]) -> None:
    with mock.patch("subprocess.run", return_value=mock.Mock(stdout=said)):
        assert preflight.gpu_memory({}) == {"bytes": sizes}


def test_the_smallest_gpu_that_a_worker_may_get_counts() -> None:
    hosts = [preflight.Host(str(number), "", "", 0, has) for number, has in enumerate([*HOSTS, CPU_HEAD])]
    found = {"0": {"bytes": [2**36]}, "1": {"bytes": [2**34, 2**35]}, "2": {"error": "no nvidia-smi"}}

    def answer(asked: list[preflight.Host], *_: object) -> object:
        return {host.id: found[host.id] for host in asked}

    with mock.patch.multiple(preflight, ray_hosts=mock.Mock(return_value=hosts), on_every=answer):
        assert preflight.smallest_gpu({"GPU": 1.0}) == 2**34
        assert preflight.smallest_gpu({"GPU": 1.0, "accelerator_type:A100": 0.001}) == 2**36
        assert preflight.smallest_gpu({"GPU": 4.0}) is None


@pytest.mark.parametrize(
    ("scale", "ours", "expected"),
    [
        (Scale(), False, 2**34),
        (Scale(gpus_per_worker=0.5), False, 2**33),
        (Scale(gpus_per_worker=2), False, 2**34),
        (Scale(gpus_per_worker=0), False, int(0.85 * 2**35)),  # the hosts' own
    ],
)
def test_a_step_may_take_what_the_worker_has_whatever_the_driver_has(scale: Scale, ours: bool, expected: int) -> None:
    cluster = ray_train.Cluster(scale)
    cluster.ours = ours
    cluster._resources = {"CPU": 1.0, **gpu_of_worker(scale, HOSTS)}
    cluster.gpus = "GPU" in cluster._resources
    with (
        mock.patch.object(cluster, "nodes", return_value=HOSTS),
        mock.patch.object(ray_train, "smallest_gpu", return_value=2**34),
    ):
        assert cluster.worker_memory(1) == expected


@pytest.mark.parametrize("mac", [False, True])
def test_a_ray_of_our_own_says_that_the_gpu_of_a_mac_stays_idle(monkeypatch: pytest.MonkeyPatch, mac: bool) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mac)
    cluster = ray_train.Cluster(Scale(workers=1), slots=1)
    cluster.ours = True
    for event in (cluster.imported, cluster._ready):
        event.set()
    with mock.patch.object(cluster, "nodes", return_value=[{"CPU": 2.0}]):
        warnings = cluster.wait()
    assert ["GPU of this Mac" in warning for warning in warnings] == [True] * mac
