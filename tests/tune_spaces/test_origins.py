"""A sweep that goes on compares trials of the same data and the same files of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainers.recipe import Recipe, Scale, resolve
from tune_spaces.origins import check_origins, find_origins
from tune_spaces.sweep import Cell

MODEL = "def build(*, image_size, channels, classes):\n    return {}\n"


class Prepared:
    """Stands for PreparedData: one listing for all."""

    def __init__(self, listing: str = "first") -> None:
        self.listing = listing

    def meta(self, recipe: Recipe) -> Any:
        return {"listing": self.listing}


def origins(recipe: Recipe, listing: str = "first") -> dict[str, str]:
    return find_origins([Cell(number=0, values={}, recipe=recipe, scale=Scale(workers=0))], Prepared(listing))  # type: ignore[arg-type]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "mine.py").write_text(MODEL.format(1))
    return resolve("digits.cnn").replace(model=str(tmp_path / "mine.py"))


def test_what_is_the_same_goes_on(recipe: Recipe) -> None:
    check_origins("s", origins(recipe), origins(recipe))
    check_origins("s", {}, origins(recipe))  # begun by an older version
    check_origins("s", origins(recipe), origins(resolve("digits.cnn")))  # another model is another value


def test_a_model_that_was_edited_is_named(recipe: Recipe) -> None:
    before = origins(recipe)
    Path(recipe.model).write_text(MODEL.format(2))
    with pytest.raises(ValueError, match=rf"since the sweep s began have changed: {recipe.model}; .* another --run"):
        check_origins("s", before, origins(recipe))


def test_other_pictures_are_named(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="have changed: the pictures of digits"):
        check_origins("s", origins(recipe), origins(recipe, "second"))
