"""A function of each row, by Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

Row = TypeVar("Row")
Result = TypeVar("Result")


def ray_map(rows: Sequence[Row], function: Callable[[Row], Result], most: int | None = None) -> Iterator[Result]:
    """`function` of each row by Ray Data, in the order of the rows.

    Args:
        rows: mappings of plain values or arrays, as the results are: Ray Data keeps them in columns.
        function: run as a task of its own for each row.
        most: tasks at once; None: as many as there are CPUs for.
    """
    import logging

    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    of_columns = cast(Callable[[dict[str, object]], dict[str, object]], function)
    mapped = ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(
        of_columns, compute=ray.data.TaskPoolStrategy(size=most)
    )
    for result in mapped.iter_rows():
        yield cast(Result, result)
