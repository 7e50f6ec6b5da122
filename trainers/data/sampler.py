"""The order of samples and the seeds of augmentation: pure functions of (seed, epoch, sample number).

Nothing here depends on the number of workers, on the machine or on the version of NumPy: the random numbers
are the SplitMix64 finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014,
figure 17) of a counter, in unsigned 64-bit arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
HASHED_AT_ONCE = 2**16
"""Rows: what is in between while they are hashed takes five times the room of their keys."""


def mix(*values: int | npt.NDArray[np.integer]) -> U64:
    """Hash integers, or arrays of them (broadcast against each other), to uint64, one after the other."""
    state: U64 = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for value in values:
            word = np.asarray(value).astype(np.uint64)
            state = (state ^ word) * _GOLDEN + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniforms(seed: int, epoch: int, ids: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.float64]:
    """Random numbers of each sample.

    Args:
        seed: the recipe's.
        epoch: counted from 0.
        ids: (samples,), the samples' numbers in the data set.
        count: how many numbers each sample gets.

    Returns:
        float64 (samples, count) in [0, 1). Row i depends on seed, epoch and ids[i] alone.
    """
    bits = mix(seed, epoch, 1, np.asarray(ids)[:, None], np.arange(count)[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, rows: int) -> npt.NDArray[np.int64]:
    """The order of an epoch: the row numbers 0..rows-1, shuffled. Shape (rows,), int64."""
    keys = np.empty(rows, np.uint64)
    for start in range(0, rows, HASHED_AT_ONCE):
        stop = min(rows, start + HASHED_AT_ONCE)
        keys[start:stop] = mix(seed, epoch, 2, np.arange(start, stop))
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


class Order(NamedTuple):
    """The draws of an epoch, in their order."""

    rows: npt.NDArray[np.int64]
    """The row that each takes, (draws,)."""
    numbers: npt.NDArray[np.int64]
    """By which its random changes are drawn, (draws,): different for each draw of a row."""


def shuffled(seed: int, epoch: int, rows: int) -> Order:
    """Every row once."""
    order = permutation(seed, epoch, rows)
    return Order(order, order)


def balanced(seed: int, epoch: int, labels: npt.NDArray[np.integer]) -> Order:
    """As many draws as there are rows, of every class equally often, and of its rows equally often.

    The classes are dealt out in turn over the whole run, and so are the rows of a class, in a new order each time that
    all of them were drawn. So, within any epoch and over any number of them, the draws of two classes differ by one at
    most, and so do those of two rows of a class from the start of a run on. A class without rows is left out.

    Args:
        seed: the recipe's.
        epoch: counted from 0.
        labels: the class of each row, (rows,).
    """
    labels = np.asarray(labels)
    rows = len(labels)
    classes = np.unique(labels)
    turns = classes[np.argsort(mix(seed, 4, classes), kind="stable")]
    taken, numbers = [], []
    for turn, label in enumerate(turns.tolist()):
        members = np.flatnonzero(labels == label)
        first, stop = (-(-max(0, draws - turn) // len(turns)) for draws in (epoch * rows, (epoch + 1) * rows))
        times = np.arange(first // len(members), -(-stop // len(members)))  # that all of them are drawn
        keys = mix(seed, 5, int(label), times[:, None], np.arange(len(members))[None, :])
        drawn = members[np.argsort(keys, axis=1, kind="stable")]
        within = slice(first - times[0] * len(members), stop - times[0] * len(members)) if len(times) else slice(0)
        taken.append(drawn.reshape(-1)[within])
        numbers.append((drawn + times[:, None] * rows).reshape(-1)[within])
    places = permutation(seed, epoch, rows)
    return Order(np.concatenate(taken)[places], np.concatenate(numbers)[places])


def torch_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of torch's default generator (dropout) before one forward pass: 0 <= result < 2**63.

    `mix` of (seed, step, 3, micro_batch), in Python's integers: 2 us, where NumPy's scalars take 50.
    """
    state = 0
    for word in (seed, step, 3, micro_batch):
        state = ((state ^ word) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True)
class Cut:
    """range(rows) in the fewest pieces of at most `most`, as even as can be; each is computed when it is asked for."""

    rows: int
    most: int

    def __len__(self) -> int:
        return (self.rows + self.most - 1) // self.most

    def __getitem__(self, piece: int) -> tuple[int, int]:
        """Start and stop of a piece, counted from 0. Raises IndexError."""
        pieces = len(self)
        if not 0 <= piece < pieces:
            raise IndexError(f"piece {piece} of {pieces}")
        return self.rows * piece // pieces, self.rows * (piece + 1) // pieces

    def size(self, piece: int) -> int:
        """Rows of a piece. Raises IndexError."""
        start, stop = self[piece]
        return stop - start


def fewest_at_once(rows: int, batch_size: int, micro_batch_size: int) -> int:
    """The rows of the smallest micro-batch of an epoch, as `passes` cuts it."""
    steps = -(-rows // batch_size)
    sizes = {rows // steps, -(-rows // steps)}
    return min(size // -(-size // micro_batch_size) for size in sizes)


class Pass(NamedTuple):
    """One forward pass of one rank."""

    step: int
    """Number of the optimizer step within the epoch, from 0."""
    micro_batch: int
    """Number of the micro-batch within the step."""
    ids: npt.NDArray[np.int64]
    """The rows of the micro-batch."""
    numbers: npt.NDArray[np.int64]
    """Those of an `Order`, of these rows."""
    weight: float
    """1, or 0 for a surplus pass: made only so that every rank makes the same number of passes."""
    last: bool
    """Whether the optimizer steps after this pass."""


def passes(
    order: Order,
    *,
    batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    first_step: int = 0,
) -> Iterator[Pass]:
    """The passes of one rank over one epoch. Every rank gets equally many, in every step.

    An epoch is cut into ceil(rows / batch_size) steps and each step into micro-batches, as evenly as can be, by
    numbers that do not depend on `world_size`; micro-batch m of a step is given to rank m % world_size. A rank left
    without one in the last round repeats the step's first micro-batch with weight 0.

    Args:
        order: the draws of an epoch.
        batch_size: most rows of a step, over all ranks.
        micro_batch_size: most rows of a pass.
        rank: the rank whose passes these are.
        world_size: number of ranks.
        first_step: steps before it are left out, where an epoch is resumed.
    """
    steps = Cut(len(order.rows), batch_size)
    for step in range(first_step, len(steps)):
        start, stop = steps[step]
        pieces = Cut(stop - start, micro_batch_size)
        rounds = -(-len(pieces) // world_size)
        for index in range(rounds):
            piece = index * world_size + rank
            surplus = piece >= len(pieces)
            low, high = pieces[0 if surplus else piece]
            own = slice(start + low, start + high)
            yield Pass(step, piece, order.rows[own], order.numbers[own], 0.0 if surplus else 1.0, index == rounds - 1)


def in_order(rows: int) -> Order:
    """Every row once, as they are numbered."""
    order = np.arange(rows)
    return Order(order, order)


def one_pass(ids: npt.NDArray[np.integer]) -> Pass:
    """These rows as the one pass of a step."""
    rows = np.asarray(ids, np.int64)
    return Pass(0, 0, rows, rows, 1.0, True)
