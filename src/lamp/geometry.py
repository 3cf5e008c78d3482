"""Rigid motions, and the pinhole camera in image fractions.

Transforms are 4x4 matrices named after their frames: ``target_from_source`` maps points of `source` to `target`. Cameras
look along z with x to the right and y down. Everything is written as explicit sums of products, element by element, so that
equal inputs give bitwise equal outputs wherever they stand in a tensor: a point that does not move comes out exactly still.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.errors import ConfigError
from lamp.types import Camera


def rigid(rotation: Float[Tensor, "*#b 3 3"], translation: Float[Tensor, "*#b 3"]) -> Float[Tensor, "*b 4 4"]:
    """Builds the 4x4 matrix of x -> rotation x + translation."""
    batch = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    matrix = rotation.new_zeros(*batch, 4, 4)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def inverse(transform: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b 4 4"]:
    """Inverts a rigid transform: ``inverse(a_from_b)`` is ``b_from_a``."""
    rotation = transform[..., :3, :3].mT
    return rigid(rotation, -rotate(rotation, transform[..., :3, 3]))


def rotate(rotation: Float[Tensor, "*#b 3 3"], vectors: Float[Tensor, "*#b 3"]) -> Float[Tensor, "*b 3"]:
    """Multiplies vectors by rotation matrices whose leading axes broadcast against theirs."""
    x, y, z = vectors.unbind(-1)
    rows = [rotation[..., i, 0] * x + rotation[..., i, 1] * y + rotation[..., i, 2] * z for i in range(3)]
    return torch.stack(rows, dim=-1)


def apply(transform: Float[Tensor, "*#b 4 4"], points: Float[Tensor, "*#b 3"]) -> Float[Tensor, "*b 3"]:
    """Moves points by rigid transforms whose leading axes broadcast against theirs."""
    return rotate(transform[..., :3, :3], points) + transform[..., :3, 3]


def project(points: Float[Tensor, "*#b 3"], intrinsics: Float[Tensor, "*#b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Projects camera-frame points (m) to (u, v, d): fractions of the image's width and height, and depth in m.

    A point in the camera's plane (z = 0) comes out infinite and one behind it mirrored; callers mask both.
    """
    x, y, z = points.unbind(-1)
    u = (intrinsics[..., 0, 0] * x + intrinsics[..., 0, 1] * y) / z + intrinsics[..., 0, 2]
    v = intrinsics[..., 1, 1] * y / z + intrinsics[..., 1, 2]
    return torch.stack([u, v, z.expand_as(u)], dim=-1)


def unproject(pixels: Float[Tensor, "*#b 3"], intrinsics: Float[Tensor, "*#b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Inverts `project`: (u, v, d) to camera-frame points in m."""
    u, v, d = pixels.unbind(-1)
    y = (v - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1]
    x = (u - intrinsics[..., 0, 2] - intrinsics[..., 0, 1] * y) / intrinsics[..., 0, 0]
    return torch.stack([x * d, y * d, d.expand_as(x)], dim=-1)


def intrinsics_from_fovy(
    fovy_deg: float, width: int, height: int, *, mirrored: bool = False, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "3 3"]:
    """Intrinsics in image fractions of a centred pinhole with square pixels.

    Args:
        fovy_deg: Vertical field of view in degrees.
        mirrored: Whether the image is mirrored left to right: the horizontal focal length is then negative.

    Raises:
        ConfigError: The field of view is not between 0 and 180 degrees, or the image is empty.
    """
    if not 0 < fovy_deg < 180 or width < 1 or height < 1:
        raise ConfigError(
            f"a camera of {fovy_deg} degrees over {width}x{height} pixels is impossible; "
            "expected 0 < fovy < 180 and a width and height of at least 1"
        )
    focal = 0.5 / math.tan(math.radians(fovy_deg) / 2)
    horizontal = focal * height / width
    matrix = [[-horizontal if mirrored else horizontal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]]
    return torch.tensor(matrix, dtype=dtype)


def pose_from_mujoco_camera(
    position: Float[Tensor, "*b 3"], rotation: Float[Tensor, "*b 3 3"]
) -> Float[Tensor, "*b 4 4"]:
    """``world_from_cam`` of a MuJoCo (or OpenGL) camera, which itself looks along -z with y up."""
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=rotation.dtype, device=rotation.device)
    return rigid(rotation * flip, position)


def to_world(points: Float[Tensor, "*b k 3"], camera: Camera) -> Float[Tensor, "*b k 3"]:
    """World coordinates (m) of (u, v, d) points seen by `camera`."""
    return apply(camera.world_from_cam[..., None, :, :], unproject(points, camera.intrinsics[..., None, :, :]))


def to_image(points: Float[Tensor, "*b k 3"], camera: Camera) -> Float[Tensor, "*b k 3"]:
    """(u, v, d) in `camera` of world points (m)."""
    cam_from_world = inverse(camera.world_from_cam)[..., None, :, :]
    return project(apply(cam_from_world, points), camera.intrinsics[..., None, :, :])
