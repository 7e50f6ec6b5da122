"""The HTML page of a report: one file with styles, script and pictures inside, which needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from trainers.formatting import format_duration
from trainers.report.page_sweep import (
    Charts,
    PageRun,
    PageSweep,
    TableCell,
    Tile,
    status_words,
    sweep_part,
    winner_of,
)
from trainers.report.svg import Series, chart
from trainers.report.sweep_stats import RAN, number, pareto
from trainers.report.templating import render, source

COLOURS = 8
"""Number of runs, the best ones, that get a colour of their own; the others are grey."""
STATES = {
    "finished": "good",
    "stopped_early": "calm",
    "out_of_memory": "warn",
    "does_not_fit": "warn",
    "settled": "warn",
    "failed": "bad",
    "unreadable": "bad",
    "out_of_time": "bad",
}
"""Status -> the class of its colour; others are faint."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs that are compared with one of the baseline."""

    label: str
    headers: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    speed_ups: Sequence[tuple[str, str, float]]
    """Label, the number as text, the number."""
    machines: str
    baseline_machines: str


def page(
    title: str,
    headers: Sequence[str],
    runs: Sequence[PageRun],
    notes: Sequence[str],
    sweeps: Sequence[PageSweep] = (),
    comparison: Comparison | None = None,
    made: str | None = None,
) -> str:
    """The page: summary, table, notes, comparison, curves, maps, score against time, pictures, machines, records.

    Args:
        title: what it is a report of.
        headers: of the table's columns.
        runs: its rows.
        notes: lines below it.
        sweeps: those whose trials are among the runs.
        comparison: with the baseline, where one was requested.
        made: when, as the page says it; now, if None.

    Returns:
        HTML with styles, script and pictures inside. The same arguments give the same page.
    """
    colours = _colours(runs)
    alone = len(sweeps) == 1 and len(sweeps[0].runs) == len(runs)
    groups = _groups(runs)
    best = [winner_of(sweep) for sweep in sweeps] if sweeps else [best_run(those) for those in groups.values()]
    script = source("report.js")
    all_of_them: list[PageSweep | PageRun] = [*sweeps, *runs]
    rendered = render(
        "page.html.j2",
        title=title,
        made=made or datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        style=source("report.css"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        alone=alone,
        summary=[] if alone else _summary(groups, runs),
        sweeps=[sweep_part(sweep, colours, alone=alone) for sweep in sweeps],
        table=_table(
            headers,
            [run.cells for run in runs],
            [colours[run.label] for run in runs],
            [place for place, run in enumerate(runs) if any(run is sweep.winner for sweep in sweeps)],
        ),
        notes=notes,
        against=None if comparison is None else _against(comparison),
        groups=[
            {
                "before": f"{name or 'unknown data'}: " if len(groups) > 1 else "",
                "legend": _legend(those, colours),
                "curves": _curves(those, colours),
                "scatters": _scatters(those, colours),
            }
            for name, those in groups.items()
        ],
        pictures=[picture for run in best if run for picture in _pictures(run, _what(run, sweeps, groups))],
        origins=_origins(all_of_them),
        records=[(each.label, json.dumps(each.info, indent=1)) for each in all_of_them],
    )
    return str(rendered)


def _groups(runs: Sequence[PageRun]) -> dict[str, list[PageRun]]:
    """Runs by what they can be compared with, in the order of the table."""
    groups: dict[str, list[PageRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def best_run(runs: Sequence[PageRun]) -> PageRun | None:
    """The best by the metric that most runs have; None where none has a score. Of a loss, lower is better."""
    return next(iter(_ranked(runs)), None)


def _ranked(runs: Sequence[PageRun]) -> list[PageRun]:
    """Runs with a score, the best first, those of the commonest metric before the others."""
    common = Counter(run.metric for run in runs)

    def place(run: PageRun) -> tuple[int, str, float]:
        best, metric = run.best or 0.0, run.metric or ""
        return -common[run.metric], metric, best if run.minimise else -best

    return sorted((run for run in runs if run.metric and run.best is not None), key=place)


def _colours(runs: Sequence[PageRun]) -> dict[str, str]:
    """A colour class for each run: of each group those of the best runs, in the order of the table, then grey."""
    classes = {run.label: "grey" for run in runs}
    for those in _groups(runs).values():
        best = [run.label for run in _ranked(those)]
        chosen = list(dict.fromkeys([*best, *(run.label for run in those if run.read)]))[:COLOURS]
        coloured = (run.label for run in those if run.label in chosen)
        classes |= {label: f"c{place}" for place, label in enumerate(coloured)}
    return classes


def _summary(groups: Mapping[str, Sequence[PageRun]], runs: Sequence[PageRun]) -> list[Tile]:
    found = [Tile("runs", str(len(runs)), status_words(runs))]
    for name, those in groups.items():
        of = f", {name or 'unknown data'}" if len(groups) > 1 else ""
        if best := best_run(those):
            found.append(Tile(f"best {best.metric}{of}", f"{best.best:.4f}", best.label))
        if rates := [(run.images_per_second, run.label) for run in those if run.images_per_second is not None]:
            found.append(Tile(f"fastest, images/s{of}", f"{max(rates)[0]:,.0f}", max(rates)[1]))
    if times := [run.seconds for run in runs if run.seconds is not None]:
        found.append(Tile("training, all runs", format_duration(sum(times)), f"longest {format_duration(max(times))}"))
    if costs := [run.cost for run in runs if run.cost is not None]:
        found.append(Tile("cost, all runs", f"{sum(costs):,.2f}", f"highest {max(costs):,.2f}"))
    return found


@dataclass(frozen=True)
class Field:
    """A cell as the template draws it."""

    text: str
    key: str
    """What the script sorts by; empty where nothing is known."""
    css: str
    state: str
    """Of a status: the class of its colour."""
    more: str


@dataclass(frozen=True)
class Row:
    mark: str
    """The class of the run's colour, or empty."""
    cells: Sequence[Field]
    wins: bool
    """It is the winner of a sweep."""


@dataclass(frozen=True)
class Table:
    headers: Sequence[str]
    rows: Sequence[Row]


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[TableCell]], marks: Sequence[str], winners: Sequence[int] = ()
) -> Table:
    """A table to sort by its columns, without those that hold nothing.

    Args:
        headers: of all columns.
        rows: a cell for each header.
        marks: a colour class for each row, or empty.
        winners: places of the rows to stress.
    """
    kept = [place for place in range(len(headers)) if any(row[place].value is not None for row in rows)]
    if not kept:
        return Table([], [])
    numbers = {place for place in kept if any(number(row[place].value) is not None for row in rows)}
    shown = [
        Row(mark, [_field(row[place], place in numbers) for place in kept], line in winners)
        for line, (row, mark) in enumerate(zip(rows, marks, strict=True))
    ]
    return Table([headers[place] for place in kept], shown)


def _field(cell: TableCell, is_number: bool) -> Field:
    key = "" if cell.value is None else str(cell.value)
    css = "long" if cell.more else "n" if is_number else ""
    if cell.column == "status":
        return Field(cell.text.replace("_", " "), key, css, STATES.get(cell.text, "faint"), cell.more)
    return Field(cell.text, key, css, "", cell.more)


def _against(comparison: Comparison) -> dict[str, object]:
    """The section that compares with the baseline: bars of speed-up, and a table."""
    most = max([size for *_, size in comparison.speed_ups] + [1.0])
    about = (
        f"{comparison.machines}; the baseline: {comparison.baseline_machines}. "
        "Speed-up is the baseline's seconds per epoch divided by this run's; the line marks 1."
    )
    return {
        "label": comparison.label,
        "about": about if comparison.rows else "",
        "bars": [
            {"label": label, "text": text, "share": f"{100 * size / most:.1f}"}
            for label, text, size in comparison.speed_ups
        ],
        "one": f"{100 / most:.1f}",
        "table": _table(comparison.headers, comparison.rows, [""] * len(comparison.rows)),
    }


def _legend(runs: Sequence[PageRun], colours: Mapping[str, str]) -> list[tuple[str, str]]:
    """Labels and classes of colours."""
    named = [(run.label, colours[run.label]) for run in runs if colours[run.label] != "grey"]
    others = len(runs) - len(named)
    return [*named, *([(f"{others} others", "grey")] if others else [])]


def _curves(runs: Sequence[PageRun], colours: Mapping[str, str]) -> list[Markup]:
    """Losses and every score that was some run's measure of the best, against the epoch."""
    scores = [f"val/{run.metric.removeprefix('val/')}" for run in runs if run.metric]
    drawn = []
    for key in dict.fromkeys(["train/loss", "val/loss", *scores]):
        lines = [Series(run.label, colours[run.label], _points(run, key)) for run in runs]
        lines.sort(key=lambda line: line.css != "grey")  # grey lines below
        drawn.append(chart(key, "epoch", lines, log_y="loss" in key))
    return [picture for picture in drawn if picture]


def _points(run: PageRun, key: str) -> list[tuple[float, float]]:
    pairs = [(number(line.get("epoch")), number(line.get(key))) for line in run.history]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _scatters(runs: Sequence[PageRun], colours: Mapping[str, str]) -> Charts:
    """Score against time with the Pareto front, for each metric."""
    drawn, named = [], []
    for metric in dict.fromkeys(run.metric for run in runs if run.metric):
        known = [
            (run, (run.seconds, run.best))
            for run in runs
            if run.metric == metric and run.best is not None and run.seconds is not None
        ]
        dots = [Series(run.label, colours[run.label], [point], "dot") for run, point in known]
        ended = [(run, point) for run, point in known if run.status in RAN]
        front = pareto([point for _, point in ended], minimise=any(run.minimise for run, _ in known))
        named += [ended[place][0].label for place in front]
        line = Series("Pareto front", "front", [ended[place][1] for place in front])
        drawn.append(chart(f"best {metric}", "seconds of training", [line, *dots], log_x=True))
    those = ", ".join(named) if len(named) <= 4 else f"any of the {len(named)} on it"
    about = f"The dashed line is the Pareto front: no run is both faster and better than {those}." if named else ""
    return Charts("Score against training time", about, [picture for picture in drawn if picture])


def _what(run: PageRun, sweeps: Sequence[PageSweep], groups: Mapping[str, object]) -> str:
    if sweeps:
        return "winner"
    return f"best run, {run.group or 'unknown data'}" if len(groups) > 1 else "best run"


PICTURES = {
    "Confusion matrix": "confusion.png",
    "Predicted against true numbers": "scatter.png",
    "Average precisions": "average_precision.png",
    "Precision, recall and confidence": "detections.png",
    "Predictions": "predictions.png",
}
"""Title -> file of a run folder."""


def _pictures(run: PageRun, what: str) -> list[dict[str, str]]:
    """Charts of the scores and predictions of a run, as far as its folder has them."""
    shown = []
    for title, name in PICTURES.items():
        try:
            picture = base64.b64encode(run.read(name)).decode() if run.read else ""
        except OSError:
            continue
        if picture:
            shown.append({"title": f"{title} of the {what}", "label": run.label, "data": picture})
    return shown


def _origins(all_of_them: Sequence[PageSweep | PageRun]) -> list[dict[str, str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for each in all_of_them:
        if each.machine or each.versions:
            groups.setdefault((each.machine, each.versions), []).append(each.label)
    unknown = [
        each.label
        for each in all_of_them
        if isinstance(each, PageRun) and each.read and not (each.machine or each.versions)
    ]
    if unknown:
        groups["", ""] = unknown
    return [
        {
            "machine": machine or "machine unknown",
            "versions": versions or "versions unknown",
            "labels": ", ".join(labels),
        }
        for (machine, versions), labels in groups.items()
    ]
