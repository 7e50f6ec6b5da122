"""Charts of what was counted of each image: predicted numbers against true ones, average precisions of labels, curves
of detections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from trainers.formatting import abbreviated
from trainers.image_tables import Ints, average_precisions, compare, read_labels, read_values
from trainers.run_facts import DatasetFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trainers.image_tables import Floats

_BLUE, _GREY = "#0072B2", "#595959"
_COLUMNS = 6
"""Columns of numbers that are drawn, at most."""
_LABELS = 40
"""Labels that are drawn, at most: those of the lowest average precision."""
_MANY = 3000
"""Pictures from which on their density is drawn."""


def draw_scores(counts: Mapping[str, Ints], dataset: DatasetFacts, name: str = "") -> dict[str, Figure]:
    """The charts of a split, by the names of their files; none of tasks that count otherwise.

    Args:
        counts: What the task counted, of all images.
        dataset: Of run.json; its classes are the names of labels, or of columns of numbers.
        name: The first line of a title, such as the run's name.
    """
    classes = dataset.get("classes") or []
    drawn = (draw(counts, classes, name) for needs, draw in _CHARTS.items() if set(needs) <= counts.keys())
    return {file: figure for each in drawn for file, figure in each.items()}


def _scatter(counts: Mapping[str, Ints], names: list[str], title: str) -> dict[str, Figure]:
    from matplotlib.figure import Figure

    predicted, true = read_values(counts)
    columns = min(_COLUMNS, true.shape[1])
    wide = min(3, columns)
    high = -(-columns // wide)
    figure = Figure(figsize=(5.2 * wide, 5.2 * high + 0.5), layout="constrained")
    figure.suptitle("\n".join(filter(None, (title, f"{len(true):,} validation pictures"))), fontsize=13)
    for column in range(columns):
        axes = figure.add_subplot(high, wide, column + 1)
        _scatter_column(axes, predicted[:, column], true[:, column])
        what = names[column] if column < len(names) else str(column)
        axes.set_xlabel(f"true {abbreviated(what, 30)}", fontsize=12, parse_math=False)
        axes.set_ylabel("predicted", fontsize=12)
    return {"scatter": figure}


def _scatter_column(axes: Axes, predicted: Floats, true: Floats) -> None:
    """One point a picture, or their density; on the line predicted and true are equal."""
    low, high = float(min(predicted.min(), true.min())), float(max(predicted.max(), true.max()))
    room = 0.04 * (high - low) or max(1.0, abs(low)) * 0.04
    ends = (low - room, high + room)
    if len(true) > _MANY:
        axes.hexbin(true, predicted, gridsize=60, mincnt=1, bins="log", cmap="Blues", extent=(*ends, *ends))
    else:
        axes.scatter(true, predicted, s=18, color=_BLUE, alpha=0.6 if len(true) < 500 else 0.3, linewidths=0)
    axes.plot(ends, ends, color=_GREY, linestyle="--", linewidth=1.2)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.set_aspect("equal")
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    found = compare(predicted, true)
    said = f"R² {found.r2:.3f}, Spearman {found.spearman:.3f}\nMAE {found.mae:.4g}, RMSE {found.rmse:.4g}"
    axes.set_title(said, loc="left", fontsize=11)


def _precisions(counts: Mapping[str, Ints], names: list[str], title: str) -> dict[str, Figure]:
    """A bar a label; those that do not occur have none."""
    from matplotlib.figure import Figure

    logits, true = read_labels(counts)
    each = average_precisions(logits, true)
    known = [value for value in each if value is not None]
    shown = [*range(len(each))]
    if len(each) > _LABELS:
        shown = sorted(
            sorted(shown, key=lambda label: 2.0 if each[label] is None else float(each[label] or 0))[:_LABELS]
        )
    figure = Figure(figsize=(7.5, 1.4 + 0.3 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    bars = [float(each[label] or 0) for label in shown]
    axes.barh(range(len(shown)), bars, color=_BLUE, height=0.7)
    ticks = [abbreviated(names[label] if label < len(names) else str(label), 24) for label in shown]
    axes.set_yticks(range(len(shown)), ticks, fontsize=10, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1.32)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    for place, label in enumerate(shown):
        have = int(true[:, label].sum())
        text = "none has it" if each[label] is None else f"{bars[place]:.3f} ({have:,})"
        axes.text(bars[place] + 0.015, place, text, va="center", fontsize=9)
    axes.set_xlabel("average precision (validation pictures with the label)", fontsize=11)
    mean = f"mAP {np.mean(known):.4f} of {len(known)} labels" if known else "no label occurs"
    rest = f"; the {len(shown)} lowest are shown" if len(shown) < len(each) else ""
    axes.set_title("\n".join(filter(None, (title, mean + rest))), loc="left", fontsize=13, parse_math=False)
    return {"average_precision": figure}


def _detections(counts: Mapping[str, Ints], names: list[str], title: str) -> dict[str, Figure]:
    """Precision over recall, and F1 over confidence."""
    from trainers.runs.box_figures import draw_curves

    pictures = f"{len(counts['matches']):,} validation pictures"
    return {
        "detections": draw_curves(
            counts["matches"], counts["truths"], names, ", ".join(filter(None, (title, pictures)))
        )
    }


Draw = Callable[[Mapping[str, Ints], list[str], str], dict[str, "Figure"]]
_CHARTS: Mapping[tuple[str, ...], Draw] = {
    ("values",): _scatter,
    ("logits", "labels"): _precisions,
    ("matches", "truths"): _detections,
}
"""What is drawn of counts of these names: files by name."""


def has_charts(counts: Mapping[str, Ints]) -> bool:
    """Whether `draw_scores` draws any."""
    return any(set(needs) <= counts.keys() for needs in _CHARTS)
