"""Pictures in class folders, as of ImageNet: the class of a picture is its folder's name.

    data/train/<class>/**        or, without splits,    data/<class>/**
    data/val/<class>/**
    data/test/<class>/**

Read are jpg, png, webp, avif, tif, bmp, gif, ppm and what else Pillow reads (trainers/endings.py), at any depth below
a class folder; hidden files, those of systems (thumbnails, waste baskets), other files and pictures outside class
folders are not. Names of splits are understood as people write them (training_set, seg_train, train2017, dev,
eval), which is then said; `train`, `val` and `test` name the folders, or several, below data. data/<class>/<split>
will do too, and a test folder without classes is left out. Accents of a class may be written in either Unicode form.
Without splits, `val_share` and `test_share` are split off, seeded and stratified; with train but no val, `val_share`
of train becomes val. Licence: that of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainers.datasets import Item, Source
from trainers.datasets._class_folders import picture_source, scored_source
from trainers.datasets._files import existing_folder
from trainers.datasets._splits import SPLITS, Folders
from trainers.decode import check_reading, decode, reading
from trainers.pixels import Pixels
from trainers.values import Plain

HOLDS = "train/<class>/*, val/<class>/* and test/<class>/*, or <class>/*"


def source(
    data: str | None,
    *,
    channels: int = 3,
    val_share: float = 0.1,
    test_share: float = 0.1,
    split_seed: int = 0,
    train: Folders = None,
    val: Folders = None,
    test: Folders = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
) -> Source:
    """List the pictures of each class.

    Args:
        data: the folder.
        channels: 3 (colour) or 1 (grey).
        val_share: share of the pictures, or of train, that becomes val, where there is no such folder.
        test_share: share that becomes test, where there are no split folders.
        split_seed: of the random assignment.
        train, val, test: the folders of the splits, below `data`; None: those whose names say so.
        value_range: the values that are black and white, as in 0,4095 or 4095, of grey pictures of more than 8 bits;
            by default 0 and 65535.
        alpha: "white": pictures are laid on white by their alpha channel; "ignore": it is left out; None: as it looks.

    Raises:
        ValueError: the folder has another layout, or a value is not allowed.
    """
    return picture_source(
        existing_folder(data, HOLDS),
        channels=channels,
        val_share=val_share,
        test_share=test_share,
        split_seed=split_seed,
        given={"train": train, "val": val, "test": test},
        args={"channels": channels, **check_reading(value_range, alpha)},
    )


def scored(data: str | None, known: Sequence[str], *, channels: int = 3, **args: Plain) -> Source:
    """List pictures that a run of the classes `known` is scored on."""
    return scored_source(
        existing_folder(data, HOLDS),
        known,
        channels=channels,
        given={split: args.get(split) for split in SPLITS},
        args={"channels": channels, **reading(args)},
    )


def read(item: Item) -> list[tuple[Pixels, int]]:
    """`item.args` may hold "min_size" (height, width): see `trainers.decode.decode`."""
    assert item.path is not None
    image = decode(item.path, item.args["channels"], item.args.get("min_size"), how=reading(item.args))
    return [(image, item.targets[0])]
