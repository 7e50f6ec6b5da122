"""Where the pictures of data sets with boxes lie: those of each split, and the one that a file of labels means."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

from trainers.datasets import ALL
from trainers.datasets._looks_like import IMAGES, LABELS, MASKS
from trainers.datasets._splits import SPLITS, WORDS, Given, find_scored, find_splits
from trainers.datasets._yolo_files import LISTS
from trainers.formatting import composed, printable, shortened
from trainers.listing import is_picture, list_folder, walk, words

NO_PICTURES = MASKS | {"segmentationobject", "overlays", "visualizations", "runs"}
"""Folders, in lower case, whose pictures were made of others."""
TELLING = (".yaml", ".yml", ".data")
"""Endings of files that say where the pictures lie, from the folder that they are in."""
UNLABELLED = "is left out as a test split; trainers predict takes its pictures"


def split_word(name: str) -> str | None:
    """The split that a name has the word of: instances_train2017; None for none, and for several."""
    found = {WORDS[token] for token in words(name) if token in WORDS}
    return found.pop() if len(found) == 1 else None


def split_of_folders(path: str) -> str | None:
    """The split that the innermost folder of a path that says any says."""
    said = (split_word(folder) for folder in reversed(os.path.dirname(path).split("/")))
    return next((split for split in said if split), None)


def descend_alone(root: str) -> str:
    """The folder itself, or the one in it where nothing else says what the data is, as archives have it."""
    listing = list_folder(root)
    telling = any(name.lower() in LISTS or name.lower().endswith(TELLING) for name in listing.others)
    if len(listing.folders) != 1 or listing.pictures or telling:
        return root
    (inner,) = listing.folders
    known = inner.lower() in IMAGES | LABELS or split_word(inner) is not None
    return root if known else descend_alone(f"{root}/{inner}")


def images_folder(root: str) -> str | None:
    """The folder in `root` that is called images or the like, and holds pictures; None for none, and for several."""
    found = [name for name in list_folder(root).folders if name.lower() in IMAGES]
    holding = [name for name in found if len(found) == 1 or walk(root, name).pictures]
    return holding[0] if len(holding) == 1 else None


def own_pictures(paths: Iterable[str]) -> list[str]:
    """Without those that lie in folders of masks, or of pictures that programs drew."""
    return [path for path in paths if NO_PICTURES.isdisjoint(path.lower().split("/")[:-1])]


def find_folders(root: str, given: Given, holds: str, *, scored: bool) -> tuple[dict[str, list[str]], list[str]]:
    """The folders of the pictures of each split, below `root`, and what to say of them.

    Args:
        root: The folder of the data set.
        given: What the user says.
        holds: What lies in the folder of a split, for errors.
        scored: Whether no train split is needed.

    Returns:
        Split -> folders, "" for `root`; without splits all is "train", or ALL where it is to be scored.
    """
    images = images_folder(root)
    where, start = (root, "") if images is None or any(given.values()) else (f"{root}/{images}", f"{images}/")
    warnings: list[str] = []
    if scored:
        folders = find_scored(where, given)
    else:
        layout = find_splits(where, given, holds, needs_train=any(given.values()))
        folders, warnings = layout.folders, list(layout.warnings)
        if folders and "train" not in folders:
            find_splits(where, given, holds)  # raises
        warnings += [
            f"{printable(f'{where}/{name}')} is left out: its name is that of no split"
            for name in layout.left
            if name.lower() not in NO_PICTURES and walk(where, name).pictures
        ]
    if not folders:
        return {ALL if scored else "train": [images or ""]}, warnings
    return {
        split: [f"{start}{each}".rstrip("/") for each in folders[split]] for split in SPLITS if split in folders
    }, warnings


def below(paths: Iterable[str], folders: Sequence[str]) -> list[str]:
    """Those of some paths that lie in one of some folders."""
    starts = tuple(f"{folder}/" if folder else "" for folder in folders)
    return [path for path in paths if path.startswith(starts)]


class Index:
    """Pictures below a folder, found by what labels call them."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in paths:
            name = composed(os.path.basename(path))
            self._by_name.setdefault(name, []).append(path)
            self._by_stem.setdefault(os.path.splitext(name)[0], []).append(path)

    def find(self, name: str, *, near: str | None = None, split: str | None = None) -> list[str]:
        """The pictures that a name may mean: a path from anywhere, whose last parts count; its ending may be missing.

        Args:
            name: As the labels have it.
            near: The folder of the labels: pictures in it go before others.
            split: That of the labels: pictures in folders called so go before others.
        """
        wanted = [part for part in composed(name).replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not wanted:
            return []
        names = dict.fromkeys((wanted[-1], composed(unquote(wanted[-1]))))
        found = next((self._by_name[each] for each in names if each in self._by_name), None)
        if found is None:
            stems = (stem for each in names for stem in (each, os.path.splitext(each)[0] if is_picture(each) else each))
            found = next((self._by_stem[stem] for stem in stems if stem in self._by_stem), [])
        said = split_of_folders("/".join(wanted))
        found = [path for path in found if not said or split_of_folders(path) in (None, said)]
        if len(found) > 1:
            common = {path: _common_end(wanted[:-1], composed(path).split("/")[:-1]) for path in found}
            found = [path for path in found if common[path] == max(common.values())]
        if len(found) > 1 and near is not None:
            found = [path for path in found if path.startswith(f"{near}/" if near else "")] or found
        if len(found) > 1 and split is not None:
            found = [path for path in found if split_of_folders(path) == split] or found
        return found


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """How many of the last parts are the same."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((count for count, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def say_unlisted(root: str, pictures: Sequence[str], taken: Iterable[str], where: str) -> list[str]:
    """What to say of pictures that no label names."""
    rest = sorted(set(pictures) - set(taken))
    what = "picture that stands" if len(rest) == 1 else "pictures that stand"
    said = f"{len(rest):,} {what} in no {where} in {printable(root)} left out, such as {shortened(rest, 2)}"
    return [said.replace(" left out", " are left out" if len(rest) > 1 else " is left out")] if rest else []


def tell_missing(name: str, found: Sequence[str], root: str) -> str:
    """Why no picture can be taken for a name, and what to do."""
    if found:
        return f"{printable(name)} may be {shortened(found, 3)}; write the path below {printable(root)}, or remove one"
    return f"there is no picture {printable(name)} below {printable(root)}; add it, or remove it from the labels"


def given_files(root: str, files: Sequence[str], given: Mapping[str, object]) -> dict[str, list[str]]:
    """The files that the user names for splits, as paths below `root`; a folder stands for those in it."""
    found: dict[str, list[str]] = {}
    for split, value in given.items():
        for each in [] if value is None else value if isinstance(value, list | tuple) else [value]:
            path = os.path.normpath(str(each))
            of = [path] if path in files else [file for file in files if file.startswith(f"{path}/")]
            if not of:
                raise ValueError(
                    f"{split}={printable(str(each))} is none of the files of annotations in {printable(root)}: "
                    f"{shortened(files) or 'there are none'}; give --dataset-args {split}=FILE"
                )
            found.setdefault(split, []).extend(of)
    return found
