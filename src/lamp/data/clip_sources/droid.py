"""Clips of raw DROID episodes, with the calibration and the language that were published later.

An episode is a folder with ``metadata_<episode>.json`` (serial numbers of its cameras, `trajectory_length`, `current_task`),
``trajectory.h5``, and ``recordings/MP4/<serial>.mp4`` or ``<serial>-stereo.mp4`` (both eyes side by side), one frame a step of 15
Hz control (https://droid-dataset.github.io; `MP4Reader` and `load_trajectory` of https://github.com/droid-dataset/droid). It
holds no depth: Stereolabs' SVO files, from which depth can be computed, are not read.

Files of https://huggingface.co/datasets/KarlP/droid (its README says their format) may lie in the source's folder:
``intrinsics.json`` (episode, serial: fx, cx, fy, cy in px of 1280x720), ``cam2base_extrinsics.json`` and
``cam2base_extrinsic_superset.json`` (episode, serial: x, y, z in m and Euler angles xyz in rad, camera to base) and
``droid_language_annotations.json``. The extrinsics in ``trajectory.h5`` are noisy for cameras that stand still, and are used for
the wrist camera alone, which they follow step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from lamp.data.clip_sources.calibration import CALIBRATION, Calibration, pinhole, pose_of_euler
from lamp.data.clip_sources.frames import VideoFrames, as_colours
from lamp.data.clip_sources.source import ClipReader, ClipSource, SourceSettings, instruction_of, unique_names
from lamp.data.robot_calibration import RobotCalibration
from lamp.errors import ConfigError, DataError, import_extra, unknown
from lamp.json_files import read_json_object
from lamp.sceneflow.estimate.interfaces import Clip

CAMERAS = ("ext1", "ext2", "wrist")
FPS = 15.0
"""Hz, of control and of the recorded frames."""
SIZE = (1280, 720)
"""Width and height that the intrinsics are for. [px]"""
JOINTS = "observation/robot_state/joint_positions"
EXTRINSICS = ("cam2base_extrinsics.json", "cam2base_extrinsic_superset.json")


class DroidSource(ClipSource):
    """The episodes below a folder, in the camera `ext1`, `ext2` or `wrist`."""

    def __init__(self, path: Path, settings: SourceSettings) -> None:
        self.path, self.settings = path, settings
        self.camera: str = settings.camera or CAMERAS[0]
        if self.camera not in CAMERAS:
            raise unknown("camera", self.camera, CAMERAS)
        if settings.depth not in (None, "none"):
            raise ConfigError(f"--depth {settings.depth}: raw DROID episodes hold no depth; --depth-model estimates it")
        found = sorted(path.rglob("metadata_*.json"))
        self.episodes = unique_names((file.stem.removeprefix("metadata_"), file) for file in found)
        self.names = list(self.episodes)
        self._published: dict[str, dict[str, Any]] = {}

    def open(self, name: str) -> ClipReader:
        return DroidClip(self, name)

    def published(self, file: str, episode: str) -> Mapping[str, Any]:
        """What one of the later files says of an episode; nothing, where it is not there."""
        if file not in self._published:
            path = self.path / file
            self._published[file] = read_json_object(path, "annotations of DROID") if path.is_file() else {}
        found = self._published[file].get(episode, {})
        if not isinstance(found, dict):
            raise DataError(
                f"{self.path / file}: {episode} has {found!r:.80}; expected an object, as KarlP/droid has it"
            )
        return found


class DroidClip(ClipReader):
    """One camera of an episode."""

    def __init__(self, source: DroidSource, name: str) -> None:
        self.name, self.fps = name, FPS
        metadata, self._source = source.episodes[name], source
        self._folder = metadata.parent
        content = read_json_object(metadata, "metadata of DROID")
        episode, key = metadata.stem.removeprefix("metadata_"), f"{source.camera}_cam_serial"
        if not str(content.get(key, "")):
            raise DataError(f"{metadata} names no {key}; expected the serial number of the camera {source.camera}")
        self._serial = str(content[key])
        self._video = VideoFrames(self._file(), name)
        self.length = len(self._video)
        steps = int(content.get("trajectory_length") or self.length)
        if abs(steps - self.length) > 2:
            raise DataError(
                f"{name}: {self._video.path.name} has {self.length} frames and the trajectory {steps} steps; expected a frame "
                "for each"
            )
        texts = source.published("droid_language_annotations.json", episode)
        said = [str(texts[one]) for one in sorted(texts) if one.startswith("language_instruction")]
        task = str(content.get("current_task") or "")
        self.instruction = instruction_of([*said, task, source.settings.instruction or ""], name)
        self._calibration = self._calibrated(episode)

    def _file(self) -> Path:
        folder = self._folder / "recordings" / "MP4"
        for file in (folder / f"{self._serial}.mp4", folder / f"{self._serial}-stereo.mp4"):
            if file.is_file():
                return file
        there = ", ".join(sorted(file.name for file in folder.glob("*.mp4"))) or "nothing"
        raise DataError(
            f"{self.name} has no video of the camera {self._source.camera}, {self._serial}.mp4 or {self._serial}-stereo.mp4, in "
            f"{folder}; there is {there}"
        )

    def _calibrated(self, episode: str) -> Calibration:
        """What was published of the camera, or recorded of the one on the wrist.

        Raises:
            DataError: It is no calibration.
        """
        source, wrist = self._source, self._source.camera == "wrist"
        calibration = Calibration(file="intrinsics.json", fixed_camera=not wrist)
        try:
            lens = source.published("intrinsics.json", episode).get(self._serial)
            if lens is not None:
                fx, cx, fy, cy = (float(value) for value in lens)
                values = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "width": SIZE[0], "height": SIZE[1]}
                matrix, size = pinhole(values)
                calibration = replace(calibration, intrinsics=matrix, size=size)
            if wrist:
                poses = pose_of_euler(self._recorded(f"observation/camera_extrinsics/{self._serial}_left"))
            else:
                known = (source.published(file, episode).get(self._serial) for file in EXTRINSICS)
                place = next((one for one in known if one is not None), None)
                poses = None if place is None else pose_of_euler(np.array(place, dtype=np.float64).reshape(1, 6))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{self.name}: what is known of the camera {self._serial} cannot be read ({error}); expected intrinsics fx, cx, "
                "fy, cy and extrinsics x, y, z and three Euler angles, as KarlP/droid has them"
            ) from None
        calibration = replace(calibration, world_from_cam=poses).told(self._source.settings)
        return replace(calibration, robot=self._robot(poses), fps=FPS)

    def _robot(self, base_from_cam: Float64[np.ndarray, "n 4 4"] | None) -> RobotCalibration | None:
        """The robot that calibration.json in the source's folder describes by `urdf` and `joint_names`, seen by this camera."""
        file = self._source.path / CALIBRATION
        if base_from_cam is None or not file.is_file():
            return None
        robot = read_json_object(file, "calibration").get("robot")
        try:
            said = {"joints": JOINTS, **robot, "base_from_cam": np.eye(4)} if isinstance(robot, dict) else robot
            return replace(RobotCalibration.of(said, file.parent), mount=base_from_cam)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: robot: {error}; expected its urdf and joint_names") from None

    def _recorded(self, place: str) -> Float64[np.ndarray, "n c"]:
        """A table of trajectory.h5, a row a frame of the video."""
        h5py = import_h5py()
        path = self._folder / "trajectory.h5"
        try:
            with h5py.File(path, "r") as file:
                values = np.asarray(file[place], dtype=np.float64)
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{self.name}: cannot read {place} of {path} ({error})") from None
        if values.ndim != 2 or len(values) < self.length:
            raise DataError(
                f"{self.name}: {place} of {path} has the shape {values.shape} for {self.length} frames; expected a row a frame"
            )
        return values[: self.length]

    def joints(self, place: str) -> Float64[np.ndarray, "n j"]:
        return self._recorded(place)

    def window(self, first: int, last: int) -> Clip:
        images = [as_colours(value, self.name) for value in self._video.read(first, last)]
        height, width = images[0].shape[:2]
        if width > 2.5 * height:  # both eyes, the left one first
            images = [image[:, : width // 2] for image in images]
        calibration = self._calibration
        if calibration.robot is not None and len(calibration.robot.mount) > 1:
            calibration = replace(
                calibration, robot=replace(calibration.robot, mount=calibration.robot.mount[first:last])
            )
        return calibration.clip(np.stack(images), None, self, first, last)


def import_h5py() -> Any:
    """
    Raises:
        MissingDependencyError: It is not installed.
    """
    return import_extra(
        "h5py", "trajectory.h5 of DROID is read by h5py, which cannot be imported ({}): pip install 'lamp-vla[droid]'"
    )
