"""U-Net on aerial photographs."""

from tune_spaces.sweep import Sweep


def drone() -> Sweep:
    """Learning rate x batch size x image size on the Semantic Drone Dataset: 36 trials, asha; --data PATH."""
    return Sweep(
        recipe="unet.drone",
        space={
            "lr": [0.0001, 0.001, 0.003, 0.01],
            "batch_size": [4, 8, 16],
            "image_size": [(128, 128), (256, 256), (512, 512)],
        },
        grace_epochs=4,
    )
