"""Cityscapes: 2,975 + 500 finely annotated street pictures of 2048x1024 pixels from 50 cities, 19 classes.

Source: M. Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016;
https://www.cityscapes-dataset.com (to be asked for; non-commercial use only, may not be passed on). Unpack
leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into one folder:

    data/leftImg8bit/{train,val}/<city>/*_leftImg8bit.png
    data/gtFine/{train,val}/<city>/*_gtFine_labelIds.png       (the other files there are not read)

The 34 ids become the 19 classes of the benchmark as in the publishers' labels.py; the others, such as the car
that carries the camera, are IGNORED. The published masks of "test" are blank (the true ones are kept back for
the benchmark), so there is no test split here: published figures "on test" cannot be compared with val's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from trainers.datasets import IGNORED, Item, Source
from trainers.datasets._files import existing_folder
from trainers.datasets._masks import Mask, by_id, read_pair
from trainers.datasets._pairs import Pattern, find_pairs, mask_items, need_folders
from trainers.pixels import Pixels

HOLDS = (
    "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and gtFine/{train,val}/<city>/*_gtFine_labelIds.png; pictures "
    "and masks of your own are read with --dataset mask_folder"
)
PICTURES, MASKS = Pattern(after="_leftImg8bit"), Pattern(after="_gtFine_labelIds")
CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
"""Class -> its id in *_labelIds.png and its colour; the order is that of the benchmark's train ids, 0 to 18."""
IDS = {
    **dict.fromkeys((*range(34), 255), IGNORED),  # the licence plate's id, -1, is 255 in 8 bits
    **{identity: number for number, (identity, _) in enumerate(CLASSES.values())},
}


def source(data: str | None) -> Source:
    return _list(existing_folder(data, HOLDS), ("train", "val"))


def scored(data: str | None, known: Sequence[str]) -> Source:  # noqa: ARG001
    """List those of the splits that are there; their classes are always the same."""
    root = existing_folder(data, HOLDS)
    here = [split for split in ("train", "val") if os.path.isdir(os.path.join(root, "gtFine", split))]
    return _list(root, here or ("train", "val"))


def _list(root: str, names: Sequence[str]) -> Source:
    folders = [(f"leftImg8bit/{split}", f"gtFine/{split}") for split in names]
    need_folders(root, [folder for pair in folders for folder in pair], HOLDS)
    splits = {}
    for pictures, masks in folders:
        pairs = find_pairs(root, pictures, masks, picture_pattern=PICTURES, mask_patterns=[MASKS])
        splits[pictures.split("/")[1]] = mask_items(root, pairs, {})
    colours = [colour for _, colour in CLASSES.values()]
    return Source(classes=list(CLASSES), channels=3, splits=splits, target="masks", colours=colours)


def read(item: Item) -> list[tuple[Pixels, Mask]]:
    return read_pair(item, 3, lambda raw: by_id(raw, IDS, "0 to 33, and 255 for -1, as in Cityscapes"))
