"""Tables beside pictures: CSV or TSV files with a picture a line, read, checked and brought together with their files.

Every mistake is one sentence with file and line, before a picture is decoded.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trainers.datasets import ALL
from trainers.datasets._files import assign_splits, existing_folder
from trainers.datasets._splits import SPLITS, WORDS
from trainers.formatting import composed, nearest, printable, shortened
from trainers.listing import is_picture, list_folder, walk, words

ENDINGS = (".csv", ".tsv")
TABLES = ("annotations", "metadata")
"""Names of tables, without their endings, that go before others, but after the data set's own."""
FILES = "file filename file_name filepath file_path image image_name image_path image_id img path picture photo id"
FILE_WORDS = "file filename image img path picture photo"
SPLIT_COLUMNS = "split subset partition set is_valid is_val"


class Entry(NamedTuple):
    """A line, and its picture."""

    where: str
    """The table and the line, for messages."""
    path: str
    """Of the picture."""
    name: str
    """What people are shown."""
    split: str | None
    """As the table says; None: it does not."""
    cells: Mapping[str, str]
    """Column -> what stands there, but for those of file and split."""


@dataclass
class Listed:
    """All lines of a data set."""

    root: str
    """The folder of the tables."""
    columns: list[str]
    """Those that are neither file nor split."""
    entries: list[Entry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class _Line(NamedTuple):
    number: int
    cells: list[str]


class Tables(NamedTuple):
    """Where a data set stands."""

    root: str
    """The folder of the tables."""
    files: dict[str, str | None]
    """Path of each table -> the split that it is by its name, or None; none where the folder has no table."""
    whole: bool = True
    """Whether the folder, not a table in it, is the data set: pictures that no line names are told."""


def find_tables(data: str | None, table: str | None, first: tuple[str, ...], holds: str) -> Tables:
    """The tables of a data set.

    Args:
        data: A folder, or a table in it.
        table: The name of the table, where the user says it.
        first: Names of tables, without their endings, that go before others.
        holds: What a folder must hold, for messages.

    Raises:
        ValueError: `data` is missing, or several tables may be meant.
    """
    if data and table is None and data.lower().endswith(ENDINGS) and os.path.isfile(os.path.expanduser(data)):
        path = os.path.abspath(os.path.expanduser(data))
        return Tables(os.path.dirname(path), {path: None}, whole=False)
    root = existing_folder(data, holds)
    if table is not None:
        path = os.path.join(root, table)
        if not os.path.isfile(path):
            raise ValueError(
                f"table={table}: there is no such file in {printable(root)}; give the name of a CSV or TSV"
            )
        return Tables(root, {path: None})
    found = [name for name in list_folder(root).others if name.lower().endswith(ENDINGS)]
    stems = {name: os.path.splitext(name)[0] for name in found}
    named = [name for stem in (*first, *TABLES) for name in found if stems[name].lower() == stem]
    chosen = named[:1] or (found if len(found) == 1 else [])
    splits = {name: WORDS[stem.lower()] for name, stem in stems.items() if stem.lower() in WORDS}
    if not chosen and "train" in splits.values() and len(set(splits.values())) == len(splits):
        return Tables(root, {os.path.join(root, name): split for name, split in splits.items()})
    if not chosen and found:
        raise ValueError(
            f"{printable(root)} holds several tables, {shortened(found)}; say which one lists the pictures: "
            f"--dataset-args table={found[0]}"
        )
    return Tables(root, {os.path.join(root, name): None for name in chosen})


def list_rows(
    tables: Tables,
    *,
    file: str | None = None,
    split: str | None = None,
    pictures: str | None = None,
) -> Listed:
    """The lines of tables with their pictures.

    Args:
        tables: Where they are.
        file, split: The columns of the picture and of its split; None: by their names.
        pictures: The folder of the pictures, below `root` or absolute; None: they are looked for.

    Raises:
        ValueError: A table cannot be read, a picture is missing, or stands in two lines.
    """
    root = tables.root
    folder = _Pictures(os.path.join(root, pictures) if pictures else root, pictures)
    listed: Listed | None = None
    missing: list[str] = []
    lines: dict[str, str] = {}
    for path, of_name in tables.files.items():
        header, rows = read_table(path)
        about = f"{os.path.basename(path)}, line 1"
        file_column = _file_column(about, header, file)
        split_column = _split_column(about, header, split) if of_name is None else None
        columns = [name for name in header if name and name not in (file_column, split_column)]
        if listed is None:
            listed = Listed(root, columns)
        elif listed.columns != columns:
            raise ValueError(
                f"{about}: the columns are {shortened(columns)}, and {shortened(listed.columns)} elsewhere"
            )
        for number, cells in rows:
            where = f"{os.path.basename(path)}, line {number}"
            row = dict(zip(header, cells, strict=True))
            found = folder.find(where, row[file_column])
            if found is None:
                missing.append(f"{where}: there is no picture {printable(row[file_column])!r}")
                continue
            if found in lines:
                raise ValueError(
                    f"{where}: {printable(row[file_column])} is the picture of {lines[found]} too; give each picture "
                    "one line"
                )
            lines[found] = where
            part = of_name if split_column is None else _split_of(where, split_column, row[split_column])
            name = os.path.relpath(found, root) if f"{found}/".startswith(f"{root}/") else found
            listed.entries.append(Entry(where, found, name, part, {column: row[column] for column in columns}))
    assert listed is not None
    if missing:
        more = f" ({len(missing):,} of {len(missing) + len(lines):,} lines name pictures that are not there)"
        raise ValueError(
            f"{missing[0]} in {printable(folder.root)}{more if len(missing) > 1 else ''}; correct the table, or give "
            "--dataset-args pictures=FOLDER"
        )
    if tables.whole or pictures:
        listed.warnings += folder.left_out(lines)
    return listed


def column_of(where: str, columns: Sequence[str], given: str | None, known: str, argument: str, also: str = "") -> str:
    """The column that the user names, or the one whose name says it.

    Args:
        where: For messages.
        columns: Their names.
        given: What the user says.
        known: Names, the most telling first.
        argument: Of the data set, for messages.
        also: Words of which one in a name will do, where one column alone has one.

    Raises:
        ValueError: There is none, or there are several.
    """
    if given is not None:
        if given not in columns:
            raise ValueError(f"{argument}={given}: the table has no such column{nearest(given, columns)}")
        return given
    by_name = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(columns)}
    for name in known.split():
        if name in by_name:
            return by_name[name]
    having = [name for name in columns if set(words(name)) & set(also.split())]
    if len(having) == 1:
        return having[0]
    raise ValueError(
        f"{where}: which of the columns {shortened(columns)} is the {argument}? Say so: --dataset-args "
        f"{argument}=COLUMN, or call it {known.split()[0]}"
    )


def by_split(
    listed: Listed, strata: Sequence[int], *, val_share: float, test_share: float, seed: int
) -> dict[str, list[int]]:
    """Split -> positions of its entries: as the table says; where it does not, drawn, each stratum by itself.

    Raises:
        ValueError: There is no train split, or there are too few pictures.
    """
    found: dict[str, list[int]] = {}
    for position, entry in enumerate(listed.entries):
        found.setdefault(entry.split or ALL, []).append(position)
    if found.keys() == {ALL} or ("train" in found and "val" not in found):
        pool = found.pop(ALL if ALL in found else "train")
        drawn = assign_splits(
            [strata[position] for position in pool],
            val_share=val_share,
            test_share=0.0 if found or listed.entries[0].split else test_share,
            seed=seed,
            what=printable(listed.root),
        )
        found |= {split: [pool[place] for place in places] for split, places in drawn.items()}
    if "train" not in found:
        raise ValueError(f"{printable(listed.root)}: the table names {', '.join(found)} as splits, but no train")
    return {split: found[split] for split in SPLITS if split in found}


def as_they_are(listed: Listed) -> dict[str, list[int]]:
    """Split -> positions, as the table says; ALL where it does not: for pictures that are scored."""
    found: dict[str, list[int]] = {}
    for position, entry in enumerate(listed.entries):
        found.setdefault(entry.split or ALL, []).append(position)
    return found


def least_of_stratum(val_share: float, test_share: float) -> int:
    """Pictures of which each split gets one."""
    shares = [share for share in (val_share, test_share, 1 - val_share - test_share) if share > 0]
    return math.ceil(1 / min(shares)) if shares else 1


def strata_by_rarest(sets: Sequence[Sequence[int]], classes: int, least: int) -> list[int]:
    """A stratum for each picture: the rarest of its classes; one for those without, and one for all strata of fewer
    than `least` pictures."""
    times = Counter(number for numbers in sets for number in numbers)
    strata = [min(numbers, key=lambda number: (times[number], number), default=classes) for numbers in sets]
    sizes = Counter(strata)
    return [stratum if sizes[stratum] >= least else classes + 1 for stratum in strata]


# ---- reading a table ----


def read_table(path: str) -> tuple[list[str], list[_Line]]:
    """The names of the columns, and the lines below. Raises ValueError."""
    name = os.path.basename(path)
    text = _text(path, name)
    delimiter = "\t" if path.lower().endswith(".tsv") else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    lines: list[_Line] = []
    before = 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append(_Line(before + 1, [cell.strip() for cell in cells]))
            before = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{name}, line {max(before + 1, reader.line_num)}: it cannot be read: {error}; quote texts that hold "
            'separators or line breaks, and write quotes in them twice, as in "a ""b"""'
        ) from None
    if len(lines) < 2:
        raise ValueError(f"{printable(path)} holds {'no lines' if not lines else 'no line below the names of columns'}")
    header = lines[0].cells
    if any(is_picture(cell) for cell in header):
        raise ValueError(
            f"{name}, line {lines[0].number}: it must name the columns, as in file,labels; it names a picture"
        )
    twice = [column for column, times in Counter(filter(None, header)).items() if times > 1]
    if twice:
        raise ValueError(f"{name}, line {lines[0].number}: two columns are called {twice[0]}; rename one")
    return header, [_fit(name, line, len(header)) for line in lines[1:]]


def _fit(name: str, line: _Line, columns: int) -> _Line:
    """The line with as many fields as there are columns; empty ones at its end count for nothing."""
    cells = line.cells
    while len(cells) > columns and not cells[-1]:
        cells = cells[:-1]
    if len(cells) != columns:
        raise ValueError(
            f"{name}, line {line.number}: it has {len(cells)} fields, and the first line {columns}; put texts that "
            "hold the separator into quotes"
        )
    return _Line(line.number, cells)


def _text(path: str, name: str) -> str:
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise ValueError(f"{printable(path)} cannot be read: {error.strerror}") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: it is no text in UTF-8; save the table as CSV in UTF-8") from None


def _delimiter(text: str) -> str:
    """Of the first line: the most frequent of those that are used."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max((",", ";", "\t"), key=first.count)


def _file_column(where: str, header: Sequence[str], given: str | None) -> str:
    return column_of(where, [name for name in header if name], given, FILES, "file", FILE_WORDS)


def _split_column(where: str, header: Sequence[str], given: str | None) -> str | None:
    if given is not None:
        return column_of(where, header, given, SPLIT_COLUMNS, "split")
    return next((name for name in header if name.lower() in SPLIT_COLUMNS.split()), None)


def _split_of(where: str, column: str, cell: str) -> str:
    word = cell.lower()
    if column.lower().startswith("is_val") and word in ("true", "false", "1", "0"):
        return "val" if word in ("true", "1") else "train"
    if word not in WORDS:
        raise ValueError(f"{where}: the split is {printable(cell)!r}; allowed are train, val and test")
    return WORDS[word]


# ---- pictures ----


class _Pictures:
    """The pictures below a folder, found by what a table calls them."""

    def __init__(self, root: str, given: str | None) -> None:
        if given is not None and not os.path.isdir(root):
            raise ValueError(f"pictures={given}: there is no folder {printable(root)}; give the one of the pictures")
        self.root = os.path.abspath(root)
        self._by_name: dict[str, list[str]] | None = None

    def find(self, where: str, name: str) -> str | None:
        """The path of a picture; None: there is none. Raises ValueError where several may be meant.

        A path below the folder or an absolute one; or the end of one, whose ending may be missing.
        """
        if not name:
            raise ValueError(f"{where}: it names no picture")
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            path = os.path.normpath(os.path.join(self.root, os.path.expanduser(spelled)))
            if os.path.isfile(path):
                return path
        wanted = composed(name.replace("\\", "/")).removeprefix("./")
        found = [] if os.path.isabs(wanted) else self._index().get(wanted.rpartition("/")[2], [])
        having = [path for path in found if f"/{_both(path)[0]}".endswith(f"/{wanted}")] or [
            path for path in found if f"/{_both(path)[1]}".endswith(f"/{wanted}")
        ]
        if len(having) > 1:
            raise ValueError(
                f"{where}: {printable(name)} may be {shortened(having, 3)}; write the path below {printable(self.root)}"
            )
        return os.path.join(self.root, having[0]) if having else None

    def left_out(self, taken: Mapping[str, str]) -> list[str]:
        """What to say of pictures that no line names."""
        there = {os.path.join(self.root, path) for paths in self._index().values() for path in paths}
        rest = sorted(there - taken.keys())
        if not rest:
            return []
        names = [os.path.relpath(path, self.root) for path in rest]
        return [
            f"{len(rest):,} pictures in {printable(self.root)} stand in no line and are left out: {shortened(names, 3)}"
        ]

    def _index(self) -> dict[str, list[str]]:
        """Name with and without ending -> paths below the folder."""
        if self._by_name is None:
            self._by_name = {}
            for path in walk(self.root, "").pictures:
                for name in dict.fromkeys(each.rpartition("/")[2] for each in _both(path)):
                    self._by_name.setdefault(name, []).append(path)
        return self._by_name


def _both(path: str) -> tuple[str, str]:
    """A path with and without its ending, its accents in one form."""
    whole = composed(path)
    return whole, os.path.splitext(whole)[0]
