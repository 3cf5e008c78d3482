"""Clips of LeRobot datasets, one or many below a folder, among them InternData-A1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from lamp.data.clip_sources.calibration import CALIBRATION, Calibration, pinhole, pose_of_quaternion
from lamp.data.clip_sources.source import ClipReader, ClipSource, SourceSettings, instruction_of
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import ConfigError, DataError, LampError, unknown
from lamp.files import safe_file_name
from lamp.sceneflow.estimate.interfaces import Clip

BASE = "states.robot_to_env_pose"
"""InternData-A1: where the robot stands."""


class LeRobotSource(ClipSource):
    """The episodes of a LeRobot dataset, in one of its cameras."""

    def __init__(self, path: Path, settings: SourceSettings) -> None:
        self.path, self.settings = path, settings
        self.dataset = LeRobotDataset(path)
        cameras, depths = tuple(self.dataset.cameras), self.dataset.depth_cameras
        if not cameras:
            raise DataError(f"{path} has no cameras; scene flow from video needs images")
        self.camera: str = settings.camera or cameras[0]
        if self.camera not in cameras:
            raise unknown("camera", self.camera, cameras)
        if settings.depth not in (None, "none", *depths):
            raise unknown("depth", settings.depth, [*depths, "none"])
        alike = [name for name in depths if self.camera in name]
        found = alike[0] if len(alike) == 1 else depths[0] if len(depths) == 1 and len(cameras) == 1 else None
        self.depth: str | None = None if settings.depth == "none" else settings.depth or found
        if self.depth is None and depths and settings.depth != "none":
            raise ConfigError(
                f"{path} has the depth maps {', '.join(depths)}, none named as {self.camera} is; choose with --depth"
            )
        self.names: Sequence[str] = [f"episode-{episode:06d}" for episode in range(len(self.dataset))]

    def open(self, name: str) -> ClipReader:
        return LeRobotClip(self, int(name.removeprefix("episode-")))


class LeRobotCollection(ClipSource):
    """The episodes of all LeRobot datasets below a folder, each in the camera of that name, as InternData-A1 comes: a dataset for
    each task, robot and scene. A clip is called as its dataset's folder and its episode are.
    """

    def __init__(self, path: Path, folders: Sequence[Path], settings: SourceSettings) -> None:
        self.path, self.settings = path, settings
        self._datasets: dict[str, LeRobotSource] = {}
        self._faults: dict[str, str] = {}
        for folder in folders:
            name = safe_file_name("_".join(folder.relative_to(path).parts))
            try:
                self._datasets[name] = LeRobotSource(folder, settings)
            except LampError as error:
                self._faults[name] = str(error)
        if not self._datasets:
            raise DataError(
                f"none of the {len(folders)} LeRobot datasets in {path} can be used; the first one: "
                f"{next(iter(self._faults.values()))}"
            )
        good = [f"{name}_{clip}" for name, source in self._datasets.items() for clip in source.names]
        self.names: Sequence[str] = sorted([*good, *self._faults])

    def open(self, name: str) -> ClipReader:
        if name in self._faults:
            raise DataError(self._faults[name])
        dataset, _, episode = name.rpartition("_")
        reader = self._datasets[dataset].open(episode)
        reader.name = name
        return reader


class LeRobotClip(ClipReader):
    """An episode of a LeRobot dataset."""

    def __init__(self, source: LeRobotSource, episode: int) -> None:
        self._source, self._episode = source, episode
        dataset = source.dataset
        self.name, self.fps = f"episode-{episode:06d}", float(dataset.fps)
        self.length = dataset.episode(episode).length
        self.instruction = instruction_of(
            [*dataset.instructions(episode)[0], source.settings.instruction or ""], self.name
        )
        self._calibration = Calibration.read(source.path, source.settings)
        if self._calibration.intrinsics is None:
            self._calibration = self._interndata(self._calibration)

    def _interndata(self, calibration: Calibration) -> Calibration:
        """The camera in InternData-A1's features, if these are there: `head_camera_intrinsics` (fx, fy, cx, cy in px) and
        `head_camera_to_robot_extrinsics` ((x, y, z) in m and (w, x, y, z); the camera looks along its z axis, y is down), on
        a robot that `states.robot_to_env_pose` may move.

        Raises:
            DataError: They cannot be those of a camera.
        """
        dataset, camera = self._source.dataset, self._source.camera.rpartition(".")[2]
        names = f"{camera}_camera_intrinsics", f"{camera}_camera_to_robot_extrinsics"
        if not set(names) <= set(dataset.features):
            return calibration
        lenses, places = (dataset.column(name, self._episode).astype(np.float64) for name in names)
        height, width = dataset.frames(self._source.camera, self._episode, [0]).shape[1:3]
        try:
            if np.abs(lenses - lenses[0]).max() > 1e-3 * np.abs(lenses).max():
                raise ValueError("the intrinsics change within the episode")
            fx, fy, cx, cy = lenses[0]
            matrix, size = pinhole({"fx": fx, "fy": fy, "cx": cx, "cy": cy, "width": width, "height": height})
            if not (0 <= cx < width and 0 <= cy < height):
                raise ValueError(f"the principal point {cx:g}, {cy:g} is not in the image of {width}x{height} px")
            poses = pose_of_quaternion(places)
            if BASE in dataset.features:
                poses = pose_of_quaternion(dataset.column(BASE, self._episode).astype(np.float64)) @ poses
        except ValueError as error:
            raise DataError(
                f"{self.name}: {' and '.join(names)} are no calibration of the camera {self._source.camera} ({error}); a "
                f"{CALIBRATION} in {dataset.root} would be used instead"
            ) from None
        still = (poses == poses[:1]).all()
        return replace(
            calibration, file=names[0], intrinsics=matrix, size=size, world_from_cam=poses[:1] if still else poses
        )

    def joints(self, place: str) -> Float64[np.ndarray, "n j"]:
        dataset = self._source.dataset
        if place not in dataset.features:
            raise DataError(
                f"{dataset.root} has no feature {place!r} with joint states; it has {', '.join(sorted(dataset.features))}"
            )
        return dataset.column(place, self._episode).astype(np.float64).reshape(self.length, -1)

    def window(self, first: int, last: int) -> Clip:
        dataset, source = self._source.dataset, self._source
        indices = np.arange(first, last)
        rgb = dataset.frames(source.camera, self._episode, indices)
        depth = None if source.depth is None else dataset.depth(source.depth, self._episode, indices)
        if depth is not None and depth.shape[1:] != rgb.shape[1:3]:
            depth = self._calibration.fitted(depth, rgb, self.name)
        return self._calibration.clip(rgb, depth, self, first, last)
