"""Charts as inline SVG: no library, no script; colours and fonts come from the page's style sheet, so both themes fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Number = float | int
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 40


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[Number, Number]]
    colour: int = 0
    """Number of a colour of the style sheet, 0 to 7."""
    marked: bool = False
    """Whether points are drawn as dots that say their value when pointed at."""
    smooth: bool = False
    """Whether to draw a running average, with the line itself faintly behind."""
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Span:
    """A rate and its interval, one row of an interval chart."""

    name: str
    value: Number
    low: Number
    high: Number
    said: str
    """Written at the end of the row."""
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps values to places along one direction of the chart."""

    low: Number
    high: Number
    start: Number
    end: Number
    log: bool = False

    def place(self, value: Number) -> Number:
        """Returns the coordinate of a value."""
        if self.log:
            share = math.log(max(value, 1e-12) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[Number]:
        """Returns round values to label."""
        return log_ticks(self.low, self.high) if self.log else round_ticks(self.low, self.high, count)


def round_ticks(low: Number, high: Number, count: int = 5) -> list[Number]:
    """Returns about `count` multiples of 1, 2 or 5 times a power of ten, inside the range."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: Number, high: Number) -> list[Number]:
    """Returns 1, 2 and 5 times powers of ten inside the range, fewer where it is wide."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    return [
        value for decade in decades for value in (factor * 10.0**decade for factor in factors) if low <= value <= high
    ]


def smoothed(points: Sequence[tuple[Number, Number]], *, log: bool = False) -> list[tuple[Number, Number]]:
    """Averages a line exponentially over about a 25th of its points, corrected for its beginning.

    On a logarithmic axis the logarithm is averaged, else a steep start would hold the average up for long.
    """
    share = 1 - 1 / max(1.0, len(points) / 25)
    found, total, weight = [], 0.0, 0.0
    for x, y in points:
        total = share * total + (1 - share) * (math.log(max(y, 1e-12)) if log else y)
        weight = share * weight + (1 - share)
        found.append((x, math.exp(total / weight) if log else total / weight))
    return found


def number(value: Number) -> str:
    """Formats an axis label or a value, short."""
    if value == 0:
        return "0"
    if abs(value) >= 100_000:
        return f"{value / 1000:,.0f}k"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    label: str,
    log: bool = False,
    y_range: tuple[Number, Number] | None = None,
) -> str:
    """Draws lines over a common axis.

    Args:
        series: The lines; points that are not finite are left out.
        x_label: Below the horizontal axis.
        y_label: Above the vertical axis.
        label: What the chart shows, for those who do not see it.
        log: Whether the vertical axis is logarithmic, where all values are positive.
        y_range: The vertical range; from the data if None.
    """
    kept = [(one, [(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y)]) for one in series]
    kept = [(one, points) for one, points in kept if points]
    if not kept:
        return ""
    log = log and min(y for _, points in kept for _, y in points) > 0
    values = [y for one, points in kept for _, y in (smoothed(points, log=log) if one.smooth else points)]
    low, high = y_range or _range(values, log)
    xs = [x for _, points in kept for x, _ in points]
    right = max(xs) if max(xs) > min(xs) else min(xs) + 1
    across = Axis(low=min(0.0, min(xs)), high=right, start=LEFT, end=WIDTH - RIGHT)
    up = Axis(low=low, high=high, start=HEIGHT - BOTTOM, end=TOP + 12, log=log)
    parts = [_grid(across, up, x_label, y_label)]
    for one, points in kept:
        parts.append(_line(one, points, across, up))
    clip = "".join(letter if letter.isalnum() else "-" for letter in label)
    inside = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT + 4}" height="{HEIGHT - TOP - BOTTOM}"'
    frame = f'<clipPath id="{clip}"><rect {inside}/></clipPath>'
    body = parts[0] + f'<g clip-path="url(#{clip})">' + "".join(parts[1:]) + "</g>"
    legend = "".join(_key(one) for one, _ in kept) if len(kept) > 1 else ""
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{frame}{body}</svg>'
    return f'<div class="chart">{picture}<div class="legend">{legend}</div></div>'


def _range(values: Sequence[Number], log: bool) -> tuple[Number, Number]:
    low, high = min(values), max(values)
    if log:
        return low / 1.15, high * 1.15 if high > low else low * 2
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.35 * high else low - margin), high + margin


def _grid(across: Axis, up: Axis, x_label: str, y_label: str) -> str:
    parts = []
    for tick in up.ticks(5):
        y = up.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    floor = HEIGHT - BOTTOM
    for tick in across.ticks(6):
        x = across.place(tick)
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 15}" text-anchor="{anchor}">{number(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<text class="name" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text class="name" x="{LEFT - 44}" y="{TOP}">{escape(y_label)}</text>')
    return "".join(parts)


def _line(one: Series, points: Sequence[tuple[Number, Number]], across: Axis, up: Axis) -> str:
    def path(line: Sequence[tuple[Number, Number]]) -> str:
        return " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in line)

    parts = []
    if one.smooth:
        parts.append(f'<polyline class="raw s{one.colour}" points="{path(points)}"/>')
        points = smoothed(points, log=up.log)
    dashes = ' stroke-dasharray="5 4"' if one.dashed else ""
    parts.append(f'<polyline class="line s{one.colour}"{dashes} points="{path(points)}"/>')
    if one.marked:
        parts += [
            f'<circle class="f{one.colour}" cx="{across.place(x):.1f}" cy="{up.place(y):.1f}" r="3">'
            f"<title>{escape(one.name)} at {number(x)}: {number(y)}</title></circle>"
            for x, y in points
        ]
    return "".join(parts)


def _key(one: Series) -> str:
    mark = "dot" if one.marked else "dash"
    return f'<span><i class="{mark} b{one.colour}"></i>{escape(one.name)}</span>'


def interval_chart(spans: Sequence[Span], *, label: str) -> str:
    """Draws rates between 0 and 1 with their intervals, a row each."""
    if not spans:
        return ""
    row, head = 30, 8
    name_width = 16 + 6.6 * max(len(span.name) for span in spans)
    width, height = 600, head + row * len(spans) + 26
    across = Axis(low=0.0, high=1.0, start=name_width, end=width - 156)
    floor = head + row * len(spans)
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = across.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{head}" y2="{floor}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{tick:.0%}</text>')
    for index, span in enumerate(spans):
        y = head + row * (index + 0.5)
        low, high, at = (across.place(value) for value in (span.low, span.high, span.value))
        parts.append(
            f'<text class="row" x="{name_width - 12:.1f}" y="{y + 4}" text-anchor="end">{escape(span.name)}</text>'
        )
        parts.append(f'<line class="span s{span.colour}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="f{span.colour} ring" cx="{at:.1f}" cy="{y}" r="5.5"/>')
        parts.append(f'<text class="said" x="{across.end + 14:.1f}" y="{y + 4}">{escape(span.said)}</text>')
    drawn = "".join(parts)
    picture = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{drawn}</svg>'
    return f'<div class="chart wide">{picture}</div>'


def time_bar(seconds: Sequence[tuple[str, Number]]) -> str:
    """Draws where the time went: one bar of parts, and a legend with each part's time and share."""
    total = sum(value for _, value in seconds)
    if total <= 0:
        return ""
    parts, keys = [], []
    for index, (name, value) in enumerate(seconds):
        share = value / total
        colour = index % 8
        parts.append(
            f'<i class="b{colour}" style="flex-grow:{share:.5f}" title="{escape(name)}: {duration(value)}"></i>'
        )
        keys.append(
            f'<li><i class="dot b{colour}"></i><span>{escape(name)}</span><b>{duration(value)}</b><em>{share:.0%}</em></li>'
        )
    return f'<div class="timebar">{"".join(parts)}</div><ul class="times">{"".join(keys)}</ul>'


def duration(seconds: Number) -> str:
    """Formats a duration for people."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
