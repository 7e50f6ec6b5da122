"""Seconds from the command to a validation score: ours as it comes against the same training by hand.

    python tests/benchmarks/time_to_score.py [--quick] [--repeats N] [--threads N] [--only mnist|shapes|textures|camvid]
        [--mnist PATH] [--camvid PATH] [--minutes 20] [--loaders 0] [--ray 0]

    mnist      mnist.cnn, accuracy 0.99, where --mnist gives the folder of the published files
    shapes     shapes.unet, mIoU 0.85
    textures   folder.tune, accuracy 0.90, on 1,500 + 375 drawn textures of own_folder.py
    camvid     folder.tune_masks at 96x128, mIoU 0.45, where --camvid gives SegNet's form of CamVid, or a part of it

Every training is a process of its own, and competitors take turns; each round has another seed.

    trainyard             python -m trainers train RECIPE: prepares pictures, writes a run folder
    trainyard on Ray      the same with --workers 1, which starts Ray (--ray 1)
    loop                  plain PyTorch and torchvision, in _by_hand.py: a DataLoader that decodes, in this process
                          (--loaders: in so many of its own), torch's default threads, no files written
    lightning             the same in a LightningModule and a Trainer as documented (pip install -e '.[peers]')

All train the same network, from the same weights where ours has some, on the same pictures and for the same epochs,
with the recipe's batch, optimizer, highest rate (for all layers alike), warm-up and cosine, crops and flips. Shapes are
drawn by ours while it prepares; the others read them from files. Start-up, reading and validation count; the clock
stops with the first epoch whose score is high enough, and the training is then ended. One that ends before, or takes
--minutes, counts as infinite. `processor` is the time of all cores, of all processes of a training.

Wanted: at most 0.9 of the loop's time, 0.7 of Lightning's. --quick: drawn digits, shapes and textures of 32x32, small
networks and low scores, which each must reach.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _common
import numpy as np
import psutil
from own_folder import draw_textures
from PIL import Image

from trainers import Recipe, from_data, resolve
from trainers.limits import cpus

PEERS = Path(__file__).with_name("_by_hand.py")
GRACE = 60.0
"""Seconds that a training gets to end in order."""
LOOK = 0.02
"""Seconds between looks at the scores."""


class Set(NamedTuple):
    """A data set, and what is to be reached on it."""

    name: str
    recipe: str
    changes: Mapping[str, object]
    """Of the recipe."""
    folder: Path
    kind: str
    """See `data` of a job in _by_hand.py."""
    given: bool
    """Whether ours reads the folder, too."""
    metric: str
    score: float
    classes: int
    rows: int
    """Training pictures."""
    class_weights: list[float] | None = None


class Reached(NamedTuple):
    """What a training came to."""

    seconds: float
    """From the command to the epoch with the score; infinite: it did not get there."""
    processor: float
    """Seconds of all cores."""
    first: float
    """Seconds to the end of the first epoch."""
    scores: list[float]
    """Of each epoch until then."""


# Data sets ------------------------------------------------------------------------------------------------------------


def mnist(given: Any, home: Path) -> Set | None:
    from trainers.datasets import mnist as files

    folder = home / "mnist"
    if given.quick:
        _common.draw_mnist(folder / "MNIST" / "raw", 600)
    elif given.mnist is None:
        print("mnist is left out: give --mnist PATH")
        return None
    else:
        (folder / "MNIST" / "raw").mkdir(parents=True)
        for path in sorted(given.mnist.glob("*ubyte*")):
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
                (folder / "MNIST" / "raw" / path.name.removesuffix(".gz")).write_bytes(stream.read())
    splits = files.source(str(folder)).splits
    rows = {split: [row for item in items for row in item.args["rows"]] for split, items in splits.items()}
    np.save(folder / "val.npy", rows["val"])
    changes: dict[str, object] = {"epochs": 3, "batch_size": 32} if given.quick else {}
    score = 0.5 if given.quick else 0.99
    return Set("mnist", "mnist.cnn", changes, folder, "mnist", True, "accuracy", score, 10, len(rows["train"]))


def shapes(given: Any, home: Path) -> Set:
    from trainers.datasets import shapes as drawn

    changes: dict[str, Any] = {}
    if given.quick:
        changes["dataset_args"] = {"train": 64, "val": 16, "test": 0, "height": 32, "width": 32}
        changes |= {"image_size": "32x32", "epochs": 2, "model_args": {"base_channels": 4}}
    recipe = resolve("shapes.unet", **changes)
    folder = home / "shapes"
    for split, items in drawn.source(None, **recipe.dataset_args).splits.items():
        if split == "test":
            continue
        for part in (split, f"{split}annot"):
            (folder / part).mkdir(parents=True)
        pairs = itertools.chain.from_iterable(map(drawn.read, items))
        for number, (picture, mask) in enumerate(pairs):
            Image.fromarray(picture).save(folder / split / f"{number:05}.png")
            Image.fromarray(mask).save(folder / f"{split}annot" / f"{number:05}.png")
    rows, score = recipe.dataset_args["train"], 0.1 if given.quick else 0.85
    return Set("shapes", "shapes.unet", changes, folder, "masks", False, "miou", score, len(drawn.CLASSES), rows)


def textures(given: Any, home: Path) -> Set:
    rows = 48 if given.quick else 1500
    changes: dict[str, object] = {"image_size": "32x32", "epochs": 2, "model": "linear_cnn"} if given.quick else {}
    folder, score = draw_textures(home / "textures", rows), 0.1 if given.quick else 0.9
    return Set("textures", "folder.tune", changes, folder, "folder", True, "accuracy", score, 6, rows)


def camvid(given: Any, _: Path) -> Set | None:
    from trainers.datasets import camvid as published
    from trainers.tasks.class_weights import weigh_classes

    if given.camvid is None or given.quick:
        print("camvid is left out: give --camvid PATH")
        return None
    classes, folder = len(published.CLASSES), given.camvid
    masks = sorted((folder / "trainannot").glob("*.png"))
    pixels = np.concatenate([np.asarray(Image.open(path)).reshape(-1) for path in masks])
    weights = weigh_classes("erfnet", np.bincount(pixels)[:classes].tolist())
    assert weights is not None
    changes = {"dataset": "camvid", "image_size": "96x128"}
    facts = ("masks", True, "miou", 0.45, classes, len(masks), weights.tolist())
    return Set("camvid", "folder.tune_masks", changes, folder, *facts)


SETS: dict[str, Callable[[Any, Path], Set | None]] = {
    "mnist": mnist,
    "shapes": shapes,
    "textures": textures,
    "camvid": camvid,
}


# Competitors ----------------------------------------------------------------------------------------------------------


def seconds_to(
    words: Sequence[str], environment: Mapping[str, str], lines: Path, key: str, score: float, limit: float
) -> Reached:
    """Run a command until its epochs have the score.

    Args:
        words: The command.
        environment: Beside that of this process.
        lines: The file to which it adds a line of JSON each epoch.
        key: Of the score there.
        score: That is to be reached.
        limit: Seconds after which it is ended.

    Raises:
        SystemExit: The command failed.
    """
    log, scores, first = lines.parent.with_suffix(".log"), [], math.inf
    start = time.perf_counter()
    with open(log, "w") as stream:
        process = subprocess.Popen(
            words, env={**os.environ, **environment}, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        while True:
            over, now = process.poll() is not None, time.perf_counter() - start
            with contextlib.suppress(FileNotFoundError):
                scores = [json.loads(line)[key] for line in lines.read_text().split("\n")[:-1]]
            first = min(first, now) if scores else first
            if scores and scores[-1] >= score:
                return Reached(now, _processor_seconds(process.pid), first, scores)
            if over and process.returncode:
                raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
            if over or now > limit:
                return Reached(math.inf, math.inf, first, scores)
            time.sleep(LOOK)
    finally:
        _end(process)


def _processor_seconds(pid: int) -> float:
    """Of a process, of those that it started, and of those of these that have ended."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it; where it has started others, as Ray's, as Control-C does, and by force where that takes long."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if psutil.Process(process.pid).children():
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ours(each: Set, given: Any, home: Path, seed: int, *words: str) -> Reached:
    """`python -m trainers train`, on a cache of prepared pictures of its own."""
    folder, cache = home / f"{each.name}-{time.time_ns()}", home / "cache"
    command = [sys.executable, "-m", "trainers", "train", each.recipe, "--run", folder.name, "--seed", str(seed)]
    command += ["--data", str(each.folder)] * each.given
    command += ["--cpus-per-worker", str(given.threads)] * (given.threads < cpus())
    command += [word for name, value in each.changes.items() for word in _flag(name, value)] + list(words)
    shutil.rmtree(cache, ignore_errors=True)
    environment = {"TRAINYARD_CACHE": str(cache)}
    key = f"val/{each.metric}"
    return seconds_to(command, environment, folder / "metrics.jsonl", key, each.score, 60 * given.minutes)


def _flag(name: str, value: object) -> list[str]:
    values = [f"{key}={each}" for key, each in value.items()] if isinstance(value, Mapping) else [str(value)]
    return [f"--{name.replace('_', '-')}", *values]


def peer(each: Set, given: Any, home: Path, seed: int, how: str) -> Reached:
    """`how`, a training of _by_hand.py, by the recipe's settings."""
    recipe, _ = from_data.follow(resolve(each.recipe, **each.changes), each.rows)
    folder = home / f"{each.name}-{how}-{time.time_ns()}"
    folder.mkdir()
    lines = folder / "lines"
    job = {**_settings(recipe), "seed": seed, "loaders": given.loaders, "lines": str(lines)}
    job |= {"data": each.kind, "folder": str(each.folder), "classes": each.classes, "class_weights": each.class_weights}
    command = [sys.executable, str(PEERS), how, json.dumps(job)]
    environment = {"OMP_NUM_THREADS": str(given.threads)} if given.threads < cpus() else {}
    return seconds_to(command, environment, lines, "score", each.score, 60 * given.minutes)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What the recipe and a job share."""
    names = "model model_args image_size augment epochs batch_size optimizer lr momentum weight_decay warmup_share"
    fields = recipe.to_json()
    return {**{name: fields[name] for name in names.split()}, "loss": fields["task_args"].get("loss")}


# Rounds ---------------------------------------------------------------------------------------------------------------


def compare(each: Set, given: Any, home: Path) -> None:
    """Time all competitors on a data set, and print it."""
    runs: dict[str, Callable[[int], Reached]] = {"trainyard": lambda seed: ours(each, given, home, seed)}
    if given.ray and not given.quick:
        runs["trainyard on Ray"] = lambda seed: ours(each, given, home, seed, "--workers", "1")
    runs["loop"] = lambda seed: peer(each, given, home, seed, "loop")
    if importlib.util.find_spec("lightning") is not None:
        runs["lightning"] = lambda seed: peer(each, given, home, seed, "lightning")
    else:
        print("lightning is not installed, and is left out: pip install -e '.[peers]'")
    found: dict[str, list[Reached]] = {name: [] for name in runs}

    def run(name: str) -> Callable[[], float]:
        def once() -> float:
            found[name].append(runs[name](len(found[name])))
            return found[name][-1].seconds

        return once

    rounds = _common.take_turns({name: run(name) for name in runs}, given.repeats)
    wanted = {"loop": "<= 0.9", "lightning": "<= 0.7"}
    mine = [name for name in runs if name.startswith("trainyard")]
    bars = {(name, other): bar for other, bar in wanted.items() if other in runs for name in mine}
    _common.compare(f"{each.recipe}, {each.metric} {each.score:g}", "seconds", rounds, bars)
    columns = ["", "processor, s", "first epoch after, s", "each other, s", "epochs", "best score"]
    _common.show("", columns, [[name, *_details(results)] for name, results in found.items()])
    if given.quick:
        for name, results in found.items():
            assert math.isfinite(results[0].seconds), f"{each.name}: {name} reached {results[0].scores} only"


def _details(results: Sequence[Reached]) -> list[str]:
    """Medians; of the epochs and scores, those of each round."""
    later = [(each.seconds - each.first) / (len(each.scores) - 1) for each in results if len(each.scores) > 1]
    return [
        f"{statistics.median(each.processor for each in results):.1f}",
        f"{statistics.median(each.first for each in results):.1f}",
        f"{statistics.median(later):.1f}" if later else "",
        ", ".join(str(len(each.scores)) for each in results),
        ", ".join(f"{max(each.scores, default=math.nan):.3f}" for each in results),
    ]


def main() -> None:
    numbers = {
        "minutes": (20, "after which a training is given up"),
        "ray": (0, "whether ours with --workers 1 takes part"),
        "loaders": (0, "processes of each DataLoader of the others"),
    }
    paths = {"mnist": "folder of MNIST's published files", "camvid": "folder of CamVid, in SegNet's form"}
    given = _common.flags(__doc__, repeats=3, numbers=numbers, paths=paths)
    if given.quick:
        given.threads = 1
    _common.print_machine()
    with _common.temporary_storage() as home:
        for name, prepare in SETS.items():
            if given.only in name and (each := prepare(given, home)) is not None:
                compare(each, given, home)


if __name__ == "__main__":
    main()
