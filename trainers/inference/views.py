"""Test-time augmentation: what a model makes of a picture and of its mirror images, averaged.

Averaged are outputs, which are logits but where a task learns values: so the mean is an output again, of which every
task, one's own too, makes its classes, probabilities, losses and scores, and a sliding window its seams, as of the
model's own. A mean of probabilities would need to know how each task makes them of logits. Of classes, the mean of
logits is the geometric mean of the probabilities. Of boxes, distances from points to their sides are averaged too. Of
masks, which are sums of prototypes by coefficients, the mean is the sum of the prototypes of all views.
"""

from __future__ import annotations

import typing

import torch
from torch import Tensor, nn

from trainers.formatting import nearest
from trainers.inference import Views
from trainers.instances import parts
from trainers.recipe import FROM_DATA, Recipe
from trainers.registry import load
from trainers.tasks.base import Output, precise

SIDES_OF_MIRROR, SIDES_OF_TURN = [2, 1, 0, 3], [3, 0, 1, 2]
"""Which of left, top, right, bottom of a view are those of the picture: of its mirror image; turned by 90 degrees."""
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
    if hasattr(load("models", recipe.model), "anchors"):
        raise ValueError(f"tta={views} is not for models with anchors, such as {recipe.model}; leave it out")
    if (points := points_of(recipe)) is not None:
        Orders(points, recipe, views)


def points_of(recipe: Recipe) -> Tensor | None:
    """The points (P, 3) that a model predicts boxes from: x, y in pixels, stride; None: it has none."""
    give = getattr(load("models", recipe.model), "points", None)
    own = {name: value for name, value in recipe.model_args.items() if name not in FROM_DATA}
    return None if give is None else give(recipe.image_size, **own)


class Orders(nn.Module):
    """Brings the outputs of points in views of a picture back to the picture: (N, P, 4 or more), of which the first
    four are distances to the left, top, right and bottom side."""

    orders: Tensor

    def __init__(self, points: Tensor, recipe: Recipe, views: Views) -> None:
        """
        Args:
            points: (P, 3), of the picture: x, y in pixels, stride.
            recipe: says how large pictures are.
            views: of a picture, in their order.

        Raises:
            ValueError: a view of the points is another set of points.
        """
        super().__init__()
        height, width = recipe.image_size
        places = {_place(*point): number for number, point in enumerate(points.tolist())}
        found = []
        for turns, mirror in _views(views):
            moved = [_move(point, turns, mirror, height, width) for point in points.tolist()]
            if not all(_place(*point) in places for point in moved):
                raise ValueError(
                    f"tta={views} needs points that lie the same way in every view, and those of the model "
                    f"{recipe.model} at {height}x{width} do not; leave it out, or take an image_size that all its "
                    "strides divide"
                )
            found.append([places[_place(*point)] for point in moved])
        self.register_buffer("orders", torch.tensor(found), persistent=False)

    def forward(self, output: Tensor, view: int, turns: int, mirror: bool) -> Tensor:
        """The output of a view, of this number, as of the picture itself."""
        sides = list(range(4))
        for _ in range(turns):
            sides = [sides[side] for side in SIDES_OF_TURN]
        if mirror:
            sides = [sides[side] for side in SIDES_OF_MIRROR]
        return output[:, self.orders[view]][..., [*sides, *range(4, output.shape[2])]]


def _place(x: float, y: float, stride: float) -> tuple[int, int, int]:
    """Of a point, to 1/64 of a pixel."""
    return round(64 * x), round(64 * y), round(64 * stride)


def _move(point: list[float], turns: int, mirror: bool, height: int, width: int) -> tuple[float, float, float]:
    """Where a point of a picture lies in a view of it."""
    x, y, stride = point
    x = width - x if mirror else x
    for _ in range(turns):  # counter-clockwise
        x, y, height, width = y, width - x, width, height
    return x, y, stride


def _views(views: Views) -> list[tuple[int, bool]]:
    """By how many times 90 degrees each is turned, and whether it is mirrored first."""
    return [(turns, mirror) for turns in _TURNS[views] for mirror in (False, True)]


class Averaged(nn.Module):
    """A model whose output is the mean of its outputs of several views of the pictures."""

    def __init__(self, model: nn.Module, views: Views, orders: Orders | None = None) -> None:
        """
        Args:
            model: gives logits, of whole pictures or over them; or of points.
            views: whose outputs are averaged.
            orders: of a model that predicts boxes from points.
        """
        super().__init__()
        self.model = model
        self.views = _views(views)
        self.orders = orders

    def forward(self, images: Tensor) -> Output:
        """Of images (N, channels, height, width), the mean output in fp32 or better; one with height and width is
        turned back first."""
        total: Tensor | None = None
        masks: list[tuple[Tensor, Tensor]] = []  # coefficients and prototypes of each view
        for number, (turns, mirror) in enumerate(self.views):
            output = self.model(_view(images, turns, mirror))
            points, *rest = parts(output)
            if not isinstance(points, Tensor) or len(rest) > (self.orders is not None):
                raise ValueError(f"tta averages tensors, and the model gives a {type(output).__name__}; leave it out")
            if self.orders is not None:
                points = self.orders(points, number, turns, mirror)
            elif points.ndim == images.ndim:
                points = _back(points, turns, mirror)
            points = precise(points)
            for prototypes in rest:
                own = points.shape[2] - prototypes.shape[1]
                masks.append((points[..., own:] / len(self.views), precise(_back(prototypes, turns, mirror))))
                points = points[..., :own]
            total = points if total is None else total + points
        assert total is not None
        mean = total / len(self.views)
        if not masks:
            return mean
        coefficients, prototypes = zip(*masks, strict=True)
        return torch.cat([mean, *coefficients], 2), torch.cat(prototypes, 1)


def _view(images: Tensor, turns: int, mirror: bool) -> Tensor:
    mirrored = images.flip(3) if mirror else images
    return torch.rot90(mirrored, turns, (2, 3)) if turns else mirrored


def _back(output: Tensor, turns: int, mirror: bool) -> Tensor:
    turned = torch.rot90(output, -turns, (2, 3)) if turns else output
    return turned.flip(3) if mirror else turned
