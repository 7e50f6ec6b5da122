"""The HTML page of a report: one file with styles, script and pictures inside, which needs no network."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import Any, NamedTuple

COLOURS = 8
"""So many runs, the best ones, have a colour of their own; the others are grey."""


class Cell(NamedTuple):
    text: str
    value: Any
    """What the table is sorted by."""


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """What the page needs of a run. Unknown numbers are None."""

    label: str
    status: str
    cells: Sequence[Cell]
    metric: str | None
    best: float | None
    seconds: float | None
    images_per_second: float | None
    cost: float | None
    history: Sequence[Mapping[str, Any]]
    """The lines of metrics.jsonl."""
    machine: str
    versions: str
    info: Mapping[str, Any]
    """run.json"""
    read: Callable[[str], bytes]
    """Reads a file of the run folder."""


@dataclass(frozen=True)
class Series:
    label: str
    css: str
    points: list[tuple[float, float]] = field(default_factory=list)


def page(title: str, headers: Sequence[str], runs: Sequence[PageRun], notes: Sequence[str]) -> str:
    """The page: summary, table, notes, curves, score against time, confusion matrix, machines, records."""
    colours = _colours(runs)
    sections = [
        f"<ul class=tiles>{_summary(runs)}</ul>",
        _table(headers, runs, colours) if runs else "",
        "<ul class=notes>" + "".join(f"<li>{escape(note)}" for note in notes) + "</ul>" if notes else "",
        _section("Learning curves", _legend(runs, colours), _curves(runs, colours)),
        _section("Score against training time", _scatters(runs, colours)),
        _section("Confusion matrix of the best run", _confusion(runs)),
        _section("Machines and versions", _origins(runs)),
        _section("Everything recorded", _records(runs)),
    ]
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        _HEAD
        + f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<main>\n<h1>Trainyard report</h1>\n"
        + f"<p class=faint>{escape(title)}, {now}</p>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>{_SCRIPT}</script>\n</html>\n"
    )


def best_run(runs: Sequence[PageRun]) -> PageRun | None:
    """The best by the metric that most runs have; None where none has a score. Of a loss, less is better."""
    return next(iter(_ranked(runs)), None)


def _ranked(runs: Sequence[PageRun]) -> list[PageRun]:
    """Runs with a score, the best first, those of the commonest metric before the others."""
    common = Counter(run.metric for run in runs)

    def place(run: PageRun) -> tuple[int, str, float]:
        best, metric = run.best or 0.0, run.metric or ""
        return -common[run.metric], metric, best if "loss" in metric else -best

    return sorted((run for run in runs if run.metric and run.best is not None), key=place)


def _colours(runs: Sequence[PageRun]) -> dict[str, str]:
    """A colour class for each run: those of the best runs, in the order of the table, then grey."""
    best = [run.label for run in _ranked(runs)]
    chosen = list(dict.fromkeys([*best, *(run.label for run in runs)]))[:COLOURS]
    classes = {run.label: "grey" for run in runs}
    coloured = (label for label in classes if label in chosen)
    return classes | {label: f"c{number}" for number, label in enumerate(coloured)}


def _section(title: str, *parts: str) -> str:
    return f"<h2>{title}</h2>\n" + "\n".join(parts) if parts[-1] else ""


def _summary(runs: Sequence[PageRun]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in Counter(run.status for run in runs).items())
    tiles = [("runs", str(len(runs)), states)]
    if best := best_run(runs):
        tiles.append((f"best {best.metric}", f"{best.best:.4f}", best.label))
    if rates := [(run.images_per_second, run.label) for run in runs if run.images_per_second is not None]:
        tiles.append(("fastest, images/s", f"{max(rates)[0]:,.0f}", max(rates)[1]))
    if times := [run.seconds for run in runs if run.seconds is not None]:
        longest = f"longest {max(times) / 3600:,.2f} h"
        tiles.append(("training, all runs", f"{sum(times) / 3600:,.2f} h", longest))
    if costs := [run.cost for run in runs if run.cost is not None]:
        tiles.append(("cost, all runs", f"{sum(costs):,.2f}", f"highest {max(costs):,.2f}"))
    return "".join(
        f"<li><span>{escape(what)}</span><b>{escape(number)}</b><span>{escape(more)}</span>"
        for what, number, more in tiles
    )


def _table(headers: Sequence[str], runs: Sequence[PageRun], colours: Mapping[str, str]) -> str:
    known = [any(run.cells[index].value is not None for run in runs) for index in range(len(headers))]
    kept = [index for index in range(len(headers)) if known[index]]
    head = "".join(f"<th><button>{escape(headers[index])}</button>" for index in kept)
    rows = []
    for run in runs:
        cells = ""
        for index in kept:
            text, value = run.cells[index]
            number = " class=n" if isinstance(value, int | float) else ""
            mark = f"<i class={colours[run.label]}></i>" if index == 0 else ""
            key = "" if value is None else escape(str(value), quote=True)
            cells += f'<td{number} data-v="{key}">{mark}{escape(text)}'
        rows.append(f"<tr>{cells}")
    return f"<div class=wide><table><thead><tr>{head}<tbody>\n" + "\n".join(rows) + "\n</table></div>"


def _legend(runs: Sequence[PageRun], colours: Mapping[str, str]) -> str:
    named = [run.label for run in runs if colours[run.label] != "grey"]
    items = [f"<li><i class={colours[label]}></i>{escape(label)}" for label in named]
    if others := len(runs) - len(named):
        items.append(f"<li><i class=grey></i>{others} others")
    return f"<ul class=legend>{''.join(items)}</ul>"


def _curves(runs: Sequence[PageRun], colours: Mapping[str, str]) -> str:
    """Losses and every score that was some run's measure of the best, against the epoch."""
    scores = [f"val/{run.metric.removeprefix('val/')}" for run in runs if run.metric]
    charts = []
    for key in dict.fromkeys(["train/loss", "val/loss", *scores]):
        lines = [Series(run.label, colours[run.label], _points(run.history, key)) for run in runs]
        lines.sort(key=lambda line: line.css != "grey")  # grey lines below
        charts.append(chart(key, "epoch", lines, log_y="loss" in key))
    return _charts(charts)


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(line.get("epoch"), line.get(key)) for line in history]
    return [
        (x, y)
        for x, y in pairs
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(x) and math.isfinite(y)
    ]


def _scatters(runs: Sequence[PageRun], colours: Mapping[str, str]) -> str:
    charts = []
    for metric in dict.fromkeys(run.metric for run in runs if run.metric):
        dots = [
            Series(run.label, colours[run.label], [(run.seconds, run.best)])
            for run in runs
            if run.metric == metric and run.best is not None and run.seconds is not None
        ]
        charts.append(chart(f"best {metric}", "seconds of training", dots, log_x=True))
    return _charts(charts)


def _charts(charts: Sequence[str]) -> str:
    return f"<div class=charts>{''.join(charts)}</div>" if any(charts) else ""


def _confusion(runs: Sequence[PageRun]) -> str:
    best = best_run(runs)
    if best is None:
        return ""
    try:
        picture = base64.b64encode(best.read("confusion.png")).decode()
    except OSError:
        return ""
    text = f"confusion matrix of {escape(best.label, quote=True)}"
    return f'<img alt="{text}" src="data:image/png;base64,{picture}"><p class=faint>{escape(best.label)}</p>'


def _origins(runs: Sequence[PageRun]) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        groups.setdefault((run.machine, run.versions), []).append(run.label)
    return "".join(
        f"<p><b>{escape(machine)}</b><br>{escape(versions)}<br><span class=faint>{escape(', '.join(labels))}</span>"
        for (machine, versions), labels in groups.items()
    )


def _records(runs: Sequence[PageRun]) -> str:
    return "\n".join(
        f"<details><summary>{escape(run.label)}</summary><pre>{escape(json.dumps(run.info, indent=1))}</pre></details>"
        for run in runs
    )


# Charts

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 42


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` onto pixels from `start` to `stop`, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float, *, log: bool) -> Axis:
        """An axis for all values. It is logarithmic if that is allowed and they span a factor above 50."""
        low, high = min(values), max(values)
        if log and low > 0 and high / low > 50:
            return cls(low / 1.3, high * 1.3, start, stop, True)
        margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
        return cls(low - margin, high + margin, start, stop, False)

    def at(self, value: float) -> float:
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.stop - self.start), 1)

    def ticks(self, *, whole: bool = False) -> list[float]:
        """Round numbers on the axis: powers of ten, or 3 to 6 multiples of 1, 2 or 5 times one."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers[:: 1 + len(powers) // 7]]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        step = max(step, 1) if whole else step
        return [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def chart(title: str, x_label: str, series: Sequence[Series], *, log_x: bool = False, log_y: bool = False) -> str:
    """An SVG of lines; a series of one point is a dot. Empty if there are no points."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    x = Axis.over([point[0] for point in points], LEFT, WIDTH - RIGHT, log=log_x)
    y = Axis.over([point[1] for point in points], HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [f"<text class=title x={LEFT} y=16>{escape(title)}</text>"]
    for tick in y.ticks():
        parts.append(f"<path class=grid d='M{LEFT} {y.at(tick)}H{WIDTH - RIGHT}'/>")
        parts.append(f"<text x={LEFT - 6} y={y.at(tick) + 4} text-anchor=end>{tick:.4g}</text>")
    for tick in x.ticks(whole=x_label == "epoch"):
        across, foot = x.at(tick), HEIGHT - BOTTOM
        parts.append(f"<path class=grid d='M{across} {foot}v4'/>")
        parts.append(f"<text x={across} y={foot + 17} text-anchor=middle>{_plain(tick)}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f"<text x={middle} y={HEIGHT - 6} text-anchor=middle>{escape(x_label)}</text>")
    for line in series:
        places = [(x.at(each[0]), y.at(each[1])) for each in line.points]
        if not places:
            continue
        last = line.points[-1]
        hint = f"<title>{escape(line.label)}: {last[1]:.4g} at {last[0]:.4g}</title>"
        path = " ".join(f"{across} {down}" for across, down in places)
        drawn = f"<path class=line d='M{path}'/>" if len(places) > 1 else ""
        radius = 2.5 if drawn else 5
        drawn += f"<circle cx={places[-1][0]} cy={places[-1][1]} r={radius} />"
        parts.append(f"<g class={line.css}>{hint}{drawn}</g>")
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{label}">{"".join(parts)}</svg>\n'


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1 and value == round(value) else f"{value:.4g}"


_HEAD = """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel=icon href="data:,">
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #5d6878; --line: #d9dee6; --back: #fff;
 --card: #f4f6f9;
 --c0: #1d5fd1; --c1: #c2500a; --c2: #13803d; --c3: #7b3fd1; --c4: #c01a67; --c5: #0b7d92; --c6: #8d6a00;
 --c7: #5b4636;
 --grey: #b3bac4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --faint: #9aa6b5; --line: #333c48;
 --back: #12161c;
 --card: #1b2129; --c0: #74a5ff; --c1: #ff9a5c; --c2: #5fce85; --c3: #bb98ff; --c4: #ff85b6; --c5: #52cde2;
 --c6: #e2bd45; --c7: #d3b8a2; --grey: #566070 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1320px; margin: auto; padding: 16px }
h1 { font-size: 24px; margin: 8px 0 0 } h2 { font-size: 18px; margin: 32px 0 8px }
p, li, summary { overflow-wrap: anywhere } p { margin: 0 0 12px } .faint { color: var(--faint);
 font-size: 13px }
ul { list-style: none; padding: 0; margin: 12px 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px;
 margin: 16px 0 }
.tiles li { background: var(--card); border-radius: 8px; padding: 10px 12px }
.tiles span { display: block; color: var(--faint); font-size: 13px } .tiles b { font-size: 22px;
 line-height: 1.3 }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 13px;
 font-variant-numeric: tabular-nums }
th, td { padding: 6px 8px; text-align: left; white-space: nowrap } th { vertical-align: bottom }
td { border-top: 1px solid var(--line) } .n { text-align: right }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back);
 border-right: 1px solid var(--line) }
td:first-child { min-width: 130px; max-width: 260px; white-space: normal; overflow-wrap: anywhere }
th button { all: unset; cursor: pointer; font-weight: 600; white-space: normal }
th button:hover { text-decoration: underline } th button:focus-visible { outline: 2px solid var(--c0) }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 6px;
 background: currentColor }
.notes { color: var(--faint); font-size: 13px } .legend { display: flex; flex-wrap: wrap; gap: 2px 16px;
 font-size: 13px }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 12px }
svg { width: 100%; max-width: 560px; background: var(--card); border-radius: 8px }
text { fill: var(--faint); font-size: 12px }
.title { fill: var(--ink); font-size: 14px; font-weight: 600 } .grid { stroke: var(--line) }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round }
circle { fill: currentColor }
.grey { color: var(--grey) } g.grey .line { stroke-width: 1 } g:hover .line { stroke-width: 3.5 }
.c0 { color: var(--c0) } .c1 { color: var(--c1) } .c2 { color: var(--c2) } .c3 { color: var(--c3) }
.c4 { color: var(--c4) } .c5 { color: var(--c5) } .c6 { color: var(--c6) } .c7 { color: var(--c7) }
img { max-width: min(100%, 720px); border-radius: 8px; background: #fff }
pre { overflow-x: auto; background: var(--card); border-radius: 8px; padding: 12px; font-size: 12px }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.firstChild.onclick = () => {
  const down = head.ariaSort === "ascending" ? -1 : 1, body = head.closest("table").tBodies[0];
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
  const key = row => row.cells[head.cellIndex].dataset.v;
  const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "")   // unknown values last, both ways
    : down * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
};
"""
