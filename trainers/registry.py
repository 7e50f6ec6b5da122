"""Find a model, data set, task or recipe by its name, or in a file of one's own; its arguments from its signature."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, Literal

from trainers.formatting import locate_error, nearest


def load(kind: Literal["models", "datasets", "recipes"], name: str) -> types.ModuleType:
    """Import the module `name` of trainers/models, datasets or recipes, or the user's own FILE.py.

    Raises ValueError where there is none, and where the user's own cannot be imported.
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
def arguments(kind: Literal["models", "datasets"], name: str, function: str) -> dict[str, Any]:
    """Argument name -> default of a model's build() or a data set's source(), read without importing it.

    An argument without a default has the value `...`. Raises ValueError where there is no such function.
    """
    path = _module_path(kind, name)
    try:
        tree = ast.parse(path.read_text(), filename=str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as Python: {locate_error(error)}") from None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            defaults = {arg.arg: ... if value is None else _literal(value) for arg, value in keywords}
            return {**{arg.arg: ... for arg in node.args.args}, **defaults}
    raise ValueError(f"{path} has no function {function}(); trainers/{kind} has examples")


def _module_path(kind: str, name: str) -> Path:
    if name.endswith(".py"):
        path = Path(name).expanduser().absolute()
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path
    folder = Path(__file__).parent / kind
    names = sorted(path.stem for path in folder.glob("[!_]*.py"))
    if name not in names:
        raise ValueError(f"there is no {kind[:-1]} {name!r}{nearest(name, names)}")
    return folder / f"{name}.py"


def _literal(value: ast.expr) -> Any:
    """A default, where it can be told without running anything; else None."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None
