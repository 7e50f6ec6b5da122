"""The order of samples: a pure function, the same for any number of workers."""

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
    sizes = [stop - start for start, stop in sampler.cut(1437, 128)]
    assert len(sizes) == 12
    assert sum(sizes) == 1437
    assert max(sizes) - min(sizes) <= 1


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
