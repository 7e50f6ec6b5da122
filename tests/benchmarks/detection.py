"""Detection against what else there is for it.

    python tests/benchmarks/detection.py [--quick] [--repeats N] [--threads N] [--minutes N]
                                         [--only train|ap|masks|peers|later]

train: milliseconds an image of loop.train on the prepared pictures of shapes.fcos, in this process, against a loop by
hand: the same pictures (uint8, in memory), model, weights and fused AdamW, fp32, no augmentation; points get their
objects picture by picture, and losses are torchvision's. Counted are epochs without evaluation, after a first one, in
which both see the same pictures in the same order at a learning rate of nearly 0: their losses must agree. Wanted: at
most 1.03 times the peer's time.

ap: average precision of boxes, in one thread, against pycocotools and, where it is installed, faster-coco-eval, which
is compiled. 1,000 pictures, 80 classes, 7,000 objects, 60,000 detections; and 300 pictures of one class with 6,000
objects and 30,000 detections, where matching weighs most. Ours counts from arrays, theirs from lists of annotations, as
each has them, with the index they build. All scores must be equal to 1e-12. Wanted: at most 0.2 of pycocotools' time.

masks: average precision of masks likewise, of 1,000 pictures of 96x128 with 80 classes, 7 objects and 60 detections,
each an ellipse: ours from arrays of pixels, picture by picture, pycocotools' from run lengths that are there already.

peers: AP after so many minutes of training (of the processor: give --threads 1) from nothing on the pictures of
shapes.fcos: the recipe, and torchvision's SSDlite (MobileNetV3-Large) by its reference settings (torchvision's
references/detection: SGD by a cosine, crops by IoU, flips), at its own 320x320 and at the pictures' size. Each is given
as many epochs as fit, by what an epoch of it takes, and scored after the last by the same AP.

later: processor time of a picture of a later epoch, of shapes.fcos' own, 96x128, with their boxes, in batches of 16 and
random order: uint8 from the prepared pictures, and by a DataLoader of this process that decodes them from PNG files
each epoch. Pictures and boxes must be the same. Wanted: at most 0.05 of its time.

--quick: 64 pictures of 48x64, and 20 for `ap` and `masks`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import _common
import numpy as np
import segmentation
import torch
from helpers.detections import Case, to_coco
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional

from trainers import box_table
from trainers.data import sampler
from trainers.data.batches import Batch, Cached
from trainers.data.prepare import prepare
from trainers.data.source import scan_files
from trainers.recipe import Recipe, resolve
from trainers.tasks import average_precision
from trainers.training import device
from trainers.training.distributed import World

LR, STILL = 1e-4, 1e-12
REACH, RADIUS = 8.0, 1.5
BATCH = 64


def shapes(given: Any, **changes: object) -> Recipe:
    recipe = resolve("shapes.fcos", precision="fp32", **changes)
    if given.quick:
        drawn = {**recipe.dataset_args, "train": 64, "val": 32, "height": 48, "width": 64}
        recipe = recipe.replace(dataset_args=drawn, image_size=(48, 64))
    return recipe.replace(micro_batch_size=recipe.batch_size)


def whole(data: Cached, split: str) -> Batch:
    """All pictures of a split, uint8 (N, H, W, 3), and their objects."""
    rows = np.arange(data.meta["rows"][split])
    passes = sampler.passes(
        sampler.Order(rows, rows), batch_size=len(rows), micro_batch_size=len(rows), rank=0, world_size=1
    )
    return next(data.batches(split, passes))


# Training ----------------------------------------------------------------------------------------------------


class ByHand:
    """The same model, weights and pictures in a loop of its own."""

    def __init__(self, ours: segmentation.Ours) -> None:
        recipe, meta, self.device = ours.recipe, ours.data.meta, ours.world.device
        batch = whole(ours.data, "train")
        self.images, self.tables = torch.from_numpy(batch.images), torch.from_numpy(batch.targets).double()
        mean, std = (255 * torch.tensor(meta[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        self.mean, self.std = mean.to(self.device), std.to(self.device)
        self.model = copy.deepcopy(ours.state.model)
        decay = {"lr": STILL, "weight_decay": recipe.weight_decay, "fused": True}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **decay)
        self.batch_size, self.loss = recipe.batch_size, math.nan
        self.points = find_points(recipe).double().to(self.device)

    def epoch(self, rows: Tensor | None = None, seeds: tuple[int, ...] = ()) -> float:
        """Milliseconds an image of one epoch; its mean loss is then in `loss`. `rows`: their order, for the check."""
        start = time.perf_counter()
        self.model.train()
        rows = torch.randperm(len(self.images)) if rows is None else rows
        sums, divisors = torch.zeros(3, device=self.device), torch.zeros(3, device=self.device)
        for first in range(0, len(rows), self.batch_size):
            chosen = rows[first : first + self.batch_size]
            images = self.images[chosen].to(self.device).permute(0, 3, 1, 2).float()
            images = images.sub_(self.mean).div_(self.std)
            self.optimizer.zero_grad()
            parts, shares = losses_by_hand(self.points, self.model(images), self.tables[chosen].to(self.device))
            (parts / shares.clamp(min=1e-6)).sum().backward()
            self.optimizer.step()
            sums, divisors = sums + parts.detach(), divisors + shares
        self.loss = float((sums / divisors).sum())  # waits for the device
        return 1000 * (time.perf_counter() - start) / len(rows)


def find_points(recipe: Recipe) -> Tensor:
    from trainers.models import fcos

    return fcos.points(recipe.image_size, **recipe.model_args)


def losses_by_hand(points: Tensor, output: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """FCOS's three losses and what each is divided by, (3,) each, of a batch; one picture after the other."""
    from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

    parts, shares = output.new_zeros(3), output.new_zeros(3)
    turn = output.new_tensor([-1, -1, 1, 1])
    for predicted, table in zip(output, tables, strict=True):
        objects = table[table[:, box_table.CLASS] >= 0]
        names, distances, found, ignored = wanted_by_hand(points, objects)
        target = torch.zeros_like(predicted[:, 5:])
        target[found, names[found]] = 1
        of_class = sigmoid_focal_loss(predicted[:, 5:], target).sum(1)
        parts[0] += of_class[~ignored].sum()
        shares[0] += found.sum().clamp(min=1)
        sides = distances[found].to(output.dtype)
        flat, high = sides[:, 0::2], sides[:, 1::2]
        centre = (flat.amin(1) / flat.amax(1) * high.amin(1) / high.amax(1)).sqrt()
        of_box = generalized_box_iou_loss(predicted[found, :4] * turn, sides * turn)
        parts[1] += (of_box * centre).sum()
        shares[1] += centre.sum()
        parts[2] += functional.binary_cross_entropy_with_logits(predicted[found, 4], centre, reduction="sum")
        shares[2] += found.sum()
    return parts, shares


def wanted_by_hand(points: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each point the class, the distances in strides, whether it finds anything, and whether it is ignored; in
    float64, as many points lie where an object just ends."""
    x, y, stride = (column[:, None] for column in points.unbind(1))
    if not len(objects):
        nothing = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        return nothing.long(), points.new_zeros(len(points), 4), nothing, nothing
    left, top, right, bottom = objects[:, :4].unbind(1)
    sides = torch.stack([x - left, y - top, right - x, bottom - y], 2)
    inside, farthest, plain = sides.amin(2) > 0, sides.amax(2), objects[:, box_table.KIND] == box_table.PLAIN
    off = torch.maximum((x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs())
    finest, coarsest = stride.min(), stride.max()
    fits = (farthest > torch.where(stride == finest, 0, REACH * stride / 2)) & (
        farthest <= torch.where(stride == coarsest, math.inf, REACH * stride)
    )
    area = (right - left) * (bottom - top)
    smallest, which = torch.where(inside & (off < RADIUS * stride) & fits & plain, area, math.inf).min(1)
    found = smallest < math.inf
    distances = sides[torch.arange(len(points)), which] / stride
    return objects[which, box_table.CLASS].long(), distances, found, (inside & ~plain).any(1) & ~found


def compare_training(given: Any, storage: Path) -> None:
    world = World(0, 1, device.choose_device(), "fp32")
    recipe = shapes(
        given,
        augment=dict.fromkeys(resolve("shapes.fcos").augment, 0),
        schedule="constant",
        warmup_share=0,
        epochs=1,
        lr=LR,
    )
    ours = segmentation.Ours(recipe, storage / "cache", world)
    peer = ByHand(ours)
    rows = torch.from_numpy(sampler.permutation(recipe.seed, 0, len(peer.images)))
    ours.epoch(STILL)
    peer.epoch(rows)
    np.testing.assert_allclose(ours.state.history[0]["train/loss"], peer.loss, rtol=5e-5)
    peer.optimizer.param_groups[0]["lr"] = LR
    rounds = _common.take_turns({"by hand": peer.epoch, "trainyard": ours.epoch}, given.repeats)
    title = f"training of shapes.fcos, {given.threads} threads, {world.device}"
    _common.compare(title, "ms an image", rounds, {("trainyard", "by hand"): "<= 1.03"})


# AP ----------------------------------------------------------------------------------------------------------


def draw(pictures: int, classes: int, objects: int, detections: int) -> Case:
    """So many objects and detections of a picture; of these every other one near an object."""
    rng = np.random.default_rng(0)
    truths = np.zeros((pictures, objects, box_table.COLUMNS))
    corner, size = rng.integers(0, 2000, (pictures, objects, 2)) / 4, rng.integers(40, 800, (pictures, objects, 2)) / 4
    truths[..., :4] = np.concatenate([corner, corner + size], axis=-1)
    truths[..., box_table.CLASS] = rng.integers(classes, size=(pictures, objects))
    truths[..., box_table.AREA] = size.prod(axis=-1)
    truths[..., box_table.KIND] = rng.random((pictures, objects)) < 0.02  # a crowd now and then
    truths[..., box_table.SCALE] = 1
    of = rng.integers(objects, size=(pictures, detections))
    near = np.take_along_axis(truths, of[..., None], axis=1)
    found = np.zeros((pictures, detections, 6))
    found[..., :4] = near[..., :4] + rng.integers(-30, 31, (pictures, detections, 4)) / 4
    elsewhere = rng.random((pictures, detections)) < 0.5
    found[elsewhere, :2] = rng.integers(0, 2000, (int(elsewhere.sum()), 2)) / 4
    found[elsewhere, 2:4] = found[elsewhere, :2] + rng.integers(40, 800, (int(elsewhere.sum()), 2)) / 4
    found[..., 2:4] = np.maximum(found[..., 2:4], found[..., :2] + 0.25)
    found[..., 4] = rng.permutation(pictures * detections).reshape(pictures, detections) / 2**20
    found[..., 5] = np.where(elsewhere, rng.integers(classes, size=elsewhere.shape), near[..., box_table.CLASS])
    return Case(found, truths, None, None)


def ours(case: Case, classes: int) -> dict[str, Any]:
    bounds = range(0, len(case.truths), BATCH)
    tables = [average_precision.match(case.detections[at : at + BATCH], case.truths[at : at + BATCH]) for at in bounds]
    return average_precision.scores(np.concatenate(tables), average_precision.count_truths(case.truths, classes))


def theirs(coco: Any, evaluator: Any, entries: list[dict[str, Any]], kind: str = "bbox") -> list[float]:
    """The numbers that COCO prints, of evaluators of pycocotools' interface."""
    both = []
    for dataset in entries:
        one = coco()
        one.dataset = dataset
        one.createIndex()
        both.append(one)
    evaluation = evaluator(*both, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats]


NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


def measure_ap(title: str, repeats: int, pictures: int, classes: int, objects: int, detections: int) -> None:
    case = draw(pictures, classes, objects, detections)
    entries = [each.dataset for each in to_coco(case, classes)]
    found: dict[str, list[float]] = {}

    def timed(name: str, count: Any) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            found[name] = count()
            return time.perf_counter() - start

    def by_us() -> list[float]:
        scores = ours(case, classes)
        return [scores[name] for name in NAMES]

    competitors = {"trainyard": lambda: timed("trainyard", by_us)}
    competitors["pycocotools"] = lambda: timed("pycocotools", lambda: theirs(COCO, COCOeval, entries))
    if importlib.util.find_spec("faster_coco_eval"):
        from faster_coco_eval import COCO as FastCOCO  # noqa: N811  # a class of that name
        from faster_coco_eval import COCOeval_faster

        competitors["faster-coco-eval"] = lambda: timed(
            "faster-coco-eval", lambda: theirs(FastCOCO, COCOeval_faster, entries)
        )
    rounds = _common.take_turns(competitors, repeats)
    for name, values in found.items():
        np.testing.assert_allclose(values[: len(NAMES)], found["trainyard"], rtol=0, atol=1e-12, err_msg=name)
    bars = {
        ("trainyard", peer): "<= 0.2" if peer == "pycocotools" else "" for peer in competitors if peer != "trainyard"
    }
    _common.compare(title, "seconds", rounds, bars)


def compare_ap(given: Any, _: Path) -> None:
    sizes = {"80 classes": (1000, 80, 7, 60), "1 class, dense": (300, 1, 20, 100)}
    for name, (pictures, *numbers) in sizes.items():
        pictures = 20 if given.quick else pictures
        measure_ap(f"AP of {pictures} pictures, {name}", given.repeats, pictures, *numbers)


# AP of masks -------------------------------------------------------------------------------------------------


def ellipses(boxes: Any, height: int, width: int) -> Any:
    """bool (K, height, width), of boxes (K, 4)."""
    middle, radius = (boxes[:, :2] + boxes[:, 2:4]) / 2, (boxes[:, 2:4] - boxes[:, :2]) / 2
    across, down = (
        ((np.arange(side) + 0.5 - middle[:, axis, None]) / radius[:, axis, None]) ** 2
        for axis, side in ((0, width), (1, height))
    )
    return down[:, :, None] + across[:, None, :] <= 1


def masks_of(case: Case, number: int, height: int, width: int) -> tuple[Any, Any]:
    """Of the detections and the objects of a picture."""
    scale = np.array([width, height] * 2) / 700  # where `draw` puts them
    found, true = (ellipses(boxes[number, :, :4] * scale, height, width) for boxes in (case.detections, case.truths))
    return found, true


def compare_masks(given: Any, _: Path) -> None:
    pictures, classes, height, width = 20 if given.quick else 1000, 80, 96, 128
    case = draw(pictures, classes, 7, 60)
    entries: list[dict[str, Any]] = [each.dataset for each in to_coco(case, classes)]
    annotations: list[list[dict[str, Any]]] = [each["annotations"] for each in entries]
    places = [0, 0]
    for number in range(pictures):
        for side, masks in zip((1, 0), masks_of(case, number, height, width), strict=True):
            for row, mask in enumerate(masks):
                one = annotations[side][places[side]]
                one |= {"segmentation": coco_masks.encode(np.asfortranarray(mask, np.uint8)), "area": float(mask.sum())}
                if not side:
                    case.truths[number, row, box_table.AREA] = one["area"]
                places[side] += 1
    for image in entries[0]["images"]:
        image |= {"height": height, "width": width}
    found: dict[str, list[float]] = {}

    def by_us() -> float:
        seconds, tables = 0.0, []
        for number in range(pictures):
            masks, true = masks_of(case, number, height, width)
            crowds = box_table.kinds(case.truths[number]) == box_table.CROWD
            start = time.perf_counter()
            overlaps = average_precision.mask_overlaps(masks, true, crowds)
            areas = np.count_nonzero(masks, axis=(1, 2)).astype(np.float64)
            tables.append(average_precision.match(case.detections[number], case.truths[number], overlaps, areas))
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        truths = average_precision.count_truths(case.truths, classes)
        scores = average_precision.scores(np.stack(tables), truths)
        found["trainyard"] = np.nan_to_num([scores[name] for name in NAMES], nan=-1).tolist()  # as theirs says it
        return seconds + time.perf_counter() - start

    def by_them() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            found["pycocotools"] = theirs(COCO, COCOeval, entries, "segm")
            return time.perf_counter() - start

    rounds = _common.take_turns({"trainyard": by_us, "pycocotools": by_them}, given.repeats)
    np.testing.assert_allclose(found["pycocotools"][: len(NAMES)], found["trainyard"], rtol=0, atol=1e-12)
    title = f"AP of the masks of {pictures} pictures of {height}x{width}, {classes} classes"
    _common.compare(title, "seconds", rounds, {("trainyard", "pycocotools"): "<= 0.2"})


# Equal minutes -----------------------------------------------------------------------------------------------

Trained = tuple[float, float, float]
"""AP, AP50, and the seconds of training."""


def by_recipe(recipe: Recipe, threads: int) -> Callable[[int], Trained]:
    from trainers import Scale, fit

    def train(epochs: int) -> Trained:
        changes = {"epochs": epochs, "image_size": recipe.image_size, "dataset_args": recipe.dataset_args}
        start, busy = time.perf_counter(), time.process_time()
        result = fit("shapes.fcos", changes, Scale(workers=0, cpus_per_worker=threads))
        assert result.status == "finished", result.run["message"]
        share = (time.process_time() - busy) / (time.perf_counter() - start)  # less, where the machine does other work
        seconds, last = result.run["seconds"], result.history[-1]
        return last["val/ap"], last["val/ap50"], share * (seconds["compute"] + seconds["data_wait"])

    return train


def by_ssdlite(data: Cached, classes: int, side: int | None) -> Callable[[int], Trained]:
    """torchvision's, at side x side or at the pictures' own size."""
    from torchvision import tv_tensors
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.transforms import v2

    batch, size = whole(data, "train"), 16
    images, tables = torch.from_numpy(batch.images).permute(0, 3, 1, 2), torch.from_numpy(batch.targets).float()
    height, width = images.shape[2:]
    change = v2.Compose([v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()])

    def example(row: int) -> tuple[Tensor, dict[str, Tensor]]:
        table = tables[row][box_table.are_plain(tables[row])]
        boxes = tv_tensors.BoundingBoxes(table[:, :4], format="XYXY", canvas_size=(height, width))
        image, target = change(
            tv_tensors.Image(images[row]), {"boxes": boxes, "labels": table[:, box_table.CLASS].long() + 1}
        )
        return image.float() / 255, target

    def train(epochs: int) -> Trained:
        torch.manual_seed(0)
        model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes + 1)
        if side is None:
            own = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size_divisible": 1, "fixed_size": (width, height)}
            model.transform = GeneralizedRCNNTransform(min(height, width), max(height, width), **own)
        start, steps = time.process_time(), epochs * math.ceil(len(images) / size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.15 * size / 192, momentum=0.9, weight_decay=4e-5)
        warm = max(1, min(1000, steps // 10))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, (1 + math.cos(math.pi * step / steps)) / 2)
        )
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(size):
                pictures, targets = zip(*map(example, rows.tolist()), strict=True)
                optimizer.zero_grad()
                sum(model(list(pictures), list(targets)).values()).backward()
                optimizer.step()
                schedule.step()
        seconds = time.process_time() - start
        return *score(model, whole(data, "val"), classes), seconds

    return train


def score(model: torch.nn.Module, batch: Batch, classes: int) -> tuple[float, float]:
    """AP and AP50 of a torchvision model."""
    model.eval()
    images, tables = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 255, batch.targets.astype(float)
    detections = np.zeros((len(images), 100, 6))
    detections[..., 5] = -1
    with torch.inference_mode():
        for row, image in enumerate(images):
            (found,) = model([image])
            most = min(100, len(found["scores"]))
            columns = found["boxes"], found["scores"][:, None], found["labels"][:, None] - 1
            detections[row, :most] = torch.cat(columns, 1)[:most].numpy()
    scores = average_precision.scores(
        average_precision.match(detections, tables), average_precision.count_truths(tables, classes)
    )
    return scores["ap"], scores["ap50"]


def compare_peers(given: Any, storage: Path) -> None:
    recipe = shapes(given)
    data = Cached(prepare(recipe, scan_files(recipe, None), storage / "cache"))
    classes, rows = len(data.meta["classes"]), []
    contenders: dict[str, Callable[[int], Trained]] = {"shapes.fcos": by_recipe(recipe, given.threads)}
    contenders["SSDlite, 320x320"] = by_ssdlite(data, classes, 320)
    contenders["SSDlite, the pictures' size"] = by_ssdlite(data, classes, None)
    for name, train in contenders.items():
        found = train(1)
        epoch = found[2]
        epochs = 1 if given.quick else max(1, round(60 * given.minutes / epoch))
        ap, ap50, seconds = train(epochs) if epochs > 1 else found
        rows.append([name, f"{epoch:.1f}", str(epochs), f"{seconds:.0f}", f"{ap:.3f}", f"{ap50:.3f}"])
        print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    title = f"shapes, {data.meta['rows']['train']} pictures, {given.minutes} minutes, {given.threads} threads"
    _common.show(title, ["", "s an epoch", "epochs", "s", "AP", "AP50"], rows)


# Later epochs ------------------------------------------------------------------------------------------------


class Files(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The same pictures as PNG files, with their objects."""

    def __init__(self, batch: Batch, folder: Path) -> None:
        from PIL import Image

        folder.mkdir()
        self.paths = [folder / f"{number}.png" for number in range(len(batch.images))]
        for path, image in zip(self.paths, batch.images, strict=True):
            Image.fromarray(image).save(path)
        self.tables = torch.from_numpy(batch.targets)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        table = self.tables[row]
        with Image.open(self.paths[row]) as image:
            return torch.from_numpy(np.array(image)), table[table[:, box_table.CLASS] >= 0]


def collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, tables = zip(*rows, strict=True)
    padded = torch.nn.utils.rnn.pad_sequence(list(tables), batch_first=True, padding_value=-1)
    return torch.stack(images), padded


def compare_later_epochs(given: Any, storage: Path) -> None:
    recipe = shapes(given)
    data = Cached(prepare(recipe, scan_files(recipe, None), storage / "cache"))
    batch, size = whole(data, "train"), recipe.batch_size
    loader = torch.utils.data.DataLoader(
        Files(batch, storage / "files"), batch_size=size, shuffle=True, collate_fn=collate
    )
    order = sampler.shuffled(recipe.seed, 1, len(batch.images))

    def spent(epoch: Iterable[tuple[Any, Any]]) -> float:
        """Milliseconds a picture."""
        start = time.process_time()
        assert sum(len(images) for images, _ in epoch) == len(batch.images)
        return 1000 * (time.process_time() - start) / len(batch.images)

    def totals(epoch: Iterable[tuple[Any, Any]]) -> list[int]:
        """Of all pixels, and objects."""
        found = [(int(images.sum()), int((tables[..., box_table.CLASS] >= 0).sum())) for images, tables in epoch]
        return [sum(each) for each in zip(*found, strict=True)]

    def prepared() -> Iterator[tuple[Any, Any]]:
        each = {"batch_size": size, "micro_batch_size": size, "rank": 0, "world_size": 1}
        for part in data.batches("train", sampler.passes(order, **each)):
            yield part.images, part.targets

    assert totals(loader) == totals(prepared())
    contenders = {"DataLoader": lambda: spent(loader), "trainyard": lambda: spent(prepared())}
    rounds = _common.take_turns(contenders, given.repeats)
    title = f"later epochs, {len(batch.images)} PNG files of {'x'.join(map(str, batch.images.shape[1:3]))}"
    _common.compare(title, "ms of the processor a picture", rounds, {("trainyard", "DataLoader"): "<= 0.05"})


def main() -> None:
    given = _common.flags(__doc__, repeats=5, numbers={"minutes": (4, "of `peers`")})
    torch.set_num_threads(given.threads)
    _common.print_machine()
    with _common.temporary_storage() as storage:
        parts = {"train": compare_training, "ap": compare_ap, "masks": compare_masks}
        parts |= {"peers": compare_peers, "later": compare_later_epochs}
        for name, part in parts.items():
            if given.only in name:
                part(given, storage)


if __name__ == "__main__":
    main()
