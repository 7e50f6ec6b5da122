"""The random changes of a batch, drawn for each sample from (seed, epoch, sample number) alone.

What they are, and what each takes and does: `trainers/augmentations`. Here they are applied: the geometry of all of
them is one mapping, by which pictures and masks are sampled once; then the values of the pictures change; then boxes
are erased. Pixels are copied exactly unless something asks for values between pixels; these are bilinear, without
antialiasing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.augmentations import AUGMENTATIONS, Augmentation, Effect, Elastic, Erased, View, _pixels, columns_of
from trainers.data import sampler
from trainers.phase import phase
from trainers.upload import upload

F64 = npt.NDArray[np.float64]


class Augmented(NamedTuple):
    """Changed pictures, and what was done to them."""

    images: Tensor
    """(N, C, h, w)."""
    masks: Tensor | None
    """(N, h, w) or (N, L, h, w)."""
    mapping: F64
    """Rows (a, b, c, d, e, f), (N, 6): the picture's (x, y) shows the stored one's (a x + b y + c, d x + e y + f), in
    pixels from the top left corner; the middle of the first pixel is (0.5, 0.5)."""
    erased: Erased | None
    """Boxes that show nothing of it."""


@phase("augmenting pictures", on="device")
def augment(
    images: Tensor,
    settings: Mapping[str, object],
    *,
    size: tuple[int, int],
    seed: int,
    epoch: int,
    ids: npt.NDArray[np.integer],
    masks: Tensor | None = None,
    ignore_index: int = 255,
) -> Augmented:
    """Change images, and their masks, at random.

    What becomes of a sample depends on (seed, epoch, ids[i]) alone. The inputs are left as they are.

    Args:
        images: (N, C, H, W), any float type, in [0, 1].
        settings: A recipe's `augment`: name -> value, checked by `augmentations.check`.
        size: Height and width (h, w) of the output.
        seed: The recipe's.
        epoch: Number of the epoch, from 0.
        ids: The samples' numbers, (N,).
        masks: (N, H, W), or several of a picture, (N, L, H, W), any integer type.
        ignore_index: What masks become outside the stored picture.

    Returns:
        Images and masks of the inputs' types, device and memory format, the inputs themselves where there is nothing to
        do; and what was done.

    Raises:
        ValueError: Saturation or hue is on, and images have neither 1 nor 3 channels.
    """
    draws = sampler.uniforms(seed, epoch, ids, columns_of(settings))
    assert len(draws) == len(images), f"{len(draws)} ids for {len(images)} images"
    view = View((images.shape[-2], images.shape[-1]), size, images.shape[1])
    for name, augmentation in AUGMENTATIONS.items():
        if isinstance(augmentation, Augmentation) and (value := settings.get(name)):
            augmentation.change(view, value, draws[:, augmentation.columns])
    mapping = _mapping(view, len(images))

    # Half types are too coarse for positions, and some devices have no float64.
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    table = upload(torch.from_numpy(mapping).to(dtype), images.device)[:, :, None, None]

    result = images
    if view.bilinear:
        result, masks = _interpolate(images.to(dtype), masks, table, view, ignore_index)
    elif view.stored != tuple(size) or (mapping != [1, 0, 0, 0, 1, 0]).any():
        result, masks = _copy(images, masks, table, size, view.fill, ignore_index)
    if view.effects or view.erased is not None:
        result = result.to(dtype, copy=result is images)
    for effect in view.effects:
        result = _change(result, effect)
    if view.erased is not None:
        result, masks = _erase(result, masks, view.erased, ignore_index)
    result = result.to(images.dtype).contiguous(memory_format=_memory_format(images))
    return Augmented(result, masks, mapping, view.erased)


def center(images: Tensor, size: tuple[int, int], masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """What evaluation sees: the middle, `size` (h, w), of images (N, C, H, W) and masks (N, H, W) or (N, L, H, W)."""
    height, width = images.shape[-2:]
    smaller = height < size[0] or width < size[1]
    assert not smaller, f"images of {height}x{width} are smaller than {size}"
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    box = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    images = images[box].contiguous(memory_format=_memory_format(images))
    return images, None if masks is None else masks[box].contiguous()


def center_mapping(stored: tuple[int, int], size: tuple[int, int], count: int) -> F64:
    """`Augmented.mapping` of `center`."""
    return _mapping(View(stored, size, channels=0), count)


def _mapping(view: View, count: int) -> F64:
    """Where output pixels come from: `Augmented.mapping`."""
    rows, columns = view.size
    top, left, box_height, box_width = _middle(view) if view.box is None else view.box

    # From the output back to the store: undo the move, the turn and growth, the flip, the cut.
    zoom_x, zoom_y = view.flip_x * box_width / columns, view.flip_y * box_height / rows
    a, b = zoom_x * np.cos(view.angle) / view.zoom, zoom_x * np.sin(view.angle) / view.zoom
    d, e = -zoom_y * np.sin(view.angle) / view.zoom, zoom_y * np.cos(view.angle) / view.zoom
    middle_x, middle_y = columns / 2 + view.right, rows / 2 + view.down
    c = left + box_width / 2 - a * middle_x - b * middle_y
    f = top + box_height / 2 - d * middle_x - e * middle_y
    if view.warp is not None:
        (xx, xy, x1), (yx, yy, y1) = view.warp.transpose(1, 2, 0)
        c, f = a * x1 + b * y1 + c, d * x1 + e * y1 + f
        a, b, d, e = a * xx + b * yx, a * xy + b * yy, d * xx + e * yx, d * xy + e * yy
    return np.stack([np.broadcast_to(value, count) for value in (a, b, c, d, e, f)], axis=1)


def _middle(view: View) -> tuple[int, int, int, int]:
    """Top, left, height and width of the output in the middle of the stored picture."""
    (height, width), (rows, columns) = view.stored, view.size
    assert height >= rows, f"{height}x{width} is smaller than {rows}x{columns}"
    assert width >= columns, f"{height}x{width} is smaller than {rows}x{columns}"
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _copy(
    images: Tensor, masks: Tensor | None, table: Tensor, size: tuple[int, int], fill: str, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """The sampling for flips, moves and cuts by whole pixels: stored x depends on x alone."""
    height, width = images.shape[-2:]
    x, y = _positions(table, size)
    x = (table[:, 0] * x + table[:, 2]).floor().long()
    y = (table[:, 4] * y + table[:, 5]).floor().long()
    if masks is not None:
        masks = _take_masks(masks, y, x, ignore_index)
    if fill != "zeros":
        y, x = _within(y, height, fill), _within(x, width, fill)
    return _take(images, y, x, 0), masks


def _interpolate(
    images: Tensor, masks: Tensor | None, table: Tensor, view: View, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """The sampling for everything else: images bilinear, masks by the pixel that the position lies in."""
    height, width = images.shape[-2:]
    x, y = _positions(table, view.size)
    if view.elastic is not None:
        x, y = _bend(x, y, view.elastic)
    # Written out, not a matrix product: the rounding of a product may depend on the size of the batch.
    stored_x = table[:, 0] * x + table[:, 1] * y + table[:, 2]
    stored_y = table[:, 3] * x + table[:, 4] * y + table[:, 5]
    if masks is not None:
        masks = _take_masks(masks, stored_y.floor().long(), stored_x.floor().long(), ignore_index)
    grid = torch.stack([stored_x * (2 / width) - 1, stored_y * (2 / height) - 1], dim=-1)
    padding = "reflection" if view.fill == "reflect" else "border"
    result = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    if view.fill == "zeros":
        # Not grid_sample's own zeros: they would darken the rim of every enlarged crop.
        inside = (stored_x >= 0) & (stored_x < width) & (stored_y >= 0) & (stored_y < height)
        result = result.masked_fill_(~inside[:, None], 0)
    return result, masks


def _positions(table: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The middles of the output's pixels: x (1, w) and y (h, 1)."""
    rows, columns = size
    x = torch.arange(columns, dtype=table.dtype, device=table.device) + 0.5
    y = torch.arange(rows, dtype=table.dtype, device=table.device) + 0.5
    return x[None, :], y[:, None]


def _bend(x: Tensor, y: Tensor, elastic: Elastic) -> tuple[Tensor, Tensor]:
    """The positions of the output's pixels, moved within the output: (N, h, w) each."""
    rows, columns = len(y), x.shape[1]
    seeds = upload(elastic.seeds, x.device)
    moved = _pixels.displacements(seeds, elastic.strength, elastic.smoothness, (rows, columns)).to(x.dtype)
    return (x + moved[:, 0]).clamp(0.5, columns - 0.5), (y + moved[:, 1]).clamp(0.5, rows - 0.5)


def _change(images: Tensor, effect: Effect) -> Tensor:
    """Pictures (N, C, H, W), of which some are changed, in place."""
    tensors = [torch.from_numpy(array) for array in effect.numbers]
    numbers = [
        upload(tensor.to(images.dtype) if tensor.is_floating_point() else tensor, images.device) for tensor in tensors
    ]
    if effect.rows is None:
        return effect.change(images, *numbers).clamp(0, 1)
    rows = upload(effect.rows, images.device)
    changed = effect.change(images.index_select(0, rows), *numbers).clamp_(0, 1)
    return images.index_copy_(0, rows, changed)


def _erase(images: Tensor, masks: Tensor | None, erased: Erased, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Random values in boxes of some pictures, in place; their masks, copied, are ignored there."""
    rows, boxes, seeds = (upload(array, images.device) for array in (erased.rows, erased.boxes, erased.seeds))
    top, left, bottom, right = boxes[:, :, None, None].unbind(1)
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    x = torch.arange(images.shape[3], device=images.device)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    values = _pixels.octets(seeds, images.shape[1:]).to(images.dtype).mul_(1 / 255)
    images.index_copy_(0, rows, torch.where(inside[:, None], values, images.index_select(0, rows)))
    if masks is not None:
        hidden = inside if masks.ndim == inside.ndim else inside[:, None]
        masks = masks.index_copy(0, rows, masks.index_select(0, rows).masked_fill(hidden, ignore_index))
    return images, masks


def _take_masks(masks: Tensor, y: Tensor, x: Tensor, outside: int) -> Tensor:
    """`_take` of masks (N, H, W) or (N, L, H, W)."""
    if masks.ndim == 4:
        return _take(masks, y, x, outside)
    return _take(masks[:, None], y, x, outside)[:, 0]


def _take(values: Tensor, y: Tensor, x: Tensor, outside: int) -> Tensor:
    """values[n, :, y, x], or `outside` where there is no such pixel.

    `values` (N, C, H, W); `y` and `x` broadcast to (N, h, w). Returns (N, C, h, w).
    """
    count, channels, height, width = values.shape
    padded = F.pad(values, (1, 1, 1, 1), value=outside)
    index = (y.clamp(-1, height) + 1) * (width + 2) + (x.clamp(-1, width) + 1)
    flat = index.flatten(1)[:, None].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, flat).view(count, channels, *index.shape[1:])


def _within(index: Tensor, length: int, fill: str) -> Tensor:
    """Pixel numbers outside 0 .. length - 1 turned into those of the pixels that stand in for them."""
    if fill == "reflect":
        index = index.remainder(2 * length)
        return torch.minimum(index, 2 * length - 1 - index)
    return index.clamp(0, length - 1)


def _memory_format(images: Tensor) -> torch.memory_format:
    plain = images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if plain else torch.channels_last
