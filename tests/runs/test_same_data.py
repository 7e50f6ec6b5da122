"""A run is resumed on the data and versions that it began with, or says what changed; other data is scored by the run's
own classes and normalisation.

Class numbers that shift when a folder is added are reported of many projects: dusty-nv/jetson-inference 1688,
ultralytics/ultralytics 13936.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small import small_data, small_recipe
from PIL import Image

from trainers.__main__ import main
from trainers.checks import list_source
from trainers.data.contract import list_scored
from trainers.data.source import scan_files
from trainers.fitting import RunResult, fit
from trainers.inference.evaluate import evaluate
from trainers.inference.predict import predict
from trainers.recipe import Recipe, Scale, resolve
from trainers.runs import provenance

HERE = Scale(workers=0, cpus_per_worker=1)
RNG = np.random.default_rng(0)


def draw(folder: Path, name: str, each: int = 6, start: int = 0) -> None:
    """Pictures of a class: its letter decides the colour."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(start, start + each):
        base = np.array([60 * (ord(name[-1]) - 97), 120, 255 - 60 * (ord(name[-1]) - 97)])
        pixels = (base + RNG.integers(-20, 20, (12, 12, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{index}.png")


def draw_splits(folder: Path, classes: str = "abc", splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        for name in classes:
            draw(folder / split, name)
    return folder


def recipe_of(**changes: Any) -> Recipe:
    small = {"image_size": (8, 8), "stored_size": None, "epochs": 2, "batch_size": 6, "lr": 0.05, "warmup_epochs": 0.0}
    return resolve("resnet.r18").replace(model="linear_cnn", precision="fp32").replace(**{**small, **changes})


def train(root: Path, data: Path, **changes: Any) -> RunResult:
    return fit(recipe_of(**changes), scale=HERE.replace(storage=str(root / "runs"), data=str(data)), run="r")


def unfinished(result: RunResult, **changes: Any) -> None:
    """Make a run look interrupted, so that the same command resumes it."""
    file = Path(result.folder) / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "interrupted", **changes}))


# ---- resuming ----


def rename_class(data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "c").rename(data / split / "0")


def add_class(data: Path) -> None:
    draw(data / "train", "d")


def add_picture(data: Path) -> None:
    draw(data / "train", "b", 1, start=90)


def remove_picture(data: Path) -> None:
    (data / "val" / "a" / "0.png").unlink()


def swap_classes(data: Path) -> None:
    (data / "train" / "a" / "0.png").rename(data / "train" / "b" / "zero.png")
    (data / "train" / "b" / "0.png").rename(data / "train" / "a" / "zero.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_class, r"3 classes a, b, c; the data now have 3, without c and with 0: put"),
        (
            add_class,
            r"the data now have 4, with d: put the data back as they were, or give another --run \(--init-from r",
        ),
        (add_picture, r"began with 18 train pictures \(now 19\) and 18 val pictures \(now 18\): put"),
        (remove_picture, r"18 val pictures \(now 17\)"),
        (swap_classes, r"some now have other names or classes"),
    ],
)
def test_other_classes_or_pictures_are_refused_before_they_are_decoded(
    change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    data = draw_splits(tmp_path / "data")
    unfinished(train(tmp_path, data))
    prepared = sorted((tmp_path / "runs" / "cache").iterdir())
    change(data)
    with pytest.raises(ValueError, match=words):
        train(tmp_path, data)
    assert sorted((tmp_path / "runs" / "cache").iterdir()) == prepared


def test_other_classes_are_refused_in_runs_of_older_versions_too(tmp_path: Path) -> None:
    data = draw_splits(tmp_path / "data")
    run = train(tmp_path, data)
    facts = {key: value for key, value in run.run["dataset"].items() if key != "listing"}
    unfinished(run, dataset=facts)
    assert train(tmp_path, data).status == "finished"
    unfinished(run, dataset=facts)
    add_picture(data)
    with pytest.raises(ValueError, match=r"18 train pictures \(now 19\)"):
        train(tmp_path, data)


def touch(data: Path) -> Path:
    for path in data.rglob("*.png"):
        os.utime(path, (1, 1))
    return data


def move(data: Path) -> Path:
    return data.rename(data.with_name("moved"))


def add_test_split(data: Path) -> Path:
    return draw_splits(data, splits=("test",))


@pytest.mark.parametrize("change", [lambda data: data, touch, move, add_test_split])
def test_data_that_is_the_same_goes_on_without_a_word(
    change: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw_splits(tmp_path / "data")
    unfinished(train(tmp_path, data))
    data = change(data)
    capsys.readouterr()
    again = train(tmp_path, data)
    assert again.status == "finished"
    assert "changed" not in again.run
    assert "warning" not in capsys.readouterr().err


def test_names_that_a_system_writes_otherwise_are_the_same(tmp_path: Path) -> None:
    """Copied from macOS to Linux, accents may stand apart from their letters."""
    data = draw_splits(tmp_path / "data")
    for split in ("train", "val"):
        for index, name in enumerate(("\u00fc", "a\u00e9", "\uac00")):
            (data / split / "a" / f"{index}.png").rename(data / split / "a" / f"{name}.png")
    before = list_source(scan_files(recipe_of(), str(data)))
    for path in sorted(data.rglob("*.png")):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert len(unicodedata.normalize("NFD", "\uac00")) == 2
    assert list_source(scan_files(recipe_of(), str(data))) == before


def test_pictures_that_were_edited_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_splits(tmp_path / "data")
    run = train(tmp_path, data)
    unfinished(run)
    Image.new("RGB", (12, 12), "red").save(data / "train" / "a" / "0.png")
    again = train(tmp_path, data)
    assert "the pictures or masks of image_folder are not those that the run r began with" in " ".join(
        capsys.readouterr().err.split()
    )
    assert len(again.run["changed"]) == 1
    assert again.run["dataset"]["mean"] == run.run["dataset"]["mean"]


def test_other_versions_are_told_of_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw_splits(tmp_path / "data")
    run = train(tmp_path, data)
    unfinished(run, versions={**run.run["versions"], "torch": "1.0", "ray": "2.0"}, commit="old")
    monkeypatch.setattr("trainers.runs.provenance.commit", lambda: "new")
    again = train(tmp_path, data)
    [line] = again.run["changed"]
    now = provenance.versions()
    for words in (f"torch 1.0 (now {now['torch']})", f"ray 2.0 (now {now['ray']})", "commit old (now new)"):
        assert words in line
    assert "torchvision" not in line
    assert "versions have changed" in " ".join(capsys.readouterr().err.split())


# ---- scoring other data ----


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    root = tmp_path_factory.mktemp("scored")
    return train(root, draw_splits(root / "data"), epochs=6)


def accuracy(run: RunResult, folder: Path, out: Path) -> tuple[int, float]:
    """How many pictures there are below a folder, and the share of which `predict` gives the class of their folder."""
    table = predict(run.folder, [str(folder)], str(out))[0]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    return len(rows), float(np.mean([row["path"].split("/")[-2] == row["class"] for row in rows]))


def lay_test(root: Path) -> Path:
    draw_splits(root, splits=("test",))
    return root / "test"


def lay_test_set(root: Path) -> Path:
    draw_splits(root, splits=("my_test_set",))
    return root / "my_test_set"


def lay_classes(root: Path) -> Path:
    draw_splits(root, splits=(".",))
    return root


def lay_fewer(root: Path) -> Path:
    draw_splits(root, "ac")
    return root / "val"


def lay_darker(root: Path) -> Path:
    draw_splits(root)
    for path in root.rglob("*.png"):
        Image.open(path).point(lambda value: value // 2).save(path)
    return root / "val"


def lay_unlabelled_test(root: Path) -> Path:
    draw_splits(root)
    (root / "test").mkdir()
    shutil.copy(root / "val" / "a" / "0.png", root / "test" / "0.png")
    return root / "val"


@pytest.mark.parametrize(
    "lay", [lay_test, lay_test_set, lay_classes, lay_fewer, lay_darker, lay_unlabelled_test], ids=lambda f: f.__name__
)
def test_other_data_is_scored_as_predict_sees_it(lay: Callable[[Path], Path], run: RunResult, tmp_path: Path) -> None:
    scored = lay(tmp_path / "other")
    scores = evaluate(run.folder, data=str(tmp_path / "other"))
    assert (scores["rows"], scores["accuracy"]) == pytest.approx(accuracy(run, scored, tmp_path / "out"))
    assert scores["classes"] == ["a", "b", "c"]


def test_a_class_that_the_run_does_not_know_is_refused_by_name(
    run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_splits(tmp_path / "other", "acde")
    assert main(["evaluate", run.folder, "--data", str(tmp_path / "other")]) == 2
    assert "holds classes that the run r does not know: d, e; it knows a, b, c" in capsys.readouterr().err
    draw(tmp_path / "some" / "val", "a")
    draw(tmp_path / "some" / "train", "d")
    assert evaluate(run.folder, data=str(tmp_path / "some"))["rows"] == 6  # of val, where it does not occur


def test_the_split_that_is_asked_for_is_scored(run: RunResult, tmp_path: Path) -> None:
    draw_splits(tmp_path / "other", splits=("train", "test"))
    draw(tmp_path / "other" / "test", "b", 3, start=50)
    data = str(tmp_path / "other")
    assert [evaluate(run.folder, split, data=data)["rows"] for split in (None, "test", "train")] == [21, 21, 18]
    assert evaluate(run.folder, "val", data=data)["rows"] < 18  # a share of train, as training would take it
    draw_splits(tmp_path / "only", splits=("test",))
    with pytest.raises(ValueError, match=r"the data has no split 'val'; it has test"):
        evaluate(run.folder, "val", data=str(tmp_path / "only"))


def test_class_folders_alone_are_split_as_in_training_where_they_are_its_own(tmp_path: Path) -> None:
    data = draw_splits(tmp_path / "data", splits=(".",))
    run = train(tmp_path, data, dataset_args={"val_share": 0.2, "test_share": 0.2})
    expected = evaluate(run.folder)
    assert expected["split"] == "test"
    moved = str(data.rename(tmp_path / "moved"))
    again = evaluate(run.folder, data=moved)
    assert {**again, "ms_per_image": 0} == {**expected, "ms_per_image": 0}
    draw(Path(moved), "a", 1, start=70)
    whole = evaluate(run.folder, data=moved)
    assert (whole["split"], whole["rows"]) == ("all", 19)
    assert evaluate(run.folder, "val", data=moved)["rows"] < 19


def grow(data: Path) -> None:
    draw(data, "b", 4, start=60)


def rename_picture(data: Path) -> None:
    (data / "a" / "0.png").rename(data / "a" / "zero.png")


@pytest.mark.parametrize("change", [grow, rename_picture])
def test_data_that_changed_where_it_lay_is_told_of_when_it_is_scored(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    data = draw_splits(tmp_path / "data", splits=(".",))
    run = train(tmp_path, data, epochs=1, dataset_args={"val_share": 0.2, "test_share": 0.2})
    said: list[str] = []
    evaluate(run.folder, "val", warn=said.append)
    assert said == []
    change(data)
    evaluate(run.folder, "val", warn=said.append)
    [warning] = said
    assert f"the run r began with {run.run['dataset']['rows']['train']} train pictures" in warning
    assert "may have learned from some" in warning


def test_a_split_is_scored_where_the_others_were_removed(tmp_path: Path) -> None:
    data = draw_splits(tmp_path / "data")
    run = train(tmp_path, data, epochs=1)
    expected = evaluate(run.folder)
    shutil.rmtree(data / "train")
    assert evaluate(run.folder)["accuracy"] == evaluate(run.folder, data=str(data))["accuracy"] == expected["accuracy"]
    with pytest.raises(ValueError, match="no train split"):
        evaluate(run.folder, "train")


def test_nothing_is_kept_of_data_that_is_scored_once(run: RunResult, tmp_path: Path) -> None:
    cache = Path(run.folder).parent / "cache"
    before = sorted(cache.iterdir())
    draw_splits(tmp_path / "other", splits=("test",))
    evaluate(run.folder, data=str(tmp_path / "other"))
    assert sorted(cache.iterdir()) == before


def test_pictures_that_cannot_be_read_are_named_or_left_out(tmp_path: Path) -> None:
    data = draw_splits(tmp_path / "data")
    run = train(tmp_path, data)
    (draw_splits(tmp_path / "other", splits=("test",)) / "test" / "a" / "0.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"test/a/0\.png"):
        evaluate(run.folder, data=str(tmp_path / "other"))
    unfinished(run, recipe={**run.run["recipe"], "on_bad_image": "skip"})
    said: list[str] = []
    assert evaluate(run.folder, data=str(tmp_path / "other"), warn=said.append)["rows"] == 17
    assert "1 pictures cannot be decoded and are left out: test/a/0.png" in said[0]


def test_levels_of_an_order_keep_their_places(tmp_path: Path) -> None:
    data = draw_splits(tmp_path / "data", "abcd")
    run = train(tmp_path, data, task="ordinal", epochs=4)
    expected = evaluate(run.folder, "val")
    for name in "ab":
        shutil.rmtree(data / "val" / name)
    draw_splits(tmp_path / "other", "cd", splits=("test",))
    scores = evaluate(run.folder, data=str(tmp_path / "other"))
    assert len(scores["classes"]) == len(expected["classes"]) == 4
    assert scores["accuracy"] == pytest.approx(accuracy(run, tmp_path / "other" / "test", tmp_path / "out")[1])


# ---- masks ----

CSV = "name,id\nsky,0\nroad,7\ncar,9\n"


def draw_masks(folder: Path, ids: tuple[int, ...], count: int = 4) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        mask = np.array(ids, np.uint8)[RNG.integers(0, len(ids), (16, 16))]
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
        Image.fromarray(np.repeat(mask[..., None] * 20, 3, 2)).save(folder / "images" / f"{index}.png")


def train_masks(root: Path, data: Path, **args: Any) -> RunResult:
    recipe = small_recipe(
        "unet.camvid", dataset="mask_folder", image_size=(16, 16), epochs=3, lr=1e-2, dataset_args=args
    )
    return fit(recipe, scale=HERE.replace(storage=str(root / "runs"), data=str(data)), run="m")


@pytest.mark.parametrize("native", [False, True])
def test_masks_of_other_data_are_numbered_as_the_runs(native: bool, tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw_masks(tmp_path / "data" / split, (0, 7, 9))
    (tmp_path / "data" / "classes.csv").write_text(CSV)
    run = train_masks(tmp_path, tmp_path / "data")
    (tmp_path / "data" / "train").rename(tmp_path / "train")
    shutil.copytree(tmp_path / "data", tmp_path / "again")
    (tmp_path / "again" / "classes.csv").write_text("name,id\ncar,9\nroad,7\nsky,0\n")
    draw_masks(tmp_path / "bare", (7, 9))
    (tmp_path / "bare" / "classes.csv").write_text("name,id\ncar,7\nroad,9\n")  # ids of its own
    (tmp_path / "train").rename(tmp_path / "data" / "train")
    expected = evaluate(run.folder, native=native)
    scores = evaluate(run.folder, data=str(tmp_path / "again"), native=native)
    assert scores["accuracy"] == pytest.approx(expected["accuracy"])
    bare = evaluate(run.folder, data=str(tmp_path / "bare"), native=native)
    assert (bare["split"], bare["rows"], bare["classes"]) == ("all", 4, ["sky", "road", "car"])
    out = predict(run.folder, [str(tmp_path / "bare" / "images")], str(tmp_path / "out"))[0].parent
    if native:
        right = [
            np.array([0, 2, 1])[(mask == 7) * 1 + (mask == 9) * 2] == np.asarray(Image.open(out / "masks" / f"{n}.png"))
            for n in range(4)
            for mask in [np.asarray(Image.open(tmp_path / "bare" / "masks" / f"{n}.png"))]
        ]
        assert bare["accuracy"] == pytest.approx(float(np.mean(right)), abs=1e-6)


def test_masks_of_unknown_classes_or_without_their_table_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw_masks(tmp_path / "data" / split, (0, 7, 9))
    (tmp_path / "data" / "classes.csv").write_text(CSV)
    run = train_masks(tmp_path, tmp_path / "data")
    draw_masks(tmp_path / "other", (0, 7))
    with pytest.raises(ValueError, match=r"has no classes\.csv.*copy it there.*sky, road, car"):
        evaluate(run.folder, data=str(tmp_path / "other"))
    (tmp_path / "other" / "classes.csv").write_text("name,id\nsky,0\ntree,7\n")
    with pytest.raises(ValueError, match=r"classes that the run m does not know: tree"):
        evaluate(run.folder, data=str(tmp_path / "other"))


@pytest.mark.parametrize("args", [{}, {"threshold": 4}])
def test_masks_that_hold_one_class_alone_are_scored(args: dict[str, Any], tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw_masks(tmp_path / "data" / split, (0, 7))
    run = train_masks(tmp_path, tmp_path / "data", **args)
    draw_masks(tmp_path / "other" / "test", (7,))
    scores = evaluate(run.folder, data=str(tmp_path / "other"))
    assert (scores["split"], scores["rows"], len(scores["classes"])) == ("test", 4, 2)


@pytest.mark.parametrize("name", ["camvid", "cityscapes"])
def test_published_data_of_which_one_split_is_there_is_scored(name: str, tmp_path: Path) -> None:
    root = Path(small_data({"camvid": "unet.camvid", "cityscapes": "erfnet.decoder"}[name], tmp_path / "data") or "")
    for train_folder in [path for path in root.rglob("*") if path.name in ("train", "trainannot")]:
        shutil.rmtree(train_folder)
    found = list_scored(name, str(root), [], {})
    assert found is not None
    assert {split: len(items) for split, items in found.splits.items()} == {
        "camvid": {"val": 5, "test": 3},
        "cityscapes": {"val": 5},
    }[name]
