"""A torch.profiler trace of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from trainers.training.step import Run


class profiler:
    """Traces a few steps for TensorBoard. `with profiler(...) as tick:` gives a function to be called after each."""

    def __init__(self, run: Run, on: bool) -> None:
        """
        Args:
            run: Its reporter gets the trace, as a file.
            on: Whether to trace at all.
        """
        self.run, self.on = run, on

    def __enter__(self) -> Callable[[], None]:
        if not self.on:
            return lambda: None
        schedule = torch.profiler.schedule(wait=1, warmup=2, active=min(5, max(1, self.run.steps - 3)), repeat=1)
        self.profile = torch.profiler.profile(schedule=schedule, on_trace_ready=self._hand_over)
        self.profile.__enter__()
        return self.profile.step

    def __exit__(self, *error: object) -> None:
        if self.on:
            self.profile.__exit__(*error)

    def _hand_over(self, profile: torch.profiler.profile) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(path))
            data = path.read_bytes()
        self.run.reporter.report({"kind": "file", "name": "tensorboard/rank0.pt.trace.json", "data": data})
