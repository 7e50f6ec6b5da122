"""Decode a picture file to pixels.

What a file says of itself decides how it is read, so that a picture is the same in training, evaluation and prediction,
decoded once or while training. What a file cannot say (which values are black and white, what a fourth band is) the
arguments `value_range` and `alpha` of a data set say; where they matter and are missing, that is noticed (notices.py).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trainers import limits
from trainers.endings import PLUGINS
from trainers.endings import SUFFIXES as SUFFIXES
from trainers.notices import notice
from trainers.pixels import BAND, LARGE, Pixels, Reading, pixels_of
from trainers.stored import stored_pixels

if TYPE_CHECKING:
    from PIL import Image

ALPHA = ("white", "ignore")
_ONE_AT_A_TIME = threading.Lock()


class BadImage(ValueError):
    """A file cannot be decoded, or its mask does not fit. `--on-bad-image skip` leaves it out, and records it."""


def check_reading(value_range: object = None, alpha: str | None = None) -> Reading:
    """The arguments of a data set that say how its pictures are read, for `decode` and the `args` of items.

    Args:
        value_range: The values that become black and white, of pictures that have more than 8 bits and are grey, as the
            file has them; one number: from 0 to it. None: 0 to the greatest of so many bits.
        alpha: "white": pictures are laid on white by their alpha channel; "ignore": it is left out; None: as it is
            found.

    Raises:
        ValueError: A value is not allowed.
    """
    found: Reading = {}
    if value_range is not None:
        ends = value_range if isinstance(value_range, list | tuple) else [0, value_range]
        numbers = [each for each in ends if isinstance(each, int | float) and not isinstance(each, bool)]
        if len(ends) != 2 or len(numbers) != 2 or not all(map(math.isfinite, numbers)) or numbers[0] >= numbers[1]:
            raise ValueError(
                f"value_range={value_range} is not allowed; give the values that are black and white, as in "
                "value_range=0,4095"
            )
        found["value_range"] = [float(each) for each in numbers]
    if alpha is not None:
        if alpha not in ALPHA:
            raise ValueError(f"alpha={alpha} is not offered; use white (lay pictures on white) or ignore")
        found["alpha"] = alpha
    return found


def reading(args: Mapping[str, Any]) -> Reading:
    """Those of a data set's or an item's arguments that say how pictures are read."""
    return check_reading(args.get("value_range"), args.get("alpha"))


def revision(path: str) -> str:
    """Changes where files of such a name are read otherwise than before; a part of the cache's key."""
    return "" if path.lower().endswith((".jpg", ".jpeg")) else " 3"


def decode(
    path: str,
    channels: int,
    min_size: Sequence[int] | None = None,
    how: Reading | None = None,
) -> Pixels:
    """Read the first picture of a file, upright.

    Transparent pictures are laid on white: most are drawings and scans meant for a white page, and under black their
    dark lines would vanish. An alpha channel that is no transparency is ignored.

    Args:
        path: The file.
        channels: 1 (grey) or 3 (RGB).
        min_size: Height and width that the caller will shrink the picture to. A JPEG, and a very large picture, may
            then be decoded at 1/2, 1/4 or 1/8; what is returned is at least twice as large (or has the picture's own
            size).
        how: What the data set says of its pictures; see `check_reading`.

    Returns:
        uint8 (height, width, channels).

    Raises:
        BadImage: The file cannot be decoded.
    """
    from PIL import ImageOps

    with opened(path) as picture:
        notice_pages(picture, path)
        jpeg = _is_jpeg(picture)
        size = None
        if min_size is not None and jpeg:
            height, width = min_size
            size = (2 * width, 2 * height) if orientation_of(picture) < 5 else (2 * height, 2 * width)
        picture.draft("L" if channels == 1 else "RGB", size)  # of JPEGs alone; other formats ignore it
        with _room(picture, channels):
            stored = stored_pixels(picture)
            picture.load()
            # Not before: Pillow turns TIFFs by itself while it loads them. In place, the pixels are turned before the
            # EXIF data is rewritten, and damage in it is no reason to lose a sound picture.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(picture, in_place=True)
            return pixels_of(picture, path, channels, stored, how or {}, None if jpeg else min_size)


class Geometry(NamedTuple):
    """What a picture's header says."""

    height: int
    """When upright."""
    width: int
    orientation: int
    """EXIF, 1 to 8."""
    jpeg: bool
    """Whether it is shrunk while it is decoded, before it is turned."""


def geometry(path: str) -> Geometry:
    """Read a picture's header, without decoding it. Raises BadImage: the file cannot be opened."""
    with opened(path) as picture:
        orientation = orientation_of(picture)
        swapped = orientation >= 5 and picture.format != "TIFF"  # of which Pillow gives the size when upright
        width, height = picture.size[::-1] if swapped else picture.size
        return Geometry(height, width, orientation, _is_jpeg(picture))


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Open the first picture of a file, without loading it. Whatever goes wrong, here or inside, is a BadImage."""
    from PIL import Image, UnidentifiedImageError

    _prepare_pillow()
    size = ""
    try:
        # as a stream: given a path, Pillow 13 maps plain TIFFs into memory and scrambles those to be turned
        with open(path, "rb") as stream, Image.open(stream) as picture:
            size = f"{picture.width}x{picture.height}"
            yield picture
            return
    except BadImage:
        raise
    except UnidentifiedImageError:
        cause = _unknown(path) if os.path.getsize(path) else "the file is empty"
    except MemoryError:
        cause = f"its {size} pixels do not fit into memory; shrink it or cut it into tiles"
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        if os.path.islink(path) and not os.path.exists(path):
            cause = f"it is a link to {os.readlink(path)}, which is not there"
    raise BadImage(f"{path} cannot be decoded: {cause}; replace or remove it") from None


def free_memory() -> int:
    """Bytes that this process may still take."""
    import psutil

    return min(int(psutil.virtual_memory().available), limits.memory() - int(psutil.Process().memory_info().rss))


@functools.cache
def _prepare_pillow() -> None:
    """Lift Pillow's limits against attackers: pixels do not depend on what else lies in a file, and memory is checked
    by ourselves; teach it what installed packages can read."""
    from PIL import Image, PngImagePlugin

    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = sys.maxsize
    for name in ("pillow_avif", *PLUGINS):
        with contextlib.suppress(Exception):  # one that is broken is as good as none
            if importlib.util.find_spec(name) is not None:
                plugin = importlib.import_module(name)
                if name == "pillow_heif":
                    plugin.register_heif_opener()


def _unknown(path: str) -> str:
    """Why Pillow cannot open a file."""
    from PIL import TiffImagePlugin

    with contextlib.suppress(Exception), open(path, "rb") as stream:
        head = stream.read(8)
        if head[:4] in TiffImagePlugin.PREFIXES:
            big = 43 in head[2:4]
            tags = TiffImagePlugin.ImageFileDirectory_v2(head + stream.read(8) if big else head)
            stream.seek(tags.next)
            tags.load(stream)
            bits = tags.get(258, (1,))
            kind = {2: " with a sign", 3: ", floating point"}.get(tags.get(339, (1,))[0], "")
            bands = tags.get(277, len(bits))
            return (
                f"it is a TIFF of {bands} band{'s' * (bands > 1)} of {bits[0]} bits{kind}, which Pillow cannot read; "
                "save it with 1 band of up to 16 bits, or with 3 bands (red, green, blue) of 8 bits"
            )
    return "it is no picture that Pillow knows"


def _is_jpeg(picture: Image.Image) -> bool:
    return picture.format in ("JPEG", "MPO")


def orientation_of(picture: Image.Image) -> int:
    """1 to 8; from 5 on, height and width are swapped."""
    try:
        found = int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data is no reason to lose a sound picture
        return 1
    return found if 1 <= found <= 8 else 1


def notice_pages(picture: Image.Image, path: str) -> None:
    """Notice a second picture, unless it is made of the first: in an MPO, or a smaller page of a TIFF."""
    if picture.format == "MPO" or not getattr(picture, "is_animated", False):
        return
    if picture.format == "TIFF":
        reduced_or_mask = 0
        try:
            picture.seek(1)
            reduced_or_mask = getattr(picture, "tag_v2", {}).get(254, 0) & 0b101
        except Exception:  # it is damaged, or of a kind that Pillow does not read
            pass
        finally:
            picture.seek(0)
        if reduced_or_mask:
            return
    notice("pages", path)


@contextlib.contextmanager
def _room(picture: Image.Image, channels: int) -> Iterator[None]:
    """Whether there is memory for a large picture, which is then decoded alone. Raises BadImage."""
    pixels = picture.width * picture.height
    if pixels <= LARGE:
        yield
        return
    of_mode = 1 if picture.mode in ("1", "L", "P") else 2 if picture.mode.startswith("I;16") else 4
    copies = 2 if orientation_of(picture) > 1 else 1
    needed = pixels * (copies * of_mode + channels) + 16 * BAND
    with _ONE_AT_A_TIME:
        free = free_memory()
        if needed > free:
            raise ValueError(
                f"its {picture.width}x{picture.height} pixels need {needed / 2**30:.1f} GiB of memory, and "
                f"{free / 2**30:.1f} GiB are free; shrink it or cut it into tiles"
            )
        yield
