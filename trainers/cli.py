"""From the words of a command line to the values of a Recipe, a Scale and options, by tyro."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from trainers import limits
from trainers.formatting import nearest
from trainers.process import as_command
from trainers.recipe import Recipe, Scale
from trainers.storage.store import explain_with_file
from trainers.values import Value, flag_of, mapping_of, names_of, number_of, size_of, workers_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options")
Read = TypeVar("Read")


def exit_code(action: Callable[[], int]) -> int:
    """The exit code of a command: its own; 1, 2 or 130, with one line on stderr, where it is cut short."""
    limits.wait_briefly()
    with as_command():
        return _end(action)


def _end(action: Callable[[], int]) -> int:
    try:
        code = action()
        sys.stdout.flush()  # a full disk behind it is a failure of the command
        return code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {explain_with_file(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run_command(argv: Sequence[str], commands: Mapping[str, Callable[[list[str]], int]], usage: str) -> int:
    """Run a command.

    Args:
        argv: Its name, and its own words.
        commands: Name -> function of those words that returns an exit code.
        usage: Printed for --help.

    Returns:
        The exit code.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2

    def run() -> int:
        if argv[0] not in commands:
            raise ValueError(f"there is no command {argv[0]!r}{nearest(argv[0], commands)}")
        return commands[argv[0]](list(argv[1:]))

    return exit_code(run)


def leading(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first flag, and the rest."""
    count = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
    return list(argv[:count]), list(argv[count:])


def parse(
    recipe: Recipe, scale: Scale, options: Options, flags: Sequence[str], prog: str
) -> tuple[dict[str, object], Scale, Options]:
    """Read the flags of `train` and the like.

    Args:
        recipe: Gives the defaults of its fields.
        scale: Likewise.
        options: A dataclass of the command's own; likewise.
        flags: Words of the command line.
        prog: The command, for --help.

    Returns:
        What the flags change of the recipe (field -> value); the scale; the options.

    Raises:
        ValueError: A value is not allowed.
        SystemExit: With code 2, where flags cannot be read; 0 after --help.
    """
    recipe_type, scale_type, kind = cli_type(Recipe, recipe.from_data), cli_type(Scale), type(options)
    both = dataclasses.make_dataclass(
        "fields", [("recipe", recipe_type), ("scale", scale_type), ("options", kind)], kw_only=True
    )
    # What follows from the data has no value yet: any that is given is a change
    before = _values(recipe) | dict.fromkeys(recipe.from_data)
    default = both(recipe=recipe_type(**before), scale=scale_type(**_values(scale)), options=options)
    parsed = cli(both, flags, prog, default)
    stored = any(word.startswith(("--stored-size", "--stored_size")) for word in flags)  # else it follows image_size
    changes = {
        field: value
        for field, value in _values(parsed.recipe).items()
        if value != before[field] or (field == "stored_size" and stored)
    }
    return changes, Scale(**_values(parsed.scale)), parsed.options


def cli(kind: type[Options], flags: Sequence[str], prog: str, default: Options | None = None) -> Options:
    """Read flags into a dataclass.

    Args:
        kind: The dataclass; its docstrings are the help.
        flags: Words of the command line.
        prog: The command, for --help.
        default: Values of fields without a flag; None: those of `kind`.

    Raises:
        ValueError: A path with spaces has come as several words.
        SystemExit: With code 2, where flags cannot be read; 0 after --help.
    """
    _check_spaces(flags)
    with _registry():
        return tyro.cli(
            kind,
            args=list(flags),
            default=tyro.MISSING_NONPROP if default is None else default,
            prog=prog,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
        )


def _check_spaces(flags: Sequence[str]) -> None:
    """Raises ValueError where words after a flag are a path only together."""
    for position, flag in enumerate(flags):
        words = leading(flags[position + 1 :])[0] if flag.startswith("--") else []
        paths = (" ".join(words[:count]) for count in range(2, len(words) + 1))
        found = next((path for path in paths if os.path.exists(os.path.expanduser(path))), None)
        if found is not None:
            raise ValueError(f"{flag} {found}: a path with spaces needs quotes: {flag} {shlex.quote(found)}")


def _values(value: DataclassInstance) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def cli_type(kind: type[DataclassInstance], unset: Collection[str] = ()) -> type:
    """Recipe or Scale, with its tuples formatted as people do: 28x28, 1:3, layer1,layer2.

    Args:
        kind: Recipe or Scale.
        unset: Fields that may have no value yet.
    """
    formats = {"image_size": _SIZE, "stored_size": _SIZE, "workers": _WORKERS}
    formats |= dict.fromkeys(("frozen", "fixed_norms", "from_data"), _NAMES)
    hints = typing.get_type_hints(kind)
    fields = [
        (field.name, Annotated[hints[field.name], formats[field.name]], dataclasses.field(default=None))
        for field in dataclasses.fields(kind)
        if field.name in formats
    ]
    fields += [(name, hints[name] | None, dataclasses.field(default=None)) for name in unset]
    # Values are checked when the flags are put into a Recipe, whose ValueError has no box around it.
    namespace = {"__post_init__": lambda self: None, "__doc__": kind.__doc__}
    return dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True, namespace=namespace
    )


def _format(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_format, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _one_word(read: Callable[[str], Read], metavar: str, separator: str) -> PrimitiveConstructorSpec[Read]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [
            separator.join(map(str, value)) if isinstance(value, tuple) else _format(value)
        ],
    )


_SIZE = _one_word(size_of, "SIZE|HxW", "x")
_WORKERS = _one_word(workers_of, "N|MIN:MAX", ":")
_NAMES = _one_word(names_of, "NAME,NAME", ",")


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def mapping(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Value]] | None:
        if typing.get_origin(info.type) is not Mapping:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME=VALUE...",
            instance_from_str=mapping_of,
            is_instance=lambda value: isinstance(value, Mapping),
            str_from_instance=lambda value: [f"{name}={_format(item)}" for name, item in value.items()],
        )

    @registry.primitive_rule
    def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int | float | None] | None:
        kinds = set(typing.get_args(info.type) or [info.type])
        kind = int if int in kinds else float
        if kind not in kinds or not kinds <= {kind, type(None)}:
            return None
        optional = type(None) in kinds
        metavar = kind.__name__.upper() + "|none" * optional
        return _one_word(lambda word: number_of(word, kind, optional), metavar, "")

    @registry.primitive_rule
    def flag(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
        if info.type is not bool:
            return None
        return PrimitiveConstructorSpec(
            nargs=(0, 1),
            metavar="",
            instance_from_str=flag_of,
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [_format(value)],
        )

    return registry
