"""The HTML page of a report: one file with styles, script and pictures inside, which needs no network."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from trainers.formatting import format_duration
from trainers.report.page_sweep import (
    PageRun,
    PageSweep,
    TableCell,
    charts,
    section,
    status_words,
    sweep_head,
    sweep_sections,
    tiles,
    winner_of,
)
from trainers.report.svg import Series, bars, chart
from trainers.report.sweep_stats import RAN, number, pareto

COLOURS = 8
"""So many runs, the best ones, have a colour of their own; the others are grey."""
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
"""The class of a status in the table; others are faint."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs that have a partner in the baseline."""

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
) -> str:
    """The page: summary, table, notes, comparison, curves, maps, score against time, pictures, machines, records."""
    colours = _colours(runs)
    alone = len(sweeps) == 1 and len(sweeps[0].runs) == len(runs)
    best = [winner_of(sweep) for sweep in sweeps] if sweeps else [best_run(runs)]
    sections = [
        "" if alone else _summary(runs),
        *((sweep_head(sweep) if alone else section(sweep.label, sweep_head(sweep))) for sweep in sweeps),
        _table(headers, [run.cells for run in runs], [colours[run.label] for run in runs]),
        "<ul class=notes>" + "".join(f"<li>{escape(note)}" for note in notes) + "</ul>" if notes else "",
        _against(comparison),
        section("Learning curves", _legend(runs, colours), _curves(runs, colours)),
        *(part for sweep in sweeps for part in sweep_sections(sweep, colours, "" if alone else sweep.label)),
        section("Score against training time", *_scatters(runs, colours)),
        *(_pictures(run, "winner" if sweeps else "best run") for run in best if run),
        section("Machines and versions", _origins(runs, sweeps)),
        section("Everything recorded", _records(runs, sweeps)),
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
        return -common[run.metric], metric, best if run.minimise else -best

    return sorted((run for run in runs if run.metric and run.best is not None), key=place)


def _colours(runs: Sequence[PageRun]) -> dict[str, str]:
    """A colour class for each run: those of the best runs, in the order of the table, then grey."""
    best = [run.label for run in _ranked(runs)]
    chosen = list(dict.fromkeys([*best, *(run.label for run in runs if run.read)]))[:COLOURS]
    classes = {run.label: "grey" for run in runs}
    coloured = (label for label in classes if label in chosen)
    return classes | {label: f"c{place}" for place, label in enumerate(coloured)}


def _summary(runs: Sequence[PageRun]) -> str:
    found = [("runs", str(len(runs)), status_words(runs))]
    if best := best_run(runs):
        found.append((f"best {best.metric}", f"{best.best:.4f}", best.label))
    if rates := [(run.images_per_second, run.label) for run in runs if run.images_per_second is not None]:
        found.append(("fastest, images/s", f"{max(rates)[0]:,.0f}", max(rates)[1]))
    if times := [run.seconds for run in runs if run.seconds is not None]:
        found.append(("training, all runs", format_duration(sum(times)), f"longest {format_duration(max(times))}"))
    if costs := [run.cost for run in runs if run.cost is not None]:
        found.append(("cost, all runs", f"{sum(costs):,.2f}", f"highest {max(costs):,.2f}"))
    return tiles(found)


def _table(headers: Sequence[str], rows: Sequence[Sequence[TableCell]], marks: Sequence[str]) -> str:
    """A table to sort by its columns, without those that hold nothing. `marks`: a colour class for each row."""
    kept = [place for place in range(len(headers)) if any(row[place].value is not None for row in rows)]
    if not kept:
        return ""
    numbers = {place for place in kept if any(number(row[place].value) is not None for row in rows)}
    head = "".join(f"<th><button>{escape(headers[place])}</button>" for place in kept)
    lines = []
    for row, mark in zip(rows, marks, strict=True):
        cells = ""
        for place in kept:
            cell = row[place]
            css = "n" if place in numbers else ""
            shown = f"<i class={mark}></i>{escape(cell.text)}" if place == 0 and mark else escape(cell.text)
            if cell.column == "status":
                shown = f"<em class={STATES.get(cell.text, 'faint')}>{escape(cell.text.replace('_', ' '))}</em>"
            if cell.more:
                css, shown = "long", f"{shown}<small>{escape(cell.more)}</small>"
            key = "" if cell.value is None else escape(str(cell.value), quote=True)
            cells += f'<td{f" class={css}" if css else ""} data-v="{key}">{shown}'
        lines.append(f"<tr>{cells}")
    return f"<div class=wide><table><thead><tr>{head}<tbody>\n" + "\n".join(lines) + "\n</table></div>"


def _against(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    title = f"Against {comparison.label}"
    if not comparison.rows:
        return section(title, "<p>No run is paired with one of the baseline; the notes above say why.</p>")
    told = (
        f"<p class=faint>{escape(comparison.machines)}; the baseline: {escape(comparison.baseline_machines)}. "
        "Speed-up is the baseline's seconds an epoch by this run's; the line marks 1.</p>"
    )
    table = _table(comparison.headers, comparison.rows, [""] * len(comparison.rows))
    return section(title, told, bars(comparison.speed_ups, one=1.0), table)


def _legend(runs: Sequence[PageRun], colours: Mapping[str, str]) -> str:
    named = [run.label for run in runs if colours[run.label] != "grey"]
    items = [f"<li><i class={colours[label]}></i>{escape(label)}" for label in named]
    if others := len(runs) - len(named):
        items.append(f"<li><i class=grey></i>{others} others")
    return f"<ul class=legend>{''.join(items)}</ul>"


def _curves(runs: Sequence[PageRun], colours: Mapping[str, str]) -> str:
    """Losses and every score that was some run's measure of the best, against the epoch."""
    scores = [f"val/{run.metric.removeprefix('val/')}" for run in runs if run.metric]
    drawn = []
    for key in dict.fromkeys(["train/loss", "val/loss", *scores]):
        lines = [Series(run.label, colours[run.label], _points(run, key)) for run in runs]
        lines.sort(key=lambda line: line.css != "grey")  # grey lines below
        drawn.append(chart(key, "epoch", lines, log_y="loss" in key))
    return charts(drawn)


def _points(run: PageRun, key: str) -> list[tuple[float, float]]:
    pairs = [(number(line.get("epoch")), number(line.get(key))) for line in run.history]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _scatters(runs: Sequence[PageRun], colours: Mapping[str, str]) -> list[str]:
    """Score against time with the Pareto front, for each metric: a line of text and the charts."""
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
    those = ", ".join(named) if len(named) <= 4 else f"one of the {len(named)} on it"
    told = f"The dashed line is the Pareto front: no run is both faster and better than {those}."
    return [f"<p class=faint>{escape(told)}</p>" if named else "", charts(drawn)]


def _pictures(run: PageRun, what: str) -> str:
    """The confusion matrix and predictions of a run, as far as its folder has them."""
    shown = []
    for title, name in (("Confusion matrix", "confusion.png"), ("Predictions", "predictions.png")):
        try:
            picture = base64.b64encode(run.read(name)).decode() if run.read else ""
        except OSError:
            continue
        if picture:
            image = f'<img alt="{title}" src="data:image/png;base64,{picture}">'
            shown.append(section(f"{title} of the {what}", f"<p class=faint>{escape(run.label)}</p>", image))
    return "\n".join(shown)


def _origins(runs: Sequence[PageRun], sweeps: Sequence[PageSweep]) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    all_of_them: list[PageSweep | PageRun] = [*sweeps, *runs]
    for each in all_of_them:
        if each.machine or each.versions:
            groups.setdefault((each.machine, each.versions), []).append(each.label)
    unknown = [run.label for run in runs if run.read and not (run.machine or run.versions)]
    if unknown:
        groups["", ""] = unknown
    return "".join(
        f"<p><b>{escape(machine or 'machine unknown')}</b><br>{escape(versions or 'versions unknown')}<br>"
        f"<span class=faint>{escape(', '.join(labels))}</span>"
        for (machine, versions), labels in groups.items()
    )


def _records(runs: Sequence[PageRun], sweeps: Sequence[PageSweep]) -> str:
    all_of_them: list[PageSweep | PageRun] = [*sweeps, *runs]
    return "\n".join(
        f"<details><summary>{escape(each.label)}</summary>"
        f"<pre>{escape(json.dumps(each.info, indent=1))}</pre></details>"
        for each in all_of_them
    )


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
 --grey: #b3bac4; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --faint: #9aa6b5; --line: #333c48;
 --back: #12161c;
 --card: #1b2129; --c0: #74a5ff; --c1: #ff9a5c; --c2: #5fce85; --c3: #bb98ff; --c4: #ff85b6; --c5: #52cde2;
 --c6: #e2bd45; --c7: #d3b8a2; --grey: #566070; --bad: #ff8a80 } }
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
td:first-child { min-width: min(34vw, 210px); max-width: 260px; white-space: normal; overflow-wrap: anywhere }
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
circle { fill: currentColor } .ring { fill: none; stroke: currentColor; stroke-width: 1.8 }
.mark { fill: none; stroke: currentColor; stroke-width: 2.4 } .field { fill: currentColor }
.level { stroke: var(--bad); stroke-dasharray: 5 4 } .front { color: var(--faint) }
.front .line { stroke-dasharray: 5 4 } .ink { fill: var(--ink) } .small { font-size: 10.5px }
em { font-style: normal; white-space: nowrap } em.faint { font-size: inherit } .good { color: var(--c2) }
.calm { color: var(--c0) } .warn { color: var(--c1) } .bad { color: var(--bad) }
td.long { white-space: normal; min-width: 210px }
small { display: block; color: var(--faint); font-size: 12px; overflow-wrap: anywhere }
.bars { display: grid; gap: 6px; max-width: 900px; font-size: 13px }
.bars li { display: grid; grid-template-columns: minmax(120px, 280px) 1fr 56px; gap: 10px; align-items: center }
@media (max-width: 600px) { .bars li { grid-template-columns: 1fr 56px; gap: 2px 10px }
 .bars li span:first-child { grid-column: 1 / -1 } }
.bar { position: relative; height: 14px; background: var(--card); border-radius: 3px }
.bar b { display: block; height: 100%; background: var(--c0); border-radius: 3px }
.bar u { position: absolute; top: -3px; bottom: -3px; border-left: 2px solid var(--ink) }
.bars span:last-child { text-align: right; font-variant-numeric: tabular-nums }
.grey { color: var(--grey) } g.grey .line { stroke-width: 1 } g:hover .line { stroke-width: 3.5 }
.c0 { color: var(--c0) } .c1 { color: var(--c1) } .c2 { color: var(--c2) } .c3 { color: var(--c3) }
.c4 { color: var(--c4) } .c5 { color: var(--c5) } .c6 { color: var(--c6) } .c7 { color: var(--c7) }
img { max-width: min(100%, 720px); border-radius: 8px; background: #fff }
pre { overflow-x: auto; background: var(--card); border-radius: 8px; padding: 12px; font-size: 12px }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("th:has(button)")) head.firstChild.onclick = () => {
  const down = head.ariaSort === "ascending" ? -1 : 1, body = head.closest("table").tBodies[0];
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
  const key = row => row.cells[head.cellIndex].dataset.v;
  const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "")   // unknown values last, both ways
    : down * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
};
"""
