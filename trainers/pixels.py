"""From Pillow's pixels to ours: uint8 of 1 or 3 channels, whatever kind a file has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from trainers import notices
from trainers.arrays import Array
from trainers.notices import notice
from trainers.stored import Stored

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]
LARGE = 89_478_485
"""Pixels beyond which a picture is decoded alone: Pillow's own limit for pictures that are no attack."""
BAND = 2**24
"""Pixels that are converted at once."""
_STRAY = 0.01
"""Share of a picture's pixels that may be unlike the others."""
_INVISIBLE = 32
"""Alpha below this hides what is beneath."""


class Reading(TypedDict, total=False):
    """How a data set's pictures are read, where the files do not say it."""

    value_range: Sequence[float]
    """The values that become black and white, of grey pictures of more than 8 bits; by default 0 and the greatest."""
    alpha: str
    """"white": pictures are laid on white by their alpha channel; "ignore": it is left out; by default as it looks."""


Convert = Callable[["Image.Image"], Pixels]
"""A band of a picture -> uint8 (height, width), or with channels."""


def pixels_of(
    picture: Image.Image,
    path: str,
    channels: int,
    stored: Stored,
    how: Reading,
    min_size: Sequence[int] | None = None,
) -> Pixels:
    """The pixels of a loaded picture.

    Args:
        picture: Loaded, and upright.
        path: Its file, for notices.
        channels: 1 (grey) or 3 (RGB).
        stored: What `stored_pixels` said of it.
        how: What the data set says of its pictures.
        min_size: Height and width to which a very large picture may be reduced, at least twice as large.

    Returns:
        uint8 (height, width, channels).

    Raises:
        ValueError: The values have no known range.
    """
    value_range = how.get("value_range")
    signed = stored.view == "i1" and (value_range is not None or _least(picture, stored) < 0)
    if picture.mode == "F" or picture.mode.startswith("I") or signed:
        convert = _of_values(picture, path, stored, value_range)
    else:
        convert = _of_colours(picture, path, channels, stored, value_range, how.get("alpha"))
    return _by_bands(picture, channels, convert, min_size)


def _bands(picture: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The first row of each band, a multiple of `multiple`, and the band; most pictures are one."""
    width, height = picture.size
    rows = height
    if width * height > BAND:
        rows = max(1, BAND // width // multiple) * multiple
    for top in range(0, height, rows):
        whole = rows == height
        yield top, picture if whole else picture.crop((0, top, width, min(top + rows, height)))


def _by_bands(picture: Image.Image, channels: int, convert: Convert, min_size: Sequence[int] | None) -> Pixels:
    """The whole picture, of large ones at 1/2, 1/4 or 1/8 where that suffices for `min_size`."""
    from PIL import Image

    (width, height), factor = picture.size, 1
    if min_size is not None and width * height > LARGE:
        enough = (
            scale for scale in (8, 4, 2) if height >= 2 * scale * min_size[0] and width >= 2 * scale * min_size[1]
        )
        factor = next(enough, 1)
    pixels = np.empty((-(-height // factor), -(-width // factor), channels), np.uint8)
    for top, band in _bands(picture, factor):
        part = convert(band)
        if factor > 1:
            part = np.asarray(Image.fromarray(part).reduce(factor))
        first = top // factor
        pixels[first : first + part.shape[0]] = part if part.ndim == 3 else part[:, :, None]
    return pixels


def _of_values(picture: Image.Image, path: str, stored: Stored, value_range: Sequence[float] | None) -> Convert:
    """For grey values of more than 8 bits, or with a sign."""
    floating = picture.mode == "F"
    ends = [_ends(stored.values(band)) for _, band in _bands(picture)]
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    of_16_bits = not floating and least >= 0 and most <= 65535
    if value_range is None and not of_16_bits:
        raise ValueError(_ask_for_range(least, most, floating))
    low, high = value_range or (0.0, stored.white)

    def scaled(values: Array) -> Pixels:
        share = np.nan_to_num((values.astype(np.float64) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
        grey = np.floor(share.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return 255 - grey if stored.inverted else grey

    if not of_16_bits:
        _notice_numbers(picture, path, stored, low, high)
        return lambda band: scaled(stored.values(band))
    in_file = np.rint(np.arange(65536) / stored.step)
    table = scaled(in_file)
    if isinstance(clear := picture.info.get("transparency"), int):
        table[clear] = 255
    counts = np.zeros(65536, np.int64)
    for _, band in _bands(picture):
        counts += np.bincount(stored.values(band).reshape(-1).astype(np.uint16), minlength=65536)
    _notice_counts(path, counts, in_file, table, stored.white, value_range)
    return lambda band: table[stored.values(band)]


def _ask_for_range(least: float, most: float, floating: bool) -> str:
    what = "floating-point numbers of unknown range" if floating else "below 0" if least < 0 else "beyond 16 bits"
    low, high = notices.suggest_range(least, most)
    example = f"as in --dataset-args value_range={low:.12g},{high:.12g}" if low < high else "by value_range=LOW,HIGH"
    return (
        f"its pixels are {what}, here from {least:.12g} to {most:.12g}; say which values are black and white, "
        f"{example}, or save it with 8 or 16 bits"
    )


def _ends(values: Array) -> tuple[float, float]:
    """The least and the greatest value that is a number."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
        if not values.size:
            return 0.0, 0.0
    return float(values.min()), float(values.max())


def _least(picture: Image.Image, stored: Stored) -> float:
    return min(_ends(stored.values(band))[0] for _, band in _bands(picture))


def _notice_numbers(picture: Image.Image, path: str, stored: Stored, low: float, high: float) -> None:
    """Notice numbers outside the range, where they are more than stray pixels, and what is no number."""
    outside, missing, least, most = 0, False, high, low
    for _, band in _bands(picture):
        values = stored.values(band)
        outside += int(np.count_nonzero(values < low) + np.count_nonzero(values > high))
        missing |= bool(np.isnan(values).any())
        ends = _ends(values)
        least, most = min(least, ends[0]), max(most, ends[1])
    if outside > _STRAY * picture.width * picture.height:
        notice("beyond", path, low=least, high=most)
    if missing:
        notice("nan", path)


def _notice_counts(
    path: str,
    counts: npt.NDArray[np.int64],
    in_file: Array,
    table: Pixels,
    white: float,
    value_range: Sequence[float] | None,
) -> None:
    """Notice how many of the 256 levels are used, or values outside the range that was given."""
    present = np.flatnonzero(counts)
    values = in_file[present]
    least, most = float(values[0]), float(values[-1])
    if value_range is None:
        levels = np.zeros(256, np.int64)
        np.add.at(levels, table, counts)
        crowded = len(present) > 4 * int(np.count_nonzero(levels))
        notices.notice_levels(notices.DEEP, path, levels, low=least, high=most, crowded=crowded, white=white)
        return
    outside = present[(values < value_range[0]) | (values > value_range[1])]
    if counts[outside].sum() > _STRAY * counts.sum():
        notice("beyond", path, low=least, high=most)


def _of_colours(
    picture: Image.Image,
    path: str,
    channels: int,
    stored: Stored,
    value_range: Sequence[float] | None,
    alpha: str | None,
) -> Convert:
    """For grey values of up to 8 bits, palettes and colours, with or without transparency."""
    mode = "L" if channels == 1 else "RGB"
    if ";16" in stored.kind:
        _notice_colours(picture, path, value_range)
    elif value_range is not None:
        notice("eight", path)

    def plain(band: Image.Image) -> Pixels:
        if band.mode in ("RGBA", "LA", "PA") or (band.mode == "P" and "transparency" in band.info):
            band = band.convert("RGBA").convert("RGB")
        elif band.mode == "LAB":
            band = band.convert("RGB")  # of which alone grey can be made
        return np.array(band.convert(mode))

    if picture.mode != "La" and not picture.has_transparency_data:
        return plain
    premultiplied = stored.multiplied
    how = alpha or _judge_alpha(picture, path, premultiplied)
    return plain if how == "ignore" else functools.partial(_on_white, mode=mode, premultiplied=premultiplied)


def _notice_colours(picture: Image.Image, path: str, value_range: Sequence[float] | None) -> None:
    """Of colours of 16 bits a channel Pillow reads the upper 8."""
    if value_range is not None:
        raise ValueError(
            "it has 16 bits a channel, of which Pillow reads the upper 8, and value_range is for grey pictures; "
            "stretch it to the whole range of 16 bits, or save it with 8 bits"
        )
    bands = len(picture.getbands()) - (picture.mode in ("RGBA", "LA"))
    levels = np.array(picture.histogram(), np.int64).reshape(-1, 256)[:bands].sum(0)
    held = np.flatnonzero(levels)
    # that values are crowded cannot be seen any more; few levels in nearly all of a picture of nature tell it
    crowded = 2 < len(held) <= 64
    notices.notice_levels(
        notices.DEEP_COLOUR, path, levels, low=257.0 * held[0], high=257.0 * held[-1], crowded=crowded
    )


def _judge_alpha(picture: Image.Image, path: str, premultiplied: bool) -> str:
    """Whether an alpha channel is transparency ("white") or not ("ignore"); notices what is doubtful."""
    counts, least, most, impossible = np.zeros(256, np.int64), [255] * 3, [0] * 3, 0
    for _, band in _bands(picture):
        of_band = _rgba(band)
        counts += np.array(of_band.getchannel("A").histogram(), np.int64)
        ends: Any = of_band.getextrema()
        least = [min(one, end[0]) for one, end in zip(least, ends, strict=False)]
        most = [max(one, end[1]) for one, end in zip(most, ends, strict=False)]
        if premultiplied:
            array = np.asarray(of_band)
            impossible += int((array[:, :, :3].max(2) > array[:, :, 3].astype(np.int16) + 2).sum())
    pixels, partly = counts.sum(), counts[5:251].sum()  # lossy formats blur clear and opaque
    tiff = picture.format == "TIFF"
    if counts[255] == pixels:
        return "ignore"
    if impossible > _STRAY * pixels:
        notice("band", path)
        return "ignore"
    if least == most:  # one colour: the alpha channel is the picture
        return "white"
    if not counts[_INVISIBLE:].any() and not premultiplied:
        notice("hidden", path)
        return "ignore"
    if partly > 0.5 * pixels:
        notice("band" if tiff and not premultiplied else "soft", path)
        return "ignore" if tiff and not premultiplied else "white"
    if tiff and partly > 0.05 * pixels:
        notice("tiff", path)
    return "white"


def _rgba(band: Image.Image) -> Image.Image:
    return (band.convert("LA") if band.mode == "La" else band).convert("RGBA")


def _on_white(band: Image.Image, mode: str, premultiplied: bool) -> Pixels:
    from PIL import Image

    band = _rgba(band)
    if premultiplied:
        array = np.asarray(band).astype(np.uint16)
        laid = Image.fromarray((array[:, :, :3] + (255 - array[:, :, 3:])).clip(max=255).astype(np.uint8))
    else:
        laid = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
    return np.array(laid.convert(mode))
