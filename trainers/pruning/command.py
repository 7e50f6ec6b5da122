"""python -m trainers prune: its words."""

from __future__ import annotations

import dataclasses
import json

from trainers.cli import cli, leading


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    speedup: float = 2.0
    """How many times fewer multiplications the network is to need."""
    epochs: int | None = None
    """To train what is left. None: a third of the run's."""
    lr: float | None = None
    """Learning rate. None: a tenth of the run's."""
    run: str | None = None
    """Name of the new run. None: RUN-pruned. Given again, the command continues it."""
    data: str | None = None
    """Where the raw data lies. None: where it lay in training."""
    workers: int | None = None
    """Training processes on Ray; 0: this process. None: as of `train`."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""
    json: bool = False
    """Print run.json at the end, in place of the run folder."""


def prune_command(argv: list[str]) -> int:
    """Cut channels out of a run's network, and train the rest. Returns the exit code."""
    names, flags = leading(argv)
    options = cli(_Options, flags, "python -m trainers prune RUN")
    if len(names) != 1:
        raise ValueError("usage: python -m trainers prune RUN [--speedup 2] [--epochs N]")
    from trainers.progress import Progress
    from trainers.pruning.run import prune

    progress = Progress()
    result = prune(
        names[0],
        options.speedup,
        epochs=options.epochs,
        lr=options.lr,
        name=options.run,
        data=options.data,
        workers=options.workers,
        storage=options.storage,
        progress=progress,
    )
    print(json.dumps(result.run, indent=1) if options.json else result.folder)
    if result.status == "interrupted":
        progress.message("to continue, repeat the command")
    return result.exit_code
