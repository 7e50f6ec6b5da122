"""Polygons and run lengths against COCO's own tools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as theirs

from trainers import outlines

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools with NumPy 2


def random_polygon(rng: np.random.Generator, height: int, width: int) -> list[float]:
    """Small and large, convex and crossing themselves, on whole numbers and between, inside and beyond the picture,
    now and then closed by hand or with a corner given twice."""
    corners = int(rng.integers(3, 20))
    size = np.array([width, height])
    kind = rng.integers(4)
    if kind == 0:  # round
        angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
        points = rng.uniform(0, 1, 2) * size + rng.uniform(0.3, 40) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif kind == 1:  # any corners, beyond the picture too
        points = rng.uniform(-0.3, 1.3, (corners, 2)) * size
    else:  # few pixels
        points = rng.uniform(0, 1, 2) * size + rng.uniform(-3, 3, (corners, 2))
    if rng.random() < 0.3:
        points = points.round(int(rng.integers(2)))
    if rng.random() < 0.2:
        points = np.concatenate([points, points[:1]])
    if rng.random() < 0.2:
        points = np.concatenate([points[:2], points[1:]])
    return points.ravel().tolist()


def test_500_polygons_are_filled_as_coco_fills_them() -> None:
    filled = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        height, width = (int(side) for side in rng.integers(1, 120, 2))
        polygons = [random_polygon(rng, height, width) for _ in range(rng.integers(1, 4))]
        expected = theirs.decode(theirs.merge(theirs.frPyObjects(polygons, height, width)))
        np.testing.assert_array_equal(outlines.fill(polygons, height, width), expected, err_msg=f"seed {seed}")
        filled += int(0 < expected.sum() < expected.size)
    assert filled > 300


def test_a_box_of_whole_pixels_is_those_pixels() -> None:
    mask = outlines.fill([[2, 1, 5, 1, 5, 4, 2, 4]], 6, 8)
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:5] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("polygon", [[1, 1, 2, 2], [1, 1, 2, 2, 3], []])
def test_fewer_than_three_points_are_refused(polygon: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(polygon)} numbers; it needs x and y of three points"):
        outlines.fill([polygon], 4, 4)
    with pytest.raises(ValueError, match="not finite"):
        outlines.fill([[0, 0, 1, float("nan"), 1, 1]], 4, 4)


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """Patches, noise, nothing, everything."""
    height, width = rng.integers(1, 90, 2)
    noise = rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 1])
    if rng.random() < 0.5:
        noise[height // 3 : height // 2, width // 4 :] = True
    return noise.astype(np.uint8)


def test_run_lengths_equal_those_of_coco_both_ways() -> None:
    for seed in range(200):
        mask = random_mask(np.random.default_rng(seed))
        expected = theirs.encode(np.asfortranarray(mask))
        ours = outlines.encode(mask)
        assert ours == {"size": expected["size"], "counts": expected["counts"].decode()}
        np.testing.assert_array_equal(outlines.decode(ours), mask)
        np.testing.assert_array_equal(outlines.decode(expected), mask)
        uncompressed = {"size": ours["size"], "counts": outlines.runs_of(mask)}
        np.testing.assert_array_equal(outlines.decode(uncompressed), mask)
        np.testing.assert_array_equal(theirs.decode(theirs.frPyObjects(uncompressed, *mask.shape)), mask)


def test_long_runs_are_compressed_as_coco_does() -> None:
    runs = [0, 1_000_000, 7, 3, 2_000_000, 31, 32, 16, 15, 1, 999_894]
    size = [1000, 4000]
    expected = theirs.frPyObjects({"size": size, "counts": runs}, *size)["counts"]
    assert outlines.compress(runs).encode() == expected
    assert outlines.uncompress(expected).tolist() == runs


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 4], "7 pixels do not fill 2 x 4 = 8"),
        ([9, -1], "do not fill"),
        ("", "break off"),
        ("3P", "break off"),
        ("3 ", "characters"),
        ("3\u00e4", "characters"),
        ("o" * 13 + "0", "too large"),
    ],
)
def test_broken_run_lengths_are_refused(counts: list[int] | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outlines.decode({"size": [2, 4], "counts": counts})
