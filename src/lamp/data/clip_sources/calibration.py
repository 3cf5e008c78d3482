"""What is known of a recording's cameras: calibration.json beside it, or what its format says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8
from scipy.spatial.transform import Rotation

from lamp.data.clip_sources.source import ClipReader, SourceSettings
from lamp.data.robot_calibration import RobotCalibration
from lamp.errors import DataError
from lamp.json_files import read_json_object
from lamp.sceneflow.estimate.interfaces import Clip
from lamp.sceneflow.estimate.optical_flow import import_cv2
from lamp.sceneflow.estimate.registration import DepthCamera, misalignment, registered

CALIBRATION = "calibration.json"
UNITS = {"mm": 0.001, "m": 1.0}
OPEN3D = ("camera_intrinsic.json", "intrinsic.json")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration.json beside a recording says of its cameras, all of it optional."""

    file: str = "no calibration"
    intrinsics: Float64[np.ndarray, "3 3"] | None = None
    size: tuple[int, int] | None = None
    """Of the images that it was made with, px."""
    world_from_cam: Float64[np.ndarray, "n 4 4"] | None = None
    fixed_camera: bool | None = None
    depth_unit: float | None = None
    """m"""
    depth_camera: DepthCamera | None = None
    """Where depth is not registered to the colours."""
    fps: float | None = None
    robot: RobotCalibration | None = None

    @classmethod
    def read(cls, folder: Path, settings: SourceSettings, *, saved: bool = False) -> Calibration:
        """The calibration in a folder, with what the user says above what it says.

        Args:
            saved: Without a calibration.json, take what Open3D saved of the camera, if it did.

        Raises:
            DataError: It is damaged, or no calibration.
        """
        found = cls()
        file = next((folder / name for name in OPEN3D if saved and (folder / name).is_file()), None)
        if file is not None and not (folder / CALIBRATION).is_file():
            found = cls._open3d(file)
        if (folder / CALIBRATION).is_file():
            content = read_json_object(folder / CALIBRATION, "calibration")
            try:
                found = cls._of(content, folder / CALIBRATION)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{folder / CALIBRATION}: no calibration ({type(error).__name__}: {error}); expected intrinsics with fx, "
                    "fy, cx, cy, width and height in px, or also world_from_cam, fixed_camera, fps, depth_unit, "
                    "depth_intrinsics, colour_from_depth and robot (docs/scene_flow.md)"
                ) from None
        return found.told(settings)

    def told(self, settings: SourceSettings) -> Calibration:
        """The same with what the user says above it."""
        unit = None if settings.depth_unit is None else UNITS[settings.depth_unit]
        changes = {"depth_unit": unit, "fixed_camera": settings.fixed_camera, "fps": settings.fps}
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def _open3d(cls, file: Path) -> Calibration:
        """What Open3D saves beside the frames of a RealSense camera, whose depth it brings into the colour image: its recorder
        (`camera_intrinsic.json`; depth in mm) and `RSBagReader.save_frames` (`intrinsic.json`, with fps and the depth's units
        in a metre). The matrix is stored column by column.

        Raises:
            DataError: It says something else.
        """
        content = read_json_object(file, "camera of Open3D")
        try:
            fx, _, _, _, fy, _, cx, cy, _ = (float(value) for value in content["intrinsic_matrix"])
            size = {"width": content["width"], "height": content["height"]}
            matrix, shape = pinhole({"fx": fx, "fy": fy, "cx": cx, "cy": cy, **size})
            scale, fps = float(content.get("depth_scale", 1000)), content.get("fps")
            if not scale > 0:
                raise ValueError(f"depth_scale {scale:g}")
            rate = None if fps is None else float(fps)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{file}: no camera of Open3D ({type(error).__name__}: {error}); expected width, height and an "
                f"intrinsic_matrix of nine numbers in px, or a {CALIBRATION}"
            ) from None
        return cls(file=str(file), intrinsics=matrix, size=shape, depth_unit=1 / scale, fps=rate)

    @classmethod
    def _of(cls, content: dict[str, Any], file: Path) -> Calibration:
        known = {
            "intrinsics",
            "world_from_cam",
            "fixed_camera",
            "depth_unit",
            "depth_intrinsics",
            "colour_from_depth",
            "fps",
            "robot",
        }
        if strange := sorted(content.keys() - known):
            raise ValueError(f"unknown key {strange[0]!r}; known: {', '.join(sorted(known))}")
        unit = content.get("depth_unit")
        poses = content.get("world_from_cam")
        matrix, size = pinhole(content["intrinsics"]) if "intrinsics" in content else (None, None)
        depth_camera = None
        if "depth_intrinsics" in content:
            pose = np.array(content.get("colour_from_depth", np.eye(4)), dtype=np.float64)
            depth_camera = DepthCamera(
                intrinsics=pinhole(content["depth_intrinsics"])[0], colour_from_depth=rigid_pose(pose)
            )
        return cls(
            file=str(file),
            robot=RobotCalibration.of(content["robot"], file.parent) if "robot" in content else None,
            intrinsics=matrix,
            size=size,
            world_from_cam=None if poses is None else rigid_pose(np.array(poses, dtype=np.float64).reshape(-1, 4, 4)),
            fixed_camera=content.get("fixed_camera"),
            depth_unit=None if unit is None else UNITS[unit] if isinstance(unit, str) else float(unit),
            depth_camera=depth_camera,
            fps=None if content.get("fps") is None else float(content["fps"]),
        )

    def fitted(self, depth: Float32[np.ndarray, "n h w"], rgb: UInt8[np.ndarray, "n h2 w2 3"], name: str) -> np.ndarray:
        """Depth in the colour images: registered where the depth camera is known, else only brought to their size.

        Raises:
            DataError: It has other proportions than the images and nothing says how it lies in them.
        """
        size = (rgb.shape[2], rgb.shape[1])
        plain = depth
        if depth.shape[1:] != rgb.shape[1:3]:
            if self.depth_camera is None and abs(depth.shape[2] / depth.shape[1] - size[0] / size[1]) > 0.02:
                raise DataError(
                    f"{name}: depth of {depth.shape[2]}x{depth.shape[1]} px and images of {size[0]}x{size[1]} px have different "
                    f"proportions; say how the depth camera sees them: depth_intrinsics and colour_from_depth in {CALIBRATION}"
                )
            cv2 = import_cv2()
            plain = np.stack([cv2.resize(one, size, interpolation=cv2.INTER_NEAREST_EXACT) for one in depth])
        if self.depth_camera is None or self.intrinsics is None:
            return plain
        better = np.stack([registered(one, self.depth_camera, self.intrinsics, size) for one in depth])
        before, after = misalignment(rgb[0], plain[0]), misalignment(rgb[0], better[0])
        return plain if after > before + 0.5 else better

    def clip(
        self,
        rgb: UInt8[np.ndarray, "n h w 3"],
        depth: Float32[np.ndarray, "n2 h2 w2"] | None,
        reader: ClipReader,
        first: int,
        last: int,
    ) -> Clip:
        """A window with what is known of its camera.

        Raises:
            DataError: The calibration is of images of other proportions, or has poses for another number of frames.
        """
        width, height = rgb.shape[2], rgb.shape[1]
        if self.size is not None and abs(self.size[0] / self.size[1] - width / height) > 0.01:
            raise DataError(
                f"{reader.name}: {self.file} is of images of {self.size[0]}x{self.size[1]} px, and these are {width}x{height}; "
                "expected the same proportions: is it the calibration of another camera?"
            )
        if self.world_from_cam is not None and len(self.world_from_cam) not in (1, reader.length):
            raise DataError(
                f"{reader.name}: {self.file} has {len(self.world_from_cam)} poses for {reader.length} frames; expected one a "
                "frame, or one for a camera that stands still"
            )
        poses = self.world_from_cam
        if poses is not None:
            poses = np.repeat(poses, last - first, axis=0) if len(poses) == 1 else poses[first:last]
        robot = None
        if self.robot is not None:
            if self.intrinsics is None:
                raise DataError(
                    f"{reader.name}: {self.file} has a robot and no intrinsics; where its links are in the image cannot be said "
                    "without"
                )
            joints = reader.joints(self.robot.joints)
            if len(joints) != reader.length:
                raise DataError(
                    f"{reader.name} has {len(joints)} joint states for {reader.length} frames; expected one a frame"
                )
            robot = self.robot.motion(joints[first:last], reader.name)
            poses = robot.base_from_cam if poses is None else poses
        return Clip(
            rgb=rgb,
            depth=depth,
            robot=robot,
            fps=reader.fps,
            name=reader.name,
            instruction=reader.instruction,
            intrinsics=self.intrinsics,
            world_from_cam=poses,
            fixed_camera=self.fixed_camera,
        )


def pinhole(values: Mapping[str, Any]) -> tuple[Float64[np.ndarray, "3 3"], tuple[int, int]]:
    """A pinhole in px as a matrix in image fractions, and the image's size."""
    width, height = int(values["width"]), int(values["height"])
    fx, fy, cx, cy = (float(values[name]) for name in ("fx", "fy", "cx", "cy"))
    if min(width, height) < 1 or not np.isfinite([fx, fy, cx, cy]).all() or fx == 0 or fy <= 0:
        raise ValueError(f"impossible intrinsics {values}")
    return np.array([[fx / width, 0, (cx + 0.5) / width], [0, fy / height, (cy + 0.5) / height], [0, 0, 1]]), (
        width,
        height,
    )


def rigid_pose(matrix: np.ndarray) -> Float64[np.ndarray, "*b 4 4"]:
    rotation = matrix[..., :3, :3]
    if matrix.shape[-2:] != (4, 4) or not np.allclose(rotation @ np.swapaxes(rotation, -1, -2), np.eye(3), atol=1e-3):
        raise ValueError("a pose is no rigid 4x4 matrix")
    return matrix


def pose_of_quaternion(values: Float[np.ndarray, "n 7"]) -> Float64[np.ndarray, "n 4 4"]:
    """Poses of (x, y, z) in m and (w, x, y, z).

    Raises:
        ValueError: A quaternion has not the length 1.
    """
    if not (np.abs(np.linalg.norm(values[:, 3:], axis=1) - 1) < 0.01).all():
        raise ValueError("a rotation is no unit quaternion (w, x, y, z)")
    return _poses(values[:, :3], Rotation.from_quat(values[:, 3:], scalar_first=True))


def pose_of_euler(values: Float[np.ndarray, "n 6"]) -> Float64[np.ndarray, "n 4 4"]:
    """Poses of (x, y, z) in m and angles in rad about the fixed axes x, y and z, one after the other."""
    return _poses(values[:, :3], Rotation.from_euler("xyz", values[:, 3:]))


def _poses(places: Float[np.ndarray, "n 3"], turns: Rotation) -> Float64[np.ndarray, "n 4 4"]:
    poses = np.tile(np.eye(4), (len(places), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turns.as_matrix(), places
    return poses
