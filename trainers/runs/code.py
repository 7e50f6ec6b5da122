"""Files of the user's own that a run is made of: the run folder keeps a copy, and works with that.

In run.json the recipe names the files where they lay, and `code` the copies. In memory the recipe of a run names the
copies, by addresses that every host can open: a file that is moved or edited later changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

from trainers import own_code
from trainers.own_code import MANIFEST, Manifest
from trainers.recipe import Recipe
from trainers.run_facts import CodeCopy, Json, RunFacts
from trainers.runs.files import read_run
from trainers.storage.store import Store

FIELDS = ("dataset", "model", "task")
"""Of a recipe: each may name a FILE.py."""
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")
"""Endings of files that `weights` of a model's arguments may name."""
FOLDER = "code"
Code = Mapping[str, CodeCopy]


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with its own files, and one of weights, named by absolute paths: a run is used from other folders
    later."""
    names: Json = {field: str(own_code.locate(name)) for field, name in _own(recipe.to_json()).items()}
    weights = recipe.model_args.get("weights")
    if isinstance(weights, str) and weights.endswith(WEIGHTS):
        names["model_args"] = {**recipe.model_args, "weights": str(own_code.absolute(weights))}
    return _rename(recipe, names)


def with_copies(run: RunFacts, folder: Store) -> RunFacts:
    """What run.json holds, but the recipe names the run's copies. As it is where an older version kept none.

    Args:
        run: The content of run.json.
        folder: Of the run.
    """
    copies = {field: (folder / each["copy"]).address for field, each in run.get("code", {}).items()}
    return cast(RunFacts, {**run, "recipe": {**run["recipe"], **copies}})


def without_copies(recipe: Recipe, code: Code) -> Json:
    """The recipe as run.json has it, which names the files where they lay."""
    return recipe.to_json() | {field: each["path"] for field, each in code.items()}


def keep(recipe: Recipe, folder: Store, kept: Code) -> dict[str, CodeCopy]:
    """Copy a recipe's own files into the run folder.

    Args:
        recipe: Names own files by absolute paths, or copies that are kept already.
        folder: Of the run.
        kept: Those copies.

    Returns:
        All copies.

    Raises:
        OSError: The folder cannot be written.
    """
    code: dict[str, CodeCopy] = {}
    new: dict[str, dict[str, str]] = {}
    for field, name in _own(recipe.to_json()).items():
        if field in kept:
            code[field] = kept[field]
        else:  # files of one folder stay in one: they may share what they import
            new.setdefault(str(own_code.locate(name).parent), {})[field] = name
    for lay_in, names in new.items():
        each = {field: own_code.read(own_code.locate(name)) for field, name in names.items()}
        together = {file: content for files in each.values() for file, content in files.items()}
        below = f"{FOLDER}/{own_code.digest(together)[:12]}"
        for file, content in together.items():
            folder.write(f"{below}/{file}", content)
        manifest: Manifest = {"folder": lay_in, "files": own_code.hashes(together)}
        folder.write_json(f"{below}/{MANIFEST}", manifest)
        for field, files in each.items():
            copy = f"{below}/{own_code.locate(names[field]).name}"
            code[field] = {"path": names[field], "copy": copy, "files": own_code.hashes(files)}
    return code


def describe_uncopied(recipe: Recipe) -> list[str]:
    """A warning for each of a recipe's own files that imports what a run cannot keep a copy of."""
    notes = []
    for field, name in _own(recipe.to_json()).items():
        for module, place in own_code.find_uncopied(own_code.locate(name)).items():
            notes.append(
                f"the {field} {name} imports {module} from {place}, of which the run keeps no copy, as it does not lie "
                "beside that file: do not move or change it while you use the run"
            )
    return notes


def find_lost(changes: Mapping[str, object], folder: Store) -> dict[str, str]:
    """Of a command that names files which are no longer there: field -> the copy that a run has kept of that file.

    Args:
        changes: Field of a recipe -> what is asked for.
        folder: Of the run.
    """
    run = read_run(folder)
    code = run.get("code", {}) if run is not None else {}
    names = {field: str(changes[field]) for field in FIELDS if field in changes and field in code}
    lost = {
        field: own_code.absolute(name)
        for field, name in names.items()
        if own_code.is_file(name) and "://" not in name and not own_code.absolute(name).exists()
    }
    return {
        field: (folder / code[field]["copy"]).address
        for field, path in lost.items()
        if str(path) == code[field]["path"]
    }


def name_copies(recipe: Recipe, folder: Store, code: Code) -> Recipe:
    """The recipe, naming the copies in a run folder."""
    return _rename(recipe, {field: (folder / each["copy"]).address for field, each in code.items()})


def agree(requested: Recipe, run: RunFacts, folder: Store) -> tuple[Recipe, RunFacts, list[str]]:
    """Let a request to resume a run name the run's own copies, where it asks for the same files.

    A file is the same where it lies at the same path, or elsewhere with the same content. Edited, it is the run's copy
    that is used: a run is trained by one model.

    Args:
        requested: Names own files by absolute paths.
        run: The content of run.json.
        folder: Of the run.

    Returns:
        The request; `run`, whose recipe names the same copies; and a warning for each file that was edited.

    Raises:
        ValueError: Another file is asked for.
    """
    code, asked, earlier = run.get("code", {}), _own(requested.to_json()), _own(run["recipe"])
    warnings: list[str] = []
    # an older version kept no copies, and named the files as they were typed
    names = {field: name if "://" in name else str(own_code.absolute(name)) for field, name in earlier.items()}
    for field, each in code.items():
        path = asked.get(field)
        now = own_code.hashes(own_code.read(own_code.locate(path))) if path is not None else {}
        same = list(now.values()) == list(each["files"].values())
        if path != each["path"] and not same:
            raise ValueError(
                f"the run {run['name']} exists with another recipe: {field} was {each['path']!r} and is now "
                f"{path or requested.to_json()[field]!r}{', which holds something else' if path else ''}. Give another "
                "--run, or the old values"
            )
        names[field] = (folder / each["copy"]).address
        if not same:
            warnings.append(
                f"{path} has changed since the run {run['name']} began; the run goes on with its copy of the {field} "
                f"as it was, {names[field]}. To train the changed one, give another --run"
            )
    copies = {field: names[field] for field in code}
    return _rename(requested, copies), cast(RunFacts, {**run, "recipe": {**run["recipe"], **names}}), warnings


def _own(recipe: Json) -> dict[str, str]:
    return {field: recipe[field] for field in FIELDS if own_code.is_file(str(recipe.get(field)))}


def _rename(recipe: Recipe, names: Mapping[str, object]) -> Recipe:
    """Not `Recipe.replace`, with which the arguments would go."""
    return dataclasses.replace(recipe, **names)  # type: ignore[arg-type]
