"""Pictures of boxes: what is called right, wrong and missed; nothing on a figure lies over something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_mask_figures import clashes

from trainers import match_tables
from trainers.box_table import COLUMNS, are_plain
from trainers.confusion import DENSE_CLASSES, DRAWN_CLASSES
from trainers.runs import box_figures
from trainers.runs.example_figures import draw_examples
from trainers.runs.figures import draw_confusion_of
from trainers.runs.score_figures import draw_scores, has_charts
from trainers.tasks.average_precision import count_truths, match

pytestmark = pytest.mark.figures

SHAPES = ["circle", "square", "a class with a name that has no end"]


def scene(seed: int, objects: int, classes: int, size: tuple[int, int] = (96, 128), **more: Any) -> dict[str, Any]:
    """An example: objects of all kinds, found more or less well, and what is not there."""
    random, (height, width) = np.random.RandomState(seed), size
    extent = random.uniform(0.1, 0.4, (objects, 2)) * [width, height]
    low = random.uniform(size=(objects, 2)) * ([width, height] - extent)
    table = np.zeros((objects + 1, COLUMNS), np.float32)
    table[:, 4], table[:, 7] = -1, 1
    table[:objects, :2], table[:objects, 2:4] = low, low + extent
    table[:objects, 4] = random.randint(classes, size=objects)
    table[:objects, 5] = random.choice([0, 0, 0, 1, 2], size=objects)
    table[:objects, 6] = extent.prod(1)
    found = np.full((100, 6), -1, np.float32)
    found[:, :5] = 0
    for row, number in enumerate(random.permutation(2 * objects) % max(1, objects) if objects else [0]):
        if not objects:
            table[0, :4] = [1, 1, 20, 20]
        found[row, :4] = table[number, :4] + random.normal(0, 2, 4)
        found[row, 4], found[row, 5] = random.choice(50) / 50, random.randint(classes)
        if random.rand() < 0.7:
            found[row, 5] = max(0, table[number, 4])
    image = random.randint(256, size=(height, width, 3)).astype(np.uint8)
    row = {"name": f"val/{seed}.png", "image": image, "target": table, "labels": found, "score": 0.625, "kind": ""}
    return {**row, **more}


def counted(rows: list[dict[str, Any]], classes: int) -> dict[str, Any]:
    matches = np.stack([match(row["labels"], row["target"]) for row in rows])
    truths = sum(count_truths(row["target"], classes) for row in rows)
    return {"matches": matches, "truths": np.asarray(truths)}


def test_right_wrong_and_missed_are_those_of_the_scores() -> None:
    for seed in range(60):
        row = scene(seed, seed % 12, 1 + seed % 3)
        verdicts = box_figures.judge(row["labels"], row["target"], 0.0)
        bits = match(row["labels"], row["target"])[:, match_tables.ALL]
        there = row["labels"][:, 5] >= 0
        right, counts = bits & 1 > 0, bits >> len(match_tables.IOUS) & 1 > 0
        assert verdicts.right.tolist() == right.tolist()
        assert (there & ~verdicts.right & ~verdicts.ignored).tolist() == (counts & ~right).tolist()
        assert verdicts.missed.sum() == are_plain(row["target"]).sum() - right.sum()


def test_what_is_less_sure_than_the_confidence_finds_nothing() -> None:
    row = scene(3, 5, 1)
    verdicts = box_figures.judge(row["labels"], row["target"], 1.1)
    assert verdicts.ignored.all()
    assert not verdicts.right.any()
    assert verdicts.missed.tolist() == are_plain(row["target"]).tolist()


@pytest.mark.parametrize(("classes", "size"), [(1, (60, 30)), (3, (96, 128))])
def test_nothing_around_the_pictures_lies_over_something_else(classes: int, size: tuple[int, int]) -> None:
    rows = [scene(1, 5, classes, size), scene(2, 0, classes, size, kind="worst", name="a/very/long/folder/" * 9)]
    figure = box_figures.draw_predictions(rows, SHAPES[:classes], "a run\nepoch 3", 0.3)
    for axes in figure.axes:
        for text in axes.texts:  # meant to lie on a picture
            text.set_visible(False)
    assert clashes(figure, edge=False) == []  # to_png makes room at the edges
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    ignored = any((row["target"][row["target"][:, 4] >= 0, 5] > 0).any() for row in rows)
    expected = ["object", "right", "wrong", "missed", *["not scored"] * ignored]
    assert [text.partition(":")[0] for text in said] == expected
    texts = {text.get_text() for text in figure.texts}
    assert {"a run", "epoch 3", "truth", "predictions", "worst:  F1 62.5 %", "F1 62.5 %"} <= texts
    assert len(figure.axes) == 4


def test_nothing_is_written_over_many_small_objects() -> None:
    row = scene(1, 30, 2, (512, 512))
    middles = (row["target"][:, :2] + row["target"][:, 2:4]) / 2
    small = row | {"target": row["target"].copy()}
    small["target"][:, :4] = np.concatenate([middles - 4, middles + 4], 1)
    written = []
    for each in (row, small):
        figure = box_figures.draw_predictions([each], SHAPES, "one", 1.1)
        written.append([text.get_text() for axes in figure.axes for text in axes.texts])
    assert len(written[0]) > 5
    assert written[1] == []
    picture, found = np.zeros((512, 512, 3), np.uint8), np.zeros((30, 6))
    found[:, :4], found[:, 4] = small["target"][:30, :4], 0.5
    assert (box_figures.overlay(picture, found, SHAPES) > 0).any(2).sum() < 30 * 12 * 12


def lines(figure: Figure) -> set[tuple[Any, ...]]:
    return {(patch.get_linestyle(), patch.get_edgecolor()) for axes in figure.axes for patch in axes.patches}


def test_what_lines_mean_shows_without_their_colours_too() -> None:
    figure = box_figures.draw_predictions([scene(seed, 6, 3) for seed in range(4)], SHAPES, "one", 0.3)
    styles = lines(figure)
    assert len(styles) == 5
    assert len({str(line) for line, _ in styles}) >= 4  # a true object is drawn on another picture


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_curves_are_drawn_of_any_number_of_classes(classes: int) -> None:
    rows = [scene(seed, 6, classes) for seed in range(12)]
    counts = counted(rows, classes + 1)  # one does not occur
    assert has_charts(counts)
    (file, figure), *rest = draw_scores(counts, {"classes": [f"class {n}" for n in range(classes + 1)]}, "run").items()
    assert (file, rest) == ("detections", [])
    assert clashes(figure) == []
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    there = int((counts["truths"][:, 0] > 0).sum())
    assert len(entries) == (1 if there == 1 else 1 + min(there, 12) + (there > 12))
    best = match_tables.best_confidence(counts["matches"], counts["truths"][:, 0])
    assert figure.axes[1].get_title(loc="left").endswith(f"{best:.2f}")


def test_a_split_without_any_detection_is_drawn_too() -> None:
    row = scene(1, 3, 2)
    row["labels"][:, 4:] = 0, -1
    counts = counted([row], 2)
    draw_scores(counts, {"classes": ["a", "b"]})
    confusion = box_figures.detected(counts)
    assert confusion is not None
    draw_confusion_of({"classes": ["a", "b"]}, confusion)
    draw_examples([row], {"target": "boxes", "classes": ["a", "b"]}, "one", None, counts)  # type: ignore[list-item]


def test_the_confusion_matrix_ends_with_background() -> None:
    counts = counted([scene(seed, 6, 3) for seed in range(12)], 3)
    confusion = box_figures.detected(counts)
    assert confusion is not None
    assert confusion.matrix[:-1].sum(1).tolist() == counts["truths"][:, 0].tolist()
    figure = draw_confusion_of({"classes": SHAPES}, confusion, "a run")
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert ticks[-1] == "background"
    assert "objects found" in figure.axes[0].get_title(loc="left")
    assert clashes(figure, edge=False) == []
    assert len(figure.axes[1].patches) == len(figure.axes[2].patches) == 3
    shades = figure.axes[0].images[0].get_array()
    assert shades is not None
    found = confusion.matrix.sum(0)[:-1]
    np.testing.assert_allclose(shades[-1, :-1], confusion.matrix[-1, :-1] / found)  # background has no number
    np.testing.assert_allclose(shades[0], confusion.matrix[0] / confusion.matrix[0].sum())


def test_of_very_many_classes_those_with_the_most_errors_are_drawn() -> None:
    classes = DENSE_CLASSES + 1
    counts = counted([scene(seed, 30, classes) for seed in range(20)], classes)
    confusion = box_figures.detected(counts)
    assert confusion is not None
    assert confusion.classes is not None
    assert len(confusion.matrix) == DRAWN_CLASSES + 2
    assert confusion.matrix[:-1].sum() == counts["truths"][:, 0].sum()
    figure = draw_confusion_of({"classes": [f"class {number}" for number in range(classes)]}, confusion)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][-2:] == ["all others", "background"]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_changes_the_picture_at_the_boxes_alone(channels: int) -> None:
    picture = np.full((200, 300, channels), 40, np.uint8)
    found = np.array([[100, 80, 180, 140, 0.9, 0], [0, 0, 9, 9, 0.5, -1]], np.float64)
    drawn = box_figures.overlay(picture, found, ["pig"])
    assert drawn.shape == (200, 300, 3)
    changed = (drawn != 40).any(2)
    assert changed[80, 100:180].all()
    assert changed[80:140, 179].all()
    assert not changed[85:135, 105:175].any()
    assert not changed[:60].any()
    assert (box_figures.overlay(picture, found[1:], ["pig"]) == 40).all()
