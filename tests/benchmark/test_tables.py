from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp.benchmark.baselines import Blank, WrongInstruction, Zero, control, expert_actions
from lamp.benchmark.episodes import EpisodeRecord, read_records
from lamp.benchmark.tables import paired, percent, tabulate, to_json, to_markdown, to_text
from lamp.data.lerobot import EpisodeData, LeRobotWriter, stage_episode
from lamp.errors import ConfigError, DataError
from lamp.json_files import append_line
from lamp_client.types import Observation


def record(condition: str, task: int, state: int, success: bool, **changes: Any) -> EpisodeRecord:
    values: dict[str, Any] = {
        "condition": condition, "suite": "libero_object", "task": task, "state": state, "repeat": 0, "placement_seed": state,
        "placement_shift": 0.0, "placement": {}, "noise_seed": (7,), "success": success, "success_last": False, "steps": 100,
        "instruction": f"do {task}", "checkpoint": "", "code": "0", "packages": {}, "wall_s": 1.0, "render": "exact",
    }  # fmt: skip
    return EpisodeRecord(**{**values, **changes})


RECORDS = [
    *(record("without_motion", task, state, state < 2) for task in (1, 3) for state in range(4)),
    *(record("with_motion", task, state, state != 1, success_last=state == 0) for task in (1, 3) for state in range(5)),
    record("replay", 1, 0, True, steps=80),
]


def test_counts_order_and_pairs() -> None:
    (table,) = tabulate(RECORDS)
    assert table.tasks == (1, 3) and table.names == ("do 1", "do 3")
    assert [row.condition for row in table.rows] == ["with_motion", "without_motion", "replay"]
    motion = table.rows[0]
    assert (motion.total.successes, motion.total.trials, motion.total_last.successes) == (8, 10, 2)
    assert [rate.successes for rate in motion.tasks] == [4, 4]
    pair = table.pairs[0]
    # The fifth state was done with motion only, so it does not count.
    assert (pair.both, pair.only_first, pair.only_second, pair.neither) == (2, 4, 2, 0)
    assert pair.p_value == pytest.approx(2 * (1 + 6 + 15) / 64)
    assert table.pairs[1].episodes == 1


def test_renderings_agree() -> None:
    tables = tabulate(RECORDS)
    markdown, text, plain = to_markdown(tables), to_text(tables), to_json(tables)
    assert "| replay | 1/1, 0 last | - | 1/1 (100.0%, 20.7-100.0) | 0/1 | 80 |" in markdown
    assert "8/10 (80.0%, 49.0-94.3)" in markdown and "8/10 (80.0%, 49.0-94.3)" in text
    assert "McNemar exact p = 0.688" in text
    assert plain[0]["conditions"][2]["tasks"]["3"] == {
        "successes": 0,
        "trials": 0,
        "rate": None,
        "low": 0.0,
        "high": 1.0,
    }
    assert percent(float("nan")) == "-"


def test_lines_are_read_back_and_later_keys_kept(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    append_line(path, RECORDS[0].to_line())
    append_line(path, RECORDS[1].to_line()[:-1] + ',"temperature":21}')
    first, second = read_records(tmp_path)
    assert first == RECORDS[0] and second.extra == {"temperature": 21}
    append_line(path, RECORDS[0].to_line())
    with pytest.raises(DataError, match="an episode twice"):
        read_records(tmp_path)


def test_a_folder_without_episodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lamp evaluate"):
        read_records(tmp_path)


def test_controls_change_one_input_only() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    seen = Observation(images={"agentview": image}, state=np.ones(8, np.float32), instruction="b")
    wrong = WrongInstruction(path=Path("c")).altered(seen, task=1, instructions=("a", "b", "b"))
    assert (
        wrong.instruction == "a" and wrong.images["agentview"] is image
    )  # the next task's is the same, the one after is not
    known = WrongInstruction(path=Path("c"), among=(1, 3)).altered(seen, task=1, instructions=("a", "b", "c", "d"))
    assert known.instruction == "d"  # of a task that is evaluated, before the next task's
    only = WrongInstruction(path=Path("c"), among=(1,)).altered(seen, task=1, instructions=("a", "b", "c", "d"))
    assert only.instruction == "c"
    blank = Blank(path=Path("c")).altered(seen, task=1, instructions=("a", "b"))
    assert blank.instruction == "b" and blank.images["agentview"].std() == 0 and blank.state is seen.state
    with pytest.raises(ConfigError, match="two different instructions"):
        WrongInstruction(path=Path("c")).altered(seen, task=0, instructions=("b",))
    np.testing.assert_array_equal(Zero().actions(0), [[0, 0, 0, 0, 0, 0, 1]])


def test_an_unknown_control_names_the_known() -> None:
    with pytest.raises(ConfigError, match="did you mean 'replay'"):
        control("replays", checkpoint=None, data=None)


def test_replay_says_which_tasks_it_has(tmp_path: Path) -> None:
    append_line(tmp_path / "meta" / "lamp_episodes.jsonl", '{"episode_index": 0, "task": 4}')
    with pytest.raises(DataError, match="no episode of task 2 to replay; it has tasks 4"):
        expert_actions(tmp_path, 2)


def test_replay_needs_actions_and_the_suites_tasks(tmp_path: Path) -> None:
    images = {"agentview": np.zeros((3, 64, 64, 3), np.uint8)}
    frames = {"observation.state": np.zeros((3, 2), np.float32)}
    stage_episode(tmp_path, "seen", EpisodeData(frames=frames, images=images, task="wave", extra={"task": 2}))
    stage_episode(tmp_path, "there", EpisodeData(frames=frames, images=images, task="wave"))
    LeRobotWriter(tmp_path).finalize()
    with pytest.raises(DataError, match=r"records no action\.executed to replay"):
        expert_actions(tmp_path, 2)
    with pytest.raises(DataError, match="no episode of task 4 to replay; it has tasks 2"):
        expert_actions(tmp_path, 4)


def test_repeats_of_an_initial_state_are_one_cluster() -> None:
    """One state decides everything: ten repeats of it are no ten independent pairs."""
    repeats = [
        record(condition, 1, state, success, repeat=repeat, placement_seed=100 * state + repeat)
        for repeat in range(10)
        for state in range(2)
        for condition, success in (("with_motion", state == 0), ("without_motion", False))
    ]
    (table,) = tabulate(repeats)
    (pair,) = table.pairs
    assert (pair.episodes, pair.only_first, pair.clusters) == (20, 10, (10, 0))
    assert pair.p_value == 1.0  # McNemar's would be 0.002
    assert "on the same 20 episodes of 2 initial states" in to_text([table])
    assert "sign flips of initial states, exact p = 1" in to_markdown([table]) and "McNemar" not in to_text([table])
    plain = to_json([table])[0]["pairs"][0]
    assert plain["initial_states"] == 2 and plain["test"] == "sign flips of initial states, exact"


def test_perturbations_of_an_initial_state_are_repeats_of_it() -> None:
    suites = ("libero_goal plus-style camera=3", "libero_goal plus-style light=3")
    one = [record("with_motion", 1, 0, True, suite=suite) for suite in suites]
    two = [record("without_motion", 1, 0, False, suite=suite) for suite in suites]
    pair = paired(one, two)
    assert pair.episodes == 2 and pair.clusters == (2,) and pair.p_value == 1.0
