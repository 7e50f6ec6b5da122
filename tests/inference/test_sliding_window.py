"""Windows moved over a picture: every pixel covered, no seams, little memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.inference.sliding_window import places, slide


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("window", [1, 7, 32])
def test_windows_cover_a_side_and_share_what_was_asked_for(window: int, overlap: float) -> None:
    for length in range(1, 150):
        starts = places(length, window, overlap)
        assert starts[0] == 0
        assert starts[-1] == max(0, length - window)
        for one, other in itertools.pairwise(starts):
            assert 0 < other - one <= max(1, window * (1 - overlap))


def whole(model: nn.Module, image: Tensor, window: tuple[int, int], overlap: float) -> Tensor:
    bands = list(slide(model, image, window, overlap))
    assert [top for top, _ in bands] == list(itertools.accumulate([0, *(len(b[0]) for _, b in bands[:-1])]))
    return torch.cat([band for _, band in bands], 1)


@pytest.mark.parametrize("size", [(40, 64), (33, 97), (16, 20), (7, 5)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.6])
def test_a_model_of_single_pixels_gives_the_same_by_windows(size: tuple[int, int], overlap: float) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 1).double()
    image = torch.rand(3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(whole(model, image, (16, 20), overlap), model(image[None])[0])


def test_one_window_is_the_model_itself() -> None:
    model = nn.Conv2d(3, 2, 3, padding=1)
    image = torch.rand(3, 20, 30)
    with torch.no_grad():
        torch.testing.assert_close(whole(model, image, (20, 30), 0.5), model(image[None])[0])


def test_the_rims_of_windows_count_little() -> None:
    """A model that errs at its rim alone: with overlap the error is far below that without."""

    def model(images: Tensor) -> Tensor:
        logits = torch.ones_like(images)
        logits[..., 0, :] = logits[..., -1, :] = logits[..., :, 0] = logits[..., :, -1] = 0
        return logits

    inner = (slice(None), slice(20, -20), slice(20, -20))
    hard, soft = (whole(model, torch.zeros(1, 96, 96), (32, 32), overlap)[inner] for overlap in (0.0, 0.5))  # type: ignore[arg-type]
    assert hard.min() == 0
    assert soft.min() > 0.8


def test_logits_at_an_eighth_are_brought_to_the_windows_size() -> None:
    def model(images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 8)

    image = torch.full((1, 48, 80), 3.0)
    torch.testing.assert_close(whole(model, image, (16, 16), 0.5), image)  # type: ignore[arg-type]


def test_no_more_than_a_band_of_logits_is_held() -> None:
    most = 0
    for _, band in slide(lambda images: images.expand(-1, 4, -1, -1), torch.rand(1, 400, 50), (20, 20), 0.5):
        most = max(most, band.shape[1])
    assert most <= 20
