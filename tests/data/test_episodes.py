from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from demonstrations import episode

from lamp.data.lerobot import LeRobotDataset, LeRobotWriter, stage_episode, staged_names
from lamp.errors import ConfigError, DataError, MismatchError


def stage(root: Path, seed: int) -> None:
    stage_episode(root, f"{seed:03d}", episode(seed, 5))


def test_several_processes_stage_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        list(pool.map(stage, [tmp_path] * 6, range(6)))
    assert LeRobotWriter(tmp_path).finalize() == 6
    found = LeRobotDataset(tmp_path)
    assert [found.extra(index)["initial_state"] for index in range(6)] == list(range(6))


def test_a_failed_staging_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("lamp.data.lerobot.staging.write_json", fail)
    with pytest.raises(RuntimeError):
        stage(tmp_path, 0)
    assert staged_names(tmp_path) == [] and not list((tmp_path / ".staging").iterdir())


def test_finalising_clears_away_what_killed_workers_left(tmp_path: Path) -> None:
    stage(tmp_path, 0)
    for name, age in (("old", 7200), ("young", 60)):
        folder = tmp_path / ".staging" / f".tmp-{name}"
        (folder / "episode").mkdir(parents=True)
        os.utime(folder, (time.time() - age, time.time() - age))
    LeRobotWriter(tmp_path).finalize()
    assert [path.name for path in (tmp_path / ".staging").iterdir() if path.is_dir()] == [".tmp-young"]


def test_episodes_that_do_not_hold_together_are_refused(tmp_path: Path) -> None:
    good = episode(0, 5)
    with pytest.raises(DataError, match="one and the same length"):
        replace(good, frames={**good.frames, "action": np.zeros((4, 7), np.float32)})
    with pytest.raises(DataError, match=r"action holds values that are not finite"):
        replace(good, frames={**good.frames, "action": np.full((5, 7), np.nan, np.float32)})
    with pytest.raises(DataError, match="timestamp are the writer's own"):
        replace(good, frames={**good.frames, "timestamp": np.zeros(5)})
    shown = good.images["agentview"]
    for images in (
        np.concatenate([shown, shown[..., :1]], -1),
        shown[..., 0],
        shown[..., :1],
        shown.astype(np.float32),
    ):
        with pytest.raises(DataError, match=r"camera agentview: the images are .* expected uint8 of shape"):
            replace(good, images={"agentview": images})
    with pytest.raises(DataError, match=r"'a\\ud800b' holds halves of characters"):
        replace(good, task="a\ud800b")
    with pytest.raises(ConfigError, match="cannot name an episode"):
        stage_episode(tmp_path, "a/b", good)
    stage_episode(tmp_path, "a", good)
    with pytest.raises(DataError, match="'a' is in"):
        stage_episode(tmp_path, "a", good)


def test_episodes_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    good = episode(0, 5)
    stage_episode(tmp_path, "a", good)
    stage_episode(tmp_path, "b", replace(good, images={"agentview": good.images["agentview"]}))
    with pytest.raises(MismatchError, match="staged episode b has the cameras"):
        LeRobotWriter(tmp_path).finalize()
    other = {name: values for name, values in good.frames.items() if name != "action.executed"}
    with pytest.raises(MismatchError, match="staged episode a has the features"):
        writer = LeRobotWriter(tmp_path / "two")
        writer.add_episode(replace(good, frames=other), "b")
        stage_episode(tmp_path / "two", "a", good)
        LeRobotWriter(tmp_path / "two", features=_features(other)).finalize()
    stage_episode(tmp_path / "three", "a", good, fps=10)
    with pytest.raises(MismatchError, match="10 fps; expected 20"):
        LeRobotWriter(tmp_path / "three").finalize()


def _features(frames: dict[str, np.ndarray]) -> dict:
    from lamp.data.lerobot import Feature

    return {name: Feature.of(values) for name, values in frames.items()}
