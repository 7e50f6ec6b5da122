"""What torchvision's detectors on ResNet-50 with a pyramid of features have in common: their maps and their weights.

Of these networks backbone and head are taken, under their names, so that torchvision's weights fit. Resizing, the
choice of detections and the losses are ours: theirs read values in the middle of a step, and divide by what the
micro-batch holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.models import _weights
from trainers.models._imagenet import fetch

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDES = 8, 16, 32, 64, 128
MULTIPLE = 32
"""Pictures are enlarged to multiples of it, by zeros at their right and lower rims, as torchvision does."""


def build(name: str, make: Callable[[int], Any], channels: int, classes: int, weights: str | None) -> Any:
    """A network of torchvision, with weights.

    Args:
        name: torchvision's, of its weights too.
        make: Builds it with random weights, for so many outputs.
        channels: Of the images: 3.
        classes: Number of classes, each with an output, and none for the background.
        weights: As the adapters have it.

    Raises:
        ValueError: Images have not 3 channels, or the weights cannot be had or do not fit.
    """
    if channels != 3:
        raise ValueError(
            f"{name} takes images of 3 channels, got {channels}: give --dataset-args channels=3 (grey pictures then "
            "have three equal channels), or --model fcos"
        )
    found = None
    if weights == "hub":
        from torchvision import models  # here, because it takes seconds and other models do without

        found = fetch(models.get_model_weights(name).DEFAULT, "hub", "give weights=FILE, or leave weights out")
    elif weights is not None:
        found = _weights.read(weights, name)
    network = make(classes)
    if found is not None:
        _weights.put(network, found, weights=str(weights), architecture=name, new=head(network))
    return network


def head(_: nn.Module) -> list[str]:
    """The name of the layer that gives the logits: alone of another shape where there are other classes than COCO's."""
    return ["head.classification_head.cls_logits"]


def normalisation(**_: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the pictures that the weights were trained on."""
    return IMAGENET


def enlarge(images: Tensor) -> Tensor:
    """Images (N, C, H, W) whose height and width are multiples of MULTIPLE."""
    height, width = images.shape[2:]
    return functional.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE))


def places(image_size: tuple[int, int]) -> list[Tensor]:
    """Where the predictions of each map lie, float64 (places, 2): x and y in pixels, row by row.

    Maps are made by halving, rounded up; the pixels between neighbours are the picture's divided by the map's, rounded
    down, and so not always the map's stride. The first one lies at the picture's upper left corner.
    """
    height, width = (size + -size % MULTIPLE for size in image_size)
    maps = []
    with torch.device("cpu"):  # also where a model is built without memory
        for stride in STRIDES:
            axes = []
            for size in (height, width):
                count = -(-size // stride)
                axes.append(torch.arange(count, dtype=torch.float64) * (size // count))
            y, x = torch.meshgrid(*axes, indexing="ij")
            maps.append(torch.stack([x.flatten(), y.flatten()], 1))
    return maps
