"""Runs and sweeps side by side: a table for terminals, CSV, JSON or an HTML page, from their folders alone.

Needs neither torch nor Ray. What is shown of each run is the list COLUMNS of columns.py.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence

from trainers.formatting import format_duration
from trainers.report.baseline import Pair, pairs
from trainers.report.columns import (
    Column,
    Context,
    Value,
    columns_for,
    cost_of,
    machine_of,
    predicted_memory,
    score_text,
)
from trainers.report.groups import grouped
from trainers.report.page import Comparison, page
from trainers.report.page_sweep import PageRun, PageSweep, TableCell
from trainers.report.reader import Found, Run, Sweep, find, read_metrics, resolve, with_trials
from trainers.report.sweep_stats import (
    RAN,
    Setting,
    number,
    ranges_of,
    repeated,
    repeats,
    savings,
    swept_keys,
    text,
    values_of,
    values_text,
)
from trainers.storage.store import Store

MOST_REASONS = 3
FORMATS = ("table", "csv", "json", "html")

Record = Mapping[str, Value]
"""What the columns hold of a run, by their names."""


def report(
    runs: Sequence[str],
    *,
    storage: str,
    format: str = "table",
    baseline: str | None = None,
    price_per_hour: float | None = None,
) -> str:
    """The runs side by side.

    Training time is that of the steps and of the waiting for their pictures, which data wait is the share of.

    Args:
        runs: names below `storage`, paths of run folders, of sweeps (their trials are shown), or of folders of runs
            (where a sweep is one row). None means all of `storage`.
        storage: the folder of run folders.
        format: "table", "csv", "json" (a list of flat records) or "html" (one page that needs no network).
        baseline: what to compare with. Speed-up is its training seconds per epoch divided by this run's, so
            that unequal numbers of epochs do not matter; score difference is this run's best value minus its.
            With one run, all are compared with it where the content of the data, the model and the image size are
            equal; a note names every other setting that differs. With a sweep or a folder of runs, each run is
            compared with the one of the same recipe and data. A note says why there is no comparison.
        price_per_hour: price of one node for an hour. Cost is price x nodes x the whole time, setup included.

    Returns:
        The text of the table, file or page.

    Raises:
        ValueError: a run does not exist or cannot be read, the storage holds no runs, the format is unknown, or the
            price is negative.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not offered; use one of {', '.join(FORMATS)}")
    if price_per_hour is not None and not (math.isfinite(price_per_hour) and price_per_hour >= 0):
        raise ValueError(f"price_per_hour={price_per_hour} is not a price; give a number of at least 0")
    base = None if baseline is None else with_trials(resolve(baseline, Store(storage)))
    alone = base is not None and len(base.runs) == 1 and not base.runs[0].trial
    found = find(runs, Store(storage), first=base.runs if base and alone else ())
    paired: Mapping[str, Pair] = {}
    if base is not None and baseline is not None:
        labelled = {run.store.address: run for run in found.runs}
        paired = pairs(found.runs, [labelled.get(run.store.address, run) for run in base.runs], baseline)
    read = [run for run in found.runs if run.trial or format == "html"]
    metrics = {run.store.address: read_metrics(run) for run in read}
    context = Context(paired, {address: lines for address, (lines, _) in metrics.items()}, price_per_hour)
    columns = columns_for(found, context)
    groups = grouped(found.runs)
    if not runs:  # those of one data set stand together
        order = list(dict.fromkeys(groups.values()))
        ordered = sorted(found.runs, key=lambda run: order.index(groups[run.store.address]))
        found = Found(ordered, found.sweeps, found.broken)
    records: list[Record] = [{column.name: column.value(run, context) for column in columns} for run in found.runs]
    if format in ("csv", "json"):
        nothing: Record = dict.fromkeys(column.name for column in columns)
        records += [{**nothing, "run": name, "status": "unreadable", "note": why} for name, why in found.broken]
        if format == "json":
            return json.dumps(records, indent=1, allow_nan=False) + "\n"
        return _csv(columns, records)
    notes = [f"{record['run']}: {record['note']}" for record in records if record["note"]]
    notes += [f"{run.label}: {wrong}" for run in read if (wrong := metrics[run.store.address][1])]
    notes += [f"not readable: {name}: {why}" for name, why in found.broken]
    notes += [note for sweep in found.sweeps for note in _doubts(sweep, context)]
    if format == "html":
        title = Store(storage).address
        return _html(columns, records, found, context, notes, groups, title=title, baseline=baseline)
    messages = [f"{record['run']}: {record['message']}" for record in records if record.get("message")]
    ends = [line for sweep in found.sweeps for line in _ending(sweep, context)]
    shown = [column for column in columns if column.name not in ("note", "message")]
    table = _table(shown, records, shutil.get_terminal_size((200, 24)).columns)
    return table + "\n".join([*messages, *notes, *ends, ""])


# Output


def _cell(column: Column, record: Record) -> str:
    value = record[column.name]
    return "-" if value is None else column.show(value)


def _csv(columns: Sequence[Column], records: Sequence[Record]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _table(columns: Sequence[Column], records: Sequence[Record], width: int) -> str:
    """A table no wider than `width`. Columns equal for all runs are dropped first, then those of the highest rank."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not records:
        return ""
    cells = {column.name: [_cell(column, record) for record in records] for column in columns}
    size = {column.name: 2 + max(map(len, [column.header, *cells[column.name]])) for column in columns}
    size["run"] = min(size["run"], max(30, width // 4))  # longer names are wrapped
    same = {name for name, texts in cells.items() if len(texts) > 1 and len(set(texts)) == 1}
    # The scores of the best epoch are in the other formats: here they would crowd out what is compared.
    kept = [c for c in columns if set(cells[c.name]) != {"-"} and not c.name.startswith("final_")]
    gone: list[Column] = []
    for column in sorted(kept, key=lambda column: (column.name not in same or column.rank < 2, -column.rank)):
        if column.rank and sum(size[left.name] for left in kept) > width:
            kept.remove(column)
            gone.append(column)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in kept:
        number = any(isinstance(record[column.name], int | float) for record in records)
        most = max(size["run"] - 2, 8) if column.name == "run" else None
        table.add_column(Text(column.header), justify="right" if number else "left", overflow="fold", max_width=most)
    for row in zip(*(cells[column.name] for column in kept), strict=True):
        table.add_row(*map(Text, row))
    drawn = io.StringIO()
    Console(file=drawn, width=width, color_system=None).print(table)
    text = "\n".join(line.rstrip() for line in drawn.getvalue().strip("\n").splitlines())
    if shared := [f"{column.header} {cells[column.name][0]}" for column in gone if column.name in same]:
        text += "\n\nsame for all: " + "; ".join(shared)
    if hidden := [column.header for column in gone if column.name not in same]:
        text += "\n\nno room for: " + ", ".join(hidden) + " (--format csv has all)"
    return text + "\n\n"


# What is said of a sweep


def _measured(sweep: Sweep, context: Context) -> dict[str, dict[str, float]]:
    """Epochs and seconds run and saved, from the metrics.jsonl of the trials, whatever sweep.json says."""
    histories = {run.label: context.lines.get(run.store.address, ()) for run in sweep.runs}
    # A label may have got its folder's name in front; run folders that sweep.json does not name have no entry.
    return savings([{**run.trial, "name": run.label} for run in sweep.runs], histories)


def _repeats(sweep: Sweep) -> list[Setting]:
    scores = {run.label: run.number("best", "value") for run in sweep.runs}
    labels = {run.trial["name"]: run.label for run in sweep.runs if run.trial}
    trials = [{**trial, "name": labels[str(trial["name"])]} for trial in repeated(sweep.trials)]
    return repeats(trials, scores, str(sweep.get("mode") or "max"))


def _winner(sweep: Sweep) -> Run | None:
    name = sweep.get("winner")
    return next((run for run in sweep.runs if name and run.trial.get("name") == name), None)


def _doubts(sweep: Sweep, context: Context) -> list[str]:
    """Where sweep.json disagrees with the run folders, or is incomplete."""
    measured, doubts = _measured(sweep, context), []
    counted = sweep.number("epochs", "run")
    if counted is not None and counted != measured["epochs"]["run"]:
        doubts.append(f"sweep.json counts {counted:g} epochs run, metrics.jsonl {measured['epochs']['run']:g}")
    if sweep.get("winner") and _winner(sweep) is None:
        doubts.append(f"its winner {sweep.get('winner')} is not among the trials")
    if not sweep.runs:
        doubts.append("no trials yet")
    if left_out := sweep.info.get("left_out"):
        doubts.append(_left_out(left_out))
    silent = [run.label for run in sweep.runs if run.get("status") in RAN and not context.lines.get(run.store.address)]
    if silent:
        doubts.append(f"no epochs are recorded of {', '.join(silent)}; what it saved is not known")
    if unlisted := [run.label for run in sweep.runs if not run.trial]:
        doubts.append(f"sweep.json does not name {', '.join(unlisted)}")
    return [f"{sweep.label}: {doubt}" for doubt in doubts]


def _left_out(entries: object) -> str:
    """Combinations that cannot be, and why."""
    those = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    reasons = list(dict.fromkeys(str(entry.get("reason")) for entry in those))
    more = f"; and {len(reasons) - MOST_REASONS} more reasons" if len(reasons) > MOST_REASONS else ""
    return f"left out, as they cannot be: {len(those)} combinations: {'; '.join(reasons[:MOST_REASONS])}{more}"


def _ending(sweep: Sweep, context: Context) -> list[str]:
    """The lines below a table: how the sweep stands, its winner, what early stopping saved."""
    measured, winner = _measured(sweep, context), _winner(sweep)
    state = str(sweep.get("status") or "status unknown").replace("_", " ")
    lines = ["", ": ".join(filter(None, [f"{sweep.label}, {state}", str(sweep.get("message") or "")]))]
    if winner is not None:
        score = winner.number("best", "value")
        scored = f", {sweep.get('metric') or 'score'} {score_text(score)}" if score is not None else ""
        lines.append(f"winner {winner.label}{scored}")
    for group in _repeats(sweep)[:5]:
        if len(group["scores"]) > 1 or group["verdict"] == "tie":
            spread = "" if group["std"] is None else f" +- {score_text(group['std'])}"
            mean = f"{score_text(group['mean'])}{spread} over {len(group['scores'])}"
            lines.append(f"{group['verdict']}: {values_text(group['values'])}: {mean}")
    epochs, seconds = measured["epochs"], measured["training_seconds"]
    lines.append(
        f"epochs: {epochs['run']:g} of {epochs['planned']:g} run, {epochs['saved']:g} saved; training: "
        f"{format_duration(seconds['run'])} run, {format_duration(seconds['saved'])} saved"
    )
    if epochs["repeats"]:
        lines.append(f"repeats: {epochs['repeats']:g} epochs, {format_duration(seconds['repeats'])} of training")
    if (cost := cost_of(sweep, context)) is not None:
        lines.append(f"cost of the sweep: {cost:,.2f}")
    return lines


# The page


def _html(
    columns: Sequence[Column],
    records: Sequence[Record],
    found: Found,
    context: Context,
    notes: Sequence[str],
    groups: Mapping[str, str],
    *,
    title: str,
    baseline: str | None,
) -> str:
    hidden = {"note", "message"}
    hidden |= {column.name for column in columns if column.name.startswith("baseline_")}
    if found.sweeps:  # their tables are wide
        same = _same_for_all(columns, records)
        notes = [*notes, *(["same for all: " + "; ".join(same.values())] if same else [])]
        hidden |= set(same)
    shown = [column for column in columns if column.name not in hidden]
    modes = {sweep.store.address: sweep.get("mode") for sweep in found.sweeps}
    runs = {
        run.store.address: _page_run(run, record, shown, context, modes.get(run.sweep), groups[run.store.address])
        for run, record in zip(found.runs, records, strict=True)
    }
    sweeps = [_page_sweep(sweep, runs, context) for sweep in found.sweeps]
    comparison = None if baseline is None else _comparison(columns, records, found, context, baseline)
    if len(sweeps) == 1 and all(run.sweep for run in found.runs):
        title = f"{title}/{sweeps[0].label}"
    return page(title, [column.header for column in shown], list(runs.values()), notes, sweeps, comparison)


def _same_for_all(columns: Sequence[Column], records: Sequence[Record]) -> dict[str, str]:
    """Name of a column that holds the same of every run -> what it holds."""
    same = {}
    for column in columns:
        held = {_cell(column, record) for record in records} - {"-"}
        if column.rank > 1 and len(held) == 1 and len(records) > 1:
            same[column.name] = f"{column.header} {held.pop()}"
    return same


def _page_run(run: Run, record: Record, shown: Sequence[Column], context: Context, mode: object, group: str) -> PageRun:
    metric = None if record["best_metric"] is None else str(record["best_metric"])
    return PageRun(
        label=run.label,
        group=group,
        status=str(record["status"] or "unknown"),
        cells=[
            TableCell(
                _cell(column, record),
                record[column.name],
                column.name,
                str(record.get("message") or "") if column.name == "status" else "",
            )
            for column in shown
        ],
        metric=metric,
        minimise=mode == "min" if mode else "loss" in (metric or ""),
        best=number(record["best_value"]),
        seconds=number(record["training_seconds"]),
        epochs=run.number("epochs_run"),
        images_per_second=number(record["images_per_second"]),
        memory=number(record["peak_memory_bytes"]) if record["peak_memory_of"] == "device" else None,
        predicted_memory=predicted_memory(run),
        values=values_of(run.trial),
        batch_size=number(run.setting("batch_size")),
        cost=number(record.get("cost")),
        history=context.lines.get(run.store.address, ()),
        machine=str(record["machine"] or ""),
        versions=_versions(run),
        info=run.info,
        read=run.store.read if run.has_folder else None,
    )


def _page_sweep(sweep: Sweep, runs: Mapping[str, PageRun], context: Context) -> PageSweep:
    winner = _winner(sweep)
    return PageSweep(
        label=sweep.label,
        status=str(sweep.get("status") or "status unknown"),
        message=str(sweep.get("message") or ""),
        runs=[runs[run.store.address] for run in sweep.runs],
        keys=swept_keys(sweep.info, sweep.trials),
        ranges=ranges_of(sweep.info),
        metric=str(sweep.get("metric") or "score"),
        minimise=sweep.get("mode") == "min",
        winner=None if winner is None else runs[winner.store.address],
        savings=_measured(sweep, context),
        repeats=_repeats(sweep),
        seconds=sweep.number("seconds", "total"),
        setup_seconds=sweep.number("seconds", "setup"),
        concurrency=sweep.number("concurrency"),
        memory_limit=sweep.number("memory_limit_bytes"),
        cost=cost_of(sweep, context),
        plan=_plan(sweep),
        machine=machine_of(sweep) or "",
        versions=_versions(sweep),
        info={key: value for key, value in sweep.info.items() if key != "trials"},
    )


def _plan(sweep: Sweep) -> str:
    """ "space digits.quick of recipe digits.cnn, search grid, scheduler asha, on oom micro_batch"."""
    named = {"space": sweep.get("space_name"), "recipe": sweep.get("recipe_name")}
    named |= {key.replace("_", " "): sweep.get("plan", key) for key in ("search", "scheduler", "on_oom")}
    return ", ".join(f"{key} {text(value)}" for key, value in named.items() if value is not None)


def _comparison(
    columns: Sequence[Column], records: Sequence[Record], found: Found, context: Context, baseline: str
) -> Comparison:
    swept = list(dict.fromkeys(key for sweep in found.sweeps for key in swept_keys(sweep.info, sweep.trials)))
    names = "run {} training_seconds baseline_seconds speed_up peak_memory_bytes baseline_memory_bytes "
    names += "images_per_second baseline_images_per_second best_value baseline_value score_difference baseline_run"
    order = [name for word in names.split() for name in (swept or ["batch_size"] if word == "{}" else [word])]
    both = [
        (run, partner, record)
        for run, record in zip(found.runs, records, strict=True)
        if (partner := context.partner(run)) is not None and partner.store.address != run.store.address
    ]
    if all(run.label == partner.label for run, partner, _ in both):
        order.remove("baseline_run")
    kept = [column for name in order for column in columns if column.name == name]
    return Comparison(
        label=baseline,
        headers=[column.header for column in kept],
        rows=[
            [TableCell(_cell(column, record), record[column.name], column.name) for column in kept]
            for *_, record in both
        ],
        speed_ups=[
            (run.label, f"{speed_up:.2f}x", speed_up)
            for run, _, record in both
            if (speed_up := number(record["speed_up"])) is not None
        ],
        machines=", ".join(dict.fromkeys(machine_of(run) or "machine unknown" for run, *_ in both)),
        baseline_machines=", ".join(dict.fromkeys(machine_of(partner) or "machine unknown" for _, partner, _ in both)),
    )


def _versions(run: Run | Sweep) -> str:
    versions = run.get("versions")
    named = versions.items() if isinstance(versions, Mapping) else ()
    commit = run.get("commit")
    parts = [f"{name} {version}" for name, version in named] + [f"commit {str(commit)[:12]}"] * bool(commit)
    return ", ".join(parts)
