"""The run of a smaller network: from the best weights of another, and then a run like any."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.__main__ import main
from trainers.fitting import RunResult, fit
from trainers.inference.evaluate import evaluate
from trainers.inference.export import export
from trainers.inference.load import open_run, restore
from trainers.inference.predict import predict
from trainers.pruning import network, run
from trainers.pruning.run import prune
from trainers.recipe import Recipe, Scale, resolve
from trainers.storage.store import Store
from trainers.training import loop
from trainers.training.checkpoint import Checkpoints
from trainers.training.state import TrainState

MODEL = """
from torch import nn


def build(*, image_size, channels, classes):
    layers = nn.Conv2d(channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))
"""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are timed for an instant."""
    monkeypatch.setattr(network, "TIMED_SECONDS", 0.0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model of one's own, whose file is gone, with everything that a smaller one is to take over."""
    folder = tmp_path_factory.mktemp("runs")
    file = folder / "mine.py"
    file.write_text(MODEL)
    recipe = resolve("digits.cnn", model=str(file), epochs=6, ema=0.9, warmup_epochs=3, frozen=("0",), frozen_epochs=1)
    fit(recipe, scale=Scale(workers=0, storage=str(folder / "storage")), run="digits")
    file.unlink()
    return folder / "storage"


@pytest.fixture(scope="module")
def pruned(original: Path) -> RunResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "TIMED_SECONDS", 0.0)
        return prune("digits", 2, storage=str(original))


def test_what_is_left_is_trained_for_less(original: Path, pruned: RunResult) -> None:
    before, facts = json.loads((original / "digits/run.json").read_text()), pruned.run
    assert (pruned.status, facts["name"], facts["epochs_run"]) == ("finished", "digits-pruned", 2)
    recipe = facts["recipe"]
    assert (recipe["epochs"], recipe["warmup_epochs"]) == (2, 1)
    assert recipe["lr"] == pytest.approx(before["recipe"]["lr"] / 10)
    assert (recipe["init_from"], recipe["frozen"], recipe["frozen_epochs"]) == (None, [], None)
    assert recipe["shapes"] == {"0": [8, 1], "1": [8], "3": [24, 8], "7": [10, 24]}
    same = {"dataset", "model", "batch_size", "micro_batch_size", "image_size", "ema", "seed", "schedule"}
    assert all(recipe[name] == before["recipe"][name] for name in same)
    assert [facts["dataset"][name] for name in ("mean", "std", "classes")] == [
        before["dataset"][name] for name in ("mean", "std", "classes")
    ]
    told = facts["pruned"]
    assert (told["run"], told["epoch"], told["speedup"]) == ("digits", before["best"]["epoch"], 2)
    assert told["macs"][0] >= 2 * told["macs"][1]
    assert told["parameters"][0] > told["parameters"][1]
    assert facts["final"]["accuracy"] > 0.5


def test_it_is_evaluated_exported_and_used_like_any_run(original: Path, pruned: RunResult, tmp_path: Path) -> None:
    scores = evaluate("digits-pruned", storage=str(original))
    assert scores["accuracy"] == pytest.approx(pruned.run["final"]["accuracy"])
    file = export("digits-pruned", str(tmp_path / "small.pt2"), storage=str(original))
    folder, found = open_run("digits-pruned", str(original))
    state, _ = restore(Recipe.from_json(found["recipe"]), found["dataset"], folder)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        program = torch.export.load(file).module()
        torch.testing.assert_close(program(images), state.model.eval()(images), rtol=1e-4, atol=1e-4)
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "dark.png")
    assert predict("digits-pruned", [str(tmp_path / "dark.png")], str(tmp_path / "out"), storage=str(original))


def test_given_again_it_has_nothing_to_do_and_another_is_refused(
    original: Path, pruned: RunResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "cut", None)  # nothing is pruned again
    words = ["prune", "digits", "--storage", str(original)]
    assert main([*words, "--speedup", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{original / 'digits-pruned'}\n"
    assert "has finished already" in err
    assert main([*words, "--speedup", "3"]) == 2
    assert "the run digits-pruned exists, and was pruned from digits by --speedup 2" in capsys.readouterr().err
    assert main([*words, "--run", "digits"]) == 2
    assert "the run digits exists, and was not pruned; give another --run" in capsys.readouterr().err
    assert main([*words, "--lr", "0.5"]) == 2
    assert "exists with another recipe: lr was" in capsys.readouterr().err
    assert pruned.status == "finished"


def test_one_that_ends_before_its_first_step_goes_on_with_the_same_weights(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", end)
        with pytest.raises(KeyboardInterrupt):
            prune("digits", 1.5, name="ended", storage=str(original))
    folder = original / "ended"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "code", "run.json"]
    first = Checkpoints(Store(folder)).at(0)
    assert first is not None
    assert first["ema"] is not None
    assert all(torch.equal(first["ema"][name], tensor) for name, tensor in first["model"].items())
    with monkeypatch.context() as patch:
        patch.setattr(network, "cut", None)
        seen: list[dict[str, torch.Tensor]] = []
        train = loop.train

        def noted(recipe: Recipe, state: TrainState, *args: Any, **more: Any) -> Any:
            seen.append({name: tensor.clone() for name, tensor in state.model.state_dict().items()})
            return train(recipe, state, *args, **more)

        patch.setattr(loop, "train", noted)
        result = prune("digits", 1.5, name="ended", storage=str(original))
    assert result.status == "finished"
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in first["model"].items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speedup", "1"], "--speedup 1 is not allowed; it takes a number above 1, such as 2"),
        (["--speedup", "500"], "the model .* of digits cannot be pruned: --speedup 500 is more than can be had"),
        (["--speedup", "2", "--epochs", "-1"], "epochs=-1 is not allowed"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    words: list[str], message: str, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["prune", "digits", "--storage", str(original), "--run", "refused", *words]
    assert main(argv) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (original / "refused").exists()


def test_what_training_refuses_leaves_nothing_behind(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        assert (original / "refused/run.json").exists()
        raise ValueError("no data")

    monkeypatch.setattr(run, "fit", refuse)
    with pytest.raises(ValueError, match="no data"):
        prune("digits", 1.5, name="refused", storage=str(original))
    assert not (original / "refused").exists()


def test_without_the_extra_one_line_says_what_to_install(
    original: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert main(["prune", "digits", "--storage", str(original), "--run", "none"]) == 2
    assert capsys.readouterr().err == "error: prune needs torch-pruning: pip install 'trainyard[prune]'\n"
    assert not (original / "none").exists()


def test_a_smaller_network_is_pruned_again(original: Path, pruned: RunResult) -> None:
    again = prune("digits-pruned", 1.5, epochs=1, storage=str(original))
    assert (again.status, again.run["name"]) == ("finished", "digits-pruned-pruned")
    assert again.run["pruned"]["macs"][0] == pruned.run["pruned"]["macs"][1]
    sizes, before = again.run["recipe"]["shapes"], pruned.run["recipe"]["shapes"]
    assert sizes.keys() == before.keys()
    assert sizes["3"][0] < before["3"][0]


@pytest.mark.slow
def test_one_that_is_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    storage = str(tmp_path)
    fit(resolve("digits.cnn", epochs=2), scale=Scale(workers=0, storage=storage), run="digits")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        words = ["prune", "digits", "--epochs", "40", "--run", name, "--storage", storage]
        return subprocess.Popen([sys.executable, "-m", "trainers", *words], env=env)

    assert start("undisturbed").wait(300) == 0
    killed, store = start("killed"), Store(tmp_path / "killed")
    until = time.monotonic() + 300
    while time.monotonic() < until and killed.poll() is None and Checkpoints(store).latest_step() < 46:
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert 46 <= Checkpoints(store).latest_step() < 40 * 23
    assert start("killed").wait(300) == 0
    one, other = (Checkpoints(Store(tmp_path / name)).latest() for name in ("undisturbed", "killed"))
    assert one is not None
    assert other is not None
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())
