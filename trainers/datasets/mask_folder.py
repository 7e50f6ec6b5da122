"""Your own pictures and masks: the class of each pixel, from ids, a palette, colours or black and white.

    data/images/**, masks/**                        or      data/train/images/**, train/masks/**
    or   data/images/train/**, masks/train/**               data/val/images/**, val/masks/**
         data/images/val/**, masks/val/**                   data/test/images/**, test/masks/**

Both folders may be called as programs export them (JPEGImages and SegmentationClass, img and masks_machine, images
and labels). The mask of `a/x.jpg` is `a/x.png` or `a/x_mask.png`, of the picture's size. Names that differ in another
way are matched where all files differ in the same way (img_1 and mask_1), or as `picture_pattern` and `mask_pattern`
say ({name}_leftImg8bit and {name}_gtFine_labelIds; masks of other names are then left out). Names of splits are
understood as in image_folder; "test" may be absent. Without splits, `val_share` and `test_share` are split off at
random, seeded; with train but no val, `val_share` of train becomes val. Licence: that of the pictures.

Masks hold one of these, in png, bmp, gif, tif, pgm or ppm (a JPEG would make up classes along every border):

    ids        grey values of 1 to 16 bits, as the file has them, or the indices of a palette, whose colours are
               then shown. 255 is no class: such pixels are IGNORED.
    colours    in RGB or a palette; data/classes.csv says whose they are
    black and white, with `threshold`: 1 where the grey value is above it, or, with threshold=mean, above the
               mean of that very mask. 255 is then white, and JPEG is allowed.

classes.csv has a header and the columns name and either id, or r,g,b, or all four; the same name may stand in
several lines, and what is named ignore, ignored or void is IGNORED:

    name,r,g,b
    road,128,64,128
    ignore,0,0,0

Without it, `classes` is the number of classes, or their names, for ids 0, 1, 2... Without that too, up to 2,000
masks are read once at every start to see which ids they hold, and the classes are named class0, class1...
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from trainers.datasets import IGNORED, Args, BadImage, Item, Source
from trainers.datasets._files import check_channels, existing_folder
from trainers.datasets._masks import MOST_ID, Colour, Mask, RawMask, above, by_colour, by_id, is_grey, load, read_pair
from trainers.datasets._paired_folders import find_splits_of_pairs, read_patterns
from trainers.datasets._pairs import LISTED, Pair, assign_pairs, mask_items
from trainers.datasets._splits import SPLITS, Folders
from trainers.decode import check_reading, reading
from trainers.formatting import shortened
from trainers.limits import cpus
from trainers.notices import notice
from trainers.pixels import Pixels, Reading
from trainers.values import Plain

HOLDS = "images/* and masks/*, or train/images/* and train/masks/* and the same below val and test"
CLASSES_FILE = "classes.csv"
IGNORED_NAMES = ("ignore", "ignored", "void")
MOST_MASKS = 2000
"""Masks that are read to find out what they hold."""
MOST_IDS = 100
"""Different ids beyond which masks look like photographs."""
MOST_COLOURS = 50
SAMPLED = 20
"""Masks whose colours are listed, where classes.csv is missing."""


class _Scheme(NamedTuple):
    """What the masks of a data set hold."""

    classes: Sequence[str]
    args: Args
    """For `read`: "threshold", or "ids" [[id, class], ...] and "colours" [[r, g, b, class], ...].

    "palette" [[id, r, g, b], ...] must be that of every mask with a palette; "greys": ids are grey values."""
    colours: Sequence[Colour] | None = None
    warnings: Sequence[str] = ()


def source(
    data: str | None,
    *,
    channels: int = 3,
    val_share: float = 0.2,
    test_share: float = 0.0,
    split_seed: int = 0,
    threshold: float | str | None = None,
    classes: int | Sequence[str] | None = None,
    picture_pattern: str | None = None,
    mask_pattern: str | None = None,
    train: Folders = None,
    val: Folders = None,
    test: Folders = None,
    mask_orientation: str | None = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
) -> Source:
    """List the pairs of pictures and masks, and find out which classes the masks hold.

    Args:
        data: the folder.
        channels: of the pictures, 3 (colour) or 1 (grey).
        val_share: share of the pictures that becomes val, where there is no such folder.
        test_share: share that becomes test, where there are no split folders.
        split_seed: of the random assignment.
        threshold: grey value above which a pixel is of class 1, or "mean"; None: masks hold ids or colours.
        classes: number of classes, or their names, for ids 0, 1, 2...; None: as classes.csv or the masks say.
        picture_pattern: names of the pictures, as in {name}_leftImg8bit; others are left out.
        mask_pattern: names of the masks, as in {name}_gtFine_labelIds; others are left out.
        train, val, test: the folders of the splits; None: those whose names say so.
        mask_orientation: of pictures with an EXIF orientation: "upright": masks are drawn on the upright picture;
            "stored": on its pixels as stored, and are turned as it is; None: as the masks' sizes say, else upright.
        value_range: of the pictures, the values that are black and white where they have more than 8 bits and are grey.
        alpha: of the pictures, "white" or "ignore": whether an alpha channel is transparency; None: as it looks.

    Raises:
        ValueError: the folder has another layout, masks do not fit, or a value is not allowed.
    """
    root = existing_folder(data, HOLDS)
    check_channels(channels)
    patterns = read_patterns(picture_pattern, mask_pattern)
    found, warnings = find_splits_of_pairs(root, HOLDS, {"train": train, "val": val, "test": test}, patterns)
    scheme = _scheme(root, [mask for pairs in found.values() for _, mask in pairs], threshold, classes)
    if "val" not in found:
        test_share = test_share if list(found) == ["train"] else 0.0
        pool = found.pop("train")
        shares = {"val_share": val_share, "test_share": test_share}
        found = assign_pairs(root, pool, **shares, split_seed=split_seed) | found
    if mask_orientation not in (None, "upright", "stored"):
        raise ValueError(f"mask_orientation={mask_orientation} is not offered; use upright or stored")
    how = check_reading(value_range, alpha)
    return _source(root, found, scheme, channels, how, mask_orientation, (*warnings, *scheme.warnings))


def scored(
    data: str | None,
    known: Sequence[str],
    *,
    channels: int = 3,
    threshold: float | str | None = None,
    classes: int | Sequence[str] | None = None,
    **args: Plain,
) -> Source:
    """List pairs that a run of the classes `known` is scored on; masks may hold some of them only."""
    root = existing_folder(data, HOLDS)
    given = {split: args.get(split) for split in SPLITS}
    patterns = read_patterns(args.get("picture_pattern"), args.get("mask_pattern"))
    found, warnings = find_splits_of_pairs(root, HOLDS, given, patterns, scored=True)
    scheme = _scheme_of_run(root, [mask for pairs in found.values() for _, mask in pairs], threshold, classes, known)
    return _source(root, found, scheme, channels, reading(args), args.get("mask_orientation"), warnings)


def _source(
    root: str,
    found: Mapping[str, Sequence[Pair]],
    scheme: _Scheme,
    channels: int,
    how: Reading,
    mask_orientation: str | None,
    warnings: Sequence[str],
) -> Source:
    """The pairs as a listing."""
    turned = {} if mask_orientation is None else {"mask_orientation": mask_orientation}
    args = {"channels": channels, **scheme.args, **how, **turned}
    return Source(
        classes=scheme.classes,
        channels=channels,
        splits={split: mask_items(root, pairs, args) for split, pairs in found.items()},
        target="masks",
        colours=scheme.colours,
        warnings=warnings,
    )


def _scheme_of_run(
    root: str,
    masks: Sequence[str],
    threshold: float | str | None,
    classes: int | Sequence[str] | None,
    known: Sequence[str],
) -> _Scheme:
    """What masks hold that are scored against a run's classes."""
    if threshold is not None or classes is not None or os.path.isfile(os.path.join(root, CLASSES_FILE)):
        return _scheme(root, masks, threshold, classes)
    first = _first(root, masks)
    numbered = [re.fullmatch(r"class(\d+)", name) for name in known]
    if None in numbered or (first.values.ndim == 3 and not is_grey(first)):
        raise ValueError(
            f"{root} has no {CLASSES_FILE}, which says what the masks hold; copy it there from the data of training, "
            f"whose classes are {shortened(known)}"
        )
    return _of_ids({int(match[1]): match[0] for match in numbered if match}, first)


def read(item: Item) -> list[tuple[Pixels, Mask]]:
    args = item.args
    if "threshold" in args:
        return read_pair(item, args["channels"], lambda raw: above(raw, args["threshold"]), lossy=True)
    ids = dict(args.get("ids", ()))
    colours = {(red, green, blue): number for red, green, blue, number in args.get("colours", ())}

    def classes_of(raw: RawMask) -> Mask:
        if colours and (raw.palette is not None or raw.values.ndim == 3):
            return by_colour(raw, colours, f"those of {CLASSES_FILE}")
        if args.get("greys"):
            raw = raw._replace(values=raw.grey())
        _check_palette(raw, args.get("palette", ()))
        listed = shortened([str(identity) for identity in sorted(ids)], LISTED)
        mask = by_id(raw, ids, f"{listed}; name it in {CLASSES_FILE}, ignore if it is no class")
        # classes.csv says that 255 is no class; otherwise it may be white, as 1 is in files of one bit
        doubtful = "classes" not in args and len(ids) == 3 and ids.get(0) == 0 and raw.palette is None
        if doubtful and (mask == IGNORED).any() and not (mask == 1).any():
            notice("mask white", raw.path)
        return mask

    return read_pair(item, args["channels"], classes_of)


def _check_palette(raw: RawMask, palette: Iterable[Sequence[int]]) -> None:
    """Raises BadImage where an index has another colour than in the first mask: then it is no class number."""
    if raw.palette is None:
        return
    for index, *colour in palette:
        if index < len(raw.palette) and raw.palette[index].tolist() != colour and (raw.values == index).any():
            raise BadImage(
                f"{raw.path}: the index {index} of its palette is the colour "
                f"{_rgb(raw.palette[index].tolist())}, in the first mask {_rgb(colour)}; so indices are no class "
                f"numbers here: list the colours in {CLASSES_FILE} (name,r,g,b)"
            )


# ---- classes ----


def _scheme(
    root: str, masks: Sequence[str], threshold: float | str | None, classes: int | Sequence[str] | None
) -> _Scheme:
    table = os.path.join(root, CLASSES_FILE)
    has_table = os.path.isfile(table)
    given = [name for name, value in (("threshold", threshold), ("classes", classes)) if value is not None]
    if has_table and given:
        raise ValueError(f"{' and '.join(given)} and {table} both say what the classes are; leave one of them out")
    names = None if classes is None else _names(classes)
    if threshold is not None:
        return _of_threshold(threshold, names)
    first = _first(root, masks)
    if has_table:
        return _of_table(table, first)
    if first.values.ndim == 3 and not is_grey(first):
        raise ValueError(_ask_for_colours(root, masks))
    if names is None:
        return _of_masks(root, masks, first)
    return _of_ids(dict(enumerate(names)), first)


def _first(root: str, masks: Sequence[str]) -> RawMask:
    """The first mask that can be read; the others are reported when they are all read."""
    bad = None
    for mask in masks:
        try:
            return load(f"{root}/{mask}")
        except BadImage as error:
            bad = bad or error
    raise ValueError(f"none of {len(masks)} masks can be read: {bad}. For black and white masks give threshold=127")


def _names(classes: Any) -> list[str]:
    if isinstance(classes, int) and not isinstance(classes, bool):
        names = [f"class{number}" for number in range(classes)]
    elif isinstance(classes, list | tuple):
        names = [str(name) for name in classes]
    else:
        names = [str(classes)]
    twice = {name for name in names if names.count(name) > 1}
    if twice or not 2 <= len(names) <= IGNORED or "" in names:
        raise ValueError(
            f"classes={classes} is not allowed; give the number of classes, 2 to {IGNORED}, or their names, two or "
            f"more and none of them twice, as in classes=background,cat,dog"
        )
    return names


def _of_threshold(threshold: Any, names: list[str] | None) -> _Scheme:
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold != "mean" and not (number and math.isfinite(threshold) and 0 <= threshold < MOST_ID):
        raise ValueError(f"threshold={threshold} is not allowed; give a grey value, such as 127, or mean")
    if names is not None and len(names) != 2:
        raise ValueError(f"a threshold makes two classes; classes names {len(names)}: {shortened(names)}")
    return _Scheme(names or ["background", "foreground"], {"threshold": threshold})


def _of_ids(names: Mapping[int, str], first: RawMask, warnings: Sequence[str] = ()) -> _Scheme:
    """Classes for ids, in the order of `names`; their colours from the palette of the first mask, if it has one."""
    args: dict[str, Any] = {"ids": [[identity, number] for number, identity in enumerate(names)]}
    if IGNORED not in names:
        args["ids"].append([IGNORED, IGNORED])
    colours: list[Colour] | None = None
    if first.palette is not None:
        palette = first.palette.tolist()
        args["palette"] = [[index, *palette[index]] for index in names if index < len(palette)]
        colours = [(red, green, blue) for _, red, green, blue in args["palette"]]
        coloured = any(len(set(colour)) > 1 for colour in colours)
        colours = colours if coloured and len(set(colours)) == len(names) else None
    return _Scheme(list(names.values()), args, colours, warnings)


def _of_masks(root: str, masks: Sequence[str], first: RawMask) -> _Scheme:
    """Classes for the ids that the masks hold, found by reading them all."""
    if len(masks) > MOST_MASKS:
        raise ValueError(
            f"{root} holds {len(masks)} masks, too many to look through at every start ({MOST_MASKS:,}); say what "
            f"the classes are: --dataset-args classes=NUMBER or classes=NAME,NAME,..., or in {root}/{CLASSES_FILE} "
            "(name,id)"
        )
    with ThreadPoolExecutor(min(16, cpus())) as threads:
        each = list(threads.map(_held, (f"{root}/{mask}" for mask in masks)))
    grey = [held for held in each if held is not None]
    if len(grey) < len(each):
        raise ValueError(_ask_for_colours(root, masks))
    _check_white(root, masks, grey)
    found = {identity for held in grey for identity in held.ids}
    ids = sorted(found - {IGNORED})
    if ids and IGNORED in found and len(ids) == 1:
        raise ValueError(
            f"the masks in {root} hold {ids[0]} and {IGNORED} only, and {IGNORED} is no class; for black and white "
            "masks give --dataset-args threshold=127"
        )
    if len(ids) < 2:
        raise ValueError(
            f"the masks in {root} hold {f'the id {ids[0]}' if ids else 'no class'} only; training needs two classes or "
            f"more. Where other masks will hold more, give --dataset-args classes=NUMBER"
        )
    if len(ids) > MOST_IDS:
        raise ValueError(
            f"the masks in {root} hold {len(ids)} different ids ({shortened([str(each) for each in ids])}), as "
            "photographs do; for masks in shades of grey give --dataset-args threshold=127, for that many classes "
            "classes=NUMBER"
        )
    warning = (
        f"the classes are named by the {len(ids)} ids that {len(masks)} masks hold; name them by classes=NAME,NAME,... "
        f"or in {CLASSES_FILE} (name,id), which saves reading the masks at every start"
    )
    return _of_ids({identity: f"class{identity}" for identity in ids}, first, [warning])


class _Held(NamedTuple):
    """What a mask holds."""

    ids: set[int]
    white: set[int] | None
    """The id of white, if there is any, in a mask that is black and white and nothing else; None: it is no such one."""


def _held(path: str) -> _Held | None:
    """What a mask holds, nothing where it cannot be read, which is reported later; None where it is in colour."""
    from PIL import Image

    try:
        raw = load(path)
    except BadImage:
        return _Held(set(), set())
    values = raw.values
    if values.ndim == 3:
        if not is_grey(raw):
            return None
        values = values[:, :, 0]
    eight = values.dtype == np.uint8
    ids = set((np.flatnonzero(Image.fromarray(values).histogram()) if eight else np.unique(values)).tolist())
    if raw.palette is not None:
        black, white = (
            {index for index in ids if raw.palette[index : index + 1].tolist() == [[grey] * 3]} for grey in (0, 255)
        )
    else:
        bits_8_or_16 = raw.white[0] == raw.white[1]
        black, white = {0}, {(MOST_ID if MOST_ID in ids else 255) if bits_8_or_16 else raw.white[0]}
    return _Held(ids, ids & white if ids <= black | white else None)


def _check_white(root: str, masks: Sequence[str], each: Sequence[_Held]) -> None:
    """Raises ValueError where all masks are black and white, and white is another id in some than in others."""
    examples: dict[int, str] = {}
    for mask, held in zip(masks, each, strict=True):
        if held.white is None:
            return
        examples |= {identity: mask for identity in held.white if identity not in examples}
    if len(examples) > 1:
        found = "; ".join(f"{identity} such as in {mask}" for identity, mask in sorted(examples.items()))
        raise ValueError(
            f"the masks in {root} are black and white, and white is not the same id in all, as their files have "
            f"different numbers of bits or palettes: {found}. Give --dataset-args threshold=127; if these are not all "
            f"one class, name the ids in {root}/{CLASSES_FILE} (name,id), and what is no class ignore"
        )


def _ask_for_colours(root: str, masks: Sequence[str]) -> str:
    """The colours of some masks, ready to be named."""
    found: set[int] = set()
    sampled = masks[:: -(-len(masks) // SAMPLED)]
    for mask in sampled:
        try:
            values = load(f"{root}/{mask}").values.astype(np.uint32)
        except BadImage:
            continue
        if values.ndim == 3:
            found |= set(np.unique(values[:, :, 0] << 16 | values[:, :, 1] << 8 | values[:, :, 2]).tolist())
    colours = [(code >> 16, code >> 8 & 255, code & 255) for code in sorted(found)]
    if len(colours) > MOST_COLOURS:
        return (
            f"the masks in {root} are in colour, and {len(sampled)} of them hold {len(colours)} different ones, such "
            f"as {'; '.join(_rgb(colour) for colour in colours[:5])}: are these photographs, or masks that were "
            f"shrunk or saved as JPEG once? Masks have a colour for each class, which {CLASSES_FILE} names (name,r,g,b)"
        )
    lines = "\n".join(f"class{number},{_rgb(colour)}" for number, colour in enumerate(colours))
    return (
        f"the masks in {root} are in colour; name the classes in {root}/{CLASSES_FILE}. {len(sampled)} of "
        f"{len(masks)} masks hold these colours:\n\nname,r,g,b\n{lines}\n\nCopy these lines there and give the "
        "classes their names; name a colour that is no class ignore, and add what other masks hold"
    )


def _rgb(colour: Sequence[int]) -> str:
    return ",".join(map(str, colour))


# ---- classes.csv ----


def _of_table(path: str, first: RawMask) -> _Scheme:
    rows, has_ids, has_colours = _rows(path)
    coloured = first.values.ndim == 3 and not is_grey(first)
    greys = not has_ids and all(len(set(colour)) == 1 for _, _, colour in rows)
    if first.values.ndim == 2 and first.palette is None and not has_ids and not greys:
        raise ValueError(f"{first.path} is a grey mask, which holds ids, and {path} has no column id; add it")
    if coloured and not has_colours:
        raise ValueError(f"{first.path} is a mask in colour, and {path} has no columns r,g,b; add them")
    if has_ids:
        rows = sorted(rows, key=lambda row: row[1])
    names = list(dict.fromkeys(name for name, _, _ in rows if name.lower() not in IGNORED_NAMES))
    if not 2 <= len(names) <= IGNORED:
        raise ValueError(
            f"{path} names {len(names)} classes apart from {', '.join(IGNORED_NAMES)}: {shortened(names) or 'none'}; "
            f"training needs 2 to {IGNORED}"
        )
    numbers = {name: names.index(name) if name in names else IGNORED for name, _, _ in rows}
    args: dict[str, Any] = {"classes": names}  # a name that is changed makes other items
    if has_ids or greys:
        args["greys"] = not has_ids
        args["ids"] = [[identity if has_ids else colour[0], numbers[name]] for name, identity, colour in rows]
        if has_ids and all(identity != IGNORED for _, identity, _ in rows):
            args["ids"].append([IGNORED, IGNORED])
    colours: list[Colour] | None = None
    if has_colours:
        args["colours"] = [[*colour, numbers[name]] for name, _, colour in rows]
        first_of = {name: colour for name, _, colour in reversed(rows)}
        colours = [first_of[name] for name in names]
    return _Scheme(names, args, colours)


def _rows(path: str) -> tuple[list[tuple[str, int, Colour]], bool, bool]:
    """(name, id, colour) of each line, and whether there are ids and colours; where not, they are 0."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            lines = list(csv.reader(stream, delimiter=";" if ";" in header and "," not in header else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}; save it as text in UTF-8") from None
    columns = [column.strip().lower() for column in lines[0]] if lines else []
    has_ids, has_colours = "id" in columns, all(column in columns for column in "rgb")
    if "name" not in columns or not (has_ids or has_colours):
        raise ValueError(
            f"{path} starts with {header.strip()!r}; it must start with the names of its columns: name,r,g,b or "
            "name,id or name,id,r,g,b"
        )
    rows: list[tuple[str, int, Colour]] = []
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        cells = dict(zip(columns, (cell.strip() for cell in line), strict=False))
        try:
            identity = int(cells["id"]) if has_ids else 0
            red, green, blue = (int(cells[column]) if has_colours else 0 for column in "rgb")
        except (KeyError, ValueError):
            raise ValueError(f"{path}, line {number}: {','.join(line)!r} is not {','.join(columns)}") from None
        if not cells["name"] or not 0 <= identity <= MOST_ID or not {red, green, blue} <= set(range(256)):
            raise ValueError(
                f"{path}, line {number}: {','.join(line)!r} needs a name, an id from 0 to {MOST_ID} and a colour of "
                "numbers from 0 to 255"
            )
        rows.append((cells["name"], identity, (red, green, blue)))
    for what, has, place in (("id", has_ids, 1), ("colour", has_colours, 2)):
        values = [row[place] for row in rows]
        twice = next((value for value in values if has and values.count(value) > 1), None)
        if twice is not None:
            raise ValueError(f"{path} gives the {what} {twice} to more than one line; each may have one class only")
    return rows, has_ids, has_colours
