"""Your own pictures with boxes, in the form of COCO, YOLO or Pascal VOC: which one it is shows by the files.

    COCO          a JSON file with images and categories                 see coco.py
    YOLO          data.yaml, obj.data, or labels/*.txt beside images/*   see yolo.py
    Pascal VOC    XML files with <annotation>                            see voc.py

A folder that holds two of them is asked about. What one form alone needs to be told is an argument of its own data
set: --dataset yolo --dataset-args classes=cat,dog. Licence: that of the pictures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType

from trainers.datasets import Item, Objects, Source, coco, voc, yolo
from trainers.datasets._files import existing_folder
from trainers.datasets._looks_like import looks_like
from trainers.datasets._objects import read_objects
from trainers.datasets._splits import Folders
from trainers.formatting import printable
from trainers.listing import walk
from trainers.pixels import Pixels

HOLDS = "pictures and their boxes in the form of COCO (*.json), YOLO (data.yaml, labels/*.txt) or Pascal VOC (*.xml)"
FORMS: dict[str, ModuleType] = {"coco": coco, "yolo": yolo, "voc": voc}


def source(
    data: str | None,
    *,
    channels: int = 3,
    val_share: float = 0.2,
    test_share: float = 0.0,
    split_seed: int = 0,
    train: Folders = None,
    val: Folders = None,
    test: Folders = None,
    box_orientation: str | None = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
    masks: bool = False,
    layers: int = 4,
) -> Source:
    """List the pictures and their objects.

    Args:
        data: the folder, or the JSON file or data.yaml in it.
        channels: 3 (colour) or 1 (grey).
        val_share: share of the pictures, or of train, that becomes val, where there is no such split.
        test_share: share that becomes test, where there are no splits.
        split_seed: of the random assignment.
        train, val, test: the files (COCO) or folders of the splits, below `data`; None: by their names.
        box_orientation: of pictures with an EXIF orientation: whether boxes are of the "upright" picture or of its
            pixels as "stored"; None: as the sizes in the labels say, else upright.
        value_range, alpha: as of image_folder.
        masks: whether objects have masks, of their polygons or run lengths (COCO, YOLO).
        layers: for masks that lie over one another, 1 to 6; where they do not suffice, the larger mask is cut.

    Raises:
        ValueError: the form is not clear, or the folder is refused by the data set of its form.
    """
    found: Source = FORMS[form_of(data)].source(
        data,
        channels=channels,
        val_share=val_share,
        test_share=test_share,
        split_seed=split_seed,
        train=train,
        val=val,
        test=test,
        box_orientation=box_orientation,
        value_range=value_range,
        alpha=alpha,
        masks=masks,
        layers=layers,
    )
    return found


def scored(data: str | None, known: Sequence[str], **args: object) -> Source:
    """List pictures that a run of the classes `known` is scored on."""
    found: Source = FORMS[form_of(data)].scored(data, known, **args)
    return found


def read(item: Item) -> list[tuple[Pixels, Objects]]:
    """`item.args` may hold "min_size" (height, width): see `trainers.decode.decode`."""
    return read_objects(item)


def form_of(data: str | None) -> str:
    """Which of FORMS a folder, or a file, has. Raises ValueError where that is not clear."""
    if data and os.path.isfile(os.path.expanduser(data)):
        root, name = os.path.split(os.path.abspath(os.path.expanduser(data)))
        others, pictures = [name], list[str]()
    else:
        root = existing_folder(data, HOLDS)
        tree = walk(root, "")
        others, pictures = tree.others, tree.pictures
    signs = {
        form: sign for form, module in FORMS.items() if (sign := module.find_sign(root, others, pictures)) is not None
    }
    if len(signs) == 1:
        return next(iter(signs))
    if not signs:
        found = looks_like(root)
        raise ValueError(
            f"{printable(root)} holds no boxes in a form that is read; give --data a folder that holds {HOLDS}"
            f"{f'. {found}' if found else ''}"
        )
    each = " and ".join(f"{form} ({printable(sign)})" for form, sign in signs.items())
    first, second, *_ = signs
    raise ValueError(
        f"{printable(root)} holds boxes in more than one form: {each}; say which to read: --dataset {first} or "
        f"--dataset {second}"
    )
