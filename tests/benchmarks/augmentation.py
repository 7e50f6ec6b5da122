"""What each augmentation costs: training time of an image with it over that without any.

    python tests/benchmarks/augmentation.py [--quick] [--repeats N] [--threads N] [--only WORD]

mnist.cnn on drawn pictures of MNIST's size, batch 128: small pictures and a small network, where augmentation weighs
most. `masks` is a U-Net at 128x128, batch 8, on drawn shapes. Counted is the processor's time of the epochs after the
first, so that other programs disturb little; one thread unless --threads says otherwise. Settings take turns with the
recipe without augmentation. Wanted at MNIST's size: mixing at most 1.03, TrivialAugment at most 1.33 (images/s at least
0.75 times).

--quick: 600 pictures, 2 epochs, and of masks none.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace
from typing import Any

import _common
import overhead

from trainers.messages import Event
from trainers.recipe import resolve
from trainers.runtime import worker

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "flip, crop": {"horizontal_flip": 0.5, "pad": 2},
    "rotate": {"rotate": 15},
    "trivial_augment": {"trivial_augment": True},
    "rand_augment": {"rand_augment": 9},
    "erase": {"erase": 0.25},
    "blur": {"blur": 0.1},
    "noise": {"noise": 0.05},
    "elastic": {"elastic": [34, 4]},
}
BARS = {"mixup": "<= 1.03", "cutmix": "<= 1.03", "trivial_augment": "<= 1.33"}


def processor_time(case: overhead.Case) -> float:
    """Microseconds an image, of worker.work in this process."""
    ends: list[float] = []

    def report(event: Event) -> None:
        if event["kind"] == "epoch":
            ends.append(time.process_time())

    job = case.job(f"run-{time.time_ns()}")
    end = worker.work(job, 0, 1, 1, report, lambda: False)
    assert end["status"] == "finished", end["message"]
    assert len(ends) == case.recipe.epochs
    rows = job["data"]["meta"]["rows"]["train"]
    return 1e6 / rows * statistics.median(later - before for before, later in itertools.pairwise(ends))


def compare(title: str, case: overhead.Case, settings: dict[str, dict[str, Any]], repeats: int) -> None:
    def measured(augment: dict[str, Any]) -> float:
        changed = replace(case, recipe=case.recipe.replace(augment=augment))
        return processor_time(changed)

    runs = {name: (lambda own=own: measured(own)) for name, own in settings.items()}
    rounds = _common.take_turns(runs, repeats)
    bars = {(name, "none"): BARS.get(name, "") for name in settings if name != "none"}
    _common.compare(title, "microseconds of the processor, an image", rounds, bars)


def main() -> None:
    given = _common.flags(__doc__, repeats=3, threads=1)
    with _common.temporary_storage() as storage:
        _common.print_machine()
        common = {"precision": "fp32", "epochs": 2 if given.quick else 4}
        wanted = {name: own for name, own in SETTINGS.items() if name == "none" or given.only in name}
        recipe = resolve("mnist.cnn", batch_size=128, micro_batch_size=128, augment={}, **common)
        raw = _common.draw_mnist(storage / "raw", 600 if given.quick else 10_000)
        case = overhead.Case("mnist", recipe, raw, storage, given.threads)
        case.prepare()
        compare(f"28x28, batch 128, {given.threads} threads", case, wanted, given.repeats)
        if given.quick:
            return
        unet = resolve(
            "shapes.unet",
            image_size=(128, 128),
            batch_size=8,
            micro_batch_size=8,
            augment={"horizontal_flip": 0, "vertical_flip": 0},
            dataset_args={"train": 200, "val": 8, "test": 8},
            **common,
        )
        case = overhead.Case("masks", unet, None, storage, given.threads)
        case.prepare()
        masks = {name: {"elastic": [100, 8]} if name == "elastic" else own for name, own in wanted.items()}
        compare("masks: U-Net, 128x128, batch 8", case, masks, min(2, given.repeats))


if __name__ == "__main__":
    main()
