"""run(): a sweep from its name to its folder.

check every trial; connect to Ray; prepare the data
memory and time of each trial, printed before anything starts
trials by Ray Tune; then repeats of the best with other seeds (runner.py)
sweep.json, trials.csv, report.html
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from trainers.checks import check_init_from
from trainers.formatting import format_duration, nearest, parse_size
from trainers.limits import cpus
from trainers.messages import Meta
from trainers.progress import Progress
from trainers.recipe import Recipe
from trainers.report.report import report
from trainers.report.sweep_stats import DID_NOT_FIT, savings
from trainers.runs.files import check_run_name, new_run_name
from trainers.runs.provenance import commit, versions
from trainers.runtime.ray_train import Cluster
from trainers.runtime.resources import cluster_total, gpu_of_worker, holds, named_resources, refuse_what_never_fits
from trainers.runtime.signals import Signals
from trainers.storage.run_lock import lock
from trainers.storage.store import Store, default_storage
from trainers.training.schedule import warm_up_note
from tune_spaces import forecast
from tune_spaces.candidates import Chosen, choose, confirm, describe_left_out, differences, edited, left_out
from tune_spaces.clock import Clock
from tune_spaces.messages import Mode, SweepContent, SweepFacts, SweepStatus
from tune_spaces.origins import Origins, check_origins, find_origins
from tune_spaces.ranges import Range
from tune_spaces.resources import Capacity, Places, Request, resolve_places
from tune_spaces.sweep import REPEATED, Cell, Sweep, format_values
from tune_spaces.sweep_state import FILE, OVER, SweepState
from tune_spaces.trials import Plan, PreparedData, Trials, epochs_left


@dataclass(frozen=True)
class SweepResult:
    """A sweep that ended."""

    folder: str
    content: SweepContent
    """What sweep.json holds."""

    @property
    def exit_code(self) -> int:
        """0 done, 1 no trial has a score, 3 as none fits into memory, 130 interrupted."""
        if self.content["status"] == "interrupted":
            return 130
        if self.content["winner"] is not None:
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
    """Run a sweep, or continue one of this name where it stopped.

    Args:
        sweep: what is searched.
        space_name: what the sweep is called in reports. None: as its recipe.
        name: of its folder. None: <space>-<date>-<time>.
        budget: seconds of training, from the start of the first trial, after which it ends with the best so far.
        max_concurrent: trials at once, at most.
        repeats: seeds that each of the best three configurations is run with.
        progress: where messages go. None: stderr.

    Returns:
        The sweep's folder and what sweep.json holds.

    Raises:
        ValueError: for anything that a user can fix, before a trial starts.
    """
    begun = time.monotonic()
    progress, space_name = progress or Progress(), space_name or sweep.recipe
    storage = Store(sweep.scale.storage or default_storage())
    data = sweep.scale.data and os.path.abspath(os.path.expanduser(sweep.scale.data))
    sweep = dataclasses.replace(sweep, scale=sweep.scale.replace(storage=storage.address, data=data))
    first = choose(sweep, None)
    storage.check_writable()
    for recipe in {each.recipe.init_from: each.recipe for each in first.cells}.values():
        check_init_from(recipe, storage)
    name = check_run_name(name) if name else new_run_name(storage, space_name)
    folder, stop = storage / name, threading.Event()
    with lock(folder, progress, stop), Signals(stop) as signals:
        earlier = _agree(sweep, folder)
        chosen = choose(sweep, earlier) if earlier else first
        if earlier and _is_over(earlier, sweep, chosen, repeats):
            progress.message(f"the sweep {name} has finished already; nothing is left to do")
            return SweepResult(folder.address, earlier)
        request = _request(sweep, chosen.cells, max_concurrent)
        with Cluster(sweep.scale, slots=request.slots(cpus())) as cluster:
            _connect(cluster, progress)
            prepared = PreparedData(sweep.scale, progress)
            chosen = confirm(chosen, sweep, earlier, prepared.check)  # of all, before any picture is decoded
            chosen = confirm(chosen, sweep, earlier, prepared.prepare)
            origins = find_origins(chosen.cells, prepared)
            check_origins(name, earlier.get("origins", {}) if earlier else {}, origins)
            request = dataclasses.replace(request, trials=_count(sweep, chosen.cells))
            plan = _resolve(sweep, name, folder, chosen.cells[0].recipe, request, cluster, prepared)
            state = SweepState(folder, _facts(plan, space_name, origins), earlier, begun)
            trials = Trials(plan, prepared, state)
            _add(trials, chosen, earlier, progress)
            clock = Clock(budget)
            state.content["forecast_seconds"] = _announce(trials, chosen, clock, bool(earlier), progress)
            state.content["repeats"] = repeats
            state.end_setup()
            signals.training_starts()
            from tune_spaces.runner import Runner

            status = Runner(trials, progress, clock).run(stop, repeats)
        _finish(trials.plan, state, status, clock, progress)
    return SweepResult(folder.address, state.content)


# Before it starts ---------------------------------------------------------------------------------------------------


def _agree(sweep: Sweep, folder: Store) -> SweepContent | None:
    """What sweep.json holds, if that is the same sweep. Raises ValueError naming what differs."""
    try:
        earlier = folder.read_json(FILE)
    except ValueError as error:
        raise ValueError(f"{error}; fix it, or remove the sweep's folder") from None
    if earlier is None:
        return None
    if not (isinstance(earlier, dict) and {"status", "plan", "trials"} <= earlier.keys()):
        raise ValueError(f"{folder.address}/{FILE} is not that of a sweep; fix it, or give another --run")
    if different := differences(earlier["plan"], sweep) or edited(earlier.get("recipe", {}), sweep):
        raise ValueError(
            f"the sweep {folder.name} exists with another plan: {'; '.join(different)}. Give another --run; "
            "more --trials, further values of a field and more --repeats continue this one"
        )
    return cast(SweepContent, earlier)


def _is_over(earlier: SweepContent, sweep: Sweep, chosen: Chosen, repeats: int) -> bool:
    """Whether nothing is left to do: more trials, values and repeats may have been asked for."""
    was, now = earlier["plan"], sweep.to_json()
    if sweep.search == "tpe":
        more = (sweep.trials or 0) > (was.get("trials") or 0)
    else:
        grown = was.get("trials") != now["trials"] or was.get("space") != now["space"]
        more = grown and len(chosen.cells) > sum(not entry["repeat_of"] for entry in earlier["trials"])
    return earlier["status"] == "finished" and repeats <= earlier.get("repeats", 1) and not more


def _count(sweep: Sweep, cells: list[Cell]) -> int:
    """How many trials there will be; at most, of TPE."""
    if sweep.search != "tpe":
        return len(cells)
    endless = any(isinstance(values, Range) for values in sweep.space.values())
    return sweep.trials or 1 if endless else min(sweep.trials or 1, len(cells))


def _request(sweep: Sweep, cells: list[Cell], max_concurrent: int | None) -> Request:
    return Request(
        trials=_count(sweep, cells),
        workers=max(each.scale.worker_range[1] for each in cells),
        cpus_per_worker=sweep.scale.cpus_per_worker,
        max_concurrent=max_concurrent,
    )


def _connect(cluster: Cluster, progress: Progress) -> None:
    with progress.waiting("starting Ray"):
        cluster.imported.wait()
        importlib.import_module("tune_spaces.ray_tune")  # takes seconds, as Ray does to start
        warnings = cluster.wait()
    for warning in warnings:
        progress.warning(warning)


def _resolve(
    sweep: Sweep,
    name: str,
    folder: Store,
    example: Recipe,
    request: Request,
    cluster: Cluster,
    data: PreparedData,
) -> Plan:
    """What holds for all trials. Raises ValueError where the cluster can never hold one."""
    metric, mode = _resolve_metric(sweep, example, data.meta(example))
    places = _resolve_places(sweep, request, cluster)
    memory = sweep.scale.memory
    return Plan(
        sweep=sweep,
        name=name,
        folder=folder,
        start_id=uuid.uuid4().hex,
        metric=metric,
        mode=mode,
        trials=request.trials,
        places=places,
        memory_limit=cluster.worker_memory(places.processes) if memory is None else parse_size(memory),
    )


def _resolve_places(sweep: Sweep, request: Request, cluster: Cluster) -> Places:
    nodes, ours = cluster.nodes(), cluster.ours
    gpu = gpu_of_worker(sweep.scale, nodes)
    needs = {"CPU": float(request.cpus_per_worker or 1), **gpu, **named_resources(sweep.scale)}
    refuse_what_never_fits(request.processes, needs, nodes)
    capacity = Capacity(
        ours=ours,
        cpus=cpus() if ours else int(cluster_total(nodes, "CPU")),
        ray_cpus=nodes[0]["CPU"] if ours else 0.0,
        gpus=cluster_total(nodes, "GPU") if gpu else 0,
        host_cpus=min((node["CPU"] for node in nodes if node.get("CPU") and holds(node, gpu)), default=1.0),
    )
    return resolve_places(request, capacity)


def _resolve_metric(sweep: Sweep, recipe: Recipe, meta: Meta) -> tuple[str, Mode]:
    """The score that trials are compared by, and which of its values are best. Raises ValueError where the task does
    not give it."""
    from trainers.training import build

    task = build.make_task(recipe, meta)
    if sweep.metric is None:
        return task.metric, "max"
    known = ["loss", *build.score_names(recipe, meta)]
    wanted = sweep.metric.removeprefix("val/")
    if wanted not in known:
        raise ValueError(f"metric={sweep.metric}: the task {recipe.task} gives no such score{nearest(wanted, known)}")
    return wanted, "min" if wanted == "loss" or wanted in task.errors else "max"


def _facts(plan: Plan, space_name: str, origins: Origins) -> SweepFacts:
    return {
        "name": plan.name,
        "start_id": plan.start_id,
        "space_name": space_name,
        "recipe_name": plan.sweep.recipe,
        "metric": plan.metric,
        "mode": plan.mode,
        "plan": plan.sweep.to_json(),
        "recipe": plan.sweep.base.to_json(),
        "scale": plan.sweep.scale.to_json(),
        "versions": versions(),
        "commit": commit(),
        "command": " ".join(sys.argv),
        "concurrency": plan.places.concurrency,
        "memory_limit_bytes": plan.memory_limit,
        "origins": origins,
    }


def _add(trials: Trials, chosen: Chosen, earlier: SweepContent | None, progress: Progress) -> None:
    """All trials that are known, with those that an earlier process recorded: of TPE, and repeats. Raises ValueError
    where the model fails with the values of each."""
    refused: list[ValueError] = []
    with progress.waiting("predicting the memory of each trial"):
        for each in [] if trials.plan.sweep.search == "tpe" else chosen.cells:
            try:
                trials.add(each)
            except ValueError as error:
                refused.append(error)
                chosen.left_out.append(left_out(each.values, error))
    if refused and len(refused) == len(chosen.cells):
        raise refused[0]
    for entry in earlier["trials"] if earlier else ():
        if entry["name"] not in trials:
            trials.restore(entry)
    trials.state.content["left_out"] = chosen.left_out
    if trials.plan.sweep.search != "tpe":
        trials.plan = dataclasses.replace(trials.plan, trials=len(trials.entries(repeats=False)))


def _announce(trials: Trials, chosen: Chosen, clock: Clock, goes_on: bool, progress: Progress) -> float | None:
    """Print what will run.

    Returns:
        Seconds that it takes if no trial is stopped early; None: not known.
    """
    plan, entries = trials.plan, trials.state.trials
    over = sum(entry["status"] in OVER for entry in trials.entries(repeats=False))
    if goes_on and over:
        progress.message(f"continuing: {over} of {plan.trials} trials are over and are kept")
    left = [each for each in trials if not trials.is_over(each)]
    unknown = max(0, plan.trials - len(trials.entries(repeats=False)))  # to be proposed
    epochs = sum(epochs_left(trials, left).values()) + plan.sweep.most_epochs * unknown
    text = f"{plan.trials} trials of {plan.sweep.recipe}{_how(plan.sweep)}, {plan.places.concurrency} at once, "
    text += f"at most {epochs:,} epochs"
    if plan.sweep.search != "grid" and plan.trials < (plan.sweep.trials or 0) and not chosen.left_out:
        text = f"the space has no more than {plan.trials} settings: {text}"
    with progress.waiting("a short probe of the speed"):
        expected = _forecast(trials, left, chosen.cells[0], unknown)
    if expected is not None:
        text += f", about {format_duration(expected.total)} if none is stopped early"
    if entries:
        progress.console.print(forecast.table(entries, expected.seconds if expected else {}))
    for line in describe_left_out(chosen.left_out):
        progress.message(line)
    if notes := [note for each in left if (note := warm_up_note(each.recipe))]:
        progress.warning(notes[0] + (f" (one of {len(notes)} such trials)" if len(notes) > 1 else ""))
    progress.message(text)
    if clock.seconds is not None and (left or unknown):
        what = f"the budget of {format_duration(clock.seconds)} counts from the start of the first trial"
        held = None if expected is None else expected.held(clock.usable)
        if held is None:
            progress.message(what)
        elif held:
            progress.message(f"{what}, and holds about {min(held, len(left) + unknown)} of the {len(left) + unknown}")
        else:
            progress.warning(f"{what}, and holds no trial to its end; give a longer --budget, or fewer --epochs")
    return None if expected is None else expected.total


def _how(sweep: Sweep) -> str:
    return {"random": ", drawn at random", "tpe": ", proposed by tpe"}.get(str(sweep.search), "")


def _forecast(trials: Trials, left: list[Cell], example: Cell, unknown: int) -> forecast.Forecast | None:
    """The time of the trials that are left and of those to be proposed; None where it is not known."""
    known, epochs = left or [example], dict(epochs_left(trials, left))
    if not left:
        epochs[example.name] = trials.plan.sweep.most_epochs
    if not (left or unknown) or not all(trials.data.is_cached(each.recipe) for each in known):
        return None
    data = {each.name: trials.data[each.recipe] for each in known}
    import torch

    places = trials.plan.places
    if places.gpus != torch.cuda.is_available():
        return None  # the trials run on another kind of device than is here to probe
    further = unknown if left else unknown - 1
    return forecast.forecast(known, epochs, data, places.threads, places.concurrency, further)


# At the end ---------------------------------------------------------------------------------------------------------


def _finish(plan: Plan, state: SweepState, status: SweepStatus, clock: Clock, progress: Progress) -> None:
    """Write sweep.json, trials.csv and report.html, and print what came out."""
    over = sum(trial["status"] in OVER for trial in state.trials)
    message = f"{over} of {max(plan.trials, len(state.trials))} trials are over"
    if status == "out_of_time":
        message += f" after {format_duration(clock.seconds or 0)}; the same command with --run {plan.name} continues"
    elif status == "interrupted":
        message += f"; repeat the command with --run {plan.name} to continue"
    saved = savings(state.trials, {trial["name"]: state.history(trial["name"]) for trial in state.trials})
    state.content["epochs"], state.content["training_seconds"] = saved["epochs"], saved["training_seconds"]
    state.finish(status, message)
    for line in describe_left_out(state.content.get("left_out", [])) if plan.sweep.search == "tpe" else ():
        progress.message(line)
    progress.message(message)
    if not state.ranked():
        out_of_time = "; the budget ended before the first epoch did" if status == "out_of_time" else ""
        progress.warning(f"no trial has a score{out_of_time}")
    for line in _summary(plan, state):
        progress.message(line)
    for name, form in (("trials.csv", "csv"), ("report.html", "html")):
        text = report([plan.folder.address], storage=str(plan.sweep.scale.storage), format=form)
        plan.folder.write(name, text.encode())


def _summary(plan: Plan, state: SweepState) -> Iterator[str]:
    """Lines for people: the best trials, the repeats, the epochs that were trained and saved, where to look."""
    for place, trial in enumerate(state.ranked()[:REPEATED], 1):
        best = trial["best"]
        assert best is not None
        came_to = f" (came to {trial['lr_at_end']:.4g})" if "lr_at_end" in trial else ""
        score = f"{plan.metric} {best['value']:.4f}"
        yield f"{place}. {score} in epoch {best['epoch']}: {format_values(trial['values'])}{came_to}"
    for group in state.repeats():
        spread = "" if group["std"] is None else f" +- {group['std']:.4f}"
        seeds = f"{len(group['scores'])} seeds"
        yield f"{group['verdict']}: {group['mean']:.4f}{spread} ({seeds}): {format_values(group['values'])}"
    epochs, seconds = state.content["epochs"], state.content["training_seconds"]
    share = epochs["saved"] / epochs["planned"] if epochs["planned"] else 0.0
    yield (
        f"{epochs['run']:,} of {epochs['planned']:,} epochs were trained, {format_duration(seconds['run'])} of "
        f"training; early stopping saved {share:.0%}, about {format_duration(seconds['saved'])}"
        + (f"; repeats took {epochs['repeats']:,} more" if epochs["repeats"] else "")
    )
    address = plan.folder.address
    plain = address if plan.folder.local else address.partition("?")[0]  # without the options of an address
    yield f"report: {plain}/report.html   dashboard: tensorboard --logdir {shlex.quote(plain)}"
