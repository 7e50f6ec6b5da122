"""A run's model as a file for other programs."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from trainers.decode import reading
from trainers.formatting import check_is_path
from trainers.inference.load import open_run, restore
from trainers.messages import Json, RunFacts
from trainers.recipe import Recipe
from trainers.storage.store import Store, absolute
from trainers.training.distributed import World


def export(run: str, out: str, *, storage: str | None = None) -> Path:
    """Write the best checkpoint of a run as a torch.export program, for any batch size, and beside it `out`.json with
    the task, the classes and how pictures are prepared.

    The program is loaded again and its output compared with the model's before the file is kept.

    Args:
        run: its name below `storage`, or its folder.
        out: the file to write.
        storage: where run folders lie, by default the usual place.

    Returns:
        `out`, as an absolute path.

    Raises:
        ValueError: the model cannot be exported, or the two differ.
    """
    check_is_path("out", out)
    folder, found = open_run(run, storage)
    recipe, meta = Recipe.from_json(found["recipe"]), found["dataset"]
    state, world = restore(recipe, meta, folder, torch.device("cpu"))
    model = state.model.eval()
    images = torch.rand(3, meta["channels"], *recipe.image_size, dtype=world.dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about itself
        try:
            shapes = ({0: torch.export.Dim("batch", min=1)},)
            program = torch.export.export(model, (images[:2],), dynamic_shapes=shapes)
        except Exception as error:  # whatever a model of the user's own makes torch raise
            raise ValueError(f"the model {recipe.model} cannot be exported: {str(error).splitlines()[0]}") from None
        target = absolute(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part.pt2")
        try:
            torch.export.save(program, part)
            again = torch.export.load(part).module()
            for some in (images, images[:1]):
                torch.testing.assert_close(again(some), model(some), rtol=1e-4, atol=1e-4)
            Store(target.parent).write_json(f"{target.name}.json", _input_of(recipe, found, world))
            part.replace(target)
        except AssertionError as error:
            raise ValueError(f"the exported program of {run} differs from the model: {error}") from None
        finally:
            part.unlink(missing_ok=True)
    return target


def _input_of(recipe: Recipe, run: RunFacts, world: World) -> Json:
    """What one must know to use an exported program."""
    meta = run["dataset"]
    return {
        "run": run["name"],
        "task": recipe.task,
        "classes": meta["classes"],
        "colours": meta.get("colours"),
        "input": f"{str(world.dtype).removeprefix('torch.')} (batch, channels, height, width)",
        "values": "(pixel / 255 - mean) / std",
        **reading(recipe.dataset_args),
        "channels": meta["channels"],
        "image_size": list(recipe.image_size),
        "resize": recipe.resize,
        "mean": meta["mean"],
        "std": meta["std"],
        "versions": run["versions"],
    }
