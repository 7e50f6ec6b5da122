"""U-Net: one label per pixel, by a contracting and an expanding path that are joined at every resolution."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    base_channels: int = 64,
    depth: int = 4,
    batch_norm: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """U-Net: (N, channels, height, width) -> logits (N, classes, height, width).

    Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI
    2015, figure 1: `base_channels`, doubled by each of `depth` max-pools and halved again on the way up. Weights
    start as in its section 3. Unlike there, 3x3 convolutions are padded, so that the output has the size of
    the image, and BatchNorm follows them. 31,039,128 parameters for 3 channels and 24 classes.

    Args:
        image_size: Height and width, any from 2 * 2**depth on, 32x32 as published: max-pools round odd sizes up, and
            what the way up has too much is cut off.
        channels: Of the images.
        classes: Number of classes.
        base_channels: Filters of the first convolutions.
        depth: Number of max-pools.
        batch_norm: Whether BatchNorm follows the 3x3 convolutions.
        dropout: Share of features dropped where the two paths meet.

    Raises:
        ValueError: The images are smaller, or a value is not allowed.
    """
    if base_channels < 1:
        raise ValueError(f"base_channels={base_channels} is not possible: use 1 or more (64 as published)")
    if depth < 1:
        raise ValueError(f"depth={depth} is not possible: use 1 or more max-pools (4 as published)")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} is not possible: use a share from 0 up to, not including, 1")
    height, width = image_size
    smallest = 2 * 2**depth
    if min(height, width) < smallest:
        raise ValueError(
            f"unet with depth={depth} needs images of at least {smallest}x{smallest}, got {height}x{width}: "
            "use larger images, or a smaller depth"
        )
    return _UNet(channels, classes, [base_channels * 2**level for level in range(depth + 1)], batch_norm, dropout)


class _UNet(nn.Module):
    """`widths`: the channels at each resolution, from that of the image down."""

    def __init__(self, channels: int, classes: int, widths: list[int], batch_norm: bool, dropout: float) -> None:
        super().__init__()
        self.encoder = _Encoder(channels, widths, batch_norm)
        self.dropout = nn.Dropout(dropout)
        self.decoder = _Decoder(widths[::-1], batch_norm)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        *skips, deepest = self.encoder(images)
        logits: Tensor = self.head(self.decoder(self.dropout(deepest), skips[::-1]))
        return logits


class _Encoder(nn.Module):
    """A block at each resolution, with half the size, rounded up, in between. Returns what each block puts out."""

    def __init__(self, channels: int, widths: list[int], batch_norm: bool) -> None:
        super().__init__()
        inputs = [channels, *widths[:-1]]
        self.blocks = nn.ModuleList(_block(*pair, batch_norm) for pair in zip(inputs, widths, strict=True))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for block in self.blocks:
            features.append(block(self.pool(features[-1]) if features else x))
        return features


class _Decoder(nn.Module):
    """For each resolution, from the second deepest up: twice the size, the encoder's features beside, a block."""

    def __init__(self, widths: list[int], batch_norm: bool) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.ups = nn.ModuleList(_up(below, here) for below, here in pairs)
        self.blocks = nn.ModuleList(_block(2 * here, here, batch_norm) for _, here in pairs)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        for up, block, skip in zip(self.ups, self.blocks, skips, strict=True):
            x = up(x)[..., : skip.shape[-2], : skip.shape[-1]]
            x = block(torch.cat([skip, x], dim=1))
        return x


def _block(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """Two 3x3 convolutions; the weights keep the size of what passes through a ReLU (He and others, ICCV 2015)."""
    layers: list[nn.Module] = []
    for ins in (inputs, outputs):
        conv = nn.Conv2d(ins, outputs, 3, padding=1, bias=not batch_norm)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers += [conv, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def _up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Each output sees one pixel, and no ReLU follows: a variance of 1 / inputs keeps the size of the features."""
    layer = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
