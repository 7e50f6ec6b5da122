"""1,797 handwritten digits of 8x8 grey pixels, built into scikit-learn: nothing to download.

Source: the test half of the UCI "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998),
https://archive.ics.uci.edu/dataset/80, CC BY 4.0, as in `sklearn.datasets.load_digits`. It has no splits: a
fifth, seeded and stratified, is val, the rest train. It is read from no folder: leave --data out.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainers.datasets import Item, Source
from trainers.datasets._files import assign_splits, row_items
from trainers.pixels import Pixels

SAMPLES_PER_ITEM = 256


def source(data: str | None, *, split_seed: int = 0) -> Source:
    if data is not None:
        raise ValueError(f"the data set digits comes with scikit-learn and reads no folder; leave --data {data} out")
    _, labels = _digits()
    assigned = assign_splits(labels.tolist(), val_share=0.2, seed=split_seed, what="digits")
    splits = {
        split: row_items(rows, labels.tolist(), size=SAMPLES_PER_ITEM, path=None, name=split)
        for split, rows in assigned.items()
    }
    return Source(classes=[str(digit) for digit in range(10)], channels=1, splits=splits)


def read(item: Item) -> list[tuple[Pixels, int]]:
    images, _ = _digits()
    return [(images[row], target) for row, target in zip(item.args["rows"], item.targets, strict=True)]


@lru_cache(maxsize=1)
def _digits() -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Images (1797, 8, 8, 1) and labels (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * 255 / 16).astype(np.uint8)  # the raw values are 0 to 16
    return grey[:, :, :, None], digits.target.astype(np.int64)
