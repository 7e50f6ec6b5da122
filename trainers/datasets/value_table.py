"""Your own pictures with a number each, such as a moisture or an age: a table beside them.

    data/values.csv     file,value
         *.jpg          a.jpg,3.25
                        b.jpg,7

`data` is a folder that holds `values.csv` (or labels.csv, or another CSV or TSV, or train.csv, val.csv and test.csv),
or the table itself; pictures and splits are found as label_table finds them. The number's column is called value,
target, y or label, or is the only one beside file and split; `value=a,b` learns several at once. Without a column
`split`, `val_share` and `test_share` are split off, seeded and stratified by the number. Licence: that of the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainers.datasets import Args, Item, Source
from trainers.datasets._files import check_channels
from trainers.datasets._tables import Listed, as_they_are, by_split, column_of, find_tables, least_of_stratum, list_rows
from trainers.decode import check_reading, decode, reading
from trainers.formatting import printable
from trainers.pixels import Pixels
from trainers.values import Plain

HOLDS = "values.csv (file,value) and the pictures"
TABLES = ("values", "labels")
COLUMNS = "value values target targets y label score"
STRATA = 10
"""Parts of the range of numbers, of equally many pictures, that are split each by itself, at most."""


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
    value: Sequence[str] | str | None = None,
    split: str | None = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
) -> Source:
    """List the pictures and their numbers.

    Args:
        data: the folder, or the table.
        channels: 3 (colour) or 1 (grey).
        val_share, test_share: shares that become val and test, where the table does not say.
        split_seed: of the random assignment.
        table: the name of the table in the folder, where there are several.
        pictures: the folder of the pictures, below that of the table or absolute.
        file, split: the columns of the picture and of its split.
        value: the column of the number, or several.
        value_range, alpha: as of image_folder.

    Raises:
        ValueError: a line cannot be read, naming table and line, or a value is not allowed.
    """
    check_channels(channels)
    args = {"channels": channels, **check_reading(value_range, alpha)}
    listed = _listed(data, table, file, split, pictures)
    columns, rows = _read_numbers(listed, value)
    strata = _by_rank([row[0] for row in rows], least_of_stratum(val_share, test_share))
    places = by_split(listed, strata, val_share=val_share, test_share=test_share, seed=split_seed)
    for number, name in enumerate(columns):
        if len({rows[place][number] for place in places["train"]}) == 1:
            same = rows[places["train"][0]][number]
            raise ValueError(
                f"{printable(listed.root)}: all pictures of the train split have {same:g} as {name}: there is nothing "
                "to learn"
            )
    return _source(listed, columns, rows, places, channels, args)


def scored(data: str | None, known: Sequence[str], *, channels: int = 3, **args: Plain) -> Source:
    """List pictures that a run of the columns `known` is scored on."""
    listed = _listed(data, None, args.get("file"), args.get("split"), args.get("pictures"))
    columns, rows = _read_numbers(listed, args.get("value"))
    if len(columns) == len(known) == 1:
        columns = list(known)  # whatever it is called there
    return _source(listed, columns, rows, as_they_are(listed), channels, {"channels": channels, **reading(args)})


def read(item: Item) -> list[tuple[Pixels, list[float]]]:
    """`item.args` may hold "min_size" (height, width): see `trainers.decode.decode`."""
    assert item.path is not None
    image = decode(item.path, item.args["channels"], item.args.get("min_size"), how=reading(item.args))
    return [(image, item.targets[0])]


def _listed(data: str | None, table: str | None, file: str | None, split: str | None, pictures: str | None) -> Listed:
    tables = find_tables(data, table, TABLES, HOLDS)
    if not tables.files:
        raise ValueError(f"{printable(tables.root)} holds no table; add values.csv with the columns file,value")
    return list_rows(tables, file=file, split=split, pictures=pictures)


def _source(
    listed: Listed,
    columns: list[str],
    rows: Sequence[list[float]],
    places: dict[str, list[int]],
    channels: int,
    args: Args,
) -> Source:
    entries = listed.entries
    splits = {
        split: [Item(path=entries[at].path, name=entries[at].name, targets=[rows[at]], args=args) for at in of_split]
        for split, of_split in places.items()
    }
    return Source(classes=columns, channels=channels, splits=splits, target="numbers", warnings=listed.warnings)


def _read_numbers(listed: Listed, given: Sequence[str] | str | None) -> tuple[list[str], list[list[float]]]:
    """The columns, and the numbers of each entry."""
    entries, columns = listed.entries, listed.columns
    where = entries[0].where
    if given is None and len(columns) == 1:
        given = columns[0]
    names = [given] if given is None or isinstance(given, str) else [str(name) for name in given]
    chosen = [column_of(where, columns, name, COLUMNS, "value") for name in names]
    rows = []
    for entry in entries:
        numbers = [_number(entry.where, name, entry.cells[name]) for name in chosen]
        rows.append(numbers)
    return chosen, rows


def _number(where: str, column: str, cell: str) -> float:
    try:
        number = float(cell) if "_" not in cell else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        comma = ", with a point, not a comma" if "," in cell else ""
        raise ValueError(f"{where}: {printable(column)} is {printable(cell)!r}; it must be a finite number{comma}")
    return number


def _by_rank(numbers: Sequence[float], least: int) -> list[int]:
    """A stratum for each picture: parts of the order of the numbers, of at least so many pictures."""
    strata = max(1, min(STRATA, len(numbers) // least))
    ranks = np.empty(len(numbers), np.int64)
    ranks[np.argsort(numbers, kind="stable")] = np.arange(len(numbers))
    return [int(rank) * strata // len(numbers) for rank in ranks]
