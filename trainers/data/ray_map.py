"""A function of each row, by Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

Row = TypeVar("Row")
Result = TypeVar("Result")


def ray_map(rows: Sequence[Row], function: Callable[[Row], Result], most: int | None = None) -> Iterator[Result]:
    """`function` of each row by Ray Data, in the order of the rows.

    Args:
        rows: mappings of plain values or arrays, as the results are: Ray Data keeps them in columns.
        function: run as a task of its own for each row.
        most: tasks at once; None: as many as there are CPUs for.
    """
    import ray.data

    mapped = _one_block_each(rows).map(function, compute=ray.data.TaskPoolStrategy(size=most))
    return cast(Iterator[Result], iter(mapped.iter_rows()))


def ray_map_all(rows: Sequence[Row], function: Callable[[Row], Sequence[Result]]) -> Iterator[Result]:
    """Like `ray_map`, of a function that gives several results of a row: one after another. Their arrays may differ in
    size, not in the number of dimensions."""
    return cast(Iterator[Result], iter(_one_block_each(rows).flat_map(function).iter_rows()))


def _one_block_each(rows: Sequence[Row]) -> Any:
    """A data set of Ray's, a task for each row."""
    import logging

    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    return ray.data.from_items(list(rows), override_num_blocks=len(rows))
