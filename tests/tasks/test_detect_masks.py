"""The task of finding objects and their masks: what it makes of a model's output, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_detect import META, POINTS, SIZE, output_for, table
from torch import Tensor

from trainers import box_table, instances
from trainers.instances import Instances
from trainers.models import fcos
from trainers.models._points import Masked
from trainers.recipe import resolve
from trainers.tasks import average_precision, detect_masks
from trainers.tasks.detect_masks import DetectMasks
from trainers.training import build


def make(**args: Any) -> DetectMasks:
    return detect_masks.make(3, points=POINTS, image_size=SIZE, **args)


def targets() -> Instances[Tensor]:
    """The three objects of a picture, each all but a corner of its box; none of another."""
    tables = table()
    layers = torch.zeros(2, 2, *SIZE, dtype=torch.uint8)
    for row, (left, top, right, bottom) in enumerate(tables[0, :, :4].int().tolist()):
        layers[0, row % 2, top:bottom, left:right] = row + 1
        layers[0, row % 2, top : (top + bottom) // 2, left : (left + right) // 2] = 0
    return Instances(tables, layers)


def perfect(task: DetectMasks, given: Instances[Tensor]) -> Masked:
    """What a perfect model would say: prototypes are the masks, and each point asks for its own alone."""
    points = output_for(task.boxes, given.table)
    wanted = task.boxes.find_wanted(given.table)
    of = torch.nn.functional.one_hot(wanted.objects.clamp(min=0), 3).double() * wanted.found[..., None]
    shares = instances.masks(given).double().unflatten(2, (-1, 4)).unflatten(4, (-1, 4)).mean((3, 5))
    return Masked(torch.cat([points, of], 2), 20 * shares - 10)


def scores(task: DetectMasks, output: Masked, given: Instances[Tensor]) -> dict[str, Any]:
    counts = task.counts(output, given)
    return task.scores({name: each.numpy() for name, each in {**counts.total, **counts.per_image}.items()})


def test_a_perfect_output_has_little_loss_of_masks_and_scores_one() -> None:
    task, given = make(), targets()
    output = perfect(task, given)
    assert task.weight(given)[3] == 3
    inverse = output._replace(prototypes=-output.prototypes)
    assert float(task.loss(output, given)[3]) < 0.02 * float(task.loss(inverse, given)[3])
    found = scores(task, output, given)
    assert [found[name] for name in ("mask_ap75", "ap", "f1")] == pytest.approx([1, 1, 1])
    assert found["mask_ap"] > 0.95  # rims of cells of 4 x 4 pixels
    assert found["mask_ar1"] == pytest.approx(0.75, abs=0.03)  # one of the two of a class
    assert found["per_class"]["mask_ap50"] == [pytest.approx(1), None, pytest.approx(1)]
    assert task.metric in found


def test_masks_decide_of_the_scores_of_masks_alone() -> None:
    task, given = make(), targets()
    output = perfect(task, given)
    found = scores(task, output._replace(prototypes=-output.prototypes), given)
    assert (found["ap"], found["mask_ap50"]) == pytest.approx((1, 0))


def test_labels_are_detections_and_their_masks_at_any_size() -> None:
    task, given = make(), targets()
    found = task.labels(perfect(task, given), SIZE)
    assert (found.table.shape, found.layers.shape) == ((2, 100, 6), (2, 100, *SIZE))
    masks = found.layers.bool()
    pixels = instances.masks(given)[0]
    for box, mask in zip(found.table[0, :3], masks[0], strict=False):
        row = int((given.table[0, :, :4] - box[:4]).abs().sum(1).argmin())
        assert (mask & pixels[row]).sum() / (mask | pixels[row]).sum() > 0.9
    assert not masks[0, 3:].any()
    assert not masks[1].any()
    twice = task.labels(perfect(task, given), (2 * SIZE[0], 2 * SIZE[1])).layers
    every = twice[0, :3, ::2, ::2] == found.layers[0, :3]
    assert float(every.double().mean()) > 0.99


def test_counts_of_a_picture_do_not_depend_on_the_others() -> None:
    task, given = make(least_score=0.01), targets()
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, len(POINTS), 8 + 4, generator=generator, dtype=torch.float64)
    points[..., :4] = points[..., :4].abs() * 2
    output = Masked(points, torch.randn(2, 4, 24, 32, generator=generator, dtype=torch.float64))
    together = task.counts(output, given).per_image
    for number in range(2):
        rows = slice(number, number + 1)
        one = task.counts(Masked(*(each[rows] for each in output)), Instances(*(each[rows] for each in given)))
        for name, count in one.per_image.items():
            assert torch.equal(count, together[name][rows])
    by_boxes, by_masks = (together[name][0, :, 2:] for name in ("matches", "mask_matches"))
    assert not torch.equal(by_boxes, by_masks)


def test_the_area_of_a_detection_is_that_of_its_mask() -> None:
    """A mask of 30 x 30 pixels in a box of 40 x 40 is small, though its box is of medium size."""
    task = detect_masks.make(1, points=POINTS, image_size=SIZE)
    tables = torch.zeros(1, 2, box_table.COLUMNS, dtype=torch.float64)
    tables[0, :, :4] = torch.tensor([[8.0, 8.0, 48.0, 48.0], [64.0, 8.0, 104.0, 48.0]])
    tables[..., box_table.AREA], tables[..., box_table.SCALE] = 900, 1
    tables[0, 1, box_table.CLASS] = box_table.PAD  # what is found there is wrong
    layers = torch.zeros(1, 1, *SIZE, dtype=torch.uint8)
    layers[0, 0, 8:38, 8:38], layers[0, 0, 8:38, 64:94] = 1, 2
    found = tables.clone()
    found[0, 1, box_table.CLASS] = 0
    wanted = task.boxes.find_wanted(found)
    points = torch.full((1, len(POINTS), 6 + 2), -9.0, dtype=torch.float64)
    points[..., :4] = wanted.distances
    points[..., 4] = torch.logit(wanted.centreness.clamp(1e-4, 1 - 1e-4))
    points[..., 5] = torch.where(wanted.found, torch.where(wanted.objects == 1, 9.5, 9.0), -9.0)
    points[..., 6:] = torch.nn.functional.one_hot(wanted.objects.clamp(min=0), 2)
    shares = instances.masks(Instances(found, layers)).double().unflatten(2, (-1, 4)).unflatten(4, (-1, 4))
    result = scores(task, Masked(points, 20 * shares.mean((3, 5)) - 10), Instances(tables, layers))
    assert (result["mask_ap"], result["mask_ap_small"]) == pytest.approx((0.5, 0.5))
    assert result["ap_small"] == pytest.approx(1)  # the wrong box is of medium size


def test_an_object_without_a_point_or_a_pixel_is_not_learned() -> None:
    task, given = make(), targets()
    crowd = given.table.clone()
    crowd[0, 0, box_table.KIND] = box_table.CROWD
    assert task.weight(Instances(crowd, given.layers))[3] == 2
    hidden = given.layers.clone()
    hidden[hidden == 2] = 0
    assert task.weight(Instances(given.table, hidden))[3] == 2


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 252, 8),),
        ((2, 252, 8), (2, 4, 24, 32)),
        ((2, 10, 12), (2, 4, 24, 32)),
        ((2, 252, 12), (2, 4, 20, 32)),
        ((2, 252, 12), (1, 4, 24, 32)),
    ],
)
def test_an_output_of_other_shapes_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    output: Any = tuple(map(torch.zeros, shapes))
    with pytest.raises(ValueError, match=r"two tensors: \(2, 252, 8 \+ K\).* \(2, K, 24, 32\).* prototypes=16"):
        make().loss(output if len(output) > 1 else output[0], targets())


def test_masks_are_refused_by_the_task_of_boxes() -> None:
    task = make().boxes
    with pytest.raises(ValueError, match=r"several tensors, in place of \(2, 252, 8\).* for the task detect_masks"):
        task.loss(Masked(torch.zeros(2, 252, 9), torch.zeros(2, 1, 24, 32)), table())  # type: ignore[arg-type]


def test_the_names_of_the_scores_are_known_before_anything_is_trained() -> None:
    recipe = resolve("shapes.fcos", task="detect_masks", model_args={"prototypes": 16}, image_size=SIZE)
    names = build.score_names(recipe, {**META, "target": "instances"})
    assert {"mask_ap", "mask_ap_small", "mask_ar100", "ap", "f1"} <= set(names)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objects", [0, 3])
def test_every_weight_has_a_gradient_with_and_without_objects(objects: int, precision: torch.dtype) -> None:
    model = fcos.build(image_size=SIZE, channels=3, classes=3, width=32, prototypes=4)
    given = targets()
    given.table[:, objects:, box_table.CLASS] = box_table.PAD
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        output = model(torch.rand(2, 3, *SIZE))
        assert [each.dtype for each in output] == [torch.float32] * 2
        sums = make().loss(output, given)
    assert (sums.dtype, len(sums), bool(sums[3] > 0)) == (torch.float64, 4, objects > 0)
    sums.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_overlaps_of_masks_are_those_of_their_pixels() -> None:
    """Of true masks and themselves: on the diagonal 1, and of a crowd the share of the detection."""
    pixels = instances.masks(targets())[0].numpy()
    overlaps = average_precision.mask_overlaps(pixels, pixels, np.array([False, True, False]))
    assert overlaps.diagonal().tolist() == [1, 1, 1]
    both = (pixels[0] & pixels[1]).sum()
    assert overlaps[0, 1] == both / pixels[0].sum()
