"""The texture CNN: a small network for photographs of surfaces, shrunk to 32x32 or 64x64."""

from __future__ import annotations

from torch import nn

SMALLEST = 8


def build(*, image_size: tuple[int, int], channels: int, classes: int) -> nn.Module:
    """Three convolutions (6, 16, 32 filters), each with ReLU and 2x2 max-pool; fully connected 128-64-32-N.

    Source: the networks that judge from photographs how compacted gravel is; a descendant of LeNet-5 (LeCun
    and others, "Gradient-Based Learning Applied to Document Recognition", 1998), which has 6 and 16 filters.
    Convolutions are 3x3, padded by 1: a block halves height and width and cuts no rim off. 81,910 parameters
    for 32x32 images of 1 channel and 10 classes.

    (N, channels, height, width) -> logits (N, classes). Raises ValueError for images below 8x8.
    """
    height, width = image_size
    if min(height, width) < SMALLEST:
        raise ValueError(f"texture_cnn needs images of at least {SMALLEST}x{SMALLEST}, got {height}x{width}")

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(channels, 6),
        *block(6, 16),
        *block(16, 32),
        nn.Flatten(),
        nn.Linear(32 * (height // 8) * (width // 8), 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )
