"""The run folder: what scripts rely on."""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_mask_figures import DRONE, STREET, clashes, example

from trainers.confusion import Drawn
from trainers.recipe import resolve
from trainers.runs import figures, mask_figures, provenance, tensorboard
from trainers.runs.record import Record
from trainers.storage.store import Store

pytestmark = pytest.mark.figures

COLOURS = [(0, 0, 200), (200, 200, 0), (0, 200, 0)]
CLASSES = ["cat", "dog", "bird"]
CONFUSION = np.array([[5, 1, 0], [0, 7, 2], [1, 0, 4]])


def run_json(**changes: Any) -> dict[str, Any]:
    recipe = resolve("digits.cnn", model_args={"num_filters": 4}).to_json()
    dataset = {"name": "digits", "fingerprint": "f", "rows": {"train": 10, "val": 20}, "classes": CLASSES}
    return {
        "name": "one",
        "status": "running",
        "recipe": recipe,
        "scale": {"workers": 2},
        "dataset": dataset,
        **changes,
    }


def line(epoch: int, accuracy: float = 0.5) -> dict[str, float]:
    speed = {"seconds": 2.0, "images_per_second": 100.0 + epoch, "data_wait_share": 0.01, "lr": 0.1 / epoch}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        **speed,
        "train/loss": 1 / epoch,
        "val/loss": 2 / epoch,
        "val/accuracy": accuracy,
    }


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def finish(writer: Record, **fields: Any) -> None:
    best = {"epoch": 2, "metric": "accuracy", "value": 0.75}
    final = {"loss": 1.0, "accuracy": 0.75}
    writer.finish("finished", Drawn(CONFUSION), **{"best": best, "final": final, "epochs_run": 3, **fields})


def test_a_run_writes_its_files_as_it_goes(tmp_path: Path) -> None:
    writer = Record(Store(tmp_path), run_json())
    writer.write()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    writer.restore([])
    for epoch, accuracy in ((1, 0.5), (2, 0.75), (3, 0.7)):
        writer.epoch(line(epoch, accuracy), Drawn(CONFUSION))
        lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1] == line(epoch, accuracy)  # readable while the run goes on
    finish(writer)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["best"]["epoch"], run["final"]["accuracy"]) == ("finished", 2, 0.75)
    assert run["finished"].endswith("+00:00")
    for name in ("curves.png", "confusion.png"):
        data = (tmp_path / name).read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG")
        assert 500 < width < 4000
        assert 400 < height < 4000
    board = events(tmp_path)
    tags = board.Tags()
    assert {"train/loss", "val/loss", "val/accuracy", "speed/images_per_second", "optim/lr"} <= set(tags["scalars"])
    assert [(point.step, round(point.value, 4)) for point in board.Scalars("val/accuracy")] == [
        (1, 0.5),
        (2, 0.75),
        (3, 0.7),
    ]
    assert tags["images"] == ["confusion"]
    best = board.Scalars("val/best_accuracy")
    assert [(point.step, point.value) for point in best] == [(1, 0.5), (2, 0.75), (3, 0.75)]
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_the_table_of_hparams_takes_its_numbers_from_curves(tmp_path: Path) -> None:
    """So no dot without a curve is what TensorBoard shows first."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    writer = Record(Store(tmp_path), run_json())
    writer.restore([])
    for epoch, accuracy in ((1, 0.5), (2, 0.75), (3, 0.7)):
        writer.epoch(line(epoch, accuracy))
    finish(writer)
    board = events(tmp_path)
    content = board.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    shown = {info.name.tag for info in experiment.metric_infos}
    assert shown == {"val/best_accuracy", "val/loss", "speed/images_per_second"}
    assert {tag: len(board.Scalars(tag)) for tag in board.Tags()["scalars"]} == dict.fromkeys(
        board.Tags()["scalars"], 3
    )
    assert shown <= {*board.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("metric", "best", "values", "so_far"),
    [
        ("accuracy", 0.9, [0.5, 0.9, 0.8], [0.5, 0.9, 0.9]),
        ("loss", 0.2, [0.5, 0.2, 0.8], [0.5, 0.2, 0.2]),
        ("mae", 0.5, [0.5, 0.7, 0.8], [0.5, 0.5, 0.5]),
        ("accuracy", 0.5, [0.5], [0.5]),
        ("accuracy", 0.7, [0.7, None, 0.6], [0.7, 0.7]),
    ],
)
def test_the_best_so_far_goes_the_way_of_the_best(
    metric: str, best: float, values: list[Any], so_far: list[float]
) -> None:
    history = [{"epoch": 1.0 + place, f"val/{metric}": value} for place, value in enumerate(values)]
    found = list(tensorboard.best_so_far(history, {"epoch": 1, "metric": metric, "value": best}))
    assert [value for _, value in found] == so_far


def test_a_resumed_run_has_each_epoch_once(tmp_path: Path) -> None:
    first = Record(Store(tmp_path), run_json())
    first.restore([])
    for epoch in (1, 2, 3):
        first.epoch(line(epoch))
    assert first._board is not None
    first._board.close()  # as the end of its process would
    second = Record(Store(tmp_path), run_json())
    second.restore([line(1), line(2)])  # the checkpoint knows of two epochs
    second.epoch(line(3, 0.9))
    finish(second)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(each["epoch"], each["val/accuracy"]) for each in lines] == [(1, 0.5), (2, 0.5), (3, 0.9)]
    assert [point.step for point in events(tmp_path).Scalars("val/accuracy")] == [1, 2, 3]


def test_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    writer = Record(Store(tmp_path), run_json())
    writer.restore([])
    writer.epoch(line(1, math.nan))
    writer.finish("failed", message="diverged", final={"loss": math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["val/accuracy"] is None
    assert json.loads((tmp_path / "run.json").read_text())["final"] == {"loss": None}


def test_a_run_that_failed_before_its_first_epoch_has_no_pictures(tmp_path: Path) -> None:
    writer = Record(Store(tmp_path), run_json())
    writer.restore([])
    writer.finish("failed", message="no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "run.json"]


def masked(**changes: Any) -> dict[str, Any]:
    """The run.json of a run with masks."""
    run = run_json(**changes)
    run["dataset"] |= {"masks": True, "colours": COLOURS}
    return run


def images(folder: Path) -> dict[str, list[tuple[int, Image.Image]]]:
    """TensorBoard's images: (step, image) by tag."""
    board = events(folder)
    return {
        tag: [(event.step, Image.open(io.BytesIO(event.encoded_image_string))) for event in board.Images(tag)]
        for tag in board.Tags()["images"]
    }


def arguments_of(call: mock.Mock) -> list[tuple[list[str], list[Any], str, Any]]:
    """Of each figure of examples: names of the pictures, colours, title, IoU of the classes."""
    each = [arguments.args for arguments in call.call_args_list]
    return [([row["name"] for row in rows], list(colours), title, scores) for rows, _, colours, title, scores in each]


def test_examples_are_drawn_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = mock.Mock(wraps=mask_figures.draw_predictions)
    monkeypatch.setattr(mask_figures, "draw_predictions", drawn)
    writer = Record(Store(tmp_path), masked())
    writer.restore([])
    for epoch in (1, 2, 3, 4):
        if epoch == 3:
            writer._open_board()._next_picture = 0.0  # time goes by
        writer.epoch(line(epoch), Drawn(CONFUSION + epoch), [example(8, 12, 3, 3, name=f"picture {epoch}")])
        if epoch in (1, 2):
            assert drawn.call_count == 1  # the second would be too soon
            during = (tmp_path / "predictions.png").read_bytes()
    writer.finish(
        "finished",
        Drawn(CONFUSION),
        [example(8, 12, 3, 3, name="final")],
        best={"epoch": 2, "metric": "miou", "value": 0.5},
    )
    found = images(tmp_path)
    assert [step for step, _ in found["predictions"]] == [step for step, _ in found["confusion"]] == [1, 3, 4]
    assert found["predictions"][0][1] == Image.open(io.BytesIO(during))
    last = Image.open(io.BytesIO((tmp_path / "predictions.png").read_bytes()))
    assert last.width > 1.5 * Image.open(io.BytesIO(during)).width
    assert [(names, title) for names, _, title, _ in arguments_of(drawn)] == [
        (["picture 1"], "one\nvalidation pictures, epoch 1"),
        (["picture 3"], "one\nvalidation pictures, epoch 3"),
        (["final"], "one\nvalidation pictures, epoch 2"),
    ]
    assert all(colours == COLOURS for _, colours, _, _ in arguments_of(drawn))
    assert arguments_of(drawn)[-1][3] == pytest.approx([5 / 7, 7 / 10, 4 / 7])


def test_examples_that_come_too_soon_are_drawn_later(tmp_path: Path) -> None:
    writer = Record(Store(tmp_path), masked())
    writer.restore([])
    writer.epoch(line(1), Drawn(CONFUSION))
    writer.epoch(line(2), Drawn(CONFUSION + 2), [example(8, 12, 3, 3)])
    assert not (tmp_path / "predictions.png").exists()
    for epoch in (3, 4):
        writer._open_board()._next_picture = 0.0
        writer.epoch(line(epoch), Drawn(CONFUSION + epoch))
        assert (tmp_path / "predictions.png").exists()
    board = writer._open_board()
    board.save()
    board.close()
    found = images(tmp_path)
    assert [step for step, _ in found["predictions"]] == [2]
    assert [step for step, _ in found["confusion"]] == [1, 3, 4]


def test_without_final_examples_the_newest_are_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = mock.Mock(wraps=mask_figures.draw_predictions)
    monkeypatch.setattr(mask_figures, "draw_predictions", drawn)
    run = run_json()
    del run["dataset"]["classes"]
    writer = Record(Store(tmp_path), run)
    writer.restore([])
    writer.epoch(line(1), None, [example(8, 12, 1, 3)])
    writer.finish("failed", message="no")
    assert [step for step, _ in images(tmp_path)["predictions"]] == [1]  # the same at the end is not shown again
    assert [call.args[1] for call in drawn.call_args_list] == [["0", "1", "2"]] * 2
    assert arguments_of(drawn)[-1][1:] == (mask_figures.palette(3), "one\nvalidation pictures, epoch 1", None)


def test_runs_without_examples_have_no_picture_of_them(tmp_path: Path) -> None:
    writer = Record(Store(tmp_path), run_json())
    writer.restore([])
    writer.epoch(line(1), None, [])
    assert writer._open_board().wants_picture()  # none was drawn
    finish(writer)
    assert not (tmp_path / "predictions.png").exists()
    assert list(images(tmp_path)) == ["confusion"]


def test_pictures_that_take_long_are_drawn_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tensorboard, "time", mock.Mock(monotonic=mock.Mock(side_effect=[0, 100, 103, 500, 500, 9000, 9000]))
    )
    board = tensorboard.Board(Store(tmp_path))
    for wanted in (103 + 20 * 3, 500 + 0.05 * 500, 9000 + 0.05 * 9000):
        with board.drawing():
            pass
        assert board._next_picture == wanted
    board.close()


def test_a_score_of_what_does_not_occur_has_no_curve(tmp_path: Path) -> None:
    board = tensorboard.Board(Store(tmp_path))
    board.scalars({"epoch": 1.0, "val/ap": 0.5, "val/ap_large": math.nan})
    board.close()
    assert [tag for tag in events(tmp_path).Tags()["scalars"] if "ap" in tag] == ["val/ap"]


def test_curves_show_the_main_score_and_three_others() -> None:
    names = ("fw_iou", "accuracy", "dice", "f1", "boundary_f1", "miou", "top5_accuracy", "loss")
    history = [{"epoch": epoch, **{f"val/{name}": 0.1 for name in names}} for epoch in (1.0, 2.0)]

    def shown(metric: str) -> list[str]:
        run = run_json(status="finished", best={"epoch": 2, "metric": metric, "value": 0.5})
        figure = figures.draw_curves(run, history)
        (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == f"validation, best {metric} 0.5")
        return [text.get_text() for text in axes.get_legend().get_texts()]

    assert shown("miou") == ["miou", "accuracy", "boundary_f1", "dice", "best epoch, 2"]
    assert shown("fw_iou")[:4] == ["fw_iou", "miou", "accuracy", "boundary_f1"]


def test_curves_have_room_above() -> None:
    for speeds, top in (([200.0, 201.0], 221.1), ([math.nan, 100.0], 110.0), ([None], 1.0), ([0.0], 1.0)):
        history: list[dict[str, Any]] = [
            {"epoch": 1.0 + epoch, "val/loss": 1.0, "images_per_second": speed, "data_wait_share": 0.5}
            for epoch, speed in enumerate(speeds)
        ]
        run = run_json(status="finished", best={"epoch": 1, "metric": "loss", "value": 1.0})
        axes = {each.get_title(loc="left"): each for each in figures.draw_curves(run, history).axes}
        assert axes["images / s"].get_ylim() == pytest.approx((0, top))
        assert axes["waiting for data, %"].get_ylim() == pytest.approx((0, 55))


@pytest.mark.parametrize("epochs", [1, 2, 12, 300])
@pytest.mark.parametrize(
    "names", [["loss"], ["accuracy"], ["miou", "accuracy", "boundary_f1", "balanced_accuracy"]], ids=len
)
def test_legends_of_curves_lie_beside_the_curves(names: list[str], epochs: int) -> None:
    history = [
        {"epoch": float(epoch), "train/loss": 1 / epoch, "lr": 0.1, "images_per_second": 9.0, "data_wait_share": 0.1}
        | {f"val/{name}": 1 / epoch for name in ["loss", *names]}
        for epoch in range(1, epochs + 1)
    ]
    figure = figures.draw_curves(
        run_json(status="finished", best={"epoch": epochs, "metric": names[-1], "value": 0.5}), history
    )
    figures.to_png(figure)  # lays it out
    for axes in figure.axes:
        if (legend := axes.get_legend()) is not None:
            box = legend.get_window_extent()
            assert not any(box.overlaps(other.get_window_extent()) for other in figure.axes)
            assert not any(box.overlaps(label.get_window_extent()) for label in axes.get_xticklabels())
            assert box.x1 <= axes.get_window_extent().x1 + 5
            assert all(not box.overlaps(other.get_window_extent()) for other in figure.texts)


def pixels(classes: int) -> np.ndarray:
    """A confusion matrix of 10^9 pixels a class, or of none for the first."""
    random = np.random.default_rng(0)
    matrix = (random.random((classes, classes)) ** 6 * 2e8).astype(np.int64)
    matrix[np.diag_indices(classes)] = 10**9
    matrix[0] = 0
    matrix[-1] = 0
    matrix[-1, -1] = 10**9
    return matrix


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("names", [["background", "pet"], STREET, DRONE], ids=len)
def test_nothing_on_a_confusion_matrix_lies_over_something_else(names: list[str], masks: bool) -> None:
    figure = figures.draw_confusion(pixels(len(names)), names, "a-run-20261122-041700", masks=masks)
    assert clashes(figure, edge=False) == []  # _png makes room at the edges
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    box = figure.axes[0].get_window_extent()
    widths = [text.get_window_extent().width for text in figure.axes[0].texts]
    assert 0 < max(widths) < 0.95 * box.width / len(names)


def test_the_confusion_matrix_of_masks_shows_iou() -> None:
    matrix = np.array([[60, 20, 0], [0, 120, 0], [0, 0, 0]]) * 10**9
    figure = figures.draw_confusion(matrix, ["a", "b", "c"], "one", masks=True)
    cells, recall, iou = figure.axes
    title = (
        "one\nmIoU 80.36 %, pixel accuracy 90.00 % of 200G pixels\nnumbers: % of the true class; empty: below 0.05 %"
    )
    assert cells.get_title(loc="left") == title
    assert [text.get_text() for text in cells.texts] == ["75.0", "25.0", "100.0"]
    assert [text.get_text() for text in recall.texts] == ["75", "100", "none"]
    assert [text.get_text() for text in iou.texts] == ["75", "86", "none"]
    assert (recall.get_title(loc="left"), iou.get_title(loc="left")) == ("recall, %", "IoU, %")
    plain = figures.draw_confusion(matrix, ["a", "b", "c"], "one")
    assert plain.axes[0].get_title(loc="left") == "one\naccuracy 90.00 % of 200G\nnumbers: pictures; empty: 0"
    assert [text.get_text() for text in plain.axes[0].texts] == ["60G", "20G", "120G"]
    assert len(plain.axes) == 2


def test_cells_of_many_classes_show_numbers_from_one_percent_on() -> None:
    matrix = np.diag(np.full(20, 990))
    matrix[3, 4], matrix[3, 5] = 11, 5  # 1.1 and 0.5 %
    figure = figures.draw_confusion(matrix, None, "one")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(texts) == ["1", *["100"] * 19, "98"]
    assert figure.axes[0].get_title(loc="left").endswith("; empty: below 1 %")
    full = figures.draw_confusion(np.full((2, 2), 7), None, "one")
    assert full.axes[0].get_title(loc="left").endswith("numbers: pictures")


@pytest.mark.parametrize("classes", [2, 24, 100])
def test_the_confusion_matrix_of_many_classes_can_be_drawn(classes: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 50, (classes, classes))
    matrix[0] = 0  # a class of which there is none
    figure = figures.draw_confusion(matrix, [f"class number {index}" for index in range(classes)], "name")
    assert figures.to_png(figure, dpi=50).startswith(b"\x89PNG")


def test_provenance_records_versions_and_the_machine() -> None:
    versions = provenance.versions()
    assert {"python", "torch", "ray", "numpy"} <= set(versions)
    assert versions["pillow"] == PIL.__version__  # by which pictures are decoded
    machine = provenance.machine()
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 2**28
    assert machine["cpu"]
