"""Pictures as people have them: what is read of each kind, against NumPy, and what is told of it."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from trainers import decode as decoding
from trainers import endings, notices, pixels
from trainers.decode import BadImage, check_reading, decode
from trainers.messages import Notice
from trainers.pixels import Reading

RNG = np.random.default_rng(0)


def noise(*shape: int, low: int = 0, high: int = 256, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(kind)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def tiff(
    path: Path,
    array: np.ndarray,
    *,
    extra: tuple[int, ...] = (),
    photometric: int | None = None,
    order: str = "<",
    planes: bool = False,
    compressed: bool = False,
    orientation: int = 1,
) -> Path:
    """A TIFF of any number of bands, as no library checks it: `extra` is the tag ExtraSamples."""
    height, width, bands = array.shape
    kind, bits = {"u": 1, "i": 2, "f": 3}[array.dtype.kind], 8 * array.dtype.itemsize
    stored = array.transpose(2, 0, 1) if planes else array[None]
    parts = [part.astype(array.dtype.newbyteorder(order)).tobytes() for part in stored]
    parts = [zlib.compress(part) if compressed else part for part in parts]
    data = b"".join(parts)
    data += b"\0" * (len(data) % 2)
    after = 8 + len(data)
    tags: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (bits,) * bands,
        259: (8 if compressed else 1,),
        262: ((2 if bands >= 3 else 1) if photometric is None else photometric,),
        273: tuple(8 + sum(map(len, parts[:number])) for number in range(len(parts))),
        274: (orientation,),
        277: (bands,),
        278: (height,),
        279: tuple(map(len, parts)),
        284: (2 if planes else 1,),
        339: (kind,) * bands,
    }
    if extra:
        tags[338] = extra
    entries, values = b"", b""
    start = after + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        long = tag in (256, 257, 273, 278, 279)
        packed = struct.pack(f"{order}{len(numbers)}{'I' if long else 'H'}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack(f"{order}I", start + len(values)), values + packed
        entries += struct.pack(f"{order}HHI", tag, 4 if long else 3, len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, after)
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0" + values)
    return path


def png(path: Path, array: np.ndarray, bits: int, colour: int, clear: Sequence[int]) -> Path:
    """A PNG of so many bits, with a value that is clear, as other programs write it."""
    rows = ((array.reshape(len(array), -1, 1) >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(len(array), -1)
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + np.packbits(row).tobytes() for row in rows))
    parts = [(b"IHDR", head), (b"tRNS", struct.pack(f">{len(clear)}H", *clear)), (b"IDAT", packed), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def look(path: Path, channels: int = 3, **how: Any) -> tuple[np.ndarray, dict[str, Notice]]:
    """The pixels, and what was noticed."""
    with notices.collected() as found:
        image = decode(str(path), channels, how=check_reading(**how))
    assert image.dtype == np.uint8
    assert image.shape[2] == channels
    return image, found


def told(found: dict[str, Notice]) -> str:
    return "\n".join(notices.describe(found))


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """256 levels between two values, the nearest of each."""
    return np.floor(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


# ---- value ranges ----


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_a_range_that_fills_part_of_16_bits_is_told_and_can_be_given(tmp_path: Path, bits: int, ending: str) -> None:
    """danforthcenter/plantcv 1804: a fixed division leaves a handful of levels."""
    values = noise(64, 64, high=2**bits, kind=np.uint16)
    values[0, :2] = 0, 2**bits - 1
    path = save(tmp_path / f"x.{ending}", values)
    image, found = look(path, 1)
    np.testing.assert_array_equal(image[:, :, 0], stretched(values, 0, 65535))
    assert f"values from 0 to {2**bits - 1} " in told(found)
    assert f"value_range=0,{2**bits - 1}," in told(found)
    image, found = look(path, 1, value_range=[0, 2**bits - 1])
    np.testing.assert_array_equal(image[:, :, 0], stretched(values, 0, 2**bits - 1))
    assert len(np.unique(image)) == 256
    assert not found


def test_values_in_the_middle_of_16_bits_are_told_too(tmp_path: Path) -> None:
    """Computed tomography: 4,096 values around 32,768."""
    values = noise(64, 64, low=31000, high=35096, kind=np.uint16)
    assert f"value_range={values.min()},{values.max()}" in told(look(save(tmp_path / "x.tif", values))[1])


def test_a_stray_bright_pixel_hides_no_narrow_range(tmp_path: Path) -> None:
    values = noise(128, 128, high=4096, kind=np.uint16)
    values[5, 5] = 65535
    line = told(look(save(tmp_path / "x.png", values))[1])
    assert "fill 17 of 256 grey levels" in line
    assert "value_range=0,4240," in line


@pytest.mark.parametrize(
    "values",
    [
        noise(64, 64, high=65536, kind=np.uint16),
        noise(64, 64, high=2, kind=np.uint16) * 65535,  # a drawing
        noise(64, 64, high=256, kind=np.uint16) * 257,
    ],
    ids=["photograph", "drawing", "8 bits"],
)
def test_16_bits_that_are_used_are_no_matter(tmp_path: Path, values: np.ndarray) -> None:
    image, found = look(save(tmp_path / "x.png", values.astype(np.uint16)), 1)
    np.testing.assert_array_equal(image[:, :, 0], (values.astype(np.int64) + 128) // 257)
    assert not told(found)


def test_a_dark_picture_among_others_is_no_matter(tmp_path: Path) -> None:
    """It is the range of the data set that counts."""
    total: dict[str, Notice] = {}
    for number, high in enumerate((1000, 65536, 65536)):
        path = save(tmp_path / f"{number}.png", noise(64, 64, high=high, kind=np.uint16))
        notices.merge(total, look(path)[1])
        assert bool(told(total)) == (number == 0)
    assert total[notices.DEEP]["count"] == 3


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (noise(20, 20, low=-1000, high=3000, kind=np.int16), -1000, 2000),
        (noise(20, 20, low=-40000, high=90000, kind=np.int32), -40000, 90000),
        (np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32), -3, 3),
        (np.random.default_rng(0).random((20, 20)).astype(np.float32), 0, 1),
    ],
    ids=["signed 16", "signed 32", "floating point", "from 0 to 1"],
)
def test_numbers_of_unknown_range_are_refused_until_it_is_given(
    tmp_path: Path, values: np.ndarray, low: float, high: float
) -> None:
    path = tiff(tmp_path / "x.tif", values[:, :, None])
    with pytest.raises(BadImage, match=r"x\.tif cannot be decoded: its pixels .*, here from .* to .*; .*value_range="):
        look(path)
    image, found = look(path, 1, value_range=[low, high])
    np.testing.assert_array_equal(image[:, :, 0], stretched(values, low, high))
    assert list(found) == (["beyond"] if (values > high).mean() > 0.01 else [])


def test_a_range_that_does_not_go_with_the_pictures_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", noise(64, 64, high=4096, kind=np.uint16))
    assert "values from 0 to 4095, beyond value_range" in told(look(path, value_range=255)[1])
    path = save(tmp_path / "y.png", noise(8, 8))
    image, found = look(path, 1, value_range=255)
    np.testing.assert_array_equal(image[:, :, 0], noise(8, 8))
    assert "8 bits a channel" in told(found)


def test_what_is_no_number_becomes_black_and_is_told(tmp_path: Path) -> None:
    values = np.array([[[np.nan], [0.5], [np.inf], [1.0]]], np.float32)
    image, found = look(tiff(tmp_path / "x.tif", values), 1, value_range=1)
    assert image.ravel().tolist() == [0, 128, 255, 255]
    assert "nan" in found


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_with_white_at_0(tmp_path: Path, order: str) -> None:
    values = noise(8, 8, high=65536, kind=np.uint16)
    if order == ">":
        image, _ = look(tiff(tmp_path / "x.tif", values[:, :, None], order=order), 1)
        np.testing.assert_array_equal(image[:, :, 0], stretched(values, 0, 65535))
        return
    image, _ = look(tiff(tmp_path / "x.tif", values[:, :, None], photometric=0), 1)
    np.testing.assert_array_equal(image[:, :, 0], 255 - stretched(values, 0, 65535))


def test_colours_of_16_bits_in_a_narrow_range_are_told(tmp_path: Path) -> None:
    dark = tiff(tmp_path / "x.tif", noise(32, 32, 3, high=4096, kind=np.uint16))
    assert "16 bits a channel fill 16 of 256 levels" in told(look(dark)[1])
    with pytest.raises(BadImage, match="value_range is for grey pictures"):
        look(dark, value_range=4095)
    full = tiff(tmp_path / "y.tif", noise(32, 32, 3, high=65536, kind=np.uint16))
    image, found = look(full)
    np.testing.assert_array_equal(image, noise(32, 32, 3, high=65536, kind=np.uint16) >> 8)
    assert not told(found)


@pytest.mark.parametrize("wrong", [[1, 1], [5, 2], "wide", [0, float("nan")], [1, 2, 3], True])
def test_a_range_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"value_range=.* is not allowed; give the values that are black and white"):
        check_reading(wrong)


def test_an_unknown_way_with_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha=black is not offered; use white .* or ignore"):
        check_reading(alpha="black")


@pytest.mark.parametrize("ending", ["pgm", "jp2", "j2k"])
def test_a_range_counts_in_the_values_of_the_file(tmp_path: Path, ending: str) -> None:
    """Pillow stretches them to 16 bits: a band of Sentinel-2 has 15, and reflectances up to 10,000 mean something."""
    values = noise(64, 64, low=300, high=9000, kind=np.uint16)
    path = tmp_path / f"x.{ending}"
    if ending == "pgm":
        path.write_bytes(b"P5 64 64 32767\n" + values.astype(">u2").tobytes())
    else:
        save(path, values + 2**14)
        raw = bytearray(path.read_bytes())  # in 15 bits the same code stream holds values from 2**14 on as from 0 on
        size = raw.index(b"\xff\x4f\xff\x51") + 42
        for place in (size, *((raw.index(b"ihdr") + 14,) if ending == "jp2" else ())):
            assert raw[place] == 15
            raw[place] = 14
        path.write_bytes(raw)
    image, found = look(path, 1, value_range=10000)
    np.testing.assert_array_equal(image[:, :, 0], stretched(values, 0, 10000))
    assert not found
    image, found = look(path, 1)
    np.testing.assert_array_equal(image[:, :, 0], stretched(values, 0, 32767))
    assert f"values from {values.min()} to {values.max()} " in told(found)


def test_numbers_have_the_sign_that_the_file_says(tmp_path: Path) -> None:
    signed, large = noise(9, 9, 1, low=-50, high=50, kind=np.int8), noise(9, 9, 1, high=2**32, kind=np.uint32)
    for path, values, low, high in (
        (tiff(tmp_path / "x.tif", signed), signed, -50, 50),
        (tiff(tmp_path / "y.tif", large), large, 0, 2**32),
    ):
        with pytest.raises(BadImage, match=rf"here from {values.min()} to {values.max()}; .*value_range="):
            look(path)
        np.testing.assert_array_equal(look(path, 1, value_range=[low, high])[0], stretched(values, low, high))
    image, found = look(tiff(tmp_path / "z.tif", np.abs(signed)), 1)
    np.testing.assert_array_equal(image, np.abs(signed))
    assert not found


@pytest.mark.parametrize("values", [[0, 255], [0, 1, 2, 3], [7, 9]])
@pytest.mark.parametrize("bands", [1, 3])
def test_few_small_values_of_16_bits_that_become_black_are_told(tmp_path: Path, values: list[int], bands: int) -> None:
    array = np.repeat(np.resize(values, (8, 8))[:, :, None], bands, 2).astype(np.uint16)
    assert "of 256" in told(look(tiff(tmp_path / "x.tif", array))[1])


def test_of_one_value_alone_no_range_is_made_up(tmp_path: Path) -> None:
    path = tiff(tmp_path / "x.tif", np.full((4, 4, 1), 0.5, np.float32))
    with pytest.raises(BadImage, match=r"from 0\.5 to 0\.5; .*value_range=LOW,HIGH"):
        look(path)


# ---- bands that are no alpha, and alpha that is no transparency ----

COLOURS = noise(24, 24, 3, low=60, high=120)


def with_alpha(alpha: np.ndarray | int, colours: np.ndarray = COLOURS) -> np.ndarray:
    return np.dstack([colours, np.broadcast_to(np.asarray(alpha, np.uint8), colours.shape[:2])])


@pytest.mark.parametrize("low", [0, 10, 100])
@pytest.mark.parametrize("extra", [(), (0,), (1,), (2,)], ids=["none", "unspecified", "associated", "unassociated"])
def test_a_fourth_band_that_varies_as_a_picture_does_changes_no_colours(
    tmp_path: Path, low: int, extra: tuple[int, ...]
) -> None:
    """microsoft/PlanetaryComputer 82: near infrared, whatever the file calls it."""
    infrared = noise(24, 24, low=low, high=low + 50)
    image, found = look(tiff(tmp_path / "x.tif", with_alpha(infrared), extra=extra))
    np.testing.assert_array_equal(image, COLOURS)
    assert list(found) == ([] if extra == (0,) else ["band"])


def test_five_and_six_bands_are_read_or_named(tmp_path: Path) -> None:
    bands = noise(24, 24, 6, low=60, high=120)
    image, _ = look(tiff(tmp_path / "5.tif", bands[:, :, :5], extra=(0, 0)))
    np.testing.assert_array_equal(image, bands[:, :, :3])
    for path in (
        tiff(tmp_path / "a.tif", bands, photometric=1, extra=(0,) * 5),
        tiff(tmp_path / "b.tif", bands.astype(np.uint16), extra=(0,) * 3),
        tiff(tmp_path / "c.tif", bands[:, :, :3].astype(np.float32)),
    ):
        with pytest.raises(BadImage, match=r"it is a TIFF of \d bands of \d+ .*, which Pillow cannot read; save it"):
            look(path)


def test_two_bands(tmp_path: Path) -> None:
    """Radar: both vary. The first is grey."""
    bands = noise(24, 24, 2, low=60, high=120)
    for extra in ((0,), (2,)):
        image, _ = look(tiff(tmp_path / "x.tif", bands, extra=extra), 1)
        np.testing.assert_array_equal(image[:, :, 0], bands[:, :, 0])


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("alpha", [0, 1, 20])
def test_an_alpha_channel_that_hides_all_is_ignored(tmp_path: Path, ending: str, alpha: int) -> None:
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    image, found = look(save(tmp_path / f"x.{ending}", with_alpha(alpha), **options))
    np.testing.assert_array_equal(image, COLOURS)
    assert list(found) == ["hidden"]
    assert (look(tmp_path / f"x.{ending}", alpha="white")[0] > 230).all()


def test_an_empty_drawing_is_a_white_page(tmp_path: Path) -> None:
    image, found = look(save(tmp_path / "x.png", np.zeros((8, 8, 4), np.uint8)))
    assert (image == 255).all()
    assert not found


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return colours * share + 255 * (1 - share)


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_what_is_transparent_is_laid_on_white_without_a_word(tmp_path: Path, ending: str) -> None:
    """A drawing with soft edges: most is clear or opaque."""
    alpha = np.zeros((24, 24), np.uint8)
    alpha[6:12], alpha[12] = 255, 128
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    image, found = look(save(tmp_path / f"x.{ending}", with_alpha(alpha), **options))
    assert np.abs(image - on_white(COLOURS, alpha)).max() <= 1
    assert not found


def test_strokes_that_are_in_alpha_alone_are_kept(tmp_path: Path) -> None:
    alpha = noise(24, 24)
    image, found = look(save(tmp_path / "x.png", with_alpha(alpha, np.zeros((24, 24, 3), np.uint8))), 1)
    assert np.abs(image[:, :, 0].astype(int) - (255 - alpha)).max() <= 1
    assert not found


def test_a_soft_alpha_channel_of_a_png_is_transparency_and_told(tmp_path: Path) -> None:
    alpha = noise(24, 24, low=20, high=230)
    path = save(tmp_path / "x.png", with_alpha(alpha))
    image, found = look(path)
    assert np.abs(image - on_white(COLOURS, alpha)).max() <= 1
    assert "alpha=ignore" in told(found)
    image, found = look(path, alpha="ignore")
    np.testing.assert_array_equal(image, COLOURS)
    assert not found


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("planes", [False, True])
def test_colours_multiplied_by_alpha_are_laid_on_white(tmp_path: Path, planes: bool, compressed: bool) -> None:
    alpha = np.where(noise(24, 24, high=2), 255, 100).astype(np.uint8)
    multiplied = (COLOURS * (alpha[:, :, None] / 255)).astype(np.uint8)
    path = tmp_path / "x.tif"
    tiff(path, with_alpha(alpha, multiplied), extra=(1,), planes=planes, compressed=compressed)
    image, _ = look(path)
    assert np.abs(image - on_white(COLOURS, alpha)).max() <= 2


@pytest.mark.parametrize("extra", [(), (1,), (2,)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_fourth_plane_changes_no_colours(
    tmp_path: Path, extra: tuple[int, ...], kind: type, orientation: int
) -> None:
    """Pillow divides the colours of compressed planes by it."""
    values = noise(24, 16, 4, kind=kind) * np.array(257 if kind is np.uint16 else 1, kind)
    for compressed in (False, True):
        path = tmp_path / f"{compressed}.tif"
        tiff(path, values, extra=extra, planes=True, compressed=compressed, orientation=orientation)
        image, found = look(path)
        upright = np.rot90(values, -1) if orientation == 6 else values
        np.testing.assert_array_equal(image, upright[:, :, :3] & 255)
        assert "near infrared" in told(found)
        assert not told(look(path, alpha="ignore")[1])


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 9])
    picture.putdata([0, 1, 2])
    picture.save(tmp_path / "x.png", transparency=bytes([0, 0, 0]))
    assert look(tmp_path / "x.png")[0][0].tolist() == [[10, 20, 30], [200, 100, 50], [0, 0, 9]]
    picture.save(tmp_path / "x.png", transparency=1)
    assert look(tmp_path / "x.png")[0][0].tolist() == [[10, 20, 30], [255, 255, 255], [0, 0, 9]]


def test_a_grey_value_of_16_bits_that_is_clear(tmp_path: Path) -> None:
    values = np.array([[0, 5140, 65535]], np.uint16)
    path = save(tmp_path / "x.png", values, transparency=5140)
    assert look(path, 1)[0].ravel().tolist() == [0, 255, 255]


def test_values_that_are_clear_are_those_of_the_file(tmp_path: Path) -> None:
    """Of 2 and 4 bits Pillow compares them with what it makes of the pixels, of colours of 16 bits likewise."""
    for bits in (2, 4):
        path = png(tmp_path / "x.png", np.array([[0, 1, 3]]), bits, 0, clear=[1])
        assert look(path, 1)[0].ravel().tolist() == [0, 255, 3 * 255 // (2**bits - 1)]
    colours = np.array([[[0, 0, 0], [1000, 2000, 60000], [3, 7, 234]]])
    path = png(tmp_path / "x.png", colours, 16, 2, clear=[1000, 2000, 60000])
    assert look(path)[0][0].tolist() == [[0, 0, 0], [255, 255, 255], [0, 0, 0]]
    assert look(png(tmp_path / "x.png", colours, 16, 2, clear=[3, 7, 234]))[0][0, 1].tolist() == [3, 7, 234]


@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
def test_bands_in_planes_of_16_bits(tmp_path: Path, bands: int, order: str, compressed: bool) -> None:
    """As GDAL writes them with INTERLEAVE=BAND: of those that are not compressed Pillow takes the bytes for pixels."""
    values = noise(8, 6, bands, high=65536, kind=np.uint16)
    tiff(tmp_path / "x.tif", values, extra=(0,) * (bands - 3), order=order, planes=True, compressed=compressed)
    np.testing.assert_array_equal(look(tmp_path / "x.tif")[0], (values >> 8)[:, :, :3])


def test_colours_of_lab_are_read_in_grey_too(tmp_path: Path) -> None:
    Image.new("LAB", (4, 3), (128, 128, 128)).save(tmp_path / "x.tif")
    assert np.ptp(look(tmp_path / "x.tif", 1)[0]) == 0
    np.testing.assert_array_equal(
        look(tmp_path / "x.tif", 3)[0][0, 0] // 8, look(tmp_path / "x.tif", 1)[0][0, 0, 0] // 8
    )


# ---- what else lies in a file ----


@pytest.mark.parametrize("kind", ["text", "many texts", "profile", "exif"])
def test_text_and_profiles_of_any_size_change_no_pixels(tmp_path: Path, kind: str) -> None:
    """python-pillow/Pillow 8363"""
    info = PngImagePlugin.PngInfo()
    for number in range({"text": 1, "many texts": 70}.get(kind, 0)):
        info.add_itxt(f"XML{number}", "x" * (2**21 if kind == "text" else 2**20), zip=True)
    options: dict[str, Any] = {}
    if kind in ("profile", "exif"):
        options = {"icc_profile": bytes(3 * 2**20)} if kind == "profile" else {"exif": b"Exif\0\0" + bytes(2**21)}
    path = save(tmp_path / "x.png", COLOURS, pnginfo=info, **options)
    np.testing.assert_array_equal(look(path)[0], COLOURS)


def test_large_tags_of_a_tiff_change_no_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "x.tif", COLOURS, icc_profile=bytes(3 * 2**20), tiffinfo={700: b"x" * 2**22})
    np.testing.assert_array_equal(look(path)[0], COLOURS)


@pytest.mark.parametrize("ending", ["tif", "gif", "png", "webp", "avif"])
def test_of_several_pages_the_first_is_read_and_told(tmp_path: Path, ending: str) -> None:
    first, second = (Image.new("L", (24, 20), value) for value in (30, 200))
    first.save(tmp_path / f"x.{ending}", save_all=True, append_images=[second])
    image, found = look(tmp_path / f"x.{ending}", 1)
    assert np.abs(image.astype(int) - 30).max() <= 2
    assert image.shape == (20, 24, 1)
    assert list(found) == ["pages"]


def test_a_smaller_copy_beside_a_picture_is_no_second_page(tmp_path: Path) -> None:
    """The overviews of a GeoTIFF, and the preview of a phone's MPO."""
    first = Image.new("L", (24, 20), 30)
    smaller = Image.new("L", (12, 10), 30)
    smaller.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(tmp_path / "x.tif", save_all=True, append_images=[smaller])
    Image.new("RGB", (24, 20)).save(tmp_path / "y.mpo", save_all=True, append_images=[Image.new("RGB", (12, 10))])
    for name in ("x.tif", "y.mpo"):
        assert not look(tmp_path / name)[1]


@pytest.mark.parametrize("ending", ["avif", "jp2", "tga", "qoi", "pcx", "sgi", "pgm"])
def test_files_cut_short_are_refused(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"x.{ending}", noise(64, 64, 3) if ending != "pgm" else noise(64, 64))
    raw = path.read_bytes()
    for length in (len(raw) // 2, 20):
        path.write_bytes(raw[:length])
        with pytest.raises(BadImage, match=rf"x\.{ending} cannot be decoded: .*\w.*; replace or remove it"):
            look(path)


# ---- pictures larger than Pillow allows ----


def test_a_picture_beyond_the_limit_of_pillow_is_read(tmp_path: Path) -> None:
    picture = Image.new("1", (20_000, 10_000))
    picture.putpixel((19_999, 9_999), 1)
    picture.save(tmp_path / "x.png")
    picture.close()
    image = decode(str(tmp_path / "x.png"), 1, (64, 64))
    assert image.shape == (1250, 2500, 1)
    assert image[-1, -1, 0] == round(255 / 64)
    assert not image[:-1].any()


@pytest.mark.parametrize("kind", ["grey", "colour", "16 bits", "float", "clear", "premultiplied", "palette"])
def test_large_pictures_are_read_by_bands_as_small_ones_whole(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: Reading = {}
    if kind in ("grey", "colour"):
        path = save(tmp_path / "x.png", noise(67, 41) if kind == "grey" else noise(67, 41, 3))
    elif kind == "16 bits":
        path = save(tmp_path / "x.tif", noise(67, 41, high=65536, kind=np.uint16))
    elif kind == "float":
        path = tiff(tmp_path / "x.tif", np.random.default_rng(0).random((67, 41, 1)).astype(np.float32))
        how = {"value_range": [0, 1]}
    elif kind == "palette":
        path = tmp_path / "x.png"
        Image.fromarray(noise(67, 41, 3)).quantize(16).save(path, transparency=3)
    else:
        alpha = np.where(noise(67, 41, high=2), 255, 0).astype(np.uint8)
        colours = noise(67, 41, 3) if kind == "clear" else np.minimum(noise(67, 41, 3), alpha[:, :, None])
        path = tiff(tmp_path / "x.tif", with_alpha(alpha, colours), extra=(2 if kind == "clear" else 1,))
    for channels in (1, 3):
        whole = decode(str(path), channels, how=how)
        with monkeypatch.context() as patch:
            patch.setattr(pixels, "BAND", 300)
            np.testing.assert_array_equal(decode(str(path), channels, how=how), whole)
            patch.setattr(pixels, "LARGE", 1000)
            patch.setattr(decoding, "LARGE", 1000)
            np.testing.assert_array_equal(decode(str(path), channels, how=how), whole)
            reduced = decode(str(path), channels, (16, 10), how=how)
        assert reduced.shape == (34, 21, channels)
        averaged = whole[:66, :40].reshape(33, 2, 20, 2, channels).mean((1, 3))
        assert np.abs(reduced[:33, :20] - averaged).max() <= 1


def test_a_picture_that_does_not_fit_into_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.png", noise(64, 64))
    monkeypatch.setattr(decoding, "LARGE", 100)
    monkeypatch.setattr(decoding, "BAND", 2**50)
    with pytest.raises(BadImage, match=r"x\.png cannot be decoded: its 64x64 pixels need .* GiB of memory, .* cut it"):
        look(path)


# ---- endings ----


@pytest.mark.parametrize(
    "ending", ["jfif", "jpe", "mpo", "apng", "avif", "jp2", "tga", "pnm", "pbm", "qoi", "dib", "vda", "bw"]
)
def test_endings_that_are_read(tmp_path: Path, ending: str) -> None:
    formats = {"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG", "dib": "BMP", "vda": "TGA", "bw": "SGI"}
    array = np.full((16, 16), 255, np.uint8) if ending == "pbm" else np.full((16, 16, 3), 90, np.uint8)
    picture = Image.fromarray(array).convert("1") if ending == "pbm" else Image.fromarray(array)
    picture.save(tmp_path / f"x.{ending}", format=formats.get(ending))
    assert f"X.{ending}".lower().endswith(endings.SUFFIXES)
    assert np.abs(look(tmp_path / f"x.{ending}", 1)[0].astype(int) - array.ravel()[0]).max() <= 2


def test_files_that_are_left_out_are_told_once_with_their_endings() -> None:
    names = ["a/1.cr2", "a/2.CR2", "b/x.psd", "b/scan", "b/z.jpg_large", "c/1.jpg", "notes.txt", "LICENSE", ".hidden"]
    line = endings.left_out([*names, "d/y.svg"])
    assert line is not None
    assert line.startswith("6 files are left out")
    for part in ("2 .cr2, such as a/1.cr2", "1 .psd, such as b/x.psd", "1 without an ending, such as b/scan", ".svg"):
        assert part in line
    assert endings.left_out(["1.jpg", "labels.csv", "a.json", "README"]) is None


@pytest.mark.skipif("pillow_heif" in sys.modules or ".heic" in endings.SUFFIXES, reason="pillow-heif is installed")
def test_a_package_that_would_read_them_is_named() -> None:
    line = endings.left_out(["a/1.heic"])
    assert line is not None
    assert "pip install pillow-heif" in line
