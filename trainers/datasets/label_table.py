"""Your own pictures with any number of labels each: a table beside them, or folders called by several labels.

    data/labels.csv     file,labels              or      file,cat,dog,bird        or      data/<labels>/*
         *.jpg          a.jpg,cat dog                    a.jpg,1,1,0                      cat,dog/a.jpg
                        b.jpg,bird                       b.jpg,0,0,1                      bird/b.jpg

`data` is a folder that holds `labels.csv` (or another CSV or TSV, or train.csv, val.csv and test.csv), or the table
itself. The picture's column is called file, filename, image, path or the like: a path below the folder, an absolute
one, or a name, whose ending may be missing, of a picture anywhere below. Labels stand in one column (labels, tags...),
separated by `;`, `|`, `,` or space, or in a column each, as 0 and 1. A column `split` says train, val or test; without
one, `val_share` and `test_share` are split off, seeded and stratified by each picture's rarest label; with train but no
val, `val_share` of train becomes val. Without a table, folders are read as image_folder reads them, and their names
are taken apart. Licence: that of the pictures.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from trainers.datasets import Args, Item, Source
from trainers.datasets._class_folders import picture_source, scored_source
from trainers.datasets._files import check_channels
from trainers.datasets._splits import SPLITS, Folders
from trainers.datasets._tables import (
    Entry,
    Listed,
    as_they_are,
    by_split,
    column_of,
    find_tables,
    least_of_stratum,
    list_rows,
    strata_by_rarest,
)
from trainers.decode import check_reading, decode, reading
from trainers.formatting import composed, printable, shortened
from trainers.pixels import Pixels
from trainers.values import Plain

HOLDS = "labels.csv (file,labels) and the pictures, or <labels>/*, folders called by labels such as red,dress"
TABLES = ("labels",)
COLUMNS = "labels label tags tag classes class categories category target targets attributes"
SEPARATORS = {"semicolon": ";", "bar": "|", "comma": ",", "space": " ", "none": ""}
"""As a user may write them; the first of these that occurs is taken, but for the last."""
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


class _Labels(NamedTuple):
    """Labels of each entry."""

    classes: list[str]
    sets: list[list[int]]
    warnings: list[str]


def source(
    data: str | None,
    *,
    channels: int = 3,
    val_share: float = 0.1,
    test_share: float = 0.1,
    split_seed: int = 0,
    table: str | None = None,
    pictures: str | None = None,
    file: str | None = None,
    labels: Sequence[str] | str | None = None,
    split: str | None = None,
    separator: str | None = None,
    allow_empty: bool = False,
    train: Folders = None,
    val: Folders = None,
    test: Folders = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
) -> Source:
    """List the pictures and their labels.

    Args:
        data: the folder, or the table.
        channels: 3 (colour) or 1 (grey).
        val_share, test_share: shares that become val and test, where the table does not say.
        split_seed: of the random assignment.
        table: the name of the table in the folder, where there are several.
        pictures: the folder of the pictures, below that of the table or absolute.
        file, split: the columns of the picture and of its split.
        labels: the column of the labels; or several, with 0 and 1.
        separator: between labels: semicolon, bar, comma, space, none (each cell is one label), or another text.
        allow_empty: whether an empty cell means that the picture has no label.
        train, val, test: of folders without a table: those of the splits.
        value_range, alpha: as of image_folder.

    Raises:
        ValueError: a line cannot be read, naming table and line, or a value is not allowed.
    """
    args = {"channels": channels, **check_reading(value_range, alpha)}
    check_channels(channels)
    tables = find_tables(data, table, TABLES, HOLDS)
    if not tables.files:
        given = {"train": train, "val": val, "test": test}
        found = picture_source(
            tables.root,
            channels=channels,
            val_share=val_share,
            test_share=test_share,
            split_seed=split_seed,
            given=given,
            args=args,
        )
        return _by_folder(tables.root, found, separator)
    listed = list_rows(tables, file=file, split=split, pictures=pictures)
    read_labels = _read_labels(listed, labels, separator, allow_empty)
    strata = strata_by_rarest(read_labels.sets, len(read_labels.classes), least_of_stratum(val_share, test_share))
    places = by_split(listed, strata, val_share=val_share, test_share=test_share, seed=split_seed)
    taught = {number for place in places["train"] for number in read_labels.sets[place]}
    untaught = [name for number, name in enumerate(read_labels.classes) if number not in taught]
    warnings = [*listed.warnings, *read_labels.warnings]
    if untaught:
        warnings.append(f"no picture of the train split has the labels {shortened(untaught)}: they cannot be learned")
    return Source(
        classes=read_labels.classes,
        channels=channels,
        splits=_items(listed.entries, read_labels.sets, places, args),
        target="label_sets",
        warnings=warnings,
    )


def scored(data: str | None, known: Sequence[str], *, channels: int = 3, **args: Plain) -> Source:
    """List pictures that a run of the labels `known` is scored on."""
    how = {"channels": channels, **reading(args)}
    tables = find_tables(data, None, TABLES, HOLDS)
    if not tables.files:
        given = {split: args.get(split) for split in SPLITS}
        folders = scored_source(tables.root, (), channels=channels, given=given, args=how)
        return _by_folder(tables.root, folders, args.get("separator"))
    listed = list_rows(tables, file=args.get("file"), split=args.get("split"), pictures=args.get("pictures"))
    found = _read_labels(listed, args.get("labels"), args.get("separator"), bool(args.get("allow_empty")))
    names = {composed(name): number for number, name in enumerate(known)}
    classes, sets = found.classes, found.sets
    if all(composed(name) in names for name in classes):
        sets = [sorted(names[composed(classes[number])] for number in numbers) for numbers in sets]
        classes = list(known)
    return Source(
        classes=classes,
        channels=channels,
        splits=_items(listed.entries, sets, as_they_are(listed), how),
        target="label_sets",
        warnings=[*listed.warnings, *found.warnings],
    )


def read(item: Item) -> list[tuple[Pixels, list[int]]]:
    """`item.args` may hold "min_size" (height, width): see `trainers.decode.decode`."""
    assert item.path is not None
    image = decode(item.path, item.args["channels"], item.args.get("min_size"), how=reading(item.args))
    return [(image, item.targets[0])]


def _items(
    entries: Sequence[Entry], sets: Sequence[list[int]], places: dict[str, list[int]], args: Args
) -> dict[str, list[Item]]:
    return {
        split: [
            Item(path=entries[place].path, name=entries[place].name, targets=[sets[place]], args=args)
            for place in of_split
        ]
        for split, of_split in places.items()
    }


# ---- what a table says ----


def _read_labels(
    listed: Listed, given: Sequence[str] | str | None, separator: str | None, allow_empty: bool
) -> _Labels:
    entries, columns = listed.entries, listed.columns
    if given is not None and not isinstance(given, str):
        for name in given:
            column_of("", columns, str(name), "", "labels")
        return _read_flags(entries, [str(name) for name in given], [])
    named = set(COLUMNS.split()) & {name.lower() for name in columns}
    if given is None and not named:
        flags = [name for name in columns if entries[0].cells[name].lower() in FLAGS]
        having = [name for name in columns if re.search(r"labels?\b|tags?\b", name, re.IGNORECASE)]
        if flags and len(having) != 1:
            return _read_flags(entries, flags, [name for name in columns if name not in flags])
    column = column_of(entries[0].where, columns, given, COLUMNS, "labels", "label labels tag tags")
    if given is not None and {entry.cells[column].lower() for entry in entries} <= FLAGS.keys():
        return _read_flags(entries, [column], [])
    return _read_words(entries, column, separator, allow_empty)


def _read_flags(entries: Sequence[Entry], columns: list[str], left: Sequence[str]) -> _Labels:
    """Of a column for each label, 0 or 1."""
    sets = []
    for entry in entries:
        for name in columns:
            if entry.cells[name].lower() not in FLAGS:
                raise ValueError(
                    f"{entry.where}: the label {printable(name)} is {printable(entry.cells[name])!r}; it must be 0 or 1"
                )
        sets.append([number for number, name in enumerate(columns) if FLAGS[entry.cells[name].lower()]])
    warnings = [f"the columns {shortened(left)} hold no 0 or 1 and are left out"] if left else []
    return _Labels([composed(name) for name in columns], sets, warnings)


def _read_words(entries: Sequence[Entry], column: str, separator: str | None, allow_empty: bool) -> _Labels:
    """Of one column, taken apart."""
    cells = [entry.cells[column] for entry in entries]
    mark, warnings = _find_separator(entries, column, separator)
    apart = [
        list(dict.fromkeys(composed(part.strip()) for part in _split(cell, mark) if part.strip())) for cell in cells
    ]
    for entry, names in zip(entries, apart, strict=True):
        if not names and not allow_empty:
            raise ValueError(
                f"{entry.where}: {printable(entry.name)} has no label; write some, or give --dataset-args "
                "allow_empty=true where that means none of them"
            )
    classes = sorted({name for names in apart for name in names})
    if not classes:
        raise ValueError(f"{entries[0].where}: the column {column} is empty here and in all lines")
    if all(len(names) == 1 for names in apart):
        warnings.append(
            f"every picture has one label in the column {column}; if they are classes that exclude each other, class "
            "folders and folder.tune learn them better"
        )
    number = {name: place for place, name in enumerate(classes)}
    return _Labels(classes, [sorted(number[name] for name in names) for names in apart], warnings)


def _split(cell: str, mark: str) -> list[str]:
    if not mark:
        return [cell]
    return cell.split() if mark == " " else cell.split(mark)


def _find_separator(entries: Sequence[Entry], column: str, given: str | None) -> tuple[str, list[str]]:
    """What stands between labels, and what to say of it. Raises ValueError where that is not clear."""
    if given is not None:
        return SEPARATORS.get(given, given), []
    first = {mark: next((e for e in entries if mark in e.cells[column]), None) for mark in SEPARATORS.values() if mark}
    found = [mark for mark, entry in first.items() if entry is not None]
    clear = [mark for mark in found if mark != " "]
    if len(clear) > 1:
        one, other = first[clear[0]], first[clear[1]]
        assert one is not None
        assert other is not None
        raise ValueError(
            f"{other.where}: labels are separated by {clear[1]!r} here, and by {clear[0]!r} in {one.where}; write them "
            f"alike, or give --dataset-args separator={_word(clear[0])}"
        )
    if listing := next(
        (entry for entry in entries if re.fullmatch(r"\[.*\]|\{.*\}|\(.*\)", entry.cells[column])), None
    ):
        raise ValueError(
            f"{listing.where}: {printable(listing.cells[column])!r} is a list as programs write it; write labels as in "
            "cat;dog"
        )
    if clear:
        return clear[0], []
    if found:
        what = "the labels are separated by spaces; where these are parts of labels, give --dataset-args separator=none"
        return " ", [what]
    if odd := next((entry for entry in entries if re.search(r"\w\s*[/&+:\\]\s*\w", entry.cells[column])), None):
        mark = re.sub(r"[\w\s]", "", odd.cells[column])[0]
        raise ValueError(
            f"{odd.where}: {printable(odd.cells[column])!r} may be one label or several; separate labels by ; or give "
            f"--dataset-args separator={mark if mark not in '&' + chr(92) else repr(mark)}, or separator=none"
        )
    return "", []


def _word(mark: str) -> str:
    return next(word for word, each in SEPARATORS.items() if each == mark)


# ---- folders called by several labels ----


def _by_folder(root: str, found: Source, separator: str | None) -> Source:
    """Pictures of class folders whose names are taken apart."""
    marks = [SEPARATORS.get(separator, separator)] if separator is not None else [";", "|", ",", "+", "&"]
    mark = next((mark for mark in marks if mark and any(mark in name for name in found.classes)), None)
    if mark is None:
        likely = next((each for each in "_- " if any(each in name for name in found.classes)), None)
        guess = (
            f" (separator={_word(likely) if likely == ' ' else likely}, if {shortened(found.classes, 3)} are several)"
        )
        raise ValueError(
            f"{printable(root)} holds no table, such as labels.csv, and no folder is called by several labels, as in "
            f"red,dress; add a table, or say what stands between labels: --dataset-args separator=..."
            f"{guess if likely else ''}; folder.tune learns one class for each folder"
        )
    apart = [[part.strip() for part in name.split(mark) if part.strip()] for name in found.classes]
    classes = sorted({part for parts in apart for part in parts})
    sets = [sorted({classes.index(part) for part in parts}) for parts in apart]
    splits = {
        split: [dataclasses.replace(item, targets=[sets[number] for number in item.targets]) for item in items]
        for split, items in found.splits.items()
    }
    said = f"the names of folders are taken apart at {mark!r}: the labels are {shortened(classes)}"
    return dataclasses.replace(
        found, classes=classes, splits=splits, target="label_sets", warnings=[*found.warnings, said]
    )
