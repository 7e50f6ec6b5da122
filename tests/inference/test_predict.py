"""predict: which pictures it takes, what it keeps when it is cut short, and what it never mixes."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import object_store
from helpers.small import scene, small_recipe, write_pairs
from PIL import Image
from pyarrow.parquet import read_table

from trainers.__main__ import main
from trainers.fitting import fit
from trainers.inference import predict as module
from trainers.inference import predictor
from trainers.inference.predict import predict, predict_into
from trainers.inference.predictions import pixels
from trainers.inference.sheet import MOST, spread
from trainers.recipe import Scale, resolve
from trainers.storage.store import Store

pytestmark = pytest.mark.figures

CLASSES = ("bright", "dark", "middle")


def save(path: Path, value: int = 100, size: tuple[int, int] = (20, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 20, (*size, 3))
    Image.fromarray((value + noise).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def run(storage: Path) -> str:
    """Of pictures of three brightnesses."""
    for name, value in zip(CLASSES, (200, 20, 110), strict=True):
        for index in range(8):
            save(storage / f"raw/{name}/{index}.png", value + index)
    recipe = resolve("digits.cnn", dataset="image_folder", image_size=16, batch_size=8, epochs=1)
    scale = Scale(workers=0, cpus_per_worker=1, storage=storage, data=storage / "raw")
    return fit(recipe, scale=scale, run="three").folder


@pytest.fixture(scope="module")
def masks(storage: Path) -> str:
    """Of pictures with masks."""
    rng = np.random.default_rng(7)
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            files = tuple(storage / "pairs" / split / kind / f"{index}.png" for kind in ("images", "masks"))
            write_pairs({(files[0], files[1]): scene(rng, 3, 32, 40)})
    recipe = small_recipe(
        "unet.camvid", dataset="mask_folder", image_size="32x40", dataset_args={"classes": 3}, epochs=1
    )
    scale = Scale(workers=0, cpus_per_worker=1, storage=storage, data=storage / "pairs")
    return fit(recipe, scale=scale, run="masks").folder


def rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def names(table: Path, below: Path) -> list[str]:
    return [os.path.relpath(row["path"], below) for row in rows(table)]


# Which pictures ----------------------------------------------------------------------------------------------


def test_links_are_followed_and_hidden_files_are_passed_over(run: str, tmp_path: Path) -> None:
    q = tmp_path / "q"
    for name in ("q/1.png", "q/in/2.jpg", "far/3.png", "q/.hidden/4.png", "q/@eaDir/1.png"):
        save(tmp_path / name)
    (q / "._1.png").write_bytes(b"\0\5\26\7" + bytes(100))
    (q / "notes.txt").write_text("no picture")
    (q / "more").symlink_to(tmp_path / "far")
    (q / "in/up").symlink_to(q)  # in a circle
    (q / "same").symlink_to(q / "in")
    (q / "5.png").symlink_to(tmp_path / "far/3.png")
    table, bad = predict(run, [str(q)], str(tmp_path / "out"))
    assert sorted(names(table, q)) == ["1.png", "5.png", "in/2.jpg", "more/3.png"]
    assert bad == []


def test_a_picture_that_is_given_twice_is_predicted_once(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "q/1.png")
    monkeypatch.chdir(tmp_path)
    given = ["q/1.png", "q", str(tmp_path / "q"), "./q/1.png", f"{tmp_path}/q/../q/1.png"]
    table, _ = predict(run, given, "out")
    assert [row["path"] for row in rows(table)] == ["q/1.png"]


@pytest.mark.parametrize("out", ["q/out", "q", "q/in"])
def test_what_was_written_is_not_predicted_the_second_time(masks: str, tmp_path: Path, out: str) -> None:
    for name in ("1.png", "in/2.png"):
        save(tmp_path / "q" / name)
    written = [predict(masks, [str(tmp_path / "q")], str(tmp_path / out))[0].read_text() for _ in range(3)]
    assert written[0].count("\n") == 3
    assert written == [written[0]] * 3


def test_what_another_command_has_written_is_not_predicted(
    masks: str, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "q/1.png")
    predict(masks, [str(tmp_path / "q")], str(tmp_path / "q/segmented"))
    predict(run, [str(tmp_path / "q")], str(tmp_path / "q/classified"))
    (tmp_path / "q/segmented/predictions.json").unlink()  # as older versions left it
    assert main(["predict", run, str(tmp_path / "q"), "--out", str(tmp_path / "q/again")]) == 0
    assert names(tmp_path / "q/again/predictions.csv", tmp_path / "q") == ["1.png"]
    assert "q/segmented" in " ".join(capsys.readouterr().err.split())


def test_masks_are_not_written_among_the_users_own(masks: str, tmp_path: Path) -> None:
    save(tmp_path / "q/images/1.png")
    own = save(tmp_path / "q/masks/1.png").read_bytes()
    with pytest.raises(ValueError, match=r"masks/ holds files that predict did not write; give --out"):
        predict(masks, [str(tmp_path / "q")], str(tmp_path / "q"))
    assert (tmp_path / "q/masks/1.png").read_bytes() == own
    table, _ = predict(masks, [str(tmp_path / "q/images")], str(tmp_path / "q/out"))
    assert len(rows(table)) == 1


ODD = (b"na\xefve.png", b"new\nline.png", b"a,b.png", b'quoted".png', "\u65e5\u672c.png".encode())


@pytest.mark.parametrize("name", ODD)
def test_names_of_any_kind_are_written_and_found_again(run: str, tmp_path: Path, name: bytes) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"q", name)
    os.makedirs(os.path.dirname(odd))
    shutil.copyfile(save(tmp_path / "far/1.png"), os.fsdecode(odd))
    table, bad = predict(run, [str(tmp_path / "q")], str(tmp_path / "out"))
    (row,) = csv.DictReader(table.read_text(encoding="utf-8").splitlines(keepends=True))
    assert row["class"] in CLASSES
    assert bad == []
    assert os.path.basename(row["path"]) == name.decode("utf-8", "backslashreplace")


# What is kept ------------------------------------------------------------------------------------------------


def cut_after(batches: int) -> Callable[[int], None]:
    left = iter(range(batches))

    def advance(_: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return advance


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of pictures that were decoded, in batches of 2."""
    found: list[str] = []
    real = predictor.decode

    def decode(path: str, *args: Any, **more: Any) -> Any:
        found.append(os.path.basename(path))
        return real(path, *args, **more)

    for each in (predictor, pixels):
        monkeypatch.setattr(each, "decode", decode)
    monkeypatch.setattr(module, "PREDICT_BATCH", 2)
    return found


@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_an_interrupted_command_goes_on_with_the_rest(
    run: str, masks: str, tmp_path: Path, seen: list[str], kind: str
) -> None:
    folder = run if kind == "labels" else masks
    for index in range(9):
        save(tmp_path / f"q/{index}.png", 20 * index)
    whole, _ = predict(folder, [str(tmp_path / "q")], str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        predict(folder, [str(tmp_path / "q")], str(tmp_path / "cut"), advance=cut_after(2))
    parts = tmp_path / "cut/predictions.parts"
    done = [os.path.basename(path) for part in parts.iterdir() for path in read_table(part)["path"].to_pylist()]
    assert 3 <= len(set(done)) == len(done) < 9
    assert not (tmp_path / "cut/predictions.csv").exists()
    (parts / "of-another-tool.parquet").write_bytes(b"no Parquet")
    seen.clear()
    table, _ = predict(folder, [str(tmp_path / "q")], str(tmp_path / "cut"))
    if kind == "masks":
        assert not set(seen) & set(done)
        for path in (tmp_path / "whole/masks").iterdir():
            assert path.read_bytes() == (tmp_path / "cut/masks" / path.name).read_bytes()
    else:  # the sheet shows some of those that are done
        assert [name for name in seen[: 9 - len(done)] if name in done] == []
    assert table.read_text() == whole.read_text()
    assert not parts.exists()


def test_pictures_that_changed_or_were_repaired_are_predicted_again(run: str, tmp_path: Path, seen: list[str]) -> None:
    for index in range(6):
        save(tmp_path / f"q/{index}.png", 20)
    (tmp_path / "q/1.png").write_bytes(b"broken")
    with pytest.raises(KeyboardInterrupt):
        predict(run, [str(tmp_path / "q")], str(tmp_path / "out"), advance=cut_after(2))
    stat = os.stat(tmp_path / "q/0.png")
    save(tmp_path / "q/0.png", 220)
    os.utime(tmp_path / "q/0.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    save(tmp_path / "q/1.png", 220)
    (tmp_path / "q/2.png").unlink()
    seen.clear()
    table, bad = predict(run, [str(tmp_path / "q")], str(tmp_path / "out"))
    fresh, _ = predict(run, [str(tmp_path / "q")], str(tmp_path / "fresh"))
    assert bad == []
    assert {"0.png", "1.png"} <= set(seen[:3])
    assert table.read_text() == fresh.read_text()
    assert names(table, tmp_path / "q") == ["0.png", "1.png", "3.png", "4.png", "5.png"]


@pytest.mark.usefixtures("seen")
def test_rows_of_other_options_are_not_mixed(run: str, tmp_path: Path) -> None:
    for index in range(6):
        save(tmp_path / f"q/{index}.png", 20 * index)
    with pytest.raises(KeyboardInterrupt):
        predict(run, [str(tmp_path / "q")], str(tmp_path / "out"), advance=cut_after(1))
    table, _ = predict(run, [str(tmp_path / "q")], str(tmp_path / "out"), top_k=2)
    assert all(row["class 2"] for row in rows(table))


def test_another_runs_folder_and_a_foreign_file_are_left_alone(run: str, storage: Path, tmp_path: Path) -> None:
    save(tmp_path / "q/1.png")
    shutil.copytree(run, storage / "other")
    facts = json.loads((storage / "other/run.json").read_text())
    (storage / "other/run.json").write_text(json.dumps({**facts, "name": "other", "start_id": "another"}))
    out = tmp_path / "out"
    first, _ = predict(run, [str(tmp_path / "q")], str(out))
    before = first.read_bytes()
    with pytest.raises(ValueError, match="holds the predictions of the run three; give another --out"):
        predict(str(storage / "other"), [str(tmp_path / "q")], str(out))
    assert first.read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/predictions.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="not of this command's making"):
        predict(run, [str(tmp_path / "q")], str(tmp_path / "mine"))
    assert (tmp_path / "mine/predictions.json").read_text() == "[1, 2]"
    (tmp_path / "mine/predictions.json").write_text("{")
    with pytest.raises(ValueError, match=r"not valid JSON.*; remove it, or give another --out"):
        predict(run, [str(tmp_path / "q")], str(tmp_path / "mine"))
    with pytest.raises(ValueError, match=r"predictions\.csv cannot be written: .*; give another --out"):
        predict(run, [str(tmp_path / "q")], str(first))


@pytest.mark.parametrize("name", ["predictions.png", "predictions.csv"])
def test_files_of_the_users_own_are_not_written_over(run: str, tmp_path: Path, name: str) -> None:
    save(tmp_path / "mine/1.png")
    save(tmp_path / "mine/predictions.png").rename(tmp_path / "mine" / name)
    before = (tmp_path / "mine" / name).read_bytes()
    with pytest.raises(ValueError, match=f"holds a file {name} that predict did not write; give --out"):
        predict(run, [str(tmp_path / "mine")], str(tmp_path / "mine"))
    assert (tmp_path / "mine" / name).read_bytes() == before


def test_a_table_of_an_older_version_is_replaced(run: str, tmp_path: Path) -> None:
    save(tmp_path / "q/1.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.csv").write_text("path,class,probability\nold.png,dark,0.9\n")
    assert len(rows(predict(run, [str(tmp_path / "q")], str(tmp_path / "out"))[0])) == 1


def test_masks_of_names_that_differ_in_endings_alone_are_kept_apart(masks: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.jpg.png", "b.png", "b.png.jpg"):
        save(tmp_path / "q" / name)
    table = predict(masks, [str(tmp_path / "q")], str(tmp_path / "out"))[0]
    made = {row["mask"] for row in rows(table)}
    assert len(made) == 5
    assert made == {f"masks/{path.name}" for path in (tmp_path / "out/masks").iterdir()}


def test_two_commands_do_not_write_to_one_folder(run: str, tmp_path: Path) -> None:
    save(tmp_path / "q/1.png")
    out = str(tmp_path / "out")

    def meanwhile(_: int) -> None:
        with pytest.raises(ValueError, match="another command writes predictions"):
            predict(run, [str(tmp_path / "q")], out)

    assert len(rows(predict(run, [str(tmp_path / "q")], out, advance=meanwhile)[0])) == 1


def test_a_run_that_was_trained_anew_predicts_with_its_new_weights(storage: Path, run: str, tmp_path: Path) -> None:
    assert Path(run).exists()
    for index in range(4):
        save(tmp_path / f"q/{index}.png", 60 * index)
    recipe = resolve("digits.cnn", dataset="image_folder", image_size=16, batch_size=4, epochs=1, lr=0.001)
    scale = Scale(workers=0, cpus_per_worker=1, storage=storage, data=storage / "raw")

    def table(out: str) -> str:
        return predict("anew", [str(tmp_path / "q")], str(tmp_path / out), storage=str(storage))[0].read_text()

    fit(recipe, scale=scale, run="anew")
    before = table("out")
    shutil.rmtree(storage / "anew")
    fit(recipe.replace(seed=1), scale=scale, run="anew")
    after = table("out")
    module._predictor.cache_clear()
    assert after == table("fresh") != before


def test_of_very_many_pictures_the_parts_are_what_there_is(
    run: str, tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        save(tmp_path / f"q/{index}.png", 40 * index)
    (tmp_path / "q/3.png").write_bytes(b"broken")
    whole, _ = predict(run, [str(tmp_path / "q")], str(tmp_path / "whole"))
    monkeypatch.setattr(module, "MOST_ROWS", 4)
    parts, bad = predict(run, [str(tmp_path / "q")], str(tmp_path / "out"))
    assert (parts, bad) == (tmp_path / "out/predictions.parts", [str(tmp_path / "q/3.png")])
    assert not (tmp_path / "out/predictions.csv").exists()
    found = {row["path"]: row for row in read_table(parts).to_pylist()}
    for row in rows(whole):
        assert {name: found[row["path"]][name] for name in row} == row
    assert json.loads((tmp_path / "out/predictions.json").read_text())["finished"]
    seen.clear()
    assert predict(run, [str(tmp_path / "q")], str(tmp_path / "out")) == (parts, bad)
    assert seen[0] == "3.png"  # what could not be decoded is tried again; the sheet shows the others


@pytest.mark.slow
def test_masks_go_into_an_object_store_too(masks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**object_store.CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("1.png", "in/2.png"):
        save(tmp_path / "q" / name)
    predict(masks, [str(tmp_path / "q")], str(tmp_path / "out"))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "predictions.json"]
    with object_store.moto() as port:
        store = Store(object_store.address(port, "out"))
        found = predict_into(masks, [str(tmp_path / "q")], store)
        assert (found.address, found.pictures, found.bad) == ((store / "predictions.csv").address, 2, [])
        assert len(files) == 2 * 3 + 2
        for path in files:
            assert store.read(path.relative_to(tmp_path / "out").as_posix()) == path.read_bytes()
        assert set(store.names()) == {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="give another --out"):
        predict_into(masks, [str(tmp_path / "q")], store)  # nobody answers there any more


# What is written ---------------------------------------------------------------------------------------------


def test_the_most_probable_classes_are_named_in_order(run: str, tmp_path: Path) -> None:
    for index in range(5):
        save(tmp_path / f"q/{index}.png", 50 * index)
    paths = [str(tmp_path / "q")]
    plain = rows(predict(run, paths, str(tmp_path / "one"))[0])
    every = rows(predict(run, paths, str(tmp_path / "all"), top_k=9)[0])  # there are three
    assert list(plain[0]) == ["path", "class", "probability"]
    assert list(every[0]) == ["path", "class", "probability", "class 2", "probability 2", "class 3", "probability 3"]
    for one, row in zip(plain, every, strict=True):
        assert {name: row[name] for name in one} == one
        assert {row["class"], row["class 2"], row["class 3"]} == set(CLASSES)
        shares = [float(row[name]) for name in ("probability", "probability 2", "probability 3")]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=2e-4)
    with pytest.raises(ValueError, match="give 1 to 3"):
        predict(run, paths, str(tmp_path / "none"), top_k=0)


def test_a_sheet_shows_some_of_the_pictures(run: str, masks: str, tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / f"q/{index}.png", 50 * index, (300, 400))
    predict(run, [str(tmp_path / "q")], str(tmp_path / "out"), top_k=2)
    with Image.open(tmp_path / "out/predictions.png") as picture:
        assert picture.width > picture.height
        assert max(picture.size) < 3000
    with pytest.raises(ValueError, match="top_k=2 is for classes of whole pictures"):
        predict(masks, [str(tmp_path / "q")], str(tmp_path / "m"), top_k=2)


@pytest.mark.parametrize("count", [1, 5, MOST, MOST + 1, 1000])
def test_pictures_of_a_sheet_are_spread_over_all(count: int) -> None:
    found = spread(count)
    assert len(found) == len(set(found)) == min(count, MOST)
    assert found == sorted(found)
    assert found[0] == 0
    assert count - found[-1] <= -(-count // MOST)


def test_where_no_picture_can_be_decoded_the_command_fails(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "some/1.png")
    for folder in ("some", "none"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "broken.png").write_bytes(b"no picture")
        code = main(["predict", run, str(tmp_path / folder), "--out", str(tmp_path / f"{folder}-out")])
        assert code == (0 if folder == "some" else 1)
        assert "broken.png" in capsys.readouterr().err
    assert [row["class"] for row in rows(tmp_path / "none-out/predictions.csv")] == [""]
