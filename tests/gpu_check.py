"""Whether training on a GPU is right, as fast as a loop by hand, and takes the memory that was predicted.

    python tests/gpu_check.py [--device cuda|cpu] [--only MODEL...] [--shrink N] [--epoch-seconds S]

Needs torch 2.11 or later, NumPy and Pillow; torchvision for ResNets and DeepLab, without which these are skipped. No
Ray, no pytest, no network, no data. Prints JSON on stdout, progress on stderr; the exit code is 1 where `failed` of the
JSON names anything. On one GPU it takes less than 6 minutes; on a CPU too, where sides and batches are smaller.

equality   a few steps of loop.train on the device, in fp64 and in fp32 (without TF32), against a plain loop in fp64 on
           the CPU: same weights, pictures and order, no dropout. `loss`: relative difference of the epoch's mean loss.
           `weights`: of what the steps have changed. fp32 is judged by the plain loop's own fp32 on the CPU: loosely
           where rounding grows fast, as in ResNet-50, whose last BatchNorms see 8 values. fp64 is the strict one.
speed      milliseconds an image of loop.train against a loop by hand, which has all pictures on the device, and takes
           the same precision, memory format and fused optimizer; medians of interleaved rounds. `ratio`: ours over
           theirs, less is better. Printed, not judged: the machine may be doing other work.
memory     predicted bytes of a step, and what torch's allocator handed out in two.
data_wait  the share of an epoch's time in which ours waited for pictures.
trial      how the start of a long run would execute the step, and the seconds of each way that it tries.
uploads    that copies to the GPU arrive whole, and that the host does not wait for them (on a GPU).
execution  what a run reports of how it executes its steps, where pyarrow is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it needs no installation

import numpy as np
import torch
from helpers import allocator
from torch import Tensor, nn
from torch.nn import functional

from trainers.data import sampler
from trainers.data.batches import Batch
from trainers.data.resident import Resident
from trainers.data.sampler import Pass
from trainers.recipe import Recipe, resolve
from trainers.training import build, device, loop, peak_memory, tune_step
from trainers.training.distributed import World
from trainers.upload import upload

RECIPES = {
    "digit CNN": "mnist.cnn",
    "ResNet-18": "resnet.r18",
    "ResNet-50": "resnet.r50",
    "ERFNet": "erfnet.decoder",
    "DeepLabv3+": "deeplab.camvid",
    "U-Net": "unet.drone",
}
CLASSES = 10
IGNORED = 255
CPU_SHRINK = 4
LEAST_SIDE, LEAST_BATCH = 32, 2
EQUAL_BATCH, EQUAL_STEPS, EQUAL_LR = 8, 3, 1e-3
EXACT = {"loss": 1e-8, "weights": 1e-6}
"""Relative differences that are allowed in fp64: of ResNet-50's weights, 5e-9 is seen between two orders of a sum."""
LIKE_CPU, ROUNDING = 10, 1e-5
"""In fp32: so many times the error of fp32 on the CPU, and what is allowed in any case."""
MEMORY = {"cpu": 0.05, "cuda": 0.1}
"""Relative error of the prediction that is allowed: on a GPU kernels borrow from the allocator."""
WANTED = 1.05
"""Ours over a loop by hand, in time."""
WARM_UP, ROUNDS = 2, 3
"""Epochs. In the second, pictures are brought to the device."""
MOST_BYTES, MOST_ROWS = 2**28, 60_000
"""Of the pictures of an epoch."""
LAST_START = 300.0
"""Seconds after which no model is begun."""
UPLOADS, UPLOAD_BYTES = 8, 2**23
EXPECTED_EVENTS = ("machine", "start", "step", "epoch", "saved", "message", "warning", "file", "done")

Facts = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """Sizes and seconds, as they follow from the device and the command line."""

    device: torch.device
    shrink: int
    epoch_seconds: float
    """Of each timed epoch."""

    def recipe(self, name: str, **changes: Any) -> Recipe:
        """The network, task and optimizer of a recipe at this size, without all that a loop by hand would not have."""
        found = resolve(name)
        height, width = (max(side // self.shrink, min(side, LEAST_SIDE)) for side in found.image_size)
        batch = max(found.batch_size // self.shrink, LEAST_BATCH)
        fields: Facts = {name: getattr(found, name) for name in ("dataset", "model", "model_args", "task", "task_args")}
        fields |= {"image_size": (height, width), "batch_size": batch, "epochs": 1, "lr": EQUAL_LR}
        fields |= {"optimizer": found.optimizer, "precision": device.auto_precision(self.device.type == "cuda")}
        fields |= {"micro_batch_size": changes.get("batch_size", batch)}
        return Recipe(**{**fields, **changes})


class Drawn:
    """Noise in the host's memory, as a data set."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        """So many full batches to train on, and one to validate on."""
        self.meta: Any = allocator.facts(recipe, 1 if recipe.dataset == "mnist" else 3, CLASSES)
        self.meta["rows"] = {"train": steps * recipe.batch_size, "val": recipe.batch_size}
        rng, rows, size = np.random.default_rng(0), steps * recipe.batch_size, recipe.image_size
        self.images = rng.integers(0, 256, (rows, *size, self.meta["channels"]), np.uint8)
        self.targets = rng.integers(0, CLASSES, (rows, *size) if self.meta["masks"] else rows, np.uint8)
        if self.meta["masks"]:
            self.targets[:, : size[0] // 8] = IGNORED
        else:
            self.targets = self.targets.astype(np.int64)
        self.resident: Resident | None = None

    def batches(self, split: str, passes: Iterable[Pass]) -> Iterator[Batch]:
        """As of prepared pictures."""
        there = self.resident if self.resident and split == "train" and self.resident.holds([self.images]) else None
        for of in passes:
            pictures = self.images.take(of.ids, axis=0) if there is None else there.gather(of.ids)
            yield Batch(of, pictures, self.targets.take(of.ids, axis=0))

    def labels(self, split: str) -> Any:
        return self.targets


class Ours:
    """loop.train, an epoch a call."""

    def __init__(self, recipe: Recipe, data: Drawn, where: torch.device) -> None:
        self.recipe, self.data = recipe, data
        assert recipe.precision != "auto"
        self.world = World(0, 1, where, recipe.precision)
        self.state = build.create_state(recipe, data.meta, self.world)
        data.resident = Resident(where, lambda: device.spare_memory(where))

    def epoch(self) -> float:
        """Milliseconds an image."""
        longer = self.recipe.replace(epochs=self.state.epoch + 1)
        summary = loop.train(longer, self.state, self.data, self.world)
        assert summary.status == "finished", summary.message
        return 1000 / self.state.history[-1]["images_per_second"]


class ByHand:
    """The same network from the same weights, its pictures all on the device, in a loop of a few lines."""

    def __init__(self, recipe: Recipe, data: Drawn, where: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.recipe, self.where, self.dtype = recipe, where, dtype
        self.model = build.build_model(recipe, data.meta).to(where, dtype)
        self.images, self.targets = (torch.from_numpy(each).to(where) for each in (data.images, data.targets))
        common: Facts = {"lr": recipe.lr, "fused": True}
        if recipe.optimizer == "sgd":
            common |= {"momentum": recipe.momentum}
        kind = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.Adam
        self.optimizer = kind(self.model.parameters(), **common)

    def laid_out(self) -> ByHand:
        """In channels_last, as is fastest on most devices."""
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def epoch(self, rows: Tensor | None = None) -> float:
        """Milliseconds an image of an epoch in this order; its mean loss is then in `loss`."""
        start = time.perf_counter()
        self.model.train()
        rows = torch.randperm(len(self.images), device=self.where) if rows is None else rows.to(self.where)
        total, divisor = torch.zeros((), device=self.where), torch.zeros((), device=self.where)
        batch = self.recipe.batch_size
        for chosen in rows.split(batch):
            images = self.images[chosen].permute(0, 3, 1, 2).to(self.dtype).sub_(127.5).div_(127.5)
            targets = self.targets[chosen].long()
            self.optimizer.zero_grad()
            with torch.autocast(self.where.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                loss = functional.cross_entropy(self.model(images).to(self.dtype), targets, ignore_index=IGNORED)
            loss.backward()
            self.optimizer.step()
            count = (targets != IGNORED).sum()
            total, divisor = total + loss.detach() * count, divisor + count
        self.loss = float(total / divisor)  # waits for the device
        return 1000 * (time.perf_counter() - start) / len(rows)


# What is checked -------------------------------------------------------------------------------------------------


def check_equality(name: str, budget: Budget) -> Facts:
    """Ours on the device against a plain loop in fp64 on the CPU."""
    small = Budget(budget.device, 2**16, 0)
    recipe = small.recipe(name, batch_size=EQUAL_BATCH, optimizer="sgd", momentum=0.9, precision="fp64")
    data, cpu = Drawn(recipe, EQUAL_STEPS), torch.device("cpu")
    order = torch.from_numpy(sampler.permutation(recipe.seed, 0, len(data.images)))
    peers = {dtype: ByHand(recipe, data, cpu, dtype) for dtype in (torch.float64, torch.float32)}
    before = _weights(peers[torch.float64].model)
    for peer in peers.values():
        _without_dropout(peer.model)
        peer.epoch(order)
    truth = peers[torch.float64]

    def differs(loss: float, model: nn.Module) -> Facts:
        right = _weights(truth.model)
        changed = torch.linalg.vector_norm(right - before)
        wrong = torch.linalg.vector_norm(_weights(model) - right)
        return {"loss": abs(loss - truth.loss) / abs(truth.loss), "weights": float(wrong / changed)}

    found: Facts = {"image_size": list(recipe.image_size), "batch_size": EQUAL_BATCH, "steps": EQUAL_STEPS}
    torch.backends.cudnn.allow_tf32 = False
    found["fp32 by hand on the CPU"] = differs(peers[torch.float32].loss, peers[torch.float32].model)
    for precision in ("fp64", "fp32"):
        ours = Ours(recipe.replace(precision=precision), data, budget.device)
        _without_dropout(ours.state.model)
        ours.epoch()
        found[precision] = differs(ours.state.history[0]["train/loss"], ours.state.model)
    torch.backends.cudnn.allow_tf32 = True  # as torch has it
    own = found["fp32 by hand on the CPU"]
    found["wanted"] = {
        "fp64": EXACT,
        "fp32": {key: max(ROUNDING, LIKE_CPU * value) for key, value in own.items()},
    }
    within = [found[p][key] <= limit for p, limits in found["wanted"].items() for key, limit in limits.items()]
    found["passed"] = all(within)
    return found


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().cpu().double().flatten() for each in model.parameters()])


def _without_dropout(model: nn.Module) -> None:
    """Devices draw other random numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0


def check_speed(name: str, budget: Budget) -> tuple[Facts, float]:
    """Ours against a loop by hand; and the share of its time that ours waited for pictures."""
    recipe = budget.recipe(name)
    few = Drawn(recipe, 2)
    trial = ByHand(recipe, few, budget.device).laid_out()
    trial.epoch()
    seconds = trial.epoch() / 1000 * recipe.batch_size
    most = min(MOST_ROWS, MOST_BYTES // few.images[0].nbytes) // recipe.batch_size
    steps = max(2, min(most, round(budget.epoch_seconds / seconds)))
    data = Drawn(recipe, steps)
    ours, peer = Ours(recipe, data, budget.device), ByHand(recipe, data, budget.device).laid_out()
    turns: list[tuple[str, Callable[[], float]]] = [("ours", ours.epoch), ("by hand", peer.epoch)]
    times: dict[str, list[float]] = {name: [] for name, _ in turns}
    for number in range(WARM_UP + ROUNDS):
        for who, epoch in turns[:: 1 if number % 2 else -1]:
            times[who].append(epoch())
    ratios = [mine / theirs for mine, theirs in zip(*(times[who][WARM_UP:] for who in times), strict=True)]
    assert data.resident is not None
    found: Facts = {"images": len(data.images), "steps": steps, "kept_on_device": data.resident.bytes}
    for who, values in times.items():
        found[f"{who}, ms an image"] = [round(each, 4) for each in values[WARM_UP:]]
    found |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(each, 3) for each in ratios]}
    return {**found, "wanted": f"<= {WANTED}"}, ours.state.history[-1]["data_wait_share"]


def check_memory(name: str, budget: Budget) -> Facts:
    """The prediction of a step against the allocator."""
    recipe = budget.recipe(name)
    meta = Drawn(recipe, 2).meta
    start = time.perf_counter()
    predicted = peak_memory.predict(recipe, meta)
    seconds = time.perf_counter() - start
    measured = allocator.measure(recipe, meta, budget.device.type)
    error, allowed = predicted / measured - 1, MEMORY[budget.device.type]
    found = {"predicted": predicted, "measured": measured, "error": round(error, 4), "seconds": round(seconds, 1)}
    return {**found, "wanted": f"within {allowed:.0%}", "passed": abs(error) <= allowed}


def try_step(name: str, budget: Budget) -> Facts:
    """What is chosen at the start of a run of many epochs."""
    recipe, threads = budget.recipe(name, epochs=10_000), torch.get_num_threads()
    assert recipe.precision != "auto"
    world = World(0, 1, budget.device, recipe.precision)
    tuned = tune_step.tune(recipe, Drawn(recipe, 2).meta, world, most=threads)
    device.set_threads(threads)
    return {"threads": tuned.execution.threads, **tuned.facts()}


def check_uploads(where: torch.device) -> Facts:
    """Whether copies arrive whole, and take place while the host goes on and the device is busy."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, UPLOAD_BYTES, np.uint8) for _ in range(UPLOADS)]
    copies = [array.copy() for array in arrays]
    if where.type == "cpu":
        return {"skipped": "a CPU needs no copies"}
    matrix = torch.randn(8192, 8192, device=where)
    for _ in range(2):  # the second time page-locked memory is there, whose making waits for the device
        torch.cuda.synchronize(where)
        start = time.perf_counter()
        for _ in range(20):
            matrix = (matrix @ matrix).clamp_(-1, 1)
        arrived = [upload(array, where) for array in arrays]
        host = time.perf_counter() - start
        for array in arrays:
            array.fill(0)  # their copies in page-locked memory are left
        torch.cuda.synchronize(where)
        total = time.perf_counter() - start
        whole = all(np.array_equal(there.cpu().numpy(), right) for there, right in zip(arrived, copies, strict=True))
        for array, right in zip(arrays, copies, strict=True):
            array[:] = right
    found = {"whole": whole, "host_seconds": round(host, 5), "device_seconds": round(total, 5)}
    return {**found, "wanted": "the host is done in half of the time", "passed": whole and host < total / 2}


def read_execution() -> Facts:
    """Of a short run: all that it reports beyond progress and results, such as what a trial of its step chose."""
    if importlib.util.find_spec("pyarrow") is None:
        return {"skipped": "pyarrow is not installed"}
    from helpers import small

    from trainers.runtime import worker

    events: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRAINYARD_CACHE"] = f"{folder}/cache"
        drawn = {"train": 64, "val": 4, "test": 0, "height": 32, "width": 32}
        recipe = small.small_recipe("shapes.unet", dataset_args=drawn, image_size=(32, 32), epochs=2, precision="fp32")
        job = small.job(recipe, None, Path(folder), "run", workers=0)
        job["threads"] = torch.get_num_threads()
        end = worker.work(job, 0, 1, 1, events.append, lambda: False)
    found: Facts = {event["kind"]: dict(event) for event in events if event["kind"] not in EXPECTED_EVENTS}
    return {**found, "status": end["status"], "message": end["message"], "passed": end["status"] == "finished"}


# The report ----------------------------------------------------------------------------------------------------------


def check_model(name: str, budget: Budget) -> Facts:
    recipe = RECIPES[name]
    if resolve(recipe).model in ("resnet", "deeplabv3plus") and importlib.util.find_spec("torchvision") is None:
        return {"recipe": recipe, "skipped": "torchvision is not installed"}
    at = budget.recipe(recipe)
    found: Facts = {"recipe": recipe, "image_size": list(at.image_size), "batch_size": at.batch_size}
    found["precision"] = at.precision
    found["equality"] = check_equality(recipe, budget)
    found["memory"] = check_memory(recipe, budget)
    found["speed"], found["data_wait"] = check_speed(recipe, budget)
    found["trial"] = try_step(recipe, budget)
    return found


def describe_machine(where: torch.device) -> Facts:
    gpu = torch.cuda.get_device_properties(where) if where.type == "cuda" else None
    return {
        "device": str(where),
        "gpu": gpu and gpu.name,
        "gpu_bytes": gpu and gpu.total_memory,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default the GPU, where there is one")
    parser.add_argument("--only", nargs="*", choices=RECIPES, default=RECIPES, metavar="MODEL", help="of %(choices)s")
    parser.add_argument("--shrink", type=int, help=f"divide sides and batches; 1 on a GPU, {CPU_SHRINK} on a CPU")
    parser.add_argument("--epoch-seconds", type=float, default=1.0, help="of each timed epoch (default 1)")
    given = parser.parse_args()
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything asks: predictions are for the device that is here
    elif given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; give --device cpu, or install torch as built for this GPU's driver")
    if given.shrink is not None and given.shrink < 1:
        parser.error(f"--shrink {given.shrink}: give a number from 1 on")
    return given


def main() -> None:
    given, begun = parse(), time.monotonic()
    gpu = given.device != "cpu" and torch.cuda.is_available()
    where = torch.device("cuda", 0) if gpu else torch.device("cpu")
    shrink = given.shrink or (1 if gpu else CPU_SHRINK)
    budget = Budget(where, shrink, given.epoch_seconds)
    sides = f"those of the recipes divided by {shrink}, sides not below {LEAST_SIDE}, batches not below {LEAST_BATCH}"
    report: Facts = {"machine": describe_machine(where), "sizes": sides, "models": {}}
    report["uploads"] = check_uploads(where)
    parts = {"uploads": report["uploads"]}
    for name in given.only:
        if time.monotonic() - begun > LAST_START:
            report["models"][name] = {"skipped": "no time was left", "passed": False}
            parts[name] = report["models"][name]
            continue
        print(f"{time.monotonic() - begun:4.0f} s: {name}", file=sys.stderr, flush=True)
        found = report["models"][name] = check_model(name, budget)
        parts |= {f"{name}: {part}": value for part, value in found.items() if isinstance(value, dict)}
    report["execution"] = parts["execution"] = read_execution()
    report["seconds"] = round(time.monotonic() - begun, 1)
    report["failed"] = [part for part, value in parts.items() if not value.get("passed", True)]
    print(json.dumps(report, indent=1))
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()
