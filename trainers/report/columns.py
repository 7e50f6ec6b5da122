"""What a report shows of each run: the list COLUMNS. Adding a column is adding a line there."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trainers.formatting import format_duration, format_size
from trainers.report.baseline import Pair
from trainers.report.groups import dataset_of, task_of
from trainers.report.reader import Found, Run, Sweep
from trainers.report.sweep_stats import Lines, number, swept_keys, text

Value = str | float | None
"""What a cell of the table holds; None where it is unknown."""


@dataclass(frozen=True)
class Context:
    """What the columns need besides the run. Keys are the addresses of run folders."""

    pairs: Mapping[str, Pair] = field(default_factory=dict)
    lines: Mapping[str, Lines] = field(default_factory=dict)
    """The lines of metrics.jsonl."""
    price_per_hour: float | None = None

    def partner(self, run: Run) -> Run | None:
        """The run of the baseline that it is compared with."""
        pair = self.pairs.get(run.store.address)
        return pair.partner if pair else None


@dataclass(frozen=True)
class Column:
    name: str
    """Key in CSV and JSON, with its unit."""
    header: str
    value: Callable[[Run, Context], Value]
    show: Callable[[Any], str]
    """Takes what `value` returns, unless that is None."""
    rank: int
    """A table too wide for the terminal drops the columns of the highest rank first; rank 0 stays."""


# Values of the columns


def training_seconds(run: Run, context: Context) -> float | None:
    """Of the steps and the waiting for their pictures, as metrics.jsonl has it and the summary of a run says it: not of
    the start, evaluation or checkpoints. Of a sweep in one row: those of its trials, added up.

    A run that has not ended, such as an interrupted trial, has its epochs alone.
    """
    if (trials := run.number("seconds", "training")) is not None:
        return trials
    compute, wait = run.number("seconds", "compute"), run.number("seconds", "data_wait")
    if compute is not None and wait is not None:
        return compute + wait
    lines = context.lines.get(run.store.address) if run.trial else None
    return math.fsum(number(line.get("seconds")) or 0.0 for line in lines) if lines else None


def _data_wait_share(run: Run, context: Context) -> float | None:
    wait, seconds = run.number("seconds", "data_wait"), training_seconds(run, context)
    return wait / seconds if wait is not None and seconds else None


def _epoch_seconds(run: Run, context: Context) -> float | None:
    seconds, epochs = training_seconds(run, context), run.number("epochs_run")
    return seconds / epochs if seconds and epochs else None


def _peak_memory(run: Run) -> tuple[float | None, str | None]:
    """Bytes, and of what: the device where one was used, else the host."""
    for where in ("device", "host"):
        if (size := run.number("peak_memory_bytes", where)) is not None:
            return size, where
    return None, None


def _nodes(run: Run | Sweep) -> list[Mapping[str, object]]:
    return _objects(run.get("machine", "nodes"))


def _objects(value: object) -> list[Mapping[str, object]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def machine_of(run: Run | Sweep) -> str | None:
    """ "8 x A100-SXM4-40GB, 2 nodes", or "16 cores EPYC 7B13" where no GPU was used."""
    nodes = _nodes(run)
    if not nodes:
        return None
    gpus = Counter(str(gpu.get("name")) for node in nodes for gpu in _objects(node.get("gpus")))
    if gpus and run.get("scale", "gpus_per_worker") != 0:
        parts = [f"{count} x {_short(name)}" for name, count in gpus.items()]
    else:
        cores: Counter[str] = Counter()
        for node in nodes:
            cores[str(node.get("cpu") or "")] += int(number(node.get("cores")) or 0)
        parts = [f"{count} core{'' if count == 1 else 's'} {_short(cpu)}".strip() for cpu, count in cores.items()]
    return ", ".join(parts + [f"{len(nodes)} nodes"] * (len(nodes) > 1))


def _short(name: str) -> str:
    """A processor's name without words that say nothing: "Xeon 8259CL" for "Intel(R) Xeon(R) CPU 8259CL"."""
    words = r"\((R|TM)\)|@.*|\b(Intel|AMD|NVIDIA|CPU|Processor|\d+-Core)\b"
    return " ".join(re.sub(words, " ", name).split()) or name


def cost_of(run: Run | Sweep, context: Context) -> float | None:
    total, nodes = run.number("seconds", "total"), len(_nodes(run))
    if context.price_per_hour is None or total is None or not nodes:
        return None
    return context.price_per_hour * nodes * total / 3600


def plain(value: object) -> Value:
    """A value that a cell can hold: numbers as they are, sizes as 512x1024."""
    if value is None or isinstance(value, int | str):
        return value
    found = number(value)
    return text(value) if found is None else found


def _workers(run: Run) -> Value:
    workers = run.get("scale", "workers")
    return ":".join(str(end) for end in workers) if isinstance(workers, list) else plain(workers)


def _setting(run: Run, _: Context, *, key: str) -> Value:
    return plain(run.setting(key))


def _planned(run: Run) -> float | None:
    epochs = run.number("recipe", "epochs")
    return number(run.trial.get("epochs")) if epochs is None else epochs


def predicted_memory(run: Run) -> float | None:
    return number(run.trial.get("memory_bytes"))


# Comparison with the baseline


def _of_partner(run: Run, context: Context, *, value: Callable[[Run], Value]) -> Value:
    partner = context.partner(run)
    return None if partner is None else value(partner)


def _speed_up(run: Run, context: Context) -> float | None:
    if (partner := context.partner(run)) is None:
        return None
    ours, theirs = _epoch_seconds(run, context), _epoch_seconds(partner, context)
    return theirs / ours if ours and theirs else None


def _score_difference(run: Run, context: Context) -> float | None:
    partner = context.partner(run)
    if partner is None or run.get("best", "metric") != partner.get("best", "metric"):
        return None
    ours, theirs = run.number("best", "value"), partner.number("best", "value")
    return None if ours is None or theirs is None else ours - theirs


def _note(run: Run, context: Context) -> str:
    pair = context.pairs.get(run.store.address)
    return "; ".join(filter(None, [run.remark, pair.note if pair else ""]))


# Numbers as people read them


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else format_size(round(size))


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def score_text(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


COLUMNS = [
    Column("run", "run", lambda run, _: run.label, str, 0),
    Column("status", "status", lambda run, _: plain(run.get("status")), str, 1),
    Column("recipe", "recipe", lambda run, _: plain(run.get("recipe_name")), str, 4),
    Column("dataset", "data set", lambda run, _: dataset_of(run), str, 2),
    Column("task", "task", lambda run, _: task_of(run), str, 6),
    Column("epochs_run", "epochs", lambda run, _: run.number("epochs_run"), str, 3),
    Column("epochs", "planned", lambda run, _: _planned(run), str, 10),
    Column("batch_size", "batch", partial(_setting, key="batch_size"), str, 3),
    Column("lr", "lr", partial(_setting, key="lr"), text, 5),
    Column("image_size", "image size", partial(_setting, key="image_size"), str, 3),
    Column("workers", "workers", lambda run, _: _workers(run), str, 3),
    Column("machine", "machine", lambda run, _: machine_of(run), str, 4),
    Column("training_seconds", "training", training_seconds, format_duration, 1),
    Column("images_per_second", "images/s", lambda run, _: run.number("images_per_second"), _rate, 3),
    Column("data_wait_share", "data wait", _data_wait_share, "{:.1%}".format, 3),
    Column("peak_memory_bytes", "peak memory", lambda run, _: _peak_memory(run)[0], _bytes, 3),
    Column("peak_memory_of", "memory of", lambda run, _: _peak_memory(run)[1], str, 9),
    Column("best_metric", "best metric", lambda run, _: plain(run.get("best", "metric")), str, 6),
    Column("best_value", "best", lambda run, _: run.number("best", "value"), score_text, 1),
    Column("cost", "cost", cost_of, "{:,.2f}".format, 1),
    Column("note", "note", _note, str, 0),
]

TRIAL_COLUMNS = [  # of sweeps
    Column("micro_batch_size", "micro-batch", lambda run, _: number(run.trial.get("micro_batch_size")), str, 7),
    Column("predicted_memory_bytes", "predicted memory", lambda run, _: predicted_memory(run), _bytes, 6),
    Column("seed", "seed", partial(_setting, key="seed"), str, 8),
    Column("repeat_of", "repeat of", lambda run, _: plain(run.trial.get("repeat_of")), str, 8),
    Column("message", "message", lambda run, _: plain(run.trial.get("message")) or None, str, 0),
]

PAIR_COLUMNS = [  # next to a baseline
    Column("speed_up", "speed-up", _speed_up, "{:.2f}x".format, 1),
    Column("score_difference", "difference", _score_difference, "{:+.4f}".format, 1),
    Column("baseline_run", "baseline", partial(_of_partner, value=lambda run: run.label), str, 8),
    Column("baseline_seconds", "baseline training",
           lambda run, context: _of_partner(run, context, value=partial(training_seconds, context=context)),
           format_duration, 2),
    Column("baseline_memory_bytes", "baseline memory",
           partial(_of_partner, value=lambda run: _peak_memory(run)[0]), _bytes, 7),
    Column("baseline_images_per_second", "baseline images/s",
           partial(_of_partner, value=lambda run: run.number("images_per_second")), _rate, 7),
    Column("baseline_value", "baseline best",
           partial(_of_partner, value=lambda run: run.number("best", "value")), score_text, 7),
]  # fmt: skip


def columns_for(found: Found, context: Context) -> list[Column]:
    """The columns of a report: COLUMNS as far as they apply, those of sweeps, final scores and the baseline.

    What a sweep varies stands next to the status, under its own name.
    """
    swept = {key: None for sweep in found.sweeps for key in swept_keys(sweep.info, sweep.trials)}
    unwanted = {"cost"} if context.price_per_hour is None else set()
    plain = [column for column in COLUMNS if column.name not in unwanted]
    finals = [run.get("final") for run in found.runs]
    scores = dict.fromkeys(
        name
        for final in finals
        if isinstance(final, Mapping)
        for name, value in final.items()
        if number(value) is not None
    )
    after = {
        "status": [Column(key, key, partial(_setting, key=key), text, 1) for key in swept],
        "best_value": [
            Column(f"final_{name}", f"final {name}", partial(_final, name=name), score_text, 6) for name in scores
        ],
        "best_metric": TRIAL_COLUMNS[:2] if found.sweeps else [],
        "note": [],
    }
    columns: list[Column] = []
    for column in plain:
        if column.name == "note":
            columns += PAIR_COLUMNS if context.pairs else []
            columns += [each for each in TRIAL_COLUMNS[2:] if each.name not in swept] if found.sweeps else []
        if column.name not in swept:
            columns.append(column)
        columns += after.get(column.name, [])
    if found.sweeps:  # the score next to what was tried
        best = next(column for column in columns if column.name == "best_value")
        columns.remove(best)
        columns.insert(2 + len(swept), best)
    return columns


def _final(run: Run, _: Context, *, name: str) -> float | None:
    return run.number("final", name)
