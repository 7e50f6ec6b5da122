"""How costs grow with workers, model size and data tasks, on one machine: what 64 hosts would feel.

    python tests/benchmarks/scale.py [--quick] [--only workers|checkpoints|prepare]

workers: 1 to 16 workers train a model that does nothing, 4 pictures of 8x8 each a step: start-up, time and CPU of a
step, and the CPU that Ray's controller, the run's coordinator and the driver take. All share this machine's cores.
checkpoints: time that training waits for one, and until it is complete, against its size.
prepare: seconds against decoding tasks of Ray Data, of JPEGs of 1024x768 stored at 128x128; the prepared pictures must
be equal.

--quick: 2 workers for 2 s, one small model, 40 JPEGs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _common
import numpy as np
import psutil
from PIL import Image

NOTHING = """
import torch


class Nothing(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(classes))

    def forward(self, images):
        return self.weight.expand(len(images), -1)


def build(*, image_size, channels, classes):
    return Nothing(classes)
"""
SMALL, ROWS = 4, 1438
"""Pictures of each worker in a step, and in an epoch of digits.cnn."""
WATCHED = ("RayTrainWorker", "TrainController", "Coordinator", "driver")


def main() -> None:
    given = _common.flags(__doc__, repeats=1)
    with _common.temporary_storage() as storage:
        _common.print_machine()
        for name, part in (("workers", workers), ("checkpoints", checkpoints), ("prepare", prepare)):
            if given.only in name:
                part(storage, given.quick)


def workers(storage: Path, quick: bool) -> None:
    """A run with each number of workers, on one Ray."""
    (storage / "nothing.py").write_text(NOTHING)
    counts = (2,) if quick else (1, 2, 4, 8, 16)
    rows = []
    with _ray(max(counts) + 2):
        for count in counts:
            rows.append(_run_nothing(storage, count, seconds=2 if quick else 15))
    columns = ["workers", "start, s", "ms a step", "CPU ms a step and worker", "controller", "coordinator", "driver"]
    _common.show("a model that does nothing; CPU of the last three in percent of a core", columns, rows)


def _run_nothing(storage: Path, count: int, seconds: float) -> list[str]:
    """Train for so many seconds."""
    from trainers.fitting import fit
    from trainers.progress import Progress
    from trainers.recipe import Scale
    from trainers.runs.events import Control

    used: list[tuple[float, dict[str, float]]] = []

    class Heartbeat(Control):
        def epoch(self, line: Any) -> None:
            used.append((time.perf_counter(), _cpu_seconds()))
            if len(used) > 2 and used[-1][0] - used[1][0] > seconds:
                self.stop.set()

    changes: dict[str, Any] = {"model": str(storage / "nothing.py"), "epochs": 10**6, "patience": None}
    changes |= {"batch_size": SMALL * count, "micro_batch_size": SMALL}
    result = fit(
        "digits.cnn",
        changes,
        Scale(workers=count, cpus_per_worker=1),
        f"nothing-{count}",
        progress=Progress(file=io.StringIO()),
        control=Heartbeat(),
    )
    assert result.status == "interrupted", result.run["message"]
    (first, before), *later = used[1:]  # the first epoch is slower
    last, after = next(pair for pair in later if pair[0] - first > seconds)
    assert after.keys() == set(WATCHED), f"processes of this name were not found: {set(WATCHED) - after.keys()}"
    spent = {name: after[name] - before.get(name, 0.0) for name in WATCHED}
    steps = -(-ROWS // (SMALL * count))
    per_step = 1000 * statistics.median(line["seconds"] for line in result.history) / steps
    done = steps * (used.index((last, after)) - 1)
    figures = [result.run["seconds"]["setup"], per_step, 1000 * spent["RayTrainWorker"] / done / count]
    shares = [f"{100 * spent[name] / (last - first):.0f} %" for name in WATCHED[1:]]
    return [str(count), f"{figures[0]:.1f}", f"{figures[1]:.2f}", f"{figures[2]:.2f}", *shares]


def _cpu_seconds() -> dict[str, float]:
    """CPU time so far of this process and of Ray's actors below it, by kind."""
    found: dict[str, float] = {"driver": sum(psutil.Process().cpu_times()[:2])}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            for name in WATCHED[:3]:
                if f"ray::{name}" in title:
                    found[name] = found.get(name, 0.0) + sum(process.cpu_times()[:2])
    return found


def checkpoints(storage: Path, quick: bool) -> None:
    """Of models of several sizes, with SGD's momentum."""
    import torch

    from trainers.recipe import resolve
    from trainers.storage.store import Store
    from trainers.training import build
    from trainers.training.checkpoint import Checkpoints
    from trainers.training.distributed import World

    world = World(0, 1, torch.device("cpu"), "fp32")
    rows = []
    for name in ("digits.cnn",) if quick else ("digits.cnn", "erfnet.decoder", "deeplab.camvid", "unet.drone"):
        recipe = build.without_weights(resolve(name)).replace(optimizer="sgd", momentum=0.9, class_weights="none")
        meta = {"channels": 3, "classes": list("abcdefghijk"), "class_counts": {"train": [1] * 11}}
        state = build.create_state(recipe, meta, world)
        for parameter in state.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.step()
        writer, waits, whole = Checkpoints(Store(storage / name)), [], []
        for step in range(1, 6):
            state.total_steps, start = step, time.perf_counter()
            writer.save(state)
            waits.append(time.perf_counter() - start)
            writer.wait()
            whole.append(time.perf_counter() - start)
        writer.close()
        manifest = json.loads((storage / name / "checkpoints/00000005/manifest.json").read_text())
        rows.append([name, f"{manifest['bytes'] / 2**20:.1f}", _common.spread(waits, 2), _common.spread(whole, 2)])
    _common.show("checkpoints: rank 0 alone writes", ["model", "MiB", "training waits, s", "complete after, s"], rows)


def prepare(storage: Path, quick: bool) -> None:
    """The same pictures with each number of tasks at once."""
    from trainers.data import prepare as preparing
    from trainers.data.source import scan_files
    from trainers.recipe import resolve

    count = 40 if quick else 600
    _draw(storage / "photos", count)
    recipe = resolve("resnet.r18", image_size=(128, 128), stored_size=(128, 128), batch_size=8)
    rows = []
    tasks = (1, 2) if quick else (1, 2, 4)
    with _ray(max(tasks)):
        fingerprints = set()
        preparing.INLINE_BYTES, preparing.SHARD_BYTES = 0, 2**20  # many tasks, as of many photos
        plain = preparing.ray_map
        for number in (0, *tasks):  # the first one starts Ray Data's processes
            preparing.ray_map = functools.partial(plain, most=max(number, 1))
            start = time.perf_counter()
            source = scan_files(recipe, str(storage / "photos"))
            folder = preparing.prepare(recipe, source, storage / f"cache-{number}", ray=True)
            seconds = time.perf_counter() - start
            fingerprints.add(json.loads((Path(folder) / "meta.json").read_text())["fingerprint"])
            if number:
                rows.append([str(number), f"{seconds:.2f}"])
        preparing.ray_map = plain
    assert len(fingerprints) == 1, "the prepared pictures depend on the number of tasks"
    _common.show(f"prepare: {count} JPEGs of 1024x768 to 128x128", ["tasks at once", "seconds"], rows)


def _draw(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        home = folder / f"class{index % 2}"
        home.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(small).resize((1024, 768)).save(home / f"{index}.jpg", quality=90)


@contextlib.contextmanager
def _ray(cpus: int) -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
