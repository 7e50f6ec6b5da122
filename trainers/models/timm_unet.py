"""A U-Net whose encoder is a network of timm, such as one with pretrained weights: one label per pixel.

Source: Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015, with the decoder that is usual on pretrained encoders: from
the coarsest features on, twice the size by nearest neighbours, the encoder's features of that size beside it, and two
3x3 convolutions with BatchNorm, of 256, 128, 64, 32 and 16 channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models import timm as timm_models

WIDTHS = (256, 128, 64, 32, 16)
"""Channels of the decoder's levels, the coarsest first; of an encoder with fewer levels, the first of them."""


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    name: str = "",
    weights: str | None = None,
    drop_path: float = 0.0,
) -> nn.Module:
    """A U-Net: (N, channels, height, width) -> logits (N, classes, height, width).

    Args:
        image_size: Height and width.
        channels: Of the images.
        classes: Number of classes.
        name: Of the encoder, as `timm.list_models()` lists it: one that gives features at several scales.
        weights: Of the encoder: see models/timm.py. The decoder starts at random.
        drop_path: Stochastic depth of the encoder.

    Raises:
        ValueError: There is no such network, it has no features at several scales, or the weights do not fit.
    """
    encoder: Any = timm_models.build(
        image_size=image_size, channels=channels, classes=1000, name=name, weights=weights, drop_path=drop_path
    )
    scales = [level["reduction"] for level in getattr(encoder, "feature_info", [])]
    if not hasattr(encoder, "forward_intermediates") or len(set(scales)) < 3:
        raise ValueError(f"timm's {name} gives no features at several scales; take another name, such as resnet34")
    levels = [level for level, scale in enumerate(scales) if scale not in scales[level + 1 :]]
    encoder.prune_intermediate_layers(levels, prune_norm=False, prune_head=True)
    return _UNet(encoder, levels, [encoder.feature_info[level]["num_chs"] for level in levels], classes)


def head(_: nn.Module) -> list[str]:
    """The names of the parts that pretrained weights do not fill."""
    return ["decoder", "last"]


def normalisation(*, name: str, **arguments: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the pictures that the encoder's weights were trained on."""
    return timm_models.normalisation(name=name, **arguments)


class _UNet(nn.Module):
    def __init__(self, encoder: Any, levels: list[int], features: list[int], classes: int) -> None:
        super().__init__()
        self.encoder, self.levels = encoder, levels
        widths = [features[-1], *WIDTHS[: len(features)]]
        beside = [*reversed(features[:-1]), 0]
        self.decoder = nn.ModuleList(
            nn.Sequential(*_convolution(above + skip, width), *_convolution(width, width))
            for (above, width), skip in zip(pairwise(widths), beside, strict=True)
        )
        self.last = nn.Conv2d(widths[-1], classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder.forward_intermediates(images, indices=self.levels, intermediates_only=True)
        x = features[-1]
        for block, skip in zip(self.decoder, [*reversed(features[:-1]), None], strict=True):
            size = images.shape[-2:] if skip is None else skip.shape[-2:]
            x = functional.interpolate(x, size)
            x = block(x if skip is None else torch.cat([x, skip], 1))
        return self.last(x)  # type: ignore[no-any-return]


def _convolution(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
