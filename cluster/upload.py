"""What a job takes along from this machine: the working directory without what it does not need, and our packages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from trainers.formatting import format_size
from trainers.runtime.ray_internals import upload_limit, walk_upload
from trainers.storage.store import absolute, default_storage

PACKAGES = ("trainers", "tune_spaces", "cluster")
EXCLUDES = (
    *(".git", ".hg", ".svn", ".venv*", ".tox", ".nox", "node_modules"),
    *("__pycache__", "*.pyc", "*.egg-info", ".*_cache", ".cache", ".ipynb_checkpoints"),
    *(".env", ".netrc", ".ssh", ".aws", ".ray", ".config", ".kube"),  # secrets
    "/data",
)
"""Never uploaded, besides what .gitignore lists. Patterns as in .gitignore."""
MARKS = ("run.json", "sweep.json", "pyvenv.cfg")
"""A folder that holds one of these is a run, a sweep or a virtual environment."""
WARN_BYTES = 100 * 2**20
MOST_FILES = 200_000
"""The walk ends there: a home folder is refused as too large without being read to its end."""


@dataclass(frozen=True)
class Upload:
    """What would be uploaded of a folder."""

    folder: Path
    excludes: tuple[str, ...]
    """Patterns of what stays, relative to the folder; .gitignore and .rayignore apply too."""
    entries: tuple[tuple[str, int], ...]
    """What lies directly in the folder, with the bytes of it that would be uploaded; the largest first."""
    files: int
    limit: int
    """Bytes that Ray takes."""

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(size for _, size in self.entries)

    @property
    def too_large(self) -> bool:
        """Whether Ray would not take it."""
        return self.size > self.limit or self.files > MOST_FILES

    @property
    def largest(self) -> str:
        """What makes it large, for people."""
        return ", ".join(f"{name} ({format_size(size)})" for name, size in self.entries[:5] if size)


def measure(folder: Path) -> Upload:
    """Find out what `submit` uploads of a folder, by the walk that Ray makes when it uploads it.

    Args:
        folder: The working directory of the job.

    Returns:
        What is uploaded. Sizes are lower bounds where it is far too large: the walk ends early.
    """
    folder = folder.resolve()
    sizes: Counter[str] = Counter()
    outputs: list[str] = []
    files, limit = 0, upload_limit()
    kept = [absolute(path) for path in (os.environ.get("TRAINYARD_CACHE"),) if path]
    with contextlib.suppress(ValueError):  # there is no home folder
        kept.append(absolute(default_storage()))

    def is_output(path: Path) -> bool:
        if files > MOST_FILES or sizes.total() > 4 * limit:
            return True  # enough is known
        if path == folder or not path.is_dir():
            return False
        prepared = (path / "meta.json").exists() and next(path.glob("*.arrow"), None)
        if path not in kept and not prepared and not any((path / mark).exists() for mark in MARKS):
            return False
        outputs.append(f"/{path.relative_to(folder)}")
        return True

    def count(path: Path) -> None:
        nonlocal files
        if path.is_file():
            files += 1
            name, *below = path.relative_to(folder).parts
            sizes[f"{name}/" if below else name] += path.stat().st_size

    with_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"  # as Ray has it
    walk_upload(folder, EXCLUDES, count, skip=is_output, gitignore=with_gitignore)
    return Upload(folder, (*EXCLUDES, *outputs), tuple(sizes.most_common()), files, limit)


def refuse_what_is_too_large(upload: Upload) -> None:
    """Raises ValueError where Ray would not take it."""
    if upload.too_large:
        raise ValueError(
            f"the working directory {upload.folder} is too large to upload: {upload.files:,} files, "
            f"{format_size(upload.size)} or more, and Ray takes {format_size(upload.limit)}; "
            f"the largest in it: {upload.largest}; list in a .gitignore what the job does not need, or submit from "
            "a folder that holds less"
        )


def modules(folder: Path) -> list[Path]:
    """The folders of our packages that `folder` does not hold itself: they are uploaded beside it."""
    found = []
    for name in PACKAGES:
        if not (folder / name / "__init__.py").exists():
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            found.append(Path(spec.origin).parent)
    return found


def requirements(folder: Path) -> list[str]:
    """The packages that a job needs.

    Args:
        folder: The working directory of the job.

    Returns:
        Requirements as in pyproject.toml: Trainyard's, and those that the pyproject.toml of `folder` lists.

    Raises:
        ValueError: That file cannot be read.
    """
    ours = Path(__file__).parent.parent
    found = list(_project(folder).get("dependencies", []))
    if folder.resolve() != ours:
        project = _project(ours)
        found += project.get("dependencies", []) if project.get("name") == "trainyard" else _installed()
    return [need for need in dict.fromkeys(found) if not need.startswith("trainyard")]


class _Project(TypedDict, total=False):
    """The table [project] of a pyproject.toml, as far as it is read."""

    name: str
    dependencies: list[str]


def _project(folder: Path) -> _Project:
    path = folder / "pyproject.toml"
    try:
        return cast("_Project", tomllib.loads(path.read_text()).get("project", {}))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _installed() -> list[str]:
    try:
        listed = importlib.metadata.requires("trainyard") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [need for need in listed if "extra ==" not in need]
