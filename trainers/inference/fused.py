"""BatchNorm made part of the convolution before it: the same numbers from fewer layers.

Which normalisation follows which convolution is seen, not read: the model is called once, and a normalisation belongs
to the convolution that returned the very tensor which it is given. So it works for models that no tracer can follow.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trainers.training.torch_internals import tree_leaves

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
TOLERANCE = 1e-4
"""Of the largest number of an output, by which it may differ."""


class Pair(NamedTuple):
    """Names of two layers, of which the second is given what the first returns."""

    convolution: str
    normalisation: str


class Fused(NamedTuple):
    """A model with fewer layers."""

    model: nn.Module
    normalisations: int
    """BatchNorm layers of the model."""
    folded: int
    """Those of them that are part of a convolution now."""

    def __str__(self) -> str:
        if not self.normalisations:
            return "there is no BatchNorm"
        return f"{self.folded} of {self.normalisations} BatchNorm layers are folded into convolutions"


def fuse(model: nn.Module, images: Tensor) -> Fused:
    """A copy of a model whose BatchNorm layers are part of the convolutions that they follow, in evaluation mode.

    A normalisation stays where something else uses what its convolution returns, and where one of the two layers is
    called with others too: the output, which would be another, is compared.

    Args:
        model: takes `images`; it is not changed.
        images: (N, C, H, W).
    """
    with torch.no_grad():
        whole = copy.deepcopy(model).eval()
        wanted = whole(images)
        pairs = _pairs(whole, images)
        if not _alike(_without(whole, pairs)(images), wanted):
            pairs = [pair for pair in pairs if _alike(_without(whole, [pair])(images), wanted)]
        smaller = _without(whole, pairs)
    return Fused(smaller, sum(isinstance(each, nn.BatchNorm2d) for each in whole.modules()), len(pairs))


def _pairs(model: nn.Module, images: Tensor) -> list[Pair]:
    """Those that are always called one after the other."""
    made: dict[int, tuple[str, Tensor]] = {}  # with the tensor, so that no other one gets its number
    called, following = Counter[str](), Counter[Pair]()

    def note(name: str, output: Tensor) -> None:
        called[name] += 1
        made[id(output)] = (name, output)

    def follow(name: str, given: Tensor) -> None:
        called[name] += 1
        if id(given) in made:
            following[Pair(made[id(given)][0], name)] += 1

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: note(name, output)))
        elif _rest(module) is not None:
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: follow(name, args[0])))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair, times in following.items() if times == called[pair[0]] == called[pair[1]]]


def _rest(module: nn.Module) -> nn.Module | None:
    """What a normalisation does once its convolution normalises; None: it is none that can be folded."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return None
    if type(module) is nn.BatchNorm2d:
        return nn.Identity()
    parts = [getattr(module, name, None) for name in ("drop", "act")]  # timm's, with an activation
    found = [each for each in parts if isinstance(each, nn.Module)]
    return nn.Sequential(*found) if len(found) == len(parts) else None


def _without(model: nn.Module, pairs: list[Pair]) -> nn.Module:
    """A copy in which these normalisations are part of their convolutions."""
    smaller = copy.deepcopy(model)
    for pair in pairs:
        convolution, norm = map(smaller.get_submodule, pair)
        rest = _rest(norm)
        assert isinstance(convolution, CONVOLUTIONS)
        assert isinstance(norm, nn.BatchNorm2d)
        assert rest is not None
        joined = fuse_conv_bn_eval(convolution, norm, isinstance(convolution, nn.ConvTranspose2d))
        smaller.set_submodule(pair.convolution, joined)
        smaller.set_submodule(pair.normalisation, rest.eval())
    return smaller


def _alike(one: object, other: object) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(float((a - b).abs().max()) <= TOLERANCE * max(1e-6, float(b.abs().max())) for a, b in pairs)
