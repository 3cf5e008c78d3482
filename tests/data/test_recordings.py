"""Recordings as LeRobot datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lamp import cli
from lamp.data.lerobot import LeRobotDataset
from lamp.data.recordings import import_recording
from lamp.errors import ConfigError, DataError
from lamp_client.chunks import OpenLoop
from lamp_client.client import InProcessPolicy
from lamp_client.envs import StepResult
from lamp_client.recording import Recorder
from lamp_client.rollout import run_episode
from lamp_client.types import Observation


class Line:
    """A gripper on a line that reaches its goal after six steps."""

    cameras = ("front",)
    instruction = "go right"
    step_limit = 20

    def __init__(self) -> None:
        self.at = 0.0

    def observe(self) -> Observation:
        image = np.full((32, 48, 3), 20 * int(self.at), np.uint8)
        state = np.array([self.at, 1.0], np.float32)
        return Observation(images={"front": image}, state=state, instruction=self.instruction)

    def step(self, action: np.ndarray) -> StepResult:
        self.at -= float(action[0])
        return StepResult(success=self.at >= 6, done=self.at >= 6)

    def action_from_policy(self, action: np.ndarray) -> np.ndarray:
        return -action


def record(folder: Path, episodes: int, fps: float = 10.0) -> None:
    policy = InProcessPolicy(lambda *_: np.ones((4, 2)))
    for number in range(episodes):
        recorder = Recorder(folder=folder, fps=fps, metadata={"robot": "line"})
        recorder.begin("", f"{fps}-{number}-unused")
        recorder.end()
        run_episode(Line(), policy, OpenLoop(), noise_seed=(), recorder=recorder)


def test_a_recorded_rollout_becomes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "recording", 2)
    words = ["import-recording", str(tmp_path / "recording"), "--out", str(tmp_path / "data"), "--robot-type", "line"]
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert "2 new episodes, 12 frames" in told.out and told.err.count("it has no frames") == 2
    dataset = LeRobotDataset(tmp_path / "data")
    assert [(episode.length, episode.task) for episode in dataset.episodes] == [(6, "go right")] * 2
    assert dataset.info["robot_type"] == "line" and dataset.info["fps"] == 10 and dataset.cameras == ("front",)
    np.testing.assert_array_equal(dataset.column("observation.state", 1)[:, 0], np.arange(6))
    np.testing.assert_array_equal(dataset.column("action", 0), np.ones((6, 2)))
    np.testing.assert_array_equal(dataset.column("action.executed", 0), -np.ones((6, 2)))
    np.testing.assert_array_equal(dataset.column("policy.call", 0), [0, 0, 0, 0, 1, 1])
    assert (np.diff(dataset.column("policy.time", 0)) >= 0).all()
    assert abs(int(dataset.frames("front", 1, [3])[0].mean()) - 60) <= 3
    # Again: what was recorded since is taken up, and nothing twice.
    record(tmp_path / "recording", 1, fps=10.0000000001)
    assert import_recording(tmp_path / "recording", tmp_path / "data").episodes == 1
    assert len(LeRobotDataset(tmp_path / "data").episodes) == 3


def test_recordings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no recorded episodes"):
        import_recording(tmp_path, tmp_path / "data")
    record(tmp_path / "odd", 1, fps=12.5)
    with pytest.raises(ConfigError, match=r"12\.5 frames per second; a dataset needs a whole number"):
        import_recording(tmp_path / "odd", tmp_path / "data")
    record(tmp_path / "mixed", 1, fps=10)
    record(tmp_path / "mixed", 1, fps=20)
    with pytest.raises(ConfigError, match="20 frames per second, others at 10"):
        import_recording(tmp_path / "mixed", tmp_path / "data")
    recorder = Recorder(folder=tmp_path / "none", fps=10)
    recorder.begin("x")
    recorder.end(success=False)
    with pytest.raises(DataError, match=r"can be imported: .*no frames"):
        import_recording(tmp_path / "none", tmp_path / "data")
