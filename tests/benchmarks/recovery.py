"""What a lost host costs: seconds until training goes on; what checkpoints cost; how long doctor takes.

    python tests/benchmarks/recovery.py [--quick] [--repeats N] [--only killed|frozen|cut|checkpoints|doctor]

Three hosts made of network namespaces on this machine (needs root), sharing its cores. digits.cnn on `--workers 1:3`,
with a model that sleeps, so that epochs take seconds; one host is killed, stopped, or cut off in mid-epoch. As the
cluster shapes do, the head asks its hosts every second and gives up after three answers that did not come in 3 s.
checkpoints: share of the training time that `--checkpoint-seconds 10` takes, against one at each epoch's end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import _common

sys.path.insert(0, str(_common.ROOT / "tests"))

from helpers.hosts import Hosts, Training, why_not
from helpers.small import DIGITS_STEPS, Slow


def main() -> None:
    given = _common.flags(__doc__, repeats=3)
    if why := why_not():
        sys.exit(why)
    with _common.temporary_storage() as folder, Hosts(folder / "hosts") as hosts:
        _common.tell_machine()
        hosts.start_cluster()
        rows = []
        for name in ("killed", "frozen", "cut off"):
            if given.only in name:
                seconds = [_recovery(hosts, folder, f"{name[:3]}{turn}", name) for turn in range(given.repeats)]
                rows.append([f"a host is {name}: training goes on after", f"{_common.spread(seconds, 3)} s"])
        if given.only in "checkpoints":
            rows.append(["checkpoints: share of the time", _checkpoints(hosts, folder, 2 if given.quick else 40)])
        if given.only in "doctor":
            seconds = [_timed(lambda: _doctor(hosts, folder)) for _ in range(given.repeats)]
            rows.append(["python -m cluster doctor, three healthy hosts", f"{_common.spread(seconds, 3)} s"])
        _common.show("", ["", ""], rows)


def _recovery(hosts: Hosts, storage: Path, run: str, trouble: str) -> float:
    flags = ["--workers", "1:3", "--epochs", "1000", *Slow(storage).flags]
    training, victim = Training(hosts, storage, run, *flags), hosts.all[2]
    try:
        training.wait_for("epoch 1/")
        training.wait_for_the_middle_of_an_epoch(DIGITS_STEPS)
        lost = time.monotonic()
        {"killed": victim.down, "frozen": victim.freeze, "cut off": lambda: hosts.cut(victim)}[trouble]()
        training.wait_for("going on from step")
        return time.monotonic() - lost
    finally:
        training.kill()
        victim.down()
        hosts.restart(victim)


def _checkpoints(hosts: Hosts, storage: Path, epochs: int) -> str:
    """Of U-Net on drawn shapes, whose checkpoint is not small."""
    shares = []
    for name, every in (("often", "10"), ("seldom", "100000")):
        flags = ["--workers", "1", "--epochs", str(epochs), "--checkpoint-seconds", every]
        flags += ["--dataset-args", "train=64", "val=8", "test=8", "--image-size", "64x96"]
        Training(hosts, storage, name, *flags, command=("trainers", "train", "shapes.unet")).end(600)
        seconds = json.loads((storage / name / "run.json").read_text())["seconds"]
        shares.append(seconds["checkpoint"] / (seconds["compute"] + seconds["data_wait"] + seconds["evaluate"]))
    return f"{shares[0]:.2%} with --checkpoint-seconds 10, {shares[1]:.2%} with one an epoch alone"


def _doctor(hosts: Hosts, storage: Path) -> None:
    command = [sys.executable, "-m", "cluster", "doctor", "--storage", str(storage)]
    hosts.head.run(*command, env={"RAY_ADDRESS": hosts.address})


def _timed(run: Callable[[], object]) -> float:
    start = time.monotonic()
    run()
    return time.monotonic() - start


if __name__ == "__main__":
    main()
