"""Segmentation against peers: training against a loop by hand, scores against torchmetrics, data against decoding.

    python tests/benchmarks/segmentation.py [--quick] [--repeats N] [--threads N] [--only train|scores|data]
        [--batch N] [--steps N] [--base-channels N] [--photos N]

train: milliseconds an image of loop.train on prepared shards, in this process, against a loop by hand over the same
pictures (uint8, in memory): shuffled, normalised, the same model and weights in channels_last, fp32, fused
Adam, cross-entropy of the labelled pixels, no augmentation. Counted are epochs of `--steps` steps, without
evaluation, after a first one in which both see the same pictures in the same order at a learning rate of nearly 0:
their losses must agree. `--base-channels`: of U-Net, 64 as published. Wanted: at most 1.05 times the peer's time.

scores: seconds for the scores of 20 batches of 8 logits of 11 classes at 256x256, with ignored pixels: ours,
from counts; torchmetrics as its documentation shows it (one collection, which shares counts between metrics); and
torchmetrics at its fastest (given classes instead of logits, its checks of arguments off). Numbers must agree to
1e-6. Wanted: no slower. Boundary F1: against SciPy's distance transform; counts must be equal. Needs torchmetrics.

data: `--photos` JPEGs of 6000x4000 with PNGs of class ids, to 256x256: ours prepares once, then reads shards; the
peer decodes every epoch in as many threads, JPEGs at the same reduced scale. Both end at normalised tensors, whose
pixels must agree. Wanted: a later epoch in at most 0.05 of the peer's time.

--quick: every part and check, at 64x64 with two of the four models, and three small photos.
"""

from __future__ import annotations

import copy
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _common
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainers.data import sampler
from trainers.data.batches import Cached
from trainers.data.prepare import prepare
from trainers.data.source import scan_files
from trainers.limits import cpus
from trainers.recipe import Recipe
from trainers.tasks import boundary_f1
from trainers.tasks.segment import Segment
from trainers.training import build, device, loop
from trainers.training.distributed import World
from trainers.training.preprocess import Preprocess

IGNORED = 255
MODELS: dict[str, dict[str, Any]] = {
    "erfnet, encoder": {"model": "erfnet", "model_args": {"stage": "encoder"}, "task_args": {"stride": 8}},
    "erfnet": {"model": "erfnet"},
    "deeplabv3plus": {"model": "deeplabv3plus"},
    "unet": {"model": "unet"},
}
QUICK = ("erfnet, encoder", "unet")
LR, STILL = 1e-4, 1e-12
CLASSES = 11
TOLERANCE = 0.0075
PHOTO_CLASSES = 8
SIDE = 256
PHOTO_BATCH = 8


# Training ----------------------------------------------------------------------------------------------------


class Ours:
    """loop.train on prepared pictures, one epoch a call."""

    def __init__(self, recipe: Recipe, cache: Path, world: World) -> None:
        self.recipe, self.world = recipe, world
        self.data = Cached(prepare(recipe, scan_files(recipe, None), cache))
        self.state = build.create_state(recipe, self.data.meta, world)

    def epoch(self, lr: float = LR) -> float:
        """Milliseconds an image of one more epoch, from its line of history."""
        longer = self.recipe.replace(epochs=self.state.epoch + 1, lr=lr)
        summary = loop.train(longer, self.state, self.data, self.world)
        assert summary.status == "finished", summary.message
        return 1000 / self.state.history[-1]["images_per_second"]


class ByHand:
    """The same model, weights and pictures in a loop of its own."""

    def __init__(self, ours: Ours) -> None:
        recipe, self.device, meta = ours.recipe, ours.world.device, ours.data.meta
        rows = np.arange(meta["rows"]["train"])
        whole = sampler.passes(
            sampler.Order(rows, rows), batch_size=len(rows), micro_batch_size=len(rows), rank=0, world_size=1
        )
        batch = next(ours.data.batches("train", whole))
        self.images, self.masks = torch.from_numpy(batch.images), torch.from_numpy(batch.targets)
        mean, std = (255 * torch.tensor(meta[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        self.mean, self.std = mean.to(self.device), std.to(self.device)
        self.model = copy.deepcopy(ours.state.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=STILL, fused=True)
        self.batch_size, self.stride = recipe.batch_size, recipe.task_args.get("stride", 1)
        self.loss = math.nan

    def epoch(self, rows: Tensor | None = None, seeds: Sequence[int] = ()) -> float:
        """Milliseconds an image of one epoch; its mean loss is then in `loss`. `rows`: their order, for the check."""
        start = time.perf_counter()
        self.model.train()
        rows = torch.randperm(len(self.images)) if rows is None else rows
        total, labelled = (torch.zeros((), device=self.device) for _ in range(2))
        for number, first in enumerate(range(0, len(rows), self.batch_size)):
            chosen = rows[first : first + self.batch_size]
            images = self.images[chosen].to(self.device).permute(0, 3, 1, 2).float()
            images = images.sub_(self.mean).div_(self.std)
            masks = self.masks[chosen].to(self.device).long()
            if self.stride > 1:
                masks = masks[:, self.stride // 2 :: self.stride, self.stride // 2 :: self.stride]
            if seeds:
                torch.manual_seed(seeds[number])
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(images), masks, ignore_index=IGNORED)
            loss.backward()
            self.optimizer.step()
            pixels = (masks != IGNORED).sum()
            total += loss.detach() * pixels
            labelled += pixels
        self.loss = float(total / labelled)  # waits for the device
        return 1000 * (time.perf_counter() - start) / len(rows)


def compare_training(given: Any, storage: Path) -> None:
    world = World(0, 1, device.choose_device(), "fp32")
    sizes, batch = ((64,), 2) if given.quick else ((128, 256), given.batch)
    cells = []
    for name, facts in MODELS.items():
        if given.quick and name not in QUICK:
            continue
        if name == "unet":
            facts = {**facts, "model_args": {"base_channels": 4 if given.quick else given.base_channels}}
            name = f"unet, base {facts['model_args']['base_channels']}"
        for size in sizes:
            print(f"{name}, {size}x{size}", file=sys.stderr, flush=True)
            drawn = {"train": batch * given.steps, "val": 1, "test": 0, "height": size, "width": size}
            common: dict[str, Any] = {"dataset": "shapes", "dataset_args": drawn, "image_size": (size, size)}
            common |= {"task": "segment", "batch_size": batch, "micro_batch_size": batch, "precision": "fp32"}
            recipe = Recipe(**common, **facts, epochs=1, optimizer="adam", lr=LR)
            rounds = train_both(Ours(recipe, storage / "cache", world), given.repeats)
            times = [_common.spread(values, 3) for values in rounds.values()]
            ratios = _common.spread(_common.ratio(rounds, "ours", "by hand"), 3)
            cells.append([name, f"{size}x{size}", *times, ratios, "<= 1.05"])
    columns = ["", "size", "by hand", "ours", "ours / by hand", "wanted"]
    threads = f"{given.threads} threads, {world.device}"
    _common.show(f"training, ms an image; batch {batch}, epochs of {given.steps} steps, {threads}", columns, cells)


def train_both(ours: Ours, repeats: int) -> _common.Rounds:
    """A first epoch of the same pictures in the same order, whose losses must agree; then they take turns.

    That epoch moves no weight: Adam makes full steps of rounding errors, and losses would drift apart.
    """
    peer, recipe = ByHand(ours), ours.recipe
    rows = torch.from_numpy(sampler.permutation(recipe.seed, 0, len(peer.images)))
    steps = range(len(rows) // recipe.batch_size)
    ours.epoch(STILL)
    peer.epoch(rows, [sampler.torch_seed(recipe.seed, step, 0) for step in steps])
    np.testing.assert_allclose(ours.state.history[0]["train/loss"], peer.loss, rtol=5e-5)
    peer.optimizer.param_groups[0]["lr"] = LR
    return _common.take_turns({"by hand": peer.epoch, "ours": ours.epoch}, repeats)


# Scores ------------------------------------------------------------------------------------------------------

Batches = Sequence[tuple[Tensor, Tensor]]
"""Logits (N, CLASSES, H, W) and masks, int64 (N, H, W)."""


def draw_scores(batches: int, images: int, size: int) -> Batches:
    """Smooth shapes of every class, predictions that are wrong here and there, a few ignored pixels."""
    torch.manual_seed(0)
    drawn = []
    for _ in range(batches):
        coarse = torch.randn(2, images, CLASSES, size // 16, size // 16)
        truth, wrong = (functional.interpolate(part, (size, size), mode="bicubic") for part in coarse)
        masks = truth.argmax(1)
        masks[:, : size // 20] = IGNORED
        drawn.append((truth + 0.6 * wrong + 0.1 * torch.randn_like(wrong), masks))
    return drawn


def scores_of_ours(task: Segment, batches: Batches) -> dict[str, Any]:
    """As loop.evaluate gathers them."""
    totals: dict[str, Tensor] = {}
    tables: dict[str, list[Tensor]] = {}
    for logits, masks in batches:
        counts = task.counts(logits, masks)
        for name, count in counts.total.items():
            totals[name] = totals[name] + count if name in totals else count
        for name, table in counts.per_image.items():
            tables.setdefault(name, []).append(table)
    whole = {name: count.numpy() for name, count in totals.items()}
    scores = task.scores(whole | {name: torch.cat(parts).numpy() for name, parts in tables.items()})
    return {**scores, **scores["per_class"], "miou": scores["miou"], "mean f1": scores["f1"], **whole}


def torchmetrics_collection(validate: bool) -> Any:
    from torchmetrics import MetricCollection
    from torchmetrics import classification as kinds

    common: dict[str, Any] = {"num_classes": CLASSES, "ignore_index": IGNORED, "validate_args": validate}
    return MetricCollection(
        {
            "iou": kinds.MulticlassJaccardIndex(average="none", **common),
            "miou": kinds.MulticlassJaccardIndex(average="macro", **common),
            "f1": kinds.MulticlassF1Score(average="none", **common),
            "mean f1": kinds.MulticlassF1Score(average="macro", **common),
            "overall_accuracy": kinds.MulticlassAccuracy(average="micro", **common),
            "class_accuracy": kinds.MulticlassAccuracy(average="macro", **common),
            "accuracy": kinds.MulticlassAccuracy(average="none", **common),
            "confusion": kinds.MulticlassConfusionMatrix(**common),
        }
    )


def scores_of_torchmetrics(collection: Any, batches: Batches, argmax: bool) -> dict[str, Any]:
    collection.reset()
    for logits, masks in batches:
        collection.update(logits.argmax(1) if argmax else logits, masks)
    return {name: value.numpy() for name, value in collection.compute().items()}


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Its seconds."""

    def call() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            run()
        return time.perf_counter() - start

    return call


def compare_scores(given: Any, _: Path) -> None:
    count, images, size = (2, 2, 64) if given.quick else (20, 8, 256)
    batches = draw_scores(count, images, size)
    task = Segment(CLASSES, boundary_tolerance=0)
    usual, fast = torchmetrics_collection(True), torchmetrics_collection(False)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: scores_of_ours(task, batches),
        "torchmetrics": lambda: scores_of_torchmetrics(usual, batches, argmax=False),
        "torchmetrics, fastest": lambda: scores_of_torchmetrics(fast, batches, argmax=True),
    }
    found = {name: run() for name, run in runs.items()}  # torchmetrics now knows which metrics share counts
    for name in ("torchmetrics", "torchmetrics, fastest"):
        agree(found["ours"], found[name], task)
    rounds = _common.take_turns({name: timed(run) for name, run in runs.items()}, given.repeats)
    bars = {("ours", "torchmetrics"): "<= 1", ("ours", "torchmetrics, fastest"): "<= 1"}
    title = f"scores of {count} batches of {images}x{CLASSES}x{size}x{size} logits, {given.threads} threads"
    _common.compare(title, "seconds", rounds, bars)
    compare_boundaries(batches[:2], given)


def agree(ours: dict[str, Any], peer: dict[str, Any], task: Segment) -> None:
    """Raises AssertionError where a number differs by more than 1e-6."""
    np.testing.assert_array_equal(ours["confusion"], peer["confusion"])
    overall = task.scores({"confusion": ours["confusion"]})["accuracy"]
    for name, value in peer.items():
        wanted = overall if name == "overall_accuracy" else ours[name]
        np.testing.assert_allclose(np.array(wanted, np.float64), value, rtol=0, atol=1e-6, err_msg=name)


def compare_boundaries(batches: Batches, given: Any) -> None:
    labels = torch.cat([logits.argmax(1).to(torch.uint8) for logits, _ in batches])
    masks = torch.cat([masks for _, masks in batches])

    def of_ours() -> tuple[Any, Any]:
        counts = boundary_f1.match(labels, masks, CLASSES, TOLERANCE).numpy()
        return counts, boundary_f1.f1(counts)

    def of_scipy() -> tuple[Any, Any]:
        counts = match_by_scipy(labels.numpy(), masks.numpy())
        return counts, f1_by_hand(counts)

    (ours, our_f1), (theirs, their_f1) = of_ours(), of_scipy()
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(our_f1, their_f1, rtol=0, atol=1e-12)
    rounds = _common.take_turns({"ours": timed(of_ours), "SciPy": timed(of_scipy)}, given.repeats)
    title = f"boundary F1 of {len(masks)} pictures of {masks.shape[1]}x{masks.shape[2]}, {CLASSES} classes"
    _common.compare(title, "seconds", rounds, {("ours", "SciPy"): "<= 1"})


def match_by_scipy(labels: Any, masks: Any) -> Any:
    """What boundary_f1.match counts, by distances to the other side's boundary; int64 (N, CLASSES, 4)."""
    from scipy import ndimage

    counts = np.zeros((len(masks), CLASSES, 4), np.int64)
    reach = TOLERANCE * math.hypot(*masks.shape[1:]) + 1e-9
    for index, (mask, predicted) in enumerate(zip(masks, labels, strict=True)):
        sides = [edges_by_hand(np.where(mask == IGNORED, IGNORED, predicted)), edges_by_hand(mask)]
        for number in range(CLASSES):
            own = [side == number for side in sides]
            for column, (edge, other) in enumerate([own, own[::-1]]):
                counts[index, number, 2 * column] = edge.sum()
                if edge.any() and other.any():
                    near = ndimage.distance_transform_edt(~other)[edge] <= reach
                    counts[index, number, 2 * column + 1] = near.sum()
    return counts


def edges_by_hand(mask: Any) -> Any:
    """The class of each pixel with a labelled 4-neighbour of another class, else IGNORED."""
    edge = np.zeros(mask.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = (mask[here] != mask[there]) & (mask[here] != IGNORED) & (mask[there] != IGNORED)
        edge[here] |= differs
        edge[there] |= differs
    return np.where(edge, mask, IGNORED)


def f1_by_hand(counts: Any) -> list[float]:
    """The mean of each class over the pictures whose truth has a boundary of it."""
    means = []
    for of_class in counts.swapaxes(0, 1):
        there = of_class[of_class[:, 2] > 0].astype(np.float64)
        precision, recall = there[:, 1] / there[:, 0].clip(1), there[:, 3] / there[:, 2]
        sums = precision + recall
        means.append(float(np.mean(2 * precision * recall / np.where(sums > 0, sums, 1))) if len(there) else math.nan)
    return means


# Data --------------------------------------------------------------------------------------------------------


def draw_photos(folder: Path, count: int, width: int, height: int) -> Path:
    """Smooth colours under grain, JPEGs of quality 90, and masks of as many shapes: train/* and one picture in val/*.

    The grain is the same but for its place: drawing it again would take longer than all the rest.
    """
    grain = np.random.default_rng(0).normal(0, 8, (height, width, 1)).astype(np.int16)

    def draw(number: int) -> None:
        rng = np.random.default_rng(number + 1)
        home = folder / ("train" if number < count else "val")
        coarse = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + np.roll(grain, tuple(rng.integers(0, 1000, 2)), (0, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(home / "images" / f"{number:03}.jpg", quality=90)
        shapes = Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8))
        classes = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC)) // (256 // PHOTO_CLASSES)
        classes[: height // 50] = IGNORED
        Image.fromarray(classes).save(home / "masks" / f"{number:03}.png")

    for home in ("train/images", "train/masks", "val/images", "val/masks"):
        (folder / home).mkdir(parents=True)
    with ThreadPoolExecutor(threads_of_machine()) as threads:
        list(threads.map(draw, range(count + 1)))
    return folder


def threads_of_machine() -> int:
    """As many as data.prepare decodes in."""
    return cpus()


class Prepared:
    """Ours: prepare into an empty cache, then batches of normalised tensors."""

    def __init__(self, photos: Path, cache: Path) -> None:
        shutil.rmtree(cache, ignore_errors=True)
        start = time.perf_counter()
        facts: dict[str, Any] = {"dataset": "mask_folder", "dataset_args": {"classes": PHOTO_CLASSES}}
        facts |= {"model": "unet", "task": "segment", "image_size": (SIDE, SIDE), "resize": "stretch"}
        self.recipe = Recipe(**facts, epochs=1, batch_size=PHOTO_BATCH, lr=0.1)
        self.cached = Cached(prepare(self.recipe, scan_files(self.recipe, str(photos)), cache))
        self.seconds = time.perf_counter() - start
        world = World(0, 1, torch.device("cpu"), "fp32")
        self.preprocess = Preprocess(self.recipe, self.cached.meta, world)

    def batches(self, rows: Any) -> Iterator[tuple[Tensor, Tensor]]:
        passes = sampler.passes(
            sampler.Order(rows, rows), batch_size=PHOTO_BATCH, micro_batch_size=PHOTO_BATCH, rank=0, world_size=1
        )
        for batch in self.cached.batches("train", passes):
            yield self.preprocess(batch, 0)


class Decoded:
    """By hand: every picture and mask decoded every epoch, by threads that stay and work ahead."""

    def __init__(self, photos: Path, threads: ThreadPoolExecutor, meta: Any) -> None:
        self.photos = sorted((photos / "train" / "images").iterdir())
        self.masks = sorted((photos / "train" / "masks").iterdir())
        self.threads = threads
        self.mean, self.std = (255 * torch.tensor(meta[name]).view(1, -1, 1, 1) for name in ("mean", "std"))

    def batches(self, rows: Any) -> Iterator[tuple[Tensor, Tensor]]:
        read = self.threads.map(self._read, rows.tolist())
        cut = sampler.Cut(len(rows), PHOTO_BATCH)
        for piece in range(len(cut)):
            images, masks = zip(*(next(read) for _ in range(cut.size(piece))), strict=True)
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
            yield pixels.sub_(self.mean).div_(self.std), torch.from_numpy(np.stack(masks)).long()

    def _read(self, row: int) -> tuple[Any, Any]:
        with Image.open(self.photos[row]) as photo:
            photo.draft("RGB", (2 * SIDE, 2 * SIDE))
            image = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        with Image.open(self.masks[row]) as mask:
            return image, np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.NEAREST))


def time_epoch(batches: Callable[[Any], Iterable[tuple[Tensor, Tensor]]], rows: int, number: int) -> float:
    """Seconds of one shuffled epoch."""
    start = time.perf_counter()
    seen = 0
    for images, masks in batches(sampler.permutation(0, number, rows)):
        assert (images.dtype, *images.shape[1:]) == (torch.float32, 3, SIDE, SIDE)
        assert (masks.dtype, *masks.shape[1:]) == (torch.int64, SIDE, SIDE)
        seen += len(images)
    assert seen == rows, f"{seen} of {rows} rows"
    return time.perf_counter() - start


def compare_data(given: Any, storage: Path) -> None:
    count, width, height = (3, 1200, 800) if given.quick else (given.photos, 6000, 4000)
    start = time.perf_counter()
    photos = draw_photos(storage / "photos", count, width, height)
    size = sum(path.stat().st_size for path in photos.glob("train/*/*")) / count / 2**20
    print(f"  drawn in {time.perf_counter() - start:.0f} s, {size:.1f} MiB each", file=sys.stderr, flush=True)
    prepares, prepared = [], Prepared(photos, storage / "first")  # which also warms the page cache for both

    def later() -> float:
        ours = Prepared(photos, storage / "prepared")
        prepares.append(ours.seconds)
        epochs = [time_epoch(ours.batches, count, number) for number in range(6)]
        return float(np.median(epochs[1:]))

    with ThreadPoolExecutor(threads_of_machine()) as threads:
        decoded = Decoded(photos, threads, prepared.cached.meta)
        check_pictures(prepared, decoded, min(count, PHOTO_BATCH))
        peers = {"later epoch": later, "decoding epoch": lambda: time_epoch(decoded.batches, count, 0)}
        rounds = _common.take_turns(peers, given.repeats)
    rounds = {"prepare": prepares, **rounds}
    reading = {"later epoch / decoding epoch": (rounds["later epoch"], rounds["decoding epoch"], "<= 0.05")}
    reading["prepare / decoding epoch"] = (prepares, rounds["decoding epoch"], "")
    rows = [[name, _common.spread(values, 3)] for name, values in rounds.items()]
    title = f"{count} JPEGs of {width}x{height} with masks to {SIDE}x{SIDE}, {threads_of_machine()} threads"
    _common.show(title, ["", "seconds"], rows)
    ratios = []
    for name, (above, below, bar) in reading.items():
        each = [one / other for one, other in zip(above, below, strict=True)]
        ratios.append([name, _common.spread(each, 3), bar])
    _common.show("", ["ratio", "median (smallest to largest)", "wanted"], ratios)
    print(f"prepare: {count + 1} pictures, listing included; epochs: {count} pictures")


def check_pictures(prepared: Prepared, decoded: Decoded, count: int) -> None:
    """Both give the same pictures; masks that were reduced in one step or in two may differ along borders."""
    (ours, our_masks), (theirs, their_masks) = (next(one.batches(np.arange(count))) for one in (prepared, decoded))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    same = float((our_masks == their_masks).double().mean())
    assert same > 0.95, f"{same:.3f} of the mask pixels agree"


def main() -> None:
    numbers = {
        "batch": (4, "train: pictures a step"),
        "steps": (4, "train: steps of an epoch"),
        "base-channels": (16, "train: of U-Net, 64 as published"),
        "photos": (40, "data: large photos"),
    }
    given = _common.flags(__doc__, repeats=5, numbers=numbers)
    torch.set_num_threads(given.threads)
    parts = {"train": compare_training, "scores": compare_scores, "data": compare_data}
    if given.only and given.only not in parts:
        sys.exit(f"--only {given.only}: choose one of {', '.join(parts)}")
    with _common.temporary_storage() as storage:
        _common.print_machine()
        for name, compare in parts.items():
            if given.only in ("", name):
                compare(given, storage)


if __name__ == "__main__":
    main()
