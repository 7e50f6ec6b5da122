"""RandAugment, TrivialAugment, blur, noise, elastic, erase: against torchvision, Pillow, SciPy and the papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest, norm
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from trainers.augmentations import AUGMENTATIONS, Augmentation, _pixels, check
from trainers.augmentations.policies import BINS, OPERATIONS
from trainers.data.augment import augment
from trainers.data.sampler import uniforms

SEED, EPOCH = 7, 3
NAMES = {  # torchvision's -> ours
    "Identity": "identity",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "color",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
}
THEIRS = {"rand_augment": v2.RandAugment, "trivial_augment": v2.TrivialAugmentWide}


def photographs(count: int, size: tuple[int, int] = (40, 56), channels: int = 3) -> Tensor:
    """Smooth pictures of 8 bits, dark to bright, uint8 (N, C, H, W)."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.random((count, channels, *size)), (0, 0, 3, 3))
    low, high = smooth.min((2, 3), keepdims=True), smooth.max((2, 3), keepdims=True)
    most = rng.uniform(0.6, 1, (count, 1, 1, 1))
    return torch.from_numpy(((smooth - low) / (high - low) * most * 255).round().astype(np.uint8))


def run(images: Tensor, settings: dict[str, Any], ids: Any, **others: Any) -> Tensor:
    size = (images.shape[2], images.shape[3])
    return augment(images, settings, size=size, seed=SEED, epoch=EPOCH, ids=np.asarray(ids), **others)[0]


def draws(ids: Any, columns: int = 80) -> Any:
    return uniforms(SEED, EPOCH, np.asarray(ids), columns)


def magnitude(policy: str, name: str, level: int, size: tuple[int, int]) -> tuple[float, bool]:
    """By torchvision's own table: of strength `level` of 31, and whether it goes either way."""
    magnitudes, signed = THEIRS[policy]._AUGMENTATION_SPACE[name]
    values = magnitudes(BINS, *size)
    return (0.0 if values is None else round(30 * float(values[level]), 3) / 30), signed  # theirs is float32


def theirs(image: Tensor, name: str, amount: float, bilinear: bool = True) -> Tensor:
    interpolation = v2.InterpolationMode.BILINEAR if bilinear else v2.InterpolationMode.NEAREST
    result: Tensor = v2.RandAugment()._apply_image_or_video_transform(
        image, name, amount, interpolation=interpolation, fill={}
    )
    return result


def test_the_operations_are_those_of_torchvision() -> None:
    assert [operation.name for operation in OPERATIONS] == list(NAMES.values())
    assert set(v2.RandAugment._AUGMENTATION_SPACE) == set(v2.TrivialAugmentWide._AUGMENTATION_SPACE) == set(NAMES)


@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_does_what_torchvision_does(policy: str, name: str) -> None:
    """At several strengths, both ways, on pictures of 8 bits."""
    size, number = (40, 56), list(NAMES).index(name)
    wide = policy == "trivial_augment"
    candidates = np.arange(4000)
    columns = draws(candidates)
    op, sign = (columns[:, 40], columns[:, 42]) if wide else (columns[:, 32], columns[:, 33])
    ids = candidates[np.floor(op * 14) == number][:12]
    levels = np.floor(columns[ids, 41] * BINS).astype(int) if wide else np.full(len(ids), 23)
    pictures = photographs(len(ids), size)
    ours = run(pictures.double() / 255, {"trivial_augment": True} if wide else {"rand_augment": [1, 23]}, ids)
    seen = set()
    for picture, out, row, level in zip(pictures, ours, ids, levels, strict=True):
        amount, signed = magnitude(policy, name, level, size)
        amount *= -1 if signed and sign[row] < 0.5 else 1
        seen.add(amount)
        moves = name.startswith(("Shear", "Translate", "Rotate"))
        if name in ("Posterize", "Solarize", "Equalize"):  # whose steps are those of 8 bits
            expected = theirs(picture, name, amount - (1e-9 if name == "Solarize" else 0)).double() / 255
        else:
            expected = theirs(picture.double() / 255, name, amount)
        cover = theirs(torch.ones_like(picture).double(), name, amount) if moves else torch.ones_like(out)
        inside = cover > 1 - 1e-9  # at the rim theirs is blended with black
        torch.testing.assert_close(out[inside], expected[inside], rtol=0, atol=2e-6)
        assert not out[cover == 0].any(), "what is laid open is black"
    assert name in ("Identity", "AutoContrast", "Equalize") or len(seen) > 1 or not (wide or signed)


PILLOW: dict[str, Any] = {
    "brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(1 + amount),
    "color": lambda image, amount: ImageEnhance.Color(image).enhance(1 + amount),
    "contrast": lambda image, amount: ImageEnhance.Contrast(image).enhance(1 + amount),
    "sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(1 + amount),
    "posterize": lambda image, amount: ImageOps.posterize(image, int(amount)),
    "solarize": lambda image, amount: ImageOps.solarize(image, 255 * amount),
    "autocontrast": lambda image, amount: ImageOps.autocontrast(image),
    "equalize": lambda image, amount: ImageOps.equalize(image),
}


@pytest.mark.parametrize("name", PILLOW)
def test_changes_of_values_are_those_of_pillow(name: str) -> None:
    """Which the papers used; it rounds to 8 bits on the way, and its means too."""
    (operation,) = (each for each in OPERATIONS if each.name == name)
    assert operation.change is not None
    for amount in {"posterize": (2, 4, 8), "solarize": (0.3, 0.9)}.get(name, (-0.8, -0.2, 0.5)):
        pictures = photographs(3)
        out = operation.change(pictures.double() / 255, torch.full((3, 1, 1, 1), float(amount))).clamp(0, 1)
        for picture, mine in zip(pictures, out, strict=True):
            expected = PILLOW[name](Image.fromarray(picture.permute(1, 2, 0).numpy()), amount)
            difference = (mine.permute(1, 2, 0) * 255).numpy() - np.asarray(expected)
            assert np.abs(difference).max() <= (1e-2 if name in ("posterize", "solarize", "equalize") else 2.01)


def test_flat_pictures_are_no_trouble() -> None:
    """Nothing to spread, and too few pixels to smooth."""
    flat = torch.full((300, 3, 2, 2), 0.4)
    assert torch.isfinite(run(flat, {"trivial_augment": True}, np.arange(300))).all()
    for name in ("autocontrast", "equalize", "sharpness"):
        (operation,) = (each for each in OPERATIONS if each.name == name)
        assert operation.change is not None
        assert torch.equal(operation.change(flat, torch.ones(300, 1, 1, 1)), flat)


def test_rand_augment_applies_its_operations_one_after_the_other() -> None:
    """Two rotations turn by both angles, and a shear after a rotation is not one before it."""
    ids = np.arange(3000)
    columns = draws(ids)
    first, second = np.floor(columns[:, 32] * 14), np.floor(columns[:, 34] * 14)
    names = list(NAMES.values())
    picked = ids[(first == names.index("rotate")) & (second == names.index("shear_x"))][:4]
    assert len(picked) == 4
    pictures = photographs(4, (60, 60)).double() / 255
    ours = run(pictures, {"rand_augment": [2, 20]}, picked)
    for picture, out, row in zip(pictures, ours, picked, strict=True):
        amounts = [
            magnitude("rand_augment", name, 20, (60, 60))[0] * (-1 if columns[row, column] < 0.5 else 1)
            for name, column in (("Rotate", 33), ("ShearX", 35))
        ]
        expected = theirs(theirs(picture, "Rotate", amounts[0]), "ShearX", amounts[1])
        middle = (slice(None), slice(20, 40), slice(25, 35))
        torch.testing.assert_close(out[middle], expected[middle], rtol=0, atol=0.05)  # sampled once, and twice


def test_all_operations_strengths_and_signs_are_drawn_equally_often() -> None:
    columns = draws(np.arange(5000))
    for column, cells in ((32, 14), (33, 2), (40, 14), (41, BINS), (42, 2)):
        counts = np.bincount(np.floor(columns[:, column] * cells).astype(int), minlength=cells)
        assert len(counts) == cells
        assert np.abs(counts - 5000 / cells).max() < 5 * math.sqrt(5000 / cells)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_policies_take_pictures_of_any_number_of_channels(channels: int) -> None:
    images = photographs(200, (9, 9), channels).float() / 255
    out = run(images, {"trivial_augment": True, "noise": 0.1, "blur": 1, "erase": 0.5}, np.arange(200))
    assert out.shape == images.shape


def test_masks_move_with_policies_and_elastic() -> None:
    """Every pixel of picture and mask holds its column, which both must show alike."""
    column = torch.arange(50.0)
    images = (column / 50 + 0.01).expand(60, 1, 40, 50)
    masks = column.long().expand(60, 40, 50)
    for settings in ({"rand_augment": [2, 15]}, {"elastic": [60, 5]}):
        size = (40, 50)
        out, labels, *_ = augment(
            images, settings, size=size, seed=0, epoch=0, ids=np.arange(60), masks=masks, ignore_index=99
        )
        assert labels is not None
        colours = {"elastic"} & settings.keys() or {"moved"}
        if colours == {"elastic"}:
            assert ((out[:, 0] - 0.01) * 50 - labels).abs().max() <= 0.501
            assert (labels != 99).all()
            assert (labels != masks).double().mean() > 0.3
        else:
            black = (labels == 99).double().mean()
            assert 0.01 < black < 0.5
            # operations on values leave the masks where they were
            ids = np.arange(60)
            plain = [np.floor(draws_of[:, c] * 14) for draws_of in (uniforms(0, 0, ids, 80),) for c in (32, 34)]
            still = ~np.isin(plain, [1, 2, 3, 4, 5]).any(0)
            assert torch.equal(labels[still], masks[still])


# Blur, noise, elastic, erase ---------------------------------------------------------------------------------------


def test_blur_is_the_gaussian_of_torchvision() -> None:
    ids = np.arange(40)
    images = torch.rand(40, 3, 30, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = run(images, {"blur": 0.5}, ids)
    row = draws(ids)
    for image, mine, own in zip(images, out, row, strict=True):
        sigma = 0.1 + 1.9 * own[45]
        expected = TF.gaussian_blur(image, [13, 13], [sigma, sigma]) if own[44] < 0.5 else image
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


def test_noise_is_normal_and_as_strong_as_drawn() -> None:
    ids = np.arange(12)
    images = torch.full((12, 3, 64, 64), 0.5, dtype=torch.float64)
    added = (run(images, {"noise": 0.1}, ids) - 0.5).flatten(1).numpy()
    deviations = 0.1 * draws(ids)[:, 46]
    for sample, deviation in zip(added, deviations, strict=True):
        assert sample.std() == pytest.approx(deviation, rel=0.03)
        assert kstest(sample / deviation, norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(added) - np.eye(12)).max() < 0.05
    assert np.abs(np.corrcoef(added[0, :-1], added[0, 1:])[0, 1]) < 0.05


def test_random_bits_are_those_of_splitmix64() -> None:
    """The first outputs of the seed 1234567, which its reference implementation gives."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = _pixels.words(torch.tensor([1234567]), 4)[0].numpy().astype(np.uint64)
    assert found.tolist() == expected


def test_elastic_is_a_smoothed_uniform_field_sampled_by_torchvision() -> None:
    ids, (strength, sigma) = np.arange(3), (40.0, 3.0)
    images = photographs(3, (48, 64)).double() / 255
    seeds = torch.from_numpy((draws(ids)[:, 43] * 2.0**53).astype(np.int64))
    moved = _pixels.displacements(seeds, strength, sigma, (48, 64))
    radius = 9
    raw = _pixels.halves(seeds, (2, 48 + 2 * radius, 64 + 2 * radius)).double().numpy() / 2**15
    assert (raw.min(), raw.max()) == pytest.approx((-1, 1), abs=1e-3)
    expected = strength * gaussian_filter(raw, (0, 0, sigma, sigma), truncate=3)[:, :, radius:-radius, radius:-radius]
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-4)
    assert moved.std().item() == pytest.approx(0.163 * strength / sigma, rel=0.1)
    out = run(images, {"elastic": [strength, sigma]}, ids)
    for image, mine, field in zip(images, out, moved.double(), strict=True):
        share = torch.stack([field[0] * 2 / 64, field[1] * 2 / 48], -1)[None]
        inner = (slice(None), slice(12, -12), slice(12, -12))
        torch.testing.assert_close(mine[inner], TF.elastic(image, share)[inner], rtol=0, atol=1e-5)


def test_erased_boxes_are_those_of_the_paper_and_hold_noise() -> None:
    """Algorithm 1: 2 to 40 % of the area, heights of 0.3 to 3.3 widths, within the picture; masks are ignored there."""
    count, side = 800, 40
    images = torch.zeros(count, 1, side, side)
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    ids = np.arange(count)
    out, labels, *_ = augment(images, {"erase": 0.5}, size=(side, side), seed=SEED, epoch=EPOCH, ids=ids, masks=masks)
    assert labels is not None
    assert not masks.any()
    assert not images.any()
    erased = labels == 255
    some = erased.flatten(1).any(1)
    assert some.double().mean() == pytest.approx(0.5, abs=0.06)
    heights, widths = (erased.any(axis).sum(1)[some].double() for axis in (2, 1))
    assert torch.equal(erased.flatten(1).sum(1)[some].double(), heights * widths), "one whole box"
    areas, ratios = heights * widths / side**2, heights / widths
    assert (areas.min() >= 0.018, areas.max() <= 0.41) == (True, True)
    assert (ratios.min() >= 0.27, ratios.max() <= 3.7) == (True, True)
    assert (areas.max() > 0.38, ratios.max() > 2.9, ratios.min() < 0.35) == (True, True, True)
    values = out[:, 0][erased]
    assert kstest(values.double().numpy(), "uniform").statistic < 0.01
    assert not out[:, 0][~erased].any()


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="rand_augment excludes trivial_augment; leave one of them out"):
        check({"rand_augment": 9, "trivial_augment": True})
    check({"rand_augment": 0, "trivial_augment": True})


def test_no_two_augmentations_share_a_column_by_mistake() -> None:
    """A crop and what stands in its place share theirs on purpose; all others draw by themselves."""
    seen: dict[int, str] = {}
    for name, each in AUGMENTATIONS.items():
        if not isinstance(each, Augmentation) or name in ("crop", "resized_crop"):
            continue
        for column in each.columns:
            assert column not in seen, f"{name} draws by column {column} of {seen[column]}"
            seen[column] = name


def test_the_sheet_to_look_at_shows_every_augmentation() -> None:
    from helpers.augmentation_sheet import COLUMNS, LABEL, ROWS, sheet

    shown = {name for settings in ROWS.values() for name in settings}
    assert AUGMENTATIONS.keys() - shown <= {"translate", "scale", "crop", "pad", "mosaic"}
    page = sheet(12)
    assert page.size == (LABEL + 2 * COLUMNS * 14, 16 * (len(ROWS) + len(OPERATIONS)))
