"""BatchNorm folded into convolutions changes no output, and is left where it would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.inference.fused import fuse
from trainers.instances import parts
from trainers.models import deeplabv3plus, erfnet, fcos, resnet, unet
from trainers.models import timm as timm_models

WHAT: Any = {"image_size": (64, 64), "channels": 3, "classes": 5}
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def settled(model: nn.Module) -> nn.Module:
    """With statistics and weights of BatchNorm that are not 0 and 1."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            drawn = ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight, 0.5), (module.bias, -0.5))
            for tensor, low in drawn:
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=draw) + low)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: resnet.build(**WHAT, depth=18), 0),
    "unet": (lambda: unet.build(**WHAT, base_channels=4), 0),
    "deeplab": (lambda: deeplabv3plus.build(**WHAT), 0),
    "erfnet": (lambda: erfnet.build(**WHAT), 3),  # three follow a concatenation
    "timm": (lambda: timm_models.build(**WHAT, name="test_efficientnet", weights=None), 0),
    # the convolutions of its head see all levels, which have a normalisation each
    "fcos": (lambda: fcos.build(**WHAT, backbone="timm:test_efficientnet", weights=None, width=32), 12),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_the_same_and_the_model_unchanged(name: str) -> None:
    build, left = MODELS[name]
    torch.manual_seed(0)
    model = settled(build())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse(model, IMAGES[:1])
    with torch.no_grad():
        for mine, theirs in zip(parts(fused.model(IMAGES)), parts(model(IMAGES)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert (norms(fused.model), fused.normalisations) == (left, norms(model))
    assert fused.folded == norms(model) - left > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Skips(nn.Module):
    """What the first convolution gives is used again, beside its normalisation; the second is as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        given = self.first(images)
        output: Tensor = self.other(self.second(self.norm(given).relu())) + given
        return output


class Shared(nn.Module):
    """One convolution before two normalisations, and one normalisation after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm, self.other, self.both = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.norm(self.one(images)) + self.other(self.one(images.flip(2)))
        return output + self.both(self.two(images)) * self.both(self.three(images))


@pytest.mark.parametrize(
    ("model", "folded"),
    [
        (Skips(), 1),
        (Shared(), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), 1),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4)), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), 0),
    ],
    ids=["skips", "shared", "activation-between", "no-statistics", "no-weights", "transposed", "none"],
)
def test_what_cannot_be_folded_is_left(model: nn.Module, folded: int) -> None:
    model = settled(model)
    fused = fuse(model, IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(fused.model(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
    assert fused.folded == folded
