"""Random changes of images: against torchvision on single images, and NumPy's padding and slicing."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from trainers.augmentations import AUGMENTATIONS, Augmentation, check, columns_of
from trainers.data.augment import augment, center
from trainers.data.sampler import passes, shuffled, uniforms

SEED, EPOCH = 7, 3
EVERYTHING: dict[str, Any] = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotate": 30,
    "scale": [0.8, 1.3],
    "translate": 0.2,
    "pad": 3,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"horizontal_flip": 0.5},
    {"translate": 0.2},
    {"crop": True, "pad": 4, "horizontal_flip": 0.5},
    {"rotate": 20, "fill": "reflect"},
    {"scale": [0.5, 2], "fill": "edge"},
    {"resized_crop": [0.1, 1.0], "horizontal_flip": 0.5, "contrast": 0.4},
    {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
    EVERYTHING,
    {"rand_augment": 9},
    {"rand_augment": [3, 20], "fill": "reflect", "horizontal_flip": 0.5},
    {"trivial_augment": True},
    {"elastic": [20, 2]},
    {"erase": 0.5, "blur": 0.5, "noise": 0.1},
]

FILLS = [("zeros", "constant"), ("edge", "edge"), ("reflect", "symmetric")]  # ours, NumPy's name


def pictures(count: int = 9, channels: int = 3, size: tuple[int, int] = (20, 28), dtype: Any = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, *size, generator=generator, dtype=torch.float64).to(dtype)


def run(images: Tensor, settings: dict[str, Any], **others: Any) -> Tensor:
    others = {"size": tuple(images.shape[-2:]), "ids": np.arange(len(images)) + 100, **others}
    return augment(images, settings, seed=SEED, epoch=EPOCH, **others)[0]


def drawn(count: int) -> Any:
    """The random numbers of samples 100, 101, ...; which column is used for what is a promise to old runs."""
    return uniforms(SEED, EPOCH, np.arange(count) + 100, 32)


def spread(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def same(ours: Any, theirs: Any) -> bool:
    """Whether two samples may well be of one distribution."""
    result: Any = ks_2samp(ours, theirs)
    return bool(result.pvalue > 1e-3)


class TestAgainstTorchvision:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        ("name", "column", "reference"),
        [
            ("brightness", 8, TF.adjust_brightness),
            ("contrast", 9, TF.adjust_contrast),
            ("saturation", 10, TF.adjust_saturation),
        ],
    )
    def test_colour(self, name: str, column: int, reference: Any, channels: int) -> None:
        images = pictures(channels=channels)
        result = run(images, {name: 0.6})
        for image, out, row in zip(images, result, drawn(9), strict=True):
            expected = reference(image, spread(0.4, 1.6, row[column]))
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_hue(self, channels: int) -> None:
        images = pictures(channels=channels)
        images[0] = images[0, :1]  # grey pixels have no hue
        images[1] = images[1].round()  # black, white, pure colours: every tie between channels
        result = run(images, {"hue": 0.5})
        for image, out, row in zip(images, result, drawn(9), strict=True):
            expected = TF.adjust_hue(image, spread(-0.5, 0.5, row[11]))
            torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)  # torchvision's is float32

    def test_all_colours_in_order(self) -> None:
        images = pictures()
        result = run(images, {"hue": 0.1, "saturation": 0.9, "contrast": 0.9, "brightness": 0.9})
        for image, out, row in zip(images, result, drawn(9), strict=True):
            expected = TF.adjust_brightness(image, spread(0.1, 1.9, row[8]))
            expected = TF.adjust_contrast(expected, spread(0.1, 1.9, row[9]))
            expected = TF.adjust_saturation(expected, spread(0.1, 1.9, row[10]))
            expected = TF.adjust_hue(expected, spread(-0.1, 0.1, row[11]))
            torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)

    @pytest.mark.parametrize("flip", [0, 1])
    def test_affine(self, flip: int) -> None:
        images = pictures()
        settings = {"rotate": 40, "scale": [0.7, 1.5], "translate": 0.25, "horizontal_flip": flip}
        result = run(images, settings)
        for image, out, row in zip(images, result, drawn(9), strict=True):
            arguments: dict[str, Any] = {
                "angle": spread(-40, 40, row[2]),
                "scale": spread(0.7, 1.5, row[3]),
                "translate": [round(spread(-7, 7, row[5])), round(spread(-5, 5, row[4]))],
                "shear": [0.0, 0.0],
                "interpolation": v2.InterpolationMode.BILINEAR,
            }
            expected = TF.affine(TF.hflip(image) if flip else image, **arguments)
            cover = TF.affine(torch.ones_like(image), **arguments)
            torch.testing.assert_close(out[cover > 1 - 1e-9], expected[cover > 1 - 1e-9], rtol=0, atol=1e-9)
            assert (out[cover == 0] == 0).all()
            assert (cover > 1 - 1e-9).double().mean() > 0.2

    def test_resized_crop(self) -> None:
        images = pictures(size=(80, 64))
        result = run(images, {"resized_crop": [0.3, 0.9]}, size=(24, 20))
        for image, out, row in zip(images, result, drawn(9), strict=True):
            height = width = 10**6
            for attempt in range(10):
                area = 80 * 64 * spread(0.3, 0.9, row[12 + attempt])
                ratio = math.exp(spread(math.log(3 / 4), math.log(4 / 3), row[22 + attempt]))
                height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
                if height <= 80 and width <= 64:
                    break
            top, left = int(row[6] * (80 - height + 1)), int(row[7] * (64 - width + 1))
            expected = TF.resized_crop(image, top, left, height, width, [24, 20], antialias=False)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)

    def test_resized_crop_draws_boxes_as_torchvision_does(self) -> None:
        """Each pixel of the store holds its own position, so that the box can be read off the result."""
        count, height, width = 3000, 60, 100
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        images = torch.stack([y, x]).double().expand(count, 2, height, width)
        result = run(images, {"resized_crop": [0.08, 1.0]}, size=(2, 2))
        ours_height = (result[:, 0, 1, 0] - result[:, 0, 0, 0]) * 2
        ours_width = (result[:, 1, 0, 1] - result[:, 1, 0, 0]) * 2
        torch.manual_seed(0)
        transform = v2.RandomResizedCrop(2)
        image = torch.zeros(3, height, width)
        boxes = [transform.make_params([image]) for _ in range(count)]
        for ours, key in ((ours_height, "height"), (ours_width, "width")):
            assert same(ours.numpy(), [box[key] for box in boxes])
        left = result[:, 1, 0, 0] - ours_width / 4
        assert same(left.numpy(), [box["left"] for box in boxes])

    def test_resized_crop_where_nothing_fits(self) -> None:
        images = pictures(size=(10, 80))
        result = run(images, {"resized_crop": [1.0, 1.0]}, size=(10, 13))
        torch.testing.assert_close(result, images[..., 33:46], rtol=0, atol=1e-9)  # 10 x 4/3 = 13 columns

    def test_enlarged_crop_has_no_dark_rim(self) -> None:
        images = torch.ones(9, 3, 20, 20, dtype=torch.float64)
        result = run(images, {"resized_crop": [0.1, 1.0]}, size=(40, 40))
        torch.testing.assert_close(result, torch.ones_like(result))


class TestExactPixels:
    def test_flips(self) -> None:
        images = pictures(count=64)
        result = run(images, {"horizontal_flip": 0.5, "vertical_flip": 0.25})
        draws = drawn(64)
        for image, out, row in zip(images, result, draws, strict=True):
            expected = TF.hflip(image) if row[0] < 0.5 else image
            expected = TF.vflip(expected) if row[1] < 0.25 else expected
            assert torch.equal(out, expected)
        assert torch.equal(run(images, {"horizontal_flip": 1.0}), images.flip(-1))
        assert torch.equal(run(images, {"vertical_flip": 1}), images.flip(-2))

    @pytest.mark.parametrize(("fill", "mode"), FILLS)
    def test_padded_crop(self, fill: str, mode: Any) -> None:
        images = pictures(count=40)
        result = run(images, {"crop": True, "pad": 6, "fill": fill}, size=(18, 30))
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (6, 6), (6, 6)), mode=mode)
        for image, out, row in zip(padded, result, drawn(40), strict=True):
            top, left = int(row[6] * (32 - 18 + 1)), int(row[7] * (40 - 30 + 1))
            assert np.array_equal(out, image[:, top : top + 18, left : left + 30])

    def test_crop_of_larger_images_reaches_every_place(self) -> None:
        images = torch.arange(20.0).view(1, 1, 4, 5).expand(400, 1, 4, 5)
        result = run(images, {"crop": True}, size=(3, 3))
        assert set(result[:, 0, 0, 0].tolist()) == {0, 1, 2, 5, 6, 7}

    @pytest.mark.parametrize(("fill", "mode"), FILLS)
    def test_translate_moves_right_and_down(self, fill: str, mode: Any) -> None:
        images = pictures(count=40)
        result = run(images, {"translate": 0.5, "fill": fill})
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (10, 10), (14, 14)), mode=mode)
        moves = set()
        for image, out, row in zip(padded, result, drawn(40), strict=True):
            down, right = round(spread(-10, 10, row[4])), round(spread(-14, 14, row[5]))
            assert np.array_equal(out, image[:, 10 - down : 30 - down, 14 - right : 42 - right])
            moves.add((down > 0, right > 0))
        assert len(moves) == 4

    def test_translate_never_leaves_the_share(self) -> None:
        dot = torch.zeros(500, 1, 28, 28)
        dot[:, :, 14, 14] = 1
        y, x = run(dot, {"translate": 0.1}).nonzero()[:, 2:].unbind(1)
        assert [int(end) for axis in (y, x) for end in axis.aminmax()] == [11, 17, 11, 17]

    @pytest.mark.parametrize("settings", [{}, {"rotate": 0, "scale": None, "crop": False, "hue": 0.0}])
    def test_without_augmentations_the_images_are_returned_as_they_are(self, settings: dict[str, Any]) -> None:
        images = pictures()
        masks = torch.zeros(9, 20, 28, dtype=torch.uint8)
        out, out_masks, *_ = augment(images, settings, size=(20, 28), seed=0, epoch=0, ids=np.arange(9), masks=masks)
        assert out is images
        assert out_masks is masks

    @pytest.mark.parametrize("size", [(20, 28), (7, 28), (9, 11)])
    def test_without_a_crop_the_middle_is_taken(self, size: tuple[int, int]) -> None:
        images = pictures()
        masks = (images[:, 0] * 9).long()
        expected, expected_masks = center(images, size, masks)
        out, out_masks, *_ = augment(images, {}, size=size, seed=0, epoch=0, ids=np.arange(9), masks=masks)
        assert torch.equal(out, expected)
        assert out_masks is not None
        assert expected_masks is not None
        assert torch.equal(out_masks, expected_masks)


@pytest.mark.parametrize(("fill", "mode"), FILLS[1:])
def test_turned_images_are_filled_as_if_padded_before(fill: str, mode: Any) -> None:
    images = pictures()
    wide = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (18, 18), (18, 18)), mode=mode))
    result = run(images, {"rotate": 60, "fill": fill})
    torch.testing.assert_close(result, run(wide, {"rotate": 60}, size=(20, 28)), rtol=0, atol=1e-9)


class TestMasks:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
    @pytest.mark.parametrize("settings", [{"fill": fill, **EVERYTHING} for fill, _ in FILLS])
    def test_no_id_is_invented(self, settings: dict[str, Any], dtype: torch.dtype) -> None:
        ids = torch.tensor([0, 3, 7, 31, 250])
        masks = ids[torch.randint(5, (9, 20, 28), generator=torch.Generator().manual_seed(0))].to(dtype)
        _, out, *_ = augment(pictures(), settings, size=(16, 16), seed=0, epoch=0, ids=np.arange(9), masks=masks)
        assert out is not None
        assert out.dtype == dtype
        assert out.shape == (9, 16, 16)
        assert set(out.flatten().tolist()) == {*ids.tolist(), 255}

    @pytest.mark.parametrize(
        "settings",
        [
            {"horizontal_flip": 0.5, "vertical_flip": 0.5, "pad": 5, "translate": 0.2},
            {"rotate": 45, "scale": [0.6, 1.4], "translate": 0.1, "horizontal_flip": 0.5},
            {"resized_crop": [0.2, 1.0], "rotate": 10},
        ],
    )
    @pytest.mark.parametrize("size", [(20, 28), (13, 17)])
    def test_masks_move_with_their_images(self, settings: dict[str, Any], size: tuple[int, int]) -> None:
        """Each pixel of image and mask holds its own position, which bilinear sampling keeps."""
        y, x = torch.meshgrid(torch.arange(20), torch.arange(28), indexing="ij")
        images = torch.stack([y + 0.5, x + 0.5, torch.ones(20, 28)]).double().expand(30, 3, 20, 28)
        masks = (y * 28 + x).expand(30, 20, 28)
        out, labels, *_ = augment(
            images, settings, size=size, seed=0, epoch=0, ids=np.arange(30), masks=masks, ignore_index=-1
        )
        assert labels is not None
        assert torch.equal(labels == -1, out[:, 2] == 0), "outside is where the image is black"
        rows, columns = out[:, 0], out[:, 1]
        # the outermost half pixel repeats its middle
        inner = (rows > 0.6) & (rows < 19.4) & (columns > 0.6) & (columns < 27.4)
        inner &= ((rows - rows.round()).abs() > 1e-6) & ((columns - columns.round()).abs() > 1e-6)
        assert inner.double().mean() > 0.3
        assert torch.equal(labels[inner], (rows.floor() * 28 + columns.floor()).long()[inner])

    def test_outside_is_ignored_whatever_fills_the_image(self) -> None:
        masks = torch.ones(40, 20, 28, dtype=torch.uint8)
        results = [
            augment(
                pictures(40),
                {"translate": 0.3, "fill": fill, **more},
                size=(20, 28),
                seed=0,
                epoch=0,
                ids=np.arange(40),
                masks=masks,
                ignore_index=9,
            )[1]
            for fill, _ in FILLS
            for more in ({}, {"rotate": 1e-9})
        ]
        for result in results:
            assert result is not None
            assert results[0] is not None
            assert torch.equal(result, results[0])
            assert (result == 9).any()

    def test_colour_leaves_masks_alone(self) -> None:
        masks = torch.ones(9, 20, 28, dtype=torch.uint8)
        settings = {"brightness": 0.5}
        _, out, *_ = augment(pictures(), settings, size=(20, 28), seed=0, epoch=0, ids=np.arange(9), masks=masks)
        assert out is masks


class TestWhatASampleDependsOn:
    @pytest.mark.parametrize("settings", SETTINGS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("size", [(20, 28), (184, 206)])
    def test_a_sample_does_not_depend_on_its_batch(
        self, settings: dict[str, Any], dtype: torch.dtype, size: tuple[int, int]
    ) -> None:
        images = pictures(7, size=size, dtype=dtype)
        masks = (images[:, 0] * 9).long()
        ids = np.array([5, 99, 1234567, 0, 31, 8, 2])
        out_size = (size[0] - 4, size[1] - 6)
        whole, whole_masks, *_ = augment(images, settings, size=out_size, seed=1, epoch=2, ids=ids, masks=masks)
        assert whole_masks is not None
        for i in range(7):
            part = slice(i, i + 1)
            alone, alone_masks, *_ = augment(
                images[part], settings, size=out_size, seed=1, epoch=2, ids=ids[part], masks=masks[part]
            )
            assert alone_masks is not None
            assert torch.equal(alone[0], whole[i]), f"sample {i}"
            assert torch.equal(alone_masks[0], whole_masks[i])

    def test_a_sample_does_not_depend_on_the_number_of_workers(self) -> None:
        images = pictures(23, dtype=torch.float32)
        epochs = []
        for workers, micro_batch_size in ((1, 8), (2, 4), (3, 4), (3, 3)):
            result = torch.full_like(images, torch.nan)
            for rank in range(workers):
                order = shuffled(SEED, EPOCH, 23)
                for step in passes(
                    order, batch_size=8, micro_batch_size=micro_batch_size, rank=rank, world_size=workers
                ):
                    result[step.ids] = run(images[step.ids], EVERYTHING, ids=step.ids)
            epochs.append(result)
        assert all(torch.equal(result, epochs[0]) for result in epochs)

    def test_a_crop_does_not_depend_on_other_settings(self) -> None:
        images = pictures(40)
        crops = run(images, {"pad": 5})
        flipped = run(images, {"pad": 5, "horizontal_flip": 1, "brightness": 1e-12})
        torch.testing.assert_close(flipped, crops.flip(-1), rtol=0, atol=1e-10)

    def test_a_sample_depends_on_seed_epoch_and_id(self) -> None:
        images = pictures(1).expand(6, -1, -1, -1)
        calls = [(0, 0), (0, 1), (1, 0), (0, 0)]
        results = [
            augment(images, EVERYTHING, size=(20, 28), seed=seed, epoch=epoch, ids=np.arange(6))[0]
            for seed, epoch in calls
        ]
        assert torch.equal(results[0], results[3])
        flat = torch.cat(results[:3]).flatten(1)
        assert len({tuple(sample) for sample in flat.tolist()}) == 18


class TestTensors:
    @pytest.mark.parametrize("settings", SETTINGS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_type_shape_and_memory_format_are_kept(
        self, settings: dict[str, Any], dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        images = pictures(dtype=dtype).contiguous(memory_format=memory_format)
        before = images.clone()
        for size in ((20, 28), (15, 20)):
            out = run(images, settings, size=size)
            assert out.dtype == dtype
            assert out.shape == (9, 3, *size)
            assert out.is_contiguous(memory_format=memory_format)
            assert out.min() >= 0
            assert out.max() <= 1
            exact = run(images.double(), settings, size=size)
            torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.3 if "hue" in settings else 0.05)
        assert torch.equal(images, before)
        assert center(images, (15, 20))[0].is_contiguous(memory_format=memory_format)

    def test_half_types_place_pixels_as_float32_does(self) -> None:
        ramp = torch.arange(1000).remainder(2).expand(2, 1, 8, 1000)
        wide = run(ramp.to(torch.bfloat16), {"translate": 0.4})
        assert torch.equal(wide.float(), run(ramp.float(), {"translate": 0.4}))

    @pytest.mark.parametrize("channels", [2, 4])
    def test_images_of_other_numbers_of_channels_are_augmented_but_in_colour(self, channels: int) -> None:
        images = pictures(channels=channels)
        settings = {key: value for key, value in EVERYTHING.items() if key not in ("saturation", "hue")}
        assert run(images, settings).shape == images.shape
        with pytest.raises(ValueError, match=f"3 channels .* got {channels}"):
            run(images, {"hue": 0.1})

    def test_center_takes_the_middle(self) -> None:
        images = torch.arange(30.0).view(1, 1, 5, 6)
        out, masks = center(images, (3, 2), images[:, 0])
        assert out[0, 0].tolist() == [[8, 9], [14, 15], [20, 21]]
        assert masks is not None
        assert torch.equal(masks, out[:, 0])
        assert center(images, (5, 6))[1] is None

    def test_images_smaller_than_the_crop_are_refused(self) -> None:
        with pytest.raises(AssertionError, match="smaller"):
            center(pictures(), (21, 28))
        with pytest.raises(AssertionError, match="smaller"):
            run(pictures(), {"pad": 1}, size=(23, 28))


PINNED: dict[str, tuple[dict[str, Any], float, int]] = {
    "nothing": ({}, 1720.827968, 10548541),
    "horizontal_flip": ({"horizontal_flip": 0.5}, 1716.422796, 10548045),
    "vertical_flip": ({"vertical_flip": 0.5}, 1725.788546, 10538029),
    "rotate": ({"rotate": 30}, 1683.575763, 27606348),
    "scale": ({"scale": [0.5, 2]}, 1733.146806, 10738202),
    "translate": ({"translate": 0.2}, 1627.51714, 44409931),
    "crop": ({"crop": True}, 1725.487878, 10644595),
    "pad": ({"pad": 4}, 1497.84947, 82934012),
    "resized_crop": ({"resized_crop": [0.1, 1.0]}, 1717.330813, 10857188),
    "fill": ({"translate": 0.3, "fill": "edge"}, 1726.661238, 91424549),
    "fill turned": ({"rotate": 30, "fill": "reflect"}, 1724.943044, 27606348),
    "brightness": ({"brightness": 0.4}, 1965.733942, 10548541),
    "contrast": ({"contrast": 0.4}, 1719.000977, 10548541),
    "saturation": ({"saturation": 0.4}, 1720.873616, 10548541),
    "hue": ({"hue": 0.2}, 1729.737174, 10548541),
    "all of a crop": (
        {
            "horizontal_flip": 0.5,
            "vertical_flip": 0.5,
            "rotate": 30,
            "scale": [0.8, 1.3],
            "translate": 0.2,
            "crop": True,
            "pad": 3,
            "fill": "edge",
            "brightness": 0.3,
            "contrast": 0.3,
            "saturation": 0.3,
            "hue": 0.1,
        },
        1961.781921,
        86724048,
    ),
    "all of a box": (
        {
            "hue": 0.1,
            "saturation": 0.3,
            "contrast": 0.3,
            "brightness": 0.3,
            "fill": "reflect",
            "resized_crop": [0.3, 1],
            "translate": 0.2,
            "scale": [0.8, 1.3],
            "rotate": 30,
            "vertical_flip": 0.5,
            "horizontal_flip": 0.5,
        },
        1943.844297,
        79489110,
    ),
    "rand_augment": ({"rand_augment": 9}, 1783.561319, 22943071),
    "rand_augment of four": ({"rand_augment": [4, 20], "fill": "edge"}, 1730.754246, 116850065),
    "trivial_augment": ({"trivial_augment": True}, 1489.221784, 37619252),
    "elastic": ({"elastic": [20, 2]}, 1724.819331, 10700843),
    "erase": ({"erase": 0.6}, 1727.290152, 102857340),
    "blur": ({"blur": 0.6}, 1724.246025, 10548541),
    "noise": ({"noise": 0.2}, 1715.585543, 10548541),
}
"""Settings, and sums of what they made of pictures and of masks when the first runs were recorded."""
FLOAT32 = ("elastic", "noise")
"""Whose random numbers are of that type."""


@pytest.mark.parametrize("name", PINNED)
def test_recorded_runs_would_see_the_same_pictures_again(name: str) -> None:
    settings, expected, expected_masks = PINNED[name]
    images = torch.from_numpy(np.random.RandomState(5).random_sample((6, 3, 20, 28)))
    masks = torch.from_numpy(np.random.RandomState(6).randint(0, 9, (6, 20, 28)))
    out, out_masks, *_ = augment(images, settings, size=(16, 24), seed=3, epoch=2, ids=np.arange(6) + 40, masks=masks)
    assert out_masks is not None
    weights = torch.from_numpy(np.random.RandomState(7).random_sample(out.shape))
    assert float((out * weights).sum()) == pytest.approx(expected, abs=1e-3 if name in FLOAT32 else 2e-6)
    assert int((out_masks * torch.arange(out_masks.numel()).view(out_masks.shape)).sum()) == expected_masks


def test_every_augmentation_is_pinned() -> None:
    pinned = {name for settings, _, _ in PINNED.values() for name in settings}
    assert {name for name, each in AUGMENTATIONS.items() if isinstance(each, Augmentation)} <= pinned


REFUSED: list[tuple[str, Any]] = [
    ("horizontal_flip", 1.5),
    ("horizontal_flip", "often"),
    ("vertical_flip", True),
    ("rotate", 181),
    ("rotate", math.nan),
    ("scale", [2, 1]),
    ("scale", [0, 1]),
    ("scale", [1, math.inf]),
    ("scale", 2),
    ("translate", -0.1),
    ("crop", 1),
    ("pad", 1.5),
    ("pad", -1),
    ("resized_crop", [0.5, 1.1]),
    ("resized_crop", [0.5]),
    ("fill", "white"),
    ("brightness", 2),
    ("contrast", None),
    ("saturation", -1),
    ("hue", 0.6),
    ("rand_augment", 31),
    ("rand_augment", 2.5),
    ("rand_augment", [5, 9]),
    ("rand_augment", True),
    ("trivial_augment", 1),
    ("elastic", [34, 0]),
    ("elastic", 34),
    ("erase", 1.1),
    ("blur", -0.1),
    ("noise", 2),
    ("mixup", -0.2),
    ("mixup", True),
    ("cutmix", math.inf),
    ("mosaic", 1.5),
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=str)
def test_what_an_augmentation_does_not_take_is_refused_with_what_it_takes(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"augment {name}={value} is not allowed")) as caught:
        check({name: value})
    assert AUGMENTATIONS[name].takes in str(caught.value)


@pytest.mark.parametrize("off", [0, False])
def test_0_and_false_turn_every_augmentation_off(off: object) -> None:
    settings = dict.fromkeys(AUGMENTATIONS, off)
    check(settings)
    assert columns_of(settings) == 1


@pytest.mark.parametrize("settings", [settings for settings, _, _ in PINNED.values()], ids=PINNED)
def test_what_is_drawn_is_allowed(settings: dict[str, Any]) -> None:
    check(settings)


def test_refusals_cover_every_augmentation() -> None:
    assert {name for name, _ in REFUSED} == AUGMENTATIONS.keys()
