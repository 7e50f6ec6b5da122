"""Find a model, data set, task or recipe by its name, or in a file of one's own; its arguments from its signature."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import types
from pathlib import Path
from typing import Any, Literal

from trainers import own_code
from trainers.formatting import nearest

Kind = Literal["models", "datasets", "tasks", "recipes"]
_ENTRY = {"models": "build", "datasets": "source", "tasks": "make"}
"""The function that a module of each kind offers; other modules of trainers/tasks are what tasks are made of."""


def load(kind: Kind, name: str) -> types.ModuleType:
    """Import the module `name` of trainers/models, datasets, tasks or recipes, or the user's own FILE.py.

    Raises:
        ValueError: there is none, or the user's own cannot be imported.
    """
    path = _module_path(kind, name)
    return own_code.load(path) if own_code.is_file(name) else importlib.import_module(f"trainers.{kind}.{name}")


def identify(kind: Kind, name: str) -> str:
    """What tells a module from others: its name; of the user's own FILE.py also its content, not where it lies.

    Raises:
        ValueError: there is none.
    """
    path = _module_path(kind, name)
    return f"{path.stem} {own_code.digest(own_code.read(path))}" if own_code.is_file(name) else name


def arguments(kind: Kind, name: str, function: str) -> dict[str, Any]:
    """Argument name -> default of a model's build(), a data set's source() or a task's make(), without importing it.

    An argument without a default has the value `...`, one whose default is no literal None.

    Raises:
        ValueError: there is no such function.
    """
    found = _function(kind, name, function).args
    first = [None] * (len(found.args) - len(found.defaults))  # those without a default come first
    every = zip([*found.args, *found.kwonlyargs], [*first, *found.defaults, *found.kw_defaults], strict=True)
    return {arg.arg: ... if value is None else _literal(value) for arg, value in every}


def choices(kind: Kind, name: str, function: str) -> dict[str, tuple[object, ...]]:
    """Argument name -> the values it may have, for those annotated `Literal[...]`; see `arguments`."""
    found: dict[str, tuple[object, ...]] = {}
    for arg in _function(kind, name, function).args.kwonlyargs:
        note = arg.annotation
        optional: tuple[object, ...] = ()
        if isinstance(note, ast.BinOp) and ast.unparse(note.right) == "None":  # Literal[...] | None
            note, optional = note.left, (None,)
        if isinstance(note, ast.Subscript) and isinstance(note.value, ast.Name) and note.value.id == "Literal":
            allowed = _literal(note.slice)
            found[arg.arg] = (*(allowed if isinstance(allowed, tuple) else (allowed,)), *optional)
    return found


def annotated(kind: Kind, name: str, function: str) -> dict[str, str]:
    """Argument name -> its annotation as it is written, for those that have one; see `arguments`."""
    found = _function(kind, name, function).args
    return {arg.arg: ast.unparse(arg.annotation) for arg in (*found.args, *found.kwonlyargs) if arg.annotation}


def constant(kind: Kind, name: str, constant: str, default: object = ...) -> Any:
    """A module's constant, a literal, without importing it.

    Args:
        kind: "models", "datasets", "tasks" or "recipes".
        name: of the module, or the path of a file.
        constant: its name in the module.
        default: where there is none; left out: that is an error.

    Raises:
        ValueError: there is none, and no default.
    """
    path = _module_path(kind, name)
    for node in own_code.parse(path).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [constant]:
            return _literal(node.value)
    if default is not ...:
        return default
    raise ValueError(f"{path} has no {constant} = ...; trainers/{kind} has examples")


def offers(kind: Kind, name: str, function: str) -> bool:
    """Whether a module has a function of this name, without importing it. Raises ValueError where there is none."""
    return function in _functions(_module_path(kind, name))


def find_models(pattern: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Models whose names match: ours, and those of the libraries that they are built from.

    Args:
        pattern: As of a shell: convnext*; one without *, ? or [ matches within names.

    Returns:
        Of each the model, its --model-args, and which weights there are; and why some libraries could not be asked.
    """
    if not set(pattern) & set("*?["):
        pattern = f"*{pattern}*"
    found, missing = [], []
    for model in names("models"):
        if not offers("models", model, "names"):
            found += [(model, "", "")] if fnmatch.fnmatch(model, pattern) else []
            continue
        try:
            found += [(model, args, weights) for args, weights in load("models", model).names(pattern).items()]
        except ValueError as error:  # it is not installed
            missing.append(str(error))
    return found, missing


def names(kind: Kind) -> list[str]:
    """The names of all that ship with Trainyard."""
    paths = sorted((Path(__file__).parent / kind).glob("[!_]*.py"))
    return [path.stem for path in paths if kind not in _ENTRY or _ENTRY[kind] in _functions(path)]


def _function(kind: Kind, name: str, function: str) -> ast.FunctionDef:
    path = _module_path(kind, name)
    if function not in _functions(path):
        raise ValueError(f"{path} has no function {function}(); trainers/{kind} has examples")
    return _functions(path)[function]


def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in own_code.parse(path).body if isinstance(node, ast.FunctionDef)}


def _module_path(kind: Kind, name: str) -> Path:
    if own_code.is_file(name):
        return own_code.locate(name)
    path = Path(__file__).parent / kind / f"{name}.py"
    missing = name.startswith("_") or not path.is_file()
    if missing or (kind == "tasks" and _ENTRY[kind] not in _functions(path)):
        raise ValueError(f"there is no {kind[:-1]} {name!r}{nearest(name, names(kind))}")
    return path


def _literal(value: ast.expr) -> Any:
    """A default, where it is known without running anything; else None."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None
