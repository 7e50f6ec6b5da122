"""Recipes and scales: found by name, changed by name, checked, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.small import ALL

from trainers.cli import parse
from trainers.recipe import Recipe, Scale, describe, resolve
from trainers.training import build
from tune_spaces.candidates import choose
from tune_spaces.sweep import Sweep


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = resolve(name, seed=3, frozen=("conv1",), stored_size=(600, 1200))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_a_scale_survives_json() -> None:
    scale = Scale(workers=(1, 3), gpus_per_worker=0.5, data="x")
    assert Scale.from_json(json.loads(json.dumps(scale.to_json()))) == scale


@pytest.mark.parametrize("name", ALL)
def test_the_docstring_has_source_command_and_the_models_parameters(name: str) -> None:
    text = describe(name)
    assert re.search(r"Source: .+", text)
    assert re.search(r"Expected: .+", text)
    assert re.search(rf"Command: python -m trainers train {re.escape(name)}", text)
    said = re.search(r"Parameters: ([\d,]+)(?: \((\d+) classes\))?", text)
    assert said
    recipe = resolve(name)
    meta = {
        "channels": 1 if recipe.dataset in ("digits", "mnist", "texture_crops") else 3,
        "classes": [str(number) for number in range(int(said[2] or 10))],
    }
    model = build.build_model(recipe, meta)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(said[1].replace(",", ""))


def test_changes_are_merged_and_arguments_belong_to_what_they_are_given_to() -> None:
    recipe = resolve("cifar.r18", model_args={"depth": 34})
    assert recipe.model_args == {"depth": 34, "stem": "3x3"}
    assert recipe.replace(model="linear_cnn").model_args == {}
    assert recipe.replace(model="linear_cnn", model_args={"num_filters": 4}).model_args == {"num_filters": 4}
    assert resolve("cifar.r18", augment={"pad": 2}).augment == {"horizontal_flip": 0.5, "pad": 2}


def test_differences_of_recipes_are_listed_by_field() -> None:
    one = resolve("digits.cnn")
    assert one.differences(one.replace(lr=0.2, image_size=(9, 9))) == {
        "lr": (0.05, 0.2),
        "image_size": ([8, 8], [9, 9]),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lrr": 1}, r"no field of Recipe called 'lrr'; did you mean lr"),
        ({"lr": "fast"}, r"lr='fast' is not allowed; lr takes a number"),
        ({"lr": float("nan")}, r"lr=nan is not allowed"),
        ({"epochs": True}, r"epochs=True"),
        ({"batch_size": 10, "micro_batch_size": 4}, r"micro_batch_size=4 does not divide batch_size=10; use 2 or 5"),
        ({"optimizer": "adamm"}, r"one of sgd, adam, adamw"),
        ({"precision": "fp16"}, r"precision='fp16' is not allowed"),
        ({"model": "linear_cn"}, r"no model 'linear_cn'; did you mean linear_cnn"),
        ({"model_args": {"filters": 3}}, r"'filters'; did you mean num_filters"),
        ({"model_args": {"num_filters": "many"}}, r"num_filters='many'"),
        ({"dataset_args": {"seed": 3}}, r"no argument of dataset 'digits' called 'seed'; did you mean split_seed"),
        ({"augment": {"flip": 0.5}}, r"no augmentation called 'flip'"),
        ({"augment": {"brightness": 2}}, r"augment brightness=2 is not allowed"),
        ({"schedule_args": {"every": 3}}, r"no argument of schedule 'cosine' called 'every'"),
        ({"stored_size": (4, 4)}, r"stored_size=4x4 is smaller than image_size=8x8"),
        ({"nesterov": True, "momentum": 0.0}, r"nesterov=True needs"),
        ({"momentum": 1.0}, r"momentum=1.0"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve("digits.cnn", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": -1}, "workers=-1"),
        ({"workers": (3, 1)}, "workers"),
        ({"workers": 0, "data_mode": "stream"}, "--workers 1 or more"),
        ({"checkpoint_seconds": 0.0}, "checkpoint_seconds"),
    ],
)
def test_scale_fields_that_are_not_allowed_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scale(**changes)


def test_a_recipe_a_model_and_a_data_set_may_be_files_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from trainers.recipe import Recipe\n"
        "def build(*, image_size, channels, classes, width: int = 5):\n"
        "    from torch import nn\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size[0] * image_size[1], classes))\n"
        "def fast():\n"
        f"    return Recipe(dataset='digits', model={str(file)!r}, image_size=(8, 8), epochs=1, batch_size=8, lr=0.1)\n"
    )
    recipe = resolve(f"{file}:fast", model_args={"width": 7})
    model = build.build_model(recipe, {"channels": 1, "classes": ["a", "b"]})
    assert sum(parameter.numel() for parameter in model.parameters()) == 64 * 2 + 2
    with pytest.raises(ValueError, match="no function slow"):
        resolve(f"{file}:slow")
    with pytest.raises(ValueError, match="there is no file"):
        resolve(f"{tmp_path}/theirs.py:fast")


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"image_size": 64}, (73, 73)),
        ({"image_size": "112x56"}, (128, 64)),
        ({"image_size": 448}, (512, 512)),
        ({"image_size": 64, "stored_size": 256}, (256, 256)),
        ({"image_size": 64, "stored_size": None}, None),
        ({"lr": 0.2}, (256, 256)),
    ],
)
def test_pictures_are_stored_as_much_larger_where_the_size_changes(
    changes: dict[str, Any], stored: tuple[int, int] | None
) -> None:
    """Else the middle that is evaluated would be a small part of the picture."""
    assert resolve("resnet.r18", **changes).stored_size == stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """No further flags."""


@pytest.mark.parametrize("given", ["--stored-size 256", "--stored-size=256", "--stored_size 256x256"])
def test_a_stored_size_that_is_given_stays(given: str) -> None:
    flags = ["--image-size", "64", *given.split()]
    changes, _, _ = parse(resolve("resnet.r18"), Scale(), Options(), flags, "train")
    assert resolve("resnet.r18", **changes).stored_size == (256, 256)
    swept = Sweep(recipe="resnet.r18", changes={"stored_size": 256}, space={"image_size": [(64, 64), (96, 96)]})
    assert {each.recipe.stored_size for each in choose(swept, None).cells} == {(256, 256)}


@pytest.mark.parametrize(
    "signature", ["image_size, channels, classes, width=4", "*, width=4, **others", "width=4, **o"]
)
def test_an_argument_with_a_default_may_be_left_out(tmp_path: Path, signature: str) -> None:
    model = tmp_path / "mine.py"
    model.write_text(f"def build({signature}):\n    pass\n")
    assert resolve("digits.cnn", model=str(model)).model_args == {}
    model.write_text(f"def build({signature.replace('=4', '')}):\n    pass\n")
    with pytest.raises(ValueError, match="needs width: give --model-args width=WIDTH"):
        resolve("digits.cnn", model=str(model))
