"""Pictures of a micro-batch mixed with each other, after the changes of each by itself.

The partners are a permutation of the micro-batch, and the shares are the same for all of it. So no soft targets are
needed: the loss is share * loss(targets) + (1 - share) * loss(targets of the partners), and what it is divided by, of
class weights too, is the same for both. Partners, share and box depend on (seed, epoch, numbers of the samples in the
micro-batch) alone; on the micro-batch, as BatchNorm does, and not on who computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.augmentations import AUGMENTATIONS, MIXING_DRAWS, Mixing, mixing_of
from trainers.data import sampler
from trainers.upload import upload


class Mixture(NamedTuple):
    """How a micro-batch of N is mixed."""

    share: float
    """Of each picture; its partner has the rest."""
    partners: Tensor
    """Numbers within the micro-batch, int64 (N,), on the device."""
    box: tuple[int, int, int, int] | None
    """See `augmentations.Mixed`."""

    def blend(self, images: Tensor) -> Tensor:
        """Mix pictures (N, C, H, W), in place."""
        if self.box is not None:
            return self.paste(images)
        others = images.index_select(0, self.partners)
        return images.mul_(self.share).add_(others, alpha=1 - self.share)

    def paste(self, values: Tensor) -> Tensor:
        """Paste the partners' boxes into pictures or masks (N, ..., H, W), in place."""
        assert self.box is not None
        top, left, bottom, right = self.box
        part = values[..., top:bottom, left:right]
        part.copy_(part.index_select(0, self.partners))
        return values


def mixture(
    settings: Mapping[str, object],
    *,
    size: tuple[int, int],
    seed: int,
    epoch: int,
    numbers: npt.NDArray[np.integer],
    device: torch.device,
) -> Mixture | None:
    """How a micro-batch is mixed; None: it is not.

    Args:
        settings: A recipe's `augment`.
        size: Height and width of the pictures.
        seed: The recipe's.
        epoch: Number of the epoch, from 0.
        numbers: Those of the samples, (N,).
        device: Where the pictures are.
    """
    names = mixing_of(settings)
    if not names or len(numbers) < 2:
        return None
    keys = sampler.mix(seed, epoch, 6, numbers)
    partners = upload(np.argsort(keys, kind="stable"), device)
    bits = sampler.mix(keys.sum(), np.arange(1 + MIXING_DRAWS))
    which, *draws = ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
    name = names[int(which * len(names))]
    chosen = cast(Mixing, AUGMENTATIONS[name])
    mixed = chosen.draw(cast(float, settings[name]), draws, size)
    return Mixture(mixed.share, partners, mixed.box)
