"""Rows of memory-mapped arrays, which the system is asked to fetch before they are read.

A row that is not in memory is otherwise fetched where it is first touched, a page fault at a time, and the disk has one
request to work on. Asked beforehand for all rows of a batch, it fetches them side by side while another is computed.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from trainers.data.sampler import Pass
from trainers.data.targets import Array

AT_ONCE = 2**20
"""Bytes: of one longer request, systems leave out the end."""
SHORT = 2**15
"""Bytes: with shorter rows the system reads others that lie beside them, which the same epoch wants, too."""


def _find_madvise() -> Callable[[int, int, int], int] | None:
    """The system's function, by address: Python's own would keep a file open for each shard. None: it has none."""
    found: Any = getattr(ctypes.CDLL(None), "madvise", None)
    if found is None or not hasattr(mmap, "MADV_WILLNEED"):
        return None
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    function: Callable[[int, int, int], int] = found
    return function


_madvise = _find_madvise()


class Mapped:
    """The rows of a column that lies in several memory-mapped arrays."""

    def __init__(self, shards: Sequence[Array], first_rows: Array) -> None:
        """
        Args:
            shards: the parts, (rows, ...) each, in one piece.
            first_rows: the number of each part's first row.
        """
        self._row_bytes = shards[0][:1].nbytes
        self._first_rows = first_rows
        starts = [shard.ctypes.data for shard in shards]
        self._origins = np.array(starts, np.int64) - first_rows * self._row_bytes

    def fetch(self, ids: Array) -> None:
        """Ask for rows; returns at once. Short rows are left to the system, which reads around them."""
        if _madvise is None or self._row_bytes < SHORT:
            return
        numbers = np.searchsorted(self._first_rows, ids, side="right") - 1
        for start in (self._origins[numbers] + ids * self._row_bytes).tolist():
            begin = start - start % mmap.PAGESIZE
            for part in range(begin, start + self._row_bytes, AT_ONCE):
                _madvise(part, min(AT_ONCE, start + self._row_bytes - part), mmap.MADV_WILLNEED)


def one_ahead(passes: Iterable[Pass], columns: Sequence[Mapped]) -> Iterator[Pass]:
    """The same passes; before each is given out, the rows of the one after it are asked for, as long as disks are read.

    Where all that was wanted of late lay in memory, asking would take time for nothing.
    """
    waiting: Pass | None = None
    read_before: tuple[int, int] | None = None
    for of in passes:
        if (read := _read_from_disks()) != read_before:
            for column in columns:
                column.fetch(of.ids)
        if waiting is not None:
            yield waiting
        waiting, read_before = of, read
    if waiting is not None:
        yield waiting


def _read_from_disks() -> tuple[int, int]:
    """Blocks that this thread has had read, and pages that it has had to wait for."""
    used = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))
    return used.ru_inblock, used.ru_majflt
