"""Parts of a model by name: which are frozen, which keep their statistics, which learn how fast.

A part is a module or parameter by its name or the first parts of it, as in "encoder" or "encoder.layer1"; "all"; or,
whatever the model calls its modules, "head" (its last layers, those that are new where it starts from weights that
were trained on something else) and "body" (all else).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from trainers.recipe import Recipe
from trainers.registry import load
from trainers.training.activation_checkpointing import blocks
from trainers.training.torch_internals import BatchNorm

LAST_EPOCH = 2**62
"""A number of an epoch after all of any run."""
Holds = Callable[[str], bool]
"""Whether the module or parameter of a name belongs to some parts."""


def head(recipe: Recipe, model: nn.Module) -> tuple[str, ...]:
    """The names of the modules that are the head of a recipe's model: what `head` of the model's file returns, else
    the last child with parameters, at whatever depth there are several."""
    if offered := getattr(load("models", recipe.model), "head", None):
        return tuple(offered(model))
    path, module = "", model
    while True:
        own = [(name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None]
        if not own:
            return (path,) if path else ()
        name, module = own[-1]
        path = f"{path}.{name}" if path else name
        if len(own) > 1:
            return (path,)


def find(recipe: Recipe, model: nn.Module, names: Iterable[str], field: str) -> Holds:
    """What tells whether a module or parameter belongs to some parts of a recipe's model.

    Args:
        recipe: Its model.
        model: That, built.
        names: Of parts.
        field: The recipe's, that names them, for messages.

    Raises:
        ValueError: A name that the model does not have.
    """
    names = tuple(names)
    within = {part for part in names if part not in ("all", "head", "body")}
    of_head = head(recipe, model) if {"head", "body"} & set(names) else ()
    keys = [key for key, _ in (*model.named_modules(), *model.named_parameters())]
    for part in within:
        if not any(_below(key, part) for key in keys):
            tops = ", ".join(key for key, _ in model.named_children())
            raise ValueError(
                f"{field}: the model has no part called {part!r}; its parts are {tops}, head, body and all"
            )

    def holds(key: str) -> bool:
        if "all" in names or any(_below(key, part) for part in within):
            return True
        in_head = any(_below(key, part) for part in of_head)
        return bool(key) and ("head" in names if in_head else "body" in names and not _above(key, of_head))

    return holds


def _below(key: str, part: str) -> bool:
    return key == part or key.startswith(part + ".")


def _above(key: str, parts: Iterable[str]) -> bool:
    """Whether a module holds one of the parts."""
    return any(part.startswith(key + ".") for part in parts)


def is_frozen(recipe: Recipe, epoch: int) -> bool:
    """Whether the recipe's frozen parts are not trained in an epoch, counted from 0."""
    return bool(recipe.frozen) and (recipe.frozen_epochs is None or epoch < recipe.frozen_epochs)


def freeze(recipe: Recipe, model: nn.Module, epoch: int) -> None:
    """Switch the gradients of the recipe's frozen parts off, or on where they are trained in this epoch.

    Raises:
        ValueError: The model has no such part.
    """
    if not recipe.frozen:
        return
    holds, frozen = find(recipe, model, recipe.frozen, "frozen"), is_frozen(recipe, epoch)
    for name, parameter in model.named_parameters():
        if holds(name):
            parameter.requires_grad_(not frozen)


def set_training(recipe: Recipe, model: nn.Module, epoch: int) -> None:
    """`model.train()`, but parts that are frozen in this epoch stay in eval mode, statistics of BatchNorm included, and
    so do the BatchNorm layers of the recipe's fixed_norms."""
    model.train()
    if is_frozen(recipe, epoch):
        _set_eval(model, find(recipe, model, recipe.frozen, "frozen"), nn.Module)
    if recipe.fixed_norms:
        _set_eval(model, find(recipe, model, recipe.fixed_norms, "fixed_norms"), BatchNorm)


def _set_eval(model: nn.Module, holds: Holds, kind: type[nn.Module]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, kind) and holds(name):
            module.eval()


def learning_rates(recipe: Recipe, model: nn.Module) -> dict[str, float]:
    """The factor of the learning rate of each parameter, by its name: those of the parts of `lr_factor` that hold it,
    and `layer_decay` for each block of layers that comes after its own.

    Raises:
        ValueError: The model has no such part.
    """
    factors = {name: recipe.layer_decay**after for name, after in _blocks_after(recipe, model).items()}
    for part, factor in recipe.lr_factor.items():
        holds = find(recipe, model, [part], "lr_factor")
        factors = {name: value * (factor if holds(name) else 1.0) for name, value in factors.items()}
    return factors


def _blocks_after(recipe: Recipe, model: nn.Module) -> dict[str, int]:
    """How many blocks of layers come after each parameter's own, by its name: 0 in the last one, and in the head."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    if recipe.layer_decay == 1:
        return dict.fromkeys(names.values(), 0)
    block_of = {names[each]: number for number, block in enumerate(blocks(model), 1) for each in block.parameters()}
    in_head = find(recipe, model, ["head"], "layer_decay")
    depths, depth = {}, 0
    for name in names.values():
        depth = block_of.get(name, depth)
        depths[name] = depth
    last = max((depth for name, depth in depths.items() if not in_head(name)), default=0) + 1
    return {name: 0 if in_head(name) else last - depth for name, depth in depths.items()}


def check(recipe: Recipe, model: nn.Module) -> None:
    """Raises ValueError where the recipe names a part that its model does not have, or freezes all of it."""
    for field, names in (("fixed_norms", recipe.fixed_norms), ("lr_factor", recipe.lr_factor)):
        find(recipe, model, names, field)
    freeze(recipe, model, 0)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"frozen={','.join(recipe.frozen)} leaves nothing of the model {recipe.model} to be trained")
