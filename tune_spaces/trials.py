"""The trials of a sweep: their data, the memory they need, how each is configured, and what sweep.json says of them."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from trainers import limits
from trainers.checks import check_batches
from trainers.datasets import Source
from trainers.from_data import follow
from trainers.input_data import check_trial, list_data, prepare_data
from trainers.messages import DataSpec, Meta
from trainers.progress import Progress
from trainers.recipe import Recipe, Scale, affecting, resolve_micro_batch
from trainers.runs.files import read_run
from trainers.storage.store import Store
from trainers.training.memory_fit import context_bytes, fit_memory
from tune_spaces.candidates import next_number
from tune_spaces.messages import Mode, Shared, TrialConfig, TrialData, TrialEntry
from tune_spaces.resources import Places, gpu_share, repeat_number
from tune_spaces.sweep import REPEATED, Cell, Sweep, cell, distance, setting
from tune_spaces.sweep_state import OVER, SweepState

UNASKED = ("epochs", "lr", "momentum", "weight_decay", "clip_norm", "ema", "patience", "seed")
"""Fields of which any value goes with a model and data: trials that differ in them alone are checked once."""
Made = TypeVar("Made")


class PreparedData:
    """Prepared pictures by recipe: recipes that do not differ in what affects them share them."""

    def __init__(self, scale: Scale, progress: Progress) -> None:
        self._scale, self._progress = scale, progress
        self._sources: dict[str, Source | ValueError] = {}
        self._checked: dict[str, ValueError | None] = {}
        self._specs: dict[str, DataSpec | ValueError] = {}

    def check(self, each: Cell) -> None:
        """Check the data and the model of a trial, before any picture is decoded. Raises ValueError for what cannot
        be."""
        source = self._source(each.recipe)
        recipe = _follow_listed(each.recipe, source)
        _check_batch(recipe, source.rows["train"])
        asked = {name: value for name, value in recipe.to_json().items() if name not in UNASKED}
        _once(self._checked, repr(asked), lambda: check_trial(recipe, self._scale, source))

    def prepare(self, each: Cell) -> None:
        """Prepare what a trial reads. Raises ValueError where that cannot be, holds less than a batch, or comes by one
        picture to a model that needs more."""
        self.check(each)
        recipe, meta = self.complete(each.recipe), self.meta(each.recipe)
        rows = meta["rows"]["train"]  # without those that were skipped
        _check_batch(recipe, rows)
        check_batches(resolve_micro_batch(recipe, each.scale), meta, rows)

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with what follows from its data."""
        return follow(recipe, self.meta(recipe)["rows"]["train"])[0]

    def __getitem__(self, recipe: Recipe) -> DataSpec:
        source = self._source(recipe)
        listed = _follow_listed(recipe, source)
        return _once(self._specs, _data_key(recipe), lambda: prepare_data(listed, self._scale, source, self._progress))

    def meta(self, recipe: Recipe) -> Meta:
        """What is known of the data."""
        return self[recipe]["meta"]

    def is_cached(self, recipe: Recipe) -> bool:
        """Whether trials find everything beside the shards."""
        return self[recipe]["mode"] == "cache"

    def for_trial(self, recipe: Recipe) -> TrialData:
        """The data as it travels to a trial."""
        spec = self[recipe]
        travels = {**spec, "meta": None if self.is_cached(recipe) else spec["meta"]}
        return cast(TrialData, travels)

    def _source(self, recipe: Recipe) -> Source:
        key = repr((recipe.task, recipe.dataset, recipe.to_json()["dataset_args"]))
        return _once(self._sources, key, lambda: list_data(recipe, self._scale, self._progress))


def _follow_listed(recipe: Recipe, source: Source) -> Recipe:
    """The recipe as it follows from the listing; how many pictures are sound shows when they are decoded."""
    return follow(recipe, source.rows["train"])[0]


def _check_batch(recipe: Recipe, rows: int) -> None:
    if recipe.batch_size > rows:
        raise ValueError(
            f"batch_size={recipe.batch_size} is more than the {rows:,} training pictures; give batch sizes up to {rows}"
        )


def _once(made: dict[str, Made | ValueError], key: str, make: Callable[[], Made]) -> Made:
    """What `make` gives for this key, or the ValueError that it raised: it is called once."""
    if key not in made:
        try:
            made[key] = make()
        except ValueError as error:
            made[key] = error
    if isinstance(found := made[key], ValueError):
        raise found
    return found


def _data_key(recipe: Recipe) -> str:
    """The same for recipes that can share their data; its kind of target is checked for each task."""
    stored = recipe.replace(image_size=recipe.storage_size, stored_size=None).to_json()
    return repr([stored[name] for name in ("task", *affecting("data"))])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What holds for all trials of a sweep; resolved before the first of them starts."""

    sweep: Sweep
    name: str
    folder: Store
    start_id: str
    metric: str
    mode: Mode
    trials: int
    """How many there will be, repeats left out; at most, of a search that may end sooner."""
    places: Places
    memory_limit: int | None
    """Bytes of each process's device; None: not known."""


class Trials:
    """All trials of a sweep, each a Cell and an entry of sweep.json."""

    def __init__(self, plan: Plan, data: PreparedData, state: SweepState) -> None:
        self.plan, self.data, self.state = plan, data, state
        self._cells: dict[str, Cell] = {}

    def __getitem__(self, name: str) -> Cell:
        return self._cells[name]

    def __contains__(self, name: str) -> bool:
        return name in self._cells

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells.values())

    def add(self, each: Cell) -> Cell:
        """Record a trial, in the micro-batches that fit; or as one that does not fit.

        Returns:
            The trial as it will be run.
        """
        gpus, meta = self.plan.places.gpus, self.data.meta(each.recipe)
        recipe = self.data.complete(each.recipe)
        need = fit_memory(recipe, each.scale, meta, self.plan.memory_limit, gpus=gpus, always=True)
        each = dataclasses.replace(each, recipe=need.recipe)
        self._cells[each.name] = each
        if need.fits:
            self.state.add(each, memory_bytes=need.bytes, note=need.note)
        else:
            self.state.add(each, memory_bytes=need.bytes, note="", status="does_not_fit", message=need.note)
        return each

    def restore(self, entry: TrialEntry) -> None:
        """Add a trial that an earlier process recorded: one that TPE proposed, or a repeat."""
        again = cell(self.plan.sweep, entry["number"], entry["values"])
        recipe = again.recipe.replace(seed=entry["seed"])
        again = dataclasses.replace(again, recipe=recipe, repeat_of=entry["repeat_of"])
        self.data.prepare(again)
        self.add(again)

    def entries(self, *, repeats: bool) -> list[TrialEntry]:
        """What is recorded of those that repeat another, or of the others."""
        return [entry for entry in self.state.trials if bool(entry["repeat_of"]) == repeats]

    def is_over(self, each: Cell) -> bool:
        """Whether a trial is not run (again)."""
        return self.state[each.name]["status"] in OVER

    def unfinished(self) -> list[Cell]:
        """Those to run, repeats left out, in the order to start them in."""
        waiting = [self[entry["name"]] for entry in self.entries(repeats=False) if entry["status"] not in OVER]
        if self.plan.sweep.scheduler == "asha":
            base = self.plan.sweep.base  # a trial is stopped by those before it: what is known to be good comes first
            waiting.sort(key=lambda each: distance(each.values, base))
        waiting.sort(key=lambda each: self.state[each.name]["status"] != "interrupted")  # those continue first
        return waiting

    def repeats(self, repeats: int) -> list[Cell]:
        """The best configurations, each with further seeds and to the last epoch; those that are over left out."""
        best: dict[str, TrialEntry] = {}
        for entry in self.state.ranked():
            best.setdefault(setting({key: value for key, value in entry["values"].items() if key != "seed"}), entry)
        again = [
            self._repeat(entry, repeat, repeats)
            for entry in list(best.values())[:REPEATED]
            for repeat in range(repeats)
            if not (repeat == 0 and entry["status"] == "finished")  # that is the trial itself
        ]
        return [each for each in again if not self.is_over(each)]

    def _repeat(self, entry: TrialEntry, repeat: int, repeats: int) -> Cell:
        origin = self[entry["name"]]
        seed = origin.recipe.seed + repeat
        for known in self.entries(repeats=True):
            if (known["repeat_of"], known["seed"]) == (origin.name, seed):
                return self[known["name"]]
        count = 1 + max(known["number"] for known in self.entries(repeats=False))
        number = repeat_number(entry["number"], repeat, count, repeats)
        if any(known["number"] == number for known in self.state.trials):  # tpe went on after other repeats
            number = self.next_number()
        return self.add(
            dataclasses.replace(origin, number=number, recipe=origin.recipe.replace(seed=seed), repeat_of=origin.name)
        )

    def next_number(self) -> int:
        """Of a further trial."""
        return next_number({entry["number"] for entry in self.state.trials})

    def configure(self, each: Cell) -> TrialConfig:
        """What Tune gives the actor of a trial."""
        plan = self.plan
        # What is resolved already: what fits, and how the data is read.
        asked = plan.sweep.scale.cpus_per_worker or limits.threads()
        threads = min(plan.places.threads, asked or plan.places.threads)
        scale = each.scale.replace(memory=None, data_mode="auto", cpus_per_worker=threads)
        share = gpu_share(self.state[each.name]["memory_bytes"], plan.memory_limit, context_bytes(plan.places.gpus))
        return {
            "name": each.name,
            "recipe": each.recipe.to_json(),
            "scale": (scale if each.scale.worker_range[1] > 1 else scale.replace(workers=0)).to_json(),
            "fewer_threads": asked is None,
            "data": self.data.for_trial(each.recipe),
            "resources": plan.places.reserve(each.scale, plan.sweep.scheduler, share),
        }

    def configure_member(self, each: Cell) -> TrialConfig:
        """The same for a population that learns together (pbt), which changes the learning rate on the way."""
        before = read_run(self.plan.folder / each.name)
        config = self.configure(each)
        config["lr"] = each.recipe.lr if before is None else float(before["recipe"]["lr"])
        return config

    def shared(self, coordinator: str) -> Shared:
        """What holds for all trials.

        Args:
            coordinator: name of the sweep's actor.
        """
        return {
            "coordinator": coordinator,
            "sweep": self.plan.name,
            "start_id": self.plan.start_id,
            "recipe_name": self.plan.sweep.recipe,
            "metric": self.plan.metric,
            "sign": self.state.sign,
            "cwd": os.getcwd(),
            "argv": list(sys.argv),
        }


def epochs_left(trials: Trials, cells: Iterable[Cell]) -> Mapping[str, int]:
    """Name of a trial -> epochs that it has before it, if nothing stops it."""
    return {each.name: max(0, each.recipe.epochs - trials.state[each.name]["epochs_run"]) for each in cells}
