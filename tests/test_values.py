"""A field takes the same values in Python as on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.__main__ import main
from trainers.recipe import Recipe, Scale, resolve

SAME: list[tuple[str, str, list[Any]]] = [  # field, word of the command line, what stands for the same in Python
    ("image_size", "64", [64, "64", "64x64", (64, 64), [64, 64], np.int64(64), np.array([64, 64]).tolist()]),
    ("image_size", "32x40", ["32x40", (32, 40), [32, 40], (np.int32(32), np.int64(40))]),
    ("stored_size", "none", [None, "none", "None"]),
    ("stored_size", "300", [300, "300", "300x300", [300, 300]]),
    ("lr", "0.1", [0.1, "0.1", "1e-1", np.float64(0.1)]),
    ("lr", "1", [1, 1.0, "1", np.float32(1)]),
    ("epochs", "3", [3, "3", np.int16(3)]),
    ("micro_batch_size", "none", [None, "none"]),
    ("nesterov", "true", [True, "true", "True"]),
    ("frozen", "0,1", ["0,1", ("0", "1"), ["0", "1"]]),
    ("augment", "horizontal_flip=0.5", [{"horizontal_flip": 0.5}, "horizontal_flip=0.5"]),
    ("model_args", "depth=34", [{"depth": 34}, "depth=34", {"depth": np.int64(34)}]),
    ("optimizer", "adamw", ["adamw"]),
    ("init_from", "first", ["first"]),
]


@pytest.mark.parametrize(("field", "word", "given"), SAME, ids=[f"{name}={word}" for name, word, _ in SAME])
def test_a_recipe_takes_in_python_what_the_command_line_takes(
    field: str, word: str, given: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "resnet.r18", f"--{field.replace('_', '-')}", *word.split(), "--show"]) == 0
    shown = Recipe.from_json(json.loads(capsys.readouterr().out)["recipe"])
    for value in given:
        assert resolve("resnet.r18", **{field: value}) == shown, value
        assert resolve("resnet.r18").replace(**{field: value}) == shown, value
        if not field.endswith(("args", "augment")):  # these are merged
            stored = {"stored_size": shown.to_json()["stored_size"]}  # which follows where the size is changed
            assert Recipe.from_json({**resolve("resnet.r18").to_json(), **stored, field: value}) == shown, value


@pytest.mark.parametrize(
    ("field", "word", "given"),
    [
        ("workers", "1:3", ["1:3", (1, 3), [1, 3]]),
        ("workers", "0", [0, "0", np.int64(0)]),
        ("gpus_per_worker", "0.5", [0.5, "0.5"]),
        ("cpus_per_worker", "2", [2, "2"]),
        ("resources", "fast_disk=1", [{"fast_disk": 1}, "fast_disk=1"]),
        ("compile", "true", [True, "true"]),
        ("tune_step", "off", [False, "off", "false"]),
        ("storage", "/tmp/x", ["/tmp/x", Path("/tmp/x")]),
        ("memory", "11811160064", ["11811160064", 11811160064]),
    ],
)
def test_a_scale_takes_in_python_what_the_command_line_takes(
    field: str, word: str, given: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--micro-batch-size", "8", f"--{field.replace('_', '-')}", word]
    flags += [] if field == "workers" else ["--workers", "1"]  # else the command chooses
    assert main(["train", "resnet.r18", *flags, "--show"]) == 0
    shown = Scale.from_json(json.loads(capsys.readouterr().out)["scale"])
    for value in given:
        assert Scale(**{field: value}) == shown, value
        assert Scale().replace(**{field: value}) == shown, value


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (
            "image_size",
            "axb",
            "image_size takes a size such as 64, or height and width as in 32x40 or (32, 40)",
        ),
        ("image_size", 64.5, "64.5 is not allowed; image_size takes a size such as 64"),
        ("image_size", (1, 2, 3), "image_size takes a size such as 64"),
        ("image_size", None, "image_size takes a size such as 64"),
        ("lr", "fast", "lr='fast' is not allowed; lr takes a number"),
        ("epochs", "2.5", "epochs takes a whole number"),
        ("epochs", True, "epochs takes a whole number"),
        ("epochs", None, "epochs takes a whole number"),
        ("nesterov", "maybe", "nesterov takes true or false"),
        ("augment", "horizontal_flip", "augment takes name=value"),
        ("optimizer", "sgdd", "optimizer takes one of sgd, adam, adamw"),
    ],
)
def test_what_no_form_allows_is_refused_with_the_forms_that_are(field: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=field) as refused:
        resolve("resnet.r18", **{field: value})
    assert words in str(refused.value)
