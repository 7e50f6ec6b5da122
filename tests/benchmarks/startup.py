"""Seconds from the command to the end of its first optimizer step, on scikit-learn's 8x8 digits.

    python tests/benchmarks/startup.py [--quick] [--repeats N] [--only workers=0|workers=1]

    workers=0    `python -m trainers train` without Ray, against a plain PyTorch script
    workers=1    the same with one Ray Train worker, against a bare TorchTrainer script

All train the same network, whose second forward pass in training writes down the time: one optimizer step has
been taken then. Every run is a process of its own; what follows the first step is not counted. Ours has to
decode the digits each time (a fresh cache), starts a run folder and takes the locks of a run. Wanted: at most
1.5 times the plain script's time, and 1.15 times the TorchTrainer's. --quick: one round.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import _common

MODEL = '''
"""The linear CNN, which writes the time to the file `mark` at its second forward pass in training."""
import time

from torch import nn


def build(*, image_size: tuple[int, int], channels: int, classes: int, mark: str = "") -> nn.Module:
    height, width = image_size
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), classes),
    )
    passes = []

    def look(module: nn.Module, inputs: object) -> None:
        if module.training:
            passes.append(time.time())
            if len(passes) == 2:
                with open(mark, "w") as file:
                    file.write(str(passes[1]))

    model.register_forward_pre_hook(look)
    return model
'''

PLAIN = """
import sys
import torch
from sklearn.datasets import load_digits
from torch import nn
from model import build

def train(config):
    images, labels = load_digits(return_X_y=True)
    dataset = torch.utils.data.TensorDataset(
        torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=128, shuffle=True)
    model = build(image_size=(8, 8), channels=1, classes=10, mark=config["mark"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

if __name__ == "__main__":
    train({"mark": sys.argv[1]})
"""

BARE = """
import sys
from plain import train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

TorchTrainer(
    train,
    train_loop_config={"mark": sys.argv[1]},
    scaling_config=ScalingConfig(num_workers=1),
    run_config=RunConfig(storage_path=sys.argv[2]),
).fit()
"""


def seconds(command: Sequence[str], mark: Path) -> float:
    """Run `command` to its end; the time from its start to the mark."""
    mark.unlink(missing_ok=True)
    here = mark.parent
    path = os.pathsep.join([str(here), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "TRAINYARD_CACHE": str(here / f"{time.time_ns()}")}
    start = time.time()
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    trouble = f"{command} ended with {done.returncode}:\n{done.stderr[-2000:]}"
    assert done.returncode == 0, trouble
    assert mark.exists(), trouble
    return float(mark.read_text()) - start


def main() -> None:
    given = _common.flags(__doc__, repeats=7)
    with _common.temporary_storage() as storage:
        _common.print_machine()
        for name, text in (("model", MODEL), ("plain", PLAIN), ("bare", BARE)):
            (storage / f"{name}.py").write_text(text.lstrip())
        mark = storage / "mark"

        def script(*words: str) -> Callable[[], float]:
            return lambda: seconds([sys.executable, *words], mark)

        def train(workers: int) -> Callable[[], float]:
            command = f"-m trainers train digits.cnn --model ./model.py --model-args mark={mark} --epochs 1"
            return script(*command.split(), "--batch-size", "128", "--workers", str(workers))

        bare = script("bare.py", str(mark), str(storage / "ray"))
        parts = {
            "workers=0": ("plain PyTorch script", script("plain.py", str(mark)), "<= 1.5"),
            "workers=1": ("bare TorchTrainer script", bare, "<= 1.15"),
        }
        for name, (peer, run, bar) in parts.items():
            if given.only not in name:
                continue
            rounds = _common.take_turns({peer: run, name: train(int(name[-1]))}, given.repeats)
            _common.compare(f"{name}: to the first step", "seconds", rounds, {(name, peer): bar})


if __name__ == "__main__":
    main()
