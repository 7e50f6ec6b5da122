"""Masks of objects in layers."""

from __future__ import annotations

import numpy as np
import torch

from trainers.box_table import COLUMNS
from trainers.instances import Instances, each, masks


def drawn() -> Instances[np.ndarray]:
    layers = np.zeros((2, 2, 4, 5), np.uint8)
    layers[0, 0, :2, :3], layers[0, 1, 1:3, 2:] = 1, 3
    layers[1, 1, 3, 4] = 255
    return Instances(np.zeros((2, 300, COLUMNS)), layers)


def test_a_mask_is_where_any_layer_has_the_objects_number() -> None:
    found = masks(drawn())
    assert (found.shape, found.dtype) == ((2, 300, 4, 5), np.dtype(bool))
    assert [tuple(row) for row in np.argwhere(found.any((2, 3)))] == [(0, 0), (0, 2), (1, 254)]
    assert (found[0, 0].sum(), found[0, 2].sum(), found[1, 254, 3, 4]) == (6, 6, True)
    assert (found[0, 0] & found[0, 2]).sum() == 1  # one pixel belongs to both


def test_masks_of_tensors_are_those_of_arrays() -> None:
    tensors = each(torch.from_numpy, drawn())
    assert isinstance(tensors, Instances)
    np.testing.assert_array_equal(masks(tensors).numpy(), masks(drawn()))


def test_each_changes_a_single_array_too() -> None:
    assert each(torch.from_numpy, np.arange(3)).tolist() == [0, 1, 2]
