"""Runner: the trials of a sweep by Ray Tune, then repeats of the best with other seeds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from trainers.progress import Progress
from tune_spaces import candidates, ray_tune
from tune_spaces.clock import Clock
from tune_spaces.messages import Coordinator, SweepStatus
from tune_spaces.proposals import MOST_PROPOSALS, Tpe
from tune_spaces.sweep import Cell, cell, format_values, setting
from tune_spaces.sweep_state import OVER, RANKED, dominates
from tune_spaces.trials import Trials

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class Runner:
    """Runs what is left of a sweep. Not for use by several threads at once."""

    def __init__(self, trials: Trials, progress: Progress, clock: Clock) -> None:
        self.trials, self.plan, self.state, self.progress = trials, trials.plan, trials.state, progress
        self.clock = clock
        self.out_of_memory = [
            trials[entry["name"]] for entry in self.state.trials if entry["status"] == "out_of_memory"
        ]

    def run(self, stop: threading.Event, repeats: int) -> SweepStatus:
        """Run what is left.

        Args:
            stop: when set, trials save and end, and the sweep with them.
            repeats: seeds that each of the best configurations is run with.

        Returns:
            "finished", "interrupted" or "out_of_time".
        """
        waiting = [each for each in self.trials.unfinished() if not self._resolve(each)]
        status = self._tune(waiting, stop, self.plan.sweep.scheduler, search=self.plan.sweep.search)
        if status == "finished" and repeats > 1:
            # Neither searched nor stopped early.
            status = self._tune(self.trials.repeats(repeats), stop, "none", search="grid")
        return status

    def _tune(self, waiting: list[Cell], stop: threading.Event, kind: str, search: str | None) -> SweepStatus:
        plan, state = self.plan, self.state
        tpe = Tpe(plan.sweep, plan.metric, plan.mode, state) if search == "tpe" else None
        if not waiting and tpe is None:
            return "finished"
        coordinator_name, coordinator = ray_tune.start_coordinator(state.sign)
        epochs = max([each.recipe.epochs for each in waiting] or [plan.sweep.most_epochs])
        schedule = ray_tune.scheduler(plan.sweep, kind, epochs, plan.metric, plan.mode, coordinator)
        queue = ray_tune.Queue(
            waiting,
            self.trials.configure,
            plan.places.concurrency + plan.places.standby,
            lambda: self._propose(tpe) if tpe else None,
            lambda trial_id, each: self._replay(schedule, trial_id, each),
        )
        self._replay_finished(schedule)

        def ended(name: str) -> None:
            if state[name]["status"] == "out_of_memory":
                self._give_up_as_large(name, queue, coordinator)
            if tpe is not None:
                best = state[name]["best"]
                tpe.end(state[name]["values"], None if best is None else best["value"])
            self._report(name)

        listener = ray_tune.Listener(state, plan.metric, coordinator, self.clock, ended)
        requests = ray_tune.Requests(stop, self.clock, coordinator, queue)
        population = [self.trials.configure_member(each) for each in waiting] if kind == "pbt" else []
        try:
            searched = None if kind == "pbt" else queue
            resources = plan.places.reserve(plan.sweep.scale, kind)
            room = ray_tune.Waiting(stop, listener.started, resources, self.progress.message)
            ray_tune.tune_trials(searched, population, schedule, listener, room, self.trials.shared(coordinator_name))
        finally:
            requests.close()
            ray_tune.end_coordinator(coordinator)
        if stop.is_set():
            return "interrupted"
        return "out_of_time" if requests.out_of_time else "finished"

    def _propose(self, tpe: Tpe) -> Cell | None:
        """A further trial that TPE thinks good; None: there are enough, or no others."""
        trials, sweep = self.trials, self.plan.sweep
        assert sweep.trials is not None
        left_out = self.state.content.setdefault("left_out", [])
        kept = {setting(entry["values"]) for entry in trials.entries(repeats=False)}
        gone = {setting(entry["values"]) for entry in left_out}
        while len(kept) < sweep.trials and len(gone) < MOST_PROPOSALS * sweep.trials:
            if (values := tpe.propose(kept | gone)) is None:
                return None
            try:
                proposed = cell(sweep, trials.next_number(), values)
                trials.data.prepare(proposed)
                proposed = trials.add(proposed)
            except ValueError as error:  # a combination that cannot be
                gone.add(setting(values))
                left_out.append(candidates.left_out(values, error))
                tpe.end(values, None)
                continue
            kept.add(setting(values))
            self._resolve(proposed)
            self.state.write()  # before it starts: a sweep that is killed knows of it
            if not trials.is_over(proposed):
                return proposed
            tpe.end(values, None)
        return None

    def _replay(self, schedule: TrialScheduler, trial_id: str, each: Cell) -> None:
        """The scheduler learns what a trial that continues did before."""
        if isinstance(schedule, ray_tune.EarlyStopping) and (lines := self.state.history(each.name)):
            schedule.replay(ray_tune.PastTrial(each.name), lines, trial_id)

    def _replay_finished(self, schedule: TrialScheduler) -> None:
        for entry in self.state.trials:
            if isinstance(schedule, ray_tune.EarlyStopping) and entry["status"] in OVER:
                schedule.replay(ray_tune.PastTrial(entry["name"]), self.state.history(entry["name"]))

    def _give_up_as_large(self, name: str, queue: ray_tune.Queue, coordinator: Coordinator) -> None:
        """After a trial ran out of memory: those that need as much or more are not tried."""
        self.out_of_memory.append(self.trials[name])
        queue.waiting[:] = [each for each in queue.waiting if not self._resolve(each)]
        for each in queue.live.values():  # one may wait for an actor
            if not self.trials.is_over(each) and (why := self._dominated(each)):
                coordinator.give_up.remote(each.name, "settled", why)

    def _resolve(self, each: Cell) -> bool:
        """Whether a trial needs as much as one that ran out of memory; it is recorded then."""
        why = self._dominated(each)
        if why is not None:
            self.state.end(each.name, "settled", why)
            self.progress.message(f"{each.number:03} {format_values(each.values)}  {why}")
        return why is not None

    def _dominated(self, each: Cell) -> str | None:
        small = next((small for small in self.out_of_memory if dominates(each, small)), None)
        if small is None:
            return None
        return f"settled: {small.number:03} ({format_values(small.values)}) ran out of memory and needs no more"

    def _report(self, name: str) -> None:
        """A line for a trial that is over."""
        entry, metric = self.state[name], self.plan.metric
        if entry["status"] == "pending":  # it was not started any more
            return
        over = sum(each["status"] in OVER for each in self.state.trials)
        parts = [
            f"{over}/{max(self.plan.trials, len(self.state.trials))}",
            f"{entry['number']:03} {format_values(entry['values'])}",
        ]
        if entry["status"] in RANKED and entry["best"]:
            parts.append(f"{metric} {entry['best']['value']:.4f}")
        parts.append(entry["message"])
        if (first := next(iter(self.state.ranked()), None)) and first["best"]:
            parts.append(f"best {first['best']['value']:.4f} of {first['number']:03}")
        self.progress.message("  ".join(parts))
