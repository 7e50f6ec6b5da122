"""A data set in a file of one's own: what it may return, and what is said where it returns something else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.__main__ import main
from trainers.data import targets
from trainers.data.decoder import Decoder
from trainers.data.source import scan_files
from trainers.datasets import Item
from trainers.recipe import Recipe

HEAD = """
from pathlib import Path
import numpy as np
from trainers.datasets import MASK, BadImage, Item, Source


def items(split, count=20):
    return [Item(path=None, name=f"{split}/{n}", targets=[n % 2], args={"n": n}) for n in range(count)]


def image(item, shape=(8, 8, 3), dtype=np.uint8):
    return np.random.default_rng(item.args["n"]).integers(0, 200, shape).astype(dtype)
"""
SOURCE = """
def source(data):
    return Source(classes=["a", "b"], channels=3, splits={"train": items("train"), "val": items("val", 6)})
"""
READ = """
def read(item):
    return [(image(item), item.targets[0])]
"""


def own(folder: Path, source: str = SOURCE, read: str = READ) -> Recipe:
    file = folder / "mine.py"
    file.write_text(HEAD + source + read)
    return Recipe(
        dataset=str(file), model="linear_cnn", image_size=(8, 8), epochs=1, batch_size=4, lr=0.01, warmup_epochs=0
    )


def returns(value: str) -> str:
    return f"def source(data):\n    return {value}\n"


def source_of(**changes: str) -> str:
    known = {"classes": '["a", "b"]', "channels": "3", "splits": '{"train": items("train"), "val": items("val", 6)}'}
    return returns(f"Source({', '.join(f'{name}={value}' for name, value in {**known, **changes}.items())})")


def train_of(item: str) -> str:
    return source_of(splits=f'{{"train": [{item}], "val": items("val")}}')


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (returns("None"), "returned None; expected is a Source"),
        (returns('["a", "b"], {}'), r"returned a tuple of 2 \(list, dict\); expected is a Source"),
        (returns("{'classes': ['a', 'b']}"), "returned a dict; expected is a Source"),
        (source_of(classes='"ab"'), "classes is 'ab'; expected is a list of names"),
        (source_of(classes='["a", "b", "a"]'), "the class 'a' is listed twice"),
        (source_of(channels="'rgb'"), "channels is 'rgb'; expected is 1"),
        (source_of(channels="3.0"), r"channels is 3\.0; expected is 1"),
        (source_of(splits='items("train")'), r"splits is a list of 20 \(Item, Item, Item, Item, \.\.\.\); expected is"),
        (source_of(splits='{"train": None}'), "the split 'train' is None; expected is a list of Item"),
        (source_of(splits='{"train": (i for i in items("x"))}'), "the split 'train' is a generator; expected"),
        (source_of(splits='{"train": items("train"), "validation": items("v")}'), r"no pictures for the val split.*"),
        (train_of('"a/1.jpg"'), r"entry 0 of the split 'train' is 'a/1\.jpg'; expected is an Item"),
        (train_of('("a/1.jpg", 0)'), r"entry 0 of the split 'train' is a tuple of 2 \(str, int\); expected is an Item"),
        (train_of("Item(path=None, name=7, targets=[0])"), "has a name that is 7; expected is text"),
        (train_of('Item(path=b"x", name="x", targets=[0])'), "has a path that is a bytes; expected is text, or None"),
        (train_of('Item(path=None, name="x", targets=0)'), "has targets that are 0; expected is a list with one for"),
        (train_of('Item(path=None, name="x", targets=[])'), "has targets that are a list of 0; expected"),
        (
            train_of('Item(path=None, name="x", targets=["a"])'),
            "the split 'train' has a target that is 'a'; exp",
        ),
        (
            train_of('Item(path=None, name="x", targets=[0, 2])'),
            "has the target 2; expected is the number of a",
        ),
        (train_of('Item(path=None, name="x", targets=[-1])'), "has the target -1; expected is the number of a class"),
        (train_of('Item(path=None, name="x", targets=[0], args=[1])'), "has args that are a list of 1 .int.; expected"),
        (
            "def source(data):\n    a, b = [1, 2, 3]\n",
            r"failed: ValueError: too many values.*mine.*line 14",
        ),
        ("def source(data):\n    return undefined\n", r"source\(\) failed: NameError: name 'undefined' is not defined"),
        ("def source(data):\n    open('/nowhere/x')\n", r"source\(\) failed: FileNotFoundError"),
    ],
)
def test_a_listing_that_is_none_is_described(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"mine\.py.*({words})") as caught:
        scan_files(own(tmp_path, source), None)
    assert "\n" not in str(caught.value)


def read_of(value: str, before: str = "") -> str:
    return f"def read(item):\n    {before or 'pass'}\n    return {value}\n"


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (read_of("None"), r"returned None; expected is a list of \(image, target\)"),
        (
            read_of("image(item), 0"),
            "returned a tuple of 2 .ndarray, int.*entry 0 is a ndarray of uint8, 8 x 8",
        ),
        (read_of("[image(item)]"), "entry 0 is a ndarray of uint8, 8 x 8 x 3; expected is a list of"),
        (read_of("[(image(item), 0, item.name)]"), "entry 0 is a tuple of 3 .ndarray, int, str.; expected"),
        (read_of("[(image(item, dtype=np.float32) / 255, 0)]"), "an image that is a ndarray of float32, 8 x 8 x 3"),
        (read_of("[(image(item, (3, 8, 8)), 0)]"), "uint8, 3 x 8 x 8 .sample 0.; expected is .* height x width x 3"),
        (read_of("[(image(item, (8, 8)), 0)]"), "uint8, 8 x 8 .sample 0.; expected is"),
        (read_of("[(image(item, (8, 8, 1)), 0)]"), "8 x 8 x 1 .sample 0.; expected is .*source.. said channels=3"),
        (read_of("[(image(item).tolist(), 0)]"), "an image that is a list of 8"),
        (read_of("[(item.name, 0)]"), "an image that is 'train/0' .sample 0."),
        (read_of("[(image(item), 0)] * 2"), "returned 2 samples; expected are 1, as many as the item has targets"),
        (read_of("[]"), "returned 0 samples; expected are 1"),
        (read_of("[(image(item), None)]"), "a pair where the target is None; it must be the number of a class"),
        (read_of("[(image(item), 'a')]"), "a pair where the target is 'a'; it must be the number"),
        (read_of("[(image(item), 0.5)]"), "a pair where the target is 0.5; it must be the number"),
        (read_of("[]", "x, y = item.targets * 3"), r"failed: ValueError: too many values to unpack.*line \d+"),
        (read_of("[]", "item.targets.nothing"), r"failed: AttributeError: .*mine.*line \d+"),
        (read_of("[]", "open('/nowhere.jpg')"), r"failed: FileNotFoundError"),
    ],
)
def test_pictures_that_are_none_are_described(
    tmp_path: Path, read: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path / "storage"))
    file = own(tmp_path, read=read).dataset
    flags = "--image-size 8 --batch-size 4 --epochs 1 --workers 0 --on-bad-image skip".split()
    assert main(["train", "digits.cnn", "--dataset", file, *flags]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("error:") == 1
    assert re.search(rf"mine\.py: read\(\) of the item 'train/0' .*({words})", error), error
    assert "Traceback" not in error


def test_without_read_it_is_said(tmp_path: Path) -> None:
    recipe = own(tmp_path, read="")
    with pytest.raises(ValueError, match=r"mine\.py has no function read\(item\), which returns a list"):
        scan_files(recipe, None)


@pytest.mark.parametrize("target", ["[[0] * 8] * 8", "image(item)[:, :, 0] / 255", "None"])
def test_masks_of_the_wrong_type_are_described(tmp_path: Path, target: str) -> None:
    source = source_of(target='"masks"', splits='{"train": [Item(path=None, name="x", targets=[MASK], args={"n": 1})]}')
    recipe = own(tmp_path, source, read_of(f"[(image(item), {target})]"))
    decoder = Decoder(recipe, targets.kind("masks"), 3, 2)
    item = Item(path=None, name="x", targets=[-1], args={"n": 1})
    with pytest.raises(ValueError, match=r"read\(\) of the item 'x' returned a pair where the mask is .* 8x8 of uint8"):
        decoder.try_read(item)


def read_all(recipe: Recipe) -> list[Any]:
    source = scan_files(recipe, None)
    decoder = Decoder(recipe, targets.kind(source.target), source.channels, len(source.classes))
    return [sample for items in source.splits.values() for item in items for sample in decoder.read(item)]


@pytest.mark.parametrize(
    ("source", "read"),
    [
        (source_of(classes="(0, 1)"), READ),
        (SOURCE, read_of("((image(item), np.int64(item.targets[0])) for _ in range(1))")),
        (SOURCE, read_of("[[image(item), float(item.targets[0])]]")),
        (SOURCE, read_of("[(image(item), np.array(item.targets[0]))]")),
        (source_of(splits='{"train": tuple(items("train")), "val": items("val")}'), READ),
        (train_of('Item(path=Path("/x.jpg"), name="x", targets=np.array([1]), args={"n": 1})'), READ),
    ],
)
def test_what_may_pass_for_it_is_taken(tmp_path: Path, source: str, read: str) -> None:
    recipe = own(tmp_path, source, read)
    assert {int(target) for _, target in read_all(recipe)} <= {0, 1}
    found = scan_files(recipe, None)
    assert all(isinstance(name, str) for name in found.classes)
    assert all(item.path is None or isinstance(item.path, str) for item in found.splits["train"])


def test_bad_images_of_ones_own_are_skipped_like_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path / "storage"))
    read = read_of("[(image(item), item.targets[0])]", "if item.args['n'] == 3: raise BadImage('it is torn')")
    flags = "--image-size 8 --batch-size 4 --epochs 1 --workers 0 --run skipped --on-bad-image skip".split()
    assert main(["train", "digits.cnn", "--dataset", own(tmp_path, read=read).dataset, *flags]) == 0
    capsys.readouterr()
    skipped = json.loads((tmp_path / "storage/skipped/run.json").read_text())["dataset"]["skipped"]
    assert [(entry["name"], entry["why"]) for entry in skipped] == [("train/3", "it is torn"), ("val/3", "it is torn")]


def test_arrays_are_given_as_they_were_read(tmp_path: Path) -> None:
    for image, _ in read_all(own(tmp_path)):
        assert image.dtype == np.uint8
        assert image.shape == (8, 8, 3)
