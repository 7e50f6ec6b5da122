"""U-Net on aerial photographs and on street scenes."""

from trainers.recipe import Recipe


def drone() -> Recipe:
    """U-Net on the Semantic Drone Dataset, 24 classes.

    lr=0.01 is the setting to be compared with. On a third of CamVid at 96x128 (16 channels, batch 4, 25 epochs) it did
    not diverge, but swung from epoch to epoch and ended at val miou 0.352, where --lr 0.001 came to 0.415.

    Source: Ronneberger et al., U-Net, MICCAI 2015; data: Graz University of Technology, 2019.
    Parameters: 31,039,128 (24 classes)
    Expected: not measured here
    Command: python -m trainers train unet.drone --data PATH
    """
    return Recipe(
        dataset="semantic_drone",
        model="unet",
        task="segment",
        image_size=(256, 256),
        resize="stretch",
        epochs=100,
        batch_size=4,
        optimizer="adam",
        lr=0.01,
        patience=5,
        augment={"horizontal_flip": 0.5, "vertical_flip": 0.5, "resized_crop": [0.5, 1.0]},
    )


def drone_binary() -> Recipe:
    """U-Net with one logit a pixel on the Semantic Drone Dataset, its masks made binary by their mean.

    Source: Ronneberger et al., U-Net, MICCAI 2015; data: Graz University of Technology, 2019.
    Parameters: 31,037,633 (2 classes)
    Expected: not measured here
    Command: python -m trainers train unet.drone_binary --data PATH
    """
    return drone().replace(task="segment_binary", dataset_args={"binary": "mean"})


def camvid() -> Recipe:
    """U-Net on CamVid, 11 classes.

    Source: Ronneberger et al., U-Net, MICCAI 2015; data: Brostow et al., 2009.
    Parameters: 31,038,283 (11 classes)
    Expected: val miou 0.56 on a third of CamVid at 96x128, with 16 channels
    Command: python -m trainers train unet.camvid --data PATH
    """
    return Recipe(
        dataset="camvid",
        model="unet",
        task="segment",
        task_args={"loss": "sum"},
        image_size=(360, 480),
        resize="stretch",
        epochs=60,
        batch_size=8,
        optimizer="adam",
        lr=3e-3,
        schedule="cosine",
        warmup_share=1 / 60,
        class_weights="erfnet",
        augment={"horizontal_flip": 0.5, "translate": 0.05, "brightness": 0.2, "contrast": 0.2},
    )
