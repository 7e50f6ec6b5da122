"""A small run that finds drawn shapes and their masks: what evaluate, predict and export make of it is the same."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trainers import instances
from trainers.data import targets
from trainers.datasets import shapes
from trainers.fitting import fit
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.load import find_trained
from trainers.inference.predict import predict
from trainers.inference.predictions.instances import Outlined
from trainers.inference.predictor import Predictor
from trainers.recipe import Scale, resolve

pytestmark = [pytest.mark.slow, pytest.mark.figures]
ARGS: dict[str, Any] = {"objects": "masks", "train": 96, "val": 24}


@pytest.fixture(scope="module")
def run(storage: Path) -> str:
    recipe = resolve("shapes.fcos_masks", dataset_args=ARGS, epochs=4, batch_size=8, model_args={"width": 32})
    scale = Scale(workers=0, cpus_per_worker=1, storage=str(storage))
    return fit(recipe, scale=scale, run="outlined").folder


def drawn() -> list[tuple[np.ndarray, Any]]:
    """Pictures of val, and their objects as the task takes them."""
    codec, found = targets.kind("instances"), []
    for item in shapes.source(None, **ARGS).splits["val"]:
        for image, objects in shapes.read(item):
            size = (image.shape[0], image.shape[1])
            stored = codec.stack([codec.resize(codec.check(item.name, image, objects, 3), size, "stretch")])
            tensors = instances.each(torch.from_numpy, stored)
            found.append((image, codec.finish(tensors, codec.maps(tensors))))
    return found


def test_a_run_shows_what_it_finds(run: str) -> None:
    for name in ("predictions.png", "detections.png", "confusion.png", "curves.png"):
        with Image.open(Path(run) / name) as picture:
            assert picture.size[0] > 600, name
    facts = json.loads((Path(run) / "run.json").read_text())
    assert facts["best"]["metric"] == "mask_ap"
    assert {"mask_ap", "mask_ap50", "mask_ar100", "ap", "confidence"} <= facts["final"].keys()


def test_the_results_of_a_split_are_what_was_scored_by_cocos_own_tools(run: str, tmp_path: Path) -> None:
    scores = evaluate(run, "val", results=str(tmp_path / "found.json"))
    truths, found = COCO(), drawn()
    images = [{"id": number + 1, "height": 96, "width": 128} for number in range(len(found))]
    truths.dataset = {"images": images, "annotations": [], "categories": [{"id": number + 1} for number in range(3)]}
    for number, (_, target) in enumerate(found):
        pixels = instances.masks(target)[0].numpy()
        for row, mask in zip(target.table[0].tolist(), pixels, strict=True):
            if row[4] >= 0 and row[5] != 2:  # difficult ones, which COCO's tools know as ignored crowds alone
                about = {"id": len(truths.dataset["annotations"]) + 1, "image_id": number + 1, "area": row[6]}
                about |= {"category_id": int(row[4]) + 1, "iscrowd": int(row[5]), "bbox": [0, 0, 1, 1]}
                about["segmentation"] = coco_masks.encode(np.asfortranarray(mask, np.uint8))
                truths.dataset["annotations"].append(about)
    with redirect_stdout(io.StringIO()):
        truths.createIndex()
        evaluation = COCOeval(truths, truths.loadRes(str(tmp_path / "found.json")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert scores["mask_ap"] == pytest.approx(evaluation.stats[0], abs=0.02)  # but for what finds difficult ones
    assert scores["mask_ap50"] == pytest.approx(evaluation.stats[1], abs=0.04)
    assert scores["mask_ap50"] > 0.02


def test_windows_over_pictures_of_the_models_size_score_as_the_pictures_do(run: str) -> None:
    plain, sliding = (evaluate(run, "val", sliding=each) for each in (False, True))
    names = ("mask_ap", "mask_ap50", "ap50", "rows")
    assert {name: sliding[name] for name in names} == pytest.approx({name: plain[name] for name in names}, abs=5e-3)


def test_predictions_have_masks_in_the_pictures_own_pixels(run: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    image = drawn()[1][0]
    Image.fromarray(image).save(folder / "0.png")
    Image.fromarray(image).resize((256, 192), Image.Resampling.BILINEAR).save(folder / "1.png")
    predict(run, [str(folder)], str(out), confidence=0.05)
    found = json.loads((out / "detections.json").read_text())
    assert {each["file_name"] for each in found} == {"0.png", "1.png"}
    checked = 0
    for each in found:
        size = [96, 128] if each["file_name"] == "0.png" else [192, 256]
        assert each["segmentation"]["size"] == size
        if (area := coco_masks.area(each["segmentation"])) == 0:
            continue
        left, top, width, height = coco_masks.toBbox(each["segmentation"])
        box = each["bbox"]
        assert left >= box[0] - 0.5
        assert top >= box[1] - 0.5
        assert left + width <= box[0] + box[2] + 0.5
        assert top + height <= box[1] + box[3] + 0.5
        checked += area > 100
    assert checked > 2
    with Image.open(out / "overlays" / "1.png") as picture:
        assert picture.size == (256, 192)
    assert (out / "predictions.csv").read_text().startswith("path,class,score,left,top,right,bottom\n")


def test_the_exported_program_finds_what_predict_finds(run: str, tmp_path: Path) -> None:
    file = export(run, str(tmp_path / "found.pt2"), tta="flip")
    program = torch.export.load(file).module()
    predictor = Predictor(find_trained(run), sliding=False, overlap=0.0, tta="flip")
    shown = [image for image, _ in drawn()[:4]]
    with torch.no_grad():
        found, chances = program(predictor.preprocess.images(np.stack(shown)))
    assert (found.shape, chances.shape) == ((4, 100, 6), (4, 100, 24, 32))
    for number, picture in enumerate(shown):
        seen = Outlined().see(predictor, picture)
        count = len(seen.boxes)
        assert count == int((found[number, :, 5] >= 0).sum()) > 0
        np.testing.assert_allclose(found[number, :count], seen.boxes, atol=1e-4)
        images = predictor.preprocess.images(picture[None])
        with torch.no_grad():
            output = predictor.timed(images)
            rows = predictor.task.find(output, (96, 128))[0, :count]  # type: ignore[attr-defined]
            logits, stride = predictor.task.logits(rows, output[1][0])  # type: ignore[attr-defined]
        assert stride == 4
        torch.testing.assert_close(chances[number, :count], logits.sigmoid(), atol=1e-4, rtol=0)
        drawn_again = predictor.task.labels(output, (96, 128)).layers[0, :count]  # type: ignore[attr-defined]
        assert seen.pieces is not None
        for piece, layer in zip(seen.pieces, drawn_again.numpy(), strict=True):
            assert (piece.whole(96, 128) != layer).sum() <= 2  # rounding at rims of boxes
    facts = json.loads(Path(f"{file}.json").read_text())
    assert facts["output"].startswith("two tensors; (batch, 100, 6): left, top")
