"""Boxes go where their objects go, whatever changes the pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trainers.augmentations import AUGMENTATIONS, Mixing
from trainers.box_table import AREA, BOTTOM, CLASS, COLUMNS, KIND, LEFT, PAD, SCALE, corners
from trainers.data import targets
from trainers.data.augment import Augmented, augment, center_mapping
from trainers.data.batches import Batch
from trainers.data.sampler import one_pass
from trainers.datasets import CROWD, PLAIN, Objects
from trainers.recipe import Recipe
from trainers.training.distributed import World
from trainers.training.preprocess import Preprocess

BOXES = targets.kind("boxes")
STORED = (40, 56)
COUNT = 400
Array = npt.NDArray[Any]


def tables(count: int = COUNT, stored: tuple[int, int] = STORED) -> Array:
    """Random boxes of whole pixels, one a picture: float32 (count, 1, COLUMNS)."""
    rng = np.random.default_rng(0)
    left, top = rng.integers(0, stored[1] - 4, count), rng.integers(0, stored[0] - 4, count)
    right, bottom = rng.integers(left + 3, stored[1] + 1), rng.integers(top + 3, stored[0] + 1)
    table = np.zeros((count, 1, COLUMNS), np.float32)
    table[:, 0, LEFT : BOTTOM + 1] = np.stack([left, top, right, bottom], 1)
    table[:, 0, AREA] = (right - left) * (bottom - top)
    table[:, 0, SCALE] = 1
    return table


def draw(table: Array, stored: tuple[int, int] = STORED) -> torch.Tensor:
    """Masks with the one box of each picture, uint8 (N, H, W)."""
    masks = np.zeros((len(table), *stored), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, corners(table)[:, 0].astype(int), strict=True):
        mask[top:bottom, left:right] = 1
    return torch.from_numpy(masks)


def change(settings: dict[str, Any], masks: torch.Tensor, size: tuple[int, int] = STORED) -> Augmented:
    images = torch.zeros(len(masks), 1, *masks.shape[1:])
    return augment(images, settings, size=size, seed=3, epoch=1, ids=np.arange(len(masks)), masks=masks)


def boxes_of(masks: torch.Tensor | None) -> Array:
    """Left, top, right, bottom of what is 1, (N, 4); of nothing NaN."""
    assert masks is not None
    found = np.full((len(masks), 4), np.nan)
    for row, mask in zip(found, masks.numpy() == 1, strict=True):
        down, across = np.nonzero(mask)
        if len(down):
            row[:] = across.min(), down.min(), across.max() + 1, down.max() + 1
    return found


EXACT: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"horizontal_flip": 0.5, "vertical_flip": 0.5}, STORED),
    ({"translate": 0.4}, STORED),
    ({"crop": True, "horizontal_flip": 0.5}, (24, 32)),
    ({"pad": 9, "vertical_flip": 0.5}, STORED),
    ({"horizontal_flip": 0.5, "translate": 0.2, "crop": True}, (33, 41)),
]


@pytest.mark.parametrize(("settings", "size"), EXACT)
def test_boxes_after_flips_crops_and_moves_are_those_of_the_masks(
    settings: dict[str, Any], size: tuple[int, int]
) -> None:
    table = tables()
    changed = change(settings, draw(table), size)
    moved = BOXES.move(table, changed.mapping, STORED, size, changed.erased)
    seen = boxes_of(changed.masks)
    there = ~np.isnan(seen[:, 0])
    assert there.sum() > 200
    np.testing.assert_array_equal(corners(moved)[there, 0], seen[there])
    assert (moved[~there, 0, CLASS] == PAD).all()
    assert (moved[..., SCALE] == 1).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": [0.5, 2.0], "translate": 0.1},
        {"resized_crop": [0.2, 1.0], "horizontal_flip": 0.5},
        {"scale": [0.8, 1.2], "pad": 5, "vertical_flip": 0.5},
    ],
)
def test_boxes_after_scaling_are_those_of_the_masks_to_half_a_pixel(settings: dict[str, Any]) -> None:
    table = tables()
    changed = change(settings, draw(table), (36, 48))
    moved = BOXES.move(table, changed.mapping, STORED, (36, 48))
    seen = boxes_of(changed.masks)
    there = ~np.isnan(seen[:, 0])
    assert there.sum() > 200
    np.testing.assert_allclose(corners(moved)[there, 0], seen[there], atol=0.5 + 1e-4)  # float32 positions of masks
    grown = changed.mapping[:, 0] * changed.mapping[:, 4]
    np.testing.assert_allclose(moved[:, 0, SCALE], np.abs(grown))


@pytest.mark.parametrize("settings", [{"rotate": 40}, {"rand_augment": [2, 20]}, {"trivial_augment": True}])
def test_boxes_of_turned_pictures_hold_all_of_the_object(settings: dict[str, Any]) -> None:
    table = tables()
    changed = change(settings, draw(table))
    moved, seen = BOXES.move(table, changed.mapping, STORED, STORED), boxes_of(changed.masks)
    there = ~np.isnan(seen[:, 0])
    assert there.sum() > 150
    held = corners(moved)[there, 0]
    assert (held[:, :2] <= seen[there, :2] + 0.5).all()
    assert (held[:, 2:] >= seen[there, 2:] - 0.5).all()
    close = np.abs(held - seen[there]).max(1) < 2.5  # a corner covers no middle of a pixel, and some are cut off
    assert close.mean() > 0.9


def test_an_object_of_which_too_little_is_seen_is_neither_found_nor_background() -> None:
    table = tables()
    changed = change({"translate": 0.5}, draw(table))
    moved = BOXES.move(table, changed.mapping, STORED, STORED)
    assert changed.masks is not None
    share = (changed.masks == 1).sum((1, 2)).numpy() / table[:, 0, AREA]
    assert {*np.unique(moved[:, 0, KIND])} == {PLAIN, CROWD}
    np.testing.assert_array_equal(moved[:, 0, CLASS] == PAD, share == 0)
    np.testing.assert_array_equal(moved[:, 0, KIND] == CROWD, (share > 0) & (share < 0.2))
    np.testing.assert_allclose(moved[:, 0, AREA], share * table[:, 0, AREA])


def test_an_object_that_is_erased_but_for_a_fifth_is_neither_found_nor_background() -> None:
    table = tables()
    masks = draw(table)
    changed = change({"erase": 1.0}, masks)
    moved = BOXES.move(table, changed.mapping, STORED, STORED, changed.erased)
    assert changed.masks is not None
    left = (changed.masks == 1).sum((1, 2)).numpy() / masks.sum((1, 2)).numpy()
    np.testing.assert_array_equal(moved[:, 0, KIND] == CROWD, left < 0.2)
    assert (left < 0.2).sum() > 10
    np.testing.assert_array_equal(corners(moved), corners(table))


def test_padding_stays_padding() -> None:
    table = BOXES.stack([tables(1)[0], BOXES.resize(BOXES.check("a", np.zeros((*STORED, 1)), EMPTY, 1), STORED, "pad")])
    changed = change({"resized_crop": [0.3, 0.6]}, torch.zeros(2, *STORED, dtype=torch.uint8))
    moved = BOXES.move(table, changed.mapping, STORED, STORED)
    assert moved[1, 0, CLASS] == PAD
    assert not moved[1, 0, LEFT : BOTTOM + 1].any()


EMPTY = Objects(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


@pytest.mark.parametrize("settings", [{"elastic": [34, 4]}, {"mixup": 0.2}, {"cutmix": 1}, {"fill": "reflect"}])
def test_what_boxes_cannot_follow_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"augment {next(iter(settings))} does not go with boxes: .*leave it out"):
        BOXES.refuse(settings)
    BOXES.refuse(dict.fromkeys(settings))
    targets.kind("masks").refuse(settings)


def test_whatever_else_is_offered_is_followed() -> None:
    """A new augmentation is one that boxes can follow, or is refused: this list is to be thought about."""
    refused = {name for name, each in AUGMENTATIONS.items() if isinstance(each, Mixing)} | {"elastic"}
    moves = {"horizontal_flip", "vertical_flip", "rotate", "scale", "translate", "pad", "crop", "resized_crop"}
    moves |= {"fill", "erase", "rand_augment", "trivial_augment", "mosaic"}
    values = {"brightness", "contrast", "saturation", "hue", "blur", "noise"}
    assert refused | moves | values == AUGMENTATIONS.keys()


@pytest.mark.parametrize("name", ["rotate", "rand_augment", "trivial_augment"])
def test_that_boxes_of_turned_pictures_are_too_large_is_said(name: str) -> None:
    (said,) = BOXES.doubts({name: 5, "scale": [0.5, 2]})
    assert said.startswith(f"augment {name} turns or shears pictures")
    assert BOXES.doubts({name: 0, "scale": [0.5, 2]}) == targets.kind("masks").doubts({name: 5}) == []


@pytest.mark.parametrize("epoch", [None, 2])
def test_the_model_gets_boxes_in_pixels_of_the_picture_that_it_gets(epoch: int | None) -> None:
    """White objects on black: where the picture is white."""
    table = tables(20)
    pixels = draw(table).numpy()[..., None] * np.uint8(255)
    recipe = Recipe(
        dataset="shapes",
        model="unet",
        image_size=(32, 40),
        stored_size=STORED,
        augment={"crop": True},
        batch_size=20,
        epochs=3,
        lr=0.1,
    )
    meta: Any = {"target": "boxes", "mean": [0.0], "std": [1.0]}
    preprocess = Preprocess(recipe, meta, World(0, 1, torch.device("cpu"), "fp32"))
    images, found = preprocess(Batch(one_pass(np.arange(20)), pixels, table), epoch)
    assert found.dtype == torch.float64
    seen = boxes_of((images[:, 0] > 0.5).byte())
    there = ~np.isnan(seen[:, 0])
    np.testing.assert_array_equal(corners(found)[there, 0].numpy(), seen[there])
    if epoch is None:
        np.testing.assert_array_equal(found, BOXES.move(table, center_mapping(STORED, (32, 40), 20), STORED, (32, 40)))
