"""Segmentation of pictures larger than memory: a window is moved over them, and finished rows leave at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional


def places(length: int, window: int, overlap: float) -> list[int]:
    """Where windows start along one side, so that neighbours share at least `overlap` of a window: even steps, the
    last one ends at the rim. A side shorter than the window has one window, at 0."""
    if length <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // step) + 1
    return [(length - window) * index // (count - 1) for index in range(count)]


def slide(
    model: Callable[[Tensor], Tensor], image: Tensor, window: tuple[int, int], overlap: float
) -> Iterator[tuple[int, Tensor]]:
    """Logits of an image, in bands from top to bottom.

    Where windows overlap, their logits are averaged with weights that fall linearly towards a window's rim. No more
    than the logits of one window's height are held.

    Args:
        model: takes a part of the image, (1, C, h, w), where h, w are those of `window` or of a smaller image, and
            returns logits (1, classes, ...), which are brought to h x w.
        image: (C, H, W), of any type; it stays where it is.
        window: height and width.
        overlap: share of a window that the next one covers again, 0 up to, not including, 1.

    Yields:
        The number of a band's first row, and its logits (classes, rows, W).
    """
    height, width = image.shape[-2:]
    rows, columns = min(window[0], height), min(window[1], width)
    tops, lefts = places(height, rows, overlap), places(width, columns, overlap)
    total: Tensor | None = None
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            logits = model(image[None, :, top : top + rows, left : left + columns])
            if logits.shape[-2:] != (rows, columns):
                logits = functional.interpolate(logits, (rows, columns), mode="bilinear", align_corners=False)
            if total is None:
                like = logits.new_empty(0, dtype=torch.promote_types(logits.dtype, torch.float32))
                total, weight = like.new_zeros(logits.shape[1], rows, width), like.new_zeros(rows, width)
                taper = _taper(rows, like)[:, None] * _taper(columns, like)[None, :]
            total[:, :, left : left + columns] += logits[0] * taper
            weight[:, left : left + columns] += taper
        assert total is not None
        done = min(following - top, rows)
        yield top, total[:, :done] / weight[:done]
        total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)
        weight = torch.cat([weight[done:], torch.zeros_like(weight[:done])])


def _taper(length: int, like: Tensor) -> Tensor:
    """1 at the rim of a window, rising to its middle."""
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    return torch.minimum(place, length - 1 - place) + 1
