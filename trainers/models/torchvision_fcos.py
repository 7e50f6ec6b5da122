"""torchvision's FCOS on ResNet-50 with a pyramid of features: its backbone and head, its weights of COCO, our loss.

Source: Tian et al., FCOS, ICCV 2019; torchvision's fcos_resnet50_fpn, 39.2 AP on COCO's val2017 at 800 pixels.
32,119,880 parameters with 3 classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainers.models import _torchvision_boxes
from trainers.models._points import precise

NAME = "fcos_resnet50_fpn"
head, normalisation = _torchvision_boxes.head, _torchvision_boxes.normalisation


def build(
    *,
    image_size: tuple[int, int],  # noqa: ARG001
    channels: int,
    classes: int,
    weights: str | None = None,
) -> nn.Module:
    """FCOS: (N, 3, height, width) -> (N, points, 5 + classes), as models/fcos.py has it, at other points.

    Args:
        image_size: Height and width; any.
        channels: Of the images: 3.
        classes: Number of classes.
        weights: None for random; "hub" for torchvision's of COCO, downloaded once; a .pth or .safetensors FILE. Unless
            there are as many classes as in these (COCO's: 91, background and gaps included), the last layer is new.

    Raises:
        ValueError: Images have not 3 channels, or the weights cannot be had or do not fit.
    """
    return _FCOS(_torchvision_boxes.build(NAME, _make, channels, classes, weights))


def points(image_size: tuple[int, int], **_: object) -> Tensor:
    """Where a model built so looks, float64 (points, 3): x and y in pixels of the image, and the unit of distances, in
    the order of its output."""
    maps = zip(_torchvision_boxes.places(image_size), _torchvision_boxes.STRIDES, strict=True)
    return torch.cat([torch.cat([each, torch.full_like(each[:, :1], stride)], 1) for each, stride in maps])


def _make(classes: int) -> Any:
    from torchvision.models import detection  # here, because it takes seconds and other models do without

    return detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes)


class _FCOS(nn.Module):
    """Under torchvision's names."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head

    def forward(self, images: Tensor) -> Tensor:
        found = self.head(list(self.backbone(_torchvision_boxes.enlarge(images)).values()))
        return torch.cat([precise(found[name]) for name in ("bbox_regression", "bbox_ctrness", "cls_logits")], 2)
