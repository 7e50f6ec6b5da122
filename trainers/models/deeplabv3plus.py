"""DeepLabv3+ on a ResNet: one label per pixel, from features seen at several scales, and from finer ones.

Source: Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018, figure 2, in its form with plain 3x3 convolutions. The encoder is a ResNet followed by
atrous spatial pyramid pooling (ASPP) at rates 6, 12 and 18, or twice that at output stride 8.

Parameters with depth 18, 3 channels and 11 classes:

| part | | parameters |
|---|---|---|
| `backbone` | ResNet-18, 11,689,512, without its last layer, 512 * 1000 + 1000 | 11,176,512 |
| `aspp` | 1x1: 512 * 256, BatchNorm 2 * 256 | 131,584 |
| | 3x3, three times: 9 * 512 * 256 + 2 * 256 | 3,540,480 |
| | mean of the image: 512 * 256 + 256 | 131,328 |
| | all five together: 5 * 256 * 256 + 2 * 256 | 328,192 |
| `low` | 1x1: 64 * 48 + 2 * 48 | 3,168 |
| `decoder` | 3x3: 9 * (256 + 48) * 256 + 2 * 256 | 700,928 |
| | 3x3: 9 * 256 * 256 + 2 * 256 | 590,336 |
| `head` | 256 * 11 + 11 | 2,827 |
| all | | 16,605,355 |
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models._imagenet import resnet_weights

LAST_CHANNELS = {18: (64, 512), 34: (64, 512), 50: (256, 2048)}
"""Depth -> channels of the first and the last stage of the ResNet."""
RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
"""Output stride -> rates of the ASPP."""
NORMALISATION = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Value of `weights` -> mean and standard deviation of the channels of the pictures that they were trained on."""
SMALLEST = 32
WIDTH, LOW_WIDTH = 256, 48


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    depth: Literal[18, 34, 50] = 18,
    output_stride: Literal[8, 16] = 16,
    dropout: float = 0.1,
    weights: Literal["imagenet"] | None = None,
) -> nn.Module:
    """DeepLabv3+: (N, channels, height, width) -> logits (N, classes, height, width).

    Args:
        image_size: Height and width; any from 32x32 on.
        channels: Of the images.
        classes: Number of classes.
        depth: Of the ResNet: 18, 34 or 50.
        output_stride: 16, or 8 for finer features, at more than twice the arithmetic.
        dropout: Share of the ASPP's features that is dropped.
        weights: None for random, "imagenet" to start `backbone` from torchvision's, downloaded once;
            frozen=backbone keeps them as they are.

    Raises:
        ValueError: The images are smaller, arguments do not go together, or the weights cannot be had.
    """
    if depth not in LAST_CHANNELS:
        raise ValueError(f"depth={depth} is not offered: use one of {', '.join(map(str, LAST_CHANNELS))}")
    if output_stride not in RATES:
        raise ValueError(f"output_stride={output_stride} is not offered: use one of {', '.join(map(str, RATES))}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} is not possible: use a share from 0 up to, not including, 1")
    if weights not in (None, "imagenet"):
        raise ValueError(f"weights={weights!r} is not offered: use 'imagenet', or leave it out")
    if weights and channels != 3:
        raise ValueError(
            f"weights=imagenet needs images of 3 channels, got {channels} channels: change these (--dataset-args "
            "channels=3 gives grey pictures three equal channels), or leave weights out"
        )
    height, width = image_size
    if min(height, width) < SMALLEST:
        raise ValueError(f"deeplabv3plus needs images of at least {SMALLEST}x{SMALLEST}, got {height}x{width}")
    backbone = _Backbone(channels, depth, output_stride, pretrained=weights is not None)
    low, last = LAST_CHANNELS[depth]
    return _DeepLab(backbone, low, last, RATES[output_stride], classes, dropout)


class _DeepLab(nn.Module):
    def __init__(
        self, backbone: nn.Module, low: int, last: int, rates: tuple[int, ...], classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aspp = _ASPP(last, rates)
        self.dropout = nn.Dropout(dropout)
        self.low = _convolution(low, LOW_WIDTH, 1)
        self.decoder = nn.Sequential(_convolution(WIDTH + LOW_WIDTH, WIDTH, 3), _convolution(WIDTH, WIDTH, 3))
        self.head = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        low, last = self.backbone(images)
        low, last = self.low(low), self.dropout(self.aspp(last))
        features = self.decoder(torch.cat([_resize(last, low), low], dim=1))
        return _resize(self.head(features), images)


class _Backbone(nn.Module):
    """torchvision's ResNet without its last layer, under the same names. Returns the first and the last stage's
    features: at 1/4 and at 1 / `output_stride` of the size, rounded up."""

    def __init__(self, channels: int, depth: int, output_stride: int, *, pretrained: bool) -> None:
        super().__init__()
        from torchvision import models  # here, because it takes seconds and other models do without

        resnet: Any = models.get_model(f"resnet{depth}")
        if pretrained:
            resnet.load_state_dict(resnet_weights(depth))
        if channels != 3:
            resnet.conv1 = _initialised(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
        for name, module in resnet.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)
        _dilate(resnet.layer4, before=1 if output_stride == 16 else 2)
        if output_stride == 8:
            _dilate(resnet.layer3, before=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        low: Tensor | None = None
        x = images
        for name, module in self.named_children():
            x = module(x)
            if name == "layer1":
                low = x
        assert low is not None
        return low, x


def _dilate(stage: nn.Module, *, before: int) -> None:
    """Let a stage of a ResNet keep the size of what comes in; no weight changes its shape, nor what it has learned.

    What the stage computes is what it computed with its stride, at every second pixel; the pixels between are new.
    `before`: the dilation that makes up for strides taken out of earlier stages. The convolutions that had
    the stride of 2 see what earlier stages put out and need no more; those after them, twice as much.
    """
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            rate = before if layer.stride == (2, 2) else 2 * before
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (rate, rate)


class _ASPP(nn.Module):
    """The same features through a 1x1 convolution, 3x3 ones of several rates and as their mean over the image.

    The mean has no BatchNorm, as one image in a batch would leave a single value per channel; but a bias.
    """

    def __init__(self, inputs: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        scales = [_convolution(inputs, WIDTH, 1), *(_convolution(inputs, WIDTH, 3, rate) for rate in rates)]
        self.scales = nn.ModuleList(scales)
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), _initialised(nn.Conv2d(inputs, WIDTH, 1)), nn.ReLU())
        self.project = _convolution((len(scales) + 1) * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x).expand(-1, -1, *x.shape[-2:])
        together: Tensor = self.project(torch.cat([*(scale(x) for scale in self.scales), mean], dim=1))
        return together


def _convolution(inputs: int, outputs: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(inputs, outputs, kernel_size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(_initialised(conv), nn.BatchNorm2d(outputs), nn.ReLU())


def _initialised(conv: nn.Conv2d) -> nn.Conv2d:
    """Starting weights as torchvision gives them to all convolutions of ResNet; a bias starts at 0."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
