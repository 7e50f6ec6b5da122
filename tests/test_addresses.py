"""Addresses of object stores and servers where a path is needed: one sentence, before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.__main__ import main as cluster
from trainers.__main__ import main as trainers
from trainers.formatting import check_is_path
from tune_spaces.__main__ import main as tune_spaces

PROGRAMS = {"trainers": trainers, "tune_spaces": tune_spaces, "cluster": cluster}


@pytest.mark.parametrize(
    "command",
    [
        "trainers train digits.cnn --workers 0 --dataset image_folder --data s3://photos/birds",
        "trainers train digits.cnn --data hdfs://name:9000/birds",
        "trainers prepare digits.cnn --dataset image_folder --data https://example.com/birds.zip",
        "trainers evaluate one --data gs://photos/birds",
        "trainers predict one s3://photos/birds --out out",
        "trainers export one --out s3://models/one.pt2",
        "tune_spaces digits.quick --data abfs://photos@account/birds",
        "cluster doctor --data s3://photos/birds",
        "cluster plan digits.cnn --dataset image_folder --data S3://photos/birds",
    ],
)
def test_an_address_where_a_path_is_needed_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path / "runs"))
    program, *words = command.split()
    assert PROGRAMS[program](words) == 2
    said = capsys.readouterr().err
    (address,) = (word for word in words if "://" in word)
    for part in (address, "is an address", "copy the files", "mount"):
        assert part in said.replace("\n", " ")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        None,
        "",
        "photos",
        "/shared/photos",
        "~/photos",
        "C:/photos",
        "C://photos",
        r"C:\photos",
        r"\\nas\photos",
        "a:b//c",
        "./s3:/x",
    ],
)
def test_a_path_is_no_address(path: str | None) -> None:
    check_is_path("data", path)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///shared/photos", "/shared/photos"),
        ("file://localhost/shared/photos", "/shared/photos"),
        ("file:///shared/my%20photos", "/shared/my photos"),
    ],
)
def test_of_a_file_uri_the_path_is_named(address: str, path: str) -> None:
    with pytest.raises(ValueError, match=rf"give its path, {path}$"):
        check_is_path("data", address)
