"""LIBERO-Pro's cells: which files they are of, how they are counted, and the scripted expert in some of them."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp import cli
from lamp.benchmark.episodes import EpisodeRecord, read_records
from lamp.benchmark.evaluate import evaluate
from lamp.benchmark.libero_pro import ProConfig
from lamp.benchmark.robustness import robustness, robustness_table, to_json, to_markdown, to_text
from lamp.benchmark.summary import COLUMNS, variants_csv
from lamp.benchmark.tables import tabulate
from lamp.errors import ConfigError
from lamp_client.envs import libero_pro
from lamp_client.envs.libero_pro import CELLS, load_pro_task
from lamp_client.envs.libero_tasks import LIBERO_SUITES, load_task
from lamp_client.errors import InvalidValueError, MissingSoftwareError, UnknownNameError


@pytest.mark.parametrize("suite", LIBERO_SUITES)
@pytest.mark.parametrize("perturbation", CELLS)
def test_every_cell_has_its_files(suite: str, perturbation: str) -> None:
    for index in (0, 9):
        standard, task = load_task(suite, index), load_pro_task(suite, perturbation, index)
        assert task.name == standard.name and task.step_limit == standard.step_limit
        assert task.bddl_path.parent.name == f"{suite}_{CELLS[perturbation]}"
        assert task.initial_states.shape[0] == 50 and task.initial_states.dtype == np.float64
        if perturbation in ("object", "position"):
            assert task.instruction == standard.instruction
        else:
            assert task.instruction == task.instruction.lower() and task.instruction != standard.instruction


def test_words_of_a_reworded_task() -> None:
    index = next(n for n in range(10) if "alphabet_soup" in load_task("libero_object", n).name)
    assert load_pro_task("libero_object", "semantic", index).instruction == "grab alphabet soup and put it into basket"
    assert (
        load_pro_task("libero_object", "task", index).instruction == "pick the cream cheese and place it in the basket"
    )


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="environment"):
        load_pro_task("libero_object", "environment", 0)
    standard = load_task("libero_object", 0)
    own = tmp_path / "bddl_files" / "libero_object" / standard.bddl_path.name
    own.parent.mkdir(parents=True)
    shutil.copy(standard.bddl_path, own)
    monkeypatch.setattr(libero_pro, "load_task", lambda suite, index: replace(standard, bddl_path=own))
    with pytest.raises(MissingSoftwareError, match="has no LIBERO-Pro"):
        load_pro_task("libero_object", "position", 0)
    shutil.copytree(own.parent, tmp_path / "bddl_files" / "libero_object_swap")
    states = tmp_path / "init_files" / "libero_object_swap" / f"{standard.name}.pruned_init.npz"
    states.parent.mkdir(parents=True)
    contents: tuple[dict[str, Any], ...] = (
        {"other": np.zeros(3)},
        {"states": np.array([{}], object)},
        {"states": np.zeros(5)},
    )
    for content in contents:
        np.savez(states, **content)
        with pytest.raises(InvalidValueError, match="states"):
            load_pro_task("libero_object", "position", 0)
    states.write_bytes(b"cos\nsystem\n.")
    with pytest.raises(InvalidValueError, match="no initial states"):
        load_pro_task("libero_object", "position", 0)


def test_the_plan_is_of_sixteen_cells() -> None:
    plan = ProConfig(controls=("zero",)).evaluation_plan()
    assert len(plan.suites) == 16 and {len(one.tasks) * len(one.states) for one in plan.suites} == {500}
    assert plan.suites[0].simulators.suite == "libero_spatial LIBERO-Pro object"
    part = ProConfig(
        controls=("zero",), suite=("libero_goal",), perturbation=("task", "object"), task=(3,), states="0:2"
    )
    assert [one.simulators.suite for one in part.evaluation_plan().suites] == [
        "libero_goal LIBERO-Pro object",
        "libero_goal LIBERO-Pro task",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": (10,)}, "unknown task '10'"),
        ({"task": (1, 1)}, "none twice"),
        ({"states": "0:99"}, "initial states"),
        ({"controls": ("replay",)}, "one --suite"),
        ({"checkpoint": Path("x"), "controls": (), "prior": "oracle"}, "LIBERO's own suites"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"controls": ("zero",)} | change
    with pytest.raises(ConfigError, match=said):
        ProConfig(**settings)


def record(condition: str, suite: str, category: str, success: bool, *, benchmark: str = "LIBERO-Pro") -> EpisodeRecord:
    variation = {"benchmark": benchmark, "category": category, "name": "put, it", "id": 4, "level": None}
    return EpisodeRecord(
        condition=condition, suite=suite, task=3, state=0, repeat=0, placement_seed=0, placement_shift=0.0, placement={},
        success=success, success_last=False, steps=100, instruction="do", checkpoint="", code="0", packages={}, wall_s=1.0,
        render="exact", variation=variation,
    )  # fmt: skip


RECORDS = [
    record(condition, f"{suite} LIBERO-Pro {cell}", cell, cell in wins)
    for condition, wins in (("one", ("object",)), ("two", ("object", "task")), ("zero", ()))
    for suite in ("libero_goal", "libero_10")
    for cell in CELLS
]


def test_cells_are_counted_apart_from_others_and_policies_ranked_by_their_mean() -> None:
    table = robustness_table(RECORDS)
    assert table.benchmark == table.title == "LIBERO-Pro" and table.columns == tuple(CELLS) and not tabulate(RECORDS)
    assert [row.condition for row in table.ranking] == ["two", "one"]  # a control has no rank
    assert table.groupings[0].groups == ("libero_10", "libero_goal")
    words = "Ranked by the mean of the 4 dimensions: 1. two 50.0%, 2. one 25.0%."
    assert words in to_text([table]) and words in to_markdown([table])
    assert to_json([table])[0]["ranking"] == ["two", "one"]
    assert "8 of 16 cells, 8 of 8000 initial states" in table.notes[1] and "environment" in table.notes[0]
    plus = record("one", "libero_plus_goal", "camera", True, benchmark="LIBERO-Plus")
    assert [one.benchmark for one in robustness([*RECORDS, plus])] == ["LIBERO-Plus", "LIBERO-Pro"]
    part = [one for one in RECORDS if one.variation["category"] != "task"]
    assert robustness_table(part).ranking == () and "Ranked" not in to_text([robustness_table(part)])


def test_a_line_for_each_variant_and_condition() -> None:
    first = RECORDS[0]
    again = EpisodeRecord(**{**vars(first), "state": 1, "success": False, "success_last": False, "steps": 50})
    head, *lines = csv.reader(io.StringIO(variants_csv([*RECORDS, again])))
    assert tuple(head) == COLUMNS and len(lines) == len(RECORDS)
    (line,) = [one for one in lines if one[1] == "libero_goal LIBERO-Pro object" and one[7] == "one"]
    assert line == [
        *("LIBERO-Pro", "libero_goal LIBERO-Pro object", "3", "4", "put, it", "object", "", "one"),
        *("2", "1", "0", "75.0"),
    ]
    assert variants_csv([EpisodeRecord(**{**vars(first), "variation": {}})]) == ""


def test_the_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "libero_pro", "--help"]) == 0
    assert "--perturbation" in capsys.readouterr().out


@pytest.mark.long
def test_the_expert_in_two_cells(tmp_path: Path) -> None:
    """Objects that change places are no trouble for who is told where they are; the goal of another task is its own."""
    config = ProConfig(
        controls=("expert", "zero"),
        suite=("libero_object",),
        perturbation=("position", "task"),
        task=(0,),
        states="0:2",
        out=tmp_path / "out",
        workers=2,
    )
    summary = evaluate(config)
    (table,) = summary.perturbed
    rates = {row.condition: [(rate.successes, rate.trials) for rate in row.columns] for row in table.rows}
    assert rates == {"expert": [(2, 2), (2, 2)], "zero": [(0, 2), (0, 2)]}
    assert (tmp_path / "out" / "variants.csv").read_text().count("\n") == 5
    told = {one.suite: one.instruction for one in read_records(tmp_path / "out")}
    assert told["libero_object LIBERO-Pro position"] != told["libero_object LIBERO-Pro task"]
