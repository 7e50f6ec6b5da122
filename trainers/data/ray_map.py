"""A function of each row, by Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def ray_map(
    rows: list[dict[str, Any]], function: Callable[[dict[str, Any]], dict[str, Any]], most: int | None = None
) -> Iterator[dict[str, Any]]:
    """`function` of each row by Ray Data: one task a row, at most `most` at once, results in the order of the rows."""
    import logging

    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        function, compute=ray.data.TaskPoolStrategy(size=most)
    )
    yield from mapped.iter_rows()
