"""What data sets with masks have in common: ids and colours to classes, masks that fit their pictures.

A mask file holds ids (grey values, or the indices of a palette) or colours. The picture is turned upright first; a mask
that has the size of the upright one is taken as drawn, and one that has the size of the picture as stored is turned as
it is. Where both have one size, `mask_orientation` says which; without it the mask is taken as drawn, and that is told.
No class is ever made up: what is in no table is a BadImage, and masks are reduced by leaving pixels out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from trainers.arrays import Array
from trainers.datasets import BadImage, Item
from trainers.decode import decode, geometry, notice_pages, opened, orientation_of, reading
from trainers.notices import notice
from trainers.pixels import Pixels
from trainers.stored import raw_kind, stored_pixels

if TYPE_CHECKING:
    from PIL import Image

Mask = npt.NDArray[np.uint8]
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
    values: Array
    """(height, width): grey values or indices of the palette; (height, width, 3): colours."""
    palette: Pixels | None = None
    """(n, 3): the colours of the indices."""
    white: tuple[int, int] = (255, 255)
    """The value that is white in a file of fewer bits, such as 1, 3 or 15, and the grey value that it stands for."""
    orientation: int = 1
    """The EXIF orientation that the file states, and in which `values` are not turned."""

    def grey(self) -> Array:
        """`values` as the grey values that a viewer shows."""
        value, shown = self.white
        return self.values if value == shown else np.rint(self.values * (shown / value)).astype(np.int32)


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
    image = decode(item.path, channels, item.args.get("min_size"), how=reading(item.args))
    about = geometry(item.path)
    raw = _upright(load(item.mask_path, lossy=lossy), item, (about.height, about.width), about.orientation)
    mask = classes_of(raw)
    return [(image, _reduce(mask, (image.shape[0], image.shape[1]), about.orientation if about.jpeg else 1))]


def load(path: str, *, lossy: bool = False) -> RawMask:
    """Read a mask file. Raises BadImage, for JPEG and its like too unless `lossy`."""
    with opened(path) as picture:
        compression = str(picture.info.get("compression", ""))  # of a TIFF, which may hold a JPEG
        if not lossy and (picture.format in LOSSY or "jpeg" in compression or "webp" in compression):
            raise BadImage(
                f"{path} is a mask saved as {picture.format}, which blurs the borders between classes and so makes "
                "up ids and colours that nobody drew; save masks as PNG, from the drawing and not from this file"
            )
        notice_pages(picture, path)
        kind, white = stored_pixels(picture).kind, _white(picture)
        orientation = 1 if picture.format == "TIFF" else orientation_of(picture)  # Pillow turns TIFFs by itself
        picture.load()
        if ";16" in kind and picture.mode in ("LA", "RGB", "RGBA"):
            notice("mask deep", path)
        palette = picture.getpalette("RGB") if picture.mode in ("P", "PA") else None
        values = np.asarray(_without_alpha(picture, path))
        if (picture.mode == "F" and not _whole_numbers(values)) or picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise BadImage(f"{path} is of the kind {picture.mode}, which no mask is; save it as PNG, grey or in colour")
        if picture.mode == "1":
            values = values.astype(np.uint8)
        elif picture.mode == "F" or picture.mode.startswith("I"):
            values = values.astype(np.int32)
        if white[0] != white[1] and picture.mode != "1":
            values = np.rint(np.arange(white[1] + 1) * (white[0] / white[1])).astype(values.dtype)[values]
        colours = None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)
        return RawMask(path, values, colours, white, orientation)


def _without_alpha(picture: Image.Image, path: str) -> Image.Image:
    """A loaded mask without its alpha channel, which says nothing where it is the same all over. Raises BadImage."""
    if picture.mode not in ("LA", "RGBA", "PA", "La"):
        return picture
    *colours, (least, most) = cast(Sequence[tuple[int, int]], picture.getextrema())
    nothing = most == 0 and all(low == high for low, high in colours)
    if least != most or nothing:
        raise BadImage(f"{path} is a mask with transparent pixels, which have no class; save it without")
    return picture.convert("RGB") if picture.mode == "RGBA" else picture.getchannel(0)


def _whole_numbers(values: Array) -> bool:
    """Whether floating-point numbers are ids."""
    return bool((values == np.rint(values)).all() and (np.abs(values) <= MOST_ID).all())


def _white(picture: Image.Image) -> tuple[int, int]:
    """The file's value for white, and Pillow's, of a picture that is not loaded yet: ids of few bits are scaled."""
    if picture.mode == "1":
        return 1, 255
    kind = raw_kind(picture)
    if kind.startswith(("L;2", "L;4")):
        return 2 ** int(kind[2]) - 1, 255
    opened: Any = picture
    if picture.format == "PPM" and picture.mode in ("L", "I") and isinstance(opened.tile[0].args, tuple):
        most = opened.tile[0].args[-1]
        return most, 255 if most < 256 else 65535
    return 255, 255


def _upright(raw: RawMask, item: Item, size: tuple[int, int], orientation: int) -> RawMask:
    """The mask turned as its picture, where it was drawn on that as stored. Raises BadImage where no way fits."""
    asked = item.args.get("mask_orientation")
    ways = {asked: orientation} if asked == "stored" else {"upright": 1} if asked else {}
    if not ways:
        ways = {"upright": 1, "stored": orientation, "stated": raw.orientation}
    fitting = list(dict.fromkeys(way for way in ways.values() if _turned(raw.values, way).shape[:2] == size))
    if not fitting:
        turned = ", upright as its EXIF orientation says," if orientation > 1 else ""
        found = _turned(raw.values, orientation if asked == "stored" else 1)
        also = ", which was to be turned," if asked == "stored" and orientation > 1 else ""
        raise BadImage(
            f"{item.path}{turned} is {size[1]}x{size[0]} and its mask {raw.path}{also} "
            f"{found.shape[1]}x{found.shape[0]}: a mask has its picture's size; redraw it or remove both"
        )
    if not asked and fitting != [1]:
        notice("mask turned" if len(fitting) == 1 else "mask unsure", str(item.path))
    return raw._replace(values=_turned(raw.values, fitting[0]), orientation=1)


def _turned(values: Array, orientation: int) -> Array:
    """`values` as EXIF says they are to be shown."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return values[::rows, ::columns]


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

    def encode(part: Array) -> Array:
        colours = (part if palette is None else palette[part]).astype(np.int64)
        return colours[:, :, 0] << 16 | colours[:, :, 1] << 8 | colours[:, :, 2]

    table = np.zeros(2**24, np.uint16)  # costs those pages alone that are touched
    for (red, green, blue), number in classes.items():
        table[red << 16 | green << 8 | blue] = number + 1
    return _look_up(raw, values, encode, table, "colour", allowed, rest)


def above(raw: RawMask, threshold: float | str) -> Mask:
    """1 where the grey value is above `threshold`, or above the mask's own mean where that is "mean"; else 0."""
    grey = raw.grey()
    if raw.palette is not None or grey.ndim == 3:
        from PIL import Image

        colours = grey if raw.palette is None else raw.palette[grey.clip(0, len(raw.palette) - 1)]
        grey = np.asarray(Image.fromarray(colours).convert("L"))
    return above_mean(grey) if isinstance(threshold, str) else np.asarray(grey > threshold, np.uint8)


def above_mean(values: Array) -> Mask:
    """1 where a value is above the mean of all, else 0."""
    return np.asarray(values > values.mean(dtype=np.float64), np.uint8)


def is_grey(raw: RawMask) -> bool:
    """Whether a mask in colour holds nothing but grey, as some programs save ids."""
    red = raw.values[:, :, 0]
    return bool((red == raw.values[:, :, 1]).all() and (red == raw.values[:, :, 2]).all())


def _look_up(
    raw: RawMask,
    values: Array,
    encode: Callable[[Array], Array],
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
