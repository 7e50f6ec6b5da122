"""Semantic Drone Dataset: 400 pictures of 6000x4000 pixels from above houses and gardens, in 24 classes.

Source: Institute of Computer Graphics and Vision, Graz University of Technology, 2019;
http://dronedataset.icg.tugraz.at (non-commercial use only, may not be passed on). Either of two forms, in
data/ itself or below folders named as their archives name them:

    data/original_images/*.jpg, label_images_semantic/*.png                     as on Kaggle: ids 0 to 23
    data/training_set/images/*.jpg, training_set/gt/semantic/label_images/*.png     as from Graz: 24 colours

"unlabeled" is a class as any other: the 24 include it. There are no splits: `val_share` of the pictures, seeded,
is val, the rest train.

`binary` makes two classes of them: names of classes (person,dog) are 1 and the rest 0; "mean" is 1 where the id
is above the mean id of that very mask. The order of the ids means nothing, so that division has no meaning in
itself: the same class is 1 in one picture and 0 in another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from trainers.datasets import Item, Source
from trainers.datasets._files import existing_folder
from trainers.datasets._masks import Mask, RawMask, above_mean, by_colour, by_id, read_pair
from trainers.datasets._pairs import assign_pairs, find_pairs, mask_items, need_folders
from trainers.pixels import Pixels

HOLDS = (
    "original_images/*.jpg and label_images_semantic/*.png; pictures and masks of your own are read with "
    "--dataset mask_folder"
)
FORMS = (
    ("original_images", "label_images_semantic"),
    ("training_set/images", "training_set/gt/semantic/label_images"),
)
PLACES = (
    "",
    "dataset/semantic_drone_dataset",
    "semantic_drone_dataset",
    "dataset",
    "semantic_drone_dataset/semantic_drone_dataset",
)
"""Where the archives put them."""
CLASSES = {
    "unlabeled": (0, 0, 0),
    "paved-area": (128, 64, 128),
    "dirt": (130, 76, 0),
    "grass": (0, 102, 0),
    "gravel": (112, 103, 87),
    "water": (28, 42, 168),
    "rocks": (48, 41, 30),
    "pool": (0, 50, 89),
    "vegetation": (107, 142, 35),
    "roof": (70, 70, 70),
    "wall": (102, 102, 156),
    "window": (254, 228, 12),
    "door": (254, 148, 12),
    "fence": (190, 153, 153),
    "fence-pole": (153, 153, 153),
    "person": (255, 22, 96),
    "dog": (102, 51, 0),
    "car": (9, 143, 150),
    "bicycle": (119, 11, 32),
    "tree": (51, 51, 0),
    "bald-tree": (190, 250, 190),
    "ar-marker": (112, 150, 146),
    "obstacle": (2, 135, 115),
    "conflicting": (255, 0, 0),
}
"""Class -> its colour, in the order of the ids: the publishers' class_dict.csv."""
MEAN = "mean"


def source(
    data: str | None, *, val_share: float = 0.15, split_seed: int = 0, binary: str | Sequence[str] | None = None
) -> Source:
    """List the pairs of pictures and masks.

    Args:
        data: the folder.
        val_share: share of the pictures that becomes val.
        split_seed: of the random assignment.
        binary: "mean", or the names of the classes that are the foreground; None: all 24 classes.

    Raises:
        ValueError: the folder has another layout, or a value is not allowed.
    """
    names = [name.strip() for name in binary.split(",")] if isinstance(binary, str) else list(binary or ())
    names = [name for name in names if name != ""]
    unknown = [str(name) for name in names if name not in CLASSES and names != [MEAN]]
    if unknown:
        raise ValueError(
            f"binary={','.join(map(str, names))} is not allowed: there is no class {', '.join(unknown)}. Give "
            f"{MEAN}, or names out of {', '.join(CLASSES)}"
        )
    root = existing_folder(data, HOLDS)
    places = [(place, *form) for place in PLACES for form in FORMS]
    place, *form = next((each for each in places if os.path.isdir(os.path.join(root, *each[:2]))), places[0])
    pictures, masks = (os.path.join(place, folder) for folder in form)
    need_folders(root, [pictures, masks], HOLDS)
    pairs = find_pairs(root, pictures, masks)
    assigned = assign_pairs(root, pairs, val_share=val_share, split_seed=split_seed)
    splits = {split: mask_items(root, of, {"binary": names}) for split, of in assigned.items()}
    if not names:
        colours = list(CLASSES.values())
        return Source(classes=list(CLASSES), channels=3, splits=splits, target="masks", colours=colours)
    classes = ["at most the mean", "above the mean"] if names == [MEAN] else ["rest", "+".join(names)]
    return Source(classes=classes, channels=3, splits=splits, target="masks")


def read(item: Item) -> list[tuple[Pixels, Mask]]:
    names = item.args["binary"]
    single = names and names != [MEAN]
    numbers = [int(name in names) if single else number for number, name in enumerate(CLASSES)]

    def classes_of(raw: RawMask) -> Mask:
        if raw.values.ndim == 3 or raw.palette is not None:
            colours = dict(zip(CLASSES.values(), numbers, strict=True))
            classes = by_colour(raw, colours, "the 24 colours of the data set")
        else:
            classes = by_id(raw, dict(enumerate(numbers)), "0 to 23")
        return above_mean(classes) if names == [MEAN] else classes

    return read_pair(item, 3, classes_of)
