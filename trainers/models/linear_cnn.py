"""The linear CNN: three blocks of convolution, batch normalisation and ReLU, one after the other."""

from __future__ import annotations

from torch import nn

SMALLEST = 4


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    num_filters: int = 8,
    batch_norm: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """Three 3x3 convolutions with `num_filters`, 2x and 4x filters, two max-pools, one fully connected layer.

    Source: MATLAB's Deep Learning Toolbox, example "Create Simple Deep Learning Neural Network for
    Classification": 21,690 parameters for 28x28 images of 1 channel and 10 classes. As there, convolutions
    have a bias before batch normalisation. (N, channels, height, width) -> logits (N, classes).

    Args:
        image_size: Height and width, any from 4 on: a max-pool leaves out the last odd row or column.
        channels: Of the images.
        classes: Number of classes.
        num_filters: Of the first convolution; 8 as published.
        batch_norm: Whether batch normalisation follows each convolution.
        dropout: Share of features dropped before the last layer.

    Raises:
        ValueError: The images are smaller, or a value is not allowed.
    """
    height, width = image_size
    if min(height, width) < SMALLEST:
        raise ValueError(f"linear_cnn needs images of at least {SMALLEST}x{SMALLEST}, got {height}x{width}")
    if num_filters < 1:
        raise ValueError(f"num_filters={num_filters} is not possible: use 1 or more (8 as published)")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} is not possible: use a share from 0 up to, not including, 1")

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        norm: list[nn.Module] = [nn.BatchNorm2d(outputs)] if batch_norm else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *norm, nn.ReLU()]

    features = 4 * num_filters * (height // 4) * (width // 4)
    return nn.Sequential(
        *block(channels, num_filters),
        nn.MaxPool2d(2),
        *block(num_filters, 2 * num_filters),
        nn.MaxPool2d(2),
        *block(2 * num_filters, 4 * num_filters),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(features, classes),
    )
