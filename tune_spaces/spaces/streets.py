"""Drawn street scenes."""

from tune_spaces.sweep import Sweep


def quick() -> Sweep:
    """Learning rate x batch size of a U-Net on drawn street scenes: 6 trials, minutes on a laptop, no download."""
    return Sweep(
        recipe="streets.unet",
        space={"lr": [0.05, 0.1, 0.2], "batch_size": [4, 8]},
        grace_epochs=2,
    )
