"""DeepLabv3+ on street scenes."""

from tune_spaces.sweep import Sweep


def batch() -> Sweep:
    """Batch size 4, 8, 12, 16 on CamVid; --data PATH."""
    return Sweep(
        recipe="deeplab.camvid",
        space={"batch_size": [4, 8, 12, 16]},
        scheduler="none",
    )
