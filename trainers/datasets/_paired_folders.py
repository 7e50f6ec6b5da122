"""Where the pictures and the masks of each split lie: images/train and masks/train, or train/images and train/masks."""

from __future__ import annotations

import os

from trainers.datasets import ALL
from trainers.datasets._looks_like import IMAGES, LABELS, MASKS, looks_like
from trainers.datasets._pairs import HOLE, SAME, Pair, Pattern, find_pairs, guess_pairs, need_folders, pattern_of
from trainers.datasets._splits import SPLITS, Given, Layout, descend, find_scored, find_splits
from trainers.endings import left_out
from trainers.formatting import printable, shortened
from trainers.listing import list_folder, walk

UNLABELLED = "it is left out as a test split; trainers predict takes its pictures"
Patterns = tuple[Pattern, Pattern] | None
"""Of the names of pictures and masks; None: the usual ones, or what all names have in common."""
KINDS = ("images", "masks")
EXPORTED = (IMAGES, MASKS | LABELS | {"segmentationclasspng", "masks_machine"})
"""Names, in lower case, that programs in which masks are drawn give to these."""
Found = dict[str, list[Pair]]
"""Split -> its pairs."""


def read_patterns(picture_pattern: str | None, mask_pattern: str | None) -> Patterns:
    if picture_pattern is None and mask_pattern is None:
        return None
    return (
        pattern_of("picture_pattern", picture_pattern or HOLE),
        pattern_of("mask_pattern", mask_pattern or HOLE),
    )


def find_splits_of_pairs(
    root: str, holds: str, given: Given, patterns: Patterns, *, scored: bool = False
) -> tuple[Found, list[str]]:
    """The pairs of each split, and what to say of them. Without splits all is "train"; ALL, where it is to be scored,
    and then no split is needed."""
    try:
        folders, warnings = _folders(root, holds, given, scored)
    except ValueError as error:
        found_instead = looks_like(root, wanted=True)
        raise ValueError(f"{error}. {found_instead}" if found_instead else str(error)) from None
    found: Found = {}
    for split in (split for split in (*SPLITS, ALL) if split in folders):
        found[split] = []
        for pictures, masks in folders[split]:
            if patterns is not None:
                pairs = find_pairs(root, pictures, masks, picture_pattern=patterns[0], mask_patterns=[patterns[1]])
            else:
                pairs, said = guess_pairs(root, pictures, masks, [SAME, Pattern(after="_mask")])
                warnings += said
            found[split] += pairs
            unread = left_out(other for folder in (pictures, masks) for other in walk(root, folder).others)
            warnings += [f"{printable(root)}: {unread}"] if unread else []
    return found, list(dict.fromkeys(warnings))


def _folders(root: str, holds: str, given: Given, scored: bool) -> tuple[dict[str, list[Pair]], list[str]]:
    """The folders of pictures and masks of each split, and what to say of them."""
    layout = Layout()
    if not any(_named(root, name) for name in KINDS):
        layout = Layout(find_scored(root, given)) if scored else find_splits(root, given, "images/* and train/masks/*")
    if not layout.folders:
        (images, masks), said = _pair(root, "", holds)
        folders, warnings = _split_below(root, images, masks, given, scored)
        return folders, [*said, *warnings]
    warnings = [*layout.warnings, *(_say_left(root, folder) for folder in layout.left)]
    folders = {}
    for split, places in layout.folders.items():
        for place in (descend(root, place, split) for place in places):
            where = os.path.join(root, place)
            has_masks = _holds_pictures(where, _named(where, KINDS[1]) or KINDS[1])
            if split == "test" and not (has_masks or _exported(where) or _find_mixed(where)):
                warnings.append(f"{printable(where)} holds no masks: {UNLABELLED}")
                continue
            pair, said = _pair(root, place, holds)
            warnings += said
            folders.setdefault(split, []).append(pair)
    return folders, warnings


def _pair(root: str, place: str, holds: str) -> tuple[Pair, list[str]]:
    """The folders of pictures and masks in `place`, a path below `root`, and what to say of them. Raises ValueError."""
    where = os.path.join(root, place)
    names = [_named(where, name) for name in KINDS]
    said = []
    if None in names and (exported := _exported(where)):
        names = [*exported]
        said = [f"the folders {names[0]} and {names[1]} in {printable(where)} are taken as its images and masks"]
    elif None in names and (mixed := _find_mixed(where)):
        raise ValueError(
            f"{printable(where)} holds pictures and masks, such as {printable(mixed)}, side by side; move the pictures "
            "into a folder images in it and the masks into a folder masks, their names may stay"
        )
    images, masks = (os.path.join(place, name or plain) for name, plain in zip(names, KINDS, strict=True))
    need_folders(root, [images, masks], holds)
    return (images, masks), said


def _exported(folder: str) -> Pair | None:
    """Pictures and masks by the names of exports; None where several may be meant, or none."""
    each = [
        [name for name in list_folder(folder).folders if name.lower() in known and walk(folder, name).pictures]
        for known in EXPORTED
    ]
    return (each[0][0], each[1][0]) if [len(names) for names in each] == [1, 1] else None


def _find_mixed(folder: str) -> str | None:
    """A mask that lies beside its picture."""
    stems = {os.path.splitext(name)[0]: name for name in list_folder(folder).pictures}
    beside = (stem for stem in stems if stem.endswith("_mask") and stem.removesuffix("_mask") in stems)
    return next((stems[stem] for stem in beside), None)


def _split_below(
    root: str, images: str, masks: str, given: Given, scored: bool
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Of the form images/train and masks/train."""
    below = [os.path.join(root, name) for name in (images, masks)]
    if scored:
        layouts = [Layout(find_scored(name, given)) for name in below]
    else:
        layouts = [find_splits(name, given, "*") for name in below]
    of_images, of_masks = (layout.folders for layout in layouts)
    warnings = [*layouts[0].warnings, *layouts[1].warnings]
    warnings += [_say_left(root, f"{images}/{name}") for name in layouts[0].left]
    if "test" in of_images and not any(_holds_pictures(below[1], place) for place in of_masks.get("test", ())):
        of_masks.pop("test", None)
    if "test" in of_images and of_images.keys() - {"test"} == of_masks.keys():
        warnings.append(f"{printable(os.path.join(root, masks))} holds no masks of the test split: {UNLABELLED}")
        del of_images["test"]
    if of_images.keys() != of_masks.keys():
        raise ValueError(
            f"{printable(root)}/{images} has the splits {', '.join(of_images) or 'none'}, and "
            f"{printable(root)}/{masks} {', '.join(of_masks) or 'none'}; give both the same folders"
        )
    folders: dict[str, list[Pair]] = {}
    for split, places in of_images.items():
        if len(places) != len(of_masks[split]):
            raise ValueError(
                f"{split} is {shortened(places)} in {images} and {shortened(of_masks[split])} in {masks}; give both "
                "the same folders"
            )
        folders[split] = [
            (f"{images}/{one}".rstrip("/"), f"{masks}/{other}".rstrip("/"))
            for one, other in zip(places, of_masks[split], strict=True)
        ]
    return folders or {ALL if scored else "train": [(images, masks)]}, warnings


def _holds_pictures(root: str, folder: str) -> bool:
    return os.path.isdir(os.path.join(root, folder)) and bool(walk(root, folder).pictures)


def _say_left(root: str, folder: str) -> str:
    return f"{printable(os.path.join(root, folder))} is left out: its name is that of no split"


def _named(folder: str, name: str) -> str | None:
    """The folder called `name`, whatever its case."""
    return next((found for found in list_folder(folder).folders if found.lower() == name), None)
