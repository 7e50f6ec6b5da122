"""A model that does not fit its data is refused before pictures are decoded; one that reads values is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers import checks
from trainers.checks import check_model
from trainers.data.source import scan_files
from trainers.recipe import Recipe, resolve

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
    path.parent.mkdir()
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
