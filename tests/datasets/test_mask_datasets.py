"""Data sets with masks: what is found on disk, which pixel gets which class, and what is said where none fits."""

from __future__ import annotations

import importlib
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers import decode, notices
from trainers.datasets import IGNORED, MASK, BadImage, Item, Source, camvid, cityscapes, mask_folder, semantic_drone
from trainers.datasets._masks import load
from trainers.datasets._pairs import LISTED

MODULES: list[Any] = [camvid, cityscapes, mask_folder, semantic_drone]
FOLDER = Path(importlib.import_module("trainers.datasets").__file__ or "").parent
HEIGHT, WIDTH = 6, 8


def noise(*shape: int, seed: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, np.uint8)


def save(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))).save(path, **options)
    return path


def picture(path: Path, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Path:
    return save(path, noise(height, width, 3, seed=seed))


def touch(*paths: Path) -> None:
    """Files that look like pictures to a listing."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"-")


def with_palette(ids: np.ndarray, colours: Sequence[Sequence[int]]) -> Image.Image:
    mask = Image.frombytes("P", (ids.shape[1], ids.shape[0]), ids.tobytes())
    mask.putpalette([value for colour in colours for value in colour])
    return mask


def read(module: Any, item: Item, **args: Any) -> tuple[np.ndarray, np.ndarray]:
    """Through JSON, as workers do it, with what the contract says of a picture and its mask."""
    item = Item(**json.loads(json.dumps(asdict(replace(item, args={**item.args, **args})))))
    ((image, mask),) = module.read(item)
    assert image.dtype == mask.dtype == np.uint8
    assert image.ndim == 3
    assert mask.shape == image.shape[:2]
    return image, mask


def first(source: Source) -> Item:
    return source.splits["train"][0]


def names(source: Source) -> dict[str, list[str]]:
    return {split: [item.name for item in items] for split, items in source.splits.items()}


# ---- what all have in common ----


@pytest.mark.parametrize("module", MODULES)
def test_a_path_that_is_no_folder_is_refused(module: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs --data PATH: a folder that holds"):
        module.source(None)
    with pytest.raises(ValueError, match=r"lost does not exist \(of its path, .* does\); give --data"):
        module.source(str(tmp_path / "lost"))
    touch(tmp_path / "other" / "x.png")
    with pytest.raises(ValueError, match=r"lacks the folders .* \(it holds other\); give --data a folder that holds"):
        module.source(str(tmp_path))


def camvid_fixed(root: Path) -> Path:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for number in range(count):
            picture(root / split / f"0001TP_{number}.png", seed=number)
            save(root / f"{split}annot" / f"0001TP_{number}.png", noise(HEIGHT, WIDTH, seed=number, high=12))
    return root


def camvid_701(root: Path) -> Path:
    for number in range(10):
        picture(root / "701_StillsRaw_full" / f"Seq05VD_f{30 * number:05}.png", seed=number)
        palette = np.array(list(camvid.PUBLISHED.values()), np.uint8)
        mask = palette[noise(HEIGHT, WIDTH, seed=number, high=32)]
        save(root / "LabeledApproved_full" / f"Seq05VD_f{30 * number:05}_L.png", mask)
    return root


def cityscapes_tree(root: Path) -> Path:
    for split, cities in (("train", ("aachen", "bochum")), ("val", ("lindau",)), ("test", ("berlin",))):
        for city in cities:
            stem = f"{split}/{city}/{city}_000000_000019"
            picture(root / "leftImg8bit" / f"{stem}_leftImg8bit.png")
            mask = noise(HEIGHT, WIDTH, seed=len(city), high=34)
            for kind in ("labelIds", "instanceIds", "color"):
                save(root / "gtFine" / f"{stem}_gtFine_{kind}.png", mask if kind == "labelIds" else mask + 60)
            (root / "gtFine" / f"{stem}_gtFine_polygons.json").write_text("{}")
    return root


def drone(root: Path) -> Path:
    for number in range(20):
        save(root / "original_images" / f"{number:03}.jpg", noise(HEIGHT, WIDTH, 3, seed=number))
        mask = noise(HEIGHT, WIDTH, seed=number, high=24)
        save(root / "label_images_semantic" / f"{number:03}.png", mask)
    return root


def own(root: Path, count: int = 10, high: int = 3, folder: str = "") -> Path:
    for number in range(count):
        save(root / folder / "images" / f"{number}.jpg", noise(HEIGHT, WIDTH, 3, seed=number))
        save(root / folder / "masks" / f"{number}.png", noise(HEIGHT, WIDTH, seed=number, high=high))
    return root


TREES: list[tuple[Any, Callable[[Path], Path], dict[str, Any]]] = [
    (camvid, camvid_fixed, {}),
    (camvid, camvid_701, {}),
    (camvid, camvid_701, {"split": "random"}),
    (cityscapes, cityscapes_tree, {}),
    (semantic_drone, drone, {}),
    (semantic_drone, drone, {"binary": "mean"}),
    (semantic_drone, drone, {"binary": ["person", "dog"]}),
    (mask_folder, own, {}),
    (mask_folder, own, {"classes": 5, "channels": 1, "test_share": 0.2}),
    (mask_folder, own, {"threshold": 1.5}),
    (mask_folder, own, {"threshold": "mean"}),
]


@pytest.mark.parametrize(("module", "write", "args"), TREES)
def test_items_are_json_and_sorted_and_can_be_read(
    module: Any, write: Callable[[Path], Path], args: dict[str, Any], tmp_path: Path
) -> None:
    root = str(write(tmp_path))
    source = module.source(root, **args)
    assert source == module.source(root, **args)
    assert source.target == "masks"
    assert source.splits.keys() >= {"train", "val"}
    assert source.colours is None or len(source.colours) == len(source.classes)
    items = [item for items in source.splits.values() for item in items]
    assert [Item(**json.loads(json.dumps(asdict(item)))) for item in items] == items
    assert len({item.name for item in items}) == len({item.path for item in items}) == len(items)
    for of_split in source.splits.values():
        assert [item.name for item in of_split] == sorted(item.name for item in of_split)
    for item in items:
        assert item.path == str(tmp_path / item.name)
        assert list(item.targets) == [MASK]
        assert item.mask_path is not None
        assert Path(item.mask_path).is_file()
        image, mask = read(module, item)
        assert image.shape == (HEIGHT, WIDTH, source.channels)
        assert set(np.unique(mask)) <= {*range(len(source.classes)), IGNORED}


@pytest.mark.parametrize(("module", "write", "args"), TREES)
def test_pictures_and_masks_without_their_other_half_are_named(
    module: Any, write: Callable[[Path], Path], args: dict[str, Any], tmp_path: Path
) -> None:
    item = first(module.source(str(write(tmp_path)), **args))
    assert item.path is not None
    assert item.mask_path is not None
    (tmp_path / ".DS_Store").touch()
    mask = Path(item.mask_path)
    aside = mask.with_name(f"x{mask.name}")
    mask.rename(aside)
    unpaired = rf"without a mask in .*: {item.name}; .* without a picture in "
    with pytest.raises(ValueError, match=unpaired + rf".*{aside.name}\. .*x.*\.jpg is x.*\.png"):
        module.source(str(tmp_path), **args)
    aside.rename(mask)
    Path(item.path).with_suffix(".bmp").write_bytes(b"-")
    with pytest.raises(ValueError, match=r"1 times two files of one name: .*\.bmp and .*\.(png|jpg)\."):
        module.source(str(tmp_path), **args)


@pytest.mark.parametrize(("module", "write", "args"), TREES)
def test_pictures_and_masks_that_cannot_be_read_are_named(
    module: Any, write: Callable[[Path], Path], args: dict[str, Any], tmp_path: Path
) -> None:
    item = first(module.source(str(write(tmp_path)), **args))
    for path in (Path(item.path or ""), Path(item.mask_path or "")):
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2])
        with pytest.raises(BadImage, match=rf"{path.name} cannot be decoded: .*\w.* replace or remove"):
            read(module, item)
        path.write_bytes(raw)
    save(Path(item.mask_path or ""), np.zeros((3, 4), np.uint8))
    with pytest.raises(BadImage, match=rf"{Path(item.name).name} is 8x6 .* {item.mask_path} 4x3"):
        read(module, item)


def test_at_most_20_names_are_listed(tmp_path: Path) -> None:
    touch(*(tmp_path / "images" / f"{number:02}.jpg" for number in range(50)))
    touch(*(tmp_path / "masks" / f"x{number:02}.png" for number in range(30)))
    with pytest.raises(ValueError, match="do not fit") as caught:
        mask_folder.source(str(tmp_path))
    assert "50 of 50 pictures in images without a mask in masks: images/00.jpg, " in str(caught.value)
    assert "images/19.jpg and 30 more; 30 masks in masks without" in str(caught.value)
    assert "masks/x19.png and 10 more" in str(caught.value)
    assert str(caught.value).count(".jpg") == LISTED + 1  # and the example


def test_listing_decodes_nothing(tmp_path: Path) -> None:
    """The files are empty: none of them could be opened."""
    stems = [f"Seq05VD_f{number:05}" for number in range(0, 60000, 30)]
    touch(*(tmp_path / "701_StillsRaw_full" / f"{stem}.png" for stem in stems))
    touch(*(tmp_path / "LabeledApproved_full" / f"{stem}_L.png" for stem in stems))
    assert sum(map(len, camvid.source(str(tmp_path)).splits.values())) == 2000


# ---- masks that fit pictures decoded at less than their size ----


TURNS: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""EXIF orientation -> how a picture is turned upright."""
SQUARES = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], np.uint8)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("least", "scale"), [(20, 8), (40, 4), (70, 2), (200, 1)])
def test_mask_of_a_jpeg_that_is_shrunk(tmp_path: Path, orientation: int, least: int, scale: int) -> None:
    """Squares of 8x8 pixels, so that at 1/8 each pixel is a square: a mask off by one pixel would be all wrong."""
    ids = np.kron(noise(43, 46, high=4), np.ones((8, 8), np.uint8))[:341, :363]
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "images" / "a.jpg", SQUARES[ids], quality=95, subsampling=0, exif=exif)
    save(tmp_path / "masks" / "a.png", TURNS[orientation](ids))
    save(tmp_path / "images" / "b.png", SQUARES[:, None])
    save(tmp_path / "masks" / "b.png", np.arange(4, dtype=np.uint8)[:, None])
    source = mask_folder.source(str(tmp_path), classes=4, val_share=0.5)
    (item,) = (item for items in source.splits.values() for item in items if item.name == "images/a.jpg")
    image, mask = read(mask_folder, item, min_size=[least, least])
    height, width = TURNS[orientation](ids).shape
    assert mask.shape == (-(-height // scale), -(-width // scale))
    distance = np.abs(image[:, :, None].astype(int) - SQUARES).sum(-1)
    np.testing.assert_array_equal(distance.argmin(-1), mask)
    np.testing.assert_array_equal(read(mask_folder, item)[1], TURNS[orientation](ids))


@pytest.mark.parametrize("orientation", [orientation for orientation in TURNS if orientation > 1])
@pytest.mark.parametrize(("drawn_on", "asked"), [("upright", "upright"), ("stored", "stored"), ("upright", None)])
def test_masks_of_pictures_that_are_not_upright(
    tmp_path: Path, orientation: int, drawn_on: str, asked: str | None
) -> None:
    """Drawn with a tool that knows EXIF orientations, or with one that does not (HumanSignal/labelImg 395)."""
    stored = noise(HEIGHT, WIDTH, high=3)
    item = turned_pair(tmp_path, stored if drawn_on == "stored" else TURNS[orientation](stored), orientation)
    with notices.collected() as found:
        args = {} if asked is None else {"mask_orientation": asked}
        np.testing.assert_array_equal(read(mask_folder, item, **args)[1], TURNS[orientation](stored))
    assert list(found) == (["mask unsure"] if asked is None and orientation < 5 else [])


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_size_of_the_stored_picture_is_turned_as_it_is(tmp_path: Path, orientation: int) -> None:
    stored = noise(HEIGHT, WIDTH, high=3)
    item = turned_pair(tmp_path, stored, orientation)
    for args in ({}, {"min_size": [1, 1]}):
        with notices.collected() as found:
            read(mask_folder, item, **args)
        assert list(found) == ["mask turned"]
    np.testing.assert_array_equal(read(mask_folder, item)[1], TURNS[orientation](stored))
    with pytest.raises(BadImage, match=r"0\.jpg, .*EXIF orientation.* 6x8 and its mask .* 8x6"):
        read(mask_folder, item, mask_orientation="upright")


def test_a_square_mask_of_a_turned_picture_is_told(tmp_path: Path) -> None:
    with notices.collected() as found:
        mask = read(mask_folder, turned_pair(tmp_path, square := noise(6, 6, high=3), 6))[1]
    np.testing.assert_array_equal(mask, square)
    assert list(found) == ["mask unsure"]
    assert "mask_orientation=stored" in notices.describe(found)[0]


def test_a_mask_that_states_an_orientation_its_picture_lacks(tmp_path: Path) -> None:
    """Turned where that alone makes it fit, told where both would."""
    ids = noise(HEIGHT, WIDTH, high=3)
    for orientation, kept, told in ((6, TURNS[8](ids), "mask turned"), (3, ids, "mask unsure"), (8, ids, None)):
        item = turned_pair(tmp_path, kept, 1, of_mask=orientation, size=(HEIGHT, WIDTH))
        with notices.collected() as found:
            np.testing.assert_array_equal(read(mask_folder, item)[1], ids)
        assert list(found) == ([told] if told else [])


def turned_pair(
    root: Path, mask: np.ndarray, orientation: int, *, of_mask: int = 1, size: tuple[int, int] | None = None
) -> Item:
    """A picture that states an orientation, its pixels as stored of the mask's shape or of `size`, and its mask."""
    exifs = [Image.Exif(), Image.Exif()]
    for exif, number in zip(exifs, (orientation, of_mask), strict=True):
        exif[0x0112] = number
    height, width = size or ((HEIGHT, WIDTH) if mask.shape != (6, 6) else (6, 6))
    save(root / "images" / "0.jpg", noise(height, width, 3), exif=exifs[0])
    save(root / "masks" / "0.png", np.ascontiguousarray(mask), **({"exif": exifs[1]} if of_mask > 1 else {}))
    paths = {"path": str(root / "images" / "0.jpg"), "mask_path": str(root / "masks" / "0.png")}
    args = {"channels": 3, "ids": [[0, 0], [1, 1], [2, 2]]}
    return Item(**paths, name="0", targets=[MASK], args=args)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "avif"])
def test_the_header_gives_the_size_of_the_upright_picture(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{ending}", noise(HEIGHT, WIDTH, 3), exif=exif)
    about = decode.geometry(str(path))
    assert (about.height, about.width) == decode.decode(str(path), 3).shape[:2]
    assert (about.height, about.width) == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))


def test_size_is_compared_before_the_picture_is_shrunk(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", noise(64, 96, 3))
    save(tmp_path / "a.png", np.zeros((32, 48), np.uint8))
    args = {"channels": 3, "threshold": 1, "min_size": [8, 8]}
    item = Item(path=str(tmp_path / "a.jpg"), mask_path=str(tmp_path / "a.png"), name="a", targets=[MASK], args=args)
    with pytest.raises(BadImage, match=r"a\.jpg is 96x64 and its mask .*a\.png 48x32"):
        read(mask_folder, item)


# ---- CamVid ----


def test_camvid_fixed(tmp_path: Path) -> None:
    source = camvid.source(str(camvid_fixed(tmp_path)))
    assert names(source) == {
        "train": ["train/0001TP_0.png", "train/0001TP_1.png", "train/0001TP_2.png"],
        "val": ["val/0001TP_0.png", "val/0001TP_1.png"],
        "test": ["test/0001TP_0.png"],
    }
    assert source.classes[0] == "Sky"
    assert source.classes[10] == "Bicyclist"
    assert source.warnings == []
    image, mask = read(camvid, source.splits["val"][1])
    np.testing.assert_array_equal(image, noise(HEIGHT, WIDTH, 3, seed=1))
    ids = noise(HEIGHT, WIDTH, seed=1, high=12)
    np.testing.assert_array_equal(mask, np.where(ids == 11, IGNORED, ids))


def test_camvid_fixed_without_test_or_with_half_of_it(tmp_path: Path) -> None:
    camvid_fixed(tmp_path)
    (tmp_path / "testannot" / "0001TP_0.png").unlink()
    (tmp_path / "testannot").rmdir()
    with pytest.raises(
        ValueError, match=r"lacks the folder testannot \(it holds test, train, trainannot, val, valannot"
    ):
        camvid.source(str(tmp_path))
    (tmp_path / "test" / "0001TP_0.png").unlink()
    (tmp_path / "test").rmdir()
    assert list(camvid.source(str(tmp_path)).splits) == ["train", "val"]
    with pytest.raises(ValueError, match=r"fixed splits; split=random .* Leave it out"):
        camvid.source(str(tmp_path), split="random")
    with pytest.raises(ValueError, match="split='x' is not offered; use sequence"):
        camvid.source(str(tmp_path), split="x")


def test_camvid_refuses_an_unknown_id(tmp_path: Path) -> None:
    item = first(camvid.source(str(camvid_fixed(tmp_path))))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2, 5] = 12
    mask[4, 0] = mask[5, 7] = 200
    save(Path(item.mask_path or ""), mask)
    with pytest.raises(BadImage) as caught:
        read(camvid, item)
    assert str(caught.value) == (
        f"{item.mask_path} holds 3 pixels of the ids 12; 200 (the first at x=5, y=2), which no class has; "
        "allowed are 0 to 10, and 11 for void"
    )


# The 32 classes and colours of label_colors.txt in the order of the eleven classes, written out once more.
GROUPED = {
    "Sky": [(128, 128, 128)],
    "Building": [(128, 0, 0), (64, 192, 0), (0, 128, 64), (64, 0, 64), (192, 0, 128)],
    "Pole": [(192, 192, 128), (0, 0, 64)],
    "Road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],
    "Pavement": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],
    "Tree": [(128, 128, 0), (192, 192, 0)],
    "SignSymbol": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],
    "Fence": [(64, 64, 128)],
    "Car": [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)],
    "Pedestrian": [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)],
    "Bicyclist": [(0, 128, 192), (192, 0, 192)],
}


def test_camvid_colours(tmp_path: Path) -> None:
    assert len(camvid.PUBLISHED) == len(set(camvid.PUBLISHED.values())) == 32
    colours = [((0, 0, 0), IGNORED)]
    colours += [(colour, number) for number, group in enumerate(GROUPED.values()) for colour in group]
    assert len({colour for colour, _ in colours}) == 32
    item = first(camvid.source(str(camvid_701(tmp_path))))
    assert list(GROUPED) == list(camvid.CLASSES)
    picture(Path(item.path or ""), 1, 32)
    for mask in (
        np.array([[colour for colour, _ in colours]], np.uint8),
        with_palette(np.arange(32, dtype=np.uint8)[None], [colour for colour, _ in colours]),
    ):
        save(Path(item.mask_path or ""), mask)
        assert read(camvid, item)[1].tolist() == [[number for _, number in colours]]


@pytest.mark.parametrize(
    ("pictures", "labels"),
    [
        ("raw", "labels"),
        ("images/701_StillsRaw_full", "labels/LabeledApproved_full"),
        ("images/701_StillsRaw_full", "labels"),
    ],
)
def test_camvid_where_archives_are_unpacked(tmp_path: Path, pictures: str, labels: str) -> None:
    camvid_701(tmp_path / "x")
    for there, here in (("701_StillsRaw_full", pictures), ("LabeledApproved_full", labels)):
        (tmp_path / here).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / there).rename(tmp_path / here)
    source = camvid.source(str(tmp_path))
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 6, "val": 2, "test": 2}
    (tmp_path / labels).rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=r"lacks the folder labels|lacks the folder LabeledApproved_full|two|do not fit"
    ):
        camvid.source(str(tmp_path))


def test_camvid_refuses_an_unknown_colour(tmp_path: Path) -> None:
    item = first(camvid.source(str(camvid_701(tmp_path))))
    mask = np.full((HEIGHT, WIDTH, 3), (128, 64, 128), np.uint8)
    for x in range(7):
        mask[3, x + 1] = (26, 26, x)
    save(Path(item.mask_path or ""), mask)
    with pytest.raises(BadImage) as caught:
        read(camvid, item)
    assert str(caught.value) == (
        f"{item.mask_path} holds 7 pixels of the colours 26,26,0; 26,26,1; 26,26,2; 26,26,3; 26,26,4 and 2 more "
        "(the first at x=1, y=3), which no class has; allowed are the 32 colours of CamVid"
    )
    save(Path(item.mask_path or ""), with_palette(np.full((HEIGHT, WIDTH), 1, np.uint8), [(0, 0, 0), (7, 8, 9)]))
    with pytest.raises(BadImage, match=r"48 pixels of the colour 7,8,9 \(the first at x=0, y=0\)"):
        read(camvid, item)
    save(Path(item.mask_path or ""), np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(BadImage, match=r"is a grey mask, .* the 32 colours of CamVid"):
        read(camvid, item)
    # the one mask that is published with smeared pixels
    flawed = tmp_path / "LabeledApproved_full" / "Seq05VD_f02610_L.png"
    save(flawed, mask)
    picture(tmp_path / "701_StillsRaw_full" / "Seq05VD_f02610.png")
    items = [item for items in camvid.source(str(tmp_path)).splits.values() for item in items]
    (item,) = (item for item in items if item.mask_path == str(flawed))
    expected = np.full((HEIGHT, WIDTH), 3)
    expected[3, 1:] = IGNORED
    np.testing.assert_array_equal(read(camvid, item)[1], expected)


def published_stems() -> list[str]:
    """The names of the 701 pictures: four films at a picture a second, and a part of one at 15 a second."""
    films = {
        "0001TP_{:06}": range(6690, 10381, 30),
        "0006R0_f{:05}": range(930, 3931, 30),
        "0016E5_{:05}": [*range(390, 2401, 30), *range(4350, 7921, 30), *range(7959, 8160, 2), *range(8190, 8641, 30)],
        "Seq05VD_f{:05}": range(0, 5101, 30),
    }
    return [pattern.format(frame) for pattern, frames in films.items() for frame in frames]


def camvid_names(root: Path, stems: Sequence[str]) -> str:
    touch(*(root / "701_StillsRaw_full" / f"{stem}.png" for stem in stems))
    touch(*(root / "LabeledApproved_full" / f"{stem}_L.png" for stem in stems))
    return str(root)


def test_camvid_is_split_in_blocks_of_each_film(tmp_path: Path) -> None:
    stems = published_stems()
    assert len(stems) == 701
    source = camvid.source(camvid_names(tmp_path, stems))
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 421, "val": 140, "test": 126}
    assert source.warnings == ["14 pictures less than a second after the split before theirs are left out"]
    films: dict[str, list[tuple[int, str]]] = {}
    for split, items in source.splits.items():
        for item in items:
            film, frame = Path(item.name).stem.split("_")
            films.setdefault(film, []).append((int(frame.lstrip("f")), split))
    assert len(films) == 4
    for film, frames in films.items():
        frames.sort()
        splits = [split for _, split in frames]
        assert splits == sorted(splits, key=["train", "val", "test"].index), film  # one block each, in this order
        assert 0.59 < splits.count("train") / len(splits) < 0.65
        for (frame, split), (later, other) in itertools.pairwise(frames):
            assert split == other or later - frame >= 30
    assert camvid.source(str(tmp_path), split_seed=3).splits == source.splits  # nothing here is random


def test_camvid_can_be_split_at_random(tmp_path: Path) -> None:
    root = camvid_names(tmp_path, published_stems())
    source = camvid.source(root, split="random")
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 421, "val": 140, "test": 140}
    assert len({name for of_split in names(source).values() for name in of_split}) == 701
    assert "neighbours that show nearly the same into different splits" in source.warnings[0]
    assert camvid.source(root, split="random", split_seed=1).splits != source.splits


def test_camvid_names_without_film_and_frame_are_refused(tmp_path: Path) -> None:
    root = camvid_names(tmp_path, [*published_stems()[:20], "holiday", "party"])
    with pytest.raises(
        ValueError,
        match=r"<film>_<frame>\.png, .*full/holiday\.png, .*party\.png\.",
    ):
        camvid.source(root)
    assert sum(map(len, camvid.source(root, split="random").splits.values())) == 22


def test_camvid_with_too_few_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 1 pictures, too few for a split val of each film"):
        camvid.source(camvid_names(tmp_path, ["Seq05VD_f00000"]))


# ---- Cityscapes ----


def test_cityscapes(tmp_path: Path) -> None:
    source = cityscapes.source(str(cityscapes_tree(tmp_path)))
    assert names(source) == {
        "train": [
            "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
            "leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png",
        ],
        "val": ["leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png"],
    }
    assert first(source).mask_path == str(tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png")
    assert len(source.classes) == len(set(source.colours or ())) == 19
    picture(Path(first(source).path or ""), 1, 35)
    save(Path(first(source).mask_path or ""), np.array([[*range(34), 255]], np.uint8))
    _, mask = read(cityscapes, first(source))
    kept = {identity: int(number) for identity, number in enumerate(mask[0]) if number != IGNORED}
    # `trainId` in cityscapesscripts/helpers/labels.py
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert kept == {identity: number for number, identity in enumerate(ids)}
    assert [source.classes[kept[identity]] for identity in (7, 24, 33)] == ["road", "person", "bicycle"]


def test_cityscapes_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path)
    item = first(cityscapes.source(str(tmp_path)))
    save(Path(item.mask_path or ""), np.full((HEIGHT, WIDTH), 34, np.uint8))
    with pytest.raises(BadImage, match=r"48 pixels of the id 34 .* allowed are 0 to 33, and 255 for -1"):
        read(cityscapes, item)
    save(Path(item.mask_path or ""), np.full((HEIGHT, WIDTH), 65536, np.int32), format="TIFF")
    with pytest.raises(BadImage, match="48 pixels of the id 65536"):
        read(cityscapes, item)
    (tmp_path / "gtFine" / "val").rename(tmp_path / "gtFine" / "elsewhere")
    with pytest.raises(ValueError, match=r"lacks the folder gtFine/val \(it holds gtFine, leftImg8bit\)"):
        cityscapes.source(str(tmp_path))
    (tmp_path / "gtFine" / "val").mkdir()
    with pytest.raises(ValueError, match=r"The mask of x_leftImg8bit\.jpg is x_gtFine_labelIds\.png"):
        cityscapes.source(str(tmp_path))
    for path in (tmp_path / "leftImg8bit" / "val" / "lindau").iterdir():
        path.rename(path.with_name("x.png"))
    with pytest.raises(ValueError, match=r"leftImg8bit/val holds no pictures .*\*_leftImg8bit\.\*; add some"):
        cityscapes.source(str(tmp_path))


# ---- Semantic Drone Dataset ----


@pytest.mark.parametrize(
    "below",
    ["", "dataset/semantic_drone_dataset", "semantic_drone_dataset", "semantic_drone_dataset/semantic_drone_dataset"],
)
def test_semantic_drone(tmp_path: Path, below: str) -> None:
    drone(tmp_path / below)
    source = semantic_drone.source(str(tmp_path))
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 17, "val": 3}
    assert len(source.classes) == len(set(source.colours or ())) == 24
    assert source.classes[0] == "unlabeled"
    assert source.classes[23] == "conflicting"
    for item in source.splits["val"]:
        ids = noise(HEIGHT, WIDTH, seed=int(Path(item.name).stem), high=24)
        np.testing.assert_array_equal(read(semantic_drone, item)[1], ids)
    assert semantic_drone.source(str(tmp_path), split_seed=1).splits != source.splits
    assert len(semantic_drone.source(str(tmp_path), val_share=0.5).splits["val"]) == 10


def test_semantic_drone_from_graz(tmp_path: Path) -> None:
    ids = np.arange(24, dtype=np.uint8)[None]
    colours = np.array(list(semantic_drone.CLASSES.values()), np.uint8)
    root = tmp_path / "semantic_drone_dataset" / "training_set"
    for number in range(4):
        picture(root / "images" / f"{number:03}.jpg", 1, 24)
        save(root / "gt" / "semantic" / "label_images" / f"{number:03}.png", colours[ids])
    np.testing.assert_array_equal(read(semantic_drone, first(semantic_drone.source(str(tmp_path))))[1], ids)
    source = semantic_drone.source(str(tmp_path), binary="mean")
    np.testing.assert_array_equal(read(semantic_drone, first(source))[1], ids > 11)
    save(Path(first(source).mask_path or ""), colours[ids] + 1)
    with pytest.raises(BadImage, match=r"24 pixels .* 19 more .*the 24 colours of the data set"):
        read(semantic_drone, first(source))


def test_semantic_drone_in_two_classes(tmp_path: Path) -> None:
    root = str(drone(tmp_path))
    for binary in ("car", "car,tree", ["car", "tree"], "car, tree"):
        source = semantic_drone.source(root, binary=binary)
        several = binary != "car"
        assert source.classes == ["rest", "car+tree" if several else "car"]
        assert source.colours is None
        ids = noise(HEIGHT, WIDTH, seed=int(Path(first(source).name).stem), high=24)
        expected = np.isin(ids, [17, 19] if several else [17])
        assert 0 < expected.sum() < expected.size
        np.testing.assert_array_equal(read(semantic_drone, first(source))[1], expected)
    assert semantic_drone.source(root, binary="") == semantic_drone.source(root)
    source = semantic_drone.source(root, binary="mean")
    assert source.classes == ["at most the mean", "above the mean"]
    for item in source.splits["train"]:
        ids = noise(HEIGHT, WIDTH, seed=int(Path(item.name).stem), high=24)
        np.testing.assert_array_equal(read(semantic_drone, item)[1], ids > ids.mean())
    save(Path(first(source).mask_path or ""), np.full((HEIGHT, WIDTH), 7, np.uint8))
    assert not read(semantic_drone, first(source))[1].any()
    for wrong in ("cars", ["car", "mean"], ["car", 3]):
        with pytest.raises(ValueError, match=r"binary=.* no class (cars|mean|3)\. Give mean, or names"):
            semantic_drone.source(root, binary=wrong)  # type: ignore[arg-type]


def test_semantic_drone_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    drone(tmp_path / "dataset" / "semantic_drone_dataset")
    item = first(semantic_drone.source(str(tmp_path)))
    save(Path(item.mask_path or ""), np.full((HEIGHT, WIDTH), 24, np.uint8))
    with pytest.raises(BadImage, match=r"48 pixels of the id 24 .* allowed are 0 to 23"):
        read(semantic_drone, item)
    masks = tmp_path / "dataset" / "semantic_drone_dataset" / "label_images_semantic"
    masks.rename(tmp_path / "masks")
    with pytest.raises(ValueError, match=r"lacks the folder dataset/semantic_drone_dataset/label_images_semantic \("):
        semantic_drone.source(str(tmp_path))


# ---- a folder of one's own: where pictures and masks lie ----


def test_mask_folder_without_splits_is_split_at_random(tmp_path: Path) -> None:
    source = mask_folder.source(str(own(tmp_path)))
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 8, "val": 2}
    assert mask_folder.source(str(tmp_path), split_seed=1).splits != source.splits
    source = mask_folder.source(str(tmp_path), val_share=0.3, test_share=0.2)
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 5, "val": 3, "test": 2}
    with pytest.raises(ValueError, match=r"val_share=0 and test_share=0\.2 .* val_share must be above 0"):
        mask_folder.source(str(tmp_path), val_share=0, test_share=0.2)
    with pytest.raises(ValueError, match=r"10 samples .* too few for a test split"):
        mask_folder.source(str(tmp_path), test_share=0.01)
    with pytest.raises(ValueError, match="channels=4 is not offered"):
        mask_folder.source(str(tmp_path), channels=4)


def test_mask_folder_below_split_folders(tmp_path: Path) -> None:
    for split, count in (("Train", 4), ("valid", 2), ("test", 1)):
        own(tmp_path, count, folder=split)
    assert names(mask_folder.source(str(tmp_path))) == {
        "train": [f"Train/images/{number}.jpg" for number in range(4)],
        "val": ["valid/images/0.jpg", "valid/images/1.jpg"],
        "test": ["test/images/0.jpg"],
    }
    (tmp_path / "valid" / "masks").rename(tmp_path / "valid" / "classes")
    with pytest.raises(ValueError, match=r"lacks the folder valid/masks \(it holds Train, test, valid\)"):
        mask_folder.source(str(tmp_path))
    (tmp_path / "Train").rename(tmp_path / "learn")
    with pytest.raises(ValueError, match=r"holds no train split, only test, valid; add train/images/\* and"):
        mask_folder.source(str(tmp_path))


def test_mask_folder_with_split_folders_below(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        for split, count in (("train", 6), ("test", 1)):
            for number in range(count):
                path = tmp_path / kind.title() / split / "deeper" / f"{number}.png"
                save(path, noise(HEIGHT, WIDTH, 3) if kind == "images" else noise(HEIGHT, WIDTH, high=3))
    source = mask_folder.source(str(tmp_path), val_share=0.5, test_share=0.2)
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 3, "val": 3, "test": 1}
    assert source.splits["test"][0].name == "Images/test/deeper/0.png"
    (tmp_path / "Masks" / "test").rename(tmp_path / "Masks" / "val")
    with pytest.raises(ValueError, match=r"Images .* test, train, and .*Masks train, val; give both"):
        mask_folder.source(str(tmp_path))


def test_mask_folder_without_val(tmp_path: Path) -> None:
    own(tmp_path, 10, folder="train")
    source = mask_folder.source(str(tmp_path))
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 8, "val": 2}


def test_mask_folder_names_of_masks(tmp_path: Path) -> None:
    """`a_mask` may be the mask of `a`, or a picture's own name; folders below keep equal names apart."""
    for stem in ("a", "a_mask", "x/a", "y/a"):
        touch(tmp_path / "images" / f"{stem}.jpg")
    for stem in ("a", "a_mask", "x/a_mask", "y/a"):
        touch(tmp_path / "masks" / f"{stem}.png")
    source = mask_folder.source(str(tmp_path), threshold=1, val_share=0.5)
    pairs = {item.name: item.mask_path for items in source.splits.values() for item in items}
    assert pairs == {
        f"images/{stem}.jpg": str(tmp_path / "masks" / f"{mask}.png")
        for stem, mask in (("a", "a"), ("a_mask", "a_mask"), ("x/a", "x/a_mask"), ("y/a", "y/a"))
    }
    touch(tmp_path / "masks" / "y" / "a_mask.png")
    with pytest.raises(ValueError, match=r"1 times two files of one name: masks/y/a\.png and masks/y/a_mask\.png"):
        mask_folder.source(str(tmp_path), threshold=1)


@pytest.mark.parametrize(
    ("pictures", "masks", "others"),
    [
        ("JPEGImages", "SegmentationClass", ["SegmentationObject"]),  # CVAT, Pascal VOC
        ("JPEGImages", "SegmentationClassPNG", ["SegmentationClass", "SegmentationClassVisualization"]),  # LabelMe
        ("img", "masks_machine", ["ann", "masks_human"]),  # Supervisely
        ("images", "labels", []),
        ("Image", "GT", []),
    ],
)
@pytest.mark.parametrize("place", ["", "train"])
def test_mask_folder_as_programs_export_it(
    tmp_path: Path, pictures: str, masks: str, others: list[str], place: str
) -> None:
    where = own(tmp_path, 5, folder=place) / place
    (where / "images").rename(where / "renamed")
    (where / "renamed").rename(where / pictures)
    (where / "masks").rename(where / masks)
    for other in others:
        touch(where / other / ("0.npy" if other == "SegmentationClass" else "0.png"))
    source = mask_folder.source(str(tmp_path))
    below = f"{place}/" if place else ""
    pairs = {(item.name, item.mask_path) for items in source.splits.values() for item in items}
    assert pairs == {(f"{below}{pictures}/{n}.jpg", f"{tmp_path}/{below}{masks}/{n}.png") for n in range(5)}
    assert any(f"the folders {pictures} and {masks} in {where}" in warning for warning in source.warnings)


@pytest.mark.parametrize("place", ["", "train"])
def test_mask_folder_of_pictures_beside_their_masks_says_what_to_do(tmp_path: Path, place: str) -> None:
    for folder in {place, place and "valid"}:
        touch(tmp_path / folder / "street.jpg", tmp_path / folder / "street_mask.png")
    with pytest.raises(ValueError, match=r"such as street_mask\.png, side by side; move the pictures into"):
        mask_folder.source(str(tmp_path))


def test_mask_folder_of_two_kinds_of_masks_asks(tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "masks").rename(tmp_path / "gt")
    touch(tmp_path / "labels" / "0.png")
    with pytest.raises(ValueError, match=r"lacks the folder masks \(it holds gt, images, labels\)"):
        mask_folder.source(str(tmp_path))


def test_mask_folder_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    touch(tmp_path / "notes.txt")
    with pytest.raises(
        ValueError, match=r"lacks the folder masks \(it holds images, notes\.txt\); give --data a folder"
    ):
        mask_folder.source(str(tmp_path))
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="images holds no pictures; add some"):
        mask_folder.source(str(tmp_path))


# ---- a folder of one's own: ids ----


def test_mask_folder_finds_ids(tmp_path: Path) -> None:
    own(tmp_path, high=2)
    mask = np.array([[0, 1, 5, IGNORED] * 2] * HEIGHT, np.uint8)
    save(tmp_path / "masks" / "0.png", mask)
    source = mask_folder.source(str(tmp_path))
    assert source.classes == ["class0", "class1", "class5"]
    assert source.colours is None
    assert source.warnings[0].startswith("the classes are named by the 3 ids that 10 masks hold; name them by classes=")
    (item,) = (item for items in source.splits.values() for item in items if item.name == "images/0.jpg")
    assert read(mask_folder, item)[1][0].tolist() == [0, 1, 2, IGNORED] * 2
    save(tmp_path / "masks" / "0.png", np.where(mask == 5, 6, mask).astype(np.uint8))
    with pytest.raises(
        BadImage, match=r"12 pixels of the id 6 .*x=2, y=0.* 0, 1, 5, 255; name it in classes\.csv, ignore"
    ):
        read(mask_folder, item)


@pytest.mark.parametrize("kind", ["grey", "16 bits", "32 bits", "grey in colour", "opaque", "bmp", "tif"])
def test_mask_folder_ids_in_any_file(tmp_path: Path, kind: str) -> None:
    own(tmp_path)
    ids = noise(HEIGHT, WIDTH, high=3)
    ids[0, 0] = IGNORED
    pixels = {
        "16 bits": ids.astype(np.uint16),
        "32 bits": ids.astype(np.int32),
        "grey in colour": np.repeat(ids[:, :, None], 3, axis=2),
        "opaque": np.dstack([ids, ids, ids, np.full_like(ids, 255)]),
    }.get(kind, ids)
    ending = {"bmp": "bmp", "tif": "tif", "32 bits": "tif"}.get(kind, "png")
    for number in range(10):
        (tmp_path / "masks" / f"{number}.png").unlink()
        save(tmp_path / "masks" / f"{number}.{ending}", pixels)
    source = mask_folder.source(str(tmp_path))
    assert source.classes == ["class0", "class1", "class2"]
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], ids)


def test_mask_folder_16_bits(tmp_path: Path) -> None:
    own(tmp_path)
    for number in range(10):
        save(tmp_path / "masks" / f"{number}.png", (noise(HEIGHT, WIDTH, high=3).astype(np.uint16) * 300))
    source = mask_folder.source(str(tmp_path))
    assert source.classes == ["class0", "class300", "class600"]
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], noise(HEIGHT, WIDTH, high=3))
    with pytest.raises(BadImage, match=r"the ids 300; 600 .* allowed are 0, 1, 2, 255"):
        read(mask_folder, first(mask_folder.source(str(tmp_path), classes=3)))


def test_mask_folder_one_bit(tmp_path: Path) -> None:
    own(tmp_path)
    for number in range(10):
        save(tmp_path / "masks" / f"{number}.png", noise(HEIGHT, WIDTH, high=2).astype(bool))
    with Image.open(tmp_path / "masks" / "0.png") as mask:
        assert mask.mode == "1"
    for args in ({}, {"threshold": 127}, {"threshold": "mean"}, {"classes": "sea,land".split(",")}):
        source = mask_folder.source(str(tmp_path), **args)
        assert len(source.classes) == 2
        np.testing.assert_array_equal(read(mask_folder, first(source))[1], noise(HEIGHT, WIDTH, high=2))
    (tmp_path / "classes.csv").write_text("name,r,g,b\nwhite,255,255,255\nblack,0,0,0\n")
    source = mask_folder.source(str(tmp_path))
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], 1 - noise(HEIGHT, WIDTH, high=2))


def png_of_bits(path: Path, ids: np.ndarray, bits: int) -> Path:
    """A grey PNG of so many bits a pixel, as other programs write it."""
    rows = ((ids[:, :, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(len(ids), -1)
    data = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))
    return path


def tif_of_bits(path: Path, ids: np.ndarray, bits: int) -> Path:
    """An uncompressed grey TIFF of so many bits a pixel."""
    rows = ((ids[:, :, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(len(ids), -1)
    data = b"".join(np.packbits(row).tobytes() for row in rows)
    tags = {256: ids.shape[1], 257: len(ids), 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: len(ids), 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def pgm_of_values(path: Path, ids: np.ndarray, bits: int) -> Path:
    """A PGM whose greatest value is not 255."""
    path.write_bytes(b"P5\n%d %d\n%d\n" % (ids.shape[1], len(ids), 2**bits - 1) + ids.astype(np.uint8).tobytes())
    return path


@pytest.mark.parametrize(("write", "ending"), [(png_of_bits, "png"), (tif_of_bits, "tif"), (pgm_of_values, "pgm")])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_ids_of_few_bits_are_those_of_the_file(
    tmp_path: Path, write: Callable[[Path, np.ndarray, int], Path], ending: str, bits: int
) -> None:
    """apple/turicreate 375: Pillow scales them to 255."""
    if bits == 3 and ending != "pgm":
        pytest.skip("there are no such files")
    own(tmp_path)
    ids = noise(HEIGHT, WIDTH, high=2**bits)
    ids[0, 0] = 2**bits - 1
    for number in range(10):
        (tmp_path / "masks" / f"{number}.png").unlink()
        write(tmp_path / "masks" / f"{number}.{ending}", ids, bits)
    numbers = np.searchsorted(np.unique(ids), ids)
    source = mask_folder.source(str(tmp_path))
    assert source.classes == [f"class{identity}" for identity in np.unique(ids)]
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], numbers)
    source = mask_folder.source(str(tmp_path), classes=2**bits)
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], ids)
    source = mask_folder.source(str(tmp_path), threshold=100)
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], ids > 100 / 255 * (2**bits - 1))
    shown = np.rint(np.arange(2**bits) * 255 / (2**bits - 1)).astype(int)
    lines = "".join(f"c{identity},{grey},{grey},{grey}\n" for identity, grey in enumerate(shown))
    (tmp_path / "classes.csv").write_text(f"name,r,g,b\n{lines}")
    np.testing.assert_array_equal(read(mask_folder, first(mask_folder.source(str(tmp_path))))[1], ids)


@pytest.mark.parametrize("kind", ["hidden", "half", "opaque", "palette", "floating point", "signed"])
def test_ids_of_masks_of_many_kinds(tmp_path: Path, kind: str) -> None:
    """An alpha channel that is the same everywhere says nothing; a palette's transparency changes no index."""
    own(tmp_path)
    ids = noise(HEIGHT, WIDTH, high=3)
    path = tmp_path / "x.tif"
    if kind in ("hidden", "half", "opaque"):
        alpha = np.full_like(ids, {"hidden": 0, "half": 128, "opaque": 255}[kind])
        path = save(tmp_path / "x.png", np.dstack([ids, ids, ids, alpha]))
    elif kind == "palette":
        path = tmp_path / "x.png"
        with_palette(ids, [(0, 0, 0), (9, 9, 200), (3, 50, 3)]).save(path, transparency=0)
    else:
        save(path, ids.astype(np.float32 if kind == "floating point" else np.int32))
    item = replace(first(mask_folder.source(str(tmp_path), classes=3)), mask_path=str(path))
    np.testing.assert_array_equal(read(mask_folder, item, palette=[])[1], ids)


@pytest.mark.parametrize(("bits", "greys"), [(4, range(16)), (8, (0, 255)), (4, (0, 255))])
def test_indices_of_a_bmp_whose_palette_is_grey(tmp_path: Path, bits: int, greys: Sequence[int]) -> None:
    """Pillow forgets of how many bits they are."""
    ids = noise(6, 8, high=len(greys))
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in greys)
    rows = (row if bits == 8 else row[::2] << 4 | row[1::2] for row in ids[::-1])
    pixels, start = b"".join(row.tobytes().ljust(8 * bits // 32 * 4, b"\0") for row in rows), 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, 8, 6, 1, bits, 0, len(pixels), 0, 0, len(greys), 0)
    of_file = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    for path, first_bytes in ((tmp_path / "x.bmp", of_file), (tmp_path / "x.dib", b"")):
        path.write_bytes(first_bytes + head + palette + pixels)
        np.testing.assert_array_equal(load(str(path)).values, ids)
        np.testing.assert_array_equal(decode.decode(str(path), 1)[:, :, 0], np.array(greys)[ids])


def black_and_white(folder: Path, kind: str) -> Path:
    """A mask of which the left half is white, as a file of some kind."""
    white = np.zeros((HEIGHT, WIDTH), np.uint8)
    white[:, : WIDTH // 2] = 1
    path = folder / ("x.pgm" if kind == "two bits" else "x.png")
    if kind == "two bits":
        path.write_bytes(f"P5 {WIDTH} {HEIGHT} 3\n".encode() + (3 * white).tobytes())
        return path
    if kind == "palette":
        picture = Image.fromarray(white)
        picture.putpalette([0, 0, 0, 255, 255, 255])
    elif kind == "one bit":
        picture = Image.fromarray(white.astype(bool))
    elif kind == "16 bits":
        picture = Image.fromarray(65535 * white.astype(np.uint16))
    else:
        picture = Image.fromarray(np.repeat(255 * white[:, :, None], 3, 2) if kind == "colours" else 255 * white)
    picture.save(path)
    return path


@pytest.mark.parametrize(
    "kinds",
    [
        *(("one bit", "8 bits"), ("two bits", "8 bits"), ("palette", "8 bits"), ("one bit", "16 bits")),
        *(("one bit", "two bits"), ("one bit", "colours"), ("8 bits", "16 bits")),
    ],
)
def test_black_and_white_masks_of_several_depths_are_one_class_or_refused(
    tmp_path: Path, kinds: tuple[str, str]
) -> None:
    for number, kind in enumerate(kinds * 2):
        save(tmp_path / "images" / f"{number}.png", noise(HEIGHT, WIDTH, 3))
        (tmp_path / "masks").mkdir(exist_ok=True)
        path = black_and_white(tmp_path / "masks", kind)
        path.rename(path.with_stem(str(number)))
    with pytest.raises(ValueError, match=r"white is not the same id .*threshold=127.*classes\.csv"):
        mask_folder.source(str(tmp_path))
    for items in mask_folder.source(str(tmp_path), threshold=127).splits.values():
        for item in items:
            (_, mask), *_ = mask_folder.read(item)
            assert mask[:, : WIDTH // 2].all()
            assert not mask[:, WIDTH // 2 :].any()


def test_pixels_of_no_class_beside_masks_of_one_bit_are_kept_ignored(tmp_path: Path) -> None:
    own(tmp_path, high=2)
    ids = noise(HEIGHT, WIDTH, high=2)
    Image.fromarray(ids.astype(bool)).save(tmp_path / "masks" / "1.png")
    save(tmp_path / "masks" / "2.png", np.where(noise(HEIGHT, WIDTH, seed=5, high=2), 255, ids).astype(np.uint8))
    assert mask_folder.source(str(tmp_path)).classes == ["class0", "class1"]


@pytest.mark.parametrize(("ids", "is_told"), [((0, 255), True), ((0, 1, 255), False), ((0, 1), False), ((0,), False)])
def test_a_mask_whose_only_colour_is_ignored_is_told(tmp_path: Path, ids: Sequence[int], is_told: bool) -> None:
    own(tmp_path)
    item = first(mask_folder.source(str(tmp_path), classes=2))
    assert item.mask_path is not None
    save(Path(item.mask_path), np.resize(np.array(ids, np.uint8), (HEIGHT, WIDTH)))
    with notices.collected() as found:
        mask_folder.read(item)
    assert any("threshold=127" in line for line in notices.describe(found)) == is_told


def test_several_pages_and_deep_colours_of_masks_are_told(tmp_path: Path) -> None:
    own(tmp_path)
    item = first(mask_folder.source(str(tmp_path), classes=3))
    pages = [Image.fromarray(noise(HEIGHT, WIDTH, high=3, seed=seed)) for seed in range(2)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with notices.collected() as found:
        mask = read(mask_folder, replace(item, mask_path=str(tmp_path / "x.tif")))[1]
    np.testing.assert_array_equal(mask, noise(HEIGHT, WIDTH, high=3))
    assert list(found) == ["pages"]


def test_mask_folder_classes(tmp_path: Path) -> None:
    root = str(own(tmp_path))
    assert mask_folder.source(root, classes=4).classes == ["class0", "class1", "class2", "class3"]
    source = mask_folder.source(root, classes=["sky", "sea", "land"])
    assert source.classes == ["sky", "sea", "land"]
    assert source.warnings == ()
    np.testing.assert_array_equal(
        read(mask_folder, first(source))[1], noise(HEIGHT, WIDTH, seed=int(Path(first(source).name).stem), high=3)
    )
    save(Path(first(source).mask_path or ""), np.full((HEIGHT, WIDTH), 3, np.uint8))
    with pytest.raises(BadImage, match=r"48 pixels of the id 3 .* allowed are 0, 1, 2, 255"):
        read(mask_folder, first(source))
    for wrong in (1, 0, 256, True, "sky", ["sky"], ["sky", "sky"], ["sky", ""]):
        with pytest.raises(ValueError, match=r"classes=.* is not allowed; give .* 2 to 255"):
            mask_folder.source(root, classes=wrong)


def test_mask_folder_values_that_are_no_ids_are_refused(tmp_path: Path) -> None:
    own(tmp_path, high=1)
    with pytest.raises(ValueError, match=r"hold the id 0 only; .* two classes or more"):
        mask_folder.source(str(tmp_path))
    save(tmp_path / "masks" / "3.png", noise(HEIGHT, WIDTH, high=2) * 255)
    with pytest.raises(ValueError, match=r"hold 0 and 255 only, .* --dataset-args threshold=127"):
        mask_folder.source(str(tmp_path))
    for number in range(10):
        save(tmp_path / "masks" / f"{number}.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    with pytest.raises(ValueError, match="hold no class only"):
        mask_folder.source(str(tmp_path))
    for number in range(10):
        save(tmp_path / "masks" / f"{number}.png", noise(HEIGHT, WIDTH, seed=number))
    with pytest.raises(ValueError, match=r"hold \d+ different ids \(.* more\), as photographs do"):
        mask_folder.source(str(tmp_path))


def test_mask_folder_too_many_masks_to_look_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_folder, "MOST_MASKS", 9)
    with pytest.raises(ValueError, match=r"holds 10 masks, .* classes=NUMBER or classes=NAME"):
        mask_folder.source(str(own(tmp_path)))
    assert len(mask_folder.source(str(tmp_path), classes=3).classes) == 3


def test_mask_folder_bad_masks_wait_for_being_read(tmp_path: Path) -> None:
    """One bad file must not hide the others, nor keep a run from leaving it out."""
    own(tmp_path)
    (tmp_path / "masks" / "0.png").write_bytes(b"-")
    save(tmp_path / "masks" / "x.jpg", noise(HEIGHT, WIDTH))
    (tmp_path / "masks" / "x.jpg").rename(tmp_path / "masks" / "3.png")
    source = mask_folder.source(str(tmp_path))
    assert source.classes == ["class0", "class1", "class2"]
    items = {item.name: item for items in source.splits.values() for item in items}
    with pytest.raises(BadImage, match=r"0\.png cannot be decoded"):
        read(mask_folder, items["images/0.jpg"])
    with pytest.raises(BadImage, match=r"3\.png is a mask saved as JPEG, .* save masks as PNG"):
        read(mask_folder, items["images/3.jpg"])
    for number in range(10):
        (tmp_path / "masks" / f"{number}.png").write_bytes(b"-")
    with pytest.raises(ValueError, match=r"none of 10 masks can be read: .*0\.png cannot be decoded"):
        mask_folder.source(str(tmp_path))


@pytest.mark.parametrize(
    ("mode", "ending", "message"),
    [
        ("L", "webp", "saved as WEBP"),
        ("L", "jpg", "saved as JPEG"),
        ("RGBA", "png", "with transparent pixels"),
        ("LA", "png", "with transparent pixels"),
        ("CMYK", "tif", "of the kind CMYK, which no mask is"),
        ("F", "tif", "of the kind F, which no mask is"),
    ],
)
def test_mask_files_that_are_refused(tmp_path: Path, mode: str, ending: str, message: str) -> None:
    own(tmp_path)
    source = mask_folder.source(str(tmp_path), classes=3)
    blank = save(tmp_path / f"x.{ending}", Image.new(mode, (WIDTH, HEIGHT), 0.5 if mode == "F" else 0))
    with pytest.raises(BadImage, match=rf"x\.{ending} is a mask {message}|x\.{ending} is {message}"):
        read(mask_folder, replace(first(source), mask_path=str(blank)))


def test_mask_in_a_tif_with_jpeg_inside(tmp_path: Path) -> None:
    own(tmp_path)
    path = save(tmp_path / "x.tif", noise(16, 16), compression="jpeg")
    with pytest.raises(BadImage, match="is a mask saved as TIFF, which blurs"):
        read(mask_folder, replace(first(mask_folder.source(str(tmp_path))), mask_path=str(path)))


# ---- a folder of one's own: palettes ----

PALETTE = [(0, 0, 0), (128, 64, 128), (7, 8, 9)]


def test_mask_folder_palette(tmp_path: Path) -> None:
    own(tmp_path)
    for number in range(10):
        ids = noise(HEIGHT, WIDTH, seed=number, high=3)
        ids[0, 0] = IGNORED
        save(tmp_path / "masks" / f"{number}.png", with_palette(ids, PALETTE + [(9, 9, 9)] * 253))
    source = mask_folder.source(str(tmp_path))
    assert source.classes == ["class0", "class1", "class2"]
    assert source.colours == PALETTE
    ids = noise(HEIGHT, WIDTH, seed=int(Path(first(source).name).stem), high=3)
    ids[0, 0] = IGNORED
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], ids)
    assert mask_folder.source(str(tmp_path), classes=["a", "b", "c"]).colours == PALETTE
    assert mask_folder.source(str(tmp_path), classes=300 - 50).colours is None  # no colour twice


def test_mask_folder_palettes_that_differ_are_refused(tmp_path: Path) -> None:
    own(tmp_path)
    for number in range(10):
        save(tmp_path / "masks" / f"{number}.png", with_palette(noise(HEIGHT, WIDTH, high=3), PALETTE))
    source = mask_folder.source(str(tmp_path))
    save(Path(first(source).mask_path or ""), with_palette(noise(HEIGHT, WIDTH, high=3), [*PALETTE[:2], (1, 2, 3)]))
    with pytest.raises(BadImage, match=r"index 2 of its palette .* 1,2,3, .* 7,8,9"):
        read(mask_folder, first(source))
    # what is not used may differ, and grey masks are welcome among them
    save(Path(first(source).mask_path or ""), with_palette(np.ones((HEIGHT, WIDTH), np.uint8), [(5, 5, 5), PALETTE[1]]))
    assert set(read(mask_folder, first(source))[1].ravel()) == {1}
    save(Path(first(source).mask_path or ""), np.ones((HEIGHT, WIDTH), np.uint8))
    assert set(read(mask_folder, first(source))[1].ravel()) == {1}


# ---- a folder of one's own: colours ----


def coloured(root: Path) -> Path:
    own(root)
    for number in range(10):
        save(root / "masks" / f"{number}.png", np.array(PALETTE, np.uint8)[noise(HEIGHT, WIDTH, seed=number, high=3)])
    return root


def test_mask_folder_colours_without_names_are_refused(tmp_path: Path) -> None:
    root = str(coloured(tmp_path))
    for args in ({}, {"classes": 3}):
        with pytest.raises(ValueError, match=r"name the classes in .*10 of 10 masks hold") as caught:
            mask_folder.source(root, **args)
        assert "\n\nname,r,g,b\nclass0,0,0,0\nclass1,7,8,9\nclass2,128,64,128\n\nCopy these lines" in str(caught.value)
    # the first mask may be black all over
    save(tmp_path / "masks" / "0.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(ValueError, match="are in colour; name the classes in"):
        mask_folder.source(root)
    # what the message says can be taken as it is
    (tmp_path / "classes.csv").write_text(str(caught.value).split("\n\n")[1])
    source = mask_folder.source(root)
    assert source.classes == ["class0", "class1", "class2"]
    assert set(read(mask_folder, first(source))[1].ravel()) == {0, 1, 2}
    (tmp_path / "classes.csv").unlink()
    save(tmp_path / "masks" / "1.png", noise(HEIGHT, WIDTH, 3))
    with pytest.raises(ValueError, match=r"in colour, .* 5\d different ones, .* photographs"):
        mask_folder.source(root)


def test_mask_folder_table_of_colours(tmp_path: Path) -> None:
    root = str(coloured(tmp_path))
    (tmp_path / "classes.csv").write_text("\ufeffName, R ,G,B\r\nroad,128,64,128\r\nVoid,0,0,0\r\n\r\nsea,7,8,9\r\n")
    source = mask_folder.source(root)
    assert source.classes == ["road", "sea"]
    assert source.colours == [(128, 64, 128), (7, 8, 9)]
    ids = noise(HEIGHT, WIDTH, seed=int(Path(first(source).name).stem), high=3)
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], np.array([IGNORED, 0, 1])[ids])
    # masks with a palette go by their colours, not by their indices
    save(Path(first(source).mask_path or ""), with_palette(ids, [(7, 8, 9), (0, 0, 0), (128, 64, 128)]))
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], np.array([1, IGNORED, 0])[ids])
    save(Path(first(source).mask_path or ""), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert set(read(mask_folder, first(source))[1].ravel()) == {IGNORED}
    save(Path(first(source).mask_path or ""), np.full((HEIGHT, WIDTH, 3), 1, np.uint8))
    with pytest.raises(BadImage, match=r"colour 1,1,1 .* allowed are those of classes\.csv"):
        read(mask_folder, first(source))


def test_mask_folder_table_with_several_colours_a_class(tmp_path: Path) -> None:
    root = str(coloured(tmp_path))
    (tmp_path / "classes.csv").write_text("name;r;g;b\nground;128;64;128\nsky;0;0;0\nground;7;8;9\n")
    source = mask_folder.source(root)
    assert source.classes == ["ground", "sky"]
    assert source.colours == [(128, 64, 128), (0, 0, 0)]
    ids = noise(HEIGHT, WIDTH, seed=int(Path(first(source).name).stem), high=3)
    np.testing.assert_array_equal(read(mask_folder, first(source))[1], np.array([1, 0, 0])[ids])


def test_mask_folder_table_of_ids(tmp_path: Path) -> None:
    root = str(own(tmp_path))
    (tmp_path / "classes.csv").write_text("id,name\n2,land\n0,ignore\n1,sea\n")
    source = mask_folder.source(root)
    assert source.classes == ["sea", "land"]  # by id
    assert source.colours is None
    item = first(source)
    ids = noise(HEIGHT, WIDTH, seed=int(Path(item.name).stem), high=3)
    np.testing.assert_array_equal(read(mask_folder, item)[1], np.array([IGNORED, 0, 1])[ids])
    ids[0] = 255
    save(Path(item.mask_path or ""), ids)
    assert set(read(mask_folder, item)[1][0]) == {IGNORED}
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n2,land,1,1,1\n255,sky,2,2,2\n1,sea,3,3,3\n0,shore,4,4,4\n")
    source = mask_folder.source(root)
    assert source.classes == ["shore", "sea", "land", "sky"]
    assert source.colours == [(4, 4, 4), (3, 3, 3), (1, 1, 1), (2, 2, 2)]
    assert set(read(mask_folder, first(source))[1][0]) == {3}  # 255 is a class where the table says so


def test_mask_folder_table_that_does_not_fit_the_masks_is_refused(tmp_path: Path) -> None:
    root = str(own(tmp_path))
    (tmp_path / "classes.csv").write_text("name,r,g,b\nsea,0,0,255\nland,0,255,0\n")
    with pytest.raises(ValueError, match=r"0\.png is a grey mask, .*classes\.csv has no column id"):
        mask_folder.source(root)
    coloured(tmp_path)
    (tmp_path / "classes.csv").write_text("name,id\nsea,0\nland,1\n")
    with pytest.raises(ValueError, match=r"0\.png is a mask in colour, and .*classes\.csv has no columns r,g,b"):
        mask_folder.source(root)
    for args in ({"classes": 3}, {"threshold": 127}):
        with pytest.raises(ValueError, match=r"(classes|threshold) and .*classes\.csv both say what the classes are"):
            mask_folder.source(root, **args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with ''; it must start with the names of its columns: name,r,g,b or name,id or"),
        ("road,1,2,3\n", "starts with 'road,1,2,3'; it must start"),
        ("name,r,g\nroad,1,2\n", "it must start"),
        ("name,id\nroad,x\n", "line 2: 'road,x' is not name,id"),
        ("name,id\nsea,0\nroad\n", "line 3: 'road' is not name,id"),
        ("name,id\n,0\nsea,1\n", "line 2: ',0' needs a name, an id from 0 to 65535"),
        ("name,id\nroad,65536\nsea,1\n", "line 2: 'road,65536' needs a name"),
        ("name,r,g,b\nroad,1,2,256\n", "line 2: .* a colour of numbers from 0 to 255"),
        ("name,r,g,b\nroad,1,2,-1\n", "line 2: .* a colour of numbers from 0 to 255"),
        ("name,id\nroad,1\nsea,1\n", "gives the id 1 to more than one line"),
        ("name,id,r,g,b\nroad,1,2,3,4\nsea,2,2,3,4\n", r"gives the colour \(2, 3, 4\) to more than one line"),
        (
            "name,id\nroad,0\nignore,1\n",
            "names 1 classes apart from ignore, ignored, void: road; training needs 2 to 255",
        ),
        ("name,id\n" + "".join(f"a{n},{n}\n" for n in range(300)), "names 300 classes apart .* needs 2 to 255"),
    ],
)
def test_mask_folder_table_of_wrong_content_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = str(own(tmp_path))
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.csv.*{message}"):
        mask_folder.source(root)


def test_mask_folder_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "classes.csv").write_bytes(b"name,id\n\xff\xfe,0\n")
    with pytest.raises(ValueError, match=r"classes\.csv cannot be read: .*; save it as text in UTF-8"):
        mask_folder.source(str(tmp_path))


def test_mask_folder_names_are_part_of_the_items(tmp_path: Path) -> None:
    """What is prepared once holds the names of the classes: other names, other items."""
    root = str(own(tmp_path))
    found = []
    for name in ("land", "beach"):
        (tmp_path / "classes.csv").write_text(f"id,name\n2,{name}\n0,sky\n1,sea\n")
        found.append(mask_folder.source(root).splits)
    assert found[0] != found[1]


# ---- a folder of one's own: black and white ----


def test_mask_folder_threshold(tmp_path: Path) -> None:
    own(tmp_path, high=256)
    source = mask_folder.source(str(tmp_path), threshold=100)
    assert source.classes == ["background", "foreground"]
    item = first(source)
    grey = noise(HEIGHT, WIDTH, seed=int(Path(item.name).stem))
    grey[0, :3] = (100, 101, 255)
    save(Path(item.mask_path or ""), grey)
    np.testing.assert_array_equal(read(mask_folder, item)[1], grey > 100)
    mean = first(mask_folder.source(str(tmp_path), threshold="mean"))
    np.testing.assert_array_equal(read(mask_folder, mean)[1], grey > grey.mean())
    for pixels in (np.dstack([grey] * 3), with_palette(grey, [(value,) * 3 for value in range(256)])):
        save(Path(item.mask_path or ""), pixels)
        np.testing.assert_array_equal(read(mask_folder, item)[1], grey > 100)
    names = mask_folder.source(str(tmp_path), threshold=100, classes=["sky", "rest"]).classes
    assert names == ["sky", "rest"]


def test_mask_folder_threshold_of_16_bits_and_of_jpegs(tmp_path: Path) -> None:
    own(tmp_path)
    for number in range(10):
        save(tmp_path / "masks" / f"{number}.png", np.arange(48, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 1000)
    item = first(mask_folder.source(str(tmp_path), threshold=20000))
    assert read(mask_folder, item)[1].ravel().tolist() == [0] * 21 + [1] * 27
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 4:] = 255
    save(tmp_path / "x.jpg", mask)
    (tmp_path / "x.jpg").rename(Path(item.mask_path or ""))
    item = first(mask_folder.source(str(tmp_path), threshold=127))
    np.testing.assert_array_equal(read(mask_folder, item)[1], mask == 255)


def test_mask_folder_threshold_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    root = str(own(tmp_path))
    for wrong in (-1, 65535, float("nan"), "median", True, [1]):
        with pytest.raises(ValueError, match=r"threshold=.* is not allowed; give .*127, or mean"):
            mask_folder.source(root, threshold=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"threshold makes two classes; .* 3: class0, class1, class2"):
        mask_folder.source(root, threshold=127, classes=3)


# ---- no class that there is not ----


@pytest.mark.parametrize("seed", range(8))
def test_each_pixel_has_the_class_of_its_table_or_the_mask_is_refused(tmp_path: Path, seed: int) -> None:
    """Random ids and colours, known and unknown: each pixel has the class of its table, or the mask is refused."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 30))
    ids = rng.choice(255, count, replace=False)
    codes = rng.choice(2**24, count, replace=False)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    lines = [f"c{n},{ids[n]},{','.join(map(str, colours[n]))}" for n in range(count)]
    (tmp_path / "classes.csv").write_text("\n".join(["name,id,r,g,b", *lines]))
    numbers = {int(identity): number for number, identity in enumerate(sorted(ids))}
    expected, bad = {}, set()
    for number in range(12):
        save(tmp_path / "images" / f"{number:02}.jpg", rng.integers(0, 256, (97, 131, 3), np.uint8))
        places = rng.integers(0, count, (97, 131))
        mask = ids[places].astype(np.uint8) if number % 2 else colours[places].astype(np.uint8)
        expected[number] = np.vectorize(numbers.get)(ids[places])
        if number % 4 == 3:
            y, x = rng.integers(0, 97), rng.integers(0, 131)
            mask[y, x] = next(value for value in rng.permutation(255) if value not in ids)
            bad.add(number)
        save(tmp_path / "masks" / f"{number:02}.png", mask)
    source = mask_folder.source(str(tmp_path))
    assert len(source.classes) == count
    for item in (item for items in source.splits.values() for item in items):
        number = int(Path(item.name).stem)
        for args in ({}, {"min_size": [10, 10]}):
            if number in bad:
                with pytest.raises(BadImage, match="holds 1 pixels of the id"):
                    read(mask_folder, item, **args)
                continue
            _, mask = read(mask_folder, item, **args)
            assert set(np.unique(mask)) <= {*range(count), IGNORED}
            if not args:
                np.testing.assert_array_equal(mask, expected[number])
