"""A model that does not fit its data is refused before pictures are decoded; one that reads values is not."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import checks
from trainers.checks import check_model
from trainers.data.source import scan_files
from trainers.recipe import Recipe, resolve
from trainers.training.build import build_model

MODEL = """
import torch


class Model(torch.nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        {construct}
        self.head = torch.nn.Linear({features}, classes)

    def forward(self, images):
        {forward}
        return self.head(images.mean((2, 3)))


def build(image_size, channels, classes):
    return Model(channels, classes)
"""
LARGE = (64, 64)  # more than SMALL_PIXELS: tried without memory first


def recipe_of(folder: Path, construct: str = "pass", forward: str = "pass", features: str = "channels") -> Recipe:
    """A recipe whose model runs this code."""
    path = folder / construct[:4] / "model.py"  # each file is imported once
    path.parent.mkdir(parents=True)
    path.write_text(MODEL.format(construct=construct, forward=forward, features=features))
    return resolve("digits.cnn").replace(model=str(path), model_args={}, image_size=LARGE)


def check(recipe: Recipe) -> None:
    check_model(recipe, scan_files(recipe, None))


LOOKS = [
    ("pass", "assert images.sum().item() == 0"),
    ("pass", "assert not images.any()"),
    ("pass", "assert len(images.nonzero()) == 0"),
    ("pass", "images = torch.from_numpy(images.numpy())"),
    ("self.rates = torch.linspace(0, 1, 3).tolist()", "pass"),
    ("self.rate = float(torch.ones(()))", "images = images + len(torch.unique(images))"),
]


@pytest.mark.parametrize(("construct", "forward"), [("pass", "pass"), *LOOKS])
def test_a_model_that_reads_values_is_accepted(construct: str, forward: str, tmp_path: Path) -> None:
    check(recipe_of(tmp_path, construct, forward))


@pytest.mark.parametrize(("construct", "forward"), [("pass", "pass"), *LOOKS])
def test_a_model_that_does_not_fit_is_refused_whether_it_reads_values_or_not(
    construct: str, forward: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"model\.py does not go with pictures of 64x64 and task=classify"):
        check(recipe_of(tmp_path, construct, forward, features="channels + 1"))


@pytest.mark.parametrize("where", ["construct", "forward"])
def test_the_words_of_an_error_decide_nothing(where: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the meta tensors of this model are lost"):
        check(recipe_of(tmp_path, **{where: "raise RuntimeError('the meta tensors of this model are lost')"}))


def test_a_model_too_large_to_be_tried_for_real_is_left_to_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MEMORY_SHARE", 0.0)
    check(recipe_of(tmp_path, forward="assert images.sum().item() == 0"))
    with pytest.raises(ValueError, match="cannot be built"):
        check(recipe_of(tmp_path, construct="torch.linspace(0, 1, 3).tolist()"))


POOLED = "images = self.norm(images.mean((2, 3), keepdim=True))"
BATCH_NORM = "self.norm = torch.nn.BatchNorm2d(channels)"
OF_FOUR = "self.norm = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 1), {}, torch.nn.Conv2d(4, channels, 1))"


@pytest.mark.parametrize(
    ("batch", "micro", "advice"),
    [
        (1, 1, "give --batch-size 2"),
        (4, 1, "give --micro-batch-size 4"),  # steps of 3 and 4 pictures
        (1438, 1, "give --micro-batch-size 2"),
        (58, 2, "give --micro-batch-size 29"),  # 57.5 pictures a step
        (1437, 1437, None),
        (64, 32, None),
    ],
)
def test_micro_batches_of_one_are_refused_where_batch_norm_is_left_with_one_value(
    batch: int, micro: int, advice: str | None, tmp_path: Path
) -> None:
    """Of the digits there are 1,438 training pictures."""
    recipe = recipe_of(tmp_path, BATCH_NORM, POOLED).replace(batch_size=batch, micro_batch_size=micro)
    if advice is None:
        check(recipe)
    else:
        with pytest.raises(ValueError, match=rf"1,438 training pictures by batch_size={batch} .*{advice}$"):
            check(recipe)


@pytest.mark.parametrize(
    ("construct", "alone"),
    [
        ("self.norm = torch.nn.SyncBatchNorm(channels)", False),
        ("self.norm = torch.nn.BatchNorm2d(channels, track_running_stats=False)", False),
        ("self.norm = torch.nn.BatchNorm2d(channels).requires_grad_(False).eval()", False),  # training sets its mode
        (OF_FOUR.format("torch.nn.BatchNorm2d(4)"), False),
        (OF_FOUR.format("torch.nn.GroupNorm(2, 4)"), True),
        (OF_FOUR.format("torch.nn.LayerNorm((4, 1, 1))"), True),
        (OF_FOUR.format("torch.nn.Dropout()"), True),
    ],
)
def test_whether_a_network_can_be_trained_on_one_picture_is_tried(construct: str, alone: bool, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, construct, POOLED).replace(batch_size=1)
    if alone:
        check(recipe)
    else:
        with pytest.raises(ValueError, match=r"cannot be trained on one picture: .*give --batch-size 2$"):
            check(recipe)


def test_batch_norm_over_pixels_is_trained_on_one_picture_and_so_is_one_that_is_frozen(tmp_path: Path) -> None:
    check(recipe_of(tmp_path / "pixels", BATCH_NORM, "images = self.norm(images)").replace(batch_size=1))
    check(recipe_of(tmp_path / "frozen", BATCH_NORM, POOLED).replace(batch_size=1, frozen=("norm",)))


def test_an_odd_picture_out_and_a_single_picture_are_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, BATCH_NORM, POOLED).replace(batch_size=2)
    facts = {"channels": 1, "classes": ["a", "b"], "class_counts": {"train": [2, 1]}}
    checks.check_batches(recipe, facts, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"3 training pictures .* give --batch-size 3$"):
        checks.check_batches(recipe, facts, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"add training pictures$"):
        checks.check_batches(recipe, facts, 1)  # type: ignore[arg-type]


RETURNS = """
import torch


class Net(torch.nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.head = torch.nn.Conv2d(channels, classes, 1)

    def forward(self, images):
        pixels = self.head(images)
        logits = pixels.mean((2, 3))
        {forward}


def build(image_size, channels, classes):
    {build}
"""
NET = "return Net(channels, classes)"


def returning(folder: Path, forward: str = "return logits", build: str = NET, **changes: object) -> Recipe:
    path = folder / "model.py"
    path.write_text(RETURNS.format(forward=forward, build=build))
    return resolve("digits.cnn").replace(model=str(path), model_args={}, **changes)


@pytest.mark.parametrize("size", [(8, 8), LARGE])
@pytest.mark.parametrize(
    ("forward", "words"),
    [
        ("pass", r"forward\(\) of Net returned None for 2 pictures; it must return a tensor \(2, 10\)"),
        ("return (logits, pixels)", r"returned a tuple for 2 pictures; it must return a tensor \(2, 10\)"),
        ("return {'out': logits}", r"returned a dict"),
        ("return pixels", r"returned a tensor \(2, 10, \d+, \d+\)"),
        ("return logits[:, :4]", r"returned a tensor \(2, 4\)"),
        ("return torch.cat([logits, logits], 1)", r"returned a tensor \(2, 20\)"),
        ("return logits[0]", r"returned a tensor \(10,\)"),
        ("return logits if self.training else (logits, pixels)", r"forward\(\) of Net in eval mode returned a tuple"),
        ("return logits if self.training else logits.argmax(1)", r"in eval mode returned a tensor \(2,\)"),
        (
            "raise ValueError('no such stage')",
            r"Net raised ValueError: no such stage \(model.py, line 13\)",
        ),
        ("return logits.detach()", r"learns nothing: what forward\(\) of Net returns depends on no parameter"),
        ("return logits.argmax(1, keepdim=True).float().expand(-1, 10)", r"learns nothing"),
        ("return logits + missing", r"forward\(\) of Net raised NameError.*\(model\.py, line 13\)"),
    ],
)
def test_what_a_model_returns_is_said_with_file_function_and_shape(
    forward: str, words: str, size: tuple[int, int], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^the model {tmp_path}/model\.py .*{words}"):
        check(returning(tmp_path, forward, image_size=size))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ("pass", r"build\(\) returned NoneType; it must return a torch\.nn\.Module"),
        ("return 3", r"build\(\) returned int"),
        ("raise ValueError('width is odd')", r"build\(\) raised ValueError: width is odd \(model\.py, line 17\)"),
        ("return Net(channels, None)", r"cannot be built: TypeError"),
    ],
)
def test_a_model_that_cannot_be_built_is_said_with_file_and_function(build: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^the model {tmp_path}/model\.py.*{words}"):
        check(returning(tmp_path, build=build))


def test_a_model_of_frozen_parts_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"frozen=head leaves nothing of the model"):
        check(returning(tmp_path, frozen=("head",)))


def test_a_model_that_squeezes_a_single_picture_away_is_refused_where_it_will_see_one(tmp_path: Path) -> None:
    recipe = returning(tmp_path, "return logits.squeeze()", batch_size=2, micro_batch_size=2)
    source = scan_files(recipe, None)
    words = r"in eval mode returned a tensor \(10,\) for 1 picture; .*\(1, 10\)"
    for val, alone in ((4, False), (3, True), (1, True)):
        item = source.splits["val"][0]
        few = dataclasses.replace(
            source, splits={**source.splits, "val": [dataclasses.replace(item, targets=item.targets[:val])]}
        )
        assert few.rows["val"] == val
        with pytest.raises(ValueError, match=words) if alone else contextlib.nullcontext():
            check_model(recipe, few)


@pytest.mark.parametrize("size", [(8, 8), LARGE])
def test_layers_that_take_their_sizes_from_the_first_picture_are_built(size: tuple[int, int], tmp_path: Path) -> None:
    lazy = "return torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.LazyBatchNorm2d(), torch.nn.Flatten(), "
    recipe = returning(tmp_path, build=f"{lazy}torch.nn.LazyLinear(classes))", image_size=size)
    check(recipe)
    facts: Any = {"channels": 1, "classes": [str(number) for number in range(10)]}
    one, other = build_model(recipe, facts).state_dict(), build_model(recipe, facts).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert one["3.weight"].shape == (10, 4 * (size[0] - 2) * (size[1] - 2))
    assert one["1.running_mean"].tolist() == [0] * 4


def test_a_task_of_ones_own_may_take_more_than_a_tensor(tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(
        "from trainers.tasks.classify import Classify, outputs\nTARGET = 'labels'\n\n\n"
        "def outputs(classes):\n    return classes\n\n\n"
        "class Pair(Classify):\n    def loss(self, output, target):\n"
        "        return super().loss(output[0], target)\n\n\n"
        "def make(classes, class_weights=None):\n    return Pair(classes, class_weights)\n"
    )
    check(returning(tmp_path, "return (logits, pixels)", task=str(task)))
    with pytest.raises(ValueError, match="returned None"):
        check(returning(tmp_path, "return None", task=str(task)))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("loss(self, output, target): return output.sum()", r"loss\(\) returned a tensor \(\); .*one dimension"),
        ("loss(self, output, target): return 0.5", r"loss\(\) returned a float"),
        ("weight(self, target): return target.new_ones(2).double()", r"tensor \(1,\), and weight\(\) a tensor \(2,\)"),
        ("scores(self, counts): return {'hits': 1.0}", r"gives metric='accuracy' as None; .* among hits"),
        ("scores(self, counts): return {'accuracy': numpy.float32(1)}", r"accuracy' as .*must be a float"),
        ("scores(self, counts): return counts['errors']", r"cannot score: KeyError: 'errors' \(task\.py, line 11\)"),
        ("counts(self, output, target): return None", r"cannot score: AttributeError"),
    ],
)
def test_what_a_task_of_ones_own_returns_is_checked_before_an_epoch_ends_with_it(
    method: str, words: str, tmp_path: Path
) -> None:
    task = tmp_path / "task.py"
    task.write_text(
        "import numpy\nfrom trainers.tasks.classify import Classify\nTARGET = 'labels'\n\n\n"
        "def outputs(classes):\n    return classes\n\n\n"
        f"class Own(Classify):\n    def {method}\n\n\n"
        "def make(classes, class_weights=None):\n    return Own(classes, class_weights)\n"
    )
    with pytest.raises(ValueError, match=rf"^the task {task}.*{words}"):
        check(returning(tmp_path, task=str(task)))


@pytest.mark.parametrize("size", [(8, 8), LARGE])
@pytest.mark.parametrize(
    "method",
    [
        "scores(self, counts): return {'accuracy': 1.0 / int(counts['confusion'][1].sum())}",  # no such picture
        "scores(self, counts): return {'accuracy': float(numpy.quantile([], 0.5))}",
        "scores(self, counts): return {'accuracy': None if len(counts) else 1.0}",
        "scores(self, counts): return {'accuracy': numpy.float64(0) / numpy.float64(0), 'hits': 3}",
        "counts(self, output, target): assert output.any()",
        "counts(self, output, target): return super().counts(output[:, :, 0], target)",
    ],
)
def test_a_task_of_ones_own_may_need_other_numbers_than_those_it_is_tried_with(
    method: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """The last one scores what the model returns in eval mode only."""
    task = tmp_path / "task.py"
    task.write_text(
        "import numpy\nfrom trainers.tasks.classify import Classify\nTARGET = 'labels'\n\n\n"
        "def outputs(classes):\n    return classes\n\n\n"
        "class Own(Classify):\n    def loss(self, output, target):\n"
        "        return super().loss(output if output.ndim == 2 else output[:, :, 0], target)\n\n"
        f"    def {method}\n\n\n"
        "def make(classes, class_weights=None):\n    return Own(classes, class_weights)\n"
    )
    forward = "return logits if self.training else logits[:, :, None]" if "0]" in method else "return logits"
    check(returning(tmp_path, forward, task=str(task), image_size=size))


@pytest.mark.parametrize("size", [(8, 8), LARGE])
def test_a_model_whose_train_returns_nothing_is_tried_and_built(size: tuple[int, int], tmp_path: Path) -> None:
    """As those that keep BatchNorm fixed: torch's own returns the model."""
    code = (
        "import torch\n\n\nclass Net(torch.nn.Sequential):\n    def train(self, mode=True):\n"
        "        super().train(mode)\n        self[1].eval()\n\n\n"
        "def build(image_size, channels, classes):\n"
        "    return Net(torch.nn.LazyConv2d(4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), "
        "torch.nn.LazyLinear(classes))\n"
    )
    recipe = returning(tmp_path, image_size=size)
    Path(recipe.model).write_text(code)
    check(recipe)


@pytest.mark.parametrize("model", ["resnet", "deeplabv3plus"])
def test_weights_that_are_not_offered_are_refused_with_the_recipe(model: str) -> None:
    recipe = resolve("resnet.r18" if model == "resnet" else "deeplab.camvid")
    with pytest.raises(ValueError, match=r"model_args weights=coco is not allowed; .* one of imagenet, none"):
        recipe.replace(model_args={"weights": "coco"})
    for value in ("imagenet", None):
        recipe.replace(model_args={"weights": value})
