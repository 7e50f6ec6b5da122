"""Loss weights of classes from how often they occur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.upload import upload


def weigh_classes(kind: str, counts: Sequence[int], areas: Sequence[int] | None = None) -> Tensor | None:
    """Loss weights, float64 (classes,); None for kind "none".

    With total = sum(counts) and share = count / total, the kinds are

    inverse: total / (classes * count), as scikit-learn's "balanced" (King and Zeng 2001)
    median: median of the frequencies of the classes that occur / frequency, where frequency = count / area
        (Eigen and Fergus 2015, section 6.3.2); share without `areas`
    erfnet: 1 / ln(1.02 + share) (Paszke et al. 2016, ENet, section 5.2; ERFNet uses it too)

    A class that does not occur gets 0: no training loss depends on its weight, and in the validation loss the formulas'
    infinity (50.5 of "erfnet") would drown what could be learned.

    Args:
        kind: "none" or one of the above.
        counts: Images or labelled pixels of each class in training.
        areas: Of masks: labelled pixels of the images in which the class occurs.
    """
    if kind == "none":
        return None
    count = torch.tensor(counts, dtype=torch.float64)
    total = count.sum()
    if kind == "inverse":
        weights = total / (len(count) * count)
    elif kind == "median":
        frequency = count / (total if areas is None else torch.tensor(areas, dtype=torch.float64))
        weights = torch.quantile(frequency[count > 0], 0.5) / frequency
    else:
        assert kind == "erfnet", kind
        weights = 1 / (1.02 + count / total).log()
    return torch.where(count > 0, weights, 0.0)


def weight_of_labels(class_weights: Tensor | None, target: Tensor) -> Tensor | None:
    """The sum of the class weights of pictures, float64 (1,): what the sum of their weighted losses is divided by.

    Args:
        class_weights: (classes,), or None.
        target: int64 (N,).

    Returns:
        None without class weights: the losses are divided by the number of pictures.
    """
    if class_weights is None:
        return None
    return upload(class_weights, target.device, torch.float64)[target].sum()[None]
