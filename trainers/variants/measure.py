"""What the forms of a model are worth: scores and agreement on a split, and milliseconds a picture."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from trainers.inference import predictions
from trainers.inference.exported.session import Onnx
from trainers.inference.predictions.base import Tally
from trainers.inference.predictor import Predictor
from trainers.progress import Advance
from trainers.training.evaluate import batches, check_rows, evaluating
from trainers.training.step import Run
from trainers.variants.make import Variant

SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 30.0, 5, 25
"""All forms together are timed for so long, in rounds of each form once."""
TURN = 0.05
"""Seconds for which a form is called in a round."""


class Scored(NamedTuple):
    """A form on a split."""

    score: float
    """Of the task's metric."""
    agreement: float
    """Share of what it says that the first form says too."""


class Spread(NamedTuple):
    """Milliseconds a picture over the rounds."""

    low: float
    """First quartile."""
    median: float
    high: float
    """Third quartile."""


def score(predictors: Sequence[Predictor], data: Run, split: str, advance: Advance) -> list[Scored]:
    """Score all forms on the same pictures, batch by batch.

    Args:
        predictors: of the forms; the others are compared with the first.
        data: gives the pictures.
        split: such as "val".
        advance: gets the number of pictures done.
    """
    kind = predictions.of_meta(predictors[0].meta)
    confidence = kind.confidence(predictors[0].trained.facts, None)
    tallies, same = [Tally() for _ in predictors], np.zeros((len(predictors), 2))
    with evaluating(data.state):
        for batch in batches(data, split):
            first = None
            for place, each in enumerate(predictors):
                images, target = each.preprocess(batch)
                with each.world.autocast():
                    output = each.state.model(images)
                check_rows(output, len(images), each.recipe)
                tallies[place].add(each.task.counts(output, target))
                labels = each.task.labels(output, each.recipe.image_size)
                first = labels if place == 0 else first
                same[place] += kind.agreement(first, labels, predictors[0].meta, confidence)
            advance(len(images))
    return [
        Scored(float(each.task.scores(tally.counts())[each.task.metric]), float(agreed / of) if of else 1.0)
        for each, tally, (agreed, of) in zip(predictors, tallies, same, strict=True)
    ]


def time_each(
    variants: Sequence[Variant], predictors: Sequence[Predictor], batch: int, advance: Advance
) -> list[Spread]:
    """Milliseconds a picture of each form, from the pictures' bytes to the network's outputs.

    Args:
        variants: the forms.
        predictors: of each.
        batch: pictures at once.
        advance: gets how much of 1 is done.
    """
    calls = [_call(variant, predictor, batch) for variant, predictor in zip(variants, predictors, strict=True)]
    rounds = _take_turns(calls, SECONDS, advance)
    spreads = []
    for seconds in rounds:
        low, median, high = statistics.quantiles([1000 * each / batch for each in seconds], n=4)
        spreads.append(Spread(low, median, high))
    return spreads


def _call(variant: Variant, predictor: Predictor, batch: int) -> Callable[[], object]:
    """The form's work on pictures drawn at random: how long it takes does not depend on what they show."""
    recipe, channels = predictor.recipe, predictor.meta["channels"]
    draw = np.random.default_rng(0)
    if variant.file is not None and variant.file.suffix == ".onnx":
        pictures = draw.integers(0, 256, (batch, *recipe.image_size, channels), dtype=np.uint8)
        return partial(Onnx().network(variant.file), pictures)
    pictures = draw.integers(0, 256, (batch, *recipe.storage_size, channels), dtype=np.uint8)
    return partial(predictor, pictures)


def _take_turns(calls: Sequence[Callable[[], object]], seconds: float, advance: Advance) -> list[list[float]]:
    """Seconds of a call of each function, measured in turns, so that what else the machine does falls on all alike."""
    times = [max(1, round(TURN / _seconds(call, 2))) for call in calls]
    found: list[list[float]] = [[] for _ in calls]
    begun = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        for call, count, list_ in zip(calls, times, found, strict=True):
            list_.append(_seconds(call, count))
        advance(1)
    return found


def _seconds(call: Callable[[], object], times: int) -> float:
    """Of one call, after another one that is not counted: what ran before has emptied the caches."""
    call()
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begun) / times
