"""Recordings: everything comes back bit for bit, as far as the file goes; and a robot's steady pace."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from lamp_client import recording as module
from lamp_client.chunks import OpenLoop
from lamp_client.client import InProcessPolicy
from lamp_client.control import drive
from lamp_client.errors import InvalidValueError
from lamp_client.recording import Recorder, RecordingError, read_episode, recorded_names
from lamp_client.types import ActionChunk, Observation


def observation(step: int) -> Observation:
    generator = np.random.default_rng(step)
    images = {
        "front": generator.integers(0, 256, (12, 16, 3), dtype=np.uint8),
        "wrist": np.full((8, 8, 3), step, np.uint8),
    }
    return Observation(images=images, state=np.array([step, -step], np.float32), instruction="tidy up")


def chunk(number: int) -> ActionChunk:
    return ActionChunk(actions=np.full((4, 3), number, np.float32), gate=0.25, timing_ms={"act": 3.0})


def record(folder: Path, steps: int = 10, name: str | None = "one", **settings: bool) -> str:
    recorder = Recorder(folder=folder, fps=20.0, metadata={"robot": "arm", "version": 3}, **settings)
    name = recorder.begin("tidy up", name)
    chunks = [chunk(number) for number in range(3)]
    for step in range(steps):
        using = chunks[step // 4 % 3]
        recorder.add(observation(step), using.actions[step % 4], executed=np.array([step, 0, 1]), chunk=using)
    recorder.end(success=True)
    return name


@pytest.mark.parametrize("compress", [True, False])
def test_everything_comes_back(compress: bool, tmp_path: Path) -> None:
    record(tmp_path / "made" / "here", compress=compress)
    assert recorded_names(tmp_path / "made" / "here") == ["one"]
    episode = read_episode(tmp_path / "made" / "here", "one")
    assert (episode.instruction, episode.fps, episode.success, episode.complete) == ("tidy up", 20.0, True, True)
    assert episode.metadata == {"robot": "arm", "version": 3} and len(episode.frames) == 10
    for step, frame in enumerate(episode.frames):
        seen = observation(step)
        for camera, image in seen.images.items():
            np.testing.assert_array_equal(frame["images"][camera], image)
        np.testing.assert_array_equal(frame["state"], seen.state)
        np.testing.assert_array_equal(frame["action"], np.full(3, step // 4))
        np.testing.assert_array_equal(frame["executed"], [step, 0, 1])
        assert frame["call"] == step // 4 and frame["gate"] == 0.25
        assert ("chunk" in frame) == (step % 4 == 0)
    times = [frame["time_s"] for frame in episode.frames]
    assert times == sorted(times) and 0 <= times[0] < 1
    np.testing.assert_array_equal(episode.frames[4]["chunk"], chunk(1).actions)


def test_what_is_recorded_may_be_changed_afterwards(tmp_path: Path) -> None:
    """Robots hand out the same buffer again and again."""
    recorder = Recorder(folder=tmp_path, fps=10)
    name = recorder.begin("x")
    image, state = np.zeros((4, 4, 3), np.uint8), np.zeros(2, np.float32)
    for step in range(20):
        image[:], state[:] = step, step
        recorder.add(Observation(images={"a": image}, state=state, instruction="x"), state)
    recorder.end()
    episode = read_episode(tmp_path, name)
    assert [int(frame["images"]["a"][0, 0, 0]) for frame in episode.frames] == list(range(20))
    assert [frame["action"][0] for frame in episode.frames] == list(range(20)) and episode.success is None


@pytest.mark.parametrize("cut", [1, 30, 400, 3000])
def test_a_file_that_was_cut_short_is_read_as_far_as_it_goes(cut: int, tmp_path: Path) -> None:
    record(tmp_path)
    file = tmp_path / "one.lamprec"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    episode = read_episode(tmp_path, "one")
    assert not episode.complete and episode.success is None and 0 < len(episode.frames) <= 10
    file.write_bytes(whole[:-2000] + bytes([whole[-2000] ^ 1]) + whole[-1999:])
    assert len(read_episode(tmp_path, "one").frames) < 10


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path)
    with pytest.raises(RecordingError, match="named 'one' is in"):
        record(tmp_path)
    with pytest.raises(InvalidValueError, match="cannot name an episode"):
        record(tmp_path, name="../x")
    with pytest.raises(RecordingError, match="no episode has begun"):
        Recorder(folder=tmp_path, fps=10).add(observation(0), np.zeros(1))
    with pytest.raises(RecordingError, match="cannot read the recording"):
        read_episode(tmp_path, "absent")
    (tmp_path / "other.lamprec").write_bytes(b"hello, this is something else")
    with pytest.raises(RecordingError, match="no recording"):
        read_episode(tmp_path, "other")

    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_record", full)
    with pytest.raises(RecordingError, match="No space left on device"):
        record(tmp_path, steps=40, name="two")


class Arm:
    """Counts; observing takes a moment."""

    def __init__(self, slow_at: int = -1) -> None:
        self.sent: list[tuple[float, float]] = []
        self.looks, self.slow_at = 0, slow_at

    def observe(self, instruction: str) -> Observation:
        self.looks += 1
        if len(self.sent) == self.slow_at:
            time.sleep(0.12)
        state = np.array([len(self.sent)], np.float32)
        return Observation(images={"a": np.zeros((4, 4, 3), np.uint8)}, state=state, instruction=instruction)

    def send(self, action: np.ndarray) -> np.ndarray:
        self.sent.append((time.monotonic(), float(action[0])))
        return np.minimum(action, 1.0)


POLICY = InProcessPolicy(lambda seen, _: np.stack([seen.state + place for place in range(3)]))


def test_a_robot_is_driven_at_a_steady_pace_and_recorded(tmp_path: Path) -> None:
    arm, recorder = Arm(), Recorder(folder=tmp_path, fps=40)
    told = drive(arm, POLICY, OpenLoop(), instruction="go", fps=40, steps=12, recorder=recorder)
    assert told.steps == 12 and told.policy_calls == 4
    assert [action for _, action in arm.sent] == list(range(12))
    assert 11 / 40 - 0.01 < arm.sent[-1][0] - arm.sent[0][0] < 11 / 40 + 0.5
    (name,) = recorded_names(tmp_path)
    episode = read_episode(tmp_path, name)
    assert episode.instruction == "go" and len(episode.frames) == 12 and arm.looks == 12
    np.testing.assert_array_equal([frame["executed"][0] for frame in episode.frames], [0.0] + [1.0] * 11)
    assert [frame["call"] for frame in episode.frames] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_a_late_step_is_not_made_up_for() -> None:
    arm = Arm(slow_at=3)
    told = drive(arm, POLICY, OpenLoop(), instruction="go", fps=25, steps=9)
    gaps = np.diff([moment for moment, _ in arm.sent])
    assert told.late >= 1 and told.worst_s > 0.05 and gaps.max() > 0.1
    assert gaps.min() > 0.02
    assert (
        drive(
            Arm(), POLICY, OpenLoop(), instruction="go", fps=500, steps=9, stop=iter([False, False, True]).__next__
        ).steps
        == 2
    )
    with pytest.raises(InvalidValueError, match="fps is 0"):
        drive(Arm(), POLICY, OpenLoop(), instruction="go", fps=0, steps=1)
