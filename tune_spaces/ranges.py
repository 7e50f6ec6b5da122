"""Ranges of a space: which numbers a field takes from one, and what that makes of the field."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from trainers.augmentations import AUGMENTATIONS
from trainers.recipe import SCHEDULE_ARGS, Recipe, Scale
from trainers.registry import Kind, annotated, arguments, choices
from tune_spaces.messages import RangeFacts, RangeKind

_ARGUMENTS: Mapping[str, tuple[Kind, str]] = {
    "dataset_args": ("datasets", "source"),
    "model_args": ("models", "build"),
    "task_args": ("tasks", "make"),
}
"""Field -> the kind of module whose function takes these arguments."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` up to `high`; `log`: as many from each decade."""

    low: float
    high: float
    log: bool = False
    kind: RangeKind = "number"
    """whole: whole numbers, `high` among them; square: sizes as high as wide. A Sweep sets it, by the field."""

    def __post_init__(self) -> None:
        kind = "log" if self.log else "uniform"
        text = f"{kind}:{self.low:g}:{self.high:g}"
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the range {text} is empty; the first number is the smaller one, as in {kind}:0.001:0.1")
        if self.log and self.low <= 0:
            raise ValueError(f"the range {text} goes through zero, where there is no logarithm; start above 0")

    def of_kind(self, kind: RangeKind) -> Range:
        """The same range of whole numbers, or of sizes. Raises ValueError where it has fewer than two of them."""
        if kind == "number":
            return self
        low, high = math.ceil(self.low), math.floor(self.high)
        if low >= high:
            raise ValueError(f"between {self.low:g} and {self.high:g} there are no two whole numbers; list values")
        return Range(low, high, self.log, kind)

    def value(self, drawn: float) -> object:
        """What a field is given where this number was drawn."""
        if self.kind == "number":
            return float(drawn)
        whole = min(max(int(drawn), int(self.low)), int(self.high))
        return (whole, whole) if self.kind == "square" else whole

    def drawn(self, value: object) -> float:
        """The number of which `value` makes this."""
        number = value[0] if isinstance(value, list | tuple) else value
        assert isinstance(number, int | float)
        return number

    def covers(self, other: Range) -> bool:
        """Whether it holds all that the other one holds, drawn alike."""
        alike = (self.log, self.kind) == (other.log, other.kind)
        return alike and self.low <= other.low and self.high >= other.high

    def to_json(self) -> RangeFacts:
        """For sweep.json."""
        facts: RangeFacts = {"low": self.low, "high": self.high, "log": self.log}
        return facts if self.kind == "number" else {**facts, "kind": self.kind}


def range_kind(recipe: Recipe, changes: Mapping[str, object], key: str, given: Range) -> RangeKind:
    """What a field takes of a range: whole numbers where it takes no others.

    Args:
        recipe: Names the model, the data set and the task whose arguments are varied.
        changes: Fields in which the sweep's recipe differs from it.
        key: The field; model_args.num_filters is one, too.
        given: What it is given. Where nothing says what an argument takes, ends that are whole numbers do.

    Raises:
        ValueError: It takes certain values alone.
    """
    top, _, inner = key.partition(".")
    if top in ("image_size", "stored_size"):
        return "square"
    if top in _ARGUMENTS:
        kind, function = _ARGUMENTS[top]
        field = kind.removesuffix("s")
        name = str(changes.get(field, getattr(recipe, field)))
        if allowed := choices(kind, name, function).get(inner):
            raise ValueError(f"{key} takes one of {', '.join(map(str, allowed))}; list some of them")
        return _kind_of_argument(kind, name, function, inner, given)
    if top == "schedule_args":
        defaults = {name: value for each in SCHEDULE_ARGS.values() for name, value in each.items()}
        return "whole" if isinstance(defaults.get(inner), int) else "number"
    if top == "augment":
        change = AUGMENTATIONS.get(inner)
        return "whole" if change and change.allows(1) and not change.allows(0.5) else "number"
    hints = {**typing.get_type_hints(Recipe), **typing.get_type_hints(Scale)}
    kinds = set(typing.get_args(hints.get(top))) | {hints.get(top)}
    return "whole" if int in kinds and float not in kinds else "number"


def _kind_of_argument(kind: Kind, name: str, function: str, argument: str, given: Range) -> RangeKind:
    """From its default, else from its annotation, else from the ends of the range."""
    default = arguments(kind, name, function).get(argument)
    if isinstance(default, int | float):
        return "whole" if isinstance(default, int) and not isinstance(default, bool) else "number"
    words = set(re.findall(r"\w+", annotated(kind, name, function).get(argument, "")))
    if words & {"int", "float"}:
        return "number" if words & {"float", "tuple", "list"} else "whole"
    return "whole" if isinstance(given.low, int) and isinstance(given.high, int) else "number"
