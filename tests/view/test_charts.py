from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.view.charts import (
    Series,
    Span,
    duration,
    interval_chart,
    line_chart,
    log_ticks,
    number,
    round_ticks,
    smoothed,
    time_bar,
)

VALUES = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda value: abs(value) > 1e-6)


@settings(max_examples=30, deadline=None)
@given(VALUES, st.floats(1e-4, 1e5), st.integers(3, 8))
def test_round_ticks_lie_inside_and_are_few(low: float, span: float, count: int) -> None:
    ticks = round_ticks(low, low + span, count)
    assert len(ticks) <= count + 1
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)


def test_ticks_by_hand() -> None:
    assert round_ticks(0, 1500, 6) == [0, 500, 1000, 1500]
    assert round_ticks(0.1, 0.52, 5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert log_ticks(0.15, 1.2) == pytest.approx([0.2, 0.5, 1.0])
    assert [number(value) for value in (0, 0.12345, 1500.0, 250_000)] == ["0", "0.123", "1,500", "250k"]


def test_smoothing_is_unbiased_at_the_start_and_follows_a_steep_one() -> None:
    averaged = smoothed([(float(x), 3.0) for x in range(200)])
    assert [value for _, value in averaged] == pytest.approx([3.0] * 200)
    falling = [(float(x), max(0.01, 10.0 ** -(x / 10))) for x in range(200)]
    assert smoothed(falling, log=True)[30][1] < 0.7 * smoothed(falling)[30][1]
    few = [(0.0, 1.0), (1.0, 5.0), (2.0, 2.0)]
    assert smoothed(few) == few


def lines_of(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline class="line[^"]*"[^>]* points="([^"]+)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]  # pyright: ignore[reportReturnType]


def test_a_line_rises_where_its_values_rise() -> None:
    points = [(0.0, 1.0), (100.0, 10.0), (200.0, 100.0)]
    chart = line_chart([Series(name="a", points=points)], x_label="step", y_label="loss", label="rising", log=True)
    ((x0, y0), (x1, y1), (x2, y2)) = lines_of(chart)[0]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    # A tenfold rise is the same height everywhere on a logarithmic axis, and up is towards smaller y.
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y0 > y1


def test_charts_are_well_formed_and_say_what_they_show() -> None:
    curves = [
        Series(name="a & b", points=[(1, 2.0), (2, float("nan")), (3, 1.0)], smooth=True, marked=True),
        Series(name="c", points=[(1, 1.0), (3, 1.0)], colour=1),
    ]
    chart = line_chart(curves, x_label="step", y_label="<loss>", label="a <label>")
    picture = ElementTree.fromstring(chart)[0]
    assert picture.get("aria-label") == "a <label>" and "a &amp; b" in chart
    spans = [
        Span(name="x", value=0.5, low=0.2, high=0.8, said="5/10"),
        Span(name="y", value=0.0, low=0.0, high=0.3, said="0/10"),
    ]
    assert "5/10" in (interval_chart(spans, label="rates"))
    ElementTree.fromstring(interval_chart(spans, label="rates"))


def test_nothing_to_draw_draws_nothing() -> None:
    empty = Series(name="a", points=[(1, float("nan"))])
    assert line_chart([empty], x_label="", y_label="", label="") == ""
    assert interval_chart([], label="") == "" and time_bar([("a", 0.0)]) == ""


def test_one_point_is_enough() -> None:
    assert "circle" in line_chart(
        [Series(name="a", points=[(5, 2.0)], marked=True)], x_label="", y_label="", label="one"
    )


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.21, "3.2 s"), (59.4, "59 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
