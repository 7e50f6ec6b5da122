"""Files of one's own: read with what they import from beside them, imported, and told apart by their content.

A name is a path, or the address of a copy that a run folder keeps (runs/code.py). Beside a copy lies MANIFEST: where
the file lay, and the hashes of all that was copied. A copy's `__file__` is where the file lay: what it reads from
beside itself, such as weights, is still found there.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from trainers.formatting import locate_error
from trainers.storage.store import Store

MANIFEST = "origin.json"
OURS = ("trainers", "tune_spaces", "cluster")

Files = Mapping[str, bytes]
"""Name below the file's folder -> content; the file itself comes first."""
Hashes = dict[str, str]
"""The same names -> SHA-256."""


class Manifest(TypedDict):
    """What lies beside copies."""

    folder: str
    """Where the files lay."""
    files: Hashes


def is_file(name: str) -> bool:
    """Whether a model, data set, task or recipe of this name is a file of one's own."""
    return (name.partition("?")[0] if "://" in name else name).endswith(".py")


def absolute(name: str) -> Path:
    return Path(os.path.expanduser(name)).absolute()


def locate(name: str) -> Path:
    """The file on this host; a copy in an object store is fetched, once. Raises ValueError where there is none."""
    if "://" in name:
        copy = Store(name)
        path = _fetch(copy.parent.address) / copy.name
    else:
        path = absolute(name)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def read(path: Path) -> Files:
    """A file, and those beside it that it imports, however far.

    Raises:
        ValueError: It cannot be read as Python, or is a copy that is not what was copied.
    """
    manifest = _manifest(path)
    if manifest is None:
        return dict(_with_neighbours(path))
    try:
        found = {name: (path.parent / name).read_bytes() for name in manifest["files"]}
    except OSError as error:
        raise ValueError(f"of the copy of {_origin(path)} in {path.parent} the file {error.filename} lacks") from None
    changed = [name for name, digest in hashes(found).items() if digest != manifest["files"][name]]
    if changed:
        raise ValueError(
            f"{path.parent / changed[0]} is not what the run copied from {_origin(path)}; restore it, or remove its "
            "folder and put the file back where it lay"
        )
    return found


def hashes(files: Files) -> Hashes:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def digest(files: Files) -> str:
    """Changes with any of the files, wherever they lie."""
    return hashlib.sha256(json.dumps(sorted(hashes(files).items())).encode()).hexdigest()


def parse(path: Path) -> ast.Module:
    """Raises ValueError where the file cannot be read as Python."""
    try:
        return _parse(path.read_bytes(), str(path))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as Python: {locate_error(error)}") from None


_loaded: dict[Path, tuple[str, types.ModuleType]] = {}
"""Path -> digest of the content that was imported, and the module."""
_beside: dict[str, str] = {}
"""Module or package that files import from beside them -> digest of its folder and content, as it was imported."""
_folders: list[str] = []
"""What was put on `sys.path`, for imports from beside a file."""


def load(path: Path) -> types.ModuleType:
    """Import a file, again where it, or what it imports from beside it, has changed.

    Raises:
        ValueError: It cannot be imported.
    """
    files = read(path)
    key = digest(files)
    known, module = _loaded.get(path, (None, None))
    if len(files) > 1:
        home = _home(path, files)
        if known != key or _folders[0] != str(home):
            _prefer(home, files)
    if module is not None and known == key:
        return module
    name = f"trainyard_user_{path.stem}_{key[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(_origin(path))
    sys.modules[name] = module  # dataclasses and pickles look a class's module up here
    try:
        exec(compile(files[path.name], str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {locate_error(error)}{_remedy(error, path)}") from None
    _loaded[path] = key, module
    return module


def describe_copy(name: str) -> str:
    """What to do where a file fails that worked in training: the end of a message; "" for one that is no copy."""
    path = locate(name)
    if _manifest(path) is None:
        return ""
    return f"; this is the run's copy of {_origin(path)}: what that reads and imports must be there"


def _home(path: Path, files: Files) -> Path:
    """The folder to import from what a file imports: of a copy where it was copied from, as long as the same lies
    there, with all that it reads from beside itself."""
    origin = _origin(path).parent
    try:
        same = all((origin / name).read_bytes() == content for name, content in files.items())
    except OSError:
        same = False
    return origin if same else path.parent


def _remedy(error: Exception, path: Path) -> str:
    if not isinstance(error, ModuleNotFoundError):
        return ""
    if _manifest(path) is None:
        return f"; install it, put it into {path.parent}, or name its folder in PYTHONPATH"
    return f"; this is the run's copy of {_origin(path)}: install what that imports, or name its folder in PYTHONPATH"


def _prefer(folder: Path, files: Files) -> None:
    """Let imports find what lies in `folder`, and forget other modules of the same names. What is the same stays: a
    model and a task that import it share it."""
    for name in [name for name in _folders if name in sys.path]:
        sys.path.remove(name)
    _folders[:] = [str(folder), *(name for name in _folders if name != str(folder))]
    sys.path[:0] = _folders
    importlib.invalidate_caches()
    parts: dict[str, dict[str, bytes]] = {}
    for name, content in list(files.items())[1:]:
        parts.setdefault(Path(name).parts[0].removesuffix(".py"), {})[str(folder / name)] = content
    keys = {top: digest(own) for top, own in parts.items()}
    changed = any(_beside.get(top, key) != key for top, key in keys.items())  # then also what imports it is another
    for top in [top for top in keys if changed or top not in _beside]:
        _beside[top] = keys[top]
        _drop_bytecode(parts[top])
        for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
            del sys.modules[name]


def _drop_bytecode(files: Iterable[str]) -> None:
    """Have Python compile these anew: it goes by a file's size and the second of its last change, which two edits that
    follow each other may share."""
    for file in files:
        with contextlib.suppress(OSError):
            os.remove(importlib.util.cache_from_source(file))


def _with_neighbours(path: Path) -> Iterator[tuple[str, bytes]]:
    seen, waiting = set[Path](), [path]
    while waiting:
        file = waiting.pop(0)
        if file in seen:
            continue
        seen.add(file)
        yield file.relative_to(path.parent).as_posix(), file.read_bytes()
        try:
            imported = _imported(parse(file))
        except ValueError:
            if file == path:
                raise
            continue  # of a package whose other files may be all that is used
        for top in sorted(imported):
            module, package = path.parent / f"{top}.py", path.parent / top
            if (module.is_file() or package.is_dir()) and _is_neighbour(top, path.parent):
                waiting += sorted(package.rglob("*.py")) if package.is_dir() else [module]


def _imported(tree: ast.Module) -> set[str]:
    """The first parts of the names of all modules that are imported, anywhere."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _is_neighbour(top: str, folder: Path) -> bool:
    """Whether an import finds what lies in `folder`, and nothing that is installed."""
    if top in sys.stdlib_module_names or top in OURS:
        return False
    places = _places(top)
    return places is None or any(place.is_relative_to(folder) for place in places)


def _places(top: str) -> list[Path] | None:
    """Where an import finds a module or package, but for what lies beside files of one's own; None: nowhere."""
    spec = importlib.machinery.PathFinder.find_spec(top, [name for name in sys.path if name not in _folders])
    if spec is None:
        return None
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return [Path(place).absolute() for place in places]


def find_uncopied(path: Path) -> dict[str, Path]:
    """What a file imports, and what that imports from beside it, that is neither beside it nor installed.

    Returns:
        Name of a module or package -> where it lies. Python finds it by PYTHONPATH or by the current folder.

    Raises:
        ValueError: The file cannot be read as Python.
    """
    files = read(path)
    own = {Path(name).parts[0].removesuffix(".py") for name in files}
    found: dict[str, Path] = {}
    for name, content in files.items():
        with contextlib.suppress(SyntaxError, ValueError):
            for top in sorted(_imported(_parse(content, name)) - own - sys.stdlib_module_names - set(OURS)):
                for place in (_places(top) or [])[:1]:
                    if not {"site-packages", "dist-packages"}.intersection(place.parts):
                        found[top] = place
    return found


@functools.lru_cache(maxsize=64)
def _parse(content: bytes, filename: str) -> ast.Module:
    return ast.parse(content, filename=filename)


def _manifest(path: Path) -> Manifest | None:
    """Of a copy; None: the file is none."""
    found = Store(path.parent).read_json(MANIFEST) if (path.parent / MANIFEST).is_file() else None
    if isinstance(found, dict) and path.name in found.get("files", ()):
        return Manifest(folder=found["folder"], files=found["files"])
    return None


def _origin(path: Path) -> Path:
    """Where a file lay when it was copied; of one that is no copy, where it lies."""
    manifest = _manifest(path)
    return path if manifest is None else Path(manifest["folder"]) / path.name


@functools.cache
def _fetch(address: str) -> Path:
    """A folder with a copy, on this host; its address changes with its content."""
    there, here = Store(address), Path(tempfile.mkdtemp(prefix="trainyard-code-"))
    atexit.register(shutil.rmtree, here, ignore_errors=True)
    manifest = there.read_json(MANIFEST)
    for name in (MANIFEST, *(manifest or {}).get("files", ())):
        Store(here).write(name, there.read(name))
    return here
