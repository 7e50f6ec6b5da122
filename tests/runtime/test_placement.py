"""Which hosts workers can run on, checked before anything is started. No Ray runs here."""

from __future__ import annotations

import pytest

from trainers.recipe import Scale
from trainers.runtime import resources
from trainers.runtime.resources import named_resources, refuse_what_never_fits

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
