from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from view_fakes import make_run

from lamp.errors import DataError
from lamp.files import append_line
from lamp.view.evidence import Curves, gather, spans
from lamp.view.report import ReportConfig, ReportInputs, discover, render, report

VOID = {"meta", "img", "br", "hr", "input", "line", "polyline", "rect"}


class Balance(HTMLParser):
    """Checks that every element is closed, in order, and collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "poster")]
        self.links += [values["href"] or ""] if tag == "a" else []
        self.anchors.add(values.get("id") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return report(ReportConfig(run=run)).read_text()


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


def test_the_page_is_self_contained_and_well_formed(page: str) -> None:
    parsed = Balance()
    parsed.feed(page)
    assert not parsed.open
    assert parsed.sources and all(source.startswith("data:") for source in parsed.sources)
    assert all(link[0] == "#" and link[1:] in parsed.anchors for link in parsed.links)
    assert not re.search(r"https?://|@import|url\((?!#)|<script", page)


def test_the_page_holds_what_the_run_found(page: str, run: Path) -> None:
    text = text_of(page)
    evidence = gather(motion=None, policies={}, evaluations=[run / "evaluation"], flow=None, data=None)
    row = evidence.row("with_motion")
    assert row is not None and f"{row.total.successes} of 20" in text
    for said in (
        "McNemar exact p",
        "wrong instruction",
        "2 min 03 s",
        "18.20 px",
        "constant velocity",
        "4,211",
        "mean of 4",
    ):
        assert said in text, said
    assert "displaced by up to 2 cm" in text and "states 30-39" in text
    assert page.count("<video") == 2 and page.count("data:video/mp4;base64,") == 2
    assert "prefers-color-scheme: dark" in page


def test_nothing_is_said_to_be_missing_where_all_is_there(page: str) -> None:
    assert 'class="absent"' not in page


def test_absent_parts_are_skipped_and_said() -> None:
    page = render(ReportInputs(title="nothing but a name"))
    parsed = Balance()
    parsed.feed(page)
    assert not parsed.open and page.count('class="absent"') >= 7
    assert "This run has no evaluated episodes." in page


def test_a_training_alone_can_be_reported(run: Path, tmp_path: Path) -> None:
    out = report(ReportConfig(run=run / "motion", out=tmp_path / "motion.html"))
    text = text_of(out.read_text())
    assert "Held-out paths of moving points" in text and "This run has no evaluated episodes." in text


def test_an_evaluation_alone_can_be_reported_and_says_when_unfinished(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    for line in (run / "evaluation" / "episodes.jsonl").read_text().splitlines()[:-3]:
        append_line(folder / "episodes.jsonl", line)
    text = text_of(report(ReportConfig(run=folder)).read_text())
    assert "only 97 of 100 planned episodes are done" in text
    assert "No episode of this run was filmed." in text  # the lines name films, but their files are not here


def test_text_of_the_run_cannot_break_the_page(tmp_path: Path) -> None:
    page = render(
        ReportInputs(title="<script>alert(1)</script>", notes=("a < b & c",), configuration={"<x>": "</pre>"})
    )
    assert "<script" not in page and "a &lt; b &amp; c" in page and "&lt;/pre&gt;" in page


def test_the_parts_of_a_demo_are_found(run: Path) -> None:
    inputs = discover(run)
    assert list(inputs.policies) == ["with_motion", "without_motion"]
    assert inputs.motion == run / "motion" / "metrics.jsonl" and inputs.flow == run / "motion" / "flow.json"
    assert inputs.evaluations == (run / "evaluation",) and inputs.data == run / "data"
    assert inputs.pictures[0].caption.startswith("Predicted (left)")


def test_folders_with_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to report"):
        report(ReportConfig(run=tmp_path))
    with pytest.raises(DataError, match="no folder"):
        report(ReportConfig(run=tmp_path / "none"))


def test_spans_of_numbers() -> None:
    assert spans([0, 1, 2, 5, 30, 31]) == "0-2, 5, 30-31"


def test_losses_are_drawn_apart_by_axis_flow_time_and_action_dimension(page: str) -> None:
    for label in ("motion loss by axis", "motion loss by flow time", "loss by dimension", "error of held-out actions"):
        assert f'aria-label="{label}"' in page
    assert page.count("policy gradient norm") == 1
    assert all(name in text_of(page) for name in ("du, across", "0.5-1.0", "gripper"))


def test_losses_by_axis_of_older_runs_are_drawn_too() -> None:
    older = Curves(lines=[{"kind": "train", "step": 1, "per_axis": [1.0, 2.0, 3.0]}, {"kind": "train", "step": 2}])
    assert older.values("train", "per_axis", 2) == [(1.0, 3.0)] and older.entries("train", "per_axis") == []
    named = Curves(
        lines=[{"kind": "train", "step": 1, "per_axis": {"u": 1.0}}, {"kind": "train", "step": 2, "per_axis": {}}]
    )
    assert named.values("train", "per_axis", "u") == [(1.0, 1.0)] and named.entries("train", "per_axis") == ["u"]
