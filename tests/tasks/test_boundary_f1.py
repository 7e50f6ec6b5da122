"""Boundary F1 against distances measured by SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from trainers.tasks import boundary_f1
from trainers.tasks.segment import Segment

IGNORED = boundary_f1.IGNORED


def draw_masks(seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A prediction, uint8 (1, H, W), its target with ignored pixels, and the number of classes, some of them empty:
    patches and single pixels, the prediction moved a little and wrong in places."""
    rng = np.random.default_rng(seed)
    height, width, classes = rng.integers(5, 70), rng.integers(5, 70), int(rng.integers(2, 20))
    used = rng.permutation(classes)[: rng.integers(1, 6)]
    cell = int(rng.integers(4, 20))

    def patches() -> np.ndarray:
        coarse = rng.choice(used, (height // cell + 1, width // cell + 1))
        return coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width]

    def spots(share: float) -> np.ndarray:
        return rng.random((height, width)) < share

    target = patches()
    target[spots(0.01)] = rng.integers(classes)
    labels = np.roll(target, rng.integers(-3, 4, 2), (0, 1))
    labels = np.where(np.arange(width) < rng.integers(width), labels, patches())
    labels[spots(0.01)] = rng.integers(classes)
    target[spots(0.05)] = IGNORED
    target[: rng.integers(height // 2), : rng.integers(width)] = IGNORED
    return torch.from_numpy(labels.astype(np.uint8))[None], torch.from_numpy(target.astype(np.int64))[None], classes


def edges_by_hand(mask: np.ndarray, number: int) -> np.ndarray:
    """Pixels of class `number` with a labelled 4-neighbour of another class."""
    around = np.pad(mask, 1, constant_values=IGNORED)
    height, width = mask.shape
    edge = np.zeros(mask.shape, bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        neighbour = around[dy : dy + height, dx : dx + width]
        edge |= (neighbour != number) & (neighbour != IGNORED)
    return edge & (mask == number)


def near_by_hand(own: np.ndarray, other: np.ndarray, reach: float) -> int:
    return int((ndimage.distance_transform_edt(~other)[own] <= reach + 1e-9).sum()) if other.any() else 0


def match_by_hand(labels: torch.Tensor, target: torch.Tensor, classes: int, tolerance: float) -> np.ndarray:
    counts = np.zeros((len(target), classes, 4), np.int32)
    reach = tolerance * math.hypot(*target.shape[1:])
    for image, (predicted, truth) in enumerate(zip(labels.numpy(), target.numpy(), strict=True)):
        predicted = np.where(truth == IGNORED, IGNORED, predicted)
        for number in range(classes):
            p, t = edges_by_hand(predicted, number), edges_by_hand(truth, number)
            counts[image, number] = p.sum(), near_by_hand(p, t, reach), t.sum(), near_by_hand(t, p, reach)
    return counts


def f1_by_hand(counts: np.ndarray) -> list[float]:
    """Mean over the images in which the truth has a boundary of the class, of each class."""
    means = []
    for of_class in counts.swapaxes(0, 1).tolist():
        scores = []
        for predicted, predicted_near, true, true_near in of_class:
            if true:
                precision, recall = predicted_near / max(predicted, 1), true_near / true
                scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        means.append(sum(scores) / len(scores) if scores else math.nan)
    return means


@pytest.mark.parametrize("tolerance", [0.0075, 0.02, 0.1])
def test_random_masks_are_scored_as_by_hand(tolerance: float) -> None:
    tables: dict[int, list[np.ndarray]] = {}
    for seed in range(200):
        labels, target, classes = draw_masks(seed)
        counts = boundary_f1.match(labels, target, classes, tolerance)
        assert counts.dtype == torch.int32
        expected = match_by_hand(labels, target, classes, tolerance)
        np.testing.assert_array_equal(counts, expected, err_msg=str(seed))
        np.testing.assert_allclose(boundary_f1.f1(counts.numpy()), f1_by_hand(expected), atol=1e-6)
        tables.setdefault(classes, []).append(expected)
    for classes, several in tables.items():  # means over images
        together = np.concatenate(several)
        means = f1_by_hand(together)
        np.testing.assert_allclose(boundary_f1.f1(together), means, atol=1e-6)
        counts = {"confusion": np.ones((classes, classes), np.int64), "boundary": together}
        assert Segment(classes).scores(counts)["boundary_f1"] == pytest.approx(np.nanmean(means), abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (2, 200), (61, 83)])
@pytest.mark.parametrize("tolerance", [0.0075, 0.1, 1.0])
def test_masks_of_any_size_and_class_are_scored_as_by_hand(size: tuple[int, int], tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.tensor([0, 3, 7, 8, 17, 254, IGNORED])
    target = numbers[torch.randint(0, 7, (3, *size), generator=generator)]
    labels = numbers[torch.randint(0, 6, (3, *size), generator=generator)].byte()
    target[0], labels[1] = numbers[0], numbers[1]  # without a boundary
    target[2, :, : size[1] // 2], labels[2, size[0] // 3 :] = numbers[4], numbers[4]
    counts = boundary_f1.match(labels, target, 255, tolerance)[:, numbers[:-1]]
    for channel, number in enumerate(numbers[:-1].tolist()):  # one class against the rest
        other = torch.where(target == IGNORED, IGNORED, torch.where(target == number, 0, 1))
        expected = match_by_hand(torch.where(labels == number, 0, 1).byte(), other, 1, tolerance)
        np.testing.assert_array_equal(counts[:, channel], expected[:, 0])


def test_reach_is_exact_on_the_grid() -> None:
    """Two vertical lines in a 30x40 image, whose diagonal is 50 pixels, are 5 pixels apart; so are (3, 4) steps."""
    labels, target = torch.zeros(1, 30, 40, dtype=torch.uint8), torch.zeros(1, 30, 40, dtype=torch.int64)
    labels[0, :, 10], target[0, :, 15] = 1, 1
    assert boundary_f1.match(labels, target, 2, 0.1)[0, 1].tolist() == [30, 30, 30, 30]
    assert boundary_f1.match(labels, target, 2, 0.0999)[0, 1].tolist() == [30, 0, 30, 0]
    labels.zero_(), target.zero_()
    labels[0, 10, 10], target[0, 13, 14] = 1, 1
    assert boundary_f1.match(labels, target, 2, 0.1)[0, 1].tolist() == [1, 1, 1, 1]
    assert boundary_f1.match(labels, target, 2, 0.0999)[0, 1].tolist() == [1, 0, 1, 0]


def test_ignored_pixels_belong_to_neither_side() -> None:
    target = torch.tensor([[[0, 0, IGNORED, 1, 1], [0, 0, IGNORED, 1, 1]]])
    labels = torch.tensor([[[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]], dtype=torch.uint8)
    counts = boundary_f1.match(labels, target, 2, 0.0075)
    assert counts[0].tolist() == [[1, 0, 0, 0], [2, 0, 0, 0]]  # the truth's classes do not touch
    np.testing.assert_equal(boundary_f1.f1(counts.numpy()), [np.nan, np.nan])


def test_a_prediction_without_the_boundary_counts_0_and_one_too_many_is_not_asked_for() -> None:
    counts = np.array([[[0, 0, 8, 0], [8, 8, 0, 0]], [[8, 8, 8, 8], [5, 0, 0, 0]]])
    np.testing.assert_equal(boundary_f1.f1(counts), [0.5, np.nan])
