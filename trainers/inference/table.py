"""predictions.csv, written row by row: however the command ends, what is done is kept, and the same command goes on."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from trainers.inference.pictures import FACTS, TABLE, is_facts
from trainers.run_facts import Json
from trainers.storage.store import Store

PART = "predictions.partial.csv"
"""The rows that are done, in the order in which they were; each with size and time of its file."""
STAMP = ["bytes", "changed"]
SYNC_SECONDS = 1.0
"""Between two times that rows are brought to the disk."""
Row = Sequence[str]


class Table:
    """The rows of one command, by the name of the picture."""

    def __init__(self, out: Path, header: Row, part: IO[str], rows: Mapping[str, Row]) -> None:
        """
        Args:
            out: The folder.
            header: The first line.
            part: The file of rows that are done, open.
            rows: Of a command before: name of the picture -> its row, with size and time of its file.
        """
        self.out, self.header = out, header
        self._part, self._rows = part, dict(rows)
        self._writer = csv.writer(part, lineterminator="\n")
        self._synced = time.monotonic()

    def has(self, name: str, path: str, mask: str | None) -> bool:
        """Whether a picture is done: it was decoded, and has not changed since; and its mask is called so."""
        row = self._rows.get(name)
        made = row is not None and (row[1] == mask if mask else bool(row[1]))
        return made and self._rows[name][-len(STAMP) :] == stamp(path)

    def add(self, rows: Sequence[Row], stamps: Sequence[Row]) -> None:
        """Keep rows.

        Args:
            rows: The name of the picture first.
            stamps: Size and time of each file, from before it was read.
        """
        whole = [[*row, *of_file] for row, of_file in zip(rows, stamps, strict=True)]
        self._rows.update({row[0]: row for row in whole})
        self._writer.writerows(whole)
        self._part.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._part.fileno())
            self._synced = time.monotonic()

    def rows(self, names: Sequence[str]) -> list[Row]:
        """Those of these pictures, in their order."""
        return [self._rows[name][: len(self.header)] for name in names]

    def finish(self, lines: Sequence[Row], facts: Json) -> Path:
        """Write predictions.csv, whole, and the facts; returns its path."""
        text, store = io.StringIO(), Store(self.out)
        csv.writer(text, lineterminator="\n").writerows(lines)
        store.write(TABLE, text.getvalue().encode())
        store.write_json(FACTS, {**facts, "finished": True})
        (self.out / PART).unlink()
        return self.out / TABLE


def stamp(path: str) -> list[str]:
    """Size and time of change of a file; they differ once it is another."""
    try:
        found = os.stat(path)
    except OSError:
        return ["", ""]
    return [str(found.st_size), str(found.st_mtime_ns)]


@contextlib.contextmanager
def open_table(out: Path, header: Row, facts: Json) -> Iterator[Table]:
    """The table of a folder, with the rows that the same command has left there.

    Args:
        out: The folder.
        header: The first line.
        facts: What the rows depend on: the run ("run", "folder", "start_id"), its weights, the options.

    Raises:
        ValueError: The folder holds another run's predictions, or another command writes there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = open(out / PART, "a+", encoding="utf-8", newline="")  # noqa: SIM115
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}; give another folder") from None
    with part:
        _own(part, out)
        try:
            earlier = Store(out).read_json(FACTS)
        except ValueError as error:
            raise ValueError(f"{error}; remove it, or give another --out") from None
        if earlier is not None:
            _refuse_another_run(earlier, facts, out)
        same = earlier is not None and all(earlier.get(name) == value for name, value in facts.items())
        rows = _read(out / PART, [*header, *STAMP]) if same else None
        if rows is None:
            part.truncate(0)
            csv.writer(part, lineterminator="\n").writerow([*header, *STAMP])
            part.flush()
        Store(out).write_json(FACTS, {**facts, "finished": False})
        yield Table(out, header, part, rows or {})


def _own(part: IO[str], out: Path) -> None:
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another command writes predictions to {out}; wait for it, or give another --out") from None
    except OSError:
        pass  # a disk without locks


def _refuse_another_run(earlier: object, facts: Json, out: Path) -> None:
    if not is_facts(earlier):
        raise ValueError(f"{out / FACTS} is not of this command's making; give another --out")
    if not any(earlier.get(name) == facts[name] is not None for name in ("folder", "start_id")):
        raise ValueError(
            f"--out {out} holds the predictions of the run {earlier['run']}; give another --out, or remove that folder"
        )


def _read(file: Path, header: Row) -> dict[str, Row] | None:
    """The rows of a file, by the name of the picture; a row that was cut goes. None: the header is another."""
    with open(file, "r+b") as whole:
        content = whole.read()
        whole.truncate(content.rfind(b"\n") + 1)
    with open(file, encoding="utf-8", errors="replace", newline="") as stream:
        lines = csv.reader(stream)
        if next(lines, None) != list(header):
            return None
        return {row[0]: row for row in lines if len(row) == len(header)}
