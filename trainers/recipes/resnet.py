"""ResNets with the standard stem, on any folder of pictures: train/val/test/<class>/*.jpg, or <class>/*.jpg."""

from trainers.recipe import Recipe


def r18() -> Recipe:
    """ResNet-18 on a folder of pictures.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    Parameters: 11,689,512 (1000 classes)
    Expected: ImageNet: val accuracy 0.698 (torchvision's figure)
    Command: python -m trainers train resnet.r18 --data PATH
    """
    return Recipe(
        dataset="image_folder",
        model="resnet",
        model_args={"depth": 18},
        image_size=(224, 224),
        stored_size=(256, 256),
        epochs=90,
        batch_size=256,
        lr=0.1,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_share=5 / 90,
        augment={"horizontal_flip": 0.5, "resized_crop": [0.35, 1.0]},
    )


def r50() -> Recipe:
    """ResNet-50 on a folder of pictures.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    Parameters: 25,557,032 (1000 classes)
    Expected: ImageNet: val accuracy 0.761 (torchvision's figure)
    Command: python -m trainers train resnet.r50 --data PATH
    """
    return r18().replace(model_args={"depth": 50})
