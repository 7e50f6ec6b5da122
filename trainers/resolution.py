"""From the recipe that was requested to the recipe as it will be trained.

Whatever is fixed once, at the start of a run, is fixed here, and then stands in run.json: a run that is resumed, on
another cluster perhaps, is trained by the same recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from trainers.augmentations.mosaic import is_on
from trainers.from_data import follow
from trainers.messages import Meta
from trainers.recipe import Recipe, Scale, resolve_micro_batch
from trainers.registry import constant, load
from trainers.run_facts import DatasetFacts, PredictedMemory, RunFacts
from trainers.training.schedule import learning_rate

if TYPE_CHECKING:
    from trainers.training.memory_fit import Need


class FitMemory(Protocol):
    """`training.memory_fit.fit_memory`; see there for the arguments."""

    def __call__(self, recipe: Recipe, scale: Scale, meta: Meta, limit: int | None, *, gpus: bool) -> Need: ...


@dataclass(frozen=True, kw_only=True)
class PlaceFacts:
    """What is known of the place of a run once it stands."""

    gpus: bool
    auto_precision: Literal["auto", "fp32", "bf16"]
    """What precision "auto" means there; "auto" itself: the workers will find out, by their devices."""
    memory_limit: int | None
    """Bytes that a worker's step may take; None: not known."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a recipe is resolved for. `place` and `meta` are None before they are known."""

    run: str
    """The run's name."""
    earlier: RunFacts | None = None
    """What run.json held of the same run: it is resumed."""
    epochs_run: int = 0
    """Epochs that this has had."""
    begun: bool = False
    """Whether that run has a checkpoint: something was learned."""
    adopts: bool = False
    """Whether it continues from another run's checkpoint, with a recipe of its own."""
    place: PlaceFacts | None = None
    meta: Meta | None = None

    @property
    def resumed(self) -> RunFacts | None:
        """The earlier run.json, where training goes on from what it learned."""
        return self.earlier if self.begun and not self.adopts else None


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A recipe as it will be trained."""

    recipe: Recipe
    fits: bool = True
    """Whether it fits into memory, as far as that is predicted."""
    note: str = ""
    """What people should know of how it is run."""
    memory: PredictedMemory | None = None
    """For run.json; None: not predicted."""
    from_data: Mapping[str, str] = field(default_factory=dict)
    """For run.json: field -> why it has its value, of those that followed from the data."""


def resolve_recipe(requested: Recipe, scale: Scale, known: Circumstances, fit_memory: FitMemory) -> Resolved:
    """Fix everything that the circumstances decide. Pure, but for what `fit_memory` caches.

    It may be called twice: early with what is known at once, so that a wrong request is refused before anything
    starts; and, from the same `requested`, when place and data are known.

    Args:
        requested: The recipe with the user's changes.
        scale: Where it runs.
        known: All that is known now.
        fit_memory: Predicts memory; called only when place and data are known.

    Raises:
        ValueError: An earlier run of this name has another recipe; the workers cannot share a batch evenly; or the
            memory cannot be predicted where --memory sets a limit.
    """
    recipe, earlier = requested, known.earlier
    # 1 a run that is resumed keeps what was fixed at its start
    if earlier is not None and not known.adopts:
        recipe = agree_with_earlier(recipe, earlier["recipe"], known.run, known.epochs_run)
    # 2 what follows from the data
    reasons: dict[str, str] = {}
    if known.meta is not None:
        recipe, reasons = follow(recipe, known.meta["rows"]["train"])
    # 3 the micro-batch: its own, else each worker's part of a batch
    if "batch_size" not in recipe.from_data:
        recipe = resolve_micro_batch(recipe, scale)
    if known.place is None or known.meta is None:
        return Resolved(recipe=recipe)
    # 4 the precision, by the devices
    if recipe.precision == "auto":
        recipe = recipe.replace(precision=known.place.auto_precision)
    # 5 a smaller micro-batch where a step needs too much memory; not of a run whose first epoch is done
    if earlier is not None and earlier.get("epochs_run"):
        return Resolved(recipe=recipe, from_data=reasons)
    planned = recipe.replace(precision="fp32") if recipe.precision == "auto" else recipe  # which needs most
    need = fit_memory(planned, scale, known.meta, known.place.memory_limit, gpus=known.place.gpus)
    recipe = need.recipe.replace(precision=recipe.precision)
    memory = need.facts().get("memory")
    return Resolved(recipe=recipe, fits=need.fits, note=need.note, memory=memory, from_data=reasons)


def agree_with_earlier(requested: Recipe, earlier: Mapping[str, object], run: str, epochs_run: int = 0) -> Recipe:
    """The recipe of a run that exists, if it is the one requested; it may end later, or sooner, than it was to.

    Args:
        requested: The recipe with the user's changes.
        earlier: The recipe in run.json.
        run: The run's name.
        epochs_run: Epochs that it has had.

    Raises:
        ValueError: They differ; the message names the fields. Or what the run has learned so far is not what it would
            have learned with that end.
    """
    try:
        old = Recipe.from_json(earlier)
    except ValueError as error:
        raise ValueError(f"the run {run} exists with an invalid recipe: {error}; give another --run") from None
    if requested.from_data:
        requested = requested.replace(**{name: getattr(old, name) for name in requested.from_data})
    if requested.micro_batch_size is None and requested.batch_size == old.batch_size:
        requested = requested.replace(micro_batch_size=old.micro_batch_size)
    elif requested.micro_batch_size is None:  # it need not divide the other batch, and that alone is to be named
        old = old.replace(micro_batch_size=None)
    if requested.precision == "auto":
        requested = requested.replace(precision=old.precision)
    if requested.warm_up == old.warm_up:  # by epochs or by a share: older versions knew no share
        requested = requested.replace(warmup_epochs=old.warmup_epochs, warmup_share=old.warmup_share)
    if old.precision == "auto":  # it ended before its workers could tell
        old = old.replace(precision=requested.precision)
    different = old.differences(requested)
    if not different.keys() <= set(END):
        fields = "; ".join(f"{name} was {was!r} and is now {now!r}" for name, (was, now) in different.items())
        raise ValueError(f"the run {run} exists with another recipe: {fields}. Give another --run, or the old values")
    if "epochs" in different:
        _check_end(old, requested, run, epochs_run)
    return requested


END = ("epochs", "patience")
"""Fields that say when a run ends: they may change when it is resumed."""
NOMINAL_STEPS = 20
"""Of an epoch, to compare schedules before the number of pictures is known."""


def _check_end(old: Recipe, new: Recipe, run: str, epochs_run: int) -> None:
    """Whether the epochs that a run has had, and the one that it is in, are as with another number of epochs."""
    if new.epochs < epochs_run:
        raise ValueError(
            f"the run {run} has had {epochs_run} epochs already, and --epochs {new.epochs} is fewer; "
            f"give --epochs {epochs_run} or more, or another --run"
        )
    epochs = min(epochs_run + 1, old.epochs, new.epochs)
    if any(is_on(old.augment, epoch, old.epochs) != is_on(new.augment, epoch, new.epochs) for epoch in range(epochs)):
        raise ValueError(
            f"the run {run} was to have {old.epochs} epochs, the last tenth without mosaics, and has come to these: it "
            f"cannot go on to --epochs {new.epochs}. To start from its weights, give --init-from {run} and another "
            f"--run; or --epochs {old.epochs}"
        )
    for step in range(epochs * NOMINAL_STEPS):
        if learning_rate(old, step, NOMINAL_STEPS) != learning_rate(new, step, NOMINAL_STEPS):
            raise ValueError(
                f"the run {run} was to have {old.epochs} epochs, and with --schedule {old.schedule} its learning rates "
                f"up to now depend on that: it cannot go on to --epochs {new.epochs}. To start from its weights, give "
                f"--init-from {run} and another --run; or --epochs {old.epochs}"
            )


def is_over(recipe: Recipe, earlier: RunFacts, epochs_run: int) -> str | None:
    """Whether nothing is left to do of a run.

    Args:
        recipe: Resolved: that of the run, but for its end.
        earlier: Its run.json.
        epochs_run: Epochs that it has had.

    Returns:
        Why, for people; None: there is something left.
    """
    if earlier["status"] not in ("finished", "stopped_early"):
        return None
    over = f"has {earlier['status'].replace('_', ' ')} already; nothing is left to do"
    if all(earlier["recipe"].get(name) == getattr(recipe, name) for name in END) or recipe.epochs <= epochs_run:
        return over
    best, patience = earlier.get("best"), recipe.patience
    if best is None or patience is None or epochs_run - best["epoch"] < patience:
        return None
    return (
        f"{over}: {epochs_run - best['epoch']} epochs brought no better {best['metric']} than epoch {best['epoch']}; "
        "to go on, give a larger --patience, or --patience none"
    )


def licence_of_weights(recipe: Recipe) -> str | None:
    """Of the pretrained weights that the recipe's model starts from; None: there are none, or it is not known."""
    weights = recipe.model_args.get("weights")
    of_model = getattr(load("models", recipe.model), "licence", None)
    return of_model(**recipe.model_args) if weights is not None and of_model is not None else None


def resolve_normalisation(recipe: Recipe, meta: Meta, start: DatasetFacts | None) -> tuple[Meta, str]:
    """Normalise pictures as the recipe says: by the data, by numbers, or as the weights that training starts from were
    trained.

    Args:
        recipe: Its normalisation, model, and `weights` of the model's arguments.
        meta: What is known of the data.
        start: `dataset` of the run that `init_from` names; None: it names none.

    Returns:
        `meta`, with the mean and deviation that hold; and what people should know of it, or "".

    Raises:
        ValueError: The weights need pictures of another number of channels.
    """
    if recipe.normalisation == "data":
        return meta, ""
    if numbers := recipe.mean_and_std(meta["channels"]):
        return {**meta, "mean": numbers[0], "std": numbers[1]}, ""
    weights = recipe.model_args.get("weights")
    offered = constant("models", recipe.model, "NORMALISATION", {})
    if weights is not None and (of_model := getattr(load("models", recipe.model), "normalisation", None)):
        offered = {weights: of_model(**recipe.model_args)}
    if start is not None and len(start.get("mean", ())) == meta["channels"]:
        mean, std, of = start["mean"], start["std"], f"the run {recipe.init_from}"
    elif start is None and weights in offered:
        (mean, std), of = map(list, offered[weights]), f"weights={weights}"
        if len(mean) != meta["channels"]:
            raise ValueError(
                f"{of} needs pictures of {len(mean)} channels, and {recipe.dataset} gives {meta['channels']}: give "
                f"--dataset-args channels={len(mean)} (grey ones then have three equal channels), or leave weights out"
            )
    else:
        return meta, ""
    if (mean, std) == (meta["mean"], meta["std"]):
        return meta, ""
    note = f"pictures are normalised as {of} asks: mean {', '.join(f'{value:.3f}' for value in mean)}"
    return {**meta, "mean": list(mean), "std": list(std)}, note
