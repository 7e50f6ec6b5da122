"""What is tried next: settings drawn at random, or proposed by Optuna where earlier ones were good; none twice."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Container, Iterator, Mapping
from typing import cast

from ray import tune
from ray.tune.search.sample import Domain
from ray.tune.search.variant_generator import generate_variants

from tune_spaces.messages import Values
from tune_spaces.ranges import Range
from tune_spaces.sweep import Candidates, Sweep, plain, setting, settings
from tune_spaces.sweep_state import OVER, SweepState

MOST_PROPOSALS = 20
"""So often a search is asked again where it gives a setting that was tried before."""


def draws(sweep: Sweep) -> Iterator[dict[str, object]]:
    """Settings of a random search, by Tune's generator: the same for the same seed, each once.

    They end where `MOST_PROPOSALS` times as many as the sweep asks for were drawn: a small space may have fewer.
    """
    import numpy as np

    generator = np.random.RandomState(sweep.seed)
    spec = {"config": {key: domain(values) for key, values in sweep.space.items()}}
    assert sweep.trials is not None
    seen = set[str]()
    for _ in range(sweep.trials * MOST_PROPOSALS):
        _, drawn = next(iter(generate_variants(spec, random_state=generator)))
        values = {key: _value(sweep.space[key], drawn["config"][key]) for key in sweep.space}
        if setting(values) not in seen:
            seen.add(setting(values))
            yield values


class Tpe:
    """Optuna's tree-structured Parzen estimator, as Tune wraps it."""

    def __init__(self, sweep: Sweep, metric: str, mode: str, sweep_state: SweepState) -> None:
        """Start a study, from the trials that the sweep has already.

        Args:
            sweep: its space and seed.
            metric: of the sweep.
            mode: max or min.
            sweep_state: its trials; those that are over are learnt from.
        """
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.sweep, self.metric = sweep, metric
        space = OptunaSearch.convert_search_space({key: domain(values) for key, values in sweep.space.items()})
        self.search = OptunaSearch(space=space, metric=metric, mode=mode, seed=sweep.seed)
        self._random = random.Random(sweep.seed)
        self._numbers = itertools.count()
        self._asked: dict[str, str] = {}
        """What each setting that was proposed is called in Optuna's study."""
        for trial in sweep_state.trials:  # of a sweep that continues: what was learnt
            if trial["status"] in OVER and trial["repeat_of"] is None:
                self.end(trial["values"], trial["best"]["value"] if trial["best"] else None)

    def propose(self, tried: Container[str]) -> Mapping[str, object] | None:
        """Values whose `setting` is not among those tried; None: there are no others."""
        for _ in range(MOST_PROPOSALS):
            called = str(next(self._numbers))
            proposed = self.search.suggest(called)
            assert proposed is not None
            values = {key: _value(values, proposed[key]) for key, values in self.sweep.space.items()}
            if setting(values) not in tried:
                self._asked[setting(values)] = called
                return values
            self.search.on_trial_complete(called, error=True)
        left = [values for values in settings(self.sweep) if setting(values) not in tried]
        return self._random.choice(left) if left else None

    def end(self, values: Values, score: float | None) -> None:
        """What came of these values; None: nothing that can be compared."""
        called = self._asked.pop(setting(values), None)
        if called is not None:
            result = None if score is None else {self.metric: score}
            self.search.on_trial_complete(called, result=result, error=score is None)
        elif score is not None:  # proposed by an earlier process
            places = {key: _place(self.sweep.space[key], value) for key, value in values.items()}
            self.search.add_evaluated_point(places, score)


def domain(values: Candidates) -> Domain:
    """Values as Tune draws them: of a list, the place within it, which may hold anything."""
    if not isinstance(values, Range):
        return cast(Domain, tune.choice(list(range(len(values)))))
    if values.kind == "number":
        return cast(Domain, (tune.loguniform if values.log else tune.uniform)(values.low, values.high))
    return cast(Domain, (tune.lograndint if values.log else tune.randint)(int(values.low), int(values.high) + 1))


def _value(values: Candidates, drawn: float) -> object:
    return values.value(drawn) if isinstance(values, Range) else values[int(drawn)]


def _place(values: Candidates, value: object) -> object:
    """What `_value` makes this value of; sizes may be those of sweep.json."""
    return values.drawn(value) if isinstance(values, Range) else [plain(each) for each in values].index(plain(value))
