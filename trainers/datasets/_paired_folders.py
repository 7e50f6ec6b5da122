"""Where the pictures and the masks of each split lie: images/train and masks/train, or train/images and train/masks."""

from __future__ import annotations

import os

from trainers.datasets import ALL
from trainers.datasets._looks_like import looks_like
from trainers.datasets._pairs import HOLE, SAME, Pair, Pattern, find_pairs, guess_pairs, need_folders, pattern_of
from trainers.datasets._splits import SPLITS, Given, Layout, descend, find_scored, find_splits
from trainers.endings import left_out
from trainers.formatting import printable, shortened
from trainers.listing import list_folder, walk

UNLABELLED = "it is left out as a test split; trainers predict takes its pictures"
Patterns = tuple[Pattern, Pattern] | None
"""Of the names of pictures and masks; None: the usual ones, or what all names have in common."""
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
    images, masks = _named(root, "images"), _named(root, "masks")
    if images or masks:
        need_folders(root, [images or "images", masks or "masks"], holds)
        assert images is not None
        assert masks is not None
        return _split_below(root, images, masks, given, scored)
    layout = Layout(find_scored(root, given)) if scored else find_splits(root, given, "images/* and train/masks/*")
    if not layout.folders:
        need_folders(root, ["images", "masks"], holds)
    warnings = [*layout.warnings, *(_say_left(root, folder) for folder in layout.left)]
    folders: dict[str, list[Pair]] = {}
    for split, places in layout.folders.items():
        for place in (descend(root, place, split) for place in places):
            pair = [f"{place}/{_named(os.path.join(root, place), name) or name}" for name in ("images", "masks")]
            if split == "test" and not _holds_pictures(root, pair[1]):
                warnings.append(f"{printable(os.path.join(root, place))} holds no masks: {UNLABELLED}")
                continue
            need_folders(root, pair, holds)
            folders.setdefault(split, []).append((pair[0], pair[1]))
    return folders, warnings


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
