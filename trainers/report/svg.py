"""Charts as SVG text, in the colours of the page around them: lines and dots, and maps of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

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
        """An axis for all values, logarithmic where they span a factor of more than `log_above`."""
        low, high = min(values), max(values)
        if low > 0 and high / low > log_above:
            return cls(low / 1.3, high * 1.3, start, stop, True)
        margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
        return cls(low - margin, high + margin, start, stop, False)

    def at(self, value: float) -> float:
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.stop - self.start), 1)

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
    log_y: bool = False,
    x_ticks: Sequence[float] = (),
    level: tuple[str, float] | None = None,
) -> str:
    """An SVG of lines and marks. Empty if there are no points.

    Parameters:
        log_x, log_y: the axis is logarithmic where the values span a factor above 50.
        x_ticks: the values that x takes, where they are few: these are labelled, evenly in the logarithm if need be.
        level: name and height of a dashed line across.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    few = x_ticks if 1 < len(x_ticks) <= 8 else ()
    log_above = 4 if few else 50 if log_x else math.inf
    heights = [point[1] for point in points] + ([level[1]] if level else [])
    x = Axis.over([point[0] for point in points], LEFT, WIDTH - RIGHT, log_above=log_above)
    y = Axis.over(heights, HEIGHT - BOTTOM, TOP, log_above=50 if log_y else math.inf)
    parts = [f"<text class=title x={LEFT} y=16>{escape(title)}</text>"]
    for tick in y.ticks():
        parts.append(f"<path class=grid d='M{LEFT} {y.at(tick)}H{WIDTH - RIGHT}'/>")
        parts.append(f"<text x={LEFT - 6} y={y.at(tick) + 4} text-anchor=end>{_plain(tick)}</text>")
    for tick in few or x.ticks(whole=x_label == "epoch"):
        across, foot = x.at(tick), HEIGHT - BOTTOM
        parts.append(f"<path class=grid d='M{across} {foot}v4'/>")
        parts.append(f"<text x={across} y={foot + 17} text-anchor=middle>{_plain(tick)}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f"<text x={middle} y={HEIGHT - 6} text-anchor=middle>{escape(x_label)}</text>")
    if level:
        parts.append(f"<path class=level d='M{LEFT} {y.at(level[1])}H{WIDTH - RIGHT}'/>")
        parts.append(f"<text x={LEFT + 4} y={y.at(level[1]) - 5}>{escape(level[0])}</text>")
    parts += [_drawn(line, x, y) for line in series if line.points]
    return _svg(title, HEIGHT, parts)


def _drawn(line: Series, x: Axis, y: Axis) -> str:
    last = line.points[-1]
    hint = f"<title>{escape(line.label)}: {last[1]:.4g} at {last[0]:.4g}</title>"
    places = [(x.at(each[0]), y.at(each[1])) for each in line.points]
    if line.mark == "line":
        path = " ".join(f"{across} {down}" for across, down in places)
        drawn = f"<path class=line d='M{path}'/>" if len(places) > 1 else ""
        radius = 2.5 if drawn else 5
        drawn += f"<circle cx={places[-1][0]} cy={places[-1][1]} r={radius} />"
    elif line.mark == "cross":
        drawn = "".join(f"<path class=mark d='M{a - 5} {b - 5}l10 10m0 -10l-10 10'/>" for a, b in places)
    else:
        css = "class=ring r=6.5" if line.mark == "ring" else "r=4.5"
        drawn = "".join(f"<circle {css} cx={across} cy={down} />" for across, down in places)
    return f"<g class={line.css}>{hint}{drawn}</g>"


@dataclass(frozen=True)
class Cell:
    """A field of a map. Without a value it has no colour, but may have a text."""

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
) -> str:
    """An SVG of numbers on colour. Empty where no field has a number.

    Parameters:
        axes, labels: names of x and y, and their steps. A y without a name makes one line of fields.
        cells: by their places (x, y).
        css: the class whose colour marks the highest value, or the lowest if `minimise`.
    """
    values = [cell.value for cell in cells.values() if cell.value is not None]
    if not values:
        return ""
    low, high = min(values), max(values)
    left = 12 + min(132, 24 + 7 * max(map(len, labels[1]))) if axes[1] else 12
    wide, tall = (WIDTH - RIGHT - left) / len(labels[0]), max(30.0, min(44.0, 190 / len(labels[1])))
    foot = TOP + tall * len(labels[1])
    parts = [f"<text class=title x=12 y=16>{escape(title)}</text>"]
    small = " class=small" if wide < 56 else ""
    lines = 1
    for place, label in enumerate(labels[0]):
        across = round(left + (place + 0.5) * wide, 1)
        first, mark, second = label.partition(" to ")  # a range takes two lines
        for line, part in enumerate([first, f"to {second}"] if mark else [label]):
            told = escape(_cut(part, wide / (5.2 if small else 6.4)))
            parts.append(f"<text{small} x={across} y={foot + 17 + 13 * line} text-anchor=middle>{told}</text>")
        lines = max(lines, 2 if mark else 1)
    for place, label in enumerate(labels[1]):
        down = round(foot - (place + 0.5) * tall + 4, 1)
        parts.append(f"<text x={left - 7} y={down} text-anchor=end>{escape(_cut(label, 16))}</text>")
    for (across, down), cell in cells.items():
        a, b = round(left + across * wide, 1), round(foot - (down + 1) * tall, 1)
        share = 0.0 if cell.value is None else (cell.value - low) / (high - low) if high > low else 0.5
        share = 1 - share if minimise and high > low else share
        fill = (
            ""
            if cell.value is None
            else f"<rect class=field x={a + 1} y={b + 1} width={wide - 2:.1f}"
            + (f" height={tall - 2:.1f} rx=3 fill-opacity={0.06 + 0.46 * share:.2f} />")
        )
        css_text = ["small"] * bool(small or cell.value is None) + ["ink"] * (cell.value is not None)
        where = f"x={a + wide / 2:.1f} y={b + tall / 2 + 4:.1f} text-anchor=middle"
        parts.append(
            f"<g class={css}><title>{escape(cell.hint)}</title>{fill}<text class='{' '.join(css_text)}' {where}>"
        )
        parts.append(f"{escape(_cut(cell.text, wide / 5.6))}</text></g>")
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(f"<text x={middle} y={foot + 23 + 13 * lines} text-anchor=middle>{escape(_cut(axes[0], 50))}</text>")
    if axes[1]:
        down = (TOP + foot) / 2
        turned = f"text-anchor=middle transform='rotate(-90 14 {down})'"
        parts.append(f"<text x=14 y={down + 4} {turned}>{escape(_cut(axes[1], tall * len(labels[1]) / 6.4))}</text>")
    return _svg(title, round(foot + 33 + 13 * lines), parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role=img aria-label="{label}">{"".join(parts)}</svg>\n'


def bars(rows: Sequence[tuple[str, str, float]], *, one: float) -> str:
    """A list of horizontal bars: label, the number as text, its size. A mark stands where the size is `one`."""
    most = max([size for _, _, size in rows] + [one])
    drawn = "".join(
        f"<li><span>{escape(label)}</span><span class=bar><b style='width:{100 * size / most:.1f}%'></b>"
        f"<u style='left:{100 * one / most:.1f}%'></u></span><span>{escape(number)}</span>"
        for label, number, size in rows
    )
    return f"<ul class=bars>{drawn}</ul>" if rows else ""


def _cut(label: str, most: float) -> str:
    return label if len(label) <= max(most, 3) else label[: max(int(most) - 1, 2)] + "…"


def _plain(value: float) -> str:
    whole = abs(value) >= 10_000 or (abs(value) >= 1 and value == round(value))
    return f"{value:,.0f}" if whole else f"{value:.4g}"
