"""Drawn shapes."""

from tune_spaces.sweep import Sweep


def quick() -> Sweep:
    """Learning rate x batch size of a U-Net on drawn shapes: 6 trials, minutes on a laptop, no download."""
    return Sweep(
        recipe="shapes.unet",
        changes={"epochs": 8, "dataset_args": {"train": 1600, "val": 100}},
        space={"lr": [1e-3, 3e-3, 1e-2], "batch_size": [8, 16]},
        grace_epochs=2,
    )


def fcos() -> Sweep:
    """Learning rate x batch size x image size of FCOS on drawn shapes: 18 trials of 8 epochs, asha, no download."""
    return Sweep(
        recipe="shapes.fcos",
        changes={"epochs": 8},
        space={
            "lr": [1e-3, 3e-3, 1e-2],
            "batch_size": [8, 16],
            "image_size": [(72, 96), (96, 128), (144, 192)],
        },
        grace_epochs=2,
    )
