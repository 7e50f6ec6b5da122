"""What is asked of a format of exported files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from trainers.instances import parts
from trainers.run_facts import Json, MemoryFormat, RunFacts
from trainers.tasks.base import Output


class Loaded(nn.Module):
    """The model in a file, which gives what the network gave that it was exported of. It has no weights to train."""

    def __init__(
        self,
        run: Callable[[Tensor], Output],
        precision: Literal["fp32", "fp64"] = "fp32",
        memory_format: MemoryFormat = "contiguous",
    ) -> None:
        """
        Args:
            run: images (N, C, *image_size) -> output.
            precision: of the images.
            memory_format: likewise.
        """
        super().__init__()
        self._run, self.precision, self.memory_format = (run,), precision, memory_format  # a module would be registered

    def forward(self, images: Tensor) -> Output:
        """Of images (N, C, *image_size)."""
        (run,) = self._run
        return run(images)


class Plain(nn.Module):
    """A network whose output is a tensor or a plain tuple of some, which a program can hold."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Output:
        """Of images (N, C, H, W)."""
        output = self.network(images)
        return output if isinstance(output, Tensor) else tuple(parts(output))


class Format(Protocol):
    """Files of one kind."""

    def told(self, file: Path) -> Json:
        """What a file tells; {} where it was not written by `export`. Raises ValueError where it cannot be read."""
        ...

    def seen(self, facts: RunFacts) -> RunFacts:
        """The facts of the run, as the file's model takes pictures."""
        ...

    def load(self, file: Path) -> Loaded:
        """The model in a file. Raises ValueError."""
        ...
