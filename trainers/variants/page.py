"""The forms of a model for people: a table for terminals, and a page with score against milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from trainers.formatting import format_size
from trainers.report.svg import Series, chart
from trainers.report.templating import render, source
from trainers.variants.facts import Optimized, Row

if TYPE_CHECKING:
    from rich.table import Table


def headers(facts: Optimized) -> list[str]:
    """Of the table's columns."""
    each = [f"ms, {batch} at once" for batch in facts["rows"][0]["ms"]]
    return ["form", facts["metric"], "agreement", "size", *each, "times as fast", "file"]


def cells(row: Row, facts: Optimized) -> list[str]:
    """A row of the table."""
    first, batch = facts["rows"][0], next(iter(row["ms"]))
    spreads = [f"{median:.3g} ({low:.3g} to {high:.3g})" for low, median, high in row["ms"].values()]
    faster = f"{first['ms'][batch][1] / row['ms'][batch][1]:.2f}"
    score = f"{row['score']:.4f}" + ("" if row["good"] else " (too low)")
    return [
        row["name"],
        score,
        f"{row['agreement']:.4f}",
        format_size(row["bytes"]),
        *spreads,
        faster,
        row["file"] or "",
    ]


def choice(facts: Optimized) -> str:
    """Which form was chosen, and why, in a sentence."""
    first = facts["rows"][0]
    row = next(each for each in facts["rows"] if each["name"] == facts["chosen"])
    if row is first:
        return f"Nothing is faster than the run itself within {facts['tolerance']:g} of its {facts['metric']}."
    batch = next(iter(row["ms"]))
    times = first["ms"][batch][1] / row["ms"][batch][1]
    return (
        f"{row['file'] or row['name']} is the fastest within {facts['tolerance']:g} of the {facts['metric']}: "
        f"{times:.2f} times as fast as the run, {facts['metric']} {row['score']:.4f} for {first['score']:.4f}."
    )


def about(facts: Optimized) -> str:
    """Where and on what it was measured."""
    flags = f" ({', '.join(facts['flags'])})" if facts["flags"] else ""
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)} of {facts['machine']['cpu']}{flags}"
    return (
        f"{facts['metric']} and agreement on {facts['pictures']:,} pictures of {facts['split']}; "
        f"milliseconds a picture, median and quartiles of rounds in turns, {threads}"
    )


def table(facts: Optimized) -> Table:
    """For terminals."""
    from rich.table import Table

    found = Table(box=None, header_style="bold", pad_edge=False)
    for place, header in enumerate(headers(facts)):
        found.add_column(header, justify="left" if place in (0, len(headers(facts)) - 1) else "right")
    for row in facts["rows"]:
        found.add_row(*cells(row, facts), style="bold" if row["name"] == facts["chosen"] else None)
    return found


def render_page(facts: Optimized) -> str:
    """One file, which needs no network."""
    charts = [_chart(facts, batch) for batch in facts["rows"][0]["ms"]]
    return str(
        render(
            "optimize.html.j2",
            style=source("report.css"),
            facts=facts,
            choice=choice(facts),
            about=about(facts),
            headers=headers(facts),
            rows=[(row, f"c{place}", cells(row, facts)) for place, row in enumerate(facts["rows"])],
            charts=charts,
        )
    )


def _chart(facts: Optimized, batch: str) -> Markup:
    """Score against milliseconds a picture, with so many pictures at once."""
    rows = facts["rows"]
    return chart(
        facts["metric"],
        f"ms a picture, {batch} at once",
        [
            Series(row["name"], f"c{place}", [(row["ms"][batch][1], row["score"])], "dot")
            for place, row in enumerate(rows)
        ],
        log_x=True,
        log_above=4,
        level=("least score", rows[0]["score"] - facts["tolerance"]),
    )
