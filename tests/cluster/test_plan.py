"""`python -m cluster plan`."""

from __future__ import annotations

import json
import re

import pytest

from cluster.__main__ import main
from trainers.recipe import resolve
from trainers.training import peak_memory

UNET = "plan shapes.unet --batch-size 4 8 --image-size 32x48 64 --precision fp32 --model-args base_channels=4".split()


def test_a_plan_shows_what_fits_and_which_micro_batch_makes_it_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*UNET, "--memory", "10MiB", "4MiB", "1MB"]) == 0
    written = capsys.readouterr()
    lines = [line.split() for line in written.out.splitlines() if line.startswith(("32x48", "64x64"))]
    assert [line[:3] for line in lines] == [[size, "fp32", batch] for size in ("32x48", "64x64") for batch in "48"]
    assert "fits" in written.out
    assert "micro-batch" in written.out
    assert "does not fit: needs" in written.out
    assert "of 1MB" in written.out
    assert "largest batch on 10MiB at 32x48 in fp32:" in written.out
    assert "no batch fits on 1MB at 64x64 in fp32: one picture needs" in written.out
    assert "BatchNorm" in written.err
    assert "0.3 to 0.6 GiB" in written.out


def test_json_records_agree_with_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*UNET, "--memory", "10MiB", "1MB", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["rows"]) == 4
    assert len(plan["largest"]) == 4
    for row in plan["rows"]:
        card = row["cards"]["10MiB"]
        assert card["fits"] == (row["predicted_bytes"] <= 10 * 2**20)
        assert row["batch_size"] % card["micro_batch_size"] == 0
        assert card["predicted_bytes"] <= 10 * 2**20
        assert row["cards"]["1MB"]["micro_batch_size"] is None
    for line in plan["largest"]:
        assert (line["batch_size"] == 0) == (line["memory"] == "1MB")


def test_workers_strategy_and_activation_checkpointing_change_the_prediction(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "plan cifar.r18 --batch-size 8 --image-size 32 --precision fp32 --optimizer adam --memory 300MiB".split()
    ways = {"one": [], "ddp": ["--workers", "4"], "fsdp2": ["--workers", "4", "--strategy", "fsdp2"]}
    ways["again"] = [*ways["fsdp2"], "--activation-checkpointing"]
    plans = {}
    for way, flags in ways.items():
        assert main([*words, *flags, "--json"]) == 0
        plans[way] = json.loads(capsys.readouterr().out)
    rows = {way: plan["rows"][0] for way, plan in plans.items()}
    assert [row["micro_batch_size"] for row in rows.values()] == [8, 2, 2, 2]
    assert rows["fsdp2"]["predicted_bytes"] < 0.9 * rows["ddp"]["predicted_bytes"]
    batches = [plan["largest"][0]["batch_size"] for plan in plans.values()]
    assert batches == sorted(batches)
    assert batches[1] % 4 == 0
    recipe = resolve("cifar.r18", batch_size=8, image_size=(32, 32), precision="fp32", optimizer="adam")
    meta = {"channels": 3, "classes": ["x"] * 10}
    for way, how in {
        "ddp": {},
        "fsdp2": {"sharded": True},
        "again": {"sharded": True, "activation_checkpointing": True},
    }.items():
        assert rows[way]["predicted_bytes"] == peak_memory.predict(recipe, meta, 2, workers=4, **how)
    assert main([*words, *ways["fsdp2"]]) == 0
    written = capsys.readouterr().out
    assert "8 by 2" in written
    assert re.search(r"largest batch on 4 x 300MiB at 32x32 in fp32: \d+ \(predicted .* each\)", written)


@pytest.mark.parametrize(
    "name",
    "cifar.r18 digits.cnn erfnet.encoder mnist.cnn shapes.fcos shapes.unet unet.camvid unet.drone_binary".split(),
)  # of every data set that tells its classes without its files
def test_a_recipe_is_planned_without_its_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"digits": "8", "mnist": "12"}.get(name.split(".")[0], "32")
    smaller = ["--model-args", "base_channels=4"] if "unet" in name else []
    flags = ["--image-size", small, *smaller, "--memory", "64GiB", "--precision", "fp32", "--json"]
    assert main(["plan", name, *flags]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rows"][0]["cards"]["64GiB"]["fits"]


def test_classes_may_be_given_in_place_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("plan textures.cnn --classes 7 --memory 1GiB --precision fp32".split()) == 0
    assert "largest batch on 1GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("nothing", "'nothing'"),
        ("plan", "name of one recipe"),
        ("plan digits.cn --memory 1GiB", "did you mean digits.cnn"),
        ("plan digits.cnn --memory 3x", "'3x'"),
        ("plan digits.cnn --batch-size --memory 1GiB", "--batch-size"),
        ("plan digits.cnn --image-size --memory 1GiB", "--image-size"),
        ("plan digits.cnn --batch-size 0 --memory 1GiB", "batch_size=0"),
        ("plan digits.cnn --batch-size 7 --micro-batch-size 2 --memory 1GiB", "micro_batch_size=2"),
        ("plan digits.cnn --classes 1 --memory 1GiB", "--classes 1"),
        ("plan folder.detect --classes 0 --memory 1GiB", "--classes 0 is not allowed; give 1 or more"),
        ("plan textures.cnn --memory 1GiB", "give --classes N"),
        ("plan digits.cnn --batch-size 8 --workers 3 --memory 1GiB", "workers=3; use 6 or 9"),
        ("plan digits.cnn --workers -1 --memory 1GiB", "workers=-1"),
        ("plan digits.cnn --data /nowhere --memory 1GiB", "digits"),
        ("plan erfnet.decoder --image-size 8 --memory 1GiB", "16x16"),
    ],
)
def test_bad_input_is_reported_in_one_line(words: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("error: ")
    assert named in written.err
    assert written.err.count("\n") == 1


@pytest.mark.parametrize("words", ["plan digits.cnn --batch-size many", "plan digits.cnn --precision fp16"])
def test_a_flag_of_the_wrong_type_ends_with_code_2(words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2


def test_without_a_gpu_the_memory_must_be_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["plan", "digits.cnn"]) == 2
    assert "--memory SIZE" in capsys.readouterr().err


def test_help_of_scale_fields_is_that_of_scale(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "digits.cnn", "--help"])
    text = " ".join(re.sub(r"[^\w:;.,-]+", " ", capsys.readouterr().out).split())
    assert "ddp: each worker holds the whole model; fsdp2: a part of every weight" in text
    assert "Keep the input of each block of layers only" in text
    assert "Pictures per optimizer step, over all workers." in text


def test_a_card_smaller_than_its_context_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "context_bytes", lambda: 400 * 2**20)
    assert main("plan digits.cnn --precision fp32 --memory 300MiB".split()) == 2
    err = capsys.readouterr().err
    assert "--memory 300MiB" in err
    assert "400 MiB" in err


@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"]])
def test_help_shows_the_usage_of_plan(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "plan RECIPE" in capsys.readouterr().out
