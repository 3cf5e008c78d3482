"""What the estimators of scene flow hand to each other, and the three kinds of estimator.

Images have u and v as fractions of width and height, depths are metres along the optical axis, NaN where nothing is known. What
a recording holds is never estimated again: `RecordedDepth` and `RecordedCameras` pass it on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from lamp.errors import DataError
from lamp.sceneflow.estimate.robot_motion import RobotMotion
from lamp.sceneflow.exact_flow import Sampling

MAX_DEPTH = 10.0
"""m: what a depth camera reports beyond is counted as unknown."""
NOMINAL_FOV = 60.0
"""Horizontal field of view of a camera about which nothing is known. [degrees]"""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A recording of one camera, or a window of it."""

    rgb: UInt8[np.ndarray, "n h w 3"]
    fps: float | int
    name: str = "clip"
    instruction: str = ""
    depth: Float32[np.ndarray, "m h2 w2"] | None = None
    """m, registered to the colours; NaN, zero, negative or infinite where the sensor saw nothing. None: none was recorded."""
    intrinsics: Float64[np.ndarray, "3 3"] | None = None
    """In fractions of the image (`lamp.types.Camera`); None: not calibrated."""
    world_from_cam: Float64[np.ndarray, "p 4 4"] | None = None
    """Recorded poses of the camera; None: not recorded."""
    fixed_camera: bool | None = None
    """Whether the camera is known to stand still, or to move; None: found in the images."""
    robot: RobotMotion | None = None
    """Where the robot's links are, from its joint states; None: not recorded."""

    def __post_init__(self) -> None:
        count, height, width = self.rgb.shape[:3]
        if count < 2:
            raise DataError(f"{self.name} has {count} frames; motion needs at least 2")
        if self.depth is not None and self.depth.shape != (count, height, width):
            raise DataError(
                f"{self.name} has depth of shape {self.depth.shape} and images of shape {self.rgb.shape[:3]} (frames, height, "
                "width); expected a depth map for each image, registered to it"
            )
        if self.world_from_cam is not None and len(self.world_from_cam) != count:
            raise DataError(
                f"{self.name} has {len(self.world_from_cam)} camera poses for {count} frames; expected as many"
            )
        if self.robot is not None and len(self.robot.base_from_cam) != count:
            raise DataError(
                f"{self.name} has joint states of {len(self.robot.base_from_cam)} frames and {count} images; expected as many"
            )
        if self.intrinsics is not None:
            check_intrinsics(self.intrinsics, self.name)

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.rgb.shape[2], self.rgb.shape[1]

    def window(self, first: int, last: int) -> Clip:
        """Frames `first` to before `last`."""
        part = slice(first, last)
        return replace(
            self,
            rgb=self.rgb[part],
            depth=None if self.depth is None else self.depth[part],
            world_from_cam=None if self.world_from_cam is None else self.world_from_cam[part],
            robot=None if self.robot is None else self.robot.window(first, last),
        )


def check_intrinsics(matrix: Float64[np.ndarray, "3 3"], name: str) -> None:
    """Refuses what is no calibration in image fractions.

    Raises:
        DataError: Focal lengths or the principal point cannot be those of a camera, for instance as they are in px.
    """
    fx, fy, cx, cy = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    if not np.isfinite(matrix).all() or not (
        0.1 < abs(fx) < 20 and 0.1 < fy < 20 and -0.5 < cx < 1.5 and -0.5 < cy < 1.5
    ):
        raise DataError(
            f"{name} has the calibration fx {fx:g}, fy {fy:g}, cx {cx:g}, cy {cy:g}; expected fractions of the image's width and "
            "height, such as 1, 1.3, 0.5, 0.5: is it that of another camera, or of another resolution?"
        )


def nominal_intrinsics(width: int, height: int) -> Float64[np.ndarray, "3 3"]:
    """The pinhole that stands in for a calibration: `NOMINAL_FOV`, square pixels, centred."""
    focal = 0.5 / np.tan(np.radians(NOMINAL_FOV) / 2)
    return np.array([[focal, 0, 0.5], [0, focal * width / height, 0.5], [0, 0, 1.0]])


@dataclass(frozen=True, kw_only=True)
class DepthMaps:
    """Depth of every frame of a clip."""

    metres: Float32[np.ndarray, "n h w"]
    """NaN where it is not known."""
    noise: float
    """Standard deviation at distance z is `noise` z^2. [1/m]"""
    metric: bool = True
    """False: only relative, up to a scale."""

    def tolerance(self, z: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
        """By how much two measurements of one surface at distance z may differ. [m]"""
        return np.maximum(0.004, 4.4 * self.noise * np.square(z))

    @property
    def known_share(self) -> float:
        """Share of pixels with a depth."""
        return float(np.isfinite(self.metres).mean())


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """One camera over a clip."""

    intrinsics: Float64[np.ndarray, "3 3"]
    world_from_cam: Float64[np.ndarray, "n 4 4"]
    fixed: bool
    """It does not move at all: all poses are equal."""


@dataclass(frozen=True, kw_only=True)
class PointTracks:
    """Where the grid points of one query frame go, seen from that frame's camera, which is held still over the horizon."""

    frame: int
    points: Float32[np.ndarray, "k t1 3"]
    """(u, v, d); d is NaN where depth is not known."""
    visible: Bool[np.ndarray, "k t1"]
    """Seen by the camera at that moment, and inside the query frame's image. Of a camera that moves this is the camera as it is
    then, not as it is held, since nothing else is observed."""
    confidence: Float32[np.ndarray, "k t1"]
    """0 to 1."""
    valid: Bool[np.ndarray, "k t1"]
    """Followed: not past the clip's end, not lost."""
    static: Bool[np.ndarray, " k"]
    """Stands still in the world over the whole horizon."""


@runtime_checkable
class Depth(Protocol):
    """Finds, or passes on, the depth of a clip."""

    def depth(self, clip: Clip) -> DepthMaps:
        """Depth of every frame; all NaN where there is none.

        Raises:
            DataError: What was recorded cannot be depth in metres.
        """
        ...


@runtime_checkable
class Cameras(Protocol):
    """Finds, or passes on, calibration and poses."""

    def cameras(self, clip: Clip, depth: DepthMaps) -> CameraPath:
        """The camera at every frame.

        Raises:
            DataError: Its motion cannot be found.
        """
        ...


@runtime_checkable
class Tracker(Protocol):
    """Follows the grid points of query frames."""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Tracks of each of the ascending query `frames`."""
        ...


@dataclass(frozen=True, kw_only=True)
class RecordedDepth:
    """The sensor's depth as it is; holes stay unknown. A clip without depth has holes only, which makes 2-D tracks."""

    max_depth: float = MAX_DEPTH

    def depth(self, clip: Clip) -> DepthMaps:
        """The recorded depth, and how noisy it is.

        Raises:
            DataError: Most values are negative, or hardly any is a distance of metres.
        """
        if clip.depth is None:
            return DepthMaps(metres=np.full(clip.rgb.shape[:3], np.nan, np.float32), noise=0.0, metric=False)
        with np.errstate(invalid="ignore"):
            negative, far = (clip.depth < 0).mean(), (clip.depth > self.max_depth).mean()
            metres = np.where((clip.depth > 0) & (clip.depth <= self.max_depth), clip.depth, np.nan).astype(np.float32)
        if negative > 0.5:
            raise DataError(
                f"{clip.name}: {negative:.0%} of the depth is negative; expected metres along the optical axis"
            )
        if far > 0.9 and not np.isfinite(metres).mean() > 0.02:
            raise DataError(
                f"{clip.name}: {far:.0%} of the depth is beyond {self.max_depth:g} m (median {np.nanmedian(clip.depth):g}); "
                "expected metres: say the unit of the recording, such as --depth-unit mm"
            )
        return DepthMaps(metres=metres, noise=depth_noise(metres))


def depth_noise(metres: Float32[np.ndarray, "n h w"], step: int = 4) -> float:
    """Standard deviation of depth at 1 m, growing as z^2: what is left of planes by second differences in space.

    Values `step` px apart are compared, for neighbours may be copies of one measurement.
    """
    some = metres[:: max(len(metres) // 8, 1)]
    with np.errstate(invalid="ignore"):
        middle = some[..., step:-step]
        scaled = np.abs((some[..., : -2 * step] - 2 * middle + some[..., 2 * step :]) / np.square(middle))
    known = scaled[np.isfinite(scaled)]
    # 1.4826 makes a median deviation a standard one; the second difference of three independent values has variance 6.
    return float(1.4826 * np.median(known) / np.sqrt(6)) if len(known) else 0.0
