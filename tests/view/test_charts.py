from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from lamp.view.charts import (
    CSS_VARIABLES,
    Bar,
    BarSeries,
    Interval,
    Series,
    bar_chart,
    interval_chart,
    line_chart,
    number,
    smoothed,
)
from lamp.view.page import Chart, duration


def drawing(chart: Chart | None) -> ElementTree.Element:
    assert chart is not None
    return ElementTree.fromstring(chart.svg)


def paths(svg: ElementTree.Element, style: str) -> list[list[tuple[float, float]]]:
    """The points of the lines and shapes whose style holds a text."""
    found = [path.get("d", "") for path in svg.iter("path") if style in path.get("style", "")]
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for path in found]


def texts(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter("text")]


def titles(svg: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in svg.iter("title")]


def tick_labels(points: list[tuple[float, float]], *, log: bool = False) -> list[str]:
    svg = drawing(line_chart([Series(name="a", points=points)], x_label="", y_label="", label="x", log=log))
    return [text for text in texts(svg) if text]


def test_ticks_are_few_and_round() -> None:
    assert tick_labels([(0, 0.1), (1500, 0.52)]) == ["0", "500", "1,000", "1,500", "0", "0.2", "0.4"]
    assert tick_labels([(0, 0.15), (250_000, 1.2)], log=True)[-3:] == ["0.2", "0.5", "1"]
    assert tick_labels([(0, 1e-4), (1, 1e4)], log=True)[-5:] == ["0.0001", "0.01", "1", "100", "10,000"]
    assert tick_labels([(0, 21.0), (1, 26.0)], log=True)[-3:] == ["22", "24", "26"]
    assert [number(value) for value in (0, 0.12345, 1500.0, 250_000, 1e300)] == [
        "0",
        "0.123",
        "1,500",
        "250k",
        "1e+300",
    ]


def test_smoothing_is_unbiased_at_the_start_and_follows_a_steep_one() -> None:
    averaged = smoothed([(float(x), 3.0) for x in range(200)])
    assert [value for _, value in averaged] == pytest.approx([3.0] * 200)
    falling = [(float(x), max(0.01, 10.0 ** -(x / 10))) for x in range(200)]
    assert smoothed(falling, log=True)[30][1] < 0.7 * smoothed(falling)[30][1]
    few = [(0.0, 1.0), (1.0, 5.0), (2.0, 2.0)]
    assert smoothed(few) == few


def test_a_line_rises_where_its_values_rise() -> None:
    points = [(0.0, 1.0), (100.0, 10.0), (200.0, 100.0)]
    chart = line_chart([Series(name="a", points=points)], x_label="step", y_label="loss", label="rising", log=True)
    ((x0, y0), (x1, y1), (x2, y2)) = paths(drawing(chart), "var(--c0)")[0]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    # A tenfold rise is the same height everywhere on a logarithmic axis, and up is towards smaller y.
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y0 > y1


def test_charts_say_what_they_show() -> None:
    curves = [
        Series(name="a & b", points=[(1, 2.0), (2, float("nan")), (3, 1.0)], smooth=True, marked=True),
        Series(name="c", points=[(1, 1.0), (3, 1.0)], colour=1),
    ]
    chart = line_chart(curves, x_label="step", y_label="<loss>", label="a <label>")
    svg = drawing(chart)
    assert chart is not None and [(entry.name, entry.mark) for entry in chart.legend] == [
        ("a & b", "dot"),
        ("c", "dash"),
    ]
    assert svg.get("aria-label") == "a <label>" and "<loss>" in texts(svg) and "&lt;loss&gt;" in chart.svg
    assert titles(svg) == ["a & b at 1: 2", "a & b at 3: 1"]  # when pointed at
    assert len(paths(svg, "stroke-opacity")) == 1  # what is averaged is drawn faintly
    intervals = [
        Interval(name="x", value=0.5, low=0.2, high=0.8, text="5/10"),
        Interval(name="y", value=0.0, low=0.0, high=0.3, text="0/10", colour=1),
    ]
    svg = drawing(interval_chart(intervals, label="rates"))
    assert {"x", "5/10", "y", "0/10", "75%"} <= set(texts(svg))
    (((low, _), (high, _)),), dots = paths(svg, "var(--c0); stroke-opacity"), [use for use in svg.iter("use")]
    assert float(dots[0].get("x", 0)) == pytest.approx((low + high) / 2, abs=0.1)


def test_bars_are_as_long_as_what_they_show() -> None:
    series = [
        BarSeries(name="ours", bars=[Bar(value=0.5, interval=(0.25, 0.75), text="1/2"), Bar(value=None)], colour=0),
        BarSeries(
            name="<theirs>", bars=[Bar(value=1.0, text="100"), Bar(value=0.0, text="0")], colour=1, published=True
        ),
    ]
    chart = bar_chart(["a", "b"], series, label="x")
    svg = drawing(chart)

    def widths(style: str) -> list[float]:
        return [max(x for x, _ in path) - min(x for x, _ in path) for path in paths(svg, style)]

    (half,), (whole, nothing), (whisker,) = widths("fill: var(--c0)"), widths("stroke: var(--c1)"), widths("var(--ink)")
    assert whole == pytest.approx(2 * half, abs=0.2) and nothing == 0 and whisker == pytest.approx(half, abs=0.2)
    assert titles(svg) == ["ours: 1/2", "<theirs>: 100", "<theirs>: 0"]
    assert chart is not None and [entry.mark for entry in chart.legend] == ["dot", "dot hollow"]
    assert bar_chart(["a"], [], label="x") is None


def test_both_themes_colour_everything() -> None:
    css = files("lamp.view").joinpath("templates/report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    for variable in CSS_VARIABLES.values():
        assert f"{variable[4:-1]}: #" in light and f"{variable[4:-1]}: #" in dark
    points = [(1, 2.0), (3, 1.0)]
    lines = [Series(name=str(colour), points=points, colour=colour, marked=True) for colour in range(8)]
    bars = [BarSeries(name="a", bars=[Bar(value=0.5, interval=(0.2, 0.7))], colour=7, published=True)]
    charts = [
        line_chart(lines, x_label="x", y_label="y", label="lines"),
        interval_chart([Interval(name="x", value=0.5, low=0.2, high=0.8, text="")], label="rates"),
        bar_chart(["a"], bars, label="bars"),
    ]
    for chart in charts:
        assert chart is not None and not re.search(r"#[0-9a-f]{6}\b|font-family|black|white", chart.svg)


def test_names_are_text_and_no_markup_or_mathematics() -> None:
    name = '<script>alert(1)</script> & $x_1^{$ \\frac{ 拿起\n\x1b[31m \ud800 #2f6bdd style="fill: #2f6bdd"'
    shown = '<script>alert(1)</script> & $x_1^{$ \\frac{ 拿起 \ufffd[31m \ufffd #2f6bdd style="fill: #2f6bdd"'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = drawing(
            line_chart([Series(name=name, points=[(1, 1)], marked=True)], x_label=name, y_label=name, label=name)
        )
        bars = drawing(
            bar_chart([name], [BarSeries(name=name, bars=[Bar(value=1.0, text=name)], colour=0)], label=name)
        )
    assert texts(lines).count(shown) == 2 and titles(lines) == [f"{shown} at 1: 1"] and lines.get("aria-label") == shown
    assert titles(bars) == [f"{shown}: {shown}"] and shown[:63] + "…" in texts(bars) and shown in texts(bars)


def test_a_chart_is_the_same_wherever_it_is_drawn(tmp_path: Path) -> None:
    def svg() -> str:
        chart = line_chart([Series(name="a", points=[(1, 2.0), (3, 1.0)])], x_label="x", y_label="y", label="lines")
        assert chart is not None
        return chart.svg

    usual = svg()
    with matplotlib.rc_context(
        {"text.usetex": True, "savefig.bbox": "tight", "axes.facecolor": "red", "font.size": 30}
    ):
        assert svg() == usual
        assert matplotlib.rcParams["font.size"] == 30
    assert "2026" not in usual and "http" not in usual


def test_a_notebooks_backend_and_an_unwritable_home_do_not_matter(tmp_path: Path) -> None:
    """In a process of its own, since the backend is read when Matplotlib is imported."""
    nowhere = str(tmp_path / "file" / "below")
    (tmp_path / "file").touch()
    (tmp_path / "matplotlibrc").write_text("no such setting: 1\ntext.usetex: True\n")
    odd = {"MPLBACKEND": "module://no.such_backend", "MPLCONFIGDIR": nowhere, "MATPLOTLIBRC": str(tmp_path)}
    code = """if True:
        import os
        from lamp.view.charts import Series, line_chart
        line_chart([Series(name="a", points=[(1, 2.0)])], x_label="", y_label="", label="")
        print(os.environ["MPLBACKEND"])
    """
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | odd, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, odd["MPLBACKEND"], "")


def test_ids_are_unique_to_the_page() -> None:
    charts = [
        line_chart(
            [Series(name="a", points=[(0, 1), (1, y)], marked=True, smooth=True)], x_label="", y_label="", label="same"
        )
        for y in (2, 3)
    ]
    found = [[element.get("id") for element in drawing(chart).iter() if element.get("id")] for chart in charts]
    assert found[0] and not set(found[0]) & set(found[1])
    for chart, ids in zip(charts, found, strict=True):
        assert chart is not None and set(re.findall(r'(?:url\(|href=")#([\w-]+)', chart.svg)) == set(ids)


def test_nothing_to_draw_draws_nothing() -> None:
    empty = Series(name="a", points=[(1, float("nan")), (2, float("inf")), (3, 10**400), (4, -1e308)])
    assert line_chart([empty], x_label="", y_label="", label="") is None
    assert interval_chart([], label="") is None


@pytest.mark.parametrize("y", [0.0, 2.0, -3.0, 1e-320, 3e38, -3e38])
@pytest.mark.parametrize("log", [True, False])
def test_one_point_is_enough(y: float, log: bool) -> None:
    one = Series(name="a", points=[(0, y)], marked=True)
    assert len(list(drawing(line_chart([one], x_label="", y_label="", label="one", log=log)).iter("use"))) == 1


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.21, "3.2 s"), (59.4, "59 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
