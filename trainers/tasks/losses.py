"""Losses by name. `focal+dice` is the sum of two, each a sum over the batch divided by what belongs to it.

Of a picture, or of each pixel of a mask; divided by the sum of their class weights (their number, without weights):

    cross_entropy   of the softmax; of one logit, of the sigmoid
    bce             binary cross-entropies, each class against the rest, added up over the classes
    focal           (1 - p)^gamma times the cross-entropy, p the probability of the true class (Lin et al. 2017,
                    "Focal loss for dense object detection", ICCV); class weights are its alpha

Of each image of masks, divided by the number of images with a labelled pixel; means over the classes in the image:

    dice            Milletari, Navab and Ahmadi 2016, "V-Net", 3DV; class weights do not enter it
    tversky         Salehi, Erdogmus and Gholipour 2017, "Tversky loss function for image segmentation using 3D fully
                    convolutional deep networks", MLMI
    lovasz          Berman, Rannen Triki and Blaschko 2018, "The Lovász-Softmax loss", CVPR; of one logit the Lovász
                    hinge. Per image: that of a whole batch would depend on how it is cut into micro-batches
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trainers.datasets import IGNORED
from trainers.values import matches

OF_PIXELS = ("cross_entropy", "bce", "focal")
OF_IMAGES = ("dice", "tversky", "lovasz")
ALL = (*OF_PIXELS, *OF_IMAGES)


class Parameters(NamedTuple):
    """Of the losses."""

    label_smoothing: float = 0.0
    """In [0, 1): the share of a label that goes to all classes alike (Szegedy et al. 2016, section 7)."""
    focal_gamma: float = 2.0
    """0 or more: how little counts what is easy; 0 is the cross-entropy."""
    focal_alpha: float | None = None
    """In (0, 1): the weight of the foreground; the background has the rest. None: both weigh 1."""
    tversky_alpha: float = 0.3
    """0 or more: the weight of false positives."""
    tversky_beta: float = 0.7
    """0 or more: the weight of false negatives."""


DEFAULTS = Parameters()

_KNOWN_TO = {
    "label_smoothing": ("cross_entropy", "bce"),
    "focal_gamma": ("focal",),
    "focal_alpha": ("focal",),
    "tversky_alpha": ("tversky",),
    "tversky_beta": ("tversky",),
}


def read(loss: str, known: Sequence[str], parameters: Parameters) -> tuple[str, ...]:
    """The names of the losses that are added up.

    Args:
        loss: Names joined by "+".
        known: Those that the task has.
        parameters: Of the losses.

    Raises:
        ValueError: A name is not known or stands there twice; a parameter is not allowed, or none of these losses has
            it.
    """
    names = tuple(loss.split("+"))
    if not set(names) <= set(known):
        raise ValueError(
            f"loss={loss!r} is not known; choose from {', '.join(known)}, or give a sum of them, such as "
            f"{known[0]}+{known[-1]}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"loss={loss!r} has a loss twice; give each once")
    _check(parameters)
    for name, value in parameters._asdict().items():
        if value != getattr(DEFAULTS, name) and not set(_KNOWN_TO[name]) & set(names):
            raise ValueError(
                f"{name}={value} is a parameter of {' and '.join(_KNOWN_TO[name])}, and loss={loss!r}; leave it out"
            )
    return names


def _check(parameters: Parameters) -> None:
    smoothing, gamma, alpha, positives, negatives = parameters
    allowed = {
        "label_smoothing": (_is_number(smoothing) and 0 <= smoothing < 1, "0 up to, not including, 1"),
        "focal_gamma": (_is_number(gamma) and gamma >= 0, "a number, 0 or more"),
        "focal_alpha": (alpha is None or (_is_number(alpha) and 0 < alpha < 1), "a number between 0 and 1, or none"),
        "tversky_alpha": (_is_number(positives) and positives >= 0, "a number, 0 or more"),
        "tversky_beta": (_is_number(negatives) and negatives >= 0, "a number, 0 or more"),
    }
    for name, (right, what) in allowed.items():
        if not right:
            raise ValueError(f"{name}={getattr(parameters, name)} is not allowed; give {what}")
    if positives == negatives == 0:
        raise ValueError("tversky_alpha=0 and tversky_beta=0: no error would count; give one of them above 0")


def _is_number(value: object) -> bool:
    return matches(value, float)


# ---- of pictures, or of pixels ----


def one_against_rest(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Binary cross-entropies of the classes, added up, (N, ...).

    Args:
        logits: (N, classes, ...).
        target: int64 (N, ...); where it is no class, all are absent.
        smoothing: The share s of the truth t that goes to all classes alike: (1 - s) t + s / classes.
    """
    classes = logits.shape[1]
    number = torch.arange(classes, device=target.device).view(-1, *[1] * (target.ndim - 1))
    losses = -functional.logsigmoid(torch.where(target[:, None] == number, logits, -logits)).sum(1)
    if not smoothing:
        return losses
    even = -functional.logsigmoid(logits) / classes - functional.logsigmoid(-logits) * (1 - 1 / classes)
    return (1 - smoothing) * losses + smoothing * even.sum(1)


def smoothed(truth: Tensor, smoothing: float, classes: int) -> Tensor:
    """The truth, 0 or 1, of which a share goes to all classes alike."""
    return truth * (1 - smoothing) + smoothing / classes if smoothing else truth


def focal(cross_entropies: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma (-ln p), for cross-entropies -ln p, of the same shape.

    1 - p is computed as -expm1(ln p), which is exact to the last digits where p is near 1.
    """
    wrong = -torch.expm1(-cross_entropies)
    # At 0 the slope of a power below 1 is infinite, and infinity times 0 is NaN
    return wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** gamma * cross_entropies


# ---- of images of masks: (N, channels), of each channel against the rest ----


def dice(probabilities: Tensor, truth: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t) + 1) over the labelled pixels, (N, channels); t is 0 or 1.

    The ratio of Milletari et al., with 1 added above and below: an empty truth is best met by an empty prediction.

    Args:
        probabilities: (N, channels, h, w).
        truth: bool (N, channels, h, w).
        target: int64 (N, h, w); what is IGNORED there does not count.
    """
    p = probabilities * (target != IGNORED)[:, None]
    both = torch.where(truth, p, 0).sum((2, 3))
    return 1 - (2 * both + 1) / (p.square().sum((2, 3)) + truth.sum((2, 3), dtype=torch.int32) + 1)


def tversky(probabilities: Tensor, truth: Tensor, target: Tensor, parameters: Parameters) -> Tensor:
    """1 - (TP + 1) / (TP + alpha FP + beta FN + 1), with TP = sum(p t), FP = sum(p (1 - t)), FN = sum((1 - p) t).

    The index of Salehi et al., equation 3, with 1 added above and below, as for `dice`, whose arguments it takes.
    """
    p = probabilities * (target != IGNORED)[:, None]
    both = torch.where(truth, p, 0).sum((2, 3))
    positives, negatives = p.sum((2, 3)) - both, truth.sum((2, 3), dtype=torch.int32) - both  # falsely so
    wrong = parameters.tversky_alpha * positives + parameters.tversky_beta * negatives
    return wrong / (both + wrong + 1)


def lovasz(errors: Tensor, truth: Tensor, target: Tensor) -> Tensor:
    """The Lovász extension of the Jaccard loss 1 - IoU, at the errors of the labelled pixels, (N, channels).

    Berman et al., algorithm 1. With the errors in descending order, each is multiplied by what the Jaccard loss grows
    by when its pixel is wrong too: with I true pixels that are still right, and a union of U pixels that grows by
    those which are falsely taken, 1 / U for a true pixel, else I / (U (U - 1)). As a difference of two nearly equal
    ratios, as it is usually computed, it would lose its digits.

    Args:
        errors: Of a probability p, 1 - p where it should be 1, else p; for the hinge 1 - z and 1 + z of a logit z.
            (N, channels, h, w); those below 0 count 0.
        truth, target: As for `dice`.
    """
    labelled = (target != IGNORED)[:, None]
    ordered, order = torch.where(labelled, errors, -torch.inf).flatten(2).sort(dim=2, descending=True, stable=True)
    true = truth.flatten(2).gather(2, order)
    total = truth.flatten(2).sum(2, keepdim=True, dtype=torch.int32)
    right = (total - true.cumsum(2, dtype=torch.int32)).to(errors.dtype)
    union = (total + (~true).cumsum(2, dtype=torch.int32)).to(errors.dtype)
    # A union of 1 that a false pixel has made: there is no true one, and the loss goes from 0 to 1
    growth = torch.where(true | (union == 1), 1 / union, right / (union * (union - 1).clamp(min=1)))
    return (functional.relu(ordered) * growth).sum(2)
