"""Charts as SVG, in the colours of the page around them: lines, dots and heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from trainers.report.templating import render

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 42


@dataclass(frozen=True)
class Series:
    """Points of one colour. "line" joins them; a line of one point is a dot. The others mark each point."""

    label: str
    css: str
    points: list[tuple[float, float]] = field(default_factory=list)
    mark: str = "line"
    """"line", "dot", "ring" or "cross"."""


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` onto pixels from `start` to `stop`, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float, *, log_above: float = math.inf) -> Axis:
        """An axis for all values, with a margin.

        Args:
            values: at least one.
            start: pixel of the low end.
            stop: pixel of the high end.
            log_above: the axis is logarithmic where the values are positive and span a larger factor than this.
        """
        low, high = min(values), max(values)
        if low > 0 and high / low > log_above:
            return cls(low / 1.3, high * 1.3, start, stop, True)
        margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
        return cls(low - margin, high + margin, start, stop, False)

    def at(self, value: float) -> float:
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.stop - self.start), 1)

    def words(self) -> str:
        """The axis for the script: low, high, start, stop, and 1 where it is logarithmic."""
        return f"{self.low:.9g} {self.high:.9g} {self.start:g} {self.stop:g} {self.log:d}"

    def ticks(self, *, whole: bool = False) -> list[float]:
        """Round numbers on the axis: powers of ten, or 3 to 6 multiples of 1, 2 or 5 times one."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            if len(powers) > 1:
                return [10.0**power for power in powers[:: 1 + len(powers) // 7]]
            steps = [factor * 10.0 ** (powers.start + shift) for shift in (-1, 0) for factor in (1, 2, 5)]
            return [step for step in steps if self.low <= step <= self.high]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        step = max(step, 1) if whole else step
        return [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def chart(
    title: str,
    x_label: str,
    series: Sequence[Series],
    *,
    log_x: bool = False,
    log_above: float = 50,
    log_y: bool = False,
    x_ticks: Sequence[float] = (),
    level: tuple[str, float] | None = None,
) -> Markup:
    """An SVG of lines and marks. Empty if there are no points.

    Args:
        title: also what y is.
        x_label: what x is.
        series: the lower ones first.
        log_x: x is logarithmic where its values span a factor above `log_above`.
        log_above: that factor.
        log_y: the same of y, with a factor of 50.
        x_ticks: the values that x takes, where they are few: these are labelled, evenly in the logarithm if need be.
        level: name and height of a dashed line across.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return Markup()
    few = x_ticks if 1 < len(x_ticks) <= 8 else ()
    factor = 4 if few else log_above if log_x else math.inf
    heights = [point[1] for point in points] + ([level[1]] if level else [])
    x = Axis.over([point[0] for point in points], LEFT, WIDTH - RIGHT, log_above=factor)
    y = Axis.over(heights, HEIGHT - BOTTOM, TOP, log_above=50 if log_y else math.inf)
    return render(
        "chart.svg.j2",
        title=title,
        x_label=x_label,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        foot=HEIGHT - BOTTOM,
        x_axis=x.words(),
        y_axis=y.words(),
        x_ticks=[(x.at(tick), _plain(tick)) for tick in few or x.ticks(whole=x_label == "epoch")],
        y_ticks=[(y.at(tick), _plain(tick)) for tick in y.ticks()],
        level=(level[0], y.at(level[1])) if level else None,
        series=[Drawn.of(line, x, y) for line in series if line.points],
    )


@dataclass(frozen=True)
class Drawn:
    """A series as it is drawn."""

    label: str
    css: str
    mark: str
    places: Sequence[tuple[float, float]]
    """Across and down, of each point."""
    path: str
    """The same as a path: "M56 227 412 30"."""
    points: str
    """x and y of each point, for the script that shows the one under the pointer: "1,0.25 2,0.31"."""
    hint: str
    """What is shown where no script runs."""

    @classmethod
    def of(cls, line: Series, x: Axis, y: Axis) -> Drawn:
        places = [(x.at(across), y.at(up)) for across, up in line.points]
        path = "M" + " ".join(f"{across} {down}" for across, down in places)
        points = " ".join(f"{across:.6g},{up:.5g}" for across, up in line.points)
        across, up = line.points[-1]
        return cls(line.label, line.css, line.mark, places, path, points, f"{line.label}: {up:.4g} at {across:.4g}")


@dataclass(frozen=True)
class Cell:
    """A field of a heat map. Without a value it has no colour, but may have a text."""

    value: float | None
    text: str
    hint: str


def heat_map(
    title: str,
    axes: tuple[str, str],
    labels: tuple[Sequence[str], Sequence[str]],
    cells: Mapping[tuple[int, int], Cell],
    *,
    css: str,
    minimise: bool = False,
) -> Markup:
    """An SVG of numbers on colour. Empty where no field has a number.

    Args:
        title: what the numbers are.
        axes: names of x and y. A y without a name makes one line of fields.
        labels: the steps of x and of y.
        cells: place (x, y) -> field.
        css: the class whose colour marks the highest value.
        minimise: it marks the lowest instead.
    """
    values = [cell.value for cell in cells.values() if cell.value is not None]
    if not values:
        return Markup()
    low, high = min(values), max(values)
    left = 12 + min(132, 24 + 7 * max(map(len, labels[1]))) if axes[1] else 12
    wide, tall = (WIDTH - RIGHT - left) / len(labels[0]), max(30.0, min(44.0, 190 / len(labels[1])))
    foot = TOP + tall * len(labels[1])
    small = wide < 56
    columns = [_two_lines(label, wide / (5.2 if small else 6.4)) for label in labels[0]]
    fields = []
    for (across, down), cell in cells.items():
        share = 0.0 if cell.value is None else (cell.value - low) / (high - low) if high > low else 0.5
        share = 1 - share if minimise and high > low else share
        fields.append(
            {
                "left": round(left + across * wide, 1),
                "top": round(foot - (down + 1) * tall, 1),
                "text": _cut(cell.text, wide / 5.6),
                "hint": cell.hint,
                "known": cell.value is not None,
                "opacity": f"{0.06 + 0.46 * share:.2f}",
            }
        )
    below = 13 * max(map(len, columns))
    return render(
        "heat_map.svg.j2",
        title=title,
        x_label=_cut(axes[0], 50),
        y_label=_cut(axes[1], tall * len(labels[1]) / 6.4),
        width=WIDTH,
        height=round(foot + 33 + below),
        top=TOP,
        foot=foot,
        left=left,
        middle=(left + WIDTH - RIGHT) / 2,
        label_foot=foot + 23 + below,
        columns=[(round(left + (place + 0.5) * wide, 1), lines) for place, lines in enumerate(columns)],
        rows=[(round(foot - (place + 0.5) * tall + 4, 1), _cut(label, 16)) for place, label in enumerate(labels[1])],
        fields=fields,
        field_width=round(wide, 1),
        field_height=round(tall, 1),
        small=small,
        css=css,
    )


def _two_lines(label: str, most: float) -> list[str]:
    """A range takes two lines: "0.1" and "to 0.2"."""
    first, mark, second = label.partition(" to ")
    return [_cut(part, most) for part in ([first, f"to {second}"] if mark else [label])]


def _cut(label: str, most: float) -> str:
    return label if len(label) <= max(most, 3) else label[: max(int(most) - 1, 2)] + "…"


def _plain(value: float) -> str:
    whole = abs(value) >= 10_000 or (abs(value) >= 1 and value == round(value))
    return f"{value:,.0f}" if whole else f"{value:.4g}"
