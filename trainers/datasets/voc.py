"""Pictures with boxes in the form of Pascal VOC: an XML file for each picture.

    data/Annotations/*.xml                  or  data/train/*.jpg, *.xml     or  data/images/*, annotations/*.xml
         JPEGImages/*.jpg                       valid/*.jpg, *.xml
         ImageSets/Main/train.txt, val.txt

`data` is the folder, or one that holds VOCdevkit/VOC2012 or the like. Splits are the lists in ImageSets/Main, else
folders, by names as people write them; `train`, `val` and `test` name lists or folders. Without splits `val_share` and
`test_share` are split off, seeded; with train but no val, `val_share` of train becomes val. An XML file belongs to the
picture of its own name, else to the one that its <filename> names. An XML file without objects makes a background
picture; pictures without one are left out.

Corners count from 1, as VOC's do: the box of the first pixel alone is 1, 1, 1, 1. Where any left or top of the whole
set is 0, as other programs write them, all count from 0; `zero_based` says so. `difficult` objects are DIFFICULT.
Classes are sorted by name. Licence of VOC: that of the pictures, Flickr's terms.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

from trainers.datasets import DIFFICULT, PLAIN, Item, Objects, Source
from trainers.datasets._files import existing_folder
from trainers.datasets._looks_like import looks_like
from trainers.datasets._object_folders import (
    UNLABELLED,
    Index,
    below,
    descend_alone,
    find_folders,
    images_folder,
    own_pictures,
    split_of_folders,
    split_word,
    tell_missing,
)
from trainers.datasets._objects import (
    How,
    Intake,
    Picture,
    check_how,
    check_names,
    format_box,
    how_of,
    object_source,
    read_objects,
    scored_source,
)
from trainers.datasets._splits import SPLITS, Folders, Given
from trainers.datasets._voc_xml import File, parse
from trainers.datasets._yolo_files import lines_of
from trainers.formatting import printable, shortened
from trainers.listing import Tree, is_picture, walk
from trainers.pixels import Pixels
from trainers.values import Plain

HOLDS = "Annotations/*.xml, JPEGImages/* and ImageSets/Main/train.txt, or pictures with an XML file beside each"


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
    zero_based: bool | None = None,
    box_orientation: str | None = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
    masks: bool = False,
    layers: int = 4,
) -> Source:
    """List the pictures and their objects.

    Args:
        data: the folder.
        channels: 3 (colour) or 1 (grey).
        val_share: share of the pictures, or of train, that becomes val, where there is no such split.
        test_share: share that becomes test, where there are no splits.
        split_seed: of the random assignment.
        train, val, test: the lists in ImageSets, or folders below `data`, of the splits; None: by their names.
        zero_based: whether corners count from 0; None: if any of them is 0.
        box_orientation: of pictures with an EXIF orientation: "upright": boxes are of the upright picture; "stored":
            of its pixels as stored; None: as the sizes in the XML files say, else upright.
        value_range, alpha: as of image_folder.
        masks, layers: refused: this form has boxes alone.

    Raises:
        ValueError: a file cannot be read, naming file and line, or a value is not allowed.
    """
    if masks:
        raise ValueError(
            "masks=true: masks of objects are read from COCO's and YOLO's files, and Pascal VOC's XML has boxes alone; "
            "convert the data set (CVAT, Roboflow and others export COCO), or leave masks out"
        )
    how = check_how(
        channels=channels,
        val_share=val_share,
        test_share=test_share,
        split_seed=split_seed,
        box_orientation=box_orientation,
        value_range=value_range,
        alpha=alpha,
        layers=layers,
    )
    return _list(data, {"train": train, "val": val, "test": test}, zero_based, how, known=None)


def scored(data: str | None, known: Sequence[str], **args: Plain) -> Source:
    """List pictures that a run of the classes `known` is scored on."""
    given = {split: args.get(split) for split in SPLITS}
    return _list(data, given, args.get("zero_based"), how_of(args), known=known)


def read(item: Item) -> list[tuple[Pixels, Objects]]:
    """`item.args` may hold "min_size" (height, width): see `trainers.decode.decode`."""
    return read_objects(item)


def _list(data: str | None, given: Given, zero_based: bool | None, how: How, known: Sequence[str] | None) -> Source:
    root = descend_alone(_descend(existing_folder(data, HOLDS)))
    tree = walk(root, "")
    intake, warnings = Intake(), list[str]()
    files = _parse_all(root, tree, intake, warnings)
    images = images_folder(root)
    pictures = own_pictures(below(tree.pictures, ["" if images is None else images]))
    of_picture = _match(root, files, pictures, intake, warnings)
    intake.check()
    found = _splits(root, tree, given, pictures, of_picture, warnings, scored=known is not None)
    intake.check()
    classes = _classes(found, of_picture, warnings, scored=known is not None)
    shift = _shift(files, zero_based, warnings)
    labelled: dict[str, list[Picture]] = {}
    for split, paths in found.items():
        labelled[split] = [_picture(root, path, of_picture[path], classes, shift, intake) for path in paths]
    _check_shares(files)
    intake.check()
    warnings += intake.warnings()
    if known is not None:
        return scored_source(labelled, list(classes), how, warnings)
    return object_source(root, labelled, list(classes), how, warnings)


def _descend(root: str) -> str:
    """The folder with Annotations in `root` where it is the only one, as VOCdevkit/VOC2012. Raises ValueError."""
    folders = ["", *walk(root, "").folders]
    holding = [os.path.dirname(folder) for folder in folders if os.path.basename(folder) == "Annotations"]
    years = [folder for folder in holding if "JPEGImages" in map(os.path.basename, _inner(folders, folder))]
    if len(years) > 1 and not all(map(split_word, years)):
        raise ValueError(
            f"{printable(root)} holds {shortened(years)}, data sets of their own; give one of them: --data "
            f"{os.path.join(printable(root), years[0])}"
        )
    return os.path.join(root, years[0]) if len(years) == 1 and years[0] else root


def _inner(folders: Iterable[str], outer: str) -> list[str]:
    return [folder for folder in folders if folder and os.path.dirname(folder) == outer]


# ---- XML files ----


def find_sign(root: str, others: Sequence[str], _: Sequence[str]) -> str | None:
    """The file by which the form shows."""
    return next((path for path in others if path.lower().endswith(".xml") and _is_annotation(f"{root}/{path}")), None)


def _is_annotation(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return b"<annotation" in stream.read(2000).replace(b"\0", b"")
    except OSError:
        return True  # whoever parses it says what is wrong


def _parse_all(root: str, tree: Tree, intake: Intake, warnings: list[str]) -> list[File]:
    every = [path for path in tree.others if path.lower().endswith(".xml")]
    parsed = {path: parse(root, path, intake) for path in every}
    files = [file for file in parsed.values() if file is not None]
    others = [path for path, file in parsed.items() if file is None]
    if not files and not intake.refused:
        found = looks_like(root)
        raise ValueError(
            f"{printable(root)} holds no annotations of Pascal VOC, XML files with <annotation>; give --data a folder "
            f"that holds {HOLDS}{f'. {found}' if found else ''}"
        )
    if others:
        warnings.append(f"XML files that are no annotations are left out: {shortened(others, 3)}")
    return files


def _shift(files: Sequence[File], zero_based: bool | None, warnings: list[str]) -> int:
    """What is taken from left and top: 1 where they count from 1."""
    if zero_based is not None:
        return 0 if zero_based else 1
    zero = next((each for file in files for each in file.objects if min(each.corners[:2]) <= 0), None)
    if zero is None:
        return 1
    warnings.append(
        f"corners are taken to count from 0, as {zero.where} has {format_box(zero.corners)}; if they count from 1, as "
        "VOC's own, give --dataset-args zero_based=false"
    )
    return 0


def _check_shares(files: Sequence[File]) -> None:
    """Raises ValueError for boxes that are shares of their pictures."""
    boxes = [each for file in files for each in file.objects]
    if boxes and max(max(each.corners) for each in boxes) <= 1 and any(each.corners[2] % 1 for each in boxes):
        raise ValueError(
            f"{boxes[0].where}: the box {format_box(boxes[0].corners)}, as all others, is in shares of its picture; "
            "VOC's are in pixels: convert them"
        )


# ---- pictures ----


def _match(
    root: str, files: Sequence[File], pictures: Sequence[str], intake: Intake, warnings: list[str]
) -> dict[str, File]:
    """Picture -> its XML file: of the same name, else as <filename> says."""
    index = Index(pictures)
    found: dict[str, File] = {}
    without = []
    for file in files:
        stem, near, split = os.path.splitext(file.path)[0], os.path.dirname(file.path), split_of_folders(file.path)
        having = index.find(stem, near=near) or index.find(file.filename, near=near, split=split)
        if not having:
            without.append(file)
        elif len(having) > 1:
            intake.refused.append(f"{printable(file.path)}: {tell_missing(file.filename, having, root)}")
        elif having[0] in found:
            intake.refused.append(
                f"{printable(file.path)} and {printable(found[having[0]].path)} are both of {printable(having[0])}; "
                "remove one of them"
            )
        else:
            found[having[0]] = file
    if without and not found:
        name = without[0].filename or os.path.basename(os.path.splitext(without[0].path)[0])
        intake.refused.append(f"{printable(without[0].path)}: {tell_missing(name, [], root)}")
    elif without:
        paths = [file.path for file in without]
        warnings.append(f"{len(without):,} XML files have no picture and are left out: {shortened(paths, 3)}")
    return found


def _splits(
    root: str,
    tree: Tree,
    given: Given,
    pictures: Sequence[str],
    of_picture: Mapping[str, File],
    warnings: list[str],
    *,
    scored: bool,
) -> dict[str, list[str]]:
    """Split -> pictures that have an XML file."""
    lists = _lists(tree, given)
    found: dict[str, list[str]] = {}
    if lists:
        index = Index(pictures)
        for split, path in lists.items():
            listed = [_listed(root, path, *line, index) for line in lines_of(f"{root}/{path}")]
            found[split] = list(dict.fromkeys(picture for _, picture in listed))
            bare = [(where, picture) for where, picture in listed if picture not in of_picture]
            if bare and not (split == "test" and len(bare) == len(listed)):
                where, picture = bare[0]
                raise ValueError(
                    f"{where}: {printable(picture)} has no XML file ({len(bare):,} of {len(listed):,} lines); add it, "
                    "without objects where there are none, or remove the line"
                )
        if not scored and "train" not in found:
            raise ValueError(
                f"{printable(root)} holds no list of train, only {shortened(list(lists.values()))}; give "
                "--dataset-args train=LIST"
            )
    else:
        folders, said = find_folders(root, given, "*.jpg and *.xml", scored=scored)
        warnings += said
        found = {split: below(pictures, of) for split, of in folders.items()}
    for split, paths in list(found.items()):
        bare_ones = [path for path in paths if path not in of_picture]
        if split == "test" and len(bare_ones) == len(paths) and len(found) > 1:
            warnings.append(f"none of {len(paths):,} pictures of test has an XML file: it {UNLABELLED}")
            del found[split]
        elif bare_ones:
            warnings.append(
                f"{len(bare_ones):,} of {len(paths):,} pictures have no XML file, such as {printable(bare_ones[0])}: "
                "they are left out; for background give them one without objects"
            )
            found[split] = [path for path in paths if path in of_picture]
    return found


def _lists(tree: Tree, given: Given) -> dict[str, str]:
    """Split -> its list in ImageSets."""
    every = [path for path in tree.others if path.startswith("ImageSets/") and path.lower().endswith(".txt")]
    every = [path for path in every if path.startswith("ImageSets/Main/")] or [
        path for path in every if path.count("/") == 1
    ]
    by_stem = {os.path.splitext(os.path.basename(path))[0]: path for path in every}
    named = {split: by_stem.get(os.path.splitext(str(value))[0]) for split, value in given.items() if value is not None}
    if any(named.values()):
        return {split: named[split] or "" for split in SPLITS if named.get(split)}
    if any(value is not None for value in given.values()):
        return {}
    plain = {"train": ("train", "trainval", "default", "all"), "val": ("val", "valid", "validation"), "test": ("test",)}
    found = {split: next((by_stem[stem] for stem in stems if stem in by_stem), "") for split, stems in plain.items()}
    return {split: path for split, path in found.items() if path}


def _listed(root: str, path: str, number: int, line: str, index: Index) -> tuple[str, str]:
    """Place and picture of a line: a name, with or without ending. Raises ValueError."""
    where = f"{printable(path)}, line {number}"
    name = line if is_picture(line) else re.sub(r"\s+-?[01]$", "", line)
    found = index.find(name)
    if len(found) != 1:
        raise ValueError(f"{where}: {tell_missing(name, found, root)}")
    return where, found[0]


def _classes(
    found: Mapping[str, Sequence[str]], of_picture: Mapping[str, File], warnings: list[str], *, scored: bool
) -> dict[str, int]:
    """Name -> number of each class, by name. Raises ValueError for one that train lacks."""
    first: dict[str, dict[str, str]] = {}
    for split, paths in found.items():
        first[split] = {each.name: each.where for path in paths for each in reversed(of_picture[path].objects)}
    every = {name for names in first.values() for name in names}
    held = sorted(every if scored else first["train"])
    alike: dict[str, list[str]] = {}
    for name in sorted(every):
        alike.setdefault(name.casefold(), []).append(name)
    close = [" and ".join(names) for names in alike.values() if len(names) > 1]
    for split, names in first.items() if not scored else ():
        unknown = sorted(names.keys() - set(held))
        if unknown and held:
            raise ValueError(
                f"{names[unknown[0]]}: train has no object of the class {printable(unknown[0])}, which {split} has"
                f"{f' (as {shortened(unknown[1:])})' if unknown[1:] else ''}; train has {shortened(held)}. Rename or "
                "remove the objects, or add some to train"
            )
    if close:
        warnings.append(f"names of classes that differ by capitals alone are classes of their own: {shortened(close)}")
    return {name: number for number, name in enumerate(check_names(held, "train") if held else held)}


def _picture(root: str, path: str, file: File, classes: Mapping[str, int], shift: int, intake: Intake) -> Picture:
    picture = Picture(f"{root}/{path}", path, file.size)
    for each in file.objects:
        left, top, right, bottom = each.corners
        kind = DIFFICULT if each.difficult else PLAIN
        intake.add(picture, (left - shift, top - shift, right, bottom), classes[each.name], each.where, kind=kind)
    intake.check_twice(picture, f"in {printable(file.path)}")
    return picture
