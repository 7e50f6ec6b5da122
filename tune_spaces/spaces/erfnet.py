"""ERFNet on street scenes."""

from tune_spaces.sweep import Sweep


def batch() -> Sweep:
    """Batch size 2, 3, 4, 6, 8 of the decoder's stage at 512x1024 on Cityscapes; --data PATH --init-from RUN."""
    return Sweep(
        recipe="erfnet.decoder",
        space={"batch_size": [2, 3, 4, 6, 8]},
        scheduler="none",
    )
