"""prune(): a run from the best weights of another, with fewer channels."""

from __future__ import annotations

import dataclasses
import sys
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

import torch
from torch import Tensor, nn

from trainers.fitting import RunResult, fit
from trainers.formatting import check_is_path
from trainers.inference.load import open_run, restore
from trainers.own_code import MANIFEST
from trainers.progress import Progress
from trainers.pruning import network
from trainers.recipe import Recipe, Scale
from trainers.run_facts import PrunedFacts, RunFacts
from trainers.runs import code
from trainers.runs.files import check_run_name, count_epochs, read_run
from trainers.runs.provenance import commit, versions
from trainers.runtime.addresses import default_workers
from trainers.storage.run_lock import Busy, lock
from trainers.storage.store import Store, absolute, default_storage
from trainers.training import build, shapes
from trainers.training.checkpoint import Checkpoints
from trainers.training.distributed import World
from trainers.training.state import TrainState
from trainers.training.torch_internals import tree_leaves

PRUNED = "-pruned"
"""What follows the name of a run in that of the smaller one, where nobody says otherwise."""
EPOCHS_SHARE, LR_SHARE = 1 / 3, 1 / 10
"""Of the run's own, for the smaller network."""


def prune(
    run: str,
    speedup: float = 2.0,
    *,
    epochs: int | None = None,
    lr: float | None = None,
    name: str | None = None,
    data: str | None = None,
    workers: int | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Cut channels out of the best weights of a run, and train what is left, in a run of its own; given again, go on
    with that run.

    Args:
        run: Its name below `storage`, or its folder, beside which the new one then lies.
        speedup: How many times fewer multiplications the network is to need.
        epochs: To train it; by default a third of the run's.
        lr: By default a tenth of the run's.
        name: Of the new run, by default RUN-pruned.
        data: Where the raw data lies, by default where it lay in training.
        workers: As of `train`.
        storage: Where run folders lie, by default the usual place.
        progress: Where messages go; None: stderr.

    Raises:
        ValueError: There is no such run, or its network cannot be cut so far; nothing is written then.
    """
    if not speedup > 1:
        raise ValueError(f"--speedup {speedup:g} is not allowed; it takes a number above 1, such as 2")
    check_is_path("data", data)
    progress = progress or Progress()
    folder, found = open_run(run, storage)
    below = Store(storage or default_storage())
    by_name = folder.address == (below / run).address
    if not by_name and storage is None:
        below = folder.parent
    name = check_run_name(name or f"{run.strip('/').replace('/', '-') if by_name else folder.name}{PRUNED}")
    target, scale = below / name, Scale.from_json(found["scale"])
    scale = scale.replace(storage=below.address, data=str(absolute(data)) if data else scale.data)
    scale = scale.replace(workers=default_workers(scale) if workers is None else workers)
    recipe = _for_less(Recipe.from_json(found["recipe"]), epochs, lr)
    earlier, fresh = _read_earlier(target, found["name"], speedup), not target.names()
    if earlier is None:
        recipe, state, facts = _cut(recipe, folder, found, speedup, progress)
        with lock(target, progress, threading.Event()):
            if read_run(target) is None:
                _write(target, folder, found, state, _run_facts(name, found, recipe, scale, facts))
    else:
        recipe = _with_shapes(recipe, earlier["recipe"]["shapes"])
    recipe = code.name_copies(recipe, target, found.get("code", {}))
    try:
        return fit(recipe, scale=scale, run=name, name=found["recipe_name"], progress=progress)
    except ValueError as error:
        if fresh and not isinstance(error, Busy) and count_epochs(target) == 0:  # a refused command leaves nothing
            below.delete(name)
        raise


def _for_less(recipe: Recipe, epochs: int | None, lr: float | None) -> Recipe:
    """How the smaller network is trained: all of it, from weights that are good already."""
    own = max(1, round(EPOCHS_SHARE * recipe.epochs)) if epochs is None else epochs
    warm = recipe.warmup_epochs and recipe.warmup_epochs * own / recipe.epochs
    return recipe.replace(
        epochs=own,
        lr=LR_SHARE * recipe.lr if lr is None else lr,
        init_from=None,
        frozen=(),
        frozen_epochs=None,
        warmup_epochs=warm,
    )


def _with_shapes(recipe: Recipe, sizes: Mapping[str, list[int]]) -> Recipe:
    """Not `Recipe.replace`, which keeps the others that there were."""
    return dataclasses.replace(recipe, shapes=sizes)


def _read_earlier(target: Store, run: str, speedup: float) -> RunFacts | None:
    """The run of the smaller network, where it has begun. Raises ValueError where it is another."""
    earlier = read_run(target)
    if earlier is None:
        return None
    pruned = earlier.get("pruned")
    if pruned is None or (pruned["run"], pruned["speedup"]) != (run, speedup):
        what = f"was pruned from {pruned['run']} by --speedup {pruned['speedup']:g}" if pruned else "was not pruned"
        raise ValueError(f"the run {target.name} exists, and {what}; give another --run")
    return earlier


def _cut(
    recipe: Recipe, folder: Store, found: RunFacts, speedup: float, progress: Progress
) -> tuple[Recipe, TrainState, PrunedFacts]:
    """The recipe of the smaller network, its state before the first step, and what is known of it."""
    network.import_pruner()
    meta, before = found["dataset"], Recipe.from_json(found["recipe"])
    state, world = restore(before, meta, folder, torch.device("cpu"))
    model = state.model.eval().to(memory_format=torch.contiguous_format)
    images = torch.rand(
        1, meta["channels"], *before.image_size, dtype=world.dtype, generator=torch.Generator().manual_seed(0)
    )
    try:
        with progress.waiting("looking for the channels that matter least"):
            cut = network.cut(model, images, speedup)
        built = build.build_without_memory(build.without_weights(_with_shapes(before, {})), meta)
        recipe = _with_shapes(recipe, shapes.find_changed(cut.model, built))
        rebuilt = _rebuild(recipe, found, cut.model, images)
    except ValueError as error:
        raise ValueError(f"the model {recipe.model} of {found['name']} cannot be pruned: {error}") from None
    with progress.waiting("timing both networks"):
        ms = network.time_pass({"before": model, "after": cut.model}, images)
    facts: PrunedFacts = {
        "run": found["name"],
        "epoch": best["epoch"] if (best := found.get("best")) else None,
        "speedup": speedup,
        "macs": list(cut.macs),
        "parameters": list(cut.parameters),
        "ms": [ms["before"], ms["after"]],
    }
    _tell(facts, cut.kept, progress)
    return recipe, rebuilt, facts


def _rebuild(recipe: Recipe, found: RunFacts, model: nn.Module, images: Tensor) -> TrainState:
    """The state that a run of the recipe begins with: its own network, with the weights of `model`.

    Raises:
        ValueError: That is another network.
    """
    world = World(0, 1, torch.device("cpu"), recipe.precision, memory_format="contiguous")  # type: ignore[arg-type]
    state = build.create_state(recipe, found["dataset"], world, fresh=False)
    try:
        state.load_weights(model.state_dict())
    except RuntimeError as error:  # names and shapes, a line each
        raise ValueError(f"its sizes are not all that was cut: {' '.join(str(error).split())}") from None
    if state.ema is not None:
        state.ema = {name: value.detach().clone() for name, value in state.model.state_dict().items()}
    with torch.no_grad():
        pairs = zip(tree_leaves(state.model.eval()(images)), tree_leaves(model(images)), strict=True)
    if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in pairs):
        raise ValueError("built anew from the sizes of its layers, it gives another output")
    return state


def _tell(facts: PrunedFacts, kept: dict[str, str], progress: Progress) -> None:
    (macs, fewer), (parameters, less), (ms, faster) = facts["macs"], facts["parameters"], facts["ms"]
    progress.message(
        f"pruned: {macs / fewer:.2f} times fewer multiplications of a picture ({_count(macs)} -> {_count(fewer)}), "
        f"{parameters / less:.2f} times fewer parameters ({_count(parameters)} -> {_count(less)}), "
        f"{ms / faster:.2f} times as fast on this processor ({ms:.3g} -> {faster:.3g} ms)"
    )
    if kept:
        progress.message(network.describe_kept(kept))


def _count(number: int) -> str:
    size, unit = next(((10.0**n, u) for n, u in ((9, " G"), (6, " M"), (3, " k")) if number >= 10**n), (1.0, ""))
    return f"{number / size:.3g}{unit}"


def _run_facts(name: str, found: RunFacts, recipe: Recipe, scale: Scale, pruned: PrunedFacts) -> RunFacts:
    """What run.json holds of a run that has not begun, but for its first weights."""
    facts: RunFacts = {
        "name": name,
        "status": "interrupted",
        "recipe_name": found["recipe_name"],
        "recipe": code.without_copies(recipe, found.get("code", {})),
        "scale": scale.to_json(),
        "dataset": found["dataset"],
        "machine": {"nodes": []},
        "step": {"memory_format": None, "why": "as it comes", "tried": [], "seconds": 0.0},
        "versions": versions(),
        "commit": commit(),
        "attempt": 0,
        "start_id": uuid.uuid4().hex,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "command": " ".join(sys.argv),
        "pruned": pruned,
    }
    if "licence" in found:
        facts["licence"] = found["licence"]
    if "code" in found:
        facts["code"] = found["code"]
    return facts


def _write(target: Store, folder: Store, found: RunFacts, state: TrainState, facts: RunFacts) -> None:
    """Begin a run: copies of the user's own files, the first checkpoint, and run.json, without which there is none."""
    for each in found.get("code", {}).values():
        below = each["copy"].rpartition("/")[0]
        for file in (*each["files"], MANIFEST):
            target.write(f"{below}/{file}", folder.read(f"{below}/{file}"))
    checkpoints = Checkpoints(target)
    checkpoints.save(state)
    checkpoints.close()
    target.write_json("run.json", cast(dict[str, object], facts))
