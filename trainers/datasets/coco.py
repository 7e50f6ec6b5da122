"""Pictures with boxes in the form of COCO: one JSON file for each split, or one for all.

    data/annotations/instances_train2017.json      or  data/train/_annotations.coco.json, *.jpg      or  data/*.json
         annotations/instances_val2017.json            valid/_annotations.coco.json, *.jpg               images/**
         train2017/*.jpg, val2017/*.jpg

`data` is the folder, or one JSON file in it. Splits are told by the names of the files, or of their folders, as people
write them; `train`, `val` and `test` name the files. Without splits `val_share` and `test_share` are split off, seeded;
with train but no val, `val_share` of train becomes val. Pictures are found by `file_name`, the last parts of it where
it comes from another machine. Files of captions, keypoints, stuff and panoptic masks are left out.

Classes are the categories in the order of their ids, which may have gaps; other splits are matched by name. Pictures
without annotations are background. `iscrowd` makes an object CROWD, `ignore` DIFFICULT; `area` is the annotation's.
A box is taken from polygons where it is missing. With `masks` each object has that of its `segmentation`, polygons or
run lengths, and one without is refused. Licence of COCO's annotations: CC BY 4.0; of its pictures: Flickr's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainers.datasets import ALL, CROWD, DIFFICULT, PLAIN, Item, Objects, Source
from trainers.datasets._coco_annotations import (
    Hook,
    Json,
    corners_of,
    flag,
    outline_of,
    with_outlines,
    without_outlines,
)
from trainers.datasets._files import existing_folder
from trainers.datasets._looks_like import LABELS, looks_like
from trainers.datasets._object_folders import (
    UNLABELLED,
    Index,
    given_files,
    own_pictures,
    say_unlisted,
    split_of_folders,
    split_word,
    tell_missing,
)
from trainers.datasets._objects import (
    Corners,
    How,
    Intake,
    Picture,
    check_how,
    check_names,
    how_of,
    object_source,
    read_objects,
    scored_source,
)
from trainers.datasets._splits import SPLITS, Folders, Given
from trainers.formatting import composed, printable, shortened
from trainers.listing import walk, words
from trainers.pixels import Pixels
from trainers.values import Plain

HOLDS = "annotations/instances_train2017.json and train2017/*, or train/_annotations.coco.json and train/*"
OTHER_KINDS = frozenset("caption captions keypoints panoptic stuff".split())
"""Words in names of files beside those of boxes."""
BACKGROUND = frozenset(["background", "_background_", "__background__"])
CORNERS_SHARE = 0.1
"""Share of boxes beyond their pictures from which on the last two numbers may be a corner."""


@dataclass
class _File:
    """A file of annotations."""

    path: str
    """Below the root."""
    split: str
    images: list[Json]
    annotations: list[Json]
    categories: list[Json]
    pictures: dict[str, Picture] = field(default_factory=dict, init=False)
    """Id -> the picture."""

    @functools.cached_property
    def used(self) -> set[str]:
        """Ids of the categories that occur."""
        return {str(annotation.get("category_id")) for annotation in self.annotations}

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Id -> name of the categories, by ascending ids. Raises ValueError for ids or names that stand twice."""
        found: dict[str, str] = {}
        for each in sorted(self.categories, key=lambda each: _order(each.get("id"))):
            identity = str(each.get("id"))
            if "id" not in each or "name" not in each or identity in found:
                lacking = "name" if "id" in each else "id"
                what = f"two categories of the id {identity}" if identity in found else f"a category without {lacking}"
                raise ValueError(f"{printable(self.path)} holds {what}; give each category an id and a name of its own")
            found[identity] = str(each["name"])
        names = check_names(list(found.values()), f"{printable(self.path)}, categories,")
        return dict(zip(found, names, strict=True))


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
        data: the folder, or a JSON file.
        channels: 3 (colour) or 1 (grey).
        val_share: share of the pictures, or of train, that becomes val, where there is no such file.
        test_share: share that becomes test, where there are no files of splits.
        split_seed: of the random assignment.
        train, val, test: the JSON files of the splits, below `data`; None: those whose names say so.
        box_orientation: of pictures with an EXIF orientation: "upright": boxes are of the upright picture; "stored":
            of its pixels as stored; None: as the sizes in the JSON say, else upright.
        value_range, alpha: as of image_folder.
        masks: whether objects have masks, of their polygons or run lengths.
        layers: for masks that lie over one another, 1 to 6; where they do not suffice, the larger mask is cut.

    Raises:
        ValueError: a file cannot be read, naming file and annotation, or a value is not allowed.
    """
    how = check_how(
        channels=channels,
        val_share=val_share,
        test_share=test_share,
        split_seed=split_seed,
        box_orientation=box_orientation,
        value_range=value_range,
        alpha=alpha,
        masks=masks,
        layers=layers,
    )
    return _list(data, {"train": train, "val": val, "test": test}, how, known=None)


def scored(data: str | None, known: Sequence[str], **args: Plain) -> Source:
    """List pictures that a run of the classes `known` is scored on."""
    return _list(data, {split: args.get(split) for split in SPLITS}, how_of(args), known=known)


def read(item: Item) -> list[tuple[Pixels, Objects]]:
    """`item.args` may hold "min_size" (height, width): see `trainers.decode.decode`."""
    return read_objects(item)


def _list(data: str | None, given: Given, how: How, known: Sequence[str] | None) -> Source:
    root, given = _root(data, given)
    tree = walk(root, "")
    warnings: list[str] = []
    hook = with_outlines if how.masks else without_outlines
    files = _find_files(root, tree.others, given, warnings, hook, scored=known is not None)
    classes = _classes(files, known, warnings)
    intake = Intake()
    index = Index(own_pictures(tree.pictures))
    for file in files:
        _take_pictures(root, file, index, intake)
    intake.check()
    for file in files:
        _take_boxes(file, classes, intake, warnings, masks=how.masks)
    intake.check()
    found: dict[str, list[Picture]] = {}
    for file in files:  # by split
        found.setdefault(file.split, []).extend(file.pictures.values())
    _check_once(found)
    taken = (picture.name for pictures in found.values() for picture in pictures)
    warnings += [*intake.warnings(), *say_unlisted(root, own_pictures(tree.pictures), taken, "file of annotations")]
    if known is not None:
        return scored_source(found, list(classes), how, warnings)
    listed = object_source(root, found, list(classes), how, warnings)
    return dataclasses.replace(listed, class_ids=_ids(files, classes))


def _root(data: str | None, given: Given) -> tuple[str, Given]:
    """The folder, and the files of splits where `data` is a file."""
    path = os.path.abspath(os.path.expanduser(data)) if data else ""
    if path.lower().endswith(".json") and os.path.isfile(path):
        folder, name = os.path.split(path)
        if os.path.basename(folder).lower() in LABELS and not walk(folder, "").pictures:
            folder, name = os.path.dirname(folder), f"{os.path.basename(folder)}/{name}"
        return folder, {ALL: name}
    return existing_folder(data, HOLDS), given


# ---- files ----


def find_sign(root: str, others: Sequence[str], _: Sequence[str]) -> str | None:
    """The file by which the form shows."""
    jsons = (path for path in others if path.lower().endswith(".json") and not _is_of_other_kind(path))
    return next((path for path in jsons if _is_coco(f"{root}/{path}")), None)


def _find_files(
    root: str, others: Sequence[str], given: Given, warnings: list[str], hook: Hook, *, scored: bool
) -> list[_File]:
    """The files of annotations, each with its split, sorted by it."""
    every = [path for path in others if path.lower().endswith(".json")]
    named = given_files(root, every, given)
    if ALL in named:
        return [_parse(root, path, ALL if scored else "train", hook) for path in named[ALL]]
    files = [_parse(root, path, split, hook) for split, paths in named.items() for path in paths]
    left = [path for path in every if path not in {file.path for file in files}]
    files += _by_name(root, left, named, warnings, hook)
    if not scored and not any(file.split == "train" for file in files):
        if not any(file.split == ALL for file in files):
            held = shortened([file.path for file in files])
            raise ValueError(
                f"{printable(root)} holds no annotations of train, only {held}; give --dataset-args train=FILE"
            )
        files = [dataclasses.replace(file, split="train") for file in files]
    return sorted(files, key=lambda file: [*SPLITS, ALL].index(file.split))


def _by_name(
    root: str, paths: Sequence[str], named: Mapping[str, object], warnings: list[str], hook: Hook
) -> list[_File]:
    """The files of annotations of the splits that the user has not named: one for each, or one for all."""
    like = [path for path in paths if _is_coco(f"{root}/{path}")]
    of_boxes = [path for path in like if not _is_of_other_kind(path)] or ([] if named else like)
    if not of_boxes and not named:
        found = looks_like(root)
        what = f"none of its {len(paths)} JSON files holds images and categories" if paths else "no JSON file"
        raise ValueError(
            f"{printable(root)} holds no annotations of COCO: {what}; give --data a folder that holds {HOLDS}"
            f"{f'. {found}' if found else ''}"
        )
    by_split: dict[str, list[_File]] = {}
    for path in of_boxes:
        split = split_word(os.path.basename(path)) or split_of_folders(path) or ALL
        if named and split in (ALL, *named):
            continue
        file = _parse(root, path, split, hook)
        if not file.annotations and split in ("test", ALL) and len(of_boxes) > 1:
            warnings.append(f"{printable(path)} holds no annotations and {UNLABELLED}")
        else:
            by_split.setdefault(split, []).append(file)
    if left := sorted(set(like) - set(of_boxes)):
        warnings.append(f"annotations of other kinds are left out: {shortened(left)}")
    if ALL in by_split and len(by_split) > 1:
        names = [file.path for file in by_split.pop(ALL)]
        warnings.append(f"{shortened(names)} in {printable(root)} left out: the name is that of no split")
    for split, files in by_split.items():
        if len(files) > 1:
            names = [file.path for file in files]
            of = "train" if split == ALL else split
            raise ValueError(
                f"{printable(root)} holds {len(files)} files of annotations{'' if split == ALL else f' for {split}'}, "
                f"{shortened(names)}; keep one of them, or say which: --dataset-args {of}={names[0]}, or "
                f"{of}={','.join(names)} for all"
            )
    return [file for files in by_split.values() for file in files]


def _is_of_other_kind(path: str) -> bool:
    name = os.path.basename(path)
    return not OTHER_KINDS.isdisjoint(words(name)) or name.startswith("image_info")


def _is_coco(path: str) -> bool:
    """Whether a JSON file has the words of a file of annotations in it."""
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError:
        return True  # whoever parses it says what is wrong
    return b'"images"' in content and b'"categories"' in content and b'"segments_info"' not in content


def _parse(root: str, path: str, split: str, hook: Hook) -> _File:
    """Raises ValueError for a file of another form."""
    try:
        with open(f"{root}/{path}", encoding="utf-8-sig") as stream:
            content = json.load(stream, object_hook=hook)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{printable(path)}, line {error.lineno}, column {error.colno}: it is no JSON ({error.msg}); was it cut "
            "off? Export or fetch it again"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{printable(path)} cannot be read: {error}; save it as JSON in UTF-8") from None
    lists = []
    for key in ("images", "annotations", "categories"):
        held = content.get(key) if isinstance(content, dict) else None
        if held is None and key == "annotations" and isinstance(content, dict):
            held = []
        if not isinstance(held, list) or not all(isinstance(each, dict) for each in held):
            raise ValueError(
                f"{printable(path)} is no file of COCO: {key} is {'missing' if held is None else 'no list'}; it must "
                "hold lists of images, annotations and categories"
            )
        lists.append(held)
    return _File(path, split, *lists)


# ---- classes ----


def _ids(files: Sequence[_File], classes: Iterable[str]) -> list[int] | None:
    """Of each class its category's id; None: one is no number."""
    ids = {name: identity for file in reversed(files) for identity, name in file.names.items()}
    return [int(ids[name]) for name in classes] if all(ids[name].isdigit() for name in classes) else None


def _classes(files: Sequence[_File], known: Sequence[str] | None, warnings: list[str]) -> dict[str, int]:
    """Name -> number of each class: the categories of train by their ids; of data that is scored, of all files."""
    first = [file for file in files if file.split == "train"] or list(files)
    classes: dict[str, int] = {}
    for file in first if known is None else files:
        for name in file.names.values():
            classes.setdefault(name, len(classes))
    # Roboflow lists what it calls the parent of all classes among them; other programs what is no object at all.
    parents = {composed(str(each.get("supercategory"))) for file in files for each in file.categories}
    occurring = {name for file in files for identity, name in file.names.items() if identity in file.used}
    roots = {
        composed(str(each.get("name")))
        for file in files
        for each in file.categories
        if str(each.get("supercategory")).lower() in ("none", "", "null")
    }
    idle = [
        name
        for name in classes
        if name not in occurring and ((name in parents and name in roots) or name.lower() in BACKGROUND)
    ]
    if idle and len(idle) < len(classes):
        why = "as no annotation has it and it is the parent of others or background"
        warnings.append(f"{shortened(idle)} is taken for no class, {why}")
        classes = {name: number for number, name in enumerate(name for name in classes if name not in idle)}
    if known is None:
        for file in files:
            names = file.names
            unknown = sorted({names[identity] for identity in file.used if identity in names} - classes.keys())
            if unknown:
                raise ValueError(
                    f"{printable(file.path)} has annotations of categories that train lacks: {shortened(unknown)}; "
                    f"train has {shortened(list(classes))}. Rename them, or add them to train"
                )
    return classes


def _order(identity: object) -> tuple[float, str]:
    try:
        return float(str(identity)), ""
    except ValueError:
        return float("inf"), str(identity)


# ---- pictures and boxes ----


def _take_pictures(root: str, file: _File, index: Index, intake: Intake) -> None:
    """Find the file of each picture."""
    near = os.path.dirname(file.path)
    split = None if file.split == ALL else file.split
    for image in file.images:
        where = f"{printable(file.path)}, image {image.get('id')}"
        name = image.get("file_name")
        if "id" not in image or not isinstance(name, str) or not name:
            intake.refused.append(f"{where}: it has no {'file_name' if 'id' in image else 'id'}; add it")
            continue
        if str(image["id"]) in file.pictures:
            intake.refused.append(f"{where}: two images have this id; give each one of its own")
            continue
        found = index.find(name, near=near, split=split)
        if len(found) == 1:
            path, shown = f"{root}/{found[0]}", found[0]
        else:  # elsewhere on this machine
            there = (os.path.normpath(os.path.join(folder, name)) for folder in (f"{root}/{near}", root))
            path = shown = next((path for path in there if os.path.isfile(path)), "")
        if not path:
            intake.refused.append(f"{where}: {tell_missing(name, found, root)}")
            continue
        identity = image["id"]
        picture = Picture(path, shown, _stated(image), args={"image_id": identity})
        file.pictures[str(identity)] = picture


def _stated(image: Json) -> tuple[int, int] | None:
    try:
        width, height = int(float(image["width"])), int(float(image["height"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _check_once(found: Mapping[str, Iterable[Picture]]) -> None:
    """Raises ValueError for pictures that stand twice in a split."""
    for split, pictures in found.items():
        seen: dict[str, object] = {}
        for picture in pictures:
            if picture.path in seen:
                raise ValueError(
                    f"{printable(picture.name)} stands twice in {split}, as the images {seen[picture.path]} and "
                    f"{picture.args['image_id']}; bring their annotations together under one id"
                )
            seen[picture.path] = picture.args["image_id"]


def _take_boxes(file: _File, classes: Mapping[str, int], intake: Intake, warnings: list[str], *, masks: bool) -> None:
    """The boxes of each picture, checked."""
    names = file.names
    orphans: list[object] = []
    read: list[tuple[Picture, Corners]] = []
    refused = len(intake.refused)
    for annotation in file.annotations:
        where = f"{printable(file.path)}, annotation {annotation.get('id')}"
        picture = file.pictures.get(str(annotation.get("image_id")))
        if picture is None:
            orphans.append(annotation.get("id"))
            continue
        name = names.get(str(annotation.get("category_id")))
        if name is None:
            intake.refused.append(
                f"{where}: there is no category {annotation.get('category_id')}; add it to categories, or correct it "
                f"(there are {shortened(list(names))})"
            )
            continue
        corners = corners_of(annotation)
        if isinstance(corners, str):
            intake.refused.append(f"{where}: {corners}")
            continue
        read.append((picture, corners))
        crowd, ignored = flag(annotation, "iscrowd"), flag(annotation, "ignore")
        area = annotation.get("area")
        intake.add(
            picture,
            corners,
            classes[name],
            where,
            kind=CROWD if crowd else DIFFICULT if ignored else PLAIN,
            area=float(area) if isinstance(area, int | float) else None,
            outline=outline_of(annotation) if masks else None,
        )
    _check_form(file, read, intake, refused)
    for picture in file.pictures.values():
        intake.check_twice(picture, f"in {printable(picture.name)}")
        intake.check_masks(picture)
    if orphans:
        warnings.append(
            f"{len(orphans):,} annotations in {printable(file.path)}, such as {orphans[0]}, belong to none of its "
            "images and are left out"
        )


def _check_form(file: _File, read: Sequence[tuple[Picture, Corners]], intake: Intake, refused: int) -> None:
    """Refuse boxes that are shares of the picture, or whose last two numbers are a corner, in place of all that
    follows from that."""
    beyond = corners = 0
    sized = [(picture.stated, box) for picture, box in read if picture.stated]
    for (width, height), (left, top, right, bottom) in sized:
        beyond += right > width + 1 or bottom > height + 1
        corners += left < right - left <= width + 1 and top < bottom - top <= height + 1
    what = None
    if sized and max(side for _, box in sized for side in box) <= 2 and min(min(size) for size, _ in sized) > 8:
        what = "shares of their pictures, 0 to 1; COCO's are in pixels"
    elif sized and beyond > CORNERS_SHARE * len(sized) and corners == len(sized):
        what = "left, top, right, bottom; COCO's are left, top, width, height"
    if what:
        intake.refused[refused:] = [
            f"the boxes in {printable(file.path)} look like {what}: convert them, such as that of the annotation "
            f"{file.annotations[0].get('id')}"
        ]
