"""Channels are cut out of every model that ships; what is left is rebuilt from the sizes of its layers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.allocator import facts, measure
from helpers.small import small_recipe
from torch import Tensor, nn

from trainers.pruning import network
from trainers.pruning.network import Cut
from trainers.recipe import Recipe, resolve
from trainers.training import build, peak_memory, shapes
from trainers.training.torch_internals import BatchNorm, tree_leaves

TUNE: dict[str, Any] = {"image_size": (32, 32), "stored_size": None}
SMP = {"model": "smp", "image_size": (64, 64)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear_cnn": ("digits.cnn", {}),
    "texture_cnn": ("textures.cnn", {}),
    "resnet": ("cifar.r18", {}),
    "erfnet encoder": ("erfnet.encoder", {}),
    "erfnet": ("erfnet.decoder", {}),
    "unet": ("unet.camvid", {"model_args": {"base_channels": 16, "depth": 2}}),
    "fcos": ("shapes.fcos", {}),
    "fcos with masks": ("fcos_masks.coco", {}),
    "timm": ("folder.tune", {**TUNE, "model_args": {"name": "test_efficientnet", "weights": None}}),
    "timm_unet": ("folder.tune_masks", {}),
    "smp": ("unet.camvid", {**SMP, "model_args": {"arch": "FPN", "encoder_name": "tu-test_efficientnet"}}),
    "deeplabv3plus": ("deeplab.camvid", {}),
    "lite0": ("folder.tune", {**TUNE, "model_args": {"name": "tf_efficientnet_lite0", "weights": None}}),
    "convnext": ("folder.tune", {**TUNE, "model_args": {"name": "convnext_atto", "weights": None}}),
    "resnext": ("folder.tune", {**TUNE, "model_args": {"name": "resnext50_32x4d", "weights": None}}),
    "vision transformer": ("folder.tune", {**TUNE, "model_args": {"name": "test_vit", "weights": None}}),
    "fcos, group": ("shapes.fcos", {"model_args": {"norm": "group", "width": 64}}),
}
"""Name -> recipe, changes of its small form."""
SLOW = ("deeplabv3plus", "lite0", "resnext")


def made(name: str) -> tuple[Recipe, dict[str, Any], nn.Module, Tensor]:
    """A recipe, facts of its data, its model with statistics as after training, and a picture."""
    recipe, changes = MODELS[name]
    small = small_recipe(recipe, **{**changes, "precision": "fp32"})
    meta = facts(small, 1 if recipe.startswith(("digits", "textures")) else 3, 5)
    model = build.build_model(build.without_weights(small), meta).eval()
    draws = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, BatchNorm):
            for values, low, high in ((norm.weight, 0.5, 1.5), (norm.bias, -0.2, 0.2), (norm.running_var, 0.5, 1.5)):
                nn.init.uniform_(values, low, high, generator=draws)
    return small, meta, model, torch.rand(1, meta["channels"], *small.image_size, generator=draws)


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]


def zeroed(model: nn.Module, images: Tensor, numbers: dict[str, list[int]]) -> nn.Module:
    """The network with zeros in place of channels, and of all that goes with them."""
    model = copy.deepcopy(model).requires_grad_()
    graph = network.import_pruner().DependencyGraph().build_dependency(model, example_inputs=images, verbose=False)
    for name, each in numbers.items():
        layer = model.get_submodule(name)
        group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, each)
        for part, found in group:
            target = part.target.module
            if not graph.is_out_channel_pruning_fn(part.handler) or not isinstance(target, nn.Module):
                continue
            with torch.no_grad():
                for parameter in target.parameters(recurse=False):
                    transposed = isinstance(target, shapes.Transposed) and parameter.ndim > 1
                    parameter.index_fill_(int(transposed), torch.tensor(found), 0.0)
    return model


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> dict[nn.Module, dict[str, list[int]]]:
    """Network that was cut -> layer -> the numbers of its channels that went."""
    found: dict[nn.Module, dict[str, list[int]]] = {}
    plain = network._group

    def noted(graph: Any, model: nn.Module, root: Any, share: float) -> Any:
        found.setdefault(model, {})[root.name] = root.cut(share)
        return plain(graph, model, root, share)

    monkeypatch.setattr(network, "_group", noted)
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]
)
def test_a_model_is_cut_and_rebuilt(name: str, cuts: dict[nn.Module, dict[str, list[int]]]) -> None:
    speedup = 1.2 if name == "vision transformer" else 1.5
    recipe, meta, model, images = made(name)
    before = copy.deepcopy(model.state_dict())
    found = network.cut(model, images, speedup)
    check_cut(found, speedup, model, images)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    bare = build.build_without_memory(recipe, meta)
    sizes = shapes.find_changed(found.model, bare)
    # as plain data, by which another process rebuilds it
    smaller = Recipe.from_json(json.loads(json.dumps(recipe.replace(shapes=sizes).to_json())))
    again = build.build_model(smaller, meta).eval()
    again.load_state_dict(found.model.state_dict())
    for one, other in zip(outputs(again, images), outputs(found.model, images), strict=True):
        assert torch.equal(one, other)
    bare = build.build_without_memory(smaller, meta)
    assert {key: tensor.shape for key, tensor in bare.state_dict().items()} == {
        key: tensor.shape for key, tensor in again.state_dict().items()
    }
    if not any(isinstance(layer, nn.GroupNorm | nn.LayerNorm) for layer in model.modules()):
        # else a channel that is zero for all pictures changes how the others are normalised
        cut_channels = {layer: numbers for layer, numbers in cuts[found.model].items() if numbers}
        for one, other in zip(
            outputs(zeroed(model, images, cut_channels), images), outputs(found.model, images), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def check_cut(found: Cut, speedup: float, model: nn.Module, images: Tensor) -> None:
    """As fast as asked for, in numbers that are computed together, with the same output."""
    assert found.macs[0] >= speedup * found.macs[1]
    assert found.parameters[0] > found.parameters[1] > 0
    for one, other in zip(outputs(model, images), outputs(found.model, images), strict=True):
        assert one.shape == other.shape
        assert other.isfinite().all()
    for (name, layer), smaller in zip(model.named_modules(), found.model.modules(), strict=True):
        if isinstance(layer, nn.Conv2d) and layer.out_channels >= 16 and "encoder.0" not in name:
            changed = isinstance(smaller, nn.Conv2d) and smaller.out_channels != layer.out_channels
            assert not changed or smaller.out_channels % 8 == 0, name


def test_the_memory_of_its_training_is_predicted() -> None:
    recipe, meta, model, images = made("unet")
    small = network.cut(model, images, 2).model
    smaller = recipe.replace(shapes=shapes.find_changed(small, build.build_without_memory(recipe, meta)))
    predicted = peak_memory.predict(smaller, meta)
    assert predicted == pytest.approx(measure(smaller, meta), rel=0.035)
    assert predicted < 0.95 * peak_memory.predict(recipe, meta)


def test_a_network_that_was_cut_is_cut_again() -> None:
    recipe, meta, model, images = made("unet")
    once = network.cut(model, images, 1.5)
    twice = network.cut(once.model, images, 1.5)
    assert twice.macs[0] == once.macs[1]
    sizes = shapes.find_changed(twice.model, build.build_without_memory(recipe, meta))
    build.build_model(recipe.replace(shapes=sizes), meta).load_state_dict(twice.model.state_dict())


def test_more_than_can_be_had_is_refused_with_the_layers_that_stay() -> None:
    _, _, model, images = made("linear_cnn")
    with pytest.raises(
        ValueError, match=r"--speedup 1000 is more than .* at most; kept as it is: 13 \(the output would"
    ):
        network.cut(model, images, 1000)


FIXED = """
from torch import nn


class Fixed(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.first = nn.Conv2d(channels, 16, 3, padding=1)
        self.last = nn.Linear(16 * 64, classes)

    def forward(self, images):
        return self.last(self.first(images).reshape(-1, 16 * 64))


def build(*, image_size, channels, classes):
    return Fixed(channels, classes)
"""


def test_a_layer_whose_size_is_written_into_forward_is_named(tmp_path: Path) -> None:
    (tmp_path / "fixed.py").write_text(FIXED)
    recipe = resolve("digits.cnn", model=str(tmp_path / "fixed.py"))
    model = build.build_model(recipe, facts(recipe, 1, 10))
    with pytest.raises(ValueError, match=r"1\.00 at most; .*first \(") as raised:
        network.cut(model, torch.rand(2, 1, 8, 8), 2)
    assert "last (the output would have another shape)" in str(raised.value)
