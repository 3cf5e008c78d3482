"""Clips of recordings that are laid out as DROID, InternData-A1, Open3D and librealsense lay them out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_clips import INTRINSICS, SIZE, sliding_square
from scipy.spatial.transform import Rotation
from test_flow_from_video import millimetres, settings, write_images, write_mp4, write_recording

from lamp.data.clip_sources import ClipReader, SourceSettings, find_source
from lamp.data.flow_from_video import build_from_video
from lamp.data.lerobot.staging import EpisodeData
from lamp.data.lerobot.writer import LeRobotWriter
from lamp.errors import ConfigError, DataError, MissingDependencyError
from lamp.sceneflow.estimate.interfaces import Clip
from lamp.sceneflow.validate import validate

FRAMES = 12
EPISODE = "AUTOLab+0d4edc83+2023-10-27-20h-25m-34s"
SERIALS = {"ext1": "22008760", "ext2": "24400334", "wrist": "18026681"}
PLACE = [0.5, 0.3, 0.6, -1.9, 0.1, -2.2]
"""m and rad, camera to base."""


@pytest.fixture(scope="module")
def clip() -> Clip:
    return sliding_square(FRAMES)


def wide(images: np.ndarray) -> np.ndarray:
    """Cut to the proportions of DROID's cameras, 16 by 9."""
    return np.ascontiguousarray(images[:, 12:84])


def write_droid(root: Path, clip: Clip, **changes: Any) -> Path:
    """An episode and what KarlP/droid says of it; the first external camera has both eyes in its video."""
    folder = root / "AUTOLab/success/2023-10-27/Fri_Oct_27_20:25:34_2023"
    videos = folder / "recordings/MP4"
    videos.mkdir(parents=True)
    eyes = np.concatenate([wide(clip.rgb), wide(clip.rgb)[:, :, ::-1]], axis=2)
    write_mp4(videos / f"{SERIALS['ext1']}-stereo.mp4", eyes)
    write_mp4(videos / f"{SERIALS['wrist']}.mp4", wide(clip.rgb))
    metadata = {f"{name}_cam_serial": serial for name, serial in SERIALS.items()}
    metadata |= {"uuid": EPISODE, "trajectory_length": FRAMES + 1, "current_task": "a task by its number", **changes}
    (folder / f"metadata_{EPISODE}.json").write_text(json.dumps(metadata))
    lens = [1280.0, 640.0, 1280.0, 360.0]  # fx, cx, fy, cy
    (root / "intrinsics.json").write_text(json.dumps({EPISODE: {serial: lens for serial in SERIALS.values()}}))
    published = {EPISODE: {SERIALS["ext1"]: PLACE, "relative_path": "AUTOLab/...", "metric": 0.9}}
    (root / "cam2base_extrinsics.json").write_text(json.dumps(published))
    said = {EPISODE: {"language_instruction1": "slide the square", "language_instruction2": "push it"}}
    (root / "droid_language_annotations.json").write_text(json.dumps(said))
    return folder


def opened(root: Path, **told: Any) -> ClipReader:
    source = find_source(root, SourceSettings(**told))
    return source.open(source.names[0])


def test_an_episode_of_droid_has_its_published_calibration_and_language(tmp_path: Path, clip: Clip) -> None:
    write_droid(tmp_path, clip)
    reader = opened(tmp_path)
    assert (reader.name, reader.length, reader.fps) == (EPISODE, FRAMES, 15.0)
    assert reader.instruction == "slide the square"
    window = reader.window(2, 6)
    assert window.rgb.shape == (4, 72, 128, 3) and window.depth is None and window.fixed_camera
    assert np.abs(window.rgb.astype(int) - wide(clip.rgb)[2:6]).mean() < 10, "the left eye"
    np.testing.assert_allclose(
        np.asarray(window.intrinsics), [[1, 0, 640.5 / 1280], [0, 16 / 9, 360.5 / 720], [0, 0, 1]]
    )
    poses = np.asarray(window.world_from_cam)
    np.testing.assert_allclose(poses[:, :3, 3], np.tile(PLACE[:3], (4, 1)))
    # Angles about the fixed axes x, y, z, in this order.
    by_hand = Rotation.from_rotvec([0, 0, PLACE[5]]) * Rotation.from_rotvec([0, PLACE[4], 0])
    np.testing.assert_allclose(poses[0, :3, :3], (by_hand * Rotation.from_rotvec([PLACE[3], 0, 0])).as_matrix())
    with pytest.raises(DataError, match=r"no video of the camera ext2, 24400334.mp4 or .*there is 18026681.mp4"):
        opened(tmp_path, camera="ext2")
    with pytest.raises(ConfigError, match=r"unknown camera 'ext3'.*ext1, ext2, wrist"):
        opened(tmp_path, camera="ext3")
    with pytest.raises(ConfigError, match="raw DROID episodes hold no depth"):
        opened(tmp_path, depth="left")


def test_droid_becomes_tracks_without_depth(tmp_path: Path, clip: Clip) -> None:
    write_droid(tmp_path / "raw", clip)
    build_from_video(settings(tmp_path / "raw", tmp_path / "out", name="ext1"))
    assert validate(tmp_path / "out") == []


def test_bad_episodes_of_droid_are_named(tmp_path: Path, clip: Clip) -> None:
    write_droid(tmp_path / "short", clip, trajectory_length=FRAMES + 9)
    with pytest.raises(DataError, match=rf"has {FRAMES} frames and the trajectory {FRAMES + 9} steps"):
        opened(tmp_path / "short")
    write_droid(tmp_path / "unnamed", clip, ext1_cam_serial="")
    with pytest.raises(DataError, match="names no ext1_cam_serial"):
        opened(tmp_path / "unnamed")
    write_droid(tmp_path / "odd", clip)
    (tmp_path / "odd/intrinsics.json").write_text(json.dumps({EPISODE: {SERIALS["ext1"]: [1, 2, 3]}}))
    with pytest.raises(DataError, match=r"camera 22008760 cannot be read .*expected intrinsics fx, cx, fy, cy"):
        opened(tmp_path / "odd")
    (tmp_path / "odd/intrinsics.json").write_text(json.dumps({EPISODE: [1]}))
    with pytest.raises(DataError, match=r"expected an object, as KarlP/droid has it"):
        opened(tmp_path / "odd")


def write_trajectory(folder: Path, steps: int) -> np.ndarray:
    h5py = pytest.importorskip("h5py", reason="h5py reads trajectory.h5 (extra droid)")
    way = np.tile(PLACE, (steps, 1)) + 0.01 * np.arange(steps)[:, None]
    with h5py.File(folder / "trajectory.h5", "w") as file:
        file[f"observation/camera_extrinsics/{SERIALS['wrist']}_left"] = way
        file["observation/robot_state/joint_positions"] = 0.1 * np.arange(steps)[:, None]
    return way


def test_the_wrist_camera_of_droid_goes_where_the_trajectory_says(tmp_path: Path, clip: Clip) -> None:
    folder = write_droid(tmp_path, clip)
    way = write_trajectory(folder, FRAMES + 1)
    window = opened(tmp_path, camera="wrist").window(3, 8)
    poses = np.asarray(window.world_from_cam)
    np.testing.assert_allclose(poses[:, :3, 3], way[3:8, :3])
    turns = Rotation.from_euler("xyz", way[3:8, 3:]).as_matrix()
    np.testing.assert_allclose(poses[:, :3, :3], turns, atol=1e-12)
    assert not window.fixed_camera and window.rgb.shape[2] == 128
    write_trajectory(folder, FRAMES - 4)
    with pytest.raises(DataError, match=rf"has the shape \({FRAMES - 4}, 6\) for {FRAMES} frames"):
        opened(tmp_path, camera="wrist")


def test_the_joints_of_droid_move_the_robot_of_its_urdf(tmp_path: Path, clip: Clip) -> None:
    write_trajectory(write_droid(tmp_path, clip), FRAMES + 1)
    (tmp_path / "arm.urdf").write_text(
        '<robot name="arm"><link name="base"/><link name="hand"><collision><geometry><sphere radius="0.1"/></geometry>'
        '</collision></link><joint name="slide" type="prismatic"><parent link="base"/><child link="hand"/><axis xyz="1 0 0"/>'
        "</joint></robot>"
    )
    (tmp_path / "calibration.json").write_text(json.dumps({"robot": {"urdf": "arm.urdf", "joint_names": ["slide"]}}))
    for camera, places in (("ext1", np.tile(PLACE[:3], (3, 1))), ("wrist", None)):
        robot = opened(tmp_path, camera=camera).window(4, 7).robot
        assert robot is not None
        np.testing.assert_allclose(robot.base_from_link["hand"][:, 0, 3], [0.4, 0.5, 0.6])
        if places is not None:
            np.testing.assert_allclose(robot.base_from_cam[:, :3, 3], places)
        else:
            np.testing.assert_allclose(robot.base_from_cam[:, 0, 3], 0.5 + 0.01 * np.arange(4, 7))
    (tmp_path / "calibration.json").write_text(json.dumps({"robot": {"joint_names": ["slide"]}}))
    with pytest.raises(DataError, match=r"calibration.json: robot: .*urdf.*expected its urdf and joint_names"):
        opened(tmp_path)


def test_without_h5py_the_wrist_camera_is_refused(tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    write_droid(tmp_path, clip)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert opened(tmp_path).length == FRAMES
    with pytest.raises(MissingDependencyError, match=r"lamp-vla\[droid\]"):
        opened(tmp_path, camera="wrist")


HEAD = np.array([1.0905579, -0.0133855, 0.4424713, -0.3353361, 0.6308135, 0.6214680, -0.3215612], np.float32)
"""`head_camera_to_robot_extrinsics` of a published episode: before the robot, and looking down at it."""


def write_interndata(
    root: Path, clip: Clip, *, camera: np.ndarray = HEAD, fx: float = 128.0, base: bool = True
) -> None:
    """A task of InternData-A1: its features, beside the pictures."""
    count = len(clip.rgb)
    frames: dict[str, np.ndarray] = {
        "head_camera_intrinsics": np.tile(np.array([fx, 128, 63.5, 47.5], np.float32), (count, 1)),
        "head_camera_to_robot_extrinsics": np.tile(camera, (count, 1)),
        "states.joint.position": np.zeros((count, 7), np.float32),
    }
    if base:
        ahead = np.array([2, 0, 0, 1, 0, 0, 0], np.float32)
        frames["states.robot_to_env_pose"] = np.tile(ahead, (count, 1))
    writer = LeRobotWriter(root, fps=30)
    for task in ("slide it", "slide it again"):
        writer.add_episode(EpisodeData(frames=frames, images={"images.rgb.head": clip.rgb}, task=task))
    writer.finalize()


def test_tasks_of_interndata_a1_are_one_source_with_their_calibration(tmp_path: Path, clip: Clip) -> None:
    for task in ("pick/franka/one", "pick/franka/two"):
        write_interndata(tmp_path / task, clip, base=task.endswith("two"))
    source = find_source(tmp_path, SourceSettings())
    assert len(source.names) == 4 and source.names[0] == "pick_franka_one_episode-000000"
    reader = source.open("pick_franka_one_episode-000001")
    assert (reader.name, reader.instruction) == ("pick_franka_one_episode-000001", "slide it again")
    window = reader.window(1, 4)
    np.testing.assert_allclose(np.asarray(window.intrinsics), INTRINSICS, atol=1e-6)
    pose = np.asarray(window.world_from_cam)
    assert pose.shape == (3, 4, 4) and (pose == pose[0]).all()
    np.testing.assert_allclose(pose[0, :3, 3], HEAD[:3], atol=1e-6)
    assert pose[0, 2, 2] < -0.5 and pose[0, 0, 2] < -0.8 and pose[0, 2, 1] < -0.8, "looks back and down, y down"
    moved = np.asarray(source.open("pick_franka_two_episode-000000").window(0, 2).world_from_cam)
    np.testing.assert_allclose(moved[0, :3, 3], HEAD[:3] + np.array([2, 0, 0]), atol=1e-6)
    with pytest.raises(DataError, match=r"none of the 2 LeRobot datasets in .*unknown camera 'hand'"):
        find_source(tmp_path, SourceSettings(camera="hand"))


def test_bad_calibrations_of_interndata_are_named(tmp_path: Path, clip: Clip) -> None:
    write_interndata(tmp_path / "zero", clip, camera=np.zeros(7, np.float32))
    with pytest.raises(DataError, match=r"no calibration of the camera .*no unit quaternion"):
        opened(tmp_path / "zero")
    write_interndata(tmp_path / "flat", clip, fx=0.0)
    with pytest.raises(DataError, match=r"no calibration of the camera .*impossible intrinsics"):
        opened(tmp_path / "flat")


def test_archives_are_to_be_unpacked_first(tmp_path: Path) -> None:
    (tmp_path / "franka").mkdir()
    (tmp_path / "franka/pick.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds 1 archives, such as pick.tar.gz.*tar -xzf pick.tar.gz"):
        find_source(tmp_path, SourceSettings())


@pytest.mark.parametrize("name", ["intrinsic.json", "camera_intrinsic.json"])
def test_what_open3d_saves_of_a_realsense_camera_says_its_calibration(tmp_path: Path, clip: Clip, name: str) -> None:
    write_images(tmp_path / "color", clip.rgb)
    write_images(tmp_path / "depth", millimetres(clip))
    (tmp_path / "lang.txt").write_text("slide the square")
    camera = {"width": SIZE[0], "height": SIZE[1], "intrinsic_matrix": [128, 0, 0, 0, 128, 0, 63.5, 47.5, 1]}
    (tmp_path / name).write_text(json.dumps({**camera, "depth_scale": 1000.0, "fps": 30.0}))
    reader = opened(tmp_path)
    window = reader.window(0, 3)
    assert reader.fps == 30
    np.testing.assert_allclose(np.asarray(window.intrinsics), INTRINSICS)
    np.testing.assert_allclose(np.asarray(window.depth), np.asarray(clip.depth)[:3], atol=1e-3)
    (tmp_path / name).write_text(json.dumps({**camera, "intrinsic_matrix": [128, 0]}))
    with pytest.raises(DataError, match=r"no camera of Open3D .*an intrinsic_matrix of nine numbers"):
        opened(tmp_path)
    write_recording(tmp_path / "other", clip)
    (tmp_path / "other" / name).write_text("[]")
    assert opened(tmp_path / "other").fps == 10, "calibration.json stands above it"


class Recorded:
    """Stands in for pyrealsense2: plays frames of colour and depth as the SDK's pipeline does, depth in units of 0.1 mm."""

    WARM_UP = 8
    """Frames before the clip, of which each time another number is dropped."""

    def __init__(self, clip: Clip, *, colours: str = "rgb8", times: np.ndarray | None = None, depth: bool = True):
        self.format = SimpleNamespace(rgb8="rgb8", bgr8="bgr8")
        self.stream = SimpleNamespace(color="color", depth="depth")
        self._clip, self._depth, self.stopped, self.real_time = clip, depth, 0, True
        self._times = 1000 / 30 * np.arange(len(clip.rgb)) if times is None else times
        lens = SimpleNamespace(fx=128.0, fy=128.0, ppx=63.5, ppy=47.5, width=SIZE[0], height=SIZE[1])
        self._profile = SimpleNamespace(format=lambda: colours, intrinsics=lens)
        self._profile.as_video_stream_profile = lambda: self._profile
        self._at = self._plays = 0

    def config(self) -> Any:
        def enable(path: str, repeat: bool) -> None:
            assert not repeat
            if Path(path).read_bytes() != b"bag":
                raise RuntimeError("Failed to create ros reader")

        return SimpleNamespace(enable_device_from_file=enable)

    def pipeline(self) -> Any:
        return self

    def start(self, _: Any) -> Any:
        self._at, self._plays = self._plays % 3 - self.WARM_UP, self._plays + 1
        playback = SimpleNamespace(set_real_time=lambda value: setattr(self, "real_time", value))
        streams = [
            SimpleNamespace(stream_type=lambda kind=kind: kind) for kind in ("color", "depth")[: 1 + self._depth]
        ]
        device = SimpleNamespace(as_playback=lambda: playback)
        return SimpleNamespace(
            get_device=lambda: device, get_streams=lambda: streams, get_stream=lambda kind: self._profile
        )

    def stop(self) -> None:
        self.stopped += 1

    def try_wait_for_frames(self, _: int) -> tuple[bool, Any]:
        at, self._at = max(self._at, 0), self._at + 1
        if at >= len(self._clip.rgb):
            return False, None
        units, time = 1e-4, self._times[at] + min(self._at - 1, 0) * 1000 / 30
        codes = np.rint(np.asarray(self._clip.depth)[at] / units).astype(np.uint16)
        colour = SimpleNamespace(
            get_timestamp=lambda: float(time), get_data=lambda: self._clip.rgb[at], profile=self._profile
        )
        depth = SimpleNamespace(get_data=lambda: codes, get_units=lambda: units)
        return True, SimpleNamespace(get_color_frame=lambda: colour, get_depth_frame=lambda: depth)

    def align(self, stream: str) -> Any:
        assert stream == "color"
        return SimpleNamespace(process=lambda frames: frames)


def write_bag(root: Path, name: str = "slide.bag") -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(b"bag")
    (root / name).with_suffix(".txt").write_text("slide the square")
    return root / name


def test_a_realsense_recording_is_played_back(tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Recorded(clip)
    monkeypatch.setitem(sys.modules, "pyrealsense2", played)
    path = write_bag(tmp_path / "bags")
    reader = opened(path)
    assert (reader.name, reader.length, reader.instruction) == ("slide", FRAMES, "slide the square")
    assert reader.fps == pytest.approx(30) and not played.real_time
    for first, last in ((0, 5), (3, FRAMES), (1, 3)):
        window = reader.window(first, last)
        np.testing.assert_array_equal(window.rgb, clip.rgb[first:last])
        np.testing.assert_allclose(np.asarray(window.depth), np.asarray(clip.depth)[first:last], atol=1e-4)
        np.testing.assert_allclose(np.asarray(window.intrinsics), INTRINSICS)
    build_from_video(settings(tmp_path / "bags", tmp_path / "out", name="front", every=6))
    assert validate(tmp_path / "out") == []
    monkeypatch.setitem(sys.modules, "pyrealsense2", Recorded(clip, colours="bgr8"))
    np.testing.assert_array_equal(opened(path).window(0, 2).rgb, clip.rgb[:2, ..., ::-1])


def test_bad_realsense_recordings_are_named(tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bag(tmp_path / "bags", "slide.db3")
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(MissingDependencyError, match=r"lamp-vla\[realsense\]"):
        find_source(path, SourceSettings())
    lost = 1000 / 30 * np.delete(np.arange(FRAMES + 1), 5)
    for player, complaint in (
        (Recorded(clip, depth=False), "not both colour and depth"),
        (Recorded(clip, times=lost), r"variable frame rate, 33.3 to 66.7 ms"),
    ):
        monkeypatch.setitem(sys.modules, "pyrealsense2", player)
        with pytest.raises(DataError, match=complaint):
            opened(path)
        assert player.stopped
    monkeypatch.setitem(sys.modules, "pyrealsense2", Recorded(clip, colours="yuyv"))
    with pytest.raises(DataError, match="stored as yuyv; expected rgb8 or bgr8"):
        opened(path).window(0, 2)
    player = Recorded(clip)
    monkeypatch.setitem(sys.modules, "pyrealsense2", player)
    reader = opened(path)
    player._times = player._times + 1
    with pytest.raises(DataError, match=r"gives other frames when it is read again \(number 0\)"):
        reader.window(0, 2)
    path.write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cannot read the RealSense recording .*ros reader"):
        opened(path)


def test_a_recording_of_the_real_sdk_is_read(tmp_path: Path) -> None:
    clip = sliding_square(24)
    rs = pytest.importorskip("pyrealsense2", reason="pyrealsense2 records and reads bags (extra realsense)")
    record_with_sdk(rs, tmp_path / "slide.db3", clip)
    reader = opened(tmp_path, instruction="slide it", fps=30.0)
    window = reader.window(0, reader.length)
    first = [at for at in range(24) if (clip.rgb[at] == window.rgb[0]).all()]
    assert len(first) == 1 and reader.length >= 11, "a quarter of a second is left out, and what the SDK drops before"
    kept = slice(first[0], first[0] + reader.length)
    np.testing.assert_array_equal(window.rgb, clip.rgb[kept])
    np.testing.assert_allclose(np.asarray(window.intrinsics), INTRINSICS)
    np.testing.assert_allclose(np.nan_to_num(np.asarray(window.depth)), np.asarray(clip.depth)[kept], atol=1e-3)


def record_with_sdk(rs: Any, path: Path, clip: Clip) -> None:
    """Records a clip from a software device, as librealsense does from a camera."""
    import time

    device, (width, height) = rs.software_device(), SIZE
    lens = rs.intrinsics()
    lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy = width, height, 128.0, 128.0, 63.5, 47.5
    lens.model, lens.coeffs = rs.distortion.none, [0] * 5
    kinds = ((rs.stream.depth, rs.format.z16, 2), (rs.stream.color, rs.format.rgb8, 3))
    sensors, profiles = [device.add_sensor("Depth"), device.add_sensor("Color")], []
    for number, (sensor, (stream, kind, size)) in enumerate(zip(sensors, kinds, strict=True)):
        video = rs.video_stream()
        video.type, video.index, video.uid, video.width, video.height = stream, 0, number + 1, width, height
        video.fps, video.bpp, video.fmt, video.intrinsics = 30, size, kind, lens
        profiles.append(sensor.add_video_stream(video))
    sensors[0].add_read_only_option(rs.option.depth_units, 0.001)
    same = rs.extrinsics()
    same.rotation, same.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0]
    profiles[0].register_extrinsics_to(profiles[1], same)
    device.create_matcher(rs.matchers.default)
    recorder, queue = rs.recorder(str(path), device), rs.frame_queue(100)
    recorded = recorder.query_sensors()
    for sensor in recorded:
        sensor.open(sensor.get_stream_profiles()[0])
        sensor.start(queue)
    pictures = [np.ascontiguousarray(millimetres(clip)), np.ascontiguousarray(clip.rgb)]
    for at in range(len(clip.rgb)):
        for sensor, profile, images, (_, _, size) in zip(sensors, profiles, pictures, kinds, strict=True):
            frame = rs.software_video_frame()
            frame.pixels, frame.bpp, frame.stride, frame.frame_number = images[at], size, width * size, at
            frame.timestamp, frame.domain = at * 1000 / 30, rs.timestamp_domain.hardware_clock
            frame.profile, frame.depth_units = profile.as_video_stream_profile(), 0.001
            sensor.on_video_frame(frame)
        time.sleep(0.03)
    for sensor in recorded:
        sensor.stop()
        sensor.close()
    del recorder
