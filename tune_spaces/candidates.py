"""Which trials a sweep has: those it had before, then what its search gives, without combinations that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tune_spaces.messages import LeftOut, PlanFacts, SweepContent, Values
from tune_spaces.ranges import Range
from tune_spaces.sweep import Candidates, Cell, Sweep, cell, format_value, format_values, plain, setting, settings

MOST_SHOWN = 5


@dataclass(frozen=True)
class Chosen:
    """The trials of a sweep; of TPE, whose trials show on the way, some that it may propose."""

    cells: list[Cell] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def take(self, given: Iterable[Cell | LeftOut], most: int | None) -> None:
        """Add what is given, until there are `most` trials."""
        for each in given if most is None or len(self.cells) < most else ():
            self.cells.append(each) if isinstance(each, Cell) else self.left_out.append(each)
            if len(self.cells) == most:
                return


def choose(sweep: Sweep, earlier: SweepContent | None, check: Callable[[Cell], None] | None = None) -> Chosen:
    """The trials of a sweep.

    Args:
        sweep: Its space and search.
        earlier: What sweep.json holds, where the sweep continues: its trials stay, whatever a search gives now.
        check: Raises ValueError for a trial that cannot be.

    Raises:
        ValueError: There is none that can be, with the reason of the first.
    """
    recorded = earlier["trials"] if earlier else []
    chosen, numbers = Chosen(), {entry["number"] for entry in recorded}
    if sweep.search == "tpe":
        chosen.take(_made(sweep, settings(sweep), numbers, check), None)
        if any(isinstance(values, Range) for values in sweep.space.values()):
            chosen.left_out.clear()  # with ranges at their lower ends: they will not be proposed
            chosen.take(_made(sweep, _drawn(sweep), numbers, check), 1)
    else:
        entries = [entry for entry in recorded if not entry["repeat_of"]]
        for entry in entries:
            again = cell(sweep, entry["number"], entry["values"])
            if check is not None:
                check(again)
            chosen.cells.append(again)
        known = {setting(entry["values"]) for entry in entries}
        given = sweep.grid() if sweep.search == "grid" else _drawn(sweep)
        further = (values for values in given if setting(values) not in known)
        chosen.take(_made(sweep, further, numbers, check), sweep.trials)
    if not chosen.cells:
        raise ValueError(_none_can_be(chosen.left_out))
    return chosen


def confirm(chosen: Chosen, sweep: Sweep, earlier: SweepContent | None, check: Callable[[Cell], None]) -> Chosen:
    """The same trials; chosen anew where a check, as in `choose`, shows that some cannot be."""
    try:
        for each in chosen.cells:
            check(each)
    except ValueError:
        return choose(sweep, earlier, check)
    return chosen


def _drawn(sweep: Sweep) -> Iterator[Values]:
    from tune_spaces.proposals import draws  # takes seconds, which no grid needs

    return draws(sweep)


def _none_can_be(entries: Sequence[LeftOut]) -> str:
    """Why there is no trial: the one reason, or the first of several."""
    first = entries[0]
    if all(entry["reason"] == first["reason"] for entry in entries):
        return first["reason"]
    return f"no trial can be; the first, {format_values(first['values'])}: {first['reason']}"


def _made(
    sweep: Sweep, given: Iterable[Values], numbers: set[int], check: Callable[[Cell], None] | None
) -> Iterator[Cell | LeftOut]:
    """The trials of these values, with numbers that are not taken; and what cannot be."""
    for values in given:
        try:
            made = cell(sweep, next_number(numbers), values)
            if check is not None:
                check(made)
        except ValueError as error:
            yield left_out(values, error)
        else:
            numbers.add(made.number)
            yield made


def left_out(values: Values, error: ValueError) -> LeftOut:
    """What sweep.json says of a combination that cannot be."""
    reason = str(error).removeprefix(f"the trial {format_values(values)} cannot be: ")
    return {"values": {key: plain(value) for key, value in values.items()}, "reason": reason}


def next_number(taken: Collection[int]) -> int:
    """Of a further trial: how many there are; or above all, where repeats have come before it."""
    return len(taken) if len(taken) not in taken else max(taken) + 1


def describe_left_out(entries: Sequence[LeftOut]) -> list[str]:
    """Lines for people: what was left out, and why; trials that differ in nothing that the reason names once."""
    if not entries:
        return []
    reasons: dict[str, list[LeftOut]] = {}
    for entry in entries:
        reasons.setdefault(entry["reason"], []).append(entry)
    lines = []
    for reason, those in list(reasons.items())[:MOST_SHOWN]:
        first = format_values(those[0]["values"])
        lines.append(f"  {first}{f' and {len(those) - 1} more' if len(those) > 1 else ''}: {reason}")
    if len(reasons) > MOST_SHOWN:
        lines.append(f"  and {len(reasons) - MOST_SHOWN} more reasons, in sweep.json")
    many = len(entries)
    return [f"left out: {many} combination{'s' if many > 1 else ''} that cannot be", *lines]


def differences(was: PlanFacts, sweep: Sweep) -> list[str]:
    """Why a sweep is not that of an earlier sweep.json: a line for each difference that its trials do not allow.

    More trials, and further values of a field, continue it: what was trained is part of that sweep too.
    """
    now: Mapping[str, Any] = sweep.to_json()
    fixed = ("recipe", "metric", "search", "scheduler", "grace_epochs", "reduction_factor", "seed")
    found = [
        f"{key} was {_word(was.get(key))} and is now {_word(now[key])}" for key in fixed if was.get(key) != now[key]
    ]
    before, after = was.get("changes") or {}, now["changes"]
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            found.append(f"{key} was {_given_word(before, key)} and is now {_given_word(after, key)}")
    found += _fewer_values(was, sweep)
    most, least = sweep.trials, was.get("trials")
    if sweep.search != "tpe" and most is not None and (least is None or most < least):
        had = "every combination" if least is None else str(least)
        found.append(f"trials was {had} and is now {most}, which is fewer")
    if sweep.scheduler == "pbt" and not found and (most != least or was.get("space") != now["space"]):
        found.append("scheduler=pbt trains all trials together, so none can be added")
    return found


def edited(was: Mapping[str, object], sweep: Sweep) -> list[str]:
    """What the recipe of a sweep says otherwise than when it began, of the fields that the sweep leaves to it.

    Args:
        was: The recipe of an earlier sweep.json.
        sweep: As it is now.
    """
    found = []
    for key, now in sweep.base.to_json().items():
        before = was.get(key)
        if key not in was or key in sweep.space or key in sweep.changes:
            continue
        varied = {each.partition(".")[2] for each in sweep.space if each.partition(".")[0] == key}
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            before, now = ({name: each for name, each in both.items() if name not in varied} for both in (before, now))
        if before != now:
            found.append(f"{key} of the recipe was {format_value(before)} and is now {format_value(now)}")
    return found


def _fewer_values(was: PlanFacts, sweep: Sweep) -> list[str]:
    """Fields of which the sweep tried what its space no longer has."""
    found = []
    space = was.get("space") or {}
    for key in dict.fromkeys([*space, *sweep.space]):
        before, now = space.get(key), sweep.space.get(key)
        if before is None or now is None:
            found.append(f"{key} {'was not' if before is None else 'is no longer'} in the space")
        elif isinstance(before, list):
            missing = [value for value in before if not _holds(now, value)]
            if missing:
                found.append(f"{key} no longer has {', '.join(map(format_value, missing))}")
        elif not (isinstance(now, Range) and now.covers(Range(**before))):
            kind = "log" if before["log"] else "uniform"
            found.append(f"{key} no longer has all of {kind}:{before['low']:g}:{before['high']:g}")
    return found


def _holds(values: Candidates, value: object) -> bool:
    return not isinstance(values, Range) and plain(value) in [plain(each) for each in values]


def _word(value: object) -> str:
    return "none" if value is None else str(value)


def _given_word(changes: Values, key: str) -> str:
    return format_value(changes[key]) if key in changes else "the recipe's own"
