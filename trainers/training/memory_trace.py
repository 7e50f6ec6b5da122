"""A training step traced without memory or device: every allocation, by size."""

from __future__ import annotations

import math
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.augmentations import AUGMENTATIONS, Augmentation, columns_of, mosaic
from trainers.data import sampler
from trainers.data.batches import Batch, NoData
from trainers.data.sampler import one_pass
from trainers.data.targets import ONE, Array, Most
from trainers.messages import Meta
from trainers.recipe import Recipe
from trainers.training import build
from trainers.training.activation_checkpointing import blocks, checkpoint_activations
from trainers.training.batchnorm import BatchNormStatistics
from trainers.training.distributed import World
from trainers.training.parts import LAST_EPOCH, freeze, set_training
from trainers.training.preprocess import Preprocess
from trainers.training.state import TrainState
from trainers.training.step import Run, Step
from trainers.training.torch_internals import (
    TorchDispatchMode,
    fake_tensors,
    needs_numbers,
    storage_key,
    tree_leaves,
)

GATHERED = 5
"""Copies of FSDP2's largest block: weights, those that arrive, those fetched ahead, gradient, and that as it leaves."""


class Trace:
    """A run whose tensors have no memory."""

    def __init__(
        self,
        recipe: Recipe,
        channels: int,
        classes: int,
        images: int,
        parts: int = 1,
        activation_checkpointing: bool = False,
        most: Most = ONE,
    ) -> None:
        """
        Args:
            recipe: With a precision other than "auto".
            channels: Of the pictures.
            classes: Number of classes.
            images: Pictures of a micro-batch.
            parts: Workers that the model is sharded over by FSDP2; 1: it is not.
            activation_checkpointing: Whether activations are recomputed in the backward pass.
            most: Objects of a picture, where targets are objects.

        Raises:
            ValueError: The model cannot be built, or has nothing to recompute.
            Untraceable: A ValueError: the model reads the values of its tensors.
        """
        recipe = recipe.replace(batch_size=2 * images, micro_batch_size=images)
        meta = _meta(recipe, channels, classes)
        assert recipe.precision != "auto"
        self.world = World(0, 1, torch.device("cpu"), recipe.precision)
        self.fake, self.ledger = fake_tensors(), _Ledger()
        with torch.random.fork_rng(devices=[]), _LocatingErrors(recipe.model):
            model = build.build_without_memory(build.without_weights(recipe), meta)
            self.model = model.to(dtype=self.world.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
            with self.fake, self.ledger:
                state = _state(recipe, self.model)
        set_training(recipe, self.model, LAST_EPOCH)
        if activation_checkpointing:
            checkpoint_activations(self.model)
        self.parts = parts
        self.run = Run(recipe=recipe, state=state, data=NoData(meta), world=self.world, model=self.model)
        self.run.preprocess = _Preprocess(recipe, meta, self.world)
        self.batch = _batch(recipe, channels, classes, images, most)
        self.waits = False
        """Whether a step's micro-batches are all on the device before its first forward pass."""
        self._begun = False

    def forward(self) -> None:
        """A forward pass, and the loss."""
        with (
            torch.random.fork_rng(devices=[]),
            _LocatingErrors(self.run.recipe.model),
            self.fake,
            self.ledger,
            torch.no_grad(),
        ):
            images, targets = self.run.preprocess(self.batch, 0)
            with self.world.autocast():
                self.run.task.loss(self.model(images), targets)

    def step(self, micro_batches: int) -> list[int]:
        """Bytes alive after each operation of an optimizer step that is not the first."""
        with torch.random.fork_rng(devices=[]), _LocatingErrors(self.run.recipe.model), self.fake, self.ledger:
            step = Step(self.run, BatchNormStatistics(self.model, self.world))
            if not self._begun:  # makes the optimizer's states
                self._make(step, 1)
                self._begun = True
            start = len(self.ledger.history)
            if self.parts > 1:
                self.ledger.elsewhere = _Elsewhere(self.run.state, self.parts)
            self._make(step, micro_batches)
            self.waits = isinstance(step.divisors, Tensor)
        return self.ledger.history[start:]

    def _make(self, step: Any, micro_batches: int) -> None:
        last = micro_batches - 1
        passes = [self.batch.of._replace(micro_batch=m, last=m == last) for m in range(micro_batches)]
        step.accumulate([self.batch._replace(of=of) for of in passes])
        step.update()


class Untraceable(ValueError):
    """What a model does depends on its numbers: it may train well, and what it takes shows then."""


class _LocatingErrors:
    """What a model does wrong, as a ValueError."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, ValueError):
            return
        frames = traceback.extract_tb(error.__traceback__)
        frame = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__][-1]
        raise (Untraceable if needs_numbers(error) else ValueError)(
            f"the memory of the model {self.model} cannot be predicted: on tensors without numbers it fails by "
            f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
        ) from None


class _Ledger(TorchDispatchMode):
    """Adds up the bytes of all storages that are alive; views share one."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.given = 0
        """Bytes of all storages so far, alive or not."""
        self.elsewhere: Callable[[], int] = lambda: 0
        """Bytes of what is alive that lie on other workers."""
        self.history: list[int] = []
        """Bytes on this worker after each operation that took memory."""
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = self.given
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        if self.given > before:
            self.history.append(self.live - self.elsewhere() + _borrowed(func, args))
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage_key(storage), storage.nbytes()
        if key in self._seen:
            return

        def free(_: Any) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, free)
        self.live += size
        self.given += size


class _Elsewhere:
    """Bytes that FSDP2 leaves to other workers, less what it gathers of them for the block that computes."""

    def __init__(self, state: TrainState, parts: int) -> None:
        self.sizes = {parameter: parameter.nbytes for parameter in state.model.parameters()}
        states = tree_leaves(list(state.optimizer.state.values()))
        kept = sum(tensor.nbytes for tensor in states if isinstance(tensor, Tensor) and tensor.ndim)
        average = sum(self.sizes.values()) if state.ema is not None else 0
        self.always = sum(self.sizes.values()) + kept + average
        self.share = 1 - 1 / parts
        sizes = [self._of(block) for block in blocks(state.model)]
        rest = sum(self.sizes.values()) - sum(sizes)
        self.gathered = GATHERED * max(rest, *sizes, 0)

    def __call__(self) -> int:
        gradients = sum(size for parameter, size in self.sizes.items() if parameter.grad is not None)
        return round(self.share * (self.always + gradients)) - self.gathered

    def _of(self, block: nn.Module) -> int:
        return sum(self.sizes[parameter] for parameter in block.parameters())


def _borrowed(func: Any, args: Any) -> int:
    """Bytes of the two copies of a weight's gradient that the CPU's convolutions make on the way back, besides it: one
    in oneDNN's layout, one in the weight's. cuDNN borrows a workspace there, which shows only on the device."""
    if func is not torch.ops.aten.convolution_backward.default:
        return 0
    weight, groups, transposed = args[2], args[9], args[7]
    size = int(weight.untyped_storage().nbytes())
    if groups == 1 or transposed or weight.dtype == torch.float64 or torch.cuda.is_available():
        return 2 * size
    return size + max(
        size, _blocked(tuple(weight.shape), groups, tuple(args[1].shape[2:])) * int(weight.element_size())
    )


def _blocked(shape: tuple[int, ...], groups: int, image: tuple[int, ...]) -> int:
    """Numbers of a grouped convolution's weight as oneDNN lays it out: the channels of each group fill whole vectors of
    float32, but where each is one channel, and its kernel 3 wide at most and no larger than the image, for which there
    is another algorithm."""
    outputs, inputs, *kernel = shape[0] // groups, *shape[1:]
    fits = all(side <= whole for side, whole in zip(kernel, image, strict=True))
    if outputs == inputs == 1 and kernel[-1] <= 3 and fits:
        return math.prod(shape)
    vector = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 1)
    padded = [-(-channels // vector) * vector for channels in (outputs, inputs)]
    return groups * math.prod(padded) * math.prod(kernel)


class _Preprocess(Preprocess):
    """The loop's, for pictures without memory."""

    def _to_device(self, array: Array | Tensor) -> Tensor:
        dtype: torch.dtype = getattr(torch, str(array.dtype))
        return torch.empty(array.shape, dtype=dtype, device=self.world.device)


def _meta(recipe: Recipe, channels: int, classes: int) -> Meta:
    """What a data set would say; its numbers decide nothing here."""
    target = build.target_of(recipe)
    return {
        "dataset": recipe.dataset,
        "target": target.name,
        "masks": target.legacy_masks,
        "colours": None,
        "size": list(recipe.storage_size),
        "skipped": [],
        "repeated": {},
        "fingerprint": "",
        "channels": channels,
        "classes": [str(number) for number in range(classes)],
        "class_counts": {"train": [1] * classes},
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
        "rows": {"train": recipe.batch_size},
    }


def _state(recipe: Recipe, model: nn.Module) -> TrainState:
    """As build.create_state makes it, of a model on the meta device. (That one's `.to` cannot change fake weights.)"""
    model.to_empty(device="cpu")
    freeze(recipe, model, LAST_EPOCH)  # when most is trained
    return build.state_of(recipe, model)


def _batch(recipe: Recipe, channels: int, classes: int, images: int, most: Most) -> Batch:
    """Pictures without memory, of a row that is changed by all that the recipe changes some by: an untouched batch
    takes less."""
    side = mosaic.side(recipe.augment)
    size = (side * recipe.storage_size[0], side * recipe.storage_size[1])
    pictures = np.broadcast_to(np.zeros((), np.uint8), (images, *size, channels))
    stacked = build.target_of(recipe).dummy(images, size, classes, most._replace(objects=side**2 * most.objects))
    on = [each for name, each in AUGMENTATIONS.items() if recipe.augment.get(name)]
    chances = [each.columns[0] for each in on if isinstance(each, Augmentation) and each.columns]  # where by chance
    draws = sampler.uniforms(recipe.seed, 0, np.arange(4096), columns_of(recipe.augment))[:, chances or [0]]
    row = int(draws.max(axis=1).argmin())
    return Batch(one_pass(np.full(images, row)), pictures, stacked)
