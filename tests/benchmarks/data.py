"""Data alone, without training: 5,000 photographs to normalised 64x64 tensors, batch 128, shuffled.

    python tests/benchmarks/data.py [--quick] [--repeats N] [--threads N] [--only photos|wait|prepare]

1,000 JPEGs of 512x512 are drawn and each is used five times (hard links), in 4 class folders. Compared are

    ours           trainers.data.prepare: look, prepare (decode once), Cached.batches, loop.Preprocess
    DataLoader     torchvision's ImageFolder and transforms v2, 2 processes that stay; decodes every epoch
    ray.data       read_images, map, iter_torch_batches; decodes every epoch; Ray's start-up is not counted
    ray.data kept  the same, materialised after the first epoch

Each must yield every picture once an epoch, in the right type and size. Wanted: a first epoch (listing and preparing
included) of at most 1.2 times the DataLoader's time, later epochs of at most 0.05 times.

wait: the share of a later epoch of MNIST-sized training spent waiting for data (wanted: below 3 %), and the time from
asking for a later epoch to its first batch (wanted: below 0.2 s).

prepare: the processor time of preparing a JPEG of 512x512 at 224x224, over that of reading and shrinking it alone
(wanted: at most 1.3 times), and the memory of a task, beyond what its process had (wanted: at most 100 MiB).

--quick: 40 JPEGs, each used five times, and of ray.data the second kind alone; 600 pictures of MNIST's size.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import _common
import numpy as np
import overhead
import torch
from PIL import Image

from trainers.data import prepare as preparing
from trainers.data import sampler, targets
from trainers.data.batches import Cached
from trainers.data.decoder import Decoder
from trainers.data.prepare import prepare
from trainers.data.source import scan_files
from trainers.recipe import Recipe, resolve
from trainers.training.distributed import World
from trainers.training.preprocess import Preprocess

BATCH = 128
SIDE = 64
CLASSES = 4
USES = 5
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Times = dict[str, float]


def draw_photos(folder: Path, count: int) -> Path:
    """Smooth colours, texture and noise, JPEGs of quality 90: train/<class>/*, and a few in val/<class>/*."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:512, 0:512]
    for number in range(count + CLASSES):
        split, label = ("train" if number < count else "val"), number % CLASSES
        smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = smooth.resize((512, 512), Image.Resampling.BICUBIC)
        slope = rng.uniform(0.05, 0.5, 2)
        texture = 20 * np.sin(slope[0] * rows + slope[1] * columns) + rng.normal(0, 10, (512, 512))
        pixels = np.clip(np.asarray(smooth) + texture[:, :, None], 0, 255).astype(np.uint8)
        home = folder / split / f"class{label}"
        home.mkdir(parents=True, exist_ok=True)
        first = home / f"{number:04}-0.jpg"
        Image.fromarray(pixels).save(first, quality=90)
        if split == "train":
            for use in range(1, USES):
                os.link(first, home / f"{number:04}-{use}.jpg")
    return folder


def time_epochs(epochs: int, epoch: Callable[[int], Iterable[Any]], begun: float, rows: int) -> Times:
    """Seconds of the first epoch since `begun`, of later ones (median), and to a later one's first batch."""
    spent, first_batch = [], []
    for number in range(epochs):
        start = begun if number == 0 else time.perf_counter()
        arrived, seen = None, 0
        for images, _ in epoch(number):
            arrived = arrived or time.perf_counter() - start
            assert (images.dtype, *images.shape[1:]) == (torch.float32, 3, SIDE, SIDE)
            seen += len(images)
        assert seen == rows, f"{seen} of {rows} rows"
        spent.append(time.perf_counter() - start)
        first_batch.append(arrived or 0.0)
    later = statistics.median
    return {"first epoch": spent[0], "later epochs": later(spent[1:]), "first batch": later(first_batch[1:])}


# The competitors --------------------------------------------------------------------------------------------------


def ours(photos: Path, cache: Path, rows: int) -> Times:
    shutil.rmtree(cache, ignore_errors=True)
    begun = time.perf_counter()
    facts: dict[str, Any] = {"dataset": "image_folder", "model": "resnet", "image_size": (SIDE, SIDE)}
    recipe = Recipe(epochs=1, batch_size=BATCH, lr=0.1, **facts)
    cached = Cached(prepare(recipe, scan_files(recipe, str(photos)), cache))
    preprocess = Preprocess(recipe, cached.meta, World(0, 1, torch.device("cpu"), "fp32"))

    def epoch(number: int) -> Iterable[Any]:
        for batch in cached.batches("train", passes(recipe.seed, number, rows)):
            yield preprocess(batch, number)

    return time_epochs(6, epoch, begun, rows)


def passes(seed: int, epoch: int, rows: int) -> Iterable[sampler.Pass]:
    """One worker's passes over an epoch, as loop.train makes them."""
    return sampler.passes(
        sampler.shuffled(seed, epoch, rows), batch_size=BATCH, micro_batch_size=BATCH, rank=0, world_size=1
    )


def data_loader(photos: Path, processes: int, rows: int) -> Times:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    transform = transforms()  # imports more of torchvision
    begun = time.perf_counter()
    loader = DataLoader(
        ImageFolder(str(photos / "train"), transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=processes,
        persistent_workers=True,
    )
    return time_epochs(2, lambda number: loader, begun, rows)


def transforms() -> Any:
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.Resize(SIDE),
            v2.CenterCrop(SIDE),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def ray_data(photos: Path, keep: bool, cores: int, rows: int) -> Times:
    """In a Ray of its own, so that its processes do not slow down the others."""
    start = time.perf_counter()
    import ray.data
    from ray.data.datasource.partitioning import Partitioning

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(address="local", num_cpus=cores, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.range(100, override_num_blocks=2 * cores).map(lambda row: row).materialize()  # starts workers
    begun = time.perf_counter()

    root = str(photos / "train")
    partitioning = Partitioning("dir", field_names=["class"], base_dir=root)
    transform, labels = transforms(), {f"class{label}": label for label in range(CLASSES)}

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        return {"image": transform(Image.fromarray(row["image"])).numpy(), "label": labels[row["class"]]}

    state = {"photos": ray.data.read_images(root, mode="RGB", partitioning=partitioning).map(decode)}

    def epoch(number: int) -> Iterable[Any]:
        if keep and number == 0:
            state["photos"] = state["photos"].materialize()
        for batch in state["photos"].iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=1000):
            yield batch["image"], batch["label"]

    times = time_epochs(3 if keep else 2, epoch, begun, rows)
    ray.shutdown()
    return {**times, "Ray's start": begun - start}


# Parts -----------------------------------------------------------------------------------------------------


def compare_photos(given: Any, storage: Path) -> None:
    count = 40 if given.quick else 1000
    rows = count * USES
    photos = draw_photos(storage / "photos", count)
    found: dict[str, list[Times]] = {}

    def measured(name: str, run: Callable[[], Times]) -> Callable[[], float]:
        def call() -> float:
            found.setdefault(name, []).append(run())
            return found[name][-1]["later epochs"]

        return call

    peers = {
        "ours": measured("ours", lambda: ours(photos, storage / "cache", rows)),
        "DataLoader": measured("DataLoader", lambda: data_loader(photos, 2, rows)),
        "ray.data kept": measured("ray.data kept", lambda: ray_data(photos, True, given.threads, rows)),
    }
    if not given.quick:
        peers["ray.data"] = measured("ray.data", lambda: ray_data(photos, False, given.threads, rows))
    _common.take_turns(peers, given.repeats)
    columns = ["first epoch", "later epochs", "first batch"]
    rounds = {key: {name: [times[key] for times in found[name]] for name in peers} for key in columns}
    cells = [[name, *(_common.spread(rounds[column][name], 3) for column in columns)] for name in peers]
    title = f"{rows:,} JPEGs of 512x512 to {SIDE}x{SIDE}: seconds"
    _common.show(title, ["", *columns[:2], "to a later epoch's first batch"], cells)
    start_up = [times["Ray's start"] for each in found.values() for times in each if "Ray's start" in times]
    print(f"Ray's own start, not counted above: {_common.spread(start_up, 3)} s")
    first, later = rounds["first epoch"], rounds["later epochs"]
    wanted: Sequence[tuple[str, _common.Rounds, str, str]] = [
        ("first epoch", first, "DataLoader", "<= 1.2"),
        ("first epoch", first, "ray.data", ""),
        ("later epochs", later, "DataLoader", "<= 0.05"),
        ("later epochs", later, "ray.data", ""),
        ("later epochs", later, "ray.data kept", ""),
    ]
    ratios = [
        [f"{part}: ours / {peer}", _common.spread(_common.ratio(times, "ours", peer), 3), bar]
        for part, times, peer, bar in wanted
        if peer in times
    ]
    _common.show("", ["ratio", "median (smallest to largest)", "wanted"], ratios)


def compare_wait(given: Any, storage: Path) -> None:
    """What a later epoch of MNIST-sized training waits for data."""
    rows = 600 if given.quick else 10_000
    recipe = resolve("mnist.cnn", epochs=3, batch_size=BATCH, micro_batch_size=BATCH, precision="fp32")
    case = overhead.Case("mnist", recipe, _common.draw_mnist(storage / "mnist", rows), storage, given.threads)
    cached = case.prepare()
    shares, firsts = [], []
    for _ in range(given.repeats):
        shares += [line["data_wait_share"] for line in overhead.loop_history(case)[1:]]
        cached = Cached(cached.folder)
        trained = cached.meta["rows"]["train"]
        next(cached.batches("train", passes(0, 0, trained)))
        start = time.perf_counter()
        next(cached.batches("train", passes(0, 1, trained)))
        firsts.append(time.perf_counter() - start)
    cells = [
        ["share of a later epoch spent waiting", _common.spread(shares, 2), "< 0.03"],
        ["seconds to a later epoch's first batch", _common.spread(firsts, 2), "< 0.2"],
    ]
    _common.show(f"{rows:,} pictures of 28x28", ["", "median (smallest to largest)", "wanted"], cells)


def compare_prepare(given: Any, storage: Path) -> None:
    """What preparing costs beside reading and shrinking, and how much memory its largest task takes."""
    count = 40 if given.quick else 100
    photos = draw_photos(storage / "to prepare", count)
    recipe = at_224()
    source = scan_files(recipe, str(photos))
    decoder = Decoder(recipe, targets.kind(source.target), source.channels, len(source.classes))
    rows = sum(source.rows.values())

    def prepared() -> None:
        meta = Cached(prepare(recipe, source, Path(tempfile.mkdtemp(dir=storage)))).meta
        assert sum(meta["rows"].values()) == rows

    def decoded() -> None:
        for items in source.splits.values():
            for item in items:
                decoder.read(item)

    def spent(work: Callable[[], None]) -> Callable[[], float]:
        def call() -> float:
            start = time.process_time()
            work()
            return 1000 * (time.process_time() - start) / rows

        return call

    decoded()  # imports what it needs
    peers = {"prepare": spent(prepared), "read and shrink": spent(decoded)}
    title = f"{rows} JPEGs of 512x512 to 224x224: processor time"
    bars = {("prepare", "read and shrink"): "<= 1.3"}
    _common.compare(title, "ms a picture", _common.take_turns(peers, given.repeats), bars)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        grown = [fresh.submit(memory_of_tasks, photos, storage).result() / 2**20]
    _common.show("", ["memory of a task", "MiB", "wanted"], [["", _common.spread(grown, 3), "<= 100"]])


def at_224() -> Recipe:
    """How the pictures are prepared that `compare_prepare` measures."""
    facts: dict[str, Any] = {"dataset": "image_folder", "model": "resnet", "image_size": (224, 224)}
    return Recipe(epochs=1, batch_size=BATCH, lr=0.1, **facts)


def memory_of_tasks(photos: Path, storage: Path) -> int:
    """Bytes by which this process, which must be a new one, grows in tasks that prepare; before, it has read some."""
    recipe = at_224()
    source = scan_files(recipe, str(photos))
    peaks: list[int] = []

    def tasks(rows: Sequence[Any], function: Callable[[Any], Any]) -> Iterable[Any]:
        for row in sorted(rows, key=lambda row: len(row["items"])):  # that of val, of a few pictures, comes first
            yield function(row)
            peaks.append(most_memory())

    preparing.ray_map = tasks  # type: ignore[assignment]
    preparing.INLINE_BYTES = -1
    preparing.measure(recipe, source, storage / "measured", ray=True)
    preparing.prepare(recipe, source, storage / "grown", ray=True)
    return peaks[-1] - peaks[0]


def most_memory() -> int:
    """The most bytes that this process has had; a new one's ru_maxrss is what its parent had, where that is more."""
    if os.path.exists("/proc/self/status"):
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    given = _common.flags(__doc__, repeats=3)
    torch.set_num_threads(given.threads)
    with _common.temporary_storage() as storage:
        _common.print_machine()
        if given.only in ("", "wait"):
            compare_wait(given, storage)
        if given.only in ("", "prepare"):
            compare_prepare(given, storage)
        if given.only in ("", "photos"):
            compare_photos(given, storage)


if __name__ == "__main__":
    main()
