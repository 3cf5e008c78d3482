from __future__ import annotations

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from view_fakes import make_run

from lamp.data.episode_selection import number_ranges
from lamp.errors import DataError
from lamp.json_files import append_line
from lamp.view.page import render_section
from lamp.view.paper_tables import libero_rows, paper_tables, plus_rows, read_published, widowx_rows
from lamp.view.report import ReportConfig, ReportInputs, discover, render, report, together
from lamp.view.results import PARTS, Curves, RunResults, load_results
from lamp_client.envs.libero_plus.names import SIZES

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
    return report(ReportConfig(run=(run,))).read_text()


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
    evidence = load_results(motions={}, policies={}, evaluations=[run / "evaluation"], flows={}, data=None)
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


def sections(page: str) -> list[str]:
    """The anchors of the page's sections, in order."""
    return re.findall(r'<section id="(\w+)">', page)


def test_what_a_run_lacks_has_no_section(page: str) -> None:
    parsed = Balance()
    empty = render(ReportInputs(title="nothing but a name"))
    parsed.feed(empty)
    assert not parsed.open and sections(empty) == ["verdict"]
    assert "nothing was evaluated" in text_of(empty)
    assert sections(page)[:3] == ["verdict", "episodes", "success"] and sections(page)[-1] == "glossary"


def test_a_training_alone_can_be_reported(run: Path, tmp_path: Path) -> None:
    out = report(ReportConfig(run=(run / "motion",), out=tmp_path / "motion.html"))
    page = out.read_text()
    assert "Held-out paths of moving points" in text_of(page) and "nothing was evaluated" in text_of(page)
    assert sections(page) == ["verdict", "motion", "notes", "glossary"]


def test_the_verdict_says_what_can_and_what_cannot_be_concluded(page: str) -> None:
    can, cannot = (text_of(part) for part in page.split("They do not show")[:2])
    cannot = cannot.split("Episodes ")[0]
    assert "the policy with motion succeeds in" in can and "with 95% confidence" in can
    assert "It does better than doing nothing" in can
    assert "The motion prior foresees motion: its paths of moving points err by 15.70 px"[:55] in can
    assert "Anything about other tasks than these 2 of libero_object" in cannot
    assert "each policy was trained once" in cannot


@pytest.mark.parametrize(("wins", "shown"), [((9, 1), True), ((6, 5), False)])
def test_a_difference_is_called_one_only_where_the_episodes_show_it(
    run: Path, tmp_path: Path, wins: tuple[int, int], shown: bool
) -> None:
    given = [json.loads(line) for line in (run / "evaluation" / "episodes.jsonl").read_text().splitlines()]
    (tmp_path / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    for condition, won in zip(("with_motion", "without_motion"), wins, strict=True):
        for line in [line for line in given if line["condition"] == condition and line["task"] == 0]:
            append_line(
                tmp_path / "episodes.jsonl", json.dumps({**line, "success": line["state"] - 30 < won, "video": None})
            )
    text = text_of(report(ReportConfig(run=(tmp_path,))).read_text())
    assert ("These two trained policies differ" in text) is shown
    assert ("That the motion prior helps, or that it does not: +10 points on the same 10 episodes" in text) is not shown
    assert ("which would show a difference of about 40 points or more" in text) is not shown


def test_one_film_of_a_success_and_one_of_a_failure_come_first(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    shutil.copytree(run / "evaluation", folder)
    (folder / "episodes.jsonl").unlink()
    given = [json.loads(line) for line in (run / "evaluation" / "episodes.jsonl").read_text().splitlines()]
    filmed = [line for line in given if line["video"]]
    video = (folder / filmed[0]["video"]).read_bytes()
    for state in range(4):
        name = f"videos/{state}.mp4"
        (folder / name).write_bytes(video)
        append_line(
            folder / "episodes.jsonl", json.dumps({**filmed[0], "state": state, "success": state < 3, "video": name})
        )
    page = report(ReportConfig(run=(folder,))).read_text()
    assert re.findall(r"badge (good|bad)", page)[:4] == ["good", "bad", "good", "good"]


def test_failures_are_told_apart_by_what_the_objects_did(run: Path, tmp_path: Path) -> None:
    given = [json.loads(line) for line in (run / "evaluation" / "episodes.jsonl").read_text().splitlines()]
    template = {**next(line for line in given if line["condition"] == "with_motion"), "success": False, "video": None}
    told = {
        "lifted it, and did not bring it there": {"soup_1": [0.2, 0.1], "milk_1": [0.0, 0.0]},
        "lifted another object": {"milk_1": [0.2, 0.1]},
        "moved it, and did not lift it": {"soup_1": [0.05, 0.0]},
        "moved another object": {"milk_1": [0.03, 0.01]},
        "touched nothing": {},
    }
    (tmp_path / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    for state, moved in enumerate(told.values()):
        facts = {"moved": moved, "targets": ["soup_1", "basket_1"]}
        append_line(
            tmp_path / "episodes.jsonl", json.dumps({**template, "state": state, "extra": {"simulator": facts}})
        )
    page = report(ReportConfig(run=(tmp_path,))).read_text()
    rows = re.findall(r"<td>([^<]+)</td><td>(\d+)</td></tr>", page[page.index('<section id="failures">') :])
    assert {name: int(count) for name, count in rows[:6]} == {**dict.fromkeys(told, 1), "all failures": 5}
    assert "failures" not in sections(report(ReportConfig(run=(run,), out=tmp_path / "old.html")).read_text())


def test_colours_keep_their_meaning(page: str, run: Path) -> None:
    results = load_results(
        motions={}, policies=discover(run).policies, evaluations=[run / "evaluation"], flows={}, data=None
    )
    named = {name: results.colour(name) for name in ("with_motion", "without_motion", "zero", "wrong_instruction")}
    assert named["with_motion"] == 0 and named["without_motion"] == 1 and named["zero"] == 7
    assert {0, 1}.isdisjoint(PARTS)
    # Two that have no colour of their own differ, and each is the same wherever it is drawn.
    other = RunResults(
        motions={}, policies={"a": Curves(lines=[]), "b": Curves(lines=[])}, folders=(), records=(), planned=(), models=(),
        flows={}, data={},
    )  # fmt: skip
    assert other.colour("a") != other.colour("b") and other.colour("a") == other.colour("a")


def test_an_unfinished_run_says_so_first_and_how_it_goes_on(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    (out / "seconds.json").write_text('{"collect": 1.0, "train_policy": 2.0}')
    (out / "experiment.json").write_text('{"command": "lamp demo --out x", "recipe": "demo", "quick": false}')
    (out / "policy_with" / "lamp.json").write_text('{"stage": "policy", "training": {"loop": {"steps": 1000000}}}')
    page = report(ReportConfig(run=(out,))).read_text()
    head = text_of(page.split("</header>")[0])
    assert "UNFINISHED: the experiment has come to the stage train policy; with motion: step" in head
    assert "of 1,000,000. `lamp demo --out x` goes on." in head
    assert "<pre>lamp demo --out x</pre>" in page
    assert "UNFINISHED" not in report(ReportConfig(run=(run,), out=tmp_path / "done.html")).read_text()


def test_an_evaluation_alone_can_be_reported_and_says_when_unfinished(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    for line in (run / "evaluation" / "episodes.jsonl").read_text().splitlines()[:-3]:
        append_line(folder / "episodes.jsonl", line)
    text = text_of(report(ReportConfig(run=(folder,))).read_text())
    assert "UNFINISHED" in text and "97 of 100 planned episodes are done" in text
    assert "filmed episodes" not in text  # the lines name films, but their files are not here


def test_text_of_the_run_cannot_break_the_page(tmp_path: Path) -> None:
    page = render(
        ReportInputs(title="<script>alert(1)</script>", notes=("a < b & c",), configuration={"<x>": "</pre>"})
    )
    assert "<script" not in page and "a &lt; b &amp; c" in page and "&lt;/pre&gt;" in page


def test_text_of_the_episodes_cannot_break_the_page(run: Path, tmp_path: Path) -> None:
    hostile = "</script></pre><script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7 * 7 }} {% raw %} $x_{ \x00\ud800 拿"
    given = (run / "evaluation" / "episodes.jsonl").read_text().splitlines()
    folder = tmp_path / "<b>run"
    shutil.copytree(run / "evaluation" / "videos", folder / "videos")
    record = {
        **json.loads(given[0]),
        "instruction": hostile,
        "suite": hostile,
        "code": hostile,
        "packages": {hostile: hostile},
    }
    for success in (True, False):
        append_line(
            folder / "episodes.jsonl",
            json.dumps({**record, "condition": "with_motion", "success": success, "task": int(success)}),
        )
        append_line(
            folder / "episodes.jsonl",
            json.dumps({**record, "condition": hostile, "success": success, "task": int(success)}),
        )
    manifest = json.loads((run / "evaluation" / "run.json").read_text())
    models = {hostile: {"flow": hostile, "fusion": hostile}, "with_motion": {"flow": None, "fusion": None}}
    (folder / "run.json").write_text(
        json.dumps({**manifest, "config": {hostile: hostile}, "facts": {"models": models}})
    )
    page = report(ReportConfig(run=(folder,))).read_bytes().decode()
    parsed = Balance()
    parsed.feed(page)
    assert not parsed.open and all(source.startswith("data:") for source in parsed.sources)
    assert "<script" not in page and "<b>run" not in page and "\x00" not in page
    assert (
        html.unescape(page).count("{{ 7 * 7 }} {% raw %} $x_{ \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} 拿")
        > 10
    )


def test_the_parts_of_a_demo_are_found(run: Path) -> None:
    inputs = discover(run)
    assert list(inputs.policies) == ["with_motion", "without_motion"]
    assert inputs.motions == {"motion": run / "motion" / "metrics.jsonl"}
    assert inputs.flows == {"motion": run / "motion" / "flow.json"}
    assert inputs.evaluations == (run / "evaluation",) and inputs.data == run / "data"
    assert inputs.pictures[0].caption.startswith("Predicted (left)")


def test_folders_with_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to report"):
        report(ReportConfig(run=(tmp_path,)))
    with pytest.raises(DataError, match="no folder"):
        report(ReportConfig(run=(tmp_path / "none",)))


def test_a_damaged_picture_is_named(run: Path, tmp_path: Path) -> None:
    whole = (run / "pictures" / "foresight-1.png").read_bytes()
    picture = tmp_path / "pictures" / "a.png"
    picture.parent.mkdir()
    for damaged in (b"", b"no picture", whole[: len(whole) // 2], whole[:40] + bytes(40) + whole[80:]):
        picture.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.png is not a readable picture"):
            report(ReportConfig(run=(tmp_path,)))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "file",
    [
        "summary.json",
        "evaluation/run.json",
        "evaluation/episodes.jsonl",
        "motion/metrics.jsonl",
        "motion/flow.json",
        "data/meta/lamp_episodes.jsonl",
    ],
)
@pytest.mark.parametrize(
    "content",
    ["[1]", '"text"', '{"seconds": {"a": "x"}, "moving": {"a": {"ade_px": []}}, "planned": "many", "length": "x"}'],
)
def test_a_file_of_another_shape_is_named(run: Path, tmp_path: Path, file: str, content: str) -> None:
    for path in run.rglob("*.json*"):
        (tmp_path / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(run))
    (tmp_path / file).write_text(content + "\n")
    with pytest.raises(DataError, match=r"expected|is missing|is not a JSON object|is not the manifest") as caught:
        report(ReportConfig(run=(tmp_path,)))
    assert Path(file).name in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_spans_of_numbers() -> None:
    assert number_ranges([0, 1, 2, 5, 30, 31]) == "0-2, 5, 30-31"


def test_interventions_and_flow_errors_have_a_section(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    given = [json.loads(line) for line in (run / "evaluation" / "episodes.jsonl").read_text().splitlines()]
    for number, line in enumerate(line for line in given if line["condition"] == "with_motion"):
        measured = {
            "queries": 9,
            "points": 80,
            "ade_px": 8.0 if line["success"] else 20.0 + number,
            "zero_motion_ade_px": 16.0,
        }
        changed = [{**line, "condition": name, "success": line["success"] and n % 2 == 0} for n, name in enumerate(
            ("gate=0", "gate=0.5", "gate=1", "prior_zeroed")
        )]  # fmt: skip
        for one in ({**line, "extra": {"flow": measured}}, *changed):
            append_line(folder / "episodes.jsonl", json.dumps(one))
    page = report(ReportConfig(run=(folder,))).read_text()
    parsed, text = Balance(), text_of(page)
    parsed.feed(page)
    assert not parsed.open and "prior" in parsed.anchors
    for said in (
        "Is the motion prior used?",
        "with motion minus it",
        "Success against opening of the gate",
        "rank-sum p",
    ):
        assert said in text, said
    assert "with motion: successes" in text and "0.50" in text  # 8 px of 16
    assert "Success against Euler steps" not in text
    assert text.index("gate=0 ") < text.index("gate=0.5 ") < text.index("gate=1 ")


def test_runs_without_interventions_have_no_such_section(page: str) -> None:
    assert "Is the motion prior used?" not in page


def test_two_evaluations_are_compared_on_the_scenes_that_both_met(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    for line in (run / "evaluation" / "episodes.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["state"] < 35:
            append_line(other / "episodes.jsonl", json.dumps({**record, "success": False}))
    out = report(ReportConfig(run=(run, other), out=tmp_path / "both.html", json=tmp_path / "both.json"))
    text, found = text_of(out.read_text()), json.loads((tmp_path / "both.json").read_text())
    same = f"{run.name}/evaluation: with motion against {tmp_path.name}/other: with motion on the same 10 episodes"
    assert same.replace("_", " ") in text
    assert len(found["between"]) == 2 and len(found["tables"]) == 2
    assert found["folders"] == [str(run / "evaluation"), str(other)]


def test_other_placements_are_other_scenes(run: Path, tmp_path: Path) -> None:
    """The same seed displaces objects elsewhere where another displacement is asked for."""
    moved = copied(run, tmp_path / "moved", placement={"soup_1": [0.04, -0.08]}, placement_shift=0.08)
    text = text_of(report(ReportConfig(run=(run, moved), out=tmp_path / "both.html")).read_text())
    assert "Between runs" not in text


def copied(run: Path, folder: Path, **changes) -> Path:
    folder.mkdir()
    (folder / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    for line in (run / "evaluation" / "episodes.jsonl").read_text().splitlines():
        append_line(folder / "episodes.jsonl", json.dumps({**json.loads(line), **changes}))
    return folder


def test_published_numbers_stand_beside_ours_with_what_departs(page: str, run: Path, tmp_path: Path) -> None:
    assert "Beside the paper" not in page  # objects were displaced
    standard = copied(run, tmp_path / "standard", placement_shift=0.0)
    text = text_of(report(ReportConfig(run=(standard,))).read_text())
    assert "Beside the paper" in text and "LaMP without motion (paper)" in text
    assert "2 of 10 tasks, 20 initial states, 20 episodes; fast rendering. Not the published protocol." in text
    published = read_published()
    # Averages as printed; the paper's own rounding is half a unit of its last digit, and it truncates some.
    for name in ("libero", "widowx"):
        row = published[name].rows["LaMP"]
        assert abs(sum(value or 0 for value in row[:-1]) / 4 - (row[-1] or 0)) < 0.1
    for table in published.values():
        assert all(len(row) == len(table.columns) for row in table.rows.values())


def test_a_full_run_departs_from_nothing_and_has_an_average(tmp_path: Path, run: Path) -> None:
    template = json.loads((run / "evaluation" / "episodes.jsonl").read_text().splitlines()[0])
    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    lines = [
        {**template, "suite": suite, "task": task, "state": state, "render": "exact", "placement_shift": 0.0,
         "success": state < 25 + 5 * number, "video": None}
        for number, suite in enumerate(suites) for task in range(10) for state in range(50)
    ]  # fmt: skip
    (tmp_path / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = libero_rows(load_results(motions={}, policies={}, evaluations=[tmp_path], flows={}, data=None))
    assert row.departs == () and row.average == pytest.approx((50 + 60 + 70 + 80) / 4)


def test_libero_plus_has_both_averages_beside_the_paper_and_plus_style_has_none(tmp_path: Path, run: Path) -> None:
    template = json.loads((run / "evaluation" / "episodes.jsonl").read_text().splitlines()[0])
    template |= {"condition": "with_motion", "render": "exact", "placement_shift": 0.0, "video": None, "state": 0}
    suites = ("libero_plus_spatial", "libero_plus_object")
    lines, wins = [], dict(zip(SIZES, (800, 0, 1537, 571, 1076, 1601, 305), strict=True))
    for category, size in SIZES.items():
        varied = {"benchmark": "LIBERO-Plus", "category": category, "level": 1}
        lines += [
            {**template, "suite": suites[len(lines) % 2], "task": len(lines) + index, "success": index < wins[category],
             "variation": varied} for index in range(size)
        ]  # fmt: skip
    style = {"benchmark": "plus-style", "perturbation": "camera=1", "category": "camera", "level": 1}
    lines.append({**template, "suite": "libero_goal plus-style camera=1", "success": False, "variation": style})
    (tmp_path / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = load_results(motions={}, policies={}, evaluations=[tmp_path], flows={}, data=None)
    (row,) = plus_rows(found)
    assert row.departs == () and libero_rows(found) == []
    assert row.average == pytest.approx(100 * sum(wins.values()) / 10_030)
    assert row.mean == pytest.approx(100 * sum(wins[name] / size for name, size in SIZES.items()) / 7)
    page = text_of(render_tables(found))
    assert "Average over tasks" in page and "over dimensions" in page and "plus-style" not in page
    # The paper's own row: its Average is over tasks; over the seven dimensions it is another.
    assert " 79.3 " in page and " 80.8 " in page


def render_tables(found: RunResults) -> str:
    section = paper_tables(found)
    assert section is not None
    return render_section(section)


def test_simplerenv_is_read_at_the_last_step_and_at_any(tmp_path: Path, run: Path) -> None:
    template = json.loads((run / "evaluation" / "episodes.jsonl").read_text().splitlines()[0])

    def rows(suite: str, **changes: object):
        lines = [
            {**template, "suite": suite, "condition": condition, "task": task, "state": state, "placement_shift": 0.0,
             "success": state < 18, "success_last": state < 6 * task, "steps": 120 if task == 3 else 60, "video": None, **changes}
            for condition in ("with_motion", "expert") for task in range(4) for state in range(24)
        ]  # fmt: skip
        (tmp_path / "run.json").write_bytes((run / "evaluation" / "run.json").read_bytes())
        (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return widowx_rows(load_results(motions={}, policies={}, evaluations=[tmp_path], flows={}, data=None))

    last, latched = rows("simpler_widowx")
    assert last.departs == latched.departs == ()
    assert last.average == pytest.approx((0 + 25 + 50 + 75) / 4) and latched.average == 75.0
    assert last.name.endswith("at the last step") and latched.name.endswith("at any step")
    (first, _) = rows("simpler_widowx_stand_ins", steps=120)
    assert first.departs == ("another number of actions", "files of the scenes are not the original ones")
    text = text_of(report(ReportConfig(run=(tmp_path,))).read_text())
    assert "files of the scenes are not the original ones. Not the published protocol." in text
    assert rows("libero_object") == []


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


def test_runs_are_told_apart_by_what_they_say_of_themselves(root: Path, tmp_path: Path) -> None:
    """Whatever their folders are called, and with other trainings beside them."""
    found = discover(root)
    assert set(found.motions) == {"motion"} and set(found.policies) == {"guided", "plain"}
    assert found.flows == {"motion": root / "motion" / "flow.json"}
    for run, stage in (("motion", "motions"), ("guided", "policies"), ("plain", "policies")):
        other = tmp_path / {"motion": "policy_old", "guided": "motion_guided", "plain": "prior_motion"}[run]
        shutil.copytree(root / run, other)
        alone = discover(other)
        assert [*getattr(alone, stage)] == [other.name] and len(alone.motions) + len(alone.policies) == 1
        (other / "lamp.json").unlink()
        assert getattr(discover(other), stage), "its checkpoint says so too"
    assert set(discover(tmp_path).motions) == {"policy_old"}
    assert set(discover(tmp_path).policies) == {"motion_guided", "prior_motion"}


def test_no_run_of_several_is_dropped(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    for run in ("motion", "guided"):
        shutil.copytree(root / run, again / run)
    folders = (root / "motion", root / "guided", root / "plain", again / "motion", again / "guided", root / "plain")
    parts = together([(folder, discover(folder)) for folder in dict.fromkeys(folders)])
    assert len(parts.motions) == 2 and len(parts.policies) == 3 and len(parts.flows) == 2
    assert (
        f"{root.name}/motion/motion" in parts.motions
        and "again/motion/motion" in parts.motions
        and "plain" in parts.policies
    )
    out = report(ReportConfig(run=folders, out=tmp_path / "report.html"))
    text = text_of(out.read_text())
    assert "again/guided" in text and "plain" in text and text.count("Error of predicted paths:") == 2
    nested = discover(tmp_path)  # and where one folder holds them all
    assert set(nested.motions) == {"motion"} and set(nested.policies) == {"guided"}
    shutil.copytree(again, tmp_path / "third")
    assert set(discover(tmp_path).motions) == {"again/motion", "third/motion"}
