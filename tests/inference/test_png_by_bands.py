"""Drawings of large pictures, written by bands, hold what they would hold if written whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from trainers.inference import png_by_bands
from trainers.runs import mask_figures

COLOURS = [(200, 0, 0), (0, 90, 250), (9, 9, 9)]


@pytest.mark.parametrize("band", [1, 41, 120, 10**6])
@pytest.mark.parametrize("kind", ["mask", "colours", "overlay"])
def test_bands_are_as_the_whole(band: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (23, 41, 3), np.uint8)
    labels = np.kron(rng.integers(0, 3, (6, 6)), np.ones((4, 7), int))[:23, :41].astype(np.uint8)
    draw: png_by_bands.Draw = {
        "mask": lambda _, labels: labels,
        "colours": lambda _, labels: mask_figures.colour(labels, COLOURS),
        "overlay": lambda picture, labels: mask_figures.overlay(picture, labels, COLOURS),
    }[kind]
    monkeypatch.setattr(png_by_bands, "BAND", band)
    with Image.open(io.BytesIO(png_by_bands.draw_png(draw, picture, labels))) as image:
        np.testing.assert_array_equal(np.asarray(image), draw(picture, labels))
