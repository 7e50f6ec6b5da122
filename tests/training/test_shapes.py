"""Layers of other sizes than a model is built with."""

from __future__ import annotations

import pytest
import torch
from helpers.allocator import facts
from torch import nn

from trainers.recipe import resolve
from trainers.training import build, shapes

DIGITS = resolve("digits.cnn")
META = facts(DIGITS, 1, 10)


def layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.GroupNorm(2, 8),
        nn.ConvTranspose2d(8, 6, 2),
        nn.LayerNorm([6, 5]),
        nn.Linear(5, 4),
        nn.PReLU(4),
    )


OTHER = {"0": [6, 3], "1": [6], "2": [6, 6, 6], "3": [6], "4": [4, 6], "5": [4, 5], "6": [3, 5], "7.weight": [3]}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_kind_of_layer_is_resized(device: str) -> None:
    with torch.device(device):
        model, built = layers(), layers()
    shapes.resize(model, OTHER)
    assert shapes.find_changed(model, built) == OTHER
    assert all(tensor.device.type == device for tensor in model.state_dict().values())
    assert model[0].weight.shape == (6, 3, 3, 3)
    assert model[2].weight.shape == (6, 1, 3, 3)
    assert model[4].weight.shape == (6, 4, 2, 2)
    assert model[1].running_mean.shape == (6,)
    assert all(parameter.requires_grad for parameter in model.parameters())
    if device == "cpu":
        assert model[:5](torch.rand(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"9": [4]}, "the model has no layer '9' whose sizes can be changed"),
        ({"0": [4]}, "shapes 0=4 is not allowed; Conv2d has outputs, inputs, and groups"),
        ({"0": [4, 3, 2]}, "shapes 0=4,3,2 is not allowed"),
        ({"3": [7]}, "GroupNorm has a multiple of its 2 groups"),
        ({"6": [7]}, "Linear has outputs, inputs"),
        ({"1": [7, 7]}, "BatchNorm2d has features"),
    ],
)
def test_sizes_that_a_layer_does_not_take_are_refused(given: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.resize(layers(), given)


def test_what_no_layer_holds_is_named() -> None:
    one, other = layers(), layers()
    one.register_buffer("table", torch.zeros(3))
    other.register_buffer("table", torch.zeros(4))
    with pytest.raises(ValueError, match=r"table \(3,\) belongs to no layer"):
        shapes.find_changed(one, other)


def test_a_recipe_carries_them() -> None:
    recipe = resolve("digits.cnn", shapes="0=6,1 1=6 4=16,6")
    assert recipe.shapes == {"0": [6, 1], "1": 6, "4": [16, 6]}
    assert recipe.from_json(recipe.to_json()) == recipe
    model = build.build_model(recipe, META)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert recipe.memory_facts() != DIGITS.memory_facts()


def test_they_go_with_another_model_and_stay_with_other_arguments() -> None:
    recipe = resolve("digits.cnn", shapes={"0": [6, 1]})
    assert recipe.replace(model="texture_cnn").shapes == {}
    assert recipe.replace(lr=0.5, model_args={"dropout": 0.1}).shapes == {"0": [6, 1]}


@pytest.mark.parametrize("given", [{"0": 0}, {"0": [6, "a"]}, {"0": []}, {"0": 1.5}])
def test_numbers_that_are_no_sizes_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"shapes 0=.* is not allowed; shapes 0 takes whole numbers above 0"):
        resolve("digits.cnn", shapes=given)
