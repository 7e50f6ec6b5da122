"""Predicted memory of a training step against what torch's allocator hands out.

    python tests/benchmarks/memory.py [--quick] [--threads N] [--only MODEL]

Every model at three sizes, in steps of one micro-batch and of two, in fp32; where there is a GPU, against
torch.cuda.max_memory_allocated, in bf16 too. On the CPU the peak is that of the running total of torch.profiler's
memory events over two steps. Wanted: within 5 % on the CPU, else the exit code is 1. Seconds: of the prediction; the
first one of a model and size traces it, which serves all batches of both: under 30. --quick: four models at their
smallest size.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import _common
import torch
from helpers.allocator import facts, measure

from trainers.formatting import format_size
from trainers.recipe import Recipe, resolve
from trainers.training import peak_memory

Sizes = list[tuple[int, int]]
FEW: dict[str, Any] = {"init_from": None}
MODELS: dict[str, tuple[str, int, int, dict[str, Any], Sizes]] = {
    "linear_cnn": ("mnist.cnn", 1, 10, {}, [(28, 28), (56, 56), (112, 112)]),
    "texture_cnn": ("textures.cnn", 1, 10, {}, [(32, 32), (64, 64), (128, 128)]),
    "resnet-18 3x3": ("cifar.r18", 3, 10, {}, [(32, 32), (48, 48), (64, 64)]),
    "resnet-18": ("resnet.r18", 3, 10, {"stored_size": (256, 256)}, [(96, 96), (160, 160), (224, 224)]),
    "resnet-50": ("resnet.r50", 3, 10, {"stored_size": (256, 256)}, [(96, 96), (160, 160), (224, 224)]),
    "erfnet encoder": ("erfnet.encoder", 3, 19, FEW, [(64, 128), (128, 256), (256, 512)]),
    "erfnet decoder": ("erfnet.decoder", 3, 19, FEW, [(64, 128), (128, 256), (256, 512)]),
    "deeplabv3plus": ("deeplab.camvid", 3, 11, {}, [(96, 128), (180, 240), (360, 480)]),
    "unet": ("unet.drone", 3, 24, {}, [(64, 64), (128, 128), (256, 256)]),
}
"""Name -> recipe, channels, classes, changes, sizes."""
QUICK = ("linear_cnn", "resnet-18 3x3", "erfnet encoder", "unet")
TOLERANCE = 0.05


def compare(recipe: Recipe, meta: dict[str, Any], device: str) -> tuple[float, list[str]]:
    """The error of the prediction; and, as cells: predicted, measured, error, seconds of the prediction."""
    start = time.perf_counter()
    predicted = peak_memory.predict(recipe, meta)
    seconds = time.perf_counter() - start
    measured = measure(recipe, meta, device)
    error = predicted / measured - 1
    return error, [*(f"{size / 2**20:.1f}" for size in (predicted, measured)), f"{error:+.2%}", f"{seconds:.1f}"]


def main() -> None:
    given = _common.flags(__doc__, repeats=1, numbers={"micro-batch": (4, "pictures a micro-batch")})
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _common.print_machine()
    micro = given.micro_batch
    rows, wrong = [], []
    for name, (recipe_name, channels, classes, changes, sizes) in MODELS.items():
        if given.only not in name or (given.quick and name not in QUICK):
            continue
        for size in sizes[: 1 if given.quick else None]:
            for precision in ("fp32", "bf16") if device == "cuda" else ("fp32",):
                for count in (1, 2):
                    batch = {"batch_size": micro * count, "micro_batch_size": micro, "precision": precision}
                    recipe = resolve(recipe_name, **{**changes, "image_size": size, **batch})
                    error, cells = compare(recipe, facts(recipe, channels, classes), device)
                    rows.append([name, f"{size[0]}x{size[1]}", precision, f"{count} x {micro}", *cells])
                    wrong += [f"{name} at {size}: {error:+.2%}"] if abs(error) > TOLERANCE else []
    columns = "model|size|type|passes|predicted, MiB|measured, MiB|error|seconds"
    title = f"peak memory of a step, predicted, and torch's on {device}; wanted on the CPU: within 5 %"
    _common.show(title, columns.split("|"), rows)
    context = peak_memory.context_bytes()
    print("no GPU" if context is None else f"context of the GPU: {format_size(context)}, not counted above")
    if wrong and device == "cpu":
        sys.exit(f"predictions that are wrong by more than {TOLERANCE:.0%}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
