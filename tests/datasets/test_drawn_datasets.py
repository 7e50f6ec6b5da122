"""Drawn shapes: always the same pictures, masks that fit them, and no colour or place that gives a class away."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from trainers.box_table import CLASS, are_plain, corners
from trainers.data import targets
from trainers.datasets import BOXES, CROWD, DIFFICULT, MASK, PLAIN, Objects, Source, shapes
from trainers.tasks import average_precision

SMALL: dict[str, int] = {"train": 3, "val": 2, "test": 2, "height": 40, "width": 52}


def pictures(source: Source, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [picture for item in source.splits[split] for picture in shapes.read(item)]


@lru_cache(maxsize=2)
def default(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and masks of a split as it comes, of train the first 160."""
    source = shapes.source(None, train=160)
    images, masks = zip(*pictures(source, split), strict=True)
    return np.stack(images), np.stack(masks)


# ---- what is drawn ----


def test_the_source_describes_splits_classes_and_colours() -> None:
    source = shapes.source(None)
    assert source.target == "masks"
    assert source.channels == 3
    assert set(source.splits) == {"train", "val", "test"}
    assert source.colours is not None
    assert len(source.colours) == len(set(source.colours)) == len(source.classes)
    items = [item for split in source.splits.values() for item in split]
    assert len({item.name for item in items}) == len(items)
    assert all(item.path is None and item.mask_path is None for item in items)
    assert {target for item in items for target in item.targets} == {MASK}


def test_pictures_and_masks_are_of_the_size_asked_for() -> None:
    source = shapes.source(None, **SMALL)
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        drawn = pictures(source, split)
        assert len(drawn) == count
        for image, mask in drawn:
            assert (image.dtype, image.shape) == (np.uint8, (40, 52, 3))
            assert (mask.dtype, mask.shape) == (np.uint8, (40, 52))
            assert image.std() > 5


def test_without_test_pictures_there_is_no_test_split() -> None:
    assert set(shapes.source(None, test=0).splits) == {"train", "val"}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_masks_hold_every_class_and_nothing_else(split: str) -> None:
    _, masks = default(split)
    classes = len(shapes.CLASSES)
    present = np.unique(masks)
    assert set(present) == set(range(classes))
    for label in range(classes):
        assert (masks == label).any(axis=(1, 2)).mean() > 0.3, f"{shapes.CLASSES[label]} is in few pictures"


def test_shapes_of_two_classes() -> None:
    four = pictures(shapes.source(None, **SMALL), "train")
    source = shapes.source(None, **SMALL, binary=True)
    assert source.classes == ["background", "shape"]
    for (image, mask), (same, two) in zip(four, pictures(source, "train"), strict=True):
        assert (image == same).all()
        assert ((mask > 0) == two).all()


# ---- always the same ----


def test_the_same_arguments_draw_the_same_pictures() -> None:
    for split in ("train", "val", "test"):
        first, second = (pictures(shapes.source(None, **SMALL, seed=5), split) for _ in range(2))
        for (image, mask), (again, mask_again) in zip(first, second, strict=True):
            assert image.tobytes() == again.tobytes()
            assert mask.tobytes() == mask_again.tobytes()


def test_a_picture_does_not_depend_on_the_others() -> None:
    few = pictures(shapes.source(None, **SMALL), "train")
    many = pictures(shapes.source(None, **{**SMALL, "train": 20, "val": 7}), "train")
    assert len(many) == 20
    assert all((image == other).all() for (image, _), (other, _) in zip(few, many, strict=False))


def test_no_picture_is_in_two_splits_or_of_two_seeds() -> None:
    drawn = [
        image.tobytes()
        for seed in (0, 1)
        for split in ("train", "val", "test")
        for image, _ in pictures(shapes.source(None, **SMALL, seed=seed), split)
    ]
    assert len(set(drawn)) == len(drawn) == 14


# ---- no give-away ----


def mean_iou(predicted: npt.NDArray[Any], masks: npt.NDArray[Any], classes: int) -> float:
    pairs = masks.ravel().astype(np.int64) * classes + predicted.ravel()
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    right = np.diag(confusion)
    return float((right / (confusion.sum(0) + confusion.sum(1) - right)).mean())


def colour_and_place(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(pixels, 5): red, green, blue, x, y"""
    count, height, width, _ = images.shape
    down, across = np.broadcast_arrays(np.arange(height)[:, None] / height, np.arange(width)[None] / width)
    place = np.broadcast_to(np.stack([across, down], axis=-1), (count, height, width, 2))
    return np.concatenate([images / 255, place], axis=-1).reshape(-1, 5)


@pytest.mark.parametrize("weighted", [None, "balanced"])
def test_colour_and_place_of_a_pixel_do_not_reveal_its_class(weighted: str | None) -> None:
    from sklearn.linear_model import LogisticRegression

    (images, masks), (new_images, new_masks) = default("train"), default("val")
    chosen = np.random.RandomState(0).choice(masks.size, 20_000, replace=False)
    features, labels = colour_and_place(images)[chosen], masks.ravel()[chosen]
    mean, std = features.mean(0), features.std(0)
    model = LogisticRegression(max_iter=1000, class_weight=weighted).fit((features - mean) / std, labels)
    predicted = model.predict((colour_and_place(new_images) - mean) / std).reshape(new_masks.shape)
    assert mean_iou(predicted, new_masks, 4) < 0.5


def test_constant_guesses_are_poor() -> None:
    (_, masks), (_, new_masks) = default("train"), default("val")
    counts = np.stack([(masks == label).sum(0) for label in range(4)])
    commonest_at_each_place = np.broadcast_to(counts.argmax(0), new_masks.shape)
    assert mean_iou(commonest_at_each_place, new_masks, 4) < 0.25
    commonest = np.full(new_masks.shape, counts.sum((1, 2)).argmax())
    assert mean_iou(commonest, new_masks, 4) < 0.25


def test_the_mean_colours_of_shapes_do_not_differ() -> None:
    images, masks = default("train")
    means = np.stack([images[masks == label].mean(0) for label in range(4)])
    assert np.ptp(means, axis=0).max() < 0.5 * images.std()


# ---- refusals ----


def test_arguments_that_are_not_allowed_are_refused() -> None:
    name = shapes.__name__.rpartition(".")[2]
    refused: list[tuple[dict[str, int], str]] = [
        ({"train": 0}, "train=0 pictures is not allowed; give 1 to 1,000,000"),
        ({"val": -1}, "val=-1 pictures is not allowed; give 1 to 1,000,000"),
        ({"test": -1}, "test=-1 pictures is not allowed; give 0 to 1,000,000"),
        ({"height": 8}, f"height=8 and width=64 must both be from {shapes.SMALLEST} to 4096 pixels"),
        ({"width": 5000}, f"height=64 and width=5000 must both be from {shapes.SMALLEST} to 4096 pixels"),
        ({"seed": -1}, "seed=-1 is out of range; give a number from 0 to 4294967295"),
    ]
    for changed, message in refused:
        with pytest.raises(ValueError, match=message):
            shapes.source(None, **{"height": 64, "width": 64, **changed})
    with pytest.raises(ValueError, match=f"the data set {name} is drawn, .* leave --data pictures out"):
        shapes.source("pictures")


@pytest.mark.parametrize("size", [(0, 0), (150, 40)])
def test_the_smallest_and_narrow_pictures_can_be_drawn(size: tuple[int, int]) -> None:
    height, width = (max(shapes.SMALLEST, side) for side in size)
    image, mask = pictures(shapes.source(None, train=1, height=height, width=width), "train")[0]
    assert image.shape == (height, width, 3)
    assert mask.shape == (height, width)


# ---- with boxes ----


def with_objects(**args: Any) -> list[tuple[np.ndarray, Objects]]:
    source = shapes.source(None, **{"objects": "boxes", "train": 120, **args})
    return [picture for item in source.splits["train"] for picture in shapes.read(item)]


def test_a_source_of_boxes() -> None:
    source = shapes.source(None, objects="boxes")
    assert (source.target, list(source.classes)) == ("boxes", ["circle", "square", "triangle"])
    assert source.colours is not None
    assert len(source.colours) == 3
    assert {target for items in source.splits.values() for item in items for target in item.targets} == {BOXES}
    assert shapes.read(source.splits["val"][0])[0][0].shape == (96, 128, 3)
    assert shapes.source(None, objects="boxes", binary=True).classes == ["shape"]


@lru_cache(maxsize=1)
def numbered() -> list[tuple[Objects, np.ndarray]]:
    """The objects of pictures, and the numbers of those that are seen, pixel by pixel."""
    drawn, shrink = [], shapes._shrink

    def watched(*args: Any) -> Any:
        image, seen = shrink(*args)
        drawn.append(seen)
        return image, seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "_shrink", watched)
        return [(objects, seen) for (_, objects), seen in zip(with_objects(), drawn, strict=True)]


def test_a_box_and_an_area_are_those_of_what_is_seen() -> None:
    """By SciPy, from the numbers of the shapes that are seen."""
    kinds: list[int] = []
    for objects, seen in numbered():
        parts = [(number, part) for number, part in enumerate(ndimage.find_objects(seen), 1) if part is not None]
        sides = [[across.start, down.start, across.stop, down.stop] for _, (down, across) in parts]
        pixels = objects.corners * (128, 96, 128, 96)
        np.testing.assert_allclose(pixels, np.reshape(sides, (-1, 4)), atol=1e-9)
        assert objects.areas.tolist() == [(seen == number).sum() for number, _ in parts]
        kinds += objects.kinds.tolist()
        small = (objects.areas < shapes.LEAST) & (objects.kinds == PLAIN)
        assert not small.any()
    assert {*kinds} == {PLAIN, CROWD, DIFFICULT}


def test_masks_are_the_pixels_that_are_seen_of_the_same_objects() -> None:
    for (image, found), (objects, seen) in zip(with_objects(objects="masks"), numbered(), strict=True):
        assert image.shape == (96, 128, 3)
        for one, other in zip(found[:4], objects[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        assert found.outlines is not None
        numbers = np.unique(seen[seen > 0]).tolist()
        for mask, number in zip(found.outlines, numbers, strict=True):
            np.testing.assert_array_equal(mask, seen == number)
    assert shapes.source(None, objects="masks").target == "instances"


def test_some_pictures_have_no_shape_and_others_up_to_five() -> None:
    found = [objects for objects, _ in numbered()]
    counts = np.bincount([(objects.kinds != CROWD).sum() for objects in found], minlength=6)
    assert 0.03 < counts[0] / len(found) < 0.2
    assert counts[2:6].min() > 10
    assert len(counts) == 6
    classes = np.bincount(np.concatenate([objects.classes for objects in found]), minlength=3)
    assert classes.min() > 0.25 * classes.sum()


def test_a_picture_with_boxes_does_not_depend_on_the_others_and_one_class_is_the_same_picture() -> None:
    few, many, one = with_objects(train=3), with_objects(train=20), with_objects(train=3, binary=True)
    for (image, objects), (other, same), (third, single) in zip(few, many, one, strict=False):
        assert image.tobytes() == other.tobytes() == third.tobytes()
        for part, part_again in zip(objects[:4], same[:4], strict=True):
            np.testing.assert_array_equal(part, part_again)
        assert not single.classes.any()
        np.testing.assert_array_equal(single.corners, objects.corners)


@pytest.mark.parametrize("kind", ["of other pictures", "a grid"])
def test_boxes_that_are_the_same_for_every_picture_find_next_to_nothing(kind: str) -> None:
    """A hundred each: of the shapes of other pictures, or of the middle size, side by side."""
    boxes, image = targets.kind("boxes"), np.zeros((96, 128, 3), np.uint8)
    checked = [boxes.check("a", image, objects, 3).table for objects, _ in numbered()]
    known, scored = np.concatenate(checked[:60]), boxes.stack(checked[60:])
    known = known[are_plain(known)]
    constant = np.zeros((100, 6))
    if kind == "a grid":
        middle = np.median(corners(known)[:, 2:] - corners(known)[:, :2], axis=0)
        places = [(x, y, label) for label in range(3) for y in np.linspace(15, 81, 5) for x in np.linspace(15, 113, 6)]
        for row, (x, y, label) in zip(constant, places, strict=False):
            row[:4], row[5] = [*((x, y) - middle / 2), *((x, y) + middle / 2)], label
        constant[len(places) :, 5] = -1
    else:
        constant[:, :4], constant[:, 5] = corners(known)[:100], known[:100, CLASS]
    constant[:, 4] = np.linspace(0.9, 0.1, 100)
    matches = average_precision.match(np.broadcast_to(constant, (len(scored), 100, 6)), scored)
    found = average_precision.scores(matches, average_precision.count_truths(scored, 3))
    assert found["ap50"] < 0.05
