"""Where the bounding boxes of a simulation's geoms appear in a camera's image.

What is outside a box's outline cannot meet the geom in it, so that neither drawing nor rays need consider it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lamp.types import Camera

MARGIN = 1e-6
"""Boxes are larger by this (m), and outlines by as much of the image, so that rounding loses nothing."""
PLANE = 1e4
"""m: half the side of a plane, which has no box."""
CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)))
EDGES = np.array([(i, j) for i, j in product(range(8), repeat=2) if i < j and (CORNERS[i] != CORNERS[j]).sum() == 1])


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The bounding boxes of some geoms at some moments, each in the frame of its geom."""

    centre: Float[np.ndarray, "g 3"]
    half: Float[np.ndarray, "g 3"]
    """m, half the sides."""
    position: Float[np.ndarray, "t g 3"]
    """Of the geom's frame in the world, m."""
    rotation: Float[np.ndarray, "t g 3 3"]
    """``world_from_geom``."""

    @property
    def corners(self) -> Float[np.ndarray, "t g 8 3"]:
        """In the world, m."""
        local = self.centre[:, None] + CORNERS * self.half[:, None]
        return local @ self.rotation.swapaxes(-1, -2) + self.position[..., None, :]


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """The smallest upright cuboids of (u, v, d) around what a camera can see of boxes; empty, infinite, where it is nothing."""

    low: Float[np.ndarray, "t g 3"]
    high: Float[np.ndarray, "t g 3"]

    @property
    def in_image(self) -> Bool[np.ndarray, "t g"]:
        """Whether any of the box may be in the image."""
        return np.asarray((self.low[..., :2] <= 1).all(axis=-1) & (self.high[..., :2] >= 0).all(axis=-1))


def boxes(
    model: Any, geoms: np.ndarray, position: Float[np.ndarray, "t n 3"], rotation: Float[np.ndarray, "t n 9"]
) -> Boxes:
    """Bounding boxes of some geoms of a MuJoCo model, given where all of its geoms are."""
    centre, half = np.split(model.geom_aabb[geoms], 2, axis=1)
    half = np.where(half.any(axis=1, keepdims=True), half, [PLANE, PLANE, 0.0]) + MARGIN
    turned = rotation[:, geoms].reshape(len(rotation), -1, 3, 3)
    return Boxes(centre=centre, half=half, position=position[:, geoms], rotation=turned)


def outlines(corners: Float[np.ndarray, "t g 8 3"], camera: Camera, *, nearest: float) -> Outlines:
    """Outlines of boxes for a camera that sees nothing nearer than `nearest` (m).

    What lies behind is cut off edge by edge: the corners of a box that reaches behind the camera say nothing of its outline.
    """
    pose, intrinsics = camera.world_from_cam.numpy(), camera.intrinsics.numpy()
    seen = (corners - pose[:3, 3]) @ pose[:3, :3]
    one, other = seen[:, :, EDGES[:, 0]], seen[:, :, EDGES[:, 1]]
    near = nearest - MARGIN if nearest > 2 * MARGIN else nearest / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((near - one[..., 2]) / (other[..., 2] - one[..., 2]), 0, 1)[..., None]
        cut = one + share * (other - one)
    ends = np.concatenate([np.where(end[..., 2:] >= near, end, cut) for end in (one, other)], axis=2)
    kept = np.tile((one[..., 2] >= near) | (other[..., 2] >= near), 2)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = (intrinsics[0, 0] * ends[..., 0] + intrinsics[0, 1] * ends[..., 1]) / ends[..., 2] + intrinsics[0, 2]
        v = intrinsics[1, 1] * ends[..., 1] / ends[..., 2] + intrinsics[1, 2]
    image = np.stack([u, v, ends[..., 2]], axis=-1)
    low, high = np.where(kept, image, np.inf).min(axis=2), np.where(kept, image, -np.inf).max(axis=2)
    return Outlines(low=low - MARGIN, high=high + MARGIN)
