"""The place of a run with 0 workers: this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainers.recipe import Scale

Job = Mapping[str, Any]
Listen = Callable[[dict[str, Any]], None]


class ThisProcess:
    """The place of a run with 0 workers."""

    def __init__(self, scale: Scale) -> None:
        self.threads = scale.cpus_per_worker or len(os.sched_getaffinity(0))
        self.gpus = False

    def __enter__(self) -> ThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> list[str]:
        import torch

        self.gpus = torch.cuda.is_available()
        return []

    def train(self, job: Job, listen: Listen, stop: threading.Event, callbacks: Sequence[Any]) -> None:
        from trainers.runtime.worker import work

        listen(work(job, 0, 1, job["attempt"] * 1000, listen, stop.is_set))
