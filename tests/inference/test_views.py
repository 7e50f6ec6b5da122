"""Test-time augmentation: outputs are means over views, and what is made of them says so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import scene, small_recipe, write_pairs
from PIL import Image
from torch import Tensor, nn

from trainers.__main__ import main
from trainers.data import sampler
from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.source import cache_folder, scan_files
from trainers.fitting import fit
from trainers.inference import Views, load
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.load import find_trained
from trainers.inference.predict import predict
from trainers.inference.predictions.pixels import segment
from trainers.inference.predictor import Predictor
from trainers.inference.views import Averaged
from trainers.recipe import Recipe, Scale
from trainers.storage.store import Store
from trainers.training.preprocess import Preprocess


class _Ramps(nn.Module):
    """Looks at pixels by where they lie, so that each view has an output of its own: of pixels, or of the whole."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        ramp = torch.arange(height * width, dtype=images.dtype).view(height, width).square()
        output = (images * ramp).tanh() * ramp
        return output.mean((2, 3)) if self.whole else output


def views(name: str, pictures: np.ndarray) -> list[np.ndarray]:
    """By NumPy; rotated ones are those of a square."""
    once = [pictures, pictures[..., ::-1]]
    if name == "flip":
        return once
    flips = [*once, *(view[..., ::-1, :] for view in once)]
    return flips if name == "flips" else [*flips, *(view.swapaxes(2, 3) for view in flips)]


@pytest.mark.parametrize(("name", "count"), [("flip", 2), ("flips", 4), ("rotations", 8)])
def test_outputs_are_means_over_all_views(name: Views, count: int) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 5, 5 if name == "rotations" else 4)) / 50
    seen = views(name, images)
    assert len({view.tobytes() for view in seen}) == count
    expected = np.mean([_Ramps(True)(torch.from_numpy(view.copy())).numpy() for view in seen], 0)
    found = Averaged(_Ramps(True), name)(torch.from_numpy(images))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["flip", "flips", "rotations"])
def test_masks_are_turned_back_so_that_a_view_of_a_picture_has_that_view_of_its_mask(name: Views) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 5, 5)) / 50
    model, pixelwise = Averaged(_Ramps(False), name), Averaged(nn.Tanh(), name)
    whole = model(torch.from_numpy(images)).numpy()
    for view, mask in zip(views(name, images), views(name, whole), strict=True):
        np.testing.assert_allclose(model(torch.from_numpy(view.copy())), mask, rtol=1e-9)
    np.testing.assert_allclose(pixelwise(torch.from_numpy(images)), np.tanh(images), rtol=1e-12)
    by_hand = (images * np.arange(25).reshape(5, 5) ** 2, images[..., ::-1] * np.arange(25).reshape(5, 5) ** 2)
    one, other = (np.tanh(each) * np.arange(25).reshape(5, 5) ** 2 for each in by_hand)
    if name == "flip":
        np.testing.assert_allclose(whole, (one + other[..., ::-1]) / 2, rtol=1e-12)


def test_half_precision_is_averaged_in_full() -> None:
    images = torch.rand(1, 1, 3, 3).bfloat16()
    assert Averaged(nn.Identity(), "flips")(images).dtype == torch.float32


# ---- what is made of them ----

HERE = Scale(workers=0, cpus_per_worker=1)


@pytest.fixture(scope="module")
def digits(storage: Path) -> str:
    return fit(small_recipe("digits.cnn", epochs=1), scale=HERE.replace(storage=str(storage)), run="digits").folder


@pytest.fixture(scope="module")
def masks(storage: Path) -> str:
    rng = np.random.default_rng(7)
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            files = tuple(storage / "pairs" / split / kind / f"{index}.png" for kind in ("images", "masks"))
            write_pairs({(files[0], files[1]): scene(rng, 3, 32, 40)})
    own = {"dataset": "mask_folder", "image_size": (32, 40), "dataset_args": {"classes": 3}, "resize": "stretch"}
    recipe = small_recipe("unet.camvid", epochs=1, lr=0.01, precision="fp32", **own)
    return fit(recipe, scale=HERE.replace(storage=str(storage), data=str(storage / "pairs")), run="masks").folder


def mean_output(run: str, pictures: np.ndarray) -> Tensor:
    """Over flips, by hand; `pictures` uint8 (N, H, W, C)."""
    found = json.loads((Path(run) / "run.json").read_text())
    recipe = Recipe.from_json(found["recipe"])
    state, world = load.restore(recipe, found["dataset"], Store(run))
    raw = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).to(world.dtype)
    images = Preprocess(recipe, found["dataset"], world).normalise(raw)
    outputs = []
    with torch.no_grad():
        for axes in ((), (3,), (2,), (2, 3)):
            output = state.model.eval()(images.flip(axes))
            outputs.append(output.flip(axes) if output.ndim == 4 else output)
    return torch.stack(outputs).double().mean(0)


def test_scores_are_those_of_mean_outputs_and_say_so(
    digits: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, scores = evaluate(digits, "val"), evaluate(digits, "val", tta="flips")
    assert "tta" not in plain
    assert scores["tta"] == "flips"
    recipe = Recipe.from_json(json.loads((Path(digits) / "run.json").read_text())["recipe"])
    cached = Cached(prepare(recipe, scan_files(recipe, None), cache_folder(Store(storage))))
    whole = next(cached.batches("val", [sampler.one_pass(np.arange(cached.meta["rows"]["val"]))]))
    output, target = mean_output(digits, whole.images), torch.from_numpy(whole.targets).long()
    assert scores["accuracy"] == pytest.approx((output.argmax(1) == target).double().mean().item())
    assert scores["loss"] == pytest.approx(nn.functional.cross_entropy(output, target).item(), rel=1e-5)
    assert scores["accuracy"] != plain["accuracy"]
    assert main(["evaluate", digits, "--split", "val", "--tta", "flips"]) == 0
    assert "tta                  flips\n" in capsys.readouterr().out
    assert main(["evaluate", digits, "--split", "val"]) == 0
    assert "tta" not in capsys.readouterr().out


@pytest.mark.slow  # what torch.export imports takes seconds
def test_the_exported_program_averages_as_predict_does(digits: str, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    table, _ = predict(digits, [str(tmp_path)], str(tmp_path / "out"), tta="flips")
    assert json.loads((tmp_path / "out/predictions.json").read_text())["tta"] == "flips"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    expected = mean_output(digits, pictures[..., None])
    program = torch.export.load(export(digits, str(tmp_path / "model.pt2"), tta="flips")).module()
    about = json.loads((tmp_path / "model.pt2.json").read_text())
    assert about["tta"] == "flips"
    mean, std = (torch.tensor(about[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    output = program((torch.from_numpy(pictures)[:, None] / 255 - mean) / std)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)
    for row, probabilities in zip(rows, expected.softmax(1).tolist(), strict=True):
        assert float(row["probability"]) == pytest.approx(max(probabilities), abs=1e-4)
        assert row["class"] == about["classes"][int(np.argmax(probabilities))]


def test_rows_of_other_views_are_not_mixed(digits: str, tmp_path: Path) -> None:
    """Whole tables are written anew anyway; a part that was left by other views is not gone on with."""
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / "0.png")
    found = []
    for tta in (None, "rotations", None):
        table, _ = predict(digits, [str(tmp_path / "0.png")], str(tmp_path / "out"), tta=tta)  # type: ignore[arg-type]
        assert json.loads(table.with_name("predictions.json").read_text())["tta"] == tta
        found.append(table.read_text())
    assert found[0] == found[2] != found[1]


def test_masks_and_sliding_windows_are_averaged(masks: str) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
    expected = mean_output(masks, picture[None]).argmax(1)[0].numpy()
    for sliding in (False, True):
        found = segment(Predictor(find_trained(masks), sliding, overlap=0.5, tta="flips"), picture)
        assert (found == expected).mean() > 0.999, sliding  # of nearly equal logits
    larger = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    predictor = Predictor(find_trained(masks), sliding=True, overlap=0.5, tta="flips")
    turned = segment(predictor, larger[::-1, ::-1].copy())[::-1, ::-1]
    assert (segment(predictor, larger) == turned).mean() > 0.99
    scores = evaluate(masks, native=True, tta="flip")
    assert (scores["tta"], scores["rows"]) == ("flip", 2)


def test_views_that_pictures_do_not_have_are_refused(
    masks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = r"tta=rotations turns pictures by 90 degrees, and those of this run are 32x40, not square; give flips"
    out = str(tmp_path / "out")
    for command in (
        ["evaluate", masks],
        ["predict", masks, str(tmp_path), "--out", out],
        ["export", masks, "--out", out],
    ):
        assert main([*command, "--tta", "rotations"]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match=r"there is no tta 'flop'.*flip"):
        evaluate(masks, tta="flop")  # type: ignore[arg-type]
