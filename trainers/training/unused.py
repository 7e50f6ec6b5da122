"""Parameters that a forward pass leaves out: DDP would wait for their gradients for ever, and end with an error."""

from __future__ import annotations

import torch
from torch import nn

from trainers.messages import Meta
from trainers.phase import phase
from trainers.recipe import Recipe
from trainers.training import build
from trainers.training.distributed import World
from trainers.training.parts import set_training
from trainers.training.torch_internals import without_gradient

TRIED = 2
"""Pictures of the pass that is tried, at most: BatchNorm needs more than one."""
SHOWN = 6
"""Names in a message."""


@phase("a first pass of the model")
def leave_out_unused(recipe: Recipe, meta: Meta, model: nn.Module, world: World, epoch: int) -> list[str]:
    """Switch off the gradients of parameters that a pass does not reach, as a pass on black pictures shows.

    They stay as they are in any case: without several workers they just never get a gradient.

    Args:
        recipe: Resolved: with a micro_batch_size.
        meta: Channels and classes of the data.
        model: On its device; what the pass leaves in it is taken back.
        world: Of this worker.
        epoch: Counted from 0.

    Returns:
        Their names; none where the pass fails, which training will show.
    """
    assert recipe.micro_batch_size is not None
    pictures = min(TRIED, recipe.micro_batch_size)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    set_training(recipe, model, epoch)
    target = build.target_of(recipe).dummy(pictures, recipe.image_size)
    targets = torch.zeros(target.shape, dtype=torch.int64, device=world.device)
    images = torch.zeros(pictures, meta["channels"], *recipe.image_size, device=world.device, dtype=world.dtype)
    unused: list[str] = []
    try:
        with world.autocast():
            loss = build.make_task(recipe, meta).loss(model.forward(images), targets)  # not compiled for this size
        loss.sum().backward()
        unused = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    except Exception:  # a model of the user's own: what is wrong with it shows in training
        pass
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers.get(name, value))  # the pass may have made some
        for name, parameter in model.named_parameters():
            parameter.grad = None
            if name in unused:
                parameter.requires_grad_(False)
    return unused


def explain_left_out(error: str, model: nn.Module) -> str | None:
    """A line for people where DDP failed, as some passes leave parameters out that others use; None of other errors."""
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    names = [trained[number] for number in without_gradient(error) if number < len(trained)]
    if not names:
        return None
    shown = ", ".join(names[:SHOWN])
    return (
        f"some forward passes of the model leave {shown} out, and others do not: several workers cannot exchange such "
        "gradients; let each pass use them, train with --workers 1 or 0, or freeze them with --frozen"
    )


def describe_unused(names: list[str]) -> str:
    """A line for people."""
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"the model's forward pass leaves {shown} out of the loss: they are not trained"
