"""What is trained (Recipe) and where (Scale), how they are found by name, and every check of their values.

Imports neither torch nor Ray nor NumPy: a mistake on the command line is reported within a second.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from trainers import augmentations, values
from trainers.fields import Fields, check_name, read, require, take_types
from trainers.formatting import check_is_path, locate_error, nearest, parse_size
from trainers.registry import arguments, choices, constant, load, offers
from trainers.values import Args

if TYPE_CHECKING:  # it imports NumPy
    from trainers.run_facts import Json

TOLD = ("target_mean", "target_std", "target_shares", "points", "anchors", "image_size")
"""What a task's make() may be told: of the training targets (data/targets), and of where its model predicts."""
FOLLOWING = ("batch_size", "epochs", "lr")
"""Fields whose values can follow from the data."""
FROM_DATA = ("image_size", "channels", "classes")
"""Arguments of a model that are filled in."""
SCHEDULE_ARGS = {"constant": {}, "step": {"every": 10, "factor": 0.1}, "cosine": {}, "polynomial": {"power": 0.9}}


@dataclass(frozen=True, kw_only=True)
class Recipe(Fields):
    """What is trained. Nothing here depends on where it runs; plain data, so that any process can rebuild it."""

    dataset: str = field(metadata={"affects": ("data", "memory", "training")})
    """Name of a module in trainers/datasets, or FILE.py of your own."""
    dataset_args: Args = field(default_factory=dict, metadata={"affects": ("data", "memory", "training")})
    """Arguments of the data set's source()."""
    model: str = field(metadata={"affects": ("memory", "training")})
    """Name of a module in trainers/models, or FILE.py of your own."""
    model_args: Args = field(default_factory=dict, metadata={"affects": ("memory", "training")})
    """Arguments of the model's build()."""
    shapes: Mapping[str, int | list[int]] = field(default_factory=dict, metadata={"affects": ("memory", "training")})
    """Sizes of layers other than build() gives them, as prune finds them: layer=OUTPUTS,INPUTS or norm=FEATURES."""
    task: str = field(default="classify", metadata={"affects": ("memory", "training")})
    """What is learned: name of a module in trainers/tasks (classify, ordinal, segment...), or FILE.py of your own."""
    task_args: Args = field(default_factory=dict, metadata={"affects": ("memory", "training")})
    """Arguments of the task's make(), such as label_smoothing=0.1 of classify or loss=dice of segment."""
    image_size: tuple[int, int] = field(metadata={"affects": ("data", "memory", "training")})
    """Height x width that the model sees."""
    stored_size: tuple[int, int] | None = field(default=None, metadata={"affects": ("data", "memory", "training")})
    """Height x width that pictures are stored at; larger than image_size where crops are drawn. None: image_size.
    Where a recipe has one, it follows changes of image_size, in proportion."""
    resize: Literal["crop", "stretch", "pad"] = field(default="crop", metadata={"affects": ("data", "training")})
    """How a picture of another shape is brought to size: centre crop, stretch, or black bars."""
    on_bad_image: Literal["fail", "skip"] = field(default="fail", metadata={"affects": ("data",)})
    """A picture that cannot be decoded ends the run before it starts, or is left out and recorded."""
    epochs: int = field(metadata={"affects": ("training",)})
    """Times that every training picture is seen."""
    batch_size: int = field(metadata={"affects": ("memory", "training")})
    """Pictures per optimizer step, over all workers."""
    micro_batch_size: int | None = field(default=None, metadata={"affects": ("memory", "training")})
    """Pictures per forward pass, BatchNorm's batch; divides batch_size. None: batch_size / workers, then fixed."""
    optimizer: Literal["sgd", "adam", "adamw"] = field(default="sgd", metadata={"affects": ("memory", "training")})
    """Update rule."""
    lr: float = field(metadata={"affects": ("training",)})
    """Learning rate, after warm-up."""
    momentum: float = field(default=0.9, metadata={"affects": ("memory_if_set", "training")})
    """SGD's momentum, or Adam's first beta."""
    nesterov: bool = field(default=False, metadata={"affects": ("memory", "training")})
    """Nesterov's form of SGD's momentum."""
    weight_decay: float = field(default=0.0, metadata={"affects": ("memory_if_set", "training")})
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    schedule: Literal["constant", "step", "cosine", "polynomial"] = field(
        default="constant", metadata={"affects": ("training",)}
    )
    """How the learning rate falls over the run."""
    schedule_args: Args = field(default_factory=dict, metadata={"affects": ("training",)})
    """step: every (epochs), factor; polynomial: power."""
    warmup_share: float = field(default=0.0, metadata={"affects": ("training",)})
    """Share of the run's steps, such as 0.1, over which the learning rate rises from 0, linearly, step by step."""
    warmup_epochs: float | None = field(default=None, metadata={"affects": ("training",)})
    """Epochs over which it does, in place of a share."""
    lr_factor: Mapping[str, float] = field(default_factory=dict, metadata={"affects": ("memory", "training")})
    """Factors of the learning rate of parts of the model, such as body=0.1: see frozen for what parts there are."""
    layer_decay: float = field(default=1.0, metadata={"affects": ("memory", "training")})
    """Factor of the learning rate from each block of layers to the one before it; the last ones have all of it."""
    decay_on: Literal["all", "weights"] = field(default="all", metadata={"affects": ("memory", "training")})
    """What weight_decay acts on; weights: not on biases, nor on the scales of normalisation layers."""
    clip_norm: float | None = field(default=None, metadata={"affects": ("memory_if_set", "training")})
    """Largest norm of the gradient of the whole batch."""
    ema: float | None = field(default=None, metadata={"affects": ("memory_if_set", "training")})
    """Decay per step of an exponential moving average of the weights, which is then what is evaluated."""
    ema_warmup: bool = field(default=False, metadata={"affects": ("training",)})
    """Let that decay rise: it is at most (1 + t) / (10 + t) in step t, so that early weights are soon forgotten."""
    patience: int | None = field(default=None, metadata={"affects": ("training",)})
    """End the run after so many epochs without a better score."""
    class_weights: Literal["none", "inverse", "median", "erfnet"] = field(
        default="none", metadata={"affects": ("memory_if_set", "training")}
    )
    """Loss weights from the class frequencies of the training split; erfnet: 1 / ln(1.02 + share of the pixels)."""
    augment: Args = field(default_factory=dict, metadata={"affects": ("memory", "training")})
    """Random changes of training pictures, such as horizontal_flip=0.5 rand_augment=9 mixup=0.2; README.md of trainers
    lists them."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = field(
        default="auto", metadata={"affects": ("memory", "training")}
    )
    """Arithmetic of the model; auto: bf16 autocast on GPUs that have it, else fp32. fp64 is for tests."""
    init_from: str | None = field(default=None, metadata={"affects": ("training",)})
    """A run whose best weights the model starts from; or a recipe's name, where `train` trains that one before."""
    normalisation: str = field(default="weights", metadata={"affects": ("training",)})
    """By what pictures are normalised: weights (the mean and deviation of those that the weights it starts from were
    trained on, if any), data (those of the training pictures), or numbers from 0 to 1: MEAN,...,STD,..."""
    frozen: tuple[str, ...] = field(default=(), metadata={"affects": ("memory", "training")})
    """Parts that are not trained, their BatchNorm statistics included: names, or first parts of names, of modules;
    head (what is new where a model has pretrained weights: its last layers), body (all else)."""
    frozen_epochs: int | None = field(default=None, metadata={"affects": ("memory", "training")})
    """Epochs after which the frozen parts are trained, too. None: they never are."""
    fixed_norms: tuple[str, ...] = field(default=(), metadata={"affects": ("memory", "training")})
    """Parts, as of frozen, or all, whose BatchNorm layers keep their statistics, and normalise by these in training."""
    order: Literal["shuffled", "balanced"] = field(default="shuffled", metadata={"affects": ("training",)})
    """shuffled: every picture once an epoch; balanced: as many draws, every class equally often."""
    from_data: tuple[str, ...] = field(default=(), metadata={"affects": ("training",)})
    """Which of batch_size, epochs and lr (its value is then for batches of 32) follow from the number of training
    pictures; a value that is given holds."""
    seed: int = field(default=0, metadata={"affects": ("training",)})
    """Seed of the weights, the order of samples, augmentation and dropout."""

    def __post_init__(self) -> None:
        take_types(self)
        for name in ("epochs", "batch_size", "lr"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.seed < 2**63, "seed", self.seed, "a number from 0 to 2**63 - 1")
        for name in ("clip_norm", "patience", "micro_batch_size", "frozen_epochs"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a number above 0, or None")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number from 0 up to, not including, 1")
        require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "a number between 0 and 1, such as 0.999")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov=True needs optimizer='sgd' and a momentum above 0")
        self._check_sizes()
        self._check_micro_batch()
        self._check_fine_tuning()
        for name, value in self.schedule_args.items():
            known = SCHEDULE_ARGS[self.schedule]
            check_name(name, known, f"argument of schedule {self.schedule!r}")
            holds = values.matches(value, type(known[name])) and value > 0
            require(holds, f"schedule_args {name}", value, f"{values.describe_type(type(known[name]))} above 0")
        for name, sizes in self.shapes.items():
            each = sizes if isinstance(sizes, list) else [sizes]
            holds = bool(each) and all(values.matches(size, int) and size > 0 for size in each)
            require(holds, f"shapes {name}", sizes, "whole numbers above 0, as in 24,16")
        augmentations.check(self.augment)
        _check_arguments("datasets", self.dataset, "source", self.dataset_args, given=("data",))
        _check_arguments(
            "models", self.model, "build", self.model_args, given=(), filled=("image_size", "channels", "classes")
        )
        _check_arguments("tasks", self.task, "make", self.task_args, given=("classes", "class_weights", *TOLD))
        arguments("tasks", self.task, "outputs")
        constant("tasks", self.task, "TARGET")

    def _check_sizes(self) -> None:
        for name in ("image_size", "stored_size"):
            size = getattr(self, name)
            formatted = size and f"{size[0]}x{size[1]}"
            require(size is None or min(size) > 0, name, formatted, "height x width in pixels, such as 28x28")
        height, width = self.storage_size
        if height < self.image_size[0] or width < self.image_size[1]:
            raise ValueError(
                f"stored_size={height}x{width} is smaller than image_size={self.image_size[0]}x{self.image_size[1]}; "
                "leave it out, or make it at least as large"
            )

    def _check_micro_batch(self) -> None:
        micro = self.micro_batch_size
        if micro is None or self.batch_size % micro == 0:
            return
        divisors = [d for d in range(1, self.batch_size + 1) if self.batch_size % d == 0]
        closest = sorted(sorted(divisors, key=lambda d: abs(d - micro))[:2])
        raise ValueError(
            f"micro_batch_size={micro} does not divide batch_size={self.batch_size}; "
            f"use {' or '.join(map(str, closest))}"
        )

    def _check_fine_tuning(self) -> None:
        warm, share = self.warmup_epochs, self.warmup_share
        require(warm is None or warm >= 0, "warmup_epochs", warm, "0 or more")
        require(0 <= share < 1, "warmup_share", share, "a number from 0 up to, not including, 1")
        if warm and share:
            raise ValueError(f"warmup_epochs={warm:g} and warmup_share={share:g}: give one of them")
        for part, factor in self.lr_factor.items():
            require(values.matches(factor, float) and factor >= 0, f"lr_factor {part}", factor, "a number, 0 or more")
        require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "a number above 0, at most 1, such as 0.8")
        if self.frozen_epochs is not None and not self.frozen:
            raise ValueError(f"frozen_epochs={self.frozen_epochs} needs frozen parts: give --frozen body, or names")
        if self.ema_warmup and self.ema is None:
            raise ValueError("ema_warmup=True needs an ema, such as 0.999")
        for name in self.from_data:
            check_name(name, FOLLOWING, "field that from_data can set")
        if "batch_size" in self.from_data and self.micro_batch_size is not None:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} needs a batch_size that is given, and it is to follow from "
                "the data; give --batch-size too"
            )
        self._check_normalisation()

    def _check_normalisation(self) -> None:
        if self.normalisation in ("weights", "data"):
            return
        numbers = self._normalisation_numbers()
        half = len(numbers) // 2
        allowed = "weights, data, or MEAN,STD of values from 0 to 1, or MEAN,MEAN,MEAN,STD,STD,STD"
        holds = numbers and len(numbers) == 2 * half and all(each > 0 for each in numbers[half:])
        require(bool(holds), "normalisation", self.normalisation, allowed)

    def mean_and_std(self, channels: int) -> tuple[list[float], list[float]] | None:
        """Mean and deviation of each channel, in [0, 1], where `normalisation` gives them in numbers, else None.

        Raises:
            ValueError: They are of another number of channels.
        """
        numbers = self._normalisation_numbers()
        if not numbers:
            return None
        half = len(numbers) // 2
        if half not in (1, channels):
            raise ValueError(
                f"normalisation={self.normalisation} is of {half} channels, and {self.dataset} gives {channels}: give "
                f"MEAN,STD for all of them, or {channels} means and {channels} deviations"
            )
        times = channels // half
        return numbers[:half] * times, numbers[half:] * times

    def _normalisation_numbers(self) -> list[float]:
        given = values.value_of(self.normalisation)
        return [float(each) for each in given if isinstance(each, int | float)] if isinstance(given, list) else []

    def replace(self, **changes: Any) -> Self:
        """Copy, with some fields changed; see `Fields.replace`. What another field takes the place of goes."""
        return super().replace(**{**self._replaced_by(changes), **changes})

    def _replaced_by(self, changes: Mapping[str, object]) -> Json:
        replaced: Json = {}
        if changes.get("warmup_share") and "warmup_epochs" not in changes:
            replaced["warmup_epochs"] = None
        if changes.get("warmup_epochs") is not None and "warmup_share" not in changes:
            replaced["warmup_share"] = 0.0
        if not changes.get("frozen", True) and "frozen_epochs" not in changes:
            replaced["frozen_epochs"] = None
        if self.stored_size is not None and "image_size" in changes and "stored_size" not in changes:
            # As much larger as it was: else the middle that is evaluated would be another part of the pictures
            size = typing.cast(tuple[int, int], read("image_size", changes["image_size"], tuple[int, int]))
            scales = zip(size, self.stored_size, self.image_size, strict=True)
            replaced["stored_size"] = tuple(round(new * stored / old) for new, stored, old in scales)
        if "from_data" not in changes:
            replaced["from_data"] = tuple(name for name in self.from_data if name not in changes)
        return replaced

    @property
    def warm_up(self) -> float:
        """Epochs over which the learning rate rises."""
        return self.warmup_share * self.epochs if self.warmup_epochs is None else self.warmup_epochs

    @property
    def storage_size(self) -> tuple[int, int]:
        """Height and width that pictures are stored at."""
        return self.stored_size or self.image_size

    def memory_facts(self) -> dict[str, object]:
        """What the memory of a training step depends on: recipes for which it is equal allocate the same.

        Returns:
            Field name -> its value as JSON; of fields that matter by being set alone, whether they are.
        """
        plain = self.to_json()
        facts: dict[str, object] = {name: plain[name] for name in affecting("memory")}
        return facts | {name: plain[name] not in (None, 0, "none") for name in affecting("memory_if_set")}


Effect = Literal["data", "memory", "memory_if_set", "training"]
"""What a field of Recipe changes: the prepared data; the memory of a training step; that memory, by being set (neither
None, 0 nor "none"), whatever the value; what is learned."""


def affecting(effect: Effect) -> tuple[str, ...]:
    """The names of Recipe's fields that change this, in their order."""
    return tuple(each.name for each in dataclasses.fields(Recipe) if effect in each.metadata["affects"])


@dataclass(frozen=True, kw_only=True)
class Scale(Fields):
    """Where it runs. May change rounding and speed, nothing else."""

    workers: int | tuple[int, int] = 1
    """Training processes on Ray; 0: this process, without Ray; MIN:MAX: as many as the cluster has. `train` without
    it: 0, unless RAY_ADDRESS or a job names a cluster, or data_mode=stream, GPUs or resources are asked for."""
    cpus_per_worker: int | None = None
    """CPUs, and threads, of each worker. None: the host's, shared evenly."""
    gpus_per_worker: float | None = None
    """GPUs of each worker. None: one where the cluster has GPUs."""
    accelerator_type: str | None = None
    """Kind of GPU that each worker needs, by Ray's name, such as A100, where the cluster has several."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What else each worker needs, by the names that the cluster gives its own resources, such as fast_disk=1."""
    placement: Literal["pack", "spread"] = "pack"
    """Workers on as few hosts as hold them, or on as many as there are."""
    storage: str | None = None
    """Folder or URI that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""
    data: str | None = None
    """Folder of the raw data."""
    data_mode: Literal["auto", "cache", "stream"] = "auto"
    """cache: decode once to disk; stream: decode while training; auto: stream what the disk cannot hold."""
    checkpoint_seconds: float = 300.0
    """Longest time between checkpoints within an epoch; one is written at its end too (not more than one a second)."""
    memory: str | None = None
    """Memory of each worker's device, such as 11GiB. None: what it has."""
    on_oom: Literal["micro_batch", "record"] = "micro_batch"
    """A batch that cannot fit: micro_batch: in the largest micro-batches that do; record: not at all, and recorded."""
    max_failures: int = 3
    """Attempts without a new checkpoint after which the run gives up."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """ddp: each worker holds the whole model; fsdp2: a part of every weight, of its gradient and of its states."""
    activation_checkpointing: bool = False
    """Keep the input of each block of layers only, and compute it again on the way back: less memory, more time."""
    compile: bool = False
    """Run the model through torch.compile."""
    tune_step: bool = True
    """Try threads and memory format of a step, as far as they are open, on this machine first; off: take the usual."""
    profile: bool = False
    """Write a torch.profiler trace of a few steps for TensorBoard."""

    def __post_init__(self) -> None:
        take_types(self)
        low, high = self.worker_range
        if isinstance(self.workers, tuple):
            require(1 <= low <= high, "workers", f"{low}:{high}", "MIN:MAX, MIN at least 1 and MAX at least MIN")
        else:
            require(low >= 0, "workers", low, "0, 1, 2, ... or MIN:MAX")
        for name in ("cpus_per_worker", "checkpoint_seconds", "max_failures"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a number above 0")
        gpus = self.gpus_per_worker
        whole = gpus is None or 0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0)
        require(whole, "gpus_per_worker", gpus, "0, a share of one GPU such as 0.5, or a whole number")
        for name, amount in self.resources.items():
            if name in ("CPU", "GPU", "memory"):
                raise ValueError(f"resources {name}={amount}: give --cpus-per-worker, --gpus-per-worker or --memory")
            holds = isinstance(amount, int | float) and not isinstance(amount, bool) and amount > 0
            require(holds, f"resources {name}", amount, "a number above 0")
        check_is_path("data", self.data)
        if self.memory is not None:
            parse_size(self.memory)
        if self.data_mode == "stream" and low == 0:
            raise ValueError("data_mode='stream' reads through Ray Data; give --workers 1 or more")

    @property
    def on_ray(self) -> bool:
        """Whether there are workers apart from this process."""
        return self.workers != 0

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while training."""
        return isinstance(self.workers, tuple) and self.workers[0] < self.workers[1]

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)


def resolve_micro_batch(recipe: Recipe, scale: Scale) -> Recipe:
    """Fix the micro-batch of a recipe: its own, else what each worker gets of a batch.

    Raises:
        ValueError: The workers cannot share a batch evenly.
    """
    if recipe.micro_batch_size is not None:
        return recipe
    low, high = scale.worker_range
    if low != high:
        raise ValueError(f"workers={low}:{high} may change while training; give a --micro-batch-size")
    if recipe.batch_size % max(1, high):
        below = recipe.batch_size // high * high
        raise ValueError(
            f"batch_size={recipe.batch_size} cannot be split evenly over workers={high}; "
            f"use {' or '.join(str(size) for size in (below, below + high) if size)}, or give a --micro-batch-size"
        )
    return recipe.replace(micro_batch_size=recipe.batch_size // max(1, high))


def resolve(name: str | os.PathLike[str], **changes: Any) -> Recipe:
    """Find a recipe by its name.

    Args:
        name: MODULE.FUNCTION in trainers/recipes ("digits.cnn"), or a file of your own ("./mine.py:fast").
        **changes: Fields to change, as in `Recipe.replace`.

    Raises:
        ValueError: The name is unknown (with the nearest ones), or a value is not allowed.
    """
    if isinstance(name, Recipe):
        raise ValueError("resolve takes the name of a recipe, and this is one already; recipe.replace(...) changes it")
    name = os.fspath(name)
    function = _recipe_function(name)
    try:
        recipe = function()
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the recipe {name!r} raised {locate_error(error)}") from None
    if not isinstance(recipe, Recipe):
        raise ValueError(f"the recipe {name!r} returned {type(recipe).__name__}; it must return a Recipe")
    return recipe.replace(**changes)


def describe(name: str) -> str:
    """The docstring of a recipe: source, expected score, time and the exact command."""
    return (_recipe_function(name).__doc__ or "").strip()


def recipe_names() -> list[str]:
    """The names of all recipes that ship with Trainyard."""
    found = []
    for path in sorted((Path(__file__).parent / "recipes").glob("[!_]*.py")):
        tree = ast.parse(path.read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        found += [f"{path.stem}.{name}" for name in functions if not name.startswith("_")]
    return found


def _recipe_function(name: str) -> Callable[[], object]:
    file, colon, function = name.rpartition(":")
    if not colon and name.endswith(".py"):
        raise ValueError(f"{name} is a file; name one of its functions, as in {name}:FUNCTION")
    if not colon and name not in recipe_names():
        raise ValueError(f"there is no recipe {name!r}{nearest(name, recipe_names())}")
    if not colon:
        file, _, function = name.rpartition(".")
    found = getattr(load("recipes", file), function, None)
    if not callable(found):
        raise ValueError(f"{file} has no function {function}() that returns a Recipe")
    return typing.cast(Callable[[], object], found)


def _word(value: object) -> str:
    """As one writes it on a command line."""
    return "none" if value is None else str(value)


def _check_arguments(
    kind: Literal["models", "datasets", "tasks"],
    name: str,
    function: str,
    args: Mapping[str, object],
    given: tuple[str, ...],
    filled: tuple[str, ...] = (),
) -> None:
    """Raises ValueError for arguments that are unknown, missing or of another type. `given`: those that are no user's
    to give; `filled`: those that are filled in where they are not given."""
    allowed = {key: default for key, default in arguments(kind, name, function).items() if key not in given}
    for key, default in allowed.items():
        if default is ... and key not in args and key not in filled:
            finds = "; python -m trainers list --models PATTERN finds names" if offers(kind, name, "names") else ""
            raise ValueError(f"the {kind[:-1]} {name} needs {key}: give --{kind[:-1]}-args {key}={key.upper()}{finds}")
    for key, value in args.items():
        check_name(key, allowed, f"argument of {kind[:-1]} {name!r}")
        default, chosen = allowed[key], choices(kind, name, function).get(key)
        if chosen is not None:
            require(value in chosen, f"{kind[:-1]}_args {key}", value, f"one of {', '.join(map(_word, chosen))}")
            continue
        if default is ... or default is None or isinstance(default, list | tuple | dict):
            continue
        if not values.matches(value, type(default)):
            raise ValueError(
                f"{key}={value!r} is not allowed; {key} of {name!r} takes {values.describe_type(type(default))}"
            )
