"""A run keeps a copy of the user's own files that it is made of: what happens to the files later changes nothing.

That runs cannot be used once their model's file was moved or edited is what users of many projects report, such as
sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution 11 and Pay20Y/SEED 29.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from trainers import own_code
from trainers.__main__ import main
from trainers.fitting import RunResult, fit
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.predict import predict
from trainers.recipe import Recipe, Scale, resolve

MODEL = """
from torch import nn
{imports}

def build(*, image_size, channels, classes):
    {build}
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size[0] * image_size[1] * channels, classes))
"""
DEEPER = "return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Linear(9, classes))"


def write(path: Path, imports: str = "", build: str = "pass") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MODEL.format(imports=imports, build=build))
    return path


def recipe_of(model: str | Path, **changes: Any) -> Recipe:
    small = {"epochs": 1, "batch_size": 256, **changes}
    return resolve("digits.cnn").replace(model=str(model)).replace(**small)


def train(model: str | Path, storage: str | Path, run: str = "own", **changes: Any) -> RunResult:
    scale = Scale(workers=0, cpus_per_worker=1, storage=str(storage))
    return fit(recipe_of(model, **changes), scale=scale, run=run, name="digits.own")


def unfinished(result: RunResult) -> None:
    """Make a run look interrupted, so that the same command resumes it."""
    file = Path(result.folder) / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "interrupted"}))


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.py"))


def edit(path: Path) -> None:
    write(path, build=DEEPER)


def break_it(path: Path) -> None:
    path.write_text("def build(:")


@pytest.mark.parametrize("change", [move, edit, break_it, Path.unlink])
def test_a_finished_run_is_used_whatever_becomes_of_its_files(change: Any, tmp_path: Path) -> None:
    model = write(tmp_path / "project" / "mine.py")
    run = train(model, tmp_path / "runs")
    before = evaluate(run.folder)
    change(model)
    assert evaluate(run.folder)["loss"] == before["loss"]
    export(run.folder, str(tmp_path / "model.pt2"))
    (tmp_path / "pictures").mkdir()
    shutil.copy(Path(__file__).parents[2] / "trainers/report/example.png", tmp_path / "pictures")
    _, bad = predict(run.folder, [str(tmp_path / "pictures")], str(tmp_path / "out"))
    assert not bad


def test_run_json_names_the_file_where_it_lay_and_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write(tmp_path / "project" / "mine.py")
    monkeypatch.chdir(model.parent)
    run = train("./mine.py", tmp_path / "runs")
    kept = run.run["code"]["model"]
    assert run.run["recipe"]["model"] == kept["path"] == str(model)
    assert kept["files"] == own_code.hashes({"mine.py": model.read_bytes()})
    assert (Path(run.folder) / kept["copy"]).read_bytes() == model.read_bytes()


def test_a_run_of_our_own_modules_keeps_no_code(tmp_path: Path) -> None:
    assert "code" not in train("linear_cnn", tmp_path).run
    assert not (tmp_path / "own" / "code").exists()


def test_a_run_is_resumed_with_the_model_that_it_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write(tmp_path / "mine.py")
    unfinished(train(model, tmp_path / "runs"))
    edit(model)
    again = train(model, tmp_path / "runs")
    assert again.status == "finished"
    assert f"{model} has changed since the run own began" in " ".join(capsys.readouterr().err.split())
    assert [f"{model} has changed" in line for line in again.run["changed"]] == [True]
    assert again.run["recipe"]["model"] == str(model)


def test_the_same_file_elsewhere_is_the_same_model_and_another_one_is_not(tmp_path: Path) -> None:
    model = write(tmp_path / "mine.py")
    unfinished(train(model, tmp_path / "runs"))
    moved = tmp_path / "moved" / "renamed.py"
    moved.parent.mkdir()
    model.rename(moved)
    again = train(moved, tmp_path / "runs")
    assert "changed" not in again.run
    unfinished(again)
    other = write(tmp_path / "other.py", build=DEEPER)
    with pytest.raises(
        ValueError, match=r"exists with another recipe: model was '.*mine\.py' and is now '.*other\.py'"
    ):
        train(other, tmp_path / "runs")


def test_a_model_that_was_mended_before_anything_was_learned_is_used(tmp_path: Path) -> None:
    model = write(tmp_path / "mine.py")
    run = train(model, tmp_path / "runs")
    unfinished(run)
    shutil.rmtree(Path(run.folder) / "checkpoints")
    edit(model)
    again = train(model, tmp_path / "runs")
    assert again.run["code"]["model"]["files"] == own_code.hashes({"mine.py": model.read_bytes()})
    evaluate(again.folder)


NEIGHBOURS = {
    "blocks.py": "from deep.inner import WIDTH\n",
    "deep/__init__.py": "",
    "deep/inner.py": "from .more import WIDTH\n",
    "deep/more.py": "WIDTH = 5\n",
}


@pytest.mark.parametrize(
    ("imports", "build"),
    [
        ("from blocks import WIDTH", ""),
        ("", "from blocks import WIDTH; "),
        ("from deep import more", "WIDTH = more.WIDTH; "),
    ],
)
def test_what_a_file_imports_from_beside_it_is_kept_too(
    imports: str, build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for name, text in NEIGHBOURS.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    build += "return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.Linear(WIDTH, classes))"
    model = write(tmp_path / "project" / "mine.py", imports, build)
    run = train(model, tmp_path / "runs")
    before = evaluate(run.folder)["loss"]
    more = tmp_path / "project/deep/more.py"
    written = more.stat().st_mtime_ns
    more.write_text("WIDTH = 7\n")
    os.utime(more, ns=(written, written))  # of the same size in the same second: to Python the same file
    other = train(model, tmp_path / "runs", "other")
    assert other.run["code"]["model"]["copy"] != run.run["code"]["model"]["copy"]
    assert evaluate(run.folder)["loss"] == before
    shutil.rmtree(tmp_path / "project")
    assert evaluate(run.folder)["loss"] == before
    evaluate(other.folder)


def test_model_and_task_share_what_they_import(tmp_path: Path) -> None:
    model = write(tmp_path / "mine.py", "import shared", "shared.built = True")
    (tmp_path / "shared.py").write_text("built = False\n")
    task = tmp_path / "task.py"
    learns = (
        "import shared\n\nclass Shares(Classify):\n    def loss(self, output, target):\n        assert shared.built\n"
    )
    learns += "        return super().loss(output, target)\n"
    task.write_text(TASK.replace("TARGET", f"{learns}\n\nTARGET", 1).replace("return Classify", "return Shares"))
    assert train(model, tmp_path / "runs", task=str(task)).status == "finished"


def test_an_import_that_fails_says_which_file_and_where_it_lay(tmp_path: Path) -> None:
    model = write(tmp_path / "mine.py", "import nowhere_to_be_found")
    with pytest.raises(ValueError, match=r"mine\.py cannot be imported: ModuleNotFoundError.* name its folder in PYTH"):
        train(model, tmp_path / "runs")


def test_a_model_finds_what_lies_beside_its_file(tmp_path: Path) -> None:
    build = "import pathlib; assert (pathlib.Path(__file__).parent / 'beside.txt').read_text() == 'here'"
    model = write(tmp_path / "project" / "mine.py", build=build)
    (model.parent / "beside.txt").write_text("here")
    run = train(model, tmp_path / "runs")
    edit(model)
    evaluate(run.folder)


def test_a_helper_finds_what_lies_beside_it_while_it_is_where_it_was(tmp_path: Path) -> None:
    model = write(tmp_path / "project" / "mine.py", "import widths", "assert widths.read() == [3]")
    (model.parent / "widths.py").write_text(
        "import json\nfrom pathlib import Path\n\ndef read():\n"
        "    return json.loads(Path(__file__).with_name('widths.json').read_text())\n"
    )
    (model.parent / "widths.json").write_text("[3]")
    run = train(model, tmp_path / "runs")
    assert evaluate(run.folder)["rows"] == 359
    (model.parent / "widths.json").unlink()
    with pytest.raises(ValueError, match=rf"widths\.json.*copy of {model}: what that reads and imports must be there"):
        evaluate(run.folder)


def test_what_is_imported_from_elsewhere_and_not_kept_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "project/nets/mine.py", "import numpy, near\nfrom far.blocks import Block")
    (model.parent / "near.py").write_text("import json, torch, farther")
    (tmp_path / "project/far").mkdir()
    (tmp_path / "project/far/blocks.py").write_text("class Block: pass")
    (tmp_path / "project/farther.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "project"))
    found = own_code.find_uncopied(model)
    assert found == {"far": tmp_path / "project/far", "farther": tmp_path / "project/farther.py"}
    train(model, tmp_path / "runs")
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("of which the run keeps no copy") == 2


def test_a_run_goes_on_by_the_same_command_when_its_file_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "project" / "mine.py", "import parts")
    (model.parent / "parts.py").write_text("")
    flags = ["--workers", "0", "--cpus-per-worker", "1", "--storage", str(tmp_path / "runs"), "--run", "own"]
    flags += ["--batch-size", "256", "--schedule", "constant", "--warmup-epochs", "0"]
    command = ["train", "digits.cnn", "--model", str(model), *flags]
    assert main([*command, "--epochs", "1"]) == 0
    shutil.rmtree(model.parent)
    assert main([*command, "--epochs", "2"]) == 0
    assert "is no longer there; the run own goes on with its copy" in " ".join(capsys.readouterr().err.split())
    run = json.loads((tmp_path / "runs/own/run.json").read_text())
    assert (run["epochs_run"], run["code"]["model"]["path"], run["recipe"]["model"]) == (2, str(model), str(model))
    shutil.copytree(tmp_path / "runs/own", tmp_path / "runs/copied")
    assert main(["train", "digits.cnn", *flags, "--run", "copied"]) == 2
    assert "the run copied exists with another recipe: model was" in capsys.readouterr().err
    command[3] = str(tmp_path / "project" / "other.py")
    assert main(command) == 2
    assert "there is no file" in capsys.readouterr().err


def test_a_file_that_is_edited_within_a_process_is_read_again(tmp_path: Path) -> None:
    model = write(tmp_path / "mine.py")
    first = train(model, tmp_path / "runs", "first")
    write(model, build="return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, classes))")
    model.write_text(model.read_text().replace("classes):", "classes, width: int = 3):"))
    second = train(model, tmp_path / "runs", "second", model_args={"width": 4})
    assert second.status == "finished"
    for run in (first, second):
        evaluate(run.folder)


TASK = """
from trainers.tasks.classify import Classify
TARGET = "labels"


def outputs(classes):
    return classes


def make(classes, class_weights=None):
    return Classify(classes, class_weights)
"""


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    model, task = write(tmp_path / "model" / "mine.py"), tmp_path / "task" / "mine.py"
    task.parent.mkdir()
    task.write_text(TASK)
    run = train(model, tmp_path / "runs", task=str(task))
    shutil.rmtree(task.parent)
    shutil.rmtree(model.parent)
    evaluate(run.folder)


DATA = """
import numpy as np
from trainers.datasets import Item, Source


def source(data):
    items = [Item(path=None, name=str(n), targets=[n % 2]) for n in range(20)]
    return Source(classes=["a", "b"], channels=1, splits={"train": items[:16], "val": items[16:]})


def read(item):
    return [(np.full((8, 8, 1), GREY, np.uint8), item.targets[0])]
"""


def test_a_data_set_that_reads_otherwise_is_decoded_again(tmp_path: Path) -> None:
    data = tmp_path / "mine.py"
    means = []
    for grey in (50, 100):
        data.write_text(DATA.replace("GREY", str(grey)))
        run = train("linear_cnn", tmp_path / "runs", str(grey), dataset=str(data), dataset_args={})
        means.append(run.run["dataset"]["mean"][0] * 255)
    assert means == pytest.approx([50, 100])
    assert evaluate(str(tmp_path / "runs" / "50"))["rows"] == 4


def test_prepared_pictures_do_not_depend_on_where_the_file_of_a_data_set_lies(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(DATA.replace("GREY", "9"))
        train("linear_cnn", tmp_path / "runs", folder, dataset=str(tmp_path / folder / "mine.py"), dataset_args={})
    assert len(list((tmp_path / "runs" / "cache").iterdir())) == 1


def test_a_copy_that_was_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(write(tmp_path / "mine.py"), tmp_path / "runs")
    copy = Path(run.folder) / run.run["code"]["model"]["copy"]
    copy.write_text(copy.read_text() + "\n")
    assert main(["evaluate", run.folder]) == 2
    assert f"{copy} is not what the run copied from {tmp_path}/mine.py" in " ".join(capsys.readouterr().err.split())


def test_run_folders_of_older_versions_find_the_file_where_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "project" / "mine.py")
    run = train(model, tmp_path / "runs")
    file = Path(run.folder) / "run.json"
    facts = json.loads(file.read_text())
    del facts["code"]
    file.write_text(json.dumps({**facts, "recipe": {**facts["recipe"], "model": "./mine.py"}}))
    shutil.rmtree(Path(run.folder) / "code")
    monkeypatch.chdir(model.parent)
    before = evaluate(run.folder)
    unfinished(run)
    again = train("./mine.py", tmp_path / "runs")
    assert again.run["code"]["model"]["path"] == str(model)
    assert evaluate(run.folder)["loss"] == before["loss"]
    facts = json.loads(file.read_text())
    del facts["code"]
    file.write_text(json.dumps(facts))
    edit(model)
    assert main(["evaluate", run.folder]) == 2
    assert f"do not fit the model {model} as it is now" in " ".join(capsys.readouterr().err.split())
