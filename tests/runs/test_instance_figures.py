"""Pictures of objects with masks: what is tinted, and in which colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from test_box_figures import SHAPES, counted, scene
from test_mask_figures import clashes

from trainers.box_table import CLASS, KIND
from trainers.instances import Instances
from trainers.outlines import Piece
from trainers.runs import box_figures, instance_figures
from trainers.runs.example_figures import draw_examples
from trainers.runs.palette import COLOURS


def outlined(row: dict[str, Any]) -> dict[str, Any]:
    """The same with masks that fill the boxes."""
    height, width = row["image"].shape[:2]
    parts = {}
    for name, number in (("target", 1), ("labels", 0)):
        table = row[name]
        layers = np.zeros((len(table), height, width), np.uint8)
        for place, (left, top, right, bottom) in enumerate(table[:, :4].round().clip(0).astype(int).tolist()):
            layers[place, top:bottom, left:right] = place + 1 if number else 1
        parts[name] = Instances(table, layers)
    return {**row, **parts}


def test_a_picture_is_tinted_inside_of_masks_alone() -> None:
    picture, mask = np.full((20, 30, 1), 100, np.uint8), np.zeros((20, 30), bool)
    mask[5:15, 10:20] = True
    found = instance_figures.tint(picture, [(mask, (0, 0, 0))])
    assert found.shape == (20, 30, 3)
    assert (found[~mask] == 100).all()
    assert (found[5, 10:20] == 0).all()  # a rim
    assert (found[6:14, 11:19] == 55).all()
    assert picture.max() == 100


def test_of_two_masks_of_a_picture_the_surer_one_lies_above() -> None:
    one, other = Piece(0, 0, np.ones((10, 10), bool)), Piece(5, 5, np.ones((10, 10), bool))
    found = instance_figures.overlay(np.zeros((20, 20, 3), np.uint8), [one, other], [0, 1])
    assert tuple(found[9, 5]) == COLOURS[0]  # the rim of the first, inside of the second
    assert tuple(found[14, 14]) == COLOURS[1]


def test_right_wrong_and_missed_objects_have_the_colours_of_their_lines() -> None:
    row = scene(0, 0, 2)
    table, found = np.zeros((3, 8), np.float32), np.full((2, 6), -1, np.float32)
    table[:, :4] = [[2, 2, 30, 30], [40, 2, 70, 30], [80, 2, 110, 30]]
    table[2, KIND], table[:, 7] = 1, 1
    found[0] = [2, 2, 30, 30, 0.9, 0]
    found[1] = [80, 40, 110, 80, 0.8, 0]
    row = outlined({**row, "target": table, "labels": found})
    shades = {name: box_figures.shade(name) for name in ("right", "wrong", "missed")}
    drawn = instance_figures._tint_found(row["image"], row, 0.5)
    places = {(2, 10): "right", (40, 90): "wrong", (2, 50): "missed"}
    assert {place: tuple(drawn[place]) for place in places} == {place: shades[name] for place, name in places.items()}
    truth = instance_figures._tint_truth(row["image"], row["target"])
    assert tuple(truth[2, 10]) == COLOURS[int(table[0, CLASS])]
    assert tuple(truth[2, 90]) == box_figures.shade("ignored")


def test_examples_with_masks_are_drawn() -> None:
    rows = [scene(1, 5, 3), scene(2, 0, 3, kind="worst")]
    figure = draw_examples(
        [outlined(row) for row in rows],  # type: ignore[misc]
        {"target": "instances", "classes": SHAPES},
        "a run\nepoch 3",
        None,
        counted(rows, 3),
    )
    for axes in figure.axes:
        for text in axes.texts:  # meant to lie on a picture
            text.set_visible(False)
    assert clashes(figure, edge=False) == []
    assert len(figure.axes) == 4
