"""The place of a run with 0 workers: this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

from trainers import limits
from trainers.messages import Event, Job
from trainers.recipe import Scale


class ThisProcess:
    """A `fitting.Place` without Ray: training runs in the caller's thread."""

    def __init__(self, scale: Scale) -> None:
        asked = scale.cpus_per_worker or limits.threads()
        self.threads, self.fewer_threads = asked or limits.cpus(), asked is None
        self.gpus = False
        """Whether there are any; known after `wait`, as is the rest."""
        self.auto_precision: Literal["auto", "fp32", "bf16"] = "fp32"
        self.memory: int | None = None

    def __enter__(self) -> ThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> list[str]:
        """Nothing to wait for. Returns a warning where GPUs stay idle."""
        import torch

        from trainers.training.device import auto_precision, warn_of_idle_gpu
        from trainers.training.memory_fit import device_memory

        self.gpus = torch.cuda.is_available()
        self.auto_precision = auto_precision(self.gpus)
        self.memory = device_memory(self.gpus, 1)
        if (gpus := torch.cuda.device_count()) > 1:
            return [f"one of the {gpus} GPUs of this machine is used; --workers {gpus} trains on all of them"]
        return warn_of_idle_gpu()

    def train(self, job: Job, listen: Callable[[Event], None], stop: threading.Event) -> None:
        """Run `job` here; see `fitting.Place.train`."""
        from trainers.runtime.worker import work

        listen(work(job, 0, 1, job["attempt"] * 1000, listen, stop.is_set))
