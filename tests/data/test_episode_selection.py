"""Sets of episodes by number, task, initial state, count and share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from demonstrations import write

from lamp.data.episode_selection import EpisodeSelection, parse_numbers, parse_selection
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Ten episodes of two tasks in turn; each starts from a state of its own number."""
    return write(tmp_path_factory.mktemp("selection"), (3,) * 10)


@pytest.mark.parametrize(
    ("conditions", "episodes"),
    [
        ({}, tuple(range(10))),
        ({"episodes": "0:4,9"}, (0, 1, 2, 3, 9)),
        ({"tasks": "1"}, (1, 3, 5, 7, 9)),
        ({"tasks": "task 0"}, (0, 2, 4, 6, 8)),
        ({"states": "2:5"}, (2, 3, 4)),
        ({"states": "8:100"}, (8, 9)),
        ({"tasks": "0", "states": "2:7", "episodes": "4:"}, (4, 6)),
    ],
)
def test_conditions_are_met_together(
    dataset: LeRobotDataset, conditions: dict[str, Any], episodes: tuple[int, ...]
) -> None:
    assert EpisodeSelection(**conditions).select(dataset) == episodes


def test_fewer_of_each_task_are_among_more(dataset: LeRobotDataset) -> None:
    chosen = [set(EpisodeSelection(per_task=count).select(dataset)) for count in (1, 2, 5, 50)]
    assert [len(found) for found in chosen] == [2, 4, 10, 10]
    assert chosen[0] < chosen[1] < chosen[2]
    assert all(len({episode % 2 for episode in found}) == 2 for found in chosen)
    one_task = set(EpisodeSelection(per_task=2, tasks="0").select(dataset))
    assert one_task == {episode for episode in chosen[1] if episode % 2 == 0}, "other tasks do not change the choice"
    assert set(EpisodeSelection(share=0.4).select(dataset)) == chosen[1]
    others = {EpisodeSelection(per_task=2, seed=seed).select(dataset) for seed in range(8)}
    assert len(others) > 4


def test_what_is_left_out_is_not_counted(dataset: LeRobotDataset) -> None:
    held_out = EpisodeSelection(states="0:4").select(dataset)
    assert EpisodeSelection(per_task=3).select(dataset, leave_out=held_out) == (4, 5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"episodes": "0:40"}, "there is no 10; there are 0 to 9"),
        ({"episodes": "x"}, "episodes 'x': expected numbers or slices"),
        ({"tasks": "2"}, "there is no 2; there are 0 to 1"),
        ({"tasks": "task 7"}, "unknown task 'task 7'; did you mean 'task"),
        ({"states": "40:50"}, "no episode of .* meets that; it has 10"),
        ({"episodes": "-1"}, "episodes '-1': there is no -1; expected numbers from 0 on"),
        ({"per_task": 1, "seed": -1}, "the seed of a selection is -1; expected a whole number from 0 on"),
        ({"per_task": 0}, "per_task is 0; expected at least 1"),
        ({"share": 1.5}, r"share is 1.5; expected a share above 0"),
        ({"share": 0.5, "per_task": 2}, "expected one of the two"),
        ({"episodes": "0:1000000000000"}, "more than 4,194,304 numbers"),
    ],
)
def test_slips_are_named(dataset: LeRobotDataset, conditions: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EpisodeSelection(**conditions).select(dataset)


def test_states_that_were_not_recorded(dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(dataset), "extra", lambda self, episode: {"episode_index": episode})
    with pytest.raises(DataError, match=r"episode 0 of .* does not record its initial state"):
        EpisodeSelection(states="0:2").select(dataset)


def test_nothing_is_left_where_all_is_held_out(dataset: LeRobotDataset) -> None:
    with pytest.raises(ConfigError, match=r"all 10 episodes of .* are held out; expected some to be left"):
        EpisodeSelection().select(dataset, leave_out=range(10))


def test_a_selection_in_one_argument() -> None:
    wanted = EpisodeSelection(states="10:15", tasks="0,3", per_task=8, seed=2)
    assert parse_selection("states=10:15; tasks=0,3;per-task=8;seed=2") == wanted
    for text, message in (
        ("state=3", "unknown condition of a selection 'state'; did you mean 'states'"),
        ("states", "expected NAME=VALUE"),
        ("per_task=many", "per_task is 'many'; expected a number"),
        (" ; ", "unknown condition|expected a condition"),
        ("seed=3", "expected a condition"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_selection(text)


def test_numbers_are_read_as_slices() -> None:
    assert parse_numbers("0,3,40:44:2", 50, "states") == (0, 3, 40, 42)
    assert parse_numbers("47:", 50, "states") == (47, 48, 49)


def test_a_missing_dataset_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        EpisodeSelection(tasks="0").select(LeRobotDataset(tmp_path))
