"""Boxes of detections: duplicates removed in static shapes, looks merged, mapped back to the picture."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks
from torch import Tensor, nn
from torchvision.ops import batched_nms

from trainers.data.resize import shrink
from trainers.data.targets.boxes import Boxes
from trainers.datasets import Objects
from trainers.inference import Views
from trainers.inference.boxes import back, kept, merge, whole
from trainers.inference.predictions.coco_results import Found, image_ids, results
from trainers.inference.predictions.objects import Seen
from trainers.inference.views import Averaged, Orders
from trainers.outlines import Piece
from trainers.recipe import resolve

RECIPE = resolve("digits.cnn", image_size=(32, 64))


def crowded(seed: int, count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes around a few places, so that many overlap; their scores, in descending order; their classes."""
    random = np.random.RandomState(seed)
    middles = random.uniform(0, 100, (max(1, count // 8), 2))[random.randint(max(1, count // 8), size=count)]
    middles += random.normal(0, 4, (count, 2))
    sides = random.uniform(5, 40, (count, 2))
    boxes = torch.from_numpy(np.concatenate([middles - sides / 2, middles + sides / 2], 1))
    scores = torch.from_numpy(np.sort(random.choice(500, count) / 500)[::-1].copy())  # some are equal
    return boxes, scores, torch.from_numpy(random.randint(classes, size=count))


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_what_is_kept_is_what_greedy_suppression_keeps(threshold: float) -> None:
    for seed in range(100):
        count = 1 + 3 * seed
        boxes, scores, classes = crowded(seed, count, 1 + seed % 5)
        expected = batched_nms(boxes, scores, classes, threshold)
        padded = torch.cat([boxes, boxes[:3]])[None], torch.cat([classes, torch.full((min(3, count),), -1)])[None]
        found = kept(*padded, threshold)[0]
        assert found.nonzero()[:, 0].tolist() == sorted(expected.tolist())


def test_each_box_of_a_chain_is_settled_in_a_round_of_its_own() -> None:
    starts = torch.arange(10.0)
    boxes = torch.stack([starts * 4, starts * 0, starts * 4 + 10, starts * 0 + 10], 1)[None]
    classes = torch.zeros(1, 10)
    assert kept(boxes, classes, 0.3)[0].tolist() == [True, False] * 5
    assert kept(boxes, classes, 0.3, rounds=3)[0].tolist() != [True, False] * 5


class Program(nn.Module):
    def forward(self, boxes: Tensor, classes: Tensor) -> Tensor:
        return kept(boxes, classes, 0.5)


@pytest.mark.slow
def test_it_can_be_exported() -> None:
    inputs = [(crowded(seed, 50, 3)[0][None], crowded(seed, 50, 3)[2][None]) for seed in range(3)]
    shapes = ({0: torch.export.Dim("batch", min=1)},) * 2
    two = tuple(torch.cat(parts) for parts in zip(*inputs[:2], strict=True))
    program = torch.export.export(Program(), two, dynamic_shapes=shapes).module()
    for each in inputs:
        assert torch.equal(program(*each), kept(*each, 0.5))


def found(*rows: tuple[float, ...]) -> Any:
    return np.array(rows, np.float64).reshape(-1, 6)


def test_what_two_looks_see_alike_is_one_object() -> None:
    first = found((0, 0, 10, 10, 0.6, 1), (100, 0, 120, 20, 0.9, 1))
    second = found((1, 0, 11, 10, 0.8, 1), (1, 0, 11, 10, 0.3, 0), (104, 0, 110, 20, 0.5, 1))
    assert merge([first, second]).tolist() == [
        [100, 0, 120, 20, 0.9, 1],
        [1, 0, 11, 10, 0.8, 1],
        [1, 0, 11, 10, 0.3, 0],
    ]
    assert merge([]).shape == (0, 6)


def test_what_one_look_tells_apart_stays_apart() -> None:
    one = found((0, 0, 10, 10, 0.6, 1), (1, 0, 11, 10, 0.8, 1))
    assert len(merge([one])) == 2
    assert len(merge([one, found((0, 0, 11, 10, 0.9, 1))])) == 1


def test_what_an_inner_rim_cuts_is_dropped() -> None:
    seen = found((0, 5, 10, 20, 0.9, 0), (5, 5, 32, 20, 0.8, 0), (8, 0, 20, 9, 0.7, 0), (8, 20, 20, 32, 0.6, 0))
    left_of = whole(seen, (32, 32), (0, 0), (32, 100))
    assert left_of[:, 4].tolist() == [0.9, 0.7, 0.6]  # the picture goes on to the right alone
    middle = whole(seen, (32, 32), (40, 50), (100, 100))
    assert middle.tolist() == []
    inner = whole(found((4, 5, 10, 20, 0.9, 2)), (32, 32), (40, 50), (100, 100))
    assert inner.tolist() == [[54, 45, 60, 60, 0.9, 2]]


@pytest.mark.parametrize("how", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("own", [(40, 120), (120, 40), (33, 57), (64, 96)])
def test_boxes_come_back_to_where_the_objects_are(how: str, own: tuple[int, int]) -> None:
    """By the way that the targets went to the stored picture, and from there to its middle."""
    stored, size = (64, 96), (56, 80)
    corners = np.array([[0.4, 0.42, 0.55, 0.61], [0.45, 0.4, 0.6, 0.5]])
    objects = Objects(corners, np.array([0, 1]), np.zeros(2, np.int64), np.ones(2))
    codec = Boxes()
    checked = codec.check("a", np.zeros((*own, 3), np.uint8), objects, 2)
    table = codec.resize(checked, stored, how)
    seen = np.concatenate([table[:, :4] - [8, 4, 8, 4], [[0.9, 0], [0.8, 1]]], 1)
    expected = corners * [own[1], own[0], own[1], own[0]]
    np.testing.assert_allclose(back(seen, own, stored, size, how)[:, :4], expected, atol=1e-4)


def test_boxes_lie_within_the_picture() -> None:
    """What is found in the padding is none."""
    shrunk = shrink(np.full((20, 80, 3), 9, np.uint8), (64, 64), "pad")
    assert not shrunk[:20].any()
    seen = found((0, 0, 64, 20, 0.9, 0), (10, 10, 30, 40, 0.8, 0))
    assert back(seen, (20, 80), (64, 64), (64, 64), "pad").tolist() == [[12.5, 0, 37.5, 20, 0.8, 0]]


# Views


class Finder(nn.Module):
    """Knows where the brightest pixel is, whichever way a picture is turned: distances from each point to the sides of
    its box, of 3 pixels, and to the picture's mean."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = points

    def forward(self, images: Tensor) -> Tensor:
        rows = []
        for image in images:
            place = int(image[0].argmax())
            y, x = place // image.shape[2], place % image.shape[2]
            box = torch.tensor([x - 1.0, y - 1.0, x + 2.0, y + 2.0])
            sides = (self.points[:, [0, 1, 0, 1]] - box) * torch.tensor([1, 1, -1, -1])
            rows.append(torch.cat([sides / self.points[:, 2:], self.points[:, :1] * 0 + image.mean()], 1))
        return torch.stack(rows)


def lattice(height: int, width: int, strides: tuple[int, ...] = (8, 16), offset: float = 0.5) -> Tensor:
    rows = []
    for stride in strides:
        for y in range(-(-height // stride)):
            rows += [[(x + offset) * stride, (y + offset) * stride, stride] for x in range(-(-width // stride))]
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("views", "size"), [("flip", (32, 64)), ("flips", (32, 64)), ("rotations", (32, 32)), ("flips", (48, 32))]
)
def test_the_points_of_a_view_are_those_of_the_picture(views: Views, size: tuple[int, int]) -> None:
    points = lattice(*size)
    model = Finder(points)
    images = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(1))
    orders = Orders(points, RECIPE.replace(image_size=size), views)
    torch.testing.assert_close(Averaged(model, views, orders)(images), model(images))
    assert not torch.allclose(Averaged(model, views)(images), model(images))


class Outliner(nn.Module):
    """Of each point a coefficient that depends on the picture, and of each picture itself and its square as prototypes,
    at a quarter of the size: their sums are the same whichever way a picture is turned."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.finder = Finder(points)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        small = nn.functional.avg_pool2d(images, 4)
        prototypes = torch.cat([small, small**2], 1)
        mean = prototypes.mean((2, 3))[:, None].expand(-1, len(self.finder.points), -1)
        return torch.cat([self.finder(images), mean], 2), prototypes


@pytest.mark.parametrize(("views", "size"), [("flip", (32, 64)), ("flips", (32, 64)), ("rotations", (32, 32))])
def test_masks_of_a_view_are_turned_back_and_averaged(views: Views, size: tuple[int, int]) -> None:
    points = lattice(*size)
    orders, model = Orders(points, RECIPE.replace(image_size=size), views), Outliner(points)
    images = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(2))
    (expected, maps), (found, all_maps) = model(images), Averaged(model, views, orders)(images)
    own, count = expected.shape[2] - 2, all_maps.shape[1]
    assert count == 2 * len(Averaged(model, views, orders).views)
    torch.testing.assert_close(found[..., :own], expected[..., :own])
    masks = (
        torch.einsum("npk,nkhw->nphw", c, p) for c, p in ((expected[..., own:], maps), (found[..., own:], all_maps))
    )
    torch.testing.assert_close(*masks)


def test_points_that_no_mirror_image_has_are_refused() -> None:
    for points in (lattice(32, 64, offset=0), lattice(32, 60)):
        with pytest.raises(ValueError, match="needs points that lie the same way in every view"):
            Orders(points, RECIPE.replace(image_size=(32, 60)), "flip")


# COCO's results


def test_results_are_those_that_pycocotools_reads() -> None:
    pictures = [
        Found("b/000000000139.jpg", None, found((1, 2, 11, 22, 0.875, 1))),
        Found("000000000285.jpg", None, found()),
    ]
    assert json.loads(results(pictures, None)) == [
        {
            "image_id": 139,
            "category_id": 2,
            "bbox": [1, 2, 10, 20],
            "score": 0.875,
            "file_name": "b/000000000139.jpg",
        }
    ]
    (line,) = json.loads(results(pictures, [1, 90]))
    assert line["category_id"] == 90
    assert json.loads(results([], None)) == []


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools with NumPy 2
def test_masks_are_run_lengths_that_pycocotools_reads() -> None:
    rng = np.random.default_rng(0)
    piece = Piece(3, 5, rng.random((20, 30)) < 0.7)
    seen = Seen(found((5, 3, 35, 23, 0.5, 0)), [piece]).tell("1.jpg", None, (40, 50))
    (line,) = json.loads(results([seen], None))
    expected = np.zeros((40, 50), np.uint8)
    expected[3:23, 5:35] = piece.pixels
    np.testing.assert_array_equal(coco_masks.decode(line["segmentation"]), expected)


def test_pictures_are_numbered_where_nothing_numbers_them() -> None:
    empty = found()
    assert image_ids([Found("a.jpg", 7, empty), Found("b.jpg", 9, empty)]) == [7, 9]
    assert image_ids([Found("012.jpg", None, empty), Found("7.jpg", None, empty)]) == [12, 7]
    assert image_ids([Found("a/1.jpg", None, empty), Found("b/1.jpg", None, empty)]) == [1, 2]
    assert image_ids([Found("a.jpg", None, empty), Found("5.jpg", None, empty)]) == [1, 2]
