"""The robot's own scene flow, from joint states, a URDF and a calibrated camera: a source of its own, and a check of others.

A point on the robot moves exactly as its link does. With depth, what lies on a link's surface is the robot; without, the surface
that the kinematics say is there. What hides the robot at the query frame cannot be known without depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from lamp.errors import DataError
from lamp.sceneflow.estimate.interfaces import CameraPath, Clip, DepthMaps, PointTracks, Tracker
from lamp.sceneflow.estimate.optical_flow import depth_at, grid_positions, inside, project, unproject
from lamp.sceneflow.estimate.query import Query, as_tracks
from lamp.sceneflow.estimate.rigid import inverse
from lamp.sceneflow.estimate.robot_motion import RobotMotion
from lamp.sceneflow.exact_flow import Sampling

NEAREST, FARTHEST = 0.05, 5.0
"""m: where along a pixel's ray the robot is looked for."""
STEPS = 64
"""At most so many steps to the surface along a ray."""


@dataclass(frozen=True, kw_only=True)
class RobotTracker:
    """Points on the robot move with their links; those of others, if there are any, are left to another tracker."""

    others: Tracker | None = None
    """None: only the robot's points are known."""
    reach: float = 0.015
    """m: what is so near to a link's surface is taken to be on it: calibration and sensor are not exact."""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Tracks of each query frame.

        Raises:
            DataError: The clip has no joint states.
        """
        if clip.robot is None:
            raise DataError(
                f"{clip.name} has no joint states with a URDF; expected `robot` in its calibration.json (docs/scene_flow.md)"
            )
        grid = grid_positions(*sampling.grid, *clip.size)
        others = None if self.others is None else self.others.track(clip, depth, cameras, frames, sampling)
        for frame in frames:
            query = Query.of(clip, depth, cameras, frame, sampling.horizon * sampling.stride)
            own, on = self._own(query, clip.robot, grid, sampling)
            yield own if others is None else _together(own, next(others), on)

    def _own(
        self, query: Query, robot: RobotMotion, grid: Float[np.ndarray, "n 2"], sampling: Sampling
    ) -> tuple[PointTracks, Bool[np.ndarray, " n"]]:
        z = query.depth_of(grid)
        unknown = np.isnan(z)
        z = np.where(unknown, trace(robot, query, query.frame, grid), z)
        link = self._links(robot, query.frame, unproject(grid, z, query.matrix))
        on = link >= 0
        names = tuple(robot.robot.shapes)
        start = unproject(grid, np.where(on, z, 1.0), query.matrix)
        paths = np.tile(start, (len(query.frames), 1, 1))
        now = paths.copy()
        for index in np.unique(link[on]):
            mine, name = link == index, names[index]
            cam_from_link = robot.cam_from_link(name)
            local = _moved(inverse(cam_from_link[query.frame]), start[mine])
            base_from_link = robot.base_from_link[name][query.frames]
            world = _moved(base_from_link, local)
            paths[:, mine] = _moved(inverse(robot.base_from_cam[query.frame]), world)
            now[:, mine] = _moved(inverse(robot.base_from_cam[query.frames]), world)
        seen = self._seen(query, robot, now, on)
        valid = np.tile(on, (len(query.frames), 1)) & (paths[..., 2] > 0)
        still = on & (np.abs(paths - paths[:1]).max(axis=(0, 2)) < 1e-6)
        held = project(paths, query.matrix)
        held[0] = grid  # else rounding would move it
        return as_tracks(query, sampling, held, paths[..., 2], seen, valid, valid * 1.0, still), on

    def _links(self, robot: RobotMotion, frame: int, points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
        """The link that each point, in the camera's frame, is on; -1 where it is on none."""
        best, found = np.full(len(points), self.reach), np.full(len(points), -1)
        known = np.isfinite(points).all(axis=-1)
        for index, name in enumerate(robot.robot.shapes):
            local = _moved(inverse(robot.cam_from_link(name)[frame]), points[known])
            away = np.full(len(points), np.inf)
            away[known] = robot.robot.distances(name, local)
            found = np.where(away < best, index, found)
            best = np.minimum(best, away)
        return found

    def _seen(
        self, query: Query, robot: RobotMotion, now: Float[np.ndarray, "t1 n 3"], on: Bool[np.ndarray, " n"]
    ) -> Bool[np.ndarray, "t1 n"]:
        """Where nothing nearer is before a point: by depth, and where that is unknown by the robot's own shape."""
        place, z = project(now, query.matrix), now[..., 2]
        seen = inside(place, *query.size) & on & (z > 0)
        for moment, frame in enumerate(query.frames.tolist()):
            rows = np.flatnonzero(seen[moment])
            at, far = place[moment, rows], z[moment, rows]
            surface = depth_at(query.depth.metres[frame], at, far)
            blind = np.isnan(surface)
            if blind.any():
                surface[blind] = trace(robot, query, frame, at[blind])
            slack = np.maximum(self.reach, 2.5 * query.depth.tolerance(far))
            seen[moment, rows] = ~(surface < far - slack)
        return seen


def trace(robot: RobotMotion, query: Query, frame: int, xy: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """Depth of the robot's surface along the rays of pixels at a frame [m]; NaN where they meet none (sphere tracing)."""
    rays = unproject(xy, np.ones(len(xy)), query.matrix)
    length = np.linalg.norm(rays, axis=-1)
    link_from_cam = {name: inverse(robot.cam_from_link(name)[frame]) for name, own in robot.robot.shapes.items() if own}
    z, open_ = np.full(len(xy), NEAREST), np.ones(len(xy), bool)
    hit = np.zeros(len(xy), bool)
    for _ in range(STEPS):
        if not open_.any():
            break
        points = rays[open_] * z[open_, None]
        away = np.min(
            [robot.robot.distances(name, _moved(pose, points)) for name, pose in link_from_cam.items()], axis=0
        )
        rows = np.flatnonzero(open_)
        hit[rows] = away < 0.002
        z[rows] += np.where(hit[rows], 0.0, np.maximum(away, 0.001) / length[rows])
        open_[rows] = ~hit[rows] & (z[rows] < FARTHEST)
    return np.where(hit, z, np.nan)


def _moved(poses: Float[np.ndarray, "*#t 4 4"], points: Float[np.ndarray, "*#t n 3"]) -> Float64[np.ndarray, "*t n 3"]:
    return points @ np.swapaxes(poses[..., :3, :3], -1, -2) + poses[..., None, :3, 3]


def _together(own: PointTracks, other: PointTracks, on: Bool[np.ndarray, " k"]) -> PointTracks:
    """The robot's points from its kinematics, the others as they were found."""
    fields = ("points", "visible", "confidence", "valid", "static")
    both: Mapping[str, np.ndarray] = {
        name: np.where(on.reshape(-1, *[1] * (getattr(own, name).ndim - 1)), getattr(own, name), getattr(other, name))
        for name in fields
    }
    return replace(other, **both)
