"""Small models on drawn shapes: nothing to download."""

from trainers.recipe import Recipe


def unet() -> Recipe:
    """U-Net of 16 channels on drawn shapes of 64x64 pixels, 4 classes.

    Source: Ronneberger et al., U-Net, MICCAI 2015; the pictures are drawn by datasets/shapes.py.
    Parameters: 1,942,628 (4 classes)
    Expected: val miou 0.86
    Command: python -m trainers train shapes.unet
    """
    return Recipe(
        dataset="shapes",
        dataset_args={"train": 2400, "val": 100},
        model="unet",
        model_args={"base_channels": 16},
        task="segment",
        image_size=(64, 64),
        resize="stretch",
        epochs=16,
        batch_size=8,
        optimizer="adam",
        lr=3e-3,
        schedule="cosine",
        warmup_share=1 / 16,
        augment={"horizontal_flip": 0.5, "vertical_flip": 0.5},
    )


def erfnet_encoder() -> Recipe:
    """ERFNet's encoder on drawn shapes.

    Source: Romera et al., ERFNet, IEEE T-ITS 2018; the pictures are drawn by datasets/shapes.py.
    Parameters: 1,874,560 (4 classes)
    Expected: val miou 0.35
    Command: python -m trainers train shapes.erfnet_encoder
    """
    return unet().replace(
        dataset_args={"train": 1600, "val": 100},
        model="erfnet",
        model_args={"stage": "encoder"},
        task_args={"stride": 8},
        epochs=8,
        lr=1e-3,
        weight_decay=1e-4,
        class_weights="erfnet",
        warmup_share=1 / 8,
        schedule="polynomial",
        schedule_args={"power": 0.9},
    )


def erfnet() -> Recipe:
    """ERFNet on drawn shapes, both stages: the encoder is trained first.

    Source: Romera et al., ERFNet, IEEE T-ITS 2018; the pictures are drawn by datasets/shapes.py.
    Parameters: 2,063,216 (4 classes)
    Expected: val miou 0.62
    Command: python -m trainers train shapes.erfnet
    """
    return erfnet_encoder().replace(
        model_args={"stage": "decoder"}, task_args={"stride": 1}, init_from="shapes.erfnet_encoder"
    )


def fcos() -> Recipe:
    """FCOS of 64 channels on drawn shapes of 96x128 pixels: boxes of 3 classes, some of crowds.

    Source: Tian et al., FCOS, ICCV 2019; the pictures are drawn by datasets/shapes.py.
    Parameters: 1,213,851 (3 classes)
    Expected: val ap 0.69, ap50 0.89
    Command: python -m trainers train shapes.fcos
    """
    return Recipe(
        dataset="shapes",
        dataset_args={"objects": "boxes", "train": 1200, "val": 200},
        model="fcos",
        task="detect",
        image_size=(96, 128),
        resize="stretch",
        epochs=24,
        batch_size=16,
        optimizer="adamw",
        lr=3e-3,
        schedule="cosine",
        warmup_share=0.1,
        weight_decay=1e-2,
        augment={"horizontal_flip": 0.5, "vertical_flip": 0.5, "translate": 0.1},
    )


def fcos_masks() -> Recipe:
    """FCOS of 64 channels with 16 prototypes on drawn shapes of 96x128 pixels: boxes and masks of 3 classes.

    Source: Tian et al., FCOS, ICCV 2019, and Bolya et al., YOLACT, ICCV 2019; the pictures are drawn by
        datasets/shapes.py.
    Parameters: 1,298,107 (3 classes)
    Expected: val mask_ap 0.66, mask_ap50 0.87
    Command: python -m trainers train shapes.fcos_masks
    """
    return fcos().replace(dataset_args={"objects": "masks"}, model_args={"prototypes": 16}, task="detect_masks")
