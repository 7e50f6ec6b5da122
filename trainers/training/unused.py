"""Parameters that a forward pass leaves out: DDP would wait for their gradients for ever, and end with an error."""

from __future__ import annotations

import torch
from torch import nn

from trainers.data import targets
from trainers.instances import each
from trainers.messages import Meta
from trainers.phase import phase
from trainers.recipe import Recipe
from trainers.training import build
from trainers.training.distributed import World
from trainers.training.parts import set_training
from trainers.training.torch_internals import without_gradient

TRIED = 2
"""Pictures of a pass that is tried, at most: BatchNorm needs more than one."""
PASSES = 4
"""That are tried where the first leaves something out."""
SHOWN = 6
"""Names in a message."""


@phase("a first pass of the model")
def leave_out_unused(recipe: Recipe, meta: Meta, model: nn.Module, world: World, epoch: int) -> list[str]:
    """Switch off the gradients of parameters that no pass reaches, as passes on black pictures show, in any worker.

    They stay as they are in any case: without several workers they just never get a gradient. Of a model that leaves
    out its blocks by chance, those that a pass reached stay.

    Args:
        recipe: Resolved: with a micro_batch_size.
        meta: Channels and classes of the data.
        model: On its device; what the pass leaves in it is taken back.
        world: Of this worker.
        epoch: Counted from 0.

    Returns:
        Their names, the same in all workers; none where a pass fails, which training will show.
    """
    assert recipe.micro_batch_size is not None
    pictures = min(TRIED, recipe.micro_batch_size)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    set_training(recipe, model, epoch)
    made, _ = targets.stand_in(build.target_of(recipe), pictures, recipe.image_size, len(meta["classes"]))
    made = each(lambda part: part.to(world.device), made)
    images = torch.zeros(pictures, meta["channels"], *recipe.image_size, device=world.device, dtype=world.dtype)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    left = list(trained)
    try:
        for _ in range(PASSES):
            with world.autocast():
                loss = build.make_task(recipe, meta).loss(model.forward(images), made)  # not compiled for this size
            loss.sum().backward()
            left = [name for name in left if trained[name].grad is None]
            if not left:
                break
    except Exception:  # a model of the user's own: what is wrong with it shows in training
        left = []
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers.get(name, value))  # the pass may have made some
        for parameter in model.parameters():
            parameter.grad = None
    everywhere = world.gather_objects(left)
    unused = [name for name in left if all(name in each for each in everywhere)]
    for name in unused:
        trained[name].requires_grad_(False)
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
