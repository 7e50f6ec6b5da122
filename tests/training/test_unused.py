"""Models with parameters that a forward pass leaves out: the same for any number of workers, under DDP and FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.ranks import run_ranks
from helpers.small import job, last_weights, small_recipe
from torch import nn

from trainers.training.distributed import World
from trainers.training.parts import freeze
from trainers.training.unused import describe_unused, explain_left_out, leave_out_unused

WORLD = World(0, 1, torch.device("cpu"), "fp32")
META: Any = {
    "channels": 1,
    "classes": [str(number) for number in range(10)],
    "class_counts": {"train": [5] * 10},
    "target": "labels",
}


class Net(nn.Module):
    """Of a body and a head that are used, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head, self.spare = nn.Linear(4, 10), nn.Linear(4, 10)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))  # type: ignore[no-any-return]


class Auxiliary(Net):
    """The spare head is used in training, as those of GoogLeNet are."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.body(images)
        return (self.head(found) + self.spare(found) if self.training else self.head(found)) * self.scale  # type: ignore[no-any-return]


class Broken(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not on black pictures")


@pytest.mark.parametrize(
    ("model", "frozen", "names"),
    [
        (Net, (), ["scale", "spare.weight", "spare.bias"]),
        (Net, ("spare",), ["scale"]),  # already without a gradient
        (Auxiliary, (), []),
        (Broken, (), []),
    ],
)
def test_what_a_pass_leaves_out_loses_its_gradient_and_nothing_else_changes(
    model: type[Net], frozen: tuple[str, ...], names: list[str]
) -> None:
    made = model()
    recipe = small_recipe("digits.cnn", frozen=frozen, image_size=(8, 8))
    freeze(recipe, made, 0)
    open_before = {name for name, each in made.named_parameters() if each.requires_grad}
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert leave_out_unused(recipe, META, made, WORLD, 0) == names
    assert {name for name, each in made.named_parameters() if each.requires_grad} == open_before - set(names)
    assert all(each.grad is None for each in made.parameters())
    after = made.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class Moody(Net):
    """The spare head is used in every second pass, from the first on."""

    passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        found = self.body(images)
        return (self.head(found) + self.spare(found) if self.passes % 2 else self.head(found)) * self.scale  # type: ignore[no-any-return]


class Late(Moody):
    """Likewise, from the second on: as a block that is left out by chance."""

    passes = 1


@pytest.mark.parametrize("model", [Moody, Late])
def test_what_only_some_passes_leave_out_is_trained(model: type[Net]) -> None:
    made = model()
    recipe = small_recipe("digits.cnn", image_size=(8, 8))
    assert leave_out_unused(recipe, META, made, WORLD, 0) == []
    assert all(each.requires_grad for each in made.parameters())


@pytest.mark.parametrize("others", [[], ["spare.bias"], ["scale", "spare.weight", "spare.bias"]])
def test_what_another_worker_reaches_is_trained(others: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "gather_objects", lambda self, value: [value, others])
    made = Net()
    assert set(leave_out_unused(small_recipe("digits.cnn", image_size=(8, 8)), META, made, WORLD, 0)) == set(others)
    assert {name for name, each in made.named_parameters() if not each.requires_grad} == set(others)


def test_a_model_that_uses_other_parameters_in_each_pass_is_named() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        model = Moody()
        model.head.bias.requires_grad_(False)
        wrapped = nn.parallel.DistributedDataParallel(model)

        def passes() -> None:
            for _ in range(4):
                wrapped(torch.rand(3, 1, 8, 8)).sum().backward()

        with pytest.raises(RuntimeError) as raised:
            passes()
    finally:
        dist.destroy_process_group()
    text = explain_left_out(str(raised.value), model)
    assert text is not None
    assert "leave spare.weight, spare.bias out" in text
    assert "--workers 1" in text


@pytest.mark.parametrize("error", ["out of memory", "Expected to have finished reduction in the prior iteration"])
def test_other_errors_are_not_explained_so(error: str) -> None:
    assert explain_left_out(error, Net()) is None


def test_a_long_list_is_cut() -> None:
    text = describe_unused([f"block.{number}" for number in range(20)])
    assert "block.5 and 14 more" in text


MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head, self.left_over = nn.Linear(16, classes), nn.Linear(3, 3)

    def forward(self, images):
        return self.head(self.body(images))

def build(*, image_size, channels, classes):
    return Net(channels, classes)
"""


def test_any_number_of_workers_learns_the_same_without_them(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    recipe = small_recipe("digits.cnn", model=str(tmp_path / "mine.py"), model_args={}, precision="fp64", epochs=1)
    plans: dict[str, tuple[int, dict[str, Any]]] = {
        "one": (1, {}),
        "ddp": (2, {}),
        "fsdp2": (2, {"strategy": "fsdp2"}),
    }
    jobs: list[Any] = [(job(recipe, None, tmp_path, run, **scale), ranks) for run, (ranks, scale) in plans.items()]
    events = dict(zip(plans, run_ranks(jobs), strict=True))
    weights = {run: last_weights(tmp_path / run) for run in plans}
    for run in ("ddp", "fsdp2"):
        assert events[run][-1]["status"] == "finished"
        assert weights[run].keys() == weights["one"].keys()
        for name, value in weights["one"].items():
            torch.testing.assert_close(weights[run][name], value, rtol=1e-8, atol=1e-8)
    said = [event["text"] for event in events["ddp"] if event["kind"] == "warning"]
    assert any("left_over.weight, left_over.bias" in text for text in said)
