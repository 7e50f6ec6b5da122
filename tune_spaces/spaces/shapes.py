"""Drawn shapes."""

from tune_spaces.sweep import Sweep


def quick() -> Sweep:
    """Learning rate x batch size of a U-Net on drawn shapes: 6 trials, minutes on a laptop, no download."""
    return Sweep(
        recipe="shapes.unet",
        space={"lr": [1e-3, 3e-3, 1e-2], "batch_size": [8, 16]},
        grace_epochs=2,
    )
