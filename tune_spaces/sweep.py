"""What a sweep is: a recipe, the values to try, how they are searched and when a trial is stopped.

Imports neither torch nor Ray: a mistake in a space is reported within a second.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
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
from trainers.recipe import Recipe, Scale, resolve, resolve_micro_batch
from trainers.registry import load
from tune_spaces.messages import PlanFacts, Values
from tune_spaces.ranges import Range as Range  # a space of one's own takes it from here
from tune_spaces.ranges import range_kind

FIXED = ("storage", "data", "data_mode", "on_oom", "memory", "max_failures")
"""Fields of Scale that are those of the whole sweep."""
MOST_TRIALS = 10_000
DRAWN = 16
"""So many trials are drawn where nobody says how many."""
MOST_TRIED = 1000
"""So many combinations are looked at for one that a value goes with."""
MOST_BYTES = 255
"""Of a folder's name, on most file systems."""
REPEATED = 3
"""So many of the best configurations are run again with other seeds, where repeats are asked for."""


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
    search: Literal["grid", "random", "tpe"] | None = None
    """grid: every combination; random: drawn; tpe: drawn where earlier trials were good (Bergstra et al., Algorithms
    for Hyper-Parameter Optimization, NIPS 2011; Optuna's). None: random where there is a range, else grid."""
    trials: int | None = None
    """How many are drawn (None: 16); at most so many of a grid (None: all)."""
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
        if self.search is None:
            ranges = any(isinstance(values, Range) for values in self.space.values())
            object.__setattr__(self, "search", "random" if ranges else "grid")
        if self.search in ("random", "tpe") and self.trials is None:
            object.__setattr__(self, "trials", DRAWN)
        self._check_search()
        for key in self.space:
            self._check_key(key)
        object.__setattr__(self, "space", {key: self._candidates(key, values) for key, values in self.space.items()})
        base = self.base
        for key, values in self.space.items():
            ends = [values.value(values.low), values.value(values.high)] if isinstance(values, Range) else values
            for value in ends:
                self._check_value(base, key, value)

    def _check_search(self) -> None:
        """What is not of a single field."""
        for name, allowed in (("search", ("grid", "random", "tpe")), ("scheduler", ("none", "asha", "median", "pbt"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not allowed; use one of {', '.join(allowed)}")
        least = {"trials": 1, "grace_epochs": 1, "reduction_factor": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < smallest):
                raise ValueError(f"{name}={value} is not allowed; {name} takes a whole number, {smallest} or more")
        if not self.space and self.search != "grid":
            raise ValueError("the space is empty; give --space FIELD=VALUES, as in lr=log:1e-4:1e-1 batch_size=4,8")
        if self.scheduler == "pbt" and not isinstance(self.space.get("lr"), Range):
            raise ValueError("scheduler=pbt changes the learning rate: give it a range, as in --space lr=log:1e-4:1e-1")
        if self.scheduler == "pbt" and self.search == "tpe":
            raise ValueError("scheduler=pbt draws its own population; use --search random")

    def _check_key(self, key: str) -> None:
        """That it is a field which can be varied."""
        top, _, inner = key.partition(".")
        recipe_fields, scale_fields = _names(Recipe), [name for name in _names(Scale) if name not in FIXED]
        if top in FIXED:
            raise ValueError(f"space: {top} holds for the whole sweep; give --{top.replace('_', '-')} VALUE")
        if top not in (*recipe_fields, *scale_fields):
            raise ValueError(f"space: there is no field {top!r}{nearest(top, [*recipe_fields, *scale_fields])}")
        mapping = isinstance(getattr(resolve(self.recipe), top, None), Mapping)
        if bool(inner) != mapping:
            example = f"{top}.NAME=VALUES" if mapping else f"{top}=VALUES"
            raise ValueError(f"space: {key} cannot be varied as a whole; give {example}")

    def _candidates(self, key: str, values: Candidates) -> Candidates:
        """What is tried of a field, where a range is of the numbers that it takes."""
        if isinstance(values, Range):
            if self.search == "grid":
                raise ValueError(f"space: {key} is a range, which no grid covers; list values, or use --search random")
            try:
                return values.of_kind(range_kind(resolve(self.recipe), self.changes, key, values))
            except ValueError as error:
                raise ValueError(f"space: {key}: {error}") from None
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"space: {key} has no values; give {key}=VALUE,VALUE or a range")
        if len({repr(value) for value in values}) < len(values):
            raise ValueError(f"space: {key} lists a value twice: {', '.join(map(format_value, values))}")
        return values

    def _check_value(self, base: Recipe, key: str, value: object) -> None:
        """That a field takes a value, on its own or with some values of the others. Which combinations cannot be shows
        when they are made."""
        given = nested({key: value})
        try:
            base.replace(**given) if key.partition(".")[0] in _names(Recipe) else self.scale.replace(**given)
        except ValueError as error:
            among = itertools.islice(_combinations({**self.space, key: [value]}), MOST_TRIED)
            if not (_is_allowed(base, given, _partners(key, given)) or any(map(self._can_be, among))):
                raise ValueError(f"space: {key}={format_value(value)}: {error}") from None

    def _can_be(self, values: Values) -> bool:
        try:
            self.recipe_with(values)
        except ValueError:
            return False
        return True

    @functools.cached_property
    def _changed(self) -> Recipe | ValueError:
        """The recipe with the changes; why that cannot be, where they need some of the space."""
        try:
            return resolve(self.recipe).replace(**self.changes)
        except ValueError as error:
            return error

    @property
    def base(self) -> Recipe:
        """The recipe that values are put into; where its changes need some of the space, with the first that can be.
        Raises ValueError."""
        if isinstance(self._changed, Recipe):
            return self._changed
        for values in itertools.islice(settings(self), MOST_TRIED):
            if self._can_be(values):
                return self.recipe_with(values)
        raise self._changed

    @property
    def most_epochs(self) -> int:
        """Of a trial."""
        epochs = self.space.get("epochs", [self.base.epochs])
        most = epochs.high if isinstance(epochs, Range) else max(typing.cast(Sequence[int], epochs))
        return int(most)

    def recipe_with(self, values: Values) -> Recipe:
        """The recipe of a trial; of what the values say of a Scale it takes nothing. Raises ValueError where they do
        not go together."""
        given = nested({key: value for key, value in values.items() if key.partition(".")[0] in _names(Recipe)})
        if isinstance(self._changed, Recipe):
            stored = {key: self.changes[key] for key in ("stored_size",) if key in self.changes}
            return self._changed.replace(**{**stored, **given})  # else it would follow image_size
        return resolve(self.recipe).replace(**_merged(self.changes, given))

    def grid(self) -> Iterator[dict[str, object]]:
        """Every combination of the values, the last key changing fastest. Raises ValueError for too many."""
        many = math.prod(len(values) for values in self.space.values() if not isinstance(values, Range))
        if many > MOST_TRIALS and self.trials is None:
            raise ValueError(f"the grid has {many:,} trials; give --trials N, or --search random --trials N")
        return _combinations(self.space)

    def to_json(self) -> PlanFacts:
        """Plain data, for sweep.json."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        spaces = {
            key: values.to_json() if isinstance(values, Range) else [plain(value) for value in values]
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
        name = re.sub(r"[^\w.=,+-]", "_", "-".join([f"{self.number:03}", *words]))[:100]
        return name.encode()[:MOST_BYTES].decode(errors="ignore")


def cell(sweep: Sweep, number: int, values: Values) -> Cell:
    """The trial with these values. Raises ValueError where they do not go together."""
    try:
        recipe = sweep.recipe_with(values)
        places = {key: value for key, value in values.items() if key in _names(Scale)}
        scale = sweep.scale.replace(**places) if places else sweep.scale
        if scale.worker_range[1] > 1:
            resolve_micro_batch(recipe, scale)
    except ValueError as error:
        raise ValueError(f"the trial {format_values(values)} cannot be: {error}") from None
    return Cell(number=number, values=dict(values), recipe=recipe, scale=scale)


def settings(sweep: Sweep) -> Iterator[dict[str, object]]:
    """Every combination of the listed values, with ranges at their lower end; at most MOST_TRIALS of them."""
    return itertools.islice(_combinations(sweep.space), MOST_TRIALS)


def _combinations(space: Mapping[str, Candidates]) -> Iterator[dict[str, object]]:
    lists = [[values.value(values.low)] if isinstance(values, Range) else values for values in space.values()]
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


def _merged(changes: Values, given: Values) -> Values:
    """Both; where both change a mapping, such as model_args, what both say of it."""
    both = dict(changes)
    for name, value in given.items():
        old = both.get(name)
        both[name] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _is_allowed(base: Recipe, given: Values, partners: Values) -> bool:
    try:
        base.replace(**partners).replace(**given)
    except ValueError:
        return False
    return bool(partners)


def _partners(key: str, given: Values) -> Values:
    """Values of other fields that go with any value of this one: it is checked on its own."""
    if key in ("micro_batch_size", "stored_size"):
        return {key: None, "batch_size" if key == "micro_batch_size" else "image_size": given[key]}
    partners: dict[str, Values] = {
        "batch_size": {"micro_batch_size": None},
        "image_size": {"stored_size": None},
        "optimizer": {"nesterov": False},
        "momentum": {"nesterov": False},
        "nesterov": {"optimizer": "sgd", "momentum": 0.9},
    }
    return partners.get(key, {})


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


def format_values(values: Values) -> str:
    """lr=0.01 batch_size=64"""
    return " ".join(f"{key}={format_value(value)}" for key, value in values.items())


@functools.cache
def _names(kind: type) -> list[str]:
    return [each.name for each in dataclasses.fields(kind)]


def plain(value: object) -> object:
    """A value as JSON: lists in place of tuples."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
