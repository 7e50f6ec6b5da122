"""Which run of a baseline each run is compared with, and why some are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainers.report.reader import Run
from trainers.report.sweep_stats import RAN, text, values_of

PAIRED_BY = ("model", "image_size")
"""The recipe fields that two runs must share, next to the content of the data, to be compared one to one."""
RESOLVED = ("precision", "micro_batch_size")
"""The recipe fields that each machine resolves where they are left open: two machines may differ there."""
MOST = 4
"""Number of differences between two recipes that a note lists."""


@dataclass(frozen=True)
class Pair:
    """What one run is compared with; None where there is nothing, and the note says why."""

    partner: Run | None
    note: str = ""


def pairs(runs: Sequence[Run], baseline: Sequence[Run], name: str) -> dict[str, Pair]:
    """What each run is compared with.

    With one run as the baseline each run is compared with it, where data, model and image size are equal; the note
    names every other setting that differs. With a sweep or a folder of runs each is compared with the one of the
    same recipe, in every field, and the same content of the data.

    Args:
        runs: those of the report.
        baseline: those to compare with.
        name: what the baseline is called in the notes.

    Returns:
        Address of a run's folder -> its partner.
    """
    if len(baseline) == 1 and not baseline[0].trial:
        return {run.store.address: _with_one(run, baseline[0]) for run in runs}
    return {run.store.address: _with_same(run, baseline, name) for run in runs}


def _with_one(run: Run, base: Run) -> Pair:
    if run.store.address == base.store.address:
        return Pair(run)
    why_not, differences = _why_not(run, base), _differences(run, base, PAIRED_BY)
    if why_not:
        return Pair(None, f"not compared with {base.label}: " + "; ".join(why_not + differences))
    return Pair(base, f"compared with {base.label}, but " + "; ".join(differences) if differences else "")


def _why_not(run: Run, base: Run) -> list[str]:
    """Why two runs are not compared; empty where they are."""
    reasons = []
    if not _same_data(run, base):
        known = _fingerprint(run) and _fingerprint(base)
        reasons.append("dataset fingerprint differs" if known else "dataset fingerprint unknown")
    for key in PAIRED_BY:
        ours, theirs = run.get("recipe", key), base.get("recipe", key)
        if ours is None or theirs is None:
            reasons.append(f"{key} unknown")
        elif ours != theirs:
            reasons.append(f"{key} {text(ours)} against {text(theirs)}")
    return reasons


def _with_same(run: Run, others: Sequence[Run], name: str) -> Pair:
    if any(run.store.address == other.store.address for other in others):
        return Pair(run)
    if run.get("recipe") is None and not run.trial:  # a sweep that is one row
        return Pair(None)
    if not run.get("recipe"):
        return Pair(None, f"not compared with {name}: it did not run here")
    ran = [other for other in others if other.get("recipe")]
    if not ran:
        return Pair(None, f"not compared with {name}: nothing there has run")
    same = [other for other in ran if not _differences(run, other, RESOLVED)]
    with_data = sorted(
        (other for other in same if _same_data(run, other)),
        key=lambda other: (other.get("status") not in RAN, len(_differences(run, other))),
    )
    if with_data:
        partner = with_data[0]
        rivals = [other for other in with_data if _differences(run, other) == _differences(run, partner)]
        notes = [f"{len(rivals)} runs of {name} have this recipe; compared with {partner.label}"]
        notes = notes if len(rivals) > 1 else []
        if differences := _differences(run, partner):
            notes.append(f"compared with {partner.label} of {name}, but " + "; ".join(differences))
        if partner.get("status") not in RAN:
            who = "its status" if partner.label == run.label else f"the status of {partner.label}"
            notes.append(f"{who} in {name} is {str(partner.get('status')).replace('_', ' ')}")
        return Pair(partner, "; ".join(notes))
    if same:
        ours, theirs = _fingerprint(run) or "unknown", _fingerprint(same[0]) or "unknown"
        why = f"{same[0].label} has the same recipe, but other data: fingerprint {ours[:12]} against {theirs[:12]}"
        return Pair(None, f"not compared with {name}: {why}")
    return Pair(None, f"not compared with {name}: {_nearest(run, others, ran)}")


def _nearest(run: Run, others: Sequence[Run], ran: Sequence[Run]) -> str:
    """Why no run has the same recipe."""
    for other in others:
        if run.trial and not other.get("recipe") and values_of(other.trial) == values_of(run.trial):
            status = str(other.get("status")).replace("_", " ")
            why = other.trial.get("message") or status
            return f"{other.label}, of the same values, did not run there: {why}"
    near = min(ran, key=lambda other: len(_differences(run, other, RESOLVED)))
    differences = _differences(run, near, RESOLVED)
    more = f" and {len(differences) - MOST} more" if len(differences) > MOST else ""
    listed = "; ".join(differences[:MOST]) + more
    return f"no run of the same recipe; the nearest, {near.label}, differs: {listed}"


def _same_data(run: Run, other: Run) -> bool:
    return _fingerprint(run) is not None and _fingerprint(run) == _fingerprint(other)


def _fingerprint(run: Run) -> str | None:
    found = run.get("dataset", "fingerprint")
    return None if found is None else str(found)


def _differences(run: Run, base: Run, without: Sequence[str] = ()) -> list[str]:
    """The settings of the recipes that differ, but for the fields `without`."""
    ours, theirs = _flat(run.get("recipe")), _flat(base.get("recipe"))
    return [
        f"{key} {text(ours.get(key))} against {text(theirs.get(key))}"
        for key in dict.fromkeys([*ours, *theirs])
        if key not in without and ours.get(key) != theirs.get(key)
    ]


def _flat(recipe: object, above: str = "") -> dict[str, object]:
    """{"model_args": {"filters": 16}} as {"model_args.filters": 16}."""
    flat: dict[str, object] = {}
    for key, value in recipe.items() if isinstance(recipe, Mapping) else ():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat
