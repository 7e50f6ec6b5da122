"""What a sweep is: a recipe, the values to try, how they are searched and when a trial is stopped.

Imports neither torch nor Ray: a mistake in a space is reported within a second.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainers.formatting import locate_error, nearest
from trainers.recipe import Recipe, Scale, resolve
from trainers.registry import load
from tune_spaces.messages import PlanFacts, Values

FIXED = ("storage", "data", "data_mode", "on_oom", "memory", "max_failures")
"""Fields of Scale that are those of the whole sweep."""
MOST_TRIALS = 10_000
REPEATED = 3
"""So many of the best configurations are run again with other seeds, where repeats are asked for."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` up to `high`; `log`: as many from each decade."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        kind = "log" if self.log else "uniform"
        text = f"{kind}:{self.low:g}:{self.high:g}"
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the range {text} is empty; the first number is the smaller one, as in {kind}:0.001:0.1")
        if self.log and self.low <= 0:
            raise ValueError(f"the range {text} goes through zero, where there is no logarithm; start above 0")


Candidates = Sequence[object] | Range
"""What is tried of a field."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search over fields of a recipe, and of the scale it runs at. Raises ValueError for what is not allowed."""

    recipe: str
    """Name of a recipe, or FILE.py:FUNCTION of your own."""
    space: Mapping[str, Candidates]
    """Field -> values or a Range. Fields are those of Recipe and Scale; model_args.num_filters is a field too."""
    changes: Values = field(default_factory=dict)
    """Fields of the recipe that differ from its own, for all trials."""
    metric: str | None = None
    """A score of the validation split, or loss. None: the task's main score."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """grid: every combination; random: drawn; tpe: drawn where earlier trials were good (Bergstra et al., Algorithms
    for Hyper-Parameter Optimization, NIPS 2011; Optuna's)."""
    trials: int | None = None
    """How many are drawn; at most so many of a grid."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "asha"
    """What stops trials early, by epochs: asha (Li et al., A System for Massively Parallel Hyperparameter Tuning,
    MLSys 2020); median: worse than the median of the others (Golovin et al., Google Vizier, KDD 2017); pbt:
    population-based training of the learning rate (Jaderberg et al., 2017), which stops none."""
    grace_epochs: int = 1
    """No trial is stopped before so many epochs; pbt: epochs between two changes."""
    reduction_factor: int = 4
    """asha: one of so many trials continues after each of its rungs."""
    scale: Scale = field(default_factory=Scale)
    """Where each trial runs."""
    seed: int = 0
    """Of random and tpe."""

    def __post_init__(self) -> None:
        for name in ("search", "scheduler"):
            allowed = typing.get_args(typing.get_type_hints(Sweep)[name])
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not allowed; use one of {', '.join(allowed)}")
        least = {"trials": 1, "grace_epochs": 1, "reduction_factor": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < smallest):
                raise ValueError(f"{name}={value} is not allowed; {name} takes a whole number, {smallest} or more")
        base = self.base
        if not self.space and self.search != "grid":
            raise ValueError("the space is empty; give --space FIELD=VALUES, as in lr=log:1e-4:1e-1 batch_size=4,8")
        for key, values in self.space.items():
            self._check(base, key, values)
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"search={self.search} needs a number of trials; give --trials 16")
        if self.scheduler == "pbt" and not isinstance(self.space.get("lr"), Range):
            raise ValueError("scheduler=pbt changes the learning rate: give it a range, as in --space lr=log:1e-4:1e-1")
        if self.scheduler == "pbt" and self.search == "tpe":
            raise ValueError("scheduler=pbt draws its own population; use --search random")

    def _check(self, base: Recipe, key: str, values: Candidates) -> None:
        """That a key is a field, and each of its values one that the field takes."""
        top, _, inner = key.partition(".")
        recipe_fields, scale_fields = _names(Recipe), [name for name in _names(Scale) if name not in FIXED]
        if top in FIXED:
            raise ValueError(f"space: {top} holds for the whole sweep; give --{top.replace('_', '-')} VALUE")
        if top not in (*recipe_fields, *scale_fields):
            raise ValueError(f"space: there is no field {top!r}{nearest(top, [*recipe_fields, *scale_fields])}")
        mapping = isinstance(getattr(base, top, None), Mapping)
        if bool(inner) != mapping:
            example = f"{top}.NAME=VALUES" if mapping else f"{top}=VALUES"
            raise ValueError(f"space: {key} cannot be varied as a whole; give {example}")
        if isinstance(values, Range):
            if self.search == "grid":
                raise ValueError(f"space: {key} is a range, which no grid covers; list values, or use --search random")
            values = [values.low, values.high]
        elif isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"space: {key} has no values; give {key}=VALUE,VALUE or a range")
        elif len({repr(value) for value in values}) < len(values):
            raise ValueError(f"space: {key} lists a value twice: {', '.join(map(format_value, values))}")
        for value in values:
            try:
                # On its own: whether a micro-batch divides a batch shows in the combinations.
                relaxed = base.replace(micro_batch_size=None) if key == "batch_size" else base
                relaxed.replace(**nested({key: value})) if top in recipe_fields else self.scale.replace(**{key: value})
            except ValueError as error:
                raise ValueError(f"space: {key}={format_value(value)}: {error}") from None

    @property
    def base(self) -> Recipe:
        """The recipe that values are put into."""
        return resolve(self.recipe).replace(**self.changes)

    def grid(self) -> Iterator[dict[str, object]]:
        """Every combination of the values, the last key changing fastest. Raises ValueError for too many."""
        many = math.prod(len(values) for values in self.space.values() if not isinstance(values, Range))
        if many > MOST_TRIALS and self.trials is None:
            raise ValueError(f"the grid has {many:,} trials; give --trials N, or --search random --trials N")
        yield from itertools.islice(_combinations(self.space), self.trials)

    def to_json(self) -> PlanFacts:
        """Plain data, for sweep.json."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        spaces = {
            key: dataclasses.asdict(values) if isinstance(values, Range) else [plain(value) for value in values]
            for key, values in self.space.items()
        }
        changes = {key: plain(value) for key, value in self.changes.items()}
        return typing.cast(PlanFacts, {**own, "space": spaces, "changes": changes, "scale": self.scale.to_json()})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of values."""

    number: int
    values: Values
    recipe: Recipe
    scale: Scale
    repeat_of: str | None = None

    @property
    def name(self) -> str:
        """Of the trial, and of its run folder."""
        words = [f"{key.rpartition('.')[2]}={format_value(value)}" for key, value in self.values.items()]
        words += [f"seed={self.recipe.seed}"] if self.repeat_of else []
        return re.sub(r"[^\w.=,+-]", "_", "-".join([f"{self.number:03}", *words]))[:100]


def cell(sweep: Sweep, number: int, values: Values) -> Cell:
    """The trial with these values. Raises ValueError where they do not go together."""
    ours = {key: value for key, value in values.items() if key.partition(".")[0] in _names(Recipe)}
    try:
        recipe = sweep.base.replace(**nested(ours))
        scale = sweep.scale.replace(**{key: value for key, value in values.items() if key not in ours})
    except ValueError as error:
        text = " ".join(f"{key}={format_value(value)}" for key, value in values.items())
        raise ValueError(f"the trial {text} cannot be: {error}") from None
    return Cell(number=number, values=dict(values), recipe=recipe, scale=scale)


def settings(sweep: Sweep) -> Iterator[dict[str, object]]:
    """Every combination of the listed values, with ranges at their lower end; at most MOST_TRIALS of them."""
    return itertools.islice(_combinations(sweep.space), MOST_TRIALS)


def _combinations(space: Mapping[str, Candidates]) -> Iterator[dict[str, object]]:
    lists = [[values.low] if isinstance(values, Range) else values for values in space.values()]
    return (dict(zip(space, combination, strict=True)) for combination in itertools.product(*lists))


def setting(values: Values) -> str:
    """The same text for the same values, whatever their order."""
    return json.dumps({key: plain(value) for key, value in values.items()}, sort_keys=True)


def find(name: str) -> Sweep:
    """The space called `name`: MODULE.FUNCTION in tune_spaces/spaces, or ./mine.py:fast. Raises ValueError."""
    file, colon, function = name.rpartition(":")
    if not colon and name not in space_names():
        raise ValueError(f"there is no space {name!r}{nearest(name, space_names())}")
    if not colon:
        file, _, function = name.rpartition(".")
    module: types.ModuleType = load("recipes", file) if colon else importlib.import_module(f"tune_spaces.spaces.{file}")
    made = getattr(module, function, None)
    if not callable(made):
        raise ValueError(f"{file} has no function {function}() that returns a Sweep")
    try:
        sweep = made()
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the space {name!r} cannot be made: {locate_error(error)}") from None
    if not isinstance(sweep, Sweep):
        raise ValueError(f"the space {name!r} returned {type(sweep).__name__}; it must return a Sweep")
    return sweep


def describe(name: str) -> str:
    """The first line of what a space's docstring says."""
    file, _, function = name.rpartition(".")
    text: str = getattr(importlib.import_module(f"tune_spaces.spaces.{file}"), function).__doc__ or ""
    return text.strip().splitlines()[0]


def space_names() -> list[str]:
    """The names of all spaces that ship with Trainyard."""
    found = []
    for path in sorted((Path(__file__).parent / "spaces").glob("[!_]*.py")):
        functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        found += [f"{path.stem}.{name}" for name in functions if not name.startswith("_")]
    return found


def nested(values: Values) -> dict[str, Any]:
    """{"model_args.num_filters": 8} as {"model_args": {"num_filters": 8}}; lists become tuples, as in a Recipe."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        top, _, inner = key.partition(".")
        if inner:
            found.setdefault(top, {})[inner] = value
        else:
            found[top] = tuple(value) if isinstance(value, list) else value
    return found


def distance(values: Values, base: Recipe) -> float:
    """How far a trial is from the recipe's own setting: numbers and sizes by their ratio, others by being others."""
    far = 0.0
    for key, value in values.items():
        top, _, inner = key.partition(".")
        own = getattr(base, top, None)
        own = own.get(inner) if isinstance(own, Mapping) else own
        here, there = _size(value), _size(own)
        far += abs(math.log(here / there)) if here and there else float(value != own)
    return far


def _size(value: object) -> float | None:
    """A positive number, or the area of a size; None of anything else."""
    if isinstance(value, list | tuple) and value and all(isinstance(part, int) for part in value):
        return float(math.prod(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value > 0 else None


def format_value(value: object) -> str:
    """A value as people write it: 128x256, 0.001, true."""
    if isinstance(value, list | tuple):
        square = len(value) == 2 and value[0] == value[1]
        return str(value[0]) if square else "x".join(map(format_value, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _names(kind: type) -> list[str]:
    return [each.name for each in dataclasses.fields(kind)]


def plain(value: object) -> object:
    """A value as JSON: lists in place of tuples."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
