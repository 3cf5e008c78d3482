"""The paper's figures from a run's own episodes and trials."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from view_fakes import make_run

from lamp.benchmark.trials import ScoreConfig, score
from lamp.view.page import render_section
from lamp.view.paper_figures import ablations, departures, robot, to_json
from lamp.view.report import ReportConfig, report
from lamp.view.results import RunResults, load_results

MODELS = {
    "ours": {"flow": "SpatialFlow", "fusion": "GuidanceConfig"},
    "flat": {"flow": "ImageFlow", "fusion": "GuidanceConfig"},
    "bare": {"flow": None, "fusion": None},
    "added": {"flow": "SpatialFlow", "fusion": "AddFusion"},
}
WINS = {"ours": 18, "flat": 12, "bare": 6, "added": 3, "zero": 0}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = make_run(tmp_path_factory.mktemp("run"), films=0)
    return json.loads((run / "evaluation" / "episodes.jsonl").read_text().splitlines()[0])


def evaluated(
    folder: Path, template: dict[str, Any], suite: str, conditions: dict[str, Any], **changes: Any
) -> RunResults:
    """Four tasks of 24 episodes: a condition wins WINS of each at the last step, and always at some step."""
    lines = [
        {**template, "suite": suite, "condition": name, "task": task, "state": state, "placement_shift": 0.0, "video": None,
         "success": True, "success_last": state < WINS[name], **changes}
        for name in (*conditions, "zero") for task in range(4) for state in range(24)
    ]  # fmt: skip
    folder.mkdir()
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {
        "format": "lamp-evaluation",
        "version": 1,
        "config": {},
        "planned": len(lines),
        "facts": {"models": conditions},
    }
    (folder / "run.json").write_text(json.dumps(manifest))
    return load_results(motions={}, policies={}, evaluations=[folder], flows={}, data=None)


def charts(found: RunResults) -> list[ElementTree.Element]:
    section = ablations(found)
    assert section is not None
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", render_section(section))]


def shares(chart: ElementTree.Element, kind: str) -> list[str]:
    """What is written beside the bars of a kind: what they say when pointed at, from top to bottom in each group."""
    bars = []
    for group in chart.iter("g"):
        title, shape = group.find("title"), group.find("path")
        if title is not None and shape is not None:
            height = float(re.findall(r"[ML] \S+ (\S+)", shape.get("d", ""))[0])
            hollow = "fill: none" in shape.get("style", "")
            bars.append((height, hollow, (title.text or "").rpartition(": ")[2]))
    written = {text.text for text in chart.iter("text")}
    assert all(said in written for _, _, said in bars)
    return [said for _, hollow, said in sorted(bars) if hollow == (kind == "paper")]


def test_priors_and_fusions_stand_beside_the_published(tmp_path: Path, template: dict[str, Any]) -> None:
    priors, fusion = charts(evaluated(tmp_path / "run", template, "simpler_widowx", MODELS))
    ours = shares(priors, "ours")
    assert ours[:3] == ["18/24 · 75.0%", "12/24 · 50.0%", "6/24 · 25.0%"] and ours[-3:] == [
        "72/96 · 75.0%",
        "48/96 · 50.0%",
        "24/96 · 25.0%",
    ]
    # The text names three tasks of the 2-D variant, and no average.
    published = [75.0, 58.3, 25.0, 66.7, 45.8, 79.1, 70.8, 66.7, 95.8, 91.7, 87.5, 79.2, 56.3]
    assert [float(text) for text in shares(priors, "paper")] == published
    assert shares(fusion, "ours")[-2:] == ["72/96 · 75.0%", "12/96 · 12.5%"]
    assert "not given" in "".join(fusion.itertext())


def test_other_tasks_have_figures_of_their_own_and_no_published_bars(tmp_path: Path, template: dict[str, Any]) -> None:
    found = evaluated(tmp_path / "run", template, "libero_object", MODELS)
    for chart in charts(found):
        assert shares(chart, "paper") == []
        assert {text.split(" ")[0] for text in shares(chart, "ours")} == {"24/24", "96/96"}  # at any step
    assert [row["fusion"] for row in to_json(found)["ablations"]] == [
        "GuidanceConfig",
        "GuidanceConfig",
        None,
        "AddFusion",
    ]


def test_one_kind_of_policy_is_no_ablation(tmp_path: Path, template: dict[str, Any]) -> None:
    assert ablations(evaluated(tmp_path / "run", template, "simpler_widowx", {"ours": MODELS["ours"]})) is None
    perturbed = {"variation": {"benchmark": "plus-style", "perturbation": "camera=1"}}
    assert ablations(evaluated(tmp_path / "plus", template, "libero_goal", MODELS, **perturbed)) is None


def test_stand_ins_are_said_to_be_none(tmp_path: Path, template: dict[str, Any]) -> None:
    section = ablations(evaluated(tmp_path / "run", template, "simpler_widowx_stand_ins", MODELS))
    assert section is not None and "not comparable with the published numbers" in render_section(section)


def test_trials_on_a_robot_stand_beside_the_published(tmp_path: Path) -> None:
    for stages in (2, 1):
        score(ScoreConfig(out=tmp_path, method="ours", task="stack_cup", stages=stages))
    score(ScoreConfig(out=tmp_path, method="ours", task="fold_towel", stages=1, setting="unseen_object"))
    page = report(ReportConfig(run=(tmp_path,))).read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    assert "75.0 · 2 trials" in text and "25.0 · 1 trial " in text and "no trial" in text
    assert "2 of 10 trials of stack cup, in domain. Not the published protocol." in text
    assert all(value in text for value in ("53.0", "26.8", "62.5", "80.0"))
    found = load_results(motions={}, policies={}, evaluations=(), flows={}, data=None, trials=[tmp_path])
    assert robot(found) is not None and len(departures(found.trials)) == 2
    assert departures(found.trials[:1] * 10) == []
