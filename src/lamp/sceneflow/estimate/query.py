"""A query frame with its horizon, and the tracks that are found of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8

from lamp.sceneflow.estimate.cameras import moved
from lamp.sceneflow.estimate.interfaces import CameraPath, Clip, DepthMaps, PointTracks
from lamp.sceneflow.estimate.optical_flow import inside, nearest_pixel, pixel_matrix, project, unproject
from lamp.sceneflow.estimate.rigid import inverse
from lamp.sceneflow.exact_flow import Sampling


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query frame's horizon within a clip."""

    rgb: np.ndarray
    depth: DepthMaps
    frame: int
    frames: Int[np.ndarray, " t1"]
    """Every frame of the horizon that there is, the query frame first."""
    matrix: Float64[np.ndarray, "3 3"]
    """Intrinsics in px."""
    now_from_query: Float64[np.ndarray, "t1 4 4"]
    """Into the camera at each of these frames, from that of the query frame."""
    fixed: bool

    @classmethod
    def of(cls, clip: Clip, depth: DepthMaps, cameras: CameraPath, frame: int, span: int) -> Query:
        frames = np.arange(frame, min(frame + span, len(clip) - 1) + 1)
        poses = cameras.world_from_cam[frames]
        step = np.tile(np.eye(4), (len(frames), 1, 1)) if cameras.fixed else inverse(poses) @ poses[0]
        matrix = pixel_matrix(cameras.intrinsics, *clip.size)
        return cls(
            rgb=clip.rgb,
            depth=depth,
            frame=frame,
            frames=frames,
            matrix=matrix,
            now_from_query=step,
            fixed=cameras.fixed,
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.rgb.shape[2], self.rgb.shape[1]

    def depth_of(self, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """Depth of pixels at the query frame."""
        return self.depth.metres[self.frame][nearest_pixel(xy, *self.size)].astype(np.float64)

    def held(self, xy: Float[np.ndarray, "t1 n 2"], z: Float[np.ndarray, "t1 n"]) -> tuple[np.ndarray, np.ndarray]:
        """Positions and depths at each moment, brought into the query frame's camera."""
        if self.fixed:
            return xy, z
        points = moved(inverse(self.now_from_query), unproject(xy, z, self.matrix))
        return project(points, self.matrix), points[..., 2]


def colour_change(
    query: Query, row: Int[np.ndarray, "t1 n"], column: Int[np.ndarray, "t1 n"]
) -> UInt8[np.ndarray, "t1 n"]:
    """By how much each pixel's colours differ from the first one's, in the channel that differs most."""
    colours = np.stack([query.rgb[frame, y, x] for frame, y, x in zip(query.frames, row, column, strict=True)])
    low, high = np.minimum(colours, colours[0]), np.maximum(colours, colours[0])
    apart = high - low
    return np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2])


def as_tracks(
    query: Query,
    sampling: Sampling,
    xy: Float[np.ndarray, "t1 k 2"],
    z: Float[np.ndarray, "t1 k"],
    visible: Bool[np.ndarray, "t1 k"],
    valid: Bool[np.ndarray, "t1 k"],
    confidence: Float[np.ndarray, "t1 k"],
    static: Bool[np.ndarray, " k"],
) -> PointTracks:
    """Tracks at the moments of a sampling, held past the clip's end, in image fractions."""
    wanted = sampling.stride * np.arange(sampling.horizon + 1)
    there = wanted < len(query.frames)
    taken = np.minimum(wanted, len(query.frames) - 1)
    width, height = query.size
    uv = (xy + 0.5) / [width, height]
    points = np.concatenate([uv, z[..., None]], axis=-1).astype(np.float32)[taken].swapaxes(0, 1)
    ends = there[:, None]
    seen = visible & valid & inside(xy, width, height)
    return PointTracks(
        frame=query.frame,
        points=np.ascontiguousarray(points),
        visible=np.ascontiguousarray((seen[taken] & ends).T),
        confidence=np.ascontiguousarray((confidence[taken] * ends).T.astype(np.float32)),
        valid=np.ascontiguousarray((valid[taken] & ends & np.isfinite(xy[taken]).all(axis=-1)).T),
        static=static,
    )
