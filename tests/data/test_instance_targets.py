"""Objects with masks: what is stored, and what becomes of it where pictures are changed."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from trainers import notices, outlines
from trainers.box_table import AREA, CLASS, KIND, LEFT, PAD, SCALE, TOP, are_objects, corners
from trainers.data import mosaic, targets
from trainers.data.batches import Batch
from trainers.data.resize import shrink
from trainers.data.sampler import one_pass
from trainers.data.targets.instances import PIXELS
from trainers.datasets import CROWD, PLAIN, BadImage, Objects
from trainers.instances import Instances, each, masks
from trainers.recipe import Recipe
from trainers.training.distributed import World
from trainers.training.preprocess import Preprocess

KIND_OF = targets.kind("instances")
STORED = (40, 56)
Array = npt.NDArray[Any]


def objects(drawn: Array, **others: Any) -> Objects:
    """Those with masks, bool (M, height, width), and the boxes around them."""
    boxes = np.array([box_of(mask) for mask in drawn], np.float64).reshape(-1, 4)
    fields: dict[str, Any] = {
        "corners": boxes / (drawn.shape[2], drawn.shape[1], drawn.shape[2], drawn.shape[1]),
        "classes": np.zeros(len(drawn), np.int64),
        "kinds": np.full(len(drawn), PLAIN),
        "areas": drawn.sum((1, 2)).astype(np.float64),
        "outlines": list(drawn.astype(np.uint8)),
    }
    return Objects(**{**fields, **others})


def box_of(mask: Array) -> list[int]:
    down, across = np.nonzero(mask)
    return [across.min(), down.min(), across.max() + 1, down.max() + 1]


def discs(rng: np.random.Generator, count: int, size: tuple[int, int] = STORED) -> Array:
    """Masks of overlapping discs, bool (count, *size)."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    middles = rng.uniform(0, 1, (count, 2)) * size
    radii = rng.uniform(1.5, 12, count)
    inside: Array = (y - middles[:, :1, None]) ** 2 + (x - middles[:, 1:, None]) ** 2 < radii[:, None, None] ** 2
    return inside


def stored(found: Objects, own: tuple[int, int] = STORED, size: tuple[int, int] = STORED, how: str = "pad") -> Any:
    """Of one picture, as a set stores it."""
    image = np.zeros((*own, 3), np.uint8)
    return KIND_OF.stack([KIND_OF.resize(KIND_OF.check("one.png", image, found, 3), size, how)])


def test_masks_come_back_as_they_were_however_they_overlap() -> None:
    rng = np.random.default_rng(0)
    several = [discs(rng, count) for count in (1, 7, 0, 12)]
    rows = [KIND_OF.check("a", np.zeros((*STORED, 1)), objects(each_one, layers=6), 1) for each_one in several]
    stacked = KIND_OF.stack([KIND_OF.resize(row, STORED, "pad") for row in rows])
    assert stacked.table.shape[:2] == (4, 12)
    assert 2 < stacked.layers.shape[1] <= 6
    for row, drawn in zip(masks(stacked), several, strict=True):
        np.testing.assert_array_equal(row[: len(drawn)], drawn)
        assert not row[len(drawn) :].any()
    assert KIND_OF.count(stacked, 1) == {"counts": [20], "most_objects": 12, "layers": stacked.layers.shape[1]}


def test_the_largest_comes_first_and_each_goes_where_it_overlaps_nothing() -> None:
    drawn = np.zeros((4, *STORED), bool)
    drawn[0, 5:10, 5:10], drawn[1, :20, :20], drawn[2, 8:12, 8:14], drawn[3, 30:, 30:] = True, True, True, True
    layers = stored(objects(drawn)).layers[0]
    assert [sorted({*np.unique(layer)} - {0}) for layer in layers] == [[2, 4], [1], [3]]


def test_where_layers_do_not_suffice_the_larger_objects_lose_what_overlaps_least_and_it_is_said() -> None:
    drawn = np.zeros((3, *STORED), bool)
    drawn[0, :20, :20], drawn[1, 10:24, 10:24], drawn[2, 19:23, 15:24] = True, True, True
    with notices.collected() as found:
        made = stored(objects(drawn, layers=2))
    assert found["masks cut"]["count"] == 1
    (said,) = notices.describe(found)
    assert said.startswith("one.png has more masks that lie over one another than layers hold")
    expected = drawn.copy()
    expected[0] &= ~drawn[2]  # 5 pixels; the second one would lose 36
    np.testing.assert_array_equal(masks(made)[0], expected)
    assert made.table[0, :, PIXELS].tolist() == expected.sum((1, 2)).tolist()
    with notices.collected() as found:
        np.testing.assert_array_equal(masks(stored(objects(drawn, layers=3)))[0], drawn)
    assert not found


@pytest.mark.parametrize("how", ["pad", "stretch"])
def test_a_mask_of_another_size_is_that_of_a_mask_of_classes(how: str) -> None:
    drawn = discs(np.random.default_rng(1), 6, (80, 90))
    made = stored(objects(drawn, layers=6), (80, 90), STORED, how)
    for found, mask in zip(masks(made)[0], drawn, strict=True):
        expected = shrink(mask.astype(np.uint8)[:, :, None], STORED, how, mask=True)[:, :, 0] == 1
        np.testing.assert_array_equal(found, expected)


POLYGONS: list[list[float]] = [[10.1, 3.3, 50.7, 8.9, 30.3, 35.1], [2, 2, 14, 2, 14, 30, 2, 30]]


def test_polygons_are_filled_at_the_size_that_is_stored_as_they_are_written() -> None:
    shares = [[np.reshape(polygon, (-1, 2)) / STORED[::-1]] for polygon in POLYGONS]
    drawn = np.stack([outlines.fill([polygon], *STORED) for polygon in POLYGONS])
    found = objects(drawn, outlines=[[part.ravel().tolist() for part in parts] for parts in shares])
    np.testing.assert_array_equal(masks(stored(found))[0], drawn)  # each last digit counts
    half = np.stack([outlines.fill([[side / 2 for side in polygon]], 20, 28) for polygon in POLYGONS])
    np.testing.assert_array_equal(masks(stored(found, STORED, (20, 28), "stretch"))[0], half)
    padded = masks(stored(found, STORED, (40, 28), "pad"))[0]
    np.testing.assert_array_equal(padded[:, 10:30], half)
    assert not padded[:, :10].any()
    assert not padded[:, 30:].any()


def test_what_is_cut_when_pictures_are_stored_is_what_its_mask_shows() -> None:
    drawn = np.zeros((4, 40, 80), bool)  # of which x from 20 to 60 is seen
    drawn[0, 5:10, :19], drawn[1, 20:30, 18:22], drawn[2, 12:18, 25:40] = True, True, True
    drawn[3, 30:38, 10:12], drawn[3, 37, 10:25] = True, True  # an L of which 5 pixels in 29 are seen, and half the box
    with notices.collected() as found:
        table, layers = stored(objects(drawn), (40, 80), (40, 40), "crop")
    assert found["boxes cut"]["count"] == 1
    assert corners(table)[0].tolist() == [[0, 20, 2, 30], [5, 12, 20, 18], [0, 37, 5, 38]]
    assert table[0, :, KIND].tolist() == [PLAIN, PLAIN, CROWD]
    assert table[0, :, AREA].tolist() == table[0, :, PIXELS].tolist() == [20, 90, 5]
    np.testing.assert_array_equal(masks(Instances(table, layers))[0], drawn[1:, :, 20:60])


def test_an_object_too_small_for_a_pixel_keeps_the_one_in_the_middle_of_its_box() -> None:
    drawn = np.zeros((2, 400, 560), bool)
    drawn[0, 100:102, 203:205], drawn[1, 0, 559] = True, True
    made = masks(stored(objects(drawn), (400, 560)))[0]
    assert [np.argwhere(mask).tolist() for mask in made] == [[[10, 20]], [[0, 55]]]


def test_a_picture_without_objects_has_an_empty_layer() -> None:
    table, layers = stored(objects(np.zeros((0, *STORED), bool)))
    assert (table[0, 0, CLASS], table[0, 0, SCALE], layers.shape, layers.any()) == (PAD, 1, (1, 1, *STORED), False)
    assert not masks(Instances(table, layers)).any()


def test_what_are_no_outlines_is_named() -> None:
    drawn = discs(np.random.default_rng(2), 2)
    for wrong, words in (
        ({"outlines": None}, "Objects.outlines is None; it must hold one for each of 2 objects"),
        ({"outlines": [drawn[0]]}, "Objects.outlines is a list of 1; it must hold one for each of 2"),
        ({"outlines": list(drawn)}, "the mask of an object is 40x56 of bool; it must be 0 and 1 of uint8, 40x56"),
        ({"outlines": list(drawn.astype(np.uint8) * 255)}, "it must be 0 and 1 of uint8"),
        ({"outlines": ["0 0 1 1 0 1", []]}, "an outline is str"),
        ({"layers": 7}, "Objects.layers is 7; it must be 1 to 6"),
    ):
        with pytest.raises(TypeError, match=words):
            stored(objects(drawn, **wrong))
    for polygons, words in (
        ([[[0, 0, 1, 1]], [[0, 0, 1, 0, 1, 1]]], "one.png: the polygon of an object has 4 numbers; .* three points"),
        ([[], [[0, 0, 1, 0, 1, 1]]], "has 0 numbers"),
        ([[[0, 0, 1, 0, 1, float("nan")]]] * 2, "must be finite"),
    ):
        with pytest.raises(BadImage, match=words):
            stored(objects(drawn, outlines=polygons))
    one = np.zeros((256, *STORED), bool)
    one.reshape(256, -1)[np.arange(256), np.arange(256)] = True
    with pytest.raises(BadImage, match=r"one\.png: it has 256 objects, and at most 255 of a picture can have masks"):
        stored(objects(one))
    np.testing.assert_array_equal(masks(stored(objects(one[:255])))[0], one[:255])


def some_pictures(counts: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(3)
    made = [stored(objects(discs(rng, count), layers=6)) for count in counts]
    return KIND_OF.stack([Instances(table[0], layers[0]) for table, layers in made])


def test_shards_give_back_the_same_targets_in_any_order() -> None:
    whole = some_pictures((3, 0, 8, 1, 5, 12))
    parts = [each(itemgetter(rows), whole) for rows in (slice(0, 2), slice(2, 3), slice(3, 6))]
    columns = KIND_OF.from_columns([KIND_OF.to_column(part) for part in parts])
    for ids in ([0, 1, 2, 3, 4, 5], [4, 0, 5], [1], [3, 3, 2]):
        table, layers = KIND_OF.gather(columns, np.array([0, 2, 3]), np.array(ids))
        most = max(1, *(int(are_objects(whole.table[number]).sum()) for number in ids))
        np.testing.assert_array_equal(table, whole.table[ids, :most])
        np.testing.assert_array_equal(layers, whole.layers[ids, : layers.shape[1]])
        assert not whole.layers[ids, layers.shape[1] :].any()
        assert layers[:, -1].any() or layers.shape[1] == 1
    assert isinstance(KIND_OF.to_column(whole), pa.StructArray)


def test_what_identifies_targets_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(4)
    one, many = objects(discs(rng, 2)), objects(discs(rng, 14), layers=6)
    (alone,), (first, other) = (
        KIND_OF.identify(KIND_OF.stack([Instances(*(part[0] for part in stored(found))) for found in some]))
        for some in ((one,), (one, many))
    )
    assert alone == first != other
    moved = objects(np.roll(discs(np.random.default_rng(4), 2), 1, axis=2))
    assert KIND_OF.identify(stored(moved)) != [alone]


def test_dummies_are_as_targets_are() -> None:
    most = targets.Most.of({"most_objects": 7, "layers": 3})
    table, layers = KIND_OF.dummy(2, (8, 9), 3, most)
    real = some_pictures((2,))
    assert (table.shape, table.dtype) == ((2, 7, real.table.shape[2]), np.float32)
    assert (layers.shape, layers.dtype) == ((2, 3, 8, 9), np.uint8)
    assert KIND_OF.stack([]).table.shape[2] == real.table.shape[2]
    made, beyond = targets.stand_in(KIND_OF, 2, (8, 9), 3, most)
    assert (made.table.shape, made.table.dtype, made.layers.shape) == ((2, 7, 8), torch.float64, (2, 3, 8, 9))
    assert beyond == (8, 9)


# ---- changed pictures ----

MOVES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"horizontal_flip": 0.5, "vertical_flip": 0.5}, STORED),
    ({"crop": True, "horizontal_flip": 0.5}, (24, 32)),
    ({"translate": 0.4, "pad": 5}, STORED),
    ({"erase": 1.0}, STORED),
]
SCALES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"scale": [0.5, 2.0], "translate": 0.1}, (36, 48)),
    ({"resized_crop": [0.2, 1.0]}, (36, 48)),
]
TURNS: list[tuple[dict[str, Any], tuple[int, int]]] = [({"rotate": 40}, STORED), ({"rand_augment": [2, 20]}, STORED)]


def changed(stacked: Any, augment: dict[str, Any], size: tuple[int, int], epoch: int | None = 1) -> Any:
    """What the task gets."""
    recipe = Recipe(
        dataset="shapes",
        model="unet",
        image_size=size,
        stored_size=STORED,
        augment=augment,
        batch_size=4,
        epochs=9,
        lr=1,
    )
    meta: Any = {"target": "instances", "mean": [0.0], "std": [1.0]}
    preprocess = Preprocess(recipe, meta, World(0, 1, torch.device("cpu"), "fp32"))
    rows = len(stacked.table)
    batch = Batch(one_pass(np.arange(rows)), np.zeros((rows, *STORED, 1), np.uint8), stacked)
    table, layers = preprocess(batch, epoch)[1]
    assert (table.dtype, layers.dtype) == (torch.float64, torch.uint8)
    return Instances(table.numpy(), layers.numpy())


@pytest.mark.parametrize(("augment", "size"), [*MOVES, *SCALES, *TURNS])
def test_a_mask_moves_by_itself_as_if_there_were_no_others(augment: dict[str, Any], size: tuple[int, int]) -> None:
    """And decides whether the object is seen: what keeps less than a fifth of it is a crowd."""
    whole = some_pictures((5, 0, 7, 4, 6, 5, 3, 8))
    table, layers = changed(whole, augment, size)
    found = masks(Instances(table, layers))
    grown = whole.table[:, :1, SCALE] / table[:, :1, SCALE]
    shares = []
    for number in range(8):  # each object in a layer of its own, by itself
        alone = Instances(whole.table, (masks(whole)[:, number, None] * np.uint8(number + 1)))
        np.testing.assert_array_equal(
            masks(Instances(table, changed(alone, augment, size).layers))[:, number], found[:, number]
        )
        shares.append(found[:, number].sum((1, 2)) / np.maximum(whole.table[:, number, PIXELS] * grown[:, 0], 1e-9))
    share, there = np.stack(shares, 1), are_objects(whole.table)
    np.testing.assert_array_equal(are_objects(table)[share > 0], there[share > 0])
    assert (share[there & ~are_objects(table)] == 0).all()
    left = are_objects(table)
    np.testing.assert_array_equal(table[left, KIND] == CROWD, share[left] < 0.2)
    assert not found[~left].any()
    np.testing.assert_allclose(table[left, AREA], whole.table[left, AREA] * np.minimum(share[left], 1), rtol=1e-6)


@pytest.mark.parametrize(("augment", "size"), [*MOVES[:3], *SCALES])
def test_boxes_are_those_of_moved_masks(augment: dict[str, Any], size: tuple[int, int]) -> None:
    table, layers = changed(some_pictures((1,) * 200), augment, size)
    seen = masks(Instances(table, layers))[:, 0]
    there = seen.any((1, 2))
    assert there.sum() > 120
    expected = np.array([box_of(mask) for mask in seen[there]])
    far = np.abs(corners(table)[there, 0] - expected).max(1)
    if augment.keys().isdisjoint({"scale", "resized_crop"}):
        assert (far == 0).all()
    else:  # of a disc the outermost pixels may lie between those that are shown
        grown = np.sqrt(1 / table[there, 0, SCALE])
        assert (far <= 0.5 + 0.5 * np.maximum(1, grown)).all()
        assert (far <= 0.5).mean() > 0.7


@pytest.mark.parametrize(("augment", "size"), TURNS)
def test_the_box_of_what_was_turned_is_the_one_around_its_mask(augment: dict[str, Any], size: tuple[int, int]) -> None:
    whole = some_pictures((1,) * 60)
    table, layers = changed(whole, augment, size)
    seen = masks(Instances(table, layers))[:, 0]
    there = seen.any((1, 2))
    far = np.abs(corners(table)[there, 0] - [box_of(mask) for mask in seen[there]]).max(1)
    assert (far < 1).all()
    assert (far == 0).mean() > (0.9 if "rotate" in augment else 0.5)  # others were not turned, but scaled
    assert (table[~there, 0, CLASS] == PAD).all()


def test_without_changes_the_task_gets_what_is_stored() -> None:
    whole = some_pictures((4, 0, 2))
    table, layers = changed(whole, {"rotate": 40}, STORED, None)
    np.testing.assert_array_equal(table, whole.table[..., :PIXELS])
    np.testing.assert_array_equal(layers, whole.layers)
    table, layers = changed(whole, {"crop": True}, (20, 28), None)  # the middle
    np.testing.assert_array_equal(layers, whole.layers[:, :, 10:30, 14:42])
    assert are_objects(table).any()


def test_an_object_without_a_mask_goes_by_its_box() -> None:
    whole = some_pictures((3, 3))
    whole.layers[whole.layers == 2] = 0
    whole.table[:, 1, PIXELS] = 0
    boxes = targets.kind("boxes")
    found = changed(whole, {"translate": 0.3, "horizontal_flip": 0.5}, STORED).table[:, 1]
    masked = changed(some_pictures((3, 3)), {"translate": 0.3, "horizontal_flip": 0.5}, STORED).table[:, 1]
    np.testing.assert_array_equal(found[:, SCALE], masked[:, SCALE])
    assert boxes.name == "boxes"
    assert (found[:, CLASS] == 0).any()


@pytest.mark.parametrize("settings", [{"mixup": 0.2}, {"cutmix": 1}, {"fill": "reflect"}, {"elastic": [34, 4]}])
def test_what_masks_of_objects_cannot_follow_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leave it out"):
        KIND_OF.refuse(settings)
    KIND_OF.refuse({"rotate": 30, "mosaic": 1, "erase": 0.5})
    assert KIND_OF.doubts({"rotate": 30}) == []


# ---- mosaics ----


class Drawn:
    """A set of pictures whose objects have a class each, their number in the set."""

    def __init__(self, whole: Any) -> None:
        rows = len(whole.table)
        self.meta: Any = {"target": "instances", "rows": {"train": rows}, "mean": [0.0], "std": [1.0]}
        self.whole, there = whole, are_objects(whole.table)
        whole.table[there, CLASS] = np.arange(there.sum())
        self.places = np.argwhere(there)

    def batches(self, split: str, passes: Any) -> Any:
        for of in passes:
            rows = each(itemgetter(of.ids), self.whole)
            yield Batch(of, np.zeros((len(of.ids), *STORED, 1), np.uint8), rows)

    def labels(self, split: str) -> Array:
        raise AssertionError


def of_mosaics(data: Drawn, **augment: Any) -> tuple[Batch, Any]:
    """All mosaics of an epoch, and what the task gets of them."""
    how = Recipe(
        dataset="shapes",
        model="unet",
        image_size=STORED,
        augment={"mosaic": 1.0, **augment},
        batch_size=4,
        epochs=20,
        lr=1,
    )
    of = one_pass(np.arange(data.meta["rows"]["train"]))
    (batch,) = mosaic.batches(data, "train", [of], how, 0)
    found = Preprocess(how, data.meta, World(0, 1, torch.device("cpu"), "fp32"))(batch, 0)[1]
    return batch, each(lambda part: part.numpy(), found)


def test_in_a_mosaic_each_object_keeps_its_pixels() -> None:
    data = Drawn(some_pictures((3, 0, 5, 1, 4, 7, 2, 0, 6, 3)))
    batch, seen = of_mosaics(data)
    own, made, shown = masks(data.whole), masks(batch.targets), masks(seen)
    parts = 0
    for row, table in enumerate(batch.targets.table):
        for number in np.flatnonzero(are_objects(table)):
            picture, place = data.places[int(table[number, CLASS])]
            sides = [LEFT, TOP]
            left, top = (table[number, sides] - data.whole.table[picture, place, sides]).astype(int).tolist()
            canvas = np.zeros((3 * STORED[0], 3 * STORED[1]), bool)  # with half a picture around
            y, x = top + STORED[0] // 2, left + STORED[1] // 2
            canvas[y : y + STORED[0], x : x + STORED[1]] = own[picture, place]
            middle = canvas[STORED[0] // 2 :, STORED[1] // 2 :][: 2 * STORED[0], : 2 * STORED[1]]
            np.testing.assert_array_equal(made[row, number], middle)
            middle = canvas[STORED[0] :, STORED[1] :][: STORED[0], : STORED[1]]
            np.testing.assert_array_equal(shown[row, number], middle)
            share = middle.sum() / own[picture, place].sum()
            there = seen.table[row, number]
            assert (there[CLASS] == PAD) == (share == 0)
            if share > 0:
                assert there[KIND] == (CROWD if share < 0.2 else PLAIN)
                assert there[AREA] == pytest.approx(share * data.whole.table[picture, place, AREA], rel=1e-6)
            parts += 0 < share < 1
    assert parts > 10


def test_beyond_255_objects_of_a_mosaic_the_smallest_are_ignored() -> None:
    more = np.zeros((100, *STORED), bool)
    more.reshape(100, -1)[np.arange(100), np.arange(0, 2000, 20)] = True
    more[0, 18:24, 26:32] = True
    table, layers = stored(objects(more))
    data = Drawn(KIND_OF.stack([Instances(table[0], layers[0])] * 5))
    batch, seen = of_mosaics(data, scale=[0.5, 0.5])
    found = batch.targets.table
    assert found.shape[1] == 400
    assert (found[:, :255, KIND] == PLAIN).all()
    assert (found[:, 255:, KIND] == CROWD).all()
    assert (found[:, :4, PIXELS] == 37).all()
    held = masks(batch.targets)
    assert held[:, :4].any((2, 3)).all()
    assert not held[:, 255:].any()
    assert (seen.table[:, 255:, CLASS] != PAD).any()
