"""Test-time augmentation: what a model makes of a picture and of its mirror images, averaged.

Averaged are outputs, which are logits but where a task learns values: so the mean is an output again, of which every
task, one's own too, makes its classes, probabilities, losses and scores, and a sliding window its seams, as of the
model's own. A mean of probabilities would need to know how each task makes them of logits. Of classes, the mean of
logits is the geometric mean of the probabilities.
"""

from __future__ import annotations

import typing

import torch
from torch import Tensor, nn

from trainers.formatting import nearest
from trainers.inference import Views
from trainers.recipe import Recipe
from trainers.tasks.base import precise

_TURNS = {"flip": (0,), "flips": (0, 2), "rotations": (0, 1, 2, 3)}
"""By how many times 90 degrees; each with and without a mirror."""


def check_views(views: Views | None, recipe: Recipe) -> None:
    """Raises ValueError where these are none, or pictures of a recipe cannot be seen so."""
    if views is None:
        return
    if views not in _TURNS:
        raise ValueError(f"there is no tta {views!r}{nearest(views, typing.get_args(Views))}")
    height, width = recipe.image_size
    if height != width and any(turns % 2 for turns in _TURNS[views]):
        raise ValueError(
            f"tta={views} turns pictures by 90 degrees, and those of this run are {height}x{width}, not square; give "
            "flips"
        )


class Averaged(nn.Module):
    """A model whose output is the mean of its outputs of several views of the pictures."""

    def __init__(self, model: nn.Module, views: Views) -> None:
        super().__init__()
        self.model = model
        self.turns = _TURNS[views]

    def forward(self, images: Tensor) -> Tensor:
        """Of images (N, channels, height, width), the mean output in fp32 or better; one with height and width is
        turned back first."""
        total: Tensor | None = None
        for turns in self.turns:
            for mirror in (False, True):
                output = self.model(_view(images, turns, mirror))
                if not isinstance(output, Tensor):
                    raise ValueError(
                        f"tta averages tensors, and the model gives a {type(output).__name__}; leave it out"
                    )
                output = precise(_back(output, turns, mirror) if output.ndim == images.ndim else output)
                total = output if total is None else total + output
        assert total is not None
        return total / (2 * len(self.turns))


def _view(images: Tensor, turns: int, mirror: bool) -> Tensor:
    mirrored = images.flip(3) if mirror else images
    return torch.rot90(mirrored, turns, (2, 3)) if turns else mirrored


def _back(output: Tensor, turns: int, mirror: bool) -> Tensor:
    turned = torch.rot90(output, -turns, (2, 3)) if turns else output
    return turned.flip(3) if mirror else turned
