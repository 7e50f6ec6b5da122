"""Predicted memory of detectors against what torch's allocator hands out, by the number of objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import allocator

from trainers.augmentations.mosaic import side
from trainers.data.batches import Batch
from trainers.instances import Instances
from trainers.recipe import resolve
from trainers.training import peak_memory

FLIP: dict[str, Any] = {"horizontal_flip": 0.5}
MOSAIC: dict[str, Any] = {"mosaic": 1.0, "scale": [0.5, 1.5]}


class Objects(allocator._Drawn):
    """As many objects in each picture as the one with most has, or in each place of a mosaic."""

    def batches(self, _: str, passes: Any) -> Any:
        rng, places = np.random.default_rng(0), side(self.recipe.augment)
        height, width = (places * length for length in self.recipe.storage_size)
        for of in passes:
            table = np.zeros((len(of.ids), places**2 * self.meta["most_objects"], 8), np.float32)
            near = rng.uniform(0, 0.7, (*table.shape[:2], 2))
            table[..., :2] = near * (width, height)
            table[..., 2:4] = (near + rng.uniform(0.05, 0.3, near.shape)) * (width, height)
            table[..., 4], table[..., 6:] = rng.integers(0, 3, table.shape[:2]), (100, 1)
            yield Batch(of, rng.integers(0, 256, (len(of.ids), height, width, 3), np.uint8), self.targets(table, rng))

    def targets(self, table: Any, _: np.random.Generator) -> Any:
        return table


class Outlined(Objects):
    """The same with masks: noise of their numbers, in as many layers as the picture with most has."""

    def targets(self, table: Any, rng: np.random.Generator) -> Any:
        shape = (len(table), self.meta["layers"], *self.recipe.storage_size)
        wider = np.concatenate([table, np.full_like(table[..., :1], 100)], -1)  # pixels of each
        return Instances(wider, rng.integers(0, table.shape[1] + 1, shape, np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "size", "augment"),
    [  # each two values of two columns meet
        (10, (64, 64), FLIP),
        (100, (64, 64), MOSAIC),
        (10, (96, 128), MOSAIC),
        (100, (96, 128), FLIP),
        (10, (160, 160), FLIP),
        (100, (160, 160), MOSAIC),
    ],
)
def test_the_memory_of_a_detector_is_predicted_by_its_objects(
    most: int, size: tuple[int, int], augment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator, "_Drawn", Objects)
    recipe = resolve("shapes.fcos", image_size=size, precision="fp32", batch_size=4, augment=augment)
    meta = {**allocator.facts(recipe, 3, 3), "target": "boxes", "most_objects": most}
    assert peak_memory.predict(recipe, meta) == pytest.approx(allocator.measure(recipe, meta), rel=0.035)


@pytest.mark.slow
@pytest.mark.parametrize(("most", "size"), [(100, (64, 64)), (10, (96, 128)), (100, (160, 160))])
def test_the_memory_of_masks_is_predicted_by_their_objects(
    most: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator, "_Drawn", Outlined)
    recipe = resolve("shapes.fcos_masks", image_size=size, precision="fp32", batch_size=4)
    meta = {**allocator.facts(recipe, 3, 3), "target": "instances", "most_objects": most, "layers": 2}
    assert peak_memory.predict(recipe, meta) == pytest.approx(allocator.measure(recipe, meta), rel=0.035)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision_fcos", "torchvision_retinanet"])
def test_the_memory_of_large_detectors_is_predicted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_Drawn", Objects)
    recipe = resolve("shapes.fcos", model=model, image_size=(96, 128), precision="fp32", batch_size=4)
    meta = {**allocator.facts(recipe, 3, 3), "target": "boxes", "most_objects": 20}
    assert peak_memory.predict(recipe, meta) == pytest.approx(allocator.measure(recipe, meta), rel=0.035)
