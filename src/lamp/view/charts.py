"""Charts as SVG inside the page: drawn by Matplotlib, coloured by the page's style sheet, so that both themes fit."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from lamp.view.page import Chart, LegendEntry, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Number = float | int

SERIES = (
    "#2f6bdd",
    "#db8226",
    "#2c9a70",
    "#9159c9",
    "#c9506b",
    "#4ba3c7",
    "#8d8a3a",
    "#8a8f98",
    "#0f8b8d",
    "#b5651d",
    "#5c6bc0",
)
CARD, INK, SOFT, FAINT, LINE, GRID = "#ffffff", "#23262b", "#666b73", "#9a9fa7", "#e6e3dd", "#eeebe5"
CSS_VARIABLES = {
    **{colour: f"var(--c{index})" for index, colour in enumerate(SERIES)},
    CARD: "var(--card)", INK: "var(--ink)", SOFT: "var(--soft)", FAINT: "var(--faint)", LINE: "var(--line)",
    GRID: "var(--grid)",
}  # fmt: skip
"""What Matplotlib draws with, the light theme's colours -> the style sheet's variable, which each theme sets."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lamp",
    "text.parse_math": False,
    "lines.scale_dashes": False,
    "lines.solid_capstyle": "round",
    "font.size": 11,
    "text.color": SOFT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "axes.xmargin": 0,
    "axes.ymargin": 0.06,
}
TITLE, POINT = "title:", "\N{LINE SEPARATOR}"
"""Begins the id of an artist that shows a text when pointed at: one for all, or one a point, between separators."""


LONGEST = 64
"""Letters of a row's name."""
TOO_LARGE = 1e100
"""What no axis holds."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[Number, Number]]
    colour: int = 0
    """Number of a colour of the style sheet, 0 to 10."""
    marked: bool = False
    """Whether points are drawn as dots that show their value when pointed at."""
    smooth: bool = False
    """Whether to draw a running average, with the line itself faintly behind."""
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A rate and its interval, one row of an interval chart."""

    name: str
    value: Number
    low: Number
    high: Number
    text: str
    """Written at the end of the row."""
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A share between 0 and 1; nothing is drawn where it is None."""

    value: float | None
    interval: tuple[float, float] | None = None
    text: str = ""
    """Written at its end, or in its place."""


@dataclass(frozen=True, kw_only=True)
class BarSeries:
    """One method: a bar in every group."""

    name: str
    bars: Sequence[Bar]
    colour: int
    published: bool = False
    """Published bars are hollow, without intervals."""


def smoothed(points: Sequence[tuple[Number, Number]], *, log: bool = False) -> list[tuple[Number, Number]]:
    """Averages a line exponentially over about a 25th of its points, corrected for its beginning.

    On a logarithmic axis the logarithm is averaged, else a steep start would hold the average up for long.
    """
    share = 1 - 1 / max(1.0, len(points) / 25)
    averaged, total, weight = [], 0.0, 0.0
    for x, y in points:
        total = share * total + (1 - share) * (math.log(max(y, 1e-12)) if log else y)
        weight = share * weight + (1 - share)
        averaged.append((x, math.exp(total / weight) if log else total / weight))
    return averaged


def number(value: Number) -> str:
    """Formats an axis label or a value, short."""
    if value == 0:
        return "0"
    if 100_000 <= abs(value) < 1e9:
        return f"{value / 1000:,.0f}k"
    if 1000 <= abs(value) < 1e9:
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
) -> Chart | None:
    """Draws lines over a common axis; None where there is no point.

    Args:
        series: The lines; points that are not finite, or that no axis holds, are left out.
        x_label: Below the horizontal axis.
        y_label: Above the vertical axis.
        label: Describes the chart to screen readers.
        log: Whether the vertical axis is logarithmic, where all values are positive.
        y_range: The vertical range; from the data if None.
    """
    kept = [(one, [(x, y) for x, y in one.points if abs(x) < TOO_LARGE and abs(y) < TOO_LARGE]) for one in series]
    kept = [(one, points) for one, points in kept if points]
    if not kept:
        return None
    log = log and min(y for _, points in kept for _, y in points) > 0
    with _axes(460, 270, left=50, right=14, top=24, bottom=40) as (figure, axes):
        if log:
            axes.set_yscale("log")
        for one, points in kept:
            drawn = smoothed(points, log=log) if one.smooth else points
            (line,) = axes.plot(*zip(*drawn, strict=True), color=SERIES[one.colour], linewidth=2, clip_on=False)
            line.set_linestyle((0, (5, 4)) if one.dashed else "-")
            if one.marked:
                line.set(marker="o", markersize=6, markeredgewidth=0)
                line.set_gid(TITLE + POINT.join(f"{printable(one.name)} at {number(x)}: {number(y)}" for x, y in drawn))
        _set_limits(axes, [x for _, points in kept for x, _ in points], y_range)
        # After the limits: they are the averages', and noise may leave the axes.
        for one, points in kept:
            if one.smooth:
                axes.plot(*zip(*points, strict=True), color=SERIES[one.colour], linewidth=1, alpha=0.22, zorder=1.5)
        _set_ticks(axes)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(printable(x_label), loc="right")
        axes.annotate(
            printable(y_label), (0, 1), (-44, 12), xycoords="axes fraction", textcoords="offset points", color=FAINT,
            va="center",
        )  # fmt: skip
        svg = _to_svg(figure, label)
    legend = [LegendEntry(one.name, one.colour, "dot" if one.marked else "dash") for one, _ in kept]
    return Chart(svg=svg, legend=legend if len(legend) > 1 else [])


def interval_chart(intervals: Sequence[Interval], *, label: str) -> Chart | None:
    """Draws rates between 0 and 1 with their intervals, a row each; None without any."""
    if not intervals:
        return None
    with _share_axes([one.name for one in intervals], row=30, minimum=600, right=156) as (figure, axes):
        for y, one in enumerate(intervals):
            colour = SERIES[one.colour]
            axes.plot((one.low, one.high), (y, y), color=colour, linewidth=7, alpha=0.32, clip_on=False)
            (dot,) = axes.plot(one.value, y, "o", color=colour, markersize=11, clip_on=False)
            dot.set(markeredgecolor=CARD, markeredgewidth=2)
            _write(axes, 1, y, one.text, offset=14)
        return Chart(svg=_to_svg(figure, label), wide=True)


def bar_chart(groups: Sequence[str], series: Sequence[BarSeries], *, label: str) -> Chart | None:
    """Draws the bars of all series, a block of rows a group; None without series."""
    if not series:
        return None
    row, gap = 21, 16
    block = row * len(series) + gap
    with _share_axes(groups, row=block, minimum=760, right=150) as (figure, axes):
        for index, one in enumerate(series):
            for group, bar in enumerate(one.bars):
                y = group + (row * (index - (len(series) - 1) / 2)) / block
                _draw_bar(axes, one, bar, y, height=14 / block)
        svg = _to_svg(figure, label)
    legend = [LegendEntry(one.name, one.colour, "dot hollow" if one.published else "dot") for one in series]
    return Chart(svg=svg, legend=legend, wide=True)


def _draw_bar(axes: Axes, series: BarSeries, bar: Bar, y: Number, height: Number) -> None:
    """A bar from zero, its interval over it, and its number beside both."""
    if bar.value is None:
        _write(axes, 0, y, bar.text, offset=4)
        return
    colour, reach = SERIES[series.colour], bar.value
    (drawn,) = axes.barh(y, bar.value, height, color=colour, clip_on=False)
    if series.published:
        drawn.set(fill=False, edgecolor=colour, linewidth=1.5, linestyle=(0, (3, 2)))
    drawn.set_gid(TITLE + printable(f"{series.name}: {bar.text}"))
    if bar.interval is not None:
        axes.plot(bar.interval, (y, y), color=INK, linewidth=1.2, solid_capstyle="butt", clip_on=False)
        reach = max(reach, bar.interval[1])
    _write(axes, reach, y, bar.text, offset=8)


def _write(axes: Axes, x: Number, y: Number, text: str, *, offset: int) -> None:
    axes.annotate(
        printable(text), (x, y), (offset, -1), textcoords="offset points", va="center", fontsize=12.5,
        annotation_clip=False,
    )  # fmt: skip


@cache
def import_matplotlib() -> None:
    """Imports it without the environment's backend, which a notebook sets and only its own interpreter knows, and in silence:
    neither an unwritable cache of fonts nor a mistake in the user's settings matters here."""
    backend, logger = os.environ.pop("MPLBACKEND", None), logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib.backends.backend_svg
        import matplotlib.figure
        import matplotlib.style  # noqa: F401
    finally:
        logger.setLevel(level)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


@contextmanager
def _axes(
    width: Number, height: Number, *, left: Number, right: Number, top: Number, bottom: Number
) -> Iterator[tuple[Figure, Axes]]:
    """Axes with margins in [px], in our style whatever the user's own Matplotlib settings are."""
    import_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]), warnings.catch_warnings():
        # The browser chooses the font; whether the one that measures has every letter does not matter.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width / 72, height / 72))
        inside = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        axes = figure.add_axes(inside)
        axes.tick_params(pad=7)
        yield figure, axes


@contextmanager
def _share_axes(names: Sequence[str], *, row: Number, minimum: Number, right: Number) -> Iterator[tuple[Figure, Axes]]:
    """Axes of shares between 0 and 1, with a named row each, the first above; they are never narrower than 200 px."""
    names = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in map(printable, names)]
    # Wide letters, such as Chinese ones, take two places.
    left = 16 + 7 * max(sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in name) for name in names)
    width = max(minimum, left + 200 + right)
    with _axes(width, 34 + row * len(names), left=left, right=right, top=8, bottom=26) as (figure, axes):
        axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names)
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1), labels=("0%", "25%", "50%", "75%", "100%"))
        axes.tick_params(axis="y", labelsize=13, labelcolor=INK, pad=12)
        axes.grid(visible=False, axis="y")
        axes.spines["bottom"].set_visible(False)
        yield figure, axes


def _set_limits(axes: Axes, xs: Sequence[Number], y_range: tuple[Number, Number] | None) -> None:
    """From zero, or near it, to what was drawn."""
    low, high = axes.dataLim.intervaly
    from_zero = axes.get_yscale() == "linear" and 0 <= low < 0.35 * high
    bottom, top = axes.get_ylim() if y_range is None else y_range
    axes.set_ylim(0.0 if from_zero else bottom, top)
    left, right = min(0.0, *xs), max(xs)
    axes.set_xlim(left, right if right > left else left + 1)


def _set_ticks(axes: Axes) -> None:
    """Few and round; on a logarithmic axis 1, 2 and 5 times powers of ten, fewer where the range is wide."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    steps = [1, 2, 5, 10]
    low, high = axes.get_ylim()
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=steps))
    if axes.get_yscale() == "linear" or high / low < 5:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=steps))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 150 else (1,), numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _to_svg(figure: Figure, label: str) -> Markup:
    """The figure as an `svg` element without a size or a font of its own, its colours the style sheet's variables."""
    buffer = io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    # Ids are unique to the page: the same clipping path in two charts would be another's where the first is hidden.
    own = hashlib.sha256(label.encode(errors="replace") + buffer.getvalue()).hexdigest()[:10]
    picture = ElementTree.fromstring(buffer.getvalue())
    for element in list(picture.iter()):
        element.tag = element.tag.rpartition("}")[2]
        values = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        name = values.pop("id", "")
        element.attrib = {
            key: _own_attribute(key, value, own) for key, value in values.items() if "rotate(-0" not in value
        }
        if name.startswith(TITLE):
            _add_titles(element, name.removeprefix(TITLE).split(POINT))
        elif element.tag in ("clipPath", "path") and name:
            element.set("id", f"{own}-{name}")
        element.text, element.tail = element.text and element.text.strip(), None
    view = picture.get("viewBox", "")
    picture.attrib = {"viewBox": view, "role": "img", "aria-label": printable(label)}
    return Markup(ElementTree.tostring(picture, encoding="unicode"))


def _own_attribute(name: str, value: str, own: str) -> str:
    """An attribute's value with the page's colours and font, and with references to this chart's own ids."""
    if name == "style":
        value = re.sub(r"font-family:[^;]*;? ?", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda match: CSS_VARIABLES.get(match[0], match[0]), value)
    if name == "d":
        return " ".join(re.sub(r"\d+\.\d+", lambda match: f"{float(match[0]):.1f}", value).split())
    return value.replace("url(#", f"url(#{own}-") if name == "clip-path" else re.sub(r"^#", f"#{own}-", value)


def _add_titles(group: ElementTree.Element, titles: Sequence[str]) -> None:
    """Gives each point of a line its text, or a group without points the only one."""
    points = [element for element in group.iter() if element.tag.endswith("use")]
    for element, title in zip(points or [group], titles, strict=False):
        text = ElementTree.Element("title")
        text.text = title
        element.insert(0, text)
