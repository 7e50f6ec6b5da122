"""A number for each picture: loss and scores against torch's, scikit-learn's and SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch.nn import functional

from trainers.tasks.regress import make

CASES = 200


def scores_of(task: Any, output: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    counts = task.counts(output, target)
    assert counts.total == {}
    assert not any(table.is_floating_point() for table in counts.per_image.values())
    scores: dict[str, Any] = task.scores({name: table.numpy() for name, table in counts.per_image.items()})
    return scores


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[float], list[float]]:
    """Outputs, true numbers in their unit, some equal, and mean and deviation of 1 to 3 columns."""
    rng = np.random.default_rng(seed)
    images, columns = int(rng.integers(2, 40)), int(rng.integers(1, 4))
    mean, std = rng.normal(0, 100, columns), rng.uniform(0.01, 1000, columns)
    output = rng.normal(0, 1, (images, columns))
    target = (output + rng.normal(0, 0.5, output.shape)) * std + mean
    if seed % 2:
        target, output = np.round(target), np.round(output)
    return torch.from_numpy(output), torch.from_numpy(target), mean.tolist(), std.tolist()


def test_scores_are_those_of_scikit_learn_and_scipy() -> None:
    for seed in range(CASES):
        output, target, mean, std = case(seed)
        scores = scores_of(make(len(mean), target_mean=mean, target_std=std), output, target)
        true, predicted = target.numpy(), output.numpy() * np.array(std) + np.array(mean)
        assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(true, predicted), rel=1e-12)
        assert scores["rmse"] == pytest.approx(metrics.root_mean_squared_error(true, predicted), rel=1e-12)
        assert scores["r2"] == pytest.approx(metrics.r2_score(true, predicted), rel=1e-9, abs=1e-9)
        for column, found in enumerate(scores["per_class"]["spearman"]):
            pair = true[:, column], predicted[:, column]
            if all(len(set(side)) > 1 for side in pair):
                assert found == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-12)
            else:
                assert found == 0.0


def test_constant_numbers_give_finite_scores() -> None:
    task = make(1)
    same = torch.ones(4, 1, dtype=torch.float64)
    assert scores_of(task, same, same) | {"per_class": None} == {
        "mae": 0.0,
        "rmse": 0.0,
        "r2": 1.0,
        "spearman": 0.0,
        "per_class": None,
    }
    assert scores_of(task, same + 1, same)["r2"] == 0.0


def test_scores_keep_every_bit_however_pictures_were_shared() -> None:
    output, target, mean, std = case(4)
    task = make(len(mean), target_mean=mean, target_std=std)
    parts = [task.counts(output[rows], target[rows]).per_image["values"] for rows in (slice(0, 3), slice(3, None))]
    table = torch.zeros(len(output), *parts[0].shape[1:], dtype=torch.int64)
    table[:3] += parts[0]
    table[3:] += parts[1]
    assert task.scores({"values": table.numpy()}) == scores_of(task, output, target)


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_loss_is_that_of_torch_of_errors_in_deviations(loss: str) -> None:
    torch.manual_seed(1)
    output = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(6, 2, dtype=torch.float64) * torch.tensor([5.0, 0.1]) + torch.tensor([100.0, -3.0])
    task = make(2, loss=loss, delta=0.7, target_mean=[100.0, -3.0], target_std=[5.0, 0.1])
    wanted = (target - torch.tensor([100.0, -3.0])) / torch.tensor([5.0, 0.1])
    reference = {
        "mse": functional.mse_loss(output, wanted),
        "l1": functional.l1_loss(output, wanted),
        "huber": functional.huber_loss(output, wanted, delta=0.7),
    }[loss]
    found = task.loss(output, target)
    assert found.shape == (1,)
    assert task.weight(target) is None
    torch.testing.assert_close(found[0] / 6, reference, rtol=1e-6, atol=1e-9)
    assert torch.autograd.gradcheck(lambda x: task.loss(x, target), output)


def test_the_unit_changes_nothing_of_what_is_learned() -> None:
    output = torch.randn(5, 1, dtype=torch.float64)
    target = torch.randn(5, 1, dtype=torch.float64)
    small = make(1, target_mean=[0.0], target_std=[1.0])
    large = make(1, target_mean=[1e6], target_std=[1e4])
    torch.testing.assert_close(small.loss(output, target), large.loss(output, target * 1e4 + 1e6))
    torch.testing.assert_close(large.labels(output, (1, 1)), output * 1e4 + 1e6)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"delta": 0.0}, "delta=0.0 is not allowed"),
        ({"class_weights": torch.ones(1)}, "class weights are for classes"),
    ],
)
def test_values_that_make_no_sense_are_refused(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(1, **args)


def test_half_precision_is_compared_in_the_unit_of_the_data() -> None:
    output = torch.ones(2, 1, dtype=torch.bfloat16)
    task = make(1, target_mean=[1000.0], target_std=[0.5])
    target = torch.full((2, 1), 1000.5, dtype=torch.float64)
    assert task.loss(output, target).dtype == torch.float32
    assert scores_of(task, output, target)["mae"] == 0.0
