"""Thousands of classes: the same scores, and nothing of the size of classes x classes."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import run_ranks
from helpers.small import job
from PIL import Image
from sklearn import metrics

from trainers.confusion import DENSE_CLASSES, DRAWN_CLASSES, Confusion, Drawn, to_draw
from trainers.recipe import Recipe, resolve
from trainers.runs import figures
from trainers.tasks.base import Counts
from trainers.tasks.classify import Classify
from trainers.tasks.ordinal import Ordinal


def labels(classes: int, rows: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted classes: half are right, and some classes never occur."""
    rng = np.random.default_rng(classes)
    true = rng.integers(0, classes - classes // 7, rows)
    return true, np.where(rng.random(rows) < 0.5, true, rng.integers(0, classes, rows))


def counted(task: Classify | Ordinal, output: torch.Tensor, true: np.ndarray) -> dict[str, np.ndarray]:
    """As workers do: in micro-batches; totals are added up, tables put together."""
    parts = [task.counts(output[i : i + 700], torch.from_numpy(true[i : i + 700])) for i in range(0, len(true), 700)]
    summed = {name: np.asarray(sum(part.total[name] for part in parts)) for name in parts[0].total}
    return summed | {name: torch.cat([part.per_image[name] for part in parts]).numpy() for name in parts[0].per_image}


@pytest.mark.parametrize("classes", [DENSE_CLASSES, DENSE_CLASSES + 1, 1500])
def test_scores_of_many_classes_equal_scikit_learn(classes: int) -> None:
    true, predicted = labels(classes)
    logits = torch.zeros(len(true), classes).scatter_(1, torch.from_numpy(predicted)[:, None], 1.0)
    counts = counted(Classify(classes), logits, true)
    scores = Classify(classes).scores(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted and do not occur
        balanced = metrics.balanced_accuracy_score(true, predicted)
    expected = metrics.precision_recall_fscore_support(true, predicted, labels=range(classes), zero_division=0)
    assert scores["accuracy"] == pytest.approx(np.mean(true == predicted))
    assert scores["balanced_accuracy"] == pytest.approx(balanced)
    for name, values in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        np.testing.assert_allclose(scores["per_class"][name], values)
        assert scores[name] == pytest.approx(values.mean())


@pytest.mark.parametrize("classes", [12, DENSE_CLASSES + 1, 1000])
def test_ordinal_scores_of_many_classes_equal_scikit_learn(classes: int) -> None:
    true, predicted = labels(classes)
    logits = torch.where(torch.arange(classes - 1) < torch.from_numpy(predicted)[:, None], 1.0, -1.0)
    scores = Ordinal(classes).scores(counted(Ordinal(classes), logits, true))
    distance = np.abs(true - predicted)
    kappa = metrics.cohen_kappa_score(true, predicted, weights="quadratic", labels=range(classes))
    assert scores["kappa"] == pytest.approx(kappa, abs=1e-12)
    assert scores["mae"] == pytest.approx(distance.mean())
    assert scores["within_one"] == pytest.approx((distance <= 1).mean())


@pytest.mark.parametrize("classes", [300, 1500])
def test_a_matrix_that_an_older_checkpoint_holds_gives_the_scores_that_pairs_give(classes: int) -> None:
    true, predicted = labels(classes)
    pairs = {"pairs": np.stack([true, predicted], 1).astype(np.int32), "top5": np.array(7)}
    dense = {"confusion": Confusion.of(pairs, classes).matrix(), "top5": np.array(7)}
    np.testing.assert_array_equal(dense["confusion"], metrics.confusion_matrix(true, predicted, labels=range(classes)))
    assert Classify(classes).scores(pairs) == Classify(classes).scores(dense)
    assert Ordinal(classes).scores(pairs) == Ordinal(classes).scores(dense)
    assert str(to_draw(pairs)) == str(to_draw(dense))


@pytest.mark.parametrize("task", [Classify(10_000), Ordinal(10_000)])
def test_nothing_of_10000_classes_is_as_large_as_a_matrix(task: Classify | Ordinal) -> None:
    """A matrix of them has 800 MB. What a step, an epoch and a figure take is a small multiple of the logits."""
    rows, classes = 256, 10_000
    true, predicted = labels(classes, rows)
    output = torch.zeros(rows, classes - isinstance(task, Ordinal))
    output.scatter_(1, torch.from_numpy(predicted)[:, None].clamp(max=classes - 2), 1.0)
    counts: Counts = task.counts(output, torch.from_numpy(true))
    tensors = [*counts.total.values(), *counts.per_image.values()]
    assert sum(tensor.nbytes for tensor in tensors) <= 16 * rows
    tracemalloc.start()
    found: dict[str, Any] = {name: each.numpy() for name, each in {**counts.total, **counts.per_image}.items()}
    scores = task.scores(found)
    drawn = to_draw(found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert len(scores["per_class"]["recall"]) == classes
    assert drawn is not None
    assert drawn.matrix.shape == (DRAWN_CLASSES + 1, DRAWN_CLASSES + 1)


def test_of_many_classes_those_with_the_most_errors_are_drawn() -> None:
    classes = 500
    true = np.repeat(np.arange(classes), 10)
    predicted = true.copy()
    for number, worst in enumerate((77, 400, 3)):  # 9, 8 and 7 of 10 are taken for the last class
        predicted[10 * worst : 10 * worst + 9 - number] = classes - 1
    drawn = to_draw({"pairs": np.stack([true, predicted], 1).astype(np.int32)})
    assert drawn is not None
    assert drawn.classes is not None
    assert drawn.classes[:4] == [499, 77, 400, 3]
    assert drawn.matrix[:4, :4].tolist() == [[10, 0, 0, 0], [9, 1, 0, 0], [8, 0, 2, 0], [7, 0, 0, 3]]
    assert drawn.matrix.sum() == len(true)  # each picture is somewhere
    names = [f"class {number}" for number in range(classes)]
    figure = figures.draw_confusion_of({"classes": names}, drawn, "one")
    assert "the 31 of 500 classes with the most errors" in figure.axes[0].get_title(loc="left")
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[:2] == ["class 499", "class 77"]
    assert shown[-1] == "all others"


def test_few_classes_are_drawn_as_they_are_and_other_counts_not_at_all() -> None:
    matrix = np.arange(9).reshape(3, 3)
    assert to_draw({"confusion": matrix, "top5": np.array(1)}) == Drawn(matrix)
    assert to_draw({"overlap": matrix}) is None


def pictures(folder: Path, classes: int) -> str:
    rng = np.random.default_rng(0)
    for label in range(classes):
        for split in ("train", "val"):
            (folder / split / f"c{label:04}").mkdir(parents=True)
            image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            image.save(folder / split / f"c{label:04}" / "0.png")
    return str(folder)


def many(**changes: Any) -> Recipe:
    small: dict[str, Any] = {"image_size": (8, 8), "stored_size": (8, 8), "precision": "fp64", "epochs": 2}
    small |= {"batch_size": 64, "micro_batch_size": 32, "lr": 0.05, "warmup_epochs": 0.0}
    return resolve("resnet.r18", model="linear_cnn", **{**small, **changes})


def test_workers_count_many_classes_as_one_does(tmp_path: Path) -> None:
    """One, two and three of them: the same pairs, whoever saw them, and checkpoints of the size of the weights."""
    classes = 270
    raw = pictures(tmp_path / "raw", classes)
    ends = [
        events[-1]
        for events in run_ranks([(dict(job(many(), raw, tmp_path, f"by{size}")), size) for size in (1, 2, 3)])
    ]
    for end in ends:
        assert end["counts"]["pairs"].shape == (classes, 2)
        np.testing.assert_array_equal(end["counts"]["pairs"], ends[0]["counts"]["pairs"])
        assert end["final"]["accuracy"] == ends[0]["final"]["accuracy"]
    sizes = [file.stat().st_size for file in (tmp_path / "by3" / "checkpoints").rglob("*.pt")]
    assert len(sizes) >= 1
    weights = ends[0]["weights"][0] * 8
    assert max(sizes) < 2 * weights + 100_000 + 8 * classes  # with SGD's momentum; a matrix would take 583 kB more
