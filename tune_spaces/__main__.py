"""python -m tune_spaces SPACE | --recipe RECIPE --space FIELD=VALUES...

Exit codes: 0 done (or out of time, with the best so far), 1 no trial has a score, 2 bad usage or input, 3 no trial
fits into memory, 130 interrupted.
Messages and progress go to stderr; the last line of stdout is the sweep's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from trainers.cli import exit_code, leading, parse
from trainers.progress import Progress
from trainers.recipe import Scale
from trainers.values import size_of, value_of
from tune_spaces.ranges import Range
from tune_spaces.sweep import Candidates, Sweep, describe, find, space_names

USAGE = """usage: python -m tune_spaces SPACE [--FIELD VALUE...]
       python -m tune_spaces --recipe RECIPE --space FIELD=VALUE,VALUE FIELD=log:LOW:HIGH ... [--FIELD VALUE...]

spaces:
{spaces}

  or FILE.py:FUNCTION of your own, which returns a Sweep

what is searched:
  --recipe RECIPE        in place of a space: name of a recipe, or FILE.py:FUNCTION of your own
  --space FIELD=VALUES   values with commas between them, log:LOW:HIGH or uniform:LOW:HIGH; several fields, or several
                         times. A field that takes whole numbers is given whole numbers of a range

Fields of the recipe and the scale, such as --epochs 3 --workers 2, hold for all trials."""

EXAMPLE = "digits.quick"
"""The space whose defaults --help shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    """How the search goes."""

    run: str | None = None
    """Name of the sweep. None: <space>-<date>-<time>. A name that exists is continued."""
    metric: str | None = None
    """A score of the validation split, or loss. None: the task's main score."""
    search: Literal["grid", "random", "tpe"] | None = None
    """grid: every combination; random: drawn; tpe: drawn where earlier trials were good. None: the space's own, or
    random where --space gives a range."""
    trials: int | None = None
    """How many are drawn; at most so many of a grid. None: the space's own, or 16 where they are drawn."""
    scheduler: Literal["none", "asha", "median", "pbt"] | None = None
    """What stops trials early; pbt changes their learning rate instead. None: the space's own."""
    grace_epochs: int | None = None
    """No trial is stopped before so many epochs; pbt: epochs between two changes. None: the space's own."""
    reduction_factor: int | None = None
    """asha: one of so many trials continues after each of its rungs. None: the space's own."""
    search_seed: int = 0
    """Of random and tpe."""
    max_concurrent: int | None = None
    """Trials at once, at most. None: as many as the cluster holds."""
    budget: str | None = None
    """Time of training after which the sweep ends with the best so far: 90s, 30m, 2h."""
    repeats: int = 1
    """Seeds that each of the best three configurations is run with, to distinguish differences from noise."""
    json: bool = False
    """Print sweep.json at the end, in place of the sweep's folder."""


def main(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    if not argv or (argv[0] in ("-h", "--help") and len(argv) == 1):
        print(USAGE.format(spaces="\n".join(f"  {name:16} {describe(name)}" for name in space_names())))
        if argv:
            shown = find(EXAMPLE)
            print(f"\nwith the defaults of {EXAMPLE}:\n")
            with contextlib.suppress(SystemExit):
                parse(shown.base, shown.scale, _Options(), argv, "python -m tune_spaces SPACE")
        return 0 if argv else 2
    return exit_code(lambda: _sweep(list(argv)))


def _sweep(argv: list[str]) -> int:
    sweep, space_name, options = _parse(argv)
    for name in ("max_concurrent", "repeats"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"{name}={value} is not allowed; give 1 or more")
    budget = None if options.budget is None else _seconds(options.budget)
    from tune_spaces.run import run

    result = run(
        sweep,
        space_name=space_name,
        name=options.run,
        budget=budget,
        max_concurrent=options.max_concurrent,
        repeats=options.repeats,
    )
    print(json.dumps(result.content, indent=1) if options.json else result.folder)
    return result.exit_code


def _parse(argv: list[str]) -> tuple[Sweep, str | None, _Options]:
    """The sweep, the name of its space where it has one, and the options. Raises ValueError, or ends the process with
    code 2."""
    names, flags = leading(argv)
    if len(names) > 1:
        raise ValueError(f"one space at a time: {' '.join(names)}; further values are given with --space FIELD=VALUES")
    recipe, flags = _take(flags, "--recipe")
    given, flags = _take(flags, "--space")
    if bool(names) == bool(recipe):
        raise ValueError("give the name of a space, or --recipe RECIPE --space FIELD=VALUES")
    if recipe and len(recipe) != 1:
        raise ValueError(f"--recipe takes one name, not {' '.join(recipe) or 'none'}")
    base = find(names[0]) if names else Sweep(recipe=recipe[0], space={})
    space = {**base.space, **_space(given)}
    if not space:
        raise ValueError(f"the space of {base.recipe} is empty; give --space FIELD=VALUES, as in batch_size=4,8,16")
    changes, scale, options = parse(
        base.base, base.scale, _Options(), flags, f"python -m tune_spaces {' '.join(names)}"
    )
    for key in space:
        _check_alone(key, base, changes, scale)
    fixed = ("search", "trials", "scheduler", "grace_epochs", "reduction_factor")
    changed = {key: value for key in fixed if (value := getattr(options, key)) is not None}
    if base.search == "grid" and any(isinstance(each, Range) for each in space.values()) and not options.search:
        changed["search"] = None  # what goes with a range
    if changed.get("search") == "grid" and base.search != "grid":
        changed.setdefault("trials", None)  # every combination
    sweep = dataclasses.replace(
        base,
        space=space,
        changes={**base.changes, **changes},
        scale=scale,
        metric=options.metric or base.metric,
        seed=options.search_seed,
        **changed,
    )
    if "search" in changed and changed["search"] is None:
        ranges = [key for key, values in space.items() if isinstance(values, Range)]
        what = "a range" if len(ranges) == 1 else "ranges"
        Progress().message(f"{', '.join(ranges)}: {what}, so --search {sweep.search} --trials {sweep.trials}")
    return sweep, names[0] if names else None, options


def _check_alone(key: str, base: Sweep, changes: Mapping[str, object], scale: Scale) -> None:
    """Raises ValueError where a flag gives what the space varies."""
    top, _, inner = key.partition(".")
    given, own = changes.get(top), getattr(base.base, top, None)
    if isinstance(given, Mapping) and isinstance(own, Mapping):
        twice = inner in given and given[inner] != own.get(inner)
    else:
        twice = key in changes or getattr(scale, key, None) != getattr(base.scale, key, None)
    if twice:
        flag = " ".join(filter(None, [f"--{top.replace('_', '-')}", inner]))
        raise ValueError(f"{flag} is what the space varies; give --space {key}=VALUES in its place")


def _take(flags: list[str], name: str) -> tuple[list[str], list[str]]:
    """The words after a flag, wherever it is given, each time up to the next flag; and what is left."""
    taken: list[str] = []
    left: list[str] = []
    into = left
    for word in flags:
        if word.startswith("--"):
            into = taken if word == name else left
        if word != name:
            into.append(word)
    return taken, left


def _space(words: Sequence[str]) -> dict[str, Candidates]:
    """What --space gives. Raises ValueError where a field is given twice."""
    found: dict[str, Candidates] = {}
    for key, values in map(_values, words):
        if key in found:
            raise ValueError(f"--space {key}= is given twice; list all values in one, as in {key}=VALUE,VALUE")
        found[key] = values
    return found


def _values(word: str) -> tuple[str, Candidates]:
    """lr=log:1e-4:1e-1, lr=uniform:0.1:0.9, batch_size=4,8,16, image_size=128,256x512"""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ValueError(f"--space {word}: give FIELD=VALUE,VALUE or FIELD=log:LOW:HIGH or FIELD=uniform:LOW:HIGH")
    if found := re.fullmatch(r"(log|uniform):([^:]*):([^:]*)", text):
        try:
            low, high = _end(found[2]), _end(found[3])
        except ValueError:
            raise ValueError(f"--space {word}: a range is given as {found[1]}:LOW:HIGH, with two numbers") from None
        return key, Range(low, high, log=found[1] == "log")
    parts = text.split(",") if text else []
    if "" in parts:
        raise ValueError(f"--space {word}: a value is missing between its commas")
    sizes = key in ("image_size", "stored_size")
    return key, [size_of(part) if sizes else value_of(part) for part in parts]


def _end(text: str) -> float:
    """An end of a range; whole numbers stay whole."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", text)
    if not found or float(found[1]) <= 0:
        raise ValueError(f"--budget {text} is no time; give 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[found[2]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
