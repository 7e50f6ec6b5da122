"""Mosaics: every picture once in each place, boxes that go along, and none in the last tenth of the epochs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trainers.augmentations import check
from trainers.augmentations.mosaic import is_on
from trainers.box_table import AREA, BOTTOM, CLASS, COLUMNS, KIND, LEFT, SCALE, are_objects, corners
from trainers.data import mosaic, targets
from trainers.data.batches import Batch
from trainers.data.sampler import Pass, one_pass, passes, shuffled
from trainers.data.source import choose_mode
from trainers.datasets import CROWD, PLAIN, Source
from trainers.messages import Meta
from trainers.recipe import Recipe
from trainers.resolution import agree_with_earlier
from trainers.training.distributed import World
from trainers.training.preprocess import Preprocess

ROWS, STORED = 40, (20, 28)
Array = npt.NDArray[Any]


class Drawn:
    """Pictures with an object each, whose pixels are the number of its row, and its class too."""

    def __init__(self) -> None:
        self.meta: Meta = {"target": "boxes", "rows": {"train": ROWS}, "mean": [0.0], "std": [1 / 255]}  # type: ignore[typeddict-item]
        rng = np.random.default_rng(0)
        self.images = np.zeros((ROWS, *STORED, 1), np.uint8)
        self.table = np.zeros((ROWS, 1, COLUMNS), np.float32)
        for row in range(ROWS):
            top, left = rng.integers(0, 14), rng.integers(0, 20)
            height, width = rng.integers(4, 7), rng.integers(4, 9)
            self.images[row, top : top + height, left : left + width] = row + 1
            self.table[row, 0, LEFT : BOTTOM + 1] = left, top, left + width, top + height
            self.table[row, 0, CLASS], self.table[row, 0, AREA], self.table[row, 0, SCALE] = row + 1, height * width, 1

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        for of in passes:
            yield Batch(of, self.images[of.ids], self.table[of.ids])

    def labels(self, split: str) -> Array:
        raise AssertionError


def recipe(**changes: Any) -> Recipe:
    augment = {"mosaic": 1.0, **changes.pop("augment", {})}
    usual = {"dataset": "shapes", "model": "unet", "epochs": 20, "lr": 0.1, "batch_size": 8, "image_size": STORED}
    return Recipe(**{**usual, "augment": augment, **changes})


def made(of: Pass, how: Recipe, epoch: int = 0) -> tuple[Array, Array, Batch]:
    """Pictures (N, H, W) and tables as the model gets them, and the batch that they are made of."""
    data = Drawn()
    (batch,) = mosaic.batches(data, "train", [of], how, epoch)
    images, found = Preprocess(how, data.meta, World(0, 1, torch.device("cpu"), "fp64"))(batch, epoch)
    return images[:, 0].numpy(), found.numpy(), batch


def test_every_picture_stands_once_in_each_place() -> None:
    others = mosaic.partners(5, 3, 1000)
    for place in others:
        assert sorted(place) == list(range(1000))
    assert len({tuple(place) for place in others}) == 3
    assert not (others == mosaic.partners(5, 4, 1000)).all(1).any()
    assert ((others == np.arange(1000)).sum(1) < 10).all()


@pytest.mark.parametrize(
    "augment", [{}, {"horizontal_flip": 0.5, "vertical_flip": 0.5}, {"translate": 0.3}, {"mosaic": 0.5}]
)
def test_the_boxes_of_a_mosaic_are_those_of_what_it_shows(augment: dict[str, Any]) -> None:
    images, tables, _ = made(one_pass(np.arange(ROWS)), recipe(augment=augment))
    parts = 0
    for image, table in zip(images.round().astype(int), tables, strict=True):
        objects = table[are_objects(table)]
        assert sorted({*image.flatten()} - {0}) == sorted({*objects[:, CLASS]})  # the same row may stand in two places
        for number in {*objects[:, CLASS]}:
            same = objects[objects[:, CLASS] == number]
            if len(same) > 1:
                continue
            down, across = np.nonzero(image == number)
            seen = [across.min(), down.min(), across.max() + 1, down.max() + 1]
            assert corners(same)[0].tolist() == seen
            whole = Drawn().table[int(number) - 1, 0, AREA]
            assert same[0, AREA] == pytest.approx(len(down))
            assert same[0, KIND] == (CROWD if len(down) < 0.2 * whole else PLAIN)
            parts += len(down) < whole
    assert parts > 5


def test_a_smaller_scale_shows_all_of_the_four_pictures() -> None:
    """But for what reaches beyond the mosaic, where they touch beside its middle."""
    _, tables, batch = made(one_pass(np.arange(ROWS)), recipe(augment={"scale": [0.5, 0.5]}))
    counts = are_objects(tables).sum(1)
    assert counts.max() == 4
    assert counts.mean() > 3
    assert batch.images.shape == (ROWS, 2 * STORED[0], 2 * STORED[1], 1)
    np.testing.assert_allclose(tables[..., SCALE][are_objects(tables)], 4)


def test_where_there_is_none_by_chance_the_picture_is_itself() -> None:
    how = recipe(augment={"mosaic": 1e-9})
    images, tables, _ = made(one_pass(np.arange(ROWS)), how)
    np.testing.assert_array_equal(images.round(6), Drawn().images[..., 0])
    np.testing.assert_array_equal(tables, Drawn().table)


def test_a_mosaic_does_not_depend_on_who_reads_it() -> None:
    how, whole = recipe(), {}
    order = shuffled(how.seed, 2, ROWS)
    for world, micro in ((1, 8), (3, 2)):
        for rank in range(world):
            for of in passes(order, batch_size=8, micro_batch_size=micro, rank=rank, world_size=world):
                images, tables, _ = made(of, how, 2)
                for number, image, table in zip(of.numbers.tolist(), images, tables, strict=True):
                    held = (image.tobytes(), sorted(map(tuple, table[are_objects(table)])))
                    assert whole.setdefault(number, held) == held
    assert len(whole) == ROWS


@pytest.mark.parametrize(("epochs", "last"), [(1, 0), (2, 1), (10, 9), (11, 9), (15, 13), (30, 27), (70, 63)])
def test_the_last_tenth_of_the_epochs_has_none(epochs: int, last: int) -> None:
    assert [is_on({"mosaic": 0.5}, epoch, epochs) for epoch in range(epochs)] == [True] * last + [False] * (
        epochs - last
    )
    assert not is_on({"mosaic": 0}, 0, epochs)


def test_what_does_not_go_with_mosaics_is_refused(tmp_path: Path) -> None:
    for name in ("labels", "masks", "label_sets", "numbers"):
        with pytest.raises(ValueError, match="augment mosaic is for boxes of objects"):
            targets.kind(name).refuse({"mosaic": 1})
    targets.kind("boxes").refuse({"mosaic": 1})
    with pytest.raises(ValueError, match="mosaic excludes crop"):
        check({"mosaic": 1, "crop": True})
    source = Source(classes=["a"], channels=3, splits={"train": []}, target="boxes")
    with pytest.raises(ValueError, match=r"augment mosaic reads four prepared pictures .* data_mode=stream"):
        choose_mode("stream", recipe(), source, tmp_path, ray=True)
    assert choose_mode("auto", recipe(), source, tmp_path, ray=True) == "cache"


def test_a_run_that_has_come_to_its_last_tenth_does_not_go_on_to_more_epochs() -> None:
    how = {"schedule": "constant", "augment": {"horizontal_flip": 0.5}}
    earlier = recipe(**how).to_json()
    longer = recipe(**how, epochs=40)
    assert agree_with_earlier(longer, earlier, "one", epochs_run=17).epochs == 40
    for done in (18, 20):
        with pytest.raises(ValueError, match=r"the last tenth without mosaics, .* cannot go on to --epochs 40"):
            agree_with_earlier(longer, earlier, "one", epochs_run=done)
