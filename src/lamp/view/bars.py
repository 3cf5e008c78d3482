"""Bars in groups, as the paper's figures have them: a run's own rows filled and with their intervals, published ones hollow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lamp.view.charts import Axis

ROW, GAP, HEAD, WIDTH = 21, 16, 8, 760
HALF = 7


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A share between 0 and 1; nothing is drawn where it is None."""

    value: float | None
    interval: tuple[float, float] | None = None
    said: str = ""
    """Written at its end, or in its place."""


@dataclass(frozen=True, kw_only=True)
class BarSeries:
    """One method: a bar in every group."""

    name: str
    bars: Sequence[Bar]
    colour: int
    published: bool = False


def bar_chart(groups: Sequence[str], series: Sequence[BarSeries], *, label: str) -> str:
    """Draws the bars of all series, lying, a block a group; empty without series."""
    if not series:
        return ""
    block = ROW * len(series) + GAP
    floor = HEAD + block * len(groups)
    across = Axis(low=0.0, high=1.0, start=16 + 6.4 * max(map(len, groups)), end=WIDTH - 150)
    parts = [
        f'<line class="grid" x1="{across.place(tick):.1f}" x2="{across.place(tick):.1f}" y1="{HEAD}" y2="{floor}"/>'
        f'<text class="tick" x="{across.place(tick):.1f}" y="{floor + 16}" text-anchor="middle">{tick:.0%}</text>'
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for index, group in enumerate(groups):
        top = HEAD + block * index + GAP / 2
        middle = top + ROW * len(series) / 2
        parts.append(
            f'<text class="row" x="{across.start - 12:.1f}" y="{middle + 4:.1f}" text-anchor="end">{escape(group)}</text>'
        )
        parts += [_bar(one, one.bars[index], across, top + ROW * (place + 0.5)) for place, one in enumerate(series)]
    picture = f'<svg viewBox="0 0 {WIDTH} {floor + 26}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    keys = "".join(
        f'<span><i class="dot {"hollow" if one.published else ""} b{one.colour}"></i>{escape(one.name)}</span>'
        for one in series
    )
    return f'<div class="chart wide">{picture}<div class="legend">{keys}</div></div>'


def _bar(series: BarSeries, bar: Bar, across: Axis, y: float) -> str:
    """A bar from zero, its interval over it, and its number beside both."""
    if bar.value is None:
        return f'<text class="said" x="{across.start + 4:.1f}" y="{y + 4:.1f}">{escape(bar.said)}</text>'
    start, end = across.place(0.0), across.place(bar.value)
    kind = f"bar hollow s{series.colour}" if series.published else f"bar f{series.colour}"
    title = f"<title>{escape(series.name)}: {escape(bar.said)}</title>"
    shape = (
        f'<rect class="{kind}" x="{start:.1f}" y="{y - HALF}" width="{end - start:.1f}" height="{2 * HALF}" rx="2"/>'
    )
    over, reach = "", end
    if bar.interval is not None:
        low, high = (across.place(share) for share in bar.interval)
        over, reach = f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>', max(end, high)
    said = f'<text class="said" x="{reach + 8:.1f}" y="{y + 4:.1f}">{escape(bar.said)}</text>'
    return f"<g>{title}{shape}{over}{said}</g>"
