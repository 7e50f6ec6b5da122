"""Signals that ask a command to end, and output that nobody reads any more."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers.listeners import beyond_loopback, listeners

from trainers import progress
from trainers.__main__ import main
from trainers.cli import exit_code
from trainers.fitting import fit
from trainers.process import Lasting, ending_signals
from trainers.recipe import Scale, resolve
from trainers.runs.events import Control
from trainers.runtime.signals import Signals

ROOT = Path(__file__).parent.parent
HUP, TERM, INT = signal.SIGHUP, signal.SIGTERM, signal.SIGINT


@pytest.fixture
def ignored() -> Iterator[None]:
    """As nohup starts a command."""
    before = signal.signal(HUP, signal.SIG_IGN)
    yield
    signal.signal(HUP, before)


@pytest.mark.parametrize("first", [HUP, TERM, INT])
def test_the_first_signal_while_training_requests_a_stop(first: signal.Signals) -> None:
    stop = threading.Event()
    with Signals(stop) as signals:
        signals.training_starts()
        os.kill(os.getpid(), first)
        assert stop.is_set()


@pytest.mark.parametrize("more", [[HUP], [HUP, HUP], [TERM], [HUP, TERM]])
def test_what_comes_with_a_closed_terminal_is_one_request(more: list[signal.Signals]) -> None:
    stop = threading.Event()
    with Signals(stop) as signals:
        signals.training_starts()
        for number in [HUP, *more]:
            os.kill(os.getpid(), number)
        assert stop.is_set()


@pytest.mark.parametrize("numbers", [[INT, INT], [TERM, TERM], [TERM, INT], [HUP, TERM, TERM], [HUP, INT, INT]])
def test_a_second_request_ends_at_once(numbers: list[signal.Signals]) -> None:
    def ask() -> None:
        with Signals(threading.Event()) as signals:
            signals.training_starts()
            for number in numbers:
                os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        ask()


@pytest.mark.usefixtures("ignored")
def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    assert ending_signals() == [INT, TERM]
    stop = threading.Event()
    with Signals(stop) as signals:
        signals.training_starts()
        os.kill(os.getpid(), HUP)
    assert not stop.is_set()
    assert exit_code(lambda: os.kill(os.getpid(), HUP) or 0) == 0
    assert signal.getsignal(HUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [HUP, TERM, INT])
def test_any_command_ends_in_order(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    assert exit_code(lambda: os.kill(os.getpid(), number) or 0) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) is before


class HangsUp(Control):
    """Closes the terminal after the second epoch."""

    def epoch(self, line: object) -> None:
        if line["epoch"] == 2:  # type: ignore[index]
            os.kill(os.getpid(), HUP)


def test_a_run_whose_terminal_is_closed_is_saved_and_continues(storage: Path) -> None:
    recipe = resolve("digits.cnn", epochs=4, precision="fp32")
    scale = Scale(workers=0, cpus_per_worker=1, storage=str(storage))
    first = fit(recipe, scale=scale, run="closed", control=HangsUp())
    assert (first.status, first.exit_code, first.run["epochs_run"]) == ("interrupted", 130, 2)
    rest, whole = fit(recipe, scale=scale, run="closed"), fit(recipe, scale=scale, run="open")
    assert [line["val/loss"] for line in rest.history] == [line["val/loss"] for line in whole.history]


class Gone(io.StringIO):
    """A stream whose other end goes away after some characters."""

    def __init__(self, number: int, room: int) -> None:
        super().__init__()
        self.number, self.room = number, room

    def write(self, text: str) -> int:
        if self.tell() + len(text) > self.room:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("room", [0, 40])
def test_messages_that_nobody_reads_end_nothing(number: int, room: int) -> None:
    shown = progress.Progress(Gone(number, room))
    for text in ("one " * 5, "two " * 5, "three"):
        shown.message(text)
        shown.warning(text)


def test_results_that_nobody_reads_end_nothing_but_a_full_disk_does() -> None:
    for number in (errno.EPIPE, errno.EIO):
        print("result", file=Lasting(Gone(number, 0)), flush=True)
    with pytest.raises(OSError, match="No space left"):
        print("result", file=Lasting(Gone(errno.ENOSPC, 0)))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_is_closed_leads_nowhere_from_then_on(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8", buffering=1) as pipe:
        monkeypatch.setattr(sys, stream, pipe)
        assert main(["list"]) == 0
        assert main(["trian"]) == 2
        print("by whoever writes without us", file=pipe, flush=True)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "| true"])
def test_a_command_without_streams_works(closed: str) -> None:
    command = f"{sys.executable} -m trainers list {closed}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_closed_terminal_saves_the_run_wherever_it_runs(workers: int, tmp_path: Path) -> None:
    """The terminal is gone, and every process of its group, Ray's too, is told so, twice. Before that, they listen on
    loopback alone."""
    ours, theirs = pty.openpty()
    flags = ["--workers", str(workers), "--epochs", "4000", "--run", "x", "--checkpoint-seconds", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainers", "train", "digits.cnn", *flags],
        cwd=ROOT,
        env={**os.environ, "TRAINYARD_STORAGE": str(tmp_path), "RAY_ADDRESS": ""},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    lines = tmp_path / "x/metrics.jsonl"
    end = time.monotonic() + 120
    while not lines.exists() or len(lines.read_text().splitlines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    seen = listeners(psutil.Process(process.pid))
    assert ("raylet" in seen) == bool(workers)
    assert beyond_loopback(seen) == {}
    os.close(ours)
    for _ in range(2):
        os.killpg(process.pid, HUP)
        time.sleep(0.3)
    assert process.wait(60) == 130
    run = json.loads((tmp_path / "x/run.json").read_text())
    assert run["status"] == "interrupted"
    assert list((tmp_path / "x/checkpoints").glob("*/manifest.json"))
