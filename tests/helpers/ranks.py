"""Several ranks without a cluster: processes with a gloo group each, running the code that Ray's workers run.

They are forked off one process that has imported what they need, which takes each seconds: torch, and all that DDP and
FSDP2 import at their first use.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any
from unittest import mock

Job = dict[str, Any]
SECONDS = 900
"""After which ranks hang: for one job, on a machine that does other work."""
IMPORTED = ["trainers.runtime.worker", "torch.distributed.pipelining"]
"""The second imports torch's compiler, as DDP does, and FSDP2."""


def run_ranks(jobs: Sequence[tuple[Job, int]]) -> list[list[dict[str, Any]]]:
    """Run each (job, world size), one after another, in the same processes.

    A job may hold "stop_after": steps after which rank 0 is asked to stop; "kill_after": steps after which a process
    kills itself, once a checkpoint is written; and "no_checkpoints": none are written.
    Returns the events that rank 0 reported, for each job; "steps" of the "done" event are the training losses of
    all optimizer steps, "seen" the ids that any rank trained on, by epoch, and "weights" how many each rank held.
    """
    size = max(size for _, size in jobs)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as meeting:
        given = (list(jobs), meeting, results, dict(os.environ))
        processes = [context.Process(target=_rank, args=(rank, *given)) for rank in range(size)]
        for process in processes:
            process.start()
        try:
            gathered: dict[tuple[int, int], list[dict[str, Any]]] = {}
            for _ in range(sum(size for _, size in jobs)):
                index, rank, events, error = results.get(timeout=SECONDS)
                if error:
                    raise AssertionError(f"rank {rank} of job {index}:\n{error}")
                gathered[index, rank] = events
        except queue.Empty:
            raise AssertionError(f"the ranks hang: only {sorted(gathered)} (job, rank) have ended") from None
        finally:
            for process in processes:
                process.kill()
                process.join()
    ends = [[gathered[index, rank][-1] for rank in range(size)] for index, (_, size) in enumerate(jobs)]
    for index, end in enumerate(ends):
        seen = [
            sorted(row for part in ids for row in part) for ids in zip(*(rank["seen"] for rank in end), strict=True)
        ]
        gathered[index, 0][-1] |= {"seen": seen, "weights": [rank["weights"] for rank in end]}
    return [gathered[index, 0] for index in range(len(jobs))]


def _rank(rank: int, jobs: Sequence[tuple[Job, int]], meeting: str, results: Any, environment: dict[str, str]) -> None:
    import torch.distributed as dist

    os.environ.clear()  # that of the process that they are forked off may be of another test
    os.environ.update(environment)
    for index, (job, size) in enumerate(jobs):
        if rank >= size:
            continue
        try:
            if size > 1:
                file = f"file://{meeting}/{index}"
                dist.init_process_group("gloo", init_method=file, rank=rank, world_size=size)
            events = watched_work(job, rank, size)
            if size > 1:
                dist.destroy_process_group()
            results.put((index, rank, events, None))
        except BaseException:
            results.put((index, rank, [], traceback.format_exc()))
            return


def watched_work(job: Job, rank: int = 0, size: int = 1) -> list[dict[str, Any]]:
    """worker.work, with its events, every step's loss and the ids that were trained on."""
    from trainers.runtime import worker
    from trainers.storage.store import Store
    from trainers.training import loop, step
    from trainers.training.checkpoint import Checkpoints

    events: list[dict[str, Any]] = []
    losses: list[float] = []
    seen: list[list[int]] = []
    weights = 0

    class Watched(step.Step):
        def accumulate(self, batches: list[Any]) -> None:
            while len(seen) <= self.run.state.epoch:
                seen.append([])
            for batch in batches:
                if batch.of.weight:
                    seen[self.run.state.epoch] += batch.of.ids.tolist()
            super().accumulate(batches)

        def update(self) -> None:
            nonlocal weights
            super().update()
            losses.append(self.mean())
            if len(losses) == job.get("kill_after"):
                while not Checkpoints(Store(job["folder"])).latest_step():
                    time.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)
            weights = sum(
                (p.to_local() if hasattr(p, "to_local") else p).numel() for p in self.run.state.model.parameters()
            )

    def stopping() -> bool:
        return len(losses) >= job.get("stop_after", 10**9)

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(loop, "Step", Watched))
        if job.get("no_checkpoints"):
            patches.enter_context(mock.patch.object(Checkpoints, "save"))
        end = worker.work(job, rank, size, job["attempt"] * 1000 + 1, events.append, stopping)
    return [*events, {**end, "steps": losses, "seen": seen, "weights": weights}]
