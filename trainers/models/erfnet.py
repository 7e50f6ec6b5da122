"""ERFNet: one label per pixel, by a small residual network whose 3x3 convolutions are split into 3x1 and 1x3."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = ("encoder", "decoder")
SMALLEST = 16
FIRST_FILTERS = 16


def build(*, image_size: tuple[int, int], channels: int, classes: int, stage: str = "decoder") -> nn.Module:
    """ERFNet, or its encoder alone: (N, channels, height, width) -> logits (N, classes, ...).

    Source: Romera, Alvarez, Bergasa, Arroyo, "ERFNet: Efficient Residual Factorized ConvNet for Real-Time
    Semantic Segmentation", IEEE T-ITS 2018, table I. Layers 1-16 are the children of `encoder`, 17-23 those of
    `decoder`, in the table's order. As in the authors' code (github.com/Eromera/erfnet_pytorch), convolutions have
    a bias, BatchNorm's epsilon is 0.001 and dropout drops whole channels.

    The weights of `encoder` have the same names and shapes in both stages. With 20 classes and 3 channels, 2,064,256
    parameters; 2,066,836 together with the `head` of 2,580, which the authors keep in the whole network.

    Args:
        image_size: Height and width; any from 16x16 on.
        channels: Of the images, 1 to 15.
        classes: Number of classes.
        stage: "decoder" is the whole network, logits of the size of the image. "encoder" ends after layer 16 with a
            1x1 convolution, `head`: logits of 1/8 of the size, rounded up, to be trained first, on labels of that
            size.

    Raises:
        ValueError: A value is not allowed.
    """
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r} is not offered: use one of {', '.join(STAGES)}")
    height, width = image_size
    if min(height, width) < SMALLEST:
        raise ValueError(f"erfnet needs images of at least {SMALLEST}x{SMALLEST}, got {height}x{width}")
    if not 1 <= channels < FIRST_FILTERS:
        raise ValueError(
            f"erfnet takes images of 1 to {FIRST_FILTERS - 1} channels, got {channels}: the first of its layers "
            f"has {FIRST_FILTERS} outputs, which include the channels"
        )
    return _Encoding(channels, classes) if stage == "encoder" else _ERFNet(channels, classes)


class _Encoding(nn.Module):
    """The encoder and its prediction: stage one of training."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels)
        self.head = nn.Conv2d(128, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


class _ERFNet(nn.Module):
    """Encoder and decoder: stage two of training."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels)
        self.decoder = nn.Sequential(
            _Upsampler(128, 64),  # layer 17
            *(_NonBottleneck1D(64) for _ in range(2)),
            _Upsampler(64, 16),  # layer 20
            *(_NonBottleneck1D(16) for _ in range(2)),
            nn.ConvTranspose2d(16, classes, 2, stride=2),  # layer 23
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.encoder(images))
        return logits[..., : images.shape[-2], : images.shape[-1]]  # 8 times 1/8, rounded up, may be more


def _encoder(channels: int) -> nn.Sequential:
    return nn.Sequential(
        _Downsampler(channels, FIRST_FILTERS),  # layer 1
        _Downsampler(FIRST_FILTERS, 64),
        *(_NonBottleneck1D(64, dropout=0.03) for _ in range(5)),
        _Downsampler(64, 128),  # layer 8
        *(_NonBottleneck1D(128, dilation=dilation, dropout=0.3) for dilation in (2, 4, 8, 16) * 2),
    )


class _Downsampler(nn.Module):
    """Half the size, rounded up: a convolution with stride 2, and the channels of a max-pool beside its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs - inputs, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(torch.cat([self.conv(x), self.pool(x)], dim=1)))


class _NonBottleneck1D(nn.Module):
    """A residual block of two 3x3 convolutions, each as a 3x1 and a 1x3 one; the second pair is dilated."""

    def __init__(self, channels: int, *, dilation: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        d = dilation
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)),
            nn.BatchNorm2d(channels, eps=1e-3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1)),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d)),
            nn.BatchNorm2d(channels, eps=1e-3),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.branch(x))


class _Upsampler(nn.Module):
    """Twice the size, by a transposed convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)))
