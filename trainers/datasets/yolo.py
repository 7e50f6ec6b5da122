"""Pictures with boxes in the form of YOLO: a text file for each picture, a line for each object.

    data/data.yaml                          or  data/train/images/*, train/labels/*.txt     or  data/*.jpg, *.txt
         images/train/*, images/val/*           valid/images/*, valid/labels/*.txt              classes.txt
         labels/train/*.txt, labels/val/*.txt   data.yaml

A line is `class x y width height`, the middle and the sides as shares of the picture, or `class x1 y1 x2 y2 x3 y3 ...`,
a polygon, whose box is taken; with `masks` each line must be one, and its pixels are the object's mask. `data` is the
folder or its data.yaml, whose `train`, `val`, `test`, `path`, `names` and `nc` are understood: folders, lists such as
train.txt, or several; as written, or by their last parts where they come from another machine. Without it splits are
folders, by names as people write them, or train.txt and the like; names stand in classes.txt, obj.names or `classes`.
Without splits `val_share` and `test_share` are split off, seeded; with train but no val, `val_share` of train becomes
val.

The labels of `images/x.jpg` lie beside the picture, or where a folder `labels` stands in place of `images`. A picture
without labels is background. Licence: that of the pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from trainers.datasets import ALL, Item, Objects, Source
from trainers.datasets._files import existing_folder
from trainers.datasets._looks_like import IMAGES, LABELS, looks_like
from trainers.datasets._object_folders import UNLABELLED, below, descend_alone, find_folders, own_pictures, say_unlisted
from trainers.datasets._objects import (
    ROUNDING,
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
from trainers.datasets._outlines import Outline
from trainers.datasets._splits import SPLITS, WORDS, Folders, Given
from trainers.datasets._yolo_files import (
    NAMES,
    NO_LABELS,
    YAMLS,
    Line,
    Yaml,
    lines_of,
    list_of,
    names_in,
    parse_line,
    read_darknet,
    read_yaml,
    resolve,
)
from trainers.formatting import composed, printable, shortened
from trainers.listing import list_folder, walk
from trainers.pixels import Pixels
from trainers.values import Plain

HOLDS = "data.yaml, images/train/* and labels/train/*.txt, or train/images/* and train/labels/*.txt"


class _Set(NamedTuple):
    """What is found of a data set, before labels are read."""

    root: str
    splits: dict[str, list[str]]
    """Split -> paths of pictures."""
    texts: dict[str, str]
    """Path of each text file without its ending, accents in one form -> path."""
    classes: list[str] | None
    keypoints: int | None
    warnings: list[str]


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
    classes: Sequence[str] | str | None = None,
    box_orientation: str | None = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
    masks: bool = False,
    layers: int = 4,
) -> Source:
    """List the pictures and their objects.

    Args:
        data: the folder, or its data.yaml.
        channels: 3 (colour) or 1 (grey).
        val_share: share of the pictures, or of train, that becomes val, where there is none.
        test_share: share that becomes test, where there are no splits.
        split_seed: of the random assignment.
        train, val, test: the folders of the pictures of the splits, below `data`; None: as data.yaml or names say.
        classes: the names of the classes, from 0 on; None: as data.yaml or classes.txt says.
        box_orientation: of pictures with an EXIF orientation: "upright": boxes are of the upright picture; "stored":
            of its pixels as stored; None: upright, and it is said.
        value_range, alpha: as of image_folder.
        masks: whether objects have masks, of their polygons.
        layers: for masks that lie over one another, 1 to 6; where they do not suffice, the larger mask is cut.

    Raises:
        ValueError: a line cannot be read, naming file and line, or a value is not allowed.
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
    return _list(data, {"train": train, "val": val, "test": test}, classes, how, known=None)


def scored(data: str | None, known: Sequence[str], **args: Plain) -> Source:
    """List pictures that a run of the classes `known` is scored on; where no file names classes, they are these."""
    return _list(data, {split: args.get(split) for split in SPLITS}, args.get("classes"), how_of(args), known=known)


def read(item: Item) -> list[tuple[Pixels, Objects]]:
    """`item.args` may hold "min_size" (height, width): see `trainers.decode.decode`."""
    return read_objects(item)


def _list(
    data: str | None, given: Given, classes: Sequence[str] | str | None, how: How, known: Sequence[str] | None
) -> Source:
    names = (
        None
        if classes is None
        else check_names([classes] if isinstance(classes, str) else list(map(str, classes)), "classes")
    )
    found = _find(data, given, names, scored=known is not None)
    warnings = found.warnings
    numbered = found.classes or (None if known is None else list(known))
    intake = Intake()
    labelled = {
        split: _read_labels(found, pictures, numbered, intake, masks=how.masks)
        for split, pictures in found.splits.items()
    }
    for split, (listed, texts) in list(labelled.items()):
        if split == "test" and not texts and len(labelled) > 1:
            warnings.append(f"none of {len(listed):,} pictures of test has a file of labels: it {UNLABELLED}")
            del labelled[split]
        elif not texts:
            raise ValueError(_no_labels(found, split, listed))
    intake.check()
    if numbered is None:
        most = max(
            (number for pictures, _ in labelled.values() for picture in pictures for number in picture.classes),
            default=0,
        )
        numbered = [f"class{number}" for number in range(most + 1)]
        warnings.append(
            f"no file names the classes: they are called {shortened(numbered, 3)}; name them in data.yaml, in "
            "classes.txt, or by --dataset-args classes=NAME,NAME,..."
        )
    warnings += [*intake.warnings(), *_say_left(found, labelled)]
    pictures = {split: listed for split, (listed, _) in labelled.items()}
    if known is not None:
        return scored_source(pictures, numbered, how, warnings)
    return object_source(found.root, pictures, numbered, how, warnings)


# ---- where things lie ----


def find_sign(root: str, others: Sequence[str], pictures: Sequence[str]) -> str | None:
    """The file by which the form shows."""
    tops = (root, descend_alone(root))
    files = [path for path in others if path.lower().endswith((".yaml", ".yml", ".data"))]
    at_top = [path for path in files if os.path.dirname(f"{root}/{path}") in tops]
    for path in at_top:
        if (read_darknet if path.lower().endswith(".data") else read_yaml)(f"{root}/{path}") is not None:
            return path
    texts = _by_stem(others)
    names = _label_folders(texts)
    stems = (stem for path in pictures for stem in _stems(path, names)) if texts else ()
    return next((texts[stem] for stem in stems if stem in texts), None)


def _find(data: str | None, given: Given, classes: list[str] | None, *, scored: bool) -> _Set:
    said, root = _find_yaml(data)
    tree = walk(root, "")
    pictures, others = own_pictures(tree.pictures), list(tree.others)
    warnings: list[str] = []
    places = {} if any(given.values()) else _places(said, root, others, warnings)
    if places:
        splits = {}
        for split, entries in places.items():
            splits[split] = [path for entry in entries for path in _pictures_at(entry, said, root, pictures, warnings)]
        if not scored and "train" not in splits:
            raise ValueError(f"{said.name} in {printable(root)} names no train split; add train: FOLDER to it")
    else:
        folders, warnings = find_folders(root, given, "images/* and train/labels/*", scored=scored)
        splits = {split: [f"{root}/{path}" for path in below(pictures, of)] for split, of in folders.items()}
    texts = [f"{root}/{path}" for path in others]
    for outside in {_around(path) for paths in splits.values() for path in paths if not path.startswith(f"{root}/")}:
        texts += [f"{outside}/{path}" for path in walk(outside, "").others]
    outer = os.path.abspath(os.path.expanduser(data or root))
    above = list_folder(outer).others if root.startswith(f"{outer}/") else []
    files = [f"{root}/{path}" for path in others] + [f"{outer}/{name}" for name in above]
    return _Set(root, splits, _by_stem(texts), classes or _find_names(said, files), said.keypoints, warnings)


def _find_yaml(data: str | None) -> tuple[Yaml, str]:
    """What data.yaml or the like says, if there is one, and the folder of the data set."""
    path = os.path.abspath(os.path.expanduser(data)) if data else ""
    if os.path.isfile(path) and path.lower().endswith((".yaml", ".yml", ".data")):
        said = read_darknet(path) if path.lower().endswith(".data") else read_yaml(path)
        if said is None:
            raise ValueError(
                f"{printable(path)} has neither names nor train and val; is it the data.yaml of a data set?"
            )
        return said, said.folder
    root = existing_folder(data, HOLDS)
    held = sorted(os.listdir(root))
    if not any(name.lower().endswith((".yaml", ".yml", ".data")) for name in held):
        root = descend_alone(root)
        held = sorted(os.listdir(root))
    first = [name for name in held if name.lower() in YAMLS] or [
        name for name in held if name.lower().endswith((".yaml", ".yml")) and not name.startswith(".")
    ]
    found = [said for said in (read_yaml(os.path.join(root, name)) for name in first) if said is not None]
    if len(found) > 1:
        raise ValueError(
            f"{printable(root)} holds {shortened([said.name for said in found])}, which all say what the data set is; "
            f"give one of them: --data {os.path.join(printable(root), found[0].name)}"
        )
    darknet = next((name for name in held if name.lower().endswith(".data")), None)
    if not found and darknet:
        found = [read_darknet(os.path.join(root, darknet))]
    return found[0] if found else Yaml("data.yaml", root), root


def _places(said: Yaml, root: str, others: Sequence[str], warnings: list[str]) -> dict[str, list[str]]:
    """Split -> folders and lists, as paths. Raises ValueError for those that are not there."""
    if not said.splits:
        lists = {
            WORDS.get(os.path.splitext(name)[0].lower()): name
            for name in others
            if "/" not in name and name.endswith(".txt")
        }
        return {split: [f"{root}/{lists[split]}"] for split in SPLITS if split in lists} if "train" in lists else {}
    found: dict[str, list[str]] = {}
    elsewhere: list[str] = []
    for split, entries in ((split, said.splits[split]) for split in SPLITS if split in said.splits):
        for entry in entries:
            path = resolve(said, entry)
            written = os.path.normpath(os.path.join(said.folder, said.path, entry))
            if path is None and split == "test":
                warnings.append(f"{said.name}: test: {printable(entry)} is not there, and is left out")
                continue
            if path is None:
                raise ValueError(
                    f"{said.name}: {split}: {printable(entry)} is not there ({printable(written)}); correct it: give "
                    f"folders of pictures, or lists of them, below `path` or beside {said.name}"
                    f"{', or remove that line: a share of train then becomes val' if split == 'val' else ''}"
                )
            if path != written:
                elsewhere.append(f"{split}={printable(os.path.relpath(path, root))}")
            found.setdefault(split, []).append(path)
    if elsewhere:
        warnings.append(
            f"the paths in {said.name} lead elsewhere; they are taken to be those in {printable(root)}: "
            f"{' '.join(elsewhere)}"
        )
    meant = {split: sorted(paths) for split, paths in found.items()}
    for split in ("val", "test"):
        same = split in meant and meant[split] == meant.get("train")
        if same and sorted(said.splits[split]) != sorted(said.splits["train"]):
            raise ValueError(
                f"{said.name}: train and {split} are both taken to be {printable(meant[split][0])}; correct their paths"
            )
    return found


def _pictures_at(place: str, said: Yaml, root: str, pictures: Sequence[str], warnings: list[str]) -> Iterator[str]:
    """The pictures in a folder or a list. Raises ValueError for lines that name none."""
    if os.path.isdir(place):
        relative = os.path.relpath(place, root)
        if relative.split("/")[0] != "..":
            yield from (f"{root}/{path}" for path in below(pictures, ["" if relative == "." else relative]))
        else:
            yield from (f"{place}/{path}" for path in own_pictures(walk(place, "").pictures))
        return
    listed = list(list_of(place, said))
    missing = [(where, line) for where, line, path in listed if not path]
    if missing:
        where, line = missing[0]
        more = (
            f" ({len(missing):,} of {len(listed):,} lines name pictures that are not there)" if len(missing) > 1 else ""
        )
        raise ValueError(f"{where}: there is no picture {printable(line)}{more}; correct the list, or add the picture")
    paths = [path for _, _, path in listed]
    if again := len(paths) - len(set(paths)):
        warnings.append(f"{again:,} lines of {os.path.basename(place)} name a picture again, which is taken once")
    yield from dict.fromkeys(paths)


def _around(path: str) -> str:
    """The folder that holds the pictures and the labels of a picture outside the data set's folder."""
    parts = os.path.dirname(path).split("/")
    last = max((place for place, part in enumerate(parts) if part.lower() in IMAGES), default=len(parts))
    return "/".join(parts[:last])


def _find_names(said: Yaml, others: Sequence[str]) -> list[str] | None:
    """The names of the classes; None: none of the files says them. Raises ValueError where they differ."""
    if said.names:
        return [said.names[number] for number in sorted(said.names)]
    if said.count is not None:
        return [f"class{number}" for number in range(said.count)]
    if said.names_file and (path := resolve(said, said.names_file)):
        return names_in(path)
    files = [path for path in others if os.path.basename(path).lower() in NAMES or path.lower().endswith(".names")]
    found = {path: names_in(path) for path in files}
    distinct = list({tuple(names): path for path, names in found.items()}.items())
    if len(distinct) > 1:
        (one, path), (other, beside) = distinct[:2]
        raise ValueError(
            f"{printable(path)} and {printable(beside)} name other classes, {shortened(one, 3)} and "
            f"{shortened(other, 3)}; keep one of them, or give --dataset-args classes=NAME,NAME,..."
        )
    return list(distinct[0][0]) if distinct else None


# ---- labels ----

Labelled = tuple[list[Picture], dict[str, str]]
"""Pictures, and the files of labels that belong to them: file -> picture."""


def _read_labels(
    found: _Set, paths: Iterable[str], classes: Sequence[str] | None, intake: Intake, *, masks: bool
) -> Labelled:
    names = None if classes is None else dict(enumerate(classes))
    folders = _label_folders(found.texts)
    pictures, texts = [], dict[str, str]()
    for path in paths:
        picture = Picture(path, os.path.relpath(path, found.root) if path.startswith(f"{found.root}/") else path)
        pictures.append(picture)
        text = next((found.texts[stem] for stem in _stems(path, folders) if stem in found.texts), None)
        if text is None:
            continue
        if text in texts:
            intake.refused.append(
                f"{printable(text)} may be the labels of {printable(texts[text])} or of {printable(picture.name)}; "
                "remove or rename one of them"
            )
            continue
        texts[text] = picture.name
        name = printable(os.path.relpath(text, found.root) if text.startswith(f"{found.root}/") else text)
        for number, line in lines_of(text):
            parsed = parse_line(line, names, found.keypoints)
            where = f"{name}, line {number}"
            if isinstance(parsed, str):
                intake.refused.append(f"{where}: {parsed}")
            elif problem := _check_shares(line, picture):
                intake.refused.append(f"{where}: {problem}")
            else:
                outline = _outline(parsed) if masks else None
                intake.add(picture, parsed.corners, parsed.number, where, shares=True, outline=outline)
        intake.check_twice(picture, f"in {name}", drop=True)
        intake.check_masks(picture)
    return pictures, texts


def _outline(line: Line) -> Outline:
    if line.polygon is None:
        return Outline("", "it is a box, and masks=true needs a polygon for each object; draw it, or leave masks out")
    return Outline(json.dumps([line.polygon]))


def _by_stem(paths: Iterable[str]) -> dict[str, str]:
    """Path of each text file without its ending, accents in one form -> path."""
    return {composed(os.path.splitext(path)[0]): path for path in paths if path.lower().endswith(".txt")}


def _label_folders(texts: Iterable[str]) -> list[str]:
    """Names of folders of labels that hold some; labels itself before others."""
    above = {part for folder in {os.path.dirname(text) for text in texts} for part in folder.split("/")}
    return sorted((name for name in above if name.lower() in LABELS), key=lambda name: (name != "labels", name))


def _stems(path: str, names: Sequence[str] = ("labels",)) -> Iterator[str]:
    """Where the labels of a picture may lie, without ending: labels for images, the last first; else beside it."""
    stem = composed(os.path.splitext(path)[0])
    parts = stem.split("/")
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() in IMAGES:
            yield from ("/".join([*parts[:place], name, *parts[place + 1 :]]) for name in names)
    yield stem
    yield from ("/".join([*parts[:end], name, parts[-1]]) for end in (-1, -2) for name in names)


def _check_shares(line: str, picture: Picture) -> str | None:
    """What is wrong with numbers that are no shares, by more than a pixel; boxes may reach beyond by rounding."""
    numbers = [float(part) for part in line.split()[1:]]
    if min(numbers) >= 0 and max(numbers) <= 1:
        return None
    size = picture.size
    off = (max(number - 1, -number) * size[place % 2] for place, number in enumerate(numbers)) if size else ()
    if max(off, default=0) <= ROUNDING:
        return None
    what = "look like pixels" if min(numbers) >= 0 and max(numbers) > 2 else "reach beyond the picture"
    return (
        f"the numbers {format_box(numbers[:4])} {what}; x, y, width and height are shares of the picture's width and "
        "height, 0 to 1: correct or remove the line"
    )


def _no_labels(found: _Set, split: str, pictures: Sequence[Picture]) -> str:
    what = "" if split == ALL else f" of {split}"
    if not pictures:
        return f"{printable(found.root)} holds no pictures{what}; give --data a folder that holds {HOLDS}"
    example = pictures[0].path
    tried = next(iter(_stems(example)))
    hint = looks_like(found.root)
    return (
        f"none of {len(pictures):,} pictures{what} in {printable(found.root)} has a file of labels, such as "
        f"{printable(tried)}.txt for {printable(pictures[0].name)}; put the labels there, in folders labels beside "
        f"images{f'. {hint}' if hint else ''}"
    )


def _say_left(found: _Set, labelled: Mapping[str, Labelled]) -> list[str]:
    """Of pictures that are background, and of labels without a picture."""
    said = []
    for split, (pictures, texts) in labelled.items():
        bare = len(pictures) - len(texts)
        if bare:
            having = set(texts.values())
            example = next(picture.name for picture in pictures if picture.name not in having)
            of = "" if split == ALL else f" of {split}"
            said.append(
                f"{bare:,} of {len(pictures):,} pictures{of} have no file of labels, such as {printable(example)}: "
                "they count as background"
            )
    taken = {text for _, texts in labelled.values() for text in texts}
    folders = {os.path.dirname(text) for text in taken}
    rest = sorted(
        text
        for text in set(found.texts.values()) - taken
        if (os.path.dirname(text) in folders or os.path.basename(os.path.dirname(text)).lower() in LABELS)
        and os.path.basename(text).lower() not in NO_LABELS
        and not os.path.basename(text).lower().startswith("readme")
    )
    if rest:
        names = [os.path.relpath(text, found.root) for text in rest]
        said.append(f"{len(rest):,} files of labels have no picture and are left out: {shortened(names, 3)}")
    inside = [picture.name for pictures, _ in labelled.values() for picture in pictures]
    return [*said, *say_unlisted(found.root, own_pictures(walk(found.root, "").pictures), inside, "split")]
