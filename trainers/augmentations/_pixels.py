"""A random number for each pixel, and smooth fields of them: functions of a sample's seed alone, on any device.

The numbers are SplitMix64's (Steele, Lea and Flood 2014, figure 17): number i of a seed is its finaliser of
seed + i * GOLDEN. Everything is done pixel by pixel, so that a sample does not depend on its batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    F64 = npt.NDArray[np.float64]

GOLDEN, FIRST, SECOND = (
    word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # as torch has them, signed


def words(seeds: Tensor, count: int) -> Tensor:
    """Random bits: int64 (n, count), of seeds int64 (n,)."""
    import torch

    state: Tensor = torch.arange(1, count + 1, device=seeds.device) * GOLDEN + seeds[:, None]
    for shift, factor in ((30, FIRST), (27, SECOND)):
        state.bitwise_xor_(_shifted(state, shift)).mul_(factor)
    return state.bitwise_xor_(_shifted(state, 31))


def _shifted(state: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (state >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def halves(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Random numbers of 16 bits: int16 (n, *shape)."""
    import torch

    pixels = math.prod(shape)
    return words(seeds, -(-pixels // 4)).view(torch.int16)[:, :pixels].reshape(len(seeds), *shape)


def octets(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Random numbers of 8 bits: uint8 (n, *shape)."""
    import torch

    pixels = math.prod(shape)
    return words(seeds, -(-pixels // 8)).view(torch.uint8)[:, :pixels].reshape(len(seeds), *shape)


def normals(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Of the standard normal distribution, by 65,536 of its quantiles, float32 (n, *shape)."""
    from trainers.upload import upload

    return upload(_quantiles(), seeds.device)[halves(seeds, shape).int() + 2**15]


@functools.cache
def _quantiles() -> npt.NDArray[np.float32]:
    """Those of (i + 1/2) / 65,536: within 4.3 deviations."""
    import numpy as np

    normal = NormalDist()
    upper = [normal.inv_cdf(0.5 + (i + 0.5) / 2**16) for i in range(2**15)]
    return np.array([*(-value for value in reversed(upper)), *upper], np.float32)


def gaussians(sigmas: F64, radius: int) -> F64:
    """Kernels (n, 2 radius + 1) of standard deviations (n,) in pixels; each adds up to 1."""
    import numpy as np

    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigmas[:, None]) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def smooth(images: Tensor, kernels: Tensor) -> Tensor:
    """Each picture by its own kernel, in both directions: (n, C, h, w) without the kernel's radius at each side.

    Args:
        images: (n, C, h + 2 radius, w + 2 radius).
        kernels: (n, 2 radius + 1).
    """
    for axis in (2, 3):
        length = images.shape[axis] - kernels.shape[1] + 1
        result = None
        for place, weight in enumerate(kernels[:, None, None, None].unbind(-1)):
            part = images.narrow(axis, place, length)
            result = part * weight if result is None else result.addcmul_(part, weight)
        assert result is not None
        images = result
    return images


def displacements(seeds: Tensor, strength: float, smoothness: float, size: tuple[int, int]) -> Tensor:
    """How far pixels move, float32 (n, 2, *size), in pixels: x, then y. See `Elastic`."""
    import numpy as np

    from trainers.upload import upload

    radius = math.ceil(3 * smoothness)
    field = halves(seeds, (2, size[0] + 2 * radius, size[1] + 2 * radius)).float() * (strength / 2**15)
    kernel = upload(gaussians(np.array([smoothness]), radius), field.device, field.dtype)
    return smooth(field, kernel)
