"""Pictures of masks: to the pixel where they are data, by the boxes of what is on them where they are figures."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image

from trainers import datasets
from trainers.datasets import camvid, cityscapes, semantic_drone, shapes
from trainers.formatting import abbreviated
from trainers.runs import mask_figures

pytestmark = pytest.mark.figures

BLUE, YELLOW = (0, 0, 200), (200, 200, 0)
STREET = "sky building column-pole road sidewalk tree sign fence car pedestrian bicyclist".split()
DRONE = (
    "unlabeled paved-area dirt grass gravel water rocks pool vegetation roof wall window door fence fence-pole "
    "person dog car bicycle tree bald-tree ar-marker obstacle conflicting"
).split()


def example(height: int, width: int, channels: int, classes: int, **changes: Any) -> dict[str, Any]:
    """A row of `draw_predictions`: blocks of the classes, some of them ignored; the prediction is a bit off."""
    blocks = np.arange(64, dtype=np.uint8).reshape(8, 8) % classes
    truth = blocks[np.arange(height) * 8 // height][:, np.arange(width) * 8 // width]
    labels = np.roll(truth, 1, axis=1)
    truth = truth.copy()
    truth[: height // 8] = mask_figures.IGNORED
    grey = np.add.outer(np.arange(height), np.arange(width)) * 255 // (height + width)
    image = np.repeat(grey.astype(np.uint8)[..., None], channels, axis=2)
    row = {"name": "val/picture_000001_long_name.png", "image": image, "target": truth, "labels": labels}
    return {**row, "score": 0.625, "kind": "", **changes}


def clashes(figure: Figure, dpi: int = 150, edge: bool = True) -> list[tuple[str, str]]:
    """Pairs of texts, or texts and axes, that lie over each other; and what is outside the figure, if `edge`.

    A text that is wholly within axes is meant to be there.
    """
    for image in figure.findobj(AxesImage):
        image.set_visible(False)  # faster
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes: list[tuple[str, Any, bool]] = [(text.get_text(), text.get_window_extent(renderer), True) for text in texts]
    boxes += [(f"axes {number}", axes.get_window_extent(renderer), False) for number, axes in enumerate(figure.axes)]
    found = []
    for (name, box, is_text), (other, around, other_is_text) in itertools.combinations(boxes, 2):
        apart = box.x1 <= around.x0 + 1 or around.x1 <= box.x0 + 1 or box.y1 <= around.y0 + 1 or around.y1 <= box.y0 + 1
        inside = box.x0 >= around.x0 and box.x1 <= around.x1 and box.y0 >= around.y0 and box.y1 <= around.y1
        if not apart and not (inside and is_text and not other_is_text):
            found.append((name, other))
    for name, box, _ in boxes:
        if edge and (min(box.x0, box.y0) < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1):
            found.append((name, "outside"))
    return found


def legend(figure: Figure) -> dict[str, tuple[int, ...]]:
    box = figure.legends[0]
    colours = [tuple(round(255 * value) for value in patch.get_facecolor()[:3]) for patch in box.get_patches()]
    return dict(zip([text.get_text() for text in box.get_texts()], colours, strict=True))


def test_what_is_ignored_is_what_data_sets_say() -> None:
    assert mask_figures.IGNORED == datasets.IGNORED


def test_a_mask_is_shown_in_the_colours_of_its_classes() -> None:
    mask = np.array([[0, 1], [255, 2]], np.uint8)
    shown = mask_figures.colour(mask, [BLUE, YELLOW])
    assert shown.dtype == np.uint8
    assert shown.tolist() == [[[0, 0, 200], [200, 200, 0]], [[0, 0, 0], [0, 0, 0]]]  # no colour for 2


def test_an_overlay_is_tinted_and_its_borders_are_plain() -> None:
    picture = np.full((4, 6, 3), (100, 50, 0), np.uint8)
    mask = np.zeros((4, 6), np.uint8)
    mask[:, 4:] = 1
    shown = mask_figures.overlay(picture, mask, [BLUE, YELLOW], strength=0.25)
    assert (shown[:, :3] == (75, 38, 50)).all()  # 37.5 is rounded to the even one
    assert (shown[:, 3] == BLUE).all()
    assert (shown[:, 4] == YELLOW).all()
    assert (shown[:, 5] == (125, 88, 0)).all()
    grey = mask_figures.overlay(np.full((4, 6, 1), 80, np.uint8), mask, [BLUE, YELLOW])
    assert (grey[:, :3] == (40, 40, 140)).all()
    turned = mask_figures.overlay(picture.transpose(1, 0, 2), mask.T.copy(), [BLUE, YELLOW], strength=0.25)
    assert (turned == shown.transpose(1, 0, 2)).all()


def test_what_is_ignored_is_dark_in_an_overlay() -> None:
    mask = np.full((3, 3), mask_figures.IGNORED, np.uint8)
    assert (mask_figures.overlay(np.full((3, 3, 3), 80, np.uint8), mask, [BLUE]) == 40).all()


def test_wrong_pixels_stand_out_and_ignored_ones_are_black() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0] = (100, 0, 0)
    picture[0, 1] = 255
    truth = np.array([[0, 1], [1, 255]], np.uint8)
    labels = np.array([[0, 1], [0, 0]], np.uint8)
    shown = mask_figures.errors(picture, truth, labels)
    assert shown.tolist() == [[[68] * 3, [170] * 3], [list(mask_figures.WRONG), [0] * 3]]
    assert mask_figures.errors(picture[..., :1], truth, labels)[0, 0].tolist() == [100] * 3


# Okabe and Ito's colours, without black and vermilion.
FIRST = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (240, 228, 66)]
# What linear RGB looks like to all, to deuteranopes and to protanopes (Machado, Oliveira and Fernandes 2009).
EYES = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    ]
)
EYE_WEIGHTS = np.array([1.0, 1.5, 1.5])  # else nobody can distinguish many classes


def lab(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """CIELAB (eyes, N, 3) of sRGB (N, 3), 0 to 255: there, distance is about how different colours look."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.einsum("eij,nj->eni", EYES, linear), 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def make_palette(classes: int) -> list[mask_figures.Colour]:
    """The way in which the table was made."""
    steps = np.linspace(0, 255, 9).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = lab(grid)
    from_wrong = np.linalg.norm(seen[0] - lab(np.array([mask_figures.WRONG]))[0], axis=-1)
    fit = (seen[0, :, 0] > 20) & (seen[0, :, 0] < 93) & (from_wrong > 35)
    grid, seen = grid[fit], seen[:, fit]
    nearest = np.full(len(grid), np.inf)
    found: list[mask_figures.Colour] = []

    def keep_away(colour: mask_figures.Colour) -> None:
        distances = np.linalg.norm(seen - lab(np.array([colour])), axis=-1)
        np.minimum(nearest, (EYE_WEIGHTS[:, None] * distances).min(axis=0), out=nearest)

    for colour in ((0, 0, 0), (255, 255, 255), mask_figures.WRONG):
        keep_away(colour)
    while len(found) < classes:
        red, green, blue = map(int, grid[nearest.argmax()])
        found.append(FIRST[len(found)] if len(found) < len(FIRST) else (red, green, blue))
        keep_away(found[-1])
    return found


def test_the_palette_is_the_one_that_recorded_runs_were_shown_in() -> None:
    assert mask_figures.palette(256) == make_palette(256)


def distances(colours: Sequence[tuple[int, int, int]]) -> list[float]:
    """The smallest distance in CIELAB, as seen by all, by deuteranopes and by protanopes."""
    seen = lab(np.array(colours))
    apart = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1)
    upper = np.triu_indices(len(colours), 1)
    return [float(each[upper].min()) for each in apart]


def test_colours_can_be_distinguished() -> None:
    for classes, least in ((8, (26, 17, 17)), (20, (26, 16, 15)), (24, (20, 13, 13))):
        for other in ((255, 255, 255), mask_figures.WRONG):  # that are never compared with each other
            colours = [*mask_figures.palette(classes), (0, 0, 0), other]
            assert all(found > wanted for found, wanted in zip(distances(colours), least, strict=True)), classes
    assert mask_figures.palette(24)[:5] == mask_figures.palette(5)
    assert len(set(mask_figures.palette(255))) == 255
    assert mask_figures.palette(0) == []


DATA_SETS = {
    "shapes": shapes.COLOURS,
    "camvid": [*camvid.CLASSES.values()],
    "cityscapes": [colour for _, colour in cityscapes.CLASSES.values()],
    "semantic_drone": [*semantic_drone.CLASSES.values()],
    "any": mask_figures.palette(40),
    "what is right": [(grey, grey, grey) for grey in range(55, 171)],
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_no_class_looks_like_a_wrong_pixel(name: str) -> None:
    for colour in DATA_SETS[name]:
        everyone, deuteranopes, protanopes = distances([mask_figures.WRONG, colour])
        assert everyone > 40, colour
        assert min(deuteranopes, protanopes) > 13, colour


def test_a_png_of_a_mask_holds_its_class_numbers_and_its_colours() -> None:
    mask = np.array([[0, 1, 2], [200, 254, 255]], np.uint8)
    file = Image.open(io.BytesIO(mask_figures.save_png(mask, [BLUE, YELLOW])))
    assert file.mode == "P"
    assert np.asarray(file).tolist() == mask.tolist()
    assert np.asarray(file.convert("RGB")).tolist() == mask_figures.colour(mask, [BLUE, YELLOW]).tolist()
    plain = Image.open(io.BytesIO(mask_figures.save_png(mask)))
    assert (plain.mode, np.asarray(plain).tolist()) == ("L", mask.tolist())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_a_picture_keeps_its_pixels(channels: int) -> None:
    picture = example(8, 16, channels, 2)["image"]
    file = Image.open(io.BytesIO(mask_figures.save_png(picture)))
    assert (np.asarray(file.convert("RGB")) == picture).all()


@pytest.mark.parametrize(
    ("classes", "size", "channels"),
    [
        (["background", "pet"], (96, 128), 3),
        (["background", "pet"], (400, 300), 3),
        (STREET, (360, 480), 3),
        (DRONE, (512, 1024), 3),
        (DRONE, (32, 32), 1),
        (["a", "b"], (20, 200), 3),
        (["a", "b"], (200, 20), 1),
    ],
)
def test_nothing_on_a_figure_of_examples_lies_over_something_else(
    classes: list[str], size: tuple[int, int], channels: int
) -> None:
    rows = [example(*size, channels, len(classes), kind=kind) for kind in ("worst", "")]
    rows[1]["name"] = "a/very/long/folder/" * 10 + "name.png"
    colours = mask_figures.palette(len(classes))
    figure = mask_figures.draw_predictions(rows, classes, colours, "a run\nafter epoch 3", [0.5] * len(classes))
    assert clashes(figure) == []
    assert legend(figure) == {
        **{f"{name}  50 %": colour for name, colour in zip(classes, colours, strict=True)},
        "ignored, not scored": (0, 0, 0),
        "wrong": mask_figures.WRONG,
    }
    texts = [text.get_text() for text in figure.texts]
    assert {"a run", "after epoch 3", "picture", "truth", "prediction", "errors", "mean IoU 62.5 %"} <= set(texts)
    heading = figure.legends[0].get_title().get_text()
    assert "% of a class: its IoU over all validation pictures\nmean IoU of a picture: " in heading
    assert {"worst:  mean IoU 62.5 %", rows[0]["name"]} <= set(texts)
    assert any(text.startswith("a/very/long") and "…" in text and text.endswith("name.png") for text in texts)


def test_the_figure_shows_each_picture_in_its_shape() -> None:
    rows = [example(96, 128, 3, 2), example(60, 30, 1, 2)]
    figure = mask_figures.draw_predictions(rows, ["a", "b"], [BLUE, YELLOW], "one")
    assert len(figure.axes) == 8
    for row, four in ((rows[0], figure.axes[:4]), (rows[1], figure.axes[4:])):
        height, width = row["target"].shape
        for axes in four:
            box = axes.get_window_extent()
            assert box.width / box.height == pytest.approx(width / height, rel=0.01)
        picture, truth, prediction, wrong = (axes.images[0].get_array() for axes in four)
        assert (picture == row["image"]).all()
        assert (truth == mask_figures.colour(row["target"], [BLUE, YELLOW])).all()
        assert (prediction == mask_figures.colour(row["labels"], [BLUE, YELLOW])).all()
        assert (wrong == mask_figures.errors(row["image"], row["target"], row["labels"])).all()


def test_masks_are_not_blurred_when_enlarged() -> None:
    figure = mask_figures.draw_predictions([example(32, 32, 3, 2)], ["a", "b"], [BLUE, YELLOW], "one")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    left, bottom, width, height = (round(value) for value in figure.axes[1].get_window_extent().bounds)
    drawn = np.asarray(canvas.buffer_rgba())[::-1][bottom + 3 : bottom + height - 3, left + 3 : left + width - 3, :3]
    assert {tuple(colour) for colour in np.unique(drawn.reshape(-1, 3), axis=0).tolist()} == {BLUE, YELLOW, (0, 0, 0)}


def test_long_names_and_missing_scores_are_drawn_without_clashes() -> None:
    names = ["_background_", "$x$ & y_1", "a class with a name that has no end"]
    rows = [example(40, 60, 3, 3, name="$5.png", score=score, kind="best") for score in (None, math.nan)]
    for row in rows:
        row["target"] = row["labels"]
    figure = mask_figures.draw_predictions(rows, names, mask_figures.palette(3), "cost: $5", [None, math.nan, 0.254])
    assert list(legend(figure)) == ["_background_", "$x$ & y_1", "a class with… has no end  25 %", "wrong"]
    texts = [text.get_text() for text in figure.texts]
    assert texts.count("best") == 2
    assert not any("IoU" in text for text in texts)
    assert clashes(figure, dpi=90) == []


@pytest.mark.parametrize(("classes", "shape"), [(60, (96, 128)), (150, (96, 128)), (255, (128, 24))])
def test_a_legend_of_many_classes_lies_on_no_picture(classes: int, shape: tuple[int, int]) -> None:
    names = [f"a very long name of something in a street, number {number}" for number in range(classes)]
    for dpi in (60, 150):
        rows = [example(*shape, 3, classes)] * 2
        figure = mask_figures.draw_predictions(rows, names, mask_figures.palette(classes), "one", [0.5] * classes)
        assert clashes(figure, dpi=dpi, edge=False) == []  # to_png makes room at the edges
    texts = list(legend(figure))
    assert len(texts) > 30
    assert len(set(texts)) == len(texts)  # by the ends of their names


def test_examples_without_score_and_kind_can_be_drawn() -> None:
    row = {name: value for name, value in example(40, 60, 3, 2).items() if name not in ("score", "kind")}
    figure = mask_figures.draw_predictions([row], ["a", "b"], [BLUE, YELLOW], "one")
    assert [text.get_text() for text in figure.texts] == ["one", *mask_figures._COLUMNS, row["name"], ""]


def test_of_very_many_classes_the_legend_has_those_that_occur() -> None:
    names = [f"class {number}" for number in range(150)]
    figure = mask_figures.draw_predictions([example(64, 64, 3, 7)], names, mask_figures.palette(150), "one")
    assert list(legend(figure)) == [*names[:7], "ignored, not scored", "wrong"]


def test_many_examples_stand_in_two_blocks() -> None:
    rows = [example(96, 128, 3, 8, name=f"{number}.png") for number in range(8)]
    tall = mask_figures.draw_predictions(rows[:6], STREET, mask_figures.palette(11), "one")
    wide = mask_figures.draw_predictions([*rows[:6], example(40, 50, 3, 8)], STREET, mask_figures.palette(11), "one")
    full = mask_figures.draw_predictions(rows, STREET, mask_figures.palette(11), "one")
    assert [len(figure.axes) for figure in (tall, wide, full)] == [24, 28, 32]
    assert tall.bbox.height > tall.bbox.width
    assert full.bbox.width > 1.5 * full.bbox.height
    assert clashes(wide) == clashes(full) == []
    lefts = [axes.get_position().x0 for axes in full.axes]
    assert max(lefts[:16]) < min(lefts[16:])


@pytest.mark.parametrize("classes", [1, 8, 24, pytest.param(255, marks=pytest.mark.slow)])
def test_the_legend_alone_names_every_class(classes: int) -> None:
    names = [*DRONE, "_$x$", *(f"class {number}" * 9 for number in range(255))][:classes]
    colours = mask_figures.palette(classes)
    figure = mask_figures._draw_legend(names, colours)
    assert clashes(figure) == []
    texts = {text.lstrip("\N{FIGURE SPACE}"): colour for text, colour in legend(figure).items()}
    assert len(texts) == classes
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        assert texts[f"{number}  {abbreviated(name, 40)}"] == colour
    shown = np.asarray(Image.open(io.BytesIO(mask_figures.legend_png(names, colours))).convert("RGB"))
    assert set(colours) <= {tuple(colour) for colour in np.unique(shown.reshape(-1, 3), axis=0).tolist()}
    assert len({patch.get_window_extent().x0 for patch in figure.legends[0].get_patches()}) == min(6, -(-classes // 12))
