"""Find a model, data set, task or recipe by its name, or in a file of one's own; its arguments from its signature."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any, Literal

from trainers.formatting import locate_error, nearest

Kind = Literal["models", "datasets", "tasks", "recipes"]
_ENTRY = {"models": "build", "datasets": "source", "tasks": "make"}
"""The function that a module of each kind offers; other modules of trainers/tasks are what tasks are made of."""


def load(kind: Kind, name: str) -> types.ModuleType:
    """Import the module `name` of trainers/models, datasets, tasks or recipes, or the user's own FILE.py.

    Raises:
        ValueError: there is none, or the user's own cannot be imported.
    """
    if not name.endswith(".py"):
        _module_path(kind, name)
        return importlib.import_module(f"trainers.{kind}.{name}")
    path = _module_path(kind, name)
    module_name = f"trainyard_user_{path.stem}"
    loaded = sys.modules.get(module_name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickles look a class's module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"{path} cannot be imported: {locate_error(error)}") from None
    return module


@functools.lru_cache
def arguments(kind: Kind, name: str, function: str) -> dict[str, Any]:
    """Argument name -> default of a model's build(), a data set's source() or a task's make(), without importing it.

    An argument without a default has the value `...`, one whose default is no literal None.

    Raises:
        ValueError: there is no such function.
    """
    found = _function(kind, name, function).args
    keywords = zip(found.kwonlyargs, found.kw_defaults, strict=True)
    defaults = {arg.arg: ... if value is None else _literal(value) for arg, value in keywords}
    return {**{arg.arg: ... for arg in found.args}, **defaults}


@functools.lru_cache
def choices(kind: Kind, name: str, function: str) -> dict[str, tuple[object, ...]]:
    """Argument name -> the values it may have, for those annotated `Literal[...]`; see `arguments`."""
    found: dict[str, tuple[object, ...]] = {}
    for arg in _function(kind, name, function).args.kwonlyargs:
        note = arg.annotation
        if isinstance(note, ast.Subscript) and isinstance(note.value, ast.Name) and note.value.id == "Literal":
            allowed = _literal(note.slice)
            found[arg.arg] = allowed if isinstance(allowed, tuple) else (allowed,)
    return found


@functools.lru_cache
def annotated(kind: Kind, name: str, function: str) -> dict[str, str]:
    """Argument name -> its annotation as it is written, for those that have one; see `arguments`."""
    found = _function(kind, name, function).args
    return {arg.arg: ast.unparse(arg.annotation) for arg in (*found.args, *found.kwonlyargs) if arg.annotation}


@functools.lru_cache
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
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [constant]:
            return _literal(node.value)
    if default is not ...:
        return default
    raise ValueError(f"{path} has no {constant} = ...; trainers/{kind} has examples")


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
    return {node.name: node for node in _parse(path).body if isinstance(node, ast.FunctionDef)}


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(), filename=str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as Python: {locate_error(error)}") from None


def _module_path(kind: Kind, name: str) -> Path:
    if name.endswith(".py"):
        path = Path(os.path.expanduser(name)).absolute()
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path
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
