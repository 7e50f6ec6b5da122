"""What anchors learn, against plain loops; against torchvision's loss: tests/models/test_torchvision_boxes.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers import box_table
from trainers.datasets import CROWD, DIFFICULT, PLAIN
from trainers.models import torchvision_retinanet
from trainers.tasks import anchor_loss, detect

SIZE = (64, 96)
ANCHORS = torchvision_retinanet.anchors(SIZE)


def draw_tables(seed: int, pictures: int = 3, most: int = 7) -> Tensor:
    """Objects of all kinds; none in the first picture."""
    rng = np.random.default_rng(seed)
    tables = np.zeros((pictures, most, box_table.COLUMNS))
    tables[..., box_table.CLASS] = box_table.PAD
    for number, table in enumerate(tables):
        for row in table[: 0 if number == 0 else most - number]:
            width, height = rng.uniform(4, 90), rng.uniform(4, 60)
            left, top = rng.uniform(0, SIZE[1] - width), rng.uniform(0, SIZE[0] - height)
            row[:4] = left, top, left + width, top + height
            row[box_table.CLASS] = rng.integers(3)
            row[box_table.KIND] = rng.choice([PLAIN, PLAIN, CROWD, DIFFICULT])
    return torch.from_numpy(tables)


def share(one: list[float], other: list[float]) -> tuple[float, float]:
    """IoU, and how much of the first lies in the other."""
    wide, high = (min(one[side + 2], other[side + 2]) - max(one[side], other[side]) for side in (0, 1))
    both = max(wide, 0) * max(high, 0)
    ours, theirs = ((each[2] - each[0]) * (each[3] - each[1]) for each in (one, other))
    return both / (ours + theirs - both), both / ours


def assign_plainly(table: Tensor) -> list[int]:
    """The object of each anchor, one after another; -1: none, -2: ignored."""
    rows = table[table[:, box_table.CLASS] >= 0]
    numbers = [number for number, row in enumerate(rows) if row[box_table.KIND] == PLAIN]
    overlaps = {
        number: [share(anchor, rows[number, :4].tolist())[0] for anchor in ANCHORS.tolist()] for number in numbers
    }
    result = []
    for index, anchor in enumerate(ANCHORS.tolist()):
        best = max(numbers, key=lambda number: (overlaps[number][index], -number), default=-1)
        most = overlaps[best][index] if numbers else 0.0
        nearest = any(overlaps[number][index] == max(overlaps[number]) for number in numbers)
        others = [row[:4].tolist() for row in rows if row[box_table.KIND] != PLAIN]
        if most >= 0.5 or nearest:
            result.append(best)
        elif most >= 0.4 or any(share(anchor, other)[1] >= 0.4 for other in others):
            result.append(-2)
        else:
            result.append(-1)
    return result


@pytest.mark.parametrize("at_once", [2**20, 2 * len(ANCHORS)])
@pytest.mark.parametrize("seed", range(3))
def test_anchors_get_the_objects_that_plain_loops_give_them(
    seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchor_loss, "_PAIRS", at_once)
    tables = draw_tables(seed)
    wanted = anchor_loss.find_wanted(ANCHORS, tables)
    for number, table in enumerate(tables):
        expected = torch.tensor(assign_plainly(table))
        assert torch.equal(wanted.found[number], expected >= 0)
        assert torch.equal(wanted.ignored[number], expected == -2)
        there = expected >= 0
        assert torch.equal(wanted.boxes[number, there], table[expected[there], :4])
        assert torch.equal(wanted.classes[number, there], table[expected[there], box_table.CLASS])
    assert bool(wanted.found[1:].any(1).all())
    assert bool(wanted.ignored.any())


def test_padding_changes_nothing() -> None:
    tables = draw_tables(5)
    more = torch.cat([tables, tables[:1].expand(3, -1, -1)], 1)
    for one, other in zip(*(anchor_loss.find_wanted(ANCHORS, each) for each in (tables, more)), strict=True):
        assert torch.equal(one, other)


def test_ignored_anchors_have_no_loss_of_classes() -> None:
    task = detect.make(3, anchors=ANCHORS, image_size=SIZE)
    tables = draw_tables(1)
    ignored = anchor_loss.find_wanted(ANCHORS, tables).ignored
    output = torch.randn(task.output_shape(3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output[..., :4] = ANCHORS
    other = output.clone()
    other[..., 4:][ignored] = 5.0
    assert torch.equal(task.loss(output, tables), task.loss(other, tables))
    other[..., 4:][~ignored] = 5.0
    assert task.loss(output, tables)[0] != task.loss(other, tables)[0]
    assert task.weight(tables).tolist() == [3, 3]


def test_what_is_of_points_is_refused_for_anchors() -> None:
    with pytest.raises(ValueError, match=r"radius=2 and reach=8.0 are of points, and the model has anchors"):
        detect.make(3, anchors=ANCHORS, image_size=SIZE, radius=2)
    with pytest.raises(
        ValueError, match=r"in place of \(2, 1161, 7\): pictures, the anchors that its anchors\(\) gives"
    ):
        detect.make(3, anchors=ANCHORS, image_size=SIZE).loss(torch.zeros(2, 5, 7), draw_tables(0, 2))
