"""FCOS: at every point of some maps of features, the classes, the box, and how near its middle the point lies.

Source: Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, and "FCOS: A Simple and
Strong Anchor-Free Object Detector", TPAMI 2020: a pyramid of features (Lin et al., CVPR 2017) of strides 8, 16 and 32,
and one head for all of its maps. Made smaller here: two convolutions for the classes and two for the box, in place of
four; and softplus makes distances of numbers, which has a gradient everywhere. As in the second paper the centreness
comes from the convolutions of the box. What is learned from is in tasks/detect.py.

With `prototypes` there are masks too, after Bolya, Zhou, Xiao, Lee, "YOLACT: Real-Time Instance Segmentation", ICCV
2019: some maps for the whole picture, of stride 4, and of each point a coefficient for each of them, between -1 and 1.
The logits of an object's mask are the sum of the maps by the coefficients of its point (tasks/detect_masks.py).

Parameters with width 64, 3 channels and 3 classes:

| part | | parameters |
|---|---|---|
| `backbone` | small: five stages of 16, 32, 64, 128 and 128 channels, each half as large as the one before | 928,784 |
| `neck` | 1x1: (64 + 128 + 128) * 64 + 3 * 64; 3x3, three times: 9 * 64 * 64 + 64 | 131,456 |
| `head` | 3x3, four times: 9 * 64 * 64; their BatchNorms, of 3 maps each: 2 * 64; 3x3: (9 * 64 + 1) * 8; 3 | 153,611 |
| all | | 1,213,851 |
| `prototypes` | with 16 of them; 3x3, twice: 9 * 64 * 64; their norms: 2 * 64; 1x1: (64 + 1) * 16 | 75,024 |
| coefficients of these, in `head` | 3x3: (9 * 64 + 1) * 16 | 9,232 |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models import timm
from trainers.models._imagenet import resnet_weights
from trainers.models._points import Masked, grid, precise

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNETS = {"resnet18": 1, "resnet34": 1, "resnet50": 4}
"""torchvision's, as backbones -> how many times 64, 128, 256 and 512 channels their stages have."""
OF_TIMM = "timm:"
"""Before the names of timm's networks, as backbones."""
SMALLEST = 32
STRIDE = 4
"""Of the prototypes of masks."""
LARGE = 512
"""Pictures of which a side is as long have a map of stride 64."""
RARE = 0.01
"""Probability of each class at each point before anything is learned (Lin et al., "Focal Loss", 2017, section 4.1)."""
START = 2.0
"""Distance to each side before anything is learned, in strides: about."""


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    width: int = 64,
    norm: Literal["batch", "group"] = "batch",
    backbone: str = "small",
    weights: str | None = None,
    finest: Literal[4, 8] = 8,
    prototypes: int = 0,
) -> nn.Module:
    """FCOS: (N, channels, height, width) -> (N, points, 5 + classes), see `points`; with `prototypes` `Masked`.

    Of each point: the distances to the left, top, right and bottom side of a box, in strides of the point, 0 or more;
    the logit of its centreness; a logit of each class; a coefficient of each prototype. In fp32 or better.

    Args:
        image_size: Height and width; any from 32x32 on.
        channels: Of the images.
        classes: Number of classes.
        width: Channels of pyramid and head, and of the small backbone: a multiple of 32.
        norm: "batch" or "group" (Wu and He, 2018: 8 channels a group, nothing depends on the micro-batch), of pyramid,
            head and the small backbone. Others have their own: fixed_norms=body leaves these as they are.
        backbone: "small", our own; resnet18, resnet34 or resnet50 of torchvision; timm:NAME, any network of timm with
            features of strides 8, 16 and 32.
        weights: Of the backbone. None for random; "imagenet" for ResNets, torchvision's, downloaded once; of timm:NAME
            "hub", a FILE, or package:NAME, as models/timm.py has them.
        finest: Stride of the finest map of features: 4 finds objects of a few pixels, at four times the points.
        prototypes: Maps that masks of objects are made of, such as 16; 0: there are no masks.

    Raises:
        ValueError: The images are too small, arguments do not go together, or the weights cannot be had.
    """
    if width < 32 or width % 32:
        raise ValueError(f"width={width} is not possible: use a multiple of 32, such as 64")
    if norm not in ("batch", "group"):
        raise ValueError(f"norm={norm!r} is not offered: use 'batch' or 'group'")
    if finest not in (4, 8):
        raise ValueError(f"finest={finest} is not offered: use 4 or 8")
    if prototypes < 0:
        raise ValueError(f"prototypes={prototypes} is not possible: use 0 for boxes alone, or more, such as 16")
    if min(image_size) < SMALLEST:
        raise ValueError(f"fcos needs images of at least {SMALLEST}x{SMALLEST}, got {image_size[0]}x{image_size[1]}")
    strides = _strides(image_size, finest)
    own = [stride for stride in strides if stride <= 32]
    body, inputs = _backbone(backbone, weights, own, image_size, channels, width, norm)
    neck = _Pyramid(inputs, width, len(strides))
    head = _Head(width, classes, len(strides), norm, prototypes)
    return _FCOS(body, neck, head, strides, _Prototypes(width, prototypes, norm) if prototypes else None)


def points(image_size: tuple[int, int], *, finest: int = 8, **_: object) -> Tensor:
    """Where a model built so looks, float64 (points, 3): x and y in pixels of the image, and stride, in the order of
    its output."""
    return grid(image_size, _strides(image_size, finest))


def head(model: nn.Module) -> list[str]:
    """The names of what weights of a backbone leave out."""
    return [name for name, _ in model.named_children() if name != "backbone"]


def normalisation(*, backbone: str = "small", **_: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the pictures that the backbone's weights were trained on."""
    if backbone.startswith(OF_TIMM):
        return timm.normalisation(name=backbone.removeprefix(OF_TIMM))
    return IMAGENET


def licence(*, weights: str, backbone: str = "small", **_: object) -> str | None:
    """Of the weights, where it is known."""
    if backbone.startswith(OF_TIMM):
        return timm.licence(name=backbone.removeprefix(OF_TIMM), weights=weights)
    return None


def _strides(image_size: tuple[int, int], finest: int) -> list[int]:
    """Of the maps of features, from the finest on."""
    return [stride for stride in (4, 8, 16, 32) if stride >= finest] + [64] * (max(image_size) >= LARGE)


class _FCOS(nn.Module):
    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        strides: Sequence[int],
        prototypes: nn.Module | None,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head, self.strides = backbone, neck, head, list(strides)
        self.prototypes = prototypes

    def forward(self, images: Tensor) -> Tensor | Masked:
        features = self.backbone(images)
        for stride, each in zip(self.strides, features, strict=False):
            wanted = [-(-size // stride) for size in images.shape[2:]]
            if list(each.shape[2:]) != wanted:
                found = "x".join(map(str, each.shape[2:]))
                raise ValueError(
                    f"the backbone gives features of {found} at stride {stride}, in place of {wanted[0]}x{wanted[1]}: "
                    f"give an image_size of multiples of {self.strides[-1]}"
                )
        maps = self.neck(features)
        output: Tensor = self.head(maps)
        if self.prototypes is None:
            return output
        height, width = (-(-size // STRIDE) for size in images.shape[2:])
        return Masked(output, self.prototypes(maps[0], (height, width)))


# ---- maps of features ----


def _backbone(
    name: str,
    weights: str | None,
    strides: Sequence[int],
    image_size: tuple[int, int],
    channels: int,
    width: int,
    norm: str,
) -> tuple[nn.Module, list[int]]:
    """A network that returns its features at these strides, and their channels. Raises ValueError."""
    if name.startswith(OF_TIMM):
        return _of_timm(name.removeprefix(OF_TIMM), weights, strides, image_size, channels)
    if name == "small":
        if weights is not None:
            raise ValueError(
                f"weights={weights}: there are none of backbone=small; give backbone=timm:NAME or resnet18"
            )
        small = _Small(channels, width, norm, len(strides))
        return small, small.widths[-len(strides) :]
    if name not in RESNETS:
        raise ValueError(f"backbone={name!r} is not offered: use small, {', '.join(RESNETS)}, or timm:NAME")
    if weights not in (None, "imagenet"):
        raise ValueError(f"weights={weights!r} is not offered for {name}: use 'imagenet', or leave it out")
    if weights and channels != 3:
        raise ValueError(
            f"weights=imagenet needs images of 3 channels, got {channels}: change these (--dataset-args channels=3 "
            "gives grey pictures three equal channels), or leave weights out"
        )
    widths = [RESNETS[name] * 64 * 2**stage for stage in range(4)]
    return _ResNet(name, channels, len(strides), pretrained=weights is not None), widths[-len(strides) :]


class _Small(nn.Module):
    """Five stages, each half as large as the one before: a convolution of stride 2, then, but for the first, a residual
    block (He et al., 2016). Returns the features of the last `maps`."""

    def __init__(self, channels: int, width: int, norm: str, maps: int) -> None:
        super().__init__()
        self.widths = [width // 4, width // 2, width, 2 * width, 2 * width]
        self.maps = maps
        inputs = [channels, *self.widths]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *_convolution(inputs[stage], outputs, norm, stride=2),
                *([_Residual(outputs, norm)] if stage else []),
            )
            for stage, outputs in enumerate(self.widths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[-self.maps :]


class _Residual(nn.Module):
    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        first, second = _convolution(width, width, norm), _convolution(width, width, norm)
        self.layers = nn.Sequential(*first, *second[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.layers(x))


class _ResNet(nn.Module):
    """torchvision's ResNet without its last layer, under the same names. Returns the features of its last `maps`
    stages."""

    def __init__(self, name: str, channels: int, maps: int, *, pretrained: bool) -> None:
        super().__init__()
        from torchvision import models  # here, because it takes seconds and other models do without

        resnet: Any = models.get_model(name)
        if pretrained:
            resnet.load_state_dict(resnet_weights(int(name.removeprefix("resnet"))))
        if channels != 3:
            resnet.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        for each, module in resnet.named_children():
            if each not in ("avgpool", "fc"):
                self.add_module(each, module)
        self.maps = maps

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for name, module in self.named_children():
            x = module(x)
            if name.startswith("layer"):
                features.append(x)
        return features[-self.maps :]


def _of_timm(
    name: str, weights: str | None, strides: Sequence[int], image_size: tuple[int, int], channels: int
) -> tuple[nn.Module, list[int]]:
    """A network of timm up to its features of these strides, and their channels."""
    whole = timm.build(image_size=image_size, channels=channels, classes=1, name=name, weights=weights)
    import timm as library

    try:
        every: Any = library.create_model(name, features_only=True, in_chans=channels)
        reductions: list[int] = every.feature_info.reduction()
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError):
        reductions = []
    if missing := [stride for stride in strides if stride not in reductions]:
        raise ValueError(
            f"backbone={OF_TIMM}{name} gives no features of stride {missing[0]}: use a convolutional network, such as "
            f"{OF_TIMM}tf_efficientnet_lite0"
        )
    at = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides]
    network: Any = library.create_model(name, features_only=True, in_chans=channels, out_indices=at)
    known = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}  # some names are flattened
    own = network.state_dict()
    if unknown := [key for key in own if key.replace(".", "_") not in known]:
        raise ValueError(
            f"backbone={OF_TIMM}{name}: timm calls {unknown[0]} otherwise in the whole network; use another"
        )
    if not any(tensor.is_meta for tensor in own.values()):
        network.load_state_dict({key: known[key.replace(".", "_")] for key in own})
    found: list[int] = network.feature_info.channels()
    return network, found


class _Pyramid(nn.Module):
    """Maps of one width: each is what the backbone has at its stride and, enlarged, what is known at coarser ones."""

    def __init__(self, inputs: Sequence[int], width: int, maps: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in inputs)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in inputs)
        self.coarser = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(maps - len(inputs)))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = []
        above: Tensor | None = None
        for level in reversed(range(len(features))):
            here = self.lateral[level](features[level])
            if above is not None:
                here = here + functional.interpolate(above, size=here.shape[-2:], mode="nearest")
            maps.insert(0, self.smooth[level](here))
            above = here
        for layer in self.coarser:
            maps.append(layer(functional.relu(maps[-1])))
        return maps


# ---- predictions ----


class _Head(nn.Module):
    """The same convolutions at every map; normalised by the statistics of each map, which differ."""

    def __init__(self, width: int, classes: int, maps: int, norm: str, prototypes: int) -> None:
        super().__init__()
        self.class_tower, self.box_tower = _Tower(width, maps, norm), _Tower(width, maps, norm)
        self.classes = nn.Conv2d(width, classes, 3, padding=1)
        self.box = nn.Conv2d(width, 4, 3, padding=1)
        self.centreness = nn.Conv2d(width, 1, 3, padding=1)
        for layer, start in ((self.classes, -math.log(1 / RARE - 1)), (self.box, START), (self.centreness, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, start)
        self.scale = nn.Parameter(torch.ones(maps))
        """Of the distances at each map."""
        self.coefficients = nn.Conv2d(width, prototypes, 3, padding=1) if prototypes else None
        """Of the prototypes."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        outputs = []
        for level, features in enumerate(maps):
            of_box = self.box_tower(features, level)
            box = self.box(of_box)
            numbers = [
                self.scale[level] * box,
                self.centreness(of_box),
                self.classes(self.class_tower(features, level)),
            ]
            if self.coefficients is not None:
                numbers.append(self.coefficients(of_box).tanh())
            box, *logits = map(precise, numbers)
            outputs.append(torch.cat([functional.softplus(box), *logits], 1).flatten(2).transpose(1, 2))
        return torch.cat(outputs, 1)


class _Prototypes(nn.Module):
    """Maps of stride STRIDE, in fp32 or better, from those of the finest features."""

    def __init__(self, width: int, count: int, norm: str) -> None:
        super().__init__()
        self.coarse, self.fine = (nn.Sequential(*_convolution(width, width, norm)) for _ in range(2))
        self.last = nn.Conv2d(width, count, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = functional.interpolate(self.coarse(x), size=size, mode="bilinear", align_corners=False)
        return precise(self.last(self.fine(x)))


class _Tower(nn.Module):
    """Two convolutions."""

    def __init__(self, width: int, maps: int, norm: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_filters(width, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.ModuleList(_norm(norm, width) for _ in range(maps)) for _ in range(2))

    def forward(self, x: Tensor, level: int) -> Tensor:
        for layer, norms in zip(self.layers, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            x = functional.relu(norms[level](layer(x)))
        return x


def _convolution(inputs: int, outputs: int, norm: str, stride: int = 1) -> list[nn.Module]:
    return [_filters(inputs, outputs, stride), _norm(norm, outputs), nn.ReLU()]


def _filters(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that normalisation follows; its weights keep the size of what passes through a ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _norm(norm: str, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(width // 8, width)
