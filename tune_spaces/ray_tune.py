"""Trials by Ray Tune: the only module that runs it, next to the trial itself.

Tune's own searchers and schedulers decide; what they decide reaches a trial through the sweep's coordinator, so that it
ends by itself, with a checkpoint and a complete run folder. Nothing of Tune's is kept: sweep.json and the run folders
are what a sweep continues from.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial as TunedTrial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from trainers.messages import Line
from trainers.runtime.failures import diagnose
from trainers.runtime.ray_internals import ExploreHook, last_failure, out_of_memory_is_a_death, parse_death
from trainers.runtime.shortage import Shortage
from tune_spaces.clock import Clock
from tune_spaces.coordinator import SweepCoordinator
from tune_spaces.messages import Coordinator, Shared, TrialConfig
from tune_spaces.proposals import domain
from tune_spaces.ranges import Range
from tune_spaces.sweep import Cell, Sweep
from tune_spaces.sweep_state import SweepState
from tune_spaces.trial import Trial

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders hold everything
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may end before its first epoch
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # by itself one actor starts after the other; the queue knows how many may
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # what became of a trial is reported in a line
    "RAY_AIR_NEW_OUTPUT": "0",
}
ATTEMPTS = 3
"""A trial whose process dies is tried so often, each time from its newest checkpoint."""


class _NotKept:
    """Tune pickles what it was given; a sweep continues from its own files, and nothing of this is to be kept."""

    def __getstate__(self) -> dict[str, object]:
        return {}


class Queue(_NotKept, Searcher):
    """Gives Tune the trials that wait, or those that TPE proposes; none once all are to stop."""

    def __init__(
        self,
        waiting: Sequence[Cell],
        prepare: Callable[[Cell], TrialConfig],
        most: int,
        propose: Callable[[], Cell | None],
        replay: Callable[[str, Cell], None],
    ) -> None:
        """Queue the trials of a sweep.

        Args:
            waiting: the trials to run first.
            prepare: makes Tune's configuration of one.
            most: how many run at once, or are ready to.
            propose: gives a further trial, or None where there are no more.
            replay: called with Tune's id and the trial, before it starts.
        """
        super().__init__()
        self.waiting, self.prepare, self.most = list(waiting), prepare, most
        self.propose, self.replay = propose, replay
        self.stopped = False
        self.live: dict[str, Cell] = {}

    def suggest(self, trial_id: str) -> dict[str, TrialConfig] | str | None:  # type: ignore[override]  # FINISHED
        if self.stopped:
            return Searcher.FINISHED
        if len(self.live) >= self.most:
            return None
        found = self.waiting.pop(0) if self.waiting else self.propose()
        if found is None:
            return Searcher.FINISHED
        self.live[trial_id] = found
        self.replay(trial_id, found)
        return {"trial": self.prepare(found)}

    def on_trial_complete(self, trial_id: str, result: dict[str, object] | None = None, error: bool = False) -> None:
        self.live.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("nothing was saved")


class PastTrial:
    """A trial of an earlier process, as Tune's schedulers see one."""

    def __init__(self, name: str) -> None:
        self.trial_id = name


class EarlyStopping(_NotKept, FIFOScheduler):
    """One of Tune's schedulers; where it says stop, the trial learns that, and ends by itself."""

    def __init__(self, inner: TrialScheduler, kind: str, metric: str, coordinator: Coordinator) -> None:
        """Wrap one of Tune's schedulers.

        Args:
            inner: decides.
            kind: what people call it.
            metric: by which it decides.
            coordinator: of the sweep.
        """
        super().__init__()
        self.inner, self.kind, self.coordinator = inner, kind, coordinator
        self.score = metric
        self._past: dict[str, TunedTrial] = {}

    @property
    def metric(self) -> str:
        return self.score

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: object) -> bool:
        return True

    def on_trial_add(self, tune_controller: TuneController, trial: TunedTrial) -> None:
        if trial.trial_id not in self._past:
            self.inner.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: TuneController, trial: TunedTrial, result: dict[str, Any]) -> str:
        # A trial that continues is known to the scheduler as the one it was before.
        known = self._past.get(trial.trial_id, trial)
        decision: str = self.inner.on_trial_result(tune_controller, known, result)
        if decision in (self.STOP, self.PAUSE):
            name, value = trial.config["trial"]["name"], result[self.score]
            why = f"stopped by {self.kind} after epoch {result['epoch']}, at {self.score} {value:.4f}"
            ray.get(self.coordinator.stop.remote(name, why))
        return str(self.CONTINUE)

    def on_trial_complete(self, tune_controller: TuneController, trial: TunedTrial, result: dict[str, object]) -> None:
        known = self._past.pop(trial.trial_id, trial)
        if self.score in result:
            self.inner.on_trial_complete(tune_controller, known, result)

    def on_trial_remove(self, tune_controller: TuneController, trial: TunedTrial) -> None:
        self._past.pop(trial.trial_id, None)

    def replay(self, past: PastTrial, history: Sequence[Line], trial_id: str | None = None) -> None:
        """Repeat to the scheduler what a trial of an earlier process reported.

        Args:
            past: the trial.
            history: its lines of metrics.jsonl.
            trial_id: where it continues now: as which trial of Tune's.
        """
        known, controller = cast(TunedTrial, past), cast("TuneController", None)  # the schedulers use no more of them
        self.inner.on_trial_add(controller, known)
        for line in history:
            result = {"epoch": line["epoch"], self.score: line[f"val/{self.score}"], "training_iteration": 1}
            self.inner.on_trial_result(controller, known, result)
        if trial_id is not None:
            self._past[trial_id] = known


class Population(ExploreHook, PopulationBasedTraining):
    """Population-based training, of the learning rate alone: a trial that takes over another's stays itself."""

    def own_config(self, trial: TunedTrial) -> dict[str, object]:
        """What a trial keeps of its configuration when it takes over another's."""
        return {"trial": trial.config["trial"]}


def scheduler(sweep: Sweep, kind: str, epochs: int, metric: str, mode: str, coordinator: Coordinator) -> TrialScheduler:
    """Tune's scheduler, as a sweep sets it.

    Args:
        sweep: grace_epochs, reduction_factor and, for pbt, the range of the learning rate.
        kind: none, asha, median or pbt.
        epochs: most that a trial runs.
        metric: by which it decides.
        mode: max or min.
        coordinator: of the sweep.
    """
    if kind == "asha":
        asha = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=max(epochs, sweep.grace_epochs),
            grace_period=sweep.grace_epochs,
            reduction_factor=sweep.reduction_factor,
            stop_last_trials=False,
        )
        return EarlyStopping(asha, "asha", metric, coordinator)
    if kind == "median":
        median = MedianStoppingRule(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            grace_period=sweep.grace_epochs,
            # It says pause in place of stop, and may then learn of more epochs: of an earlier process, where other
            # trials came first and it said neither; or of workers that have run ahead. After a stop that is an error.
            hard_stop=False,
            min_time_slice=math.inf,  # type: ignore[arg-type]  # never: it would pause trials to let others catch up
        )
        return EarlyStopping(median, "the median rule", metric, coordinator)
    if kind == "pbt":
        rates = sweep.space["lr"]
        assert isinstance(rates, Range)
        return Population(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            perturbation_interval=sweep.grace_epochs,
            hyperparam_mutations={"lr": domain(rates)},
            custom_explore_fn=lambda config: {**config, "lr": min(max(config["lr"], rates.low), rates.high)},
            log_config=False,
            require_attrs=False,
        )
    return FIFOScheduler()


class Listener(_NotKept, tune.Callback):
    """Records what becomes of the trials."""

    def __init__(
        self,
        sweep_state: SweepState,
        metric: str,
        coordinator: Coordinator,
        clock: Clock,
        ended: Callable[[str], None],
    ) -> None:
        """Listen to the trials of a sweep.

        Args:
            sweep_state: where it is recorded.
            metric: of the sweep.
            coordinator: of the sweep.
            clock: counts from the first trial.
            ended: called with the name of a trial that is over.
        """
        self.sweep_state, self.metric, self.coordinator, self.ended = sweep_state, metric, coordinator, ended
        self.clock, self.started = clock, threading.Event()

    def on_trial_start(self, iteration: int, trials: list[TunedTrial], trial: TunedTrial, **info: object) -> None:
        self.clock.start()
        self.started.set()
        self.sweep_state.start(trial.config["trial"]["name"])

    def on_trial_result(
        self, iteration: int, trials: list[TunedTrial], trial: TunedTrial, result: dict[str, Any], **info: object
    ) -> None:
        name = trial.config["trial"]["name"]
        if self.metric in result:
            self.sweep_state.epoch(name, result["epoch"], self.metric, result[self.metric])
        if "status" in result:
            self.sweep_state.end(name, result["status"], result["message"])
            self.ended(name)

    def on_trial_recover(self, iteration: int, trials: list[TunedTrial], trial: TunedTrial, **info: object) -> None:
        if parse_death(error := last_failure(trial.error_file)).by_memory_monitor:  # it would be ended again
            self.coordinator.give_up.remote(trial.config["trial"]["name"], *diagnose(error))

    def on_trial_error(self, iteration: int, trials: list[TunedTrial], trial: TunedTrial, **info: object) -> None:
        name = trial.config["trial"]["name"]
        self.sweep_state.died(name, *diagnose(last_failure(trial.error_file)))
        self.ended(name)


class Waiting(_NotKept, tune.Stopper):
    """Until a trial starts: says what the trials wait for, and ends the sweep at once where that is requested."""

    def __init__(
        self,
        stop: threading.Event,
        started: threading.Event,
        resources: Mapping[str, float],
        say: Callable[[str], None],
    ) -> None:
        """Prepare to wait.

        Args:
            stop: set by whoever wants the sweep to end.
            started: set once a trial has started, which ends by itself.
            resources: that Tune reserves for a trial.
            say: gets a line for people.
        """
        self.stop, self.started, self.say = stop, started, say
        self._shortage = Shortage(1, resources)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.started.is_set():
            return False
        if line := self._shortage.check():
            self.say(line["text"])
        return self.stop.is_set()


def tune_trials(
    search: Queue | None,
    population: Sequence[TrialConfig],
    schedule: TrialScheduler,
    listener: Listener,
    waiting: Waiting,
    shared: Shared,
) -> None:
    """Run trials until the search has no more, or those of a population that learns together (pbt).

    Args:
        search: gives the trials; None: those of the population run.
        population: their configurations.
        schedule: what `scheduler` made.
        listener: records what becomes of them.
        waiting: until one of them starts.
        shared: what holds for all trials.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable = tune.with_resources(
        tune.with_parameters(Trial, shared=dict(shared)),
        lambda config: tune.PlacementGroupFactory([dict(config["trial"]["resources"])]),
    )
    space: dict[str, object] = {}
    if search is None:
        rates = {trial["name"]: trial["lr"] for trial in population}

        def rate(spec: Any) -> float:
            return rates[spec.config.trial["name"]]

        space["trial"] = tune.grid_search([dict(trial) for trial in population])
        space["lr"] = tune.sample_from(rate)
    with tempfile.TemporaryDirectory(prefix="trainyard-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=1 if search is None else -1,
                search_alg=search,
                scheduler=schedule,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                callbacks=[listener],
                stop=waiting,
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
            ),
        )
        with out_of_memory_is_a_death():
            tuner.fit()


def start_coordinator(sign: int) -> tuple[str, Coordinator]:
    """Start the sweep's coordinator, with 1 where more is better, else -1.

    Returns:
        The name of the actor, and its handle.
    """
    name = f"trainyard-sweep-{uuid.uuid4().hex[:12]}"
    handle = ray.remote(num_cpus=0)(SweepCoordinator).options(name=name).remote(sign)
    return name, cast(Coordinator, handle)


def end_coordinator(coordinator: Coordinator) -> None:
    """No actor is left behind."""
    with contextlib.suppress(Exception):  # Ray may have gone before
        ray.kill(cast(ActorHandle[SweepCoordinator], coordinator))


class Requests(threading.Thread):
    """Passes the request to stop, and the end of the time, on to trials and search."""

    def __init__(self, stop: threading.Event, clock: Clock, coordinator: Coordinator, search: Queue | None) -> None:
        """Start to pass requests on.

        Args:
            stop: set by whoever wants the sweep to end.
            clock: says when the time is over.
            coordinator: of the sweep; passes the request on to trials.
            search: gives no further trials then; None: there is none.
        """
        super().__init__(daemon=True)
        self.stop_event, self.clock, self.coordinator, self.search = stop, clock, coordinator, search
        self.over = threading.Event()
        self.out_of_time = False
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.2):
            self.out_of_time = self.clock.is_over()
            if self.stop_event.is_set() or self.out_of_time:
                if self.search is not None:
                    self.search.stopped = True
                ray.get(self.coordinator.stop_all.remote())
                return

    def close(self) -> None:
        self.over.set()
        self.join()
