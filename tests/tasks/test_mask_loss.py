"""What is learned of masks: against plain loops, PyTorch's own interpolation, and cuts of a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainers import box_table
from trainers.instances import Instances, masks
from trainers.models import fcos
from trainers.tasks import box_loss, mask_loss

SIZE, STRIDE, PROTOTYPES = (46, 61), 4, 3
CELLS = (12, 16)
POINTS = box_loss.make_points(fcos.points(SIZE), 8.0)


def draw(seed: int, pictures: int = 4, most: int = 5) -> Instances[Tensor]:
    """Objects of all kinds, each some pixels of its box; none in the first picture."""
    rng = np.random.default_rng(seed)
    table = np.zeros((pictures, most, box_table.COLUMNS))
    table[..., box_table.CLASS], table[..., box_table.SCALE] = box_table.PAD, 1
    layers = np.zeros((pictures, 2, *SIZE), np.uint8)
    for number in range(1, pictures):
        for row in range(rng.integers(1, most + 1)):
            left, top = rng.uniform(0, SIZE[1] - 12), rng.uniform(0, SIZE[0] - 12)
            right, bottom = rng.uniform(left + 8, SIZE[1]), rng.uniform(top + 8, SIZE[0])
            table[number, row, :6] = left, top, right, bottom, rng.integers(3), rng.choice([0, 0, 0, 1])
            box = layers[number, row % 2, math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
            box[rng.random(box.shape) < 0.8] = row + 1
    return Instances(torch.from_numpy(table), torch.from_numpy(layers))


def draw_output(seed: int, pictures: int = 4, most: int = 5) -> tuple[Tensor, Tensor]:
    """Coefficients and prototypes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (pictures, most, PROTOTYPES), (pictures, PROTOTYPES, *CELLS)
    coefficients, prototypes = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return coefficients, prototypes


def learned(targets: Instances[Tensor]) -> Tensor:
    return box_table.are_plain(targets.table)


@pytest.mark.parametrize("seed", range(3))
def test_an_object_is_learned_at_the_most_central_of_its_points(seed: int) -> None:
    table = draw(seed, pictures=8).table
    table[7, 0, :6] = torch.tensor([8.0, 8.0, 24.0, 24.0, 0.0, 0.0])  # its middle lies between four points
    wanted = box_loss.find_wanted(POINTS, table, 1.5)
    found = mask_loss.find_central(wanted, table.shape[1])
    assert int((found < len(POINTS.x)).sum()) > 10
    for picture in range(8):
        for row in range(table.shape[1]):
            own = [p for p in range(len(POINTS.x)) if wanted.objects[picture, p] == row]
            best = max(own, key=lambda p: (float(wanted.centreness[picture, p]), -p), default=len(POINTS.x))
            assert found[picture, row] == best


def test_the_share_of_a_cell_is_the_mean_of_its_pixels() -> None:
    targets = draw(1)
    for picture in range(4):
        shares = mask_loss.share_cells(targets.layers[picture], 5, STRIDE)
        assert shares.shape == (5, *CELLS)
        whole = masks(targets)[picture].double()
        expected = functional.avg_pool2d(whole, STRIDE, ceil_mode=True)
        torch.testing.assert_close(shares.double(), expected, rtol=1e-6, atol=0)


def test_what_a_box_covers_adds_up_to_it() -> None:
    boxes = torch.tensor([[3.0, 1.5, 9.25, 46.0], [5.25, 6.5, 6.0, 7.0]], dtype=torch.float64)
    found = mask_loss.cover(boxes, STRIDE, CELLS)
    assert found.sum((1, 2)).tolist() == pytest.approx([1, 1])
    assert found[1].nonzero().tolist() == [[1, 1]]
    assert float(found[0, 0, 0]) == pytest.approx(1 * 2.5 / (6.25 * 44.5))


def test_the_loss_is_that_of_a_plain_loop() -> None:
    targets, (coefficients, prototypes) = draw(2), draw_output(2)
    expected, pixels = 0.0, masks(targets).double()
    for picture, row in learned(targets).nonzero().tolist():
        left, top, right, bottom = targets.table[picture, row, :4].tolist()
        logits = sum(c * p for c, p in zip(coefficients[picture, row], prototypes[picture], strict=True))
        total = 0.0
        for y in range(CELLS[0]):
            for x in range(CELLS[1]):
                wide = max(0.0, min(right, 4 * x + 4) - max(left, 4 * x))
                high = max(0.0, min(bottom, 4 * y + 4) - max(top, 4 * y))
                true = float(pixels[picture, row, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean())
                chance = 1 / (1 + math.exp(-float(logits[y, x])))  # type: ignore[index]
                total -= wide * high * (true * math.log(chance) + (1 - true) * math.log(1 - chance))
        expected += total / ((right - left) * (bottom - top))
    found = mask_loss.loss(coefficients, prototypes, targets, learned(targets), STRIDE)
    assert float(found) == pytest.approx(expected, rel=1e-6)  # shares are float32


def test_gradients_are_those_of_differences() -> None:
    targets, (coefficients, prototypes) = draw(3, pictures=2, most=2), draw_output(3, 2, 2)
    inputs = (coefficients.requires_grad_(), prototypes.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda *output: mask_loss.loss(*output, targets, learned(targets), STRIDE), inputs, fast_mode=True
    )


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_losses_of_parts_add_up_to_that_of_the_whole(cut: int) -> None:
    targets, output = draw(4, pictures=7), draw_output(4, 7)

    def part(rows: slice) -> float:
        some = Instances(targets.table[rows], targets.layers[rows])
        return float(mask_loss.loss(output[0][rows], output[1][rows], some, learned(some), STRIDE))

    parts = sum(part(slice(start, start + cut)) for start in range(0, 7, cut))
    assert parts == pytest.approx(part(slice(None)), rel=1e-14)
    assert part(slice(0, 1)) == 0


def test_padding_changes_nothing() -> None:
    targets, (coefficients, prototypes) = draw(5), draw_output(5)
    table = torch.cat([targets.table, torch.full((4, 3, box_table.COLUMNS), -1.0, dtype=torch.float64)], 1)
    more = Instances(table, torch.cat([targets.layers, torch.zeros_like(targets.layers)], 1))
    padded = torch.cat([coefficients, torch.ones(4, 3, PROTOTYPES)], 1)
    one = mask_loss.loss(coefficients, prototypes, targets, learned(targets), STRIDE)
    assert torch.equal(one, mask_loss.loss(padded, prototypes, more, learned(more), STRIDE))


def test_logits_are_added_up_in_full_precision_where_the_model_computes_in_half() -> None:
    coefficients, prototypes = (each.float() for each in draw_output(6))
    expected = mask_loss.make_logits(coefficients, prototypes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_loss.make_logits(coefficients, prototypes), expected)
        half = torch.einsum("nmk,nkhw->nmhw", coefficients, prototypes)
    assert float((half.float() - expected).abs().max()) > 1e-3


def test_masks_are_logits_as_pytorch_enlarges_them_cut_to_their_boxes() -> None:
    logits = torch.randn(3, *CELLS, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0.0, 64.0, 48.0], [3.4, 4.5, 40.5, 30.0], [7.0, 8.0, 7.4, 9.0]])
    rows, columns = (torch.arange(side) + 0.5 for side in SIZE)
    found = mask_loss.draw(logits, boxes, rows, columns, STRIDE)
    expected = functional.interpolate(logits[None], scale_factor=4, mode="bilinear")[0, :, : SIZE[0], : SIZE[1]] > 0
    assert torch.equal(found[0], expected[0])
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[4:30, 3:40] = True  # the middles of pixels from 4.5 on, not 30.5; from 3.5 on, not 40.5
    assert torch.equal(found[1], expected[1] & inside)
    assert not found[2].any()


@pytest.mark.parametrize(
    ("size", "cells", "expected"),
    [((46, 61), (12, 16), 4), ((96, 128), (24, 32), 4), ((33, 50), (5, 7), 8), ((46, 61), (12, 15), None)],
)
def test_the_stride_of_prototypes_follows_from_their_size(
    size: tuple[int, int], cells: tuple[int, int], expected: int | None
) -> None:
    assert mask_loss.find_stride(size, cells) == expected
