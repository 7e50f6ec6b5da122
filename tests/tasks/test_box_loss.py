"""The loss of detection: against plain loops, torchvision's FCOS, and cuts of a batch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from trainers import box_table
from trainers.models import fcos
from trainers.tasks import box_loss
from trainers.training.torch_internals import TorchDispatchMode

SIZE = (96, 128)
CLASSES = 3
POINTS = fcos.points(SIZE)


def draw_tables(seed: int, pictures: int = 4, most: int = 6, kinds: tuple[int, ...] = (0,)) -> Tensor:
    """Tables of some objects, of none in the first picture."""
    rng = np.random.default_rng(seed)
    tables = np.zeros((pictures, most, box_table.COLUMNS))
    tables[..., box_table.CLASS] = box_table.PAD
    for number, table in enumerate(tables):
        for row in table[: 0 if number == 0 else rng.integers(1, most + 1)]:
            width, height = rng.uniform(3, 120), rng.uniform(3, 90)
            left, top = rng.uniform(0, SIZE[1] - width), rng.uniform(0, SIZE[0] - height)
            row[:4] = left, top, left + width, top + height
            row[box_table.CLASS], row[box_table.KIND] = rng.integers(CLASSES), rng.choice(kinds)
    return torch.from_numpy(tables)


def draw_output(seed: int, pictures: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(pictures, len(POINTS), 5 + CLASSES, generator=generator, dtype=torch.float64)
    output[..., :4] = 3 * output[..., :4].abs()
    return output


def assign_plainly(table: Tensor, radius: float, reach: float) -> list[int]:
    """The paper's rules, one after another; -2: ignored."""
    strides = sorted(set(POINTS[:, 2].tolist()))
    result = []
    for x, y, stride in POINTS.tolist():
        level = strides.index(stride)
        least = reach * strides[level - 1] if level else 0.0
        most = math.inf if level == len(strides) - 1 else reach * stride
        best, smallest, ignored = -1, math.inf, False
        for number, row in enumerate(table.tolist()):
            left, top, right, bottom, name, kind = row[:6]
            if name == -1 or not (left < x < right and top < y < bottom):
                continue
            if kind != 0:
                ignored = True
                continue
            central = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < radius * stride
            farthest = max(x - left, y - top, right - x, bottom - y)
            area = (right - left) * (bottom - top)
            if central and least < farthest <= most and area < smallest:
                best, smallest = number, area
        result.append(-2 if best == -1 and ignored else best)
    return result


@pytest.mark.parametrize(("radius", "reach"), [(1.5, 8.0), (1.0, 4.0)])
@pytest.mark.parametrize("seed", range(4))
def test_each_point_finds_what_a_plain_loop_gives_it(seed: int, radius: float, reach: float) -> None:
    tables = draw_tables(seed, kinds=(0, 0, 0, 1, 2))
    objects, ignored = box_loss.assign(box_loss.make_points(POINTS, reach), tables, radius)
    found = torch.where(ignored, -2, objects)
    assert found.tolist() == [assign_plainly(table, radius, reach) for table in tables]


def test_of_equal_objects_the_first_wins_whatever_follows() -> None:
    table = draw_tables(3)[1:2, :1]
    tables = torch.cat([table, table, table], 1)
    objects, _ = box_loss.assign(box_loss.make_points(POINTS, 8), tables, 1.5)
    assert set(objects.flatten().tolist()) == {-1, 0}


def test_objects_by_parts_are_assigned_as_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, points = draw_tables(5, most=40, kinds=(0, 1)), box_loss.make_points(POINTS, 8)
    whole = box_loss.assign(points, tables, 1.5)
    monkeypatch.setattr(box_loss, "_PAIRS", 7 * len(POINTS))
    monkeypatch.setattr(box_loss, "_PAIRS_TOGETHER", 1)
    parts = box_loss.assign(points, tables, 1.5)
    assert all(torch.equal(*pair) for pair in zip(whole, parts, strict=True))


def test_thousands_of_objects_take_little_memory() -> None:
    """All pairs at once would be 10 million."""
    points = box_loss.make_points(fcos.points((320, 320)), 8)
    rows = torch.rand(1, 5000, box_table.COLUMNS, dtype=torch.float64) * 280
    rows[..., 2:4] = rows[..., :2] + 40
    rows[..., box_table.CLASS], rows[..., box_table.KIND] = 0, 0
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max(largest, out.nbytes if isinstance(out, Tensor) else 0)
            return out

    with Watch():
        objects, _ = box_loss.assign(points, rows, 1.5)
    assert largest <= 8 * box_loss._PAIRS
    assert objects.max() > 4000


def theirs(output: Tensor, tables: Tensor) -> tuple[dict[str, Tensor], int, Tensor, Tensor]:
    """torchvision's losses, as sums; its number of positive points; which these are, and which object each finds."""
    generator = AnchorGenerator(sizes=((8,), (16,), (32,)), aspect_ratios=((1.0,),) * 3)
    features = [torch.zeros(1, 1, SIZE[0] // stride, SIZE[1] // stride, dtype=torch.float64) for stride in (8, 16, 32)]
    images = ImageList(torch.zeros(1, 3, *SIZE), [SIZE])
    anchors = generator(images, features)[0]
    anchors = anchors + anchors[:, [2, 2, 2, 2]].sub(anchors[:, [0, 0, 0, 0]]) / 2  # theirs lie at k x stride
    anchors = anchors.double()
    head = FCOSHead(32, 1, CLASSES, num_convs=1)
    matched: list[Tensor] = []
    sums = head.compute_loss

    def keep(targets, outputs, every, indices):  # type: ignore[no-untyped-def]
        matched.extend(indices)
        return sums(targets, outputs, every, indices)

    model = FCOS.__new__(FCOS)
    torch.nn.Module.__init__(model)
    model.head, model.center_sampling_radius = head, 1.5
    head.compute_loss = keep  # type: ignore[method-assign]
    targets = []
    for table in tables:
        rows = table[table[:, box_table.CLASS] >= 0]
        targets.append({"boxes": rows[:, :4], "labels": rows[:, box_table.CLASS].long()})
    outputs = {"cls_logits": output[..., 5:], "bbox_regression": output[..., :4], "bbox_ctrness": output[..., 4:5]}
    means = model.compute_loss(targets, outputs, [anchors] * len(tables), [len(f[0, 0].flatten()) for f in features])
    indices = torch.stack(matched)
    positives = int((indices >= 0).sum())
    return {name: mean * positives for name, mean in means.items()}, positives, indices, anchors


@pytest.mark.parametrize("seed", range(3))
def test_sums_and_points_are_those_of_torchvision(seed: int) -> None:
    output, tables = draw_output(seed), draw_tables(seed)
    sums, positives, indices, anchors = theirs(output, tables)
    wanted = box_loss.find_wanted(box_loss.make_points(POINTS, 8), tables, 1.5)
    objects, _ = box_loss.assign(box_loss.make_points(POINTS, 8), tables, 1.5)
    assert torch.equal(objects, indices)
    assert float(box_loss.divisors(wanted)[2]) == positives
    ours = box_loss.losses(output, wanted)
    assert float(ours[0]) == pytest.approx(float(sums["classification"]), rel=1e-12)
    assert float(ours[2]) == pytest.approx(float(sums["bbox_ctrness"]), rel=1e-12)

    head = FCOSHead(32, 1, CLASSES, num_convs=1)
    boxes = head.box_coder.decode(output[..., :4], torch.stack([anchors] * len(tables)))
    truth = tables.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, box_table.COLUMNS))[..., :4]
    plain = generalized_box_iou_loss(boxes, truth, reduction="none", eps=0.0)
    weighted = (plain * wanted.centreness)[indices >= 0].sum()
    assert float(ours[1]) == pytest.approx(float(weighted), rel=1e-12)
    unweighted = (1 - box_loss.giou(output[..., :4], wanted.distances))[indices >= 0].sum()
    assert float(unweighted) == pytest.approx(float(sums["bbox_regression"]), rel=1e-6)  # their eps is 1e-7


def test_giou_is_that_of_boxes() -> None:
    found, true = torch.rand(2, 500, 4, dtype=torch.float64) * 5
    around = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    expected = generalized_box_iou(found * around, true * around).diagonal()
    torch.testing.assert_close(box_loss.giou(found, true), expected, rtol=1e-12, atol=1e-12)
    assert box_loss.giou(true, true).tolist() == pytest.approx([1.0] * 500)
    assert bool(torch.isfinite(box_loss.giou(torch.zeros(4), true[0])))


def test_gradients_are_those_of_differences() -> None:
    tables = draw_tables(1, kinds=(0, 0, 1))
    wanted = box_loss.find_wanted(box_loss.make_points(POINTS, 8), tables, 1.5)
    near = wanted.found.nonzero()[::7].tolist()
    output = draw_output(1).requires_grad_()
    box_loss.losses(output, wanted).sum().backward()
    assert output.grad is not None
    step = 1e-6
    for (picture, point), column in itertools.product(near, (0, 3, 4, 5, 7)):
        values = []
        for change in (step, -step):
            moved = output.detach().clone()
            moved[picture, point, column] += change
            values.append(float(box_loss.losses(moved, wanted).sum()))
        slope = (values[0] - values[1]) / (2 * step)
        assert float(output.grad[picture, point, column]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_losses_and_divisors_of_parts_add_up_to_those_of_the_whole(cut: int) -> None:
    tables, output = draw_tables(2, pictures=9, kinds=(0, 0, 1, 2)), draw_output(2, pictures=9)
    tables[4:6, :, box_table.CLASS] = box_table.PAD
    points = box_loss.make_points(POINTS, 8)

    def both(rows: slice) -> Tensor:
        wanted = box_loss.find_wanted(points, tables[rows], 1.5)
        return torch.stack([box_loss.losses(output[rows], wanted), box_loss.divisors(wanted)])

    parts = sum((both(slice(start, start + cut)) for start in range(0, 9, cut)), torch.zeros(2, 3))
    torch.testing.assert_close(parts, both(slice(None)), rtol=1e-12, atol=0)


def test_padding_changes_nothing() -> None:
    tables, points = draw_tables(6), box_loss.make_points(POINTS, 8)
    more = torch.cat([tables, torch.full((4, 5, box_table.COLUMNS), -1.0, dtype=torch.float64)], 1)
    for one, other in zip(*(box_loss.find_wanted(points, each, 1.5) for each in (tables, more)), strict=True):
        assert torch.equal(one, other)


def test_places_of_crowds_give_no_class_loss_and_those_of_plain_objects_in_them_do() -> None:
    table = torch.zeros(1, 2, box_table.COLUMNS, dtype=torch.float64)
    table[0, 0, :4] = torch.tensor([0.0, 0.0, 128.0, 96.0])  # a crowd everywhere
    table[0, 0, box_table.KIND] = 1
    table[0, 1, :4] = torch.tensor([40.0, 40.0, 60.0, 60.0])
    table[0, 1, box_table.CLASS] = 2
    points = box_loss.make_points(POINTS, 8)
    wanted = box_loss.find_wanted(points, table, 1.5)
    output = draw_output(0, 1).requires_grad_()
    box_loss.losses(output, wanted).sum().backward()
    assert output.grad is not None
    moved = (output.grad != 0).any(2)
    assert 0 < int(wanted.found.sum()) < 10
    assert torch.equal(moved, wanted.found)


def test_a_batch_without_objects_teaches_that_nothing_is_there() -> None:
    tables = draw_tables(0)[:1].repeat(3, 1, 1)
    wanted = box_loss.find_wanted(box_loss.make_points(POINTS, 8), tables, 1.5)
    assert box_loss.divisors(wanted).tolist() == [3, 0, 0]
    output = draw_output(0, 3).requires_grad_()
    sums = box_loss.losses(output, wanted)
    assert sums[0] > 0
    assert sums[1:].tolist() == [0, 0]
    sums.sum().backward()
    assert output.grad is not None
    assert bool((output.grad[..., 5:] > 0).all())
    assert not output.grad[..., :5].any()
