"""Losses and scores against torch and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch.nn import functional

from trainers import task


def outputs(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator) + 2 * functional.one_hot(target, classes)
    return logits, target


def to_numpy(counts: task.Counts) -> dict[str, np.ndarray]:
    return {name: count.numpy() for name, count in counts.items()}


@pytest.mark.parametrize("classes", [2, 7])
def test_scores_equal_scikit_learn(classes: int) -> None:
    logits, target = outputs(500, classes)
    classify = task.Classify(classes)
    parts = [classify.counts(logits[i : i + 77], target[i : i + 77]) for i in range(0, 500, 77)]
    summed = {name: sum(part[name] for part in parts).numpy() for name in parts[0]}  # type: ignore[union-attr]
    scores = classify.scores(summed)
    predicted = logits.argmax(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(target, predicted, zero_division=0)
    np.testing.assert_array_equal(summed["confusion"], metrics.confusion_matrix(target, predicted))
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(target, predicted))
    assert scores["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(target, predicted))
    k = min(5, classes)
    top = metrics.top_k_accuracy_score(target, logits, k=k, labels=range(classes)) if classes > 2 else 1.0
    assert scores["top5_accuracy"] == pytest.approx(top)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert scores[name] == pytest.approx(expected.mean())
        np.testing.assert_allclose(scores["per_class"][name], expected)


def test_a_class_that_never_occurs_counts_0_and_is_left_out_of_the_balanced_accuracy() -> None:
    logits = torch.eye(3)[[0, 0, 1]]
    scores = task.Classify(3).scores(to_numpy(task.Classify(3).counts(logits, torch.tensor([0, 1, 1]))))
    assert scores["per_class"]["recall"] == [1.0, 0.5, 0.0]
    assert scores["balanced_accuracy"] == pytest.approx(0.75)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_over_divisor_is_the_mean_loss_of_torch(smoothing: float, weighted: bool) -> None:
    logits, target = outputs(64, 5)
    weights = torch.tensor([0.2, 1, 3, 0.5, 2], dtype=torch.float64) if weighted else None
    classify = task.Classify(5, weights, label_smoothing=smoothing)
    expected = functional.cross_entropy(logits.double(), target, weights, label_smoothing=smoothing)
    total = sum(classify.loss(part, t).double() for part, t in zip(logits.split(10), target.split(10), strict=True))
    divisors = [classify.weight(part) for part in target.split(10)]
    divisor = sum(len(part) if d is None else float(d) for part, d in zip(target.split(10), divisors, strict=True))
    assert float(total / divisor) == pytest.approx(float(expected), rel=1e-5)


def test_class_weights() -> None:
    frequencies = [10, 20, 70, 0]
    inverse = task.weigh_classes("inverse", frequencies)
    np.testing.assert_allclose(inverse, [100 / 40, 100 / 80, 100 / 280, 0])  # total / (classes * frequency)
    median = task.weigh_classes("median", frequencies)
    np.testing.assert_allclose(median, [20 / 10, 20 / 20, 20 / 70, 0])
    assert task.weigh_classes("none", frequencies) is None


def test_unknown_arguments_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        task.make("classify", {"smooth": 0.1}, 3, None)
    with pytest.raises(ValueError, match=r"label_smoothing=1\.5"):
        task.make("classify", {"label_smoothing": 1.5}, 3, None)
