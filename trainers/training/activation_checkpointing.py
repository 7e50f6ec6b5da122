"""Keep the inputs of blocks only; recompute the rest in the backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainers.training.torch_internals import NormBase


def blocks(model: nn.Module) -> list[nn.Module]:
    """What a model consists of: the innermost modules of several layers with weights, and the layers beside these.

    A ResNet's first convolution, its residual blocks, its last layer; the pairs of convolutions of a U-Net. None where
    weights are used in several places, which only the whole model sees.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    return [] if len(set(names.values())) < len(names) else list(dict.fromkeys(_blocks_below(model)))


def _blocks_below(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        only_holds = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if only_holds or any(_count_weights(part) > 1 for part in child.children()):
            yield from _blocks_below(child)
        elif _count_weights(child):
            yield child


def _count_weights(module: nn.Module) -> int:
    return sum(parameter.ndim > 1 for parameter in module.parameters())


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the input of each block of layers; its forward pass is recomputed in the backward pass, with the same
    random numbers. Raises ValueError where the model has no such blocks."""
    several = [block for block in blocks(model) if any(block.children())]
    if not several:
        raise ValueError(
            "activation_checkpointing: this model has no blocks of several layers to recompute; leave the flag out"
        )
    for block in several:
        block.forward = _checkpointed(block)  # names and structure stay


def _checkpointed(block: nn.Module) -> Callable[..., object]:
    forward = block.forward
    norms = [module for module in block.modules() if isinstance(module, NormBase)]

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _frozen_statistics(norms)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> object:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # a compiled graph keeps statistics apart from what it recomputes
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextlib.contextmanager
def _frozen_statistics(norms: Sequence[NormBase]) -> Iterator[None]:
    """Running statistics stay as they are: a pass that is recomputed counts once."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
