"""Photographs of textures."""

from tune_spaces.sweep import Sweep


def crops() -> Sweep:
    """Learning rate x image size x size of the crops that large photos are cut into; --data PATH."""
    return Sweep(
        recipe="textures.cnn",
        space={
            "lr": [0.001, 0.003, 0.01],
            "image_size": [(32, 32), (64, 64)],
            "dataset_args.crop_size": [500, 1000, 2400],
        },
        grace_epochs=3,
    )
