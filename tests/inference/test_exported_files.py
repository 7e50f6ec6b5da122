"""A file that was exported of a run is a model like the run: evaluate, predict, windows and views work on it alike."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small import small_data, small_recipe
from PIL import Image

import trainers
from trainers.__main__ import main
from trainers.fitting import fit
from trainers.inference import exported
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.exported import int8
from trainers.inference.predict import predict
from trainers.recipe import Scale, resolve

SUFFIXES = [".pt2", ".onnx"]
FAST = ["digits.cnn", "unet.camvid"]
SLOW = ["shapes.fcos", "shapes.fcos_masks", "folder.tune_labels", "folder.tune_values", "unet.drone_binary"]
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


class Runs:
    """Small runs, each trained and exported once."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self._files: dict[tuple[str, str], Path] = {}

    def folder(self, name: str) -> str:
        """Of a run of a recipe."""
        if not (self.storage / name).exists():
            raw = small_data(name, self.storage / "raw" / name)
            scale = Scale(workers=0, cpus_per_worker=1, storage=str(self.storage), data=raw)
            fit(small_recipe(name, epochs=1, precision="fp32"), scale=scale, run=name)
        return str(self.storage / name)

    def file(self, name: str, suffix: str) -> str:
        """Exported of it."""
        if (name, suffix) not in self._files:
            out = self.storage / f"files/{name}{suffix}"
            self._files[name, suffix] = export(self.folder(name), str(out))
        return str(self._files[name, suffix])


@pytest.fixture(scope="module")
def runs(storage: Path) -> Runs:
    return Runs(storage)


def assert_equal_scores(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, float) and name != "ms_per_image":
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True), name
        elif not isinstance(value, float | dict):
            assert found[name] == value, name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_scores_as_its_run(runs: Runs, name: str, suffix: str) -> None:
    assert_equal_scores(evaluate(runs.file(name, suffix), "val"), evaluate(runs.folder(name), "val"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["digits.cnn", pytest.param("shapes.fcos", marks=pytest.mark.slow)])
def test_views_of_a_file_are_averaged_as_those_of_its_run(runs: Runs, name: str, suffix: str) -> None:
    file, run = runs.file(name, suffix), runs.folder(name)
    assert_equal_scores(evaluate(file, "val", tta="flips"), evaluate(run, "val", tta="flips"))
    assert evaluate(file, "val", tta="flips")["loss"] != pytest.approx(evaluate(file, "val")["loss"], rel=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["unet.camvid", pytest.param("shapes.fcos", marks=pytest.mark.slow)])
def test_windows_of_a_file_score_as_those_of_its_run(runs: Runs, name: str, suffix: str) -> None:
    file, run = runs.file(name, suffix), runs.folder(name)
    assert_equal_scores(evaluate(file, "val", sliding=True), evaluate(run, "val", sliding=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_predicts_as_its_run(runs: Runs, tmp_path: Path, name: str, suffix: str) -> None:
    """Also what has no row, and what was predicted before."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).resize((64, 48 + 8 * number)).save(pictures / f"{number}.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    options: dict[str, Any] = {"confidence": 0.0} if "fcos" in name else {}
    tables = []
    for out, model in (("a", runs.folder(name)), ("b", runs.file(name, suffix))):
        table, bad = predict(model, [str(pictures)], str(tmp_path / out), **options)
        assert bad == [str(pictures / "broken.png")]
        tables.append(list(csv.reader(table.read_text().splitlines())))
    if "unet" in name:  # at the pictures' own size windows stand in for a whole picture
        assert [row[:2] for row in tables[1]] == [row[:2] for row in tables[0]]
        return
    assert len(tables[0]) == len(tables[1])
    for mine, theirs in zip(*tables, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            try:
                assert float(one) == pytest.approx(float(other), rel=2e-3, abs=2e-3)
            except ValueError:
                assert one == other


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masks_of_the_image_size_are_those_of_the_run_and_others_are_made_by_windows(runs: Runs, suffix: str) -> None:
    model = trainers.open_model(runs.file("unet.camvid", suffix))
    whole = trainers.open_model(runs.folder("unet.camvid"))
    from trainers.inference.predictions.pixels import segment

    height, width = model.recipe.image_size
    rng = np.random.default_rng(1)
    picture = np.kron(rng.integers(0, 256, (3, 3, 3)), np.ones((height // 3, width // 3, 1))).astype(np.uint8)
    np.testing.assert_array_equal(segment(model, picture), segment(whole, picture))
    for own in ((height, 2 * width), (2 * height, width), (height // 2, width)):
        labels = segment(model, np.resize(picture, (*own, 3)))
        assert labels.shape == own
        assert labels.max() < len(model.classes)


def test_a_model_can_be_called(runs: Runs, tmp_path: Path) -> None:
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(15, 20)).save(tmp_path / "one.png")
    outputs = []
    for name in (runs.folder("digits.cnn"), *(runs.file("digits.cnn", suffix) for suffix in SUFFIXES)):
        model = trainers.open_model(name)
        assert model.recipe.model == "linear_cnn" if "linear" in model.recipe.model else model.recipe.model
        assert model.classes == [str(number) for number in range(10)]
        picture = model.read(str(tmp_path / "one.png"))
        outputs.append(model(np.stack([picture, picture])))
        labels = model.task.labels(outputs[-1], model.recipe.image_size)
        assert labels[0] == labels[1]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-4)


def test_an_onnx_file_is_used_without_anything_of_ours(runs: Runs) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(runs.file("digits.cnn", ".onnx"))
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == [str(number) for number in range(10)]
    beside = json.loads(Path(runs.file("digits.cnn", ".onnx") + ".json").read_text())
    assert beside["sha256"] == hashlib.sha256(Path(runs.file("digits.cnn", ".onnx")).read_bytes()).hexdigest()
    assert json.loads(told["preprocessing"]) == beside["preprocessing"]
    assert [step["step"] for step in beside["preprocessing"]][-2:] == ["resize", "crop"]
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("pictures", "tensor(uint8)", [*beside["image_size"], 1])
    for rows in (1, 5):
        pictures = np.random.default_rng(0).integers(0, 256, (rows, *beside["image_size"], 1), dtype=np.uint8)
        chances, output = session.run(None, {"pictures": pictures})
        np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
        model = trainers.open_model(runs.folder("digits.cnn"))
        np.testing.assert_allclose(output, model(pictures), rtol=1e-3, atol=1e-4)


def test_a_file_says_which_run_it_is_of_and_nothing_of_where_it_was_written(runs: Runs) -> None:
    content = Path(runs.file("unet.camvid", ".onnx")).read_bytes()
    told = exported.FORMATS[".onnx"].told(Path(runs.file("unet.camvid", ".onnx")))
    assert told["trained"]["name"] == told["run"] == "unet.camvid"
    assert told["trained"]["recipe"] == resolve_again(told["trained"]["recipe"])
    assert told["layers"]["folded"] == told["layers"]["normalisations"] > 0
    assert str(Path(trainers.__file__).parent).encode() not in content


def resolve_again(recipe: dict[str, Any]) -> Any:
    from trainers.recipe import Recipe

    return Recipe.from_json(recipe).to_json()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_changed_or_is_another_is_refused(
    runs: Runs, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(runs.file("digits.cnn", suffix))
    moved = tmp_path / f"moved{suffix}"
    shutil.copy(whole, moved)
    assert evaluate(str(moved), "val")["rows"] > 0  # without its JSON too
    cases = {f"gone{suffix}": "there is no file"}
    shutil.copy(f"{whole}.json", tmp_path / f"cut{suffix}.json")
    (tmp_path / f"cut{suffix}").write_bytes(whole.read_bytes()[:-7])
    cases[f"cut{suffix}"] = "cannot be opened" if suffix == ".onnx" else "is no torch.export program"
    shutil.copy(f"{whole}.json", tmp_path / f"other{suffix}.json")
    other = runs.file("unet.camvid", suffix)
    shutil.copy(other, tmp_path / f"other{suffix}")
    cases[f"other{suffix}"] = "is not the file that"
    (tmp_path / "model.engine").write_bytes(b"")
    cases["model.engine"] = "is another format; give .pt2 or .onnx"
    for name, words in cases.items():
        assert main(["evaluate", str(tmp_path / name)]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert words in said, name
        assert said.count("error:") == 1


def test_a_program_of_others_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.rand(2, 2),)), tmp_path / "other.pt2")
    with pytest.raises(ValueError, match=r"other\.pt2 does not say which recipe it is of: .*; export the run again"):
        trainers.open_model(str(tmp_path / "other.pt2"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_one_line_says_what_to_install(
    runs: Runs, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = runs.folder("digits.cnn"), runs.file("digits.cnn", ".onnx")
    out = tmp_path / "m.onnx"
    monkeypatch.setitem(sys.modules, package, None)
    commands = [["export", run, "--out", str(out)], ["evaluate", file]]
    for command in commands if package == "onnxruntime" else commands[:1]:
        assert main(command) == 2
        said = capsys.readouterr().err.strip()
        assert said.endswith(f"needs {package}: pip install 'trainyard[onnx]'")
        assert said.count("\n") == 0
    assert not out.exists()
    assert main(["evaluate", run]) == 0
    assert main(["export", run, "--out", str(tmp_path / "m.pt2")]) == 0


ODD = """
import torch

class Odd(torch.nn.Module):
    def forward(self, x):
        return x + torch.special.bessel_j0(x.detach())

def build(*, image_size, channels, classes):
    size = channels * image_size[0] * image_size[1]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, classes), torch.nn.Sequential(Odd()))
"""


def test_a_failed_export_names_the_layer_and_leaves_the_old_file(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    recipe = resolve("digits.cnn", epochs=1, model=str(tmp_path / "odd.py"), precision="fp32", lr=1e-3)
    run = fit(recipe, scale=Scale(workers=0, storage=str(storage)), run="odd", name="odd").folder
    out = tmp_path / "m.onnx"
    out.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"its layer 2\.0 \(Odd\) cannot be written as ONNX: .*bessel_j0.*; FILE\.pt2"):
        export(run, str(out))
    assert out.read_bytes() == b"old"
    with pytest.raises(ValueError, match=r"--int8 is for FILE\.onnx"):
        export(run, str(tmp_path / "m.pt2"), int8=True)
    with pytest.raises(ValueError, match=r"\.tflite is another format; give FILE\.pt2 or FILE\.onnx"):
        export(run, str(tmp_path / "m.tflite"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "odd.py"]


def test_int8_is_scored_and_smaller(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, plain = runs.folder("digits.cnn"), Path(runs.file("digits.cnn", ".onnx"))
    out = tmp_path / "m.onnx"
    assert main(["export", run, "--out", str(out), "--int8"]) == 0
    said = capsys.readouterr().err
    about = json.loads(Path(f"{out}.json").read_text())["int8"]
    assert about["weight_bits"] == (8 if int8.overflows() is False else 7)
    assert ("no VNNI" in said) == bool(int8.overflows())
    assert f"{about['metric']} {about['value']:.4f} in int8, {about['before']:.4f} as trained" in " ".join(said.split())
    assert evaluate(str(out), "val")[about["metric"]] == pytest.approx(about["value"])
    assert about["value"] > about["before"] - 0.03
    assert out.stat().st_size < plain.stat().st_size
    again = export(run, str(tmp_path / "again.onnx"), int8=True)
    assert again.read_bytes() == out.read_bytes()


def test_calibration_pictures_are_drawn_by_the_seed_from_the_training_split(tmp_path: Path) -> None:
    from trainers.data.source import scan_files

    recipe = small_recipe("resnet.r18")
    source = scan_files(recipe, small_data("resnet.r18", tmp_path / "raw"))
    first, again = (list(int8.calibration(recipe, source, 11)) for _ in range(2))
    assert [batch.shape for batch in first] == [(8, 48, 48, 3), (3, 48, 48, 3)]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    (other,) = (batch for batch in int8.calibration(recipe.replace(seed=1), source, 8))
    assert not np.array_equal(other, first[0])
    rows = source.rows["train"]
    assert sum(len(batch) for batch in int8.calibration(recipe, source, 10**6)) == rows
