"""What is refused before pictures are decoded: a run to start from that is not there, a model that does not fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from trainers import own_code
from trainers.datasets import Source
from trainers.formatting import locate_error, nearest, shortened
from trainers.messages import Facts, Meta
from trainers.recipe import Recipe, recipe_names
from trainers.run_facts import DatasetFacts, RunFacts
from trainers.runs.files import find_run, read_run, run_names
from trainers.runs.provenance import machine
from trainers.storage.store import Store

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainers.instances import Targets
    from trainers.tasks.base import Task

SMALL_PIXELS, SMALL_WEIGHTS = 32 * 32, 2**24
"""Such a model is tried on two such pictures for real at once: without memory takes imports of 1.5 s."""
TRIED = 2
"""Pictures that a model is tried on: BatchNorm needs more than one."""
MEMORY_SHARE = 0.25
"""Of the host's memory, what a trial for real may take."""


def check_init_from(recipe: Recipe, storage: Store, own: str = "") -> None:
    """That the run whose weights the model starts from is there; its checkpoint is read by the workers.

    Args:
        recipe: Its `init_from`.
        storage: Where runs lie.
        own: Name of the run that is about to start, whose folder is there already: it is not offered.

    Raises:
        ValueError: It is not; the message names the nearest run.
    """
    run = recipe.init_from
    if run is not None and read_run(find_run(storage, run)) is None:
        before = f", train {run} first in the same command" if run in recipe_names() else ""
        others = [name for name in run_names(storage) if name != own.split("/")[0]]
        raise ValueError(
            f"init_from={run}: there is no such run in {storage.address}{nearest(run, others)}; "
            f"give --init-from RUN{before}, or start from nothing with --init-from none"
        )


class Listed(NamedTuple):
    """What is known of a data set's pictures before they are decoded."""

    classes: Sequence[str]
    pictures: Mapping[str, int]
    """Split -> how many, those that cannot be decoded too."""
    digest: str | None
    """Of names and classes; None: not known."""


def list_source(source: Source) -> Listed:
    from trainers.data.source import list_digest

    return Listed(source.classes, source.rows, list_digest(source))


def list_known(facts: DatasetFacts | Meta) -> Listed:
    """Of a run, or of prepared data."""
    skipped = [bad.get("split") for bad in facts.get("skipped", ())]
    counts = {split: rows + skipped.count(split) for split, rows in facts.get("rows", {}).items()}
    if None in skipped:  # by an older version: not known of which split
        counts = {}
    return Listed(facts.get("classes", ()), counts, facts.get("listing"))


def check_same_data(run: RunFacts, now: Listed) -> None:
    """That a run is resumed on the classes and pictures that it began with.

    Data that was moved or touched is the same, and so is that of another test split. What is drawn in the pictures is
    compared when they are decoded: `find_other_pixels`.

    Args:
        run: Its run.json.
        now: The data set now.

    Raises:
        ValueError: It is other data; the message says what differs.
    """
    from trainers.data.source import LEARNED

    began, name = list_known(run["dataset"]), run["name"]
    fix = f"put the data back as they were, or give another --run (--init-from {name} starts from its weights)"
    if list(began.classes) not in ([], list(now.classes)):
        gone, new = (
            [e for e in a if e not in b] for a, b in ((began.classes, now.classes), (now.classes, began.classes))
        )
        parts = [f"{word} {shortened(some)}" for word, some in (("without", gone), ("with", new)) if some]
        raise ValueError(
            f"the run {name} began with the {len(began.classes)} classes {shortened(began.classes)}; the data now have "
            f"{len(now.classes)}, {' and '.join(parts) or f'in another order: {shortened(now.classes)}'}: {fix}"
        )
    learned = [split for split in LEARNED if split in began.pictures]
    other = [split for split in learned if began.pictures[split] != now.pictures.get(split)]
    if other or (None not in (began.digest, now.digest) and began.digest != now.digest):
        counts = [f"{began.pictures[split]:,} {split} pictures (now {now.pictures[split]:,})" for split in learned]
        what = "" if other else "; some now have other names or classes"
        raise ValueError(f"the run {name} began with {' and '.join(counts) or 'other pictures'}{what}: {fix}")


def find_other_pixels(run: RunFacts, meta: Meta) -> list[str]:
    """A warning where the same files hold other pixels or targets than when a run began."""
    from trainers.data.source import LEARNED

    before = run["dataset"]
    if "fingerprints" in before and "fingerprints" in meta:
        same = all(meta["fingerprints"].get(split) == before["fingerprints"].get(split) for split in LEARNED)
    else:  # of all splits; older versions had of streamed sets that of the files, with a "-"
        comparable = "-" not in before.get("fingerprint", "-") and before["rows"].keys() == meta["rows"].keys()
        same = not comparable or before["fingerprint"] == meta["fingerprint"]
    if same:
        return []
    return [
        f"the pictures or masks of {meta['dataset']} are not those that the run {run['name']} began with, though their "
        "names are the same: files were edited, or other versions decode them otherwise; to train from the start, give "
        "another --run"
    ]


def check_model(recipe: Recipe, source: Source, *, weights: bool = True, workers: int = 1) -> None:
    """Build the model and try it on pictures of zeros: one that does not fit the data is refused before they are
    decoded.

    It is tried without memory (on the "meta" device), or for real where it is small. What fails without memory may
    only have read values, so it is tried for real before it is refused. Where that would take too much memory
    nothing is refused: the workers will raise the error.

    Args:
        recipe: Its model, task, frozen parts and image_size.
        source: The data set's listing.
        weights: Whether the model is built with the pretrained weights that it asks for, which must then be had here.
        workers: That will train it.

    Raises:
        ValueError: The model cannot be built, or does not go with the pictures and the task; or it keeps statistics
            that several workers would not agree on.
    """
    from trainers.data import targets
    from trainers.training import build, parts

    facts = _facts(source)
    recipe.mean_and_std(source.channels)
    target = targets.kind(source.target)
    if recipe.order == "balanced" and not target.one_class:
        instead = ", or give --class-weights" if target.weighted else ""
        raise ValueError(
            f"order=balanced draws the classes of pictures equally often, and {recipe.dataset} has {target.holds}; "
            f"leave it out{instead}"
        )
    if recipe.class_weights != "none" and not target.weighted:
        raise ValueError(
            f"class_weights={recipe.class_weights} are for classes, and {recipe.dataset} has {target.holds}; leave "
            "them out"
        )
    target.refuse(recipe.augment)
    asked, recipe = recipe, build.without_weights(recipe)
    if weights and asked != recipe:
        _check_weights(asked, facts)
    model, where = _build_anywhere(recipe, facts)
    parts.check(recipe, model)
    kept = _try(model, where, recipe, source, facts, training=True)
    if kept and workers > 1:
        more = f" and {len(kept) - 1} more" if kept[1:] else ""
        raise ValueError(
            f"the model {recipe.model} changes its buffer {kept[0]}{more} in training, which is no BatchNorm's: each "
            "of several workers would keep another; give --workers 1"
        )
    check_batches(recipe, facts, source.rows["train"])
    if own_code.is_file(recipe.model) or own_code.is_file(recipe.task):
        _try(model, where, recipe, source, facts, training=False)


def check_start(recipe: Recipe, source: Source, storage: Store) -> None:
    """That the model can start from the weights of `init_from`, where they lie on a disk of this machine.

    Args:
        recipe: Its model, and a run that `check_init_from` has found.
        source: The data set's listing.
        storage: Where runs lie.

    Raises:
        ValueError: That run has no weights yet, or none that fit.
    """
    from torch.nn.parameter import is_lazy

    from trainers.training import build
    from trainers.training.checkpoint import start_weights

    run = recipe.init_from
    if run is None or (folder := find_run(storage, run)).local is None:
        return
    model, _ = _build_anywhere(build.without_weights(recipe), _facts(source))
    own = model.state_dict()
    if not any(is_lazy(value) for value in own.values()):  # their shapes are not known yet
        start_weights(folder, run, own)


def check_batches(recipe: Recipe, facts: Facts, rows: int) -> None:
    """That the model can be trained on the fewest pictures that it will see at once.

    Args:
        recipe: With a micro_batch_size.
        facts: Channels and classes of the data.
        rows: Training pictures.

    Raises:
        ValueError: That is one, and a layer needs more, such as BatchNorm behind a global pooling.
    """
    from trainers.data.sampler import fewest_at_once
    from trainers.training.peak_memory import why_not_alone

    batch, micro = recipe.batch_size, recipe.micro_batch_size or recipe.batch_size
    if fewest_at_once(rows, batch, micro) > 1 or not (why := why_not_alone(recipe, facts)):
        return
    micros = (each for each in range(2, batch + 1) if batch % each == 0 and fewest_at_once(rows, batch, each) > 1)
    batches = (each for each in range(batch + 1, batch + 4) if fewest_at_once(rows, each, each) > 1)
    if smaller := next(micros, None):
        advice = f"give --micro-batch-size {smaller}"
    elif larger := next(batches, None):
        advice = f"give --batch-size {larger}" + ("" if micro == batch else f" --micro-batch-size {larger}")
    else:
        advice = "add training pictures"
    raise ValueError(
        f"{rows:,} training pictures by batch_size={batch} and micro_batch_size={micro} come one at a time, in some "
        f"step or in all, and the model {recipe.model} cannot be trained on one picture: {why}; {advice}"
    )


def _facts(source: Source) -> Facts:
    """What is known of a data set from its listing."""
    from trainers.data import targets

    target, classes = targets.kind(source.target), list(source.classes)
    known = target.listed(source.splits["train"], len(classes))  # else how often one occurs shows when they are read
    facts: Facts = {
        "channels": source.channels,
        "classes": classes,
        "target": target.name,
        "masks": target.legacy_masks,
        "class_counts": {"train": [1] * len(classes) if known is None else target.count(known, len(classes))["counts"]},
    }
    if known is not None:
        facts["target_facts"] = target.facts(target.identify(known), len(classes))
    return facts


def _build_anywhere(recipe: Recipe, facts: Facts) -> tuple[nn.Module, torch.device]:
    """The model and where it is: without memory, or for real where it is small, or cannot be built without."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook as on_parameter
    from torch.nn.parameter import is_lazy

    meta, cpu = torch.device("meta"), torch.device("cpu")
    sizes: list[int] = []
    try:
        counting = on_parameter(lambda module, name, each: sizes.append(0 if is_lazy(each) else each.numel()))
        try:
            model = _build(recipe, facts, meta)
        except Exception as error:
            if isinstance(error, ValueError) or not _affordable(recipe, sum(sizes)):
                raise
            return _build(recipe, facts, cpu), cpu
        finally:
            counting.remove()
        if math.prod(recipe.image_size) <= SMALL_PIXELS and _weights(model) <= SMALL_WEIGHTS:
            return _build(recipe, facts, cpu), cpu
        return model, meta
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the model {recipe.model} cannot be built: {locate_error(error)}") from None


def _build(recipe: Recipe, facts: Facts, where: torch.device) -> nn.Module:
    from trainers.training import build

    with where:
        return build.build_model(recipe, facts)


def _check_weights(recipe: Recipe, facts: Facts) -> None:
    """Raises ValueError where the model refuses its pretrained weights, or they cannot be had."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a model without memory takes none
        try:
            _build(recipe, facts, torch.device("meta"))
        except ValueError:
            raise
        except OSError as error:
            raise ValueError(f"the model {recipe.model} cannot read its weights: {error}") from None
        except Exception:  # of one that reads their values, the workers will tell
            return


def _asked(recipe: Recipe) -> str:
    return f"pictures of {recipe.image_size[0]}x{recipe.image_size[1]} and task={recipe.task}"


class _ForwardError(Exception):
    """A model of the user's own failed; the message says where."""


def _try(
    model: nn.Module, where: torch.device, recipe: Recipe, source: Source, facts: Facts, *, training: bool
) -> list[str]:
    """A pass where the model is, and where that is without memory and fails, one for real.

    Returns the names of the buffers that it changed, but for BatchNorm's statistics. Raises ValueError where the model
    does not go with the pictures and the task.
    """
    import torch

    cpu = torch.device("cpu")
    try:
        try:
            return _pass(model, where, recipe, source, facts, training=training)
        except Exception as error:
            if where == cpu or isinstance(error, ValueError):
                raise
            if _affordable(recipe, _weights(model)):
                return _pass(_build(recipe, facts, cpu), cpu, recipe, source, facts, training=training)
            return []
    except ValueError:
        raise
    except Exception as error:
        why = str(error) if isinstance(error, _ForwardError) else locate_error(error)
        raise ValueError(f"the model {recipe.model} does not go with {_asked(recipe)}: {why}") from None


def _pass(
    model: nn.Module, where: torch.device, recipe: Recipe, source: Source, facts: Facts, *, training: bool
) -> list[str]:
    """A forward pass and the loss, of as few pictures as there may be: do the sizes fit?

    Raises whatever the model raises; ValueError for what it returns that a task of ours does not take, or that cannot
    be learned from, and for what a task of the user's own returns. Returns as `_try`.
    """
    import torch

    from trainers.data import targets
    from trainers.instances import each
    from trainers.tasks.base import AtPoints
    from trainers.training import build, parts
    from trainers.training.batchnorm import OtherStatistics

    task, own_task = build.make_task(recipe, facts), own_code.is_file(recipe.task)
    pictures = TRIED if training else _fewest_evaluated(recipe, source)
    kind = targets.kind(source.target)
    target, beyond = targets.stand_in(kind, pictures, recipe.image_size, len(source.classes))
    wanted = (pictures, build.count_outputs(recipe, facts), *beyond)
    name = f"forward() of {type(model).__name__}" + ("" if training else " in eval mode")
    if training:
        parts.set_training(recipe, model, parts.LAST_EPOCH)
    else:
        model.eval()
    statistics = OtherStatistics(model)
    with where, torch.set_grad_enabled(training):
        images = torch.zeros(pictures, source.channels, *recipe.image_size)
        try:
            output = model(images)
        except Exception as error:
            if own_code.is_file(recipe.model):
                raise _ForwardError(f"{name} raised {locate_error(error)}") from error
            raise
        tensor = isinstance(output, torch.Tensor)
        fits = tensor and len(output.shape) == len(wanted) and output.shape[:2] == wanted[:2]
        if output is None or not (fits or own_task or isinstance(task, AtPoints)):
            raise ValueError(
                f"the model {recipe.model} does not go with {_asked(recipe)}: {name} returned {_describe(output)} "
                f"for {pictures} picture{'s' * (pictures > 1)}; it must return a tensor {wanted}"
            )
        loss = task.loss(output, each(lambda part: part.to(where), target))
    if own_task:
        _check_loss(recipe, loss)
    if training and not loss.requires_grad:
        raise ValueError(
            f"the model {recipe.model} learns nothing: what {name} returns depends on no parameter that is "
            "trained; are all of them frozen, or does it return detached, rounded or whole numbers?"
        )
    if own_task and tensor and not training:
        _check_scores(recipe, task, loss, tuple(output.shape), target)
    return statistics.changed()


def _fewest_evaluated(recipe: Recipe, source: Source) -> int:
    """Of TRIED or the fewest pictures that the model sees at once in validation."""
    from trainers.data.sampler import fewest_at_once

    rows = source.rows["val"]
    return min(TRIED, fewest_at_once(rows, rows, recipe.micro_batch_size or recipe.batch_size))


def _check_loss(recipe: Recipe, loss: object) -> None:
    import torch

    if not isinstance(loss, torch.Tensor) or loss.ndim != 1:
        raise ValueError(
            f"the task {recipe.task}: loss() returned {_describe(loss)}; it must return the sums of the losses, a "
            "tensor of one dimension, as in loss[None]"
        )


def _check_scores(recipe: Recipe, task: Task, loss: torch.Tensor, output: tuple[int, ...], target: Targets) -> None:
    """Raises ValueError for what a task of the user's own returns that an epoch would end with.

    Errors that numbers alone may cause, such as a division by the 0 pictures of a class, are none of its faults.
    """
    import torch

    weight = task.weight(target)
    if tuple(loss.shape) != ((1,) if weight is None else tuple(weight.shape)):
        raise ValueError(
            f"the task {recipe.task}: loss() returned {_describe(loss)}, and weight() {_describe(weight)}; each loss "
            "needs its divisor"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counts = task.counts(torch.zeros(output), target)
            scores = task.scores({name: count.numpy() for name, count in {**counts.total, **counts.per_image}.items()})
            value = scores.get(task.metric)
    except (AttributeError, ImportError, KeyError, NameError, TypeError) as error:
        raise ValueError(f"the task {recipe.task} cannot score: {locate_error(error)}") from None
    except Exception:
        return
    if task.metric not in scores or not (value is None or isinstance(value, float)):
        raise ValueError(
            f"the task {recipe.task}: scores() gives metric={task.metric!r} as {value!r}; it must be a float of that "
            f"name, among {', '.join(scores)}"
        )


def _describe(output: object) -> str:
    """What a model returned, for people."""
    import torch

    if isinstance(output, torch.Tensor):
        return f"a tensor {tuple(output.shape)}"
    return "None" if output is None else f"a {type(output).__name__}"


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _affordable(recipe: Recipe, weights: int) -> bool:
    """Whether a trial for real takes little of this host's memory, by a crude estimate that is too large."""
    from trainers.training.memory_fit import CRUDE_BYTES

    needed = 4 * weights + CRUDE_BYTES * TRIED * math.prod(recipe.image_size)
    return needed <= MEMORY_SHARE * machine()["memory_bytes"]
