"""What a recording knows of its robot: where each link, and the camera, is at every frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from lamp.sceneflow.estimate.rigid import inverse
from lamp.sceneflow.urdf import Robot


@dataclass(frozen=True, kw_only=True)
class RobotMotion:
    """A robot over a clip."""

    robot: Robot
    base_from_link: Mapping[str, Float64[np.ndarray, "n 4 4"]]
    base_from_cam: Float64[np.ndarray, "n 4 4"]

    def cam_from_link(self, link: str) -> Float64[np.ndarray, "n 4 4"]:
        """Where a link is, in the camera's frame at each moment."""
        return inverse(self.base_from_cam) @ self.base_from_link[link]

    def window(self, first: int, last: int) -> RobotMotion:
        """Frames `first` to before `last`."""
        part = {name: poses[first:last] for name, poses in self.base_from_link.items()}
        return replace(self, base_from_link=part, base_from_cam=self.base_from_cam[first:last])
