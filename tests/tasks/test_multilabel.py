"""Any number of labels for each picture: loss and scores against torch's and scikit-learn's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch.nn import functional

from trainers.tasks import multilabel
from trainers.tasks.multilabel import Multilabel, make

CASES = 200


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, some of them equal, and labels of up to 40 pictures, some of which nobody or everybody has."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 41)), int(rng.integers(1, 4))
    logits = rng.normal(0, 2, (images, classes)).astype(np.float32)
    if seed % 2:
        logits = np.round(logits)
    labels = rng.random((images, classes)) < rng.choice([0.0, 0.1, 0.5, 1.0], classes)
    return torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64))


def scores_of(task: Any, logits: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    counts = task.counts(logits, target)
    assert counts.total == {}
    assert not any(table.is_floating_point() for table in counts.per_image.values())
    scores: dict[str, Any] = task.scores({name: table.numpy() for name, table in counts.per_image.items()})
    return scores


def test_average_precisions_are_those_of_scikit_learn() -> None:
    for seed in range(CASES):
        logits, target = case(seed)
        scores, true = scores_of(make(logits.shape[1]), logits, target), target.numpy()
        each = [
            metrics.average_precision_score(true[:, label], logits[:, label]) if true[:, label].any() else None
            for label in range(true.shape[1])
        ]
        assert scores["per_class"]["average_precision"] == pytest.approx(each, abs=1e-12)
        known = [value for value in each if value is not None]
        assert scores["map"] == pytest.approx(np.mean(known) if known else 0.0, abs=1e-12)


def test_other_scores_are_those_of_scikit_learn() -> None:
    for seed in range(20):
        logits, target = case(seed)
        logits, target = torch.cat([logits, -logits], 1), torch.cat([target, 1 - target], 1)  # 2 labels or more
        scores, true, predicted = scores_of(make(logits.shape[1]), logits, target), target.numpy(), logits.numpy() > 0
        *each, _ = metrics.precision_recall_fscore_support(true, predicted, average=None, zero_division=0.0)
        for name, values in zip(("precision", "recall", "f1"), each, strict=True):
            assert scores["per_class"][name] == pytest.approx(values, abs=1e-12)
            assert scores[name] == pytest.approx(values.mean(), abs=1e-12)
        micro = metrics.f1_score(true, predicted, average="micro", zero_division=0.0)
        assert scores["f1_micro"] == pytest.approx(micro, abs=1e-12)
        assert scores["exact_match"] == pytest.approx(metrics.accuracy_score(true, predicted))


def test_scores_do_not_depend_on_how_pictures_were_shared() -> None:
    logits, target = case(3)
    task = make(logits.shape[1])
    whole = scores_of(task, logits, target)
    parts = [task.counts(logits[rows], target[rows]).per_image for rows in (slice(0, 5), slice(5, None))]
    joined = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    assert task.scores(joined) == whole
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    assert scores_of(task, logits[order], target[order])["map"] == pytest.approx(whole["map"], abs=1e-15)


@pytest.mark.parametrize("pos_weight", [None, 3.0, "balanced"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_that_of_torch(pos_weight: float | str | None, weighted: bool) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(7, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 2, (7, 3))
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64) if weighted else None
    shares = [0.5, 0.1, 1.0]
    task = make(3, weights, pos_weight=pos_weight, target_shares=shares)
    wanted_pos = {None: [1, 1, 1], 3.0: [3, 3, 3], "balanced": [1, 9, 1]}[pos_weight]
    each = functional.binary_cross_entropy_with_logits(
        logits, target.double(), pos_weight=torch.tensor(wanted_pos).double(), reduction="none"
    )
    wanted = each.mean() if weights is None else ((each * weights).sum(1) / weights.sum()).mean()
    loss = task.loss(logits, target)
    assert loss.shape == (1,)
    assert task.weight(target) is None
    torch.testing.assert_close(loss[0] / 7, wanted)
    assert torch.autograd.gradcheck(lambda x: task.loss(x, target), logits)


def test_labels_are_those_above_the_threshold() -> None:
    logits = torch.logit(torch.tensor([[0.1, 0.29, 0.31], [0.5, 0.9, 0.0001]]))
    assert make(3, threshold=0.3).labels(logits, (1, 1)).tolist() == [[0, 0, 1], [1, 1, 0]]
    assert make(3).labels(logits, (1, 1)).tolist() == [[0, 0, 0], [0, 1, 0]]
    torch.testing.assert_close(make(3).probabilities(logits)[0], torch.tensor([0.1, 0.29, 0.31]))
    scores = scores_of(make(3, threshold=0.3), logits, torch.tensor([[0, 0, 1], [1, 1, 0]]))
    assert scores["exact_match"] == scores["f1_micro"] == 1.0


def test_a_training_split_of_one_sort_of_label_has_finite_weights() -> None:
    task = make(3, pos_weight="balanced", target_shares=[0.0, 1.0, 0.25])
    assert task.pos_weight.tolist() == [1.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"pos_weight": 0.0}, "pos_weight=0.0 is not allowed; give a number above 0, or balanced"),
        ({"pos_weight": "even"}, "pos_weight=even is not allowed"),
        ({"threshold": 1.0}, "threshold=1.0 is not allowed; give a number between 0 and 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(3, **args)


def test_half_precision_and_sizes() -> None:
    assert multilabel.outputs(4) == 4
    logits, target = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(2, 4, dtype=torch.int64)
    task = Multilabel(4, None)
    assert task.loss(logits, target).dtype == torch.float32
    assert task.counts(logits, target).per_image["logits"].dtype == torch.int32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores_of(task, logits, target)["map"] == 0.0
