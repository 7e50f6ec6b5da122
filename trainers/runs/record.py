"""The run folder: `run.json`, `metrics.jsonl`, `tensorboard/` and `curves.png`, `confusion.png`, `predictions.png`...

No Ray. `Record` is the one writer of a run folder (checkpoints apart). torch, TensorBoard and matplotlib are imported
where used: this module is light.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Unpack

from trainers.formatting import plain
from trainers.messages import Line, Picture
from trainers.run_facts import RunEnd, RunFacts, Status
from trainers.runs.box_figures import detected
from trainers.runs.example_figures import draw_examples
from trainers.runs.figures import draw_confusion_of, draw_curves, to_png
from trainers.runs.score_figures import draw_scores, has_charts
from trainers.runs.tensorboard import Board
from trainers.storage.mirror import Mirror
from trainers.storage.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trainers.confusion import Drawn
    from trainers.image_tables import Ints

_Examples = tuple[Sequence[Picture], int, "Drawn | None", "Mapping[str, Ints]"]
"""Pictures, their epoch, its confusion matrix and counts."""
SAVE_SECONDS = 1.0
"""TensorBoard's files are brought up to date so often: epochs of milliseconds would wait for the disk."""


class Record:
    """Writes one run folder. Not for use by several threads or processes at once."""

    def __init__(self, store: Store, run: RunFacts, first_picture: float = 0.0) -> None:
        """
        Args:
            store: The run folder.
            run: The content of run.json at the start.
            first_picture: Seconds before which TensorBoard gets no picture, but at the end.
        """
        self.store = store
        self._mirror = Mirror(store) if store.local is None else None
        self.folder = self._mirror.folder if self._mirror else store
        """Where the files are written: the run folder, or what is uploaded to it."""
        self.run = run
        self.first_picture = first_picture
        self.run["status"], self.run["finished"] = "running", None
        self.history: list[Line] = []
        self._board: Board | None = None
        self._confusion: Drawn | None = None  # the newest
        self._counts: Mapping[str, Ints] = {}  # likewise
        self._examples: _Examples | None = None  # likewise
        self._undrawn = False  # the examples
        self._saved = 0.0

    def write(self) -> None:
        """Write run.json, atomically."""
        self.folder.write_json("run.json", plain(self.run))
        self._upload()

    def _upload(self) -> None:
        if self._mirror is not None:
            self._mirror.flush()

    def restore(self, history: Sequence[Line]) -> None:
        """Rewrite metrics.jsonl and tensorboard/ from `history`: on resuming; empty, at a fresh start."""
        if self._board is not None:
            self._board.close()
            self._board = None
        for place in (self.store, self.folder):
            place.delete("tensorboard")
        self.history = [dict(line) for line in history]
        self._write_history()
        if history:
            board = self._open_board()
            for line in history:
                board.scalars(line)
            board.save()

    def epoch(
        self,
        line: Line,
        confusion: Drawn | None = None,
        pictures: Sequence[Picture] | None = None,
        counts: Mapping[str, Ints] | None = None,
    ) -> None:
        """Add an epoch.

        Matrix and examples are drawn into TensorBoard, and the examples into predictions.png, now and then.

        Args:
            line: Of metrics.jsonl.
            confusion: Its matrix: rows are true classes, columns predicted ones.
            pictures: Examples of masks.
            counts: Of the task, for other charts.
        """
        epoch = int(line["epoch"])
        self.history.append(dict(line))
        if self._mirror is not None:
            self._mirror.check()
        assert self.folder.local is not None
        self.folder.local.mkdir(parents=True, exist_ok=True)
        with open(self.folder.local / "metrics.jsonl", "a", encoding="utf-8") as stream:
            stream.write(_json_line(line))
        board = self._open_board()
        board.scalars(line)
        if confusion is not None:
            self._confusion = confusion
        if pictures:
            self._examples, self._undrawn = (pictures, epoch, confusion, counts or {}), True
        self._counts = counts or {}
        if (confusion is not None or self._undrawn or has_charts(self._counts)) and board.wants_picture():
            with board.drawing():
                for name, figure in draw_scores(self._counts, self.run.get("dataset", {})).items():
                    board.picture(name, to_png(figure, dpi=90), epoch)
                if (matrix := confusion or detected(self._counts)) is not None:
                    board.confusion(matrix.matrix, lambda: self._confusion_figure(matrix), epoch)
                if self._undrawn and self._examples:  # those of an earlier epoch too: they may never come when wanted
                    png = to_png(self._examples_figure(*self._examples), dpi=90)
                    self.folder.write("predictions.png", png)
                    board.picture("predictions", png, self._examples[1])
                    self._undrawn = False
        if time.monotonic() - self._saved > SAVE_SECONDS:
            board.save()
            self._saved = time.monotonic()

    def finish(
        self,
        status: Status,
        confusion: Drawn | None = None,
        pictures: Sequence[Picture] | None = None,
        draw: bool = True,
        counts: Mapping[str, Ints] | None = None,
        **end: Unpack[RunEnd],
    ) -> None:
        """End the run.

        Args:
            status: How it ended.
            confusion: The matrix of the final scores, if any.
            pictures: Those of the final scores, if any.
            draw: Whether to draw, which takes a second.
            counts: Those of the final scores, for other charts.
            **end: For run.json.
        """
        self.run = {**self.run, **end, "status": status, "finished": _now()}
        try:
            self.write()  # first: whatever happens to the pictures
            if self.history:
                self._counts = counts or self._counts
                self._finish_pictures(confusion, pictures, draw)
                self._upload()
        finally:
            self.close()

    def close(self) -> None:
        """Write nothing from here on; what could not be uploaded is given up."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None

    def _finish_pictures(self, confusion: Drawn | None, pictures: Sequence[Picture] | None, draw: bool) -> None:
        last = int(self.history[-1]["epoch"])
        board = self._open_board()
        if draw:
            self._draw(board, self._confusion if confusion is None else confusion, pictures, last)
        board.hparams(self.run, self.history)
        board.close()
        self._board = None

    def _draw(self, board: Board, confusion: Drawn | None, pictures: Sequence[Picture] | None, last: int) -> None:
        self.folder.write("curves.png", to_png(draw_curves(self.run, self.history)))
        confusion = confusion or detected(self._counts)
        if confusion is not None:
            self.folder.write("confusion.png", to_png(self._confusion_figure(confusion, self.run["name"])))
            board.confusion(confusion.matrix, lambda: self._confusion_figure(confusion), last)
        for name, chart in draw_scores(self._counts, self.run.get("dataset", {}), self.run["name"]).items():
            self.folder.write(f"{name}.png", to_png(chart))
            board.picture(name, to_png(chart, dpi=90), last)
        best = self.run.get("best")
        newest = (pictures, best["epoch"] if best else last, confusion, self._counts) if pictures else self._examples
        if examples := newest:
            figure = self._examples_figure(*examples)
            self.folder.write("predictions.png", to_png(figure))
            board.picture("predictions", to_png(figure, dpi=90), last)

    def _write_history(self) -> None:
        self.folder.write("metrics.jsonl", "".join(map(_json_line, self.history)).encode())

    def _open_board(self) -> Board:
        if self._board is None:
            self._board = Board(self.folder, self.first_picture)
        return self._board

    def _confusion_figure(self, confusion: Drawn, name: str = "") -> Figure:
        dataset = self.run.get("dataset", {})
        return draw_confusion_of(dataset, confusion, name)

    def _examples_figure(
        self, rows: Sequence[Picture], epoch: int, confusion: Drawn | None, counts: Mapping[str, Ints]
    ) -> Figure:
        title = f"{self.run['name']}\nvalidation pictures, epoch {epoch}"
        return draw_examples(rows, self.run.get("dataset", {}), title, confusion, counts)


# Plain values


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _json_line(line: Mapping[str, float]) -> str:
    return json.dumps(plain(line), allow_nan=False) + "\n"
