"""Tables beside pictures: what is understood, and what is refused with its line before a picture is decoded."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.data.source import cache_key, scan_files
from trainers.datasets import Source
from trainers.datasets.label_table import source as label_source
from trainers.datasets.value_table import source as value_source
from trainers.inference.evaluate import _number
from trainers.recipe import resolve

NAMES = [f"{number}.png" for number in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With 20 empty files that are called like pictures, in images/: nothing of them is read."""
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).touch()
    return tmp_path


def write(folder: Path, text: str | bytes, name: str = "labels.csv") -> None:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def rows_of(source: Source) -> dict[str, Any]:
    """Name of each picture -> its target, by the names of the classes where it is a list of their numbers."""
    found = {}
    for items in source.splits.values():
        for item in items:
            target = item.targets[0]
            found[item.name] = [source.classes[n] for n in target] if source.target == "label_sets" else target
    return found


def table(cells: dict[str, str], header: str = "file,labels") -> str:
    return "\n".join([header, *(f"{name},{cell}" for name, cell in cells.items())])


def full(cell: str = "cat dog", name: str = "{}", header: str = "file,labels") -> str:
    """A line for each picture; the first one has cat alone."""
    rows = {name.format(f"images/{picture}"): cell for picture in NAMES}
    rows[next(iter(rows))] = "cat"
    return table(rows, header)


# ---- labels ----


@pytest.mark.parametrize(
    ("cell", "args"),
    [
        ("cat dog", {}),
        ("cat;dog", {}),
        ("dog | cat", {}),
        ('"cat, dog"', {}),
        ('"cat,dog,"', {}),
        ("cat/dog", {"separator": "/"}),
        ("cat-dog", {"separator": "-"}),
        ("cat  dog cat", {"separator": "space"}),
    ],
)
def test_labels_are_separated_in_the_ways_that_people_use(folder: Path, cell: str, args: dict[str, Any]) -> None:
    write(folder, full(cell))
    source = label_source(str(folder), **args)
    assert (source.classes, source.target) == (["cat", "dog"], "label_sets")
    assert rows_of(source) == {f"images/{name}": ["cat", "dog"] if name != "0.png" else ["cat"] for name in NAMES}


def test_spaces_within_labels_are_kept_where_another_separator_is_used(folder: Path) -> None:
    write(folder, full("traffic light;car"))
    assert label_source(str(folder)).classes == ["car", "cat", "traffic light"]
    write(folder, full("traffic light"))
    said = label_source(str(folder)).warnings
    assert any(
        "separated by spaces; where these are parts of labels, give --dataset-args separator=none" in w for w in said
    )
    assert label_source(str(folder), separator="none").classes == ["cat", "traffic light"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + full(),
        full().replace("\n", "\r\n"),
        full().replace(",", ";"),
        '"file","labels"\n' + "\n".join(f'"images/{n}","cat{" dog" if n != "0.png" else ""}"' for n in NAMES),
        full(header="Image Name,Finding Labels"),
        full().replace("\n", "\n\n") + "\n,\n",
    ],
    ids=["bom", "crlf", "semicolons", "quotes", "other names", "blank lines"],
)
def test_tables_are_read_as_programs_write_them(folder: Path, text: str) -> None:
    write(folder, text)
    assert len(rows_of(label_source(str(folder)))) == 20
    assert label_source(str(folder)).classes == ["cat", "dog"]


def test_tabs_and_utf_16_are_read(folder: Path) -> None:
    write(folder, full().replace(",", "\t").encode("utf-16"), "labels.tsv")
    assert label_source(str(folder)).classes == ["cat", "dog"]


def test_a_column_of_0_and_1_for_each_label_is_read_in_its_order(folder: Path) -> None:
    rows = {f"images/{name}": f"{int(name[0]) % 2},{int(name == '3.png')},7" for name in NAMES}
    write(folder, table(rows, "id,dog,cat,age"))
    source = label_source(str(folder))
    assert source.classes == ["dog", "cat"]
    assert rows_of(source)["images/3.png"] == ["dog", "cat"]
    assert rows_of(source)["images/2.png"] == []
    assert source.warnings == ["the columns age hold no 0 or 1 and are left out"]
    assert label_source(str(folder), labels=["cat", "dog"]).classes == ["cat", "dog"]
    assert label_source(str(folder), labels="cat").classes == ["cat"]


@pytest.mark.parametrize("spelled", ["{}", "./images/{}", "images\\{}", "images/{stem}", "{stem}", "{absolute}"])
def test_pictures_are_found_by_what_a_table_calls_them(folder: Path, spelled: str) -> None:
    lines = [spelled.format(n, stem=n[:-4], absolute=folder / "images" / n) + ",cat;dog" for n in NAMES]
    write(folder, "\n".join(["file,labels", *lines]))
    assert sorted(rows_of(label_source(str(folder)))) == sorted(f"images/{name}" for name in NAMES)
    assert len(rows_of(label_source(str(folder / "labels.csv")))) == 20


def test_pictures_may_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("tables")
    write(other, full().replace("images/", ""))
    source = label_source(str(other / "labels.csv"), pictures=str(folder / "images"))
    assert {item.path for items in source.splits.values() for item in items} == {
        str(folder / "images" / name) for name in NAMES
    }


def test_pictures_that_no_line_names_are_told(folder: Path) -> None:
    write(folder, "\n".join(full().splitlines()[:-2]))
    (said,) = (w for w in label_source(str(folder)).warnings if "no line" in w)
    assert said == f"2 pictures in {folder} stand in no line and are left out: images/18.png, images/19.png"


REFUSED = [
    (lambda t: t.replace("images/7.png", "images/x.png"), r"labels.csv, line 9: there is no picture 'images/x.png' in"),
    (lambda t: re.sub(r"images/(7|8).png", r"no/\1.png", t), r"line 9: .* \(2 of 20 lines name pictures that are not"),
    (lambda t: t.replace("images/7.png", "/no/7.png"), r"line 9: there is no picture '/no/7.png'"),
    (lambda t: t.replace("images/7.png", ""), "line 9: it names no picture"),
    (
        lambda t: t.replace("images/7.png", "images/6.png"),
        "line 9: images/6.png is the picture of labels.csv, line 8 too",
    ),
    (lambda t: t.replace("7.png,cat dog", "7.png,"), "line 9: images/7.png has no label; .* allow_empty=true"),
    (lambda t: t.replace("7.png,cat dog", "7.png,cat,dog"), "line 9: it has 3 fields, and the first line 2; put texts"),
    (lambda t: t.replace("7.png,cat dog", "7.png"), "line 9: it has 1 fields"),
    (lambda t: t.replace("cat dog", "cat;dog").replace("7.png,cat;dog", "7.png,cat|dog"), r"line 9: .*'\|' here"),
    (lambda t: t.replace("cat dog", "cat/dog"), "line 3: 'cat/dog' may be one label or several; .* separator=/"),
    (lambda t: t.replace("7.png,cat dog", "7.png,['cat']"), "line 9: .* is a list as programs write it"),
    (lambda t: t.replace("7.png,cat dog", '7.png,"cat dog'), "line .*: it cannot be read"),
    (
        lambda t: t.replace("file,labels\n", ""),
        "line 1: it must name the columns, as in file,labels; it names a picture",
    ),
    (lambda t: t.replace("file,labels", "a,b"), "line 1: which of the columns a, b is the file"),
    (lambda t: t.replace("file,labels", "file,b"), "which of the columns b is the labels"),
    (lambda t: t.replace("file,labels", "file,file"), "line 1: two columns are called file"),
    (lambda t: "file,labels\n", "holds no line below the names of columns"),
    (lambda t: "", "holds no lines"),
    (
        lambda t: t.replace("7.png,cat", "7.png,c\udce4t").encode(errors="surrogateescape"),
        "line 9: .* no text in UTF-8",
    ),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_wrong_in_a_table_is_said_with_its_line(folder: Path, change: Any, words: str) -> None:
    write(folder, change(full()))
    with pytest.raises(ValueError, match=words) as error:
        label_source(str(folder))
    assert "\n" not in str(error.value)


def test_cells_of_a_column_of_0_and_1_are_checked(folder: Path) -> None:
    write(folder, table({f"images/{n}": "1,0" if n != "7.png" else "1,2" for n in NAMES}, "file,cat,dog"))
    with pytest.raises(ValueError, match="line 9: the label dog is '2'; it must be 0 or 1"):
        label_source(str(folder))


def test_empty_cells_may_mean_that_there_is_no_label(folder: Path) -> None:
    write(folder, full().replace("7.png,cat dog", "7.png,"))
    assert rows_of(label_source(str(folder), allow_empty=True))["images/7.png"] == []


def test_a_name_that_fits_two_pictures_is_refused(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "7.png").touch()
    write(folder, full().replace("images/", ""))
    with pytest.raises(ValueError, match=r"line 9: 7.png may be images/7.png, more/7.png; write the path below"):
        label_source(str(folder))


def test_which_table_is_meant_is_asked(folder: Path) -> None:
    write(folder, full(), "one.csv")
    assert len(rows_of(label_source(str(folder)))) == 20
    write(folder, full(), "two.csv")
    with pytest.raises(ValueError, match=r"several tables, one.csv, two.csv; say which .* table=one.csv"):
        label_source(str(folder))
    assert len(rows_of(label_source(str(folder), table="two.csv"))) == 20


# ---- splits ----


def test_splits_are_those_of_the_table(folder: Path) -> None:
    words = {"0.png": "valid", "1.png": "Test", "2.png": "val"}
    write(folder, table({f"images/{n}": f"cat dog,{words.get(n, 'train')}" for n in NAMES}, "file,labels,split"))
    assert label_source(str(folder)).rows == {"train": 17, "val": 2, "test": 1}
    write(folder, table({f"images/{n}": f"cat dog,{n == '0.png'}" for n in NAMES}, "file,labels,is_valid"))
    assert label_source(str(folder)).rows == {"train": 19, "val": 1}
    write(folder, table({f"images/{n}": f"a b,{'x' if n == '7.png' else 'train'}" for n in NAMES}, "file,labels,split"))
    with pytest.raises(ValueError, match="line 9: the split is 'x'; allowed are train, val and test"):
        label_source(str(folder))


def test_splits_may_be_tables_of_their_own(folder: Path) -> None:
    lines = full().splitlines()
    write(folder, "\n".join(lines[:15]), "train.csv")
    write(folder, "\n".join([lines[0], *lines[15:]]), "test.csv")
    assert label_source(str(folder), val_share=0.3).rows == {"train": 10, "val": 4, "test": 6}


def test_splits_that_are_drawn_follow_the_seed_and_the_rarest_label(folder: Path) -> None:
    write(folder, table({f"images/{n}": "all rare" if int(n[:-4]) < 10 else "all" for n in NAMES}))
    one, same, other = (label_source(str(folder), split_seed=seed) for seed in (0, 0, 1))
    assert one.rows == {"train": 16, "val": 2, "test": 2}
    for split in one.splits:
        assert [item.name for item in one.splits[split]] == [item.name for item in same.splits[split]]
        rare = Counter(len(item.targets[0]) for item in one.splits[split])
        assert rare[1] == rare[2]
    assert [item.name for item in one.splits["val"]] != [item.name for item in other.splits["val"]]


# ---- folders ----


def test_folders_called_by_several_labels(tmp_path: Path) -> None:
    for name in ("red,dress", "blue,dress", "red"):
        (tmp_path / name).mkdir()
        for number in range(10):
            (tmp_path / name / f"{number}.png").touch()
    source = label_source(str(tmp_path))
    assert source.classes == ["blue", "dress", "red"]
    assert rows_of(source)["red,dress/0.png"] == ["dress", "red"]
    assert rows_of(source)["red/0.png"] == ["red"]
    assert sum(source.rows.values()) == 30
    (tmp_path / "red,dress").rename(tmp_path / "red_dress")
    (tmp_path / "blue,dress").rename(tmp_path / "blue_dress")
    with pytest.raises(ValueError, match=r"no folder is called by several labels.*separator=_, if"):
        label_source(str(tmp_path))
    assert label_source(str(tmp_path), separator="_").classes == ["blue", "dress", "red"]


# ---- numbers ----


def values(change: dict[str, str] | None = None, header: str = "file,value") -> str:
    rows = {f"images/{name}": f"{number / 2}" for number, name in enumerate(NAMES)}
    return table({**rows, **{f"images/{name}": cell for name, cell in (change or {}).items()}}, header)


@pytest.mark.parametrize("header", ["file,value", "image,target", "id,moisture", "photo,y"])
def test_numbers_are_read(folder: Path, header: str) -> None:
    write(folder, values({"3.png": "-1.5e3"}, header), "values.csv")
    source = value_source(str(folder))
    assert (source.classes, source.target) == ([header.split(",")[1]], "numbers")
    assert rows_of(source)["images/3.png"] == [-1500.0]
    assert source.rows == {"train": 16, "val": 2, "test": 2}


def test_several_numbers_are_read(folder: Path) -> None:
    write(folder, table({f"images/{n}": f"{k},{-k}" for k, n in enumerate(NAMES)}, "file,sand,clay"), "values.csv")
    with pytest.raises(ValueError, match="which of the columns sand, clay is the value"):
        value_source(str(folder))
    assert rows_of(value_source(str(folder), value=["clay", "sand"]))["images/2.png"] == [-2.0, 2.0]


@pytest.mark.parametrize("cell", ["", "nan", "inf", "x", "1_0", '"3,5"'])
def test_what_is_no_number_is_said_with_its_line(folder: Path, cell: str) -> None:
    write(folder, values({"7.png": cell}), "values.csv")
    comma = ", with a point, not a comma" if "," in cell else "$"
    with pytest.raises(ValueError, match=f"values.csv, line 9: value is .*; it must be a finite number{comma}"):
        value_source(str(folder))


def test_numbers_that_are_all_equal_are_refused(folder: Path) -> None:
    write(folder, values(dict.fromkeys(NAMES, "3")), "values.csv")
    with pytest.raises(ValueError, match="all pictures of the train split have 3 as value: there is nothing to learn"):
        value_source(str(folder))


def test_splits_of_numbers_cover_their_range(folder: Path) -> None:
    write(folder, values(), "values.csv")
    source = value_source(str(folder), val_share=0.2, test_share=0)
    middle = [sorted(item.targets[0][0] for item in source.splits[split]) for split in ("train", "val")]
    assert [len(numbers) for numbers in middle] == [16, 4]
    for numbers in middle:
        assert sum(number < 5 for number in numbers) == len(numbers) / 2


# ---- together with the rest ----


def test_prepared_pictures_follow_the_table(folder: Path) -> None:
    recipe = resolve("folder.tune_values")
    write(folder, values(), "values.csv")
    before = cache_key(recipe, scan_files(recipe, str(folder)))
    write(folder, values({"3.png": "8.25"}), "values.csv")
    assert cache_key(recipe, scan_files(recipe, str(folder))) != before


def test_a_task_that_does_not_fit_names_the_one_that_does(folder: Path) -> None:
    write(folder, full())
    with pytest.raises(ValueError, match=r"task=classify does not fit .* has sets of labels; use multilabel"):
        scan_files(resolve("folder.tune_labels", task="classify"), str(folder))
    with pytest.raises(ValueError, match="line 2: labels is 'cat'; it must be a finite number"):
        scan_files(resolve("folder.tune_values"), str(folder))


def test_pictures_to_score_are_numbered_as_the_run_numbers_them(folder: Path) -> None:
    from trainers.datasets import label_table, value_table

    write(folder, table({"images/3.png": "ox cat"}))
    found = label_table.scored(str(folder), ["ant", "cat", "ox"])
    assert found.splits["all"][0].targets == [[1, 2]]
    unknown = label_table.scored(str(folder), ["ant", "cat"])
    with pytest.raises(ValueError, match="classes that the run r does not know: ox; it knows ant, cat"):
        _number(unknown, "all", ["ant", "cat"], "r", "there")
    write(folder, values(header="file,y"), "values.csv")
    assert value_table.scored(str(folder), ["value"]).classes == ["value"]


def test_drawn_pictures_are_read(tmp_path: Path) -> None:
    from trainers.datasets import label_table

    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(tmp_path / "a.png")
    write(tmp_path, table({"a.png": "cat"}))
    (item,) = label_table.scored(str(tmp_path), ["cat"]).splits["all"]
    ((picture, target),) = label_table.read(item)
    assert (picture.shape, target) == ((4, 6, 3), [0])
