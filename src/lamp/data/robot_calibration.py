"""What `calibration.json` says of a recording's robot: its URDF, its joint states, and where the camera is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from lamp.errors import ConfigError, DataError
from lamp.files import path_inside
from lamp.sceneflow.estimate.robot_motion import RobotMotion
from lamp.sceneflow.urdf import Robot

KEYS = {"urdf", "joints", "joint_names", "base_from_cam", "camera_link", "link_from_cam"}


@dataclass(frozen=True, kw_only=True)
class RobotCalibration:
    """The robot of a recording, and the camera that sees it."""

    urdf: Path
    joints: str
    """Where its joint states are: a `.npy` file beside the recording, or a feature of the dataset."""
    joint_names: tuple[str, ...]
    camera_link: str | None
    """The link that the camera is on; None: it stands still."""
    mount: Float64[np.ndarray, "*n 4 4"]
    """``link_from_cam``, or ``base_from_cam`` of one that stands still, or at each frame."""

    @classmethod
    def of(cls, content: Any, folder: Path) -> RobotCalibration:
        """What a file says.

        Raises:
            ValueError: It says nothing that can be.
        """
        if not isinstance(content, dict) or content.keys() - KEYS:
            raise ValueError(f"robot: expected an object with some of {', '.join(sorted(KEYS))}, not {content!r:.200}")
        held = content.get("camera_link")
        if ("base_from_cam" in content) == (held is not None) or ("link_from_cam" in content) != (held is not None):
            raise ValueError("robot: expected base_from_cam, or camera_link and link_from_cam")
        mount = np.array(content["link_from_cam" if held is not None else "base_from_cam"], dtype=np.float64)
        rotation = mount[..., :3, :3]
        if mount.shape != (4, 4) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
            raise ValueError("robot: the camera's pose is no rigid 4x4 matrix")
        return cls(
            urdf=path_inside(folder, str(content["urdf"]), "urdf of calibration.json"),
            joints=str(content["joints"]),
            joint_names=tuple(str(name) for name in content["joint_names"]),
            camera_link=held,
            mount=mount,
        )

    def motion(self, values: Float[np.ndarray, "n j"], name: str) -> RobotMotion:
        """Where the robot and the camera are at some frames.

        Raises:
            DataError: The URDF, or the joint states, cannot be used.
        """
        robot = _read(self.urdf)
        try:
            poses = robot.poses(self.joint_names, values)
        except ConfigError as error:
            raise DataError(f"{name}: {error}") from None
        if self.camera_link is not None and self.camera_link not in poses:
            raise DataError(
                f"{name}: the robot {robot.name} has no link {self.camera_link!r} for the camera to be on; it has "
                f"{', '.join(poses)}"
            )
        base = np.tile(np.eye(4), (len(values), 1, 1)) if self.camera_link is None else poses[self.camera_link]
        return RobotMotion(robot=robot, base_from_link=poses, base_from_cam=base @ self.mount)


@lru_cache(maxsize=4)
def _read(path: Path) -> Robot:
    return Robot.read(path)


def read_joints(path: Path, name: str) -> Float64[np.ndarray, "n j"]:
    """Joint states in a NumPy file, which is never unpickled.

    Raises:
        DataError: It is missing, or holds no table of numbers.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{name}: cannot read the joint states {path} ({error}); expected a .npy file") from None
    if getattr(found, "ndim", 0) != 2 or found.dtype.kind not in "fiu":
        raise DataError(f"{name}: {path} holds no table of numbers; expected a row a frame, a column a joint")
    return found.astype(np.float64)
