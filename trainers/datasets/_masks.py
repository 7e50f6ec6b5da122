"""What data sets with masks have in common: ids and colours to classes, masks that fit their pictures.

A mask file holds ids (grey values, or the indices of a palette) or colours. It is taken as drawn, whatever EXIF
orientation it states; the picture is turned upright first, and the mask must have the size of the upright one.
No class is ever made up: what is in no table is a BadImage, and masks are reduced by leaving pixels out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.datasets import BadImage, Item
from trainers.decode import Pixels, decode, jpeg_geometry, opened

Mask = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]
Colour = tuple[int, int, int]

LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
MOST_ID = 2**16 - 1
BLOCK = 2**18
"""Pixels that are looked up at once."""
SHOWN = 5
"""Unknown ids or colours that a message names."""


class RawMask(NamedTuple):
    """A mask as its file has it."""

    path: str
    values: Values
    """(height, width): grey values or indices of the palette; (height, width, 3): colours."""
    palette: Pixels | None = None
    """(n, 3): the colours of the indices."""
    one_bit: bool = False
    """Whether the file has one bit a pixel: `values` are 0 (black) and 1 (white)."""


# ---- reading ----


def read_pair(
    item: Item, channels: int, classes_of: Callable[[RawMask], Mask], *, lossy: bool = False
) -> list[tuple[Pixels, Mask]]:
    """The picture of an item, and its mask.

    Where `item.args` hold "min_size" the picture may come out smaller (see `trainers.decode.decode`); the mask is then
    reduced to it, pixel by pixel that of its centre.

    Args:
        item: With `path` and `mask_path`.
        channels: Of the picture, 3 or 1.
        classes_of: Makes class numbers of the file's ids or colours.
        lossy: Whether a mask may be a JPEG.

    Returns:
        One pair: uint8 (height, width, channels), and uint8 (height, width) of class numbers or IGNORED.

    Raises:
        BadImage: A file cannot be read, or the mask does not fit.
    """
    assert item.path is not None
    assert item.mask_path is not None
    image = decode(item.path, channels, item.args.get("min_size"))
    height, width, orientation = jpeg_geometry(item.path) or (*image.shape[:2], 1)
    raw = load(item.mask_path, lossy=lossy)
    if raw.values.shape[:2] != (height, width):
        turned = ", upright as its EXIF orientation says," if orientation > 1 else ""
        raise BadImage(
            f"{item.path}{turned} is {width}x{height} and its mask {item.mask_path} "
            f"{raw.values.shape[1]}x{raw.values.shape[0]}: a mask has its picture's size; redraw it or remove both"
        )
    return [(image, _reduce(classes_of(raw), (image.shape[0], image.shape[1]), orientation))]


def load(path: str, *, lossy: bool = False) -> RawMask:
    """Read a mask file. Raises BadImage, for JPEG and its like too unless `lossy`."""
    with opened(path) as picture:
        compression = str(picture.info.get("compression", ""))  # of a TIFF, which may hold a JPEG
        if not lossy and (picture.format in LOSSY or "jpeg" in compression or "webp" in compression):
            raise BadImage(
                f"{path} is a mask saved as {picture.format}, which blurs the borders between classes and so makes "
                "up ids and colours that nobody drew; save masks as PNG, from the drawing and not from this file"
            )
        picture.load()
        if picture.mode in ("LA", "RGBA"):
            if picture.getextrema()[-1] != (255, 255):
                raise BadImage(f"{path} is a mask with transparent pixels, which have no class; save it without")
            picture = picture.convert(picture.mode[:-1])
        if picture.mode == "P":
            colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
            return RawMask(path, np.asarray(picture), palette=colours)
        if picture.mode == "1":
            return RawMask(path, np.asarray(picture).astype(np.uint8), one_bit=True)
        if picture.mode.startswith("I"):
            return RawMask(path, np.asarray(picture).astype(np.int32))
        if picture.mode not in ("L", "RGB"):
            raise BadImage(f"{path} is of the kind {picture.mode}, which no mask is; save it as PNG, grey or in colour")
        return RawMask(path, np.asarray(picture))


def by_id(raw: RawMask, classes: Mapping[int, int], allowed: str) -> Mask:
    """The class of each pixel from its id; `allowed` says in errors which ids there are. Raises BadImage."""
    ids = raw.values
    if ids.ndim == 3:
        if not is_grey(raw):
            raise BadImage(f"{raw.path} is a mask in colour, where ids are wanted: grey, or indices of a palette")
        ids = ids[:, :, 0]
    table = np.zeros(MOST_ID + 2, np.uint16)
    table[list(classes)] = np.array(list(classes.values()), np.uint16) + 1
    # both ends, the last place of the table, belong to no class
    return _look_up(raw, ids, lambda part: part.astype(np.int64).clip(-1, MOST_ID + 1), table, "id", allowed)


def by_colour(raw: RawMask, classes: Mapping[Colour, int], allowed: str, *, rest: int | None = None) -> Mask:
    """The class of each pixel from its colour.

    Args:
        raw: The file's colours, or the indices of a palette.
        classes: Colour -> class number or IGNORED.
        allowed: The colours in words, for errors.
        rest: Class of all other colours; None: there must be none.

    Raises:
        BadImage: The mask holds no colours, or one that no class has.
    """
    values, palette = raw.values, raw.palette
    if palette is not None and int(values.max()) >= len(palette):
        raise BadImage(f"{raw.path} holds the index {values.max()}, and its palette has {len(palette)} colours only")
    if palette is None and values.ndim == 2:
        raise BadImage(f"{raw.path} is a grey mask, where colours are wanted: {allowed}")

    def encode(part: Values) -> Values:
        colours = (part if palette is None else palette[part]).astype(np.int64)
        return colours[:, :, 0] << 16 | colours[:, :, 1] << 8 | colours[:, :, 2]

    table = np.zeros(2**24, np.uint16)  # costs those pages alone that are touched
    for (red, green, blue), number in classes.items():
        table[red << 16 | green << 8 | blue] = number + 1
    return _look_up(raw, values, encode, table, "colour", allowed, rest)


def above(raw: RawMask, threshold: float | str) -> Mask:
    """1 where the grey value is above `threshold`, or above the mask's own mean where that is "mean"; else 0."""
    grey = raw.values
    if raw.one_bit:
        grey = grey * np.uint8(255)
    elif raw.palette is not None or grey.ndim == 3:
        from PIL import Image

        colours = grey if raw.palette is None else raw.palette[grey.clip(0, len(raw.palette) - 1)]
        grey = np.asarray(Image.fromarray(colours).convert("L"))
    return above_mean(grey) if isinstance(threshold, str) else np.asarray(grey > threshold, np.uint8)


def above_mean(values: Values) -> Mask:
    """1 where a value is above the mean of all, else 0."""
    return np.asarray(values > values.mean(dtype=np.float64), np.uint8)


def is_grey(raw: RawMask) -> bool:
    """Whether a mask in colour holds nothing but grey, as some programs save ids."""
    red = raw.values[:, :, 0]
    return bool((red == raw.values[:, :, 1]).all() and (red == raw.values[:, :, 2]).all())


def _look_up(
    raw: RawMask,
    values: Values,
    encode: Callable[[Values], Values],
    table: npt.NDArray[np.uint16],
    what: str,
    allowed: str,
    rest: int | None = None,
) -> Mask:
    """The classes of `values`, by the place in `table` that `encode` gives them: the class plus 1, 0 for none."""
    height, width = values.shape[:2]
    mask = np.empty((height, width), np.uint8)
    rows = max(1, BLOCK // width)  # by blocks: places take 8 bytes each, and a picture may have many millions
    for top in range(0, height, rows):
        found = table[encode(values[top : top + rows])]
        if not found.all():
            if rest is None:
                raise BadImage(_report_unknown(raw, table[encode(values)] == 0, what, allowed))
            found[found == 0] = rest + 1
        mask[top : top + rows] = found - 1
    return mask


def _report_unknown(raw: RawMask, unknown: npt.NDArray[np.bool_], what: str, allowed: str) -> str:
    y, x = divmod(int(unknown.argmax()), unknown.shape[1])
    values = raw.values
    if what == "colour" and raw.palette is not None:
        values = raw.palette[values]
    elif what == "id" and values.ndim == 3:
        values = values[:, :, 0]
    distinct = np.unique(values[unknown], axis=0).tolist()
    formatted = [",".join(map(str, value)) if isinstance(value, list) else str(value) for value in distinct]
    named = "; ".join(formatted[:SHOWN]) + (f" and {len(formatted) - SHOWN} more" if len(formatted) > SHOWN else "")
    return (
        f"{raw.path} holds {np.count_nonzero(unknown)} pixels of the {what}{'s' * (len(formatted) > 1)} {named} "
        f"(the first at x={x}, y={y}), which no class has; allowed are {allowed}"
    )


def _reduce(mask: Mask, shape: tuple[int, int], orientation: int) -> Mask:
    """The mask at the size of its picture, which may have been decoded at 1/2, 1/4 or 1/8.

    A JPEG's last row and column may then stand for fewer pixels than the others; turned upright, they may come
    first.
    """
    if mask.shape == shape:
        return mask
    scale = next(scale for scale in (2, 4, 8) if shape == tuple(-(-length // scale) for length in mask.shape))
    rows = _centres(mask.shape[0], scale, orientation in (3, 4, 7, 8))
    columns = _centres(mask.shape[1], scale, orientation in (2, 3, 6, 7))
    return mask[np.ix_(rows, columns)]


def _centres(length: int, scale: int, backwards: bool) -> npt.NDArray[np.int64]:
    """The places of the centres of blocks of `scale` pixels; `backwards`: counted from the end."""
    places = np.minimum(np.arange(0, length, scale) + scale // 2, length - 1)
    return length - 1 - places[::-1] if backwards else places
