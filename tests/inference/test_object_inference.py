"""A small run that finds drawn shapes: what evaluate, predict and export make of it is one and the same."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from trainers.__main__ import main
from trainers.data.targets.boxes import Boxes
from trainers.datasets import shapes
from trainers.fitting import fit
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.load import find_trained
from trainers.inference.predict import predict
from trainers.inference.predictions.objects import Objects
from trainers.inference.predictor import Predictor
from trainers.recipe import Scale, resolve
from trainers.tasks import average_precision

pytestmark = [pytest.mark.figures, pytest.mark.slow]
ARGS: dict[str, Any] = {"objects": "boxes", "train": 96, "val": 24}


@pytest.fixture(scope="module")
def run(storage: Path) -> str:
    recipe = resolve("shapes.fcos", dataset_args=ARGS, epochs=3, batch_size=8, model_args={"width": 32})
    scale = Scale(workers=0, cpus_per_worker=1, storage=str(storage))
    return fit(recipe, scale=scale, run="found").folder


def drawn(split: str) -> list[tuple[str, np.ndarray, Any]]:
    items = shapes.source(None, **ARGS).splits[split]
    return [
        (item.name if len(item.targets) == 1 else f"{item.name}#{index}", image, objects)
        for item in items
        for index, (image, objects) in enumerate(shapes.read(item))
    ]


@pytest.fixture(scope="module")
def pictures(storage: Path) -> Path:
    """The first pictures of val, one without objects, one that is larger, and a broken one."""
    folder = storage / "pictures"
    folder.mkdir()
    images = [image for _, image, _ in drawn("val")[:6]]
    for number, image in enumerate(images[:4]):
        Image.fromarray(image).save(folder / f"{number}.png")
    Image.fromarray(np.full((30, 70, 3), 90, np.uint8)).save(folder / "flat.png")
    large = np.concatenate([np.concatenate(images[:3], 1), np.concatenate(images[3:], 1)])
    Image.fromarray(large).save(folder / "large.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_a_run_shows_what_it_finds(run: str) -> None:
    for name in ("predictions.png", "detections.png", "confusion.png", "curves.png"):
        assert size(Path(run) / name)[0] > 600, name
    facts = json.loads((Path(run) / "run.json").read_text())
    assert facts["best"]["metric"] == "ap"
    assert 0 < facts["final"]["confidence"] < 1


def test_the_results_of_a_split_are_what_was_scored(run: str, tmp_path: Path) -> None:
    """As pycocotools reads them; what is scored of the file anew is what was scored."""
    scores = evaluate(run, "val", results=str(tmp_path / "found.json"))
    names = [name for name, _, _ in drawn("val")]
    coco = COCO()
    coco.dataset = {"images": [{"id": number + 1} for number in range(len(names))], "annotations": []}
    coco.dataset["categories"] = [{"id": number + 1} for number in range(3)]
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
        found = coco.loadRes(str(tmp_path / "found.json"))
    matches, truths, codec = [], np.zeros((3, 4), np.int64), Boxes()
    for number, (name, image, objects) in enumerate(drawn("val")):
        boxes = np.full((100, 6), -1.0)
        for row, each in enumerate(found.imgToAnns[number + 1]):
            left, top, width, height = each["bbox"]
            boxes[row] = [left, top, left + width, top + height, each["score"], each["category_id"] - 1]
            assert each["file_name"] == name
        table = codec.resize(codec.check(name, image, objects, 3), image.shape[:2], "stretch")
        matches.append(average_precision.match(boxes, table))
        truths += average_precision.count_truths(table, 3)
    again = average_precision.scores(np.stack(matches), truths)
    for name in ("ap", "ap50", "ar1", "ar100", "f1", "confidence"):
        assert scores[name] == pytest.approx(again[name], abs=1e-3), name


def test_fewer_detections_score_what_they_find(run: str) -> None:
    scores = evaluate(run, "val", max_detections=5)
    assert "ar5" in scores
    assert "ar100" not in scores
    with pytest.raises(ValueError, match="max_detections=0 is not allowed"):
        evaluate(run, "val", max_detections=0)


def test_a_window_over_pictures_of_its_own_size_sees_what_the_model_sees(run: str, tmp_path: Path) -> None:
    plain, sliding = (evaluate(run, "val", sliding=each, results=str(tmp_path / f"{each}.json")) for each in (0, 1))
    assert {name: sliding[name] for name in ("ap", "ap50", "f1", "rows")} == pytest.approx(
        {name: plain[name] for name in ("ap", "ap50", "f1", "rows")}, abs=1e-3
    )
    boxes = [json.loads((tmp_path / f"{each}.json").read_text()) for each in (0, 1)]
    assert len(boxes[0]) == pytest.approx(len(boxes[1]), abs=3)


def test_all_files_of_a_prediction_say_the_same(run: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table, bad = predict(run, [str(pictures)], str(out))
    assert [Path(path).name for path in bad] == ["broken.png"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert list(rows[0]) == ["path", "class", "score", "left", "top", "right", "bottom"]
    named = {Path(row["path"]).name for row in rows}
    assert named == {"0.png", "1.png", "2.png", "3.png", "flat.png", "large.png"}
    found = [row for row in rows if row["class"]]
    for path in named:
        of_picture = [row for row in rows if Path(row["path"]).name == path]
        assert len(of_picture) == 1 or all(row["class"] for row in of_picture)
        width, height = size(pictures / path)
        assert size(out / "overlays" / path) == (width, height)
        lines = (out / f"labels/{Path(path).stem}.txt").read_text().splitlines()
        assert len(lines) == sum(bool(row["class"]) for row in of_picture)
        for line, row in zip(lines, of_picture, strict=False):
            _, x, _, wide, _, score = map(float, line.split())
            assert (x - wide / 2) * width == pytest.approx(float(row["left"]), abs=1e-3)
            assert score == pytest.approx(float(row["score"]), abs=1e-5)
    results = json.loads((out / "detections.json").read_text())
    assert len(results) == len(found)
    for each, row in zip(results, found, strict=True):
        assert each["file_name"] == Path(row["path"]).name
        assert each["bbox"][0] == float(row["left"])
    confidence = json.loads((out / "predictions.json").read_text())["confidence"]
    assert confidence == json.loads((Path(run) / "run.json").read_text())["final"]["confidence"]
    assert all(float(row["score"]) >= confidence - 1e-6 for row in found)
    assert (out / "predictions.png").exists()


def test_a_lower_confidence_shows_more_and_sliding_goes_beyond_the_window(
    run: str, pictures: Path, tmp_path: Path
) -> None:
    counts = []
    for number, more in enumerate(({"confidence": 0.9}, {"confidence": 0.0}, {"confidence": 0.0, "sliding": True})):
        table, _ = predict(run, [str(pictures / "large.png")], str(tmp_path / str(number)), **more)  # type: ignore[arg-type]
        counts.append(sum(bool(row["class"]) for row in csv.DictReader(table.read_text().splitlines())))
    assert counts[0] <= counts[1] <= 100 < counts[2]
    with pytest.raises(ValueError, match="confidence=2 is not allowed"):
        predict(run, [str(pictures)], str(tmp_path / "x"), confidence=2)


def test_pictures_of_any_kind_are_seen_together_and_boxes_are_in_their_own_upright_pixels(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, image, _ = drawn("val")[2]
    upright = Image.fromarray(image).resize((256, 144))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned to the right by 90 degrees
    folder = tmp_path / "q"
    for name in ("a/plain.png", "b/plain.png", ".hidden/plain.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        upright.save(folder / name)
    upright.convert("RGBA").save(folder / "clear.png")
    upright.convert("L").save(folder / "grey.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=turned)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    seen = []
    timed = Predictor.timed

    def counted(self: Predictor, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return timed(self, images)

    monkeypatch.setattr(Predictor, "timed", counted)
    table, bad = predict(run, [str(folder)], str(tmp_path / "out"), confidence=0.2)
    assert seen == [5]
    assert [Path(path).name for path in bad] == ["broken.jpg"]
    boxes: dict[str, list[list[float]]] = {}
    for row in csv.DictReader(table.read_text().splitlines()):
        sides = [float(row[side]) for side in ("left", "top", "right", "bottom")]
        boxes.setdefault(str(Path(row["path"]).relative_to(folder)), []).append(sides)
    assert boxes.keys() == {"a/plain.png", "b/plain.png", "clear.png", "grey.png", "turned.png"}
    predictor = Predictor(find_trained(run), sliding=False, overlap=0.0)
    expected = Objects().see(predictor, np.asarray(upright)).boxes
    for name in boxes.keys() - {"grey.png"}:
        np.testing.assert_allclose(boxes[name], expected[expected[:, 4] >= 0.2][:, :4], atol=1e-2, err_msg=name)
    files = {each["file_name"] for each in json.loads((tmp_path / "out/detections.json").read_text())}
    assert files == boxes.keys()
    assert size(tmp_path / "out/overlays/turned.png") == (256, 144)


@pytest.mark.parametrize("tta", [None, "flips"])
def test_the_exported_program_finds_what_predict_finds(run: str, tmp_path: Path, tta: Any) -> None:
    file = export(run, str(tmp_path / "found.pt2"), tta=tta)
    program = torch.export.load(file).module()
    predictor = Predictor(find_trained(run), sliding=False, overlap=0.0, tta=tta)
    shown = [image for _, image, _ in drawn("val")[:6]]
    with torch.no_grad():
        parts = [program(predictor.preprocess.images(np.stack(some))).numpy() for some in (shown[:1], shown[1:])]
    assert [part.shape for part in parts] == [(1, 100, 6), (5, 100, 6)]
    found = np.concatenate(parts)
    for picture, boxes in zip(shown, found, strict=True):
        expected = Objects().see(predictor, picture).boxes
        boxes = boxes[boxes[:, 5] >= 0]
        assert len(boxes) == len(expected) > 0
        np.testing.assert_allclose(boxes, expected, atol=1e-4)
    facts = json.loads(Path(f"{file}.json").read_text())
    assert facts["output"].startswith("(batch, 100, 6): left, top")


def test_what_does_not_go_with_objects_is_refused(
    run: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {
        ("evaluate", run, "--native"): "finds objects: --native is for masks",
        ("predict", run, str(pictures), "--out", str(tmp_path / "a"), "--top-k", "2"): "this run has objects",
        ("evaluate", run, "--tta", "rotations"): "not square",
        ("evaluate", run, "--results", str(tmp_path / "no/x.json")): "its folder is not there",
    }
    for command, why in refused.items():
        assert main(list(command)) == 2
        assert why in capsys.readouterr().err.replace("\n", " ")
