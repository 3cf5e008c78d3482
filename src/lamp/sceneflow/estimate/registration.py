"""Depth of a camera beside the colour camera, brought into the colour image, with a check that it fits there better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from lamp.sceneflow.estimate.optical_flow import import_cv2, pixel_matrix


@dataclass(frozen=True, kw_only=True)
class DepthCamera:
    """A depth camera beside a colour camera."""

    intrinsics: Float64[np.ndarray, "3 3"]
    """In fractions of the depth image."""
    colour_from_depth: Float64[np.ndarray, "4 4"]
    """Its pose in the colour camera's frame. [m]"""


def registered(
    depth: Float32[np.ndarray, "h w"],
    camera: DepthCamera,
    intrinsics: Float64[np.ndarray, "3 3"],
    size: tuple[int, int],
) -> Float32[np.ndarray, "h2 w2"]:
    """A depth map as the colour camera would have it: each pixel covers its footprint, the nearest wins, NaN where nothing
    falls.

    Args:
        depth: In the depth camera; NaN or not positive where it is unknown. [m]
        intrinsics: Of the colour camera, in fractions.
        size: Width and height of its images.
    """
    width, height = size
    source = pixel_matrix(camera.intrinsics, depth.shape[1], depth.shape[0])
    target = pixel_matrix(intrinsics, width, height)
    row, column = np.nonzero(np.nan_to_num(depth) > 0)
    z = depth[row, column].astype(np.float64)
    points = np.stack([column, row, np.ones_like(row)], axis=-1) @ np.linalg.inv(source).T * z[:, None]
    points = points @ camera.colour_from_depth[:3, :3].T + camera.colour_from_depth[:3, 3]
    front = points[:, 2] > 1e-3
    points = points[front]
    x, y = (points @ target.T)[:, :2].T / points[:, 2]
    footprint = max(1, int(np.ceil(abs(target[0, 0] / source[0, 0]) * 0.999)))
    result = np.full((height, width), np.inf, np.float32)
    start = -(footprint // 2)
    for dy in range(start, start + footprint):
        for dx in range(start, start + footprint):
            u, v = np.rint(x + dx).astype(int), np.rint(y + dy).astype(int)
            on = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            np.minimum.at(result, (v[on], u[on]), points[on, 2].astype(np.float32))
    return np.where(np.isfinite(result), result, np.nan)


def depth_edges(depth: Float[np.ndarray, "h w"], step: float = 0.04) -> Bool[np.ndarray, "h w"]:
    """Pixels next to which depth jumps by more than `step` metres, holes aside."""
    cv2 = import_cv2()
    known = np.isfinite(depth) & (depth > 0)
    solid = cv2.erode(known.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    gradient = cv2.morphologyEx(np.where(known, depth, 0).astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3)))
    return (gradient > step) & solid


def misalignment(rgb: UInt8[np.ndarray, "h w 3"], depth: Float[np.ndarray, "h w"]) -> float:
    """Mean distance from the edges of the depth to the next edge of the image, at most 15 px; NaN where depth has no edges."""
    cv2 = import_cv2()
    edges = depth_edges(depth)
    if edges.sum() < 20:
        return float("nan")
    outline = cv2.Canny(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), 60, 150)
    return float(np.minimum(cv2.distanceTransform(255 - outline, cv2.DIST_L2, 3), 15)[edges].mean())
