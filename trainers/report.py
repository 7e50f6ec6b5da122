"""Runs side by side: a table for terminals, CSV, JSON or an HTML page, from run folders alone.

Needs neither torch nor Ray. What is shown is the list COLUMNS; a further column is a further line there.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from trainers.report_page import Cell, PageRun, page
from trainers.store import Store

FORMATS = ("table", "csv", "json", "html")
PAIRED_BY = ("model", "image_size")
"""The recipe fields that two runs must share, next to the content of the data, to be compared."""

HALF_WRITTEN = "no run.json yet; it is being started, or was cut off at its start"

Record = dict[str, Any]
Broken = list[tuple[str, str]]  # name, reason


@dataclass(frozen=True)
class Run:
    """A run folder and its `run.json`, of which any part may be missing while the run is going on."""

    label: str
    store: Store
    info: Mapping[str, Any]

    def get(self, *path: str) -> Any:
        """The value at `path`, or None: `run.get("seconds", "total")`."""
        value: Any = self.info
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def number(self, *path: str) -> float | None:
        return _number(self.get(*path))


@dataclass(frozen=True)
class Asked:
    """What the columns need to know besides the run."""

    baseline: Run | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Column:
    name: str
    """Key in CSV and JSON, with its unit."""
    header: str
    value: Callable[[Run, Asked], Any]
    show: Callable[[Any], str]
    rank: int
    """A table too wide for the terminal loses the columns of the highest rank first; rank 0 stays."""


def report(
    runs: Sequence[str],
    *,
    storage: str,
    format: str = "table",
    baseline: str | None = None,
    price_per_hour: float | None = None,
) -> str:
    """The runs side by side, as text.

    Parameters:
        runs: names below `storage`, paths of run folders, or folders of runs; none means all of `storage`.
        format: "table", "csv", "json" (a list of flat records) or "html" (one page that needs no network).
        baseline: a run to compare with. Speed-up is its training seconds per epoch divided by this run's, so
            that unequal numbers of epochs do not matter; score difference is this run's best value minus its.
            Both are given where the content of the data, the model and the image size are equal; a note names
            every other setting that differs, or says why there is no comparison.
        price_per_hour: price of one node for an hour. Cost is price x nodes x the whole time, setup included.

    Training time is seconds.total - seconds.setup; data wait is a share of it. Raises ValueError for a run
    that does not exist or cannot be read, an unknown format, and a storage without runs.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not offered; use one of {', '.join(FORMATS)}")
    if price_per_hour is not None and not (math.isfinite(price_per_hour) and price_per_hour >= 0):
        raise ValueError(f"price_per_hour={price_per_hour} is no price; give a number of at least 0")
    found, broken = _find(runs, Store(storage))
    base = _baseline(baseline, found, Store(storage)) if baseline is not None else None
    if base is not None and base not in found:
        found.insert(0, base)
    asked = Asked(base, price_per_hour)
    columns = _columns(found, asked)
    records = [{column.name: column.value(run, asked) for column in columns} for run in found]
    if format in ("csv", "json"):
        nothing = dict.fromkeys((column.name for column in columns), None)
        records += [{**nothing, "run": name, "status": "unreadable", "note": why} for name, why in broken]
        if format == "json":
            return json.dumps(records, indent=1, allow_nan=False) + "\n"
        return _csv(columns, records)
    notes = [f"{record['run']}: {record['note']}" for record in records if record["note"]]
    shown = [column for column in columns if column.name != "note"]
    if format == "html":
        return _html(shown, records, found, notes, broken, storage=Store(storage).address)
    notes += [f"not readable: {name}: {why}" for name, why in broken]
    return _table(shown, records, shutil.get_terminal_size((200, 24)).columns) + "\n".join([*notes, ""])


# Finding runs


def _find(names: Sequence[str], storage: Store) -> tuple[list[Run], Broken]:
    """The runs asked for, each once, and what could not be read."""
    groups = [_resolve(name, storage) for name in names] if names else [_below(storage)]
    found = {run.store.address: run for runs, _ in groups for run in runs}
    broken = list(dict.fromkeys(entry for _, entries in groups for entry in entries))
    if not found and not broken:
        raise ValueError(
            f"{storage.address} holds no runs; train one (python -m trainers train RECIPE), "
            "or name the folder of your runs with --storage"
        )
    again = Counter(run.label for run in found.values())
    return [
        Run("/".join(run.store.address.split("/")[-2:]), run.store, run.info) if again[run.label] > 1 else run
        for run in found.values()
    ], broken


def _resolve(name: str, storage: Store) -> tuple[list[Run], Broken]:
    places = [Store(name)]
    if "://" not in name and not name.startswith(("/", ".", "~")):
        places.insert(0, storage / name)
    for place in places:
        if run := _load(place):
            return [run], []
    for place in places:
        runs, broken = _below(place)
        if runs:
            return runs, broken
    if any(_is_half_written(place) for place in places):
        raise ValueError(f"run {name!r} cannot be read: {HALF_WRITTEN}")
    known = [run.label for run in _below(storage)[0]]
    near = difflib.get_close_matches(name, known) or known[:5]
    hint = f"the nearest names are {', '.join(near)}" if near else f"{storage.address} holds no runs"
    raise ValueError(f"there is no run {name!r}, neither in {storage.address} nor as a path; {hint}")


def _baseline(name: str, found: Sequence[Run], storage: Store) -> Run:
    runs, _ = _resolve(name, storage)
    if len(runs) != 1:
        raise ValueError(f"the baseline must be one run; {name!r} is a folder of {len(runs)}")
    return next((run for run in found if run.store.address == runs[0].store.address), runs[0])


def _below(folder: Store) -> tuple[list[Run], Broken]:
    """The runs that lie directly in a folder, and the names and reasons of those that cannot be read."""
    runs: list[Run] = []
    broken: Broken = []
    for name in _names(folder):
        if name.startswith("."):
            continue
        try:
            run = _load(folder / name)
            if run is not None:
                runs.append(run)
            elif _is_half_written(folder / name):
                broken.append((name, HALF_WRITTEN))
        except ValueError as error:
            broken.append((name, str(error)))
    return runs, broken


def _load(folder: Store) -> Run | None:
    """The run of a folder; None where there is no run.json. Raises ValueError saying why one is broken."""
    if "run.json" not in _names(folder):
        return None
    try:
        info = folder.read_json("run.json")
    except OSError as error:
        raise ValueError(f"{folder.address}/run.json cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{folder.address}/run.json is not text") from None
    if not isinstance(info, dict):
        raise ValueError(f"{folder.address}/run.json does not hold an object")
    return Run(folder.name, folder, info)


def _is_half_written(folder: Store) -> bool:
    return bool({"metrics.jsonl", "checkpoints"} & set(_names(folder)))


def _names(folder: Store) -> list[str]:
    try:
        return folder.names()
    except NotADirectoryError:  # some file systems say so, others list nothing
        return []
    except OSError as error:
        raise ValueError(f"{folder.address} cannot be read: {error.strerror or error}") from None


def _metrics(run: Run) -> tuple[list[Record], str]:
    """The lines of metrics.jsonl, and what is wrong with them, if anything."""
    try:
        text = run.store.read("metrics.jsonl").decode(errors="replace")
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return [], f"metrics.jsonl cannot be read: {error.strerror or error}"
    lines: list[Record] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            return lines, f"metrics.jsonl is broken from line {number} on"
        if isinstance(value, dict):
            lines.append(value)
    return lines, ""


# Values of the columns


def _number(value: Any) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if plain else None


def _training_seconds(run: Run) -> float | None:
    total, setup = run.number("seconds", "total"), run.number("seconds", "setup")
    return None if total is None or setup is None else total - setup


def _data_wait_share(run: Run) -> float | None:
    wait, seconds = run.number("seconds", "data_wait"), _training_seconds(run)
    return wait / seconds if wait is not None and seconds else None


def _epoch_seconds(run: Run) -> float | None:
    seconds, epochs = _training_seconds(run), run.number("epochs_run")
    return seconds / epochs if seconds and epochs else None


def _peak_memory(run: Run) -> tuple[float | None, str | None]:
    """Bytes, and of what: the device where one was used, else the host."""
    for where in ("device", "host"):
        if (size := run.number("peak_memory_bytes", where)) is not None:
            return size, where
    return None, None


def _nodes(run: Run) -> list[Mapping[str, Any]]:
    nodes = run.get("machine", "nodes")
    return [node for node in nodes if isinstance(node, Mapping)] if isinstance(nodes, list) else []


def _machine(run: Run) -> str | None:
    """ "8 x A100-SXM4-40GB, 2 nodes", or "16 cores EPYC 7B13" where no GPU was used."""
    nodes = _nodes(run)
    if not nodes:
        return None
    gpus = Counter(str(gpu.get("name")) for node in nodes for gpu in node.get("gpus") or [] if gpu)
    if gpus and run.get("scale", "gpus_per_worker") != 0:
        parts = [f"{count} x {_short(name)}" for name, count in gpus.items()]
    else:
        cores: Counter[str] = Counter()
        for node in nodes:
            cores[str(node.get("cpu") or "")] += int(_number(node.get("cores")) or 0)
        parts = [f"{count} cores {_short(cpu)}".strip() for cpu, count in cores.items()]
    return ", ".join(parts + [f"{len(nodes)} nodes"] * (len(nodes) > 1))


def _short(name: str) -> str:
    """A processor's name without words that tell nothing: "Xeon 8259CL" for "Intel(R) Xeon(R) CPU 8259CL"."""
    words = r"\((R|TM)\)|@.*|\b(Intel|AMD|NVIDIA|CPU|Processor|\d+-Core)\b"
    return " ".join(re.sub(words, " ", name).split()) or name


def _cost(run: Run, asked: Asked) -> float | None:
    total, nodes = run.number("seconds", "total"), len(_nodes(run))
    if asked.price_per_hour is None or total is None or not nodes:
        return None
    return asked.price_per_hour * nodes * total / 3600


def _text(value: Any) -> str | None:
    """Plain values as they are, sizes as 512x1024."""
    if isinstance(value, list | tuple):
        return "x".join(str(part) for part in value)
    return None if value is None else str(value)


def _workers(run: Run) -> Any:
    workers = run.get("scale", "workers")
    return ":".join(str(end) for end in workers) if isinstance(workers, list) else workers


# Comparison with the baseline


def _why_not(run: Run, base: Run) -> list[str]:
    """Why two runs are not compared; empty where they are."""
    reasons = []
    prints = run.get("dataset", "fingerprint"), base.get("dataset", "fingerprint")
    if None in prints:
        reasons.append("dataset fingerprint unknown")
    elif prints[0] != prints[1]:
        reasons.append("dataset fingerprint differs")
    for field in PAIRED_BY:
        ours, theirs = run.get("recipe", field), base.get("recipe", field)
        if ours is None or theirs is None:
            reasons.append(f"{field} unknown")
        elif ours != theirs:
            reasons.append(f"{field} {_text(ours)} against {_text(theirs)}")
    return reasons


def _differences(run: Run, base: Run) -> list[str]:
    """Settings of the recipes that differ, those named by _why_not left out."""
    ours, theirs = _flat(run.get("recipe")), _flat(base.get("recipe"))
    return [
        f"{field} {_text(ours.get(field))} against {_text(theirs.get(field))}"
        for field in dict.fromkeys([*ours, *theirs])
        if field not in PAIRED_BY and ours.get(field) != theirs.get(field)
    ]


def _flat(recipe: Any, above: str = "") -> Record:
    """{"model_args": {"filters": 16}} as {"model_args.filters": 16}."""
    flat: Record = {}
    for key, value in recipe.items() if isinstance(recipe, Mapping) else ():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def _speed_up(run: Run, asked: Asked) -> float | None:
    base = asked.baseline
    if base is None or _why_not(run, base):
        return None
    ours, theirs = _epoch_seconds(run), _epoch_seconds(base)
    return theirs / ours if ours and theirs else None


def _score_difference(run: Run, asked: Asked) -> float | None:
    base = asked.baseline
    if base is None or _why_not(run, base) or run.get("best", "metric") != base.get("best", "metric"):
        return None
    ours, theirs = run.number("best", "value"), base.number("best", "value")
    return None if ours is None or theirs is None else ours - theirs


def _note(run: Run, asked: Asked) -> str:
    base = asked.baseline
    if base is None or run is base:
        return ""
    why_not, differences = _why_not(run, base), _differences(run, base)
    if why_not:
        return f"not compared with {base.label}: " + "; ".join(why_not + differences)
    return f"compared with {base.label}, but " + "; ".join(differences) if differences else ""


# Numbers as people read them


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:05"; below a minute "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _score(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


COLUMNS = [
    Column("run", "run", lambda run, _: run.label, str, 0),
    Column("status", "status", lambda run, _: run.get("status"), str, 1),
    Column("recipe", "recipe", lambda run, _: run.get("recipe_name"), str, 4),
    Column("epochs_run", "epochs", lambda run, _: run.number("epochs_run"), str, 2),
    Column("epochs", "planned", lambda run, _: run.number("recipe", "epochs"), str, 10),
    Column("batch_size", "batch", lambda run, _: run.number("recipe", "batch_size"), str, 2),
    Column("lr", "lr", lambda run, _: run.number("recipe", "lr"), "{:g}".format, 5),
    Column("image_size", "image size", lambda run, _: _text(run.get("recipe", "image_size")), str, 3),
    Column("workers", "workers", lambda run, _: _workers(run), str, 3),
    Column("machine", "machine", lambda run, _: _machine(run), str, 4),
    Column("training_seconds", "training", lambda run, _: _training_seconds(run), _duration, 1),
    Column("images_per_second", "images/s", lambda run, _: run.number("images_per_second"), _rate, 2),
    Column("data_wait_share", "data wait", lambda run, _: _data_wait_share(run), "{:.1%}".format, 3),
    Column("peak_memory_bytes", "peak memory", lambda run, _: _peak_memory(run)[0], _bytes, 3),
    Column("peak_memory_of", "memory of", lambda run, _: _peak_memory(run)[1], str, 9),
    Column("best_metric", "best metric", lambda run, _: _text(run.get("best", "metric")), str, 6),
    Column("best_value", "best", lambda run, _: run.number("best", "value"), _score, 1),
    Column("cost", "cost", _cost, "{:,.2f}".format, 1),
    Column("speed_up", "speed-up", _speed_up, "{:.2f}x".format, 1),
    Column("score_difference", "difference", _score_difference, "{:+.4f}".format, 1),
    Column("note", "note", _note, str, 0),
]


def _columns(runs: Sequence[Run], asked: Asked) -> list[Column]:
    """COLUMNS without those not asked for, and with one for each final score, after the best one."""
    unwanted = {"cost"} if asked.price_per_hour is None else set()
    if asked.baseline is None:
        unwanted |= {"speed_up", "score_difference"}
    columns = [column for column in COLUMNS if column.name not in unwanted]
    finals = [run.get("final") for run in runs]
    scores = dict.fromkeys(
        name
        for final in finals
        if isinstance(final, Mapping)
        for name, value in final.items()
        if _number(value) is not None
    )
    place = next(index for index, column in enumerate(columns, start=1) if column.name == "best_value")
    columns[place:place] = [
        Column(f"final_{name}", f"final {name}", partial(_final, name=name), _score, 6) for name in scores
    ]
    return columns


def _final(run: Run, _: Asked, *, name: str) -> float | None:
    return run.number("final", name)


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
    """A table no wider than `width`. Columns that say the same of all runs go first, then by their rank."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not records:
        return ""
    cells = {column.name: [_cell(column, record) for record in records] for column in columns}
    size = {column.name: 2 + max(map(len, [column.header, *cells[column.name]])) for column in columns}
    size["run"] = min(size["run"], max(30, width // 4))  # longer names are folded
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


def _html(
    columns: Sequence[Column],
    records: Sequence[Record],
    runs: Sequence[Run],
    notes: list[str],
    broken: Broken,
    *,
    storage: str,
) -> str:
    shown = []
    for run, record in zip(runs, records, strict=True):
        lines, wrong = _metrics(run)
        notes = [*notes, f"{run.label}: {wrong}"] if wrong else notes
        shown.append(
            PageRun(
                label=run.label,
                status=str(record["status"]),
                cells=[Cell(_cell(column, record), record[column.name]) for column in columns],
                metric=record["best_metric"],
                best=record["best_value"],
                seconds=record["training_seconds"],
                images_per_second=record["images_per_second"],
                cost=record.get("cost"),
                history=lines,
                machine=record["machine"] or "machine unknown",
                versions=_versions(run),
                info=run.info,
                read=run.store.read,
            )
        )
    notes += [f"not readable: {name}: {why}" for name, why in broken]
    return page(storage, [column.header for column in columns], shown, notes)


def _versions(run: Run) -> str:
    versions = run.get("versions")
    named = versions.items() if isinstance(versions, Mapping) else ()
    commit = run.get("commit")
    parts = [f"{name} {version}" for name, version in named] + [f"commit {str(commit)[:12]}"] * bool(commit)
    return ", ".join(parts) or "versions unknown"
