"""What cameras do to pictures: blur and noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainers.augmentations import _pixels
from trainers.augmentations._registry import Effect, View, augmentation, number, seeds, uniform

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    F64 = npt.NDArray[np.float64]

SIGMAS = (0.1, 2.0)
"""Of a blur, in pixels: those of SimCLR (Chen, Kornblith, Norouzi and Hinton 2020, appendix A)."""


@augmentation("a probability, 0 to 1", number(1), columns=(44, 45))
def blur(view: View, probability: float, draws: F64) -> None:
    """Gaussian, of a standard deviation from 0.1 to 2 pixels, each as likely; mirrored at the border."""
    import numpy as np

    rows = np.flatnonzero(draws[:, 0] < probability)
    radius = min(math.ceil(3 * SIGMAS[1]), min(view.size) - 1)
    if len(rows) and radius:
        view.effects.append(Effect(_blur, (_pixels.gaussians(uniform(*SIGMAS, draws[rows, 1]), radius),), rows))


@augmentation("the largest standard deviation, 0 to 1, of pictures in [0, 1]", number(1), columns=(46, 47))
def noise(view: View, most: float, draws: F64) -> None:
    """Gaussian, of each pixel and channel; its standard deviation is uniform in [0, the largest]."""
    deviation = most * draws[:, 0]
    view.effects.append(Effect(_noise, (deviation[:, None, None, None], seeds(draws[:, 1]))))


def _blur(images: Tensor, kernels: Tensor) -> Tensor:
    from torch.nn import functional

    radius = kernels.shape[1] // 2
    return _pixels.smooth(functional.pad(images, (radius,) * 4, mode="reflect"), kernels)


def _noise(images: Tensor, deviation: Tensor, seeds: Tensor) -> Tensor:
    return images + deviation * _pixels.normals(seeds, images.shape[1:]).to(images.dtype)
