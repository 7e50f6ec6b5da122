"""Pictures mixed with each other: the shares of the papers, and losses that equal those of soft targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor
from torch.nn import functional

from trainers.augmentations import mixing
from trainers.data.batches import Batch
from trainers.data.mixing import Mixture, mixture
from trainers.data.sampler import one_pass, passes, shuffled
from trainers.datasets import IGNORED
from trainers.recipe import resolve
from trainers.tasks import classify, ordinal, segment
from trainers.tasks.base import Task
from trainers.training.distributed import World
from trainers.training.preprocess import Preprocess
from trainers.training.step import Prepared, _loss

CPU = torch.device("cpu")


def how(settings: dict[str, Any], numbers: Any, seed: int = 0, epoch: int = 0, size: Any = (12, 20)) -> Mixture:
    found = mixture(settings, size=size, seed=seed, epoch=epoch, numbers=np.asarray(numbers), device=CPU)
    assert found is not None
    return found


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 3.0, 40.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    draws = np.random.default_rng(0).random((3000, 2))
    shares = [mixing.symmetric_beta(alpha, first, second) for first, second in draws.tolist()]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3
    assert 0 <= mixing.symmetric_beta(alpha, 0.0, 0.3) <= 1


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_shares_of_micro_batches_are_too(alpha: float) -> None:
    shares = [how({"mixup": alpha}, [number, 5 * number + 3], epoch=2).share for number in range(1, 1500)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_pastes_a_box_of_the_picture_s_own_shape_whose_area_is_the_partner_s_share() -> None:
    """Section 3.1: heights and widths by the root of 1 - lambda, the middle uniform, cut off at the border."""
    height, width, areas, tops = 60, 90, [], []
    for number in range(1500):
        found = how({"cutmix": 1.0}, [number, number + 7], size=(height, width))
        assert found.box is not None
        top, left, bottom, right = found.box
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        areas.append((bottom - top) * (right - left) / (height * width))
        assert found.share == pytest.approx(1 - areas[-1])
        if top > 0 and bottom < height and left > 0 and right < width:
            assert (bottom - top) / height == pytest.approx((right - left) / width, abs=0.04)
            tops.append((top + bottom) / 2 / height)
    rng = np.random.default_rng(0)  # the paper's algorithm, as torchvision's v2.CutMix has it
    half, y, x = 0.5 * np.sqrt(1 - rng.random(20_000)), rng.random(20_000), rng.random(20_000)
    inner = [np.minimum(place + half, 1) - np.maximum(place - half, 0) for place in (y, x)]
    assert np.mean(areas) == pytest.approx(np.mean(inner[0] * inner[1]), abs=0.02)
    assert min(tops) < 0.2
    assert max(tops) > 0.8


def test_partners_are_a_permutation_and_all_permutations_occur() -> None:
    seen = set()
    for number in range(200):
        partners = how({"mixup": 1.0}, [number, number + 1000, number + 2000]).partners.tolist()
        assert sorted(partners) == [0, 1, 2]
        seen.add(tuple(partners))
    assert len(seen) == 6


def test_mixing_depends_on_seed_epoch_and_the_pictures_of_the_micro_batch_alone() -> None:
    def key(found: Mixture) -> Any:
        return found.share, found.partners.tolist(), found.box

    numbers, settings = [4, 9, 2, 77], {"mixup": 0.4, "cutmix": 1.0}
    first = key(how(settings, numbers, 1, 2))
    assert first == key(how(settings, numbers, 1, 2))
    others = [how(settings, numbers, 2, 2), how(settings, numbers, 1, 3), how(settings, [4, 9, 2, 78], 1, 2)]
    assert len({found.share for found in others} | {first[0]}) == 4


def test_each_micro_batch_is_mixed_in_one_of_two_ways() -> None:
    boxes = [how({"mixup": 1.0, "cutmix": 1.0}, [n, n + 1]).box is not None for n in range(400)]
    assert 0.42 < np.mean(boxes) < 0.58


def test_mixing_does_not_depend_on_the_number_of_workers() -> None:
    order, found = shuffled(1, 2, 37), []
    for workers in (1, 2, 3):
        own = {}
        for rank in range(workers):
            for each in passes(order, batch_size=12, micro_batch_size=4, rank=rank, world_size=workers):
                if len(each.ids) > 1:
                    mixed = how({"cutmix": 1.0}, each.numbers, 1, 2)
                    own[tuple(each.ids)] = (mixed.box, tuple(mixed.partners.tolist()))
        found.append(own)
    assert found[0] == found[1] == found[2]


def test_one_picture_alone_is_not_mixed_and_that_is_said_early() -> None:
    assert mixture({"mixup": 1.0}, size=(8, 8), seed=0, epoch=0, numbers=np.array([3]), device=CPU) is None
    text = mixing.note({"mixup": 0.2, "cutmix": 0}, 1)
    assert "augment mixup=0.2 mixes the pictures of a micro-batch, and one of micro_batch_size=1 has no other" in text
    assert "give --micro-batch-size 2 or more" in text
    assert mixing.note({"mixup": 0.2}, 2) == mixing.note({"erase": 0.2}, 1) == ""


# The loss ----------------------------------------------------------------------------------------------------------

SHARE = 0.3
PARTNERS = torch.tensor([2, 0, 1, 3, 5, 4])


def mixed_loss(task: Task, output: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of a batch of one mixed micro-batch."""
    found = _loss(task, output, Prepared(one_pass(np.arange(6)), output, targets, Mixture(SHARE, PARTNERS, None)))
    weight = task.weight(targets)
    other = task.weight(targets[PARTNERS])
    assert (weight is None) == (other is None)
    if weight is None or other is None:
        return (found / len(targets)).sum()
    torch.testing.assert_close(weight, other)  # the divisor is that of both terms
    return (found / weight).sum()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_mixed_pictures_is_that_of_soft_targets(smoothing: float, weighted: bool) -> None:
    """Against torch's cross-entropy of probabilities; of class weights, sum of w(c) q(c) log p(c) by hand."""
    output, targets = numbers(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64) if weighted else None
    ours = mixed_loss(classify.make(4, weights, label_smoothing=smoothing), output, targets)
    hot = functional.one_hot(targets, 4).double() * (1 - smoothing) + smoothing / 4
    soft = SHARE * hot + (1 - SHARE) * hot[PARTNERS]
    if weights is None:
        expected = functional.cross_entropy(output, soft)
    else:
        expected = -(weights * soft * output.log_softmax(1)).sum() / weights[targets].sum()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_the_loss_of_ordered_classes_is_that_of_soft_levels() -> None:
    output, targets = numbers(6, 3), torch.tensor([0, 3, 1, 1, 2, 0])
    above = (targets[:, None] > torch.arange(3)).double()
    soft = SHARE * above + (1 - SHARE) * above[PARTNERS]
    expected = functional.binary_cross_entropy_with_logits(output, soft, reduction="sum") / 6
    torch.testing.assert_close(mixed_loss(ordinal.make(4), output, targets), expected, rtol=1e-12, atol=0)


class SeveralLabels:
    """A task of the user's own: any number of labels for each picture."""

    def weight(self, target: Tensor) -> None:
        return None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(output, target.double(), reduction="sum")[None]


def test_the_loss_of_several_labels_is_that_of_soft_ones() -> None:
    output, targets = numbers(6, 5), (numbers(6, 5) > 0.3).long()
    soft = SHARE * targets.double() + (1 - SHARE) * targets[PARTNERS].double()
    expected = functional.binary_cross_entropy_with_logits(output, soft, reduction="sum") / 6
    task: Any = SeveralLabels()
    torch.testing.assert_close(mixed_loss(task, output, targets), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", ["cross_entropy", "dice"])
def test_mixup_of_masks_mixes_their_losses_with_the_divisors_unchanged(loss: Any) -> None:
    output, targets = numbers(6, 3, 5, 4), torch.randint(3, (6, 5, 4), generator=torch.Generator().manual_seed(0))
    targets[1, :3], targets[4] = IGNORED, IGNORED
    task = segment.make(3, loss=loss)
    parts = [task.loss(output, each) / task.weight(each) for each in (targets, targets[PARTNERS])]
    expected = (SHARE * parts[0] + (1 - SHARE) * parts[1]).sum()
    torch.testing.assert_close(mixed_loss(task, output, targets), expected, rtol=1e-12, atol=0)


# On the way to the model -------------------------------------------------------------------------------------------


def prepared(name: str, targets: Any, channels: int, settings: dict[str, Any]) -> tuple[Any, Any, Batch, Preprocess]:
    recipe = resolve(name, image_size=(6, 8), augment=settings, precision="fp64")
    meta: Any = {
        "mean": [0.5] * channels,
        "std": [0.25] * channels,
        "target": "masks" if targets.ndim > 1 else "labels",
    }
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 8, channels), np.uint8)
    batch = Batch(one_pass(np.array([5, 6, 7, 8])), pictures, targets)
    preprocess = Preprocess(recipe, meta, World(0, 1, CPU, "fp64"))
    return preprocess.mixed(batch, 3), preprocess(batch, 3), batch, preprocess


@pytest.mark.parametrize("settings", [{"mixup": 1.0}, {"mixup": 1.0, "horizontal_flip": 0.5}])
def test_mixup_adds_pictures_by_their_shares(settings: dict[str, Any]) -> None:
    (images, targets, found), (plain, same), *_ = prepared("digits.cnn", np.array([1, 2, 3, 4]), 1, settings)
    expected = found.share * plain + (1 - found.share) * plain[found.partners]
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-12)
    assert torch.equal(targets, same)


def test_mixing_that_is_off_changes_nothing() -> None:
    labels = np.array([1, 2, 3, 4])
    off, none = (prepared("digits.cnn", labels, 1, settings)[0] for settings in ({"mixup": 0, "cutmix": 0}, {}))
    assert torch.equal(off[0], none[0])
    assert off[2] is none[2] is None


def test_cutmix_of_labels_pastes_pictures_and_mixes_the_loss() -> None:
    (images, _, found), (plain, _), *_ = prepared("digits.cnn", np.array([1, 2, 3, 4]), 1, {"cutmix": 1.0})
    top, left, bottom, right = found.box
    inside = torch.zeros(6, 8, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert inside.any()
    assert torch.equal(images, torch.where(inside, plain[found.partners], plain))
    assert found.share == pytest.approx(1 - inside.double().mean().item())


def test_cutmix_of_masks_pastes_the_masks_and_leaves_one_loss() -> None:
    masks = np.random.default_rng(1).integers(0, 9, (4, 6, 8), np.uint8)
    before = masks.copy()
    (images, targets, none), (plain, own), batch, preprocess = prepared("unet.camvid", masks, 3, {"cutmix": 1.0})
    found = how({"cutmix": 1.0}, batch.of.numbers, preprocess.recipe.seed, 3, (6, 8))
    assert none is None
    assert torch.equal(targets, found.paste(own.clone()))
    assert torch.equal(images, found.paste(plain.clone()))
    assert not torch.equal(targets, own)
    assert np.array_equal(masks, before)
