"""Recordings: everything comes back bit for bit, as far as the file goes; and a robot's steady pace."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_client import recording as module
from lamp_client.chunks import OpenLoop, Replan
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


def step(
    recorder: Recorder,
    images: dict[str, np.ndarray] | None = None,
    *,
    state: int = 2,
    action: Any = (0.0, 1.0),
    told: Any = "x",
    **more: Any,
) -> None:
    images = {"a": np.zeros((6, 8, 3), np.uint8)} if images is None else images
    seen = Observation(images=images, state=np.zeros(state, np.float32), instruction=told)
    recorder.add(seen, np.asarray(action), **more)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": {"a": np.zeros((8, 8, 3), np.uint8)}}, "camera 'a' is 8x8; those in .* before are 8x6"),
        ({"images": {"b": np.zeros((6, 8, 3), np.uint8)}}, "has the cameras b; those in .* before have a"),
        ({"state": 3}, "the state has 3 values; those in .* before have 2"),
        ({"action": [0.0]}, "the action has 1 values; those in .* before have 2"),
        ({"executed": np.zeros(3)}, "the executed has 3 values"),
        ({"action": [0.0, np.nan]}, "action holds values that are not finite"),
        ({"action": [[0.0, 1.0]]}, r"action is float64 \(1, 2\); expected a vector"),
        ({"action": ["a", "b"]}, "expected a vector of numbers"),
        ({"time_s": -1.0}, "time is -1 s, after 0.5 s; expected a later one"),
        ({"time_s": float("nan")}, "time is nan s"),
    ],
)
def test_what_could_be_no_dataset_is_refused_at_once(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recorder = Recorder(folder=tmp_path, fps=10)
    recorder.begin("x", "one")
    step(recorder, time_s=0.5)
    with pytest.raises(InvalidValueError, match=words):
        wrong: dict[str, Any] = {"time_s": 0.6} | change
        step(recorder, **wrong)
    step(recorder, time_s=0.7)
    recorder.end()
    assert [frame["time_s"] for frame in read_episode(tmp_path, "one").frames] == [0.5, 0.7]
    # Another program that records into the same folder has to do as this one.
    if "time_s" not in change and "images" in change:
        other = Recorder(folder=tmp_path, fps=10)
        other.begin("x", "two")
        with pytest.raises(InvalidValueError, match=words):
            step(other, **change)
        other.end()


@pytest.mark.parametrize(
    "name", ["../../x", "/x", "", ".hidden", "-rf", "a/b", "a\\b", "a\nb", "a\0b", "x" * 101, "a ", "c:"]
)
def test_names_that_could_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    recorder = Recorder(folder=tmp_path / "rec", fps=10)
    if name:
        with pytest.raises(InvalidValueError, match="cannot name an episode"):
            recorder.begin("x", name)
    recorder.begin("x")
    with pytest.raises(InvalidValueError, match="cannot name a camera"):
        step(recorder, {name: np.zeros((6, 8, 3), np.uint8)})
    recorder.end()
    assert [path.parent for path in tmp_path.rglob("*.lamprec")] == [tmp_path / "rec"]


def test_other_mistakes_of_the_first_step(tmp_path: Path) -> None:
    for fps in (0, -5, float("nan"), float("inf"), 1e6, True, "20"):
        with pytest.raises(InvalidValueError, match="expected steps per second, above 0"):
            Recorder(folder=tmp_path, fps=fps)  # pyright: ignore[reportArgumentType]
    recorder = Recorder(folder=tmp_path, fps=29.97)
    recorder.begin("  ")
    for told in ("", " ", 5):
        with pytest.raises(InvalidValueError, match=r"the instruction is .*expected what the robot is to do"):
            step(recorder, told=told)
    step(recorder, {"kamera_\u00fc": np.zeros((5, 7, 3), np.uint8)}, told="go")
    recorder.begin("nimm den W\u00fcrfel")
    with pytest.raises(InvalidValueError, match="camera 'kamera_\u00fc' is 0x6; those in"):
        step(recorder, {"kamera_\u00fc": np.zeros((6, 0, 3), np.uint8)})
    empty = Recorder(folder=tmp_path / "new", fps=10)
    empty.begin("x")
    with pytest.raises(InvalidValueError, match="camera 'a' is 0x6; expected a picture"):
        step(empty, {"a": np.zeros((6, 0, 3), np.uint8)})
    empty.end()
    for image in (np.zeros((6, 8), np.uint8), np.zeros((6, 8, 3), np.float32), np.zeros((6, 8, 4), np.uint8)):
        with pytest.raises(InvalidValueError, match="expected uint8"):
            step(recorder, {"a": image})
    step(recorder, {"kamera_\u00fc": np.zeros((5, 7, 3), np.uint8)})
    recorder.end()
    with pytest.raises(InvalidValueError, match="the instruction is int"):
        recorder.begin(5)  # pyright: ignore[reportArgumentType]


def test_a_policy_is_driven_at_the_rate_of_its_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = InProcessPolicy(lambda seen, _: np.stack([seen.state + place for place in range(3)]), {"fps": 15})
    run = partial(drive, policy=policy, executor=OpenLoop(), instruction="go")
    arm = Arm()
    with pytest.raises(
        InvalidValueError, match=r"fps is 60, but .* 15 .*carried out 4 times as fast.*Expected fps=15, or allow"
    ):
        run(arm, fps=60, steps=3)
    with pytest.raises(InvalidValueError, match="the recorder has 40 steps per second, drive 15; expected the same"):
        run(arm, fps=15, steps=3, recorder=Recorder(folder=tmp_path, fps=40))
    assert not arm.sent and not caplog.records
    assert run(arm, fps=60, steps=3, allow_rate_mismatch=True).steps == 3
    assert "trained at 15 steps per second and acts at 60" in caplog.text
    assert run(Arm(), fps=15.1, steps=2).rate == pytest.approx(15.1, rel=0.3)
    for unknown in (None, "20", 0, True, float("nan")):
        other = InProcessPolicy(lambda seen, _: np.stack([seen.state] * 3), {"fps": unknown})
        assert drive(Arm(), other, OpenLoop(), instruction="go", fps=500, steps=2).steps == 2


def test_a_loop_that_cannot_keep_its_rate_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Arm):
        def observe(self, instruction: str) -> Observation:
            time.sleep(0.02)
            return super().observe(instruction)

    told = drive(Slow(), POLICY, Replan(every=1), instruction="go", fps=100, steps=25)
    assert 5 < told.rate < 60 and told.late > 10
    (line,) = [record.getMessage() for record in caplog.records]
    assert "steps per second, not 100" in line


@pytest.mark.parametrize("damage", ["shape", "deep", "time", "head", "depth", "extra"])
def test_a_hostile_recording_is_an_error_of_ours(damage: str, tmp_path: Path) -> None:
    head: dict[str, Any] = {"format": "lamp-recording", "version": 1, "instruction": "x", "fps": 10.0, "metadata": "{}"}
    image = {"shape": [10**6, 10**6, 3], "zlib": b"x"} if damage == "shape" else np.zeros((4, 4, 3), np.uint8)
    frame = {"action": np.zeros(1), "state": np.zeros(1), "time_s": 0.0, "images": {"a": image}}
    if damage == "deep":
        head["metadata"] = "[" * 200_000
    if damage == "head":
        del head["fps"]
    if damage == "time":
        frame["images"] = 7
    if damage in ("depth", "extra"):
        frame["extra"] = {"depth.a": {"shape": [10**6, 10**6], "zlib": b"x"}} if damage == "depth" else 7
    records = [module._record(message, compress=False) for message in (head, frame)]
    (tmp_path / "one.lamprec").write_bytes(b"".join(records))
    for pixels in (True, False):
        with pytest.raises(RecordingError, match="is damaged, or no recording"):
            read_episode(tmp_path, "one", pixels=pixels)


@pytest.mark.parametrize("compress", [True, False])
def test_depth_and_what_a_simulator_knows_are_kept(tmp_path: Path, compress: bool) -> None:
    depth = np.array([[0.0, 0.5, 1.23456], [6.5, 9.0, np.nan]], np.float32)
    state = np.array([0.1, -2.0, 1e-9])
    seen = Observation(
        images={"front": np.zeros((2, 3, 3), np.uint8)}, state=np.zeros(2, np.float32), instruction="go",
        extra={"depth.front": depth, "simulation.states": state},
    )  # fmt: skip
    recorder = Recorder(folder=tmp_path, fps=20, compress=compress)
    recorder.begin("go", "one")
    for _ in range(2):
        recorder.add(seen, np.zeros(2, np.float32), time_s=0.0)
    recorder.end()
    frame = read_episode(tmp_path, "one").frames[1]
    np.testing.assert_array_equal(frame["extra"]["simulation.states"], state)
    found = frame["extra"]["depth.front"]
    assert found.dtype == np.float32
    # To a tenth of a millimetre; what is unknown or farther than 6.5 m is 0.
    np.testing.assert_allclose(found, [[0, 0.5, 1.23456], [6.5, 0, 0]], atol=6e-5)
    assert read_episode(tmp_path, "one", pixels=False).frames[0]["extra"]["simulation.states"].shape == (3,)
