"""Calibration and poses of the camera: as recorded where they are, else from the depth images themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from lamp.errors import DataError
from lamp.sceneflow.estimate.interfaces import CameraPath, Clip, DepthMaps, nominal_intrinsics
from lamp.sceneflow.estimate.optical_flow import (
    FlowPyramid,
    dense_positions,
    forward_backward,
    import_cv2,
    inside,
    nearest_pixel,
    pixel_matrix,
    project,
    sample,
    unproject,
)
from lamp.sceneflow.estimate.rigid import inverse, rotation_of

STILL_PX = 0.5
"""px: before a camera that stands still, most pixels of outlines move by less;"""
UNCHANGED = 10
"""or change by less than this of 255."""


@dataclass(frozen=True, kw_only=True)
class RecordedCameras:
    """Uses what is recorded; finds only what is missing: whether the camera moves, and then its path from depth.

    Poses come from links of 1 to 16 frames (perspective-n-point on points that the flows agree about, in normalised coordinates,
    so that mirrored images need no care, refined by the depth at both ends), averaged on a graph.
    """

    links: tuple[int, ...] = (16, 8, 4, 2, 1)

    def cameras(self, clip: Clip, depth: DepthMaps) -> CameraPath:
        """The camera of every frame.

        Raises:
            DataError: It moves, and there is neither depth nor a recorded path to say how.
        """
        intrinsics = nominal_intrinsics(*clip.size) if clip.intrinsics is None else clip.intrinsics
        still = np.broadcast_to(np.eye(4), (len(clip), 4, 4))
        if clip.world_from_cam is not None:
            fixed = bool((clip.world_from_cam == clip.world_from_cam[:1]).all())
            return CameraPath(intrinsics=intrinsics, world_from_cam=clip.world_from_cam, fixed=fixed)
        if clip.fixed_camera:
            return CameraPath(intrinsics=intrinsics, world_from_cam=still, fixed=True)
        pyramid = FlowPyramid(clip.rgb, depth.metres)
        if clip.fixed_camera is None and stands_still(pyramid):
            return CameraPath(intrinsics=intrinsics, world_from_cam=still, fixed=True)
        if depth.known_share < 0.05:
            raise DataError(
                f"the camera of {clip.name} moves, and neither depth nor its path is recorded ({depth.known_share:.0%} of the "
                "depth is known); expected one of them, or a camera that stands still"
            )
        return CameraPath(
            intrinsics=intrinsics, world_from_cam=self._path(clip, depth, intrinsics, pyramid), fixed=False
        )

    def _path(
        self, clip: Clip, depth: DepthMaps, intrinsics: Float64[np.ndarray, "3 3"], pyramid: FlowPyramid
    ) -> Float64[np.ndarray, "n 4 4"]:
        matrix, count = pixel_matrix(intrinsics, *clip.size), len(clip)
        starts, ends, steps, weights = [], [], [], []
        for start in range(count - 1):
            for link in self.links:
                if start + link >= count:
                    continue
                found = relative_pose(pyramid, depth, matrix, start, start + link)
                if found is None and link > 1:
                    continue
                starts.append(start)
                ends.append(start + link)
                steps.append(np.eye(4) if found is None else found)
                weights.append(0.05 if found is None else 1.0)
            pyramid.forget(before=start + 1)
        edges = np.array([starts, ends]).T
        return averaged_poses(count, edges, np.array(steps), np.array(weights))


def stands_still(pyramid: FlowPyramid) -> bool:
    """Whether most parts of the image that have outlines stay where they are, over links of up to 16 frames and the whole clip.

    Parts of the image count, not pixels: an arm before the camera may have most of the outlines.
    """
    cv2 = import_cv2()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    last = pyramid.length - 1
    stays = []
    for start, end in [(0, last), *((start, min(start + 16, last)) for start in range(0, last, 16))]:
        one, other = pyramid.gray(start), pyramid.gray(end)
        edges = np.hypot(*(cv2.Sobel(one, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))))
        outline = edges > max(20.0, float(np.percentile(edges, 50)))
        flow = dis.calc(one, other, None)
        same = (np.hypot(flow[..., 0], flow[..., 1]) < STILL_PX) | (cv2.absdiff(one, other) < UNCHANGED)
        cells = [
            same[rows][:, columns][outline[rows][:, columns]]
            for rows in np.array_split(np.arange(one.shape[0]), 6)
            for columns in np.array_split(np.arange(one.shape[1]), 8)
        ]
        votes = [cell.mean() > 0.6 for cell in cells if len(cell) > 20]
        if votes:
            stays.append(np.mean(votes) > 0.5)
    return float(np.mean(stays or [True])) >= 0.7


def relative_pose(
    pyramid: FlowPyramid, depth: DepthMaps, matrix: Float64[np.ndarray, "3 3"], start: int, end: int
) -> Float64[np.ndarray, "4 4"] | None:
    """``end_from_start`` of a camera from the flow of what has depth; None where too little agrees."""
    cv2 = import_cv2()
    height, width = depth.metres.shape[1:]
    xy = dense_positions(width, height, 6)
    there, miss = forward_backward(pyramid, start, end, xy)
    z = depth.metres[start]
    filled = np.nan_to_num(z, nan=-1.0)  # next to a hole is a step as well
    step = cv2.dilate(filled, np.ones((5, 5))) - cv2.erode(filled, np.ones((5, 5)))
    at = nearest_pixel(xy, width, height)
    with np.errstate(invalid="ignore"):
        used = (
            np.isfinite(z[at])
            & inside(there, width, height)
            & (miss < 0.5)
            & (step[at] < np.maximum(0.02, depth.tolerance(z[at])))
        )
    if used.sum() < 20:
        return None
    seen = unproject(there[used], np.ones(used.sum()), matrix)[:, :2]
    points = unproject(xy[used], z[at][used].astype(np.float64), matrix)
    threshold = (0.7 if end - start == 1 else 1.0) / abs(matrix[0, 0])
    found, turn, shift, inliers = cv2.solvePnPRansac(
        points,
        seen,
        np.eye(3),
        None,
        iterationsCount=200,
        reprojectionError=threshold,
        confidence=0.999,
        flags=cv2.SOLVEPNP_EPNP,
    )
    if not found or inliers is None or len(inliers) < max(12, 0.3 * len(points)):
        return None
    kept = inliers[:, 0]
    turn, shift = cv2.solvePnPRefineLM(points[kept], seen[kept], np.eye(3), None, turn, shift)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
    return refined_pose(pose, depth, matrix, start, end, xy, there, miss)


PIXEL_SIGMA = 0.3
"""px: how exact flows are, against the noise of depth;"""
PIXEL_SCALE = 0.5
"""px: of the Cauchy weights of flows,"""
FARTHEST_FLOW, FARTHEST_DEPTH = 3.0, 4.0
"""and how far off what still counts may be: px, and tolerances of depth."""
STEEPEST = 0.02
"""m a px: where depth changes by more, it says nothing of the camera."""


def refined_pose(
    pose: Float64[np.ndarray, "4 4"],
    depth: DepthMaps,
    matrix: Float64[np.ndarray, "3 3"],
    start: int,
    end: int,
    xy: Float[np.ndarray, "n 2"],
    there: Float[np.ndarray, "n 2"],
    miss: Float[np.ndarray, " n"],
    rounds: int = 8,
) -> Float64[np.ndarray, "4 4"]:
    """``end_from_start`` that fits the flows and the depth of both frames best, by Gauss-Newton with Cauchy weights.

    A point of the start, moved, should be projected to where the flow leads, and be as deep as the surface that the end shows
    at its projection (point to plane). The depths at the end are exact where flows are not: far away, and between outlines.

    Args:
        pose: To begin with.
        xy: Positions at the start, where flows lead (`there`), and by how many px their ways back miss.
    """
    cv2 = import_cv2()
    height, width = depth.metres.shape[1:]
    z = depth.metres[start][nearest_pixel(xy, width, height)].astype(np.float64)
    known = np.isfinite(z)
    points, there, miss = unproject(xy[known], z[known], matrix), there[known], miss[known]
    surface = depth.metres[end]
    slopes = [cv2.Sobel(surface, cv2.CV_32F, *axis) / 8 for axis in ((1, 0), (0, 1))]
    focal, rest = matrix[[0, 1], [0, 1]], np.zeros(len(points))
    for _ in range(rounds):
        moved_points = moved(pose, points)
        place = project(moved_points, matrix)
        x, y, far = moved_points.T
        within = inside(place, width, height) & (far > 0.01)
        at = np.where(within[:, None], place, 0.0)
        depths, *slope = (sample(image, at).astype(np.float64) for image in (surface, *slopes))
        tolerance, far = depth.tolerance(far), np.where(within, far, 1.0)
        across = np.stack([focal[0] / far, rest, -focal[0] * x / far**2], axis=-1)
        down = np.stack([rest, focal[1] / far, -focal[1] * y / far**2], axis=-1)
        away = there - place
        with np.errstate(invalid="ignore"):
            apart = depths - moved_points[:, 2]
            flows = within & (miss < 0.7) & (np.hypot(*away.T) < FARTHEST_FLOW)
            depths_count = within & (np.abs(apart) < FARTHEST_DEPTH * tolerance) & (np.hypot(*slope) < STEEPEST)
        along = slope[0][:, None] * across + slope[1][:, None] * down - [0, 0, 1]
        pixel = 1 / (1 + np.square(away).sum(axis=-1) / PIXEL_SCALE**2)
        deep = np.square(PIXEL_SIGMA / (0.25 * tolerance)) / (1 + np.square(apart / tolerance))
        normal, right = np.zeros((6, 6)), np.zeros(6)
        terms = (
            (across, away[:, 0], pixel, flows),
            (down, away[:, 1], pixel, flows),
            (along, -apart, deep, depths_count),
        )
        for gradient, residual, weight, counted in terms:
            # Of a turn w and a shift v of the moved points: dq = v + w x q.
            row = np.concatenate([gradient, np.cross(moved_points, gradient)], axis=-1)[counted]
            normal += (row * weight[counted, None]).T @ row
            right += row.T @ (weight[counted] * residual[counted])
        if np.linalg.matrix_rank(normal) < 6:
            return pose
        step = np.linalg.solve(normal, right)
        change = np.eye(4)
        change[:3, :3], change[:3, 3] = cv2.Rodrigues(step[3:])[0], step[:3]
        pose = change @ pose
        if np.abs(step).max() < 1e-7:
            break
    return pose


def averaged_poses(
    count: int,
    edges: np.ndarray,
    end_from_start: Float64[np.ndarray, "e 4 4"],
    weights: Float64[np.ndarray, " e"],
    sweeps: int = 80,
) -> Float64[np.ndarray, "n 4 4"]:
    """``world_from_cam`` of every frame, the first one's being the identity, that agree best with relative poses.

    Args:
        edges: Start and end frame of each relative pose; each frame but the first must be the end of one.
    """
    poses = np.tile(np.eye(4), (count, 1, 1))
    start_from_end = inverse(end_from_start)
    for end, incoming in _by_end(edges, count):
        best = incoming[np.argmin(edges[incoming, 0])]  # the longest link
        poses[end] = poses[edges[best, 0]] @ start_from_end[best]
    sources = np.concatenate([edges[:, 0], edges[:, 1]])
    targets = np.concatenate([edges[:, 1], edges[:, 0]])
    steps, weight = np.concatenate([start_from_end, end_from_start]), np.tile(weights, 2)[:, None, None]
    for _ in range(sweeps):
        total = np.zeros_like(poses)
        np.add.at(total, targets, weight * (poses[sources] @ steps))
        total /= total[:, 3:, 3:]
        total[0] = np.eye(4)
        poses = total.copy()
        poses[:, :3, :3] = rotation_of(total[:, :3, :3])
    return poses


def _by_end(edges: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
    for end in range(1, count):
        yield end, np.flatnonzero(edges[:, 1] == end)


def moved(
    transform: Float64[np.ndarray, "*#b 4 4"], points: Float[np.ndarray, "*#b n 3"]
) -> Float64[np.ndarray, "*b n 3"]:
    """Points in another frame; the points are the last axis but one."""
    return points @ np.swapaxes(transform[..., :3, :3], -1, -2) + transform[..., None, :3, 3]
