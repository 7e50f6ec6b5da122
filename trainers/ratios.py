"""Ratios of counts, and IoU, from arrays; neither torch nor Ray."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def divide(part: npt.ArrayLike, whole: npt.ArrayLike, otherwise: float = 0.0) -> npt.NDArray[np.float64]:
    """part / whole; `otherwise` where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    result = np.full(part.shape, otherwise)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def iou(confusion: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """Intersection over union of each class of a confusion matrix; NaN where it neither occurs nor is predicted."""
    both = np.diag(confusion)
    return divide(both, confusion.sum(0) + confusion.sum(1) - both, np.nan)
