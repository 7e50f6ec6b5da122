"""Digits of 28x28 pixels: how batch size and filters change time, memory and accuracy."""

from tune_spaces.sweep import Sweep


def batch() -> Sweep:
    """Batch size 128, 256, 512 over 50 epochs of MNIST: the table of workstation against cloud; --data PATH."""
    return Sweep(
        recipe="mnist.cnn",
        changes={"epochs": 50},
        space={"batch_size": [128, 256, 512]},
        scheduler="none",
    )


def filters() -> Sweep:
    """8, 16, 32 filters x batch size up to 32,768 on MNIST; --data PATH."""
    return Sweep(
        recipe="mnist.cnn",
        space={"model_args.num_filters": [8, 16, 32], "batch_size": [128, 512, 2048, 8192, 32768]},
        scheduler="none",
    )


def quick() -> Sweep:
    """Learning rate x batch size on 10,000 drawn digits of MNIST's size: 12 trials of 6 epochs, no download."""
    return Sweep(
        recipe="mnist.cnn",
        changes={"dataset": "strokes", "epochs": 6, "model_args": {"num_filters": 16}},
        space={"lr": [0.003, 0.01, 0.03, 0.1], "batch_size": [32, 64, 128]},
    )
