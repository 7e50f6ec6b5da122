"""PNG files of what is drawn from a picture and its mask, by bands where they are large: they need little memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from trainers.pixels import BAND, Pixels
from trainers.runs import mask_figures

Draw = Callable[[Pixels, Pixels], Pixels]
"""Of a picture (height, width, channels) and its mask (height, width): what is shown, of their size. A pixel may depend
on its neighbours, but on none further away."""


def draw_png(draw: Draw, picture: Pixels, labels: Pixels) -> bytes:
    """A PNG file of what `draw` makes of a picture and its mask."""
    height, width = labels.shape
    rows = max(1, BAND // width)
    if height <= rows:
        return mask_figures.save_png(draw(picture, labels))

    def bands() -> Iterator[Pixels]:
        for top in range(0, height, rows):
            above, below = min(1, top), min(height, top + rows + 1)
            drawn = draw(picture[top - above : below], labels[top - above : below])
            yield drawn[above : above + rows]

    return _encode(bands(), height, width)


def _encode(bands: Iterator[Pixels], height: int, width: int) -> bytes:
    """Each row as the difference from the one above it, which is good for masks."""
    packer = zlib.compressobj(6)
    packed, last, channels = [], None, 1
    for band in bands:
        band = band.reshape(len(band), -1)
        channels = band.shape[1] // width
        above = np.concatenate([np.zeros_like(band[:1]) if last is None else last, band[:-1]])
        lines = np.empty((len(band), band.shape[1] + 1), np.uint8)
        lines[:, 0], lines[:, 1:] = 2, band - above
        packed.append(packer.compress(lines.tobytes()))
        last = band[-1:].copy()
    packed.append(packer.flush())
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", head), *((b"IDAT", part) for part in packed if part), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
