"""Which folders are train, val and test: by their names, or as the user says.

Names that people use in many ways (training_set, seg_train, train2017, dev, eval) are understood, and what was
understood is said. Where two folders may be meant, or none, the user is asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainers.formatting import composed, printable, shortened
from trainers.listing import list_folder, words

SPLITS = ("train", "val", "test")
PLAIN = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names that go without saying, in lower case -> the split."""
WORDS = {
    **PLAIN,
    "trainval": "train",
    "trn": "train",
    "validate": "val",
    "validating": "val",
    "dev": "val",
    "devel": "val",
    "development": "val",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
    "evaluate": "test",
    "holdout": "test",
    "heldout": "test",
}
"""Words that name a split, alone or with what follows."""
AROUND = (
    "datasets? data sets? images? imgs? img pics? pictures? photos? files? folders? dir splits? subset full all final"
)
"""Words, as patterns, that say nothing of what a folder holds."""
_AROUND = f"(?:{'|'.join(AROUND.split())})"
_WORD = f"({'|'.join(sorted(WORDS, key=len, reverse=True))})"
_NAME = re.compile(rf"(?:{_AROUND}|\d)*{_WORD}(?:{_AROUND}|\d)*")
PARTS = re.compile(
    r"(parts?|folds?|batch(es)?|chunks?|shards?|subsets?|sets?|splits?|groups?|archives?|volumes?|dis[ck]s?|folders?|"
    r"datasets?|data|images?)[\W_]*\d*[a-z]?"
)
"""Names of folders into which people cut a data set."""
Folders = str | Sequence[str] | None
"""The folder, or the folders, of a split, as a user names them; None: by its name."""
Given = Mapping[str, Folders]
"""Split -> what the user says of it."""


@dataclass
class Layout:
    """Where the splits of a data set lie."""

    folders: dict[str, list[str]] = field(default_factory=dict)
    """Split -> its folders, as paths below the root, "" for the root itself; empty where there are no splits."""
    left: list[str] = field(default_factory=list)
    """Folders beside them that are part of none."""
    warnings: list[str] = field(default_factory=list)
    given: bool = False
    """Whether the user named the folder of train: then nothing is guessed about it."""


def find_splits(root: str, given: Given | None = None, holds: str = "<class>/*", *, needs_train: bool = True) -> Layout:
    """The folders of the splits.

    Args:
        root: The folder of the data set.
        given: What the user says of it.
        holds: What lies in the folder of a split, for errors.
        needs_train: Whether there must be a train split.

    Raises:
        ValueError: Several folders may be one split, there is no train, or a folder that the user names is not there.
    """
    said = {split: _named(root, split, value) for split, value in (given or {}).items() if value is not None}
    names = [name for name in list_folder(root).folders if not any(name in folders for folders in said.values())]
    by_name = {
        name: split
        for name, split in split_names(names).items()
        if name.lower() in PLAIN or _holds_pictures(os.path.join(root, name))  # results may lie in eval/
    }
    if not said and not _are_splits(root, names, by_name):
        return Layout(warnings=_say_classes(root, by_name))
    found: dict[str, list[str]] = {}
    for name in names:
        if (split := by_name.get(name)) and split not in said:
            found.setdefault(split, []).append(name)
    for split, folders in found.items():
        if len(folders) > 1:  # logs may lie in training/
            holding = [name for name in folders if _holds_pictures(os.path.join(root, name))]
            found[split] = folders = holding or folders
        if len(folders) > 1:
            raise ValueError(
                f"{printable(root)} holds {len(folders) if len(folders) > 2 else 'two'} folders for {split}, "
                f"{' and '.join(map(printable, folders))}; keep one of them, or say which: "
                f"--dataset-args {split}={_word(folders[0])}, or {split}={_word(','.join(folders))} for all "
                f"(each holds {holds.replace('train/', '')})"
            )
    found |= said
    if needs_train and "train" not in found:
        raise ValueError(_no_train(root, names, found, holds))
    taken = {folder.split("/")[0] for folders in found.values() for folder in folders}
    left = [name for name in names if name not in taken] if "" not in taken else []
    return Layout(found, left, _say(root, found, said), given="train" in said)


def split_names(names: Sequence[str]) -> dict[str, str]:
    """The names, of folders beside each other, that mean a split -> the split.

    A word that two splits share says nothing: seg_train and seg_test, asl_alphabet_train and asl_alphabet_test.
    """
    found: dict[str, str] = {}
    shared: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        tokens = words(name)
        if match := _NAME.fullmatch("".join(tokens)):
            found[name] = WORDS[match[1]]
            continue
        saying = [token for token in tokens if _NAME.fullmatch(token)]
        match = _NAME.fullmatch(saying[0]) if len(saying) == 1 else None
        if match:
            rest = tuple(token for token in tokens if token != saying[0] and not token.isdigit())
            shared.setdefault(rest, {})[name] = WORDS[match[1]]
    for of in shared.values():
        if len(set(of.values())) > 1:
            found |= of
    return found


def find_scored(root: str, given: Given, known: Sequence[str] = ()) -> dict[str, list[str]]:
    """The folders of the splits of data that a run is scored on: there may be one alone, such as test_set.

    Args:
        root: The folder of the data.
        given: What the user said of the training data; folders that are not here do not count.
        known: Names of folders that are none, such as those of the run's classes.

    Raises:
        ValueError: Several folders may be one split.
    """
    here = {split: value for split, value in given.items() if value is not None and _are_here(root, value)}
    if folders := find_splits(root, here, needs_train=False).folders:
        return folders
    names = list_folder(root).folders
    if any(composed(name) in known for name in names):
        return {}
    saying = {name: [token for token in words(name) if token in WORDS] for name in names}
    splits = {name: WORDS[found[0]] for name, found in saying.items() if len(found) == 1}
    if not splits or len(set(splits.values())) < len(splits):
        return {}
    return {split: [name] for name, split in splits.items()}


def _are_here(root: str, value: object) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    return all(os.path.isdir(os.path.join(root, str(each))) for each in several)


def may_be_split(name: str) -> bool:
    """Whether a name has the word for a split in it, or is one of those into which people cut a data set."""
    return any(token in WORDS for token in words(name)) or bool(PARTS.fullmatch(composed(name).lower()))


def descend(root: str, folder: str, split: str) -> str:
    """The folder itself, or the one of the same meaning in it where it holds nothing else: seg_train/seg_train."""
    listing = list_folder(os.path.join(root, folder))
    if folder and len(listing.folders) == 1 and not listing.pictures:
        inner = listing.folders[0]
        if inner == os.path.basename(folder) or split_names([inner]).get(inner) == split:
            return descend(root, f"{folder}/{inner}", split)
    return folder


def _are_splits(root: str, names: Sequence[str], by_name: Mapping[str, str]) -> bool:
    """Whether folders that are called like splits are such: a class may be called train, the vehicle, or test tube."""
    plain = [name for name in by_name if name.lower() in PLAIN]
    if len(plain) > 1 or any(list_folder(os.path.join(root, name)).folders for name in plain):
        return True
    splits = set(by_name.values())
    if len(by_name) == len(names) and "train" in splits and len(splits) > 1:
        return True
    deep = [name for name in by_name if list_folder(os.path.join(root, name)).folders]
    return any(by_name[name] == "train" for name in deep) or (len(deep) > 1 and len(deep) == len(names))


def _holds_pictures(folder: str, deep: int = 5) -> bool:
    """Whether there is a picture, so many folders deep; what is wrong with the folder is said by whoever takes it."""
    try:
        listing = list_folder(folder)
    except ValueError:
        return True
    inner = (os.path.join(folder, name) for name in listing.folders)
    return bool(listing.pictures) or (deep > 0 and any(_holds_pictures(each, deep - 1) for each in inner))


def _named(root: str, split: str, value: object) -> list[str]:
    """The folders that the user names for a split, as paths below the root."""
    folders = []
    for each in value if isinstance(value, list | tuple) else [value]:
        folder = os.path.normpath(str(each))
        inside = not os.path.isabs(folder) and folder.split("/")[0] != ".."
        if not inside or not os.path.isdir(os.path.join(root, folder)):
            held = shortened(list_folder(root).folders) or "no folders"
            raise ValueError(
                f"{split}={printable(str(each))} is no folder in {printable(root)}, which holds {held}; give "
                f"--dataset-args {split}=FOLDER, several as {split}=FOLDER,FOLDER, the data folder itself as {split}=."
            )
        folders.append("" if folder == "." else folder)
    return folders


def _no_train(root: str, names: Sequence[str], found: Mapping[str, Sequence[str]], holds: str) -> str:
    only = ", ".join(printable(folder) for folders in found.values() for folder in folders)
    rest = [name for name in names if not any(name in folders for folders in found.values())]
    meant = next((name for name in rest if may_be_split(name)), rest[0] if rest else None)
    ask = f"; if that is {printable(meant)}, give --dataset-args train={_word(meant)}" if meant else ""
    return f"{printable(root)} holds no train split, only {only}; add train/{holds}{ask}"


def _say(root: str, found: Mapping[str, Sequence[str]], said: Mapping[str, Sequence[str]]) -> list[str]:
    """What was understood by names that do not go without saying."""
    guessed = [folder for split, folders in found.items() if split not in said for folder in folders]
    if all(name.lower() in PLAIN for name in guessed):
        return []
    taken = " ".join(
        f"{split}={_word(','.join(found[split]))}" for split in SPLITS if split in found and split not in said
    )
    return [f"the folders in {printable(root)} are taken as {taken}, by their names; --dataset-args says otherwise"]


def _say_classes(root: str, by_name: Mapping[str, str]) -> list[str]:
    """Of folders that are taken as classes, though several are called like splits."""
    if len(set(by_name.values())) < 2:
        return []
    return [
        f"the folders in {printable(root)} are taken as classes, {shortened(sorted(by_name))} too; where these are "
        "splits, give --dataset-args train=FOLDER val=FOLDER test=FOLDER"
    ]


def _word(text: str) -> str:
    """As one writes it in a shell."""
    return f"'{printable(text)}'" if re.search(r"[^\w./,=+-]", text) else text
