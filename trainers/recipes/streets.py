"""Small models on generated street scenes: nothing to download."""

from trainers.recipe import Recipe


def unet() -> Recipe:
    """U-Net of 16 channels on generated street scenes of 96x128, 8 classes.

    Source: Ronneberger et al., U-Net, MICCAI 2015; the pictures are drawn by datasets/streets.py.
    Parameters: 1,942,696 (8 classes)
    Expected: val miou 0.89
    Command: python -m trainers train streets.unet
    """
    return Recipe(
        dataset="streets",
        dataset_args={"train": 1200},
        model="unet",
        model_args={"base_channels": 16},
        task="segment",
        image_size=(96, 128),
        resize="stretch",
        epochs=8,
        batch_size=4,
        lr=0.2,
        nesterov=True,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=1,
        augment={"horizontal_flip": 0.5},
    )


def erfnet_encoder() -> Recipe:
    """ERFNet's encoder on generated street scenes.

    Source: Romera et al., ERFNet, IEEE T-ITS 2018; the pictures are drawn by datasets/streets.py.
    Parameters: 1,875,076 (8 classes)
    Expected: val miou 0.60
    Command: python -m trainers train streets.erfnet_encoder
    """
    return unet().replace(
        model="erfnet",
        model_args={"stage": "encoder"},
        task_args={"stride": 8},
        epochs=5,
        optimizer="adam",
        lr=1e-3,
        nesterov=False,
        weight_decay=1e-4,
        class_weights="erfnet",
        schedule="polynomial",
        schedule_args={"power": 0.9},
    )


def erfnet() -> Recipe:
    """ERFNet on generated street scenes, both stages: the encoder is trained first.

    Source: Romera et al., ERFNet, IEEE T-ITS 2018; the pictures are drawn by datasets/streets.py.
    Parameters: 2,063,476 (8 classes)
    Expected: val miou 0.71
    Command: python -m trainers train streets.erfnet
    """
    return erfnet_encoder().replace(
        model_args={"stage": "decoder"}, task_args={"stride": 1}, init_from="streets.erfnet_encoder"
    )
