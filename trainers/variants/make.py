"""The forms of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainers.inference.export import export
from trainers.inference.exported.session import require
from trainers.inference.load import open_run
from trainers.pruning.run import PRUNED
from trainers.run_facts import RunFacts
from trainers.runs.files import read_run
from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints

Say = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """A trained model in one form."""

    name: str
    model: str
    """The run, or the file."""
    file: Path | None
    """None: it is a run."""
    bytes: int
    """Of the file, or of the run's weights."""


@dataclass(frozen=True)
class Made:
    """All forms of a model."""

    variants: list[Variant]
    """The first one is the run as it was trained."""
    left_out: dict[str, str]
    """Form -> why it could not be made."""


def make(run: str, out: Path, *, storage: str | None, data: str | None, say: Say, warn: Say) -> Made:
    """Write the forms of a run's model into a folder.

    Those of the run of fewer channels that `prune` makes of it are among them, where there is one and it has ended.

    Args:
        run: its name below `storage`, or its folder.
        out: the folder; files of a command before are written anew.
        storage, data: as of `export`.
        say: gets what is being made.
        warn: gets what a person should know.

    Raises:
        ValueError: there is no such run, or onnx is not installed.
    """
    require("onnx", "onnxscript", "onnxruntime")
    folder, facts = open_run(run, storage)
    found = Made([_as_trained("original", folder)], {})

    def write(of: Store, files: Mapping[str, str]) -> None:
        for name, file in files.items():
            say(f"{name}: {file}")
            int8 = name.endswith("int8")
            try:
                path = export(of.address, str(out / file), storage=storage, int8=int8, data=data, say=say, warn=warn)
            except ValueError as error:
                found.left_out[name] = str(error)
                warn(f"{name} is left out: {error}")
            else:
                found.variants.append(Variant(name, str(path), path, path.stat().st_size))

    write(folder, {"fused": "fused.pt2", "ONNX": "model.onnx", "int8": "int8.onnx"})
    pruned = _find_pruned(folder, facts)
    if isinstance(pruned, Store):
        found.variants.append(_as_trained("pruned", pruned))
        write(pruned, {"pruned ONNX": "pruned.onnx", "pruned int8": "pruned.int8.onnx"})
    else:
        found.left_out["pruned"] = pruned
    return found


def _as_trained(name: str, folder: Store) -> Variant:
    weights = Checkpoints(folder).best_weights()
    return Variant(name, folder.address, None, sum(each.numel() * each.element_size() for each in weights.values()))


def _find_pruned(folder: Store, facts: RunFacts) -> Store | str:
    """The run that `prune` made of a run; or why there is none, and what to do."""
    name = f"{folder.name}{PRUNED}"
    found = read_run(folder.parent / name)
    if found is None or (pruned := found.get("pruned")) is None or pruned["run"] != facts["name"]:
        return f"there is no run {name}: python -m trainers prune {folder.name}, then repeat this command"
    if found["status"] not in ("finished", "stopped_early"):
        return f"the run {name} is {found['status']}: repeat python -m trainers prune {folder.name} to end it"
    return folder.parent / name
