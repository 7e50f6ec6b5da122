"""ResNet, by torchvision, with a stem for small images, any number of channels and ImageNet's weights.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1:

| depth | block | blocks in the 4 stages | parameters, 1000 classes | top-1 of `weights=imagenet`, 224x224 |
|---|---|---|---|---|
| 18 | two 3x3 | 2, 2, 2, 2 | 11,689,512 | 69.758 % |
| 34 | two 3x3 | 3, 4, 6, 3 | 21,797,672 | 73.314 % |
| 50 | 1x1, 3x3, 1x1 | 3, 4, 6, 3 | 25,557,032 | 80.858 % |
| 101 | 1x1, 3x3, 1x1 | 3, 4, 23, 3 | 44,549,160 | 81.886 % |

Parameters and accuracies are those that torchvision states for its DEFAULT weights; these expect images
normalised by ImageNet's mean (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225). As in
torchvision, the stride of a 1x1, 3x3, 1x1 block is in its 3x3 convolution, and the last BatchNorm of a block
starts at 1, not 0.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from trainers.models._imagenet import resnet_weights

DEPTHS = (18, 34, 50, 101)
NORMALISATION = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Value of `weights` -> mean and standard deviation of the channels of the pictures that they were trained on."""
SMALLEST = {"standard": 32, "3x3": 8}


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    depth: Literal[18, 34, 50, 101] = 18,
    stem: Literal["standard", "3x3"] = "standard",
    weights: Literal["imagenet"] | None = None,
) -> nn.Module:
    """ResNet-18, 34, 50 or 101: (N, channels, height, width) -> logits (N, classes).

    Args:
        image_size: Height and width; the least depends on the stem.
        channels: Of the images.
        classes: Number of classes.
        depth: 18, 34, 50 or 101.
        stem: "standard" (7x7 convolution with stride 2, then max-pool), or "3x3" (stride 1, no pool) for images of
            about 32x32.
        weights: None for random, "imagenet" to start from torchvision's, downloaded once; the last layer is random
            unless `classes` is 1000.

    Raises:
        ValueError: The images are too small for the stem, arguments do not go together, or the weights cannot be had.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth} is not offered: use one of {', '.join(map(str, DEPTHS))}")
    if stem not in SMALLEST:
        raise ValueError(f"stem={stem!r} is not offered: use one of {', '.join(SMALLEST)}")
    if weights not in (None, "imagenet"):
        raise ValueError(f"weights={weights!r} is not offered: use 'imagenet', or leave it out")
    height, width = image_size
    if min(height, width) < SMALLEST[stem]:
        hint = "; stem=3x3 takes images from 8x8" if stem == "standard" else ""
        raise ValueError(
            f"resnet with stem={stem} needs images of at least {SMALLEST[stem]}x{SMALLEST[stem]}, "
            f"got {height}x{width}{hint}"
        )
    if weights and (channels != 3 or stem != "standard"):
        raise ValueError(
            "weights=imagenet needs images of 3 channels and stem=standard, "
            f"got {channels} channels and stem={stem}: change these (--dataset-args channels=3 gives grey pictures "
            "three equal channels), or leave weights out"
        )

    from torchvision import models  # here, because it takes seconds and other models do without

    model: nn.Module = models.get_model(f"resnet{depth}", num_classes=1000 if weights else classes)
    if weights:
        model.load_state_dict(resnet_weights(depth))
        if classes != 1000:
            model.fc = nn.Linear(model.get_parameter("fc.weight").shape[1], classes)
    if stem == "3x3":
        model.conv1 = _convolution(channels, kernel_size=3, stride=1)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = _convolution(channels, kernel_size=7, stride=2)
    return model


def _convolution(channels: int, *, kernel_size: int, stride: int) -> nn.Conv2d:
    """A first convolution with the starting weights that torchvision gives to all of ResNet's."""
    layer = nn.Conv2d(channels, 64, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
