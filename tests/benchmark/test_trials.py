"""Trials on a real robot: what is written down, counted and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamp.benchmark.trials import TRIALS, ScoreConfig, progress_by_column, read_tasks, read_trials, score
from lamp.cli import main
from lamp.errors import ConfigError, DataError


def add(folder: Path, method: str, task: str, stages: int, **settings: str) -> str:
    return score(ScoreConfig(out=folder, method=method, task=task, stages=stages, **settings))  # pyright: ignore[reportArgumentType]


def test_progress_is_the_share_of_stages_and_new_scenes_are_a_column_of_their_own(tmp_path: Path) -> None:
    add(tmp_path, "ours", "stack_cup", 2)
    add(tmp_path, "ours", "stack_cup", 1)
    add(tmp_path, "ours", "making_bread", 1)
    add(tmp_path, "theirs", "fold_towel", 3)
    said = add(tmp_path, "ours", "fold_towel", 1, setting="unseen_background", note="cloth slipped")
    found = progress_by_column(read_trials(tmp_path))
    assert found["ours"]["Pick-and-place"].values == (1.0, 0.5)
    assert found["ours"]["Long-horizon"].mean == pytest.approx(1 / 3)
    assert found["ours"]["Out of domain"].values == (0.25,) and "Deformable" not in found["ours"]
    assert found["theirs"]["Deformable"].mean == 0.75
    assert "ours, Pick-and-place: 75.0% (20 to 97), 2 trials" in said
    low, high = found["ours"]["Out of domain"].interval
    assert low < 0.25 < high and high - low > 0.5, "one trial says little"


def test_a_trial_is_taken_back_and_nothing_is_lost(tmp_path: Path) -> None:
    add(tmp_path, "ours", "stack_cup", 2)
    add(tmp_path, "ours", "stack_cup", 0)
    score(ScoreConfig(out=tmp_path, undo=True))
    assert [trial.stages for trial in read_trials(tmp_path)] == [2]
    assert len((tmp_path / TRIALS).read_text().splitlines()) == 3
    add(tmp_path, "ours", "stack_cup", 1)
    assert [trial.stages for trial in read_trials(tmp_path)] == [2, 1]
    for _ in range(2):
        score(ScoreConfig(out=tmp_path, undo=True))
    with pytest.raises(DataError, match="no trial to take back"):
        score(ScoreConfig(out=tmp_path, undo=True))


def test_tasks_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    own = {"category": "Drawers", "instruction": "open the drawer", "stages": ["handle held", "open", "let go"]}
    path.write_text(json.dumps({"tasks": {"drawer": own}}))
    score(ScoreConfig(out=tmp_path, method="ours", task="drawer", stages=2, tasks=path))
    (trial,) = read_trials(tmp_path)
    assert trial.of == 3 and trial.column == "Drawers" and trial.instruction == "open the drawer"
    for broken in (
        {"tasks": {"drawer": own | {"stages": []}}},
        {"tasks": {"drawer": own | {"stages": "open"}}},
        {"tasks": []},
        [1],
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match="expected"):
            read_tasks(path)


def test_the_paper_s_tasks_have_its_stages() -> None:
    assert {name: len(task.stages) for name, task in read_tasks().items()} == {
        "stack_cup": 2,
        "fold_towel": 4,
        "making_bread": 3,
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "a", "--task", "stack_cup", "--stages", "3"], "expected 0 to 2"),
        (["--method", "a", "--task", "stackcup", "--stages", "1"], "did you mean 'stack_cup'"),
        (["--task", "stack_cup", "--stages", "1"], "needs --method"),
        (["--method", " ", "--task", "stack_cup", "--stages", "1"], "--method ' ' names nothing"),
        (["--method", "a\nb", "--task", "stack_cup", "--stages", "1"], "--method 'a\\nb' names nothing"),
        (["--method", "a" * 121, "--task", "stack_cup", "--stages", "1"], "one line of up to 120 characters"),
        (["--method", "a", "--task", "stack_cup"], "no terminal"),
        (["--method", "a", "--task", "stack_cup", "--stages", "1", "--checkpoint", "nowhere"], "no checkpoint"),
    ],
)
def test_a_slip_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], told: str
) -> None:
    assert main(["score", str(tmp_path), *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / TRIALS).exists()


def test_the_terminal_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: " 3 ")
    score(ScoreConfig(out=tmp_path, method="ours", task="fold_towel"))
    assert "4  corner 2 completes the triangle" in capsys.readouterr().err
    assert read_trials(tmp_path)[0].stages == 3
    monkeypatch.setattr("builtins.input", lambda _: "all")
    with pytest.raises(ConfigError, match="'all' is no stage"):
        score(ScoreConfig(out=tmp_path, method="ours", task="fold_towel"))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    add(tmp_path, "ours", "stack_cup", 2)
    log = tmp_path / TRIALS
    log.write_text(log.read_text().replace('"stages": 2', '"stages": 7'))
    with pytest.raises(DataError, match="7 of 2 stages"):
        read_trials(tmp_path)
