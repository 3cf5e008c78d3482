"""Attaching grid points to bodies and moving them with a recording."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamp.errors import ConfigError
from lamp.geometry import apply, inverse, project, unproject
from lamp.sceneflow.rendering import NO_BODY, View
from lamp.sceneflow.sim_states import Playback
from lamp.sceneflow.tracks import grid_pixels, pixel_centres


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which points are followed, and how far."""

    grid: tuple[int, int] = (20, 20)
    """Rows and columns of keypoints over the image (K = 400 in the paper)."""
    horizon: int = 32
    """Flow steps (T in the paper)."""
    stride: int = 1
    """Frames a flow step."""

    def __post_init__(self) -> None:
        if min(*self.grid, self.horizon, self.stride) < 1:
            raise ConfigError(
                f"grid {self.grid}, horizon {self.horizon}, stride {self.stride}: expected each at least 1, "
                "such as grid (20, 20), horizon 32, stride 1"
            )


@dataclass(frozen=True, kw_only=True)
class PointPaths:
    """Where the grid points of one frame go, in float64."""

    frame: int
    world: Float[Tensor, "t1 k 3"]
    """m"""
    image: Float[Tensor, "t1 k 3"]
    """(u, v, d) in the reference camera."""
    body: Int[Tensor, " k"]
    """MuJoCo body that each point is on."""
    moments: Int[Tensor, " t1"]
    """Frame of the recording at each moment; past the end, the last one."""
    valid: Bool[Tensor, "t1 k"]


def track_points(playback: Playback, view: View, frame: int, sampling: Sampling, *, nearest: float) -> PointPaths:
    """Attaches the grid points seen at `frame` to their bodies and moves them with the recording.

    Points on no geometry, moments past the end, and points nearer to the camera's plane than `nearest` (m) are not valid.
    """
    height, width = view.depth.shape
    pixels = grid_pixels(*sampling.grid, width, height)
    column, row = pixels.unbind(-1)
    body = view.body[row, column].long()
    on_body = body != NO_BODY
    depth = torch.where(on_body, view.depth[row, column].double(), 1.0)
    seen = torch.cat([pixel_centres(pixels, width, height), depth[:, None]], dim=-1)
    body = body.clamp(min=0)
    ahead = frame + sampling.stride * torch.arange(sampling.horizon + 1)
    moments = ahead.clamp(max=playback.length - 1)
    anchor = apply(view.camera.world_from_cam, unproject(seen, view.camera.intrinsics))
    local = apply(inverse(playback.world_from_body[frame, body]), anchor)
    world = apply(playback.world_from_body[moments[:, None], body], local)
    image = project(apply(inverse(view.camera.world_from_cam), world), view.camera.intrinsics)
    valid = on_body & (ahead < playback.length)[:, None] & (image[..., 2] > nearest)
    return PointPaths(frame=frame, world=world, image=image, body=body, moments=moments, valid=valid)
