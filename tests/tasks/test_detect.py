"""The task of finding objects: what it makes of a model's output, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.small import small_recipe
from torch import Tensor

from trainers import box_table
from trainers.models import fcos
from trainers.tasks import detect
from trainers.tasks.detect import Detect
from trainers.training import build

SIZE = (96, 128)
POINTS = fcos.points(SIZE)
META: Any = {"channels": 3, "classes": ["a", "b", "c"], "class_counts": {"train": [1, 1, 1]}, "size": list(SIZE)}


def make(**args: Any) -> Detect:
    return detect.make(3, points=POINTS, image_size=SIZE, **args)


def table() -> Tensor:
    """Three objects of one picture, of two classes; none of another."""
    rows = torch.zeros(2, 3, box_table.COLUMNS, dtype=torch.float64)
    corners = [[10.0, 20.0, 40.0, 60.0], [60.0, 10.0, 120.0, 90.0], [30.0, 70.0, 52.0, 90.0]]
    rows[0, :, :4] = torch.tensor(corners)
    rows[0, :, box_table.CLASS] = torch.tensor([0.0, 2.0, 2.0])
    sides = rows[..., 2:4] - rows[..., :2]
    rows[..., box_table.AREA], rows[..., box_table.SCALE] = sides.prod(2), 1
    rows[1, :, box_table.CLASS] = box_table.PAD
    return rows


def output_for(task: Detect, tables: Tensor) -> Tensor:
    """What a perfect model would say."""
    wanted = task.find_wanted(tables)
    output = torch.full(task.output_shape(len(tables)), -9.0, dtype=torch.float64)
    output[..., :4] = wanted.distances
    output[..., 4] = torch.logit(wanted.centreness.clamp(1e-4, 1 - 1e-4))
    for picture, point in wanted.found.nonzero().tolist():
        output[picture, point, 5 + int(wanted.classes[picture, point])] = 9.0
    return output


def test_a_perfect_output_finds_each_object_once() -> None:
    task, tables = make(), table()
    found = task.labels(output_for(task, tables), SIZE)
    assert found.shape == (2, 100, 6)
    assert (found[..., 5] >= 0).sum(1).tolist() == [3, 0]
    order = found[0, :3, 0].argsort()
    torch.testing.assert_close(found[0, :3][order][:, :4], tables[0, [0, 2, 1], :4])
    assert found[0, :3][order][:, 5].tolist() == [0, 2, 2]
    assert found[1, :, :5].abs().sum() == 0


def test_a_perfect_output_scores_one() -> None:
    task, tables = make(), table()
    counts = task.counts(output_for(task, tables), tables)
    every = {name: each.numpy() for name, each in {**counts.total, **counts.per_image}.items()}
    assert every["truths"][:, 0].tolist() == [1, 0, 2]
    scores = task.scores(every)
    assert (scores["ap"], scores["ap50"], scores["f1"]) == pytest.approx((1, 1, 1))
    ranking = task.ranking(every)
    assert ranking is not None
    np.testing.assert_array_equal(ranking, [1, np.nan])


def test_detections_of_a_picture_do_not_depend_on_the_others() -> None:
    task = make(least_score=0.01)
    output = torch.randn(5, *task.output_shape(1)[1:], dtype=torch.float64)
    output[..., :4] = output[..., :4].abs() * 2
    together = task.labels(output, SIZE)
    assert torch.equal(together, torch.cat([task.labels(each[None], SIZE) for each in output]))
    assert bool((together[..., 4].diff(dim=1) <= 0).all())
    assert float(together[..., 2].max()) <= SIZE[1]


def test_sizes_other_than_the_models_scale_boxes() -> None:
    task, tables = make(), table()
    output = output_for(task, tables)
    twice = task.labels(output, (2 * SIZE[0], 3 * SIZE[1]))
    factors = torch.tensor([3, 2, 3, 2, 1, 1])
    torch.testing.assert_close(twice, task.labels(output, SIZE) * factors)


def test_small_pictures_have_rows_enough() -> None:
    task = detect.make(1, points=fcos.points((32, 32)), image_size=(32, 32))
    output = torch.rand(task.output_shape(2))
    assert task.labels(output, (32, 32)).shape == task.candidates(output, (32, 32)).shape == (2, 100, 6)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"radius": 0}, "radius=0 .* above 0"),
        ({"reach": -1}, "reach=-1"),
        ({"nms": 1}, "nms=1"),
        ({"least_score": -0.1}, "least_score=-0.1"),
        ({"max_detections": 0}, "max_detections=0"),
        ({"class_weights": torch.ones(3)}, "no class weights"),
        ({"points": None}, r"function points\(\)"),
    ],
)
def test_what_is_not_possible_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect.make(3, **{"points": POINTS, "image_size": SIZE, **args})


def test_an_output_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 10, 8\), in place of \(2, 252, 8\)"):
        make().loss(torch.zeros(2, 10, 8), table())


def test_the_task_gets_the_points_of_its_model_and_refuses_one_that_has_none() -> None:
    recipe = small_recipe("shapes.fcos", image_size=SIZE)
    task = build.make_task(recipe, META)
    assert isinstance(task, Detect)
    assert torch.equal(torch.stack(task.points[:3], 1), POINTS)
    with pytest.raises(ValueError, match=r"unet has no points\(\) or anchors\(\); use fcos or torch"):
        build.make_task(recipe.replace(model="unet", model_args={}), META)
