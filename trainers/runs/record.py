"""The run folder: `run.json`, `metrics.jsonl`, `tensorboard/` and `curves.png`, `confusion.png`, `predictions.png`.

No Ray. `Record` is the one writer of a run folder (checkpoints apart). `versions()`, `commit()` and `machine()` say
where a number comes from. torch, TensorBoard and matplotlib are imported where used: this module is light.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import json
import math
import os
import platform
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.storage.store import Mirror, Store

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trainers.runs.mask_figures import Row

# Okabe and Ito's colours, told apart by the colour-blind too.
_BLUE, _ORANGE, _GREEN, _PINK, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#595959"
_PACKAGES = ("trainyard", "torch", "torchvision", "ray", "pyarrow", "numpy")
_TAGS = {  # fields of a line of metrics.jsonl that have another name in TensorBoard
    "images_per_second": "speed/images_per_second",
    "data_wait_share": "speed/data_wait_share",
    "evaluate_ms_per_image": "speed/evaluate_ms_per_image",
    "lr": "optim/lr",
}
# The scores that are drawn, after the main one, as far as there is room.
_CURVES = "val/miou val/iou val/accuracy val/boundary_f1 val/dice val/balanced_accuracy val/f1".split()
_MANY = 32  # more classes than this have no numbers in a confusion matrix


# The columns of the HPARAMS table, in this order: what people vary.
_HPARAMS = (
    "lr batch_size micro_batch_size image_size epochs optimizer momentum weight_decay schedule warmup_epochs "
    "clip_norm ema class_weights augment model model_args dataset dataset_args task_args precision seed"
).split()


SAVE_SECONDS = 1.0
"""TensorBoard's files are brought up to date so often: epochs of milliseconds would wait for the disk."""


class Record:
    """Writes one run folder. Not for use by several threads or processes at once."""

    def __init__(self, store: Store, run: dict[str, Any], first_picture: float = 0.0) -> None:
        """Parameters: `store`, the run folder; `run`, the content of run.json, shared with the caller;
        `first_picture`, seconds before which TensorBoard gets no picture, but at the end."""
        self.store = store
        self._mirror = Mirror(store) if store.local is None else None
        self.folder = self._mirror.folder if self._mirror else store
        """Where the files are written: the run folder, or what is uploaded to it."""
        self.run = run
        self.first_picture = first_picture
        self.run.update(status="running", finished=None)
        self.run.setdefault("started", _now())
        self.history: list[dict[str, float]] = []
        self._board: _Board | None = None
        self._confusion: np.ndarray | None = None  # the newest
        self._examples: tuple[Sequence[Row], int, np.ndarray | None] | None = None  # likewise; their epoch and matrix
        self._undrawn = False  # the examples
        self._saved = 0.0

    def write(self) -> None:
        """Write run.json, atomically."""
        self.folder.write_json("run.json", _plain(self.run))
        self._upload()

    def _upload(self) -> None:
        if self._mirror is not None:
            self._mirror.flush()

    def restore(self, history: list[dict[str, float]]) -> None:
        """Write metrics.jsonl and tensorboard/ anew from `history`: on resuming; empty, at a fresh start."""
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
        self, line: dict[str, float], confusion: np.ndarray | None = None, pictures: Sequence[Row] | None = None
    ) -> None:
        """Add an epoch's line; its confusion matrix: rows are true classes, columns predicted ones; examples of masks.

        Matrix and examples are drawn into TensorBoard, and the examples into predictions.png, now and then.
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
            self._examples, self._undrawn = (pictures, epoch, confusion), True
        if (confusion is not None or self._undrawn) and board.wants_picture():
            with board.drawing():
                if confusion is not None:
                    board.confusion(confusion, self._confusion_figure, epoch)
                if self._undrawn and self._examples:  # those of an earlier epoch too: they may never come when wanted
                    png = _png(self._examples_figure(*self._examples), dpi=90)
                    self.folder.write("predictions.png", png)
                    board.picture("predictions", png, self._examples[1])
                    self._undrawn = False
        if time.monotonic() - self._saved > SAVE_SECONDS:
            board.save()
            self._saved = time.monotonic()

    def finish(
        self,
        status: str,
        confusion: np.ndarray | None = None,
        pictures: Sequence[Row] | None = None,
        draw: bool = True,
        **fields: Any,
    ) -> None:
        """End the run. `fields` go into run.json; `confusion` and `pictures` are those of the final scores, if any.
        Not `draw`: no pictures, which take a second."""
        self.run.update(fields, status=status, finished=_now())
        try:
            self.write()  # first: whatever happens to the pictures
            if self.history:
                self._finish_pictures(confusion, pictures, draw)
                self._upload()
        finally:
            self.close()

    def close(self) -> None:
        """Nothing is written from here on; what could not be uploaded is given up."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None

    def _finish_pictures(self, confusion: np.ndarray | None, pictures: Sequence[Row] | None, draw: bool) -> None:
        last = int(self.history[-1]["epoch"])
        board = self._open_board()
        if draw:
            self._draw(board, self._confusion if confusion is None else confusion, pictures, last)
        board.hparams(self.run, last)
        board.close()
        self._board = None

    def _draw(self, board: _Board, matrix: np.ndarray | None, pictures: Sequence[Row] | None, last: int) -> None:
        self.folder.write("curves.png", _png(_draw_curves(self.run, self.history)))
        if matrix is not None:
            self.folder.write("confusion.png", _png(self._confusion_figure(matrix, self.run["name"])))
            board.confusion(matrix, self._confusion_figure, last)
        best = (self.run.get("best") or {}).get("epoch") or last
        if examples := (pictures, best, matrix) if pictures else self._examples:
            figure = self._examples_figure(*examples)
            self.folder.write("predictions.png", _png(figure))
            board.picture("predictions", _png(figure, dpi=90), last)

    def _write_history(self) -> None:
        self.folder.write("metrics.jsonl", "".join(map(_json_line, self.history)).encode())

    def _open_board(self) -> _Board:
        if self._board is None:
            self._board = _Board(self.folder, self.first_picture)
        return self._board

    def _confusion_figure(self, matrix: np.ndarray, name: str = "") -> Figure:
        dataset = self.run.get("dataset", {})
        return _draw_confusion(matrix, dataset.get("classes"), name, masks=bool(dataset.get("masks")))

    def _examples_figure(self, rows: Sequence[Row], epoch: int, matrix: np.ndarray | None) -> Figure:
        from trainers.runs.mask_figures import draw_predictions, palette

        dataset = self.run.get("dataset", {})
        # Without names, by number; 255 is no class.
        largest = max(int(mask[mask < 255].max(initial=0)) for row in rows for mask in (row["target"], row["labels"]))
        classes = [str(name) for name in dataset.get("classes") or range(largest + 1)]
        scores = None if matrix is None else _iou(matrix).tolist()
        title = f"{self.run['name']}\nvalidation pictures, epoch {epoch}"
        return draw_predictions(rows, classes, dataset.get("colours") or palette(len(classes)), title, scores)


class _Board:
    """TensorBoard's files, in a folder on this machine."""

    def __init__(self, folder: Store, first_picture: float = 0.0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter((folder / "tensorboard").address)
        self._opened = time.monotonic()
        self._next_picture = self._opened + first_picture
        self._drawn: np.ndarray | None = None  # the matrix, and the other pictures by tag
        self._pictures: dict[str, bytes] = {}

    def scalars(self, line: Mapping[str, float]) -> None:
        """The curves: x is the epoch, not the step, so runs of any batch size lie above each other."""
        for name, value in line.items():
            tag = _TAGS.get(name, name)
            if "/" in tag and value is not None:
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

    def confusion(self, matrix: np.ndarray, draw: Callable[[np.ndarray], Figure], epoch: int) -> None:
        """The confusion matrix, drawn by `draw`, if it is not the one drawn last."""
        if self._drawn is None or not (self._drawn == matrix).all():
            self._drawn = matrix.copy()
            self.picture("confusion", _png(draw(matrix), dpi=90), epoch)

    def picture(self, tag: str, png: bytes, epoch: int) -> None:
        """A PNG file in the Images tab, if it is not the one shown there last."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._pictures.get(tag) == png:
            return
        self._pictures[tag] = png
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), epoch)

    def hparams(self, run: dict[str, Any], epoch: int) -> None:
        """A row of the HPARAMS table. `add_hparams` would make a run of its own of it."""
        from torch.utils.tensorboard.summary import hparams

        metrics = dict(_hparam_metrics(run))
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, epoch)
        for summary in hparams(dict(_hparams(run)), metrics):
            self._add(summary)

    def save(self) -> None:
        """Make what was added readable by others."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, summary: Any, epoch: int | None = None) -> None:
        self._writer._get_file_writer().add_summary(summary, epoch)


def _hparams(run: dict[str, Any]) -> Iterator[tuple[str, str | float]]:
    """What the HPARAMS table shows of a run: the recipe, and the number of workers."""

    def flat(name: str, value: Any) -> Iterator[tuple[str, str | float]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(f"{name}.{key}", inner)
        elif isinstance(value, list | tuple):
            yield name, "x".join(map(str, value))[:40]
        elif isinstance(value, bool):
            yield name, str(value).lower()
        elif value is not None:
            yield name, value

    for name in _HPARAMS:
        yield from flat(name, run["recipe"].get(name))
    yield from flat("workers", run.get("scale", {}).get("workers"))


def _hparam_metrics(run: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What the HPARAMS table says of how a run went: `hparam/val_accuracy`, ..."""
    best, final = run.get("best") or {}, run.get("final") or {}
    found = {"best_epoch": best.get("epoch"), f"val_{best.get('metric')}": best.get("value")}
    found |= {"val_loss": final.get("loss"), "images_per_second": run.get("images_per_second")}
    for name, value in found.items():
        if isinstance(value, int | float):
            yield f"hparam/{name}", value


# Pictures


def _draw_curves(run: dict[str, Any], history: list[dict[str, float]]) -> Figure:
    """Small multiples over the epochs: loss and scores above; learning rate, speed and data wait below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(_title(run), fontsize=15)
    grid = figure.add_gridspec(2, 6, height_ratios=(3, 2))
    epochs = [line["epoch"] for line in history]
    best = run.get("best") or {}

    def panel(cell: Any, title: str, names: dict[str, str], scale: float = 1.0) -> Axes:
        axes = figure.add_subplot(cell)
        for (name, label), color in zip(names.items(), (_BLUE, _ORANGE, _GREEN, _PINK), strict=False):
            values = [scale * _number(line.get(name)) for line in history]
            marker = "o" if len(values) <= 30 else ""
            axes.plot(epochs, values, color=color, label=label, marker=marker, markersize=4, linewidth=2, clip_on=False)
        axes.set_title(title, loc="left", fontsize=13)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=11)
        return axes

    main = f"val/{best.get('metric', 'loss')}"
    # Top-5 lies so close to 1 that the others would share a corner.
    scores = [n for n in history[-1] if n.startswith("val/") and n not in ("val/loss", "val/top5_accuracy")]
    order = [main, *_CURVES, *scores]
    scores.sort(key=order.index)
    losses = {"train/loss": "train", "val/loss": "validation"}
    upper = [panel(grid[0, :3], "loss", losses)]
    if scores:
        upper.append(panel(grid[0, 3:], "validation", {n: n.removeprefix("val/") for n in scores[:4]}))
    panel(grid[1, :2], "learning rate", {"lr": "lr"})
    speed = panel(grid[1, 2:4], "images / s", {"images_per_second": ""})
    wait = panel(grid[1, 4:], "waiting for data, %", {"data_wait_share": ""}, scale=100)
    for axes in (speed, wait):  # from 0, with room for the marker above
        highest = axes.dataLim.y1
        axes.set_ylim(0, 1.1 * highest if math.isfinite(highest) and highest > 0 else 1)
    _mark_best(upper, best, main)
    figure.supxlabel("epoch", fontsize=12)
    return figure


def _mark_best(panels: list[Axes], best: dict[str, Any], main: str) -> None:
    for axes in panels:
        if best.get("epoch") is not None:
            value = f": {main.removeprefix('val/')} {_number(best.get('value')):.4g}"
            label = f"best epoch, {best['epoch']}" + (value if axes is panels[-1] else "")
            axes.axvline(best["epoch"], color=_GREY, linestyle="--", linewidth=1.2, label=label)
        axes.legend(fontsize=11, facecolor="white", framealpha=0.95, edgecolor="#dddddd")


def _draw_confusion(matrix: np.ndarray, classes: list[str] | None, name: str = "", masks: bool = False) -> Figure:
    """Rows are true classes, coloured by their share; numbers where they fit; a class's recall, IoU beside it.

    The numbers are counts of up to 15 classes of pictures, else percent of the true class: pixels are too many.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    count = len(matrix)
    rows = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, rows, out=np.full(matrix.shape, np.nan), where=rows > 0)
    side = min(max(0.5 * count, 2.6), 8.0)  # of the matrix, in inches
    beside = 1.45 + (1.55 if masks else 0) + (0.6 if count > _MANY else 0)
    figure = Figure(figsize=(side + beside, side))
    axes = figure.add_axes((0, 0, 1, 1))  # what is around it is added by _png
    axes.set_facecolor("#dddddd")  # classes of which there is none
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _label_classes(axes, [str(name) for name in classes or range(count)])
    numbers, unit = _cell_texts(matrix, shares, masks)
    for (row, column), text in numbers.items():
        color = "white" if shares[row, column] > 0.55 else "black"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            color=color,
            fontsize=10 if count <= 15 else 8 if count <= 24 else 7,
        )
    divider = make_axes_locatable(axes)
    _draw_bars(divider.append_axes("right", size=1.3, pad=0.15, sharey=axes), np.diag(shares), "recall, %", _BLUE)
    if masks:
        _draw_bars(divider.append_axes("right", size=1.3, pad=0.25, sharey=axes), _iou(matrix), "IoU, %", _GREEN)
    if count > _MANY:
        bar = figure.colorbar(image, cax=divider.append_axes("right", size=0.15, pad=0.45))
        bar.outline.set_visible(False)
        bar.set_label("share of the true class")
    title = "\n".join(filter(None, (name, _summary(matrix, masks), unit)))
    axes.set_title(title, loc="left", fontsize=13, pad=26, parse_math=False)
    return figure


def _cell_texts(matrix: np.ndarray, shares: np.ndarray, masks: bool) -> tuple[dict[tuple[int, int], str], str]:
    """What the cells of a confusion matrix say, and what that is."""
    count = len(matrix)
    if count > _MANY:
        return {}, ""
    places = [(row, column) for row in range(count) for column in range(count) if matrix[row, column]]
    if count <= 15 and not masks:
        empty = "; empty: 0" if len(places) < count**2 else ""
        return {place: _short(float(matrix[place])) for place in places}, f"numbers: pictures{empty}"
    digits, least = (1, 0.05) if count <= 15 else (0, 1.0)
    percents = {place: 100 * float(shares[place]) for place in places}
    told = {place: f"{percent:.{digits}f}" for place, percent in percents.items() if percent >= least}
    empty = f"; empty: below {least:g} %" if len(told) < count**2 else ""
    return told, f"numbers: % of the true class{empty}"


def _summary(matrix: np.ndarray, masks: bool) -> str:
    import numpy as np

    total = float(matrix.sum())
    accuracy = 100 * float(np.trace(matrix)) / total if total else math.nan
    if not masks:
        return f"accuracy {accuracy:.2f} % of {_short(total)}"
    known = _iou(matrix)[~np.isnan(_iou(matrix))]
    mean = 100 * float(known.mean()) if len(known) else math.nan
    return f"mIoU {mean:.2f} %, pixel accuracy {accuracy:.2f} % of {_short(total)} pixels"


def _iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, 0 to 1; nan where the class is neither there nor predicted."""
    import numpy as np

    both = np.diag(matrix)
    either = matrix.sum(axis=0) + matrix.sum(axis=1) - both
    iou: np.ndarray = np.divide(both, either, out=np.full(len(matrix), np.nan), where=either > 0)
    return iou


def _label_classes(axes: Axes, names: list[str]) -> None:
    every = math.ceil(len(names) / 50)
    ticks = range(0, len(names), every)
    labels = [names[tick] if len(names[tick]) <= 18 else names[tick][:17] + "…" for tick in ticks]
    size = 11 if len(names) <= 15 else 10 if len(names) <= _MANY else 8
    long = max(map(len, labels)) > (5 if len(names) <= 15 else 2)
    axes.set_xticks(ticks, labels, fontsize=size, rotation=90 if long else 0, parse_math=False)
    axes.set_yticks(ticks, labels, fontsize=size, parse_math=False)
    axes.tick_params(length=0 if every == 1 else 3)
    axes.set_xlabel("predicted", fontsize=12)
    axes.set_ylabel("true", fontsize=12)
    axes.spines[:].set_visible(False)


def _draw_bars(axes: Axes, shares: np.ndarray, title: str, color: str) -> None:
    """A bar a class, beside its row of the matrix."""
    percents = [0.0 if math.isnan(share) else 100 * share for share in shares]
    axes.barh(range(len(percents)), percents, color=color, height=0.7)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100], ["0", "50", "100"], fontsize=9)
    axes.tick_params(left=False, labelleft=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for row, percent in enumerate(percents if len(percents) <= _MANY else []):
        text = "none" if math.isnan(shares[row]) else f"{percent:.0f}"
        if percent > 30:
            axes.text(percent - 4, row, text, ha="right", va="center", color="white", fontsize=9)
        else:
            axes.text(percent + 4, row, text, ha="left", va="center", color="black", fontsize=9)


def _png(figure: Figure, dpi: int = 150) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.2)
    return stream.getvalue()


def _title(run: dict[str, Any]) -> str:
    recipe = run.get("recipe", {})
    facts = [
        f"{recipe['model']} on {recipe['dataset']}" if "model" in recipe and "dataset" in recipe else "",
        f"batch {recipe['batch_size']}" if "batch_size" in recipe else "",
        f"lr {recipe['lr']:g}" if "lr" in recipe else "",
        "" if run["status"] == "finished" else run["status"].replace("_", " "),
    ]
    return f"{run.get('name', '')}\n{', '.join(filter(None, facts))}"


def _short(count: float) -> str:
    """1234 -> 1,234; 45678 -> 46k; 1234567 -> 1.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= max(size, 1e4):
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:,.0f}{unit}"
    return f"{count:,.0f}"


# Plain values


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _json_line(line: Mapping[str, float]) -> str:
    return json.dumps(_plain(line), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """What JSON can hold: NumPy's numbers and arrays become Python's, and what is not finite None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# Where a number comes from


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that matter; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the current folder, with "-dirty" where files were changed; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=1)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def machine() -> dict[str, Any]:
    """What this process may use of this host: {cpu, cores, memory_bytes, gpus: [{name, memory_bytes}]}."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = _cgroup("memory", "memory.max", "memory.limit_in_bytes")
    limits = [int(text) for text in found if text.isdigit()]
    return {
        "cpu": _cpu_name(),
        "cores": max(1, int(min([usable, *_cpu_quotas()]))),
        "memory_bytes": min([memory, *limits]),
        "gpus": _gpus(),
    }


def _cpu_name() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpus() -> list[dict[str, Any]]:
    """Asks torch, but does not import it for nothing."""
    if "torch" not in sys.modules and not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/dxg"):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in found]


def _cpu_quotas() -> Iterator[float]:
    """How many cores' time the control groups grant."""
    for text in _cgroup("cpu", "cpu.max", ""):  # version 2: "150000 100000" or "max 100000"
        quota, _, period = text.partition(" ")
        if quota.isdigit():
            yield int(quota) / int(period)
    quotas, periods = _cgroup("cpu", "", "cpu.cfs_quota_us"), _cgroup("cpu", "", "cpu.cfs_period_us")
    for quota, period in zip(quotas, periods, strict=False):
        if quota.isdigit():  # "-1" without a limit
            yield int(quota) / int(period)


def _cgroup(controller: str, name_v2: str, name_v1: str) -> Iterator[str]:
    """What a file says in the control group of this process and in all above it, whose limits hold too."""
    mount = Path("/sys/fs/cgroup")
    groups = Path("/proc/self/cgroup")
    for entry in groups.read_text().splitlines() if groups.exists() else []:
        number, controllers, path = entry.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        root, name = (mount, name_v2) if number == "0" else (mount / controllers, name_v1)
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if name and (group / name).is_file():
                yield (group / name).read_text().strip()
            if group == root:
                break
