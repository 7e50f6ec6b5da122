"""The TensorBoard files of a run."""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from trainers.messages import Line
from trainers.recipe import affecting
from trainers.run_facts import Best, RunFacts
from trainers.runs.figures import to_png
from trainers.storage.store import Store

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from tensorboard.compat.proto.summary_pb2 import Summary

_TAGS = {  # fields of a line of metrics.jsonl that have another name in TensorBoard
    "images_per_second": "speed/images_per_second",
    "data_wait_share": "speed/data_wait_share",
    "evaluate_ms_per_image": "speed/evaluate_ms_per_image",
    "lr": "optim/lr",
}


class Board:
    """TensorBoard's files, in a folder on this machine."""

    def __init__(self, folder: Store, first_picture: float = 0.0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter((folder / "tensorboard").address)
        self._opened = time.monotonic()
        self._next_picture = self._opened + first_picture
        self._drawn: np.ndarray | None = None  # the matrix, and the other pictures by tag
        self._pictures: dict[str, bytes] = {}

    def scalars(self, line: Mapping[str, float]) -> None:
        """The curves: x is the epoch, not the step, so runs of any batch size lie above each other.

        A score of what does not occur in the split, such as that of large objects, has none.
        """
        for name, value in line.items():
            tag = _TAGS.get(name, name)
            if "/" in tag and value is not None and not math.isnan(value):
                self._writer.add_scalar(tag, value, int(line["epoch"]))

    def wants_picture(self) -> bool:
        """Not before 10 s, 20 times what the last one took, nor 5 % of the time up to now, after it: drawing costs."""
        return time.monotonic() >= self._next_picture

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Around the pictures of one epoch, which share the wait for the next ones."""
        begun = time.monotonic()
        yield
        now = time.monotonic()
        self._next_picture = now + max(10.0, 20 * (now - begun), 0.05 * (now - self._opened))

    def confusion(self, matrix: np.ndarray, draw: Callable[[], Figure], epoch: int) -> None:
        """The confusion matrix, which `draw` draws, if it is not the one drawn last."""
        import numpy as np

        if self._drawn is None or not np.array_equal(self._drawn, matrix):
            self._drawn = matrix.copy()
            self.picture("confusion", to_png(draw(), dpi=90), epoch)

    def picture(self, tag: str, png: bytes, epoch: int) -> None:
        """A PNG file in the Images tab, if it is not the one shown there last."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._pictures.get(tag) == png:
            return
        self._pictures[tag] = png
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), epoch)

    def hparams(self, run: RunFacts, history: Sequence[Line]) -> None:
        """A row of the HPARAMS table, and the curve of the best score so far, whose end is shown there.

        The table takes its numbers from curves: those of its own, of one point each, would be the first that
        TensorBoard shows. `add_hparams` would make a run of its own of it.
        """
        from torch.utils.tensorboard.summary import hparams

        best, metrics = run.get("best"), {}
        if best is not None:
            tag = f"val/best_{best['metric'].removeprefix('val/')}"
            for epoch, score in best_so_far(history, best):
                self._writer.add_scalar(tag, score, epoch)
                metrics[tag] = score
        for name in ("val/loss", "images_per_second"):
            if isinstance(value := history[-1].get(name), int | float):
                metrics[_TAGS.get(name, name)] = value
        for summary in hparams(dict(_hparams(run)), metrics):
            self._add(summary)

    def save(self) -> None:
        """Make what was added readable by others."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, summary: Summary, epoch: int | None = None) -> None:
        self._writer._get_file_writer().add_summary(summary, epoch)


def _hparams(run: RunFacts) -> Iterator[tuple[str, str | float]]:
    """What the HPARAMS table shows of a run: the recipe, and the number of workers."""

    def flat(name: str, value: object) -> Iterator[tuple[str, str | float]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(f"{name}.{key}", inner)
        elif isinstance(value, list | tuple):
            yield name, "x".join(map(str, value))[:40]
        elif isinstance(value, bool):
            yield name, str(value).lower()
        elif isinstance(value, str | int | float):
            yield name, value

    for name in affecting("training"):
        if name != "shapes":  # a column for each layer would hide all others
            yield from flat(name, run["recipe"].get(name))
    yield from flat("workers", run.get("scale", {}).get("workers"))


def best_so_far(history: Sequence[Line], best: Best) -> Iterator[tuple[int, float]]:
    """Each epoch, and the best value of the score up to it.

    Args:
        history: The lines of metrics.jsonl.
        best: The best epoch: whether more is better shows by it.
    """
    tag = f"val/{best['metric'].removeprefix('val/')}"
    known = [(int(line["epoch"]), line[tag]) for line in history if line.get(tag) is not None]
    better = min if any(value > best["value"] for _, value in known) else max
    so_far: float | None = None
    for epoch, value in known:
        so_far = value if so_far is None else better(so_far, value)
        yield epoch, so_far
