"""A run that is resumed with another end than it had: more epochs, fewer, another patience."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import last_weights

from trainers.fitting import RunResult, fit
from trainers.recipe import Recipe, Scale, resolve
from trainers.resolution import agree_with_earlier
from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints

FIXED = {"micro_batch_size": 64, "precision": "fp32"}
END = {"constant": {}, "step": {"every": 2, "factor": 0.5}}
"""Schedules in which no learning rate depends on the number of epochs -> their arguments."""


def digits(**changes: Any) -> Recipe:
    return resolve("digits.cnn", **{"schedule": "constant", "warmup_epochs": 0, "epochs": 2, **changes})


def run(storage: Path, name: str, **changes: Any) -> RunResult:
    return fit(digits(**changes), scale=Scale(workers=0, cpus_per_worker=1, storage=str(storage)), run=name)


@pytest.mark.parametrize("schedule", END)
def test_more_epochs_end_with_the_weights_of_a_run_that_was_to_have_them(storage: Path, schedule: str) -> None:
    chosen = {"schedule": schedule, "schedule_args": END[schedule]}
    run(storage, f"more-{schedule}", **chosen)
    more = run(storage, f"more-{schedule}", epochs=5, **chosen)
    whole = run(storage, f"whole-{schedule}", epochs=5, **chosen)
    assert [line["epoch"] for line in more.history] == [1, 2, 3, 4, 5]
    assert [line["train/loss"] for line in more.history] == [line["train/loss"] for line in whole.history]
    for name, weights in last_weights(storage / f"whole-{schedule}").items():
        torch.testing.assert_close(last_weights(storage / f"more-{schedule}")[name], weights, rtol=0, atol=0)
    facts = json.loads((storage / f"more-{schedule}/run.json").read_text())
    assert (facts["status"], facts["epochs_run"], facts["recipe"]["epochs"]) == ("finished", 5, 5)
    assert facts["best"] == whole.run["best"]
    assert [(end["after_epoch"], end["changed"]) for end in facts["ends"]] == [(2, {"epochs": [2, 5]})]
    assert len((storage / f"more-{schedule}/metrics.jsonl").read_text().splitlines()) == 5


def test_the_best_epoch_stays_where_later_ones_are_worse(storage: Path) -> None:
    first = run(storage, "worse", epochs=3, lr=0.02)
    folder = Store(storage / "worse")
    best = Checkpoints(folder).best_weights()
    later = fit(digits(epochs=4, lr=0.02), scale=Scale(workers=0, cpus_per_worker=1, storage=str(storage)), run="worse")
    if later.run["best"] == first.run["best"]:
        for name, weights in Checkpoints(folder).best_weights().items():
            torch.testing.assert_close(weights, best[name])
    assert later.run["best"]["value"] == max(line["val/accuracy"] for line in later.history)


def test_nothing_is_left_of_a_run_that_is_asked_for_again(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(storage, "again")
    before = (storage / "again/run.json").read_bytes()
    run(storage, "again")
    assert "the run again has finished already; nothing is left to do" in capsys.readouterr().err
    assert (storage / "again/run.json").read_bytes() == before


def test_a_run_that_stopped_early_goes_on_with_more_patience_alone(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = run(storage, "patient", epochs=60, patience=1, lr=0.02)
    assert stopped.status == "stopped_early"
    had = len(stopped.history)
    assert run(storage, "patient", epochs=90, patience=1, lr=0.02).history == stopped.history
    said = " ".join(capsys.readouterr().err.split())
    assert "has stopped early already; nothing is left to do" in said
    assert "--patience none" in said
    more = run(storage, "patient", epochs=had + 2, patience=None, lr=0.02)
    assert (more.status, len(more.history)) == ("finished", had + 2)
    assert [line["val/loss"] for line in more.history[:had]] == [line["val/loss"] for line in stopped.history]
    assert [end["after_epoch"] for end in more.run["ends"]] == [had]


@pytest.mark.parametrize(
    ("had", "before", "now", "words"),
    [
        (2, {"epochs": 2, "schedule": "cosine"}, {"epochs": 6}, ["--init-from one", "another --run", "cosine"]),
        (5, {"epochs": 9, "schedule": "polynomial"}, {"epochs": 12}, ["--init-from one", "polynomial", "9 epochs"]),
        (5, {"epochs": 9, "schedule": "cosine"}, {"epochs": 8}, ["--init-from one", "--epochs 9"]),
        (4, {"epochs": 6}, {"epochs": 3}, ["has had 4 epochs already", "--epochs 3 is fewer", "--epochs 4 or more"]),
        (6, {"epochs": 6}, {"epochs": 3}, ["has had 6 epochs already"]),
        (2, {"epochs": 2}, {"epochs": 6, "lr": 0.7}, ["another recipe", "lr was", "epochs was 2 and is now 6"]),
    ],
)
def test_an_end_that_does_not_go_with_what_was_learned_is_refused(
    had: int, before: dict[str, Any], now: dict[str, Any], words: list[str]
) -> None:
    earlier = digits(**FIXED, **before)
    with pytest.raises(ValueError, match="the run one") as refused:
        agree_with_earlier(earlier.replace(**now), earlier.to_json(), "one", had)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("had", "before", "now"),
    [
        (2, {"epochs": 2}, {"epochs": 6}),
        (2, {"epochs": 9}, {"epochs": 2}),
        (3, {"epochs": 9, "schedule": "step"}, {"epochs": 30}),
        (1, {"epochs": 9, "schedule": "cosine", "warmup_epochs": 3}, {"epochs": 30}),  # it still warms up
        (4, {"epochs": 9, "schedule": "cosine"}, {"patience": 3}),
        (4, {"epochs": 9, "patience": 3}, {"patience": None, "epochs": 12}),
    ],
)
def test_an_end_that_changes_nothing_before_it_is_taken(had: int, before: dict[str, Any], now: dict[str, Any]) -> None:
    earlier = digits(**FIXED, **before)
    wanted = earlier.replace(**now)
    assert agree_with_earlier(wanted, earlier.to_json(), "one", had) == wanted
