"""Random changes of a batch of images, drawn for each sample from (seed, epoch, sample number) alone.

| setting | value | what happens |
|---|---|---|
| `horizontal_flip` | probability | mirrored left to right |
| `vertical_flip` | probability | mirrored top to bottom |
| `rotate` | degrees | turned about the middle by an angle in [-degrees, degrees] |
| `scale` | [low, high] | the object becomes this many times as large |
| `translate` | share | moved by up to this share of height and of width, by whole pixels |
| `crop` | true | the output is cut from a random place; without it, from the middle |
| `pad` | pixels | as `crop`, from the image widened by so many pixels on each side |
| `resized_crop` | [low, high] | a box of this share of the area, aspect 3/4 to 4/3, becomes the output |
| `fill` | a name | what lies outside: "zeros" (black), "edge" (nearest pixel), "reflect" (mirrored) |
| `brightness` | strength d <= 1 | multiplied by a factor in [1 - d, 1 + d] |
| `contrast` | strength d <= 1 | blended with the mean of the grey image by a factor in [1 - d, 1 + d] |
| `saturation` | strength d <= 1 | blended with the grey image by a factor in [1 - d, 1 + d] |
| `hue` | strength d <= 0.5 | colours turned by up to d of the circle in both directions |

A setting that is missing, None, 0 or false is off. First the crop, then the flips, then rotate, scale and
translate about the middle of the output, all as one mapping from output to stored pixels, so that a turned
crop shows what the stored image holds beyond the crop. Then brightness, contrast, saturation and hue, each
clamped to [0, 1]: torchvision's ColorJitter in a fixed order. Pixels are copied exactly unless `rotate`,
`scale` or `resized_crop` asks for values between pixels; these are bilinear, without antialiasing: boxes of
more than about twice the output's size give jagged images.

`fill` is "zeros" by default, as in torchvision: the background of digits, and elsewhere an honest "nothing
here". Masks are `ignore_index` outside the stored image whatever `fill` says: mirrored content is not an
annotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.data import sampler
from trainers.phase import phase

F64 = npt.NDArray[np.float64]

TRIES = 10


class Column(IntEnum):
    """Which of a sample's random numbers decides what. Only append: another order changes recorded runs."""

    FLIP_X = 0
    FLIP_Y = 1
    ROTATE = 2
    SCALE = 3
    SHIFT_Y = 4
    SHIFT_X = 5
    CROP_Y = 6
    CROP_X = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    SATURATION = 10
    HUE = 11
    AREA = 12  # the first of TRIES columns
    RATIO = AREA + TRIES  # the first of TRIES columns


COUNT = Column.RATIO + TRIES


@phase("augmenting pictures", on="device")
def augment(
    images: Tensor,
    settings: Mapping[str, Any],
    *,
    size: tuple[int, int],
    seed: int,
    epoch: int,
    ids: npt.NDArray[np.integer],
    masks: Tensor | None = None,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor | None]:
    """The images, and their masks, changed at random as `settings` (the table above) says.

    `images` (N, C, H, W), any float type, in [0, 1]; `masks` (N, H, W), any integer type. Returns (N, C, h,
    w) and (N, h, w) of the same types, device and memory format, where (h, w) is `size`; the inputs are left
    as they are, and come back themselves where there is nothing to do. What becomes of a sample depends on
    (seed, epoch, ids[i]) alone. Raises ValueError for saturation or hue of images with neither 1 nor 3
    channels.
    """
    count, channels, *stored = images.shape
    draws = sampler.uniforms(seed, epoch, ids, COUNT)
    assert len(draws) == count, f"{len(draws)} ids for {count} images"
    mapping = _mapping(settings, draws, (stored[0], stored[1]), size)
    factors = _factors(settings, draws)
    if channels not in (1, 3) and {"saturation", "hue"} & factors.keys():
        raise ValueError(
            f"saturation and hue need images of 3 channels (1 is left as it is), got {channels}: "
            "take them out of `augment`"
        )

    # Half types are too coarse for positions, and some devices have no float64.
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    table = torch.from_numpy(np.column_stack([mapping, *factors.values()]))
    table = table.to(dtype).to(images.device, non_blocking=True)[:, :, None, None]

    between = any(settings.get(name) for name in ("rotate", "scale", "resized_crop"))
    fill = settings.get("fill") or "zeros"
    result = images
    if between:
        result, masks = _interpolate(images.to(dtype), masks, table, size, fill, ignore_index)
    elif tuple(stored) != tuple(size) or (mapping != [1, 0, 0, 0, 1, 0]).any():
        result, masks = _copy(images, masks, table, size, fill, ignore_index)
    if factors:
        result = _colour(result.to(dtype), dict(zip(factors, table[:, 6:].unbind(1), strict=True)))
    return result.to(images.dtype).contiguous(memory_format=_memory_format(images)), masks


def center(images: Tensor, size: tuple[int, int], masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """What evaluation sees: the middle, `size` (h, w), of images (N, C, H, W) and masks (N, H, W)."""
    height, width = images.shape[-2:]
    smaller = height < size[0] or width < size[1]
    assert not smaller, f"images of {height}x{width} are smaller than {size}"
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    box = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    images = images[box].contiguous(memory_format=_memory_format(images))
    return images, None if masks is None else masks[box].contiguous()


def _mapping(settings: Mapping[str, Any], draws: F64, stored: tuple[int, int], size: tuple[int, int]) -> F64:
    """Where output pixels come from: rows (a, b, c, d, e, f), shape (N, 6).

    The output's (x, y) shows the stored (a x + b y + c, d x + e y + f), in pixels from the top left corner;
    the middle of the first pixel is (0.5, 0.5).
    """
    rows, columns = size
    top, left, box_height, box_width = _box(settings, draws, stored, size)

    flip_x = np.where(draws[:, Column.FLIP_X] < (settings.get("horizontal_flip") or 0), -1.0, 1.0)
    flip_y = np.where(draws[:, Column.FLIP_Y] < (settings.get("vertical_flip") or 0), -1.0, 1.0)
    degrees = settings.get("rotate") or 0
    angle = np.radians(_between(-degrees, degrees, draws[:, Column.ROTATE]))
    low, high = settings.get("scale") or (1, 1)
    factor = _between(low, high, draws[:, Column.SCALE])
    share = settings.get("translate") or 0
    down = np.rint(_between(-share * rows, share * rows, draws[:, Column.SHIFT_Y]))
    right = np.rint(_between(-share * columns, share * columns, draws[:, Column.SHIFT_X]))

    # From the output back to the store: undo the move, the turn and growth, the flip, the cut.
    zoom_x, zoom_y = flip_x * box_width / columns, flip_y * box_height / rows
    a, b = zoom_x * np.cos(angle) / factor, zoom_x * np.sin(angle) / factor
    d, e = -zoom_y * np.sin(angle) / factor, zoom_y * np.cos(angle) / factor
    middle_x, middle_y = columns / 2 + right, rows / 2 + down
    c = left + box_width / 2 - a * middle_x - b * middle_y
    f = top + box_height / 2 - d * middle_x - e * middle_y
    return np.stack([a, b, c, d, e, f], axis=1)


def _box(
    settings: Mapping[str, Any], draws: F64, stored: tuple[int, int], size: tuple[int, int]
) -> tuple[F64, F64, F64, F64]:
    """The part of each stored image that becomes the output: top, left, height, width, each (N,)."""
    (height, width), (rows, columns) = stored, size
    if area := settings.get("resized_crop"):
        other = settings.get("crop") or settings.get("pad")
        assert not other, "resized_crop excludes crop and pad"
        return _resized_box(draws, area, stored)

    pad = settings.get("pad") or 0
    spare_y, spare_x = height + 2 * pad - rows, width + 2 * pad - columns
    assert min(spare_y, spare_x) >= 0, f"{height}x{width}, padded by {pad}, is smaller than {rows}x{columns}"
    ones = np.ones(len(draws))
    if settings.get("crop") or pad:
        top = np.floor(draws[:, Column.CROP_Y] * (spare_y + 1)) - pad
        left = np.floor(draws[:, Column.CROP_X] * (spare_x + 1)) - pad
    else:
        top, left = ones * (spare_y // 2), ones * (spare_x // 2)
    return top, left, ones * rows, ones * columns


def _resized_box(draws: F64, area: tuple[float, float], stored: tuple[int, int]) -> tuple[F64, F64, F64, F64]:
    """The boxes of RandomResizedCrop: top, left, height, width, each (N,).

    As in torchvision: the first of ten tries that fits the image; else the largest allowed, in the middle.
    """
    height, width = stored
    pixels = height * width * _between(area[0], area[1], draws[:, Column.AREA : Column.RATIO])
    ratio = np.exp(_between(np.log(3 / 4), np.log(4 / 3), draws[:, Column.RATIO : COUNT]))
    heights, widths = np.rint(np.sqrt(pixels / ratio)), np.rint(np.sqrt(pixels * ratio))
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first, found = (np.arange(len(draws)), fits.argmax(axis=1)), fits.max(axis=1)

    box_height = np.where(found, heights[first], min(height, round(width * 4 / 3)))
    box_width = np.where(found, widths[first], min(width, round(height * 4 / 3)))
    spare_y, spare_x = height - box_height, width - box_width
    top = np.where(found, np.floor(draws[:, Column.CROP_Y] * (spare_y + 1)), spare_y // 2)
    left = np.where(found, np.floor(draws[:, Column.CROP_X] * (spare_x + 1)), spare_x // 2)
    return top, left, box_height, box_width


def _factors(settings: Mapping[str, Any], draws: F64) -> dict[str, F64]:
    """The factor (N,) of each photometric change that is on, in the order in which they are made."""
    factors = {}
    for name, middle in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0)):
        if strength := settings.get(name):
            column = draws[:, Column[name.upper()]]
            factors[name] = _between(middle - strength, middle + strength, column)
    return factors


def _between(low: float, high: float, draws: F64) -> F64:
    return low + (high - low) * draws


def _copy(
    images: Tensor, masks: Tensor | None, table: Tensor, size: tuple[int, int], fill: str, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """The sampling for flips, moves and cuts by whole pixels: stored x depends on x alone."""
    height, width = images.shape[-2:]
    x, y = _positions(table, size)
    x = (table[:, 0] * x + table[:, 2]).floor().long()
    y = (table[:, 4] * y + table[:, 5]).floor().long()
    if masks is not None:
        masks = _take(masks[:, None], y, x, ignore_index)[:, 0]
    if fill != "zeros":
        y, x = _within(y, height, fill), _within(x, width, fill)
    return _take(images, y, x, 0), masks


def _interpolate(
    images: Tensor, masks: Tensor | None, table: Tensor, size: tuple[int, int], fill: str, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """The sampling for everything else: images bilinear, masks by the pixel that the position lies in."""
    height, width = images.shape[-2:]
    x, y = _positions(table, size)
    # Written out, not a matrix product: the rounding of a product may depend on the size of the batch.
    stored_x = table[:, 0] * x + table[:, 1] * y + table[:, 2]
    stored_y = table[:, 3] * x + table[:, 4] * y + table[:, 5]
    if masks is not None:
        masks = _take(masks[:, None], stored_y.floor().long(), stored_x.floor().long(), ignore_index)[:, 0]
    grid = torch.stack([stored_x * (2 / width) - 1, stored_y * (2 / height) - 1], dim=-1)
    padding = "reflection" if fill == "reflect" else "border"
    result = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    if fill == "zeros":
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


def _colour(images: Tensor, factors: dict[str, Tensor]) -> Tensor:
    """The photometric changes of images (N, C, H, W) by factors (N, 1, 1)."""
    for name, factor in factors.items():
        by = factor[:, None]
        if name == "brightness":
            images = images * by
        elif name == "contrast":
            # Rows first: in one go, a single image may be summed in another order than a batch.
            images = _blend(images, _grey(images).mean(-1, keepdim=True).mean((-2, -3), keepdim=True), by)
        elif images.shape[1] == 1:
            continue  # as torchvision does: grey has neither saturation nor hue
        elif name == "saturation":
            images = _blend(images, _grey(images), by)
        else:
            images = _turn_hue(images, by)
        images = images.clamp(0, 1)
    return images


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return images * factor + other * (1 - factor)


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) of three channels, by torchvision's weights; other images as they are."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.chunk(3, dim=1)
    return red * 0.2989 + green * 0.587 + blue * 0.114


def _turn_hue(images: Tensor, shift: Tensor) -> Tensor:
    """RGB images (N, 3, H, W), their hue shifted by `shift` (N, 1, 1, 1) of the circle."""
    red, green, blue = images.chunk(3, dim=1)
    # Pairwise: a reduction over three channels takes several times as long.
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    divisor = chroma.masked_fill(chroma == 0, 1)  # grey stays grey: its chroma is 0 whatever the hue
    hue = torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(high == red, (green - blue) / divisor, hue) + 6 * shift
    result = []
    for start in (5, 3, 1):  # https://en.wikipedia.org/wiki/HSL_and_HSV, "HSV to RGB alternative"
        k = (hue + start).remainder(6)
        result.append(high - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(result, dim=1)


def _memory_format(images: Tensor) -> torch.memory_format:
    plain = images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if plain else torch.channels_last
