"""Chains of estimators, from a clip to the tracks of its query frames: the default one, parts of it, and baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lamp.errors import unknown
from lamp.sceneflow.estimate.cameras import RecordedCameras
from lamp.sceneflow.estimate.interfaces import (
    CameraPath,
    Cameras,
    Clip,
    Depth,
    DepthMaps,
    PointTracks,
    RecordedDepth,
    Tracker,
)
from lamp.sceneflow.estimate.optical_flow import (
    FlowPyramid,
    depth_at,
    forward_backward,
    grid_positions,
    import_cv2,
    inside,
    resized,
    working_size,
)
from lamp.sceneflow.estimate.query import Query, as_tracks
from lamp.sceneflow.estimate.rigid_tracker import RigidTracker
from lamp.sceneflow.exact_flow import Sampling


@dataclass(frozen=True, kw_only=True)
class ZeroMotion:
    """A baseline: nothing moves."""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Every point stays where it is, and is seen."""
        grid = grid_positions(*sampling.grid, *clip.size)
        for frame in frames:
            query = Query.of(clip, depth, cameras, frame, sampling.horizon * sampling.stride)
            shape = (len(query.frames), len(grid))
            z = np.tile(query.depth_of(grid), (shape[0], 1))
            ones = np.ones(shape, bool)
            yield as_tracks(query, sampling, np.tile(grid, (shape[0], 1, 1)), z, ones, ones, ones * 1.0, ones[0])


@dataclass(frozen=True, kw_only=True)
class LucasKanade:
    """A baseline: sparse pyramidal Lucas-Kanade from frame to frame, with a check of the way back."""

    consistent: float = 1.0
    """px"""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Chained tracks; a point that is lost once stays lost."""
        cv2 = import_cv2()
        gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.rgb]

        def step(start: int, end: int, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ask = xy.astype(np.float32)[:, None]
            there, found, _ = cv2.calcOpticalFlowPyrLK(gray[start], gray[end], ask, None, winSize=(21, 21), maxLevel=3)
            back, again, _ = cv2.calcOpticalFlowPyrLK(gray[end], gray[start], there, None, winSize=(21, 21), maxLevel=3)
            ok = (found[:, 0] > 0) & (again[:, 0] > 0)
            return there[:, 0].astype(np.float64), np.where(ok, np.linalg.norm(back - ask, axis=-1)[:, 0], np.inf)

        yield from _chained(step, self.consistent, clip, depth, cameras, frames, sampling)


@dataclass(frozen=True, kw_only=True)
class ChainedFlow:
    """A baseline: dense optical flow (DIS, medium) from frame to frame, with a check of the way back."""

    consistent: float = 1.0
    """px"""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Chained tracks; a point that is lost once stays lost."""
        pyramid = FlowPyramid(clip.rgb, depth.metres)

        def step(start: int, end: int, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            pyramid.forget(before=min(frames))
            return forward_backward(pyramid, start, end, xy)

        yield from _chained(step, self.consistent, clip, depth, cameras, frames, sampling)


def _chained(
    step: Callable[[int, int, np.ndarray], tuple[np.ndarray, np.ndarray]],
    limit: float,
    clip: Clip,
    depth: DepthMaps,
    cameras: CameraPath,
    frames: Sequence[int],
    sampling: Sampling,
) -> Iterator[PointTracks]:
    grid = grid_positions(*sampling.grid, *clip.size)
    for frame in frames:
        query = Query.of(clip, depth, cameras, frame, sampling.horizon * sampling.stride)
        shape = (len(query.frames), len(grid))
        xy, z = np.tile(grid, (shape[0], 1, 1)), np.tile(query.depth_of(grid), (shape[0], 1))
        seen, missed = np.ones(shape, bool), np.zeros(shape)
        for t in range(1, shape[0]):
            start, end = int(query.frames[t - 1]), int(query.frames[t])
            xy[t], missed[t] = step(start, end, xy[t - 1])
            z[t] = depth_at(depth.metres[end], xy[t], z[t - 1])
            seen[t] = seen[t - 1] & (missed[t] < limit) & inside(xy[t], *clip.size) & ~(np.abs(z[t] - z[t - 1]) > 0.04)
            z[t] = np.where(seen[t] & np.isfinite(z[t]), z[t], z[t - 1])
        held, far = query.held(xy, z)
        valid = np.ones(shape, bool)
        yield as_tracks(query, sampling, held, far, seen, valid, np.exp(-missed), np.zeros(shape[1], bool))


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Depth, cameras and tracker, one after the other."""

    name: str
    depth: Depth = field(default_factory=RecordedDepth)
    cameras: Cameras = field(default_factory=RecordedCameras)
    tracker: Tracker = field(default_factory=RigidTracker)
    image_limit: int = 320
    """px: the longer side of the images that flows are computed in."""

    def prepare(self, clip: Clip) -> tuple[Clip, DepthMaps, CameraPath]:
        """The clip at its working size, with depth and cameras.

        Raises:
            DataError: One of the two cannot be found.
        """
        depth = self.depth.depth(clip)
        size = working_size(*clip.size, self.image_limit)
        rgb, metres = resized(clip.rgb, depth.metres, size)
        depth = replace(depth, metres=metres)
        small = replace(clip, rgb=rgb, depth=metres)
        return small, depth, self.cameras.cameras(small, depth)

    def estimate(
        self, clip: Clip, frames: Sequence[int], sampling: Sampling
    ) -> tuple[CameraPath, Iterator[PointTracks]]:
        """The camera's path, and the tracks of ascending query frames, found one by one.

        Raises:
            DataError: The clip's depth or camera cannot be found.
        """
        small, depth, cameras = self.prepare(clip)
        return cameras, self.tracker.track(small, depth, cameras, frames, sampling)


CHAINS: dict[str, Chain] = {
    chain.name: chain
    for chain in (
        Chain(name="rgbd"),
        Chain(name="rgbd_precise", tracker=RigidTracker(precise=True)),
        Chain(name="skip_links", tracker=RigidTracker(static=None, rigid=None)),
        Chain(name="skip_links_static", tracker=RigidTracker(rigid=None)),
        Chain(name="lucas_kanade", tracker=LucasKanade()),
        Chain(name="chained_dis", tracker=ChainedFlow()),
        Chain(name="zero_motion", tracker=ZeroMotion()),
    )
}
"""Chains by name. `skip_links` and `skip_links_static` are `rgbd` without its later parts, the last three are baselines."""
BASELINES = ("lucas_kanade", "chained_dis", "zero_motion")


def chain_named(name: str) -> Chain:
    """A chain by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in CHAINS:
        raise unknown("chain", name, CHAINS)
    return CHAINS[name]
