"""What people see on stderr."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from trainers import progress
from trainers.progress import Progress

STEP = {
    "epoch": 3, "epochs": 30, "step": 5, "steps": 12, "loss": 0.12345, "score": "accuracy 0.9712",
    "images_per_second": 4312.0, "data_wait_share": 0.012, "seconds_left": 102.0,
}  # fmt: skip
LINE = {
    "epoch": 3, "images_per_second": 4312.0, "data_wait_share": 0.012, "train/loss": 0.1, "val/loss": 0.2,
    "val/accuracy": 0.9712, "val/f1": 0.9,
}  # fmt: skip


def test_in_a_log_each_epoch_is_a_line() -> None:
    file = io.StringIO()
    shown = Progress(file)
    shown.step({**STEP, "seconds_left": 50.0})  # too soon for a line of its own
    shown.step(STEP)
    shown.epoch(LINE, 30, "f1", better=True)
    assert file.getvalue() == (
        "epoch 3/30  train loss 0.1000  val loss 0.2000  val accuracy 0.9712  val f1 0.9000 *  "
        "4,312 images/s  data wait 1 %  1:42 left\n"
    )


def test_in_a_log_a_long_epoch_reports_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STEP_LINE_SECONDS", 0.0)
    file = io.StringIO()
    Progress(file).step({**STEP, "seconds_left": 50.0})
    assert file.getvalue().startswith("epoch 3/30  step 5/12  loss 0.1235  accuracy 0.9712  4,312 images/s")


def test_a_training_of_minutes_says_once_how_long_it_takes() -> None:
    file = io.StringIO()
    shown = Progress(file)
    for left in (None, 400.0, 390.0):
        shown.step({**STEP, "seconds_left": left})
    ahead = "about 6:40 of training are ahead, 28 epochs at this speed: Ctrl-C saves, and the same command with --run"
    assert file.getvalue().count("of training") == 1
    assert " ".join(file.getvalue().split()).startswith(ahead)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_fits_its_terminal(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    shown = Progress(console=console)
    shown.step(STEP)
    shown.step({**STEP, "step": 12})
    assert shown._training is not None
    drawn = console.render_lines(shown._training.get_renderable(), pad=False)
    shown.close()
    assert len(drawn) == 1
    text = "".join(segment.text for segment in drawn[0])
    assert "epoch 3/30" in text
    assert "loss 0.1235" in text
    assert "1:42 left" in text  # the last to go


def test_markup_in_messages_is_text() -> None:
    file = io.StringIO()
    shown = Progress(file)
    shown.message("path [red]x[/red] [1/2]")
    shown.warning("warning: odd [bold]")
    assert file.getvalue() == "path [red]x[/red] [1/2]\nwarning: odd [bold]\n"


def test_a_bar_in_a_log_is_a_line_when_it_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "QUIET_SECONDS", 600.0)
    with Progress(file).bar("preparing pictures", 10) as advance:
        advance(10)
    assert file.getvalue() == ""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with Progress(file).bar("preparing pictures", 10) as advance:
        advance(10)
    assert re.fullmatch(r"preparing pictures: 10 in [\d.]+ s\n", file.getvalue())


def test_what_is_waited_for_is_reported_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "QUIET_SECONDS", 600.0)
    with Progress(file).waiting("starting Ray"):
        pass
    assert file.getvalue() == ""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.01)
    with Progress(file).waiting("starting Ray"):
        limit = time.monotonic() + 60
        while not file.getvalue() and time.monotonic() < limit:
            time.sleep(0.01)
    assert file.getvalue().startswith("starting Ray\n")


def test_the_table_at_the_end_shows_status_times_and_memory() -> None:
    run: dict[str, Any] = {
        "status": "stopped_early",
        "epochs_run": 7,
        "best": {"epoch": 4, "metric": "accuracy", "value": 0.91},
        "final": {"accuracy": 0.91, "per_class": {}},
        "seconds": {"total": 100.0, "setup": 10.0, "compute": 60.0, "data_wait": 20.0},
        "images_per_second": 1234.0,
        "peak_memory_bytes": {"host": 2**30, "device": None},
    }
    file = io.StringIO()
    Progress(file).summary(run, "/runs/one")
    for text in ("stopped early", "4 of 7, val accuracy 0.9100", "1:20", "data wait 25.0 %", "host 1.00 GiB"):
        assert text in file.getvalue()
    assert "tensorboard --logdir /runs/one" in file.getvalue()
