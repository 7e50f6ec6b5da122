"""A run, or a file that was exported of one, to a model that predicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trainers import own_code
from trainers.formatting import locate_error, nearest
from trainers.inference import Views, exported
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


@dataclass(frozen=True)
class Trained:
    """A trained model that is not read yet: the best weights of a run, or a file that was exported of one."""

    facts: RunFacts
    """What run.json holds, or what the file tells of it."""
    address: str
    """By which it is found from any folder."""
    folder: Store | None
    """Of the run; None: it is a file."""

    @property
    def dataset(self) -> DatasetFacts:
        """What is known of the data; by its mean and standard deviation pictures are normalised for the model."""
        return self.facts["dataset"]

    @property
    def storage(self) -> str | None:
        """Where the run's folder was meant to lie; None: the usual place."""
        return self.facts["scale"].get("storage")

    @property
    def one_size(self) -> bool:
        """Whether the model takes pictures of image_size alone."""
        return self.folder is None

    def restore(
        self,
        recipe: Recipe,
        meta: Facts | DatasetFacts,
        device: torch.device | None = None,
        tta: Views | None = None,
    ) -> tuple[TrainState, World]:
        """The model, as `restore` gives it; a file's is run by the processor."""
        if self.folder is not None:
            return restore(recipe, meta, self.folder, device, tta)
        check_views(tta, recipe)
        limit_threads()
        model = exported.load(Path(self.address))
        # of a state that is not trained the model alone is looked at
        state = TrainState(model=model, optimizer=torch.optim.SGD([torch.zeros(0)], lr=0.0))
        world = World(0, 1, torch.device("cpu"), model.precision, memory_format=model.memory_format)
        _average(state, recipe, world, tta)
        return state, world


def find_trained(model: str, storage: str | None = None) -> Trained:
    """A run, by name or path, or a file that was exported of one.

    Raises:
        ValueError: There is neither; the message has the nearest names. Or the file is none of `export`.
    """
    if (file := exported.find(model)) is not None:
        return Trained(exported.read(file), str(file), None)
    folder, facts = open_run(model, storage)
    return Trained(facts, folder.address, folder)


def open_run(run: str, storage: str | None = None) -> tuple[Store, RunFacts]:
    """The folder of a run, by name or path, and what its run.json holds; its recipe names the run's own copies of the
    user's files. Raises ValueError, with the nearest names."""
    below = Store(storage or default_storage())
    for folder in (below / run, Store(run)):
        if (found := read_run(folder)) is not None:
            return folder, with_copies(found, folder)
    exported.refuse_missing(run)
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
    _average(state, recipe, world, tta)
    return state, world


def _average(state: TrainState, recipe: Recipe, world: World, tta: Views | None) -> None:
    """Let the model average its outputs of these views."""
    if tta is not None:
        points = points_of(recipe)
        orders = None if points is None else Orders(points, recipe, tta).to(world.device)
        state.model = Averaged(state.model, tta, orders)
