"""Losses and scores against torch, torchmetrics and scikit-learn."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from test_boundary_f1 import draw_masks
from torch.nn import functional

from trainers import datasets
from trainers.recipe import resolve
from trainers.registry import load
from trainers.tasks import segment as segmentation
from trainers.tasks.base import Counts
from trainers.tasks.class_weights import weigh_classes
from trainers.tasks.classify import Classify
from trainers.tasks.segment import Segment
from trainers.tasks.segment_binary import SegmentBinary

IGNORED = datasets.IGNORED


def make(name: str, args: dict[str, Any], classes: int, class_weights: torch.Tensor | None) -> Any:
    return load("tasks", name).make(classes, class_weights, **args)


def outputs(name: str, classes: int) -> int:
    return int(load("tasks", name).outputs(classes))


def classified(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator) + 2 * functional.one_hot(target, classes)
    return logits, target


def to_numpy(counts: Counts) -> dict[str, np.ndarray]:
    return {name: count.numpy() for name, count in {**counts.total, **counts.per_image}.items()}


@pytest.mark.parametrize("classes", [2, 7])
def test_scores_equal_scikit_learn(classes: int) -> None:
    logits, target = classified(500, classes)
    classify = Classify(classes)
    parts = [classify.counts(logits[i : i + 77], target[i : i + 77]) for i in range(0, 500, 77)]
    assert not parts[0].per_image
    summed = {name: sum(part.total[name] for part in parts).numpy() for name in parts[0].total}
    scores = classify.scores(summed)
    predicted = logits.argmax(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(target, predicted, zero_division=0)
    assert classify.labels(logits, (1, 1)).equal(predicted)
    assert classify.ranking(summed) is None
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
    scores = Classify(3).scores(to_numpy(Classify(3).counts(logits, torch.tensor([0, 1, 1]))))
    assert scores["per_class"]["recall"] == [1.0, 0.5, 0.0]
    assert scores["balanced_accuracy"] == pytest.approx(0.75)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_over_divisor_is_the_mean_loss_of_torch(smoothing: float, weighted: bool) -> None:
    logits, target = classified(64, 5)
    weights = torch.tensor([0.2, 1, 3, 0.5, 2], dtype=torch.float64) if weighted else None
    classify = Classify(5, weights, label_smoothing=smoothing)
    expected = functional.cross_entropy(logits.double(), target, weights, label_smoothing=smoothing)
    total = sum(classify.loss(part, t)[0].double() for part, t in zip(logits.split(10), target.split(10), strict=True))
    divisors = [classify.weight(part) for part in target.split(10)]
    divisor = sum(len(part) if d is None else float(d[0]) for part, d in zip(target.split(10), divisors, strict=True))
    assert float(total / divisor) == pytest.approx(float(expected), rel=1e-5)


def test_class_weights_are_those_of_their_formulas() -> None:
    counts = [10, 20, 70, 0]
    inverse = weigh_classes("inverse", counts)
    np.testing.assert_allclose(inverse, [100 / 40, 100 / 80, 100 / 280, 0])  # total / (classes * count)
    median = weigh_classes("median", counts)
    np.testing.assert_allclose(median, [20 / 10, 20 / 20, 20 / 70, 0])
    areas = weigh_classes("median", counts, [40, 100, 100, 0])  # frequencies 0.25, 0.2, 0.7
    np.testing.assert_allclose(areas, [0.25 / 0.25, 0.25 / 0.2, 0.25 / 0.7, 0])
    erfnet = weigh_classes("erfnet", counts)
    np.testing.assert_allclose(erfnet, [1 / math.log(1.12), 1 / math.log(1.22), 1 / math.log(1.72), 0])
    assert weigh_classes("none", counts) is None


def test_unknown_arguments_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean label_smoothing"):
        resolve("digits.cnn", task_args={"smoothing": 0.1})
    with pytest.raises(ValueError, match=r"label_smoothing=1\.5"):
        make("classify", {"label_smoothing": 1.5}, 3, None)


# Segmentation ------------------------------------------------------------------------------------------------


def pixels(
    classes: int, channels: int | None = None, *, size: tuple[int, int] = (9, 7), images: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, float64, and targets of a few images; the last image is ignored as a whole."""
    generator = torch.Generator().manual_seed(classes)
    target = torch.randint(0, classes, (images, *size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORED
    target[-1] = IGNORED
    logits = torch.randn(images, channels or classes, *size, generator=generator, dtype=torch.float64)
    return 2 * logits, target


def test_ignored_is_what_data_sets_call_ignored() -> None:
    assert segmentation.IGNORED == datasets.IGNORED


def test_scores_of_random_masks_equal_torchmetrics_and_scikit_learn() -> None:
    multiclass = pytest.importorskip("torchmetrics.functional.classification")
    for seed in range(200):
        labels, target, classes = draw_masks(seed)
        valid = target != IGNORED
        segment = Segment(classes, boundary_tolerance=0)
        counts = to_numpy(segment.count(labels, target))
        scores, numbers = segment.scores(counts), range(classes)
        true, predicted = target[valid].numpy(), labels[valid].numpy()
        present, occurs = np.union1d(true, predicted), np.unique(true)

        np.testing.assert_array_equal(counts["confusion"], metrics.confusion_matrix(true, predicted, labels=numbers))
        options = {"num_classes": classes, "ignore_index": IGNORED, "validate_args": False}
        theirs = multiclass.multiclass_confusion_matrix(labels, target, **options)
        np.testing.assert_array_equal(counts["confusion"], theirs)
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            true, predicted, labels=numbers, zero_division=0
        )
        iou = metrics.jaccard_score(true, predicted, labels=numbers, average=None, zero_division=0)
        for name, expected, known in (
            ("iou", iou, present),
            ("iou", multiclass.multiclass_jaccard_index(labels, target, average="none", **options), present),
            ("dice", f1, present),
            ("f1", multiclass.multiclass_f1_score(labels, target, average="none", **options), present),
            ("precision", precision, present),
            ("recall", recall, occurs),
            ("accuracy", multiclass.multiclass_accuracy(labels, target, average="none", **options), occurs),
        ):
            values = scores["per_class"][name]
            np.testing.assert_allclose([values[c] for c in known], np.asarray(expected)[known], atol=1e-6, err_msg=name)
            assert [c for c in numbers if values[c] is None] == sorted(set(numbers) - set(known.tolist())), name
        assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-6)
        assert scores["class_accuracy"] == pytest.approx(recall[occurs].mean(), abs=1e-6)
        macro = multiclass.multiclass_jaccard_index(labels, target, average="macro", **options)
        assert scores["miou"] == pytest.approx(float(macro), abs=1e-6)
        assert scores["dice"] == scores["f1"] == pytest.approx(f1[present].mean(), abs=1e-6)
        weighted = metrics.jaccard_score(true, predicted, labels=numbers, average="weighted", zero_division=0)
        assert scores["fw_iou"] == pytest.approx(weighted, abs=1e-6)
        assert "boundary_f1" not in scores
        assert "boundary_f1" not in scores["per_class"]
        assert segment.ranking(counts) == pytest.approx(iou[present].mean(), abs=1e-6)  # of this one image


def test_scores_of_a_binary_task_are_those_of_the_foreground() -> None:
    logits, target = pixels(2, 1, images=4)
    binary = make("segment_binary", {"boundary_tolerance": 0.1}, 2, None)
    counts = to_numpy(binary.counts(logits, target))
    valid = target != IGNORED
    true, predicted = target[valid].numpy(), (logits[:, 0] > 0)[valid].numpy().astype(int)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(true, predicted, average="binary")
    iou = metrics.jaccard_score(true, predicted, average=None)
    scores = binary.scores(counts)
    expected = {"iou": iou[1], "dice": f1, "f1": f1, "precision": precision, "recall": recall, "miou": iou.mean()}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert isinstance(scores[binary.metric], float)
    assert counts["overlap"].shape == (4, 2, 2)
    assert counts["boundary"].shape == (4, 2, 4)


@pytest.mark.parametrize("name", ["segment", "segment_binary"])
def test_classes_that_never_occur_are_none_and_scores_are_json(name: str) -> None:
    segment = make(name, {}, 2, None)
    empty = torch.zeros(2, 4, 4, dtype=torch.uint8)
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[1] = IGNORED
    counts = to_numpy(segment.count(empty, target))  # type: ignore[attr-defined]
    scores = segment.scores(counts)
    assert scores["accuracy"] == scores["miou"] == scores["fw_iou"] == 1
    assert scores["boundary_f1"] == 0
    assert {name: values[1] for name, values in scores["per_class"].items()} == dict.fromkeys(scores["per_class"])
    assert all(isinstance(value, float) for name, value in scores.items() if name != "per_class")
    np.testing.assert_equal(segment.ranking(counts), [1, np.nan])
    target[:] = IGNORED
    scores = segment.scores(to_numpy(segment.count(empty, target)))  # type: ignore[attr-defined]
    assert scores["accuracy"] == scores["miou"] == scores[segment.metric] == 0
    json.dumps(scores, allow_nan=False)


def test_a_class_that_is_only_predicted_counts_in_iou_and_not_in_accuracy() -> None:
    scores = Segment(3).scores({"confusion": np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])})
    assert scores["per_class"]["iou"] == [0.75, 0, 1]
    assert scores["per_class"]["recall"] == [0.75, None, 1]
    assert scores["miou"] == pytest.approx(1.75 / 3)
    assert scores["class_accuracy"] == pytest.approx(1.75 / 2)
    assert scores["fw_iou"] == pytest.approx((4 * 0.75 + 4) / 8)


def test_counts_do_not_depend_on_micro_batches() -> None:
    logits, target = pixels(5, size=(20, 31))
    segment = Segment(5, boundary_tolerance=0.1)
    whole = segment.counts(logits, target)
    parts = [segment.counts(logits[i:j], target[i:j]) for i, j in ((0, 1), (1, 4), (4, 6))]
    assert whole.total["confusion"].dtype == torch.int64
    assert whole.total["confusion"].equal(sum(part.total["confusion"] for part in parts))
    for name, classes_and_fields in (("overlap", (5, 2)), ("boundary", (5, 4))):
        assert whole.per_image[name].dtype == torch.int32
        assert whole.per_image[name].shape == (6, *classes_and_fields)
        assert whole.per_image[name].equal(torch.cat([part.per_image[name] for part in parts]))


def test_labels_are_made_at_the_size_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, _ = pixels(5, size=(6, 4))
    segment, binary = Segment(5), SegmentBinary(2)
    same, resized = segment.labels(logits, (6, 4)), segment.labels(logits, (13, 9))
    assert same.dtype == resized.dtype == torch.uint8
    assert same.equal(logits.argmax(1).byte())
    expected = functional.interpolate(logits, (13, 9), mode="bilinear", align_corners=False)
    assert resized.equal(expected.argmax(1).byte())
    monkeypatch.setattr(segmentation, "_RESIZED_AT_ONCE", 1000)  # one image at a time
    assert segment.labels(logits, (13, 9)).equal(resized)
    assert binary.labels(logits[:, :1], (13, 9)).equal((expected[:, 0] > 0).byte())
    assert binary.labels(torch.zeros(1, 1, 2, 2), (2, 2)).sum() == 0


WEIGHTS = torch.tensor([0.2, 1, 3, 0.5, 2], dtype=torch.float64)


def dice_by_hand(probabilities: np.ndarray, target: np.ndarray, classes: list[int]) -> list[float]:
    """Dice loss of each image that has a labelled pixel; `probabilities` (N, ...), one channel for each class."""
    losses = []
    for p, t in zip(probabilities, target, strict=True):
        valid = t != IGNORED
        found = []
        for channel, number in enumerate(classes):
            truth = (t == number)[valid]
            if truth.any() or classes == [1]:
                q = p[channel][valid]
                found.append(1 - (2 * (q * truth).sum() + 1) / ((q**2).sum() + (truth**2).sum() + 1))
        if found:
            losses.append(float(np.mean(found)))
    return losses


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("double", [False, True])
def test_cross_entropy_of_pixels_is_that_of_torch(weights: torch.Tensor | None, double: bool) -> None:
    logits, target = pixels(5)
    segment = Segment(5, weights)
    mean = segment.loss(logits if double else logits.half(), target) / segment.weight(target)
    expected = functional.cross_entropy(logits, target, weights, ignore_index=IGNORED)
    np.testing.assert_allclose(mean, [expected], rtol=1e-12 if double else 1e-3)


@pytest.mark.parametrize("weights", [None, WEIGHTS[1:3]])
def test_binary_cross_entropy_of_pixels_is_that_of_torch(weights: torch.Tensor | None) -> None:
    logits, target = pixels(2, 1)
    binary = SegmentBinary(2, weights)
    valid = target != IGNORED
    each = functional.binary_cross_entropy_with_logits(
        logits[:, 0][valid], (target[valid] == 1).double(), reduction="none"
    )
    factor = torch.ones(2) if weights is None else weights
    expected = (each * factor[target[valid]]).sum() / factor[target[valid]].sum()
    np.testing.assert_allclose(binary.loss(logits, target) / binary.weight(target), [expected], rtol=1e-12)


def test_dice_losses_are_those_by_hand() -> None:
    logits, target = pixels(5)
    target[0][target[0] == 3] = 1  # a class that is missing from an image
    segment = Segment(5, loss="dice")
    expected = dice_by_hand(logits.softmax(1).numpy(), target.numpy(), [0, 1, 2, 3, 4])
    np.testing.assert_allclose(segment.loss(logits, target), [sum(expected)], rtol=1e-12)
    assert segment.weight(target).tolist() == [5]  # the sixth image is ignored
    logits, target = pixels(2, 1)
    target[1] = 0  # no foreground
    binary = SegmentBinary(2, loss="dice")
    expected = dice_by_hand(logits.sigmoid().numpy(), target.numpy(), [1])
    np.testing.assert_allclose(binary.loss(logits, target), [sum(expected)], rtol=1e-12)
    assert float(binary.loss(torch.full_like(logits, -50), target)[0]) == pytest.approx(
        sum(1 - 1 / (1 + int((t == 1).sum())) for t in target)
    )


@pytest.mark.parametrize(("name", "channels"), [("segment", 2), ("segment_binary", 1)])
def test_sum_has_both_losses_and_any_micro_batches_give_the_same(name: str, channels: int) -> None:
    logits, target = pixels(2, channels, images=7)
    weights = torch.tensor([0.3, 2.0])
    both = make(name, {"loss": "sum"}, 2, weights)
    single = [make(name, {"loss": "cross_entropy"}, 2, weights), make(name, {"loss": "dice"}, 2, None)]
    whole, divisors = both.loss(logits, target), both.weight(target)
    assert divisors is not None
    assert whole.shape == divisors.shape == (2,)
    assert divisors.dtype == torch.float64
    torch.testing.assert_close(whole, torch.cat([one.loss(logits, target) for one in single]))
    torch.testing.assert_close(divisors, torch.cat([one.weight(target) for one in single]))  # type: ignore[misc]
    for cuts in ([1] * 7, [3, 4], [6, 1]):
        parts = list(zip(logits.split(cuts), target.split(cuts), strict=True))
        sums = torch.stack([both.loss(a, b) for a, b in parts]).sum(0)
        torch.testing.assert_close(sums, whole, rtol=1e-12, atol=0)
        weights_of_parts = torch.stack([both.weight(b) for _, b in parts])  # type: ignore[misc]
        torch.testing.assert_close(weights_of_parts.sum(0), divisors)


@pytest.mark.parametrize("name", ["segment", "segment_binary"])
def test_ignored_pixels_have_neither_loss_nor_gradient(name: str) -> None:
    logits, target = pixels(2, outputs(name, 2))
    segment = make(name, {"loss": "sum"}, 2, None)
    logits.requires_grad_()
    segment.loss(logits, target).sum().backward()
    assert logits.grad is not None
    ignored = target == IGNORED
    assert logits.grad.abs().sum(1)[ignored].max() == 0
    assert logits.grad.abs().sum(1)[~ignored].min() > 0
    target[:] = IGNORED
    logits.grad = None
    loss, divisors = segment.loss(logits, target), segment.weight(target)
    loss.sum().backward()
    assert divisors is not None
    assert loss.tolist() == divisors.tolist() == [0, 0]
    assert logits.grad.abs().max() == 0


def test_the_mask_is_shrunk_to_the_output_of_a_model_with_a_stride() -> None:
    target = torch.arange(13 * 6).view(1, 13, 6)
    segment = Segment(100, stride=4)
    rows, columns = [2, 6, 10, 12], [2, 5]  # of pixel centres: (i + 0.5) * 4, within the mask
    logits = torch.randn(1, 100, 4, 2, dtype=torch.float64)
    expected = functional.cross_entropy(logits, target[:, rows][:, :, columns], reduction="sum")
    torch.testing.assert_close(segment.loss(logits, target), expected[None])
    assert segment.weight(target).tolist() == [8]
    assert segment.counts(logits, target).total["confusion"].sum() == 13 * 6


def test_an_output_that_does_not_fit_is_refused_and_the_stride_is_named() -> None:
    target = torch.zeros(1, 30, 45, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"output is 4x6 .* masks of 30x45, which stride=1 .*; give stride=8"):
        Segment(3).loss(torch.zeros(1, 3, 4, 6), target)
    with pytest.raises(ValueError, match="no stride fits"):
        Segment(3).loss(torch.zeros(1, 3, 4, 45), target)
    with pytest.raises(ValueError, match="3 channels; this task needs 1"):
        SegmentBinary(2).loss(torch.zeros(1, 3, 30, 45), target)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"loss": "focall"}, "loss='focall' is not known; choose from cross_entropy, bce, focal, dice"),
        ({"stride": 0}, "stride=0"),
        ({"stride": 1.5}, r"stride=1\.5"),
        ({"boundary_tolerance": -0.1}, r"boundary_tolerance=-0\.1"),
    ],
)
@pytest.mark.parametrize("name", ["segment", "segment_binary"])
def test_arguments_of_segmentation_that_cannot_be_are_refused(name: str, args: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(name, args, 2, None)


def test_classes_that_do_not_fit_the_task_are_refused() -> None:
    assert [outputs(name, 2) for name in ("classify", "segment", "segment_binary")] == [2, 2, 1]
    with pytest.raises(ValueError, match=r"needs 2 classes, .* the data has 3"):
        make("segment_binary", {}, 3, None)
    with pytest.raises(ValueError, match="at most 255 classes; the data has 256"):
        outputs("segment", 256)
    with pytest.raises(ValueError, match="knows no class weights"):
        make("segment", {"loss": "dice"}, 2, torch.ones(2))
