"""Predictions of boxes and masks: what there is of boxes, and the mask of each object, in the picture's own pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from trainers.data.resize import Pixels
from trainers.inference.boxes import Floats, Placed
from trainers.inference.predictions.objects import Look, Objects, Seen, pick
from trainers.instances import Instances
from trainers.outlines import Piece
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Json
from trainers.runs import instance_figures
from trainers.tasks import mask_loss
from trainers.tasks.base import BoxTask, MaskTask, Output, Task


class Outlined(Objects):
    """The objects of each picture with their masks: in detections.json and overlays/, and in the scores."""

    answers: Sequence[str] = ("detections", "masks")

    def look(self, task: Task, output: Output, size: tuple[int, int]) -> list[Look]:
        found = _mask_task(task).find(output, size)
        rows = [each[each[:, 5] >= 0] for each in found]
        pairs = zip(rows, output[1], strict=True)
        return [Look(each[:, :6].double().cpu().numpy(), each, prototypes) for each, prototypes in pairs]

    def pieces(self, task: Task, found: Floats, looks: Sequence[tuple[Look, Placed]]) -> list[Piece]:
        pieces = []
        for left, top, right, bottom, _, _, number, row in found.tolist():
            look, place = looks[int(number)]
            assert look.prototypes is not None
            logits, stride = _mask_task(task).logits(look.rows[int(row)][None], look.prototypes)
            rows, columns = _middles(top, bottom), _middles(left, right)
            seen_at = (
                (rows + 0.5 - place.shift[1]) / place.scale[1],
                (columns + 0.5 - place.shift[0]) / place.scale[0],
            )
            down, across = (torch.from_numpy(each).to(logits) for each in seen_at)
            inside = mask_loss.enlarge(logits, down, across, stride)[0] > 0
            pieces.append(Piece(math.ceil(top - 0.5), math.ceil(left - 0.5), inside.cpu().numpy()))
        return pieces

    def tinted(self, picture: Pixels, seen: Seen) -> Pixels:
        return instance_figures.overlay(picture, seen.pieces or (), [int(each) for each in seen.boxes[:, 5]])

    def labels(self, seen: Seen, most: int, size: tuple[int, int]) -> Instances[Tensor]:
        layers = torch.zeros(1, most, *size, dtype=torch.uint8)
        for layer, piece in zip(layers[0], seen.pieces or (), strict=False):
            layer[piece.window()] = torch.from_numpy(piece.pixels).to(torch.uint8)
        return Instances(super().labels(seen, most, size), layers)

    def check(self, task: Task, recipe: Recipe) -> BoxTask:
        _mask_task(task)
        return cast(BoxTask, task)

    def answer(self, task: Task, output: Output, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Detections, and the probabilities of their masks, (N, max_detections, h, w)."""
        found = pick(cast(BoxTask, task), output, size)
        logits = torch.einsum("nmk,nkhw->nmhw", found[..., 6:], output[1].to(found.dtype))
        return found[..., :6].float(), logits.sigmoid().float()

    def output(self, meta: DatasetFacts, task: Task) -> Json:
        boxes, most = super().output(meta, task)["output"], cast(BoxTask, task).max_detections
        means = (
            f"two tensors; {boxes}; and (batch, {most}, height, width), the probability that a place belongs to the "
            "object of that row, at a part of the input's size: enlarge it to the input, linearly, and take what is "
            "above 0.5 inside the box"
        )
        return {"output": means}


def _mask_task(task: Task) -> MaskTask:
    if not isinstance(task, MaskTask):
        raise ValueError(
            "a task of one's own for masks of objects needs find(), logits() and count(): see tasks/base.py"
        )
    return task


def _middles(first: float, last: float) -> Floats:
    """The pixels whose middles lie between two sides of a box."""
    return np.arange(math.ceil(first - 0.5), math.ceil(last - 0.5), dtype=np.float64)
