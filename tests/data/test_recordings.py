"""Recordings as LeRobot datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp import cli
from lamp.data.actions import Gripper, Relative
from lamp.data.embodiment import Embodiment, Part, embodiment
from lamp.data.import_recording import import_recording
from lamp.data.lerobot import LeRobotDataset
from lamp.data.lerobot.staging import EpisodeData, stage_episode
from lamp.errors import ConfigError, DataError, MismatchError
from lamp_client import recording as module
from lamp_client.chunks import OpenLoop
from lamp_client.client import InProcessPolicy
from lamp_client.envs import StepResult
from lamp_client.recording import Recorder, read_episode, recorded_names
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


@pytest.mark.parametrize(
    ("simulator", "widths", "message"),
    [
        ("twin", (3, 3), "has no attribute"),
        ({"suite": "twin", "model": {"body_pos": "far"}}, (3, 3), "could not convert string to float"),
        ({"suite": "twin", "model": {}}, (3, 4), "must have the same shape"),
    ],
)
def test_a_damaged_simulator_is_a_reason_to_skip(
    simulator: Any, widths: tuple[int, int], message: str, tmp_path: Path
) -> None:
    recorder = Recorder(folder=tmp_path / "recording", fps=10, metadata={"simulator": simulator})
    recorder.begin("go right", "one")
    for width in widths:
        extra = {"simulation.states": np.zeros(width), "simulation.body_poses": np.zeros((2, 7))}
        recorder.add(replace(Line().observe(), extra=extra), np.zeros(2, np.float32), time_s=0.0)
    recorder.end()
    with pytest.raises(DataError, match=f"its simulator is damaged.*{message}"):
        import_recording(tmp_path / "recording", tmp_path / "data")


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
    # In the policy's units as well, whatever the environment makes of them.
    np.testing.assert_array_equal(dataset.column("action.executed", 0), np.ones((6, 2)))
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
    record(tmp_path / "mixed", 1, fps=10)
    record(tmp_path / "mixed", 1, fps=20)
    with pytest.raises(ConfigError, match="recorded at 10 and 20 frames per second; expected one rate"):
        import_recording(tmp_path / "mixed", tmp_path / "data")
    recorder = Recorder(folder=tmp_path / "none", fps=10)
    recorder.begin("x")
    recorder.end(success=False)
    with pytest.raises(DataError, match=r"can be imported: .*no frames"):
        import_recording(tmp_path / "none", tmp_path / "data")


def recorded(
    folder: Path, times: list[float], *, fps: float = 20.0, size: tuple[int, int] = (32, 48), **more: Any
) -> None:
    """An episode whose frames were taken at these times; state and picture count them."""
    recorder = Recorder(folder=folder, fps=fps)
    recorder.begin("go right", more.get("name"))
    for number, time_s in enumerate(times):
        image = np.full((*size, 3), 5 * number % 250, np.uint8)
        seen = Observation(images={"front": image}, state=np.full(2, number, np.float32), instruction="go right")
        recorder.add(seen, np.full(2, 0.1 * number + more.get("offset", 0.0), np.float32), time_s=time_s)
    recorder.end(success=True)


def test_a_recording_that_ran_slower_than_it_declares_is_not_taken_at_its_word(tmp_path: Path) -> None:
    slow = [number / 12 for number in range(25)]
    recorded(tmp_path / "slow", slow, name="a")
    recorded(tmp_path / "slow", [number / 20 for number in range(25)], name="b")
    words = r"a ran at 12 frames per second, not at 20 \(1 of 2 episodes are off\)\. --fps 12 takes.*--resample abs.*--fps 20"
    with pytest.raises(ConfigError, match=words):
        import_recording(tmp_path / "slow", tmp_path / "data")
    assert not (tmp_path / "data").exists()  # nothing half written
    recorded(tmp_path / "one", slow, name="a")
    import_recording(tmp_path / "one", tmp_path / "as_it_ran", fps=12)
    dataset = LeRobotDataset(tmp_path / "as_it_ran")
    assert dataset.fps == 12 and dataset.episodes[0].length == 25
    np.testing.assert_allclose(dataset.column("policy.time", 0), slow)
    found = import_recording(tmp_path / "one", tmp_path / "insisted", fps=20)
    assert LeRobotDataset(tmp_path / "insisted").fps == 20 and "taken as 20, as asked" in found.notes[0]


def test_resampling_takes_the_nearest_frame_whole(tmp_path: Path) -> None:
    recorded(tmp_path / "slow", [number / 12 for number in range(25)])
    found = import_recording(tmp_path / "slow", tmp_path / "data", resample="absolute")
    dataset = LeRobotDataset(tmp_path / "data")
    nearest = [round(step / 20 * 12 + 1e-9) for step in range(41)]  # 24/12 s are 40 steps of 1/20 s
    assert dataset.fps == 20 and found.frames == 41
    np.testing.assert_array_equal(dataset.column("observation.state", 0)[:, 0], nearest)
    np.testing.assert_allclose(dataset.column("action", 0)[:, 0], 0.1 * np.array(nearest), rtol=1e-6)
    pictures = dataset.frames("front", 0, list(range(41))).mean((1, 2, 3))
    assert np.abs(pictures - 5 * np.array(nearest)).max() < 4
    # To a slower rate, frames are left out.
    import_recording(tmp_path / "slow", tmp_path / "slower", fps=6, resample="absolute")
    np.testing.assert_array_equal(
        LeRobotDataset(tmp_path / "slower").column("observation.state", 0)[:, 0], range(0, 25, 2)
    )


def test_increments_are_not_resampled_and_nothing_is_written(tmp_path: Path) -> None:
    """A change belongs to the time until the next frame; a target, or what is learnt relative to a state, may be left out."""
    arm = Embodiment(name="arm", cameras={"front": "observation.images.front"})
    for name, told in (
        ("said", {"actions": "delta"}),
        ("described", {key: value for key, value in arm.client_metadata.items() if key != "actions"}),
    ):
        record_with(tmp_path / name, name, told, np.array([0.5, 1.0]))
        with pytest.raises(DataError, match=f"{name} holds actions that are increments.*expected --resample none"):
            import_recording(tmp_path / name, tmp_path / "out", fps=5, resample="absolute")
        assert not (tmp_path / "out").exists()
    import_recording(tmp_path / "described", tmp_path / "changes", fps=5)
    record_with(tmp_path / "untold", "untold", {}, np.array([0.5, 1.0]))
    with pytest.raises(DataError, match="changes holds actions that are increments"):
        import_recording(tmp_path / "untold", tmp_path / "changes", fps=5, resample="absolute")


def test_jitter_and_pauses_are_no_slowness(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    steps = 0.05 + generator.uniform(-0.02, 0.02, 40)
    steps[17], steps[30] = 4.2, 0.9
    recorded(tmp_path / "rec", [0.0, *np.cumsum(steps)], name="a")
    found = import_recording(tmp_path / "rec", tmp_path / "data")
    assert LeRobotDataset(tmp_path / "data").fps == 20 and found.frames == 41
    assert found.notes == (
        "a paused 2 times, for 5.1 s in all, longest 4.2 s after frame 17; the dataset goes on without them",
    )
    import_recording(tmp_path / "rec", tmp_path / "again", resample="absolute")
    assert abs(LeRobotDataset(tmp_path / "again").episodes[0].length - 41) <= 2


def test_a_simulators_time_is_its_steps(tmp_path: Path) -> None:
    """However fast or slow it computes: ten frames a second are ten frames a second."""
    record(tmp_path / "rec", 1, fps=10)
    (name,) = [name for name in recorded_names(tmp_path / "rec") if "unused" not in name]
    episode = read_episode(tmp_path / "rec", name)
    assert episode.timed and [frame["time_s"] for frame in episode.frames] == [step / 10 for step in range(6)]


def test_recordings_from_before_times_counted_are_imported_with_a_word(tmp_path: Path) -> None:
    """Their times may be a computer's, which simulated as fast as it could."""
    recorded(tmp_path / "rec", [number / 500 for number in range(9)], name="a")
    whole = module._record
    old = tmp_path / "rec" / "a.lamprec"
    messages = [{key: value for key, value in each.items() if key != "timed"} for each in module._messages(old)]
    old.write_bytes(b"".join(whole(each, compress=False) for each in messages))
    found = import_recording(tmp_path / "rec", tmp_path / "data")
    assert LeRobotDataset(tmp_path / "data").fps == 20
    assert found.notes == (
        "a ran at 500 frames per second, not at 20 (1 of 1 episodes are off); "
        "taken as 20, as declared: those are hardly the times of a robot",
    )


def test_frames_recorded_as_fast_as_a_computer_can_are_as_many_a_second_as_declared(tmp_path: Path) -> None:
    recorded(tmp_path / "rec", [number / 9000 for number in range(9)], name="a")
    found = import_recording(tmp_path / "rec", tmp_path / "data")
    assert LeRobotDataset(tmp_path / "data").fps == 20 and "hardly the times of a robot" in found.notes[0]
    with pytest.raises(ConfigError, match="a: its frames were taken faster than any robot's"):
        import_recording(tmp_path / "rec", tmp_path / "other", resample="absolute")
    recorded(tmp_path / "fast", [number / 30 for number in range(9)], name="a")  # a loop that nobody paced
    with pytest.raises(ConfigError, match="a ran at 30 frames per second, not at 20"):
        import_recording(tmp_path / "fast", tmp_path / "other")


@pytest.mark.parametrize(
    ("size", "fps"),
    [((75, 101), 20.0), ((64, 64), 12.5), ((64, 64), 29.97), ((33, 34), 30000 / 1001), ((1, 1), 7.5), ((3, 640), 1.0)],
)
def test_odd_sizes_and_fractional_rates_come_back(size: tuple[int, int], fps: float, tmp_path: Path) -> None:
    recording, data = tmp_path / "rec", tmp_path / "data"
    for name, offset in (("a", 0.0), ("b", 1.0)):
        recorded(recording, [number / fps for number in range(30)], fps=fps, size=size, name=name, offset=offset)
    assert cli.main(["import-recording", str(recording), "--out", str(data)]) == 0
    dataset = LeRobotDataset(data)
    assert dataset.fps == pytest.approx(fps, abs=1e-9) and dataset.image_sizes == {"front": size}
    for episode in (0, 1):
        pictures = dataset.frames("front", episode, list(range(30)))
        assert pictures.shape == (30, *size, 3)
        assert np.abs(pictures.mean((1, 2, 3)) - 5 * np.arange(30)).max() < 4
    pixels = dataset.info["features"]["observation.images.front"]["info"]["video.pix_fmt"]
    assert pixels == ("yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p")
    assert cli.main(["data", "check", str(data)]) == 0
    # What is recorded later goes on in the same files' manner.
    recorded(recording, [number / fps for number in range(8)], fps=fps, size=size, name="c")
    assert import_recording(recording, data).episodes == 1 and len(LeRobotDataset(data).episodes) == 3


def test_foreign_names_stay_inside_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check_name", lambda *_: None)  # a recorder that lets everything through
    cameras = ("../../x", "/x", "..", "a/b", "front", "caméra", "x" * 300, " ", "con\nsole")
    recorder = Recorder(folder=tmp_path / "in" / "rec", fps=20)
    recorder.begin("go", "a")
    for step in range(4):
        images = {camera: np.full((16, 16, 3), 20 * step, np.uint8) for camera in cameras}
        recorder.add(
            Observation(images=images, state=np.zeros(1, np.float32), instruction="go"), np.zeros(1), time_s=step / 20
        )
    recorder.end()
    import_recording(tmp_path / "in" / "rec", tmp_path / "in" / "data" / "set")
    dataset = LeRobotDataset(tmp_path / "in" / "data" / "set")
    assert len(dataset.cameras) == len(cameras) and {"front", "caméra"} < set(dataset.cameras)
    assert all("/" not in camera and not camera.startswith(".") for camera in dataset.cameras)
    outside = [
        path for path in tmp_path.rglob("*") if path.is_file() and "set" not in path.parts and "rec" not in path.parts
    ]
    assert not outside
    for camera in dataset.cameras:
        assert abs(int(dataset.frames(camera, 0, [3])[0].mean()) - 60) <= 3


def test_a_staged_cameras_name_is_a_files(tmp_path: Path) -> None:
    frames = {"action": np.zeros((2, 1), np.float32)}
    for camera in ("../x", "/x", "", ".hidden"):
        episode = EpisodeData(frames=frames, images={camera: np.zeros((2, 16, 16, 3), np.uint8)}, task="go")
        with pytest.raises(ConfigError, match="cannot name a camera"):
            stage_episode(tmp_path / "data", "one", episode)
    assert not (tmp_path / "data").exists()


def test_what_does_not_fit_the_dataset_that_is_there_is_said_before_anything_is_staged(tmp_path: Path) -> None:
    recorded(tmp_path / "one", [step / 20 for step in range(4)])
    import_recording(tmp_path / "one", tmp_path / "data")
    recorded(tmp_path / "two", [step / 20 for step in range(4)], size=(32, 32), name="other")
    with pytest.raises(MismatchError, match=r"other: camera front is 32x32, in \S+data 48x32; expected the same"):
        import_recording(tmp_path / "two", tmp_path / "data")
    recorded(tmp_path / "three", [step / 10 for step in range(4)], fps=10)
    with pytest.raises(
        ConfigError, match=r"data has 20 frames per second, the recording 10; give another --out, or --fps 20"
    ):
        import_recording(tmp_path / "three", tmp_path / "data")
    assert not [path for path in (tmp_path / "data" / ".staging").glob("*") if path.is_dir()]


def test_a_damaged_episode_is_left_out_and_named(tmp_path: Path) -> None:
    recorded(tmp_path / "rec", [step / 20 for step in range(4)], name="good")
    for name, head in {"deep": "[" * 100_000, "list": "[1]", "null": None}.items():
        message = {"format": module.FORMAT, "version": 1, "instruction": "x", "fps": 20.0, "metadata": head}
        frame = {
            "action": np.zeros(1),
            "state": np.zeros(1),
            "time_s": 0.0,
            "images": {"a": {"shape": [99999, 99999, 3], "zlib": b""}},
        }
        (tmp_path / "rec" / f"{name}.lamprec").write_bytes(
            b"".join(module._record(each, compress=False) for each in (message, frame))
        )
    (tmp_path / "rec" / "empty.lamprec").write_bytes(b"")
    found = import_recording(tmp_path / "rec", tmp_path / "data")
    assert found.episodes == 1 and len(found.skipped) == 4
    assert all("is damaged" in line or "is no recording" in line for line in found.skipped), found.skipped


def record_with(folder: Path, name: str, told: Mapping[str, object] | None, action: np.ndarray) -> None:
    recorder = Recorder(folder=folder, fps=10)
    recorder.begin("go right", name, policy=told)
    for _ in range(3):
        image = np.zeros((32, 48, 3), np.uint8)
        recorder.add(Observation(images={"front": image}, state=np.ones(3, np.float32), instruction="go right"), action)
    recorder.end(success=True)


def test_what_the_actions_mean_is_imported_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recorded drive is data in the units of the demonstrations, beside which it can be trained on."""
    own = Embodiment(
        name="arm",
        cameras={"front": "observation.images.cam_0"},
        state=(Part(key="observation.state", start=1, stop=4),),
        gripper=Gripper(opened=70.0, closed=10.0),
        kind=Relative(offsets=((0, 0),)),
    )
    record_with(
        tmp_path / "recording", "one", {"action_units": "dataset", **own.client_metadata}, np.array([0.5, 70.0])
    )
    words = ["import-recording", str(tmp_path / "recording"), "--out", str(tmp_path / "data")]
    assert (
        cli.main(words) == 0
        and f"--also {tmp_path}/data={tmp_path}/data/meta/embodiment.json" in capsys.readouterr().out
    )
    robot = embodiment(str(tmp_path / "data/meta/embodiment.json"))
    assert robot.gripper == own.gripper and robot.kind == own.kind and robot.state == (Part(key="observation.state"),)
    dataset = robot.open(tmp_path / "data")
    assert dataset.cameras == ("front",)
    np.testing.assert_array_equal(robot.recorded_actions(dataset, 0), [[0.5, 70.0]] * 3)
    np.testing.assert_array_equal(robot.chunks(dataset, 0, 1)[0], [[-0.5, 1.0]])
    np.testing.assert_array_equal(robot.states(dataset, 0), np.ones((3, 3)))
    # Another convention does not get into the same dataset, today or later.
    record_with(
        tmp_path / "recording", "two", {"gripper": {"dim": -1, "opened": -1, "closed": 1}}, np.array([0.5, -1.0])
    )
    assert cli.main(words) == 2
    assert "two: actions are delta with a gripper -1 = open, 1 = closed, but relative with a gripper 70 = open" in (
        capsys.readouterr().err
    )
    record_with(tmp_path / "mangled", "three", {"gripper": "wide"}, np.array([0.5, -1.0]))
    with pytest.raises(
        DataError, match="three: what is recorded of the policy cannot be read: the policy's gripper is 'wide'"
    ):
        import_recording(tmp_path / "mangled", tmp_path / "other")
