"""Instance segmentation of photographs, from pretrained weights."""

from trainers.recipe import Recipe
from trainers.recipes import fcos


def coco() -> Recipe:
    """FCOS with 32 prototypes on EfficientNet-Lite0 with ImageNet's weights: boxes and masks, in COCO's layout.

    For COCO itself, and for sets of one's own with polygons or run lengths.

    Source: Tian et al., FCOS, ICCV 2019; Bolya et al., YOLACT, ICCV 2019; backbone: see folder.tune.
    Parameters: 4,489,752 (80 classes)
    Expected: not measured
    Command: python -m trainers train fcos_masks.coco --data COCO
    """
    return fcos.coco().replace(
        dataset_args={"masks": True},
        model_args={"width": 128, "norm": "group", "prototypes": 32},
        task="detect_masks",
        image_size=(384, 384),
        normalisation="weights",
    )
