"""LIBERO-Plus in an evaluation: which tasks are chosen, what is said of those that cannot run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from plus_fakes import NAMES, classify, make_copy

from lamp import cli
from lamp.benchmark.libero_plus import PlusConfig, PlusSimulators, choose, listing, listing_text
from lamp.errors import ConfigError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return make_copy(tmp_path / "copy")


def config(copy: Path, **settings: Any) -> PlusConfig:
    return PlusConfig(plus_root=copy, controls=("zero",), **settings)


def chosen(copy: Path, **settings: Any) -> list[tuple[str, int]]:
    return [(task.suite.removeprefix("libero_"), task.id) for task in choose(config(copy, **settings)).tasks]


def test_any_subset_can_be_chosen(copy: Path) -> None:
    everything = [
        ("spatial", 1),
        ("spatial", 2),
        ("object", 1),
        ("object", 2),
        *(("goal", i) for i in range(1, 5)),
        ("10", 1),
        ("10", 2),
    ]
    assert chosen(copy) == everything and len(everything) == sum(map(len, NAMES.values()))
    assert chosen(copy, category=("robot", "camera")) == [("object", 2), ("goal", 4), ("10", 1)]
    assert chosen(copy, suite=("libero_goal",), ids=("2:4", "1")) == [("goal", 1), ("goal", 2), ("goal", 3)]
    assert chosen(copy, every=4) == [("spatial", 1), ("goal", 1), ("10", 1)]


def test_difficulty_levels_come_from_the_classification(tmp_path: Path) -> None:
    classify(make_copy(tmp_path), **{"3": "Light Conditions"})
    assert chosen(tmp_path, category=("light",), level=(3,)) == [("spatial", 1)]
    assert len(chosen(tmp_path, level=(3,))) == 10
    with pytest.raises(ConfigError, match="no task of LIBERO-Plus is in all of"):
        chosen(tmp_path, level=(4,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": (2,)}, r"--level needs .*task_classification\.json"),
        ({"ids": ("0",)}, "id '0': expected a number from 1"),
        ({"ids": ("3:x",)}, "id '3:x': expected"),
        ({"ids": ("9",)}, "no task of LIBERO-Plus is in all of"),
    ],
)
def test_what_does_not_exist_is_named(copy: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(config(copy, **settings))


def test_levels_are_one_to_five(tmp_path: Path) -> None:
    classify(make_copy(tmp_path))
    with pytest.raises(ConfigError, match="unknown difficulty level '6'"):
        choose(config(tmp_path, level=(6,)))


def test_controls_of_libero_itself_are_refused(copy: Path) -> None:
    with pytest.raises(
        ConfigError, match="replay, wrong_instruction: controls of LIBERO itself; expected expert, zero or blank"
    ):
        PlusConfig(plus_root=copy, controls=("wrong_instruction", "replay"), checkpoint=Path("x"))
    with pytest.raises(
        ConfigError, match="prior_told_wrong, prior_shuffled: another task of LIBERO-Plus may have the same goal"
    ):
        PlusConfig(plus_root=copy, checkpoint=Path("x"), intervene=("all",))
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        PlusConfig(plus_root=copy)


def test_missing_assets_stop_a_run_before_it_starts(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"3 of 10 tasks need assets .*\(light 1, background 1, layout 1\).*lit_415\.xml"
    ):
        config(copy).evaluation_plan()
    with pytest.raises(ConfigError, match="none of the 1 chosen tasks can run"):
        config(copy, category=("light",), leave_out_missing=True).evaluation_plan()
    evaluation_plan = config(copy, leave_out_missing=True).evaluation_plan()
    suites = {suite_plan.simulators.suite: suite_plan.tasks for suite_plan in evaluation_plan.suites}
    assert suites == {
        "libero_plus_spatial": (1,),
        "libero_plus_object": (1,),
        "libero_plus_goal": (1, 2, 3),
        "libero_plus_10": (0, 1),
    }
    assert all(suite_plan.states == (0,) and suite_plan.repeats == 1 for suite_plan in evaluation_plan.suites)
    assert evaluation_plan.facts["left_out_for_missing_assets"] == {"light": 1, "background": 1, "layout": 1}
    assert evaluation_plan.facts["categories_from"] == "file names"
    # The archive arrives: the same command goes on in the same folder, with the rest.
    for name in (
        "scenes/lights/lit_415.xml",
        "textures/gray.png",
        "textures/plain.png",
        "textures/cork copy.png",
        "scenes/base.xml",
    ):
        path = tmp_path / "assets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    later = config(copy, plus_assets=tmp_path / "assets", leave_out_missing=True).evaluation_plan()
    assert later.settings == evaluation_plan.settings and later.facts["left_out_for_missing_assets"] == {"layout": 1}
    assert config(copy, every=2, leave_out_missing=True).evaluation_plan().settings != evaluation_plan.settings


def test_prompts_are_cleaned_unless_raw_ones_are_asked_for(copy: Path) -> None:
    root, assets = copy / "liberoplus/liberoplus", copy / "liberoplus/liberoplus/assets"
    cleaned = PlusSimulators(root=root, assets=assets, standard="libero_goal")
    assert cleaned.instructions() == (*["turn on the stove"] * 2, "please ignite the stove", "turn on the stove")
    raw = PlusSimulators(root=root, assets=assets, standard="libero_goal", prompts="raw")
    assert raw.instructions()[0] == "turn on the stove add 5" and raw.instructions()[2] == cleaned.instructions()[2]
    assert pickle.loads(pickle.dumps(raw)) == raw and raw.suite == "libero_plus_goal"


def test_the_list_says_what_is_there_and_what_is_missing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "libero_plus", "--plus-root", str(copy), "--list"]) == 0
    shown = capsys.readouterr().out
    assert "categories from file names" in shown and "7 of 10 tasks can run" in shown
    assert "no difficulty levels" in shown and "scenes/lights/lit_415.xml" in shown
    assert [line.split() for line in shown.splitlines() if line.split()[:1] == ["layout"]] == [
        ["layout", "3", "1", "1"]
    ]

    assert cli.main(["evaluate", "libero_plus", "--plus-root", str(copy), "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["categories from"] == "file names" and found["can run"] == 7
    assert [(task["suite"], task["id"]) for task in found["cannot run"]] == [
        ("libero_spatial", 1), ("libero_object", 1), ("libero_goal", 1),
    ]  # fmt: skip
    assert all(task["missing"] for task in found["cannot run"])


def test_levels_are_listed_where_they_are_known(tmp_path: Path) -> None:
    classify(make_copy(tmp_path), **{"3": "Light Conditions"})
    found = listing(PlusConfig(plus_root=tmp_path, list=True))
    assert found["categories from"] == "task_classification.json"
    assert found["categories"][0] == {
        "category": "light", "tasks": 1, "levels": {"3": 1}, "cannot run": 1, "missing files": 3,
    }  # fmt: skip
    assert "level 3" in listing_text(found)
