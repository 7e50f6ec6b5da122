"""Values of fields as people give them, in Python or on a command line: one reading for both, by the field's type."""

from __future__ import annotations

import ast
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Plain = Any
"""A value that travels as JSON."""
Args = Mapping[str, Plain]
"""Such values by name."""
Size = tuple[int, int]
"""Height and width."""
Value = int | float | str | list["Value"] | None
"""Of name=value on a command line; bool is an int."""


def read(value: object, hint: object) -> object:
    """A value of a field, from whatever stands for one: 64, "64", "32x40" and [32, 40] for a size, "0.1" for a number.

    Args:
        value: As it was given.
        hint: The field's type.

    Returns:
        The value in that type, or, where it stands for none, as it was given: `matches` tells.

    Raises:
        ValueError: It is text of another form; the message says which form is meant.
    """
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    optional = types.NoneType in kinds
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if optional and value.lower() == "none":
            return None
        return _read_word(value, kinds, optional)
    if isinstance(value, bool):
        return value
    if str in kinds and isinstance(value, int | float):
        return str(value)
    value = _plain_number(value)
    if isinstance(value, int):
        return (value, value) if Size in kinds and int not in kinds else value
    if isinstance(value, Mapping):
        return {name: _plain_number(each) for name, each in value.items()}
    if isinstance(value, list) and any(typing.get_origin(kind) is tuple for kind in kinds):
        value = tuple(value)
    if isinstance(value, tuple):
        return tuple(int(each) if _is_whole(each) else each for each in value)
    return value


def _read_word(word: str, kinds: Sequence[object], optional: bool) -> object:
    if str in kinds or any(typing.get_origin(kind) is Literal for kind in kinds):
        return word
    if Size in kinds:
        return workers_of(word) if int in kinds else size_of(word)
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return names_of(word)
    if any(typing.get_origin(kind) is Mapping for kind in kinds):
        return mapping_of(word.split())
    if bool in kinds:
        return flag_of([word])
    return number_of(word, int if int in kinds else float, optional)


def _plain_number(value: object) -> object:
    """NumPy's numbers as Python's: JSON holds no others."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def size_of(word: str) -> Size | None:
    """Height and width from "28", "512x1024" or "none". Raises ValueError."""
    if word.lower() == "none":
        return None
    if not re.fullmatch(r"\d+(x\d+)?", word.lower()):
        raise ValueError(f"{word!r} is not a size; give 28, or height x width as in 512x1024")
    sides = [int(side) for side in word.lower().split("x")]
    return sides[0], sides[-1]


def workers_of(word: str) -> int | tuple[int, int]:
    """A number of workers, or the fewest and the most, from "3" or "1:3". Raises ValueError."""
    if not re.fullmatch(r"\d+(:\d+)?", word):
        raise ValueError(f"{word!r} is not a number of workers; give 0, 1, 2, ... or MIN:MAX as in 1:3")
    bounds = [int(bound) for bound in word.split(":")]
    return bounds[0] if len(bounds) == 1 else (bounds[0], bounds[1])


def names_of(word: str) -> tuple[str, ...]:
    """Names from "layer1,layer2"."""
    return tuple(part for part in word.split(",") if part)


def number_of(word: str, kind: type[int | float], optional: bool) -> int | float | None:
    """A number of this kind; None from "none", where that is allowed. Raises ValueError."""
    if optional and word.lower() == "none":
        return None
    try:
        return kind(word)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise ValueError(f"{word!r} is not a {what}{', nor none' if optional else ''}") from None


def flag_of(words: Sequence[str]) -> bool:
    """True or False from no word (true), "true" or "on", "false" or "off". Raises ValueError."""
    known = {"true": True, "on": True, "false": False, "off": False}
    if words and words[0].lower() not in known:
        raise ValueError(f"{words[0]!r} is neither true nor false")
    return known[words[0].lower()] if words else True


def mapping_of(words: Sequence[str]) -> dict[str, Value]:
    """Values by name, from words such as "width=64". Raises ValueError."""
    for word in words:
        if "=" not in word:
            raise ValueError(f"{word!r} is not of the form name=value")
    return {name: value_of(value) for name, _, value in (word.partition("=") for word in words)}


def value_of(word: str) -> Value:
    """A number, true, false, none, a list as in 0.8,1.2, or text."""
    if "," in word:
        return [value_of(part) for part in word.split(",")]
    if word.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[word.lower()]
    try:
        number = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return number if isinstance(number, int | float) else word


def matches(value: object, hint: object) -> bool:
    """Whether a value is of a field's type; numbers are finite, and True is no number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(matches(value, each) for each in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = [args[0]] * len(value) if args[-1] is ... else list(args)
        return len(hints) == len(value) and all(map(matches, value, hints))
    if origin is not None:
        return isinstance(value, origin)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) < math.inf
    return isinstance(hint, type) and isinstance(value, hint)


def describe_type(hint: object) -> str:
    """What a field of this type takes, for people."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint == int | Size:
        return "a number of workers, or the fewest and the most as in 1:3 or (1, 3)"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(each) for each in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if hint == Size:
        return "a size such as 64, or height and width as in 32x40 or (32, 40)"
    if origin is tuple:
        return "names" if args[-1] is ... else " x ".join(describe_type(each) for each in args)
    if hint is types.NoneType:
        return "none"
    texts: dict[object, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return texts.get(hint, "name=value ...")
