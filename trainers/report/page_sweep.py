"""What the report's page shows of one sweep: tiles, repeats, maps over its parameters, memory and speed."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from trainers.formatting import format_duration, format_size
from trainers.report.svg import Cell, Series, chart, heat_map
from trainers.report.sweep_stats import (
    DID_NOT_FIT,
    MOST_NUMBERS,
    NONE,
    Lines,
    Setting,
    levels,
    number,
    text,
    values_text,
)

MOST_PAIRS = 6
"""Number of pairs of parameters that get maps: those of the parameters named first."""
FAR = 4.0
"""A memory limit beyond this multiple of what is needed is named in the text, not drawn."""


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """What the page needs of a run or a trial. Unknown numbers are None."""

    label: str
    group: str
    """Of the runs that it is compared with: see groups.py."""
    status: str
    cells: Sequence[TableCell]
    metric: str | None
    minimise: bool
    """A lower value of the metric is better."""
    best: float | None
    seconds: float | None
    """Of training, without setup."""
    epochs: float | None
    """Number of epochs run."""
    images_per_second: float | None
    memory: float | None
    """Measured peak of the device, bytes. None on a CPU: most memory of a process is not that of its steps."""
    predicted_memory: float | None
    values: Mapping[str, object]
    """What the sweep set; empty for a run of its own."""
    batch_size: float | None
    cost: float | None
    history: Lines
    """The lines of metrics.jsonl."""
    machine: str
    versions: str
    info: Mapping[str, object]
    """run.json"""
    read: Callable[[str], bytes] | None
    """Reads a file of the run folder; None where there is no folder."""


@dataclass(frozen=True)
class TableCell:
    text: str
    value: str | float | None
    """What the table is sorted by."""
    column: str
    more: str = ""
    """Shown below the text, in small letters."""


@dataclass(frozen=True, kw_only=True)
class PageSweep:
    """What the page needs of a sweep."""

    label: str
    status: str
    message: str
    runs: Sequence[PageRun]
    keys: Sequence[str]
    """What it varies."""
    ranges: Mapping[str, bool]
    """See sweep_stats.ranges_of."""
    metric: str
    minimise: bool
    winner: PageRun | None
    savings: Mapping[str, Mapping[str, float]]
    """See sweep_stats.savings."""
    repeats: Sequence[Setting]
    """See sweep_stats.repeats."""
    seconds: float | None
    setup_seconds: float | None
    concurrency: float | None
    memory_limit: float | None
    """Bytes."""
    cost: float | None
    plan: str
    machine: str
    versions: str
    info: Mapping[str, object]
    """sweep.json without the trials."""


@dataclass(frozen=True)
class Tile:
    """A number in large letters."""

    what: str
    number: str
    more: str


@dataclass(frozen=True)
class Charts:
    """A section of pictures."""

    title: str
    about: str
    charts: Sequence[Markup]


@dataclass(frozen=True, kw_only=True)
class SweepPart:
    """A sweep, ready for the template."""

    label: str
    before: str
    """Stands in front of the titles of its sections where there are several sweeps."""
    state: str
    message: str
    plan: str
    tiles: Sequence[Tile]
    metric: str
    repeats: Sequence[Mapping[str, str]]
    """Rows of the table of repeats; empty where nothing was repeated."""
    sections: Sequence[Charts]


def status_words(runs: Sequence[PageRun]) -> str:
    """ "8 finished, 2 stopped early"."""
    return ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in Counter(r.status for r in runs).items())


def winner_of(sweep: PageSweep) -> PageRun | None:
    """The winner, or while there is none the best trial so far."""
    scored = [run for run in sweep.runs if run.best is not None]
    best = min if sweep.minimise else max
    return sweep.winner or best(scored, key=lambda run: run.best or 0.0, default=None)


def sweep_part(sweep: PageSweep, colours: Mapping[str, str], *, alone: bool) -> SweepPart:
    """What the page shows of a sweep.

    Args:
        sweep: the sweep.
        colours: label of a run -> class of its colour.
        alone: it is all that the page shows.
    """
    varied = [key for key in sweep.keys if len({text(run.values.get(key)) for run in sweep.runs}) > 1]
    varied = [key for key in varied if key != "seed"] or varied
    return SweepPart(
        label=sweep.label,
        before="" if alone else f"{sweep.label}: ",
        state=sweep.status.replace("_", " "),
        message=sweep.message,
        plan=sweep.plan,
        tiles=_tiles(sweep),
        metric=sweep.metric,
        repeats=_repeats(sweep),
        sections=[section for section in (_maps(sweep, varied), _memory(sweep, colours)) if section.charts],
    )


def _tiles(sweep: PageSweep) -> list[Tile]:
    found = []
    if (best := winner_of(sweep)) is not None:
        ties = sum(group["verdict"] == "tie" for group in sweep.repeats)
        tie = f"; a tie with {ties} more" if ties else ""
        score = "no score" if best.best is None else f"{best.best:.4f}"
        word = "winner" if sweep.winner else "best so far" if sweep.status == "running" else "best"
        what = f"{word}, {sweep.metric}"
        found.append(Tile(what, score, f"{values_text(best.values)}{tie}; {best.label}".lstrip("; ")))
    found.append(Tile("trials", str(len(sweep.runs)), status_words(sweep.runs)))
    epochs, seconds = sweep.savings["epochs"], sweep.savings["training_seconds"]
    share = f" ({epochs['saved'] / epochs['planned']:.0%})" if epochs["planned"] else ""
    again = f"; {epochs['repeats']:,.0f} more in repeats" if epochs["repeats"] else ""
    ran = f"{epochs['run']:,.0f} of {epochs['planned']:,.0f}"
    found.append(Tile("epochs run", ran, f"{epochs['saved']:,.0f} saved{share}{again}"))
    grid = seconds["run"] + seconds["saved"]
    share = f" ({seconds['saved'] / grid:.0%} of {format_duration(grid)})" if grid else ""
    again = f"; {format_duration(seconds['repeats'])} more in repeats" if seconds["repeats"] else ""
    more = f"{format_duration(seconds['saved'])} saved{share}{again}"
    found.append(Tile("training, all trials", format_duration(seconds["run"]), more))
    if sweep.seconds is not None:
        setup = f"setup {format_duration(sweep.setup_seconds)}" if sweep.setup_seconds is not None else ""
        at_once = f"{sweep.concurrency:g} at once" if sweep.concurrency is not None else ""
        found.append(Tile("wall time", format_duration(sweep.seconds), ", ".join(filter(None, [setup, at_once]))))
    if sweep.cost is not None:
        apart = sum(run.cost or 0.0 for run in sweep.runs)
        found.append(Tile("cost of the sweep", f"{sweep.cost:,.2f}", f"one trial after the other {apart:,.2f}"))
    return found


def _repeats(sweep: PageSweep) -> list[dict[str, str]]:
    if all(len(group["scores"]) < 2 for group in sweep.repeats):
        return []
    return [
        {
            "setting": values_text(group["values"]),
            "mean": f"{group['mean']:.4f}" + ("" if group["std"] is None else f" ± {group['std']:.4f}"),
            "verdict": group["verdict"],
            "css": {"best": "good", "tie": "calm"}.get(group["verdict"], "faint"),
            "seeds": str(len(group["scores"])),
            "scores": ", ".join(f"{score:.4f}" for score in group["scores"]),
        }
        for group in sweep.repeats
    ]


# Maps


def _maps(sweep: PageSweep, keys: Sequence[str]) -> Charts:
    """Score, training seconds, and seconds per epoch where trials ran unequal numbers of them."""
    what: list[tuple[str, str, bool, Callable[[PageRun], float | None], bool]] = [
        (f"best {sweep.metric}", "c0", sweep.minimise, lambda run: run.best, True),
        ("training seconds", "c1", False, _training_seconds, False),
    ]
    if len({run.epochs for run in sweep.runs if run.seconds}) > 1:  # those stopped early are not fast
        what.append(("seconds per epoch", "c2", False, _epoch_seconds, False))
    pairs = list(itertools.combinations(keys, 2))
    drawn = []
    for x, y in pairs[:MOST_PAIRS] or [(key, "") for key in keys]:
        for title, css, minimise, value, is_score in what:
            if not y and (spread := _spread(sweep, x, title, css, value)):
                drawn.append(spread)
            else:
                drawn.append(_map(sweep, x, y, title, css, minimise, value, is_score))
    about = "Each field is the best score, or the mean time, of its trials."
    about = about if len(keys) < 3 else f"{about[:-1]} over all other parameters."
    if len(pairs) > MOST_PAIRS:
        about += f" Shown are {MOST_PAIRS} of {len(pairs)} pairs of parameters."
    return Charts("Score and time over parameters", about, [picture for picture in drawn if picture])


def _training_seconds(run: PageRun) -> float | None:
    """None for a trial without an epoch: not fitting is not a time."""
    return run.seconds if run.epochs else None


def _epoch_seconds(run: PageRun) -> float | None:
    return run.seconds / run.epochs if run.seconds and run.epochs else None


def _spread(sweep: PageSweep, key: str, title: str, css: str, value: Callable[[PageRun], float | None]) -> Markup:
    """Dots over the only parameter, where it takes many numbers or was drawn from a range; else empty."""
    values = [(run, run.values.get(key)) for run in sweep.runs]
    sides = [(run, each[0] if isinstance(each, list) and key in sweep.ranges else each) for run, each in values]
    places = [(run, number(side)) for run, side in sides]
    most = 2 if key in sweep.ranges else MOST_NUMBERS
    if any(place is None for _, place in places) or len({place for _, place in places}) <= most:
        return Markup()
    dots = [
        Series(run.label, css, [(place, height)], "dot")
        for run, place in places
        if place is not None and (height := value(run)) is not None
    ]
    return chart(title, key, dots, log_x=True, log_above=1 if sweep.ranges.get(key) else 50)


def _map(
    sweep: PageSweep,
    x: str,
    y: str,
    title: str,
    css: str,
    minimise: bool,
    value: Callable[[PageRun], float | None],
    is_score: bool,
) -> Markup:
    runs = sweep.runs
    labels_x, at_x = levels([_given(run, x) for run in runs], sweep.ranges.get(x))
    labels_y, at_y = levels([_given(run, y) if y else "" for run in runs], sweep.ranges.get(y))
    groups: dict[tuple[int, int], list[PageRun]] = {}
    for run, across, down in zip(runs, at_x, at_y, strict=True):
        if across is not None and down is not None:
            groups.setdefault((across, down), []).append(run)
    best = min if minimise else max
    cells = {}
    for place, those in groups.items():
        known = [found for run in those if (found := value(run)) is not None]
        where = f"{x} {labels_x[place[0]]}" + (f", {y} {labels_y[place[1]]}" if y else "")
        trials = f"{where}: {len(those)} trial{'s' * (len(those) > 1)}, {status_words(those)}"
        if not known:
            cells[place] = Cell(None, _why_empty(those), trials)
            continue
        found = best(known) if is_score else statistics.fmean(known)
        digits = 4 if len(labels_x) <= 6 else 3
        shown = f"{found:.{digits}f}" if is_score and abs(found) < 100 else _two_digits(found)
        cells[place] = Cell(found, shown, f"{trials}: {found:.5g}")
    return heat_map(title, (x, y), (labels_x, labels_y), cells, css=css, minimise=minimise)


def _given(run: PageRun, key: str) -> object:
    """What a trial was given, NONE too; None where that is not known."""
    return NONE if run.values.get(key, NONE) is None else run.values.get(key)


def _two_digits(value: float) -> str:
    """Enough to distinguish fields: 0.047, 2.1, 47, 4,712."""
    return f"{value:.2g}" if abs(value) < 10 else f"{value:,.0f}"


def _why_empty(runs: Sequence[PageRun]) -> str:
    """A word for a field without a number."""
    states = {run.status for run in runs}
    words = {
        "out_of_memory": "OOM",
        "does_not_fit": "no fit",
        "settled": "no fit",
        "failed": "failed",
        "running": "running",
    }
    return next((word for state, word in words.items() if state in states), "-")


# Memory and speed


def _memory(sweep: PageSweep, colours: Mapping[str, str]) -> Charts:
    """Peak memory and images/s against batch size, where trials have at least two."""
    measured = any(run.memory is not None for run in sweep.runs)
    dots = "full dots are measured on the device" if measured else "on a CPU it is predicted, not measured"
    limit = f"; the limit is {format_size(int(sweep.memory_limit))}" if sweep.memory_limit else ""
    about = "Memory of a training step: rings are predicted, crosses ran out of memory or do not fit, "
    placed = [(run, run.batch_size) for run in sweep.runs if run.batch_size is not None]
    sizes = sorted({size for _, size in placed})
    drawn = [_memory_chart(sweep, placed, sizes, colours), _speed_chart(placed, sizes, colours)]
    shown = [picture for picture in drawn if picture] if len(sizes) > 1 else []
    return Charts("Memory and speed against batch size", f"{about}{dots}{limit}.", shown)


Placed = Sequence[tuple[PageRun, float]]
"""Trials and their batch sizes."""


def _split(placed: Placed) -> tuple[Placed, Placed]:
    """Those that fit, and those that do not."""
    fits = [(run, size) for run, size in placed if run.status not in DID_NOT_FIT]
    return fits, [(run, size) for run, size in placed if run.status in DID_NOT_FIT]


def _failure(run: PageRun) -> str:
    return f"{run.label}, {run.status.replace('_', ' ')}"


def _memory_chart(sweep: PageSweep, placed: Placed, sizes: Sequence[float], colours: Mapping[str, str]) -> Markup:
    limit = sweep.memory_limit
    fits, fails = _split(placed)
    known = [each for run, _ in placed for each in (run.memory, run.predicted_memory) if each is not None]
    if limit and not fails and limit > FAR * max(known, default=0.0):
        limit = None  # drawn, it would flatten everything else
    top = max([*known, *([limit * 1.05] if limit else [])], default=0.0)
    unit, scale = ("GiB", 2**30) if top >= 2**30 else ("MiB", 2**20)
    memory = [
        Series(f"{run.label}, {word}", colours[run.label], [(size, amount / scale)], mark)
        for run, size in fits
        for amount, word, mark in ((run.predicted_memory, "predicted", "ring"), (run.memory, "measured", "dot"))
        if amount is not None
    ]
    for run, size in fails:  # without a prediction at the top: only that it was too much is known
        height = max(run.predicted_memory or run.memory or top, limit * 1.05 if limit else 0.0)
        memory += [Series(_failure(run), "bad", [(size, height / scale)], "cross")] if height else []
    line = (f"limit {format_size(int(limit))}", limit / scale) if limit else None
    return chart(f"peak memory, {unit}", "batch size", memory, x_ticks=sizes, level=line)


def _speed_chart(placed: Placed, sizes: Sequence[float], colours: Mapping[str, str]) -> Markup:
    fits, fails = _split(placed)
    rates = [
        Series(run.label, colours[run.label], [(size, run.images_per_second)], "dot")
        for run, size in fits
        if run.images_per_second is not None
    ]
    if rates:
        rates += [Series(_failure(run), "bad", [(size, 0.0)], "cross") for run, size in fails]
    return chart("images/s", "batch size", rates, x_ticks=sizes)
