"""Pictures of a run for people: curves and confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from trainers.formatting import abbreviated, abbreviations
from trainers.messages import Line
from trainers.run_facts import Best, DatasetFacts, RunFacts
from trainers.runs import lettering

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

    from trainers.confusion import Drawn


# Okabe and Ito's colours, which the colour-blind can distinguish too.
_BLUE, _ORANGE, _GREEN, _PINK, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#595959"


# The scores that are drawn, after the main one, as far as there is room.
_CURVES = (
    "val/mask_ap50 val/ap val/ap50 val/miou val/iou val/accuracy val/boundary_f1 val/dice val/balanced_accuracy val/f1"
).split()


_MANY = 32  # more classes than this have no numbers in a confusion matrix


_PANEL, _HANDLE, _LETTER = 5.2, 0.6, 0.095  # inches: a panel of curves, and what an entry of its legend takes


# Pictures


def draw_curves(run: RunFacts, history: Sequence[Line]) -> Figure:
    """Small multiples over the epochs: loss and scores above; learning rate, speed and data wait below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 7.4), layout="constrained")
    figure.suptitle(_title(run), fontsize=15, parse_math=False)
    grid = figure.add_gridspec(2, 6, height_ratios=(3, 2))
    epochs = [line["epoch"] for line in history]
    best = run.get("best")

    def panel(cell: SubplotSpec, title: str, names: dict[str, str], scale: float = 1.0) -> Axes:
        axes = figure.add_subplot(cell)
        for (name, label), color in zip(names.items(), (_BLUE, _ORANGE, _GREEN, _PINK), strict=False):
            values = [scale * _number(line.get(name)) for line in history]
            marker = "o" if len(values) <= 30 else ""
            axes.plot(epochs, values, color=color, label=label, marker=marker, markersize=4, linewidth=2, clip_on=False)
        axes.set_title(title, loc="left", fontsize=13)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.tick_params(labelsize=11)
        return axes

    main = f"val/{best['metric'] if best else 'loss'}"
    # Top-5 lies so close to 1 that the others would share a corner.
    left = ["val/loss", "val/top5_accuracy", *(["val/mae", "val/rmse"] if "val/rmse" in history[-1] else [])]  # units
    scores = [n for n in history[-1] if n.startswith("val/") and n not in left]
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


def _mark_best(panels: list[Axes], best: Best | None, main: str) -> None:
    for axes in panels:
        if best is not None:
            axes.axvline(
                best["epoch"], color=_GREY, linestyle="--", linewidth=1.2, label=f"best epoch, {best['epoch']}"
            )
        _add_legend(axes)
    if best is not None:
        title = f"{panels[-1].get_title(loc='left')}, best {main.removeprefix('val/')} {_number(best['value']):.4g}"
        panels[-1].set_title(title, loc="left", fontsize=13)


def _add_legend(axes: Axes) -> None:
    """Below the axes: wherever it lay upon them, some curve would pass."""
    longest = max((len(label) for label in axes.get_legend_handles_labels()[1]), default=0)
    columns = max(1, int(_PANEL / (_HANDLE + _LETTER * longest)))
    style = {"fontsize": 11, "frameon": False, "borderpad": 0, "columnspacing": 1.4}
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.09), ncols=columns, **style)


def draw_confusion_of(dataset: DatasetFacts, confusion: Drawn, name: str = "") -> Figure:
    """`draw_confusion` of a run, from `dataset` of its run.json."""
    classes, shown = dataset.get("classes"), confusion.classes
    classes = classes and lettering.legible(classes)
    if confusion.confidence is not None:
        return _draw_detected(confusion, classes or [], name)
    if shown is None:
        return draw_confusion(confusion.matrix, classes, name, masks=bool(dataset.get("masks")))
    names = [*(classes[number] if classes else str(number) for number in shown), "all others"]
    of = f" of {len(classes):,}" if classes else ""
    return draw_confusion(confusion.matrix, names, name, of=f"the {len(shown)}{of} classes with the most errors")


def _draw_detected(confusion: Drawn, classes: list[str], name: str) -> Figure:
    """Of detections: which class was taken for which, or for background."""
    matrix, shown = confusion.matrix, confusion.classes
    right, found, there = float(matrix.trace()), float(matrix[:, :-1].sum()), float(matrix[:-1].sum())
    of = f"of a score of {confusion.confidence:.2f} or more, overlapping by 0.5 (IoU) or more:\n"
    of += f"{_percent(right, there)} of {_short(there)} objects found, {_percent(right, found)} of what is found right"
    numbers = range(len(matrix) - 1) if shown is None else shown
    names = [classes[number] if number < len(classes) else str(number) for number in numbers]
    others = [] if shown is None else ["all others"]
    return draw_confusion(matrix, [*names, *others, "background"], name, of=of, background=True)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def draw_confusion(
    matrix: np.ndarray,
    classes: list[str] | None,
    name: str = "",
    masks: bool = False,
    of: str | None = None,
    background: bool = False,
) -> Figure:
    """Rows are true classes, coloured by their share; numbers where they fit; a class's recall, IoU beside it.

    The numbers are counts of up to 15 classes of pictures, else percent of the true class: pixels are too many.

    Args:
        matrix: (classes, classes), pictures or pixels of each true class (row) by predicted class (column).
        classes: their names; None: they are numbered.
        name: first line of the title, such as the run's name.
        masks: whether pixels were counted.
        of: which classes these are, in words; None: all, and the title says the scores.
        background: whether objects were counted, and the last row and column is what is none.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    count = len(matrix)
    rows = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, rows, out=np.full(matrix.shape, np.nan), where=rows > 0)
    columns = matrix.sum(axis=0)
    if background:  # it has no number: what was taken for a class is a share of what was found of that
        shares[-1] = np.divide(matrix[-1], columns, out=np.zeros(count), where=columns > 0)
    side = min(max(0.5 * count, 2.6), 8.0)  # of the matrix, in inches
    beside = 1.45 + (1.55 if masks or background else 0) + (0.6 if count > _MANY else 0)
    figure = Figure(figsize=(side + beside, side))
    axes = figure.add_axes((0, 0, 1, 1))  # what is around it is added by to_png
    axes.set_facecolor("#dddddd")  # classes of which there is none
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _label_classes(axes, lettering.legible([str(name) for name in classes or range(count)]))
    numbers, unit = _cell_texts(matrix, shares, masks, background)
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
    recalls = np.diag(shares)[: count - background]
    _draw_bars(divider.append_axes("right", size=1.3, pad=0.15, sharey=axes), recalls, "recall, %", _BLUE)
    if background:
        right, found = np.diag(matrix)[:-1], columns[:-1]
        precisions = np.divide(right, found, out=np.full(count - 1, np.nan), where=found > 0)
        _draw_bars(divider.append_axes("right", size=1.3, pad=0.25, sharey=axes), precisions, "precision, %", _GREEN)
    if masks:
        from trainers.ratios import iou

        _draw_bars(divider.append_axes("right", size=1.3, pad=0.25, sharey=axes), iou(matrix), "IoU, %", _GREEN)
    if count > _MANY:
        bar = figure.colorbar(image, cax=divider.append_axes("right", size=0.15, pad=0.45))
        bar.outline.set_visible(False)
        bar.set_label("share of the true class")
    title = "\n".join(filter(None, (name, of or _summary(matrix, masks), unit)))
    axes.set_title(title, loc="left", fontsize=13, pad=26, parse_math=False)
    return figure


def _cell_texts(
    matrix: np.ndarray, shares: np.ndarray, masks: bool, background: bool
) -> tuple[dict[tuple[int, int], str], str]:
    """What the cells of a confusion matrix say, and what that is."""
    count = len(matrix)
    if count > _MANY:
        return {}, ""
    places = [(row, column) for row in range(count) for column in range(count) if matrix[row, column]]
    if count <= 15 and not masks:
        empty = "; empty: 0" if len(places) < count**2 else ""
        texts = {place: _short(float(matrix[place])) for place in places}
        return texts, f"numbers: {'objects' if background else 'pictures'}{empty}"
    digits, least = (1, 0.05) if count <= 15 else (0, 1.0)
    percents = {place: 100 * float(shares[place]) for place in places}
    texts = {place: f"{percent:.{digits}f}" for place, percent in percents.items() if percent >= least}
    empty = f"; empty: below {least:g} %" if len(texts) < count**2 else ""
    last = ", in the last row of what is found of a class" if background else ""
    return texts, f"numbers: % of the true class{last}{empty}"


def _summary(matrix: np.ndarray, masks: bool) -> str:
    import numpy as np

    from trainers.ratios import iou

    total = float(matrix.sum())
    accuracy = 100 * float(np.trace(matrix)) / total if total else math.nan
    if not masks:
        return f"accuracy {accuracy:.2f} % of {_short(total)}"
    ious = iou(matrix)
    known = ious[~np.isnan(ious)]
    mean = 100 * float(known.mean()) if len(known) else math.nan
    return f"mIoU {mean:.2f} %, pixel accuracy {accuracy:.2f} % of {_short(total)} pixels"


def _label_classes(axes: Axes, names: list[str]) -> None:
    every = math.ceil(len(names) / 50)
    ticks = range(0, len(names), every)
    short = abbreviations(names, 18)
    labels = [short[tick] for tick in ticks]
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


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    lettering.write(figure)
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.2)
    return stream.getvalue()


def _title(run: RunFacts) -> str:
    recipe = run.get("recipe", {})
    facts = [
        " on ".join(_own_name(recipe[key]) for key in ("model", "dataset") if key in recipe),
        f"batch {recipe['batch_size']}" if "batch_size" in recipe else "",
        f"lr {recipe['lr']:g}" if "lr" in recipe else "",
        "" if run["status"] == "finished" else run["status"].replace("_", " "),
    ]
    return f"{abbreviated(run.get('name', ''), 90)}\n{', '.join(filter(None, facts))}"


def _own_name(module: str) -> str:
    """Of a FILE.py without its folders."""
    return abbreviated(PurePath(module).name, 40)


def _short(count: float) -> str:
    """1234 -> 1,234; 45678 -> 46k; 1234567 -> 1.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= max(size, 1e4):
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:,.0f}{unit}"
    return f"{count:,.0f}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value
