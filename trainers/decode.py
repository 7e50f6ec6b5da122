"""Decode a picture file to pixels."""

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


class BadImage(ValueError):
    """A file cannot be decoded, or its mask does not fit. `--on-bad-image skip` leaves it out, and records it."""


def decode(path: str, channels: int, min_size: Sequence[int] | None = None) -> Pixels:
    """Read the first picture of a file, upright.

    Transparent pictures are laid on white: most are drawings and scans meant for a white page, and under black their
    dark lines would vanish.

    Args:
        path: The file.
        channels: 1 (grey) or 3 (RGB).
        min_size: Height and width that the caller will shrink the picture to. A JPEG may then be decoded at 1/2, 1/4 or
            1/8, many times faster; what is returned is at least twice as large (or has the picture's own size).

    Returns:
        uint8 (height, width, channels).

    Raises:
        BadImage: The file cannot be decoded.
    """
    from PIL import ImageOps

    with opened(path) as picture:
        size = None
        if min_size is not None and picture.format in ("JPEG", "MPO"):
            height, width = min_size
            size = (2 * width, 2 * height) if _orientation(picture) < 5 else (2 * height, 2 * width)
        picture.draft("L" if channels == 1 else "RGB", size)  # of JPEGs alone; other formats ignore it
        picture.load()
        # Not before: Pillow turns TIFFs by itself while it loads them. In place, the pixels are turned before the EXIF
        # data is rewritten, and damage in it is no reason to lose a sound picture.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(picture, in_place=True)
        return _to_uint8(picture, channels)


def jpeg_geometry(path: str) -> tuple[int, int, int] | None:
    """Read a JPEG's header, without decoding the picture.

    Returns:
        Its height and width when upright, and its EXIF orientation, 1 to 8. None for other formats, which `decode`
        never shrinks.

    Raises:
        BadImage: The file cannot be opened.
    """
    with opened(path) as picture:
        if picture.format not in ("JPEG", "MPO"):
            return None
        orientation = _orientation(picture)
        width, height = picture.size if orientation < 5 else picture.size[::-1]
        return height, width, orientation


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Open the first picture of a file, without loading it. Whatever goes wrong, here or inside, is a BadImage."""
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
    """1 to 8; from 5 on, height and width are swapped."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data is no reason to lose a sound picture
        return 1


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
