"""Pictures in class folders, with or without split folders above them: listed, checked, and made items.

A class is a folder's name, its accents in one form. What may be read in two ways is asked about, or what was taken is
said: a split that is no class, class folders in several places, names that look alike, pictures that lie loose.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trainers.datasets import ALL, Args, Item, Source
from trainers.datasets._files import assign_splits, check_channels
from trainers.datasets._looks_like import (
    IMAGES,
    LABELS,
    MASKS,
    find_pairs_of_folders,
    looks_like,
    masks_beside,
    say_unread,
)
from trainers.datasets._splits import (
    SPLITS,
    Given,
    Layout,
    descend,
    find_scored,
    find_splits,
    may_be_split,
    split_names,
)
from trainers.endings import SUFFIXES, left_out
from trainers.formatting import composed, printable, shortened
from trainers.listing import Tree, list_folder, walk


@dataclass
class _Split:
    """The class folders of a split."""

    where: str
    """For messages."""
    classes: dict[str, list[Tree]] = field(default_factory=dict)
    """Class -> what lies below its folder, or its folders; sorted."""
    loose: list[str] = field(default_factory=list)
    """Pictures beside the class folders."""
    others: list[str] = field(default_factory=list)
    """Other files there, and in the data folder itself."""
    again: list[str] = field(default_factory=list)
    """Folders in class folders whose pictures are taken already, or are those of runs."""
    masks: list[str] = field(default_factory=list)
    """Masks in class folders, beside their pictures."""
    two_forms: list[str] = field(default_factory=list)
    """Classes with two folders beside each other, whose names are in two Unicode forms."""

    def pictures(self, name: str) -> list[str]:
        return [picture for tree in self.classes.get(name, ()) for picture in tree.pictures]


def picture_source(
    root: str,
    *,
    channels: int,
    val_share: float,
    test_share: float,
    split_seed: int,
    given: Given | None = None,
    samples: int = 1,
    args: Args,
) -> Source:
    """One item a picture.

    Args:
        root: The folder.
        channels: 3 (colour) or 1 (grey).
        val_share: Share of the pictures that becomes val, where there are no split folders; share of train, where
            there is "train" but no "val".
        test_share: Share that becomes test, where there are no split folders.
        split_seed: Of the random assignment.
        given: The folders of splits that the user names.
        samples: Samples of an item.
        args: For `read`, of every item.

    Raises:
        ValueError: The folder has another layout, or a value is not allowed.
    """
    check_channels(channels)
    try:
        layout = find_splits(root, given)
        splits, warnings = _list(root, layout)
    except ValueError as error:
        found = looks_like(root)
        raise ValueError(
            f"{error}{' ' if str(error).endswith('?') else '. '}{found}" if found else str(error)
        ) from None
    classes = list(splits["train"].classes)
    items = {split: list(_items(root, classes, of, samples, args)) for split, of in splits.items()}
    if "val" not in items:
        pool = items.pop("train")
        whole = layout.folders.get("train", [""]) == [""] and "test" not in items
        assigned = assign_splits(
            [item.targets[0] for item in pool],
            val_share=val_share,
            test_share=test_share if whole else 0.0,
            seed=split_seed,
            what=printable(root),
        )
        items |= {split: [pool[position] for position in positions] for split, positions in assigned.items()}
    return Source(classes=classes, channels=channels, splits=items, warnings=warnings)


def scored_source(
    root: str, classes: Sequence[str], *, channels: int, given: Given, samples: int = 1, args: Args
) -> Source:
    """One item a picture of data that a run is scored on: the folders as they are, whatever splits there are.

    Args:
        root: The folder.
        classes: Those of the run.
        channels, given, samples, args: As `picture_source` takes them.

    Raises:
        ValueError: The folder has another layout.
    """
    folders = find_scored(root, given, classes)
    splits = {split: _read(root, split, of) for split, of in (folders or {ALL: [""]}).items()}
    warnings: list[str] = []
    if not folders:
        splits = _classes_first(splits[ALL], warnings) or splits
    without = [split for split, of in splits.items() if not of.classes]
    if len(without) == len(splits):
        _check_class_folders(splits[without[0]])
    for split in without:  # pictures without classes cannot be scored
        warnings.append(f"{splits.pop(split).where} holds no class folders and is left out")
    names = sorted({name for of in splits.values() for name in of.classes if of.pictures(name)})
    items = {split: list(_items(root, names, of, samples, args)) for split, of in splits.items()}
    warnings += [said for of in splits.values() for said in _say_passed(of)]
    return Source(classes=names, channels=channels, splits=items, warnings=warnings)


def _items(root: str, classes: Sequence[str], of: _Split, samples: int, args: Args) -> Iterator[Item]:
    for label, class_name in enumerate(classes):
        targets = [label] * samples
        for name in of.pictures(class_name):
            yield Item(path=f"{root}/{name}", name=name, targets=targets, args=args)


# ---- listing ----


def _list(root: str, layout: Layout) -> tuple[dict[str, _Split], list[str]]:
    """The class folders of each split, and what to say of them. Raises ValueError."""
    folders = layout.folders or {"train": [""]}
    everywhere = [folder for of in folders.values() for folder in of]
    splits = {split: _read(root, split, of, everywhere) for split, of in folders.items()}
    warnings = list(layout.warnings)
    if splits.get("test") and (why := _unlabelled(splits["test"], splits["train"])):
        warnings.append(f"{splits.pop('test').where} {why}")
    warnings += [said for name in layout.left for said in _say_left(root, name, splits["train"])]
    if not layout.given:
        _check_masks(splits["train"])
    if not layout.folders:
        splits = _classes_first(splits["train"], warnings) or splits
    elif "" not in everywhere and (loose := list_folder(root).pictures):
        warnings.append(
            f"{len(loose)} pictures beside the splits in {printable(root)} are left out: {shortened(loose, 3)}"
        )
    for of in splits.values():
        _check_class_folders(of)
    if not layout.given:
        warnings += _check_places(splits["train"])
    warnings += _check_classes(splits)
    for of in splits.values():
        warnings += _say_passed(of)
    return splits, warnings


def _read(root: str, split: str, folders: Sequence[str], everywhere: Sequence[str] = ()) -> _Split:
    """The class folders in some folders; `everywhere`: those of all splits, which are no classes."""
    where = [descend(root, folder, split) for folder in folders]
    found = _Split(" and ".join(printable(os.path.join(root, folder).rstrip("/")) for folder in where))
    found.others += list_folder(root).others if "" not in where else []
    trees: dict[str, list[Tree]] = {}
    for folder in where:
        listing = list_folder(os.path.join(root, folder))
        beside = {other.split("/")[0] for other in everywhere} if folder == "" else set()
        names = [name for name in listing.folders if name not in beside]
        for name in names:
            tree = walk(root, f"{folder}/{name}" if folder else name)
            if masks := masks_beside(tree):
                found.masks += sorted(masks)
                tree.pictures = [picture for picture in tree.pictures if picture not in masks]
                holding = {f"{os.path.dirname(picture)}/" for picture in tree.pictures}
                tree.folders = [
                    below for below in tree.folders if any(at.startswith(f"{tree.root}/{below}/") for at in holding)
                ]
            found.again += tree.again
            if tree.pictures or not tree.again:  # no class where runs alone lie
                trees.setdefault(printable(composed(name)), []).append(tree)
        found.two_forms += [name for name, count in Counter(map(composed, names)).items() if count > 1]
        found.loose += [f"{folder}/{name}" if folder else name for name in listing.pictures]
        found.others += listing.others
    found.classes = {name: trees[name] for name in sorted(trees)}
    return found


def _unlabelled(of: _Split, train: _Split) -> str | None:
    """Why a test folder is left out: it holds nothing, pictures alone, or one folder of them that is no class."""
    count = len(of.loose) + sum(len(of.pictures(name)) for name in of.classes)
    if not count:
        return "holds no pictures: it is left out as a test split"
    known = set(map(_spelling, train.classes))
    if of.classes and (of.loose or len(of.classes) > 1 or _spelling(next(iter(of.classes))) in known):
        return None
    which = f" but for {shortened(list(of.classes))}, which train lacks" if of.classes else ""
    left = "it is left out as a test split; trainers predict takes it"
    return f"holds {count} pictures without class folders{which}: {left}"


def _classes_first(of: _Split, warnings: list[str]) -> dict[str, _Split] | None:
    """Splits below the class folders, cat/train and cat/test; None where not all classes have them."""
    if len(of.classes) == 1:  # the folder in which the data set lies
        return None
    found: dict[str, _Split] = {}
    having = []
    for name, trees in of.classes.items():
        top = sorted({folder for tree in trees for folder in tree.folders if "/" not in folder})
        by_name = split_names(top)
        if "train" not in by_name.values() or len(set(by_name.values())) < 2:
            continue
        having.append(name)
        for tree in trees:
            for split in (split for split in SPLITS if split in by_name.values()):
                below = {folder for folder, each in by_name.items() if each == split}
                pictures = [picture for picture in tree.pictures if tree.top(picture) in below]
                part = found.setdefault(split, _Split(f"{of.where}/<class>/{'|'.join(sorted(below))}"))
                part.classes.setdefault(name, []).append(Tree(pictures=pictures))
    if not having:
        return None
    if len(having) < len(of.classes):
        rest = [name for name in of.classes if name not in having]
        raise ValueError(
            f"the class folders {shortened(having)} in {of.where} hold train and other splits, {shortened(rest)} not: "
            "splits lie above all class folders, <split>/<class>/*, or in each of them, <class>/<split>/*; move them, "
            "or give --dataset-args train=. to take all pictures of a class folder together"
        )
    _check_below_splits(of, having, found, warnings)
    taken = {split: sum(len(part.pictures(name)) for name in part.classes) for split, part in found.items()}
    left = sum(len(of.pictures(name)) for name in of.classes) - sum(taken.values())
    warnings.append(
        f"the class folders in {of.where} hold splits: taken are {', '.join(f'{n} for {s}' for s, n in taken.items())}"
        + (f", left out {left} pictures outside these" if left else "")
        + "; --dataset-args train=. takes all together"
    )
    return found


# ---- checks ----


def _check_below_splits(of: _Split, having: Sequence[str], found: Mapping[str, _Split], warnings: list[str]) -> None:
    """Says so, or asks, where the splits in all class folders hold folders of equal names: fold1/train/cat."""
    names = {split: part.where.rpartition("/")[2].split("|") for split, part in found.items()}
    below = [
        {inner for tree in of.classes[name] for folder in tree.folders for inner in _inside(folder, names["train"])}
        for name in having
    ]
    shared = sorted(set.intersection(*below)) if len(below) > 1 else []
    if len(shared) < 2:
        return
    several = " ".join(
        f"{split}={','.join(f'{name}/{folder}' for name in having for folder in folders)}"
        for split, folders in names.items()
    )
    holds = f"{of.where} holds {shortened(having)}, each with splits that hold the folders {shortened(shared)}"
    if all(map(may_be_split, having)):
        raise ValueError(
            f"{holds}: are these the parts of one data set, or its classes? Say which is which: --dataset-args "
            f"{several} takes them together, train=. makes them classes"
        )
    warnings.append(f"{holds}, which count for nothing. If those are the classes, give --dataset-args {several}")


def _inside(folder: str, splits: Sequence[str]) -> list[str]:
    """The name of a folder that lies in that of a split."""
    parts = folder.split("/")
    return parts[1:] if len(parts) == 2 and parts[0] in splits else []


def _check_masks(of: _Split) -> None:
    """Raises ValueError where class folders are those of pictures and of their masks."""
    found = find_pairs_of_folders({name: of.pictures(name) for name in of.classes})
    if found:
        raise ValueError(
            f"the folders in {of.where} are no classes: {found[1]} holds masks of the pictures in {found[0]}, by the "
            "names of the folders and of the files (where they are classes, say --dataset-args train=FOLDER, the data "
            f"folder itself as train=.){_say_inner(of, found[0])}"
        )


def _check_class_folders(of: _Split) -> None:
    """Raises ValueError where there are none, or pictures and masks."""
    if not of.classes:
        raise ValueError(
            f"{of.where} holds {len(of.loose)} pictures and no class folders; put the pictures of each class in a "
            f"folder named after it, <class>/*{say_unread(of.others)}"
        )
    names = {name.lower() for name in of.classes}
    if len(names) > 1 and names & IMAGES and names & (MASKS | LABELS) and names <= IMAGES | MASKS | LABELS:
        inner = "".join(_say_inner(of, name) for name in of.classes if name.lower() in IMAGES)
        raise ValueError(f"the folders in {of.where} are no classes: {shortened(list(of.classes))}{inner}")


def _check_places(of: _Split) -> list[str]:
    """What to say of class folders in several places. Raises ValueError where that cannot be told from classes."""
    cores = {name: _core(trees[0]) for name, trees in of.classes.items()}
    above = os.path.dirname(next(iter(of.classes.values()))[0].root)
    own = above or "."
    for name, (below, inner) in cores.items():
        same = sorted((inner & of.classes.keys()) - {name})
        if same and (len(same) > 1 or same == sorted(inner)):
            place = f"{of.where}/{os.path.relpath(below, own)}"
            what = ("folders", "folders of these names") if len(same) > 1 else ("folder", "a folder of that name")
            raise ValueError(
                f"{of.where} holds the class {what[0]} {shortened(same)}, and {place} holds {what[1]} too: class "
                "folders lie in one place. Move the pictures together, or say where they lie: --dataset-args "
                f"train={own},{below} takes both places, train={own} makes {name} a class"
            )
    deep = {name: inner for name, (_, inner) in cores.items() if inner}
    shared = sorted(set.intersection(*deep.values())) if len(deep) > 1 else []
    if len(deep) == 1 and len(cores) > 1:
        [(name, inner)] = deep.items()
        if len(inner) > 1 and may_be_split(name):
            return [f"{name} in {of.where} is taken as a class{_say_inner(of, name)}"]
    if len(shared) < 2 or len(deep) < len(cores):
        return []
    places = [below for below, _ in cores.values()]
    several = ",".join(places)
    kinds = {name.lower() for name in shared}
    numbered = len({re.sub(r"\d+", "", name) for name in deep}) == 1  # VOC2007 and VOC2012
    if numbered and kinds & IMAGES and kinds & LABELS:
        raise ValueError(f"{shortened(list(deep))} in {of.where} are no classes: each holds {shortened(shared)}")
    if all(may_be_split(name) for name in deep):
        raise ValueError(
            f"{of.where} holds {shortened(list(deep))}, each with the folders {shortened(shared)}: are these the "
            f"splits or parts of one data set, or its classes? Say which is which: --dataset-args train={several} "
            f"takes them together, as in train={places[0]} val={places[-1]} they are splits, and "
            f"train={own} makes them classes"
        )
    return [
        f"the classes are {shortened(list(deep))}, the folders in {of.where}; each holds the folders "
        f"{shortened(shared)}, which count for nothing. If those are the classes, give --dataset-args train={several}"
    ]


def _core(tree: Tree) -> tuple[str, set[str]]:
    """Where in a class folder several folders lie beside each other, and their names: amazon/images and its classes."""
    at, held = "", {folder for folder in tree.folders if "/" not in folder}
    while len(held) == 1:
        at += f"{held.pop()}/"
        held = {folder[len(at) :] for folder in tree.folders if folder.startswith(at) and "/" not in folder[len(at) :]}
        held = set() if any(os.path.dirname(picture) == f"{tree.root}/{at}"[:-1] for picture in tree.pictures) else held
    place = f"{tree.root}/{at}".rstrip("/") if held else tree.root
    return place, {composed(name) for name in held or {folder for folder in tree.folders if "/" not in folder}}


def _check_classes(splits: Mapping[str, _Split]) -> list[str]:
    train = splits["train"]
    classes = list(train.classes)
    empty = [name for name in classes if not train.pictures(name)]
    if empty:
        filled = [name for name in classes if name not in empty]
        others = sorted(os.path.basename(other) for tree in train.classes[empty[0]] for other in tree.others)
        others = others or sorted(folder for tree in train.classes[empty[0]] for folder in tree.folders)
        more = f", as do {shortened(empty[1:])}" if empty[1:] else ""
        raise ValueError(
            f"the class folder {train.where}/{empty[0]} holds no pictures (it holds {shortened(others, 3) or 'nothing'}"
            f"){more}; add some ({' '.join(ending[1:] for ending in SUFFIXES)}) or remove the folder"
            f"{_say_inner(train, filled[0]) if len(filled) == 1 else ''}"
        )
    if len(classes) == 1:
        held = sorted({folder for tree in train.classes[classes[0]] for folder in tree.folders if "/" not in folder})
        inner = f" {train.where}/{classes[0]} holds the folders {shortened(held)}: is it that?" if held else ""
        raise ValueError(
            f"{train.where} holds one class folder only, {classes[0]!r}; training needs two or more. Is this the "
            f"folder in which the class folders, or train/ val/ test/, lie?{inner}"
        )
    warnings = _say_alike(train)
    spelled = {_spelling(name): name for name in classes}
    for of in splits.values():
        unknown = [name for name in of.classes if of.pictures(name) and name not in train.classes]
        if unknown:
            lists = ""
            if len(of.classes) == 1:  # val/images/*, as of tiny-imagenet
                lists = ". If it holds pictures of all classes, put them into class folders" + say_unread(of.others)
            known = ((name, spelled.get(_spelling(name))) for name in unknown)
            alike = [f"{name} is {other} but for its spelling" for name, other in known if other]
            raise ValueError(
                f"{of.where} holds classes that train lacks: {shortened(unknown)}"
                f"{f' ({shortened(alike)})' if alike else ''}; train has {shortened(classes)}. Rename or remove them, "
                f"or add them to train{lists}"
            )
        lacking = [name for name in classes if not of.pictures(name)]
        if len(lacking) == len(classes):
            raise ValueError(f"{of.where} holds no pictures; add some or remove the folder")
        if lacking:
            warnings.append(
                f"{of.where} holds no pictures of {len(lacking)} of {len(classes)} classes: {shortened(lacking)}"
            )
    return warnings


# ---- what is said ----


def _say_left(root: str, name: str, train: _Split) -> list[str]:
    try:
        inner = walk(root, name)
    except ValueError:  # what is left out need not be sound
        return [f"{printable(os.path.join(root, name))} is left out: its name is that of no split"]
    if not inner.pictures:
        return []
    same = {composed(folder) for folder in inner.folders} & train.classes.keys()
    which = f", though it holds the class folders {shortened(sorted(same))}" if same else ""
    return [
        f"{printable(os.path.join(root, name))} with {len(inner.pictures)} pictures is left out{which}: its name is "
        "that of no split; --dataset-args train=FOLDER val=FOLDER test=FOLDER says otherwise"
    ]


def _say_inner(of: _Split, name: str) -> str:
    """Where a folder that is none of several classes holds folders, as images/<class>/* beside lists."""
    held = _core(of.classes[name][0])[1] if name in of.classes else set()
    return f". {of.where}/{name} holds the folders {shortened(sorted(held))}: is it that?" if len(held) > 1 else ""


def _say_alike(of: _Split) -> list[str]:
    """Folders of one split whose names hardly differ."""
    warnings = [
        f"{of.where} holds two folders called {name}, whose accents are in two Unicode forms (NFC and NFD); they are "
        "one class"
        for name in of.two_forms
    ]
    first: dict[str, str] = {}
    for name in of.classes:
        other = first.setdefault(_spelling(_COPY.sub("", name)), name)
        if other != name:
            warnings.append(
                f"the class folders {other!r} and {name!r} in {of.where} look alike and are two classes; if they are "
                "one, move their pictures together"
            )
    return warnings


_COPY = re.compile(r"( - copy| copy( \d+)?| \(\d+\)| \(copy( \d+)?\))+$", re.IGNORECASE)
"""What systems put after the name of a folder's copy."""


def _spelling(name: str) -> str:
    """What remains of a name without case, spaces and the like."""
    folded = unicodedata.normalize("NFKC", name).casefold().replace("_", " ")
    seen = "".join(each for each in folded if unicodedata.category(each) != "Cf")  # not what takes no room
    return re.sub(r"(?<=\w)[\s-]+(?=\w)", " ", seen).strip()


def _say_passed(of: _Split) -> list[str]:
    """Pictures that lie loose, and files that a person may take for pictures."""
    warnings = []
    trees = [tree for several in of.classes.values() for tree in several]
    if of.loose:
        names = [os.path.basename(name) for name in of.loose]
        warnings.append(
            f"{len(names)} pictures beside the class folders in {of.where} are left out: {shortened(names, 3)}"
        )
    if of.masks:
        warnings.append(
            f"{len(of.masks)} files in class folders are left out, as they are masks of pictures beside them by their "
            f"names: {shortened(of.masks, 3)}; where they are pictures of the class, give them other names"
        )
    if of.again:
        warnings.append(f"folders of pictures that are taken already, or of runs, are left out: {shortened(of.again)}")
    unread = left_out(other for tree in trees for other in tree.others)
    if unread:
        warnings.append(f"{of.where}: {unread}")
    return warnings
