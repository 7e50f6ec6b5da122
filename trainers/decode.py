"""A picture file to pixels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image


Pixels = npt.NDArray[np.uint8]


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


# ---- decoding ----


class BadImage(ValueError):
    """`read` could not decode a file, or its mask does not fit.

    With `--on-bad-image skip` the item is left out and recorded.
    """


def decode(path: str, channels: int, min_size: Sequence[int] | None = None) -> Pixels:
    """The first picture of a file, upright, as uint8 (height, width, channels).

    `min_size` (height, width): the caller will shrink the picture to cover this size, so that a JPEG may be
    decoded at 1/2, 1/4 or 1/8, many times faster; what is returned is at least twice `min_size` (or the
    picture's own size). Transparent pictures are laid on white: most are drawings and scans meant for a white
    page, and under black their dark lines would vanish. Raises BadImage.
    """
    with opened(path) as picture:
        size = None
        if min_size is not None and picture.format in ("JPEG", "MPO"):
            height, width = min_size
            size = (2 * width, 2 * height) if _orientation(picture) < 5 else (2 * height, 2 * width)
        picture.draft("L" if channels == 1 else "RGB", size)  # of JPEGs alone; other formats ignore it
        picture.load()
        return _to_uint8(_upright(picture), channels)


def jpeg_geometry(path: str) -> tuple[int, int, int] | None:
    """From a JPEG's header: its height and width when upright, and its EXIF orientation.

    None for other formats, which `decode` never shrinks. Raises BadImage.
    """
    with opened(path) as picture:
        if picture.format not in ("JPEG", "MPO"):
            return None
        orientation = _orientation(picture)
        width, height = picture.size if orientation < 5 else picture.size[::-1]
        return height, width, orientation


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """The first picture of a file, not loaded yet. Whatever goes wrong with it, here or inside, is a BadImage."""
    from PIL import Image, UnidentifiedImageError

    try:
        # as a stream: given a path, Pillow 13 maps plain TIFFs into memory and scrambles those to be turned
        with open(path, "rb") as stream, Image.open(stream) as picture:
            yield picture
            return
    except BadImage:
        raise
    except UnidentifiedImageError:
        cause = "it is no picture that Pillow knows" if os.path.getsize(path) else "the file is empty"
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    raise BadImage(f"{path} cannot be decoded: {cause}; replace or remove it") from None


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data is no reason to lose a sound picture
        return 1


def _upright(picture: Image.Image) -> Image.Image:
    """Turn by the EXIF orientation, asked after loading: Pillow turns TIFFs by itself while it loads them."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _to_uint8(picture: Image.Image, channels: int) -> Pixels:
    from PIL import Image

    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        values = np.asarray(picture).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are beyond 16 bits; save it with 8 or 16 bits")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], channels, axis=2)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    pixels: Pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(picture.height, picture.width, channels)
