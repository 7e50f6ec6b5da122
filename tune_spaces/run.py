"""run(): a sweep from its name to its folder.

check every trial; connect to Ray; decode the pictures
memory and time of each trial, told before anything starts
trials by Ray Tune; then repeats of the best with other seeds
sweep.json, trials.csv, report.html
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainers.checks import check_init_from
from trainers.fitting import prepare_data
from trainers.formatting import nearest, parse_size
from trainers.messages import Meta
from trainers.progress import Progress
from trainers.recipe import Recipe
from trainers.report.report import report
from trainers.report.sweep_stats import DID_NOT_FIT, savings
from trainers.runs.files import check_run_name, new_run_name, read_run
from trainers.runs.provenance import commit, versions
from trainers.runtime.ray_train import Cluster
from trainers.runtime.resources import named_resources, refuse_what_never_fits
from trainers.runtime.signals import Signals
from trainers.storage.run_lock import lock
from trainers.storage.store import Store, default_storage
from trainers.training.memory_fit import context_bytes, device_memory, fit_memory
from tune_spaces import forecast
from tune_spaces.sweep import REPEATED, Cell, Range, Sweep, cell, distance, setting, settings
from tune_spaces.sweep_state import FILE, OVER, RANKED, SweepState, dominates, told

if TYPE_CHECKING:
    from tune_spaces.ray_tune import Queue, Tpe

CLOSING_SECONDS = 4.0
"""Of a budget: what is left for the last checkpoints and the report."""
SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of a GPU, that a trial may hold if it does not need all of it."""
SPARE = 1.15
"""More than is predicted: what kernels borrow, and what the allocator rounds up."""
_SAME_DATA = ("dataset", "dataset_args", "task", "resize", "on_bad_image")


@dataclass(frozen=True)
class SweepResult:
    """A sweep that ended."""

    folder: str
    content: Mapping[str, Any]
    """What sweep.json holds."""

    @property
    def exit_code(self) -> int:
        """0 done, 1 no trial has a score, 3 as none fits into memory, 130 interrupted."""
        if self.content["status"] == "interrupted":
            return 130
        if self.content["winner"] is not None or self.content["status"] == "out_of_time":
            return 0
        return 3 if all(trial["status"] in DID_NOT_FIT for trial in self.content["trials"]) else 1


def run(
    sweep: Sweep,
    *,
    space_name: str | None = None,
    name: str | None = None,
    budget: float | None = None,
    max_concurrent: int | None = None,
    repeats: int = 1,
    progress: Progress | None = None,
) -> SweepResult:
    """Run a sweep, or go on with one of this name where it stopped.

    Parameters: `space_name`, what the sweep is called; `name`, of its folder, by default <space>-<date>-<time>;
    `budget`, seconds after which it ends with the best so far; `max_concurrent`, trials at once; `repeats`, seeds
    that each of the best three configurations is run with. Raises ValueError for anything that a user can mend.
    """
    begun = time.monotonic()
    progress, space_name = progress or Progress(), space_name or sweep.recipe
    storage = Store(sweep.scale.storage or default_storage())
    data = sweep.scale.data and os.path.abspath(os.path.expanduser(sweep.scale.data))
    sweep = dataclasses.replace(sweep, scale=sweep.scale.replace(storage=storage.address, data=data))
    examples = _cells(sweep)
    storage.check_writable()
    for recipe in {each.recipe.init_from: each.recipe for each in examples}.values():
        check_init_from(recipe, storage)
    name = check_run_name(name) if name else new_run_name(storage, space_name)
    folder, stop = storage / name, threading.Event()
    with lock(folder, progress, stop), Signals(stop) as signals:
        earlier = _agree(sweep, folder)
        if earlier and _is_over(earlier, sweep, repeats):
            progress.message(f"the sweep {name} has finished already; nothing is left to do")
            return SweepResult(folder.address, earlier)
        running = _Running(sweep, name, folder, examples, max_concurrent, progress)
        with Cluster(sweep.scale, slots=running.slots + 1) as cluster:
            with progress.waiting("starting Ray"):
                cluster.imported.wait()
                importlib.import_module("tune_spaces.ray_tune")  # takes seconds, as Ray does to start
                warnings = cluster.wait()
            for warning in warnings:
                progress.warning(warning)
            running.prepare(cluster, earlier, space_name, begun)
            running.sweep_state.content["repeats"] = repeats
            signals.training_starts()
            deadline = None if budget is None else begun + budget - min(CLOSING_SECONDS, budget / 4)
            status = running.train(stop, deadline, repeats)
        running.finish(status, budget)
    return SweepResult(folder.address, running.sweep_state.content)


def _cells(sweep: Sweep) -> list[Cell]:
    """The trials of a grid or a random search; what TPE may propose, whose trials show on the way. Raises ValueError
    where one cannot be: before anything starts, and not hours from then."""
    if sweep.search == "grid":
        drawn = list(sweep.grid())
    elif sweep.search == "tpe":
        drawn = list(settings(sweep))
    else:
        from tune_spaces.ray_tune import draw

        drawn = draw(sweep)
    return [cell(sweep, number, values) for number, values in enumerate(drawn)]


def _agree(sweep: Sweep, folder: Store) -> dict[str, Any] | None:
    """What sweep.json holds, if that is the same sweep. Raises ValueError naming what differs."""
    try:
        earlier = folder.read_json(FILE)
    except ValueError as error:
        raise ValueError(f"{error}; mend it, or remove the sweep's folder") from None
    if earlier is None:
        return None
    if not (isinstance(earlier, dict) and {"status", "plan", "trials"} <= earlier.keys()):
        raise ValueError(f"{folder.address}/{FILE} is not that of a sweep; mend it, or give another --run")
    was, now = earlier["plan"], sweep.to_json()
    free = ("scale", "trials") if sweep.search == "tpe" else ("scale",)
    different = [key for key in now if key not in free and was.get(key) != now[key]]
    if different:
        told_ = "; ".join(f"{key} was {was.get(key)!r} and is now {now[key]!r}" for key in different)
        raise ValueError(f"the sweep {folder.name} exists with another plan: {told_}. Give another --run")
    return dict(earlier)


def _is_over(earlier: Mapping[str, Any], sweep: Sweep, repeats: int) -> bool:
    """Whether nothing is left to do; of tpe more trials may be asked for, of any sweep more repeats."""
    more = sweep.search == "tpe" and (sweep.trials or 0) > (earlier["plan"].get("trials") or 0)
    return bool(earlier["status"] == "finished" and repeats <= earlier.get("repeats", 1) and not more)


class _Running:
    """A sweep on its way."""

    def __init__(
        self,
        sweep: Sweep,
        name: str,
        folder: Store,
        examples: list[Cell],
        max_concurrent: int | None,
        progress: Progress,
    ) -> None:
        self.sweep, self.name, self.folder, self.progress = sweep, name, folder, progress
        self.examples = examples
        self.cells = [] if sweep.search == "tpe" else examples
        self.by_name = {each.name: each for each in self.cells}
        self.most = max_concurrent or sys.maxsize
        endless = any(isinstance(values, Range) for values in sweep.space.values())
        self.many = len(self.cells) or (sweep.trials or 1 if endless else min(sweep.trials or 1, len(examples)))
        self.workers = max(each.scale.worker_range[1] for each in examples)
        self.each = max(1, self.workers) * (sweep.scale.cpus_per_worker or 1)
        """CPUs that a trial holds at least."""
        self.slots = self._places(len(os.sched_getaffinity(0))) * max(1, self.workers)
        self.data: dict[str, Any] = {}
        self.start_id = uuid.uuid4().hex
        self.oom: list[Cell] = []
        """Trials that ran out of memory."""

    def _places(self, cpus: int) -> int:
        return max(1, min(cpus // self.each, self.many, self.most))

    # Before it starts

    def prepare(self, cluster: Cluster, earlier: Mapping[str, Any] | None, space_name: str, begun: float) -> None:
        """Data, places, sweep.json, and the plan, which is printed."""
        sweep = self.sweep
        self._prepare_data(self.examples)
        example = self.examples[0].recipe
        self.metric, self.mode = _resolve_metric(sweep, example, self._data_of(example)["meta"])
        self._resolve_places(cluster)
        facts = {
            "name": self.name,
            "start_id": self.start_id,
            "space_name": space_name,
            "recipe_name": sweep.recipe,
            "metric": self.metric,
            "mode": self.mode,
            "plan": sweep.to_json(),
            "scale": sweep.scale.to_json(),
            "versions": versions(),
            "commit": commit(),
            "command": " ".join(sys.argv),
            "concurrency": self.concurrency,
            "memory_limit_bytes": self.limit,
        }
        self.sweep_state = SweepState(self.folder, facts, earlier)
        seconds = self._announce(earlier)
        self.sweep_state.content["seconds"] = {"setup": time.monotonic() - begun}
        self.sweep_state.content["forecast_seconds"] = seconds
        self.sweep_state.write()

    def _prepare_data(self, cells: Sequence[Cell]) -> None:
        for each in cells:
            if _data_key(each.recipe) not in self.data:
                self.data[_data_key(each.recipe)] = prepare_data(each.recipe, self.sweep.scale, self.progress)
            rows = self._data_of(each.recipe)["meta"]["rows"]["train"]
            if each.recipe.batch_size > rows:
                raise ValueError(
                    f"batch_size={each.recipe.batch_size} is more than the {rows:,} training pictures; "
                    f"give batch sizes up to {rows}"
                )

    def _data_of(self, recipe: Recipe) -> dict[str, Any]:
        found: dict[str, Any] = self.data[_data_key(recipe)]
        return found

    def _resolve_places(self, cluster: Cluster) -> None:
        """How many trials run at once, and what each holds."""
        nodes = cluster.nodes()
        cpus = len(os.sched_getaffinity(0)) if cluster.ours else int(sum(node.get("CPU", 0) for node in nodes))
        usable = cpus if cluster.ours else max(1, cpus - 1)  # a data task must find a place
        scale = self.sweep.scale
        needs = {"CPU": float(scale.cpus_per_worker or 1), **named_resources(scale)}
        refuse_what_never_fits(max(1, self.workers), needs, nodes)
        self.concurrency = self._places(usable)
        if cluster.gpus and self.workers <= 1:
            self.concurrency = min(self.concurrency, int(sum(node.get("GPU", 0) for node in nodes) / SHARES[0]))
        threads = self.sweep.scale.cpus_per_worker or (1 if self.workers > 1 else max(1, usable // self.concurrency))
        self.threads = threads
        self.gpus = cluster.gpus
        self.cpus = float(threads)
        self.ready = 0
        """Trials that wait for an actor, next to those that run: they take over one that gets free."""
        if cluster.ours and self.workers <= 1:
            # So many CPUs each that no trial more than `concurrency` fits, and one CPU is left for data tasks.
            total, many = nodes[0]["CPU"], self.concurrency
            self.cpus = round((total / (many + 1) + (total - 1) / many) / 2, 3)
            self.ready = 1
        memory = self.sweep.scale.memory
        if memory is not None:
            self.limit: int | None = parse_size(memory)
        else:
            self.limit = device_memory(self.gpus, self.concurrency * max(1, self.workers))

    def _add(self, each: Cell) -> None:
        """Into sweep.json, in the micro-batches that fit; or as what does not fit."""
        meta = self._data_of(each.recipe)["meta"]
        need = fit_memory(each.recipe, each.scale, meta, self.limit, gpus=self.gpus, always=True)
        self.by_name[each.name] = dataclasses.replace(each, recipe=need.recipe)
        told_ = {"memory_bytes": need.bytes, "note": need.note if need.fits else ""}
        if not need.fits:
            told_ |= {"status": "does_not_fit", "message": need.note}
        self.sweep_state.add(self.by_name[each.name], **told_)

    def _resources(self, each: Cell) -> dict[str, float]:
        """What Tune reserves for a trial; with several workers, Ray Train reserves for them itself."""
        if each.scale.worker_range[1] > 1:
            if self.sweep.scheduler == "pbt":  # Tune itself must know how many run at once: it pauses the others
                return {"node:__internal_head__": round(1 / (self.concurrency + 0.5), 4)}
            return {"memory": 1}  # something must be; of a CPU, a data task would lack just that
        own = {"CPU": self.cpus, **named_resources(each.scale)}
        return {**own, "GPU": each.scale.gpus_per_worker or self._share(each)} if self.gpus else own

    def _share(self, each: Cell) -> float:
        """Of a GPU: by what the trial is predicted to need there, rounded up. An actor takes over the next trial
        only where that asks for the same."""
        need, limit = self.sweep_state[each.name]["memory_bytes"], self.limit
        if need is None or limit is None:
            return 1.0
        need += context_bytes(self.gpus)
        return next((share for share in SHARES if need * SPARE <= share * limit), 1.0)

    def _announce(self, earlier: Mapping[str, Any] | None) -> float | None:
        with self.progress.waiting("predicting the memory of each trial"):
            for each in self.cells:
                self._add(each)
        for trial in (earlier or {}).get("trials", ()):  # what TPE proposed, and repeats
            if trial["name"] not in self.by_name:
                self._add_again(trial)
        over = [trial for trial in self.sweep_state.trials if trial["status"] in OVER]
        if earlier and over:
            self.progress.message(f"going on: {len(over)} of {self.many} trials are over and are kept")
        left = [self.by_name[trial["name"]] for trial in self.sweep_state.trials if trial["status"] not in OVER]
        ahead = {each.name: max(0, each.recipe.epochs - self.sweep_state[each.name]["epochs_run"]) for each in left}
        unknown = max(0, self.many - sum(not trial["repeat_of"] for trial in self.sweep_state.trials))  # to be proposed
        epochs = sum(ahead.values()) + self.sweep.base.epochs * unknown
        told_ = f"{self.many} trials of {self.sweep.recipe}, {self.concurrency} at once, at most {epochs:,} epochs"
        if self.sweep.search != "grid" and self.many < (self.sweep.trials or 0):
            told_ = f"the space has no more than {self.many} settings: {told_}"
        seconds, expected = None, None
        if left:
            with self.progress.waiting("a short probe of the speed"):
                by_name = {each.name: self._data_of(each.recipe) for each in left}
                cached = all(self._is_cached(each.recipe) for each in left)
                expected = forecast.forecast(left, ahead, by_name, self.threads, self.concurrency) if cached else None
            if expected is not None:
                seconds = expected.total
                told_ += f", about {_duration(seconds)} if none is stopped early"
        if self.sweep_state.trials:
            self.progress.console.print(forecast.table(self.sweep_state.trials, expected.seconds if expected else {}))
        self.progress.message(told_)
        return seconds

    def _add_again(self, trial: Mapping[str, Any]) -> None:
        again = cell(self.sweep, trial["number"], trial["values"])
        recipe = again.recipe.replace(seed=trial["seed"])
        again = dataclasses.replace(again, recipe=recipe, repeat_of=trial["repeat_of"])
        self._prepare_data([again])
        self._add(again)

    # While it runs

    def train(self, stop: threading.Event, deadline: float | None, repeats: int) -> str:
        """Run what is left. Returns the sweep's status."""
        self.oom = [self.by_name[t["name"]] for t in self.sweep_state.trials if t["status"] == "out_of_memory"]
        waiting = [
            self.by_name[t["name"]] for t in self.sweep_state.trials if t["status"] not in OVER and not t["repeat_of"]
        ]
        if self.sweep.scheduler == "asha":
            base = self.sweep.base  # a trial is stopped by those before it: what is known to be good comes first
            waiting.sort(key=lambda each: distance(each.values, base))
        waiting.sort(key=lambda each: self.sweep_state[each.name]["status"] != "interrupted")  # those go on first
        waiting = [each for each in waiting if not self._resolve_one(each)]
        status = self._tune(waiting, stop, deadline)
        if status == "finished" and repeats > 1:
            again = [each for each in self._repeats(repeats) if self.sweep_state[each.name]["status"] not in OVER]
            status = self._tune(again, stop, deadline, repeating=True)
        return status

    def _repeats(self, repeats: int) -> Iterator[Cell]:
        """The best configurations, each with further seeds and to the last epoch."""
        best: dict[str, dict[str, Any]] = {}
        for trial in self.sweep_state.ranked():
            best.setdefault(setting({key: value for key, value in trial["values"].items() if key != "seed"}), trial)
        for trial in list(best.values())[:REPEATED]:
            for seed in range(repeats):
                origin = self.by_name[trial["name"]]
                recipe = origin.recipe.replace(seed=origin.recipe.seed + seed)
                if seed == 0 and trial["status"] == "finished":
                    continue  # that is the trial itself
                number = 1000 + 100 * trial["number"] + seed
                again = dataclasses.replace(origin, number=number, recipe=recipe, repeat_of=trial["name"])
                if again.name not in self.by_name:
                    self._add(again)
                yield self.by_name[again.name]

    def _tune(self, waiting: list[Cell], stop: threading.Event, deadline: float | None, repeating: bool = False) -> str:
        """Run trials; those that repeat others are neither searched nor stopped early. Returns the sweep's status."""
        from tune_spaces import ray_tune

        sweep, kind = self.sweep, "none" if repeating else self.sweep.scheduler
        tpe = (
            ray_tune.Tpe(sweep, self.metric, self.mode, self.sweep_state)
            if sweep.search == "tpe" and not repeating
            else None
        )
        if not waiting and tpe is None:
            return "finished"
        coordinator_name, coordinator = ray_tune.start_coordinator(self.sweep_state.sign)
        epochs = max([each.recipe.epochs for each in waiting] or [sweep.base.epochs])
        schedule = ray_tune.scheduler(sweep, kind, epochs, self.metric, self.mode, coordinator)
        queue = ray_tune.Queue(
            waiting,
            self._configuration,
            self.concurrency + self.ready,
            lambda: self._propose(tpe) if tpe else None,
            lambda trial_id, each: self._replay(schedule, trial_id, each),
        )
        self._replay_finished(schedule)

        def ended(name: str) -> None:
            self._resolve(name, queue, coordinator)
            if tpe is not None:
                best = self.sweep_state[name]["best"]
                tpe.end(self.sweep_state[name]["values"], best and best["value"])
            self._report(name)

        listener = ray_tune.Listener(self.sweep_state, self.metric, coordinator, ended)
        requests = ray_tune.Requests(stop, deadline, coordinator, queue)
        population = [{**self._configuration(each), "lr": self._rate(each)} for each in waiting]
        try:
            searched = None if kind == "pbt" else queue
            ray_tune.tune_trials(searched, population, schedule, listener, self._shared(coordinator_name))
        finally:
            requests.close()
            ray_tune.end_coordinator(coordinator)
        if stop.is_set():
            return "interrupted"
        return "out_of_time" if requests.out_of_time else "finished"

    def _rate(self, each: Cell) -> float:
        """The learning rate that a trial has come to, where that changes on the way (pbt)."""
        before = read_run(self.folder / each.name)
        return each.recipe.lr if before is None else float(before["recipe"]["lr"])

    def _configuration(self, each: Cell) -> dict[str, Any]:
        several = each.scale.worker_range[1] > 1
        # What is settled here: what fits, and how the data is read.
        scale = each.scale.replace(memory=None, data_mode="auto", cpus_per_worker=self.threads)
        return {
            "name": each.name,
            "recipe": each.recipe.to_json(),
            "scale": (scale if several else scale.replace(workers=0)).to_json(),
            "data": self._data_of(each.recipe) | ({"meta": None} if self._is_cached(each.recipe) else {}),
            "resources": self._resources(each),
        }

    def _is_cached(self, recipe: Recipe) -> bool:
        """Trials read what lies beside the shards themselves."""
        return bool(self._data_of(recipe)["mode"] == "cache")

    def _shared(self, coordinator_name: str) -> dict[str, Any]:
        return {
            "coordinator": coordinator_name,
            "sweep": self.name,
            "start_id": self.start_id,
            "recipe_name": self.sweep.recipe,
            "metric": self.metric,
            "sign": self.sweep_state.sign,
            "cwd": os.getcwd(),
            "argv": sys.argv,
        }

    def _propose(self, tpe: Tpe) -> Cell | None:
        """A further trial that TPE thinks good; None: there are enough, or no others."""
        assert self.sweep.trials is not None
        first = [trial for trial in self.sweep_state.trials if not trial["repeat_of"]]
        tried = {setting(trial["values"]) for trial in first}
        while len(tried) < self.sweep.trials and (values := tpe.propose(tried)) is not None:
            tried.add(setting(values))
            proposed = cell(self.sweep, len(self.sweep_state.trials), values)
            self._prepare_data([proposed])
            self._add(proposed)
            self._resolve_one(proposed)
            self.sweep_state.write()  # before it starts: a sweep that is killed knows of it
            if self.sweep_state[proposed.name]["status"] not in OVER:
                return self.by_name[proposed.name]
            tpe.end(values, None)
        return None

    def _replay(self, schedule: Any, trial_id: str, each: Cell) -> None:
        """A trial that goes on: the scheduler learns what it did before."""
        from tune_spaces import ray_tune

        if isinstance(schedule, ray_tune.Halts) and (lines := self.sweep_state.history(each.name)):
            schedule.replay(ray_tune.Past(each.name), lines, trial_id)

    def _replay_finished(self, schedule: Any) -> None:
        from tune_spaces import ray_tune

        for trial in self.sweep_state.trials:
            if isinstance(schedule, ray_tune.Halts) and trial["status"] in OVER:
                schedule.replay(ray_tune.Past(trial["name"]), self.sweep_state.history(trial["name"]))

    def _resolve(self, name: str, queue: Queue | None, coordinator: Any) -> None:
        """After a trial ran out of memory: those that need as much or more are not tried."""
        if self.sweep_state[name]["status"] != "out_of_memory":
            return
        self.oom.append(self.by_name[name])
        if queue is not None:
            queue.waiting[:] = [each for each in queue.waiting if not self._resolve_one(each)]
        for each in self.by_name.values() if queue is None else queue.live.values():  # one may wait for an actor
            if self.sweep_state[each.name]["status"] not in OVER and (why := self._dominated(each)):
                coordinator.give_up.remote(each.name, "settled", why)

    def _resolve_one(self, each: Cell) -> bool:
        """Whether a trial needs as much as one that ran out of memory, which is then written down."""
        why = self._dominated(each)
        if why is not None:
            self.sweep_state.end(each.name, "settled", why)
            self.progress.message(f"{each.number:03} {told(each.values)}  {why}")
        return why is not None

    def _dominated(self, each: Cell) -> str | None:
        small = next((small for small in self.oom if dominates(each, small)), None)
        if small is None:
            return None
        return f"settled: {small.number:03} ({told(small.values)}) ran out of memory and needs no more"

    def _report(self, name: str) -> None:
        """A line for a trial that is over."""
        trial = self.sweep_state[name]
        if trial["status"] == "pending":  # it was not started any more
            return
        over = sum(each["status"] in OVER for each in self.sweep_state.trials)
        many = max(self.many, len(self.sweep_state.trials))
        words = [f"{over}/{many}", f"{trial['number']:03} {told(trial['values'])}"]
        if trial["status"] in RANKED and trial["best"]:
            words.append(f"{self.metric} {trial['best']['value']:.4f}")
        words.append(trial["message"])
        if best := self.sweep_state.ranked():
            words.append(f"best {best[0]['best']['value']:.4f} of {best[0]['number']:03}")
        self.progress.message("  ".join(words))

    # At the end

    def finish(self, status: str, budget: float | None) -> None:
        """sweep.json, trials.csv, report.html, and what came out."""
        sweep_state = self.sweep_state
        over = sum(trial["status"] in OVER for trial in sweep_state.trials)
        message = f"{over} of {max(self.many, len(sweep_state.trials))} trials are over"
        if status == "out_of_time":
            message += f" after {_duration(budget or 0)}; the same command with --run {self.name} goes on"
        elif status == "interrupted":
            message += f"; repeat the command with --run {self.name} to go on"
        histories = {trial["name"]: sweep_state.history(trial["name"]) for trial in sweep_state.trials}
        sweep_state.finish(status, message, **savings(sweep_state.trials, histories))
        self.progress.message(message)
        if not sweep_state.ranked():
            self.progress.warning("no trial has a score")
        for line in self._told():
            self.progress.message(line)
        for name, form in (("trials.csv", "csv"), ("report.html", "html")):
            text = report([self.folder.address], storage=str(self.sweep.scale.storage), format=form)
            self.folder.write(name, text.encode())

    def _told(self) -> Iterator[str]:
        content, best = self.sweep_state.content, self.sweep_state.ranked()
        for place, trial in enumerate(best[:REPEATED], 1):
            found = trial["best"]
            came_to = f" (came to {trial['lr_at_end']:.4g})" if "lr_at_end" in trial else ""
            score = f"{self.metric} {found['value']:.4f}"
            yield f"{place}. {score} in epoch {found['epoch']}: {told(trial['values'])}{came_to}"
        for group in self.sweep_state.repeats():
            spread = "" if group["std"] is None else f" +- {group['std']:.4f}"
            seeds = f"{len(group['scores'])} seeds"
            yield f"{group['verdict']}: {group['mean']:.4f}{spread} ({seeds}): {told(group['values'])}"
        epochs, seconds = content["epochs"], content["training_seconds"]
        share = epochs["saved"] / epochs["planned"] if epochs["planned"] else 0.0
        yield (
            f"{epochs['run']:,} of {epochs['planned']:,} epochs were trained, {_duration(seconds['run'])} of training; "
            f"early stopping saved {share:.0%}, about {_duration(seconds['saved'])}"
            + (f"; repeats took {epochs['repeats']:,} more" if epochs["repeats"] else "")
        )
        plain = self.folder.address.partition("?")[0]
        yield f"report: {plain}/report.html   dashboard: tensorboard --logdir {plain}"


def _data_key(recipe: Recipe) -> str:
    plain = recipe.to_json()
    return repr([plain[name] for name in _SAME_DATA] + [recipe.storage_size])


def _resolve_metric(sweep: Sweep, recipe: Recipe, meta: Meta) -> tuple[str, str]:
    """The score that trials are compared by, and whether "min" or "max" of it is the best.

    Raises ValueError where the task does not give it.
    """
    from trainers.training import build

    task = build.make_task(recipe, meta)
    if sweep.metric is None:
        return task.metric, "max"
    known = ["loss", *build.score_names(recipe, meta)]
    wanted = sweep.metric.removeprefix("val/")
    if wanted not in known:
        raise ValueError(f"metric={sweep.metric}: the task {recipe.task} gives no such score{nearest(wanted, known)}")
    return wanted, "min" if wanted == "loss" or wanted in task.errors else "max"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"
