"""Training time of an image, of two processes against one: ours on Ray against torchrun with DDP by hand.

    python tests/benchmarks/scaling.py [--quick] [--repeats N] [--threads N]

MNIST-sized drawn pictures; the linear CNN with 16 filters; batch 256 over all processes; fp32; gloo;
`--threads` (default 1) of each process. By hand: tensors in memory, torch.randperm with a common seed, each
rank its share of a batch, DistributedDataParallel. Counted are epochs after the first, without start-up and
evaluation; losses must fall. --quick: 1,500 pictures, 3 epochs, with two processes alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import _common
import overhead

from trainers.recipe import resolve

BATCH = 256
BY_HAND = """
import json, os, sys, time
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainers.models import linear_cnn

arrays, epochs, batch, threads, result = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
torch.set_num_threads(threads)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
loaded = np.load(arrays)
images = torch.from_numpy(loaded["images"]).permute(0, 3, 1, 2).float().div(255).contiguous()
images = (images - images.mean()) / images.std()
targets = torch.from_numpy(loaded["targets"])
torch.manual_seed(0)
model = linear_cnn.build(image_size=tuple(images.shape[2:]), channels=1, classes=10, num_filters=16)
if size > 1:
    model = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
criterion = nn.CrossEntropyLoss()
share, times, losses = batch // size, [], []
for epoch in range(epochs):
    dist.barrier()
    start = time.perf_counter()
    permutation = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
    for first in range(0, len(images) - batch + 1, batch):
        indices = permutation[first + rank * share : first + (rank + 1) * share]
        optimizer.zero_grad()
        loss = criterion(model(images[indices]), targets[indices])
        loss.backward()
        optimizer.step()
    times.append(1e6 * (time.perf_counter() - start) / (len(images) // batch * batch))
    losses.append(loss.item())
assert losses[-1] < losses[0], f"by hand: nothing was learnt: {losses}"
if rank == 0:
    with open(result, "w") as file:
        json.dump(times, file)
dist.barrier()  # a rank that leaves while another still needs it ends that one with an error
dist.destroy_process_group()
"""


def by_hand(case: overhead.Case, processes: int) -> float:
    script, result = case.storage / "by_hand.py", case.storage / "times.json"
    script.write_text(BY_HAND.lstrip())
    words = [case.arrays, case.recipe.epochs, BATCH, case.threads, result]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={processes}", str(script), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"torchrun failed:\n{done.stderr}")
    return statistics.median(json.loads(Path(result).read_text())[1:])


def main() -> None:
    given = _common.flags(__doc__, repeats=3, threads=1)
    with _common.temporary_storage() as storage:
        _common.print_machine()
        rows = 1_500 if given.quick else 10_000
        recipe = resolve(
            "mnist.cnn",
            model_args={"num_filters": 16},
            epochs=3 if given.quick else 5,
            batch_size=BATCH,
            precision="fp32",
            weight_decay=0.0,
        )
        raw = _common.draw_mnist(storage / "raw", rows)
        case = overhead.Case("mnist", recipe, raw, storage, given.threads)
        case.prepare()
        overhead.start_ray(2 * given.threads)
        runs: dict[str, Callable[[], float]] = {
            "torchrun, 1": lambda: by_hand(case, 1),
            "torchrun, 2": lambda: by_hand(case, 2),
            "ours, 1": lambda: overhead.by_fit(case, 1),
            "ours, 2": lambda: overhead.by_fit(case, 2),
        }
        if given.quick:
            runs = {name: run for name, run in runs.items() if name.endswith("2")}
        rounds = _common.take_turns(runs, given.repeats)
        bars = {
            ("torchrun, 2", "torchrun, 1"): "",
            ("ours, 2", "ours, 1"): "as torchrun's",
            ("ours, 1", "torchrun, 1"): "",
            ("ours, 2", "torchrun, 2"): "",
        }
        bars = {pair: bar for pair, bar in bars.items() if runs.keys() >= set(pair)}
        title = f"mnist 28x28, 16 filters, batch {BATCH}, {given.threads} threads a process"
        _common.compare(title, "microseconds an image", rounds, bars)


if __name__ == "__main__":
    main()
