"""Rows of predictions, kept in parts by whoever makes them: however a command ends, the same command goes on.

OUT/predictions.parts/*.parquet   rows that are done, each with size and time of its file
OUT/predictions.json              which run, weights and options they are of
OUT/predictions.csv               at the end, all rows, where they are not too many; then the parts go

A part is written whole or not at all, by this process or by a worker on another host, to a disk or to an object store.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence

from trainers.inference.pictures import FACTS, PARTS, TABLE, is_facts
from trainers.progress import Progress
from trainers.run_facts import Json
from trainers.storage.run_lock import Busy, lock
from trainers.storage.store import Store, explain

STAMP = ["file size", "file time"]
MOST_ROWS = 100_000
"""More pictures stay in parts: a larger CSV is of no use to people."""
READERS = 16
"""Parts that are read at once: an object store takes its time for each."""
Row = Sequence[str]


class Table:
    """The rows of one command, by the name of the picture."""

    def __init__(self, out: Store, header: Row, rows: Mapping[str, list[Row]], ending: threading.Event) -> None:
        """
        Args:
            out: The folder.
            header: The columns, without those of STAMP.
            rows: Of a command before, as of `read_parts`.
            ending: Set where another command turns out to write there.
        """
        self.out, self.header, self._rows, self._ending = out, header, rows, ending

    def has(self, name: str, path: str, mask: str | None) -> bool:
        """Whether a picture is done: it was decoded, and has not changed since; and its mask is called so."""
        row = self._find(name, path) if name in self._rows else None
        return row is not None and (row[1] == mask if mask else bool(row[1])) and _stamp_of(row) == stamp(path)

    def _find(self, name: str, path: str) -> Row:
        """The row of a picture: of the file as it is now, and of one that was decoded, where there are several."""
        now = stamp(path)
        return max(self._rows[name], key=lambda row: (_stamp_of(row) == now, bool(row[1])))

    def check_owned(self) -> None:
        """Raises ValueError where another command writes to the folder too, which an object store cannot prevent."""
        if self._ending.is_set():
            raise ValueError(_busy(self.out))

    def rows(self, pictures: Sequence[tuple[str, str]]) -> list[Row]:
        """Those of pictures, in their order, of this command and of those before.

        Args:
            pictures: The name and the path of each.
        """
        self._rows = read_parts(self.out, self.header)
        return [self._find(name, path)[: len(self.header)] for name, path in pictures]

    def finish(self, lines: Sequence[Row] | None, facts: Json) -> str:
        """Write predictions.csv, whole, and the facts.

        Args:
            lines: Of the CSV; None: there are too many, and the parts are what there is.
            facts: For predictions.json.

        Returns:
            The address of what holds the rows.
        """
        if lines is not None:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(lines)
            self.out.write(TABLE, text.getvalue().encode())
        self.out.write_json(FACTS, {**facts, "finished": True})
        if lines is not None:
            self.out.delete(PARTS)
        return (self.out / (PARTS if lines is None else TABLE)).address


def stamp(path: str) -> list[str]:
    """Size and time of change of a file; they differ once it is another."""
    try:
        found = os.stat(path)
    except OSError:
        return ["", ""]
    return [str(found.st_size), str(found.st_mtime_ns)]


def _stamp_of(row: Row) -> list[str]:
    return list(row[-len(STAMP) :])


def write_part(out: Store, header: Row, rows: Sequence[Row], stamps: Sequence[Row]) -> None:
    """Keep rows.

    Args:
        out: The folder.
        header: The columns.
        rows: Not none; the name of the picture first.
        stamps: Size and time of each file, from before it was read.

    Raises:
        OSError: The storage does not take it.
    """
    import pyarrow
    import pyarrow.parquet

    whole = [[*row, *of_file] for row, of_file in zip(rows, stamps, strict=True)]
    columns = [pyarrow.array([row[place] for row in whole], pyarrow.string()) for place in range(len(header) + 2)]
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns, names=[*header, *STAMP]), content)
    out.write(f"{PARTS}/{_name(rows)}", content.getvalue().to_pybytes())


def has_part(out: Store, rows: Sequence[Row]) -> bool:
    """Whether the rows that a worker has kept are there, seen from here; an object store is one for all."""
    return out.local is None or (out.local / PARTS / _name(rows)).exists()


def _name(rows: Sequence[Row]) -> str:
    """Of the part of these pictures."""
    return hashlib.sha256("\0".join(row[0] for row in rows).encode()).hexdigest()[:24] + ".parquet"


def read_parts(out: Store, header: Row) -> dict[str, list[Row]]:
    """The rows of all parts of these columns, by the name of the picture; of one that changed there are several."""
    from concurrent.futures import ThreadPoolExecutor

    parts = out / PARTS
    names = [name for name in parts.names() if name.endswith(".parquet")]
    found: dict[str, list[Row]] = {}
    with ThreadPoolExecutor(READERS) as threads:
        for rows in threads.map(lambda name: _read(parts, name, [*header, *STAMP]), names):
            for row in rows:
                found.setdefault(row[0], []).append(row)
    return found


def _read(parts: Store, name: str, header: Row) -> list[Row]:
    """The rows of a part; none of one that is of other columns, or none at all."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(parts.read(name))).read()
    except (FileNotFoundError, pyarrow.ArrowException):
        return []
    if table.column_names != list(header):
        return []
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@contextlib.contextmanager
def open_table(out: Store, header: Row, facts: Json, progress: Progress) -> Iterator[Table]:
    """The table of a folder, with the rows that the same command has left there.

    Args:
        out: The folder.
        header: The columns of the rows.
        facts: What the rows depend on: the run ("run", "folder", "start_id"), its weights, the options.
        progress: Where waiting for another command is shown.

    Raises:
        ValueError: The folder holds another run's predictions, or another command writes there.
    """
    with contextlib.ExitStack() as stack:
        ending = threading.Event()
        try:
            stack.enter_context(lock(out, progress, ending, "give another --out"))
        except Busy:
            raise ValueError(_busy(out)) from None
        except OSError as error:
            raise ValueError(f"--out {out.address} cannot be written: {explain(error)}; give another folder") from None
        try:
            earlier = out.read_json(FACTS)
        except ValueError as error:
            raise ValueError(f"{error}; remove it, or give another --out") from None
        if earlier is not None:
            _refuse_another_run(earlier, facts, out)
        if not (earlier is not None and all(earlier.get(name) == value for name, value in facts.items())):
            out.delete(PARTS)
        try:
            out.write_json(FACTS, {**facts, "finished": False})
        except OSError as error:
            raise ValueError(f"--out {out.address} cannot be written: {explain(error)}; give another folder") from None
        yield Table(out, header, read_parts(out, header), ending)


def _busy(out: Store) -> str:
    return f"another command writes predictions to {out.address}; wait for it, or give another --out"


def _refuse_another_run(earlier: object, facts: Json, out: Store) -> None:
    if not is_facts(earlier):
        raise ValueError(f"{(out / FACTS).address} is not of this command's making; give another --out")
    if not any(earlier.get(name) == facts[name] is not None for name in ("folder", "start_id")):
        raise ValueError(
            f"--out {out.address} holds the predictions of the run {earlier['run']}; give another --out, or remove "
            "that folder"
        )
