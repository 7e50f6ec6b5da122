"""What Recipe and Scale share: fields that are plain data, read from whatever stands for a value, and compared."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from trainers import values
from trainers.formatting import nearest

if TYPE_CHECKING:  # it imports NumPy
    from trainers.run_facts import Json


BELONGING = {
    "dataset_args": "dataset",
    "model_args": "model",
    "shapes": "model",
    "task_args": "task",
    "schedule_args": "schedule",
}
"""Mappings -> the field that they are of: with another value of it the old ones go."""


class Fields:
    """What Recipe and Scale share: JSON, changes by name, differences. Values are checked by each `__post_init__`."""

    def to_json(self) -> Json:
        return {name: plain(getattr(self, name)) for name in hints_of(type(self))}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Raises ValueError for unknown names and values that are not allowed."""
        for name in given:
            check_name(name, hints_of(cls), f"field of {cls.__name__}")
        return cls(**given)

    def replace(self, **changes: Any) -> Self:
        """Copy, with some fields changed.

        Args:
            **changes: Field -> new value, or what stands for one on a command line: image_size=64 or "32x40".
                Mappings such as `model_args` are merged; but arguments belong to what they are given to: with another
                `model`, the old `model_args` go.

        Raises:
            ValueError: A field is unknown, or its value is not allowed.
        """
        hints = hints_of(type(self))
        for name, value in changes.items():
            check_name(name, hints, f"field of {type(self).__name__}")
            changes[name] = read(name, value, hints[name])
        merged: Json = {
            field: {} for field, of in BELONGING.items() if of in changes and changes[of] != getattr(self, of)
        }
        for name, value in changes.items():
            old = merged.get(name, getattr(self, name))
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            merged[name] = {**old, **value} if both else value
        return dataclasses.replace(self, **merged)  # type: ignore[type-var]

    def differences(self, other: Self) -> dict[str, tuple[object, object]]:
        """Field name -> (value here, value there), for the fields that differ."""
        mine, theirs = self.to_json(), other.to_json()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def hints_of(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls)


def plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def read(name: str, given: object, hint: object) -> object:
    """A value in a field's type: 64, "64" and [64, 64] are one image_size."""
    allowed = f"{name}={given!r} is not allowed; {name} takes {values.describe_type(hint)}"
    try:
        value = values.read(given, hint)
    except ValueError:
        raise ValueError(allowed) from None
    if not values.matches(value, hint):
        raise ValueError(allowed)
    return value


def take_types(value: Fields) -> None:
    """Put every field into its type."""
    for name, hint in hints_of(type(value)).items():
        object.__setattr__(value, name, read(name, getattr(value, name), hint))


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value} is not allowed; {name} takes {allowed}")


def check_name(name: str, allowed: typing.Iterable[str], what: str) -> None:
    if name not in allowed:
        raise ValueError(f"there is no {what} called {name!r}{nearest(name, allowed)}")
