"""What the benchmarks share: flags, generated data, rounds, tables.

Times are printed, never asserted on: the machine may be doing other work. Results are: both sides must have done the
same work. Competitors take turns, so that such work disturbs all of them alike; what counts are medians, and the median
of the ratios within a round. Each ratio is ours over theirs, in time: less is better.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the benchmarks need no installation
sys.path.append(str(ROOT / "tests"))  # for helpers
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from trainers.limits import cpus  # noqa: E402  # found by the path above

Rounds = dict[str, list[float]]
"""Competitor -> its number in each round."""


def flags(
    doc: str | None,
    repeats: int,
    threads: int | None = None,
    numbers: Mapping[str, tuple[int, str]] | None = None,
    paths: Mapping[str, str] | None = None,
) -> argparse.Namespace:
    """The command line: quick, repeats, threads, only, and the benchmark's own `numbers`, name -> (default, help), and
    `paths`, name -> help, which are None where they are not given."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for seconds; the numbers mean nothing")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds (default {repeats})")
    threads = threads or cpus()
    parser.add_argument("--threads", type=int, default=threads, help=f"of each process (default {threads})")
    parser.add_argument("--only", default="", help="only the parts whose name contains this word")
    for name, (default, text) in (numbers or {}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    for name, text in (paths or {}).items():
        parser.add_argument(f"--{name}", type=Path, help=text)
    given = parser.parse_args()
    if given.quick:
        given.repeats = 1
    return given


@contextlib.contextmanager
def temporary_storage(temporary_files: bool = True) -> Iterator[Path]:
    """A folder that is TRAINYARD_STORAGE while the benchmark runs, and is deleted at its end.

    Args:
        temporary_files: Whether it also takes the temporary files of this process and its children, such as Ray's.
    """
    folder = Path(tempfile.mkdtemp(prefix="yard-"))  # short: Ray's sockets lie in it, whose paths have 107 characters
    os.environ["TRAINYARD_STORAGE"] = str(folder)
    os.environ.pop("TRAINYARD_CACHE", None)
    os.environ.pop("RAY_ADDRESS", None)
    if temporary_files:
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end from outside leaves nothing behind either
    try:
        yield folder
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        _delete(folder)


def _delete(folder: Path) -> None:
    """Processes that end may still write for a moment."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)
    shutil.rmtree(folder)


def take_turns(competitors: Mapping[str, Callable[[], float]], repeats: int) -> Rounds:
    """Call each competitor once a round, in turning order."""
    names = list(competitors)
    rounds: Rounds = {name: [] for name in names}
    for number in range(repeats):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rounds[name].append(competitors[name]())
            line = f"  round {number + 1}/{repeats}: {name}: {rounds[name][-1]:.5g}"
            print(line, file=sys.stderr, flush=True)
    return rounds


def ratio(rounds: Rounds, ours: str, peer: str) -> list[float]:
    """ours / peer, of each round."""
    return [mine / theirs for mine, theirs in zip(rounds[ours], rounds[peer], strict=True)]


def spread(values: Sequence[float], digits: int = 4) -> str:
    """`median (smallest to largest)`"""
    low, middle, high = (_number(pick(values), digits) for pick in (min, statistics.median, max))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def compare(title: str, unit: str, rounds: Rounds, bars: Mapping[tuple[str, str], str]) -> None:
    """Print the times of each competitor, and the ratios (ours, peer) of `bars` beside the bar wanted."""
    show(title, ["", unit], [[name, spread(values)] for name, values in rounds.items()])
    rows = []
    for (mine, peer), bar in bars.items():
        ratios = ratio(rounds, mine, peer)
        rows.append([f"{mine} / {peer}", spread(ratios), bar])
    show("", ["ratio", "median (smallest to largest)", "wanted"], rows)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def print_machine() -> None:
    """Print what the numbers were measured on."""
    import torch

    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    cores = cpus()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {cores} cores, load {load}; {versions}")


def draw_mnist(folder: Path, rows: int) -> str:
    """MNIST's files with `rows` drawn training pictures: noise, and stripes that depend on the class."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", rows), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        stripes = np.sin(np.outer(labels + 1, np.arange(28)) / 2)[:, None, :] * 60 + 128
        images = np.clip(stripes + rng.normal(0, 25, (count, 28, 28)), 0, 255).astype(np.uint8)
        head = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return str(folder)


def _number(value: float, digits: int) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{digits}g}"
