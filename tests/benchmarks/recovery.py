"""What a lost host costs: seconds until training continues; what checkpoints cost; how long doctor takes.

    python tests/benchmarks/recovery.py [--quick] [--repeats N] [--only checkpoints|killed|frozen|cut|doctor]

Three hosts made of network namespaces on this machine (needs root), sharing its cores. digits.cnn on `--workers 1:3`,
with a model that sleeps, so that epochs take seconds; one host is killed, stopped, or cut off in mid-epoch. As the
cluster shapes do, the head asks its hosts every second and gives up after three answers that did not come in 3 s.
checkpoints: share of the training time that `--checkpoint-seconds 10` takes, against one at each epoch's end, of a
U-Net in a process of its own; it needs neither root nor hosts. --quick: checkpoints and killed; where hosts cannot be
made, checkpoints alone, and the reason why.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import _common
from helpers.hosts import Hosts, Training, why_not
from helpers.small import DIGITS_STEPS, Slow


def main() -> None:
    given = _common.flags(__doc__, repeats=3)
    parts = ["checkpoints", "doctor", "killed", "frozen", "cut off"]
    if given.quick and not given.only:
        parts = ["checkpoints", "killed"]
    parts = [name for name in parts if given.only in name]
    with _common.temporary_storage(temporary_files=False) as folder:
        _common.print_machine()
        rows = [_checkpoints(folder, given.quick)] if "checkpoints" in parts else []
        with_hosts = [name for name in parts if name != "checkpoints"]
        why = why_not() if with_hosts else None
        if with_hosts and why is None:
            rows += _on_hosts(folder, with_hosts, given.repeats)
        _common.show("", ["", ""], rows)
    if why is not None:
        print(f"left out: {', '.join(with_hosts)}: {why}")
        sys.exit(0 if given.quick else 1)


def _on_hosts(folder: Path, parts: Sequence[str], repeats: int) -> list[list[str]]:
    """Rows of the table: what needs three hosts."""
    rows, with_loss = [], [name for name in parts if name != "doctor"]
    with Hosts(folder / "hosts") as hosts:
        hosts.start_cluster()

        def recovery(turn: int, name: str) -> float:
            if turn or name != with_loss[0]:  # the host that was lost before
                hosts.all[2].down()
                hosts.restart(hosts.all[2])
            return _recovery(hosts, folder, f"{name[:3]}{turn}", name)

        for name in parts:
            if name == "doctor":
                seconds = [_timed(lambda: _doctor(hosts, folder)) for _ in range(repeats)]
                rows.append(["python -m cluster doctor, three healthy hosts", f"{_common.spread(seconds, 3)} s"])
            else:
                seconds = [recovery(turn, name) for turn in range(repeats)]
                rows.append([f"a host is {name}: training continues after", f"{_common.spread(seconds, 3)} s"])
    return rows


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


def _checkpoints(storage: Path, quick: bool) -> list[str]:
    """Row of the table: of U-Net on drawn shapes, whose checkpoint is not small."""
    shares = []
    for name, every in (("often", "10"), ("seldom", "100000")):
        command = [sys.executable, "-m", "trainers", "train", "unet.camvid", "--workers", "0", "--run", name]
        command += ["--storage", str(storage), "--epochs", "1" if quick else "40", "--checkpoint-seconds", every]
        command += ["--model-args", f"base_channels={4 if quick else 16}", "--image-size", "64x96"]
        command += ["--dataset", "shapes", "--dataset-args", "train=64", "val=8", "test=8", "height=64", "width=96"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        run = json.loads((storage / name / "run.json").read_text())
        assert run["epochs_run"] == run["recipe"]["epochs"], run["message"]
        seconds = run["seconds"]
        assert seconds["checkpoint"] > 0, "no checkpoint was written"
        shares.append(seconds["checkpoint"] / (seconds["compute"] + seconds["data_wait"] + seconds["evaluate"]))
    value = f"{shares[0]:.2%} with --checkpoint-seconds 10, {shares[1]:.2%} with one an epoch alone"
    return ["checkpoints: share of the time", value]


def _doctor(hosts: Hosts, storage: Path) -> None:
    command = [sys.executable, "-m", "cluster", "doctor", "--storage", str(storage)]
    hosts.head.run(*command, env={"RAY_ADDRESS": hosts.address})


def _timed(run: Callable[[], object]) -> float:
    start = time.monotonic()
    run()
    return time.monotonic() - start


if __name__ == "__main__":
    main()
