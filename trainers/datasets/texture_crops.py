"""Random square crops of large photographs of surfaces: how compacted is this gravel?

    data/<class>/*        or    data/train/<class>/*, data/val/<class>/*, data/test/<class>/*

The photographs are found as in image_folder (endings, depth, names of splits). Each gives `crops_per_photo`
grey crops of `crop_size` x `crop_size` of its pixels, so an image shows the same area of ground whatever it
is shrunk to. Splits are made by photograph: two crops of one never lie in two splits, which would let a
model recognise the photograph instead of the texture. Where a crop lies depends on `split_seed`, the
photograph's name and the crop's number alone. Licence: that of the photographs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from trainers.datasets import BadImage, Item, Source
from trainers.datasets._class_folders import picture_source, scored_source
from trainers.datasets._files import existing_folder
from trainers.datasets._splits import SPLITS, Folders
from trainers.decode import check_reading, decode, reading
from trainers.pixels import Pixels
from trainers.values import Plain

HOLDS = "photographs in class folders: <class>/*, or train/<class>/*, val/<class>/*, test/<class>/*"


def source(
    data: str | None,
    *,
    crop_size: int = 1000,
    crops_per_photo: int = 50,
    split_seed: int = 0,
    val_share: float = 0.2,
    test_share: float = 0.0,
    train: Folders = None,
    val: Folders = None,
    test: Folders = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
) -> Source:
    """List the photographs of each class.

    Args:
        data: the folder.
        crop_size: height and width of a crop, in pixels of the photograph.
        crops_per_photo: number of crops of each photograph.
        split_seed: of the random assignment, and of where the crops lie.
        val_share: share of the photographs, or of train, that becomes val, where there is no such folder.
        test_share: share that becomes test, where there are no split folders.
        train, val, test: the folders of the splits, below `data`; None: those whose names say so.
        value_range: the values that are black and white, of photographs of more than 8 bits.
        alpha: "white" or "ignore": whether an alpha channel is transparency; None: as it looks.

    Raises:
        ValueError: the folder has another layout, or a value is not allowed.
    """
    if crop_size < 1 or crops_per_photo < 1:
        raise ValueError(f"crop_size={crop_size} and crops_per_photo={crops_per_photo} must both be 1 or more")
    return picture_source(
        existing_folder(data, HOLDS),
        channels=1,
        val_share=val_share,
        test_share=test_share,
        split_seed=split_seed,
        given={"train": train, "val": val, "test": test},
        samples=crops_per_photo,
        args={"crop_size": crop_size, "split_seed": split_seed, **check_reading(value_range, alpha)},
    )


def scored(
    data: str | None,
    known: Sequence[str],
    *,
    crop_size: int = 1000,
    crops_per_photo: int = 50,
    split_seed: int = 0,
    **args: Plain,
) -> Source:
    """List photographs that a run of the classes `known` is scored on."""
    return scored_source(
        existing_folder(data, HOLDS),
        known,
        channels=1,
        given={split: args.get(split) for split in SPLITS},
        samples=crops_per_photo,
        args={"crop_size": crop_size, "split_seed": split_seed, **reading(args)},
    )


def read(item: Item) -> list[tuple[Pixels, int]]:
    """The photograph is decoded once; the crops are views of it. Raises BadImage where it is too small."""
    assert item.path is not None
    photo = decode(item.path, 1, how=reading(item.args))
    crop, seed = item.args["crop_size"], item.args["split_seed"]
    height, width = photo.shape[:2]
    if min(height, width) < crop:
        raise BadImage(
            f"{item.path} has {width}x{height} pixels, too few for crop_size={crop}; use "
            f"crop_size={min(height, width)} or less, or remove it"
        )
    crops = []
    for number, target in enumerate(item.targets):
        top = _draw(height - crop + 1, f"{seed}/{item.name}/{number}/top")
        left = _draw(width - crop + 1, f"{seed}/{item.name}/{number}/left")
        crops.append((photo[top : top + crop, left : left + crop], target))
    return crops


def _draw(below: int, key: str) -> int:
    """A number from 0 to below - 1 that depends on `key` alone, on every machine and with every version."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") * below >> 64
