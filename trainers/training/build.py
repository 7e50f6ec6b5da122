"""A recipe to its model, task, optimizer and first state."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from trainers import own_code
from trainers.data import targets
from trainers.formatting import locate_error
from trainers.messages import Facts
from trainers.phase import phase
from trainers.recipe import FROM_DATA, Recipe
from trainers.registry import arguments, constant, load, names, offers
from trainers.run_facts import DatasetFacts
from trainers.tasks.base import AtPoints, Task
from trainers.tasks.class_weights import weigh_classes
from trainers.training import distributed, parts, shapes
from trainers.training.distributed import World
from trainers.training.startup import eager
from trainers.training.state import TrainState
from trainers.values import Args

PLACES = ("points", "anchors")
"""Functions by which models say where in a picture they predict."""


def build_model(recipe: Recipe, meta: Facts | DatasetFacts) -> nn.Module:
    """The recipe's model with the weights of its seed, on the CPU. Raises ValueError where data and model differ."""
    facts = {"image_size": recipe.image_size, "channels": meta["channels"], "classes": count_outputs(recipe, meta)}
    for name, value in facts.items():
        if recipe.model_args.get(name, value) != value:
            raise ValueError(
                f"model_args {name}={recipe.model_args[name]} does not fit the data, which has {name}={value}; "
                f"leave {name} out of --model-args"
            )
    torch.manual_seed(recipe.seed)
    module = load("models", recipe.model)
    try:
        model = module.build(**{**recipe.model_args, **facts})
    except ValueError as error:
        if not own_code.is_file(recipe.model):
            raise
        raise ValueError(f"the model {recipe.model} cannot be built: build() raised {locate_error(error)}") from None
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"the model {recipe.model}: build() returned {type(model).__name__}; it must return a torch.nn.Module"
        )
    if any(map(is_lazy, itertools.chain(model.parameters(), model.buffers()))):  # the first pass sets their sizes
        with torch.no_grad():
            model.eval()
            model(torch.zeros(1, meta["channels"], *recipe.image_size))
        model.train()
    if recipe.shapes:
        shapes.resize(model, recipe.shapes)
    return model


class _Unfilled(TorchFunctionMode):
    """Draws no normal numbers into tensors without memory: for these torch imports 900 modules of its compiler."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: Args | None = None
    ) -> object:
        given = kwargs or {}
        if func in (torch.Tensor.normal_, nn.init.normal_, nn.init.kaiming_normal_):
            tensor = args[0] if args else given["tensor"]
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **given)


def build_without_memory(recipe: Recipe, meta: Facts | DatasetFacts) -> nn.Module:
    """The recipe's model on the meta device. One whose constructor reads values, as of a rate for each layer, is built
    on the CPU first. Raises as `build_model`."""
    try:
        with torch.device("meta"), _Unfilled():
            return build_model(recipe, meta)
    except ValueError:
        raise
    except Exception:
        return build_model(recipe, meta).to("meta")


def without_weights(recipe: Recipe) -> Recipe:
    """The recipe, but its model is built without reading weights from anywhere."""
    return recipe.replace(model_args={"weights": None}) if "weights" in recipe.model_args else recipe


def make_task(recipe: Recipe, meta: Facts | DatasetFacts) -> Task:
    """The recipe's loss and scores for this data set. Raises ValueError where they do not go with it."""
    weights = weigh_classes(recipe.class_weights, meta["class_counts"]["train"], meta.get("class_areas"))
    with _locating(recipe.task):
        taken = arguments("tasks", recipe.task, "make")
        known: dict[str, object] = {**(meta.get("target_facts") or {}), "image_size": recipe.image_size}
        known |= _find_places(recipe, [name for name in PLACES if name in taken])
        facts = {name: value for name, value in known.items() if name in taken}
        made: Task = load("tasks", recipe.task).make(len(meta["classes"]), weights, **facts, **recipe.task_args)
    return made


def _find_places(recipe: Recipe, kinds: Sequence[str]) -> dict[str, torch.Tensor]:
    """Where the recipe's model predicts, by the function of these kinds that it has. Raises ValueError where it is no
    such model."""
    module = load("models", recipe.model)
    offered = [kind for kind in kinds if hasattr(module, kind)]
    if kinds and not offered:
        fitting = [name for name in names("models") if any(offers("models", name, kind) for kind in kinds)]
        raise ValueError(
            f"task={recipe.task} needs a model that says where it looks in a picture, and {recipe.model} has no "
            f"{' or '.join(f'{kind}()' for kind in kinds)}; use {' or '.join(fitting)}"
        )
    own = {name: value for name, value in recipe.model_args.items() if name not in FROM_DATA}
    return {kind: getattr(module, kind)(recipe.image_size, **own) for kind in offered[:1]}


def score_names(recipe: Recipe, meta: Facts | DatasetFacts) -> list[str]:
    """The bare names of the scores that the recipe's task gives."""
    task = make_task(recipe, meta)
    target, beyond = targets.stand_in(target_of(recipe), 2, (8, 8), len(meta["classes"]))
    outputs = (2, count_outputs(recipe, meta), *beyond)
    counts = task.counts(task.stand_in(2) if isinstance(task, AtPoints) else torch.zeros(outputs), target)
    scores = task.scores({name: count.numpy() for name, count in {**counts.total, **counts.per_image}.items()})
    return [name for name, value in scores.items() if isinstance(value, float)]


def target_of(recipe: Recipe) -> targets.Target:
    """The kind of target that the recipe's task learns from. Raises ValueError."""
    return targets.kind(constant("tasks", recipe.task, "TARGET"))


def count_outputs(recipe: Recipe, meta: Facts | DatasetFacts) -> int:
    """Channels, or logits, that the task needs of the model. Raises ValueError where it cannot learn the classes."""
    with _locating(recipe.task):
        return int(load("tasks", recipe.task).outputs(len(meta["classes"])))


@contextlib.contextmanager
def _locating(task: str) -> Iterator[None]:
    """What goes wrong in a task, as a ValueError that says where."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the task {task} cannot be made: {locate_error(error)}") from None


@phase("making the model")
def create_state(recipe: Recipe, meta: Facts | DatasetFacts, world: World, *, fresh: bool = True) -> TrainState:
    """The state of a run before its first step, the same on every rank.

    Args:
        recipe: Its model, frozen parts, optimizer and moving average.
        meta: Channels and classes of the data.
        world: Of this process: its device, and how the model is distributed.
        fresh: False where the state is about to be restored: pretrained weights are then not downloaded.
    """
    if not fresh:  # downloads nothing
        recipe = without_weights(recipe)
    model = build_model(recipe, meta)
    parts.freeze(recipe, model, parts.LAST_EPOCH)
    model = distributed.place(model, world)
    return state_of(recipe, model, fused=not world.sharded)


def state_of(recipe: Recipe, model: nn.Module, *, fused: bool = True) -> TrainState:
    """That of a model before its first step, with the recipe's moving average and optimizer."""
    ema = None if recipe.ema is None else {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = make_optimizer(recipe, parameter_groups(recipe, model), fused=fused)
    return TrainState(model=model, optimizer=optimizer, ema=ema)


class Group(TypedDict):
    """Parameters that learn alike."""

    params: list[nn.Parameter]
    weight_decay: float
    factor: float
    """Of the learning rate."""


def parameter_groups(recipe: Recipe, model: nn.Module) -> list[Group]:
    """What is trained in the run's last epoch, by learning rate and weight decay. Raises ValueError for unknown parts.

    Biases and the scales of normalisation layers are what has one dimension. What is frozen at first is a group of its
    own: fused SGD takes parameters of one age only.
    """
    factors = parts.learning_rates(recipe, model)
    frozen = parts.find(recipe, model, recipe.frozen, "frozen")
    groups: dict[tuple[float, float, bool], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = recipe.weight_decay if recipe.decay_on == "all" or parameter.ndim > 1 else 0.0
        key = (factors[name], decay, frozen(name))
        groups.setdefault(key, {"params": [], "factor": key[0], "weight_decay": decay})["params"].append(parameter)
    return list(groups.values())


def make_optimizer(recipe: Recipe, parameters: list[Group], *, fused: bool = True) -> torch.optim.Optimizer:
    """The recipe's optimizer."""
    common: dict[str, Any] = {"lr": recipe.lr, "fused": fused}
    if recipe.optimizer == "sgd":
        return eager(torch.optim.SGD)(parameters, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return eager(kind)(parameters, betas=(recipe.momentum, 0.999), **common)
