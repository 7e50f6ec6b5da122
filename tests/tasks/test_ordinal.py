"""The scores of `ordinal` against scikit-learn and NumPy, its loss by hand, and what it makes of logits."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch.nn import functional

from trainers.recipe import resolve
from trainers.registry import load
from trainers.tasks.ordinal import Ordinal


def scores_of(true: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """Those of logits that say the predicted classes."""
    logits = torch.where(torch.arange(classes - 1) < torch.from_numpy(predicted)[:, None], 1.0, -1.0)
    task = Ordinal(classes)
    counts = task.counts(logits, torch.from_numpy(true))
    np.testing.assert_array_equal(
        counts.total["confusion"], metrics.confusion_matrix(true, predicted, labels=range(classes))
    )
    return task.scores({name: count.numpy() for name, count in counts.total.items()})


def test_kappa_distance_and_neighbours_equal_scikit_learn_and_numpy_on_200_random_cases() -> None:
    degenerate = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        classes, rows = int(rng.integers(2, 9)), int(rng.integers(1, 300))
        true = rng.integers(0, classes if seed % 5 else 1, rows)
        predicted = np.clip(true + rng.integers(-2, 3, rows), 0, classes - 1) if seed % 7 else true.copy()
        scores = scores_of(true, predicted, classes)
        distance = np.abs(true - predicted)
        assert scores["mae"] == pytest.approx(distance.mean(), abs=1e-12)
        assert scores["within_one"] == pytest.approx((distance <= 1).mean(), abs=1e-12)
        assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 0 / 0
            kappa = metrics.cohen_kappa_score(true, predicted, weights="quadratic", labels=range(classes))
        if np.isnan(kappa):  # one class, in truth and prediction
            degenerate += 1
            kappa = 1.0
        assert scores["kappa"] == pytest.approx(kappa, abs=1e-12)
    assert degenerate > 2


def test_kappa_of_one_true_class_is_1_where_all_is_right_and_0_where_not() -> None:
    same = np.full(4, 2)
    assert scores_of(same, same, 5)["kappa"] == 1.0
    assert scores_of(same, np.array([2, 2, 2, 3]), 5)["kappa"] == 0.0


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_binary_cross_entropies_of_being_above_each_level(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(50, 4, generator=generator, dtype=torch.float64), torch.arange(50) % 5
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0], dtype=torch.float64) if weighted else None
    task = Ordinal(5, weights)
    expected = 0.0
    for row, label in zip(logits, target.tolist(), strict=True):
        above = torch.tensor([float(label > level) for level in range(4)], dtype=torch.float64)
        each = functional.binary_cross_entropy(row.sigmoid(), above, reduction="sum").item()
        expected += each * (1.0 if weights is None else weights[label].item())
    assert task.loss(logits, target).tolist() == pytest.approx([expected])
    divisor = task.weight(target)
    assert (divisor is None) if weights is None else divisor.tolist() == pytest.approx([10 * weights.sum().item()])


def test_a_probability_that_is_out_of_line_moves_the_class_by_one_level() -> None:
    task = Ordinal(5)
    logits = torch.tensor([[3.0, 2.0, 1.0, -1.0], [3.0, -2.0, 1.0, -1.0], [-1.0, -1.0, -1.0, 5.0]])
    assert task.labels(logits, (1, 1)).tolist() == [3, 2, 1]


def test_probabilities_of_classes_are_differences_and_sum_to_1() -> None:
    task = Ordinal(4)
    ordered = torch.tensor([[0.9, 0.6, 0.2]], dtype=torch.float64).logit()
    np.testing.assert_allclose(task.probabilities(ordered)[0], [0.1, 0.3, 0.4, 0.2], atol=1e-12)
    crossing = torch.tensor([[0.5, 0.7, 0.2]], dtype=torch.float64).logit()
    np.testing.assert_allclose(task.probabilities(crossing)[0], np.array([0.5, 0, 0.5, 0.2]) / 1.2, atol=1e-12)


def test_it_needs_a_logit_less_than_there_are_classes_and_takes_no_arguments() -> None:
    assert load("tasks", "ordinal").outputs(5) == 4
    with pytest.raises(ValueError, match=r"5 classes but the last"):
        Ordinal(5).loss(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="argument of task 'ordinal' called 'label_smoothing'"):
        resolve("textures.cnn", task="ordinal", task_args={"label_smoothing": 0.1})
