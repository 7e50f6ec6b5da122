"""What data sets need that draw their pictures themselves: splits, dice, a canvas, patterns, grain.

A picture is drawn back to front on a `Canvas`: an image not of colours but of the numbers of its pieces, at
twice the size. A piece has a class and a material, so that picture and mask come from the same drawing.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.datasets import MASK, Item
from trainers.decode import Pixels

if TYPE_CHECKING:
    from PIL import Image

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Colour = tuple[float, float, float]
"""Red, green and blue from 0 to 1."""

SAMPLES_PER_ITEM = 16
SHARPER = 2
"""Pixels that are drawn for one that is returned, along each side."""
SPLITS = ("train", "val", "test")
"""A picture's number counts within its split; the place here is part of its seed."""


# ---- splits ----


def splits(
    counts: Mapping[str, int], *, height: int, width: int, seed: int, smallest: int, args: Mapping[str, Any]
) -> dict[str, list[Item]]:
    """Items of SAMPLES_PER_ITEM pictures for each split; `test` is left out where its count is 0.

    Parameters: `counts`, split -> pictures; `smallest`, the least height and width; `args` go to every item,
    beside what `pictures` reads. Raises ValueError for counts, sizes and seeds that are out of range.
    """
    for name, count in counts.items():
        least = 0 if name == "test" else 1
        if not least <= count <= 1_000_000:
            raise ValueError(f"{name}={count} pictures is not allowed; give {least} to 1,000,000")
    if not (smallest <= height <= 4096 and smallest <= width <= 4096):
        raise ValueError(f"height={height} and width={width} must both be from {smallest} to 4096 pixels")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} is out of range; give a number from 0 to {2**32 - 1}")
    items: dict[str, list[Item]] = {}
    for name, count in counts.items():
        for first in range(0, count, SAMPLES_PER_ITEM):
            targets = [MASK] * min(SAMPLES_PER_ITEM, count - first)
            own = {"split": name, "first": first, "height": height, "width": width, "seed": seed, **args}
            items.setdefault(name, []).append(Item(path=None, name=f"{name}/{first:05d}", targets=targets, args=own))
    return items


def generators(item: Item) -> list[np.random.RandomState]:
    """One for each picture of an item, from (seed, split, number) alone; their streams are frozen (NEP 19)."""
    seed, split = item.args["seed"], SPLITS.index(item.args["split"])
    return [np.random.RandomState([seed, split, item.args["first"] + n]) for n in range(len(item.targets))]


# ---- dice ----


class Dice:
    """Numbers one by one, many times faster than from NumPy."""

    def __init__(self, rng: np.random.RandomState) -> None:
        self._rng = rng
        self._left: list[float] = []

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        """Evenly from `low` up to `high`."""
        if not self._left:
            self._left = self._rng.random_sample(512).tolist()
        return low + (high - low) * self._left.pop()

    def below(self, count: int) -> int:
        return int(self(0, count))

    def chance(self, share: float) -> bool:
        return self() < share

    def side(self) -> int:
        return 1 if self() < 0.5 else -1

    def grey(self, low: float, high: float, tint: float = 0.03) -> Colour:
        value = self(low, high)
        return (value + self(-tint, tint), value + self(-tint, tint), value + self(-tint, tint))

    def hue(self, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
        return colorsys.hsv_to_rgb(self(*hue) % 1.0, self(*saturation), self(*value))

    def colour(self) -> Colour:
        """Any at all: greys, muted and vivid ones."""
        kind = self()
        if kind < 0.4:
            return self.grey(0.08, 0.95)
        return self.hue((0, 1), (0.1, 0.45) if kind < 0.75 else (0.4, 0.95), (0.15, 0.95))

    def near(self, colour: Colour, by: float = 0.06) -> Colour:
        red, green, blue = colour
        light = self(-by, by)
        return (red + light + self(-by, by) / 2, green + light + self(-by, by) / 2, blue + light + self(-by, by) / 2)


def scaled(colour: Colour, by: float) -> Colour:
    return (colour[0] * by, colour[1] * by, colour[2] * by)


# ---- canvas ----


class Tiles(NamedTuple):
    """A pattern of rectangles in a second colour, such as windows or paving stones."""

    period: tuple[float, float]
    """Along u and v, in the unit of the piece's surface."""
    share: tuple[float, float]
    """Of a period that is covered."""
    colour: Colour
    shift: tuple[float, float] = (0.0, 0.0)
    """In periods."""
    uneven: float = 0.0
    """How much brightness differs between tiles."""
    lit: float = 0.0
    """Share of tiles with light behind them."""


class Material(NamedTuple):
    """A colour, and how strongly what kinds of grain lighten and darken it."""

    colour: Colour
    tiles: Tiles | None = None
    speckle: float = 0.0
    leaves: float = 0.0
    courses: float = 0.0
    """Across, as those of bricks."""
    folds: float = 0.0
    """Upright, as those of cloth."""
    stains: float = 0.0


GRAINS = ((2, 2), (5, 5), (3, 18), (14, 3), (24, 24))
"""Height and width of the lumps of each kind, in the order of Material, in drawn pixels."""


class Canvas:
    """The numbers of pieces, SHARPER times as high and wide as the picture, and what each piece is."""

    def __init__(self, height: int, width: int) -> None:
        from PIL import Image, ImageDraw

        self.height, self.width = SHARPER * height, SHARPER * width
        self._image: Image.Image = Image.new("I", (self.width, self.height), 0)
        self._draw = ImageDraw.Draw(self._image)
        self._classes: list[int] = []
        self._rows: list[tuple[float, ...]] = []
        self._surfaces: list[tuple[float, ...]] = []

    def piece(self, label: int, material: Material, surface: tuple[float, ...] = (0.0, 0.0, 0.0)) -> int:
        """The number of a new piece, which lies before all others. `surface`: three numbers, the caller's own."""
        tiles, pattern = material.tiles, (0.0,) * 11
        if tiles is not None:
            pattern = (*tiles.colour, *tiles.period, *tiles.share, *tiles.shift, tiles.uneven, tiles.lit)
        self._classes.append(label)
        self._rows.append((*material.colour, *pattern, *material[2:]))
        self._surfaces.append(surface)
        return len(self._classes) - 1

    def polygon(self, number: int, points: Sequence[tuple[float, float]]) -> None:
        self._draw.polygon(points, fill=number)

    def ellipse(self, number: int, x: float, y: float, across: float, down: float) -> None:
        """`across` and `down` are radii."""
        self._draw.ellipse((x - across, y - down, x + across, y + down), fill=number)

    def numbers(self) -> I32:
        return np.asarray(self._image, np.int32)

    def surfaces(self) -> F32:
        """(pieces, 3)"""
        return np.array(self._surfaces, np.float32)

    def classes(self) -> npt.NDArray[np.uint8]:
        return np.array(self._classes, np.uint8)

    def shrunk(self, colours: F32, numbers: I32) -> tuple[F32, Pixels]:
        """The picture (3, height, width) and its mask, SHARPER times smaller than `colours` and `numbers`.

        Of the drawn pixels that make one, the foremost piece that covers half or more gives the class; the colour
        is the mean of those of that class, so that no pixel is a mixture of two classes.
        """
        rows, columns = self.height // SHARPER, self.width // SHARPER
        drawn = (rows, SHARPER, columns, SHARPER)
        labels = self.classes()
        four = numbers.reshape(drawn).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
        mask = labels[np.sort(four, axis=2)[:, :, SHARPER**2 // 2]]
        own = (labels[numbers].reshape(drawn) == mask[:, None, :, None]).astype(np.float32)
        image: F32 = (colours.reshape(3, *drawn) * own).sum((2, 4)) / own.sum((1, 3))
        return image, mask

    def colours(self, rng: np.random.RandomState, numbers: I32, u: F32, v: F32, detail: F32) -> F32:
        """(3, height, width), drawn size. `u`, `v`: where on its surface a pixel lies; `detail`: pixels per unit."""
        columns = np.array(self._rows, np.float32).T.copy()
        colours = columns[:3, numbers]
        tiled = np.flatnonzero((columns[6] > 0)[numbers])
        if len(tiled):
            flat = numbers.ravel()[tiled]
            spots = (u.ravel()[tiled], v.ravel()[tiled], detail.ravel()[tiled])
            colours.reshape(3, -1)[:, tiled] = _tiled(columns[:, flat], flat, *spots)
        light = np.ones((self.height, self.width), np.float32)
        for strength, (high, wide) in zip(columns[14:], GRAINS, strict=True):
            light += strength[numbers] * noise(rng, self.height, self.width, high, wide)
        colours *= light
        return colours


def _tiled(columns: F32, numbers: I32, u: F32, v: F32, detail: F32) -> F32:
    """The colours (3, pixels) of surfaces with tiles. Where tiles are too small to be seen, their mean."""
    first, second, (period_u, period_v, share_u, share_v, shift_u, shift_v, uneven, lit) = (
        columns[:3],
        columns[3:6],
        columns[6:14],
    )
    across, down = u / period_u + shift_u, v / period_v + shift_v
    column, row = np.floor(across), np.floor(down)
    inside = ((across - column < share_u) & (down - row < share_v)).astype(np.float32)
    clear = np.clip(detail * np.minimum(period_u, period_v) / 4 - 0.5, 0, 1)
    cover = clear * inside + (1 - clear) * share_u * share_v
    mixed = (column.astype(np.int32) * 73856093) ^ (row.astype(np.int32) * 19349663) ^ (numbers * 83492791)
    chance = ((mixed >> 7) & 0xFFFF).astype(np.float32) / 65536
    second = second * (1 + uneven * (chance - 0.5) * clear)
    lamplight = np.array([[1.0], [0.85], [0.55]], np.float32) * (0.6 + 0.4 * chance)
    second = np.where(chance < lit, lamplight, second)
    mixture: F32 = first + cover * (second - first)
    return mixture


def noise(rng: np.random.RandomState, height: int, width: int, high: int, wide: int) -> F32:
    """(height, width) from -1 to 1; lumps of about `high` x `wide` pixels."""
    from PIL import Image

    grid = (2 * rng.random_sample((height // high + 2, width // wide + 2)) - 1).astype(np.float32)
    smooth: F32 = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BILINEAR))
    return smooth


def develop(rng: np.random.RandomState, image: F32, *, blur: float, grain: float) -> Pixels:
    """What a camera makes of a picture (3, height, width) of values from 0 to 1: uint8 (height, width, 3).

    `blur` in pixels; `grain`, the strength of the sensor's noise.
    """
    from PIL import Image, ImageFilter

    noisy = image + grain * (2 * rng.random_sample(image.shape).astype(np.float32) - 1)
    pixels: Pixels = np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    if blur > 0:
        pixels = np.array(Image.fromarray(np.ascontiguousarray(pixels)).filter(ImageFilter.BoxBlur(blur)))
    return np.ascontiguousarray(pixels)
