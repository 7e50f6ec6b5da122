"""Statistics over the trials of a sweep: pure functions of the entries of sweep.json and lines of metrics.jsonl."""

from __future__ import annotations

import bisect
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

Trial = Mapping[str, object]
"""An entry of `trials` in sweep.json, of which any part may be missing."""
Lines = Sequence[Mapping[str, object]]
"""The lines of a metrics.jsonl."""

RAN = ("finished", "stopped_early")
DID_NOT_FIT = ("out_of_memory", "does_not_fit", "settled")
WITHOUT_FOLDER = ("pending", "does_not_fit", "settled")


class Setting(TypedDict):
    """One setting of a sweep, over all the seeds it was trained with."""

    values: dict[str, object]
    """Without the seed."""
    trials: list[str]
    scores: list[float]
    """Best value of each trial."""
    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None for a single score."""
    verdict: Literal["best", "tie", "worse"]


def number(value: object) -> float | None:
    """The value where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def savings(trials: Sequence[Trial], histories: Mapping[str, Lines]) -> dict[str, dict[str, float]]:
    """What early stopping saved against training every trial that ran to its last epoch, as measured.

    Args:
        trials: entries of sweep.json.
        histories: name of a trial -> its lines of metrics.jsonl.

    Returns:
        {"epochs": {"planned", "run", "saved", "repeats"}, "training_seconds": {"run", "saved", "repeats"}}. "run"
        counts the lines, and the sum of their seconds; those of trials that repeat another, which nothing stops, are
        "repeats". "saved" are the epochs that trials that finished or were stopped early did not run, each at the
        mean seconds of that trial's lines. A trial that ended otherwise (out of memory, failed) counts as planned
        what it ran: nothing was saved there.
    """
    planned = run = saved = again = 0
    seconds_run = seconds_saved = seconds_again = 0.0
    for trial in trials:
        lines = histories.get(str(trial.get("name")), ())
        took = [number(line.get("seconds")) or 0.0 for line in lines]
        if trial.get("repeat_of"):
            again, seconds_again = again + len(lines), seconds_again + math.fsum(took)
            continue
        wanted = max(int(number(trial.get("epochs")) or 0), len(lines)) if trial.get("status") in RAN else len(lines)
        planned, run, saved = planned + wanted, run + len(lines), saved + wanted - len(lines)
        seconds_run += math.fsum(took)
        seconds_saved += (wanted - len(lines)) * statistics.fmean(took) if took else 0.0
    return {
        "epochs": {"planned": planned, "run": run, "saved": saved, "repeats": again},
        "training_seconds": {"run": seconds_run, "saved": seconds_saved, "repeats": seconds_again},
    }


def repeats(trials: Sequence[Trial], scores: Mapping[str, float | None], mode: str = "max") -> list[Setting]:
    """The settings tried, each over all its seeds, the best mean first.

    Trials are of one setting where their values are equal, but for the seed.

    Args:
        trials: entries of sweep.json.
        scores: name of a trial -> its best value. Trials without one do not count.
        mode: "max" where more is better, "min" where less is.

    Returns:
        The settings. The verdict is "best" for the first, "tie" where the mean is from the best's no further than
        the larger of the two spreads, else "worse". Of two settings without a spread only equal ones tie.
    """
    groups: dict[str, tuple[dict[str, object], dict[str, float]]] = {}
    for trial in trials:
        name = str(trial.get("name"))
        if (score := number(scores.get(name))) is None:
            continue
        values = {key: value for key, value in values_of(trial).items() if key != "seed"}
        _, found = groups.setdefault(json.dumps(values, sort_keys=True, default=str), (values, {}))
        found[name] = score
    ordered = [(statistics.fmean(found.values()), values, found) for values, found in groups.values()]
    ordered.sort(key=lambda group: group[0], reverse=mode != "min")
    settings: list[Setting] = []
    for mean, values, found in ordered:
        std = statistics.stdev(found.values()) if len(found) > 1 else None
        first = settings[0] if settings else None
        spread = max((first and first["std"]) or 0.0, std or 0.0)
        near = first is not None and abs(mean - first["mean"]) <= spread
        settings.append(
            {
                "values": values,
                "trials": list(found),
                "scores": list(found.values()),
                "mean": mean,
                "std": std,
                "verdict": "best" if first is None else "tie" if near else "worse",
            }
        )
    return settings


def repeated(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that `repeats` is about: those that repeat another with a seed of their own, and those others where
    they ran to the last epoch. (One that was stopped early is run again with its seed.)"""
    origins = {trial["repeat_of"] for trial in trials if trial.get("repeat_of")}
    own = [trial for trial in trials if trial.get("name") in origins and trial.get("status") == "finished"]
    return [trial for trial in trials if trial.get("repeat_of") or trial in own]


def values_of(trial: Trial) -> Mapping[str, object]:
    """The values that the sweep gave a trial: {"lr": 0.1, "model_args.num_filters": 16}."""
    values = trial.get("values")
    return values if isinstance(values, Mapping) else {}


def swept_keys(sweep: Mapping[str, object], trials: Sequence[Trial]) -> list[str]:
    """The names of what a sweep varies: those of its plan, then others that trials have."""
    plan = sweep.get("plan")
    space = plan.get("space") if isinstance(plan, Mapping) else None
    planned = [str(key) for key in space] if isinstance(space, Mapping) else []
    return list(dict.fromkeys([*planned, *(str(key) for trial in trials for key in values_of(trial))]))


def pareto(points: Sequence[tuple[float, float]], *, minimise: bool = False) -> list[int]:
    """The places of the (time, score) points that no other point beats in both, by rising time.

    More score is better, unless `minimise`. Of equal points the first is taken.
    """
    sign = 1 if minimise else -1
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], sign * points[place][1])):
        if not front or sign * points[place][1] < sign * points[front[-1]][1]:
            front.append(place)
    return front


NONE = "none"


def text(value: object) -> str:
    """A value as people write it: 0.003, 128x128, true, none."""
    if value is None:
        return NONE
    if isinstance(value, list | tuple):
        return "x".join(text(part) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool | Mapping) else str(value)


def values_text(values: Mapping[str, object]) -> str:
    """ "lr 0.1, image_size 128x128"."""
    return ", ".join(f"{key} {text(value)}" for key, value in values.items())


RANGES = 5
"""Of an axis with many different numbers."""
MOST_NUMBERS = 8
"""Different numbers of an axis that each have a step of their own."""


def ranges_of(sweep: Mapping[str, object]) -> dict[str, bool]:
    """What a sweep draws from a range of many numbers, and whether as many come from each decade."""
    plan = sweep.get("plan")
    space = plan.get("space") if isinstance(plan, Mapping) else None
    items = space.items() if isinstance(space, Mapping) else ()
    return {
        str(key): bool(values.get("log"))
        for key, values in items
        if isinstance(values, Mapping) and not _has_few(values)
    }


def _has_few(drawn: Mapping[str, object]) -> bool:
    """Whether a range is of so few whole numbers that each can have a step."""
    low, high = number(drawn.get("low")) or 0.0, number(drawn.get("high")) or 0.0
    return drawn.get("kind", "number") != "number" and high - low < MOST_NUMBERS


def levels(values: Sequence[object], log: bool | None = None) -> tuple[list[str], list[int | None]]:
    """The steps of an axis of a map for values of any kind.

    Numbers stand in their order, sizes in that of their parts, NONE behind them, others in that of appearance. More
    than MOST_NUMBERS different numbers are put into RANGES ranges, those drawn from a range where there are more than
    two: equal ones, in the logarithm where the numbers are positive and span a factor above 50.

    Args:
        values: one for each trial; None where it is not known, NONE where it was given no value.
        log: of those drawn from a range, whether as many come from each decade; None: they were listed.

    Returns:
        The labels of the steps, and the place of each value among them; None for None.
    """
    if log is not None:
        values = [value[0] if isinstance(value, list) and value else value for value in values]  # as high as wide
    known = [value for value in values if value is not None]
    sizes = [found for value in known if (found := number(value)) is not None]
    numbers = len(sizes) == len(known)
    if numbers and len(set(sizes)) > (MOST_NUMBERS if log is None else 2):
        return _binned([number(value) for value in values], log)
    distinct: dict[str, object] = {}
    for value in known:
        distinct.setdefault(text(value), value)
    labels = list(distinct)
    if all(isinstance(value, list) or value == NONE or number(value) is not None for value in known):
        labels.sort(key=lambda label: (label == NONE, _parts(distinct[label])))  # 64x64 before 128x128
    return labels, [None if value is None else labels.index(text(value)) for value in values]


def _binned(sizes: Sequence[float | None], log: bool | None) -> tuple[list[str], list[int | None]]:
    known = [size for size in sizes if size is not None]
    low, high = min(known), max(known)
    log = low > 0 and (log or high / low > 50)
    ends = [low * (high / low) ** (n / RANGES) if log else low + (high - low) * n / RANGES for n in range(RANGES + 1)]
    labels = [f"{_brief(ends[n])} to {_brief(ends[n + 1])}" for n in range(RANGES)]
    return labels, [None if size is None else bisect.bisect_right(ends[1:-1], size) for size in sizes]


def _parts(value: object) -> list[float]:
    return [number(part) or 0.0 for part in (value if isinstance(value, list) else [value])]


def _brief(value: float) -> str:
    """Two digits: 0.12, 1.5e-4."""
    if value and not 0.001 <= abs(value) < 10_000:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"  # 99.7 as .2g is 1e+02
