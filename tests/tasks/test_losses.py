"""Every loss against a reference of others, its gradient against finite differences, and at the edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import run_ranks
from helpers.small import job, scene, small_recipe, write_pairs
from sklearn import metrics
from torch import Tensor
from torch.nn import functional

from trainers.datasets import IGNORED
from trainers.registry import load
from trainers.tasks import losses
from trainers.tasks.segment import Segment
from trainers.tasks.segment_binary import SegmentBinary

Floats = np.ndarray
TASKS = {"classify": losses.OF_PIXELS, "segment": losses.ALL, "segment_binary": losses.ALL}
EACH = [(task, loss) for task, names in TASKS.items() for loss in names]


def make(name: str, classes: int, weights: Tensor | None = None, **args: Any) -> Any:
    return load("tasks", name).make(classes, weights, **args)


def drawn(name: str, classes: int, images: int = 5) -> tuple[Tensor, Tensor]:
    """Logits, float64, and what is true: of masks some pixels are ignored, and the last one as a whole."""
    generator = torch.Generator().manual_seed(classes)
    size = () if name == "classify" else (6, 5)
    target = torch.randint(0, classes, (images, *size), generator=generator)
    if size:
        target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORED
        target[-1] = IGNORED
    channels = 1 if name == "segment_binary" else classes
    return 2 * torch.randn(images, channels, *size, generator=generator, dtype=torch.float64), target


def by_pixel(logits: Tensor, target: Tensor) -> tuple[Floats, Floats]:
    """Those with a label: logits (n, channels) and classes (n,)."""
    flat = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    valid = target.flatten() != IGNORED
    return flat[valid].numpy(), target.flatten()[valid].numpy()


def softmax(z: Floats) -> Floats:
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-z))


def mean(task: Any, logits: Tensor, target: Tensor) -> float:
    """Sums over divisors, added up."""
    divisors = task.weight(target)
    divisors = torch.tensor([float(len(target))]) if divisors is None else divisors
    sums = task.loss(logits, target)
    assert sums.shape == divisors.shape
    return float((sums / divisors).sum())


# ---- of pictures and pixels ----

WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", ["classify", "segment"])
def test_bce_is_the_log_loss_of_each_class_against_the_rest(name: str, weights: Tensor | None) -> None:
    logits, target = drawn(name, 4)
    z, true = by_pixel(logits, target)
    factor = np.ones(len(true)) if weights is None else weights.numpy()[true]
    total = sum(
        metrics.log_loss(true == c, sigmoid(z[:, c]), normalize=False, sample_weight=factor, labels=[False, True])
        for c in range(4)
    )
    assert mean(make(name, 4, weights, loss="bce"), logits, target) == pytest.approx(total / factor.sum(), rel=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", ["classify", "segment"])
def test_focal_loss_is_its_formula(name: str, gamma: float, weights: Tensor | None) -> None:
    logits, target = drawn(name, 4)
    z, true = by_pixel(logits, target)
    p = softmax(z)[np.arange(len(true)), true]
    alpha = np.ones(len(true)) if weights is None else weights.numpy()[true]
    expected = (alpha * (1 - p) ** gamma * -np.log(p)).sum() / alpha.sum()
    task = make(name, 4, weights, loss="focal", focal_gamma=gamma)
    assert mean(task, logits, target) == pytest.approx(expected, rel=1e-12)
    if gamma == 0:
        assert mean(make(name, 4, weights), logits, target) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow  # torchvision takes seconds to import
@pytest.mark.parametrize(("alpha", "gamma"), [(None, 2.0), (0.25, 2.0), (0.6, 0.5)])
def test_binary_focal_loss_is_that_of_torchvision(alpha: float | None, gamma: float) -> None:
    ops = pytest.importorskip("torchvision.ops")
    logits, target = drawn("segment_binary", 2)
    z, true = by_pixel(logits, target)
    theirs = -1 if alpha is None else alpha
    expected = ops.sigmoid_focal_loss(
        torch.tensor(z[:, 0]), torch.tensor(true).double(), alpha=theirs, gamma=gamma, reduction="mean"
    )
    task = make("segment_binary", 2, loss="focal", focal_gamma=gamma, focal_alpha=alpha)
    assert mean(task, logits, target) == pytest.approx(float(expected), rel=1e-12)
    weights = torch.tensor([0.3, 2.0], dtype=torch.float64)
    factor = weights[torch.tensor(true)]
    each = ops.sigmoid_focal_loss(torch.tensor(z[:, 0]), torch.tensor(true).double(), alpha=theirs, gamma=gamma)
    task = make("segment_binary", 2, weights, loss="focal", focal_gamma=gamma, focal_alpha=alpha)
    assert mean(task, logits, target) == pytest.approx(float((each * factor).sum() / factor.sum()), rel=1e-12)


def test_focal_losses_of_two_classes_and_of_one_logit_are_the_same() -> None:
    logits, target = drawn("segment_binary", 2)
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    one = mean(make("segment_binary", 2, loss="focal"), logits, target)
    assert mean(make("segment", 2, loss="focal"), both, target) == pytest.approx(one, rel=1e-12)


def test_focal_losses_are_as_much_smaller_as_the_paper_says() -> None:
    """Lin et al., section 3.2: at gamma 2, 100 times where p = 0.9, and 1000 times where p is about 0.968."""
    plain = -torch.tensor([0.9, 0.968], dtype=torch.float64).log()
    np.testing.assert_allclose(plain / losses.focal(plain, 2), [100, 1000], rtol=0.03)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_smoothing_of_pixels_is_that_of_torch_where_pixels_are_ignored(weights: Tensor | None) -> None:
    logits, target = drawn("segment", 4)
    expected = functional.cross_entropy(logits, target, weights, ignore_index=IGNORED, label_smoothing=0.1)
    task = make("segment", 4, weights, label_smoothing=0.1)
    assert mean(task, logits, target) == pytest.approx(float(expected), rel=1e-12)
    z, true = by_pixel(logits, target)
    truth = 0.9 * np.eye(4)[true] + 0.1 / 4
    each = -(truth * np.log(softmax(z)) * (1 if weights is None else weights.numpy())).sum(1)
    divisor = len(true) if weights is None else weights.numpy()[true].sum()
    assert float(expected) == pytest.approx(each.sum() / divisor, rel=1e-12)


@pytest.mark.parametrize(("name", "classes"), [("classify", 4), ("segment", 4), ("segment_binary", 2)])
def test_smoothed_bce_is_the_log_loss_of_smoothed_labels(name: str, classes: int) -> None:
    logits, target = drawn(name, classes)
    z, true = by_pixel(logits, target)
    truth = np.eye(classes)[true][:, -z.shape[1] :] * 0.8 + 0.2 / classes
    each = -(truth * np.log(sigmoid(z)) + (1 - truth) * np.log(sigmoid(-z))).sum(1)
    task = make(name, classes, loss="bce", label_smoothing=0.2)
    assert mean(task, logits, target) == pytest.approx(each.mean(), rel=1e-12)


# ---- of images ----


def by_image(probabilities: Tensor, target: Tensor) -> list[tuple[Floats, Floats]]:
    """The labelled pixels of the images that have any: probabilities (channels, n) and classes (n,)."""
    pairs = [(p.flatten(1).numpy(), t.flatten().numpy()) for p, t in zip(probabilities, target, strict=True)]
    return [(p[:, t != IGNORED], t[t != IGNORED]) for p, t in pairs if (t != IGNORED).any()]


def jaccard_growth(truth: Floats) -> Floats:
    """`lovasz_grad` of the paper's authors, in their words."""
    total = truth.sum()
    intersection = total - truth.cumsum()
    union = total + (1 - truth).cumsum()
    jaccard = 1.0 - intersection / union
    jaccard[1:] = jaccard[1:] - jaccard[:-1]
    return jaccard


def lovasz_by_hand(errors: Floats, truth: Floats) -> float:
    order = np.argsort(-errors, kind="stable")
    return float(np.maximum(errors[order], 0) @ jaccard_growth(truth[order].astype(float)))


def tversky_by_hand(p: Floats, truth: Floats, alpha: float = 0.3, beta: float = 0.7) -> float:
    """Salehi et al., equation 3, with 1 added above and below."""
    right, positives, negatives = (p * truth).sum(), (p * (1 - truth)).sum(), ((1 - p) * truth).sum()
    return float(1 - (right + 1) / (right + alpha * positives + beta * negatives + 1))


BY_HAND = {"lovasz": lambda p, t: lovasz_by_hand(np.abs(t - p), t), "tversky": tversky_by_hand}


@pytest.mark.parametrize("weights", [None, WEIGHTS, torch.tensor([0.2, 0.0, 3.0, 0.5], dtype=torch.float64)])
@pytest.mark.parametrize("loss", ["lovasz", "tversky"])
def test_losses_of_images_are_weighted_means_over_their_classes(loss: str, weights: Tensor | None) -> None:
    logits, target = drawn("segment", 4)
    target[0][target[0] == 3] = 1  # a class that is missing
    target[1][target[1] != IGNORED] = 2  # one class alone
    expected = []
    for p, true in by_image(logits.softmax(1), target):
        there = np.unique(true)
        factor = np.ones(len(there)) if weights is None else weights.numpy()[there]
        each = np.array([BY_HAND[loss](p[c], true == c) for c in there])
        expected.append((factor * each).sum() / factor.sum())
    assert len(expected) == 4
    assert mean(make("segment", 4, weights, loss=loss), logits, target) == pytest.approx(np.mean(expected), rel=1e-12)


def test_losses_of_one_logit_are_the_foregrounds() -> None:
    logits, target = drawn("segment_binary", 2)
    target[1][target[1] == 1] = 0  # no foreground
    images = by_image(logits.sigmoid(), target)
    expected = np.mean([tversky_by_hand(p[0], true == 1, 0.6, 1.5) for p, true in images])
    task = make("segment_binary", 2, loss="tversky", tversky_alpha=0.6, tversky_beta=1.5)
    assert mean(task, logits, target) == pytest.approx(expected, rel=1e-12)
    hinge = [lovasz_by_hand(1 - z[0] * (2 * (true == 1) - 1), true == 1) for z, true in by_image(logits, target)]
    assert mean(make("segment_binary", 2, loss="lovasz"), logits, target) == pytest.approx(np.mean(hinge), rel=1e-12)


def test_tversky_of_halves_is_dice_and_of_ones_tanimoto_as_the_paper_says() -> None:
    """But for the 1 that is added: 2 in the doubled ratio of Dice."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    truth = torch.rand(1, 1, 8, 8, generator=generator) < 0.4
    both, either = (p * truth).sum(), (p + truth.double()).sum()
    for weight, expected in ((0.5, (2 * both + 2) / (either + 2)), (1.0, (both + 1) / (either - both + 1))):
        parameters = losses.Parameters(tversky_alpha=weight, tversky_beta=weight)
        found = losses.tversky(p, truth, torch.zeros(1, 8, 8, dtype=torch.int64), parameters)
        torch.testing.assert_close(found, (1 - expected).view(1, 1))


def test_lovasz_of_certain_predictions_is_the_jaccard_loss_itself() -> None:
    """It extends that loss from certain predictions to all: Berman et al., section 2."""
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 3, (2, 1, 12, 12))
    scores = metrics.jaccard_score(true.ravel(), predicted.ravel(), average=None)
    certain = 1000.0 * functional.one_hot(torch.tensor(predicted), 3).movedim(-1, 1).double()
    found = mean(make("segment", 3, loss="lovasz"), certain, torch.tensor(true))
    assert found == pytest.approx(1 - scores.mean(), rel=1e-12)


# ---- all of them ----


@pytest.mark.parametrize(("name", "loss"), EACH)
def test_gradients_are_finite_differences(name: str, loss: str) -> None:
    classes = 2 if name == "segment_binary" else 3
    logits, target = drawn(name, classes, images=3)
    weights = None if loss in ("dice", *(losses.OF_IMAGES if classes == 2 else ())) else WEIGHTS[:classes]
    task = make(name, classes, weights, loss=loss)
    assert torch.autograd.gradcheck(lambda z: task.loss(z, target), logits.requires_grad_(), atol=1e-7)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("name", "loss"), EACH)
def test_extreme_logits_give_finite_losses_and_gradients(name: str, loss: str, sign: int) -> None:
    """All right and all wrong, in fp32; what is right costs nothing."""
    classes = 2 if name == "segment_binary" else 3
    _, target = drawn(name, classes)
    number = torch.arange(3 - classes, 2) if name == "segment_binary" else torch.arange(classes)
    truth = target[:, None] == number.view(-1, *[1] * (target.ndim - 1))
    logits = (sign * torch.where(truth, 1e4, -1e4)).float().requires_grad_()
    for parameters in ({}, {"focal_gamma": 0.5}, {"focal_gamma": 0.0}) if loss == "focal" else ({},):
        found = make(name, classes, loss=loss, **parameters).loss(logits, target).sum()
        (gradient,) = torch.autograd.grad(found, logits)
        assert gradient.isfinite().all()
        assert float(found.detach()) == pytest.approx(0, abs=1e-6) if sign == 1 else 1 < float(found.detach()) < 1e8


@pytest.mark.parametrize("loss", losses.ALL)
@pytest.mark.parametrize("name", ["segment", "segment_binary"])
def test_what_is_ignored_has_neither_loss_nor_gradient(name: str, loss: str) -> None:
    logits, target = drawn(name, 2)
    task = make(name, 2, loss=loss, label_smoothing=0.1 if loss in ("cross_entropy", "bce") else 0.0)
    before = task.loss(logits, target)
    ignored = (target == IGNORED)[:, None].expand_as(logits)
    moved = torch.where(ignored, 9.0, logits).requires_grad_()
    after = task.loss(moved, target)
    after.sum().backward()
    assert after.tolist() == before.tolist()
    assert moved.grad is not None
    assert moved.grad[ignored].abs().max() == 0
    assert moved.grad[:4].flatten(1).abs().sum(1).min() > 0
    nothing = torch.full_like(target, IGNORED)
    moved.grad = None
    task.loss(moved, nothing).sum().backward()
    assert task.loss(moved, nothing).tolist() == task.weight(nothing).tolist() == [0]
    assert moved.grad.abs().max() == 0


@pytest.mark.parametrize("loss", losses.ALL)
def test_data_of_one_class_has_nothing_to_tell_apart(loss: str) -> None:
    logits, target = drawn("segment", 1)
    found = mean(make("segment", 1, loss=loss), logits, target)
    assert found == pytest.approx(0, abs=1e-15) if loss != "bce" else found > 0


@pytest.mark.parametrize("name", list(TASKS))
def test_sums_have_a_divisor_each_and_any_micro_batches_give_the_same(name: str) -> None:
    logits, target = drawn(name, 2, images=7)
    weights = torch.tensor([0.3, 2.0], dtype=torch.float64)
    whole = "+".join(TASKS[name])
    task = make(name, 2, weights, loss=whole, label_smoothing=0.1)
    sums, divisors = task.loss(logits, target), task.weight(target)
    assert sums.shape == divisors.shape == ((1,) if name == "classify" else (2,))
    unweighted = {"dice"} if name == "segment" else set(losses.OF_IMAGES)
    singles = sum(
        mean(
            make(name, 2, None if loss in unweighted else weights, loss=loss)
            if loss not in ("cross_entropy", "bce")
            else make(name, 2, weights, loss=loss, label_smoothing=0.1),
            logits,
            target,
        )
        for loss in TASKS[name]
    )
    assert mean(task, logits, target) == pytest.approx(singles, rel=1e-12)
    for cuts in ([1] * 7, [3, 4]):
        parts = list(zip(logits.split(cuts), target.split(cuts), strict=True))
        torch.testing.assert_close(sum(task.loss(a, b) for a, b in parts), sums, rtol=1e-12, atol=0)
        torch.testing.assert_close(sum(task.weight(b) for _, b in parts), divisors, rtol=1e-12, atol=0)


def test_sum_is_cross_entropy_and_dice() -> None:
    logits, target = drawn("segment", 3)
    one, other = (Segment(3, WEIGHTS[:3], loss=loss) for loss in ("sum", "cross_entropy+dice"))
    assert one.loss(logits, target).equal(other.loss(logits, target))
    assert one.weight(target).equal(other.weight(target))


def test_probabilities_of_classes_learned_against_the_rest_are_their_sigmoids() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [-200.0, -300.0, -200.0]], dtype=torch.float64)
    found = make("classify", 3, loss="bce").probabilities(logits)
    np.testing.assert_allclose(found[0], sigmoid(logits[0].numpy()) / sigmoid(logits[0].numpy()).sum(), rtol=1e-12)
    np.testing.assert_allclose(found[1], [0.5, 0, 0.5], atol=1e-12)
    for loss in ("cross_entropy", "focal", "cross_entropy+bce"):
        assert make("classify", 3, loss=loss).probabilities(logits).equal(logits.softmax(1))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        (
            "classify",
            {"loss": "dice"},
            r"loss='dice' is not known; choose from cross_entropy, bce, focal, or give a sum",
        ),
        ("classify", {"loss": "focal+"}, r"loss='focal\+' is not known"),
        ("segment", {"loss": "focal+dise"}, "choose from cross_entropy, bce, focal, dice, tversky, lovasz, or give"),
        ("segment", {"loss": "dice+focal+dice"}, "has a loss twice"),
        ("segment", {"loss": "focal", "focal_gamma": -1}, "focal_gamma=-1 is not allowed; give a number, 0 or more"),
        ("segment_binary", {"loss": "focal", "focal_alpha": "much"}, "focal_alpha=much is not allowed"),
        ("segment", {"loss": "tversky", "tversky_beta": -0.1}, r"tversky_beta=-0\.1 is not allowed"),
        ("segment", {"loss": "tversky", "tversky_alpha": 0, "tversky_beta": 0}, "no error would count"),
        ("segment", {"label_smoothing": 1.0}, r"label_smoothing=1\.0 is not allowed"),
        (
            "classify",
            {"focal_gamma": 3},
            "focal_gamma=3 is a parameter of focal, and loss='cross_entropy'; leave it out",
        ),
        ("segment", {"loss": "focal+dice", "label_smoothing": 0.1}, "a parameter of cross_entropy and bce"),
    ],
)
def test_what_cannot_be_is_refused(name: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(name, 2, **args)


def test_losses_of_the_foreground_alone_know_no_class_weights() -> None:
    for loss in losses.OF_IMAGES:
        with pytest.raises(ValueError, match=rf"loss='{loss}' knows no class weights; .*cross_entropy\+{loss}"):
            SegmentBinary(2, torch.ones(2), loss=loss)


# ---- in training ----

SIZES = (1, 2, 3)
SUMS: dict[str, dict[str, Any]] = {
    "classify": {"loss": "bce+focal", "label_smoothing": 0.1, "focal_gamma": 1.5},
    "segment": {"loss": "bce+focal+tversky+lovasz", "label_smoothing": 0.1},
    "segment_binary": {"loss": "focal+tversky+lovasz", "focal_alpha": 0.3},
    "smoothed": {"loss": "cross_entropy+dice", "label_smoothing": 0.2},
}


@pytest.fixture(scope="module")
def curves(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], np.ndarray]:
    """Losses and score of each epoch, by what is learned and the number of ranks: every loss is in one of the sums."""
    jobs = {}
    for name, args in SUMS.items():
        if name == "classify":
            own: dict[str, Any] = {"batch_size": 480, "micro_batch_size": 160, "class_weights": "inverse"}
            recipe, raw = small_recipe("digits.cnn", precision="fp64", task_args=args, **own), None
        else:
            task, classes = ("segment_binary", 2) if name == "segment_binary" else ("segment", 3)
            rng, raw = np.random.default_rng(5), str(tmp_path_factory.mktemp(name))
            for split, count in (("train", 11), ("val", 4)):
                for index in range(count):
                    picture, mask = scene(rng, classes, 24, 24)
                    mask[: [0, 3, 12, 23, 24][index % 5]] = IGNORED
                    files = (f"{raw}/{split}/{kind}/{index}.png" for kind in ("images", "masks"))
                    write_pairs({tuple(map(Path, files)): (picture, mask)})
            own = {"image_size": (24, 24), "class_weights": "median", "batch_size": 8, "micro_batch_size": 2}
            own |= {"dataset": "mask_folder", "dataset_args": {"classes": classes}, "task": task}
            recipe = small_recipe("unet.camvid", precision="fp64", task_args=args, **own)
        for size in SIZES:
            jobs[name, size] = (job(recipe, raw, storage, f"{name}/{size}"), size)
    found = {}
    for key, events in zip(jobs, run_ranks(list(jobs.values())), strict=True):
        lines = [event["line"] for event in events if event["kind"] == "epoch"]
        found[key] = np.array([[line[name] for name in ("train/loss", "val/loss", "val/accuracy")] for line in lines])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SUMS))
def test_curves_do_not_depend_on_the_number_of_workers(curves: dict[tuple[str, int], np.ndarray], name: str) -> None:
    assert curves[name, 1].shape == (3, 3)
    assert curves[name, 1][-1, 0] < curves[name, 1][0, 0]
    for size in SIZES[1:]:
        np.testing.assert_allclose(curves[name, size], curves[name, 1], rtol=1e-8, err_msg=str(size))
