"""Each field of a recipe says what it affects, and what depends on that agrees."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
from helpers.allocator import facts

from trainers.data.source import cache_key
from trainers.datasets import Source
from trainers.recipe import Effect, Recipe, affecting, resolve
from trainers.training import peak_memory

OTHER: dict[str, Any] = {
    "dataset": "strokes",
    "dataset_args": {"n": 1},
    "model": "texture_cnn",
    "model_args": {"num_filters": 4},
    "shapes": {"0": [4, 1]},
    "task": "segment",
    "task_args": {"label_smoothing": 0.1},
    "image_size": (16, 16),
    "stored_size": (20, 20),
    "resize": "pad",
    "on_bad_image": "skip",
    "epochs": 99,
    "batch_size": 48,
    "micro_batch_size": 8,
    "optimizer": "adam",
    "lr": 0.77,
    "momentum": 0.0,
    "nesterov": True,
    "weight_decay": 0.0,
    "schedule": "polynomial",
    "schedule_args": {"power": 0.5},
    "warmup_epochs": 1.5,
    "warmup_share": 0.2,
    "lr_factor": {"0": 0.1},
    "layer_decay": 0.5,
    "decay_on": "weights",
    "normalisation": "0.5,0.5",
    "frozen_epochs": 1,
    "fixed_norms": ("all",),
    "order": "balanced",
    "from_data": ("lr",),
    "clip_norm": 1.0,
    "ema": 0.9,
    "ema_warmup": True,
    "patience": 3,
    "class_weights": "inverse",
    "augment": {"rotate": 10.0},
    "precision": "fp64",
    "init_from": "another",
    "frozen": ("0",),
    "seed": 5,
}
"""Another value of every field than that of `BASE`."""
BASE = resolve("digits.cnn", schedule="polynomial", precision="fp32", weight_decay=0.1, warmup_share=0.0)
NEEDED: dict[str, dict[str, Any]] = {"ema_warmup": {"ema": 0.99}, "frozen_epochs": {"frozen": ("1",)}}
"""What a field needs beside it."""
META = facts(BASE, 1, 10)


def base(name: str) -> Recipe:
    """`BASE`, as it can have another value of one field."""
    return BASE.replace(**NEEDED.get(name, {}))


def other(name: str) -> Recipe:
    """`base` with another value of one field, checked or not: what is tested is who depends on it."""
    recipe = dataclasses.replace(base(name))
    object.__setattr__(recipe, name, OTHER[name])
    return recipe


def test_every_field_says_what_it_affects() -> None:
    effects = set(typing.get_args(Effect))
    assert OTHER.keys() == {each.name for each in dataclasses.fields(Recipe)}
    for each in dataclasses.fields(Recipe):
        assert each.metadata["affects"], each.name
        assert set(each.metadata["affects"]) <= effects, each.name
        assert not {"memory", "memory_if_set"} <= set(each.metadata["affects"]), each.name


@pytest.mark.parametrize("name", OTHER)
def test_prepared_pictures_depend_on_the_fields_that_affect_data(name: str) -> None:
    source = Source(classes=["a", "b"], channels=1, splits={})
    key = cache_key(BASE, source).rpartition("-")[2]
    assert (cache_key(other(name), source).rpartition("-")[2] != key) == (name in affecting("data"))


@pytest.mark.parametrize("name", [name for name in OTHER if name not in ("dataset_args", "batch_size")])
def test_memory_is_traced_again_for_the_fields_that_affect_it_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Recipe] = []

    class Counted(Exception):
        pass

    def trace(recipe: Recipe, *_: object) -> None:
        traced.append(recipe)
        raise Counted

    peak_memory.curve(base(name), META)
    monkeypatch.setattr(peak_memory, "Trace", trace)
    affects = name in (*affecting("memory"), *affecting("memory_if_set")) and name != "micro_batch_size"
    if affects:
        with pytest.raises(Counted):
            peak_memory.curve(other(name), META)
    else:
        assert peak_memory.curve(other(name), META) is peak_memory.curve(base(name), META)
    assert bool(traced) == affects


@pytest.mark.parametrize(
    "change", [{"weight_decay": 0.2}, {"momentum": 0.5}, {"lr": 1.0, "seed": 3}, {"batch_size": 48}], ids=str
)
def test_a_search_over_what_takes_no_memory_is_traced_once(change: dict[str, Any]) -> None:
    assert peak_memory.curve(BASE.replace(**change), META) is peak_memory.curve(BASE, META)


@pytest.mark.parametrize("name", affecting("memory_if_set"))
def test_whether_such_a_field_is_set_matters_and_its_value_does_not(name: str) -> None:
    unset = {"momentum": 0.0, "weight_decay": 0.0, "class_weights": "none"}.get(name)
    values = ("inverse", "median") if name == "class_weights" else (0.25, 0.5)
    low, high = (BASE.replace(**{name: value}) for value in values)
    assert low.memory_facts() == high.memory_facts() != BASE.replace(**{name: unset}).memory_facts()
    assert peak_memory.curve(low, META) == peak_memory.curve(high, META)
