"""torchvision's RetinaNet on ResNet-50 with a pyramid of features: its backbone and head, its weights of COCO.

Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; torchvision's retinanet_resnet50_fpn_v2, 41.5 AP
on COCO's val2017 at 800 pixels: the head has GroupNorm, and boxes are learned by GIoU (Zhang et al., CVPR 2020).
36,394,120 parameters with 3 classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainers.models import _torchvision_boxes
from trainers.models._points import precise

NAME = "retinanet_resnet50_fpn_v2"
SIZES = 32, 64, 128, 256, 512
"""Sides of the smallest anchors of each map, in pixels; there are three sizes, of thirds of an octave, ..."""
SHAPES = 0.5, 1.0, 2.0
"""... each in three shapes: height over width."""
MOST = math.log(1000 / 16)
"""The logarithm of a box's side over its anchor's is cut off here, as torchvision does."""
head, normalisation = _torchvision_boxes.head, _torchvision_boxes.normalisation


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    weights: str | None = None,
) -> nn.Module:
    """RetinaNet: (N, 3, height, width) -> (N, anchors, 4 + classes), see `anchors`.

    Of each anchor: left, top, right and bottom of a box, in pixels of the image, and a logit of each class. In fp32 or
    better.

    Args:
        image_size: Height and width; any.
        channels: Of the images: 3.
        classes: Number of classes.
        weights: None for random; "hub" for torchvision's of COCO, downloaded once; a .pth or .safetensors FILE. Unless
            there are as many classes as in these (COCO's: 91, background and gaps included), the last layer is new.

    Raises:
        ValueError: Images have not 3 channels, or the weights cannot be had or do not fit.
    """
    network = _torchvision_boxes.build(NAME, _make, channels, classes, weights)
    return _RetinaNet(network, anchors(image_size))


def anchors(image_size: tuple[int, int], **_: object) -> Tensor:
    """The anchors of a model built so, float64 (anchors, 4): left, top, right and bottom in pixels of the image, in the
    order of its output."""
    found = []
    for places, size in zip(_torchvision_boxes.places(image_size), SIZES, strict=True):
        shifts = places.repeat(1, 2)
        found.append((shifts[:, None] + _around_zero(size).to(shifts.device)).flatten(0, 1))
    return torch.cat(found)


def _around_zero(size: int) -> Tensor:
    """The nine anchors of a place, float64 (9, 4), whose corners torchvision rounds to whole pixels."""
    with torch.device("cpu"):
        sizes = torch.tensor([int(size * 2 ** (third / 3)) for third in range(3)], dtype=torch.float32)
        height = torch.tensor(SHAPES).sqrt()
        width = (1 / height[:, None] * sizes).flatten()
        height = (height[:, None] * sizes).flatten()
        return (torch.stack([-width, -height, width, height], 1) / 2).round().double()


def _make(classes: int) -> Any:
    from torchvision.models import detection  # here, because it takes seconds and other models do without

    return detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=classes)


class _RetinaNet(nn.Module):
    """Under torchvision's names."""

    middle: Tensor
    size: Tensor

    def __init__(self, network: Any, anchors: Tensor) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head
        anchors = anchors.to(next(network.parameters()).device)  # none, where a model is built without memory
        self.register_buffer("middle", (anchors[:, :2] + anchors[:, 2:]) / 2, persistent=False)
        self.register_buffer("size", anchors[:, 2:] - anchors[:, :2], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        found = self.head(list(self.backbone(_torchvision_boxes.enlarge(images)).values()))
        moves, logits = precise(found["bbox_regression"]), precise(found["cls_logits"])
        middle, size = self.middle.to(moves.dtype), self.size.to(moves.dtype)
        middle = middle + moves[..., :2] * size
        half = moves[..., 2:].clamp(max=MOST).exp() * size / 2
        return torch.cat([middle - half, middle + half, logits], 2)
