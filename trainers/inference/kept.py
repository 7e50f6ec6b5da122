"""Files of models, put in their places once they have been checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from trainers.inference import Views
from trainers.inference.exported.told import write_beside
from trainers.inference.predictions import Predictions
from trainers.recipe import Recipe
from trainers.run_facts import Json, RunFacts
from trainers.storage.store import Store, explain
from trainers.tasks.base import Task


class Opened(NamedTuple):
    """A run's best model, to be exported."""

    run: RunFacts
    recipe: Recipe
    network: nn.Module
    task: Task
    kind: Predictions
    tta: Views | None


def keep(content: bytes, target: Path, told: Json, check: Callable[[Path], None], run: str) -> None:
    """Put a file, and what it tells, in their places, once it has been checked.

    Args:
        content: of the file.
        target: its place; what lies there stays until then.
        told: what it tells.
        check: opens a file. Raises AssertionError where it differs from the model.
        run: name of the run.

    Raises:
        ValueError: it differs, or cannot be written.
    """
    suffix = ".onnx" if target.suffix.lower() == ".onnx" else ".pt2"
    part = target.with_name(f".{target.name}.part{suffix}")
    try:
        Store(target.parent).write(part.name, content)
        check(part)
        write_beside(target, told, content)
        part.replace(target)
    except AssertionError as error:
        raise ValueError(f"the exported program of {run} differs from the model: {error}") from None
    except OSError as error:
        raise ValueError(f"--out {target} cannot be written: {explain(error)}; give another file") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
