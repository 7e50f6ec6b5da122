"""The order of samples: a pure function, the same for any number of workers."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from trainers.data import sampler


def all_ids(rows: int, batch: int, micro: int, size: int) -> list[list[list[int]]]:
    """step -> micro-batch -> ids, put together from all ranks."""
    steps: dict[int, dict[int, list[int]]] = {}
    for rank in range(size):
        for of in sampler.passes(
            sampler.shuffled(0, 0, rows), batch_size=batch, micro_batch_size=micro, rank=rank, world_size=size
        ):
            if of.weight:
                steps.setdefault(of.step, {})[of.micro_batch] = of.ids.tolist()
    return [[pieces[index] for index in sorted(pieces)] for _, pieces in sorted(steps.items())]


@pytest.mark.parametrize("rows", [1, 7, 101, 1009])
@pytest.mark.parametrize(("batch", "micro"), [(8, 8), (12, 4), (128, 16), (2048, 512)])
def test_every_row_once_and_the_same_micro_batches_for_any_number_of_workers(rows: int, batch: int, micro: int) -> None:
    alone = all_ids(rows, batch, micro, 1)
    assert sorted(row for step in alone for piece in step for row in piece) == list(range(rows))
    assert len(alone) == -(-rows // batch)
    for size in (2, 3, 4, 7):
        assert all_ids(rows, batch, micro, size) == alone


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_rank_makes_the_same_number_of_passes_in_every_step(size: int) -> None:
    counts = []
    for rank in range(size):
        passes = list(
            sampler.passes(sampler.in_order(103), batch_size=24, micro_batch_size=4, rank=rank, world_size=size)
        )
        counts.append([sum(of.step == step for of in passes) for step in range(5)])
        assert all(of.last == (index + 1 == len(passes) or passes[index + 1].step > of.step)
                   for index, of in enumerate(passes))  # fmt: skip
        assert all(len(of.ids) for of in passes)
    assert all(count == counts[0] for count in counts)


def test_pieces_are_as_even_as_can_be() -> None:
    for rows, most in [(1437, 128), (7, 7), (8, 7), (1, 5), (0, 5)]:
        cut = sampler.Cut(rows, most)
        pieces = [cut[piece] for piece in range(len(cut))]
        assert len(cut) == -(-rows // most)
        assert [row for start, stop in pieces for row in range(start, stop)] == list(range(rows))
        sizes = [cut.size(piece) for piece in range(len(cut))]
        assert sizes == [stop - start for start, stop in pieces]
        assert not sizes or max(sizes) - min(sizes) <= 1
        for outside in (-1, len(cut)):
            with pytest.raises(IndexError, match=f"piece {outside} of {len(cut)}"):
                cut[outside]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that Python and NumPy had at once, beyond what they had before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("batch", "micro"), [(256, 64), (10**12, 64)], ids=["many steps", "many micro-batches"])
def test_the_first_pass_costs_no_list_of_all_others(batch: int, micro: int) -> None:
    """Of 10**12 rows, of which memory holds one."""
    rows = np.broadcast_to(np.int64(7), 10**12)
    first: list[sampler.Pass] = []

    def begin() -> None:
        passes = sampler.passes(
            sampler.Order(rows, rows), batch_size=batch, micro_batch_size=micro, rank=1, world_size=3,
            first_step=len(sampler.Cut(len(rows), batch)) - 1,
        )  # fmt: skip
        first.append(next(passes))

    assert peak_bytes(begin) < 20_000
    assert first[0].ids.tolist() == [7] * 64
    assert first[0].step == len(sampler.Cut(10**12, batch)) - 1


def test_an_order_costs_little_more_than_its_rows() -> None:
    """8 bytes a row are the order, as much are the keys that it is sorted by, and half as much takes the sorting."""
    rows = 400_000
    assert peak_bytes(lambda: sampler.shuffled(1, 2, rows)) < 24 * rows
    assert peak_bytes(lambda: sampler.in_order(rows)) < 9 * rows


@pytest.mark.parametrize("rows", [0, 1, 65_535, 65_536, 65_537, 200_001])
def test_an_order_is_that_of_all_hashes_at_once(rows: int) -> None:
    whole = sampler.mix(5, 3, 2, np.arange(rows))
    order = sampler.permutation(5, 3, rows)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(order, np.argsort(whole, kind="stable"))


def test_an_epoch_can_be_entered_in_its_middle() -> None:
    whole = list(sampler.passes(sampler.in_order(50), batch_size=8, micro_batch_size=4, rank=0, world_size=2))
    rest = sampler.passes(sampler.in_order(50), batch_size=8, micro_batch_size=4, rank=0, world_size=2, first_step=3)
    assert [of.ids.tolist() for of in rest] == [of.ids.tolist() for of in whole if of.step >= 3]


def test_the_random_numbers_are_splitmix64() -> None:
    def reference(*values: int) -> int:
        state, mask = 0, 2**64 - 1
        for value in values:
            state = (state ^ value) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15 & mask
            state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
            state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
            state ^= state >> 31
        return state

    for values in [(0,), (1, 2, 3), (2**40, 7, 0, 99)]:
        assert int(sampler.mix(*values)) == reference(*values)
    assert sampler.torch_seed(5, 2**33, 1) == reference(5, 2**33, 3, 1) >> 1


def test_uniforms_depend_on_the_sample_alone_and_are_uniform() -> None:
    ids = np.arange(20000)
    numbers = sampler.uniforms(3, 1, ids, 4)
    some = np.array([5, 19999, 0])
    np.testing.assert_array_equal(sampler.uniforms(3, 1, some, 4), numbers[some])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0] / numbers.size, 0.1, atol=0.004)
    np.testing.assert_allclose(np.corrcoef(numbers.T), np.eye(4), atol=0.03)
    assert not np.array_equal(sampler.uniforms(3, 2, some, 4), numbers[some])
    assert not np.array_equal(sampler.uniforms(4, 1, some, 4), numbers[some])


def test_orders_differ_by_epoch_and_seed() -> None:
    orders = {tuple(sampler.permutation(seed, epoch, 30)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert all(sorted(each) == list(range(30)) for each in orders)


@pytest.mark.parametrize("rows", [1, 2, 3, 31, 100, 1009])
@pytest.mark.parametrize(("batch", "micro"), [(1, 1), (2, 2), (4, 2), (32, 2), (32, 8), (9, 3), (2048, 512)])
def test_the_smallest_micro_batch_is_known_beforehand(rows: int, batch: int, micro: int) -> None:
    sizes = [len(piece) for step in all_ids(rows, batch, micro, 1) for piece in step]
    assert sampler.fewest_at_once(rows, batch, micro) == min(sizes)
