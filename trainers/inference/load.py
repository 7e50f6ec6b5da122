"""A run folder to a model that predicts."""

from __future__ import annotations

import torch

from trainers import own_code
from trainers.formatting import locate_error, nearest
from trainers.inference import Views
from trainers.inference.views import Averaged, Orders, check_views, points_of
from trainers.messages import Facts
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, RunFacts
from trainers.runs.code import with_copies
from trainers.runs.files import read_run, run_names
from trainers.storage.store import Store, default_storage
from trainers.training import build
from trainers.training.checkpoint import Checkpoints
from trainers.training.device import choose_device, limit_threads
from trainers.training.distributed import World
from trainers.training.state import TrainState

MOST_WORDS = 300
"""Characters of an error of torch that a message quotes."""


def open_run(run: str, storage: str | None = None) -> tuple[Store, RunFacts]:
    """The folder of a run, by name or path, and what its run.json holds; its recipe names the run's own copies of the
    user's files. Raises ValueError, with the nearest names."""
    below = Store(storage or default_storage())
    for folder in (below / run, Store(run)):
        if (found := read_run(folder)) is not None:
            return folder, with_copies(found, folder)
    raise ValueError(f"there is no run {run!r} in {below.address}{nearest(run, run_names(below))}")


def restore(
    recipe: Recipe,
    meta: Facts | DatasetFacts,
    folder: Store,
    device: torch.device | None = None,
    tta: Views | None = None,
) -> tuple[TrainState, World]:
    """Read the best weights of a run into its model.

    Args:
        recipe: the run's.
        meta: `dataset` of its run.json, or meta.json of its data.
        folder: the run folder.
        device: None: the GPU that this process was given, else the CPU.
        tta: views whose outputs the model averages; None: it is the model alone.

    Returns:
        The state, with the model alone filled in, and the world it lives in.
    """
    check_views(tta, recipe)
    limit_threads()
    run = read_run(folder)
    step = run.get("step") if run is not None else None  # of older versions there is none
    memory_format = (step and step["memory_format"]) or "channels_last"
    world = World(0, 1, device or choose_device(), recipe.precision, memory_format=memory_format)  # type: ignore[arg-type]
    weights = Checkpoints(folder).best_weights()
    try:
        state = build.create_state(recipe, meta, world, fresh=False)
    except ValueError:
        raise
    except Exception as error:
        if not own_code.is_file(recipe.model):
            raise
        raise ValueError(
            f"the model {recipe.model} cannot be built: {locate_error(error)}{own_code.describe_copy(recipe.model)}"
        ) from None
    try:
        state.model.load_state_dict(weights)
    except RuntimeError as error:  # names and shapes, a line each
        raise ValueError(
            f"the weights of {folder.address} do not fit the model {recipe.model} as it is now: "
            f"{' '.join(str(error).split())[:MOST_WORDS]}; put its file back as it was in training"
        ) from None
    state.ema = None
    if tta is not None:
        points = points_of(recipe)
        orders = None if points is None else Orders(points, recipe, tta).to(world.device)
        state.model = Averaged(state.model, tta, orders)
    return state, world
