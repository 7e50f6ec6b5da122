"""What the trials of a sweep add up to: pure functions of the entries of sweep.json and lines of metrics.jsonl."""

from __future__ import annotations

import bisect
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Trial = Mapping[str, Any]
"""An entry of `trials` in sweep.json, of which any part may be missing."""
Lines = Sequence[Mapping[str, Any]]
"""The lines of a metrics.jsonl."""

RAN = ("finished", "stopped_early")
DID_NOT_FIT = ("out_of_memory", "does_not_fit", "settled")
WITHOUT_FOLDER = ("pending", "does_not_fit", "settled")


def number(value: Any) -> float | None:
    """The value where it is a finite number, else None."""
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if plain else None


def savings(trials: Sequence[Trial], histories: Mapping[str, Lines]) -> dict[str, dict[str, float]]:
    """What early stopping saved against training every trial that ran to its last epoch, as measured.

    Returns {"epochs": {"planned", "run", "saved", "repeats"}, "training_seconds": {"run", "saved", "repeats"}}. Run
    are the lines in `histories` (by the names of the trials) and the sum of their "seconds"; those of trials that
    repeat another, which nothing stops, are counted apart. Saved are the epochs that trials that finished or were
    stopped early did not run, each at the mean seconds of that trial's lines. A trial that ended otherwise (out of
    memory, failed) counts as planned what it ran: nothing was saved there.
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


def repeats(trials: Sequence[Trial], scores: Mapping[str, float | None], mode: str = "max") -> list[dict[str, Any]]:
    """The settings tried, each over all its seeds, the best mean first.

    Parameters:
        scores: the best value of each trial, by its name. Trials without one do not count.
        mode: "max" where more is better, "min" where less is.

    Returns a list of {"values", "trials", "scores", "mean", "std", "verdict"}. Trials are of one setting where their
    values are equal, but for the seed. `std` is the sample standard deviation (n - 1), None for a single score.
    The verdict is "best" for the first, "tie" where the mean is from the best's no further than the larger of the
    two spreads, else "worse". Of two settings without a spread only equal ones tie.
    """
    groups: dict[str, dict[str, Any]] = {}
    for trial in trials:
        name = str(trial.get("name"))
        if (score := number(scores.get(name))) is None:
            continue
        values = {key: value for key, value in values_of(trial).items() if key != "seed"}
        empty = {"values": values, "trials": [], "scores": []}
        group = groups.setdefault(json.dumps(values, sort_keys=True, default=str), empty)
        group["trials"].append(name)
        group["scores"].append(score)
    for group in groups.values():
        several = len(group["scores"]) > 1
        group["mean"] = statistics.fmean(group["scores"])
        group["std"] = statistics.stdev(group["scores"]) if several else None
    ordered = sorted(groups.values(), key=lambda group: group["mean"], reverse=mode != "min")
    for place, group in enumerate(ordered):
        spread = max(ordered[0]["std"] or 0.0, group["std"] or 0.0)
        near = abs(group["mean"] - ordered[0]["mean"]) <= spread
        group["verdict"] = "best" if place == 0 else "tie" if near else "worse"
    return ordered


def repeated(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that `repeats` is about: those that repeat another with a seed of their own, and those others where
    they ran to the last epoch. (One that was stopped early is run again with its seed.)"""
    origins = {trial["repeat_of"] for trial in trials if trial.get("repeat_of")}
    own = [trial for trial in trials if trial.get("name") in origins and trial.get("status") == "finished"]
    return [trial for trial in trials if trial.get("repeat_of") or trial in own]


def values_of(trial: Trial) -> Mapping[str, Any]:
    """The values that the sweep gave a trial: {"lr": 0.1, "model_args.num_filters": 16}."""
    values = trial.get("values")
    return values if isinstance(values, Mapping) else {}


def swept_keys(sweep: Mapping[str, Any], trials: Sequence[Trial]) -> list[str]:
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


def text(value: Any) -> str:
    """A value as people write it: 0.003, 128x128, true."""
    if isinstance(value, list | tuple):
        return "x".join(text(part) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool | Mapping) else str(value)


def values_text(values: Mapping[str, Any]) -> str:
    """ "lr 0.1, image_size 128x128"."""
    return ", ".join(f"{key} {text(value)}" for key, value in values.items())


def duration_text(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:05"; below a minute "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


_RANGES = 5  # of an axis with many different numbers


def levels(values: Sequence[Any], *, most: int = 8) -> tuple[list[str], list[int | None]]:
    """The steps of an axis of a table for values of any kind, and the place of each value on it; None for None.

    Numbers stand in their order, other values in that of appearance. More than `most` different numbers are put
    into five equal ranges, equal in the logarithm where they are positive and span a factor above 50.
    """
    known = [value for value in values if value is not None]
    sizes = [found for value in known if (found := number(value)) is not None]
    if len(sizes) == len(known) and len(set(sizes)) > most:
        low, high = min(sizes), max(sizes)
        log = low > 0 and high / low > 50
        ends = [
            low * (high / low) ** (n / _RANGES) if log else low + (high - low) * n / _RANGES for n in range(_RANGES + 1)
        ]
        labels = [f"{_brief(ends[n])} to {_brief(ends[n + 1])}" for n in range(_RANGES)]
        inner = ends[1:-1]
        return labels, [None if value is None else bisect.bisect_right(inner, value) for value in values]
    distinct: dict[str, Any] = {}
    for value in known:
        distinct.setdefault(text(value), value)
    plain = len(sizes) == len(known)
    labels = sorted(distinct, key=lambda label: distinct[label]) if plain else list(distinct)
    if not plain and all(isinstance(value, list) for value in known):  # sizes: 64x64 before 128x128
        labels.sort(key=lambda label: [number(part) or 0.0 for part in distinct[label]])
    return labels, [None if value is None else labels.index(text(value)) for value in values]


def _brief(value: float) -> str:
    """Two digits: 0.12, 1.5e-4."""
    if value and not 0.001 <= abs(value) < 10_000:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"  # 99.7 as .2g is 1e+02
