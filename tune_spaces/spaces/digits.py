"""Handwritten digits of 8x8 pixels."""

from tune_spaces.sweep import Sweep


def quick() -> Sweep:
    """Learning rate x batch size on 8x8 digits: 12 trials, a minute on a laptop, no download."""
    return Sweep(
        recipe="digits.cnn",
        space={"lr": [0.003, 0.01, 0.03, 0.1], "batch_size": [32, 64, 128]},
    )
