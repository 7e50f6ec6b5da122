"""Rows are asked for before they are read: which, when, and by what the system understands."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.small import small_data, small_recipe

from trainers.data import pages, sampler
from trainers.data import prepare as preparing
from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.source import scan_files
from trainers.data.targets import Array

Asked = list[tuple[int, int, int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Of the system, for the address and bytes, and what it answered: 0, unless it cannot be asked for these."""
    calls: Asked = []
    assert pages._madvise is not None, "Linux and macOS have it"
    plain: Callable[[int, int, int], int] = pages._madvise

    def note(start: int, length: int, advice: int) -> int:
        assert advice == mmap.MADV_WILLNEED
        calls.append((start, length, plain(start, length, advice)))
        return 0

    monkeypatch.setattr(pages, "_madvise", note)
    ticks = itertools.count()
    monkeypatch.setattr(pages, "_read_from_disks", lambda: (next(ticks), 0))  # as from a disk that is always read
    monkeypatch.setattr(pages, "SHORT", mmap.PAGESIZE)
    return calls


def cached(name: str, folder: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Cached:
    """A small set of several shards."""
    recipe = small_recipe(name, image_size=size, stored_size=size)
    monkeypatch.setattr(preparing, "SHARD_BYTES", 5 * size[0] * size[1] * 3)
    source = scan_files(recipe, small_data(name, folder / "raw"))
    return Cached(prepare(recipe, source, folder / "cache"))


@pytest.mark.parametrize("name", ["resnet.r18", "unet.camvid"])
def test_the_rows_of_the_next_pass_are_asked_for_before_those_of_this_one_are_given_out(
    name: str, tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of no other; masks are read as pictures are."""
    data = cached(name, tmp_path, (128, 144), monkeypatch)
    order = sampler.permutation(0, 0, data.meta["rows"]["train"])
    passes = [sampler.one_pass(ids) for ids in np.split(order, [2, 5, 6])]
    opened = data._split("train")
    assert len(opened.images) > 2
    arrays = [opened.images, *([opened.columns] if name == "unet.camvid" else [])]
    seen = 0
    for number, batch in enumerate(data.batches("train", passes)):
        np.testing.assert_array_equal(batch.images, np.concatenate(opened.images)[batch.of.ids])
        new = passes[: number + 2][seen:]
        _assert_covered(arrays, opened.first_rows, new, asked)
        seen += len(new)
        asked.clear()
    assert seen == len(passes)


def _assert_covered(arrays: list[list[Array]], first_rows: Array, of: list[sampler.Pass], asked: Asked) -> None:
    """Every byte of the rows is asked for, from the start of a page on, and at most a page besides."""
    wanted = 0
    for shards in arrays:
        for row in (row for each in of for row in each.ids.tolist()):
            number = int(np.searchsorted(first_rows, row, side="right")) - 1
            pixels = shards[number][row - first_rows[number]]
            begin, end = pixels.ctypes.data, pixels.ctypes.data + pixels.nbytes
            held = [(start, start + length) for start, length, _ in asked if start <= begin < start + length]
            assert any(stop >= end for _, stop in held)
            wanted += pixels.nbytes
    assert all(start % mmap.PAGESIZE == 0 for start, _, _ in asked)
    assert all(answer == 0 for _, _, answer in asked)
    assert sum(length for _, length, _ in asked) <= wanted + mmap.PAGESIZE * len(asked)


def test_nothing_is_asked_for_while_all_that_is_read_lies_in_memory(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the system counts: of the first pass it is not known, and of the one after a page that was missing."""
    data = cached("resnet.r18", tmp_path, (128, 144), monkeypatch)
    counted = [0]
    monkeypatch.setattr(pages, "_read_from_disks", lambda: (counted[0], 0))
    passes = [sampler.one_pass(np.array([row])) for row in range(6)]
    calls = []
    for _ in data.batches("train", passes):
        calls.append(len(asked))
        counted[0] += len(calls) == 3
    assert calls == [1, 1, 1, 2, 2, 2]


def test_what_a_thread_reads_from_a_disk_is_counted(tmp_path: Path) -> None:
    """And nothing where it reads the same again."""
    file = tmp_path / "file"
    file.write_bytes(bytes(2**22))
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        if not hasattr(os, "posix_fadvise"):
            pytest.skip("the system cannot be told to forget a file")
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = pages._read_from_disks()
        opened.read()
        once = pages._read_from_disks()
        opened.seek(0)
        opened.read()
        again = pages._read_from_disks()
    if once == before:
        pytest.skip("the folder of temporary files lies in memory, or on a file system that counts nothing")
    assert again == once


def test_long_rows_are_asked_for_piece_by_piece(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "AT_ONCE", 2 * mmap.PAGESIZE)
    memory = np.frombuffer(mmap.mmap(-1, 16 * mmap.PAGESIZE), np.uint8)
    rows = memory[100:-300].reshape(2, -1)
    pages.Mapped([rows], np.array([0])).fetch(np.array([1]))
    starts = [start for start, _, _ in asked]
    stops = [start + length for start, length, _ in asked]
    assert len(asked) == 5
    assert starts[0] <= rows[1].ctypes.data < starts[0] + mmap.PAGESIZE
    assert starts[1:] == stops[:-1]
    assert stops[-1] == rows[1].ctypes.data + rows[1].nbytes


def test_where_rows_are_short_or_the_system_has_no_such_call_nothing_is_asked_for(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [np.array([3, 1]), np.array([0, 9, 9])]
    small = cached("resnet.r18", tmp_path / "small", (16, 16), monkeypatch)
    large = cached("resnet.r18", tmp_path / "large", (128, 144), monkeypatch)
    assert len([*small.batches("train", map(sampler.one_pass, ids))]) == 2
    assert not asked
    before = [batch.images for batch in large.batches("train", map(sampler.one_pass, ids))]
    assert len(asked) == 5
    monkeypatch.setattr(pages, "_madvise", None)
    after = [batch.images for batch in large.batches("train", map(sampler.one_pass, ids))]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [*large.batches("train", [])] == []
