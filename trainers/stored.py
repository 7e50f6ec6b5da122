"""What a file says of its pixels before they are loaded, and what Pillow is wrong about and set right on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trainers.arrays import Array

if TYPE_CHECKING:
    from PIL import Image

Opened = Any
"""A picture that Pillow has opened: what is read of it, and set, differs by its format and has no types."""
Tile = Any
"""Where Pillow finds a part of a picture in its file, and how."""
_BITS, _PHOTOMETRIC, _PLANES, _EXTRA, _SAMPLE_FORMAT = 258, 262, 284, 338, 339
"""Tags of a TIFF; the second says whether 0 is black, the last whether numbers have a sign."""
_MULTIPLIED, _SEPARATE = 1, 2
"""Values of the tag ExtraSamples: alpha by which colours are multiplied, or are not."""
_OTHER_SIGN: Mapping[tuple[str, int, int], str] = {("L", 8, 2): "i1", ("I", 32, 1): "u4"}
"""Mode, bits and sample format of TIFFs that Pillow reads with or without a sign where it is the other way."""


class Stored(NamedTuple):
    """What a file that is not loaded yet says of its pixels."""

    kind: str
    """In Pillow's words, as "L;2" of grey in two bits; "" where unknown."""
    multiplied: bool = False
    """Whether the file says that its colours are multiplied by alpha; they are loaded so."""
    inverted: bool = False
    """Whether 0 is white, and Pillow leaves it so."""
    white: float = 65535.0
    """Of grey values of more than 8 bits, the greatest that such a file holds."""
    step: float = 1.0
    """What Pillow makes of a 1 in the file: it stretches some kinds to 16 bits."""
    view: str = ""
    """How NumPy is to see the values where Pillow takes them for signed, or for unsigned, and they are not."""

    def values(self, picture: Image.Image) -> Array:
        """Those of a loaded picture, or of a part of it."""
        array = np.asarray(picture)
        return array.view(self.view) if self.view else array


def stored_pixels(picture: Image.Image) -> Stored:
    """Look at a picture that is not loaded yet, and see to it that it is loaded as its file has it; some are loaded."""
    opened: Opened = picture
    fix = _FIXES.get(str(picture.format))
    if fix is not None:
        fix(opened)
    kind = raw_kind(picture)
    deep = picture.mode == "F" or picture.mode.startswith("I")
    if picture.format == "TIFF":
        _load_separate_alpha(opened)
        return Stored(
            kind,
            multiplied=picture.mode == "RGBA" and _first(opened, _EXTRA) == _MULTIPLIED,
            inverted=deep and opened.tag_v2.get(_PHOTOMETRIC) == 0,
            white=4095.0 if ";12" in kind else 65535.0,
            view=_OTHER_SIGN.get((picture.mode, _first(opened, _BITS), _first(opened, _SAMPLE_FORMAT, 1)), ""),
        )
    white = {"PPM": _white_of_ppm, "JPEG2000": _white_of_jpeg2000}.get(str(picture.format), lambda _: 255)(opened)
    if white <= 255:
        return Stored(kind)
    if not deep:
        return Stored(f"{picture.mode};16")
    # JPEG 2000 is shifted by whole bits
    return Stored(kind, white=white, step=65536 / (white + 1) if picture.format == "JPEG2000" else 65535 / white)


def raw_kind(picture: Image.Image) -> str:
    """How the file of a picture that is not loaded yet has its pixels, in Pillow's words; "" where unknown."""
    tiles: Sequence[Tile] = getattr(picture, "tile", None) or ()
    args = tiles[0].args if tiles else None
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _first(opened: Opened, tag: int, missing: int = 0) -> int:
    """The first value of a tag of a TIFF."""
    found = opened.tag_v2.get(tag) or missing
    return int(found[0] if isinstance(found, tuple) else found)


def _white_of_ppm(opened: Opened) -> int:
    """The greatest value, which the file names."""
    args = opened.tile[0].args
    return int(args[-1]) if isinstance(args, tuple) and isinstance(args[-1], int) and len(args) == 2 else 255


def _white_of_jpeg2000(opened: Opened) -> int:
    """From the bits of the first band, as the head says."""
    opened.fp.seek(0)
    head = opened.fp.read(4096)
    bare = head.startswith(b"\xff\x4f\xff\x51")
    place = 42 if bare else head.find(b"ihdr") + 14
    bits = head[place] & 127 if len(head) > place > 14 else 127
    return 2 ** (bits + 1) - 1 if bits < 127 else 255


def _fix_tiff(opened: Opened) -> None:
    """Colours that a file says are multiplied by alpha stay as they are: divided by a band that is no alpha they would
    be lost. Of planes that are not compressed Pillow does not know such alpha, and takes the bytes of 16 bits for
    pixels of 8."""
    kind = raw_kind(opened)
    if kind.startswith("RGBa"):
        opened.tile = [_with(tile, kind.replace("RGBa", "RGBA")) for tile in opened.tile]
    if _in_planes(opened) and opened.tile[0].codec_name == "raw":
        deep = (";16L" if opened.tag_v2.prefix == b"II" else ";16B") if _first(opened, _BITS) == 16 else ""
        planes = [(tile, str(tile.args[0]).upper()) for tile in opened.tile]
        read = opened.getbands()  # and no others that there are
        opened.tile = [_with(tile, f"{band}{deep}") for tile, band in planes if band in read]


def _in_planes(opened: Opened) -> bool:
    return opened.tag_v2.get(_PLANES) == 2 and len(opened.getbands()) > 1


def _load_separate_alpha(opened: Opened) -> None:
    """Of compressed planes Pillow divides the colours by a fourth, unless they are no RGBA while it loads them."""
    from PIL import Image

    compressed = opened.tile[0].codec_name == "libtiff"
    if not (compressed and _in_planes(opened) and opened.mode == "RGBA") or _first(opened, _EXTRA) == _SEPARATE:
        return
    opened._mode = "CMYK"  # four bands, of which Pillow makes nothing else
    opened.tile = [_with(tile, str(tile.args[0]).replace("RGBA", "CMYK")) for tile in opened.tile]
    opened.load()
    loaded: Opened = Image.new("RGBA", opened.size)
    for band in range(4):
        loaded.im.putband(opened.im.getband(band), band)
    opened.im, opened._mode = loaded.im, "RGBA"


def _fix_png(opened: Opened) -> None:
    """The value that is clear, as Pillow makes 8 bits of it."""
    kind, clear = raw_kind(opened), opened.info.get("transparency")
    if isinstance(clear, int) and kind.startswith(("L;2", "L;4")):
        opened.info["transparency"] = clear * 255 // (2 ** int(kind[2]) - 1)
    elif isinstance(clear, tuple) and ";16" in kind:
        opened.info["transparency"] = tuple(value >> 8 for value in clear)


def _fix_bmp(opened: Opened) -> None:
    """Where the palette is grey, Pillow forgets that its indices have 4 bits, or 8 for two colours."""
    from PIL import ImagePalette

    opened.fp.seek(0 if opened.format == "DIB" else 14)  # bare, or below the head of the file
    head = opened.fp.read(16)
    bits = int.from_bytes(head[10:12] if head[0] == 12 else head[14:16], "little")
    if (opened.mode, bits) not in (("1", 4), ("1", 8), ("L", 4)):
        return
    greys = (0, 255) if opened.mode == "1" else range(16)
    opened._mode = "P"
    opened.palette = ImagePalette.raw("RGB", bytes(grey for grey in greys for _ in range(3)))
    opened.tile = [_with(tile, "P;4" if bits == 4 else "P") for tile in opened.tile]


def _with(tile: Tile, kind: str) -> Tile:
    return tile._replace(args=(kind, *tile.args[1:]))


_FIXES: Mapping[str, Callable[[Opened], None]] = {
    "TIFF": _fix_tiff,
    "PNG": _fix_png,
    "BMP": _fix_bmp,
    "DIB": _fix_bmp,
}
"""By Pillow's name of the format."""
